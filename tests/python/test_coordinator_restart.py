"""The coordinator's machine after a restart by its journal: what stands, and what is asked anew.

Short plays, as in test_coordinator_core; the coordinator dies between two lines of them. Crashes in
the middle of a step are in test_coordinator_crash.
"""

from __future__ import annotations

from coordinator_stage import (
    BOUNDARY,
    CLOSED,
    DEADLINE,
    GONE,
    LINK,
    LOST,
    TIMEOUTS,
    Stage,
    epochs,
    names,
    pid,
    ranks,
)

from collectives import messages as m


def lasting(letters: str = "", size: int = 0, min_size: int = 1) -> Stage:
    stage = Stage(size or len(letters), min_size)
    stage.restart()
    if letters:
        stage.form(letters)
    return stage


def test_a_record_is_published_again_until_it_is_acknowledged() -> None:
    stage = lasting("ab")
    stage.restart()
    said = stage.tick(1.0)
    assert epochs(said) == [1]
    for who in "ab":
        stage.say(who, m.Installed(1, 1, False))
    assert stage.tick(5.0) == {}
    assert stage.core.deadline() == float("inf")


def test_every_word_carries_the_term_and_it_rises() -> None:
    stage = Stage(2)
    assert stage.form("ab").term == 0, "without a journal"
    stage = lasting("ab")
    terms = []
    for _ in range(3):
        stage.report("a", 1)
        seal = stage.only("b", m.Seal)
        answers = stage.say("a", m.Ping(1, seal.term))["a"]
        terms.append({word.term for word in (seal, *answers)})  # type: ignore[union-attr]
        stage.restart()
    assert terms == [{1}, {2}, {3}]


def test_a_decision_is_never_made_again() -> None:
    stage = lasting("abc")
    stage.report("a", 1, {0: (3, 4, 6)}, c=GONE)
    stage.report("b", 1, {0: (2, 5, 5)}, c=GONE)
    record = stage.record("a")
    stage.restart()
    # Neither what they say again, nor what they would say now, changes it.
    for who in "ab":
        stage.report(who, 1, {0: (4, 6, 6)}, cause=DEADLINE)
        assert stage.record(who) == record
    assert "taken for dead" in stage.report("c", 1)["c"][0].reason  # type: ignore[union-attr]
    assert "taken for dead" in stage.join("c")["c"][0].reason  # type: ignore[union-attr]


def test_reports_and_accusations_are_asked_anew() -> None:
    stage = lasting("abc")
    stage.report("a", 1, {}, c=GONE)
    stage.restart()
    assert epochs(stage.report("b", 1, {})) == []
    assert set(stage.said) == {"a", "c"}, "both are asked to report"
    stage.report("c", 1, {})
    assert epochs(stage.said) == []
    stage.report("a", 1, {}, cause=LINK)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1, "c": 2}


def test_nobody_was_silent_while_it_was_away() -> None:
    """Not for the settle time, nor when joiners doubt all members."""
    stage = lasting("ab")
    stage.report("a", 1, {}, b=CLOSED)
    stage.now += 1000
    stage.restart()
    assert epochs(stage.report("a", 1, {}, b=CLOSED)) == []
    assert 2 not in epochs(stage.tick(TIMEOUTS.settle_time - 0.5, "a"))
    stage.join("c")
    stage.prepare("c", 1, fault="a")
    assert not [w for ws in stage.said.values() for w in ws if isinstance(w, m.Evicted)]
    stage.report("b", 1, {}, cause=LINK)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}


def test_joiners_join_again_and_keep_nothing() -> None:
    stage = lasting(size=2)
    stage.join("a")
    stage.join("b")
    (before,) = {stage.welcomes[who][-1].token for who in "ab"}
    old = stage.welcomes["a"][-1]
    stage.restart()
    stage.join("a")
    stage.join("c")
    assert names(stage.welcomes["a"][-1]) == "ac"
    stage.answer("a", old)  # it reached b, not c
    stage.rehearse("c")
    assert epochs(stage.said) == []
    stage.rehearse("a")
    record = stage.record("a")
    assert ranks(record) == {"a": 0, "c": 1}
    assert stage.welcomes["a"][-1].token == before
    assert len({old.serial, *(member.serial for member in record.members)}) == 3


