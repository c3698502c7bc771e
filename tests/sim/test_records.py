"""Goal: an epoch's record decides what was open, once; what is posted around it finds its epoch.

Method: as in test_deaths.py; records reach members at different times, twice, or are wrong.
"""

from __future__ import annotations

from programs import Spec, post
from promises import check_outcomes, formed, go_on, post_all
from results import check_result
from world import GROUP, OK, PEER_LOST, Peer, World

from collectives._core import lib

SEED = 33_000


def test_a_record_that_comes_late_to_some() -> None:
    """Members install at different times; who is early posts, sends and waits."""
    for seed in range(SEED, SEED + 20):
        with formed(seed, 4) as world:
            rows = [post_all(world, Spec("all_reduce", 1500, in_place=True))]
            for _ in range(world.random.randrange(60)):
                world.step()
            world.kill(world.peers[2])
            world.run(world.settled)
            record = world.decide()
            for peer in world.random.sample(world.alive, 3):
                world.deliver(record, [peer])
                rows.append(post_all(world, Spec("barrier", 0, lane=3), [peer]))
                world.run_ms(world.random.choice([0, 0.05, 3]))
            ops = [op for _, ops in rows for i, op in ops.items() if world.peers[i].alive]
            world.finish(ops)
            check_outcomes(world, rows[:1])
            assert all(next(iter(ops.values())).status == OK for _, ops in rows[1:])
            go_on(world)


def test_posts_between_seal_and_record_run_in_the_next_epoch() -> None:
    """They wait; whether they are older or newer than what failed is known with the record."""
    for seed in range(SEED, SEED + 10):
        with formed(seed, 4) as world:
            a, b, c, victim = world.peers
            old = [post(p, Spec("all_reduce", 600, in_place=True), 4, p.index) for p in (a, b)]
            world.step()
            world.kill(victim)
            world.run(lambda: all(peer.sealed for peer in world.alive))
            # c posts number 1 now, which begins again among the survivors; so does number 2.
            old.append(post(c, Spec("all_reduce", 600, in_place=True), 4, 2))
            new = [
                post(p, Spec("all_reduce", 70, "int64", in_place=True), 4, p.index)
                for p in (a, b, c)
            ]
            gather = [post(p, Spec("all_gather", 9, lane=2), 4, p.index) for p in (a, b, c)]
            world.run_ms(world.random.choice([0, 1]))
            assert not any(op.done for op in old + new + gather)
            record = world.settle()
            world.finish(old + new + gather)
            check_result(Spec("all_reduce", 600), record, dict(enumerate(old)))
            check_result(Spec("all_reduce", 70, "int64"), record, dict(enumerate(new)))
            check_result(Spec("all_gather", 9), record, dict(enumerate(gather)))
            go_on(world)


def test_without_preserve_a_failure_is_still_agreed() -> None:
    for step in range(0, 40, 4):
        with formed(SEED, 3) as world:
            ops = [
                post(p, Spec("all_reduce", 3000, in_place=True), 3, p.index, flags=0)
                for p in world.peers
            ]
            for _ in range(step):
                world.step()
            world.kill(world.peers[0])
            world.recover()
            world.finish(ops[1:])
            assert len({op.status for op in ops[1:]}) == 1
            assert ops[1].status in (OK, PEER_LOST)
            go_on(world)


def test_what_a_recovered_coordinator_does_not_know_ends_alike_for_all() -> None:
    """What somebody returned stands; all else that was posted fails, also what all were done with,
    with inputs put back. Epoch numbers are skipped."""
    unknown = 0
    for step in range(0, 60, 3):
        with formed(SEED + step, 3) as world:
            rows = [post_all(world, Spec("all_reduce", 2000, in_place=True)) for _ in range(2)]
            for _ in range(step):
                world.step()
            lib.cc_seal(world.peers[0].context, GROUP, world.epoch)
            world.run(world.settled)
            marks = [peer.lanes[0] for peer in world.peers]
            committed = max(int(lane.committed) for lane in marks)
            posted = max(int(lane.posted) for lane in marks)
            world.epoch = 2**32 - 1
            world.records[world.epoch] = world.records[1]
            world.install(
                world.peers,
                cause=int(lib.CC_CAUSE_RECOVERED),
                outcomes={0: (committed, posted, posted)},
            )
            world.finish([op for _, ops in rows for op in ops.values()])
            for number, (_, ops) in enumerate(rows, 1):
                wanted = OK if number <= committed else int(lib.CC_OUTCOME_UNKNOWN)
                assert {op.status for op in ops.values()} == {wanted}
                unknown += wanted != OK
            check_outcomes(world, rows)
            go_on(world)
    assert unknown > 10


def test_a_record_is_installed_once() -> None:
    """Publication is idempotent; a record that contradicts itself is refused."""
    with formed(SEED, 2) as world:
        ops = post_all(world, Spec("all_reduce", 100))[1]
        world.deliver(world.record)
        world.finish(ops.values())
        assert all(op.status == OK for op in ops.values())
        peer = world.peers[0]
        for change in ("stranger", "ranks", "lane"):
            record = world.write(world.peers)
            if change == "stranger":
                record.native.members[0].id.bytes = b"?" * 16
            elif change == "ranks":
                record.native.members[0].rank = 1
            else:
                record.native.n_lanes = 1
                record.native.lanes[0].committed = 2
                record.native.lanes[0].failed = 1
            assert lib.cc_install(peer.context, record.native) == lib.CC_INVALID
            world.epoch -= 1
        go_on(world)


def test_ready_is_told_of_the_epoch_that_is_ready() -> None:
    """An event that nobody has taken yet does not turn into one of the next epoch."""
    with World(SEED, 2) as world:
        world.install()
        for peer in world.peers:  # as World.step, but nobody looks at the events
            peer.take_events = lambda: None  # type: ignore[method-assign]
        world.run_ms(5)
        a = world.peers[0]
        world.deliver(world.write(world.peers), [a])
        Peer.take_events(a)
        assert a.ready < 2, "the other member has not installed epoch 2 yet"
