"""Those who wait for a group to let them in.

They rehearse before: each connects to all members, or, while the group has none, to all others of
the first `size` that wait, the *candidates*. Whenever it changes whom to rehearse with, a new
*round* begins, and what was said of an earlier one counts no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from collectives.coordinator.decide import Pair
from collectives.coordinator.standing import NEVER, Network, Standing, describe
from collectives.messages import Join

FAILURES_MAX = 3


@dataclass
class Joiner:
    """Someone who waits to be let in.

    Attributes:
        count: gives out serials, each later than all before.
        serial: later than those of all members, for of two peers the later one dials, and members
            do not know who waits.
    """

    join: Join
    count: Callable[[], int]
    heard: float
    serial: int = field(init=False)
    reached: set[bytes] = field(default_factory=set)
    network: Network = (0, 0)  # of its links to them
    failures: int = 0
    failed_at: float = -NEVER
    spared: int = 0  # how often another was given up where it may have been this one's fault

    def __post_init__(self) -> None:
        self.serial = self.count()

    @property
    def arrival(self) -> tuple[Join, int]:
        return self.join, self.serial


class Lobby:
    """The waiting room of one group. `welcome` tells a joiner what it should rehearse for. Rounds
    count up from `first_round`, beyond all that another coordinator may have named."""

    def __init__(self, welcome: Callable[[Joiner], None], first_round: int = 0) -> None:
        self.joiners: dict[bytes, Joiner] = {}  # in the order of arrival
        self.candidates: dict[bytes, Joiner] = {}  # who is to form the group, once prepared
        self.round = first_round
        self._apart: set[Pair] = set()  # candidates that, in this round, found no way
        self._welcome = welcome

    def next_round(self, joiners: Iterable[Joiner], *, anew: bool) -> None:
        """Whom to rehearse with has changed; with `anew` what was reached before is void. Without,
        these are the members of an epoch that was just published."""
        self.round += 1
        self._apart.clear()
        for joiner in list(joiners):
            joiner.failures = 0
            if anew:
                joiner.reached.clear()
            else:  # some who came later may be members now
                joiner.serial = joiner.count()
            self._welcome(joiner)

    def of_existing(self) -> list[bytes]:
        """Takes out those who wait for a group that has members, and for no other."""
        found = [peer for peer, joiner in self.joiners.items() if joiner.join.existing]
        for peer in found:
            del self.joiners[peer]
        return found

    def gather(self, size: int) -> list[tuple[Join, int]]:
        """While the group has no members: the arrivals that form it, once enough are there and
        have all reached each other; else nobody."""
        enough = len(self.joiners) >= size
        first = dict(list(self.joiners.items())[:size]) if enough else {}
        if first.keys() != self.candidates.keys():
            self.candidates = first
            self.next_round(first.values(), anew=True)
        if size > 1 and not all(joiner.reached >= first.keys() for joiner in first.values()):
            return []
        return [joiner.arrival for joiner in first.values()]

    def silent(self, now: float, after: float) -> list[bytes]:
        """Takes out who has not been heard for so long."""
        lost = [peer for peer, joiner in self.joiners.items() if now >= joiner.heard + after]
        for peer in lost:
            del self.joiners[peer]
        return lost

    def ready(self, members: Collection[bytes]) -> list[Joiner]:
        """Who has reached all of these."""
        wanted = set(members)
        return [joiner for joiner in self.joiners.values() if joiner.reached >= wanted]

    def let_in(self, ready: Sequence[Joiner]) -> list[tuple[Join, int]]:
        """The arrivals of these, who become members before all others that wait, whoever came
        first. Of two peers the one with the later serial dials, and only who waits knows of both:
        so nobody who waits may have an earlier serial than a member."""
        let_in = {joiner.join.id for joiner in ready}
        in_order = sorted(
            self.joiners.values(), key=lambda each: (each.join.id not in let_in, each.serial)
        )
        serials = sorted(each.serial for each in in_order)
        for joiner, serial in zip(in_order, serials, strict=True):
            joiner.serial = serial
        return [joiner.arrival for joiner in ready]

    def has_reached(self, joiner: Joiner, peers: Iterable[bytes], network: Network) -> None:
        joiner.reached.update(peers)
        joiner.network = network
        joiner.failures = 0
        self._apart = {pair for pair in self._apart if joiner.join.id not in pair}

    def has_failed(
        self, joiner: Joiner, at_fault: Joiner | Standing | None, now: float
    ) -> tuple[Joiner, str] | None:
        """A rehearsal failed. After some of them, who is given up, and why. If the other peer is
        silent here as well it is probably dead, and the joiner waits: for the members to find out,
        or for the candidate to be lost."""
        if at_fault is not None:
            silent = at_fault.heard <= joiner.failed_at
            joiner.failed_at = now
            if silent:
                return None
        if isinstance(at_fault, Joiner):
            self._apart.add(frozenset((joiner.join.id, at_fault.join.id)))
        joiner.failures += 1
        if joiner.failures < FAILURES_MAX:
            return None
        gone, why = _given_up(joiner, at_fault, self._apart)
        del self.joiners[gone.join.id]
        return gone, why


def _given_up(
    joiner: Joiner, other: Joiner | Standing | None, apart: Collection[Pair]
) -> tuple[Joiner, str]:
    """Who cannot join, since `joiner` does not reach the other (None: nobody in particular), and
    why. Of two candidates it is the one in more of the pairs that are `apart`; of equals the later
    one, but only once: the next time the other is not spared. So a bad address costs at most one
    other peer its place."""
    if other is None:
        return joiner, "this peer could not prepare"
    if isinstance(other, Standing):
        return joiner, f"this peer could not reach {describe(other.member)}"

    def guilt(each: Joiner) -> tuple[int, int]:
        return sum(each.join.id in pair for pair in apart), each.spared

    kept, gone = sorted((joiner, other), key=lambda each: (guilt(each), each.serial))
    kept.spared += guilt(kept) == guilt(gone)
    if gone is joiner:
        return gone, f"this peer could not reach {describe(kept.join)}"
    return gone, f"{describe(kept.join)} could not reach this peer at {gone.join.address}"
