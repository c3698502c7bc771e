"""Random schedules in which the coordinator crashes, over and over, and comes back by its journal.

Goal: a decision is made once. Whatever a peer may have been told stands after any restart, word for
word; what was decided, but neither written nor told, may be decided anew. Epochs and terms only
rise, the run's secret stays, and once the crashes stop everybody who lives goes on together.

Method: the peers, faults and checks of test_coordinator_random. A step of the machine may be the
last one, and then it ends in one of three ways: before its facts are on the disk; after that, with
nothing sent; with a part of it sent. The facts go through their bytes each time.
"""

from __future__ import annotations

import random

import pytest
from test_coordinator_random import STEP_S, TIMEOUTS, Peer, World, run

from collectives import messages as m
from collectives.coordinator import facts as f
from collectives.coordinator.core import Core, Received, Send, Tick

CRASHES = ("before", "between", "part")


class Listener(Peer):
    """A peer that ignores a coordinator whose successor it has heard."""

    term = 0

    def receive(self, message: m.Message) -> None:
        if isinstance(message, m.Word) and self.stopped_at is None:
            if message.term < self.term:
                return
            self.term = message.term
        super().receive(message)


class CrashWorld(World):
    """A world whose coordinator has a journal, and dies of it."""

    rate = 0.003
    rate_deciding = 0.4

    def __init__(self, seed: int, min_size: int) -> None:
        super().__init__(seed, min_size)
        self.journal: list[bytes] = []
        self.crashes: set[tuple[str, str]] = set()  # how, and in the middle of what
        self.tokens: set[bytes] = set()
        self.term = 0
        self.restart()

    def restart(self) -> None:
        # Were it seeded alike, a new group would get the same token by chance.
        self.core = self.new_core(self.rng.random())
        self.core.restore((fact for entry in self.journal for fact in f.decode(entry)), self.now)
        self.journal.append(f.encode(self.core.take_facts()))
        self.check_compaction()

    def new_core(self, seed: float, recover: bool = False) -> Core:
        return Core(random.Random(seed), TIMEOUTS, recover=recover)

    def check_compaction(self) -> None:
        """A snapshot of what was replayed is the same state."""
        state = f.encode(self.core.snapshot())
        other = Core(random.Random(0), TIMEOUTS)
        other.restore(f.decode(state), self.now)
        terms = [fact.term for fact in other.take_facts() if isinstance(fact, f.Term)]
        assert f.encode(other.snapshot()[1:]) == f.encode(self.core.snapshot()[1:])
        assert terms == [fact.term + 1 for fact in f.decode(state) if isinstance(fact, f.Term)]
        if self.rng.random() < 0.5:
            self.journal = [state]

    def check(self, action: Send) -> None:
        message = action.message
        if isinstance(message, m.Word):
            assert message.term >= self.term, "the term fell"
            self.term = message.term
        if isinstance(message, m.Epoch):
            self.check_record(message)
        elif isinstance(message, m.Welcome):
            self.tokens.add(message.token)
            assert len(self.tokens) == 1, "another secret"

    def step(self, event: Received | Tick) -> None:
        actions = self.core.step(event, self.now)
        facts = self.core.take_facts()
        crash = self.crash(facts) if self.faulty else ""
        if crash != "before" and facts:
            self.journal.append(f.encode(facts))
            for fact in facts:
                if isinstance(fact, f.Published):
                    self.check_record(fact.record)  # from now on there is no other
        if crash in ("before", "between"):
            actions = []
        elif crash == "part":
            actions = actions[: self.rng.randrange(len(actions) + 1)]
        for action in actions:
            self.check(action)
            self.to_peers.append((action.peer, m.encode(action.message)))
        if crash:
            made = [fact for fact in facts if isinstance(fact, f.Published)]
            self.crashes |= {(crash, fact.record.cause.name) for fact in made}
            self.stay_away()
            self.restart()

    def crash(self, facts: list[f.Fact]) -> str:
        """How this step ends; "" if it is not the last one."""
        dies = self.rng.random() < (self.rate_deciding if facts else self.rate)
        return self.rng.choice(CRASHES) if dies else ""

    def stay_away(self) -> None:
        """What peers say meanwhile may reach the next one, or nobody."""
        for _ in range(self.rng.choice([0, 0, 1, 4, 60])):
            self.now += STEP_S
            for peer in list(self.peers.values()):
                peer.timers()
        if self.rng.random() < 0.5:
            self.to_core.clear()

    def advance(self) -> None:
        self.now += STEP_S
        if self.core.deadline() <= self.now:
            core = self.core
            self.step(Tick())
            assert self.core is not core or core.deadline() > self.now
        for peer in list(self.peers.values()):
            peer.timers()

    def spawn(self) -> None:
        network = self.rng.randrange(1, 2**20), self.rng.randrange(1, 2**30)
        peer = Listener(self, self.rng.randbytes(16), network)
        self.peers[peer.id] = peer


class OftenWorld(CrashWorld):
    """Its coordinator lives for a few steps at a time."""

    rate = 0.2
    rate_deciding = 0.6


class OnceWorld(CrashWorld):
    """Its coordinator crashes once, at the n-th step that leaves anything to write down."""

    steps = 0

    def __init__(self, seed: int, min_size: int, at: int, how: str) -> None:
        self.at, self.how = at, how
        super().__init__(seed, min_size)

    def crash(self, facts: list[f.Fact]) -> str:
        self.steps += bool(facts)
        return self.how if facts and self.steps == self.at else ""


@pytest.mark.parametrize("kind", [CrashWorld, OftenWorld])
@pytest.mark.parametrize("min_size", [1, 3])
@pytest.mark.parametrize("block", range(3))
def test_random_crashes(block: int, min_size: int, kind: type[CrashWorld]) -> None:
    for seed in range(block * 15, block * 15 + 15):
        try:
            run(seed, min_size, kind)
        except AssertionError as error:
            raise AssertionError(f"seed={seed} min_size={min_size}: {error}") from error


@pytest.mark.parametrize("how", CRASHES)
def test_a_crash_at_each_step_that_decides_anything(how: str) -> None:
    crashes = 0
    for seed in range(8):
        at, steps = 1, 1
        while at <= steps:
            world = OnceWorld(seed, 2, at, how)
            try:
                run(seed, 2, lambda *_, world=world: world)  # type: ignore[arg-type,misc]
            except AssertionError as error:
                raise AssertionError(f"seed={seed} at={at} how={how}: {error}") from error
            steps = world.steps
            crashes += at <= steps
            at += 1
    assert crashes > 20


def test_the_crashes_come_where_they_hurt() -> None:
    """In the middle of every kind of decision, in all three ways."""
    seen: set[tuple[str, str]] = set()
    for seed in range(60):
        world = run(seed, 2, CrashWorld)
        assert isinstance(world, CrashWorld)
        seen |= world.crashes
    causes = ("FORMED", "BOUNDARY", "LOST", "LINK", "DEADLINE")
    assert {(how, cause) for how in CRASHES for cause in causes} <= seen
