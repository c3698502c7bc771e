"""Goal: the promises hold in runs that nobody thought of.

Method: each seed is one life of a group: rounds of random operations in several lanes, each peer in
its own time, while peers die, pause, lose a connection, install late; between the rounds boundaries
with joiners and leavers, interrupted too. After each round every promise (promises.py) is
checked, and after the last fault everybody who lives must come to the end within virtual seconds.
A failure names its seed: `lives(SEED)` in a Python shell runs that one again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from programs import Runner, any_spec
from promises import Row, check_outcomes
from world import OK, PENDING, US, Operation, Peer, World, prepare_joiner

from collectives._core import lib

SEED = 60_000
LIVES = 320
CHUNKS = 8


class Life:
    """One seed's group and what may still happen to it."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.rng = rng
        self.n = rng.randrange(2, 6)
        self.world = World(
            seed,
            self.n,
            lag=rng.choice([0, 0, 0.2]),
            streams=rng.choice([1, 2, 3]),
            segment_bytes=rng.choice([64, 1024, 1024, 4096]),
            io_max_bytes=rng.choice([0, 0, 700]),
        )
        lib.cc_sim_set_window(self.world.sim, rng.choice([200, 3000, 1 << 16]))
        lib.cc_sim_set_latency(self.world.sim, 1 * US, rng.choice([5, 50, 500]) * US)
        self.faults = rng.choice([0, 1, 1, 2, 3])
        self.told: dict[int, int] = {}  # by id of an operation: what the dead were told

    def fault(self, running: list[Operation]) -> None:
        """Something goes wrong; or not, if it would be the last one's end."""
        world, rng = self.world, self.rng
        members = [peer for peer in world.members if peer.alive]
        self.faults -= 1
        victim = rng.choice(members)
        what = rng.choice(["kill", "kill", "kill", "pause", "break", "break"])
        if what == "kill" and len(members) > 1:
            self.told |= {id(op): op.status for op in running if op.peer is victim}
            world.kill(victim)
        elif what == "break" and len(members) > 1:
            world.break_link(*rng.sample(members, 2))
        elif what == "pause":
            world.pause(victim)
            end = world.now_ns + rng.randrange(1, 1500) * 1_000_000
            world.run(lambda: world.now_ns >= end)
            world.pause(victim, False)

    def settle(self, joiners: list[Peer], running: Callable[[], list[Operation]]) -> None:
        """The next epoch, which reaches each member in its own time."""
        world, rng = self.world, self.rng
        record = world.decide(joiners)
        for peer in rng.sample(record.members, len(record.members)):
            world.deliver(record, [peer])
            for _ in range(rng.choice([0, 0, 1, 5, 30])):
                world.step()
            if self.faults > 0 and rng.random() < 0.1:
                self.fault(running())

    def drive(
        self,
        running: Callable[[], list[Operation]],
        over: Callable[[], bool],
        joiners: list[Peer] | None = None,
    ) -> None:
        """Lets time pass, with faults and what follows from them, until it is over and quiet."""
        world, rng = self.world, self.rng
        wait = rng.randrange(1, 400)

        def quiet() -> bool:
            nonlocal wait
            wait -= 1
            if self.faults > 0 and wait <= 0 and world.epoch:
                self.fault(running())
                wait = rng.randrange(1, 400)
            if world.settled():
                self.settle([j for j in joiners or [] if j.alive], running)
            return over() and world.is_ready() and not any(p.sealed for p in world.members)

        world.run(quiet, 120_000)

    def round(self) -> None:
        world, rng = self.world, self.rng
        specs = [any_spec(rng, world.record.world) for _ in range(rng.randrange(1, 14))]
        runner = Runner(world, specs)

        def over() -> bool:
            members = [peer for peer in world.members if peer.alive]
            return not runner.post_some(members) and runner.complete(members)

        def running() -> list[Operation]:
            return [op for lanes in runner.posted.values() for ops in lanes.values() for op in ops]

        self.drive(running, over)
        self.check(runner.rows())

    def boundary(self) -> None:
        world, rng = self.world, self.rng
        joiners = [world.add()] if rng.random() < 0.5 else []
        for joiner in joiners:
            if prepare_joiner(world, joiner)[0] == OK:
                for peer in world.members:
                    peer.set_pending(1)
            else:  # a member died meanwhile
                joiners = []
        members = [peer for peer in world.members if peer.alive]
        leavers = [p for p in members if rng.random() < 0.1]
        leavers = leavers if len(leavers) < len(members) else []
        before = world.members
        ops: dict[int, Operation] = {}

        def over() -> bool:
            for peer in before:
                if peer.alive and peer.index not in ops and rng.random() < 0.2:
                    flags = int(lib.CC_LEAVE) if peer in leavers else 0
                    ops[peer.index] = peer.post("boundary", flags=flags)
            return all(p.index in ops and ops[p.index].done for p in before if p.alive)

        self.drive(lambda: list(ops.values()), over, joiners)
        self.check([(any_spec(rng, 1, kind="boundary", count=0), ops)])
        told = {(op.status, op.info.changed) for i, op in ops.items() if world.peers[i].alive}
        assert len(told) <= 1, (world.seed, told)
        for peer in leavers:
            if peer.alive and peer not in world.members:
                assert ops[peer.index].status == OK
                peer.close()
        for joiner in joiners:
            if joiner not in world.members and joiner.alive:
                joiner.close(abort=True)

    def check(self, rows: list[Row]) -> None:
        check_outcomes(self.world, rows)
        for _, ops in rows:
            for index, op in ops.items():
                if id(op) in self.told:
                    assert op.status == self.told[id(op)]
                if not self.world.peers[index].alive and op.status != PENDING:
                    others = {o.status for i, o in ops.items() if self.world.peers[i].alive}
                    assert others <= {op.status, int(lib.CC_CLOSED)}

    def live(self) -> None:
        world = self.world
        world.install()
        for _ in range(self.rng.randrange(1, 4)):
            self.round()
            if self.rng.random() < 0.7:
                self.boundary()
        self.faults = 0
        self.round()
        for peer in world.members:
            assert peer.alive and peer.stats.bad_connections == 0


def lives(seed: int) -> None:
    """One life; says which on a failure."""
    life = Life(seed)
    with life.world:
        life.live()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_lives_of_groups(chunk: int) -> None:
    for seed in range(SEED + chunk, SEED + LIVES, CHUNKS):
        lives(seed)
