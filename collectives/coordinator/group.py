"""One group's membership: who waits, who is a member, and the way from one epoch to the next.

Who is on the `roll` and who waits in the `lobby` have modules of their own; here is how the lobby's
joiners come to be members, and what becomes of an epoch that is being closed.

A group is in one of two moods. *Forming*: it has no members, and joiners gather until they are
`size` and have all prepared for each other. *Running*: it has members of one epoch; their reports
are collected until that epoch is settled, and then the next one is published. A group whose members
all left or died forms anew, with its epoch numbers going on from where they were.

Every method takes the time and may send; nothing here blocks, sleeps or reads a clock. All of it is
idempotent, because peers and coordinator repeat whatever was not acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from collectives.config import Timeouts
from collectives.coordinator import decide, records
from collectives.coordinator.facts import Cleared, Fact, Fixed, Made, Published, Struck
from collectives.coordinator.lobby import Joiner, Lobby
from collectives.coordinator.notes import Notes
from collectives.coordinator.roll import Roll
from collectives.coordinator.standing import (
    NEVER,
    Standing,
    accused,
    all_reported_at,
    apart,
    broken_links,
    settled_at,
)
from collectives.messages import (
    NO_PEER,
    Epoch,
    Evicted,
    Installed,
    Join,
    Pending,
    Prepared,
    Refused,
    Report,
    ToPeer,
    Welcome,
)


class Group:
    """See the module. `send` takes a peer's id and a message, `note` what is to be written down.
    Rounds of rehearsals count up from `first_round`."""

    def __init__(
        self,
        made: Made,
        timeouts: Timeouts,
        send: Callable[[bytes, ToPeer], None],
        note: Callable[[Fact], None],
        first_round: int = 0,
    ) -> None:
        self.made = made
        self.name = made.name
        self.root = made.root or made.name  # the group that a subgroup's members all came from
        self.is_subgroup = made.root is not None
        by_time = partial(settled_at, timeouts=timeouts)
        self._settled_at = all_reported_at if self.is_subgroup else by_time
        self.number = made.group
        self.token = made.token
        self.timeouts = timeouts
        self.send = send
        self.settings: Join | None = None  # the JOIN that fixed them
        self.notes = Notes(note)
        self.roll = Roll(self.name, self.number, send, self.notes.note, timeouts.repeat)
        self.held = False
        self.strikes: frozenset[decide.Pair] = frozenset()
        self.unreached: set[bytes] = set()  # members that a joiner could not reach
        self.pending = 0
        self._ask_at = -NEVER  # when who waits may be told again to reach silent members
        self.lobby = Lobby(self._welcome_joiner, first_round)

    @property
    def members(self) -> dict[bytes, Standing]:
        return self.roll.members

    @property
    def present(self) -> dict[bytes, Standing]:
        """The members that are not known to be gone."""
        return self.roll.present

    @property
    def recovering(self) -> bool:
        """Whether another coordinator made this group, and may have decided what nobody told yet:
        then nothing is decided but who is a member, and nothing written down before that is."""
        return self.notes.are_held

    @property
    def idle(self) -> bool:
        return not self.members and not self.lobby.joiners

    # ---- what peers say --------------------------------------------------------------------------

    def heard(self, peer: bytes, now: float) -> None:
        known = self.members.get(peer) or self.lobby.joiners.get(peer)
        if known is not None:
            known.heard = now

    def join(self, join: Join, serial: Callable[[], int], now: float) -> None:
        if self.roll.tell_former(join.id):
            return
        if (standing := self.members.get(join.id)) is not None:
            self._welcome(join.id, standing.member.serial)
            if not standing.installed:
                self.roll.publish_to(standing, now)
        elif join.id in self.lobby.joiners:
            self._welcome(join.id, self.lobby.joiners[join.id].serial)
        else:
            if self.idle and join != self.settings and not join.existing:
                self.settings = join
                self.notes.note(Fixed(self.number, join))
            waiting = [joiner.join for joiner in self.lobby.joiners.values()]
            reason = records.objection(self.settings or join, join, waiting, bool(self.members))
            if join.existing and not self.members:
                reason = f"group {self.name!r} has no members, or none any more"
            if reason is not None:
                self.send(join.id, Refused(reason))
                return
            joiner = self.lobby.joiners[join.id] = Joiner(join, serial, now)
            self._form(now)
            if join.id in self.lobby.joiners and join.id not in self.lobby.candidates:
                self._welcome(join.id, joiner.serial)

    def prepared(self, peer: bytes, message: Prepared, now: float) -> None:
        joiner = self.lobby.joiners.get(peer)
        if joiner is None or message.round != self.lobby.round:
            return
        if message.ok:
            peers = self.members.keys() or self.lobby.candidates.keys()
            self.lobby.has_reached(joiner, peers, (message.latency_ns, message.bytes_per_s))
            self.unreached.clear()
        else:
            self._not_prepared(joiner, message, now)
        self._recount()
        self._form(now)
        self.settle(now)

    def knows(self, peer: bytes) -> bool:
        """Whether it is, was or wants to be a member."""
        return peer in self.lobby.joiners or self.roll.knows(peer)

    def report(self, sender: bytes, message: Report, now: float) -> None:
        """A member's report, which it sent itself or another member carried. Carried, what cannot
        be true is ignored: it is no fault of the one in whose name it came. The group `knows` the
        sender, whose own report is on no later epoch than `roll.epoch`."""
        if sender not in self.present:
            self.roll.tell_former(sender)
            return
        peer = sender if message.of == NO_PEER else message.of
        standing = self.present.get(peer)
        if standing is None or (peer != sender and message.epoch != self.roll.epoch):
            return
        if message.epoch < self.roll.epoch:
            self.roll.publish_to(standing, now)
            return
        standing.installed = True
        first = self.roll.first_report == NEVER
        if standing.report is None:
            reason = decide.contradiction(message, self.roll.decided)
        elif set(standing.report.lanes) != set(message.lanes):
            reason = "it reported twice on one epoch, with different watermarks"
        else:
            reason = None
        if reason is not None and peer == sender:
            self.roll.evict(standing, reason)
        elif reason is None:
            if standing.report is None:
                standing.report, standing.reported_at = message, now
            for evidence in message.evidence:
                if evidence.peer in self.members and evidence.peer != peer:
                    standing.evidence.setdefault(evidence.peer, set()).add(evidence.kind)
        self.settle(now)
        if first and self.roll.epoch == message.epoch and self.roll.first_report != NEVER:
            self.roll.call_for_reports(now)

    def installed(self, peer: bytes, message: Installed) -> None:
        standing = self.present.get(peer)
        if standing is None:
            self.roll.tell_former(peer)
        elif message.epoch == self.roll.epoch:
            standing.installed = True
            standing.ready |= message.ready
            if all(member.ready for member in self.present.values()):
                self.strikes = frozenset()

    def ping(self, peer: bytes) -> None:
        """A member hears again what it may have missed. PENDING is not acknowledged either."""
        if peer in self.present:
            self.send(peer, Pending(self.number, self.pending))
        else:
            self.roll.tell_former(peer)

    def bye(self, peer: bytes, now: float) -> None:
        if self.lobby.joiners.pop(peer, None) is not None:
            self._recount()
            self._form(now)
        standing = self.present.get(peer)
        if standing is not None:
            self.roll.take_leave(standing)
            self.settle(now)

    # ---- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if self.lobby.silent(now, self.timeouts.joiner_lost):
            self._recount()
            self._form(now)
        if not self.unreached and now >= max(self._silent_at(), self._ask_at):
            # Who waits has reached them once: does it still?
            self._ask_at = now + self.timeouts.joiner_lost
            self.lobby.next_round(self.lobby.joiners.values(), anew=False)
        self.roll.remind(now)
        self.settle(now)

    def deadline(self) -> float:
        """When `tick` wants to be called; NEVER if nothing is under way."""
        joiners = self.lobby.joiners.values()
        times = [joiner.heard + self.timeouts.joiner_lost for joiner in joiners]
        times += self.roll.remind_at()
        times.append(max(self._silent_at(), -NEVER if self.unreached else self._ask_at))
        present = self.present.values()
        if not self.held:
            times.append(self._settled_at(self.present, self.strikes))
        else:
            doubted = self.unreached | accused(self.present)
            times += [s.heard + self.timeouts.dead for s in present if s.member.id in doubted]
        return min(times, default=NEVER)

    # ---- from one epoch to the next --------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Decides the current epoch if everything for it is there. Called after every change."""
        self.held = False
        if not self.members:
            return
        present = self.present
        if not present or (self.unreached and now >= self._silent_at()):
            self._dissolve("no member of the group could be reached any more", now)
            return
        if now >= self._settled_at(present, self.strikes):
            self._decide(present, now)

    def _decide(self, present: dict[bytes, Standing], now: float) -> None:
        by_time = sorted(present.items(), key=lambda item: item[1].reported_at)
        reports = {peer: s.report for peer, s in by_time if s.report is not None}
        reasons = decide.behind(reports, self.roll.decided)
        links = broken_links(self.members, reports.keys() - reasons)
        if not self.is_subgroup:
            reasons |= apart(self.members, reports.keys() - reasons, links, self.strikes)
        reports = {peer: report for peer, report in reports.items() if peer not in reasons}
        for peer in self.present.keys() - reports.keys():
            if self.is_subgroup and peer not in reasons:
                self.roll.evict(self.members[peer], "it closed the subgroup", left=True)
            else:
                self.roll.evict(self.members[peer], reasons.get(peer, "it was taken for dead"))
        boundary = None if self.recovering else decide.boundary(reports, self.roll.decided)
        ready: list[Joiner] = []
        if boundary is not None:
            staying = reports.keys() - boundary.leavers
            ready = self.lobby.ready(staying)
            assert self.roll.record is not None
            too_small = len(staying) + len(ready) < self.roll.record.min_size
            if too_small and boundary.join and not boundary.leavers:  # they are never made to wait
                self._hold(reports, now)
                return
        self.strikes = frozenset(pair for pair in self.strikes | links if pair <= reports.keys())
        if not reports:
            self._dissolve("the reports of all members contradict each other", now)
        elif self.recovering:
            assert self.roll.record is not None
            self._publish(records.recovered(self.roll.record, reports), now)
            self.notes.release()
        elif boundary is None:
            assert self.roll.record is not None
            self._publish(records.without_the_dead(self.roll.record, reports, bool(links)), now)
        else:
            self._carry_out(boundary, reports, ready, now)

    def _hold(self, reports: Mapping[bytes, Report], now: float) -> None:
        """Lets a boundary wait for joiners. All members have reported and wait as well, so who
        dies now is found out by two signs: somebody doubts it, and it is silent here too."""
        for peer in (self.unreached | accused(self.present)) & reports.keys():
            if now >= self.members[peer].heard + self.timeouts.dead:
                self.roll.evict(
                    self.members[peer], "it was lost while the group waited for joiners"
                )
        if reports.keys() <= self.present.keys():
            self.held = True
        else:
            self.settle(now)

    def _carry_out(
        self, boundary: decide.Boundary, reports: decide.Reports, ready: list[Joiner], now: float
    ) -> None:
        """The next epoch after a boundary."""
        assert self.roll.record is not None
        for peer in boundary.leavers:
            self.roll.evict(self.members[peer], "it left the group", left=True)
        joiners = self.lobby.let_in(ready)
        record = records.after_boundary(self.roll.record, reports, boundary.leavers, joiners)
        if record is None:
            self._dissolve("all members left", now)
        else:
            self._publish(record, now)

    def _form(self, now: float) -> None:
        """The first epoch, or the first of a new lineage, once enough wait and have prepared for
        each other."""
        if self.members or self.settings is None:
            return
        arrivals = self.lobby.gather(self.settings.size)
        if arrivals:
            self._publish(records.formed(self.number, self.roll.record, arrivals), now)

    def form_of(self, standings: list[Standing], now: float) -> None:
        """The first epoch of a subgroup: of these members of another group, in this order."""
        record = records.formed_of(self.number, [standing.member for standing in standings])
        self._publish(record, now, {standing.member.id: standing for standing in standings})

    def lose(self, peer: bytes, reason: str, now: float) -> None:
        """A peer was evicted from another group: from this one as well."""
        if peer in self.present:
            self.roll.evict(self.members[peer], reason)
            self.roll.closing = True
            self.roll.call_for_reports(now)
            self.settle(now)

    def _publish(
        self, record: Epoch, now: float, others: Mapping[bytes, Standing] | None = None
    ) -> None:
        known: dict[bytes, Joiner | Standing] = {**self.lobby.joiners, **self.members}
        self.roll.publish(record, {**known, **(others or {})}, now)
        for peer in self.members.keys() & self.lobby.joiners.keys():
            del self.lobby.joiners[peer]
        self.lobby.candidates = {}
        self.unreached.clear()
        self.lobby.next_round(self.lobby.joiners.values(), anew=False)
        self._recount(tell=bool(self.pending))

    def _dissolve(self, reason: str, now: float) -> None:
        """All members are gone; those who wait start the group anew."""
        self.roll.clear(reason)
        self.held = False
        self.strikes = frozenset()
        self.unreached.clear()
        self.pending = 0
        for peer in self.lobby.of_existing():
            self.send(peer, Refused(f"group {self.name!r} has no members any more: {reason}"))
        if self.recovering:  # nobody knows what number comes next: the group is forgotten
            self.lobby.joiners.clear()
        self.lobby.next_round(self.lobby.joiners.values(), anew=True)
        self._form(now)

    # ---- after a restart -------------------------------------------------------------------------

    def replay(self, fact: Fixed | Published | Struck | Cleared) -> None:
        """Makes a change again that was noted before."""
        if isinstance(fact, Fixed):
            self.settings = fact.join
        else:
            self.roll.replay(fact)

    def resume(self, first_round: int, now: float) -> None:
        """The coordinator is back. Who waited has to join again."""
        self.lobby.round = first_round
        self.roll.resume(now)

    def take_over(self, settings: Join | None) -> None:
        """Another coordinator made this group. The first claim follows."""
        self.notes.hold()
        self.notes.note(self.made)
        if settings is not None:
            self.settings = settings
            self.notes.note(Fixed(self.number, settings))

    def claim(self, peer: bytes, record: Epoch, now: float) -> bool:
        """A peer is a member by a record of another coordinator. The newest such record is taken
        over; whether this one can be of the same group's history."""
        if record.epoch > self.roll.epoch:
            self.notes.hold()
            self.roll.adopt(record, now)
            self.lobby.next_round(self.lobby.joiners.values(), anew=True)
        last = self.roll.record
        assert last is not None
        if record.epoch == last.epoch and not records.same(record, last):
            return False
        if peer in self.present:
            self.members[peer].installed |= record.epoch == last.epoch
        elif not self.roll.tell_former(peer):
            text = f"this peer was left out of epoch {last.epoch} of group {self.name!r}"
            self.send(peer, Evicted(self.number, last.epoch, False, text))
        return True

    def snapshot(self) -> Iterator[Fact]:
        """The facts that make this group."""
        yield self.made
        if self.settings is not None:
            yield Fixed(self.number, self.settings)
        yield from self.roll.snapshot()

    # ---- pieces ----------------------------------------------------------------------------------

    def _not_prepared(self, joiner: Joiner, message: Prepared, now: float) -> None:
        """A joiner that cannot reach a living member is given up, and of two candidates one is."""
        member = self.members.get(message.peer)
        if member is not None:
            if member.gone:
                self._welcome(joiner.join.id, joiner.serial)  # to prepare for those who are left
                return
            self.unreached.add(message.peer)
        given_up = self.lobby.has_failed(
            joiner, member or self.lobby.candidates.get(message.peer), now
        )
        if given_up is not None:
            gone, why = given_up
            self.send(gone.join.id, Refused(f"{why}: {message.reason}"[:1024]))

    def _recount(self, tell: bool = False) -> None:
        """Tells the members how many joiners are prepared, if that has changed."""
        present = self.present
        pending = len(self.lobby.ready(present)) if present else 0
        if pending != self.pending or tell:
            self.pending = pending
            for peer in present:
                self.send(peer, Pending(self.number, pending))

    def _silent_at(self) -> float:
        """When all members will have been silent for too long, if somebody waits for them: if it
        cannot reach them either, the group is no more."""
        return self.roll.last_heard + self.timeouts.joiner_lost if self.lobby.joiners else NEVER

    def _welcome_joiner(self, joiner: Joiner) -> None:
        self._welcome(joiner.join.id, joiner.serial)

    def _welcome(self, peer: bytes, serial: int) -> None:
        members = tuple(standing.member for standing in self.present.values())
        lobby = self.lobby
        if not self.members and peer in lobby.candidates:
            members = records.candidates([each.arrival for each in lobby.candidates.values()])
        state = self.number, serial, self.token, self.roll.epoch, lobby.round, len(lobby.joiners)
        self.send(peer, Welcome(*state, members))
