"""A coordinator that ends with its job: not before its last member is gone, and not much later.

Goal: whoever lives, silent or not, is not left alone; when nobody does, it is over. Method: short
plays with the coordinator's machine and a clock, as in test_coordinator_core. Who has a connection
is said by the play.
"""

from __future__ import annotations

import pytest
from coordinator_stage import BOUNDARY, GONE, TIMEOUTS, Stage, pid

from collectives import messages as m
from collectives.coordinator.vacancy import Vacancy

JOIN_WITHIN = 60.0
SOON = TIMEOUTS.linger + TIMEOUTS.ping
LOST = TIMEOUTS.joiner_lost
STEP = TIMEOUTS.ping / 2


class Play:
    """A coordinator that ends with its job. `connected`: the letters of who has a connection."""

    def __init__(self, size: int = 2, *, is_local: bool = True) -> None:
        self.stage = Stage(size)
        self.vacancy = Vacancy(TIMEOUTS, JOIN_WITHIN, is_local=is_local)
        self.connected = ""
        self.asked = 0
        assert not self.over()

    def over(self) -> bool:
        groups = self.stage.core.groups
        return self.vacancy.is_over(groups, self._is_connected, self.stage.now)

    def _is_connected(self, peer: bytes) -> bool:
        self.asked += 1
        return peer in map(pid, self.connected)

    def lasts(self, seconds: float, *pinging: str) -> float:
        """Lets time pass, and returns for how long it went on, at most so many seconds."""
        start = self.stage.now
        while self.stage.now < start + seconds:
            self.stage.tick(STEP, *pinging)
            assert self.vacancy.deadline() > self.stage.now - STEP
            if self.over():
                break
        return self.stage.now - start

    def sleep(self, seconds: float) -> None:
        """The coordinator is stopped for so long."""
        self.stage.now += seconds


def test_without_members_it_waits_for_the_first() -> None:
    assert Play().lasts(2 * JOIN_WITHIN) == JOIN_WITHIN


def test_who_waits_to_join_is_not_left_alone() -> None:
    play = Play()
    play.stage.join("a")
    assert play.lasts(2 * JOIN_WITHIN, "a") == 2 * JOIN_WITHIN
    play.stage.say("a", m.Bye())
    assert play.over()


def test_a_joiner_that_gave_up_early_does_not_end_the_wait_for_the_first_member() -> None:
    play = Play()
    play.stage.join("a")
    play.stage.say("a", m.Bye())
    assert play.lasts(2 * JOIN_WITHIN) == JOIN_WITHIN


def test_it_ends_soon_after_all_have_closed() -> None:
    play = Play()
    play.stage.form("ab")
    assert play.lasts(2 * JOIN_WITHIN, "a", "b") == 2 * JOIN_WITHIN
    play.stage.say("a", m.Bye())
    play.stage.say("b", m.Bye())
    assert TIMEOUTS.linger <= play.lasts(JOIN_WITHIN) <= SOON


def test_it_ends_after_all_have_left_but_first_says_so() -> None:
    play = Play()
    play.stage.form("ab")
    for who in "ab":
        play.stage.report(who, 1, {0: (0, 1, 1)}, BOUNDARY, boundary=1, wants=m.WANT_LEAVE)
    assert not play.over()
    assert play.stage.only("a", m.Evicted).left
    assert play.lasts(JOIN_WITHIN) <= SOON


def test_who_is_left_of_many_keeps_it() -> None:
    play = Play(3)
    play.stage.form("abc")
    play.stage.say("a", m.Bye())
    play.stage.report("b", 1, a=GONE, c=GONE)
    assert [member.id for member in play.stage.record("b").members] == [pid("b")]
    assert play.lasts(JOIN_WITHIN, "b") == JOIN_WITHIN
    play.stage.say("b", m.Bye())
    assert play.lasts(JOIN_WITHIN) <= SOON


def test_a_group_that_ended_does_not_end_the_others() -> None:
    play = Play(1)
    play.stage.join("a")
    play.stage.join("b", group="other")
    play.stage.say("a", m.Bye())
    assert play.lasts(JOIN_WITHIN, "b") == JOIN_WITHIN
    play.stage.say("b", m.Bye())
    assert play.lasts(JOIN_WITHIN) <= SOON


def test_who_joins_at_the_last_moment_keeps_it() -> None:
    play = Play(1)
    play.stage.join("a")
    play.stage.say("a", m.Bye())
    assert play.lasts(TIMEOUTS.linger / 2) == TIMEOUTS.linger / 2
    play.stage.join("b")
    assert play.lasts(JOIN_WITHIN, "b") == JOIN_WITHIN


def test_members_that_all_died_at_once_are_found_out() -> None:
    play = Play()
    play.stage.form("ab")
    assert LOST <= play.lasts(JOIN_WITHIN) <= LOST + TIMEOUTS.ping


def test_far_members_may_be_cut_off_and_are_waited_for() -> None:
    play = Play(is_local=False)
    play.stage.form("ab")
    away = TIMEOUTS.coordinator_lost
    assert away <= play.lasts(2 * away) <= away + TIMEOUTS.ping


def test_a_silent_member_that_has_a_connection_lives() -> None:
    """Its interpreter is busy, or it was stopped."""
    play = Play()
    play.stage.form("ab")
    play.connected = "b"
    assert play.lasts(10 * LOST) == 10 * LOST
    play.connected = ""
    assert play.lasts(JOIN_WITHIN) <= LOST + TIMEOUTS.ping


def test_a_connection_is_asked_for_only_when_nobody_speaks() -> None:
    play = Play()
    play.stage.form("ab")
    play.connected = "ab"
    play.lasts(10 * LOST, "a")
    assert play.asked == 0


def test_former_members_do_not_keep_it() -> None:
    play = Play()
    play.stage.form("ab")
    play.stage.say("b", m.Bye())
    play.connected = "b"
    assert play.lasts(JOIN_WITHIN, "b") <= LOST + TIMEOUTS.ping


def test_what_it_did_not_hear_while_it_was_stopped_is_no_silence() -> None:
    play = Play()
    play.stage.form("ab")
    for _ in range(10):
        assert play.lasts(TIMEOUTS.ping) == TIMEOUTS.ping
        play.sleep(100 * LOST)
        assert not play.over()
        play.stage.say("a", m.Ping())
        assert not play.over()


def restarted(play: Play, letters: str) -> None:
    """The coordinator comes back by its journal: in there are a group's members, or who was one."""
    play.stage.restart()
    play.stage.form("ab")
    for who in set("ab") - set(letters):
        play.stage.say(who, m.Bye())
    play.stage.restart()
    play.vacancy = Vacancy(TIMEOUTS, JOIN_WITHIN, is_local=True)
    assert not play.over()


def test_after_a_restart_members_come_back() -> None:
    play = Play()
    restarted(play, "ab")
    assert play.lasts(TIMEOUTS.ping) == TIMEOUTS.ping
    assert play.lasts(JOIN_WITHIN, "a") == JOIN_WITHIN
    play.stage.say("a", m.Bye())
    play.stage.say("b", m.Bye())
    assert play.lasts(JOIN_WITHIN) <= SOON


def test_after_a_restart_with_nobody_left_it_waits_for_the_first() -> None:
    play = Play()
    restarted(play, "")
    assert play.lasts(2 * JOIN_WITHIN) == JOIN_WITHIN


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="join_within"):
        Vacancy(TIMEOUTS, seconds)
