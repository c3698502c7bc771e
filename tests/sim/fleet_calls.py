"""What the processes of a fleet have called, and the plan that says what to call: data alone."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from peer import Operation
from programs import Spec, any_spec

if TYPE_CHECKING:
    from fleet_process import Process

COUNTS = (0, 1, 3, 31, 64, 65, 200, 200, 500, 1500)


@dataclass(eq=False)
class Call:
    """One operation that a process has posted."""

    process: Process
    spec: Spec
    operation: Operation
    lane: int
    number: int
    world: int
    deadline_ns: int | None
    group: int = 0  # a subgroup's number; 0: the group that all are in
    told: tuple[int, int, int] | None = None  # status and checksums when it was found complete
    told_ns: int = 0


@dataclass(eq=False)
class Message:
    """One end of a message between two ranks."""

    process: Process
    operation: Operation
    key: tuple[int, int]  # phase, which of it
    sends: bool
    other: bytes  # the id of the other end, by the record that ranks go by
    told: int | None = None


def note(call: Call, now: int) -> None:
    """What a process was told of an operation, and what its buffers held then."""
    operation = call.operation
    call.told = (operation.status, *checksums(operation))
    call.told_ns = now


def checksums(operation: Operation) -> tuple[int, int]:
    given, out = operation.given, operation.out
    return (
        0 if given is None else zlib.crc32(given.view(np.uint8)),
        0 if out is None else zlib.crc32(out.view(np.uint8)),
    )


class Plan:
    """The program itself: a function of the seed."""

    def __init__(self, seed: int, rng: random.Random) -> None:
        self.seed = seed
        lanes = rng.choice([(0,), (0, 1), (0, 1, 5)])
        self.sizes = {lane: rng.randrange(3, 7) for lane in lanes}
        self.sizes[0] += 1  # the boundary
        self.messages = rng.choice([0, 0, 1, 3])
        self.deadlines = rng.random() < 0.3
        self.splits = rng.random() < 0.3
        self._specs: dict[tuple[int, ...], Spec] = {}

    def spec(self, phase: int, lane: int, place: int, world: int) -> Spec:
        key = (phase, lane, place, world)
        spec = self._specs.get(key)
        if spec is None:
            rng = random.Random(hash((self.seed, *key[:3])))
            count = rng.choice(COUNTS)
            spec = any_spec(rng, world, lane=lane, count=count)
            if spec.kind == "barrier":
                spec = replace(spec, count=0)
            self._specs[key] = spec
        return spec

    def split(self, phase: int, world: int) -> list[int]:
        """The ranks that split off a subgroup in this phase, in the order that they have there."""
        rng = random.Random(hash((self.seed, phase, 11)))
        if not self.splits or rng.random() < 0.4:
            return []
        return rng.sample(range(world), rng.randrange(1, world + 1))

    def message(self, phase: int, place: int, world: int) -> tuple[int, int, int]:
        """Who sends how much to whom, by rank."""
        rng = random.Random(hash((self.seed, phase, place, 7)))
        sender = rng.randrange(world)
        return sender, (sender + rng.randrange(1, world)) % world, rng.choice([0, 3, 700, 6000])


def content(key: tuple[int, int], sender: bytes, count: int) -> np.ndarray:
    """The bytes of a message: of nobody else's, and of no other."""
    return np.arange(count, dtype=np.int32) * 3 + zlib.crc32(sender) // 2 + key[0] * 64 + key[1]
