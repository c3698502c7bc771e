"""How a peer's events look as a Chrome trace: a track for each lane, with the operations in it as
bars, and tracks for groups and links, with what happened to them as marks.

Pure: events and what is to be known of the peer in, the object out. Times in it are microseconds of
the peer's clock; `otherData` says what that is in the world, and whose trace it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from collectives._core import ffi, lib
from collectives.core import text
from collectives.trace_merge import FORMAT


def _names(enumeration: str, prefix: str) -> dict[int, str]:
    """The names of a C enumeration, in lower case and without their prefix."""
    elements = ffi.typeof(enumeration).elements
    return {int(code): name.removeprefix(prefix).lower() for code, name in elements.items()}


KINDS = _names("cc_kind", "CC_")
STATUSES = _names("cc_status", "CC_")
ALGORITHMS = _names("cc_algorithm", "CC_")
CAUSES = _names("cc_cause", "CC_CAUSE_")
EVIDENCE = _names("cc_evidence_kind", "CC_EVIDENCE_")
EVENTS = {code: text(lib.cc_trace_name(code)) for code in _names("cc_trace_kind", "")}
_WISHES = {lib.CC_WANT_JOIN: "join", lib.CC_WANT_LEAVE: "leave"}
_MESSAGES = (lib.CC_SEND, lib.CC_RECEIVE)
_LINKS = range(lib.CC_TRACE_LINK_DIALLED, lib.CC_TRACE_EVIDENCE + 1)
_OPERATIONS = range(lib.CC_TRACE_POSTED, lib.CC_TRACE_MESSAGE_ENDED + 1)
_POSTED = (lib.CC_TRACE_POSTED, lib.CC_TRACE_MESSAGE_POSTED)


class Event(NamedTuple):
    """A cc_trace_event."""

    number: int
    time_ns: int
    epoch: int
    sequence: int
    value: int
    more: int
    group: int
    kind: int
    lane: int
    what: int
    code: int
    peer: bytes


@dataclass(frozen=True)
class About:
    """Whose events they are.

    Attributes:
        rank: None as long as it is no member.
        run: equal for all peers of a run.
        clock: names the clock of the events: equal for peers of one machine.
        wall_ns: what the time of day is ahead of that clock.
        now_ns: by that clock.
        members: rank and name, by the first 8 bytes of the id.
    """

    peer: bytes
    name: str
    rank: int | None
    run: str
    process: int
    clock: str
    wall_ns: int
    now_ns: int
    members: Mapping[bytes, tuple[int, str]] = field(default_factory=dict)

    def label(self, peer: bytes) -> str:
        """How people are told of a peer, by the first bytes of its id."""
        if peer not in self.members:
            return f"peer {peer.hex()}"
        rank, name = self.members[peer]
        return f"rank {rank} {name}".rstrip()


@dataclass
class _Span:
    """An operation or message, as far as its events are there."""

    first: Event
    is_whole: bool  # its beginning is there
    begun: int  # the last attempt
    epoch: int = 0
    attempts: int = 1
    moved: int | None = None
    done: int | None = None
    algorithm: str = ""
    ended: int | None = None
    status: str = "open"
    sequence: int = 0
    peer: bytes = b""

    @property
    def start(self) -> int:
        return self.first.more

    def take(self, event: Event) -> None:
        self.epoch = event.epoch or self.epoch
        self.sequence = event.sequence or self.sequence
        if any(event.peer):
            self.peer = event.peer
        if event.kind == lib.CC_TRACE_MOVED:
            self.moved = event.time_ns
        elif event.kind == lib.CC_TRACE_DONE:
            self.done, self.algorithm = event.time_ns, ALGORITHMS[event.code]
        elif event.kind == lib.CC_TRACE_AGAIN:
            self.begun, self.moved, self.done = event.time_ns, None, None
            self.attempts, self.is_whole = event.code, True  # what is known of it is enough
        elif event.kind not in _POSTED:
            self.ended, self.status = event.time_ns, STATUSES[event.code]

    def phases(self, end: int) -> Iterator[tuple[str, int, int]]:
        """What the last attempt did, and from when to when."""
        moved = self.moved
        if moved is None:  # it waits until now, or all that it did was here
            moved = end if self.done is None else self.begun
        done = end if self.done is None else self.done
        yield "waits", self.begun, moved
        yield "moves", moved, done
        yield "votes", done, end

    def args(self, about: About, end: int) -> dict[str, Any]:
        event = self.first
        args: dict[str, Any] = {"group": event.group, "sequence": self.sequence}
        args |= {"bytes": event.value, "status": self.status}
        if event.what in _MESSAGES:
            return args | ({"peer": about.label(self.peer)} if self.peer else {})
        args |= {"lane": event.lane, "epoch": self.epoch, "algorithm": self.algorithm}
        if self.is_whole:
            args["attempts"] = self.attempts
        for phase, begin, until in self.phases(end):
            args[f"{phase}_us"] = (until - begin) / 1000
        return args


class _Track(NamedTuple):
    """Where something is drawn; they are shown in this order."""

    group: int  # 0: links
    part: int  # 0: the group itself, 1: a lane, 2: messages
    lane: int = 0
    row: int = 0  # of what happens at the same time

    @property
    def title(self) -> str:
        if self.group == 0:
            return "links"
        part = ("", f" lane {self.lane}", " messages")[self.part]
        return f"group {self.group}{part}" + (f" +{self.row}" if self.row else "")


class _Shape(NamedTuple):
    """A bar, or with no duration a mark."""

    start: int
    duration: int | None
    track: _Track
    name: str
    category: str
    args: Mapping[str, Any]


def chrome(events: Sequence[Event], about: About) -> dict[str, Any]:
    """The Chrome trace object of a peer's events."""
    spans = _spans(events)
    shapes = [*_bars(spans, about), *_marks(events, about)]
    # A bar comes before those that lie in it.
    shapes.sort(key=lambda shape: (shape.start, -(shape.duration or 0), shape.track, shape.name))
    tracks = {track: 1 + i for i, track in enumerate(sorted({shape.track for shape in shapes}))}
    pid = about.rank or 0
    return {
        "displayTimeUnit": "ns",
        "otherData": _other_data(events, about),
        "traceEvents": [*_titles(tracks, pid, about), *(_entry(s, tracks, pid) for s in shapes)],
    }


