"""Goal: while an operation waits, its members can tell for whom: who has not called it yet, and who
has and does not move. Nobody is accused of either, and it does not name the innocent.

Method: one member posts late, or its bulk data is held back, with every shape of plan; the others
are asked before and after, and their events compared with who really was late.
"""

from __future__ import annotations

import numpy as np
import pytest
from programs import Spec, post
from promises import formed, go_on
from world import MS, Operation, World

from collectives._core import ffi, lib

SEED = 47_000
SUSPECT_MS, BEAT_MS, STALLED_MS = 1000, 200, 30_000
KNOWN_MS = SUSPECT_MS + 3 * BEAT_MS  # looks are a beat apart, and answers have a beat
LATE, STALLED = int(lib.CC_LATE), int(lib.CC_STALLED)
SPECS = {
    "ring": Spec("all_reduce", 5000, algorithm="ring"),
    "doubling": Spec("all_reduce", 500, algorithm="recursive_doubling"),
    "direct": Spec("all_reduce", 500, algorithm="direct"),
    "tree": Spec("broadcast", 5000, algorithm="tree"),
    "root alone": Spec("gather", 50, algorithm="direct"),
    "barrier": Spec("barrier", 0),
    "admit": Spec("boundary", 0),
}


def waits_for(op: Operation, room: int = 16) -> dict[int, int]:
    found = ffi.new("cc_straggler[]", room)
    n = lib.cc_work_stragglers(op.work, found, room)
    return {int(one.rank): int(one.delay) for one in found[0 : min(n, room)]}


def calm_ms(world: World, ms: float) -> None:
    """Lets time pass in which nobody may seal."""
    world.run_ms(ms)
    assert not any(peer.sealed for peer in world.members)


@pytest.mark.parametrize("what", SPECS)
@pytest.mark.parametrize("n", [2, 3, 6])
def test_who_has_not_called_is_late_to_all_who_have(what: str, n: int) -> None:
    """Also to those who have nothing to do with it by their plan, or are done with their part."""
    for seed in range(SEED, SEED + 4):
        with formed(seed, n) as world:
            late = world.random.sample(range(n), world.random.randrange(1, n))
            there = [i for i in range(n) if i not in late]
            ops = {i: post(world.peers[i], SPECS[what], n, i) for i in there}
            calm_ms(world, SUSPECT_MS / 2)
            assert all(waits_for(op) == {} for op in ops.values()), "it cannot be known yet"
            calm_ms(world, KNOWN_MS)
            for op in ops.values():
                assert waits_for(op) == dict.fromkeys(sorted(late), LATE), f"seed {seed}"
            for i in world.random.sample(late, len(late)):
                ops[i] = post(world.peers[i], SPECS[what], n, i)
                late.remove(i)
                world.run_ms(1)
                for there_i in there:
                    if not ops[there_i].done:
                        assert waits_for(ops[there_i]) == dict.fromkeys(sorted(late), LATE)
            world.finish(ops.values())
            assert all(waits_for(op) == {} for op in ops.values())


def test_who_has_called_meanwhile_says_so_when_asked() -> None:
    """It came after the other, but before the other's question, and would not ask for a while yet.
    In the ring they are no neighbours, and nothing moves when it comes."""
    for seed in range(SEED + 50, SEED + 56):
        with formed(seed, 6) as world:
            ops = [post(world.peers[0], SPECS["ring"], 6, 0)]
            calm_ms(world, SUSPECT_MS * 0.75)
            ops.append(post(world.peers[3], SPECS["ring"], 6, 3))
            calm_ms(world, KNOWN_MS - SUSPECT_MS * 0.75)
            missing = dict.fromkeys((1, 2, 4, 5), LATE)
            assert [waits_for(op) for op in ops] == [missing, {}], f"seed {seed}"
            ops += [post(world.peers[i], SPECS["ring"], 6, i) for i in missing]
            world.finish(ops)


