"""What a courier has to do with: a peer's core, its events, the connection to the coordinator.

The courier knows them by the protocol classes here alone. `collectives.core` and
`collectives.control` implement them over the C core and ZeroMQ; tests implement them without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from collectives.messages import NO_PEER, Epoch, Member, Report, ToCoordinator


@dataclass(frozen=True)
class Sealed:
    """The core sealed an epoch, or has more evidence on it; or another member's core has, and sent
    its report along: `report.of` names that one."""

    report: Report


@dataclass(frozen=True)
class Ready:
    """Every member has installed this epoch of this group, as far as this peer's links tell."""

    group: int
    epoch: int


@dataclass(frozen=True)
class Prepared:
    """The rehearsal asked for with `prepare` is over. If not `ok`: whom it could not reach (zero if
    nobody in particular), and why; else what the slowest link costs."""

    ok: bool
    peer: bytes = NO_PEER
    reason: str = ""
    latency_ns: int = 0
    bytes_per_s: int = 0


@dataclass(frozen=True)
class Told:
    """Another member told the core of this epoch, and it is installed: `Core.record` has it."""

    group: int
    epoch: int


@dataclass(frozen=True)
class Waits:
    """An operation has not moved for a long time: `call` in words, and the ranks that it waits for.
    They are `late`, that is they have not called it, or else stalled. There may be more than are
    named: `count` of them."""

    group: int
    lane: int
    sequence: int
    call: str
    seconds: float
    late: bool
    ranks: tuple[int, ...]
    count: int


Event = Sealed | Ready | Prepared | Told | Waits


class Core(Protocol):
    """What the courier needs of a peer's core. Whoever drives the courier calls it."""

    def address(self) -> str:
        """The address that other peers dial."""

    def set_token(self, token: bytes) -> None:
        """Sets the 16-byte secret of the run."""

    def install(self, epoch: Epoch) -> None:
        """Installs a record; one that is not newer than the installed one is ignored."""

    def record(self, last: Epoch) -> Epoch | None:
        """The record that is installed in the group of `last`, if it came of that one by failures
        alone, so that its members are among those; or None."""

    def prepare(self, serial: int, members: Sequence[Member]) -> None:
        """Starts the rehearsal of the joiner with this serial; `Prepared` follows."""

    def set_pending(self, group: int, joiners: int) -> None:
        """Tells how many joiners wait."""

    def seal(self, group: int, epoch: int) -> None:
        """Seals this epoch, if it is the installed one."""

    def expel(self, group: int, status_name: str, reason: str) -> None:
        """Ends a group's operations with EVICTED, COORDINATOR_LOST or CLOSED."""

    def close_group(self, group: int) -> None:
        """Leaves a group, or one that never was installed, and tells its members. The only one
        that any thread may call at any time."""

    def next_event(self) -> Event | None:
        """The next event, or None."""

    def fd(self) -> int:
        """A descriptor that is readable while there are events."""


class Link(Protocol):
    """What the courier needs of the connection to the coordinator. Nothing in it blocks."""

    def send(self, message: ToCoordinator) -> None:
        """Sends, or loses it: whatever matters is sent again."""

    @property
    def is_up(self) -> bool:
        """Whether what is sent now leaves at once, as far as is known."""

    def why_silent(self, seconds: float) -> str:
        """Why nobody answered for so long, and what to do."""
