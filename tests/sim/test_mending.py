"""Goal: a connection that breaks while both ends live costs nothing but the time to make it anew:
no epoch, no attempt, no wrong result, no message that comes twice or never.

Method: links are broken at the steps of every algorithm, one after another, several at once and
again while they are mended. Without a coordinator, for it is not needed; but where an algorithm
overwrites what it has sent, a segment that was lost may be gone: then the operation begins again,
in an epoch of the same members, and the test counts how often.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from programs import ALGORITHMS, Spec
from promises import SILENT, Row, check_outcomes, formed, go_on, post_all, steps_of
from world import OK, PENDING, Peer, World

SEED = 39_000
RUNS = 24
OVERWRITES = ("recursive_doubling", "direct")
CASES = [
    (kind, algorithm)
    for kind, algorithms in ALGORITHMS.items()
    for algorithm in algorithms
    if algorithm != "auto"
]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("kind", "algorithm"), CASES)
def test_a_link_breaks_at_any_step(kind: str, algorithm: str, in_place: bool) -> None:
    """Of a call of some twenty segments, with a short one behind it."""
    long = Spec(kind, 5000, "int32", algorithm=algorithm, in_place=in_place, seed=1, root=1)
    calls = [long, Spec("all_reduce", 7, "int64", seed=2)]
    again = 0
    for n in (2, 3, 5):

        def prepare(n: int = n) -> tuple[World, list[Row]]:
            world = formed(SEED, n)
            return world, [post_all(world, spec) for spec in calls]

        pairs = itertools.cycle(itertools.combinations(range(n), 2))
        steps = steps_of(prepare)
        for step in range(0, steps, max(1, steps // RUNS)):
            world, rows = prepare()
            with world:
                for _ in range(step):
                    world.step()
                world.break_link(*(world.peers[i] for i in next(pairs)))
                records = world.carry(op for _, ops in rows for op in ops.values())
                assert check_outcomes(world, rows) == [OK, OK]
                assert all(record.members == world.peers for record in records)
                assert not any(peer.evidence for peer in world.peers)
                again += bool(records)
                go_on(world)
    may_begin_again = kind == "all_reduce" and algorithm in OVERWRITES
    assert may_begin_again or again == 0


def test_links_that_break_again_and_again() -> None:
    """Whatever is under way, also while a link is mended; half of the time without a pause."""
    for seed in range(SEED, SEED + 12):
        with formed(seed, 4) as world:
            rng = world.random
            specs = [
                Spec("all_reduce", 9000, "int64", algorithm="ring", in_place=True, seed=1),
                Spec("all_gather", 3000, "int32", algorithm="ring", seed=2),
                Spec("all_reduce", 9000, "int64", algorithm="halving_doubling", seed=3, lane=1),
                Spec("all_reduce", 20, "int64", seed=4, lane=1),
            ]
            rows = [post_all(world, spec) for spec in specs]
            operations = [op for _, ops in rows for op in ops.values()]
            broken = 0
            while not all(op.done for op in operations) and broken < 60:
                for _ in range(rng.choice([1, 5, 40, 120])):
                    world.step()
                world.break_link(*rng.sample(world.peers, 2))
                broken += 1
            world.finish(operations)
            assert broken > 10
            assert check_outcomes(world, rows) == [OK] * len(rows)
            assert {int(op.info.attempts) for op in operations} == {1}
            assert not any(peer.sealed or peer.evidence for peer in world.peers)
            go_on(world)


def test_only_what_was_lost_is_sent_again() -> None:
    """A message of 1600 segments whose connection breaks five times; each time what was in the
    buffers is lost, and no more."""
    with formed(SEED, 2, send_buffer_bytes=2048) as world:
        sender, receiver = world.peers
        data = np.arange(400_000, dtype=np.int32)
        send = sender.post("send", data, root=1, tag=1)
        receive = receiver.post("receive", None, np.zeros_like(data), root=0, tag=1)
        for part in range(1, 6):
            part_bytes = part * data.nbytes // 6
            world.run(lambda: receiver.stats.received_bytes > part_bytes)  # noqa: B023
            assert not receive.done
            world.break_link(sender, receiver)
        world.finish([send, receive])
        assert np.array_equal(receive.out, data)
        assert (send.info.attempts, receive.info.attempts) == (1, 1)
        assert data.nbytes < sender.stats.sent_bytes < 1.5 * data.nbytes
        go_on(world)


def test_a_link_that_is_never_mended_is_a_silent_peer() -> None:
    """It breaks, and nothing gets through any more."""
    with formed(SEED, 3, dead_ms=2000) as world:
        gone, *others = world.peers
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        for other in others:
            world.cut(gone, other)
            world.cut(other, gone)
            world.break_link(gone, other)
        before = world.now_ns
        world.pause(gone)
        record = world.settle()
        assert record.members == others
        assert world.now_ns - before <= 2_600_000_000
        world.finish(rows[0][1][peer.index] for peer in others)
        assert check_outcomes(world, rows) == [OK]


def test_a_link_breaks_while_the_epoch_is_sealed() -> None:
    """What was said before arrives, and the next epoch is as good as any."""
    for step in range(0, 60, 3):
        with formed(SEED, 4) as world:
            a, b, c, victim = world.peers
            rows = [post_all(world, Spec("all_reduce", 3000, "int32", algorithm="ring"))]
            for _ in range(30):
                world.step()
            world.kill(victim)
            for _ in range(step):
                world.step()
            world.break_link(a, b)
            world.break_link(b, c)
            operations = [rows[0][1][peer.index] for peer in (a, b, c)]
            world.carry(operations)
            assert check_outcomes(world, rows) == [OK]
            assert world.members == [a, b, c]
            go_on(world)


# ---- paths that are cut ------------------------------------------------------------------------


def cut(world: World, a: Peer, b: Peer, ways: str, is_cut: bool = True) -> None:
    if ways in ("both", "there"):
        world.cut(a, b, is_cut)
    if ways in ("both", "back"):
        world.cut(b, a, is_cut)


@pytest.mark.parametrize("ways", ["both", "there", "back"])
@pytest.mark.parametrize("n", [3, 5])
def test_a_cut_path_is_led_around(n: int, ways: str) -> None:
    """Two members reach each other no more, in one direction or in both, but the others reach them:
    the operation goes on through one of these, and nobody is accused."""
    for step in range(0, 100, 25):
        with formed(SEED, n, dead_ms=2000) as world:
            a, b = world.peers[0], world.peers[1]
            rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
            for _ in range(step):
                world.step()
            cut(world, a, b, ways)
            world.finish((op for op in rows[0][1].values()), limit_ms=3000)
            assert check_outcomes(world, rows) == [OK]
            assert not any(peer.sealed or peer.evidence for peer in world.peers)
            world.run_ms(10_000)
            go_on(world)
            assert not any(peer.sealed or peer.evidence for peer in world.peers)


def test_the_direct_way_is_taken_again() -> None:
    """Once the cut is healed. The others may be cut off then: the two reach each other still."""
    for healed in (True, False):
        with formed(SEED, 4, dead_ms=2000) as world:
            a, b, *others = world.peers
            cut(world, a, b, "both")
            world.run_ms(1900)
            go_on(world)
            cut(world, a, b, "both", not healed)
            world.run_ms(11_000)
            go_on(world)
            for other in others:
                cut(world, a, other, "both")
            send = a.post("send", np.ones(9), root=1, tag=1)
            receive = b.post("receive", None, np.zeros(9), root=0, tag=1)
            world.run_ms(500)
            assert (send.done and receive.done) == healed


@pytest.mark.parametrize("victim", [2, 3])
def test_a_relay_that_dies(victim: int) -> None:
    """A path is led through one of the other two members and one of these dies. If it was that one,
    the other takes its part."""
    with formed(SEED, 4, dead_ms=2000) as world:
        cut(world, world.peers[0], world.peers[1], "both")
        world.run_ms(1900)
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        world.run_ms(0.2)
        world.kill(world.peers[victim])
        world.carry(rows[0][1][peer.index] for peer in world.alive)
        assert check_outcomes(world, rows) == [OK]
        assert world.members == world.alive and len(world.alive) == 3
        world.run_ms(5000)
        go_on(world)


def test_nobody_can_lead_around() -> None:
    """Two members alone, and no way between them: both say that the other is silent."""
    with formed(SEED, 2, dead_ms=2000) as world:
        a, b = world.peers
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        cut(world, a, b, "both")
        world.run(lambda: a.sealed and b.sealed, 2600)
        assert a.evidence == {b.index: SILENT} and b.evidence == {a.index: SILENT}
        assert rows[0][1][a.index].status == PENDING
