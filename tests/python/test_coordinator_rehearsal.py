"""The coordinator's machine before the first epoch: who rehearses with whom, and what came of it.

Goal: a group forms only of peers that have all reached each other in one and the same round; one
that goes or cannot be reached costs the others a new round and no more; and all members find the
same figures of their network in the record.

Method: short plays, as in test_coordinator_core. A play says PREPARED for a WELCOME that was really
sent, also for one that is out of date. Expected figures are worked out by hand.
"""

from __future__ import annotations

import pytest
from coordinator_stage import (
    BOUNDARY,
    GONE,
    LINK,
    TIMEOUTS,
    Stage,
    epochs,
    names,
    pid,
    ranks,
)

from collectives import messages as m

# ---- the figures of the network ------------------------------------------------------------------


def figures(record: m.Epoch) -> tuple[int, int]:
    return record.latency_ns, record.bytes_per_s


def formed_with(*networks: tuple[int, int]) -> tuple[Stage, m.Epoch]:
    """A group of a, b, ... that measured these. All of them get one record."""
    letters = "abcdef"[: len(networks)]
    stage = Stage(len(letters))
    for who in letters:
        stage.join(who)
    for who, network in zip(letters, networks, strict=True):
        stage.rehearse(who, network=network)
    record = stage.record("a")
    assert all(stage.only(who, m.Epoch) == record for who in letters)
    for who in letters:
        stage.say(who, m.Installed(1, 1, False))
    return stage, record


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (((1000, 5_000_000), (1025, 4_000_000), (3, 9_000_000)), (2048, 2_097_152)),
        (((4_000_000, 125_000_000), (9, 9)), (4_194_304, 8)),
        (((1024, 1_048_576), (1024, 1_048_576)), (1024, 1_048_576)),  # powers stay
        (((1023, 1_048_575), (7, 1_048_577)), (1024, 524_288)),
        (((1, 1), (1, 1)), (1, 1)),
        (((0, 0), (0, 0)), (0, 0)),  # nobody knows
        (((0, 0), (500, 0), (0, 900)), (512, 512)),  # who does not know does not count
        (((2**64 - 1, 2**64 - 1), (0, 0)), (2**63, 2**63)),  # nonsense must fit all the same
    ],
)
def test_the_record_has_the_worst_figures_as_powers_of_two(
    networks: tuple[tuple[int, int], ...], expected: tuple[int, int]
) -> None:
    """Latency is rounded up and bandwidth down, whoever measured it and whenever it came."""
    for order in (networks, networks[::-1]):
        assert figures(formed_with(*order)[1]) == expected


