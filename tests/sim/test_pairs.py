"""Goal: a message arrives once, whole, in the order of its tag, or its ends learn that it did not;
failures of others do not disturb it.

Method: random sends and receives among peers of a simulated world, posted while links break and
peers die. A message's number says everything about it: from whom, to whom, its tag, its length
and its bytes. So each receive knows what it must get, and each failure must name the dead peer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from promises import go_on
from world import GROUP, OK, PEER_LOST, Operation, Peer, World

from collectives._core import lib

SEED = 77_000
TAGS = 3
MISMATCH, TIMED_OUT, BUSY = int(lib.CC_MISMATCH), int(lib.CC_TIMED_OUT), int(lib.CC_BUSY)
ANY = int(lib.CC_ANY_SOURCE)
LENGTHS = (0, 1, 700, 4096, 4097, 30_000)  # 4096 of four bytes travel with their offer


@dataclass
class Message:
    """One send and the receive that must get it."""

    number: int
    sender: Peer
    receiver: Peer
    tag: int
    send: Operation | None = None
    receive: Operation | None = None

    @property
    def content(self) -> np.ndarray:
        count = LENGTHS[self.number * 7 % len(LENGTHS)]
        return np.arange(count, dtype=np.int32) * 3 + self.number


def formed(seed: int, n: int, **options: int) -> World:
    world = World(seed, n, **{"segment_bytes": 4096, "streams": 2, **options})
    world.install()
    world.run(world.is_ready)
    return world


def post(world: World, message: Message, sends: bool) -> None:
    ranks = world.record.ranks
    if sends:
        message.send = message.sender.post(
            "send", message.content, root=ranks[message.receiver.index], tag=message.tag
        )
    else:
        out = np.full(message.content.size, -1, np.int32)
        root = ranks[message.sender.index]
        message.receive = message.receiver.post("receive", out=out, root=root, tag=message.tag)


def check(message: Message, world: World) -> None:
    send, receive = message.send, message.receive
    assert send and receive
    if receive.status == OK:
        assert (receive.out == message.content).all(), f"seed {world.seed}: {message.number}"
        assert receive.info.source == message.sender.index


def traffic(world: World, per_pair: int, disturb: int = 0) -> list[Message]:
    """Posts the sends and the receives of random messages, each list of one pair and tag in order,
    and lets time pass and links break in between."""
    rng = world.random
    pairs = list(itertools.permutations(world.peers, 2)) * per_pair
    messages = [Message(i, a, b, rng.randrange(TAGS)) for i, (a, b) in enumerate(pairs)]
    todo = []
    for key in {(m.sender.index, m.receiver.index, m.tag) for m in messages}:
        same = [m for m in messages if (m.sender.index, m.receiver.index, m.tag) == key]
        todo += [[(m, True) for m in same], [(m, False) for m in same]]
    # Sends have one order for each pair: they are numbered across tags.
    while todo:
        queue = rng.choice(todo)
        post(world, *queue.pop(0))
        todo = [queue for queue in todo if queue]
        for _ in range(rng.randrange(4)):
            world.step()
        if disturb and rng.randrange(disturb) == 0 and not any(p.sealed for p in world.members):
            world.break_link(*rng.sample(world.members, 2))
            if rng.randrange(2):
                world.renew()
    return messages


def operations(messages: list[Message]) -> list[Operation]:
    return [op for m in messages for op in (m.send, m.receive) if op]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_all_arrive_once_and_in_order(n: int) -> None:
    for seed in range(SEED, SEED + 12):
        with formed(seed, n) as world:
            messages = traffic(world, 6 if n > 3 else 12)
            world.finish(operations(messages))
            for message in messages:
                check(message, world)
            assert {op.status for op in operations(messages)} == {OK}
            go_on(world)


@pytest.mark.parametrize("n", [2, 4])
def test_broken_links_lose_and_double_nothing(n: int) -> None:
    for seed in range(SEED, SEED + 25):
        with formed(seed, n, send_buffer_bytes=2048) as world:
            messages = traffic(world, 8, disturb=12)
            world.carry(operations(messages))
            for message in messages:
                check(message, world)
            assert {op.status for op in operations(messages)} == {OK}, f"seed {seed}"
            assert {int(op.info.attempts) for op in operations(messages)} == {1}
            go_on(world)


def test_a_death_fails_its_own_messages_alone() -> None:
    ends: set[tuple[int, int]] = set()
    for seed in range(SEED, SEED + 40):
        with formed(seed, 3) as world:
            victim = world.peers[2]
            messages = [
                Message(i, a, b, 0)
                for i, (a, b) in enumerate(list(itertools.permutations(world.peers, 2)) * 4)
            ]
            for message in messages:
                post(world, message, True)
                post(world, message, False)
            for _ in range(world.random.randrange(30)):
                world.step()
            world.kill(victim)
            world.recover()
            alive = [op for op in operations(messages) if op.peer is not victim]
            world.carry(alive)
            for message in messages:
                check_around(message, victim, world)
                ends.add((message.send.status, message.receive.status))  # type: ignore[union-attr]
            go_on(world)
    assert {(OK, OK), (PEER_LOST, lib.CC_PENDING), (lib.CC_PENDING, PEER_LOST)} <= ends


def check_around(message: Message, victim: Peer, world: World) -> None:
    assert message.send and message.receive
    check(message, world)
    ends = [op.status for op in (message.send, message.receive) if op.peer is not victim]
    if victim in (message.sender, message.receiver):
        assert set(ends) <= {OK, PEER_LOST}
    else:
        assert set(ends) == {OK}, f"seed {world.seed}"
    for op in (message.send, message.receive):
        if op.peer is not victim and op.status == PEER_LOST:
            assert "rank 2 was lost" in op.message and op.info.lost_rank == 2


def test_any_source_takes_each_message_once() -> None:
    for seed in range(SEED, SEED + 12):
        with formed(seed, 4) as world:
            sink, *sources = world.peers
            receives, sends = [], []
            for number in range(40):
                out = np.zeros(5000, np.int64)
                receives.append(sink.post("receive", out=out, root=ANY, tag=5))
                source = world.random.choice(sources)
                data = np.full(5000, 100 * source.index + number)
                sends.append(source.post("send", data, root=0, tag=5))
                for _ in range(world.random.randrange(3)):
                    world.step()
                if world.random.randrange(20) == 0 and not any(p.sealed for p in world.peers):
                    world.break_link(sink, source)
                    if world.random.randrange(2):
                        world.renew()
            world.carry([*receives, *sends])
            assert {op.status for op in [*receives, *sends]} == {OK}
            got = [(int(op.info.source), int(op.out[0])) for op in receives]
            assert all((op.out == op.out[0]).all() for op in receives)
            assert sorted(value for _, value in got) == sorted(int(op.given[0]) for op in sends)
            for source in sources:  # in the order in which they were sent
                mine = [value for who, value in got if who == source.index]
                assert mine == sorted(mine) and all(v // 100 == source.index for v in mine)


@pytest.mark.parametrize("count", [10, 20_000])
def test_deadlines(count: int) -> None:
    with formed(SEED, 2) as world:
        a, b = world.peers
        early = b.post("receive", out=np.zeros(count, np.int32), tag=1, timeout_ms=50)
        world.run_ms(60)
        assert early.status == TIMED_OUT and "nothing came" in early.message
        late = a.post("send", np.full(count, 7, np.int32), root=1, tag=1)
        lost = a.post("send", np.full(count, 8, np.int32), root=1, tag=2, timeout_ms=50)
        world.run_ms(60)
        assert late.status == lib.CC_PENDING and lost.status == TIMED_OUT
        again = a.post("send", np.full(count, 9, np.int32), root=1, tag=2)
        first = b.post("receive", out=np.zeros(count, np.int32), tag=1)
        second = b.post("receive", out=np.zeros(count, np.int32), tag=2)
        world.finish([late, again, first, second])
        assert (first.out == 7).all() and (second.out == 9).all(), "what was given up came"
        assert not any(peer.sealed for peer in world.peers)
        go_on(world)


@pytest.mark.parametrize("count", [10, 20_000])
def test_a_mismatch_is_told_to_both_and_to_nobody_else(count: int) -> None:
    with formed(SEED, 3) as world:
        a, b, _ = world.peers
        send = a.post("send", np.zeros(count, np.float32), root=1, tag=4)
        receive = b.post("receive", out=np.zeros(count, np.int32), tag=4)
        world.finish([send, receive])
        assert send.status == receive.status == MISMATCH
        assert "float32" in receive.message and "int32" in receive.message
        assert not any(peer.sealed for peer in world.peers)
        go_on(world)


def test_the_bounds_are_refused_and_passed() -> None:
    """A peer that receives nothing fills its sender's window, and nothing else."""
    with formed(SEED, 2) as world:
        a, b = world.peers
        sends = [a.post("send", np.full(9, i, np.int32), root=1) for i in range(256)]
        with pytest.raises(Exception, match="too many messages"):
            a.post("send", np.zeros(9, np.int32), root=1)
        world.run_ms(100)
        assert not any(op.done for op in sends)
        go_on(world)
        receives = [b.post("receive", out=np.zeros(9, np.int32)) for _ in range(256)]
        world.finish([*sends, *receives])
        assert [int(op.out[0]) for op in receives] == list(range(256))
        more = [a.post("send", np.full(9, i, np.int32), root=1) for i in range(300, 310)]
        more += [b.post("receive", out=np.zeros(9, np.int32)) for _ in range(10)]
        world.finish(more)
        assert [int(op.out[0]) for op in more[10:]] == list(range(300, 310))


