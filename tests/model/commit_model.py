"""The exhaustive model of sections 5 and 6 of docs/protocol.md: votes, seals, reports, decisions.

Its product with boundaries (boundary_model.py) and mismatches (mismatch_model.py) would be too
large; the three meet in the record of an epoch only. What all three leave out, and why that loses
nothing:

A crash has no step of its own. A peer that died is a peer that takes no further step, the
coordinator may go on without anyone who has not reported, and every promise is made over all peers,
dead and evicted ones too. So each crash at each point, each false suspicion and each death during
an install is among the interleavings. What a peer sent before may arrive at any time later or
never.

A record of the coordinator exists from the moment at which it is journalled, and is installed at
any time after it. So a coordinator that crashes between journal and publication is the same model,
except that reports are forgotten, which is the step "coordinator restarts". Peers send them again.

Promises: one outcome per operation, never made again, over all peers; success names the epoch whose
members it counts, and each of them had posted its input; who is told of a success holds the result;
an operation that has begun in an epoch is decided there, unless it is tried again as a whole. Every
rule that was rejected is a mutant, and the search must find what breaks it: else the model is too
weak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from explore import Violation

OPEN, FAILED = 0, -1  # an outcome. A positive one is the epoch whose members it succeeded among, a
# negative one the epoch whose record ended it: that says why, and so all have to name the same.


class Peer(NamedTuple):
    """One peer. Watermarks count operations of the one lane, from 1."""

    epoch: int  # the one it has installed
    last: int  # the last epoch of which it is a member
    base: int  # the operations that epochs before it have decided
    posted: int
    done: tuple[int, ...]  # by epoch - 1: what its votes of that epoch say at most
    heard: tuple[int, ...]  # votes that arrived from each peer; () if votes arrive together
    outcome: tuple[int, ...]  # by operation - 1
    frozen: tuple[int, ...]  # (done, posted) since the seal; () before it
    report: tuple[int, ...]  # what the coordinator has of it for the epoch being closed
    old: tuple[int, ...]  # mutant "stale report": the report of the epoch before


class State(NamedTuple):
    """Peers, and the coordinator: one (committed, failed) for each epoch that is closed."""

    peers: tuple[Peer, ...]
    records: tuple[tuple[int, int], ...]
    restarts: int


@dataclass(frozen=True)
class Data:
    """Operations with data: posted, moved, voted, committed, sealed, decided, perhaps tried again.

    With `retry` what is not committed runs again in the next epoch, else it has failed on all.

    Bytes are left out: a peer is done with an operation ("all": an all-reduce) at any time after
    all members have begun it, or ("local": the root of a broadcast, a barrier of votes) after its
    own post. Several lanes are left out: they share the seal and nothing else. Votes are
    watermarks; unless `single_votes` is set, the votes of all members arrive together at the moment
    they are needed, which is the same because a vote that has arrived has no effect before the last
    one has. Who a member is matters to no rule, so states that differ in the order of the peers are
    one state.
    """

    peers: int = 3
    operations: tuple[str, ...] = ("all", "local")
    epochs: int = 2
    retry: bool = False
    restarts: int = 1
    single_votes: bool = False
    mutant: str = ""

    MUTANTS: ClassVar[dict[str, str]] = {
        "local success": "success once the operation is complete here",
        "majority votes": "success once most members have voted",
        "or": "committed is the greatest done of the survivors",
        "majority": "committed is what most survivors have done",
        "least posted": "failed is the least posted of the survivors",
        "decide again": "a late report changes a decision that is out",
        "no journal": "a record is published before it is in the journal",
        "stale report": "a report of the epoch before counts",
        "stale vote": "a vote of the epoch before counts",
        "vote after seal": "a peer that has sealed completes and votes on",
        "no promise": "a peer reports and goes on as if it had not",
        "last reason": "who has yet to post an operation that failed is told why the last one did",
        "apply twice": "a record says what became of all operations, also of decided ones",
    }

    def first(self) -> State:
        heard = (0,) * self.peers if self.single_votes else ()
        none = (0,) * len(self.operations)
        peer = Peer(1, 1, 0, 0, (0,) * self.epochs, heard, none, (), (), ())
        return State((peer,) * self.peers, (), 0)

    def steps(self, state: State) -> Iterator[tuple[str, State | Violation]]:
        for index, peer in enumerate(state.peers):
            for label, after in self._peer_steps(state, index, peer):
                if isinstance(after, Violation):
                    yield f"peer {index} {label}", after
                    continue
                peers = (*state.peers[:index], after, *state.peers[index + 1 :])
                yield f"peer {index} {label}", self._checked(state._replace(peers=peers))
        for label, later in self._coordinator_steps(state):
            yield f"coordinator {label}", self._checked(later)

    # ---- a peer

    def _peer_steps(self, s: State, i: int, p: Peer) -> Iterator[tuple[str, Peer | Violation]]:
        closing = len(s.records) + 1
        if p.posted < len(self.operations):
            yield f"posts {p.posted + 1}", p._replace(posted=p.posted + 1)
        if not p.frozen or self.mutant == "vote after seal":
            yield from self._completes(s, p)
        if not p.frozen:
            yield from self._hears(s, i, p)
            if p.epoch < self.epochs:
                yield f"seals {p.epoch}", p._replace(frozen=self._watermarks(p))
        may_report = p.last == closing < self.epochs and not p.report
        if may_report and p.epoch == closing and p.frozen:
            yield f"reports on {closing}: {p.frozen}", p._replace(report=p.frozen)
        elif may_report and p.epoch == closing and self.mutant == "no promise":
            yield f"reports on {closing}, not sealed", p._replace(report=self._watermarks(p))
        if may_report and self.mutant == "stale report" and p.old:
            yield f"is counted for {closing} by its report before", p._replace(report=p.old)
        if p.epoch < p.last:
            yield f"installs {p.epoch + 1}", self._installed(s, p)

    def _watermarks(self, p: Peer) -> tuple[int, int]:
        # An operation decided before it was posted here counts as posted: its number is used up.
        return p.done[p.epoch - 1], max(p.posted, p.base)

    # `done` of another epoch is needed by a peer that was left behind there and still hears votes.

    def _completes(self, s: State, p: Peer) -> Iterator[tuple[str, Peer]]:
        number = p.done[p.epoch - 1] + 1
        if number > p.posted:
            return
        if self.operations[number - 1] == "all":
            for other in s.peers:
                begun = other.posted
                if other.epoch == p.epoch and other.frozen:
                    begun = other.frozen[1]
                if other.last >= p.epoch and (begun < number or other.epoch < p.epoch):
                    return
        done = (*p.done[: p.epoch - 1], number, *p.done[p.epoch :])
        yield f"is done with {number} in {p.epoch}", p._replace(done=done)

    def _voted(self, other: Peer, epoch: int) -> int:
        if other.epoch < epoch:  # it has sent nothing in this epoch yet
            return max(other.done) if self.mutant == "stale vote" else 0
        voted = other.done[epoch - 1]
        return max(voted, *other.done[:epoch]) if self.mutant == "stale vote" else voted

    def _hears(self, s: State, i: int, p: Peer) -> Iterator[tuple[str, Peer]]:
        """Votes that arrive, and success when the last one needed has."""
        own = p.done[p.epoch - 1]
        if self.single_votes:
            for j, other in enumerate(s.peers):
                if other.last >= p.epoch and j != i:
                    for vote in range(p.heard[j] + 1, self._voted(other, p.epoch) + 1):
                        heard = (*p.heard[:j], vote, *p.heard[j + 1 :])
                        yield f"hears vote {vote} of {j}", p._replace(heard=heard)
        votes = [own]
        for j, other in enumerate(s.peers):
            if other.last >= p.epoch and j != i:
                votes.append(p.heard[j] if self.single_votes else self._voted(other, p.epoch))
        votes.sort()
        committed = votes[0]
        if self.mutant == "local success":
            committed = own
        elif self.mutant == "majority votes":
            committed = min(own, votes[(len(votes) - 1) // 2])
        for upto in range(p.base + 1, committed + 1):
            if p.outcome[upto - 1] == OPEN:
                outcome = tuple(
                    p.epoch if number < upto and fate == OPEN else fate
                    for number, fate in enumerate(p.outcome)
                )
                yield f"returns success up to {upto} in {p.epoch}", p._replace(outcome=outcome)

    def _installed(self, s: State, p: Peer) -> Peer | Violation:
        committed, failed = s.records[p.epoch - 1]
        decided = 0 if self.mutant == "apply twice" else p.base
        outcome = list(p.outcome)
        if self.mutant == "last reason" and failed > p.base:
            for number in range(p.posted + 1, p.base + 1):
                outcome[number - 1] = FAILED * p.epoch
        for number in range(decided + 1, max(committed, failed) + 1):
            fate = outcome[number - 1]
            if number <= committed:
                if p.done[p.epoch - 1] < number:
                    return Violation(
                        f"operation {number} is committed by decision without its result"
                    )
                verdict = p.epoch
            else:
                verdict = OPEN if self.retry else FAILED * p.epoch
            if fate not in (OPEN, verdict):
                return Violation(f"operation {number} ended with {fate} and is now {verdict}")
            outcome[number - 1] = verdict
        if not self.retry and p.frozen and p.frozen[1] > failed:
            return Violation(
                f"operation {p.frozen[1]} has begun in {p.epoch} and was not decided there"
            )
        base = committed if self.retry else failed
        return p._replace(
            epoch=p.epoch + 1,
            base=base,
            done=(*p.done[: p.epoch], base, *p.done[p.epoch + 1 :]),
            heard=(base,) * len(p.heard),
            outcome=tuple(outcome),
            frozen=(),
            old=p.frozen if self.mutant == "stale report" else (),
        )

    # ---- the coordinator

    def _coordinator_steps(self, s: State) -> Iterator[tuple[str, State]]:
        closing = len(s.records) + 1
        if closing < self.epochs and any(p.report for p in s.peers):
            record = self._decision([p.report for p in s.peers if p.report])
            yield (
                f"decides {record}",
                State(
                    tuple(
                        p._replace(last=closing + 1, report=()) if p.report else p for p in s.peers
                    ),
                    (*s.records, record),
                    s.restarts,
                ),
            )
        if s.restarts < self.restarts:
            forgot = tuple(p._replace(report=()) for p in s.peers)
            if self.mutant == "no journal" and s.records:
                forgot = tuple(
                    p._replace(last=closing - 1) if p.epoch < p.last == closing else p
                    for p in forgot
                )
                yield (
                    "restarts without its last record",
                    State(forgot, s.records[:-1], s.restarts + 1),
                )
            elif forgot != s.peers:
                yield "restarts", State(forgot, s.records, s.restarts + 1)
        if self.mutant == "decide again" and s.records:
            for i, late in enumerate(s.peers):
                if late.last == late.epoch == closing - 1 and late.frozen:
                    committed, failed = s.records[-1]
                    record = (min(committed, late.frozen[0]), max(failed, late.frozen[1]))
                    peers = (*s.peers[:i], late._replace(last=closing), *s.peers[i + 1 :])
                    yield (
                        f"decides again {record}",
                        State(peers, (*s.records[:-1], record), s.restarts),
                    )

    def _decision(self, reports: list[tuple[int, ...]]) -> tuple[int, int]:
        done = sorted(report[0] for report in reports)
        posted = sorted(report[1] for report in reports)
        committed, failed = done[0], posted[-1]
        if self.mutant == "or":
            committed = done[-1]
        elif self.mutant == "majority":
            committed = done[(len(done) - 1) // 2]
        elif self.mutant == "least posted":
            failed = max(committed, posted[0])
        return committed, failed

    # ---- promises, and one form for states that are the same

    def _checked(self, s: State) -> State | Violation:
        for number in range(1, len(self.operations) + 1):
            fates = {p.outcome[number - 1] for p in s.peers} - {OPEN}
            if len(fates) > 1:
                return Violation(f"operation {number} has outcomes {sorted(fates)}")
            for fate in fates:
                if fate > OPEN and self.operations[number - 1] == "all":
                    if any(p.posted < number for p in s.peers if p.last >= fate):
                        return Violation(f"operation {number} counts a member that never posted it")
        waiting = {p.epoch for p in s.peers if not p.frozen}
        if self.mutant in ("stale vote", "vote after seal", "stale report"):
            waiting.update(range(1, self.epochs + 1))
        peers = []
        for p in s.peers:
            # What a peer was done with in an epoch is forgotten when nobody can still hear of it.
            done = tuple(d if e >= p.epoch or e in waiting else 0 for e, d in enumerate(p.done, 1))
            peers.append(p if done == p.done else p._replace(done=done))
        return s._replace(peers=tuple(peers))

    def key(self, state: State) -> State:
        if self.single_votes:
            return state
        return state._replace(peers=tuple(sorted(state.peers)))