def test_what_members_measured_is_kept_until_they_go() -> None:
    """Later records count those who are left, and a joiner by its latest rehearsal."""
    stage, record = formed_with((1000, 8_000_000), (5000, 2_000_000), (70_000, 1_000_000))
    assert figures(record) == (131_072, 524_288)
    stage.report("a", 1, {}, c=GONE)
    stage.report("b", 1, {}, c=GONE)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    assert figures(stage.record("a")) == (8192, 1_048_576)
    stage.join("d")
    stage.rehearse("d", network=(10**9, 1))
    for who in "ab":
        stage.report(who, 2, {}, cause=LINK)
    assert stage.record("a") == stage.record("b")
    assert figures(stage.record("a")) == (8192, 1_048_576)  # d is no member yet
    stage.rehearse("d", network=(9000, 5_000_000))
    for who in "ab":
        stage.report(who, 3, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    assert ranks(stage.record("d")) == {"a": 0, "b": 1, "d": 2}
    assert stage.record("a") == stage.record("d")
    assert figures(stage.record("d")) == (16_384, 1_048_576)
    # Sent again to who did not acknowledge it, it is the same record.
    record = stage.record("d")
    again = [word for word in stage.tick(1.0)["d"] if isinstance(word, m.Epoch)]
    assert again and set(again) == {record}


def test_one_alone_forms_a_group_at_once() -> None:
    stage = Stage(1)
    assert [type(word) for word in stage.join("a")["a"]] == [m.Welcome, m.Epoch]
    assert ranks(stage.record("a")) == {"a": 0}
    assert figures(stage.record("a")) == (0, 0)


# ---- rounds --------------------------------------------------------------------------------------


def test_all_candidates_are_asked_for_the_same_and_nobody_else() -> None:
    stage = Stage(2)
    stage.join("a")
    assert names(stage.only("a", m.Welcome)) == ""
    stage.join("b")
    for who in "ab":
        welcome = stage.only(who, m.Welcome)
        assert (welcome.epoch, welcome.waiting, names(welcome)) == (0, 2, "ab")
        assert [member.serial for member in welcome.members] == [1, 2]
        assert [member.address for member in welcome.members] == [
            "10.0.0.97:5000",
            "10.0.0.98:5000",
        ]
    assert stage.welcomes["a"][-1].round == stage.welcomes["b"][-1].round
    assert set(stage.join("c")) == {"c"}  # which waits, and starts no round
    assert names(stage.only("c", m.Welcome)) == ""
    stage.rehearse("a", "b")
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    # Now it is c's turn to prepare, for the members.
    assert names(stage.only("c", m.Welcome)) == "ab"


def test_repetitions_change_nothing() -> None:
    stage = Stage(2)
    stage.join("a")
    first = stage.join("b")
    for _ in range(3):
        assert stage.join("a") == {"a": first["a"]}
        assert stage.rehearse("a") == {}
        assert stage.join("b") == {"b": first["b"]}
    stage.rehearse("b")
    record = stage.record("a")
    for _ in range(3):
        assert stage.rehearse("a", "b", network=(77, 77)) == {}
    assert stage.join("a")["a"][-1] == record
    assert figures(record) == (0, 0)


@pytest.mark.parametrize("how", ["goodbye", "silence"])
def test_who_goes_in_the_middle_is_replaced_in_a_new_round(how: str) -> None:
    stage = Stage(3)
    for who in "abcd":
        stage.join(who)
    stage.rehearse("a", "b")
    old = {who: stage.welcomes[who][-1] for who in "ab"}
    said = stage.say("c", m.Bye()) if how == "goodbye" else stage.tick(TIMEOUTS.joiner_lost, *"abd")
    new = {who: stage.welcomes[who][-1] for who in "abd"}
    assert all(new[who] in said[who] and names(new[who]) == "abd" for who in "abd")
    assert new["a"].round == new["b"].round == new["d"].round > old["a"].round
    # What was said for the round with c does not count, neither before the change nor after it.
    stage.rehearse("d")
    for who in "ab":
        assert stage.answer(who, old[who]) == {}
    assert stage.rehearse("a") == {}
    stage.rehearse("b")
    assert ranks(stage.record("d")) == {"a": 0, "b": 1, "d": 2}
    # c, if it lives, waits like any other.
    stage.join("c")
    assert names(stage.only("c", m.Welcome)) == "abd"


def test_without_a_replacement_the_group_waits_for_one() -> None:
    stage = Stage(3)
    for who in "abc":
        stage.join(who)
    stage.rehearse("a", "b")
    old = stage.welcomes["a"][-1]
    stage.say("c", m.Bye())
    assert stage.answer("a", old) == {}
    stage.join("a")
    welcome = stage.only("a", m.Welcome)
    assert (welcome.waiting, names(welcome)) == (2, "")
    stage.join("d")
    assert names(stage.only("a", m.Welcome)) == "abd"
    assert stage.rehearse("d") == {}
    stage.rehearse("a", "b")
    assert ranks(stage.record("a")) == {"a": 0, "b": 1, "d": 2}


def test_who_comes_back_is_reached_anew() -> None:
    """c is lost and joins again, on the same group of candidates: its links may be gone."""
    stage = Stage(3)
    for who in "abc":
        stage.join(who)
    stage.rehearse("a", "b")
    old = stage.welcomes["a"][-1]
    stage.tick(TIMEOUTS.joiner_lost, "a", "b")
    stage.join("c")
    assert names(stage.only("a", m.Welcome)) == "abc"
    assert stage.only("a", m.Welcome).round > old.round
    assert stage.rehearse("c") == {}
    assert stage.rehearse("a") == {}
    stage.rehearse("b")
    assert ranks(stage.record("c")) == {"a": 0, "b": 1, "c": 2}


def test_a_joiner_of_a_running_group_answers_by_round() -> None:
    stage = Stage(2)
    for who in "abc":
        stage.join(who)
    stage.rehearse("a", "b")
    stage.rehearse("c")
    assert stage.said == {"a": [m.Pending(1, 1)], "b": [m.Pending(1, 1)]}
    assert stage.rehearse("c") == {}
    for who in "ab":
        stage.report(who, 1, {}, cause=LINK)
    assert [word.joiners for word in stage.said["a"] if isinstance(word, m.Pending)] == [1]
    old, new = stage.welcomes["c"][-2:]
    assert (old.epoch, new.epoch, names(new)) == (1, 2, "ab")
    assert new.round > old.round
    for _ in range(5):  # a failure of the old round is no news
        assert stage.answer("c", old, fault="a") == {}
        stage.tick(0.5, "a", "b", "c")
    for who in "ab":
        stage.report(who, 2, {0: (0, 1, 1)}, cause=BOUNDARY, boundary=1, wants=m.WANT_JOIN)
    assert ranks(stage.record("c")) == {"a": 0, "b": 1, "c": 2}


def test_who_waits_for_a_group_that_is_no_more_hears_of_it_at_once() -> None:
    stage = Stage(2)
    stage.form("ab")
    stage.join("c")
    stage.say("a", m.Bye())
    stage.say("b", m.Bye())
    asked, told = stage.welcomes["c"]
    assert (names(asked), names(told), told.waiting) == ("ab", "", 1)
    assert told.round > asked.round
    assert stage.answer("c", asked) == {}
    stage.join("d")
    assert stage.rehearse("d") == {}
    stage.rehearse("c")
    assert ranks(stage.record("d")) == {"c": 0, "d": 1}


def test_a_group_that_forms_anew_rehearses_too() -> None:
    """Epochs and lanes go on; what those who waited had prepared for does not count any more."""
    stage = Stage(2)
    stage.form("ab")
    for who in "ab":
        stage.report(who, 1, {0: (1, 2, 4)}, cause=LINK)
    for who in "cd":
        stage.join(who)
        stage.rehearse(who, network=(100, 100))
    old = {who: stage.welcomes[who][-1] for who in "cd"}
    for who in "ab":
        stage.say(who, m.Bye())
    for who in "cd":
        welcome = stage.welcomes[who][-1]
        assert (welcome.epoch, names(welcome)) == (2, "cd")
        assert stage.answer(who, old[who]) == {}
    stage.rehearse("c", network=(3000, 3000))
    stage.rehearse("d")
    record = stage.record("c")
    assert (record.epoch, record.cause, ranks(record)) == (3, m.Cause.FORMED, {"c": 0, "d": 1})
    assert record.lanes == (m.Outcome(0, 2, 2, 2),)
    assert figures(record) == (4096, 2048)


# ---- candidates that do not reach each other -----------------------------------------------------


def fail(stage: Stage, turns: int, alive: str, **faults: str) -> dict[str, list[m.Message]]:
    """Once a second each of these fails to reach its fault; those alive are heard in between."""
    said: dict[str, list[m.Message]] = {}
    for _ in range(turns):
        for who, fault in faults.items():
            for other, words in stage.rehearse(who, fault=fault).items():
                said.setdefault(other, []).extend(words)
        for other, words in stage.tick(1, *alive).items():
            said.setdefault(other, []).extend(words)
    return said


def refused(said: dict[str, list[m.Message]]) -> dict[str, str]:
    words = [(who, word) for who in said for word in said[who]]
    return {who: word.reason for who, word in words if isinstance(word, m.Refused)}


def test_of_two_that_live_apart_the_later_goes_and_learns_why() -> None:
    stage = Stage(2)
    stage.join("a", name="first")
    stage.join("b")
    stage.join("c")
    assert refused(fail(stage, 2, "abc", b="a", a="b")) == {}
    reasons = refused(fail(stage, 1, "abc", a="b"))
    assert list(reasons) == ["b"]
    assert reasons["b"] == (
        "the peer ('first') at 10.0.0.97:5000 could not reach this peer at 10.0.0.98:5000: refused"
    )
    # The next one has its place, with a clean slate.
    assert names(stage.welcomes["a"][-1]) == names(stage.welcomes["c"][-1]) == "ac"
    assert refused(fail(stage, 2, "ac", c="a")) == {}
    stage.rehearse("a", "c")
    assert ranks(stage.record("a")) == {"c": 0, "a": 1}  # by name
    # b may come again.
    stage.join("b")
    assert names(stage.only("b", m.Welcome)) == "ca"


def test_the_later_one_is_told_whom_it_could_not_reach() -> None:
    stage = Stage(2)
    stage.join("a", name="first")
    stage.join("b")
    reasons = refused(fail(stage, 3, "ab", b="a"))
    assert list(reasons) == ["b"]
    assert reasons["b"] == (
        "this peer could not reach the peer ('first') at 10.0.0.97:5000: refused"
    )
    stage.join("a", name="first")
    assert stage.only("a", m.Welcome).waiting == 1


def test_one_bad_address_costs_only_its_owner_the_place() -> None:
    """Nobody reaches a, which came first; all others live and reach each other."""
    stage = Stage(4)
    for who in "abcde":
        stage.join(who)
    reasons = refused(fail(stage, 3, "abcde", b="a", c="a", d="a", a="d"))
    assert list(reasons) == ["a"]
    assert "could not reach this peer at 10.0.0.97:5000" in reasons["a"]
    assert names(stage.welcomes["b"][-1]) == "bcde"
    # Who had that trouble with a is no suspect for it.
    for who in "fg":
        stage.join(who)
    assert list(refused(fail(stage, 3, "bcdefg", e="b"))) == ["e"]
    stage.rehearse(*"bcdf")
    assert ranks(stage.record("b")) == {"b": 0, "c": 1, "d": 2, "f": 3}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("size", "bad"), [(2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)])
