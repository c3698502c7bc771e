"""The coordinator's machine, rule by rule: forming a group, and what becomes of operations.

Each test is a short play: who says what at which time, and what the coordinator answers. The rules
are those of docs/protocol.md, sections 6 and 7; expected watermarks are worked out by hand. Random
schedules are in test_coordinator_random.
"""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_stage import (
    CLOSED,
    DEADLINE,
    GONE,
    LINK,
    LOST,
    SILENT,
    TIMEOUTS,
    Stage,
    epochs,
    names,
    pid,
    ranks,
)

from collectives import messages as m

# ---- forming -------------------------------------------------------------------------------------


def test_a_group_forms_when_size_peers_have_reached_each_other() -> None:
    stage = Stage(3)
    assert stage.join("a")["a"][0].waiting == 1  # type: ignore[union-attr]
    assert set(stage.join("b")) == {"b"}
    said = stage.join("c")
    assert set(said) == {"a", "b", "c"}
    assert all(names(stage.only(who, m.Welcome)) == "abc" for who in "abc")
    assert stage.rehearse("a", "b") == {}
    stage.rehearse("c")
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
    stage.rehearse(*"abcde")
    assert ranks(stage.record("a")) == {"d": 0, "c": 1, "e": 2, "a": 3, "b": 4}


def test_a_repeated_join_changes_nothing() -> None:
    stage = Stage(2)
    first = stage.join("a")["a"]
    assert stage.join("a")["a"] == first
    first = stage.join("b")["b"]
    assert stage.join("b")["b"] == first
    stage.rehearse("a", "b")
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
    assert not stage.core.groups[0].lobby.joiners
    stage.join("b")
    assert stage.only("b", m.Welcome).waiting == 1
    stage.join("a")
    stage.rehearse("a", "b")
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}


def test_groups_do_not_mix() -> None:
    stage = Stage(2)
    stage.join("a", group="one")
    stage.join("b", group="two")
    assert set(stage.join("c", group="two")) == {"b", "c"}
    assert set(stage.join("d", group="one")) == {"a", "d"}
    for letters, number in (("bc", 2), ("ad", 1)):
        assert set(stage.rehearse(*letters)) == set(letters)
        assert stage.record(letters[0]).group == number
    # One token per group: a peer of one cannot shake hands with those of another.
    tokens = {group.token for group in stage.core.groups}
    assert len(tokens) == 2


def test_a_record_is_published_until_it_is_acknowledged() -> None:
    stage = Stage(2)
    stage.join("a")
    stage.join("b")
    stage.rehearse("a", "b")
    stage.say("a", m.Installed(1, 1, False))
    said = stage.tick(1.0)
    assert [word.epoch for word in said["b"] if isinstance(word, m.Epoch)] == [1, 1]
    assert "a" not in said
    stage.say("b", m.Installed(1, 1, False))
    assert stage.tick(5.0) == {}
    assert stage.core.deadline() == float("inf")


# ---- what becomes of operations ------------------------------------------------------------------


def test_committed_is_least_done_and_what_was_posted_begins_again() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (3, 4, 6), 1: (0, 0, 1)}, c=GONE)
    assert stage.said == {"b": [m.Seal(1, 1)], "c": [m.Seal(1, 1)]}
    stage.report("b", 1, {0: (2, 5, 5)}, c=GONE)
    record = stage.record("a")
    assert record == stage.record("b")
    assert set(record.lanes) == {m.Outcome(0, 4, 4, 6), m.Outcome(1, 0, 0, 1)}
    assert (record.cause, record.lost, record.lost_rank) == (LOST, pid("c"), 2)
    assert ranks(record) == {"a": 0, "b": 1}
    assert record.world == 3
    assert "taken for dead" in stage.only("c", m.Evicted).reason


