"""A subgroup that not all of its members have asked for yet.

Its members agree on who they are before they ask, by an operation of the group they are in; so all
that is left to the coordinator is to wait until those of them that still live are there. They ask
again and again; who has stopped is not there any more.
"""

from __future__ import annotations

from collectives.coordinator.group import Group
from collectives.coordinator.standing import Standing
from collectives.messages import Subgroup


class Opening:
    def __init__(self, parent: Group, request: Subgroup) -> None:
        self.parent = parent
        self.key = request.key
        self.members = request.members
        self._asked: dict[bytes, float] = {}  # when each asked last

    def refuse(self, peer: bytes, request: Subgroup) -> str | None:
        """Why this request cannot be granted, or None."""
        if peer not in self.parent.present:
            return f"this peer is no member of group {self.parent.name!r}"
        if peer not in request.members:
            return "this peer is not among the members of the subgroup that it asks for"
        if request.members != self.members:
            return "its members asked for different subgroups by one key"
        return None

    def ask(self, peer: bytes, now: float) -> None:
        self._asked[peer] = now

    def expire(self, before: float) -> bool:
        """Forgets who asked last before that time; returns whether nobody is left."""
        present = self.parent.present
        asked = self._asked.items()
        self._asked = {peer: at for peer, at in asked if at >= before and peer in present}
        return not self._asked

    def ready(self) -> list[Standing]:
        """The members, in order, once all that live have asked; else nobody."""
        present = self.parent.present
        members = [present[peer] for peer in self.members if peer in present]
        return members if all(s.member.id in self._asked for s in members) else []
