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
    NO_PEER,
    PROTOCOL_VERSION,
    Bye,
    Claim,
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
    Unknown,
    Word,
)

GROUPS_MAX = 1024
SERIALS = 1024  # how many are counted as given out at a time
GROUPS_SKIPPED = 1 << 16  # numbers that a coordinator without journal leaves to groups made before
TERM_MAX = 2**32 - 1
_WRONG_JOURNAL = (
    "it was started with another journal than the one of this run, or with none. Start it with "
    "that one; if it is lost, without it and with --recover"
)
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
        recover: groups that are not known are taken over as their members tell of them.
        run: names the run, for people.
    """

    def __init__(
        self,
        seed_random: random.Random,
        timeouts: Timeouts = LAN,
        *,
        recover: bool = False,
        run: str = "without a journal",
    ) -> None:
        self._random = seed_random
        self._timeouts = timeouts
        self._names: dict[str, Group] = {}  # those that can be joined
        self._groups: dict[int, Group] = {}  # by number, subgroups too
        self._openings: dict[bytes, Opening] = {}
        self._subgroups: dict[bytes, Group] = {}
        self._recover = recover
        self._run = run
        self._started: float | None = None  # when the first event came
        self._has_journal = False
        self._term = 0
        self._serial = self._serials = 0  # the last one given out, and written down as such
        self._next_number = GROUPS_SKIPPED if recover else 1
        self._out: list[Send] = []
        self._facts: list[Fact] = []
        self._said: ToPeer | None = None  # last, without a term,
        self._word: ToPeer | None = None  # and with it

    @property
    def is_recovering(self) -> bool:
        """Whether there is state that is not to be written down yet, not in a `snapshot` either."""
        return any(group.recovering for group in self._groups.values())

    @property
    def term(self) -> int:
        return self._term

    @property
    def groups(self) -> tuple[Group, ...]:
        """For inspection; not to be changed."""
        return tuple(self._groups.values())

    def step(self, event: Received | Tick, now: float) -> list[Send]:
        """Takes one event and returns what is to be sent, in order. `now` never decreases."""
        if self._started is None:
            self._started = now
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
            self._ping(peer, message)
        elif isinstance(message, Subgroup):
            self._ask_subgroup(peer, message, now)
        elif isinstance(message, Claim):
            self._claim(peer, message, now)
        elif isinstance(message, Bye):
            for group in self._groups.values():
                if message.group in (0, group.number):
                    group.bye(peer, now)
        # Whatever else decodes is what a coordinator says: not for us, and harmless.

    def _about_a_group(
        self, peer: bytes, message: Prepared | Report | Installed, now: float
    ) -> None:
        group = self._groups.get(message.group)
        if isinstance(message, Report):
            if group is None or not group.knows(peer):
                self._stranger(peer, message.group)
            elif message.epoch > group.roll.epoch and message.of in (NO_PEER, peer):
                self._stranger(peer, message.group, f"it knows no epoch {message.epoch} of it")
            else:
                group.report(peer, message, now)
        elif group is None:
            return
        elif isinstance(message, Prepared):
            group.prepared(peer, message, now)
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
            group = self._names.get(join.group)
            if group is None and self._waits_for_claims(now):
                return  # it may be one of those that others will tell of
            group = group or self._open(join.group)
            if group is not None:
                group.join(join, self._next_serial, now)
                return
            reason = _TOO_MANY
        self._send(peer, Refused(reason))

    def _next_serial(self) -> int:
        self._count_serials(self._serial + 1)
        return self._serial

    def _count_serials(self, used: int) -> None:
        """Serials up to this are in use; that is written down for many at a time."""
        self._serial = max(self._serial, used)
        if self._serial > self._serials:
            self._serials = self._serial + SERIALS
            self._note(Counted(self._serials, self._next_number - 1))

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

    def _remove(self, group: Group | None) -> None:
        if group is None:
            return  # one that was not recovered before all its members were lost
        self._groups.pop(group.number, None)
        if self._names.get(group.name) is group:
            del self._names[group.name]
        if group.made.key is not None:
            self._subgroups.pop(group.made.key, None)

    # ---- strangers -------------------------------------------------------------------------------

    def _ping(self, peer: bytes, ping: Ping) -> None:
        if ping.group:
            if ping.term > self._term and not self._raise_term(ping.term):
                why = f"it is of term {self._term}, and this peer has heard one of term {ping.term}"
                self._stranger(peer, ping.group, why)
                return
            group = self._groups.get(ping.group)
            if group is None or not group.knows(peer):
                self._stranger(peer, ping.group)
                return
        self._send(peer, Pong())
        for group in self._groups.values():
            group.ping(peer)

    def _stranger(self, peer: bytes, group: int, why: str = "", recover: bool = True) -> None:
        """Who says to be a member, and is not known, is told so, and not evicted."""
        recover = recover and self._recover
        known = self._groups.get(group)
        what = f"group number {group}" if known is None else f"group {known.name!r} ({group})"
        why = why or "it does not know this peer as a member of it"
        todo = "its members are asked" if recover else _WRONG_JOURNAL
        reason = f"{what} is none of this coordinator's (run {self._run}): {why}; {todo}"
        self._send(peer, Unknown(group, recover, reason))

    def _waits_for_claims(self, now: float) -> bool:
        """A coordinator that takes groups over gives their members time to come, before it lets
        others form a group of that name."""
        assert self._started is not None
        return self._recover and now < self._started + self._timeouts.joiner_lost / 2

    def _raise_term(self, heard: int) -> bool:
        """Another coordinator was heard in that term. If this one took over from it, what it says
        is to count more; whether it did."""
        if not self._recover or heard == TERM_MAX:
            return False
        self._term = heard + 1
        self._said = None
        self._note(Term(self._term))
        return True

    def _claim(self, peer: bytes, claim: Claim, now: float) -> None:
        if not self._recover or claim.join.id != peer:
            return
        record = claim.record
        group = self._groups.get(record.group)
        # As yet this one has said nothing to members of a group that it did not know.
        if claim.term > self._term or (claim.term == self._term and group is None):
            self._raise_term(claim.term)
        group = group or self._take_over(claim)
        if group is not None and group.made == self._made_of(claim, group.made.key):
            self._count_serials(max(member.serial for member in record.members))
            if group.claim(peer, record, now):
                return
        elif group is None and claim.is_subgroup:
            return  # the claims of the group that its members came from are still to come
        why = "another group has its number or name, or its members contradict each other"
        self._stranger(peer, record.group, why, recover=False)

    def _made_of(self, claim: Claim, key: bytes | None) -> Made:
        name, number = claim.join.group, claim.record.group
        if claim.is_subgroup:
            return Made(number, f"{name}/{number}", claim.token, name, key)
        return Made(number, name, claim.token, None, None)

    def _take_over(self, claim: Claim) -> Group | None:
        """A group as another coordinator made it. A subgroup has to wait for its root."""
        made = self._made_of(claim, None)
        known = self._names.get(claim.join.group)
        if (known is None) == claim.is_subgroup or len(self._groups) >= GROUPS_MAX:
            return None
        group = self._add(made)
        group.take_over(None if claim.is_subgroup else claim.join)
        return group

    # ---- what outlives it ------------------------------------------------------------------------

    def restore(self, facts: Iterable[Fact], now: float) -> None:
        """Takes up where the coordinator stopped that left these facts, in the next term: to be
        called before the first step, if at all. From now on facts are to be written down, and
        those of the restart itself are there at once."""
        for fact in facts:
            self._replay(fact)
        self._has_journal = True
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
        if self._has_journal:
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
            self._remove(self._groups.get(fact.group))
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
        is_known = any(group.knows(peer) for group in self._groups.values())
        if not is_known or (parent is None and self._recover):
            self._stranger(peer, request.parent)
            return
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
        for group in list(self._groups.values()):
            if group.idle and (group.is_subgroup or group.recovering):
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
