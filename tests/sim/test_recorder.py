"""Goal: the flight recorder tells what the core did, in the core's own time, and nothing but that.

Method: a death in a simulated world, twice with one seed. Times must be virtual, events the same to
the last byte, and each operation's events in the order in which things happen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from programs import Spec
from promises import check_outcomes, formed, post_all
from world import MS, OK, Peer, World

from collectives._core import ffi, lib

SEED = 83_000


def events_of(peer: Peer) -> list[Any]:
    copies = ffi.new("cc_trace_event[]", 1 << 14)
    count = ffi.new("uint32_t *")
    lib.cc_trace_read(peer.context, copies, 1 << 14, count)
    return [ffi.new("cc_trace_event *", copies[i]) for i in range(count[0])]


def run(seed: int, count: int, **options: int) -> tuple[World, list[bytes]]:
    """A death in the middle of operations; what each peer has recorded of it."""
    with formed(seed, 3, **options) as world:
        rows = [post_all(world, Spec("all_reduce", count, "int32", seed=i)) for i in range(3)]
        for _ in range(4):
            world.step()
        victim = world.peers[2]
        world.kill(victim)
        world.recover()
        world.finish(ops[peer.index] for _, ops in rows for peer in world.alive)
        assert check_outcomes(world, rows) == [OK] * 3
        records = []
        kinds = {event.kind for peer in world.alive for event in events_of(peer)}
        assert lib.CC_TRACE_LINK_LOST in kinds or options
        for peer in world.peers:
            found = events_of(peer)
            if peer.alive and found:
                look_at(world, peer, found, options)
            records.append(b"".join(bytes(ffi.buffer(event)) for event in found))
        return world, records


def look_at(world: World, peer: Peer, events: list[Any], options: dict[str, int]) -> None:
    kinds = [event.kind for event in events]
    times = [event.time_ns for event in events]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] <= world.now_ns < 60_000 * MS
    assert [event.number for event in events] == list(
        range(events[0].number, events[-1].number + 1)
    )
    if options:
        return
    assert events[0].number == 1
    sealed, installed = kinds.index(lib.CC_TRACE_SEALED), kinds.count(lib.CC_TRACE_INSTALLED)
    assert sealed < kinds.index(lib.CC_TRACE_REPORTED)
    assert installed == len(world.records)
    # One has seen the link break; the other was told to seal, and may never have come to see it.
    if bytes(events[sealed].peer) == world.peers[2].id[:8]:
        assert kinds.index(lib.CC_TRACE_LINK_LOST) < sealed
    else:
        assert not any(bytes(events[sealed].peer))
    last = max(i for i, kind in enumerate(kinds) if kind == lib.CC_TRACE_INSTALLED)
    assert (events[last].epoch, events[last].code) == (world.epoch, lib.CC_CAUSE_LOST)
    for sequence in (1, 2, 3):
        mine = [e for e in events if e.sequence == sequence]
        order = [e.kind for e in mine]
        assert order[0] == lib.CC_TRACE_POSTED and order[-1] == lib.CC_TRACE_ENDED
        assert order.index(lib.CC_TRACE_MOVED) < order.index(lib.CC_TRACE_DONE)
        assert order.count(lib.CC_TRACE_MOVED) <= 1 + order.count(lib.CC_TRACE_AGAIN)
        info = peer.operations[sequence - 1].info
        assert info.attempts == 1 + order.count(lib.CC_TRACE_AGAIN)
        assert mine[-1].code == info.status and mine[-1].epoch == info.epoch
        assert {e.more for e in mine} == {mine[0].time_ns}


@pytest.mark.parametrize("count", [50, 4500])  # eager, and in segments
def test_the_same_seed_records_the_same(count: int) -> None:
    _, first = run(SEED + count, count)
    _, second = run(SEED + count, count)
    assert all(first) and first == second
    _, other = run(SEED + count + 1, count)
    assert first != other


def test_recording_changes_nothing() -> None:
    """The world goes the same way without."""
    with_it, records = run(SEED, 300, trace_events=8)
    without, nothing = run(SEED, 300, trace_events=0)
    assert nothing == [b""] * 3 and all(len(record) == 8 * 64 for record in records)
    assert (with_it.steps, with_it.records.keys()) == (without.steps, without.records.keys())


def test_messages_are_recorded() -> None:
    with formed(SEED, 2) as world:
        one, two = world.peers
        for count in (10, 20_000):  # sent along with its offer, and in segments
            sent = one.post("send", np.ones(count, np.uint8), root=1, tag=3)
            got = two.post("receive", out=np.zeros(count, np.uint8), root=0, tag=3)
            world.finish([sent, got])
        for peer, kind, other in ((one, lib.CC_SEND, two), (two, lib.CC_RECEIVE, one)):
            found = [e for e in events_of(peer) if e.what == kind]
            ends = [e for e in found if e.kind == lib.CC_TRACE_MESSAGE_ENDED]
            assert [(e.value, e.code, e.sequence) for e in ends] == [(10, OK, 1), (20_000, OK, 2)]
            assert {bytes(e.peer) for e in found} == {other.id[:8]}
            posted = [e.time_ns for e in found if e.kind == lib.CC_TRACE_MESSAGE_POSTED]
            assert [e.more for e in ends] == posted
            assert sum(e.kind == lib.CC_TRACE_MOVED for e in found) == 1


def test_a_mended_link_is_recorded() -> None:
    with formed(SEED, 2) as world:
        one, two = world.peers
        world.break_link(one, two)

        def mended(peer: Peer) -> bool:
            return any(e.kind == lib.CC_TRACE_LINK_MENDED for e in events_of(peer))

        world.run(lambda: mended(one) and mended(two))
        dialled = 0
        for peer, other in ((one, two), (two, one)):
            found = [e for e in events_of(peer) if e.kind >= lib.CC_TRACE_LINK_DIALLED]
            kinds = [e.kind for e in found]
            broken = kinds.index(lib.CC_TRACE_LINK_BROKEN)
            assert kinds.index(lib.CC_TRACE_LINK_UP) < broken
            assert broken < kinds.index(lib.CC_TRACE_LINK_MENDED)
            assert lib.CC_TRACE_LINK_LOST not in kinds
            assert {bytes(e.peer) for e in found} == {other.id[:8]}
            dialled += kinds[broken:].count(lib.CC_TRACE_LINK_DIALLED)
        assert dialled == 1
