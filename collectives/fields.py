"""What may stand in a message: numbers and texts with their bounds, and the records that messages
are made of.

A field's type says everything that can be said about it by itself; `codec` makes the check of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

from collectives import config
from collectives.codec import Where, Within

ID_BYTES = 16
NO_PEER = bytes(ID_BYTES)
MEMBERS_MAX = 1024
LANES_MAX = 16
EVIDENCE_MAX = 64
CALLS_MAX = 1024
NAME_CHARS_MAX = 128
REASON_CHARS_MAX = 1024
ADDRESS_CHARS_MAX = 262
MESSAGE_BYTES_MAX = 1 << 20


class Cause(enum.IntEnum):
    """Why an epoch was sealed, or formed; the numbers are those of cc_cause."""

    FORMED = 1
    BOUNDARY = 2
    LOST = 3
    LINK = 4
    DEADLINE = 5
    MISMATCH = 6
    RECOVERED = 7


class EvidenceKind(enum.IntEnum):
    """What speaks against a peer; the numbers are those of cc_evidence_kind."""

    CLOSED = 1
    REFUSED = 2
    SILENT = 3
    GOODBYE = 4
    PROTOCOL = 5


WANT_JOIN = 1
WANT_LEAVE = 2


# ---- what a field may be ------------------------------------------------------------------------


def _is_address(value: str) -> bool:
    try:
        return config.parse_address(value)[1] > 0
    except ValueError:
        return False


_PRINTABLE = Where("printable", str.isprintable)

U32 = Annotated[int, Within(0, 2**32 - 1)]
U64 = Annotated[int, Within(0, 2**64 - 1)]
Version = Annotated[int, Within(0, 2**32 - 1)]
GroupNumber = Annotated[int, Within(1, 2**32 - 1)]
EpochNumber = Annotated[int, Within(1, 2**64 - 1)]
Lane = Annotated[int, Within(0, LANES_MAX - 1)]
Rank = Annotated[int, Within(0, MEMBERS_MAX - 1)]
Size = Annotated[int, Within(1, MEMBERS_MAX)]
Wants = Annotated[int, Within(0, WANT_JOIN | WANT_LEAVE)]
Id = Annotated[bytes, Within(ID_BYTES, ID_BYTES)]
PeerId = Annotated[Id, Where("not zero", any)]
Token = Annotated[bytes, Within(16, 16)]
Name = Annotated[str, Within(0, NAME_CHARS_MAX), _PRINTABLE]
GroupName = Annotated[str, Within(1, NAME_CHARS_MAX), _PRINTABLE]
Reason = Annotated[str, Within(0, REASON_CHARS_MAX)]
Address = Annotated[str, Within(3, ADDRESS_CHARS_MAX), Where("host:port", _is_address)]
Term = Annotated[int, Within(0, 2**32 - 1)]
Streams = Annotated[int, Within(1, 16)]
SegmentBytes = Annotated[int, Within(64, 1 << 20), Where("a multiple of 64", lambda n: n % 64 == 0)]


# ---- records inside messages ---------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One member of an epoch."""

    id: PeerId
    rank: Rank
    serial: U32
    host: U64
    address: Address
    name: Name


@dataclass(frozen=True)
class Outcome:
    """What became of a lane's operations: see cc_outcome."""

    lane: Lane
    committed: U64
    failed: U64
    posted: U64


@dataclass(frozen=True)
class LaneReport:
    """A lane's frozen watermarks: see cc_lane_report."""

    lane: Lane
    committed: U64
    done: U64
    posted: U64


@dataclass(frozen=True)
class Call:
    """An open operation of the sealed epoch; `what` is a hash of kind, dtype, count and so on."""

    lane: Lane
    sequence: U64
    what: U64


@dataclass(frozen=True)
class Evidence:
    """Something that speaks against a peer."""

    peer: PeerId
    kind: EvidenceKind