def test_a_bad_address_is_found_wherever_it_is_in_the_row(
    size: int, bad: int, backwards: bool
) -> None:
    """Of two, the later dials. So the bad one meets those before it, but nobody who came after it;
    which of a single such pair is at fault nobody can know, and the second time it is clear."""
    stage = Stage(size)
    culprit, waiting = "abcdefgh"[bad], list("abcdefgh")
    for who in waiting:
        stage.join(who)
    for _ in range(8):
        for who in sorted(waiting, reverse=backwards):
            met = names(stage.welcomes[who][-1])
            if who == culprit:
                fault = next((other for other in met if other > who), "")
            else:
                fault = culprit if culprit in met and who > culprit else ""
            reasons = refused(stage.rehearse(who, fault=fault) if met else {})
            waiting = [other for other in waiting if other not in reasons]
        stage.tick(1, *waiting)
    gone = set("abcdefgh") - set(waiting)
    assert culprit in gone
    assert len(gone) == (1 if bad < size - 2 else 2)
    members = stage.core.groups[0].members
    assert [chr(peer[0]) for peer in members] == waiting[:size]


def test_the_dead_are_waited_for_and_cost_nobody_else_the_place() -> None:
    """b is killed: at once nobody reaches it, but the coordinator misses it only later."""
    stage = Stage(3)
    for who in "abcd":
        stage.join(who)
    stage.tick(1, *"abcd")
    died = stage.now
    said = fail(stage, 4, "acd", a="b", c="b")
    assert refused(said) == {} and epochs(said) == []
    assert stage.core.deadline() == died + TIMEOUTS.joiner_lost
    said = fail(stage, 1, "acd", a="b", c="b")
    assert refused(said) == {}
    assert names(stage.welcomes["a"][-1]) == "acd"
    stage.rehearse(*"acd")
    assert ranks(stage.record("a")) == {"a": 0, "c": 1, "d": 2}