def test_unused_lanes_stand_where_the_last_record_put_them() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {2: (1, 1, 3)}, cause=DEADLINE)
    stage.report("b", 1, {2: (1, 1, 2)}, cause=DEADLINE)
    assert stage.record("a").lanes == (m.Outcome(2, 1, 3, 3),)
    # b was slow and posted nothing since; what it says is below what is decided, and is no lie.
    stage.report("a", 2, {2: (3, 5, 5)}, cause=DEADLINE)
    stage.report("b", 2, {2: (1, 1, 2)}, cause=DEADLINE)
    assert stage.record("a").lanes == (m.Outcome(2, 3, 5, 5),)
    assert stage.record("a").cause is DEADLINE
    # Nobody mentions the lane: it stays.
    stage.report("a", 3, {}, cause=LINK)
    stage.report("b", 3, {}, cause=LINK)
    assert stage.record("a").lanes == (m.Outcome(2, 5, 5, 5),)


def test_a_member_that_reported_is_alive_whatever_others_say() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {0: (0, 1, 1)})
    stage.report("b", 1, {0: (0, 0, 1)}, a=GONE)
    record = stage.record("a")
    assert ranks(record) == {"a": 0, "b": 1}
    assert record.cause is LINK
    assert record.lost == m.NO_PEER
    assert record.lanes == (m.Outcome(0, 0, 0, 1),)


@pytest.mark.parametrize("kind", [CLOSED, m.EvidenceKind.PROTOCOL])
def test_who_is_accused_of_closing_has_the_dead_time_to_report(kind: m.EvidenceKind) -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {}, b=kind)
    said = stage.tick(1.5)
    assert said == {"b": [m.Seal(1, 1)] * 3}  # asked again and again
    said = stage.tick(0.5)
    assert isinstance(said["b"][-1], m.Evicted)
    assert ranks(stage.record("a")) == {"a": 0}


def test_silence_that_all_reporters_agree_on_suffices() -> None:
    stage = Stage(3)
    stage.form("abc")
    assert epochs(stage.report("a", 1, {}, c=SILENT)) == []
    assert epochs(stage.report("b", 1, {})) == []
    assert epochs(stage.tick(20)) == []
    stage.report("b", 1, {}, c=SILENT)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}


def test_who_reported_and_fell_silent_since_is_no_witness() -> None:
    """d was stopped just after a SEAL or an ABORT made it report: it has nothing against e, which
    is cut off, and never will have. One whom d hears no more says nothing about d."""
    stage = Stage(5)
    stage.form("abcde")
    stage.report("d", 1, {})
    stage.report("a", 1, {}, e=SILENT)
    stage.report("b", 1, {}, e=SILENT)
    stage.report("c", 1, {}, e=SILENT)
    assert epochs(stage.tick(2)) == []
    stage.report("a", 1, {}, e=SILENT, d=SILENT)
    stage.report("b", 1, {}, e=SILENT, d=SILENT)
    assert epochs(stage.tick(2)) == []  # c still hears d, which may be about to accuse
    stage.report("c", 1, {}, e=SILENT, d=SILENT)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1, "c": 2}  # nor can anybody go on with d


def test_one_that_hears_nobody_takes_nobody_with_it() -> None:
    """The links of a are cut, not its way to the coordinator, and it is the first to say so."""
    stage = Stage(4)
    stage.form("abcd")
    assert epochs(stage.report("a", 1, {}, b=SILENT, c=SILENT, d=SILENT)) == []
    for who in "bcd":
        stage.report(who, 1, {}, a=SILENT)
    stage.tick(TIMEOUTS.beat)
    assert ranks(stage.record("b")) == {"b": 1, "c": 2, "d": 3}


def test_the_last_one_of_many_waits_for_the_others_to_speak() -> None:
    stage = Stage(4)
    stage.form("abcd")
    stage.report("a", 1, {}, b=SILENT, c=SILENT, d=SILENT)
    assert epochs(stage.tick(TIMEOUTS.settle_time - 0.5)) == []
    assert epochs(stage.tick(0.5)) == [2]
    assert ranks(stage.record("a")) == {"a": 0}


def test_one_that_hears_nobody_does_not_make_the_others_witnesses_of_nothing() -> None:
    """The links of a are cut, not its way to the coordinator: it accuses all, and all accuse it.
    That is no reason to take its word alone against c, which has not reported."""
    stage = Stage(4)
    stage.form("abcd")
    stage.report("b", 1, {})
    stage.report("d", 1, {})
    stage.report("a", 1, {}, b=SILENT, c=SILENT, d=SILENT)
    stage.report("b", 1, {}, a=SILENT)
    stage.report("d", 1, {}, a=SILENT)
    assert epochs(stage.tick(10)) == []


