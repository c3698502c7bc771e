"""Goal: whoever dies and whenever, each operation has one outcome on all peers.

Method: peers in a simulated world, a death at every step of the simulator in turn. The survivors
report, and `World.settle` decides by the rule of docs/protocol.md section 6. Then every promise is
checked (promises.py). A failure names its seed, the victim and the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from programs import Spec, any_spec
from promises import Row, check_outcomes, formed, go_on, post_all, steps_of
from world import OK, PEER_LOST, World

SEED = 31_000


def die_at(
    prepare: Callable[[], tuple[World, list[Row]]], step: int, victims: list[int]
) -> list[int]:
    """One run in which peers die after so many steps; returns the outcomes."""
    world, rows = prepare()
    with world:
        for _ in range(step):
            world.step()
        dead = [world.peers[victim] for victim in victims]
        for peer in dead:
            world.kill(peer)
        at_death = [{p.index: ops[p.index].status for p in dead} for _, ops in rows]
        started = world.now_ns
        record = world.recover()
        assert world.now_ns - started < 1_000_000_000, "a refused dial tells a death at once"
        for (_, ops), before in zip(rows, at_death, strict=True):
            assert {p.index: ops[p.index].status for p in dead} == before
        outcomes = check_outcomes(world, rows)
        assert record.members == world.alive
        for _, ops in rows:
            for peer in world.alive:
                info = ops[peer.index].info
                if info.status == PEER_LOST:
                    assert info.lost_rank in victims
                    assert f"rank {info.lost_rank} " in ops[peer.index].message
        go_on(world)
        return outcomes


def every_death(
    prepare: Callable[[], tuple[World, list[Row]]], n: int, seed: int, runs: int
) -> set[int]:
    """Every victim at every step, or as many of these by chance as `runs`. A set of outcomes."""
    steps = steps_of(prepare)
    cases = [(step, victim) for step in range(steps + 2) for victim in range(n)]
    if len(cases) > runs:
        chosen = np.random.default_rng(seed).choice(len(cases), runs, replace=False)
        cases = [cases[i] for i in sorted(chosen)]
    outcomes: set[int] = set()
    for step, victim in cases:
        try:
            outcomes.update(die_at(prepare, step, [victim]))
        except BaseException:
            print(f"seed {seed}: peer {victim} of {n} dies after step {step} of {steps}")
            raise
    return outcomes


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ["ring", "recursive_doubling", "direct"])
@pytest.mark.parametrize("count", [50, 4500])  # eager (but for the ring), and in segments
def test_a_death_at_every_moment_of_an_all_reduce(n: int, algorithm: str, count: int) -> None:
    seed = SEED + n

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, n, segment_bytes=4096)
        return world, [
            post_all(
                world, Spec("all_reduce", count, "float32", "sum", algorithm, in_place=True, seed=5)
            )
        ]

    outcomes = every_death(prepare, n, seed, 120)
    # The method can tell: some deaths came early enough to interrupt, some too late.
    assert outcomes == {OK, PEER_LOST}


@pytest.mark.parametrize("kind", ["broadcast", "all_gather", "barrier"])
def test_a_death_at_every_moment_of_other_operations(kind: str) -> None:
    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, 3)
        return world, [post_all(world, Spec(kind, 0 if kind == "barrier" else 700, root=0))]

    # A barrier that all have posted is done: nothing can undo it.
    expected = {OK} if kind == "barrier" else {OK, PEER_LOST}
    assert every_death(prepare, 3, SEED, 200) == expected


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_a_death_with_several_operations_in_flight(seed: int) -> None:
    """In one lane the outcome is a prefix of successes; lanes are independent."""
    n = 3 + seed % 2

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, n)
        return world, [post_all(world, any_spec(world.random, n)) for _ in range(8)]

    assert OK in every_death(prepare, n, seed, 40)


@pytest.mark.parametrize("seed", range(SEED, SEED + 5))
def test_two_deaths_at_once_and_one_after_the_other(seed: int) -> None:
    """The second dies with the first, or at any later moment: during detection, between the
    decision and its installation, while the next epoch's links are greeted."""

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, 5)
        return world, [post_all(world, Spec("all_reduce", 2000, in_place=True)) for _ in range(2)]

    die_at(prepare, seed % 20, [1, 3])
    for delay in range(0, 60, 3):
        world, rows = prepare()
        with world:
            for _ in range(10 + seed % 7):
                world.step()
            world.kill(world.peers[seed % 5])
            second = world.peers[(seed + 1 + delay % 4) % 5]
            for _ in range(delay):
                world.step()
                if world.settled():
                    break
            if not world.settled():
                world.kill(second)
                world.recover()
            else:
                record = world.decide()
                early = [p for p in record.members if world.random.random() < 0.5]
                world.deliver(record, early)
                for _ in range(world.random.randrange(12)):
                    world.step()
                world.kill(second)
                world.deliver(record)
                rows += [post_all(world, Spec("barrier", 0), world.alive)]
                world.recover()
            world.finish(op for _, ops in rows for i, op in ops.items() if world.peers[i].alive)
            check_outcomes(world, rows)
            assert len(world.members) == 3
            go_on(world)
