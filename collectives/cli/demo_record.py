"""What the demo's peers told of themselves, and what follows: who contributed to which step.

Nobody else knows: whether the part of a peer that was killed in the middle of a step still counts
is agreed among those who live. They must all have told the same.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    """Where a member was, and which ranks were holes, from a step on."""

    step: int
    rank: int
    size: int
    missing: tuple[int, ...] = ()


@dataclass
class Record:
    """What one peer told of itself."""

    name: str
    file: pathlib.Path
    places: list[Place] = field(default_factory=list)
    joined: tuple[int, str] | None = None  # step and digest, and so below
    left: tuple[int, str] | None = None
    end: tuple[int, str] | None = None
    killed: int | None = None  # in the middle of this step
    gathered: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        return self.left is None and self.killed is None

    def spans(self) -> list[tuple[Place, int]]:
        """Where it was, each with the step that this ended at."""
        last = self.left or self.end or (self.killed or 0, "")
        ends = [place.step for place in self.places[1:]] + [last[0]]
        return list(zip(self.places, ends, strict=False))


Contributors = tuple[int, list[int]]
"""Of one step: the number of ranks, and those that contributed."""


def contributors(records: list[Record], steps: int) -> list[Contributors]:
    """Of each step. Raises ValueError if the peers' records contradict each other: in every step
    all must have told of the same holes, and each other rank must have been exactly one peer's."""
    return [_contributors(records, step) for step in range(steps)]


def _contributors(records: list[Record], step: int) -> Contributors:
    here = [
        place for record in records for place, end in record.spans() if place.step <= step < end
    ]
    told = {(place.size, place.missing) for place in here}
    size, missing = told.pop() if len(told) == 1 else (0, ())
    ranks = [rank for rank in range(size) if rank not in missing]
    # Who was killed could not tell of that step any more.
    dead = [record.places[-1].rank for record in records if record.killed == step]
    found = [place.rank for place in here] + [rank for rank in dead if rank in ranks]
    if not ranks or sorted(found) != ranks:
        raise ValueError(f"the peers do not agree on who contributed to step {step}")
    return size, ranks
