"""Goal: faults that kill nobody cost nobody its membership: cut connections, pauses, deadlines; and
silence is noticed within the time that was set, no sooner.

Method: as in test_deaths.py.
"""

from __future__ import annotations

import numpy as np
from programs import Spec
from promises import SILENT, check_outcomes, formed, go_on, post_all
from world import OK, World

from collectives._core import lib

SEED = 32_000


def test_a_pause_below_the_limit_disturbs_nobody() -> None:
    for seed in range(SEED, SEED + 5):
        with formed(seed, 3, dead_ms=2000) as world:
            rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
            for _ in range(world.random.randrange(40)):
                world.step()
            world.pause(world.peers[1])
            world.run_ms(1700)
            world.pause(world.peers[1], False)
            world.finish(rows[0][1].values())
            assert check_outcomes(world, rows) == [OK]
            go_on(world)


def test_a_pause_beyond_the_limit_is_silence() -> None:
    """Who was paused is evicted, accuses nobody when it wakes up, and hears of its eviction."""
    for n in (2, 4):
        with formed(SEED, n, dead_ms=2000) as world:
            sleeper, *others = world.peers
            rows = [post_all(world, Spec("all_reduce", 9000, "int64", in_place=True))]
            world.pause(sleeper)
            before = world.now_ns
            record = world.settle()
            assert record.members == others
            assert 1.8e9 <= world.now_ns - before <= 2.6e9
            world.finish(rows[0][1][p.index] for p in others)
            assert check_outcomes(world, rows) == [OK]
            go_on(world)
            world.pause(sleeper, False)
            world.run_ms(50)
            assert not set(sleeper.evidence.values()) & {SILENT}
            lib.cc_expel(sleeper.context, 7, lib.CC_EVICTED, b"it was silent")
            op = rows[0][1][sleeper.index]
            assert op.status == lib.CC_EVICTED and op.intact and "silent" in op.message
            world.run_ms(5000)
            go_on(world)


def test_everybody_asleep_accuses_nobody() -> None:
    """All processes stop for a minute, as on a laptop that is closed: time passes for everyone, no
    one has missed anything."""
    with formed(SEED, 3, dead_ms=2000) as world:
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        for _ in range(10):
            world.step()
        for peer in world.peers:
            world.pause(peer)
        lib.cc_sim_advance(world.sim, world.now_ns + 60_000_000_000)
        for peer in world.random.sample(world.peers, 3):
            world.pause(peer, False)
            for _ in range(5):
                world.step()
        world.finish(rows[0][1].values())
        assert check_outcomes(world, rows) == [OK]
        go_on(world)


def test_a_member_that_dies_before_it_was_ever_connected() -> None:
    """The first epoch names someone who is already gone. Who dials it is refused; who is to be
    dialled by it hears nothing, and says so in the end."""
    for victim in range(3):
        with World(SEED, 3, connect_ms=1000, dead_ms=2000) as world:
            world.kill(world.peers[victim])
            world.install(world.peers)
            rows = [post_all(world, Spec("all_reduce", 20), world.alive)]
            world.recover()
            world.finish(rows[0][1].values())
            assert check_outcomes(world, rows) == [OK]
            go_on(world)


def test_a_deadline_passes_on_all() -> None:
    """Also on who has not posted yet: it is told as soon as it does."""
    with formed(SEED, 3) as world:
        x = [np.ones(10, np.float32) for _ in range(3)]
        a, b, late = world.peers
        ops = [a.post("all_reduce", x[0], x[0], timeout_ms=50), b.post("all_reduce", x[1], x[1])]
        world.settle()
        assert 50e6 <= world.now_ns <= 100e6
        ops.append(late.post("all_reduce", x[2], x[2]))
        world.finish(ops)
        for op in ops:
            assert op.status == lib.CC_TIMED_OUT and op.intact
            assert "timeout" in op.message and "rank 0" in op.message, op.message
        go_on(world)


def test_a_deadline_that_is_met_or_far_away_disturbs_nobody() -> None:
    with formed(SEED, 2) as world:
        for timeout_ms in (1000, 2**63 - 1, 2**53, -1, -(2**63)):
            ops = [peer.post("barrier", timeout_ms=timeout_ms) for peer in world.peers]
            world.finish(ops)
            assert [op.status for op in ops] == [OK, OK], timeout_ms
        world.run_ms(3000)
        assert not any(peer.sealed for peer in world.peers)


def test_a_deadline_that_passes_while_the_epoch_is_sealed() -> None:
    """The peer must not spin until the record comes; afterwards the operation has its outcome."""
    with formed(SEED, 3) as world:
        x = np.ones(9, np.float32)
        ops = [p.post("all_reduce", x.copy(), x.copy(), timeout_ms=20) for p in world.peers[:2]]
        world.step()
        world.kill(world.peers[2])
        world.run(world.settled)
        waiting = [peer.post("barrier", timeout_ms=30) for peer in world.peers[:2]]
        world.run_ms(500)
        before = world.steps
        world.run_ms(1000)
        assert world.steps - before < 300, "a sealed peer has nothing to do but to beat"
        world.deliver(world.decide())
        world.carry(ops)
        # What was interrupted goes on among the survivors, but its own deadline has passed.
        assert {op.status for op in ops} == {int(lib.CC_TIMED_OUT)}
        world.run(lambda: world.settled() or all(op.done for op in waiting))
        if not all(op.done for op in waiting):
            world.settle()
        world.finish(waiting)
        assert {op.status for op in waiting} <= {OK, int(lib.CC_TIMED_OUT)}
        go_on(world)
