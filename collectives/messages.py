"""The control messages between peers and coordinator (docs/protocol.md, section 7).

Each message is a frozen dataclass. Its field types say everything that can be said about a field by
itself: the kind of value, its range, its length. The `codec` module makes the checks of them, so
that a field cannot be sent and not checked. On the wire a message
is one msgpack map, `type` and the fields by name; a record inside it is an array in field order.

`decode` takes bytes from anyone. It either returns a message that is valid in all its parts or
raises `ProtocolError`; it never allocates more than a small multiple of the bytes it was given.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgpack

from collectives import config
from collectives.codec import Where, Within, build, distinct, short, to_plain
from collectives.errors import ProtocolError

PROTOCOL_VERSION = 1
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


# ---- from a peer to the coordinator --------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """Let me into this group. Repeated until an epoch arrives; it also says that the joiner is
    there."""

    TYPE: ClassVar[str] = "join"
    version: Version
    id: PeerId
    group: GroupName
    name: Name
    rank: Rank | None
    size: Size
    min_size: Size
    address: Address
    host: U64
    streams: Streams
    segment_bytes: SegmentBytes


@dataclass(frozen=True)
class ForeignJoin:
    """What can be read of a JOIN of another protocol version: enough to refuse it. Never sent."""

    TYPE: ClassVar[str] = ""
    version: Version


@dataclass(frozen=True)
class Prepared:
    """The rehearsal of this round is over; `peer` could not be reached if not `ok` (zero if nobody
    in particular is at fault). If `ok`, what the slowest link costs: see cc_network."""

    TYPE: ClassVar[str] = "prepared"
    group: GroupNumber
    round: U64
    ok: bool
    peer: Id
    reason: Reason
    latency_ns: U64 = 0
    bytes_per_s: U64 = 0


@dataclass(frozen=True)
class Report:
    """What I froze when I sealed this epoch: see cc_report; or what the member `of` did, whose own
    agent may be late."""

    TYPE: ClassVar[str] = "report"
    group: GroupNumber
    epoch: EpochNumber
    cause: Cause
    boundary: U64
    wants: Wants
    lanes: Annotated[tuple[LaneReport, ...], Within(0, LANES_MAX)]
    evidence: Annotated[tuple[Evidence, ...], Within(0, EVIDENCE_MAX)]
    detail: Reason = ""
    calls: Annotated[tuple[Call, ...], Within(0, CALLS_MAX)] = ()
    of: Id = NO_PEER

    def check(self) -> None:
        distinct("lanes", [lane.lane for lane in self.lanes])
        distinct("calls", [(call.lane, call.sequence) for call in self.calls])
        if self.cause is Cause.FORMED:
            raise ProtocolError("cause: a report cannot say that a group was formed")


@dataclass(frozen=True)
class Installed:
    """I have installed this epoch; `ready`: and so has everybody else, as far as I can see."""

    TYPE: ClassVar[str] = "installed"
    group: GroupNumber
    epoch: EpochNumber
    ready: bool


@dataclass(frozen=True)
class Ping:
    """I am there."""

    TYPE: ClassVar[str] = "ping"


@dataclass(frozen=True)
class Subgroup:
    """Let these members of a group, who all ask for it by the same key, form one of their own; rank
    r is the r-th of those that are left. Repeated until OPENED arrives."""

    TYPE: ClassVar[str] = "subgroup"
    parent: GroupNumber
    key: Id
    members: Annotated[tuple[PeerId, ...], Within(1, MEMBERS_MAX)]

    def check(self) -> None:
        distinct("members", list(self.members))


@dataclass(frozen=True)
class Bye:
    """I close this group, or 0: I am in no group any more."""

    TYPE: ClassVar[str] = "bye"
    group: U32 = 0


# ---- from the coordinator to a peer --------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """You wait for this group. `members` are to be prepared for: those of the present epoch, or, if
    `epoch` is 0 or the group forms anew, those who will form it; there are none while fewer than
    `size` wait. `round` rises with every change of `members`."""

    TYPE: ClassVar[str] = "welcome"
    group: GroupNumber
    serial: U32
    token: Token
    epoch: U64
    round: U64
    waiting: U32
    members: Annotated[tuple[Member, ...], Within(0, MEMBERS_MAX)]

    def check(self) -> None:
        distinct("members", [member.id for member in self.members])


@dataclass(frozen=True)
class Refused:
    """You cannot join. Its layout never changes, so that other versions can read it."""

    TYPE: ClassVar[str] = "refused"
    reason: Reason


@dataclass(frozen=True)
class Pending:
    """So many joiners are ready to be admitted."""

    TYPE: ClassVar[str] = "pending"
    group: GroupNumber
    joiners: U32


@dataclass(frozen=True)
class Epoch:
    """An epoch, and what became of the operations of the one before: see cc_epoch."""

    TYPE: ClassVar[str] = "epoch"
    group: GroupNumber
    epoch: EpochNumber
    cause: Cause
    world: Size
    min_size: Size
    lost: Id
    lost_rank: U32
    members: Annotated[tuple[Member, ...], Within(1, MEMBERS_MAX)]
    lanes: Annotated[tuple[Outcome, ...], Within(0, LANES_MAX)]
    detail: Reason = ""
    latency_ns: U64 = 0
    bytes_per_s: U64 = 0

    def check(self) -> None:
        ranks = [member.rank for member in self.members]
        if ranks != sorted(set(ranks)) or ranks[-1] >= self.world:
            raise ProtocolError("members: ranks must rise and be below world")
        distinct("members", [member.id for member in self.members])
        distinct("members", [member.serial for member in self.members])
        distinct("lanes", [lane.lane for lane in self.lanes])
        if any(not lane.committed <= lane.failed <= lane.posted for lane in self.lanes):
            raise ProtocolError("lanes: committed, failed and posted must not fall in this order")


@dataclass(frozen=True)
class Opened:
    """The subgroup of this key has this number, and its first EPOCH follows; or 0: it cannot be."""

    TYPE: ClassVar[str] = "opened"
    key: Id
    group: U32
    reason: Reason = ""


@dataclass(frozen=True)
class Seal:
    """This epoch is being closed: report on it, even without evidence of your own."""

    TYPE: ClassVar[str] = "seal"
    group: GroupNumber
    epoch: EpochNumber


@dataclass(frozen=True)
class Evicted:
    """You are not a member any more since `epoch`; `left`: because you asked to leave."""

    TYPE: ClassVar[str] = "evicted"
    group: GroupNumber
    epoch: U64
    left: bool
    reason: Reason


@dataclass(frozen=True)
class Pong:
    """I am there too."""

    TYPE: ClassVar[str] = "pong"


ToCoordinator = Join | ForeignJoin | Prepared | Report | Installed | Subgroup | Ping | Bye
ToPeer = Welcome | Refused | Pending | Epoch | Opened | Seal | Evicted | Pong
Message = ToCoordinator | ToPeer

_TYPES: dict[str, type] = {
    cls.TYPE: cls
    for cls in (
        *(Join, Prepared, Report, Installed, Subgroup, Ping, Bye),
        *(Welcome, Refused, Pending, Epoch, Opened, Seal, Evicted, Pong),
    )
}


def identity(peer: bytes) -> bytes:
    """What a peer's connection to the coordinator is called in ZeroMQ, where a name must not start
    with a zero byte."""
    return b"P" + peer


def peer_of(name: bytes) -> bytes | None:
    """The peer of that connection, or None if it is no peer's."""
    return name[1:] if len(name) == 1 + ID_BYTES and name.startswith(b"P") else None