def test_who_can_prepare_for_nobody_is_given_up() -> None:
    stage = Stage(2)
    stage.join("a")
    stage.join("b")
    asked = stage.welcomes["a"][-1]
    broken = m.Prepared(1, asked.round, False, m.NO_PEER, "no such host")
    for _ in range(3):
        stage.tick(1, "a", "b")
        stage.say("a", broken)
    assert "could not prepare: no such host" in stage.only("a", m.Refused).reason
    assert set(stage.core.groups[0].lobby.joiners) == {pid("b")}


def test_a_failure_that_passes_is_forgiven() -> None:
    """b needed some attempts to reach a. That must not count when c later fails for good."""
    stage = Stage(3)
    for who in "abc":
        stage.join(who)
    for _ in range(2):
        assert refused(fail(stage, 2, "abc", b="a")) == {}
        stage.rehearse("b")
    # Otherwise a would be in two such pairs, c in one.
    assert list(refused(fail(stage, 3, "abc", c="a"))) == ["c"]


def test_a_failure_of_an_earlier_round_is_forgotten() -> None:
    stage = Stage(3)
    for who in "abcd":
        stage.join(who)
    fail(stage, 2, "abcd", b="a")
    stage.say("c", m.Bye())
    assert refused(fail(stage, 2, "abd", b="d")) == {}
    stage.rehearse("b")
    assert list(refused(fail(stage, 3, "abd", d="a"))) == ["d"]


def test_a_failure_told_twice_counts_once() -> None:
    stage = Stage(2)
    stage.join("a")
    stage.join("b")
    stage.tick(1, "a", "b")
    for _ in range(10):
        assert stage.rehearse("b", fault="a") == {}
    stage.rehearse("a", "b")
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
