"""The exhaustive model of the boundary (section 6 of docs/protocol.md): one result on every peer.

A boundary is an operation without data whose votes carry wishes. Nothing else is open beside it, so
lane 0 alone is modelled, and in it boundaries only, one after the other: a peer that returned from
one may already wait in the next when a failure comes. Being done is having voted, so `posted`
(frozen at the seal) is both watermarks of a report. As in commit_model.py a crash is a peer that
takes no further step, the coordinator goes on with whoever has reported, and a record exists once
it is journalled. A boundary that a failure interrupts begins again, with new wishes, or fails.
Ranks, holes, prepared joiners and the reason of a wish are left out: a wish is
"somebody shall come" (JOIN) or "I go" (LEAVE), and a leaver is told of the record that it is no
member of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from explore import Violation

OPEN, UNCHANGED, CARRIED, FAILED = "open", "unchanged", "carried out", "failed"
NOTHING, JOIN, LEAVE = 0, 1, 2


class Report(NamedTuple):
    """What a peer froze when it sealed, as far as a boundary is concerned."""

    posted: int
    boundary: int  # the one that is open, 0: none
    wish: int  # what this peer's vote there said


class Record(NamedTuple):
    """What the coordinator decided about an epoch."""

    committed: int
    failed: int
    carried: int  # the boundary that is carried out, 0: none


class Peer(NamedTuple):
    """One peer. Watermarks count boundaries, from 1."""

    epoch: int  # the one it has installed
    last: int  # the last epoch whose record it is told
    member: int  # the last epoch of which it is a member
    base: int  # the boundaries that epochs before it have decided
    wishes: tuple[int, ...]  # of its votes, by boundary - 1; as long as it has posted
    results: tuple[str, ...]
    voted: tuple[int, ...]  # by epoch - 1
    frozen: tuple[Report, ...]  # empty before the seal
    report: tuple[Report, ...]  # what the coordinator has


class State(NamedTuple):
    """Peers and coordinator."""

    peers: tuple[Peer, ...]
    records: tuple[Record, ...]
    restarts: int


@dataclass(frozen=True)
class Boundary:
    """Peers that go through `boundaries` boundaries, while up to `epochs - 1` epochs end."""

    peers: int = 3
    boundaries: int = 2
    epochs: int = 3
    wishes: tuple[int, ...] = (NOTHING, JOIN)
    restarts: int = 1
    mutant: str = ""

    MUTANTS: ClassVar[dict[str, str]] = {
        "any wish": "carried out if a survivor wishes it, done or not",
        "late wish": "the report says what the peer wishes now, not what its vote said",
        "other boundary": "a wish counts for a boundary that it was not voted at",
        "fail on death": "a boundary fails when a member is missing, also if all are done",
        "majority": "a peer returns when most members have voted",
        "local carry": "a peer that saw a wish returns before there is a record",
        "vote after seal": "a peer that has sealed votes on",
    }

    def first(self) -> State:
        voted = (0,) * self.epochs
        peer = Peer(1, 1, 1, 0, (), (OPEN,) * self.boundaries, voted, (), ())
        return State((peer,) * self.peers, (), 0)

    def key(self, state: State) -> State:
        return state._replace(peers=tuple(sorted(state.peers)))

    def steps(self, state: State) -> Iterator[tuple[str, State | Violation]]:
        for index, peer in enumerate(state.peers):
            for label, after in self._peer_steps(state, peer):
                if isinstance(after, Violation):
                    yield f"peer {index} {label}", after
                    continue
                peers = (*state.peers[:index], after, *state.peers[index + 1 :])
                yield f"peer {index} {label}", self._checked(state._replace(peers=peers))
        for label, later in self._coordinator_steps(state):
            yield f"coordinator {label}", self._checked(later)

    # ---- a peer

    def _peer_steps(self, s: State, p: Peer) -> Iterator[tuple[str, Peer | Violation]]:
        if p.epoch > p.member:
            return  # it has left
        closing = len(s.records) + 1
        posted = len(p.wishes)
        number = posted + 1
        if number <= self.boundaries and (posted == 0 or p.results[posted - 1] != OPEN):
            for wish in self.wishes:
                after = p._replace(wishes=(*p.wishes, wish))
                if not p.frozen or self.mutant == "vote after seal":
                    after = self._votes(after)
                yield f"posts boundary {number} with wish {wish}", after
        if not p.frozen:
            yield from self._hears(s, p)
            if p.epoch < self.epochs:
                for label, frozen in self._reports(p):
                    yield f"seals {p.epoch}: {label}", p._replace(frozen=(frozen,))
        elif p.epoch == p.last == closing and not p.report:
            yield f"reports {tuple(p.frozen[0])}", p._replace(report=p.frozen)
        if p.epoch < p.last:
            yield from self._begins_again(f"installs {p.epoch + 1}", self._installed(s, p))

    def _begins_again(
        self, label: str, p: Peer | Violation
    ) -> Iterator[tuple[str, Peer | Violation]]:
        """What was posted and not decided is voted for in the new epoch, with the wish of then."""
        if isinstance(p, Violation) or len(p.wishes) <= p.base:
            yield label, p
            return
        for wish in self.wishes:
            again = p._replace(wishes=(*p.wishes[:-1], wish))
            yield f"{label}, again with wish {wish}", self._votes(again)

    def _votes(self, p: Peer) -> Peer:
        voted = max(len(p.wishes), p.base)
        return p._replace(voted=(*p.voted[: p.epoch - 1], voted, *p.voted[p.epoch :]))

    def _reports(self, p: Peer) -> Iterator[tuple[str, Report]]:
        posted = max(len(p.wishes), p.base)
        boundary, wish = 0, NOTHING
        if p.wishes and p.results[len(p.wishes) - 1] == OPEN:
            boundary, wish = len(p.wishes), p.wishes[-1]
        now = self.wishes if boundary and self.mutant == "late wish" else (wish,)
        for wish in now:
            report = Report(posted, boundary, wish)
            yield str(tuple(report)), report

    def _hears(self, s: State, p: Peer) -> Iterator[tuple[str, Peer]]:
        """The last vote that the open boundary needs has arrived."""
        number = len(p.wishes)
        if number == 0 or p.results[number - 1] != OPEN:
            return
        # A vote at a later boundary says that its peer saw no wish at this one, its own included.
        seen = [
            (o.wishes[number - 1] if o.voted[p.epoch - 1] == number else NOTHING)
            for o in s.peers
            if o.member >= p.epoch and o.epoch >= p.epoch and o.voted[p.epoch - 1] >= number
        ]
        members = sum(o.member >= p.epoch for o in s.peers)
        needed = members // 2 + 1 if self.mutant == "majority" else members
        if len(seen) < needed or p.voted[p.epoch - 1] < number:
            return
        if not any(seen):
            yield f"returns from {number} unchanged", self._with_result(p, number, UNCHANGED)
        elif self.mutant == "local carry":
            yield f"returns from {number} carried out", self._with_result(p, number, CARRIED)
        # If somebody wishes, it seals; the step "seals" is there at any time.

    def _with_result(self, p: Peer, number: int, result: str) -> Peer:
        return p._replace(results=(*p.results[: number - 1], result, *p.results[number:]))

    def _installed(self, s: State, p: Peer) -> Peer | Violation:
        record = s.records[p.epoch - 1]
        for number in range(p.base + 1, record.failed + 1):
            result = UNCHANGED if number <= record.committed else FAILED
            if number == record.carried:
                result = CARRIED
            if result != FAILED and p.voted[p.epoch - 1] < number:
                return Violation(f"boundary {number} is {result} at a peer that never voted there")
            if p.results[number - 1] not in (OPEN, result):
                return Violation(f"boundary {number} was {p.results[number - 1]} and is {result}")
            p = self._with_result(p, number, result)
        p = p._replace(epoch=p.epoch + 1, base=record.failed, frozen=())
        return self._votes(p)

    # ---- the coordinator

    def _coordinator_steps(self, s: State) -> Iterator[tuple[str, State]]:
        closing = len(s.records) + 1
        reports = [p.report[0] for p in s.peers if p.report]
        if closing < self.epochs and reports:
            everyone = len(reports) == sum(p.member >= closing for p in s.peers)
            decision = self._decision(reports, everyone)
            # What is not committed begins again, or fails: with a deadline, or a mismatch.
            for record in {decision, decision._replace(failed=decision.committed)}:
                peers = []
                for p in s.peers:
                    if p.report:
                        mine = p.report[0]
                        leaves = record.carried == mine.boundary and mine.wish == LEAVE
                        member = p.member if record.carried and leaves else closing + 1
                        p = p._replace(last=closing + 1, member=member, report=())
                    peers.append(p)
                decided = State(tuple(peers), (*s.records, record), s.restarts)
                yield f"decides {tuple(record)}", decided
        if s.restarts < self.restarts and reports:
            forgot = tuple(p._replace(report=()) for p in s.peers)
            yield "restarts", State(forgot, s.records, s.restarts + 1)

    def _decision(self, reports: list[Report], everyone: bool) -> Record:
        committed = min(report.posted for report in reports)
        failed = max(report.posted for report in reports)
        if self.mutant == "fail on death" and not everyone:
            committed = min([committed, *(r.boundary - 1 for r in reports if r.boundary)])
        carried = 0
        for report in reports:
            if report.wish == NOTHING:
                continue
            if report.boundary <= committed or self.mutant == "any wish":
                carried = report.boundary
            elif self.mutant == "other boundary":
                carried = committed
        return Record(committed, failed, carried)

    # ---- promises

    def _checked(self, s: State) -> State | Violation:
        for number in range(1, self.boundaries + 1):
            results = {p.results[number - 1] for p in s.peers} - {OPEN}
            if len(results) > 1:
                return Violation(f"boundary {number} is {' and '.join(sorted(results))}")
        for record in s.records:
            if record.carried and not record.carried == record.committed == record.failed:
                return Violation(
                    f"boundary {record.carried} is carried out beside others: {record}"
                )
        waiting = {p.epoch for p in s.peers if not p.frozen and p.epoch <= p.member}
        peers = []
        for p in s.peers:
            # Votes of an epoch are forgotten when nobody can still hear them.
            voted = tuple(
                v if e >= p.epoch or e in waiting else 0 for e, v in enumerate(p.voted, 1)
            )
            peers.append(p if voted == p.voted else p._replace(voted=voted))
        return s._replace(peers=tuple(peers))