def test_what_fixed_a_group_stays_fixed() -> None:
    stage = lasting("ab")
    stage.restart()
    assert "size=2" in stage.join("c", size=3)["c"][0].reason  # type: ignore[union-attr]


def test_a_boundary_in_the_journal_admits_its_joiner() -> None:
    stage = lasting("ab")
    stage.join("c")
    stage.prepare("c", 1)
    for who in "ab":
        stage.report(who, 1, {0: (0, 1, 1)}, BOUNDARY, 1, m.WANT_JOIN)
    record = stage.record("c")
    stage.restart()  # and c never heard of it
    said = stage.join("c")["c"]
    assert [type(word) for word in said] == [m.Welcome, m.Epoch]
    assert stage.record("c") == record


def test_a_joiner_is_admitted_by_the_next_coordinator() -> None:
    stage = lasting("ab")
    stage.join("c")
    stage.prepare("c", 1)
    stage.restart()
    stage.join("c")
    stage.prepare("c", 1)
    assert stage.only("a", m.Pending).joiners == 1
    for who in "ab":
        stage.report(who, 1, {0: (0, 1, 1)}, BOUNDARY, 1, m.WANT_JOIN)
    assert ranks(stage.record("c")) == {"a": 0, "b": 1, "c": 2}


def test_a_group_that_dissolved_forms_anew_behind_its_numbers() -> None:
    stage = lasting(size=1)
    stage.join("a")
    stage.report("a", 1, {0: (5, 5, 5)}, cause=LINK)
    stage.say("a", m.Bye())
    stage.restart()
    stage.join("b")
    record = stage.record("b")
    assert (record.epoch, record.cause) == (3, m.Cause.FORMED)
    assert record.lanes == (m.Outcome(0, 5, 5, 5),)


def test_a_goodbye_is_remembered() -> None:
    stage = lasting("ab")
    stage.say("b", m.Bye())
    stage.restart()
    stage.report("a", 1, {}, cause=LINK)
    assert ranks(stage.record("a")) == {"a": 0}
    assert stage.join("b")["b"][0].left  # type: ignore[union-attr]


# ---- subgroups -----------------------------------------------------------------------------------

KEY = b"k" * 16
REQUEST = m.Subgroup(1, KEY, (pid("b"), pid("a")))


def open_subgroup(stage: Stage) -> None:
    for who in "ab":
        stage.say(who, REQUEST)
    for who in "ab":
        stage.say(who, m.Installed(2, 1, True))


def test_a_request_for_a_subgroup_waits_for_the_next_coordinator() -> None:
    stage = lasting("ab")
    stage.say("a", REQUEST)
    stage.restart()
    assert stage.say("b", REQUEST) == {}
    stage.say("a", REQUEST)
    assert stage.only("b", m.Opened).group == 2
    assert ranks(stage.record("a")) == {"b": 0, "a": 1}


def test_a_subgroup_is_opened_once() -> None:
    stage = lasting("ab")
    open_subgroup(stage)
    stage.restart()
    assert stage.say("a", REQUEST) == {"a": [m.Opened(KEY, 2)]}
    stage.say("b", m.Subgroup(1, b"n" * 16, (pid("b"),)))
    assert stage.only("b", m.Opened).group == 3
    for who in "ab":
        stage.say(who, m.Bye(2))
    stage.restart()
    assert [group.number for group in stage.core.groups] == [1, 3]
    stage.say("a", m.Subgroup(1, b"m" * 16, (pid("a"),)))
    assert stage.only("a", m.Opened).group == 4, "numbers are not used twice"


def test_who_was_lost_in_the_group_is_still_lost_in_its_subgroups() -> None:
    """Nobody in the subgroup has noticed anything: the others are asked to report again."""
    stage = lasting("abc")
    stage.say("a", m.Subgroup(1, KEY, (pid("a"), pid("c"))))
    stage.say("c", m.Subgroup(1, KEY, (pid("a"), pid("c"))))
    for who in "ac":
        stage.say(who, m.Installed(2, 1, True))
    for who in "ab":
        stage.report(who, 1, c=GONE)
    stage.restart()
    stage.say("a", m.Installed(2, 1, False))
    said = stage.tick(1.0, "a", "b")
    assert m.Seal(2, 1) in said["a"]
    stage.say("a", m.Report(2, 1, LOST, 0, 0, (), ()))
    assert ranks(stage.record("a")) == {"a": 0}
