"""How a process becomes a member: `connect`."""

from __future__ import annotations

import ipaddress
import socket
import uuid
from collections.abc import Callable
from typing import Any

from collectives import logs, messages
from collectives.agent import Agent
from collectives.communicator import Communicator
from collectives.config import (
    Timeouts,
    format_address,
    is_loopback,
    parse_address,
    parse_url,
    resolve_host,
)
from collectives.core import Context
from collectives.errors import CollectivesError, CoordinatorUnreachable
from collectives.hosts import host_number
from collectives.settings import Settings
from collectives.trace import Recorder
from collectives.work import timeout_ms

_LOOPBACK = "lo"  # Linux's name of that interface


def _default_bind(url: str, insecure: bool, interface: str | None) -> str:
    """The interface's address, if there is one. Else loopback if the coordinator is on loopback,
    else the address that leads to it."""
    host, port = parse_url(url)
    try:
        numeric = resolve_host(host)
    except OSError as error:
        raise CoordinatorUnreachable(
            f"the coordinator at {url} cannot be reached: {error}"
        ) from None
    family = socket.AF_INET6 if ":" in numeric else socket.AF_INET
    if interface is None and is_loopback(numeric):
        return format_address(numeric, 0)
    if not insecure and interface != _LOOPBACK:
        where = (
            f"the coordinator is at {host}"
            if interface is None
            else f"{interface} is another interface"
        )
        raise ValueError(
            f"without a key, peers listen on loopback only: {where}, so pass insecure=True if you "
            "trust the network between them"
        )
    if interface is not None:  # the core knows its address
        return format_address("::" if family == socket.AF_INET6 else "0.0.0.0", 0)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
        probe.connect((numeric, port))
        return format_address(probe.getsockname()[0], 0)


def _bind_address(
    bind: str | None, advertise: str | None, url: str, insecure: bool, interface: str | None
) -> str:
    if bind is None:
        return _default_bind(url, insecure, interface)
    host, port = parse_address(bind if bind.rpartition("]")[2].count(":") else f"{bind}:0")
    numeric = resolve_host(host)
    if not is_loopback(numeric) and not insecure:
        raise ValueError(
            f"without a key, peers listen on loopback only, not on {host}: pass insecure=True "
            "if you trust the network"
        )
    nowhere = ipaddress.ip_address(numeric).is_unspecified and interface is None
    if nowhere and advertise is None:
        raise ValueError(f"others cannot dial {host}: pass advertise= with an address they can")
    return format_address(numeric, port)


def _port_range(ports: tuple[int, int] | None) -> dict[str, int]:
    if ports is None:
        return {}
    first, last = ports
    if not 0 < first <= last < 65536:
        raise ValueError(f"ports must be a first and a last port, 1 to 65535, not {ports!r}")
    return {"port_first": first, "port_last": last}


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
    congestion: str | None = None,
    send_buffer_bytes: int | None = None,
    receive_buffer_bytes: int | None = None,
    trace: int | None = None,
    trace_dir: str | None = None,
    io_max_bytes: int = 0,
    insecure: bool | None = None,
    existing: bool = False,
    on_epoch: Callable[[int], None] | None = None,
) -> Communicator:
    """Joins a group and returns when this peer is a member.

    The first `size` peers form the group; who comes later waits until the members call `admit`.

    Args:
        coordinator: its URL, ``"cc://host:29400"``. This, timeouts, interface, from transport to
            trace_dir, and insecure are by default what the environment says: docs/settings.md.
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
        interface: listen on this network interface's address, and dial from there.
        ports: first and last port to listen on.
        transport: what carries the data between peers.
        streams: bulk connections per link, 1 to 16.
        segment_bytes: payload of one frame, a multiple of 64 up to 1 MiB.
        congestion: TCP congestion control of the links; by default chosen per link.
        send_buffer_bytes, receive_buffer_bytes: of each socket; 0 stands for the system's default.
        trace: how many events the flight recorder keeps, see `Communicator.trace`; 0: none.
        trace_dir: a folder for a trace of each failure; by default none is written.
        io_max_bytes: for tests: no read or write moves more than this; 0: no limit.
        insecure: allow addresses other than loopback though the run has no key.
        existing: join a group that has members, or else be refused, also while waiting: for who
            comes later to a run that may be over by then.
        on_epoch: called with each new epoch's number, by the agent's thread.

    Raises:
        CoordinatorUnreachable, Refused, TimedOut: it did not work, and why.
        ValueError, TypeError: wrong arguments.
    """
    settings = Settings.resolve(
        coordinator=coordinator,
        transport=transport,
        timeouts=timeouts,
        interface=interface,
        streams=streams,
        segment_bytes=segment_bytes,
        congestion=congestion,
        send_buffer_bytes=send_buffer_bytes,
        receive_buffer_bytes=receive_buffer_bytes,
        trace=trace,
        trace_dir=trace_dir,
        insecure=insecure,
    )
    logs.attach(settings.log)
    url, times = settings.coordinator, settings.timeouts
    if url is None:
        raise ValueError("no coordinator: pass its URL or set COLLECTIVES_COORDINATOR")
    timeout_ms(timeout)  # refuses what is no timeout
    # All peers of a group must agree on these.
    agreed = {"streams": settings.streams, "segment_bytes": settings.segment_bytes}
    options: dict[str, Any] = {
        "transport": settings.transport,
        "interface": settings.interface,
        "congestion": settings.congestion,
        "send_buffer_bytes": settings.send_buffer_bytes,
        "receive_buffer_bytes": settings.receive_buffer_bytes,
        "io_max_bytes": io_max_bytes,
        "trace_events": settings.trace,
        "advertise": _numeric_advertise(advertise),
        "bind_address": _bind_address(bind, advertise, url, settings.insecure, settings.interface),
        **agreed,
        **_port_range(ports),
    }
    peer = uuid.uuid4().bytes
    try:
        context = Context(peer, times, **options)
    except (ValueError, NotImplementedError, CollectivesError) as error:
        raise settings.explain(error) from None
    join = messages.Join(
        version=messages.PROTOCOL_VERSION,
        id=peer,
        group=group,
        name=name or "",
        rank=rank,
        size=size,
        min_size=min_size,
        address=context.address(),
        host=host_number(),
        existing=existing,
        **agreed,
    )
    callback = None if on_epoch is None else lambda record: on_epoch(record.epoch)
    agent = Agent(context, url, join, times, callback)
    if settings.trace_dir is not None:
        context.on_failure = Recorder(context, agent.root, peer, settings.trace_dir)
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