def test_who_closes_ends_its_messages_at_once() -> None:
    with formed(SEED, 3) as world:
        a, b, c = world.peers
        send = a.post("send", np.zeros(30_000), root=1)
        receive = c.post("receive", out=np.zeros(5), root=1)
        anyone = c.post("receive", out=np.zeros(5), root=ANY)
        world.run_ms(5)
        lib.cc_context_close(b.context, 0)
        b.alive = False
        world.run(lambda: send.done and receive.done)
        assert send.status == receive.status == PEER_LOST
        last = a.post("send", np.ones(5), root=2)
        world.run(lambda: last.done and anyone.done)
        assert anyone.status == OK and anyone.info.source == 0
        gone = a.post("send", np.zeros(5), root=1)
        assert gone.status == PEER_LOST


def test_what_travels_with_an_offer_stays_so_on_a_new_connection() -> None:
    """The receiver stores as many short messages as may come along with their offers; after a
    reconnect, these and no others come along again, or an honest sender would exceed its bound."""
    with formed(SEED, 2) as world:
        sender, receiver = world.peers
        content = np.arange(50, dtype=np.int32)

        def send(tag: int) -> Operation:
            return sender.post("send", content, root=1, tag=tag)

        def receive(tag: int) -> Operation:
            return receiver.post("receive", None, np.empty(50, np.int32), root=0, tag=tag)

        sends = [send(0) for _ in range(8)] + [send(1) for _ in range(2)]
        world.run_ms(10)
        world.finish([receive(0), receive(0)])
        world.run_ms(10)  # for the sender to hear of it
        sends += [send(0), send(0)]
        world.run_ms(10)
        world.break_link(sender, receiver)
        world.finish([receive(1)])
        world.run_ms(10)
        sends.append(send(0))
        world.run_ms(50)
        assert not any(peer.sealed for peer in world.peers), "an honest peer was accused"
        world.finish([receive(1), *(receive(0) for _ in range(9))])
        world.finish(sends)
        assert {operation.status for operation in sends} == {OK}


