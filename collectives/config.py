"""Timeouts and addresses, which every way into the library (an argument, a variable, the command
line) must read alike. What can be set, and from where, is in `settings`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, fields
from typing import Any

__all__ = [
    "DEFAULT_PORT",
    "LAN",
    "PRESETS",
    "WAN",
    "Timeouts",
    "format_address",
    "is_loopback",
    "parse_address",
    "parse_url",
    "resolve_host",
    "timeouts_named",
]

DEFAULT_PORT = 29400
SCHEME = "cc://"


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for what, in seconds. All peers of a group should use the same."""

    beat: float = 0.2
    """A link without other traffic carries a heartbeat this often."""
    dead: float = 2.0
    """A peer silent for so long on a link, that others do not reach either, is taken for dead."""
    connect: float = 5.0
    """A dial and its handshake, or the coordinator's first answer, take at most so long."""
    linger: float = 1.0
    """Closing waits at most so long for peers to take what was sent."""
    coordinator_lost: float = 300.0
    """With a decision outstanding, the coordinator may be away for so long before
    `CoordinatorLost`."""
    settle: float | None = None
    """A member whose connections all others have seen closed, and that has not reported so long
    after the first report, counts as dead. None: as long as `dead`. (Whom all found silent, or one
    found gone, is dead at once; whom not all accuse, after fifteen times `dead`.)"""
    joiner_lost: float = 5.0
    """A joiner that the coordinator has not heard for so long is dropped."""
    suspect: float | None = None
    """Others are asked about a peer that was silent for so long on a link, and the link is led
    through one of them if that reaches it. None: half of `dead`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is None and value is None:
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"timeouts: {field.name} must be a number of seconds")
            if not 0.001 <= value <= 1e6:  # false for NaN as well
                raise ValueError(f"timeouts: {field.name} must be 0.001 to 1000000 s, not {value}")
        if self.dead < 2 * self.beat:
            raise ValueError(
                f"timeouts: dead ({self.dead:g} s) must be at least twice beat ({self.beat:g} s), "
                "or one late heartbeat looks like a death"
            )
        if not self.beat <= self.suspect_time < self.dead:
            raise ValueError(
                f"timeouts: suspect ({self.suspect_time:g} s) must lie between beat "
                f"({self.beat:g} s) and dead ({self.dead:g} s)"
            )

    @property
    def settle_time(self) -> float:
        """`settle`, or what it is by default."""
        return self.dead if self.settle is None else self.settle

    @property
    def suspect_time(self) -> float:
        """`suspect`, or what it is by default."""
        return self.dead / 2 if self.suspect is None else self.suspect

    def scaled(self, factor: float) -> Timeouts:
        """These times, each multiplied."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name) * factor
            for field in fields(self)
            if getattr(self, field.name) is not None
        }
        return Timeouts(**values)


LAN = Timeouts()
"""For peers in one machine room."""
WAN = LAN.scaled(5)
"""For peers at different places: everything five times as long."""

PRESETS = {"lan": LAN, "wan": WAN}


def timeouts_named(name: str) -> Timeouts:
    """The preset of that name: ``lan`` or ``wan``."""
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise ValueError(f"timeouts must be 'lan' or 'wan', not {name!r}") from None


def parse_url(url: str) -> tuple[str, int]:
    """Splits ``cc://host:port`` into host and port; the port is 29400 if it is left out.

    An IPv6 address stands in brackets: ``cc://[::1]:29400``. Raises ValueError.
    """
    if not url.lower().startswith(SCHEME):
        raise ValueError(
            f"a coordinator's URL looks like cc://host:{DEFAULT_PORT}, this one does not: {url!r}"
        )
    rest = url[len(SCHEME) :].rstrip("/")
    has_port = ":" in rest.rpartition("]")[2]
    host, port = parse_address(rest if has_port else f"{rest}:{DEFAULT_PORT}")
    if port == 0:
        raise ValueError(f"a coordinator's URL needs a port other than 0: {url!r}")
    return host, port


def parse_address(address: str) -> tuple[str, int]:
    """Splits ``host:port`` or ``[v6]:port``. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"not an IPv6 address in brackets: {address!r}") from None
    elif ":" in host or "[" in host or "]" in host:
        raise ValueError(f"an IPv6 address stands in brackets, [::1]:{DEFAULT_PORT}: {address!r}")
    if not colon or not host or not host.isascii() or not host.isprintable() or " " in host:
        raise ValueError(f"an address looks like host:port, this one does not: {address!r}")
    if "/" in host or "@" in host:
        raise ValueError(f"an address is host:port and nothing more: {address!r}")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"a port is a number 0 to 65535, not {port!r}: {address!r}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """``host:port``, with brackets where an IPv6 address needs them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve_host(name: str) -> str:
    """The numeric address of a host; IPv4 is preferred, so that a name leads all peers to the
    same address. Blocks as long as the system's resolver does. Raises OSError naming the host."""
    try:
        ipaddress.ip_address(name)
        return name
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"the host name {name!r} cannot be resolved: {error}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


def is_loopback(host: str) -> bool:
    """Whether a numeric address is reachable from this machine alone."""
    return ipaddress.ip_address(host).is_loopback
