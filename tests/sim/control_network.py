"""The network between peers and coordinator, simulated: it delays, reorders, repeats, loses.

Messages travel as the bytes that the product's codec makes of them. Everything is drawn from one
generator, so a run is a function of its seed. A direction can be cut for one peer alone: what was
sent into a cut is lost, as on a connection that breaks; a connection that merely stalls is a delay.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import NamedTuple

US, MS = 1_000, 1_000_000
NEVER = 2**63 - 1
UP, DOWN = "up", "down"  # to the coordinator, to the peer


class Letter(NamedTuple):
    """One message under way."""

    at_ns: int
    number: int
    way: str
    peer: bytes
    data: bytes


class ControlNetwork:
    """All connections to one coordinator.

    Attributes:
        delay_ns: the least and the greatest time that a message takes.
        loss, repeat: how often a message is lost, or comes twice.
        in_order: a connection keeps the order of what it carries, as ZeroMQ does.
        most: the most messages that were ever under way.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.delay_ns = (20 * US, 300 * US)
        self.loss = self.repeat = 0.0
        self.in_order = True
        self.most = 0
        self.cuts: set[tuple[str, bytes]] = set()
        self._number = 0
        self._under_way: list[Letter] = []
        self._last: dict[tuple[str, bytes], int] = {}

    @property
    def next_ns(self) -> int:
        return self._under_way[0].at_ns if self._under_way else NEVER

    def send(self, way: str, peer: bytes, data: bytes, now_ns: int) -> None:
        rng = self.rng
        if (way, peer) in self.cuts or (self.loss and rng.random() < self.loss):
            return
        for _ in range(2 if self.repeat and rng.random() < self.repeat else 1):
            at = now_ns + rng.randint(*self.delay_ns)
            if self.in_order:
                at = max(at, self._last.get((way, peer), 0))
                self._last[way, peer] = at
            self._number += 1
            heappush(self._under_way, Letter(at, self._number, way, peer, data))
        self.most = max(self.most, len(self._under_way))

    def arrived(self, now_ns: int) -> list[Letter]:
        """Takes out what is there by now."""
        letters = []
        while self._under_way and self._under_way[0].at_ns <= now_ns:
            letters.append(heappop(self._under_way))
        return letters

    def cut(self, way: str, peer: bytes, cut: bool = True) -> None:
        (self.cuts.add if cut else self.cuts.discard)((way, peer))

    def heal(self) -> None:
        """Nothing goes wrong any more; what is under way still comes."""
        self.cuts.clear()
        self.loss = self.repeat = 0.0
        self.delay_ns = (20 * US, 300 * US)
