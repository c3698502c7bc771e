"""What can be set, in one table: the fields of `Settings`.

Arguments win over the environment, the environment over the defaults here. Each field says how its
text is read, what is allowed, what it is by default and what it is for. Reading the environment,
checking arguments, the texts of errors and docs/settings.md are made from that, so that they cannot
differ. No other module reads the environment. `make docs` brings the page up to date.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from collectives.config import DEFAULT_PORT, LAN, PRESETS, WAN, Timeouts, parse_url

LOG_LEVELS = ("debug", "info", "warning", "error")
BUFFER_BYTES_MAX = 1 << 30
_SHOWN_CHARS = 80


# ---- kinds of values -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """The values that a setting may have.

    Attributes:
        type: of the value; an argument of another type is a TypeError.
        allowed: the text of a variable; completes "it must be". `argument`: of an argument, if that
            is something else.
        read: makes the value of a variable's text, or None if it cannot be one.
        check: whether the value is allowed. A ValueError of its own adds why it is not.
    """

    type: type
    allowed: str
    read: Callable[[str], Any]
    check: Callable[[Any], bool]
    argument: str = ""


def _whole(low: int, high: int, multiple: int = 1) -> Kind:
    def read(text: str) -> int | None:
        # int() takes more: signs, underscores, digits of other scripts.
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    what = f"a multiple of {multiple}," if multiple > 1 else "a whole number,"
    return Kind(
        type=int,
        allowed=f"{what} {low} to {high}",
        read=read,
        check=lambda n: low <= n <= high and n % multiple == 0,
    )


def _choice(*words: str) -> Kind:
    listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return Kind(str, listed, str.lower, lambda word: word in words)


def _name(what: str) -> Kind:
    """Something that the system knows by name; whether it does shows later."""
    return Kind(
        str,
        what,
        str,
        lambda name: name.isascii() and name.isprintable() and name.split() == [name],
    )


_FLAG = Kind(
    type=bool,
    allowed="0 or 1",
    read=lambda text: {"0": False, "1": True}.get(text),
    check=lambda flag: True,
    argument="True or False",
)
_FOLDER = Kind(
    str,
    "the path of a folder",
    str,
    lambda path: path.isprintable() and path.strip() == path and 0 < len(path) < 4096,
)
_URL = Kind(
    type=str,
    allowed=f"a URL, cc://host:{DEFAULT_PORT}",
    read=str,
    check=lambda url: parse_url(url)[1] > 0,
)
_TIMEOUTS = Kind(
    type=Timeouts,
    allowed="lan or wan",
    read=lambda text: PRESETS.get(text.lower()),
    check=lambda times: True,
    argument="a Timeouts, such as LAN or WAN",
)


# ---- the table -----------------------------------------------------------------------------------


def _row(kind: Kind, default: Any, doc: str, shown: str = "") -> Any:
    """A field. `shown` is the default as people are told it."""
    return dataclasses.field(
        default=default,
        metadata={"kind": kind, "doc": doc, "shown": shown or str(default)},
    )


@dataclass(frozen=True)
class Settings:
    """What holds, after arguments, environment and defaults. The field `streams` is the argument
    of that name and the variable ``COLLECTIVES_STREAMS``; so are the others."""

    coordinator: str | None = _row(
        _URL, None, "Where the coordinator is.", "none: it has to be given"
    )
    log: str | None = _row(
        _choice(*LOG_LEVELS),
        None,
        "What to log to standard error; no argument of `connect`.",
        "nothing; `collectives coordinator`: warning",
    )
    transport: str = _row(_choice("tcp"), "tcp", "What carries the data between peers.")
    timeouts: Timeouts = _row(  # noqa: RUF009 (a field, as the others)
        _TIMEOUTS, LAN, "How long to wait for what: see below.", "lan"
    )
    interface: str | None = _row(
        _name("the name of a network interface"),
        None,
        "Listen at this interface's address, and dial from there.",
        "the way to the coordinator",
    )
    streams: int = _row(_whole(1, 16), 2, "Bulk connections per link. The same on all peers.")
    segment_bytes: int = _row(
        _whole(64, 1 << 20, 64), 512 << 10, "Payload of one frame. The same on all peers."
    )
    congestion: str | None = _row(
        _name("the name of a TCP congestion control"),
        None,
        "TCP congestion control of the links: what net.ipv4.tcp_allowed_congestion_control lists.",
        "between hosts the system's; within one cubic or reno",
    )
    send_buffer_bytes: int = _row(
        _whole(0, BUFFER_BYTES_MAX), 0, "Send buffer of each socket.", "0: the system's"
    )
    receive_buffer_bytes: int = _row(
        _whole(0, BUFFER_BYTES_MAX),
        0,
        "Receive buffer of each socket. With a few KiB TCP can come to a stand.",
        "0: the system's",
    )
    trace: int = _row(
        _whole(0, 1 << 20),
        16384,
        "Events that the flight recorder keeps, up to a power of two; 64 bytes each. 0: none.",
    )
    trace_dir: str | None = _row(
        _FOLDER,
        None,
        "Where a trace is written when an operation fails or this peer is evicted: docs/trace.md.",
        "nowhere",
    )
    insecure: bool = _row(
        _FLAG,
        False,
        "Allow addresses other than loopback though there is no key: for networks that you trust.",
        "0",
    )
    rejoin: bool = _row(
        _FLAG,
        False,
        "This process joins a run of `collectives.torch.elastic`: docs/torch.md. Set by "
        "`collectives run --restart-dead`; no argument of `connect`.",
        "0",
    )
    from_variables: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    """The fields that a variable has set. Not a setting itself."""

    @classmethod
    def resolve(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
        """The settings of this process, or with this environment. An argument that is None counts
        as not given, a variable that is empty as not set; a variable that an argument overrides is
        not looked at.

        Raises:
            ValueError, TypeError: naming the variable or argument, its value, and what is allowed.
        """
        env = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        set_by_variable = set()
        for row in rows():
            kind: Kind = row.metadata["kind"]
            given = arguments.pop(row.name, None)
            text = env.get(variable(row.name), "").strip()
            if given is not None:
                allowed = kind.argument or kind.allowed
                is_bool = isinstance(given, bool)  # which is an int for Python
                if not isinstance(given, kind.type) or (is_bool and kind.type is not bool):
                    raise TypeError(f"{row.name} must be {allowed}, not {_shown(given)}")
                found[row.name] = _checked(row.name, given, allowed, lambda v: v, kind.check)
            elif text:
                found[row.name] = _checked(
                    variable(row.name), text, kind.allowed, kind.read, kind.check
                )
                set_by_variable.add(row.name)
        if arguments:
            raise TypeError(f"there is no setting {min(arguments)!r}")
        return cls(**found, from_variables=frozenset(set_by_variable))

    def explain(self, error: Exception) -> Exception:
        """An error of the core, naming the variables that are to blame: what the system does not
        have shows only when it is used. The core quotes what it was given."""
        text = str(error)
        blamed = [
            variable(name)
            for name in sorted(self.from_variables)
            if f'"{getattr(self, name)}"' in text
        ]
        return type(error)(f"{', '.join(blamed)}: {text}") if blamed else error


def rows() -> tuple[dataclasses.Field[Any], ...]:
    """The settings, in the order of the table."""
    return tuple(field for field in dataclasses.fields(Settings) if "kind" in field.metadata)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"COLLECTIVES_{name.upper()}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _checked(
    label: str,
    given: Any,
    allowed: str,
    read: Callable[[Any], Any],
    check: Callable[[Any], bool],
) -> Any:
    why = ""
    try:
        value = read(given)
        if value is not None and check(value):
            return value
    except ValueError as error:
        why = f": {error}"
    raise ValueError(f"{label} must be {allowed}, not {_shown(given)}{why}")


# ---- the page ------------------------------------------------------------------------------------

_INTRO = """\
# Settings