def test_who_is_not_accused_by_all_has_fifteen_times_the_dead_time() -> None:
    """b hears c, which merely cannot report: its interpreter sorts, or it lost the coordinator."""
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {}, c=SILENT)
    stage.report("b", 1, {})
    assert epochs(stage.tick(15 * TIMEOUTS.dead - 0.5)) == []
    assert epochs(stage.tick(0.5)) == [2]
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}


def test_a_late_report_within_the_time_keeps_the_member() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {}, b=CLOSED)
    stage.tick(1.5)
    stage.report("b", 1, {}, a=CLOSED)
    assert ranks(stage.record("b")) == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("causes", "dead", "expected", "detail"),
    [
        ((LINK, DEADLINE), False, DEADLINE, "of b"),
        ((DEADLINE, DEADLINE), False, DEADLINE, "of a"),
        ((DEADLINE, LINK), True, LOST, ""),
        ((LOST, m.Cause.MISMATCH), True, m.Cause.MISMATCH, "of b"),
        ((m.Cause.MISMATCH, DEADLINE), False, m.Cause.MISMATCH, "of a"),
        ((LINK, LINK), False, LINK, "of a"),
    ],
)
def test_the_cause_and_its_detail(
    causes: tuple[m.Cause, m.Cause], dead: bool, expected: m.Cause, detail: str
) -> None:
    stage = Stage(3)
    stage.form("abc")
    for who, cause in zip("ab", causes, strict=True):
        against = (m.Evidence(pid("c"), GONE),) if dead else ()
        stage.say(who, m.Report(1, 1, cause, 0, 0, (), against, f"of {who}"))
    if not dead:
        stage.report("c", 1, {}, cause=LINK)
    record = stage.record("a")
    assert (record.cause, record.detail) == (expected, detail)
    assert (record.lost == pid("c")) == (expected is LOST)


def test_of_a_mismatch_that_only_the_dead_could_name_that_is_said() -> None:
    """c found it, told a and b by ABORT, and was lost before it reported which calls it were."""
    stage = Stage(3)
    stage.form("abc")
    for who in "ab":
        stage.report(who, 1, {}, cause=m.Cause.MISMATCH, c=GONE)
    record = stage.record("a")
    assert (record.cause, record.lost) == (m.Cause.MISMATCH, m.NO_PEER)
    assert "lost before it said which" in record.detail


def test_repeated_reports_add_evidence_and_change_nothing_else() -> None:
    stage = Stage(3)
    stage.form("abc")
    for _ in range(3):
        assert epochs(stage.report("a", 1, {0: (1, 1, 2)}, b=CLOSED)) == []
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
    assert stage.record("a").lanes == (m.Outcome(0, 2, 2, 3),)
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
    assert stage.record("a").lanes == (m.Outcome(0, 3, 3, 3),)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.Report(1, 1, LOST, 0, 0, (), ()), "'train' (1)"),
        (m.Report(99, 1, LOST, 0, 0, (), ()), "number 99"),
        (m.Ping(1), "'train' (1)"),
        (m.Ping(99), "number 99"),
        (m.Subgroup(1, bytes(16), (pid("x"),)), "'train' (1)"),
    ],
)
def test_a_stranger_is_not_evicted_but_told_so(message: m.Message, words: str) -> None:
    """It may be a member of another run, whose coordinator was here before."""
    stage = Stage(2)
    stage.form("ab")
    stage.say("x", message)
    (unknown,) = stage.said["x"]
    assert isinstance(unknown, m.Unknown) and not unknown.recover
    assert words in unknown.reason and "--recover" in unknown.reason
    assert stage.tick(10) == {}


def test_a_member_that_knows_more_is_not_evicted_either() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 2)
    assert "no epoch 2" in stage.only("a", m.Unknown).reason
    assert list(stage.said) == ["a"]


def test_silence_towards_the_coordinator_never_counts_against_a_member() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.prepare("c", 1)
    assert "a" not in stage.tick(1000, "c")
    assert set(stage.core.groups[0].members) == {pid("a"), pid("b")}
