"""The checker: what all ledgers together say of each operation, held against the promises.

For each number, over live, dead and evicted peers: one outcome, the same bits, the same
contributors in the same epoch; these bits are those of a reference that is computed here from the
contributors' inputs; everybody who has the result is a contributor, and so is every peer to which
nothing was done; every contributor had called; the contributors are the members that the
coordinator's journal has for that epoch; inputs are what they were. For each peer: no number is
left out and epochs do not fall. It reads ledgers and the journal, so what it says cannot depend on
the core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import script
from ledger import HOLE, Input, Kind, Status
from script import Call

TOLD_MAX = 20


@dataclass
class Story:
    """One peer's ledger, and whether anything was done to it."""

    peer: int
    lines: np.ndarray  # of LINE
    begun: int
    harmed: bool


@dataclass
class Verdict:
    wrong: list[str] = field(default_factory=list)
    operations: int = 0
    recomputed: int = 0
    again: int = 0  # operations that were begun more than once
    lost: int = 0  # agreed to have failed, for want of a member
    boundaries: int = 0  # that changed the membership
    epochs: int = 0
    anonymous: int = 0  # whose contributors nobody knows
    in_journal: int = 0  # whose contributors were compared with the journal's

    def say(self, text: str) -> None:
        if len(self.wrong) < TOLD_MAX:
            self.wrong.append(text)