Each is an environment variable and, but for `COLLECTIVES_LOG` and `COLLECTIVES_REJOIN`, an
argument of `connect`: `COLLECTIVES_STREAMS=4` is `connect(streams=4)`. Arguments win over the
environment, the environment over the defaults. An empty variable counts as not set; a wrong one is
an error that names it.

<!-- Made by `make docs` of collectives/settings.py; a test compares. -->

| variable | allowed | default | what it is |
|---|---|---|---|
"""

_TIMES = """
## Timeouts

`LAN` is for peers in one machine room, `WAN` for peers at different places: everything takes five
times as long. `dataclasses.replace(LAN, dead=5.0)` changes one time, `LAN.scaled(2)` all. In
seconds; in brackets, what is not set and follows from another. All times of the protocol are these
or follow from them. What else there is concerns the machine itself: how long to spin before
sleeping, when to give memory back, how soon a Ctrl-C is noticed.

| field | lan | wan | what it is |
|---|---|---|---|
"""


def page() -> str:
    """The text of docs/settings.md."""
    lines = [
        f"| `{variable(row.name)}` | {row.metadata['kind'].allowed} | {row.metadata['shown']} "
        f"| {row.metadata['doc']} |\n"
        for row in rows()
    ]
    times = [
        f"| `{time.name}` | {_seconds(LAN, time.name)} | {_seconds(WAN, time.name)} "
        f"| {time.metadata['doc']} |\n"
        for time in dataclasses.fields(Timeouts)
    ]
    return _INTRO + "".join(lines) + _TIMES + "".join(times)


def _seconds(times: Timeouts, name: str) -> str:
    """A time; of one that follows from another unless it is set, what that comes to."""
    value = getattr(times, name)
    return f"({getattr(times, name + '_time'):g})" if value is None else f"{value:g}"
