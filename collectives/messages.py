"""The control messages between peers and coordinator (docs/protocol.md, section 7).

Each message is a frozen dataclass. Its field types (`fields`) say everything that can be said about
a field by itself: the kind of value, its range, its length. The `codec` module makes the checks of
them, so that a field cannot be sent and not checked. On the wire a message is one msgpack map,
`type` and the fields by name; a record inside it is an array in field order.

`decode` takes bytes from anyone. It either returns a message that is valid in all its parts or
raises `ProtocolError`; it never allocates more than a small multiple of the bytes it was given.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import msgpack

from collectives.codec import Within, build, by_name, distinct, short, unpack
from collectives.errors import ProtocolError
from collectives.fields import (
    CALLS_MAX,
    EVIDENCE_MAX,
    ID_BYTES,
    LANES_MAX,
    MEMBERS_MAX,
    MESSAGE_BYTES_MAX,
    NO_PEER,
    U32,
    U64,
    WANT_JOIN,
    WANT_LEAVE,
    Address,
    Call,
    Cause,
    EpochNumber,
    Evidence,
    EvidenceKind,
    GroupName,
    GroupNumber,
    Id,
    LaneReport,
    Member,
    Name,
    Outcome,
    PeerId,
    Rank,
    Reason,
    SegmentBytes,
    Size,
    Streams,
    Term,
    Token,
    Version,
    Wants,
)

__all__ = [
    "ID_BYTES",
    "MEMBERS_MAX",
    "MESSAGE_BYTES_MAX",
    "NO_PEER",
    "PROTOCOL_VERSION",
    "WANT_JOIN",
    "WANT_LEAVE",
    "Bye",
    "Call",
    "Cause",
    "Claim",
    "Epoch",
    "Evicted",
    "Evidence",
    "EvidenceKind",
    "ForeignJoin",
    "Installed",
    "Join",
    "LaneReport",
    "Member",
    "Message",
    "Opened",
    "Outcome",
    "Pending",
    "Ping",
    "Pong",
    "Prepared",
    "Refused",
    "Report",
    "Seal",
    "Subgroup",
    "ToCoordinator",
    "ToPeer",
    "Unknown",
    "Welcome",
    "Word",
    "decode",
    "encode",
    "identity",
    "peer_of",
]

PROTOCOL_VERSION = 1

# ---- from a peer to the coordinator --------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """Let me into this group. Repeated until an epoch arrives; it also says that the joiner is
    there. `existing`: only if it has members."""

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
    existing: bool = False


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
        if self.cause in (Cause.FORMED, Cause.RECOVERED):
            raise ProtocolError("cause: why a group was formed is for the coordinator to say")


@dataclass(frozen=True)
class Installed:
    """I have installed this epoch; `ready`: and so has everybody else, as far as I can see."""

    TYPE: ClassVar[str] = "installed"
    group: GroupNumber
    epoch: EpochNumber
    ready: bool


@dataclass(frozen=True)
class Ping:
    """I am there; a member of this group, if it is not 0, and have heard this term."""

    TYPE: ClassVar[str] = "ping"
    group: U32 = 0
    term: Term = 0


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
class Claim:
    """You do not know this group: I am a member by this record, the last that I have installed.
    `term` is the greatest that I have heard, `join` what I once joined the first group with."""

    TYPE: ClassVar[str] = "claim"
    term: Term
    token: Token
    is_subgroup: bool
    join: Join
    record: Epoch

    def check(self) -> None:
        if all(member.id != self.join.id for member in self.record.members):
            raise ProtocolError("record: who claims to be a member is none by it")
        numbers = [self.record.group, *(member.serial for member in self.record.members)]
        if max(numbers) >= 1 << 31 or self.record.epoch >= 1 << 63:
            raise ProtocolError("record: numbers so great that none may be left")


@dataclass(frozen=True)
class Bye:
    """I close this group, or 0: I am in no group any more."""

    TYPE: ClassVar[str] = "bye"
    group: U32 = 0


# ---- from the coordinator to a peer --------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """What a peer acts by carries the coordinator's term, which rises with each of its starts: a
    member ignores a lower one than it has heard. What is said is the same in any term."""

    term: Term = field(default=0, kw_only=True, compare=False)


@dataclass(frozen=True)
class Welcome(Word):
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
class Pending(Word):
    """So many joiners are ready to be admitted."""

    TYPE: ClassVar[str] = "pending"
    group: GroupNumber
    joiners: U32


@dataclass(frozen=True)
class Epoch(Word):
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
class Opened(Word):
    """The subgroup of this key has this number, and its first EPOCH follows; or 0: it cannot be."""

    TYPE: ClassVar[str] = "opened"
    key: Id
    group: U32
    reason: Reason = ""


@dataclass(frozen=True)
class Seal(Word):
    """This epoch is being closed: report on it, even without evidence of your own."""

    TYPE: ClassVar[str] = "seal"
    group: GroupNumber
    epoch: EpochNumber


@dataclass(frozen=True)
class Evicted(Word):
    """You are not a member any more since `epoch`; `left`: because you asked to leave."""

    TYPE: ClassVar[str] = "evicted"
    group: GroupNumber
    epoch: U64
    left: bool
    reason: Reason


@dataclass(frozen=True)
class Pong(Word):
    """I am there too."""

    TYPE: ClassVar[str] = "pong"


@dataclass(frozen=True)
class Unknown:
    """You are no member of this group as far as I know, and I evict nobody whom I do not know.
    `recover`: say CLAIM for all your groups, so that I do."""

    TYPE: ClassVar[str] = "unknown"
    group: GroupNumber
    recover: bool
    reason: Reason


ToCoordinator = Join | ForeignJoin | Prepared | Report | Installed | Subgroup | Ping | Claim | Bye
ToPeer = Welcome | Refused | Pending | Epoch | Opened | Seal | Evicted | Pong | Unknown
Message = ToCoordinator | ToPeer

_TYPES: dict[str, type] = {
    cls.TYPE: cls
    for cls in (
        *(Join, Prepared, Report, Installed, Subgroup, Ping, Claim, Bye),
        *(Welcome, Refused, Pending, Epoch, Opened, Seal, Evicted, Pong, Unknown),
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
    try:
        plain = {"type": cls.TYPE, **by_name(message)}
    except ProtocolError as error:
        raise ValueError(f"a {cls.TYPE} message cannot be sent: {error}") from None
    return bytes(msgpack.packb(plain))


def decode(data: bytes) -> Message:
    """The message in these bytes. Raises ProtocolError, saying what is wrong, if they are not
    exactly one valid message. A JOIN of another version comes back as `ForeignJoin`."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is longer than any may be")
    plain = unpack(data, MEMBERS_MAX)
    if type(plain) is not dict:
        raise ProtocolError("not a map")
    kind = plain.pop("type", None)
    if type(kind) is not str or kind not in _TYPES:
        raise ProtocolError(f"unknown type {short(kind)}")
    version = plain.get("version")
    if kind == Join.TYPE and type(version) is int and version != PROTOCOL_VERSION:
        return typing.cast(Message, build(ForeignJoin, {"version": version}))
    return typing.cast(Message, build(_TYPES[kind], plain))
