"""A subgroup that some processes of a fleet split off, use once or twice, and close again."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fleet_calls import Call, note
from programs import any_spec, post

from collectives.errors import Closed
from collectives.messages import Subgroup
from collectives.seat import Seat

if TYPE_CHECKING:
    from fleet_process import Process

OPERATIONS = 2


class Split:
    """One process's part in it. `over`: it wants no more turns."""

    def __init__(self, process: Process, phase: int, members: tuple[bytes, ...]) -> None:
        self.process = process
        self.over = False
        self._phase = phase
        self._calls: list[Call] = []
        self._seat = Seat(process.seat)
        key = random.Random(hash((phase, *members))).randbytes(16)
        process.courier.open(self._seat, Subgroup(process.seat.group, key, members))
        process.wake()

    def step(self, now: int) -> None:
        if self._seat.ended is not None or self.process.is_out:
            self._end(now, type(self._seat.ended).__name__)
        elif self._seat.current is not None and not self._calls:
            self._post()
        elif self._calls and all(call.operation.done for call in self._calls):
            self._close()
            self._end(now, "used")

    def _end(self, now: int, why: str) -> None:
        for call in self._calls:
            if call.operation.done:
                note(call, now)
        self.process.fleet.points[f"subgroup: {why}"] += 1
        self.over = True

    def _post(self) -> None:
        record: Any = self._seat.settled
        rank = next(m.rank for m in record.members if m.id == self.process.id)
        for number in range(1, OPERATIONS + 1):
            rng = random.Random(hash((self.process.fleet.seed, self._phase, number, 5)))
            spec = any_spec(rng, record.world, lane=0)
            if spec.count > 65:
                spec = replace(spec, count=65)
            operation = post(self.process, spec, record.world, rank, group=record.group)
            call = Call(self.process, spec, operation, 0, number, record.world, None, record.group)
            self._calls.append(call)
            self.process.fleet.calls.append(call)

    def _close(self) -> None:
        """As `Agent.close_subgroup` does it."""
        seat = self._seat
        seat.end(Closed("the communicator is closed"))
        self.process.core.close_group(seat.group)
        self.process.courier.forget(seat, seat.group)
        self.process.wake()
