"""The coordinator's machine, rule by rule.

Each test is a short play: who says what at which time, and what the coordinator answers. The rules
are those of docs/protocol.md, sections 6 and 7; expected watermarks are worked out by hand. Random
schedules are in test_coordinator_random.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from collectives import messages as m
from collectives.config import Timeouts
from collectives.coordinator.core import Core, Received, Tick
from collectives.coordinator.decide import fewest_to_remove

TIMEOUTS = Timeouts(dead=2.0, joiner_lost=5.0)
LINK, LOST, DEADLINE, BOUNDARY = m.Cause.LINK, m.Cause.LOST, m.Cause.DEADLINE, m.Cause.BOUNDARY


def pid(letter: str) -> bytes:
    return letter.encode() * 16


class Stage:
    """A coordinator, a clock, and what it last said to whom. Peers are called by letters."""

    def __init__(self, size: int = 3, min_size: int = 1) -> None:
        self.core = Core(random.Random(1), TIMEOUTS)
        self.size, self.min_size = size, min_size
        self.now = 100.0
        self.said: dict[str, list[m.Message]] = {}

    def say(self, who: str, message: m.Message) -> dict[str, list[m.Message]]:
        return self._take(Received(pid(who), message))

    def tick(self, seconds: float, *pinging: str) -> dict[str, list[m.Message]]:
        """Lets time pass, second by second while somebody pings; returns all that was said."""
        said: dict[str, list[m.Message]] = {}
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for answer in [self._take(Tick())] + [self.say(who, m.Ping()) for who in pinging]:
                for who, words in answer.items():
                    said.setdefault(who, []).extend(words)
        return said

    def _take(self, event: Received | Tick) -> dict[str, list[m.Message]]:
        self.said = {}
        for action in self.core.step(event, self.now):
            sent = m.decode(m.encode(action.message))
            assert sent == action.message
            self.said.setdefault(chr(action.peer[0]), []).append(sent)
        return self.said

    def join(self, who: str, **other: Any) -> dict[str, list[m.Message]]:
        fields = {
            "version": m.PROTOCOL_VERSION,
            "id": pid(who),
            "group": "train",
            "name": "",
            "rank": None,
            "size": self.size,
            "min_size": self.min_size,
            "address": f"10.0.0.{ord(who)}:5000",
            "host": 7,
            "streams": 2,
            "segment_bytes": 65536,
        }
        return self.say(who, m.Join(**{**fields, **other}))

    def form(self, letters: str) -> m.Epoch:
        for who in letters:
            self.join(who)
        record = self.record(letters[0])
        for who in letters:
            self.say(who, m.Installed(1, record.epoch, False))
        return record

    def report(
        self,
        who: str,
        epoch: int,
        lanes: dict[int, tuple[int, int, int]] | None = None,
        cause: m.Cause = LOST,
        boundary: int = 0,
        wants: int = 0,
        **evidence: m.EvidenceKind,
    ) -> dict[str, list[m.Message]]:
        marks = tuple(m.LaneReport(lane, *mark) for lane, mark in (lanes or {}).items())
        against = tuple(m.Evidence(pid(letter), kind) for letter, kind in evidence.items())
        return self.say(who, m.Report(1, epoch, cause, boundary, wants, marks, against))

    def prepare(self, who: str, epoch: int, fault: str = "") -> dict[str, list[m.Message]]:
        peer = pid(fault) if fault else m.NO_PEER
        return self.say(who, m.Prepared(1, epoch, not fault, peer, "refused" if fault else ""))

    def record(self, who: str) -> m.Epoch:
        """The last EPOCH among what was said to someone just now."""
        return [word for word in self.said[who] if isinstance(word, m.Epoch)][-1]

    def only(self, who: str, cls: type) -> Any:
        (found,) = [word for word in self.said.get(who, []) if isinstance(word, cls)]
        return found


def ranks(record: m.Epoch) -> dict[str, int]:
    return {chr(member.id[0]): member.rank for member in record.members}


GONE = m.EvidenceKind.REFUSED
CLOSED = m.EvidenceKind.CLOSED


# ---- forming -------------------------------------------------------------------------------------


def test_a_group_forms_when_size_peers_wait() -> None:
    stage = Stage(3)
    assert stage.join("a")["a"][0].waiting == 1  # type: ignore[union-attr]
    assert set(stage.join("b")) == {"b"}
    said = stage.join("c")
    assert set(said) == {"a", "b", "c"}
    record = stage.record("a")
    assert stage.record("b") == stage.record("c") == record
    assert (record.epoch, record.cause, record.world, record.lanes) == (1, m.Cause.FORMED, 3, ())
    assert [member.serial for member in record.members] == [1, 2, 3]


def test_rank_order_is_rank_asked_for_then_name_then_id() -> None:
    stage = Stage(5)
    stage.join("a", rank=3)
    stage.join("b", name="zoe")
    stage.join("c", name="adam")
    stage.join("e", name="adam")
    stage.join("d", rank=0)
    assert ranks(stage.record("a")) == {"d": 0, "c": 1, "e": 2, "a": 3, "b": 4}


def test_a_repeated_join_changes_nothing() -> None:
    stage = Stage(2)
    first = stage.join("a")["a"]
    assert stage.join("a")["a"] == first
    stage.join("b")
    again = stage.join("b")["b"]  # a member whose record got lost
    assert [type(word) for word in again] == [m.Welcome, m.Epoch]
    assert len(stage.core.groups) == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"size": 4}, ("size=3", "size=4")),
        ({"min_size": 2}, ("min_size=1", "min_size=2")),
        ({"streams": 4}, ("streams=2", "streams=4")),
        ({"segment_bytes": 64}, ("segment_bytes=65536", "segment_bytes=64")),
        ({"rank": 0}, ("rank=0", "taken", "'first'")),
        ({"rank": 3}, ("rank=3", "size=3")),
        ({"id": pid("z")}, ("another peer",)),
    ],
)
def test_a_join_that_does_not_fit_is_refused(other: dict[str, Any], words: tuple[str]) -> None:
    stage = Stage(3)
    stage.join("a", rank=0, name="first")
    stage.join("b", **other)
    refused = stage.only("b", m.Refused)
    assert all(word in refused.reason for word in words), refused.reason


def test_a_floor_above_the_size_is_refused() -> None:
    stage = Stage(2, min_size=3)
    stage.join("a")
    assert "min_size=3" in stage.only("a", m.Refused).reason


def test_another_version_is_refused_by_name() -> None:
    stage = Stage()
    stage.say("a", m.ForeignJoin(7))
    assert "version 7" in stage.only("a", m.Refused).reason
    assert f"version {m.PROTOCOL_VERSION}" in stage.only("a", m.Refused).reason


def test_a_silent_joiner_is_dropped_and_may_come_back() -> None:
    stage = Stage(2)
    stage.join("a")
    assert stage.tick(TIMEOUTS.joiner_lost) == {}
    assert not stage.core.groups[0].joiners
    stage.join("b")
    assert stage.only("b", m.Welcome).waiting == 1
    stage.join("a")
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}


def test_groups_do_not_mix() -> None:
    stage = Stage(2)
    stage.join("a", group="one")
    stage.join("b", group="two")
    said = stage.join("c", group="two")
    assert set(said) == {"b", "c"}
    assert stage.record("b").group == 2
    stage.join("d", group="one")
    assert stage.record("a").group == 1
    # One token per group: a peer of one cannot shake hands with those of another.
    tokens = {group.token for group in stage.core.groups}
    assert len(tokens) == 2


def test_a_record_is_published_until_it_is_acknowledged() -> None:
    stage = Stage(2)
    stage.join("a")
    stage.join("b")
    stage.say("a", m.Installed(1, 1, False))
    said = stage.tick(1.0)
    assert [word.epoch for word in said["b"] if isinstance(word, m.Epoch)] == [1, 1]
    assert "a" not in said
    stage.say("b", m.Installed(1, 1, False))
    assert stage.tick(5.0) == {}
    assert stage.core.deadline() == float("inf")


# ---- what becomes of operations ------------------------------------------------------------------


def test_committed_is_least_done_and_failed_is_greatest_posted() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (3, 4, 6), 1: (0, 0, 1)}, c=GONE)
    assert stage.said == {}
    stage.report("b", 1, {0: (2, 5, 5)}, c=GONE)
    record = stage.record("a")
    assert record == stage.record("b")
    assert set(record.lanes) == {m.Outcome(0, 4, 6), m.Outcome(1, 0, 1)}
    assert (record.cause, record.lost, record.lost_rank) == (LOST, pid("c"), 2)
    assert ranks(record) == {"a": 0, "b": 1}
    assert record.world == 3
    assert "taken for dead" in stage.only("c", m.Evicted).reason


def test_unused_lanes_stand_where_the_last_record_put_them() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {2: (1, 1, 3)}, c=GONE)
    stage.report("b", 1, {2: (1, 1, 2)}, c=GONE)
    assert stage.record("a").lanes == (m.Outcome(2, 1, 3),)
    # b was slow and posted nothing since; what it says is below what is decided, and is no lie.
    stage.report("a", 2, {2: (3, 5, 5)}, cause=DEADLINE)
    stage.report("b", 2, {2: (1, 1, 2)}, cause=DEADLINE)
    assert stage.record("a").lanes == (m.Outcome(2, 3, 5),)
    assert stage.record("a").cause is DEADLINE
    # Nobody mentions the lane: it stays.
    stage.report("a", 3, {}, cause=LINK)
    stage.report("b", 3, {}, cause=LINK)
    assert stage.record("a").lanes == (m.Outcome(2, 5, 5),)


def test_a_member_that_reported_is_alive_whatever_others_say() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {0: (0, 1, 1)})
    stage.report("b", 1, {0: (0, 0, 1)}, a=GONE)
    record = stage.record("a")
    assert ranks(record) == {"a": 0, "b": 1}
    assert record.cause is LINK
    assert record.lost == m.NO_PEER
    assert record.lanes == (m.Outcome(0, 0, 1),)


@pytest.mark.parametrize("kind", [CLOSED, m.EvidenceKind.SILENT, m.EvidenceKind.PROTOCOL])
def test_other_evidence_gives_time_to_report(kind: m.EvidenceKind) -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {}, b=kind)
    assert stage.tick(1.5) == {}
    said = stage.tick(0.5)
    assert isinstance(said["b"][0], m.Evicted)
    assert ranks(stage.record("a")) == {"a": 0}


def test_a_late_report_within_the_time_keeps_the_member() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {}, b=CLOSED)
    stage.tick(1.5)
    stage.report("b", 1, {}, a=CLOSED)
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}


def test_repeated_reports_add_evidence_and_change_nothing_else() -> None:
    stage = Stage(3)
    stage.form("abc")
    for _ in range(3):
        assert stage.report("a", 1, {0: (1, 1, 2)}, b=CLOSED) == {}
    stage.report("b", 1, {0: (0, 1, 2)}, a=CLOSED)
    assert stage.report("a", 1, {0: (1, 1, 2)}, b=CLOSED, c=GONE) != {}
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}
    # A report on an epoch that is over shows that the record got lost.
    stage.report("a", 1, {0: (1, 1, 2)}, b=CLOSED)
    assert stage.record("a").epoch == 2
    assert list(stage.said) == ["a"]


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ({0: (5, 4, 6)}, "committed 5 but only done 4"),
        ({0: (3, 6, 5)}, "done 6 but only posted 5"),
        ({0: (1, 2, 6)}, "went back to 1 from 2"),
        ({0: (2, 3, 7), 1: (9, 9, 8)}, "done 9 but only posted 8"),
    ],
)
def test_reports_that_cannot_be_true_evict(lanes: Any, words: str) -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (2, 2, 3)}, c=GONE)
    stage.report("b", 1, {0: (2, 2, 3)}, c=GONE)
    assert stage.record("a").lanes == (m.Outcome(0, 2, 3),)
    stage.report("b", 2, lanes)
    assert words in stage.only("b", m.Evicted).reason
    stage.report("a", 2, {0: (3, 3, 4)})
    assert ranks(stage.record("a")) == {"a": 0}


def test_other_watermarks_in_a_second_report_evict() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {0: (1, 1, 1)})
    stage.report("a", 1, {0: (1, 2, 2)})
    assert "different watermarks" in stage.only("a", m.Evicted).reason


def test_who_lacks_what_another_returned_is_evicted() -> None:
    """Votes make this impossible; if it happens, the success that was returned must stand."""
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {0: (3, 3, 3)})
    stage.report("b", 1, {0: (1, 1, 3)})
    assert "done 1" in stage.only("b", m.Evicted).reason
    assert stage.record("a").lanes == (m.Outcome(0, 3, 3),)


def test_a_report_of_a_stranger_gets_evicted() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("x", 1)
    assert not stage.only("x", m.Evicted).left
    stage.say("x", m.Report(99, 1, LOST, 0, 0, (), ()))
    assert "restarted" in stage.only("x", m.Evicted).reason
    assert stage.tick(10) == {}


def test_silence_towards_the_coordinator_never_counts_against_a_member() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.prepare("c", 1)
    assert "a" not in stage.tick(1000, "c")
    assert set(stage.core.groups[0].members) == {pid("a"), pid("b")}


# ---- links between the living --------------------------------------------------------------------


def test_a_link_that_breaks_twice_costs_the_later_of_the_two() -> None:
    stage = Stage(3)
    stage.form("abc")
    for epoch in (1, 2):
        stage.report("a", epoch, {}, cause=LINK)
        stage.report("b", epoch, {}, cause=LINK, c=CLOSED)
        stage.report("c", epoch, {}, cause=LINK, b=CLOSED)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    assert "twice" in stage.only("c", m.Evicted).reason


def test_a_link_that_was_good_in_between_is_forgiven() -> None:
    stage = Stage(2)
    stage.form("ab")
    for epoch in range(1, 6):
        stage.report("a", epoch, {}, cause=LINK, b=CLOSED)
        stage.report("b", epoch, {}, cause=LINK)
        assert len(stage.record("a").members) == 2
        for who in "ab":
            stage.say(who, m.Installed(1, epoch + 1, True))


def test_the_one_with_most_broken_links_goes() -> None:
    """Cutting all links of the first peer must not cost all the others."""
    pairs = [frozenset((pid("a"), pid(other))) for other in "bcd"]
    serials = {pid(letter): index for index, letter in enumerate("abcd")}
    assert fewest_to_remove(pairs, serials) == [pid("a")]
    assert fewest_to_remove(pairs[:1], serials) == [pid("b")]


# ---- boundaries ----------------------------------------------------------------------------------


def test_a_joiner_prepares_is_announced_and_admitted() -> None:
    stage = Stage(2)
    first = stage.form("ab")
    stage.join("c")
    welcome = stage.only("c", m.Welcome)
    assert (welcome.epoch, welcome.members, welcome.serial) == (1, first.members, 3)
    said = stage.prepare("c", 1)
    assert said == {"a": [m.Pending(1, 1)], "b": [m.Pending(1, 1)]}
    stage.report("a", 1, {0: (6, 7, 7)}, cause=BOUNDARY, boundary=7, wants=m.WANT_JOIN)
    stage.report("b", 1, {0: (6, 7, 7)}, cause=BOUNDARY, boundary=7)
    record = stage.record("c")
    assert (record.cause, record.world, record.epoch) == (BOUNDARY, 3, 2)
    assert ranks(record) == {"a": 0, "b": 1, "c": 2}
    assert record.lanes == (m.Outcome(0, 7, 7),)
    assert m.Pending(1, 0) in stage.said["a"]


def test_an_unprepared_joiner_waits_for_the_next_boundary() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.join("d")
    stage.prepare("d", 1)
    for who in "ab":
        stage.report(who, 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    assert ranks(stage.record("d")) == {"a": 0, "b": 1, "d": 2}
    # c is to prepare anew, for d as well.
    assert {x.id for x in stage.only("c", m.Welcome).members} == {pid(x) for x in "abd"}
    assert stage.prepare("c", 1) == {}
    assert stage.prepare("c", 2)["d"] == [m.Pending(1, 1)]


def test_a_boundary_closes_holes_and_keeps_order() -> None:
    stage = Stage(4)
    stage.form("abcd")
    for who in "acd":
        stage.report(who, 1, {}, b=GONE)
    assert ranks(stage.record("a")) == {"a": 0, "c": 2, "d": 3}
    for who in "acd":
        stage.report(who, 2, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    record = stage.record("a")
    assert ranks(record) == {"a": 0, "c": 1, "d": 2}
    assert record.world == 3


def test_leavers_go_and_are_told_so() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_LEAVE)
    stage.report("b", 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1)
    stage.report("c", 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1)
    assert ranks(stage.record("b")) == {"b": 0, "c": 1}
    assert stage.only("a", m.Evicted).left
    stage.report("a", 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_LEAVE)
    assert stage.only("a", m.Evicted).left  # told again


def test_an_interrupted_boundary_is_carried_out_if_all_survivors_were_done() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (4, 5, 5)}, boundary=5, wants=m.WANT_JOIN, c=GONE)
    stage.report("b", 1, {0: (4, 5, 5)}, boundary=5, c=GONE)
    record = stage.record("a")
    assert (record.cause, record.world) == (BOUNDARY, 2)
    assert record.lanes == (m.Outcome(0, 5, 5),)


def test_an_interrupted_boundary_without_wishes_commits_without_change() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (4, 5, 5)}, boundary=5, c=GONE)
    stage.report("b", 1, {0: (5, 5, 5)}, boundary=0, c=GONE)  # b has returned "no change"
    record = stage.record("a")
    assert (record.cause, record.world) == (LOST, 3)
    assert record.lanes == (m.Outcome(0, 5, 5),)


def test_an_interrupted_boundary_fails_if_somebody_was_not_there_yet() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (4, 5, 5)}, boundary=5, wants=m.WANT_JOIN, c=GONE)
    stage.report("b", 1, {0: (4, 4, 4)}, c=GONE)
    record = stage.record("a")
    assert (record.cause, record.world) == (LOST, 3)
    assert record.lanes == (m.Outcome(0, 4, 5),)


def test_below_the_floor_a_boundary_waits_for_joiners() -> None:
    stage = Stage(3, min_size=3)
    stage.form("abc")
    for who in "ab":
        stage.report(who, 1, {}, c=GONE)
    assert len(stage.record("a").members) == 2  # reported below the floor all the same
    for who in "ab":
        stage.report(who, 2, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    assert not stage.said
    stage.join("d")
    assert stage.tick(3, "d", "a", "b").get("d", []) == [m.Pong()] * 6
    stage.prepare("d", 2)
    assert ranks(stage.record("d")) == {"a": 0, "b": 1, "d": 2}


def test_a_leaver_is_never_made_to_wait_for_joiners() -> None:
    stage = Stage(2, min_size=2)
    stage.form("ab")
    for who, wants in (("a", m.WANT_LEAVE), ("b", m.WANT_JOIN)):
        stage.report(who, 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=wants)
    assert ranks(stage.record("b")) == {"b": 0}


def test_who_dies_while_the_group_waits_does_not_hold_it_up() -> None:
    stage = Stage(3, min_size=3)
    stage.form("abc")
    for who in "ab":
        stage.report(who, 1, {}, c=GONE)
    for who in "ab":
        stage.report(who, 2, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    for who in "de":
        stage.join(who)
    # b dies. Joiners cannot reach it, and it is silent here.
    for _ in range(4):
        for who in "de":
            stage.prepare(who, 2, fault="b")
        stage.tick(1, "a", "d", "e")
    assert pid("b") not in stage.core.groups[0].present
    for who in "de":
        stage.prepare(who, 2)
    assert ranks(stage.record("e")) == {"a": 0, "d": 1, "e": 2}


# ---- joiners that fail, members that leave -------------------------------------------------------


def test_a_joiner_that_cannot_reach_a_living_member_is_refused() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    for _ in range(3):
        assert "c" not in stage.said or not isinstance(stage.said["c"][-1], m.Refused)
        stage.tick(1, "a", "b", "c")
        stage.prepare("c", 1, fault="b")
    assert "could not reach the peer of rank 1" in stage.only("c", m.Refused).reason
    assert "a" not in stage.said


def test_a_dead_group_gives_way_to_those_who_wait() -> None:
    stage = Stage(2)
    stage.form("ab")
    for who in "ab":  # numbers must go on from here
        stage.report(who, 1, {0: (3, 4, 6)}, cause=DEADLINE)
    for who in "cd":
        stage.join(who)
    for _ in range(6):  # a and b were killed; nobody is left to report that
        for who in "cd":
            stage.prepare(who, 2, fault="a")
        said = stage.tick(1, "c", "d")
    record = [word for word in said["c"] if isinstance(word, m.Epoch)][-1]
    assert (record.epoch, record.cause, record.world) == (3, m.Cause.FORMED, 2)
    assert ranks(record) == {"c": 0, "d": 1}
    assert record.lanes == (m.Outcome(0, 6, 6),)
    stage.report("a", 2, {})
    assert "could be reached" in stage.only("a", m.Evicted).reason


def test_goodbyes() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.prepare("c", 1)
    assert stage.say("c", m.Bye()) == {"a": [m.Pending(1, 0)], "b": [m.Pending(1, 0)]}
    assert stage.say("b", m.Bye()) == {}
    stage.report("a", 1, {}, b=m.EvidenceKind.GOODBYE)  # nobody waits for b
    assert ranks(stage.record("a")) == {"a": 0}
    assert stage.say("a", m.Bye()) == {}
    assert stage.core.groups[0].idle
    # The next run may have other settings; epochs go on.
    stage.join("x", size=1)
    assert (stage.record("x").epoch, stage.record("x").cause) == (3, m.Cause.FORMED)


def test_who_says_goodbye_after_its_report_is_not_carried_on() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("b", 1, {0: (0, 0, 1)}, c=CLOSED)
    stage.say("b", m.Bye())
    stage.report("a", 1, {0: (0, 1, 1)}, c=CLOSED)
    stage.report("c", 1, {0: (0, 1, 1)}, a=CLOSED)
    assert ranks(stage.record("a")) == {"a": 0, "c": 2}
    assert stage.record("a").lanes == (m.Outcome(0, 1, 1),)


def test_two_incarnations_are_two_peers() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c", name="b")  # the process of b, started again, before anyone noticed
    stage.report("a", 1, {}, b=GONE)
    assert ranks(stage.record("a")) == {"a": 0}
    assert stage.only("c", m.Welcome).epoch == 2
    assert stage.join("b")["b"] == [m.Evicted(1, 1, False, stage.only("b", m.Evicted).reason)]
