"""What goes wrong in a fleet's life: a schedule of faults, drawn from the seed.

Each life draws which kinds it has at all, so that rare ones are not always drowned by the others.
Faults come after a number of steps, not at a time: so they hit a fleet that does something, and
most of all the short moments between a seal and the next epoch. What lasts has an end of its own,
and all ends at once when the fleet is to come to rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from control_network import DOWN, MS, UP, US
from fleet import Fleet
from fleet_coordinator import CRASHES
from fleet_points import at_death
from fleet_process import Process

KINDS = (
    *("kill", "kill again", "pause", "busy", "break", "cut", "partition"),
    *("control cut", "control storm", "coordinator pause", "odd call", "newcomer"),
    *("coordinator crash", "coordinator crash at a record"),
)
METHODS = {"break": "break_"}  # a word that Python keeps for itself
EVERY_STEPS = 160


class Faults:
    """The faults of one life.

    Attributes:
        left: how many are still to come.
    """

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.fleet = fleet
        self.rng = rng
        self.left = rng.choice([3, 3, 4, 5, 6, 8])
        self.kinds = rng.sample(KINDS, rng.randrange(2, 6))
        self.ends: list[Callable[[], None]] = []
        self._wait = rng.randrange(1, EVERY_STEPS)

    def turn(self) -> None:
        """Called once a step."""
        self._wait -= 1
        if self._wait > 0 or not self.left:
            return
        fleet, rng = self.fleet, self.rng
        self._wait = rng.randrange(1, EVERY_STEPS if rng.random() < 0.8 else 12)
        if not fleet.running:
            self.newcomer()
            return
        self.left -= 1
        kind = rng.choice(self.kinds)
        fleet.points[f"fault: {kind}"] += 1
        getattr(self, METHODS.get(kind, kind.replace(" ", "_")))()

    def end(self) -> None:
        """Nothing is wrong any more, and nothing will be."""
        fleet = self.fleet
        self.left = 0
        while self.ends:
            self.ends.pop()()
        fleet.network.heal()
        fleet.coordinator.crash = ""
        fleet.restart_coordinator()
        for process in fleet.running:
            process.busy_ns = 0
            process.reconnected()
        fleet.calm, fleet.calm_ns = True, fleet.now_ns
        fleet.touch()

    def _for_a_while(self, begin: Callable[[], None], end: Callable[[], None], most: int) -> None:
        """Does something and undoes it later; sooner if the life's faults end."""
        begin()
        self.ends.append(end)

        def once() -> None:
            if end in self.ends:
                self.ends.remove(end)
                end()

        low = 1000.0
        self.fleet.later(int(low * (most / low) ** self.rng.random()), once)

    def _one(self) -> Process:
        return self.rng.choice(self.fleet.running)

    def _two(self) -> list[Process] | None:
        running = self.fleet.running
        return self.rng.sample(running, 2) if len(running) > 1 else None

    # ---- processes ----------------------------------------------------------------------------

    def kill(self) -> None:
        self._kill(self._one())

    def kill_again(self) -> None:
        """Two deaths, or three, close after one another."""
        for _ in range(self.rng.choice([2, 2, 3])):
            self.fleet.later(self.rng.randrange(3 * MS), self._kill_any)

    def _kill_any(self) -> None:
        if self.fleet.calm:
            return
        if len(self.fleet.running) > self.rng.choice([0, 1, 1, 1]):
            self._kill(self._one())

    def _kill(self, victim: Process) -> None:
        at_death(self.fleet, victim)
        self.fleet.kill(victim)
        if self.rng.random() < 0.7:
            self.come(self.rng.randrange(400 * MS))

    def come(self, delay_ns: int) -> None:
        """Another process, unless it is late: who is missing then is replaced anyhow."""
        self.fleet.later(delay_ns, lambda: None if self.fleet.calm else self.newcomer())

    def newcomer(self) -> None:
        if len(self.fleet.running) < 6:
            self.fleet.spawn()

    def pause(self) -> None:
        victim = self._one()
        self._for_a_while(
            lambda: self.fleet.pause(victim, True),
            lambda: self.fleet.pause(victim, False),
            5_000 * MS,
        )

    def busy(self) -> None:
        """Its interpreter does not come to the courier, nor to its program."""
        victim = self._one()
        victim.busy_ns = self.fleet.now_ns + self.rng.randrange(3_000 * MS)
        self.fleet.tell(f"{victim} is busy until {victim.busy_ns / MS} ms")

    def odd_call(self) -> None:
        self._one().program.odd = True

    # ---- the data network ---------------------------------------------------------------------

    def break_(self) -> None:
        pair = self._two()
        if pair:
            self.fleet.break_link(*pair)

    def cut(self) -> None:
        """Of one link, one direction or both."""
        pair = self._two()
        if pair:
            ways = [(pair[0], pair[1]), (pair[1], pair[0])]
            self._cut(ways[: self.rng.choice([1, 1, 2])])

    def partition(self) -> None:
        """Some from the others, in one direction or both."""
        running = self.fleet.running
        if len(running) > 1:
            some = self.rng.sample(running, self.rng.randrange(1, len(running)))
            others = [process for process in running if process not in some]
            ways = [(a, b) for a in some for b in others]
            if self.rng.random() < 0.5:
                ways += [(b, a) for a, b in ways]
            self._cut(ways)

    def _cut(self, ways: list[tuple[Process, Process]]) -> None:
        def change(cut: bool) -> None:
            for sender, receiver in ways:
                self.fleet.cut(sender, receiver, cut)

        self._for_a_while(lambda: change(True), lambda: change(False), 6_000 * MS)

    # ---- the control network, the coordinator -------------------------------------------------

    def control_cut(self) -> None:
        """One peer's connection, one direction or both. It may come up anew, or not have broken."""
        victim, network = self._one(), self.fleet.network
        ways = self.rng.choice([(UP,), (DOWN,), (UP, DOWN)])
        anew = self.rng.random() < 0.5

        def change(cut: bool) -> None:
            self.fleet.tell(f"{victim} and the coordinator: {ways} {'cut' if cut else 'whole'}")
            for way in ways:
                network.cut(way, victim.id, cut)
            if anew and not cut:
                victim.reconnected()

        self._for_a_while(lambda: change(True), lambda: change(False), 4_000 * MS)

    def control_storm(self) -> None:
        network, rng = self.fleet.network, self.rng

        def begin() -> None:
            network.loss, network.repeat = rng.choice([0, 0.1, 0.4]), rng.choice([0, 0.3])
            network.delay_ns = (20 * US, rng.choice([1, 30, 400, 1500]) * MS)
            network.in_order = rng.random() < 0.5
            self.fleet.tell(f"control storm: {network.loss} {network.repeat} {network.delay_ns}")

        self._for_a_while(begin, network.heal, 4_000 * MS)

    def coordinator_pause(self) -> None:
        coordinator = self.fleet.coordinator

        def change(paused: bool) -> None:
            self.fleet.tell(f"the coordinator {'stops' if paused else 'goes on'}")
            coordinator.paused = paused

        self._for_a_while(lambda: change(True), lambda: change(False), 4_000 * MS)

    def coordinator_crash(self) -> None:
        if self.fleet.coordinator.runs:
            self.fleet.crashed()

    def coordinator_crash_at_a_record(self) -> None:
        """At the next one that it publishes, in the middle of the step."""
        self.fleet.coordinator.crash = self.rng.choice(CRASHES)
