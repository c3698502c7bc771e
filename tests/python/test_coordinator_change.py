"""The coordinator's machine, rule by rule: broken links, boundaries, joiners, goodbyes.

Short plays, as in test_coordinator_core.
"""

from __future__ import annotations

from coordinator_stage import (
    BOUNDARY,
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
from collectives.coordinator.decide import fewest_to_remove

# ---- links between the living --------------------------------------------------------------------


def test_a_link_that_breaks_twice_costs_the_later_of_the_two() -> None:
    stage = Stage(3)
    stage.form("abc")
    for epoch in (1, 2):
        stage.report("a", epoch, {}, cause=LINK)
        stage.report("b", epoch, {}, cause=LINK, c=CLOSED)
        stage.report("c", epoch, {}, cause=LINK, b=CLOSED)
    stage.tick(TIMEOUTS.beat)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    assert "twice" in stage.only("c", m.Evicted).reason


def test_who_is_cut_off_from_all_goes_at_once_though_it_reports() -> None:
    """All links of b are cut. c tells first; the others are sealed by it, and have reported before
    they find b silent themselves."""
    stage = Stage(4)
    stage.form("abcd")
    stage.report("c", 1, {}, b=SILENT)
    for who in "abd":
        assert epochs(stage.report(who, 1, {})) == []
    stage.report("b", 1, {}, a=SILENT, c=SILENT, d=SILENT)
    for who in "ad":
        assert epochs(stage.report(who, 1, {}, b=SILENT)) == []
    stage.tick(TIMEOUTS.beat)
    assert ranks(stage.record("a")) == {"a": 0, "c": 2, "d": 3}


def test_who_goes_for_a_broken_link_is_found_out_by_all_evidence() -> None:
    """All links of b are cut, but d does not say so. Only c did in the epoch before; still it is
    not c, the later of the two, that must go."""
    stage = Stage(4)
    stage.form("abcd")
    stage.report("c", 1, {}, b=SILENT)
    for who in "abd":
        stage.report(who, 1, {})
    stage.tick(TIMEOUTS.beat)
    assert len(stage.record("a").members) == 4
    for who in "ac":
        stage.report(who, 2, {}, b=SILENT)
    for who in "bd":
        stage.report(who, 2, {})
    stage.tick(TIMEOUTS.beat)
    assert ranks(stage.record("a")) == {"a": 0, "c": 2, "d": 3}


def test_one_that_is_cut_off_and_one_that_stopped_hold_nobody_up() -> None:
    """a has stopped just after it reported, so it accuses nobody any more; the links of b are cut,
    so it accuses all; and c, whose report never came, is silent to all that hear each other."""
    stage = Stage(6)
    stage.form("abcdef")
    stage.report("a", 1, {}, b=SILENT)
    stage.report("b", 1, {}, a=SILENT, c=SILENT, d=SILENT, e=SILENT, f=SILENT)
    for who in "de":
        stage.report(who, 1, {}, a=SILENT, b=SILENT, c=SILENT)
    assert epochs(stage.report("f", 1, {}, b=SILENT, c=SILENT)) == []  # f may hear a still
    stage.report("f", 1, {}, a=SILENT, b=SILENT, c=SILENT)
    stage.tick(TIMEOUTS.beat)
    assert ranks(stage.record("d")) == {"d": 3, "e": 4, "f": 5}


def test_of_two_that_hear_nothing_of_each_other_neither_goes_at_once() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.report("a", 1, {}, cause=DEADLINE)
    stage.report("b", 1, {}, a=SILENT)
    stage.report("a", 1, {}, cause=DEADLINE, b=SILENT)
    stage.tick(TIMEOUTS.beat)
    assert len(stage.record("a").members) == 2


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
    assert fewest_to_remove(pairs, pairs, serials) == [pid("a")]
    assert fewest_to_remove(pairs[:1], pairs[:1], serials) == [pid("b")]
    # Only one pair broke twice, but one of the two is part of all that are broken now.
    assert fewest_to_remove(pairs[:1], pairs, serials) == [pid("a")]


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
    assert record.lanes == (m.Outcome(0, 7, 7, 7),)
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


def test_who_was_overtaken_comes_after_those_who_are_members_now() -> None:
    """Of two peers the later one dials, and a member does not know who waits: c must dial d."""
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.join("d")
    stage.prepare("d", 1)
    for who in "ab":
        stage.report(who, 1, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    welcome = stage.only("c", m.Welcome)
    assert all(welcome.serial > member.serial for member in welcome.members)
    stage.prepare("c", 2)
    for who in "abd":
        stage.say(who, m.Installed(1, 2, False))
        stage.report(who, 2, {0: (1, 2, 2)}, cause=BOUNDARY, boundary=2, wants=m.WANT_JOIN)
    record = stage.record("c")
    assert [member.serial for member in record.members] == sorted(m.serial for m in record.members)
    assert record.members[-1] == m.Member(
        pid("c"), 3, welcome.serial, record.members[-1].host, record.members[-1].address, ""
    )


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
    assert record.lanes == (m.Outcome(0, 5, 5, 5),)


def test_an_interrupted_boundary_without_wishes_commits_without_change() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (4, 5, 5)}, boundary=5, c=GONE)
    stage.report("b", 1, {0: (5, 5, 5)}, boundary=0, c=GONE)  # b has returned "no change"
    record = stage.record("a")
    assert (record.cause, record.world) == (LOST, 3)
    assert record.lanes == (m.Outcome(0, 5, 5, 5),)


def test_an_interrupted_boundary_begins_again_if_somebody_was_not_there_yet() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (4, 5, 5)}, boundary=5, wants=m.WANT_JOIN, c=GONE)
    stage.report("b", 1, {0: (4, 4, 4)}, c=GONE)
    record = stage.record("a")
    assert (record.cause, record.world) == (LOST, 3)
    assert record.lanes == (m.Outcome(0, 4, 4, 5),)


def test_only_wishes_at_the_open_boundary_count() -> None:
    """a has returned "no change" from 3, and waits in 6 with a wish; b still has 3 open."""
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (5, 6, 6)}, boundary=6, wants=m.WANT_JOIN, c=GONE)
    stage.report("b", 1, {0: (4, 5, 5)}, c=GONE)
    record = stage.record("a")
    assert (record.cause, record.world) == (LOST, 3)
    assert record.lanes == (m.Outcome(0, 5, 5, 6),)


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
    for _ in range(5):  # a and b were killed; nobody is left to report that
        for who in "cd":
            stage.prepare(who, 2, fault="a")
        stage.tick(1, "c", "d")
    # What they said of the dead does not count for each other.
    assert [names(stage.welcomes[who][-1]) for who in "cd"] == ["cd", "cd"]
    assert stage.rehearse("c") == {}
    stage.rehearse("d")
    record = stage.record("c")
    assert (record.epoch, record.cause, record.world) == (3, m.Cause.FORMED, 2)
    assert ranks(record) == {"c": 0, "d": 1}
    assert record.lanes == (m.Outcome(0, 6, 6, 6),)
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
    assert stage.record("a").lanes == (m.Outcome(0, 1, 1, 1),)


def test_two_incarnations_are_two_peers() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c", name="b")  # the process of b, started again, before anyone noticed
    stage.report("a", 1, {}, b=GONE)
    assert ranks(stage.record("a")) == {"a": 0}
    assert stage.only("c", m.Welcome).epoch == 2
    assert stage.join("b")["b"] == [m.Evicted(1, 1, False, stage.only("b", m.Evicted).reason)]
