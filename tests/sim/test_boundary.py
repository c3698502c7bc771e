"""Goal: membership changes only where it may, at the same operation on all; whoever leaves, says
goodbye or is sent away disturbs nobody else, and is told what became of its operations.

Method: as in test_deaths.py; admit() and leave() are the operation "boundary", and the record
that carries one out is written by `World.decide`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from programs import Spec, post
from promises import GOODBYE, Row, check_outcomes, formed, go_on, post_all, steps_of
from results import check_result
from world import GROUP, OK, PEER_LOST, PENDING, Operation, Peer, Refused, World, prepare_joiner

from collectives._core import lib

SEED = 47_000
LEAVE = int(lib.CC_LEAVE)
BOUNDARY = Spec("boundary", 0)


def admit(world: World, joiners: Sequence[Peer] = (), leavers: Sequence[Peer] = ()) -> Row:
    """Posts a boundary on all members; joiners are those that the coordinator tells of."""
    if joiners:
        for peer in world.members:
            peer.set_pending(len(joiners))
    return BOUNDARY, {
        p.index: p.post("boundary", flags=LEAVE if p in leavers else 0) for p in world.members
    }


def test_a_boundary_without_wishes_changes_nothing() -> None:
    with formed(SEED, 3) as world:
        for _ in range(5):
            before = [int(peer.stats.sent_bytes) for peer in world.peers]
            row = admit(world)
            world.finish(row[1].values())
            assert check_outcomes(world, [row]) == [OK]
            for peer, old in zip(world.peers, before, strict=True):
                assert peer.stats.sent_bytes - old <= 3 * 2 * 64, "votes, and perhaps a beat"
                assert not row[1][peer.index].info.changed
        assert world.epoch == 1
        go_on(world)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_joiner_is_admitted_at_a_boundary(n: int) -> None:
    """It gets the next rank, and its lanes start where those of the others are."""
    for seed in range(SEED, SEED + 5):
        with formed(seed, n) as world:
            for spec in (
                Spec("barrier", 0, lane=3),
                Spec("barrier", 0, lane=3),
                Spec("barrier", 0),
            ):
                world.finish(post_all(world, spec)[1].values())
            joiner = world.add()
            assert prepare_joiner(world, joiner) == (OK, bytes(16))
            with pytest.raises(Refused):
                joiner.post("barrier")
            row = admit(world, [joiner])
            record = world.settle([joiner])
            assert record.world == n + 1 and record.ranks[joiner.index] == n
            world.finish(row[1].values())
            assert check_outcomes(world, [row]) == [OK]
            assert all(op.info.changed for op in row[1].values())
            for lane, number in ((0, 3), (3, 3), (7, 1)):
                row = post_all(world, Spec("all_gather", 50, "int32", lane=lane))
                world.finish(row[1].values())
                assert check_outcomes(world, [row]) == [OK]
                assert {op.info.sequence for op in row[1].values()} == {number}
            go_on(world)
            row = admit(world)  # nobody waits any more
            world.finish(row[1].values())
            assert not any(op.info.changed for op in row[1].values())


def test_two_joiners_at_once_meet_in_the_epoch() -> None:
    """They have prepared for the members only; each other they find with the record."""
    for seed in range(SEED, SEED + 5):
        with formed(seed, 2) as world:
            joiners = [world.add(), world.add()]
            for joiner in joiners:
                assert prepare_joiner(world, joiner) == (OK, bytes(16))
            row = admit(world, joiners)
            world.settle(joiners)
            world.finish(row[1].values())
            assert len(world.members) == 4
            go_on(world)


def test_a_boundary_closes_the_holes_that_deaths_have_left() -> None:
    with formed(SEED, 4) as world:
        world.kill(world.peers[1])
        world.recover()
        assert world.record.ranks == {0: 0, 2: 2, 3: 3} and world.record.world == 4
        row = post_all(world, Spec("all_gather", 10))
        world.finish(row[1].values())
        check_outcomes(world, [row])
        row = admit(world)
        record = world.settle()
        assert record.ranks == {0: 0, 2: 1, 3: 2} and record.world == 3
        world.finish(row[1].values())
        assert all(op.info.changed for op in row[1].values())
        row = post_all(world, Spec("all_gather", 10))
        world.finish(row[1].values())
        assert check_outcomes(world, [row]) == [OK]
        row = post_all(world, Spec("broadcast", 10, root=2))
        world.finish(row[1].values())
        assert check_outcomes(world, [row]) == [OK]
        go_on(world)


@pytest.mark.parametrize("leavers", [[0], [2], [0, 1]])
def test_leavers_succeed_and_the_others_go_on(leavers: list[int]) -> None:
    with formed(SEED, 4) as world:
        leaving = [world.peers[i] for i in leavers]
        row = admit(world, leavers=leaving)
        record = world.settle()
        world.finish(row[1].values())
        for op in row[1].values():
            assert op.status == OK and op.info.changed
        for peer in leaving:
            with pytest.raises(Refused) as refused:
                peer.post("barrier")
            assert refused.value.status == lib.CC_CLOSED
            peer.close()
        assert [record.ranks[p.index] for p in record.members] == list(range(4 - len(leavers)))
        world.run_ms(5000)
        go_on(world)


@pytest.mark.parametrize("case", ["nobody", "joiner", "leaver", "both"])
def test_a_death_at_every_moment_of_a_boundary(case: str) -> None:
    """Carried out or not, with or without the dead one: the same on all who live, and what the dead
    one was told is true. One member posts late, perhaps when the epoch is sealed already."""
    n, late = 3, 1
    leavers = [0] if case in ("leaver", "both") else []
    outcomes = set()
    for step in range(34):
        for victim in range(n):
            with formed(SEED + step, n) as world:
                if case in ("joiner", "both"):
                    assert prepare_joiner(world, world.add()) == (OK, bytes(16))
                    for peer in world.members:
                        peer.set_pending(1)
                ops = {
                    i: world.peers[i].post("boundary", flags=LEAVE if i in leavers else 0)
                    for i in (0, 2)
                }
                told = interrupted_boundary(world, ops, step, world.peers[victim], late)
                joiners = world.peers[n:]
                living = {i: op for i, op in ops.items() if world.peers[i].alive}
                records = world.carry(living.values(), joiners)
                changed = any(r.cause == lib.CC_CAUSE_BOUNDARY for r in records)
                where = f"seed {world.seed}, victim {victim}, told {told}"
                found = {(op.status, op.info.changed) for op in living.values()}
                assert len(found) == 1, (where, found)
                status, was_changed = found.pop()
                outcomes.add((status, was_changed))
                assert status == OK and told in (PENDING, OK), where
                assert was_changed == changed, where
                assert not (told == OK and changed), where
                while not world.is_ready():
                    world.step()
                    if world.settled():
                        world.settle()
                go_on(world)
                assert set(joiners) <= set(world.members) or not changed
    # One that begins again closes the hole that the death has left.
    assert outcomes == {(OK, 1)} | ({(OK, 0)} if case in ("nobody", "leaver") else set())


def interrupted_boundary(
    world: World, ops: dict[int, Operation], step: int, victim: Peer, late: int
) -> int:
    """Lets a peer die after so many steps, and another one post at about that time. Returns what
    the dead one was told before."""
    post_at = world.random.randrange(30)
    told = PENDING
    for now in range(max(step, post_at) + 1):
        if now == post_at and world.peers[late].alive:
            ops[late] = world.peers[late].post("boundary")
        if now == step and not world.settled():
            told = ops[victim.index].status if victim.index in ops else PENDING
            world.kill(victim)
        if world.settled() and late in ops:
            break
        world.step()
    if late not in ops and world.peers[late].alive:
        ops[late] = world.peers[late].post("boundary")
    return told


def test_nothing_is_posted_while_a_boundary_is_open() -> None:
    with formed(SEED, 2) as world:
        a, b = world.peers
        first = a.post("boundary")
        for kind, lane in (("barrier", 0), ("barrier", 4), ("boundary", 0)):
            with pytest.raises(Refused) as refused:
                a.post(kind, lane=lane)
            assert refused.value.status == lib.CC_BUSY
        world.finish([first, b.post("boundary")])
        busy = a.post("barrier", lane=2)
        with pytest.raises(Refused) as refused:
            a.post("boundary")
        assert refused.value.status == lib.CC_BUSY
        world.finish([busy, b.post("barrier", lane=2)])
        with pytest.raises(Refused) as refused:
            a.post("boundary", lane=2)
        assert refused.value.status == lib.CC_INVALID
        go_on(world)


def test_a_rehearsal_tells_who_cannot_be_reached() -> None:
    with formed(SEED, 3) as world:
        world.kill(world.peers[1])
        joiner = world.add()
        status, who = prepare_joiner(world, joiner, world.peers[:3])
        assert status == lib.CC_REFUSED and who == world.peers[1].id
        world.recover()
        # Once more, among those who live: nothing is left of the first attempt.
        assert prepare_joiner(world, joiner, world.members) == (OK, bytes(16))
        row = admit(world, [joiner])
        world.settle([joiner])
        world.finish(row[1].values())
        go_on(world)


def test_a_joiner_that_dies_before_it_is_admitted() -> None:
    """The record names it all the same: the members lose it in that epoch, and nothing else."""
    for delay in (0, 3, 10, 40):
        with formed(SEED, 3) as world:
            joiner = world.add()
            prepare_joiner(world, joiner)
            row = admit(world, [joiner])
            world.run(world.settled)
            record = world.decide([joiner])
            if delay == 0:
                world.kill(joiner)
            world.deliver(record)
            for _ in range(delay):
                world.step()
            world.kill(joiner)
            world.recover()
            world.finish(row[1].values())
            assert check_outcomes(world, [row]) == [OK]
            assert world.members == world.peers[:3]
            go_on(world)


def test_joiners_that_never_make_it_leave_nothing_behind() -> None:
    """Each had connected to the member. There are more of them than a context holds links."""
    with formed(SEED, 1, streams=1, segment_bytes=64) as world:
        for number in range(2100):
            joiner = Peer(world, 1000 + number, streams=1, segment_bytes=64)
            assert prepare_joiner(world, joiner) == (OK, bytes(16)), number
            joiner.close(abort=True)
            world.run_ms(0.2)
            lib.cc_context_free(joiner.context)
        go_on(world)


# ---- too few ----------------------------------------------------------------------------------


def test_below_the_floor_operations_fail_until_someone_joins() -> None:
    with formed(SEED, 4, min_size=3) as world:
        rows = [post_all(world, Spec("all_reduce", 3000, algorithm="ring", in_place=True))]
        world.step()
        for peer in world.peers[2:]:
            world.kill(peer)
        world.recover()
        world.finish(op for i, op in rows[0][1].items() if i < 2)
        assert check_outcomes(world, rows) == [lib.CC_GROUP_TOO_SMALL]
        for kind in ("all_reduce", "broadcast", "all_gather", "barrier"):
            row = post_all(world, Spec(kind, 0 if kind == "barrier" else 10))
            world.finish(row[1].values())
            assert check_outcomes(world, [row]) == [lib.CC_GROUP_TOO_SMALL]
            assert "2 members" in row[1][0].message and "needs 3" in row[1][0].message
        joiner = world.add()
        prepare_joiner(world, joiner)
        row = admit(world, [joiner])
        record = world.settle([joiner])
        world.finish(row[1].values())
        assert record.world == 3
        go_on(world)


def test_a_root_that_is_lost_fails_on_all_alike() -> None:
    with formed(SEED, 3) as world:
        world.kill(world.peers[0])
        world.recover()
        rows = [post_all(world, Spec("broadcast", 100, root=root, seed=root)) for root in (0, 1)]
        world.finish(op for _, ops in rows for op in ops.values())
        assert check_outcomes(world, rows) == [PEER_LOST, OK]
        assert "rank 0" in rows[0][1][1].message and "root" in rows[0][1][1].message
        go_on(world)


# ---- goodbye ----------------------------------------------------------------------------------


def test_a_goodbye_of_someone_who_is_not_needed_disturbs_nobody() -> None:
    """Not even later, when its link has been silent for long; only who calls again loses it."""
    with formed(SEED, 3, dead_ms=2000, connect_ms=3000) as world:
        row = post_all(world, Spec("all_reduce", 500, algorithm="ring"))
        world.finish(row[1].values())
        leaver, *others = world.peers
        leaver.close()
        world.run_ms(20_000)
        assert not any(peer.sealed for peer in others)
        rows = [post_all(world, Spec("all_reduce", 500, in_place=True), others)]
        world.recover()
        world.finish(rows[0][1].values())
        assert check_outcomes(world, rows) == [OK]
        go_on(world)


def test_a_goodbye_of_someone_who_is_needed_loses_it_at_once() -> None:
    for seed in range(SEED, SEED + 5):
        with formed(seed, 3) as world:
            leaver, *others = world.peers
            ops = [post(p, Spec("all_reduce", 500, in_place=True), 3, p.index) for p in others]
            for _ in range(world.random.randrange(10)):
                world.step()
            leaver.close()
            before = world.now_ns
            world.run(world.settled)
            assert world.now_ns - before < 1_000_000
            # Whoever was told to seal by the other one may not have heard it yet.
            assert {p.evidence.get(0, GOODBYE) for p in others} == {GOODBYE}, f"seed {seed}"
            world.recover()
            world.finish(ops)
            assert {op.status for op in ops} == {OK}
            go_on(world)


def test_a_death_after_a_goodbye_is_settled_at_once() -> None:
    """The report names both, or the coordinator would wait for the one that left in order."""
    with formed(SEED, 4) as world:
        row = post_all(world, Spec("barrier", 0))
        world.finish(row[1].values())
        leaver, victim, *others = world.peers
        leaver.close()
        world.run_ms(10)
        world.kill(victim)
        before = world.now_ns
        world.recover()
        assert world.now_ns - before < 1_000_000_000
        assert world.members == others
        go_on(world)


def test_who_closes_as_soon_as_it_has_its_result_takes_nothing_with_it() -> None:
    """Its votes and its goodbye reach the others, whichever of its streams ends first. (On a
    congested wire closing takes time, which a context that is driven by hand does not have.)"""
    for seed in range(SEED, SEED + 20):
        with formed(seed, 3) as world:
            rows = [
                post_all(world, Spec("all_reduce", 300, "int32", algorithm="direct", seed=i))
                for i in range(12)
            ]
            first = world.peers[seed % 3]
            world.finish(ops[first.index] for _, ops in rows)
            first.close()
            rest = [op for _, ops in rows for i, op in ops.items() if i != first.index]
            world.finish(rest, 1500)
            assert check_outcomes(world, rows) == [OK] * 12
            assert not any(peer.sealed for peer in world.alive), f"seed {seed}"


def test_use_after_the_end() -> None:
    """Closed or expelled: open operations end with that, inputs intact; later calls are refused."""
    with formed(SEED, 3) as world:
        a, b, c = world.peers
        x = [np.ones(5000, np.float32) for _ in range(3)]
        ops = [p.post("all_reduce", y, y) for p, y in zip((a, b), x[:2], strict=True)]
        for _ in range(3):
            world.step()
        a.close()
        assert ops[0].status == lib.CC_CLOSED and ops[0].intact
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                a.post("barrier")
            assert refused.value.status == lib.CC_CLOSED
            lib.cc_context_close(a.context, 0)
        assert lib.cc_install(a.context, world.record.native) == lib.CC_CLOSED
        lib.cc_expel(b.context, GROUP, lib.CC_COORDINATOR_LOST, b"the coordinator stayed away")
        assert ops[1].status == lib.CC_COORDINATOR_LOST and ops[1].intact
        assert "stayed away" in ops[1].message
        with pytest.raises(Refused) as refused:
            b.post("barrier")
        assert refused.value.status == lib.CC_COORDINATOR_LOST
        lib.cc_expel(b.context, GROUP, lib.CC_EVICTED, b"too late")
        assert ops[1].status == lib.CC_COORDINATOR_LOST
        lib.cc_expel(c.context, 1234, lib.CC_EVICTED, b"of a group that it was never in")
        assert lib.cc_install(b.context, world.record.native) == lib.CC_COORDINATOR_LOST


def test_handles_outlive_their_context() -> None:
    with formed(SEED, 2) as world:
        op: Operation = world.peers[0].post("barrier", lane=9)
        for peer in world.peers:
            peer.close(abort=True)
    assert op.status == lib.CC_CLOSED and "closed" in op.message
    del op


def test_steps_are_counted_from_the_post() -> None:
    """The harness itself: a run without faults ends, and takes its steps."""
    assert 5 < steps_of(lambda: (w := formed(SEED, 2), [post_all(w, Spec("all_reduce", 99))])) < 200
    with formed(SEED, 2) as world:
        row = post_all(world, Spec("all_reduce", 4))
        row[1][0].given[0] += 1
        assert not row[1][0].intact
        world.finish(row[1].values())
        row[1][0].out[0] += 1
        with pytest.raises(AssertionError):
            check_result(row[0], world.record, row[1])