def test_who_comes_late_tells_those_who_asked() -> None:
    """Of several late members, those that have come are not named any more, at once."""
    for seed in range(SEED + 100, SEED + 106):
        with formed(seed, 5) as world:
            spec, ops = SPECS["ring"], {}
            order = world.random.sample(range(5), 5)
            ops[order[0]] = post(world.peers[order[0]], spec, 5, order[0])
            calm_ms(world, KNOWN_MS)
            for came in range(1, 5):
                for op in ops.values():
                    assert waits_for(op) == dict.fromkeys(sorted(order[came:]), LATE), (
                        f"seed {seed}"
                    )
                i = order[came]
                ops[i] = post(world.peers[i], spec, 5, i)
                world.run_ms(1)
                if came == 1:  # it asks on its own account only after a while
                    assert waits_for(ops[i]) == {}
                    calm_ms(world, KNOWN_MS)
                calm_ms(world, KNOWN_MS)
            world.finish(ops.values())


def silent(seed: int, n: int, **options: float) -> World:
    """A group in which nobody is taken for dead for a long time."""
    return formed(seed, n, dead_ms=600_000, suspect_ms=SUSPECT_MS, stalled_ms=5_000, **options)


@pytest.mark.parametrize("what", ["ring", "direct", "tree"])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_who_called_and_does_not_move_is_stalled(what: str, n: int) -> None:
    """It is named by whoever waits for it alone, after the time for that, and until it moves. Those
    who wait for others name these, or nobody; who does not wait any more names nobody."""
    big = Spec(SPECS[what].kind, 300_000, algorithm=SPECS[what].algorithm)
    for seed in range(SEED + 200, SEED + 203):
        with silent(seed, n) as world:
            ops = {i: post(world.peers[i], big, n, i) for i in range(n)}
            world.run_ms(0.3)
            stopped = world.random.randrange(n)
            assert not any(op.done for op in ops.values()), "the fault would come too late"
            world.pause(world.peers[stopped])
            del ops[stopped]
            calm_ms(world, 4_500)
            assert all(waits_for(op) == {} for op in ops.values())
            calm_ms(world, 1_000)
            named = [waits_for(op) for op in ops.values()]
            assert all(LATE not in found.values() for found in named), "all have called it"
            assert any(stopped in found for found in named), f"seed {seed}"
            if n == 2 or what == "direct":
                assert named == [{stopped: STALLED}] * (n - 1), f"seed {seed}"
            world.pause(world.peers[stopped], False)
            world.finish(ops.values())
            assert all(waits_for(op) == {} for op in ops.values())


def test_the_silent_are_not_called_late() -> None:
    """A member that is stopped before it can answer may have called the operation or not. A member
    that was stopped itself does not call others late for the time it slept through."""
    with silent(SEED + 300, 3) as world:
        ops = [post(world.peers[i], SPECS["barrier"], 3, i) for i in (0, 1)]
        world.pause(world.peers[2])
        calm_ms(world, 20_000)
        assert [waits_for(op) for op in ops] == [{}, {}]
        world.pause(world.peers[2], False)
        world.pause(world.peers[0])
        calm_ms(world, KNOWN_MS)
        assert waits_for(ops[1]) == {2: LATE}
        told = watch(world)
        calm_ms(world, 60_000)
        assert {peer for peer, *_ in told} == {1}
        world.pause(world.peers[0], False)
        calm_ms(world, 1_000)  # of the five seconds, this one was awake for less than two
        assert {peer for peer, *_ in told} == {1} and waits_for(ops[0]) == {2: LATE}
        world.finish([*ops, post(world.peers[2], SPECS["barrier"], 3, 2)])


def watch(world: World) -> list[tuple[int, int, dict[int, int]]]:
    """A list that grows by (peer, operation, whom it waits for) with each event."""
    told: list[tuple[int, int, dict[int, int]]] = []
    for peer in world.peers:
        peer.on_waits = lambda event, peer=peer: told.append(
            (
                peer.index,
                int(event.sequence),
                {int(s.rank): int(s.delay) for s in event.stragglers if s.delay},
            )
        )
    return told


