"""The coordinator's machine and those who wait for a running group: nobody waits for ever.

Method: short plays, as in test_coordinator_core. Both were found by a fleet (docs/simulator.md).
"""

from __future__ import annotations

from coordinator_stage import BOUNDARY, TIMEOUTS, Stage, names, ranks

from collectives import messages as m


def test_who_waits_comes_after_every_member_also_after_one_that_overtook_it() -> None:
    """Of two peers the later one dials, and members do not know who waits: a joiner that a later
    one overtook would wait for ever to be dialled."""
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.join("d")
    stage.rehearse("d")
    stage.report("a", 1, {0: (0, 1, 1)}, BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    stage.report("b", 1, {0: (0, 1, 1)}, BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    members = {chr(member.id[0]): member.serial for member in stage.record("a").members}
    assert members.keys() == set("abd")
    assert stage.welcomes["c"][-1].serial > max(members.values())


def test_members_that_die_after_a_joiner_has_reached_them_are_found_out() -> None:
    """Nobody is left to accuse anybody: the joiner has to try again, and again."""
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.join("d")
    stage.rehearse("c", "d")
    rounds = [stage.welcomes["c"][-1].round]
    for _ in range(2):  # the first time it still reaches them: then they were but silent
        stage.tick(TIMEOUTS.joiner_lost + 1, "c", "d")
        rounds.append(stage.welcomes["c"][-1].round)
        if len(rounds) == 2:
            stage.rehearse("c", "d")
    assert rounds == sorted(set(rounds)), "nobody was told to try again"
    stage.answer("c", stage.welcomes["c"][-1], fault="a")
    stage.rehearse("c", "d")
    record = stage.record("c")
    assert ranks(record) == {"c": 0, "d": 1}
    assert record.cause is m.Cause.FORMED


def test_who_wants_an_existing_group_is_refused_where_there_is_none() -> None:
    stage = Stage(2)
    stage.join("c", existing=True)
    assert "no members" in stage.only("c", m.Refused).reason
    stage.form("ab")
    stage.join("c", existing=True)
    assert names(stage.welcomes["c"][-1]) == "ab"


def test_who_waits_for_an_existing_group_is_refused_when_its_last_member_goes() -> None:
    """Another one, who would form it anew, stays."""
    stage = Stage(2)
    stage.form("ab")
    stage.join("c", existing=True)
    stage.join("d")
    stage.say("a", m.Bye())
    stage.say("b", m.Bye())
    assert "no members any more" in stage.only("c", m.Refused).reason
    stage.join("e")
    stage.rehearse("d", "e")
    assert ranks(stage.record("d")) == {"d": 0, "e": 1}