def _spans(events: Iterable[Event]) -> list[_Span]:
    found: dict[tuple[int, ...], _Span] = {}
    for event in events:
        if event.kind not in _OPERATIONS:
            continue
        key: tuple[int, ...] = (event.group, 0, event.lane, event.sequence)
        if event.what in _MESSAGES:  # a receive has no number yet when it is posted
            key = (event.group, event.what, event.more)
        if key not in found:
            found[key] = _Span(event, is_whole=event.kind in _POSTED, begun=event.more)
        found[key].take(event)
    return sorted(found.values(), key=lambda span: (span.start, span.first.number))


def _bars(spans: Iterable[_Span], about: About) -> Iterator[_Shape]:
    """Operations that overlap get rows of their own: bars of one track must lie in each other."""
    free_at: dict[_Track, int] = {}
    for span in spans:
        event = span.first
        end = max(about.now_ns, span.start) if span.ended is None else span.ended
        is_message = event.what in _MESSAGES
        track = _Track(event.group, 2 if is_message else 1, 0 if is_message else event.lane)
        while free_at.get(track, span.start) > span.start:
            track = track._replace(row=track.row + 1)
        free_at[track] = end
        name, args = KINDS[event.what], span.args(about, end)
        category = "message" if is_message else "operation"
        yield _Shape(span.start, end - span.start, track, name, category, args)
        for phase, begin, until in () if is_message else span.phases(end):
            if until > begin:
                yield _Shape(begin, until - begin, track, phase, "phase", {})


def _marks(events: Iterable[Event], about: About) -> Iterator[_Shape]:
    for event in events:
        if event.kind in _OPERATIONS and event.kind != lib.CC_TRACE_AGAIN:
            continue
        track = _Track(event.group, 0)
        category = "membership"
        args: dict[str, Any] = {"group": event.group, "epoch": event.epoch}
        if event.kind in _LINKS:
            track, category, args = _Track(0, 0), "link", {}
        elif event.kind == lib.CC_TRACE_INSTALLED:
            category = "epoch"
        name = EVENTS.get(event.kind, "unknown")
        if any(event.peer):
            args["peer"] = about.label(event.peer)
            name = f"{name}: {args['peer']}"
        yield _Shape(event.time_ns, None, track, name, category, args | _details(event))


def _details(event: Event) -> dict[str, Any]:
    """What an event's own fields mean."""
    kind, code, value = event.kind, event.code, event.value
    args: dict[str, Any] = {}
    if kind in (lib.CC_TRACE_SEALED, lib.CC_TRACE_INSTALLED):
        args["cause"] = CAUSES[code]
    if kind in (lib.CC_TRACE_SEALED, lib.CC_TRACE_LINK_LOST, lib.CC_TRACE_EVIDENCE) and value:
        args["evidence"] = EVIDENCE[value]
    if kind in (lib.CC_TRACE_GROUP_ENDED, lib.CC_TRACE_LINK_BROKEN, lib.CC_TRACE_LINK_LOST):
        args["status"] = STATUSES[code]
    if kind in (lib.CC_TRACE_LINK_DIALLED, lib.CC_TRACE_LINK_PROBED):
        args["through_another"] = bool(value)
    if kind == lib.CC_TRACE_INSTALLED:
        args["members"] = value
    if kind == lib.CC_TRACE_PENDING:
        args["joiners"] = value
    if kind == lib.CC_TRACE_BOUNDARY:
        args["wishes"] = [wish for bit, wish in _WISHES.items() if value & bit]
    if kind == lib.CC_TRACE_AGAIN:
        args |= {"operation": KINDS[event.what], "lane": event.lane, "sequence": event.sequence}
        args["attempts"] = code
    return args


def _entry(shape: _Shape, tracks: Mapping[_Track, int], pid: int) -> dict[str, Any]:
    entry = {
        "name": shape.name,
        "cat": shape.category,
        "pid": pid,
        "tid": tracks[shape.track],
        "ts": shape.start / 1000,
        "args": dict(shape.args),
    }
    if shape.duration is None:
        return entry | {"ph": "i", "s": "t"}
    return entry | {"ph": "X", "dur": shape.duration / 1000}


def _titles(tracks: Mapping[_Track, int], pid: int, about: About) -> Iterator[dict[str, Any]]:
    def title(what: str, tid: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}

    who = f"peer {about.peer.hex()[:16]}" if about.rank is None else about.label(about.peer[:8])
    yield title("process_name", 0, name=who)
    yield title("process_sort_index", 0, sort_index=pid)
    for track, tid in tracks.items():
        yield title("thread_name", tid, name=track.title)
        yield title("thread_sort_index", tid, sort_index=tid)


def _other_data(events: Sequence[Event], about: About) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": about.run,
        "peer": about.peer.hex(),
        "name": about.name,
        "rank": about.rank,
        "process": about.process,
        "clock": about.clock,
        "wall_ns": about.wall_ns,
        "first_event": events[0].number if events else 0,
        "last_event": events[-1].number if events else 0,
    }
