"""How a process becomes a member: `connect`."""

from __future__ import annotations

import ipaddress
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any

from collectives import messages
from collectives._core import ffi, lib
from collectives.agent import Agent
from collectives.communicator import Communicator
from collectives.config import (
    LAN,
    Settings,
    Timeouts,
    format_address,
    is_loopback,
    parse_address,
    parse_url,
    resolve_host,
)
from collectives.core import Context
from collectives.errors import CoordinatorUnreachable
from collectives.work import timeout_ms

_NATIVE = {"congestion", "send_buffer_bytes", "receive_buffer_bytes", "io_max_bytes"}


def _host_number() -> int:
    """Equal for peers of one host: of one boot of one machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = str(uuid.getnode())
    try:
        network = os.stat("/proc/self/ns/net").st_ino  # peers in other namespaces are remote
    except OSError:
        network = 0
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{boot}{network}").int >> 64


def _default_bind(url: str, insecure: bool) -> str:
    """Loopback if the coordinator is on loopback, else the address that leads to it."""
    host, port = parse_url(url)
    try:
        numeric = resolve_host(host)
    except OSError as error:
        raise CoordinatorUnreachable(
            f"the coordinator at {url} cannot be reached: {error}"
        ) from None
    family = socket.AF_INET6 if ":" in numeric else socket.AF_INET
    if is_loopback(numeric):
        return format_address(numeric, 0)
    if not insecure:
        raise ValueError(
            "without a key, peers listen on loopback only: the coordinator is at "
            f"{host}, so pass insecure=True if you trust the network between them"
        )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect((numeric, port))
        return format_address(probe.getsockname()[0], 0)


def _bind_address(bind: str | None, advertise: str | None, url: str, insecure: bool) -> str:
    if bind is None:
        return _default_bind(url, insecure)
    host, port = parse_address(bind if bind.rpartition("]")[2].count(":") else f"{bind}:0")
    numeric = resolve_host(host)
    if not is_loopback(numeric) and not insecure:
        raise ValueError(
            f"without a key, peers listen on loopback only, not on {host}: pass insecure=True "
            "if you trust the network"
        )
    if ipaddress.ip_address(numeric).is_unspecified and advertise is None:
        raise ValueError(f"others cannot dial {host}: pass advertise= with an address they can")
    return format_address(numeric, port)


def _port_range(ports: tuple[int, int] | None) -> dict[str, int]:
    if ports is None:
        return {}
    first, last = ports
    if not 0 < first <= last < 65536:
        raise ValueError(f"ports must be a first and a last port, 1 to 65535, not {ports!r}")
    return {"port_first": first, "port_last": last}


def _stream_settings(
    settings: Settings, streams: int | None, segment_bytes: int | None
) -> dict[str, int]:
    """What all peers of a group must agree on: the argument, the environment or the default."""
    defaults = ffi.new("cc_options *")
    lib.cc_options_default(defaults)
    result = {"streams": int(defaults.streams), "segment_bytes": int(defaults.segment_bytes)}
    for name, given in (("streams", streams), ("segment_bytes", segment_bytes)):
        value = getattr(settings, name) if given is None else given
        if value is not None:
            if not isinstance(value, int) or not 0 < value < 2**32:
                raise ValueError(f"{name} must be a positive number, not {value!r}")
            result[name] = value
    return result


def connect(
    coordinator: str | None = None,
    *,
    group: str = "default",
    size: int = 1,
    min_size: int = 1,
    name: str | None = None,
    rank: int | None = None,
    timeouts: Timeouts | None = None,
    timeout: float | None = None,
    bind: str | None = None,
    advertise: str | None = None,
    interface: str | None = None,
    ports: tuple[int, int] | None = None,
    transport: str | None = None,
    streams: int | None = None,
    segment_bytes: int | None = None,
    insecure: bool = False,
    on_epoch: Callable[[int], None] | None = None,
    **native: Any,
) -> Communicator:
    """Joins a group and returns when this peer is a member.

    The first `size` peers form the group; who comes later waits until the members call `admit`.

    Args:
        coordinator: its URL, ``"cc://host:29400"``; by default ``COLLECTIVES_COORDINATOR``.
        group: the group's name. Its first peer fixes size, min_size, streams and segment_bytes.
        size: how many peers form the group.
        min_size: with fewer members left, operations raise `GroupTooSmall`.
        name: tells peers apart in messages, and orders ranks where `rank` is not given.
        rank: the rank wanted in the first epoch.
        timeouts: `LAN` (default), `WAN` or your own.
        timeout: seconds to wait until this peer is a member; None waits as long as it takes.
        bind: address to listen on, ``"host"`` or ``"host:port"``; by default loopback if the
            coordinator is there, else the address that leads to the coordinator.
        advertise: the address told to other peers, ``"host"`` or ``"host:port"``.
        interface: listen on this network interface's address.
        ports: first and last port to listen on.
        streams: bulk connections per link, 1 to 16.
        segment_bytes: payload of one frame.
        insecure: allow addresses other than loopback though the run has no key.
        on_epoch: called with each new epoch's number, by the agent's thread.
        native: `congestion`, `send_buffer_bytes`, `receive_buffer_bytes`, `io_max_bytes`: as in
            `cc_options` of csrc/collectives.h.

    Raises:
        CoordinatorUnreachable, Refused, TimedOut: it did not work, and why.
        ValueError, TypeError: wrong arguments.
    """
    settings = Settings.from_environment()
    url = coordinator or settings.coordinator
    if url is None:
        raise ValueError("no coordinator: pass its URL or set COLLECTIVES_COORDINATOR")
    times = timeouts or settings.timeouts or LAN
    if not isinstance(times, Timeouts):
        raise TypeError(f"timeouts must be a Timeouts, such as LAN or WAN, not {times!r}")
    timeout_ms(timeout)  # refuses what is no timeout
    for key in native.keys() - _NATIVE:
        raise TypeError(f"connect() got an unexpected keyword argument {key!r}")
    agreed = _stream_settings(settings, streams, segment_bytes)
    options: dict[str, Any] = {
        "transport": transport or settings.transport,
        "interface": interface or settings.interface,
        "advertise": _numeric_advertise(advertise),
        "bind_address": _bind_address(bind, advertise, url, insecure),
        **agreed,
        **_port_range(ports),
        **native,
    }
    peer = uuid.uuid4().bytes
    context = Context(peer, times, **options)
    join = messages.Join(
        version=messages.PROTOCOL_VERSION,
        id=peer,
        group=group,
        name=name or "",
        rank=rank,
        size=size,
        min_size=min_size,
        address=context.address(),
        host=_host_number(),
        **agreed,
    )
    callback = None if on_epoch is None else lambda record: on_epoch(record.epoch)
    agent = Agent(context, url, join, times, callback)
    try:
        messages.encode(join)
        agent.start()
        agent.wait_joined(timeout)
    except BaseException:
        agent.close()
        context.close(abort=True)
        raise
    return Communicator(context, agent, agent.root, peer)


def _numeric_advertise(advertise: str | None) -> str | None:
    if advertise is None:
        return None
    if advertise.rpartition("]")[2].count(":") == 1:
        host, port = parse_address(advertise)
        return format_address(resolve_host(host), port)
    return resolve_host(advertise.strip("[]"))
