"""The coordinator of a fleet: the product's machine, and what the server does around it.

Its journal is a list of entries, each what one step left, as bytes; that a file keeps them is the
matter of the journal's own tests. It can crash between any two things that a step consists of: the
decision, the entry, each message. Who starts it again gives it the entries that were whole.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from control_network import NEVER

from collectives import messages
from collectives.coordinator import facts
from collectives.coordinator.core import Core, Received, Send, Tick
from collectives.coordinator.facts import Published

if TYPE_CHECKING:
    from fleet import Fleet

CRASHES = ("before the entry", "between entry and messages", "among the messages")


class Crash(Exception):
    """The coordinator's process ends here."""


class Coordinator:
    """Feeds the machine as `coordinator.server` does: what came, and ticks when it wants them.

    Attributes:
        due_ns: when it wants its next turn.
        paused: it does nothing; what comes waits.
        runs: its process runs.
        crash: where it is to crash, at the next step that publishes a record; "": nowhere.
        entries: the journal.
    """

    publish_first = False  # a mutant: see fleet_mutants.py

    def __init__(self, fleet: Fleet, core_class: type[Core]) -> None:
        self.fleet = fleet
        self.core_class = core_class
        self.inbox: list[tuple[bytes, bytes]] = []
        self.entries: list[bytes] = []
        self.crash = ""
        self.runs = False
        self._rng = random.Random(fleet.seed + 2)
        self._paused = False
        self._term = 0
        self._born_ns = 0
        self.due_ns = NEVER
        self.start()

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.due_ns = NEVER if paused or not self.runs else 0

    def receive(self, peer: bytes, data: bytes) -> None:
        self.inbox.append((peer, data))
        if self.runs and not self.paused:
            self.due_ns = 0

    # ---- its process ----------------------------------------------------------------------------

    def start(self) -> None:
        """Takes up where the journal ends, by a clock that begins anew."""
        self._born_ns = self.fleet.now_ns
        self.core = self.core_class(self._rng, self.fleet.timeouts)
        known = [fact for entry in self.entries for fact in facts.decode(entry)]
        self.core.restore(known, 0.0)
        self._write()
        self.runs, self.due_ns = True, 0

    def die(self, *, forgets: bool) -> None:
        """Its process ends. What comes meanwhile waits in the peers' queues, or is lost as well."""
        self.fleet.tell("the coordinator dies")
        self.runs, self.due_ns, self.crash = False, NEVER, ""
        if forgets:
            self.inbox.clear()

    def step(self, now_ns: int) -> None:
        now = (now_ns - self._born_ns) / 1e9
        try:
            while self.inbox:
                peer, data = self.inbox.pop(0)
                self._take(Received(peer, messages.decode(data)), now)
            if self.core.deadline() <= now:
                self._take(Tick(), now)
        except Crash:
            self.fleet.crashed()
            return
        deadline = self.core.deadline()
        self.due_ns = NEVER
        if deadline != float("inf"):
            self.due_ns = self._born_ns + int(deadline * 1e9) + 1

    def _take(self, event: Received | Tick, now: float) -> None:
        """One step: decided, written down, sent; or as much of it as comes before a crash."""
        actions = self.core.step(event, now)
        new = self.core.take_facts()
        crash = self.crash if any(isinstance(fact, Published) for fact in new) else ""
        if crash:
            self.fleet.points[f"coordinator crash: {crash}"] += 1
        if self.publish_first:
            self._send(actions)
        if crash == "before the entry":
            raise Crash
        if new:
            self.entries.append(facts.encode(new))
            if self._rng.random() < 0.05:  # it has grown large, as if
                self.entries = [facts.encode(self.core.snapshot())]
        if crash == "between entry and messages":
            raise Crash
        if crash:
            actions = actions[: self._rng.randrange(len(actions))]
        if not self.publish_first:
            self._send(actions)
        if crash:
            raise Crash

    def _write(self) -> None:
        new = self.core.take_facts()
        term = max(fact.term for fact in new if isinstance(fact, facts.Term))
        assert term > self._term, "a term did not rise"
        self._term = term
        self.entries.append(facts.encode(new))

    def _send(self, actions: list[Send]) -> None:
        fleet = self.fleet
        encoded: dict[int, bytes] = {}  # one record goes to many
        for action in actions:
            if isinstance(action.message, messages.Epoch):
                fleet.published(action.message)
            data = encoded.get(id(action.message))
            if data is None:
                data = encoded[id(action.message)] = messages.encode(action.message)
            fleet.send_down(action.peer, data)