class Checker:
    def __init__(
        self, seed: int, stories: Sequence[Story], members: Mapping[int, frozenset[int]]
    ) -> None:
        self.seed = seed
        self.members = members  # by epoch, as the journal has them
        self.stories = {story.peer: story for story in stories}
        self.verdict = Verdict()
        self.ranks: list[int] = []  # by rank, as of the last boundary, who has it
        self.synced = 0  # the number of the last SYNC

    def check(self) -> Verdict:
        for story in self.stories.values():
            self.check_story(story)
        epochs = set()
        for number, peers, lines in self.operations():
            self.verdict.operations += 1
            self.check_operation(number, peers, lines)
            epochs |= set(lines["epoch"].tolist()) - {0}
        self.verdict.epochs = len(epochs)
        return self.verdict

    def operations(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number, peers, their lines), for each number that any peer has."""
        stories = [story for story in self.stories.values() if len(story.lines)]
        if not stories:
            return
        lines = np.concatenate([story.lines for story in stories])
        peers = np.concatenate([np.full(len(s.lines), s.peer) for s in stories])
        order = np.argsort(lines["number"], kind="stable")
        lines, peers = lines[order], peers[order]
        numbers, starts = np.unique(lines["number"], return_index=True)
        for number, start, end in zip(numbers, starts, [*starts[1:], len(lines)], strict=True):
            yield int(number), peers[start:end], lines[start:end]

    # ---- one peer --------------------------------------------------------------------------------

    def check_story(self, story: Story) -> None:
        numbers = story.lines["number"].astype(np.int64)
        if len(numbers) and (np.diff(numbers) != 1).any():
            at = int(numbers[np.flatnonzero(np.diff(numbers) != 1)[0]])
            self.verdict.say(f"p{story.peer}: what follows operation {at} is not {at + 1}")
        epochs = story.lines["epoch"][story.lines["epoch"] > 0].astype(np.int64)
        if (np.diff(epochs) < 0).any():
            self.verdict.say(f"p{story.peer}: its epochs fall")
        statuses = set(story.lines["status"].tolist())
        if Status.OTHER in statuses:
            self.verdict.say(f"p{story.peer} got an error that is no outcome")
        if Status.EVICTED in statuses and not story.harmed:
            self.verdict.say(f"p{story.peer} was evicted though nothing was done to it")

    # ---- one operation ---------------------------------------------------------------------------

    def check_operation(self, number: int, peers: np.ndarray, lines: np.ndarray) -> None:
        say = self.verdict.say
        kinds = set(lines["kind"].tolist())
        if len(kinds) > 1:
            say(f"operation {number}: peers called different ones")
            return
        kind = Kind(kinds.pop())
        call = script.call_of(self.seed, number)
        if kind is Kind.SYNC:
            self.synced = number
        elif kind is Kind.FLUSH:
            call = script.FLUSH[number - self.synced - 1]
        self.check_inputs(number, call, peers, lines)
        decided = np.isin(lines["status"], [Status.OK, Status.PEER_LOST])
        peers, lines = peers[decided], lines[decided]
        statuses = set(lines["status"].tolist())
        if not statuses:
            return
        if len(statuses) > 1:
            who = {Status(s).name: peers[lines["status"] == s].tolist() for s in statuses}
            say(f"operation {number} has two outcomes: {who}")
            return
        if statuses == {Status.PEER_LOST}:
            self.check_loss(number, kind, call, peers)
            return
        digests = lines["digest"]
        if len(np.unique(digests)) > 1:
            who = {f"{d:x}": peers[digests == d].tolist() for d in np.unique(digests)}
            say(f"operation {number}, {call}: the bits differ: {who}")
            return
        if kind is Kind.ADMIT:
            self.take_boundary(number, lines)
            return
        roster = self.check_contributors(number, kind, call, peers, lines)
        if roster is None:
            self.verdict.anonymous += 1
        elif kind is Kind.SYNC:
            total = sum(peer for peer in roster if peer is not None)
            if digest(np.array([total])) != int(digests[0]):
                say(f"operation {number}, after a boundary: not the sum of its contributors")
        else:
            self.check_result(number, call, roster, lines)

    def check_inputs(self, number: int, call: Call, peers: np.ndarray, lines: np.ndarray) -> None:
        """An input is overwritten by a result alone. (In a broadcast that is in place only the
        root's is one.)"""
        changed = lines["input"] == Input.CHANGED
        if call.kind == "broadcast" and call.in_place:
            changed &= lines["status"] == Status.OK
        for peer in peers[changed]:
            self.verdict.say(f"operation {number}, {call}: the input of p{peer} was changed")

    def check_loss(self, number: int, kind: Kind, call: Call, peers: np.ndarray) -> None:
        self.verdict.lost += 1
        if kind is Kind.CALL and not call.retry:
            return
        if kind is Kind.CALL and call.kind == "broadcast" and self.ranks:
            root = self.ranks[call.root % len(self.ranks)]
            if root not in peers:
                return
        self.verdict.say(f"operation {number}, {call}: it failed though it could begin again")

    def check_contributors(
        self, number: int, kind: Kind, call: Call, peers: np.ndarray, lines: np.ndarray
    ) -> list[int | None] | None:
        """The contributors by rank, or None if nobody knows them."""
        say = self.verdict.say
        known = lines[lines["attempts"] > 0]
        if not len(known):
            return None
        worlds = {
            (int(line["epoch"]), tuple(line["roster"][: line["world"]].tolist())) for line in known
        }
        if len(worlds) > 1:
            say(f"operation {number}: peers do not agree on who contributed: {worlds}")
            return None
        self.verdict.again += bool((known["attempts"] > 1).any())
        (epoch, found) = worlds.pop()
        roster = [None if peer == HOLE else peer for peer in found]
        present = {peer for peer in roster if peer is not None}
        self.verdict.in_journal += epoch in self.members
        if present != self.members.get(epoch, present):
            say(
                f"operation {number}: {sorted(present)} contributed, and in the journal epoch "
                f"{epoch} has {sorted(self.members[epoch])}"
            )
        if missing := set(peers.tolist()) - present:
            say(f"operation {number}: {sorted(missing)} have its result and did not contribute")
        if kind is Kind.CALL and call.kind == "broadcast":  # who takes a copy adds nothing to it
            present &= {roster[call.root % len(roster)]}
        for peer in present:
            story = self.stories.get(peer)
            first = int(story.lines["number"][0]) if story and len(story.lines) else number
            if story is None or not first <= number <= story.begun:
                say(f"operation {number}: p{peer} contributed and never called it")
        if kind is Kind.SYNC and not self.ranks:
            self.ranks = list(found)
        if len(found) != len(self.ranks) or any(
            peer is not None and peer != self.ranks[rank] for rank, peer in enumerate(roster)
        ):
            say(f"operation {number}: ranks are {found}, at the last boundary {self.ranks}")
        return roster

    def check_result(
        self, number: int, call: Call, roster: list[int | None], lines: np.ndarray
    ) -> None:
        want = script.expected(self.seed, number, call, roster)
        self.verdict.recomputed += 1
        if want is None:
            self.verdict.say(f"operation {number}, {call}: a result without its root")
        elif call.is_known:
            if digest(want) != int(lines["digest"][0]):
                self.verdict.say(f"operation {number}, {call}: not the result of {roster}")
        else:
            truth, slack = script.near(self.seed, number, call, roster)
            if not abs(float(lines["total"][0]) - truth) <= slack:
                self.verdict.say(
                    f"operation {number}, {call}: its sum is {lines['total'][0]!r}, not within "
                    f"{slack:g} of {truth!r}"
                )

    def take_boundary(self, number: int, lines: np.ndarray) -> None:
        changed = lines[lines["world"] > 0]
        if len(changed):
            self.verdict.boundaries += 1
            self.ranks = changed[0]["roster"][: changed[0]["world"]].tolist()


def digest(array: np.ndarray) -> int:
    """As the peers write it."""
    whole = hashlib.blake2b(memoryview(array).cast("B"), digest_size=8).digest()
    return int.from_bytes(whole, "little")
