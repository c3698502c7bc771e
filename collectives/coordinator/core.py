"""The coordinator's decisions, as a machine without socket, clock or chance of its own.

`step` takes what happened and when, and returns what to send; `deadline` tells when time itself is
the next thing to happen. So the server is a loop of a few lines, and a test can play any order of
messages, losses and delays. What belongs to one group is in `group`; here is what they share: who
speaks, to which group, in which version.

A machine that was given a journal's facts with `restore` leaves facts itself with every step: take
them with `take_facts`, and write them down before anything of that step is sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from collectives.config import LAN, Timeouts
from collectives.coordinator.facts import Counted, Dropped, Fact, Made, Term
from collectives.coordinator.group import Group
from collectives.coordinator.opening import Opening
from collectives.coordinator.standing import NEVER, Standing
from collectives.messages import (
    PROTOCOL_VERSION,
    Bye,
    Evicted,
    ForeignJoin,
    Installed,
    Join,
    Message,
    Opened,
    Ping,
    Pong,
    Prepared,
    Refused,
    Report,
    Subgroup,
    ToPeer,
    Word,
)

GROUPS_MAX = 1024
SERIALS = 1024  # how many are counted as given out at a time
_TOO_MANY = f"the coordinator has {GROUPS_MAX} groups and takes no more"


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
        self._names: dict[str, Group] = {}  # those that can be joined
        self._groups: dict[int, Group] = {}  # by number, subgroups too
        self._openings: dict[bytes, Opening] = {}
        self._subgroups: dict[bytes, Group] = {}
        self._term = 0  # without a journal
        self._serial = self._serials = 0  # the last one given out, and written down as such
        self._next_number = 1
        self._out: list[Send] = []
        self._facts: list[Fact] = []
        self._said: ToPeer | None = None  # last, without a term,
        self._word: ToPeer | None = None  # and with it

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
        self._spread_losses(now)
        self._tend_subgroups(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> float:
        """When a Tick is wanted at the latest; infinity if nothing is under way."""
        return min((group.deadline() for group in self._groups.values()), default=NEVER)

    def _send(self, peer: bytes, message: ToPeer) -> None:
        if message is not self._said:  # one record goes to many
            self._said = self._word = message
            if isinstance(message, Word):
                self._word = replace(message, term=self._term)
        assert self._word is not None
        self._out.append(Send(peer, self._word))

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
        elif isinstance(message, Subgroup):
            self._ask_subgroup(peer, message, now)
        elif isinstance(message, Bye):
            for group in self._groups.values():
                if message.group in (0, group.number):
                    group.bye(peer, now)
        # Whatever else decodes is what a coordinator says: not for us, and harmless.

    def _about_a_group(
        self, peer: bytes, message: Prepared | Report | Installed, now: float
    ) -> None:
        group = self._groups.get(message.group)
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
            group = self._names.get(join.group) or self._open(join.group)
            if group is not None:
                group.join(join, self._next_serial, now)
                return
            reason = _TOO_MANY
        self._send(peer, Refused(reason))

    def _next_serial(self) -> int:
        self._serial += 1
        if self._serial > self._serials:
            self._serials = self._serial + SERIALS
            self._note(Counted(self._serials, self._next_number - 1))
        return self._serial

    def _open(self, name: str) -> Group | None:
        token = self._random.getrandbits(128).to_bytes(16, "big")
        return self._make(Made(self._next_number, name, token, None, None))

    def _make(self, made: Made) -> Group | None:
        """A new group. With too many of them, one that nobody is in makes room."""
        if len(self._groups) >= GROUPS_MAX:
            idle = next((group for group in self._groups.values() if group.idle), None)
            if idle is None:
                return None
            self._drop(idle)
        self._note(made)
        return self._add(made)

    def _add(self, made: Made) -> Group:
        first_round = self._term << 32
        group = Group(made, self._timeouts, self._send, self._note, first_round)
        self._next_number = max(self._next_number, made.group + 1)
        self._groups[group.number] = group
        if made.root is None:
            self._names[group.name] = group
        elif made.key is not None:
            self._subgroups[made.key] = group
        return group

    def _drop(self, group: Group) -> None:
        self._note(Dropped(group.number))
        self._remove(group)

    def _remove(self, group: Group) -> None:
        self._groups.pop(group.number, None)
        if self._names.get(group.name) is group:
            del self._names[group.name]
        if group.made.key is not None:
            self._subgroups.pop(group.made.key, None)

    # ---- what outlives it ------------------------------------------------------------------------

    def restore(self, facts: Iterable[Fact], now: float) -> None:
        """Takes up where the coordinator stopped that left these facts, in the next term: to be
        called before the first step, if at all. From now on facts are to be written down, and
        those of the restart itself are there at once."""
        for fact in facts:
            self._replay(fact)
        self._term += 1
        self._note(Term(self._term))
        for group in self._groups.values():
            group.resume(self._term << 32, now)

    def take_facts(self) -> list[Fact]:
        """What the steps since the last call made: all of them are to be written down before
        anything of these steps is sent."""
        facts, self._facts = self._facts, []
        return facts

    def snapshot(self) -> list[Fact]:
        """The facts that make the present state."""
        counted = Counted(self._serials, self._next_number - 1)
        groups = (fact for group in self._groups.values() for fact in group.snapshot())
        return [Term(self._term), counted, *groups]

    def _note(self, fact: Fact) -> None:
        if self._term:
            self._facts.append(fact)

    def _replay(self, fact: Fact) -> None:
        if isinstance(fact, Term):
            self._term = fact.term
        elif isinstance(fact, Counted):
            self._serial = self._serials = fact.serials
            self._next_number = max(self._next_number, fact.groups + 1)
        elif isinstance(fact, Made):
            self._add(fact)
        elif isinstance(fact, Dropped):
            self._remove(self._groups[fact.group])
        else:
            self._groups[fact.group].replay(fact)

    # ---- subgroups -------------------------------------------------------------------------------

    def _ask_subgroup(self, peer: bytes, request: Subgroup, now: float) -> None:
        formed = self._subgroups.get(request.key)
        if formed is not None:
            if peer in formed.present:
                answer = Opened(request.key, formed.number)
            else:
                answer = Opened(request.key, 0, "the subgroup was formed without this peer")
            self._send(peer, answer)
            return
        parent = self._groups.get(request.parent)
        if parent is None:
            self._send(peer, Opened(request.key, 0, f"there is no group number {request.parent}"))
            return
        opening = self._openings.get(request.key) or Opening(parent, request)
        reason = opening.refuse(peer, request)
        if reason is not None:
            self._send(peer, Opened(request.key, 0, reason))
            return
        self._openings[request.key] = opening
        opening.ask(peer, now)

    def _tend_subgroups(self, now: float) -> None:
        """Forms those whose members are all there; forgets those that are over."""
        for opening in list(self._openings.values()):
            over = opening.expire(now - self._timeouts.joiner_lost)
            members = [] if over else opening.ready()
            if members:
                self._form_subgroup(opening, members, now)
            if members or over:
                del self._openings[opening.key]
        for group in list(self._subgroups.values()):
            if group.idle:
                self._drop(group)

    def _form_subgroup(self, opening: Opening, members: list[Standing], now: float) -> None:
        parent = opening.parent
        number = self._next_number
        name = f"{parent.root}/{number}"
        group = self._make(Made(number, name, parent.token, parent.root, opening.key))
        for standing in members:
            answer = (number, "") if group else (0, _TOO_MANY)
            self._send(standing.member.id, Opened(opening.key, *answer))
        if group is not None:
            group.form_of(members, now)

    def _spread_losses(self, now: float) -> None:
        """Who is evicted from one group is a member of none."""
        losses = [loss for group in self._groups.values() for loss in group.roll.take_losses()]
        while losses:
            for peer, reason in losses:
                for group in self._groups.values():
                    group.lose(peer, reason, now)
            losses = [loss for group in self._groups.values() for loss in group.roll.take_losses()]
