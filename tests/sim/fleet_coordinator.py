"""The coordinator of a fleet: the product's machine, and what the server does around it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from control_network import NEVER

from collectives import messages
from collectives.coordinator.core import Core, Received, Send, Tick

if TYPE_CHECKING:
    from fleet import Fleet


class Coordinator:
    """Feeds the machine as `coordinator.server` does: what came, and ticks when it wants them.

    Attributes:
        due_ns: when it wants its next turn.
        paused: it does nothing; what comes waits.
    """

    def __init__(self, fleet: Fleet, core_class: type[Core]) -> None:
        self.fleet = fleet
        self.core = core_class(random.Random(fleet.seed), fleet.timeouts)
        self.inbox: list[tuple[bytes, bytes]] = []
        self.due_ns = NEVER
        self._paused = False

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self.due_ns = NEVER if paused else 0

    def receive(self, peer: bytes, data: bytes) -> None:
        self.inbox.append((peer, data))
        if not self.paused:
            self.due_ns = 0

    def step(self, now_ns: int) -> None:
        now = now_ns / 1e9
        inbox, self.inbox = self.inbox, []
        for peer, data in inbox:
            self._send(self.core.step(Received(peer, messages.decode(data)), now))
        if self.core.deadline() <= now:
            self._send(self.core.step(Tick(), now))
        deadline = self.core.deadline()
        self.due_ns = NEVER if deadline == float("inf") else int(deadline * 1e9) + 1

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
