"""The flight recorder as people read it: the core's last events as a Chrome trace, which Perfetto
opens. docs/trace.md.

The core keeps events in a ring (`csrc/collectives_trace.h`); here they are copied out and drawn. A
trace is made on demand, by `Communicator.trace`, or by a `Recorder` when something fails. Nothing
here waits for the core.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from collectives import messages
from collectives._core import ffi, lib
from collectives.core import Context
from collectives.seat import Seat
from collectives.trace_draw import About, Event, chrome

log = logging.getLogger("collectives.trace")

FILES_MAX = 16
"""Written by one process when something fails."""

_FIELDS = [name for name, _ in ffi.typeof("cc_trace_event").fields if name != "peer"]


def events(native: Any) -> list[Event]:
    """The events that a cc_context still has, oldest first."""
    capacity = int(lib.cc_trace_capacity(native))
    copies = ffi.new("cc_trace_event[]", max(1, capacity))
    count = ffi.new("uint32_t *")
    lib.cc_trace_read(native, copies, capacity, count)
    return [
        Event(**{name: getattr(event, name) for name in _FIELDS}, peer=bytes(event.peer))
        for event in copies[0 : count[0]]
    ]


def snapshot(context: Context, seat: Seat, peer: bytes) -> dict[str, Any]:
    """The Chrome trace object of a peer; `seat` is its place in the group that it joined."""
    found = events(context.native)
    now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    members: dict[bytes, messages.Member] = {}
    for record in (seat.settled, seat.current):
        members.update({member.id: member for member in record.members} if record else {})
    me = members.get(peer)
    about = About(
        peer=peer,
        name=me.name if me else "",
        rank=me.rank if me else None,
        run=context.run,
        process=os.getpid(),
        clock=_clock_name(),
        wall_ns=wall_ns - now_ns,
        now_ns=now_ns,
        members={m.id[:8]: (m.rank, m.name) for m in members.values()},
    )
    return chrome(found, about)


def write(trace: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a trace object. Whoever finds the file finds all of it."""
    part = f"{os.fspath(path)}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(json.dumps(trace, sort_keys=True))
    os.replace(part, path)


def _clock_name() -> str:
    """Equal for processes that read the same monotonic clock: of one boot of one machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        boot += str(os.stat("/proc/self/ns/time").st_ino).encode()
    except OSError:
        boot = os.urandom(16)  # nobody's but ours, as far as we can tell
    return hashlib.blake2b(boot, digest_size=8).hexdigest()


class Recorder:
    """Writes a trace when an operation fails or this peer is evicted: one for each kind of error in
    each epoch, and `FILES_MAX` in all. Any thread may call it; it raises nothing."""

    def __init__(self, context: Context, seat: Seat, peer: bytes, folder: str) -> None:
        self._context = context
        self._seat = seat
        self._peer = peer
        self._folder = folder
        self._known: set[_Failure] = set()

    def __call__(self, status: int, epoch: int) -> None:
        if status == lib.CC_CLOSED:
            return  # that is no failure, or not of this peer
        for_all = status in (lib.CC_EVICTED, lib.CC_COORDINATOR_LOST)
        failure = _Failure(status, 0 if for_all else epoch)
        with _lock:
            if failure in self._known:
                return
            self._known.add(failure)
            number = next(_numbers)
        if number >= FILES_MAX:
            return
        try:
            self._write(number)
        except Exception as error:  # the failure itself is what the program must hear of
            log.warning("no trace of a failure could be written: %s", error)

    def _write(self, number: int) -> None:
        trace = snapshot(self._context, self._seat, self._peer)
        who = trace["otherData"]["name"] or self._peer.hex()[:16]
        who = re.sub(r"[^A-Za-z0-9._-]", "_", who)
        path = Path(self._folder) / f"collectives-{who}-{os.getpid()}-{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(trace, path)
        log.info("trace of a failure: %s", path)


class _Failure(NamedTuple):
    status: int
    epoch: int


_lock = threading.Lock()
_numbers = itertools.count()
