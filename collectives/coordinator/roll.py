"""The roll of one group: who is a member by the last record, who was one, and who has been told.

This is what a group is to its members, whoever waits for it and however its next epoch is decided:
a record is published until each member has installed it, an epoch that is being closed is asked
about until each has reported, and who was struck off is told why, as often as it comes back.

All of it outlives the coordinator: what changes the roll is noted as a fact, and `replay` makes the
roll of the facts. Who is thought to have heard what does not, and is asked anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from collectives.coordinator import decide, records
from collectives.coordinator.facts import Cleared, Fact, Published, Struck
from collectives.coordinator.lobby import Joiner
from collectives.coordinator.standing import NEVER, Network, Standing, describe
from collectives.messages import Epoch, Evicted, Outcome, Seal, ToPeer

FORMER_MAX = 4096


class Roll:
    """See the module. `send` takes a peer's id and a message, `note` what is to be written down;
    what is not answered is said again after `repeat_s`."""

    def __init__(
        self,
        name: str,
        number: int,
        send: Callable[[bytes, ToPeer], None],
        note: Callable[[Fact], None],
        repeat_s: float,
    ) -> None:
        self.record: Epoch | None = None  # the last one published, of whatever lineage
        self.members: dict[bytes, Standing] = {}
        self.closing = False  # a member was lost elsewhere: all others are to report
        self._name = name
        self._number = number
        self._send = send
        self._note = note
        self._repeat_s = repeat_s
        self._former: OrderedDict[bytes, Evicted] = OrderedDict()
        self._losses: list[tuple[bytes, str]] = []  # who was evicted, and why

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record else 0

    @property
    def decided(self) -> dict[int, Outcome]:
        return decide.by_lane(self.record)

    @property
    def present(self) -> dict[bytes, Standing]:
        """The members that are not known to be gone."""
        return {peer: standing for peer, standing in self.members.items() if not standing.gone}

    @property
    def last_heard(self) -> float:
        """When one of those present was heard last; NEVER if there is none."""
        return max((s.heard for s in self.present.values()), default=NEVER)

    @property
    def first_report(self) -> float:
        """When the first of those present reported on this epoch."""
        return min((s.reported_at for s in self.members.values() if not s.gone), default=NEVER)

    # ---- the next record -------------------------------------------------------------------------

    def publish(self, record: Epoch, known: Mapping[bytes, Joiner | Standing], now: float) -> None:
        """Makes this the last record. `known`: whoever it names, as they were known before."""
        records.assert_follows(self.record, record)
        networks = tuple(known[m.id].network for m in record.members)
        latency, bandwidth = records.worst(networks)
        record = replace(record, latency_ns=latency, bytes_per_s=bandwidth)
        self._note(Published(record, networks))
        self._enter(record, networks)
        for peer, standing in self.members.items():
            standing.heard = known[peer].heard
            self.publish_to(standing, now)

    def _enter(self, record: Epoch, networks: Iterable[Network]) -> None:
        pairs = zip(record.members, networks, strict=True)
        self.record = record
        self.members = {m.id: Standing(m, 0.0, 0.0, network) for m, network in pairs}
        self.closing = False

    def publish_to(self, standing: Standing, now: float) -> None:
        assert self.record is not None
        standing.remind_at = now + self._repeat_s
        self._send(standing.member.id, self.record)

    def clear(self, reason: str) -> None:
        """The group has no members any more."""
        for standing in self.present.values():
            self.evict(standing, reason)
        self._note(Cleared(self._number))
        self.members = {}

    # ---- what members owe ------------------------------------------------------------------------

    def call_for_reports(self, now: float) -> None:
        """The epoch is being closed: all others are to seal and report as well."""
        for peer, standing in self.present.items():
            if standing.report is None:
                standing.remind_at = now + self._repeat_s
                self._send(peer, Seal(self._number, self.epoch))

    @property
    def sealing(self) -> bool:
        """Whether the epoch is being closed."""
        return self.closing or self.first_report != NEVER

    def remind_at(self) -> list[float]:
        """When each of those is to be reminded that owe an answer."""
        return [s.remind_at for s in self.present.values() if self._owes_an_answer(s)]

    def remind(self, now: float) -> None:
        """Repeats what was not answered for long enough."""
        for standing in self.present.values():
            if now >= standing.remind_at and self._owes_an_answer(standing):
                if not standing.installed:
                    self.publish_to(standing, now)
                if self.sealing:
                    standing.remind_at = now + self._repeat_s
                    self._send(standing.member.id, Seal(self._number, self.epoch))

    def _owes_an_answer(self, standing: Standing) -> bool:
        return not standing.installed or (self.sealing and standing.report is None)

    # ---- who is a member no more -----------------------------------------------------------------

    def evict(self, standing: Standing, reason: str, left: bool = False) -> None:
        who = describe(standing.member)
        text = reason if left else f"{who} is no longer a member of group {self._name!r}: {reason}"
        peer = standing.member.id
        self._strike(standing, left, text[:1024])
        self.tell_former(peer)
        if not left:
            self._losses.append((peer, reason))

    def take_leave(self, standing: Standing) -> None:
        """It said goodbye, and needs no answer."""
        self._strike(standing, True, "it said goodbye")

    def _strike(self, standing: Standing, left: bool, text: str) -> None:
        fact = Struck(standing.member.id, Evicted(self._number, self.epoch, left, text))
        self._note(fact)
        self._take_off(fact)

    def _take_off(self, fact: Struck) -> None:
        if fact.peer in self.members:
            self.members[fact.peer].gone = True
        self._former[fact.peer] = fact.evicted
        while len(self._former) > FORMER_MAX:
            self._former.popitem(last=False)

    def tell_former(self, peer: bytes) -> bool:
        """Tells a peer that it is a member no more, if it was one; whether that is so."""
        former = self._former.get(peer)
        if former is not None:
            self._send(peer, former)
        return former is not None

    def knows(self, peer: bytes) -> bool:
        """Whether it is a member, or was one."""
        return peer in self.members or peer in self._former

    def take_losses(self) -> list[tuple[bytes, str]]:
        """Who was evicted since the last call, and why; not who left."""
        losses, self._losses = self._losses, []
        return losses

    # ---- after a restart -------------------------------------------------------------------------

    def replay(self, fact: Published | Struck | Cleared) -> None:
        """Makes a change again that was noted before."""
        if isinstance(fact, Published):
            records.assert_follows(self.record, fact.record)
            self._enter(fact.record, fact.networks)
        elif isinstance(fact, Struck):
            self._take_off(fact)
        else:
            self.members = {}

    def resume(self, now: float) -> None:
        """The coordinator is back: nobody was silent because it was away. All that a member may
        not have heard is said again, and who was lost, but not left out yet, is not forgotten."""
        for standing in self.members.values():
            standing.heard = standing.remind_at = now
        lost = self.members.keys() - self.present.keys()
        self.closing = any(not self._former[peer].left for peer in lost if peer in self._former)

    def adopt(self, record: Epoch, now: float) -> None:
        """Takes over what another coordinator published. What it did since is not known, so all
        members are to report. Only the worst of their links is known, and taken for all."""
        self._enter(record, [(record.latency_ns, record.bytes_per_s)] * len(record.members))
        for peer, standing in self.members.items():
            standing.heard = standing.remind_at = now
            standing.gone = peer in self._former
        self.closing = True
        self.call_for_reports(now)

    def snapshot(self) -> Iterator[Fact]:
        """The facts that make this roll."""
        if self.record is not None:
            standings = [self.members.get(member.id) for member in self.record.members]
            yield Published(self.record, tuple(s.network if s else (0, 0) for s in standings))
            if not self.members:
                yield Cleared(self._number)
        yield from (Struck(peer, evicted) for peer, evicted in self._former.items())
