"""Couriers without threads: many peers and the coordinator's machine in one process.

Goal: all that a courier does follows from what it is told and what time it is said to be, so that a
simulator can drive it. Method: messages wait in lists, time is a number, the cores are lists too.
test_agent has what a single courier says and does, by way of the agent that drives it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

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

    def record(self, last: m.Epoch) -> m.Epoch | None:
        return self.installed[-1]

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
    cut = False  # nothing it says leaves, and nothing reaches it

    def __init__(self, number: int, size: int, timeouts: config.Timeouts = TIMEOUTS) -> None:
        self.id = (number + 1).to_bytes(16, "big")
        fields: dict[str, Any] = {"version": m.PROTOCOL_VERSION, "group": "g", "rank": None}
        fields |= {"host": 1, "address": "127.0.0.1:1", "streams": 1, "segment_bytes": 64}
        join = m.Join(id=self.id, name=str(number), size=size, min_size=1, **fields)
        self.core = ListCore()
        self.said: list[m.ToCoordinator] = []
        self.courier = courier.Courier(self.core, URL, join, timeouts, list)
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
        talking = [peer for peer in living.values() if not peer.cut]
        said = [(peer.id, message) for peer in talking for message in peer.said]
        for peer in living.values():
            peer.said.clear()
        if coordinator is not None:
            answers = coordinator.step(Tick(), now)
            for sender, message in said:
                answers += coordinator.step(Received(sender, message), now)
            for answer in answers:
                if answer.peer in living and not living[answer.peer].cut:
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


@pytest.mark.parametrize("factor", [1, 5])
def test_what_is_said_again_follows_the_timeouts(factor: int) -> None:
    """JOINs, and reports: all of it is slower on slow networks."""
    times = config.Timeouts(ping=0.5, repeat=0.75).scaled(factor)
    lonely, said = Peer(0, 1, times), []
    for now in range(4 * factor + 1):
        lonely.courier.tick(float(now) / 4)
        said += [now / 4 for message in lonely.said if isinstance(message, m.Join)]
        lonely.said.clear()
    assert said == [0.5 * factor * i for i in range(3)]

    coordinator = Core(random.Random(5), times)
    peer = Peer(0, 1, times)
    now = run([peer], 0.1, coordinator)
    peer.cut = True
    peer.core.report(m.Cause.DEADLINE)
    begun, reports = now, 0
    while now < begun + 3 * factor:
        peer.courier.take_events(now)
        peer.courier.tick(now)
        reports += sum(isinstance(message, m.Report) for message in peer.said)
        peer.said.clear()
        now += 0.05
    assert reports == 4


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


def formed(n: int) -> tuple[list[Peer], Core, float]:
    coordinator = Core(random.Random(4), TIMEOUTS)
    peers = [Peer(number, n) for number in range(n)]
    return peers, coordinator, run(peers, 3.0, coordinator)


def test_a_joiner_is_seen_when_the_core_knows_of_it() -> None:
    """Who sees `pending` may call admit at once, from another thread; the core goes by its own."""
    (peer,), _, now = formed(1)
    seat, seen = peer.courier.root, []
    peer.core.set_pending = lambda group, joiners: seen.append((joiners, seat.pending))
    peer.courier.take(m.Pending(seat.group, 1), now)
    assert seen == [(1, 0)]
    assert seat.pending == 1


def test_who_is_cut_off_from_the_coordinator_alone_goes_on_with_the_others() -> None:
    """Its report is carried by another member, and its core is told of the record by one."""
    (carrier, lonely, dead), coordinator, now = formed(3)
    lonely.cut = True
    gone = m.Evidence(dead.id, m.EvidenceKind.REFUSED)
    carrier.core.report(m.Cause.LOST, gone)
    lonely.core.report(m.Cause.LOST, gone)
    now = run([carrier, lonely], now + 1.0, coordinator, now)
    assert carrier.core.installed[-1].epoch == 1, "nothing is decided without the lonely one"

    def carry() -> None:
        frozen = m.Report(1, 1, m.Cause.LOST, 0, 0, (), (gone,), of=lonely.id)
        carrier.core.events.append(events.Sealed(frozen))

    carry()
    now = run([carrier, lonely], now + 1.0, coordinator, now)
    record = carrier.core.installed[-1]
    assert [member.id for member in record.members] == [carrier.id, lonely.id]
    seat = lonely.courier.root
    assert seat.current is not None and seat.current.epoch == 1 and seat.report is not None
    lonely.core.installed.append(record)
    lonely.core.events.append(events.Told(1, 2))
    now = run([carrier, lonely], now + 1.0, coordinator, now)
    assert seat.current == record and seat.report is None
    # Nothing is outstanding, so a coordinator that stays away is not missed.
    now = run([carrier, lonely], now + TIMEOUTS.coordinator_lost + 10, coordinator, now)
    assert seat.ended is None and not lonely.core.expelled
    # Back again, it hears of the record from the coordinator, and only acknowledges it.
    (group,) = coordinator.groups
    assert not group.members[lonely.id].installed
    lonely.cut = False
    run([carrier, lonely], now + 1.0, coordinator, now)
    assert group.members[lonely.id].installed
    assert [r.epoch for r in lonely.core.installed] == [1, 2]


def test_what_is_carried_is_said_again_until_there_is_a_record() -> None:
    (one, other), _, now = formed(2)
    said: list[float] = []

    def send(message: m.ToCoordinator) -> None:
        if isinstance(message, m.Report):
            said.append(now)

    one.courier.take_events(now)
    one.send = send  # type: ignore[method-assign]
    frozen = m.Report(1, 1, m.Cause.LINK, 0, 0, (), (), of=other.id)
    one.core.events.append(events.Sealed(frozen))
    one.core.events.append(events.Sealed(replace(frozen, group=9)))  # of a group that is closed
    begun = now
    one.courier.take_events(now)
    while now < begun + 5:
        one.courier.tick(now)
        now += 0.1
    assert len(said) == 3 and said[0] == begun  # every two seconds
    one.courier.came_up()  # whatever was sent before may be lost
    one.courier.tick(now)
    assert len(said) == 4
    last = one.core.installed[-1]
    one.courier.take(replace(last, epoch=2, cause=m.Cause.LINK), now)
    one.core.events.append(events.Sealed(frozen))  # of an epoch that is over
    one.courier.take_events(now)
    one.courier.tick(now + 10)
    assert len(said) == 4


def test_stragglers_are_warned_of_by_name(caplog) -> None:
    """Of a group that this peer is in; the event may be older than what it is about."""
    (one, _), _, now = formed(2)
    waits = events.Waits(1, 0, 3, "barrier()", 30.0, True, (1, 7), 2)
    one.core.events += [waits, replace(waits, group=9)]
    one.courier.take_events(now)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.name == "collectives.agent"
    assert record.getMessage() == (
        "group 'g': operation 3, barrier(), has waited 30 s for rank 1 ('1') and 1 more, which "
        "have not called it yet"
    )


def test_the_owner_is_told_of_each_epoch_once() -> None:
    """Whether the coordinator or another member told of it first."""
    (one, _), _, now = formed(2)
    seen: list[int] = []
    one.courier._on_epoch = lambda record: seen.append(record.epoch)
    second = replace(one.core.installed[-1], epoch=2, cause=m.Cause.LINK)
    one.core.installed.append(second)
    one.core.events.append(events.Told(1, 2))
    one.core.events.append(events.Ready(1, 2))
    one.courier.take_events(now)
    assert one.said[-1] == m.Installed(1, 2, True)
    one.courier.take(second, now)
    assert one.said[-1] == m.Installed(1, 2, False)
    third = replace(second, epoch=3)
    one.courier.take(third, now)
    one.core.events.append(events.Told(1, 3))
    one.core.events.append(events.Told(9, 3))
    one.courier.take_events(now)
    assert seen == [2, 3]
