"""What passes between a peer's core and its agent: the events of the one, and how the other acts.

The agent knows the core by the protocol class here alone. `collectives.core` implements it over the
C core; tests implement it without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from collectives.messages import NO_PEER, Epoch, Member, Report


@dataclass(frozen=True)
class Sealed:
    """The core sealed an epoch, or has more evidence on it."""

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


Event = Sealed | Ready | Prepared


class Core(Protocol):
    """What the agent needs of a peer's core. It is called by the agent's thread alone."""

    def address(self) -> str:
        """The address that other peers dial."""

    def set_token(self, token: bytes) -> None:
        """Sets the 16-byte secret of the run."""

    def install(self, epoch: Epoch) -> None:
        """Installs a record; one that is not newer than the installed one is ignored."""

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
        that any thread may call."""

    def next_event(self) -> Event | None:
        """The next event, or None."""

    def fd(self) -> int:
        """A descriptor that is readable while there are events."""
