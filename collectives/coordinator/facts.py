"""What of the coordinator's state outlives it: facts, in the order in which they came to be.

A step of the machine leaves the facts that it made; they are on the disk before anything that
follows from them is said to anybody. All facts, replayed in order, are the state again. What peers
repeat by themselves is none: reports, joiners, what was acknowledged.

A fact is a frozen dataclass, checked field by field like a message, by the same codec. On the disk
the facts of a step are one msgpack array of maps, `type` and the fields by name.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack

from collectives.codec import Within, build, by_name, unpack
from collectives.errors import ProtocolError
from collectives.fields import (
    MEMBERS_MAX,
    NAME_CHARS_MAX,
    U32,
    U64,
    GroupNumber,
    Id,
    PeerId,
    Token,
)
from collectives.fields import (
    Term as TermNumber,
)
from collectives.messages import Epoch, Evicted, Join

_ARRAY_MAX = 1 << 20
_Name = Annotated[str, Within(1, NAME_CHARS_MAX + 11)]  # a subgroup's: its root's and a number
_Network = Annotated[tuple[U64, U64], Within(2, 2)]


@dataclass(frozen=True)
class Term:
    """From now on the coordinator speaks in this term."""

    term: TermNumber


@dataclass(frozen=True)
class Counted:
    """Serials and group numbers up to these may have been given out."""

    serials: U32
    groups: U32


@dataclass(frozen=True)
class Made:
    """There is a group of this number; `root` and `key` are those of a subgroup."""

    group: GroupNumber
    name: _Name
    token: Token
    root: _Name | None
    key: Id | None


@dataclass(frozen=True)
class Dropped:
    """There is no such group any more."""

    group: GroupNumber


@dataclass(frozen=True)
class Fixed:
    """This JOIN fixed the group's settings."""

    group: GroupNumber
    join: Join


@dataclass(frozen=True)
class Published:
    """A group's next record, and what its members' links cost, in their order."""

    record: Epoch
    networks: Annotated[tuple[_Network, ...], Within(1, MEMBERS_MAX)]

    @property
    def group(self) -> int:
        return self.record.group

    def check(self) -> None:
        if len(self.networks) != len(self.record.members):
            raise ProtocolError("networks: not one for each member")


@dataclass(frozen=True)
class Struck:
    """A peer is a member no more: what it is told, or, if it said so itself, would be."""

    peer: PeerId
    evicted: Evicted

    @property
    def group(self) -> int:
        return self.evicted.group


@dataclass(frozen=True)
class Cleared:
    """A group has no members any more; its numbers go on."""

    group: GroupNumber


Fact = Term | Counted | Made | Dropped | Fixed | Published | Struck | Cleared

_TYPES: dict[str, type] = {cls.__name__.lower(): cls for cls in typing.get_args(Fact)}


def encode(facts: Iterable[Fact]) -> bytes:
    """The bytes of facts. Raises ProtocolError if a field is not what its type allows."""
    plain = [{"type": type(fact).__name__.lower(), **by_name(fact)} for fact in facts]
    return bytes(msgpack.packb(plain))


def decode(data: bytes) -> list[Fact]:
    """The facts in these bytes. Raises ProtocolError if they are not exactly that."""
    plain = unpack(data, _ARRAY_MAX)
    if type(plain) is not list:
        raise ProtocolError("not an array of facts")
    return [_fact(item) for item in plain]


def _fact(plain: Any) -> Fact:
    kind = plain.pop("type", None) if type(plain) is dict else None
    if type(kind) is not str or kind not in _TYPES:
        raise ProtocolError("a fact of an unknown type")
    return typing.cast(Fact, build(_TYPES[kind], plain))
