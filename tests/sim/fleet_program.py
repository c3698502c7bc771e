"""What the processes of a fleet call: the same program everywhere, each in its own time.

The program is phases without end. A phase is some operations in each of some lanes, some messages
between pairs, and then a boundary. An operation's number in its lane says which it is, so who joins
knows from its first record where the others are, as a program knows from the state that it is
handed. What differs between processes is drawn: when each posts, how far ahead, who leaves.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from control_network import MS, NEVER, US
from fleet_calls import Call, Message, content, note
from fleet_split import Split
from peer import Refused
from programs import Spec, post

from collectives._core import lib

if TYPE_CHECKING:
    from fleet_process import Process

AHEAD = 12
BOUNDARY = Spec("boundary", 0)


class Lane:
    """How far a process is in one lane."""

    def __init__(self, size: int) -> None:
        self.size = size  # the numbers that a phase uses
        self.posted = 0
        self.open: deque[Call] = deque()


class Program:
    """The program as one process runs it.

    Attributes:
        phase: the one it is in; -1 before it is a member.
        stopped: it has done all it is meant to.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.fleet = process.fleet
        self.plan = process.fleet.plan
        self.rng = random.Random(hash((self.fleet.seed, process.index)))
        self.phase = -1
        self.stopped = False
        self.leaving = False
        self.odd = False  # the next call will be another one than the others make
        self.lanes = {lane: Lane(size) for lane, size in self.plan.sizes.items()}
        self.messages: deque[Message] = deque()
        self.split: Split | None = None  # the subgroup that it splits off in this phase
        self._record: Any = None  # that ranks go by
        self._rank = 0
        self._boundary: Call | None = None
        self._messages_left: list[int] = []
        self._next_ns = 0
        self._waits = False  # for something that is open, before it can go on
        self._pace_ns = self.rng.choice([20, 60, 200]) * US

    def step(self, now: int) -> int:
        """Posts what it wants to post now. Returns when it wants its next turn."""
        if self.phase < 0 or self.stopped:
            if self.stopped or self.process.seat.settled is None or self.process.is_out:
                return NEVER
            self._start(self.process.seat.settled)
        found = self._reap(now)
        self._waits = self._waits and not found
        if self.process.is_out:
            self.stopped = True
            return NEVER
        if now < self._next_ns:
            return self._next_ns
        if self._waits:
            return NEVER
        if self._boundary is not None:
            if self._boundary.told is None:
                return NEVER
            self._pass(self._boundary, now)
            return max(now, self._next_ns)
        return self._go_on(now)

    def _start(self, record: Any) -> None:
        for outcome in record.lanes:
            if outcome.lane in self.lanes:
                self.lanes[outcome.lane].posted = outcome.failed
        self._settle(record)
        self._enter(min(lane.posted // lane.size for lane in self.lanes.values()))

    def _settle(self, record: Any) -> None:
        self._record = record
        self._rank = next(m.rank for m in record.members if m.id == self.process.id)

    def _enter(self, phase: int) -> None:
        self.phase = phase
        world = self._record.world
        self._messages_left = list(range(self.plan.messages)) if world > 1 else []
        self.split = None
        if self._rank in self.plan.split(phase, world):
            ids = {member.rank: member.id for member in self._record.members}
            members = tuple(ids[rank] for rank in self.plan.split(phase, world))
            self.split = Split(self.process, phase, members)
        self.fleet.entered(phase)

    # ---- what is complete ---------------------------------------------------------------------

    def _reap(self, now: int) -> bool:
        """Takes note of what is complete; whether anything is."""
        found = False
        for lane in self.lanes.values():
            while lane.open and lane.open[0].operation.done:
                call = lane.open.popleft()
                note(call, now)
                found = True
                self.fleet.finished(call)
        for message in list(self.messages):
            if message.operation.done:
                message.told = message.operation.status
                self.messages.remove(message)
                found = True
        if self.split is not None and not self.split.over:
            self.split.step(now)
            found |= self.split.over
        return found

    # ---- what is next -------------------------------------------------------------------------

    def _left(self) -> list[int]:
        """The lanes in which something of this phase is left to post, but the boundary."""
        end = self.phase + 1
        return [
            number
            for number, lane in self.lanes.items()
            if lane.posted < end * lane.size - (number == 0)
        ]

    def _go_on(self, now: int) -> int:
        left = self._left()
        rng = self.rng
        if self._messages_left and rng.random() < 0.3:
            self._post_message(self._messages_left.pop(), now)
        elif left:
            number = rng.choice(left)
            lane = self.lanes[number]
            if len(lane.open) >= AHEAD:
                self._waits = True
                return NEVER
            self._post(number, now)
        elif self._messages_left:
            self._post_message(self._messages_left.pop(), now)
        else:
            return self._finish_phase(now)
        pause = rng.random() * 2 * self._pace_ns if rng.random() < 0.7 else 0
        self._next_ns = now + int(pause)
        if rng.random() < 0.01:  # a rank that does something else for a while
            self._next_ns += rng.randrange(30 * MS)
        return self._next_ns

    def _finish_phase(self, now: int) -> int:
        splits = self.split is not None and not self.split.over
        if splits or any(lane.open for lane in self.lanes.values()):
            self._waits = True
            return NEVER
        fleet = self.fleet
        if fleet.stop_phase is not None and self.phase >= fleet.stop_phase:
            self.stopped = not self.messages
            return NEVER
        if self.lanes[0].posted < (self.phase + 1) * self.lanes[0].size:
            self._post_boundary(now)
        else:  # it came into the middle of a phase whose boundary is over
            self._enter(self.phase + 1)
        return now

    def _pass(self, call: Call, now: int) -> None:
        self._boundary = None
        if call.operation.info.changed and not self.leaving:
            self._settle(self.process.seat.settled)
        self.leaving = False
        self._enter(self.phase + 1)
        self._next_ns = now + self.fleet.rest_ns(self.rng)

    # ---- posting ------------------------------------------------------------------------------

    def _post(self, number: int, now: int) -> None:
        lane = self.lanes[number]
        phase, place = divmod(lane.posted, lane.size)
        spec = self.plan.spec(phase, number, place, self._record.world)
        if self.odd:
            self.odd = False
            spec = replace(
                spec,
                kind="all_reduce",
                count=spec.count + 7,
                uneven=False,
                op="max",
                algorithm="auto",
            )
        deadline = None
        if self.plan.deadlines and self.rng.random() < 0.1:
            deadline = self.rng.choice([5, 100, 1000])
        self._call(lane, spec, now, deadline)

    def _post_boundary(self, now: int) -> None:
        spec = BOUNDARY
        flags = 0
        if self.fleet.may_leave(self.process):
            self.leaving, flags = True, int(lib.CC_LEAVE)
        self._boundary = self._call(self.lanes[0], spec, now, None, flags=flags)

    def _call(
        self, lane: Lane, spec: Spec, now: int, deadline_ms: int | None, **options: int
    ) -> Call:
        world = self._record.world
        if deadline_ms is not None:
            options["timeout_ms"] = deadline_ms
        group = self.process.seat.group
        operation = post(self.process, spec, world, self._rank, group=group, **options)
        lane.posted += 1
        call = Call(
            self.process,
            spec,
            operation,
            spec.lane,
            lane.posted,
            world,
            None if deadline_ms is None else now + deadline_ms * MS,
        )
        lane.open.append(call)
        self.fleet.calls.append(call)
        return call

    def _post_message(self, place: int, now: int) -> None:
        sender, receiver, count = self.plan.message(self.phase, place, self._record.world)
        if self._rank not in (sender, receiver):
            return
        key = (self.phase, place)
        sends = self._rank == sender
        other = receiver if sends else sender
        ids = {member.rank: member.id for member in self._record.members}
        seat, tag = self.process.seat, self.phase * 16 + place
        try:
            if sends:
                data = content(key, self.process.id, count)
                operation = self.process.post("send", data, root=other, tag=tag, group=seat.group)
            else:
                out = np.full(count, -1, np.int32)
                operation = self.process.post(
                    "receive", out=out, root=other, tag=tag, group=seat.group
                )
        except Refused as error:
            if error.status != lib.CC_BUSY:
                raise
            return
        message = Message(self.process, operation, key, sends, ids[other])
        self.messages.append(message)
        self.fleet.messages.append(message)