# ---- the codec -----------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises ValueError if a field is not what its type allows."""
    cls = type(message)
    if _TYPES.get(cls.TYPE) is not cls:
        raise ValueError(f"{cls.__name__} is never sent")
    plain: dict[str, Any] = {"type": cls.TYPE}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        plain[field.name] = [to_plain(v) for v in value] if type(value) is tuple else value
    try:
        build(cls, {name: value for name, value in plain.items() if name != "type"})
    except ProtocolError as error:
        raise ValueError(f"a {cls.TYPE} message cannot be sent: {error}") from None
    return bytes(msgpack.packb(plain))


def decode(data: bytes) -> Message:
    """The message in these bytes. Raises ProtocolError, saying what is wrong, if they are not
    exactly one valid message. A JOIN of another version comes back as `ForeignJoin`."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is longer than any may be")
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            object_pairs_hook=_map,
            # The unpacker allocates what an array's header claims, at every level of nesting.
            max_array_len=MEMBERS_MAX,
            max_map_len=64,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {error}") from None
    if type(plain) is not dict:
        raise ProtocolError("not a map")
    kind = plain.pop("type", None)
    if type(kind) is not str or kind not in _TYPES:
        raise ProtocolError(f"unknown type {short(kind)}")
    version = plain.get("version")
    if kind == Join.TYPE and type(version) is int and version != PROTOCOL_VERSION:
        return typing.cast(Message, build(ForeignJoin, {"version": version}))
    return typing.cast(Message, build(_TYPES[kind], plain))


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("a field appears twice")
    return found
