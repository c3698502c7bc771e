"""What the coordinator keeps about each member of a group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field

from collectives.config import Timeouts
from collectives.coordinator.decide import Pair, fewest_to_remove
from collectives.messages import EvidenceKind, Join, Member, Report

NEVER = float("inf")
Network = tuple[int, int]
"""What the slowest of some links costs: nanoseconds of latency, bytes per second; 0: not known."""
SILENT = EvidenceKind.SILENT
FATAL = (EvidenceKind.REFUSED, EvidenceKind.GOODBYE)
"""Evidence that suffices, whoever has it, against a member that has not reported."""


@dataclass
class Standing:
    """A member of the current epoch, as the coordinator knows it."""

    member: Member
    heard: float
    remind_at: float  # when to repeat what it has not answered
    network: Network = (0, 0)  # of its links to those who were members when it came
    installed: bool = False
    ready: bool = False
    report: Report | None = None
    reported_at: float = NEVER
    evidence: dict[bytes, set[EvidenceKind]] = field(default_factory=dict)
    gone: bool = False  # said BYE, was evicted, or found dead while a boundary was held


def describe(peer: Member | Join) -> str:
    """A member, or who waits to be one, for people."""
    name = f" ({peer.name!r})" if peer.name else ""
    rank = f" of rank {peer.rank}" if isinstance(peer, Member) else ""
    return f"the peer{rank}{name} at {peer.address}"


def all_reported_at(members: Mapping[bytes, Standing], strikes: Set[Pair]) -> float:
    """As `settled_at`, for a subgroup: its few members are no witnesses of a death, which is found
    out in the group that they all came from. But who said goodbye is not waited for."""
    first = min((standing.reported_at for standing in members.values()), default=NEVER)
    gone = {
        peer
        for standing in members.values()
        for peer, kinds in standing.evidence.items()
        if EvidenceKind.GOODBYE in kinds
    }
    waiting = any(s.report is None and peer not in gone for peer, s in members.items())
    return NEVER if waiting else first


def settled_at(members: Mapping[bytes, Standing], strikes: Set[Pair], timeouts: Timeouts) -> float:
    """When all of `members` will have reported or be dead, as things stand; NEVER while none has
    reported. Docs/protocol.md, section 6, has the rule. `strikes`: pairs that were broken before.
    When that costs one of them its place, there is a beat for all evidence to come in, for the
    first pair that is told may be one of many that have one peer in common; so there is where one
    finds another silent that has reported, for it may be cut off from all."""
    reporters = [standing for standing in members.values() if standing.report is not None]
    first = min((standing.reported_at for standing in reporters), default=NEVER)
    witnesses = _witnesses(reporters)
    found = [
        [standing.evidence.get(peer, set()) for standing in witnesses]
        for peer, standing in members.items()
        if standing.report is None
    ]
    silent = sum(all(SILENT in kinds for kinds in each) for each in found)
    # One whose own links are cut finds all others silent: they get the time to say that they live.
    at_once = silent <= len(witnesses)
    at = max([_dead_at(each, first, timeouts, at_once) for each in found], default=first)
    present = {standing.member.id for standing in reporters}
    doubted = any(
        SILENT in kinds and peer in present
        for standing in reporters
        for peer, kinds in standing.evidence.items()
    )
    if doubted or broken_links(members, present) & strikes:
        at = max(at, first + timeouts.beat)
    return at


def _witnesses(reporters: list[Standing]) -> list[Standing]:
    """Those whose word is waited for. Who reported and died since can accuse nobody any more:
    somebody has evidence that suffices, or all the others find it silent."""
    gone = {
        peer
        for standing in reporters
        for peer, kinds in standing.evidence.items()
        if not kinds.isdisjoint(FATAL)
    }
    left = [s for s in reporters if s.member.id not in gone]
    unheard = _unheard(left)
    return [s for s in left if s not in unheard] or reporters


def _unheard(standings: Iterable[Standing]) -> list[Standing]:
    """Those that none of the others hears, not even through one another, and whose word against
    these does not count then. Of two neither: who should say which one it is?"""
    left, found = list(standings), []
    while len(left) > 2:
        silent = [
            standing
            for standing in left
            if all(
                SILENT in other.evidence.get(standing.member.id, ())
                for other in left
                if other is not standing
            )
        ]
        if not silent:
            break
        found.append(silent[0])
        left.remove(silent[0])
    return found


def _dead_at(
    found: list[set[EvidenceKind]], first: float, timeouts: Timeouts, at_once: bool
) -> float:
    """When a member that does not report is dead. `found`: what each reporter has against it;
    `at_once`: silence suffices, without waiting for more."""
    if any(not kinds.isdisjoint(FATAL) for kinds in found):
        return first
    if at_once and all(SILENT in kinds for kinds in found):
        return first
    if all(found):
        return first + timeouts.settle_time
    return first + timeouts.unaccused_time


def apart(
    members: Mapping[bytes, Standing],
    among: Collection[bytes],
    links: Set[Pair],
    strikes: Set[Pair],
) -> dict[bytes, str]:
    """Which of these live, but cannot be in one group with the others, and why. `links`: the pairs
    that are broken now; `strikes`: those that were before."""
    unheard = [s.member.id for s in _unheard(members[peer] for peer in among)]
    gone = dict.fromkeys(unheard, "no other member could reach it")
    again = [pair for pair in links & strikes if pair.isdisjoint(gone)]
    serials = {peer: members[peer].member.serial for peer in among}
    twice = fewest_to_remove(again, links, serials)
    return gone | dict.fromkeys(twice, "its link to another member broke twice in a row")


def accused(members: Mapping[bytes, Standing]) -> set[bytes]:
    """Those against whom one of `members` has evidence of any kind."""
    return {peer for standing in members.values() for peer in standing.evidence}


def broken_links(members: Mapping[bytes, Standing], among: Collection[bytes]) -> frozenset[Pair]:
    """The pairs, both of them `among` these, of which one has evidence against the other."""
    return frozenset(
        frozenset((peer, other))
        for peer in among
        for other in members[peer].evidence
        if other in among
    )
