"""Timeouts and addresses, which every way into the library (an argument, a variable, the command
line) must read alike. What can be set, and from where, is in `settings`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field, fields
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


def _time(default: float | None, doc: str) -> Any:
    """A field of `Timeouts`, and its line in docs/settings.md."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for what, in seconds. All peers of a group should use the same, and their
    coordinator too. All times of the protocol are these, or follow from them by a factor that is
    said here, so that `scaled` scales all. docs/settings.md has them as a table."""

    beat: float = _time(
        0.2,
        "A link without other traffic carries a heartbeat this often. A broken link is dialled "
        "again after a fortieth of it at first, the coordinator after a quarter.",
    )
    suspect: float | None = _time(
        None,
        "Others are asked about a peer that was silent for so long on a link, and the link is led "
        "through one of them if that reaches it. When an operation has not moved for so long, its "
        "members are asked whether they have called it. None: half of `dead`.",
    )
    dead: float = _time(
        2.0,
        "A peer silent for so long on a link, that others do not reach either, is taken for dead. "
        "The connection to the coordinator is tried as often, and is broken if it stays silent for "
        "five times as long; so are the ends of streams that are passed on for others.",
    )
    settle: float | None = _time(
        None,
        "A member whose connections all others have seen closed, and that has not reported so long "
        "after the first report, counts as dead. None: as long as `dead`. (Whom all found silent, "
        "or one found gone, is dead at once; whom not all accuse, after fifteen times `dead`.)",
    )
    stalled: float = _time(
        30.0,
        "An operation that does not move for so long is told of in the log, and again each time "
        "that this has passed: whom it waits for, and whether these have called it. Nobody is "
        "accused.",
    )
    connect: float = _time(
        5.0, "A dial and its handshake, or the coordinator's first answer, take at most so long."
    )
    linger: float = _time(
        1.0, "Closing waits at most so long for peers and coordinator to take what was sent."
    )
    ping: float = _time(
        1.0,
        "A peer says this often to the coordinator that it lives; one that wants to be let in, or "
        "to open a subgroup, asks as often. The coordinator, gone, is dialled at least as often.",
    )
    repeat: float = _time(
        0.5,
        "What peer or coordinator owe each other an answer to is said again after so long; what a "
        "peer carries for another one, after four times as long.",
    )
    joiner_lost: float = _time(
        5.0,
        "A joiner that the coordinator has not heard for so long is dropped. A coordinator that "
        "ends with its job does so if all members, on its machine, had no connection for so long.",
    )
    coordinator_lost: float = _time(
        300.0,
        "With a decision outstanding, the coordinator may be away for so long before "
        "`CoordinatorLost`. A coordinator that ends with its job waits as long for its first "
        "member, and for members elsewhere that it has lost sight of, all of them.",
    )

    def __post_init__(self) -> None:
        for time in fields(self):
            value = getattr(self, time.name)
            if time.default is None and value is None:
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"timeouts: {time.name} must be a number of seconds")
            if not 0.001 <= value <= 1e6:  # false for NaN as well
                raise ValueError(f"timeouts: {time.name} must be 0.001 to 1000000 s, not {value}")
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

        if self.joiner_lost < 2 * self.ping:
            raise ValueError(
                f"timeouts: joiner_lost ({self.joiner_lost:g} s) must be at least twice ping "
                f"({self.ping:g} s), or one late message looks like a death"
            )

    @property
    def settle_time(self) -> float:
        """`settle`, or what it is by default."""
        return self.dead if self.settle is None else self.settle

    @property
    def suspect_time(self) -> float:
        """`suspect`, or what it is by default."""
        return self.dead / 2 if self.suspect is None else self.suspect

    @property
    def unaccused_time(self) -> float:
        """A member that did not report though not all accuse it has so long: its interpreter may be
        busy, or it is cut off from the coordinator alone."""
        return 15 * self.dead

    @property
    def carry_time(self) -> float:
        """Reports of others are repeated so often: their agents most likely say the same."""
        return 4 * self.repeat

    def scaled(self, factor: float) -> Timeouts:
        """These times, each multiplied."""
        values: dict[str, Any] = {
            time.name: getattr(self, time.name) * factor
            for time in fields(self)
            if getattr(self, time.name) is not None
        }
        return Timeouts(**values)


def milliseconds(seconds: float) -> int:
    """As C and ZeroMQ take times: never 0, which means something else there."""
    return max(1, round(seconds * 1000))


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
