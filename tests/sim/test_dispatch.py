"""Goal: a survivor whose agent is busy, or cut off from the coordinator, stalls nobody.

Method: as in test_deaths.py, but nobody takes the events of some peers and nothing is installed in
them. Their reports come by way of others, and others tell them what a failure's record says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from programs import Spec, post
from promises import Row, check_outcomes, formed, go_on, post_all, steps_of
from world import MS, OK, Peer, Record, World, prepare_joiner

from collectives._core import ffi, lib

SEED = 78_000
BEAT_MS = 200
AT_ONCE_MS = BEAT_MS / 2  # a report and a record, each an eighth of a beat late, and their ways


def without_agents(world: World, indices: Sequence[int]) -> None:
    for index in indices:
        world.peers[index].has_agent = False


def epoch_of(peer: Peer, group: int = 7) -> int:
    """The epoch that its core has installed, whatever anybody was told."""
    record, members = ffi.new("cc_epoch *"), ffi.new("cc_member[]", 64)
    lanes, detail = ffi.new("cc_outcome[]", 16), ffi.new("char[]", int(lib.CC_DETAIL_MAX))
    status = lib.cc_record(peer.context, group, record, members, 64, lanes, detail)
    assert status == OK
    return int(record.epoch)


def die_at(
    prepare: Callable[[], tuple[World, list[Row]]], step: int, victim: int, busy: Sequence[int]
) -> set[int]:
    """One run in which a peer dies after so many steps. Returns the attempts that it took."""
    world, rows = prepare()
    with world:
        without_agents(world, busy)
        for _ in range(step):
            world.step()
        world.kill(world.peers[victim])
        started = world.now_ns
        world.recover()
        world.finish(op for _, ops in rows for i, op in ops.items() if world.peers[i].alive)
        assert world.now_ns - started < AT_ONCE_MS * MS
        check_outcomes(world, rows)
        assert world.members == world.alive
        go_on(world)
        assert {epoch_of(peer) for peer in world.alive} == {world.epoch}
        return {int(ops[p.index].info.attempts) for _, ops in rows for p in world.alive}


@pytest.mark.parametrize(
    ("n", "victim", "busy"),
    [(3, 0, [2]), (3, 2, [0]), (4, 1, [0, 3]), (5, 4, [0, 1, 2]), (2, 1, [])],
)
@pytest.mark.parametrize("count", [50, 4500])
def test_a_death_at_every_moment(n: int, victim: int, busy: list[int], count: int) -> None:
    """As long as one survivor has an agent, it delivers for all."""

    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED + n, n)
        spec = Spec("all_reduce", count, "float32", in_place=True)
        return world, [post_all(world, spec), post_all(world, Spec("all_reduce", 7, lane=3))]

    attempts: set[int] = set()
    steps = steps_of(prepare)
    for step in range(0, steps + 2, max(1, steps // 25)):
        attempts |= die_at(prepare, step, victim, busy)
    assert attempts == {1, 2}, "some deaths come early enough, some too late"


@pytest.mark.parametrize("seed", range(SEED, SEED + 6))
def test_more_members_than_a_report_is_sent_to(seed: int) -> None:
    """Some have no agent, some are dead; who is left to carry is found."""
    with formed(seed, 14) as world:
        rows = [post_all(world, Spec("all_reduce", 900, in_place=True))]
        chosen = world.random.sample(range(14), 8)
        without_agents(world, chosen[:6])
        for _ in range(world.random.randrange(20)):
            world.step()
        for index in chosen[6:]:
            world.kill(world.peers[index])
        started = world.now_ns
        world.recover()
        world.finish(rows[0][1][peer.index] for peer in world.alive)
        assert world.now_ns - started < AT_ONCE_MS * MS
        check_outcomes(world, rows)
        go_on(world)


def test_two_deaths_one_after_the_other() -> None:
    """Who has just been told of one epoch may have to report on it."""
    for delay_ms in (0.0, 1.0, 26.0, 51.0, 60.0, 300.0):
        with formed(SEED, 5) as world:
            rows = [post_all(world, Spec("all_reduce", 900, in_place=True))]
            without_agents(world, [1, 2])
            world.kill(world.peers[3])
            world.settle()
            world.run_ms(delay_ms)
            world.kill(world.peers[4])
            world.recover()
            world.finish(rows[0][1][peer.index] for peer in world.alive)
            check_outcomes(world, rows)
            assert world.members == world.peers[:3]
            go_on(world)


def boundary(world: World) -> Record:
    """The record of a boundary that lets one joiner in; it is not published yet."""
    assert prepare_joiner(world, world.add()) == (OK, bytes(16))
    members = world.members
    for peer in members:
        peer.set_pending(1)
        peer.post("boundary")
    world.run(lambda: all(peer.sealed for peer in members))
    return world.decide([world.peers[-1]])


def test_a_report_reaches_who_has_not_come_to_its_epoch() -> None:
    """The record is late for the only peer with an agent: it hands on reports on an epoch that it
    has yet to install."""
    with formed(SEED, 3) as world:
        record = boundary(world)
        carrier, *others = world.peers
        world.deliver(record, others)
        without_agents(world, [1, 2, 3])
        lib.cc_seal(others[0].context, 7, record.epoch)
        world.run(lambda: others[0].sealed and others[1].sealed, 20 * BEAT_MS)
        assert epoch_of(carrier) == record.epoch - 1


@pytest.mark.parametrize("busy", [[1], [0, 2]])
def test_errors_that_are_agreed_reach_them_too(busy: list[int]) -> None:
    """A mismatch, with who called what, and a deadline."""
    with formed(SEED, 3) as world:
        without_agents(world, busy)
        odd = {i: post(p, Spec("all_reduce", 5 + i // 2), 3, i) for i, p in enumerate(world.peers)}
        world.settle()
        world.finish(odd.values())
        for op in odd.values():
            assert op.status == lib.CC_MISMATCH and "rank 2" in op.message and op.intact
        x = np.ones(600, np.int64)
        late = [p.post("all_reduce", x.copy(), x.copy(), timeout_ms=300) for p in world.peers[:2]]
        world.recover()
        world.finish(late)
        assert {op.status for op in late} == {int(lib.CC_TIMED_OUT)}
        assert all("timeout" in op.message and op.intact for op in late)


def test_agents_have_an_eighth_of_a_beat_before_members_step_in() -> None:
    """For the report, and for the record."""
    with formed(SEED, 3) as world:
        carrier, other, victim = world.peers
        carried: list[int] = []
        carrier.on_carried = carried.append
        world.kill(victim)
        world.run(lambda: carrier.sealed and other.sealed)
        world.run_ms(BEAT_MS / 8 - 1)
        assert carried == []
        world.run_ms(2)
        assert carried == [other.index]
        world.deliver(world.decide(), [carrier])
        world.run_ms(BEAT_MS / 8 - 1)
        assert epoch_of(other) == 1
        world.run_ms(2)
        assert epoch_of(other) == 2


def test_a_boundary_is_for_agents_alone() -> None:
    """Its record is no change of the one before: it names newcomers, and moves ranks."""
    with formed(SEED, 3) as world:
        record = boundary(world)
        world.peers[2].has_agent = False
        world.deliver(record)
        world.run_ms(10 * BEAT_MS)
        assert [epoch_of(peer) for peer in world.peers] == [2, 2, 1, 2]
        world.peers[2].has_agent = True
        world.deliver(record)
        world.finish(op for peer in world.peers for op in peer.operations)
        go_on(world)


def test_who_is_left_out_is_not_told() -> None:
    with formed(SEED, 3, dead_ms=2000) as world:
        sleeper = world.peers[0]
        rows = [post_all(world, Spec("all_reduce", 900, in_place=True))]
        world.pause(sleeper)
        world.settle()
        world.pause(sleeper, False)
        without_agents(world, [0])
        world.run_ms(10 * BEAT_MS)
        assert epoch_of(sleeper) == 1
        assert not rows[0][1][0].done
        go_on(world)


def test_the_record_that_was_told_is_the_one_that_was_published() -> None:
    """And when it comes the usual way as well, it changes nothing."""
    with formed(SEED, 4) as world:
        post_all(world, Spec("all_reduce", 900, in_place=True))
        busy = world.peers[0]
        without_agents(world, [0])
        world.kill(world.peers[2])
        record = world.recover()
        found, members = ffi.new("cc_epoch *"), ffi.new("cc_member[]", 3)
        lanes, detail = ffi.new("cc_outcome[]", 16), ffi.new("char[]", int(lib.CC_DETAIL_MAX))
        args = busy.context, 7, found, members
        assert lib.cc_record(*args, 2, lanes, detail) == lib.CC_NO_MEMORY
        assert lib.cc_record(*args, 3, lanes, detail) == OK
        native = record.native
        for field in ("group", "epoch", "cause", "world", "min_size", "lost_rank", "n_members"):
            assert getattr(found, field) == getattr(native, field), field
        assert bytes(found.lost.bytes) == bytes(native.lost.bytes)
        for i in range(3):
            assert bytes(ffi.buffer(members[i : i + 1])) == bytes(
                ffi.buffer(native.members[i : i + 1])
            )
        told = [(lane.lane, lane.committed, lane.failed, lane.posted) for lane in lanes[0:1]]
        assert told == [(0, *record.outcomes[0])] and found.n_lanes == 1
        busy.has_agent = True
        assert lib.cc_install(busy.context, native) == OK
        go_on(world)
