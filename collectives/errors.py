"""What can go wrong, one class per kind.

Every error of the library is a `CollectivesError`, so one `except` catches all of them; those that
Python has a name for (`TimeoutError`, `ConnectionError`, `OSError`) are that as well. Wrong
arguments are not in this family: they are `ValueError`, `TypeError` or `NotImplementedError`, and
nothing has been sent. The core speaks in status numbers; `from_status` is the one place that turns
them into exceptions. The numbers come from the extension, and only when first needed: the
coordinator shares this module and has no use for the core.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "Closed",
    "CollectivesError",
    "ConnectError",
    "CoordinatorLost",
    "CoordinatorUnreachable",
    "Evicted",
    "GroupTooSmall",
    "Mismatch",
    "OutcomeUnknown",
    "PeerLost",
    "ProtocolError",
    "Refused",
    "SystemFailure",
    "TimedOut",
    "from_status",
]


class CollectivesError(RuntimeError):
    """The base of all errors of this library. A `RuntimeError`, as torch's users expect."""


class PeerLost(CollectivesError):
    """A member was lost and the operation did not complete: agreed by all survivors. Of a send or
    recv: the other peer was lost.

    Inputs are intact, but of a reduction in place with ``preserve=False``. An operation that was
    not to begin again (``retry=False``) may be called again: it runs among the survivors. One that
    cannot be without the lost member raises this until `Communicator.admit` has closed the hole, or
    another root is chosen.

    Attributes:
        peer: the id of the lost member (16 bytes), or None where it is not known.
        rank: its rank, or None.
        operation: what was called, for example ``"all_reduce"``, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        peer: bytes | None = None,
        rank: int | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(message)
        self.peer = peer
        self.rank = rank
        self.operation = operation


class Evicted(CollectivesError):
    """This peer is no longer a member of the group; connect again to join as a new one."""


class GroupTooSmall(CollectivesError):
    """Fewer members are left than the group's `min_size`; `admit()` waits for joiners."""


class OutcomeUnknown(CollectivesError):
    """Nothing could be decided, or the coordinator lost what it had decided (``--recover``): other
    members may have the result, or may not."""


class CoordinatorLost(OutcomeUnknown):
    """A member was lost while the coordinator stayed away, so nothing could be decided."""


class Mismatch(CollectivesError):
    """Members called different operations where all must call the same; both are named."""


class TimedOut(CollectivesError, TimeoutError):
    """It took longer than the caller allowed."""


class Closed(CollectivesError):
    """The communicator is closed, or belongs to the parent of this forked process."""


class ProtocolError(CollectivesError):
    """What came in is not this library's protocol, or is of another version."""


class ConnectError(CollectivesError, ConnectionError):
    """Joining a group, or reaching a peer, failed."""


class CoordinatorUnreachable(ConnectError):
    """No coordinator answered at the given address."""


class Refused(ConnectError):
    """The coordinator answered, and does not let this peer in; the message says why."""


class SystemFailure(CollectivesError, OSError):
    """The operating system refused something: descriptors, ports, memory locks."""


# Names of cc_status without their prefix. OK and PENDING are no errors and not here.
_CLASSES: Mapping[str, type[Exception]] = {
    "PEER_LOST": PeerLost,
    "EVICTED": Evicted,
    "GROUP_TOO_SMALL": GroupTooSmall,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "COORDINATOR_LOST": CoordinatorLost,
    "MISMATCH": Mismatch,
    "TIMED_OUT": TimedOut,
    "CLOSED": Closed,
    "PROTOCOL": ProtocolError,
    "INVALID": ValueError,
    "UNSUPPORTED": NotImplementedError,
    "NO_MEMORY": MemoryError,
    "BUSY": CollectivesError,
    "REFUSED": ConnectError,
    "UNREACHABLE": ConnectError,
    "SYSTEM": SystemFailure,
}

_names: Mapping[int, str] | None = None


def _names_of_the_core() -> Mapping[int, str]:
    global _names
    if _names is None:
        from collectives._core import lib

        _names = {int(getattr(lib, f"CC_{name}")): name for name in _CLASSES}
    return _names


def from_status(
    status: int,
    message: str,
    *,
    names: Mapping[int, str] | None = None,
    peer: bytes | None = None,
    rank: int | None = None,
    operation: str | None = None,
) -> Exception:
    """Returns, and does not raise, the exception for a `cc_status` that tells of a failure.

    Args:
        status: the number, as the core returned it. A number that is not known (a newer core)
            becomes a plain `CollectivesError`.
        message: the text for people, from the core.
        names: status numbers to names without `CC_`; by default those of the loaded core.
        peer, rank, operation: what `PeerLost` carries; other errors do not keep them.
    """
    name = (_names_of_the_core() if names is None else names).get(status)
    cls = CollectivesError if name is None else _CLASSES[name]
    if name is None and not message:
        message = f"the core returned status {status}, which this version does not know"
    if cls is PeerLost:
        return PeerLost(message, peer=peer, rank=rank, operation=operation)
    return cls(message)
