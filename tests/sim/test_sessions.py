"""Goal: a link's session outlives connections, and its end costs no more than it must.

Method: links that always have something to say, and frames that arrive as nonsense, at many steps:
then one side gives the session up, and the other learns of it only with the next connection.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from programs import Spec
from promises import Row, check_outcomes, formed, go_on, post_all
from world import MS, OK, US, Operation, World, prepare_joiner

from collectives._core import lib

SEED = 41_000


def test_who_has_always_something_to_send_confirms_all_the_same() -> None:
    """Or else its peer keeps all that it ever said, and gives up the link at 4 MiB: both send ten,
    as eager data in all lanes, with more on its way than the connection takes at once."""
    with formed(SEED, 2, streams=1) as world:
        lib.cc_sim_set_window(world.sim, 1 << 14)
        lib.cc_sim_set_latency(world.sim, 500 * US, 500 * US)
        spec = Spec("all_reduce", 4096, "int32", algorithm="recursive_doubling")
        left = dict.fromkeys(range(16), 40)
        rows: list[Row] = []
        open_rows: dict[int, list[Row]] = {lane: [] for lane in left}

        def is_over() -> bool:
            for lane, running in open_rows.items():
                running[:] = [row for row in running if not all(op.done for op in row[1].values())]
                while left[lane] and len(running) < 24:
                    left[lane] -= 1
                    running.append(post_all(world, replace(spec, lane=lane)))
                    rows.append(running[-1])
            assert not any(peer.sealed for peer in world.peers)
            return not any(left.values()) and not any(open_rows.values())

        world.run(is_over)
        assert min(peer.stats.sent_bytes for peer in world.peers) > 10 << 20
        assert check_outcomes(world, rows) == [OK] * len(rows)


def test_nothing_is_said_before_the_session() -> None:
    """The first frame of a connection does not fit into it at once: what is kept has to wait until
    the peer has said how much of it it has, or it comes twice."""
    for seed in range(SEED, SEED + 40):
        with formed(seed, 3) as world:
            lib.cc_sim_set_window(world.sim, 40)
            rows = [post_all(world, Spec("all_reduce", 100, "int32", lane=i)) for i in range(4)]
            for _ in range(seed % 50):
                world.step()
            lib.cc_sim_set_latency(world.sim, 1 * US, 500 * US)
            world.break_link(*world.random.sample(world.peers, 2))
            rows += [
                post_all(world, Spec("all_reduce", 100, "int32", lane=4 + i)) for i in range(6)
            ]
            world.finish(op for _, ops in rows for op in ops.values())
            world.run_ms(1000)
            assert check_outcomes(world, rows) == [OK] * len(rows)
            assert not any(peer.evidence for peer in world.peers)


def send_both_ways(world: World) -> list[tuple[Operation, Operation]]:
    """Long messages and short ones between the first two, in both directions."""
    a, b = world.peers[:2]
    posted = []
    for tag, count in enumerate((30_000, 50, 9000, 0)):
        for sender, receiver in ((a, b), (b, a)):
            data = np.arange(count, dtype=np.int32) + tag
            send = sender.post("send", data, root=receiver.index, tag=tag)
            out = np.zeros_like(data)
            posted.append((send, receiver.post("receive", None, out, root=sender.index, tag=tag)))
    return posted


@pytest.mark.parametrize("window", [300, 1 << 16])
@pytest.mark.parametrize("n", [2, 3])
def test_a_frame_that_arrives_as_nonsense(n: int, window: int) -> None:
    """The receiver gives the session up; which of both then dials depends on who it was. The other
    has lost its side too, but nothing more: it costs one epoch, of the same members, and messages
    begin again, of which nothing may be sent before the other knows that."""
    for step in range(0, 300, 11):
        with formed(SEED + step, n) as world:
            lib.cc_sim_set_window(world.sim, window)
            messages = send_both_ways(world)
            rows = [post_all(world, Spec("all_reduce", 5000, "int32", algorithm="ring"))]
            for _ in range(step):
                world.step()
            world.corrupt(*world.random.sample(world.peers[:2], 2))
            operations = [op for pair in messages for op in pair]
            records = world.carry([*operations, *rows[0][1].values()])
            if not records:  # it is the next heartbeat
                records.append(world.settle())
            world.run_ms(1000)
            assert [record.members for record in records] == [world.peers]
            assert not any(peer.sealed for peer in world.peers)
            assert check_outcomes(world, rows) == [OK]
            for send, receive in messages:
                assert (send.status, receive.status) == (OK, OK)
                assert np.array_equal(send.given, receive.out)
            go_on(world)


def test_a_link_that_nobody_wanted_for_a_while() -> None:
    """It breaks under a joiner's rehearsal, and the next one leaves that member out. The one after
    that does not, and must not wait for a connection that nobody makes."""
    for down_ms in range(300, 420, 12):
        with formed(SEED, 2, connect_ms=20) as world:
            member, other = world.peers
            joiner = world.add()
            assert prepare_joiner(world, joiner)[0] == OK
            world.cut(joiner, member)
            world.break_link(joiner, member)
            world.run_ms(down_ms)
            assert prepare_joiner(world, joiner, [other])[0] == OK
            world.cut(joiner, member, False)
            world.run_ms(1000)
            assert prepare_joiner(world, joiner)[0] == OK


def test_a_peer_that_slept_is_not_led_around() -> None:
    """Others ask for it through each other while it is stopped. Once it runs again all is as it
    was: a link is made anew only if the answer comes before the peer is heard itself."""
    runs, beats, again = 0, 0, 0
    for seed in range(SEED, SEED + 4):
        for victim in range(3):
            for slept_ms in (0, 1150, 1250):
                with formed(seed, 3, dead_ms=2000) as world:
                    world.run_ms(500)
                    world.pause(world.peers[victim])
                    world.run_ms(slept_ms)
                    world.pause(world.peers[victim], False)
                    before = sum(peer.stats.sent_bytes for peer in world.peers)
                    world.run_ms(1000)
                    sent = sum(peer.stats.sent_bytes for peer in world.peers) - before
                    assert not any(peer.evidence for peer in world.peers)
                    if slept_ms == 0:
                        beats = sent
                    else:  # on its way back each link has three frames of its own at both ends
                        runs, again = runs + 1, again + (sent - beats >= 3 * 128)
    assert again <= runs // 4


def test_whoever_resets_every_connection_is_not_dialled_without_a_pause() -> None:
    """Each is broken as soon as both sides have said something on it, for a second."""
    with formed(SEED, 2) as world:
        a, b = world.peers
        heard, broken, end = (0, 0), 0, world.now_ns + 1000 * MS
        while world.now_ns < end:
            world.step()
            now = (a.stats.received_bytes, b.stats.received_bytes)
            if min(now[0] - heard[0], now[1] - heard[1]) >= 128:
                heard, broken = now, broken + 1
                world.break_link(a, b)
        assert 10 < broken < 50
        go_on(world)
        assert not any(peer.evidence for peer in world.peers)


def test_a_message_of_more_segments_than_can_be_named() -> None:
    """A connection breaks in its middle. It begins again in a new session, in an epoch of the same
    members."""
    with formed(SEED, 2, segment_bytes=64, streams=1) as world:
        lib.cc_sim_set_window(world.sim, 1 << 20)
        sender, receiver = world.peers
        data = np.arange(2_200_000, dtype=np.int32)
        send = sender.post("send", data, root=1)
        receive = receiver.post("receive", None, np.zeros_like(data), root=0)
        world.run(lambda: receiver.stats.received_bytes > data.nbytes // 4)
        world.break_link(sender, receiver)
        records = world.carry([send, receive])
        assert [record.members for record in records] == [world.peers]
        assert np.array_equal(receive.out, data)
        assert (send.info.attempts, receive.info.attempts) == (2, 2)
