"""Collective communication for groups of processes that fail, come and go.

    import collectives as cc

    comm = cc.connect("cc://host:29400", group="train", size=4)
    total = comm.all_reduce(gradient)

See `connect` and `Communicator`. Errors are subclasses of `CollectivesError`.
"""

from __future__ import annotations

from collectives.communicator import Communicator
from collectives.config import LAN, WAN, Timeouts
from collectives.errors import (
    Closed,
    CollectivesError,
    ConnectError,
    CoordinatorLost,
    CoordinatorUnreachable,
    Evicted,
    GroupTooSmall,
    Mismatch,
    OutcomeUnknown,
    PeerLost,
    ProtocolError,
    Refused,
    SystemFailure,
    TimedOut,
)
from collectives.joining import connect
from collectives.membership import Change, Member
from collectives.operations import Premul, premul
from collectives.work import Info, Work

__version__ = "0.1.0"

__all__ = [
    "LAN",
    "WAN",
    "Change",
    "Closed",
    "CollectivesError",
    "Communicator",
    "ConnectError",
    "CoordinatorLost",
    "CoordinatorUnreachable",
    "Evicted",
    "GroupTooSmall",
    "Info",
    "Member",
    "Mismatch",
    "OutcomeUnknown",
    "PeerLost",
    "Premul",
    "ProtocolError",
    "Refused",
    "SystemFailure",
    "TimedOut",
    "Timeouts",
    "Work",
    "connect",
    "premul",
]
