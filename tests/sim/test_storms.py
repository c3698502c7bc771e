"""Goal: the promises hold while connections break in bursts, paths are cut, frames are nonsense.

Method: lives as in test_random_walk.py, with messages between two peers beside the operations, and
with faults that nobody dies of: links that break, several and again and again, one path that is cut
for a while in one direction or both, frames that arrive as nonsense, short pauses; now and then a
death. Nobody who lives may be evicted. A failure names its seed: `storm(SEED)` runs that one again.
"""

from __future__ import annotations

import numpy as np
import pytest
from programs import Runner, any_spec
from test_random_walk import Life
from world import MS, OK, PEER_LOST, Operation, Peer

SEED = 90_000
STORMS = 96
CHUNKS = 8
FAULTS = ("breaks", "breaks", "breaks", "cut", "corrupt", "pause", "kill")


class Storm(Life):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.faults = self.rng.choice([2, 5, 10, 20])
        self.cut: tuple[Peer, Peer] | None = None
        self.heals_ns = 0
        self.messages: list[tuple[Operation, Operation]] = []

    # ---- faults ---------------------------------------------------------------------------------

    def heal(self) -> None:
        """Ends the cut that there is, if its time is over or no more faults are to come."""
        world = self.world
        if self.cut and (world.now_ns >= self.heals_ns or self.faults <= 0):
            for sender, receiver in (self.cut, self.cut[::-1]):
                world.cut(sender, receiver, False)
            self.cut = None

    def fault(self, running: list[Operation]) -> None:
        world, rng = self.world, self.rng
        self.heal()
        members = [peer for peer in world.members if peer.alive]
        self.faults -= 1
        if len(members) < 2:
            return
        what = rng.choice(FAULTS)
        a, b = rng.sample(members, 2)
        if what == "breaks":
            for _ in range(rng.choice([1, 1, 3, 8])):
                world.break_link(*rng.sample(members, 2))
                for _ in range(rng.choice([0, 1, 4, 20])):
                    world.step()
        elif what == "corrupt":
            world.corrupt(a, b)
        elif what == "cut" and self.cut is None:
            self.cut, self.heals_ns = (a, b), world.now_ns + rng.randrange(1, 4000) * MS
            for sender, receiver in rng.choice([[(a, b)], [(a, b), (b, a)]]):
                world.cut(sender, receiver)
            if rng.random() < 0.5:
                world.break_link(a, b)
        elif what == "pause":
            world.pause(a)
            world.run_ms(rng.randrange(1, 900))
            world.pause(a, False)
        elif what == "kill" and rng.random() < 0.3:
            self.told |= {id(op): op.status for op in running if op.peer is a}
            world.kill(a)

    # ---- what is done meanwhile -----------------------------------------------------------------

    def post_message(self) -> None:
        world, rng = self.world, self.rng
        members = [peer for peer in world.members if peer.alive]
        if len(members) < 2:
            return
        sender, receiver = rng.sample(members, 2)
        ranks = world.record.ranks
        data = np.frombuffer(rng.randbytes(rng.choice([0, 1, 100, 5000, 17_000, 60_000])), np.int8)
        tag, out = len(self.messages), np.zeros_like(data)
        posts = [
            lambda: sender.post("send", data, root=ranks[receiver.index], tag=tag),
            lambda: receiver.post("receive", None, out, root=ranks[sender.index], tag=tag),
        ]
        if rng.random() < 0.5:
            receive = posts[1]()
            self.messages.append((posts[0](), receive))
        else:
            send = posts[0]()
            self.messages.append((send, posts[1]()))

    def round(self) -> None:
        world, rng = self.world, self.rng
        specs = [any_spec(rng, world.record.world) for _ in range(rng.randrange(1, 14))]
        runner = Runner(world, specs)
        to_send = rng.randrange(0, 12)

        def over() -> bool:
            nonlocal to_send
            self.heal()
            if to_send and rng.random() < 0.1:
                to_send -= 1
                self.post_message()
            members = [peer for peer in world.members if peer.alive]
            left = runner.post_some(members) or to_send
            ends = [op for pair in self.messages for op in pair if op.peer.alive]
            return not left and runner.complete(members) and all(op.done for op in ends)

        def running() -> list[Operation]:
            return [op for lanes in runner.posted.values() for ops in lanes.values() for op in ops]

        self.drive(running, over)
        self.check(runner.rows())
        self.check_messages()

    def check_messages(self) -> None:
        for send, receive in self.messages:
            if not (send.peer.alive and receive.peer.alive):
                assert {op.status for op in (send, receive) if op.peer.alive} <= {OK, PEER_LOST}
                continue
            assert (send.status, receive.status) == (OK, OK), (send.message, receive.message)
            assert np.array_equal(send.given, receive.out)
        self.messages.clear()

    def drive(self, running, over, joiners=None) -> None:  # type: ignore[no-untyped-def]
        def healed() -> bool:
            self.heal()
            return bool(over())

        super().drive(running, healed, joiners)

    def settle(self, joiners, running) -> None:  # type: ignore[no-untyped-def]
        before = self.world.members
        lost = [peer for peer in before if not peer.sealed and peer.alive]
        assert not lost, f"evicted though alive: {lost}"
        super().settle(joiners, running)


def storm(seed: int) -> Storm:
    """One life; says which on a failure."""
    life = Storm(seed)
    with life.world:
        life.live()
    return life


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_lives_in_storms(chunk: int) -> None:
    for seed in range(SEED + chunk, SEED + STORMS, CHUNKS):
        storm(seed)
