"""What a program sees of a group's membership."""

from __future__ import annotations

from dataclasses import dataclass

from collectives import messages


@dataclass(frozen=True)
class Member:
    """A peer of the group: its rank, its random id, the name it gave, whether it is alive."""

    rank: int
    id: bytes
    name: str
    alive: bool = True

    @classmethod
    def of(cls, member: messages.Member, alive: bool) -> Member:
        return cls(member.rank, member.id, member.name, alive)


@dataclass(frozen=True)
class Change:
    """What a boundary did. `joined` and `left` are compared with the last boundary: who died in
    between has left."""

    epoch: int
    joined: tuple[Member, ...]
    left: tuple[Member, ...]

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)
