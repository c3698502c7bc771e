"""A coordinator without its predecessor's journal takes groups over from their members.

Goal: what a member has returned stands, what nobody knows ends as unknown, and the group goes on
with the same secret, behind all numbers that may have been used. Nobody is evicted for being
unknown. Method: short plays, then the random schedules of test_coordinator_crash, in each of which
the journal is lost once.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_stage import (
    CLOSED,
    DEADLINE,
    GONE,
    LINK,
    LOST,
    TIMEOUTS,
    Stage,
    epochs,
    pid,
    ranks,
)
from test_coordinator_crash import CrashWorld, Listener
from test_coordinator_random import SIZE, run

from collectives import messages as m
from collectives.coordinator.records import EPOCHS_SKIPPED

RECOVERED = m.Cause.RECOVERED


class Lost(Stage):
    """A group whose coordinator was lost with its journal; another one is there instead."""

    def __init__(self, letters: str, records: int = 1) -> None:
        super().__init__(len(letters))
        self.restart()
        self.history = [self.form(letters)]
        for epoch in range(1, records):
            for who in letters:
                self.report(who, epoch, {0: (epoch, epoch, epoch)}, cause=LINK)
            self.history.append(self.record(letters[0]))
        self.token = self.welcomes[letters[0]][-1].token
        self.term = self.history[-1].term
        self.forget()

    def forget(self) -> None:
        self.entries.clear()
        self.restart(recover=True)

    def claim(
        self, who: str, epoch: int = 1, subgroup: m.Epoch | None = None, **other: object
    ) -> dict[str, list[m.Message]]:
        record = subgroup or self.history[epoch - 1]
        join = m.Join(
            *(m.PROTOCOL_VERSION, pid(who), "train", "", None, self.size, self.min_size),
            *(f"10.0.0.{ord(who)}:5000", 7, 2, 65536),
        )
        claim = m.Claim(self.term, self.token, subgroup is not None, join, record)
        return self.say(who, replace(claim, **other))  # type: ignore[arg-type]


def test_strangers_are_asked_and_the_group_goes_on() -> None:
    stage = Lost("abc")
    for message in (m.Ping(1, stage.term), m.Report(1, 1, LINK, 0, 0, (), ())):
        assert stage.say("a", message)["a"][0].recover  # type: ignore[union-attr]
    said = stage.claim("a")
    assert set(said) == set("abc"), "all are to seal"
    assert {word for words in said.values() for word in words} == {m.Seal(1, 1)}
    assert all(word.term > stage.term for word in said["a"])  # type: ignore[union-attr]
    for who in "bc":
        stage.claim(who)
    for who in "abc":
        assert epochs(stage.said) == []
        stage.report(who, 1, {0: (2, 3, 5), 1: (0, 1, 1)}, cause=LINK)
    record = stage.record("a")
    assert (record.cause, record.epoch, record.world) == (RECOVERED, EPOCHS_SKIPPED, 3)
    assert ranks(record) == {"a": 0, "b": 1, "c": 2}
    # What was returned as success stands; what all have done may have been decided otherwise.
    assert record.lanes == (m.Outcome(0, 2, 5, 5), m.Outcome(1, 0, 1, 1))
    assert stage.core.groups[0].token == stage.token
    # From here on it is a group like any other, and in the journal.
    stage.restart()
    for who in "abc":
        stage.report(who, record.epoch, {0: (5, 6, 7)}, cause=LINK)
    assert (stage.record("a").epoch, stage.record("a").cause) == (record.epoch + 1, LINK)


def test_without_recover_claims_are_not_heard() -> None:
    stage = Lost("ab")
    stage.restart()
    assert not stage.say("a", m.Ping(1, 0))["a"][0].recover  # type: ignore[union-attr]
    assert stage.claim("a") == {}
    assert not stage.core.groups


def test_the_newest_record_counts_and_the_others_get_it() -> None:
    """Record 2 left b out, and reached a alone: its outcomes stand."""
    stage = Lost("abc")
    left = tuple(member for member in stage.history[0].members if member.id != pid("b"))
    lanes = (m.Outcome(0, 4, 6, 6),)
    second = replace(stage.history[0], epoch=2, cause=DEADLINE, members=left, lanes=lanes)
    stage.history.append(second)
    for who in "bc":
        stage.claim(who)
        stage.report(who, 1, {0: (4, 6, 6)})
    assert epochs(stage.claim("a", 2)) == []
    assert "left out of epoch 2" in stage.claim("b")["b"][0].reason  # type: ignore[union-attr]
    stage.report("c", 1, {0: (4, 6, 6)})
    assert stage.record("c") == second
    for who in "ac":
        stage.report(who, 2, {0: (4, 6, 7)}, cause=LINK)
    assert stage.record("a").lanes == (m.Outcome(0, 6, 7, 7),)
    assert ranks(stage.record("a")) == {"a": 0, "c": 2}


def test_it_waits_for_all_members_and_finds_the_dead_as_ever() -> None:
    stage = Lost("abc")
    for who in "ab":
        stage.claim(who)
        stage.report(who, 1, {}, cause=LINK)
    assert epochs(stage.tick(10 * TIMEOUTS.dead, "a", "b")) == [1], "c was not heard, nor accused"
    stage.report("a", 1, {}, c=GONE)
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}
    assert "taken for dead" in stage.claim("c")["c"][0].reason  # type: ignore[union-attr]


def test_who_said_goodbye_meanwhile_stays_gone() -> None:
    stage = Lost("abc", records=2)
    stage.claim("a", 1)
    stage.say("c", m.Bye())
    stage.claim("b", 2)
    stage.report("a", 2, {0: (1, 1, 1)}, cause=LINK)
    stage.report("b", 2, {0: (1, 1, 1)}, cause=LINK)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}


def test_an_open_boundary_is_not_carried_out() -> None:
    """It may have been, with joiners that nobody told of."""
    stage = Lost("ab")
    stage.claim("a")
    stage.join("c")
    stage.prepare("c", 1)
    for who in "ab":
        stage.report(who, 1, {0: (0, 1, 1)}, m.Cause.BOUNDARY, 1, m.WANT_JOIN)
    assert (stage.record("a").cause, ranks(stage.record("a"))) == (RECOVERED, {"a": 0, "b": 1})
    assert stage.record("a").lanes == (m.Outcome(0, 0, 1, 1),)


def test_a_crash_in_the_middle_of_it_begins_anew() -> None:
    stage = Lost("abc")
    stage.claim("a")
    stage.report("a", 1, {}, b=CLOSED)
    stage.say("b", m.Bye())
    stage.restart(recover=True)
    assert not stage.core.groups
    assert isinstance(stage.say("a", m.Ping(1, stage.term + 1))["a"][0], m.Unknown)
    assert stage.claim("a", term=stage.term + 1)["a"][0].term > stage.term + 1  # type: ignore[union-attr]


def test_its_term_is_above_whatever_a_member_has_heard() -> None:
    stage = Lost("ab")
    stage.claim("a")
    said = stage.say("b", m.Ping(1, 77))["b"]
    assert {word.term for word in said} == {78}  # type: ignore[union-attr]
    stage.restart()
    assert "term 90" in stage.say("b", m.Ping(1, 90))["b"][0].reason  # type: ignore[union-attr]


def test_an_old_copy_of_the_journal_is_noticed_and_recovered_from() -> None:
    """It ends at epoch 1, and its term may be as great as any: the members are at epoch 4."""
    stage = Lost("ab", records=4)
    copy = Stage(2)
    copy.restart()
    copy.form("ab")
    stage.entries[:] = copy.entries
    stage.token = copy.core.groups[0].token
    stage.restart()
    (told,) = stage.report("a", 4, {})["a"]
    assert isinstance(told, m.Unknown) and not told.recover and "no epoch 4" in told.reason
    stage.restart(recover=True)
    (told,) = stage.report("a", 4, {})["a"]
    assert isinstance(told, m.Unknown) and told.recover
    stage.claim("a", 4)
    for who in "ab":
        stage.report(who, 4, {0: (3, 3, 4)}, cause=LINK)
    assert stage.record("a").epoch == EPOCHS_SKIPPED
    assert stage.record("a").lanes == (m.Outcome(0, 3, 4, 4),)
    stage.restart()
    assert stage.core.groups[0].roll.epoch == EPOCHS_SKIPPED


def test_joiners_wait_until_members_had_time_to_come() -> None:
    stage = Lost("ab")
    assert stage.join("c") == {}
    stage.claim("a")
    assert stage.only("a", m.Seal)
    assert stage.join("c")["c"][0].group == 1  # type: ignore[union-attr]
    other = Lost("ab")
    other.join("c")
    other.tick(TIMEOUTS.joiner_lost)
    other.join("c")
    assert other.only("c", m.Welcome).group > 1000, "no number that a lost group may have"
    (told,) = other.claim("a")["a"]
    assert isinstance(told, m.Unknown) and not told.recover, "there is a group of that name now"


def test_joiners_come_behind_all_serials() -> None:
    stage = Lost("ab")
    for who in "ab":
        stage.claim(who)
    stage.restart(recover=True)
    stage.claim("a")
    stage.join("c")
    assert stage.only("c", m.Welcome).serial > 2


@pytest.mark.parametrize(
    "other", [{"token": b"x" * 16}, {"is_subgroup": True}], ids=["token", "subgroup"]
)
def test_claims_that_contradict_each_other(other: dict[str, object]) -> None:
    stage = Lost("ab")
    stage.claim("a")
    (told,) = stage.claim("b", **other)["b"]
    assert isinstance(told, m.Unknown) and not told.recover
    changed = replace(stage.history[0], world=3)
    (told,) = stage.claim("b", record=changed)["b"]
    assert isinstance(told, m.Unknown) and not told.recover


def test_members_that_all_leave_leave_nothing() -> None:
    stage = Lost("ab")
    stage.claim("a")
    stage.join("c")
    for who in "ab":
        stage.say(who, m.Bye())
    assert not stage.core.groups
    stage.restart()
    assert not stage.core.groups


def test_a_subgroup_is_recovered_behind_its_group() -> None:
    stage = Lost("abc")
    first = stage.history[0]
    sub = replace(first, group=7, world=2, members=first.members[:2])
    assert stage.claim("a", subgroup=sub) == {}, "its root is not known yet"
    for who in "abc":
        stage.claim(who)
    for who in "ab":
        stage.claim(who, subgroup=sub)
    assert stage.core.groups[1].root == "train"
    for who in "ab":
        stage.report(who, 1, c=GONE)
    for who in "ab":
        stage.say(who, m.Report(7, 1, LOST, 0, 0, (m.LaneReport(0, 1, 2, 2),), ()))
    record = stage.only("a", m.Epoch)
    assert (record.group, record.epoch, record.cause) == (7, EPOCHS_SKIPPED, RECOVERED)
    assert record.lanes == (m.Outcome(0, 1, 2, 2),)
    stage.restart()
    assert [group.name for group in stage.core.groups] == ["train", "train/7"]


# ---- random schedules ----------------------------------------------------------------------------


class NewGroup(Exception):
    """All members were lost before they were heard: joiners form another group."""


class Claimant(Listener):
    """A peer that answers a coordinator that does not know it."""

    def receive(self, message: m.Message) -> None:
        super().receive(message)
        if isinstance(message, m.Unknown) and message.recover and self.active and self.record:
            assert self.welcome is not None
            numbers = (None, SIZE, self.world.min_size, "127.0.0.1:1", 1, 1, 64)
            join = m.Join(m.PROTOCOL_VERSION, self.id, "g", "", *numbers)
            told = m.Claim(self.term, self.welcome.token, False, join, self.published)
            self.world.send(self.id, told)

    def install(self, record: m.Epoch) -> None:
        assert isinstance(self.world, LostWorld)
        self.world.unknown = record.cause is RECOVERED
        if record.cause is RECOVERED and self.record is not None:
            assert record.epoch > self.record.epoch
            self.record = replace(self.record, epoch=record.epoch - 1)
        super().install(record)
        self.published = record
        self.world.unknown = False


class LostWorld(CrashWorld):
    """A world whose coordinator loses its journal, once, in the middle of something."""

    rate = 0.002
    rate_deciding = 0.1

    def __init__(self, seed: int, min_size: int) -> None:
        self.recovers = self.unknown = False
        self.unknowns = 0
        super().__init__(seed, min_size)

    def restart(self) -> None:
        if not self.recovers and self.records:
            self.recovers = True
            self.journal.clear()
            self.term = 0
        super().restart()

    def new_core(self, seed: float) -> object:
        return super().new_core(seed, recover=self.recovers)

    def check(self, action: object) -> None:
        message = action.message  # type: ignore[attr-defined]
        if isinstance(message, m.Welcome) and message.group != 1:
            raise NewGroup
        if isinstance(message, m.Word) and self.recovers and message.term < self.term:
            self.term = 0  # it has not heard of the one before yet, and speaks to nobody who has
        super().check(action)  # type: ignore[arg-type]

    def check_record(self, record: m.Epoch) -> None:
        earlier = [epoch for epoch in self.records if epoch < record.epoch]
        super().check_record(record)
        if record.cause is RECOVERED:
            self.lineage[record.epoch] = self.lineage[max(earlier)]

    def outcome(self, epoch: int, sequence: int, what: str) -> None:
        if self.unknown and what == "failed":
            self.unknowns += 1
            return
        super().outcome(epoch, sequence, what)

    def send(self, peer: bytes, message: m.Message) -> None:
        if isinstance(message, m.Ping):
            teller = self.peers[peer]
            message = m.Ping(1 if teller.record else 0, teller.term)
        super().send(peer, message)

    def spawn(self) -> None:
        peer = Claimant(self, self.rng.randbytes(16), (1000, 1 << 20))
        self.peers[peer.id] = peer


@pytest.mark.parametrize("min_size", [1, 3])
def test_random_losses_of_the_journal(min_size: int) -> None:
    recovered = unknowns = new = 0
    for seed in range(60):
        world = LostWorld(seed, min_size)
        try:
            run(seed, min_size, lambda *_, world=world: world)  # type: ignore[arg-type,misc]
        except NewGroup:
            new += 1
        except AssertionError as error:
            raise AssertionError(f"seed={seed} min_size={min_size}: {error}") from error
        recovered += any(record.cause is RECOVERED for record in world.records.values())
        unknowns += world.unknowns
    assert recovered > 10 and unknowns > 10 and new < 10, (recovered, unknowns, new)
