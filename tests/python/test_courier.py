"""Couriers without threads: many peers and the coordinator's machine in one process.

Goal: all that a courier does follows from what it is told and what time it is said to be, so that a
simulator can drive it. Method: messages wait in lists, time is a number, the cores are lists too.
test_agent has what a single courier says and does, by way of the agent that drives it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from collectives import config, courier, events
from collectives import errors as e
from collectives import messages as m
from collectives.coordinator.core import Core, Received, Tick

TIMEOUTS = config.Timeouts(beat=0.2, dead=2.0, connect=5.0, coordinator_lost=30.0)
PEERS = 200
URL = "cc://nowhere:1"


class ListCore:
    """A core that prepares at once and remembers what was installed."""

    def __init__(self) -> None:
        self.events: deque[events.Event] = deque()
        self.installed: list[m.Epoch] = []
        self.expelled: list[tuple[int, str]] = []

    def address(self) -> str:
        return "127.0.0.1:1"

    def set_token(self, token: bytes) -> None:
        pass

    def install(self, epoch: m.Epoch) -> None:
        self.installed.append(epoch)
        self.events.append(events.Ready(epoch.group, epoch.epoch))

    def prepare(self, serial: int, members: Sequence[m.Member]) -> None:
        self.events.append(events.Prepared(True))

    def set_pending(self, group: int, joiners: int) -> None:
        pass

    def seal(self, group: int, epoch: int) -> None:
        self.report(m.Cause.LOST)

    def report(self, cause: m.Cause, *evidence: m.Evidence) -> None:
        last = self.installed[-1]
        report = m.Report(last.group, last.epoch, cause, 0, 0, (), evidence)
        self.events.append(events.Sealed(report))

    def expel(self, group: int, status_name: str, reason: str) -> None:
        self.expelled.append((group, status_name))

    def close_group(self, group: int) -> None:
        pass

    def next_event(self) -> events.Event | None:
        return self.events.popleft() if self.events else None

    def fd(self) -> int:
        raise AssertionError("nobody polls")


class Peer:
    """A courier, and its connection: a list of what it said."""

    is_up = True

    def __init__(self, number: int, size: int) -> None:
        self.id = (number + 1).to_bytes(16, "big")
        fields: dict[str, Any] = {"version": m.PROTOCOL_VERSION, "group": "g", "rank": None}
        fields |= {"host": 1, "address": "127.0.0.1:1", "streams": 1, "segment_bytes": 64}
        join = m.Join(id=self.id, name=str(number), size=size, min_size=1, **fields)
        self.core = ListCore()
        self.said: list[m.ToCoordinator] = []
        self.courier = courier.Courier(self.core, URL, join, TIMEOUTS, list)
        self.courier.start(self, 0.0)

    def send(self, message: m.ToCoordinator) -> None:
        self.said.append(message)

    def why_silent(self, seconds: float) -> str:
        return "nobody is there"


def run(peers: Sequence[Peer], until_s: float, coordinator: Core | None, now: float = 0.0) -> float:
    """Lets time pass from one thing to the next; whoever ended is left alone."""
    living = {peer.id: peer for peer in peers}
    while now < until_s:
        due = [until_s]
        for peer in living.values():
            peer.courier.take_events(now)
            due.append(peer.courier.tick(now))
        said = [(peer.id, message) for peer in living.values() for message in peer.said]
        for peer in living.values():
            peer.said.clear()
        if coordinator is not None:
            answers = coordinator.step(Tick(), now)
            for sender, message in said:
                answers += coordinator.step(Received(sender, message), now)
            for answer in answers:
                if answer.peer in living:
                    living[answer.peer].courier.take(answer.message, now)
            due.append(coordinator.deadline())
        living = {key: p for key, p in living.items() if p.courier.root.ended is None}
        now = max(now + 0.001, min(due))
    return now


def test_many_couriers_form_a_group_and_outlive_a_death() -> None:
    coordinator = Core(random.Random(1), TIMEOUTS)
    peers = [Peer(number, PEERS) for number in range(PEERS)]
    now = run(peers, 3.0, coordinator)
    assert {peer.core.installed[-1].epoch for peer in peers} == {1}
    dead, *others = peers
    others[0].core.report(m.Cause.LOST, m.Evidence(dead.id, m.EvidenceKind.REFUSED))
    run(others, now + 1.0, coordinator, now)
    for peer in others:
        assert [record.epoch for record in peer.core.installed] == [1, 2]
        assert len(peer.core.installed[-1].members) == PEERS - 1


def test_the_same_schedule_says_the_same() -> None:
    def lived() -> list[list[m.Epoch]]:
        peers = [Peer(number, 5) for number in range(5)]
        run(peers, 3.0, Core(random.Random(2), TIMEOUTS))
        return [peer.core.installed for peer in peers]

    assert lived() == lived()


def test_time_alone_tells_that_nobody_answers() -> None:
    peer = Peer(0, 1)
    run([peer], TIMEOUTS.connect - 0.1, None)
    assert peer.courier.root.ended is None
    run([peer], TIMEOUTS.connect + 0.1, None, TIMEOUTS.connect - 0.1)
    assert isinstance(peer.courier.root.ended, e.CoordinatorUnreachable)


def test_a_decision_that_stays_out_ends_with_coordinator_lost() -> None:
    peer = Peer(0, 1)
    now = run([peer], 1.0, Core(random.Random(3), TIMEOUTS))
    peer.core.report(m.Cause.DEADLINE)
    now = run([peer], now + TIMEOUTS.coordinator_lost - 0.1, None, now)
    assert not peer.core.expelled
    run([peer], now + 0.2, None, now)
    assert peer.core.expelled == [(1, "COORDINATOR_LOST")]
    assert isinstance(peer.courier.root.ended, e.CoordinatorLost)
