"""The exhaustive model of a mismatch: peers that call different things, while some of them fail.

One operation. Each peer calls "x" or "y"; what it sends about the operation is a short stream that
every other peer reads in order: its call (on READY and eager data), its vote, which names the call
as well, and in two mutants the word that it saw a mismatch. A peer may be done at once (the root of
a broadcast) or be held up by its data; both are one free step here. A peer that sees a call other
than its own seals, does not report the operation as done, and returns nothing before the decision;
reports name calls, so that two that nobody saw side by side are compared by the coordinator. That a
seal by choice and its report are one step loses nothing: a sealed peer whose report comes too late
does as little as one that stopped before. A crash is, as in commit_model.py, no step; one epoch
closes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from explore import Violation

OPEN, SUCCESS, LOST, MISMATCH = "open", "success", "peer lost", "mismatch"
CALL, VOTE, FLOOD = "call", "vote", "mismatch"


class Peer(NamedTuple):
    """One peer and what it has to do with the operation."""

    call: str  # "" before it has posted
    sent: tuple[str, ...]  # what the others can read, in order
    read: tuple[int, ...]  # how much of each peer's stream it has read
    seen: bool  # it knows of a mismatch
    outcome: str
    sealed: bool
    reported: bool


class State(NamedTuple):
    """Peers and coordinator."""

    peers: tuple[Peer, ...]
    decision: str  # "" before there is one
    survivors: tuple[bool, ...]


@dataclass(frozen=True)
class Mismatch:
    """One operation among `peers` peers."""

    peers: int = 3
    early_calls: bool = False  # READY or eager data tell of a call before the vote
    mutant: str = ""

    MUTANTS: ClassVar[dict[str, str]] = {
        "return at once": "a mismatch is returned when it is seen, and counts as done",
        "return after votes": "it is returned when all have voted, and then counts as done",
        "votes without calls": "votes are watermarks that name no call, or only the last one's",
        "seen but done": "who saw a mismatch reports the operation as done, if it was, and no more",
        "reports without calls": "the coordinator does not compare what was called",
    }

    def first(self) -> State:
        peer = Peer("", (), (0,) * self.peers, False, OPEN, False, False)
        return State((peer,) * self.peers, "", (False,) * self.peers)

    def key(self, state: State) -> State:
        return state

    def steps(self, s: State) -> Iterator[tuple[str, State | Violation]]:
        for i, peer in enumerate(s.peers):
            for label, after in self._peer_steps(s, i, peer):
                after = self._reacts(s, i, after)
                peers = (*s.peers[:i], after, *s.peers[i + 1 :])
                yield f"peer {i} {label}", self._checked(s._replace(peers=peers))
        if not s.decision and any(p.reported for p in s.peers):
            decision = self._decision([p for p in s.peers if p.reported])
            yield (
                f"coordinator decides {decision}",
                State(s.peers, decision, tuple(p.reported for p in s.peers)),
            )

    def _peer_steps(self, s: State, i: int, p: Peer) -> Iterator[tuple[str, Peer]]:
        if not p.call and not p.sealed:
            for call in ("x", "y")[: 1 if i == 0 else 2]:  # peer 0 calls "x": a name, no more
                yield f"posts {call}", p._replace(call=call)
        if not p.sealed:
            if self.early_calls and p.call and not p.sent:
                yield "sends its call", p._replace(sent=(*p.sent, CALL))
            if p.call and VOTE not in p.sent and not p.seen:
                yield "is done and votes", p._replace(sent=(*p.sent, VOTE))
            for j, other in enumerate(s.peers):
                if j != i and p.read[j] < len(other.sent):
                    read = (*p.read[:j], p.read[j] + 1, *p.read[j + 1 :])
                    yield f"reads {other.sent[p.read[j]]} of {j}", p._replace(read=read)
            if not s.decision:
                yield "seals and reports", p._replace(sealed=True, reported=True)
        elif not p.reported and not s.decision:
            yield "reports", p._replace(reported=True)
        if s.decision and s.survivors[i] and p.outcome == OPEN:
            yield "installs", p._replace(outcome=s.decision)

    def _reacts(self, s: State, i: int, p: Peer) -> Peer:
        """What follows at once from what a peer has read."""
        if p.sealed or not p.call or p.outcome != OPEN:
            return p
        voters = [VOTE in p.sent]
        for j, other in enumerate(s.peers):
            if j == i:
                continue
            read = other.sent[: p.read[j]]
            telling = (CALL,) if self.mutant == "votes without calls" else (CALL, VOTE)
            told = any(frame in telling for frame in read) and other.call != p.call
            if (told or FLOOD in read) and not p.seen:
                p = self._sees(p)
                voters[0] = VOTE in p.sent
            voters.append(VOTE in read)
        if all(voters) and not p.sealed and p.outcome == OPEN:
            return p._replace(outcome=MISMATCH if p.seen else SUCCESS)
        return p

    def _sees(self, p: Peer) -> Peer:
        p = p._replace(seen=True)
        if not self.mutant.startswith("return"):
            return p._replace(sealed=True)
        sent = (*p.sent, FLOOD) if VOTE in p.sent else (*p.sent, FLOOD, VOTE)
        at_once = self.mutant == "return at once"
        return p._replace(sent=sent, outcome=MISMATCH if at_once else OPEN)

    def _decision(self, reports: list[Peer]) -> str:
        done = all(VOTE in p.sent for p in reports)
        if self.mutant in ("return at once", "seen but done"):
            return SUCCESS if done else LOST
        if self.mutant == "return after votes":
            return SUCCESS if done and not any(p.seen for p in reports) else LOST
        calls = {p.call for p in reports if p.call}
        if self.mutant == "reports without calls":
            calls = set()
        if any(p.seen for p in reports) or len(calls) > 1:
            return MISMATCH
        return SUCCESS if done else LOST

    def _checked(self, s: State) -> State | Violation:
        outcomes = {p.outcome for p in s.peers} - {OPEN}
        if len(outcomes) > 1:
            return Violation(f"one operation ended with {' and '.join(sorted(outcomes))}")
        if len({p.call for p in s.peers if p.outcome == SUCCESS}) > 1:
            return Violation("peers that called different things succeeded")
        return s
