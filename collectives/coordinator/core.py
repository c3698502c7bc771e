"""The coordinator's decisions, as a machine without socket, clock or chance of its own.

`step` takes what happened and when, and returns what to send; `deadline` tells when time itself is
the next thing to happen. So the server is a loop of a few lines, and a test can play any order of
messages, losses and delays. What belongs to one group is in `group`; here is what they share: who
speaks, to which group, in which version.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from collectives.config import LAN, Timeouts
from collectives.coordinator.group import Group
from collectives.coordinator.standing import NEVER
from collectives.messages import (
    PROTOCOL_VERSION,
    Bye,
    Evicted,
    ForeignJoin,
    Installed,
    Join,
    Message,
    Ping,
    Pong,
    Prepared,
    Refused,
    Report,
    ToPeer,
)

GROUPS_MAX = 1024


@dataclass(frozen=True)
class Received:
    """A message came from the peer of this id."""

    peer: bytes
    message: Message


@dataclass(frozen=True)
class Tick:
    """Nothing came; time went by."""


@dataclass(frozen=True)
class Send:
    """Send this to that peer. It may get lost: whatever matters is repeated."""

    peer: bytes
    message: ToPeer


class Core:
    """All groups of one coordinator.

    Args:
        seed_random: where tokens come from. `random.SystemRandom()` outside of tests.
        timeouts: `dead`, `settle` and `joiner_lost` are used.
    """

    def __init__(self, seed_random: random.Random, timeouts: Timeouts = LAN) -> None:
        self._random = seed_random
        self._timeouts = timeouts
        self._groups: dict[str, Group] = {}
        self._numbers: dict[int, Group] = {}
        self._serial = 0
        self._next_number = 1
        self._out: list[Send] = []

    @property
    def groups(self) -> tuple[Group, ...]:
        """For inspection; not to be changed."""
        return tuple(self._groups.values())

    def step(self, event: Received | Tick, now: float) -> list[Send]:
        """Takes one event and returns what is to be sent, in order. `now` never decreases."""
        if isinstance(event, Received):
            self._receive(event.peer, event.message, now)
        else:
            for group in self._groups.values():
                if now >= group.deadline():
                    group.tick(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> float:
        """When a Tick is wanted at the latest; infinity if nothing is under way."""
        return min((group.deadline() for group in self._groups.values()), default=NEVER)

    def _send(self, peer: bytes, message: ToPeer) -> None:
        self._out.append(Send(peer, message))

    def _receive(self, peer: bytes, message: Message, now: float) -> None:
        for group in self._groups.values():
            group.heard(peer, now)
        if isinstance(message, (Join, ForeignJoin)):
            self._join(peer, message, now)
        elif isinstance(message, (Prepared, Report, Installed)):
            self._about_a_group(peer, message, now)
        elif isinstance(message, Ping):
            self._send(peer, Pong())
            for group in self._groups.values():
                group.ping(peer)
        elif isinstance(message, Bye):
            for group in self._groups.values():
                group.bye(peer, now)
        # Whatever else decodes is what a coordinator says: not for us, and harmless.

    def _about_a_group(
        self, peer: bytes, message: Prepared | Report | Installed, now: float
    ) -> None:
        group = self._numbers.get(message.group)
        if group is None:
            if isinstance(message, Report):
                reason = (
                    f"this coordinator does not know group number {message.group}; it was "
                    "restarted, or its groups are others: connect again"
                )
                self._send(peer, Evicted(message.group, 0, False, reason))
        elif isinstance(message, Prepared):
            group.prepared(peer, message, now)
        elif isinstance(message, Report):
            group.report(peer, message, now)
        else:
            group.installed(peer, message)

    def _join(self, peer: bytes, join: Join | ForeignJoin, now: float) -> None:
        if isinstance(join, ForeignJoin):
            reason = (
                f"this peer speaks protocol version {join.version}, the coordinator version "
                f"{PROTOCOL_VERSION}; install the same version of collectives on both"
            )
        elif join.id != peer:
            reason = "the message names another peer than the connection it came by"
        else:
            group = self._groups.get(join.group) or self._open(join.group)
            if group is not None:
                group.join(join, self._next_serial, now)
                return
            reason = f"the coordinator has {GROUPS_MAX} groups and takes no more"
        self._send(peer, Refused(reason))

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _open(self, name: str) -> Group | None:
        """A new group. With too many of them, one that nobody is in makes room."""
        if len(self._groups) >= GROUPS_MAX:
            idle = next((group for group in self._groups.values() if group.idle), None)
            if idle is None:
                return None
            del self._groups[idle.name], self._numbers[idle.number]
        token = self._random.getrandbits(128).to_bytes(16, "big")
        group = Group(name, self._next_number, token, self._timeouts, self._send)
        self._next_number += 1
        self._groups[name] = self._numbers[group.number] = group
        return group