def test_nobody_is_left_to_receive_from() -> None:
    """Who receives from anyone is told when the last of the others has said goodbye, and so is
    who asks afterwards."""
    with formed(SEED, 3) as world:
        waiting = world.peers[0].post("receive", None, np.empty(1, np.int32), root=ANY)
        world.peers[1].close()
        world.run_ms(50)
        assert not waiting.done
        world.peers[2].close()
        world.run(lambda: waiting.done)
        late = world.peers[0].post("receive", None, np.empty(1, np.int32), root=ANY)
        assert (waiting.status, late.status) == (PEER_LOST, PEER_LOST)


def test_a_message_posted_while_links_change_does_not_overtake() -> None:
    """Its sender is still in the old epoch when the receiver has dialled anew; an older message was
    under way on the old connection, and comes first."""
    with formed(SEED, 2) as world:
        sender, receiver = world.peers  # of two the later one dials
        world.cut(sender, receiver)
        first = sender.post("send", np.full(3, 1, np.int32), root=1, tag=5)
        world.break_link(sender, receiver)
        world.cut(sender, receiver, False)
        lib.cc_seal(receiver.context, GROUP, world.epoch)
        world.touch()
        world.run(world.settled)
        record = world.decide()
        world.deliver(record, [receiver])
        world.run_ms(50)
        second = sender.post("send", np.full(3, 2, np.int32), root=1, tag=5)
        world.run_ms(50)
        world.deliver(record, [sender])
        world.run(world.is_ready)
        got = [receiver.post("receive", None, np.zeros(3, np.int32), root=0, tag=5) for _ in "12"]
        world.finish([first, second, *got])
        assert [int(operation.out[0]) for operation in got] == [1, 2]
