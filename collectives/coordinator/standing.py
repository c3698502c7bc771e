"""What the coordinator keeps about each peer of a group: one who waits, and one who is a member."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from collectives.coordinator.decide import Pair
from collectives.messages import EvidenceKind, Join, Member, Report

NEVER = float("inf")
FATAL = (EvidenceKind.REFUSED, EvidenceKind.GOODBYE)
"""Evidence that suffices by itself against a member that has not reported."""


@dataclass
class Joiner:
    """Someone who waits to be let in."""

    join: Join
    serial: int
    heard: float
    reached: set[bytes] = field(default_factory=set)
    failures: int = 0
    failed_at: float = -NEVER


@dataclass
class Standing:
    """A member of the current epoch, as the coordinator knows it."""

    member: Member
    heard: float
    publish_at: float
    installed: bool = False
    ready: bool = False
    report: Report | None = None
    reported_at: float = NEVER
    evidence: dict[bytes, set[EvidenceKind]] = field(default_factory=dict)
    gone: bool = False  # said BYE, was evicted, or found dead while a boundary was held


def accused(
    members: Mapping[bytes, Standing], kinds: Collection[EvidenceKind] | None = None
) -> set[bytes]:
    """Members against whom one of `members` has evidence, of one of these kinds or of any."""
    return {
        peer
        for standing in members.values()
        for peer, found in standing.evidence.items()
        if kinds is None or not found.isdisjoint(kinds)
    }


def broken_links(members: Mapping[bytes, Standing], among: Collection[bytes]) -> frozenset[Pair]:
    """The pairs, both of them `among` these, of which one has evidence against the other."""
    return frozenset(
        frozenset((peer, other))
        for peer in among
        for other in members[peer].evidence
        if other in among
    )
