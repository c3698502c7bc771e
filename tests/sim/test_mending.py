"""Goal: a connection that breaks while both ends live costs nothing but the time to make it anew: no
epoch, no attempt, no result that is not right, no message that comes twice or never.

Method: links are broken at every step of every algorithm, one after another and several at once, in
place and out of place. What cannot be sent again, because its source has been overwritten, may cost
an attempt; how often that may be, the test says.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from programs import ALGORITHMS, Spec
from promises import Row, check_outcomes, formed, go_on, post_all, steps_of
from world import OK, Peer, World

from collectives._core import lib

SEED = 39_000
CASES = [
    (kind, algorithm)
    for kind, algorithms in ALGORITHMS.items()
    for algorithm in algorithms
    if algorithm != "auto"
]


def specs(kind: str, algorithm: str, in_place: bool) -> list[Spec]:
    """A call of some segments, and a short one behind it."""
    long = Spec(kind, 1500, "int32", algorithm=algorithm, in_place=in_place, seed=1, root=1)
    return [long, Spec("all_reduce", 7, "int64", seed=2)]


def epoch_of(peers: list[Peer]) -> set[int]:
    return {int(peer.ready) for peer in peers}


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize(("kind", "algorithm"), CASES)
def test_a_link_breaks_at_any_step(kind: str, algorithm: str, n: int) -> None:
    again = runs = 0
    for in_place in (False, True):
        calls = specs(kind, algorithm, in_place)

        def prepare(calls: list[Spec] = calls) -> tuple[World, list[Row]]:
            world = formed(SEED, n)
            return world, [post_all(world, spec) for spec in calls]

        pairs = itertools.cycle(itertools.combinations(range(n), 2))
        for step in range(0, steps_of(prepare) + 2, max(1, n - 1)):
            world, rows = prepare()
            with world:
                for _ in range(step):
                    world.step()
                a, b = next(pairs)
                world.break_link(world.peers[a], world.peers[b])
                operations = [op for _, ops in rows for op in ops.values()]
                records = world.carry(operations)
                assert check_outcomes(world, rows) == [OK, OK]
                assert all(record.members == world.peers for record in records)
                assert not any(peer.evidence for peer in world.peers)
                runs += 1
                again += bool(records)
                go_on(world)
    print(f"{kind} {algorithm} n={n}: {again} of {runs} began again")
    if algorithm in ("ring", "tree"):
        assert again == 0
