"""Goal: whoever dies and whenever, each operation has one outcome on all peers.

Method: peers in a simulated world, a death at every step of the simulator in turn. The survivors
report, and `World.settle` decides by the rule of docs/protocol.md section 6. Then every promise is
checked (promises.py). A failure names its seed, the victim and the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from programs import ALGORITHMS, ROOTED, WITH_BLOCKS, Spec, any_spec
from promises import Row, check_outcomes, formed, go_on, post_all, steps_of
from world import OK, PEER_LOST, Operation, World

SEED = 31_000


def die_at(
    prepare: Callable[[], tuple[World, list[Row]]], step: int, victims: list[int]
) -> set[str]:
    """One run in which peers die after so many steps. Returns what became of the operations: "at
    once", "again" (a later attempt succeeded), "lost"."""
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
        world.finish(ops[peer.index] for _, ops in rows for peer in world.alive)
        assert world.now_ns - started < 1_000_000_000, "a refused dial tells a death at once"
        for (_, ops), before in zip(rows, at_death, strict=True):
            assert {p.index: ops[p.index].status for p in dead} == before
        check_outcomes(world, rows)
        assert record.members == world.alive
        go_on(world)
        return {fate(ops[peer.index], victims) for _, ops in rows for peer in world.alive}


def fate(op: Operation, victims: list[int]) -> str:
    info = op.info
    if info.status == PEER_LOST:
        assert info.lost_rank in victims
        assert f"rank {info.lost_rank}" in op.message
        return "lost"
    assert info.status == OK
    assert (info.attempts > 1) == (info.lost_ns > 0)
    return "again" if info.attempts > 1 else "at once"


def every_death(
    prepare: Callable[[], tuple[World, list[Row]]], n: int, seed: int, runs: int
) -> set[str]:
    """Every victim at every step, or as many of these by chance as `runs`. A set of fates."""
    steps = steps_of(prepare)
    cases = [(step, victim) for step in range(steps + 2) for victim in range(n)]
    if len(cases) > runs:
        chosen = np.random.default_rng(seed).choice(len(cases), runs, replace=False)
        cases = [cases[i] for i in sorted(chosen)]
    fates: set[str] = set()
    for step, victim in cases:
        try:
            fates.update(die_at(prepare, step, [victim]))
        except BaseException:
            print(f"seed {seed}: peer {victim} of {n} dies after step {step} of {steps}")
            raise
    return fates


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ALGORITHMS["all_reduce"][1:])
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

    # The method can tell: some deaths came early enough to interrupt, some too late.
    assert every_death(prepare, n, seed, 100) == {"at once", "again"}


def test_without_retry_the_loss_is_agreed() -> None:
    """On all survivors or on none, inputs intact, in place or not."""

    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, 3)
        specs = [Spec("all_reduce", 700, in_place=bool(i), retry=False) for i in range(2)]
        return world, [post_all(world, spec) for spec in specs]

    assert every_death(prepare, 3, SEED, 200) == {"at once", "lost"}


@pytest.mark.parametrize("kind", ["all_reduce", "broadcast", "barrier"])
def test_a_whole_call_is_for_all_ranks_or_none(kind: str) -> None:
    """On all survivors or on none; the next one, posted before or after the death, too."""

    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, 3)
        specs = [Spec(kind, 0 if kind == "barrier" else 700, whole=True) for _ in range(2)]
        return world, [post_all(world, spec) for spec in specs]

    assert every_death(prepare, 3, SEED, 200) == {"at once", "lost"}


def test_no_whole_barrier_is_passed_by_the_survivors_alone() -> None:
    """The victim never called it. Without `whole` it is for whoever lives."""
    for whole in (True, False):
        with formed(SEED, 3) as world:
            _, operations = post_all(world, Spec("barrier", 0, whole=whole), world.peers[:2])
            for _ in range(40):
                world.step()
            world.kill(world.peers[2])
            world.recover()
            world.finish(operations.values())
            assert {op.status for op in operations.values()} == {PEER_LOST if whole else OK}


@pytest.mark.parametrize("kind", ["all_reduce", "broadcast", "all_gather", "barrier"])
def test_a_whole_call_among_survivors_is_lost(kind: str) -> None:
    with formed(SEED, 3) as world:
        world.kill(world.peers[1])
        world.recover()
        rows = []
        for whole in (True, False, True):
            spec = Spec(kind, 700 if kind != "barrier" else 0, root=2, whole=whole)
            rows.append(post_all(world, spec))
            world.finish(rows[-1][1].values())
            fates = {fate(operation, [1]) for operation in rows[-1][1].values()}
            assert fates == ({"lost"} if whole else {"at once"})
        check_outcomes(world, rows)


# What a death means: the table of docs/protocol.md, section 5.
COMPLETED = ("all_reduce", "all_gather", "broadcast", "reduce", "gather", "barrier")
NEED_ALL = ("scatter", "reduce_scatter", "all_to_all")


@pytest.mark.parametrize("kind", COMPLETED + NEED_ALL)
@pytest.mark.parametrize("uneven", [False, True])
def test_what_a_death_means_for_each_operation(kind: str, uneven: bool) -> None:
    """Completed over the survivors, or lost: by its kind, and by who died."""
    if uneven and kind not in WITH_BLOCKS:
        pytest.skip("it has no blocks")
    count = 0 if kind == "barrier" else 9000  # nothing is sent before its receiver is ready
    root = 1 if kind in ROOTED else 0
    spec = Spec(kind, count, "int16", algorithm="auto", root=root, uneven=uneven, in_place=True)

    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, 4)
        return world, [post_all(world, spec)]

    steps = steps_of(prepare)
    for victim in range(4):
        expected = {"at once"}
        if kind in NEED_ALL or (kind in ROOTED and victim == root):
            expected.add("lost")
        elif kind != "barrier":  # a barrier that all have posted is done: nothing can undo it
            expected.add("again")
        fates: set[str] = set()
        for step in {0, 1, steps, *range(2, steps, max(1, steps // 12))}:
            fates |= die_at(prepare, step, [victim])
        assert fates == expected, f"peer {victim} dies"


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_a_death_with_several_operations_in_flight(seed: int) -> None:
    """In one lane the outcome is a prefix of successes; lanes are independent."""
    n = 3 + seed % 2

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, n)
        return world, [post_all(world, any_spec(world.random, n)) for _ in range(8)]

    assert "at once" in every_death(prepare, n, seed, 40)


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
