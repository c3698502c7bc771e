"""The plan of faults: what is done to whom, and when. Pure: a seed and a number say all of it.

Shares are exact, not drawn: of a hundred faults sixty are kills. Who is hit is a number between 0
and 1, which the driver turns into one of those that may be hit at that moment, and a wait is
counted from the moment at which the group is fit for the fault. So the plan is the same each time,
and as near to the same run as real processes come.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass


class Kind(enum.Enum):
    KILL = "kill"
    STOP = "stop"
    CUT = "blackhole"
    COORDINATOR = "coordinator"


SHARES = {Kind.KILL: 60, Kind.STOP: 15, Kind.CUT: 15, Kind.COORDINATOR: 10}  # of a hundred
AIMED = 0.75  # of the kills: they wait for the victim to be in an operation
PARTIAL = 1 / 3  # of the blackholes: between the victim and its peers alone
CALM = 0.5  # of the faults: they wait until the group is whole


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        number: its place in the plan, from 0.
        pick: whom it hits, of those that may be hit, from 0 to 1.
        partial: a blackhole that leaves the victim its way to the coordinator.
        calm: it waits for a whole group; others come as soon as enough members are left, which may
            be in the middle of the recovery from the one before.
        aimed: it waits for the victim to begin an operation.
        wait: seconds before it, once its time has come.
        delay: seconds from the beginning of that operation to the blow.
        hold: seconds for which the victim is stopped, cut off, or away, beyond the dead time.
    """

    number: int
    kind: Kind
    pick: float
    partial: bool
    calm: bool
    aimed: bool
    wait: float
    delay: float
    hold: float


def shares(count: int) -> dict[Kind, int]:
    """How many faults of each kind there are, of so many: the largest remainders are rounded up."""
    whole = {kind: count * share // 100 for kind, share in SHARES.items()}
    rest = sorted(SHARES, key=lambda kind: -(count * SHARES[kind] % 100))
    for kind in rest[: count - sum(whole.values())]:
        whole[kind] += 1
    return whole


def plan(seed: int, count: int) -> list[Fault]:
    rng = random.Random(f"faults {seed}")
    kinds = [kind for kind, times in shares(count).items() for _ in range(times)]
    rng.shuffle(kinds)
    return [
        Fault(
            number=number,
            kind=kind,
            pick=rng.random(),
            partial=kind is Kind.CUT and rng.random() < PARTIAL,
            calm=rng.random() < CALM,
            aimed=kind is not Kind.KILL or rng.random() < AIMED,
            wait=rng.choice([0.0, 0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.4)]),
            delay=rng.choice([0.0, rng.uniform(0, 0.002), rng.uniform(0, 0.02)]),
            hold=rng.uniform(0.2, 1.2),
        )
        for number, kind in enumerate(kinds)
    ]