def test_the_agent_is_told_once_and_again_after_as_long() -> None:
    """Of the first operation alone, however many wait behind it, in each lane; and no more once it
    goes on."""
    with formed(SEED + 400, 3) as world:
        told = watch(world)
        specs = [Spec("all_reduce", 10, lane=lane) for lane in (0, 5) for _ in range(4)]
        ops = [post(world.peers[i], spec, 3, i) for spec in specs for i in (0, 2)]
        calm_ms(world, STALLED_MS - BEAT_MS)
        assert told == []
        calm_ms(world, 3 * BEAT_MS)
        both = [(0, 1, {1: LATE})] * 2 + [(2, 1, {1: LATE})] * 2
        assert sorted(told) == both
        calm_ms(world, STALLED_MS)
        assert sorted(told) == sorted(2 * both)
        ops += [post(world.peers[1], spec, 3, 1) for spec in specs]
        world.finish(ops)
        go_on(world)
        calm_ms(world, 3 * STALLED_MS)
        assert len(told) == 8


@pytest.mark.parametrize("rank", [1, 2])
def test_a_deadline_says_who_was_waited_for(rank: int) -> None:
    """On all members, also on the one that was."""
    with formed(SEED + 500 + rank, 3) as world:
        spec = SPECS["ring"]
        ops = [post(world.peers[i], spec, 3, i, timeout_ms=5000) for i in range(3) if i != rank]
        world.run_ms(4000)
        behind = post(world.peers[0], spec, 3, 0)
        world.settle()
        ops += [behind, post(world.peers[rank], spec, 3, rank)]
        world.finish(ops)
        for op in ops:
            assert op.status == lib.CC_TIMED_OUT
            assert f"; rank {rank} had not called it; inputs are intact" in op.message, op.message


def test_a_deadline_that_another_operation_holds_up_says_which() -> None:
    with formed(SEED + 510, 2) as world:
        first = post(world.peers[0], SPECS["barrier"], 2, 0)
        op = post(world.peers[0], SPECS["barrier"], 2, 0, timeout_ms=3000)
        world.settle()
        world.finish([first, op])
        assert "operation 2 passed at rank 0; rank 1 had not called operation 1" in op.message


def test_many_stragglers_are_counted_and_some_of_them_named() -> None:
    with formed(SEED + 520, 20, grain_ns=MS, stalled_ms=2000) as world:
        op = post(world.peers[0], SPECS["barrier"], 20, 0, timeout_ms=3000)
        told = watch(world)
        calm_ms(world, 2500)
        assert lib.cc_work_stragglers(op.work, ffi.NULL, 0) == 19
        assert waits_for(op) == dict.fromkeys(range(1, 17), LATE)
        world.settle()
        world.finish([op])
        assert "ranks 1, 2, 3, 4 and 15 more had not called it" in op.message, op.message
        assert told == [(0, 1, dict.fromkeys(range(1, 17), LATE))]


def test_in_a_new_epoch_it_is_found_out_anew() -> None:
    """After a death the one that is late is so in the new epoch; a ring of the dead names nobody
    that is not there any more."""
    with formed(SEED + 600, 4) as world:
        ops = [post(world.peers[i], SPECS["ring"], 4, i) for i in (0, 1, 3)]
        calm_ms(world, KNOWN_MS)
        assert waits_for(ops[0]) == {2: LATE}
        world.kill(world.peers[3])
        world.recover()
        assert waits_for(ops[0]) == {}
        calm_ms(world, KNOWN_MS)
        assert waits_for(ops[0]) == waits_for(ops[1]) == {2: LATE}
        world.finish([*ops[:2], post(world.peers[2], SPECS["ring"], 4, 2)])
        go_on(world)


def test_a_message_has_no_stragglers() -> None:
    """Nothing is known of who has not called a recv; and sends have numbers of their own."""
    with formed(SEED + 700, 2) as world:
        peers = world.peers
        barrier = post(peers[0], SPECS["barrier"], 2, 0)
        send = peers[0].post("send", np.ones(4, np.float32), root=1)
        calm_ms(world, KNOWN_MS)
        assert waits_for(barrier) == {1: LATE} and waits_for(send) == {}
