"""Goal: the coordinator forms a subgroup once all of its members that live have asked for it, loses
nobody by it, and keeps nothing of those that come to nothing.

Method: short plays with the machine alone, no sockets, no clock. The group is number 1, what is
formed from it has the numbers behind.
"""

from __future__ import annotations

from typing import Any

from coordinator_stage import LOST, TIMEOUTS, Stage, pid, ranks

from collectives import messages as m

KEY = b"k" * 16
CLOSED, GOODBYE = m.EvidenceKind.CLOSED, m.EvidenceKind.GOODBYE


def formed(letters: str = "abc") -> Stage:
    stage = Stage(len(letters))
    stage.form(letters)
    return stage


def ask(stage: Stage, who: str, members: str, key: bytes = KEY, parent: int = 1) -> Any:
    """What `who` is told when it asks."""
    request = m.Subgroup(parent, key, tuple(map(pid, members)))
    return stage.say(who, request).get(who, [])


def open_subgroup(stage: Stage, members: str, parent: int = 1, key: bytes = KEY) -> int:
    """Lets all ask and install; returns the group's number."""
    for who in members:
        ask(stage, who, members, key, parent)
    number = stage.only(members[-1], m.Opened).group
    for who in members:
        stage.say(who, m.Installed(number, 1, True))
    return int(number)


def report(stage: Stage, who: str, group: int, **evidence: m.EvidenceKind) -> Any:
    against = tuple(m.Evidence(pid(letter), kind) for letter, kind in evidence.items())
    return stage.say(who, m.Report(group, 1, LOST, 0, 0, (), against))


def evicted(stage: Stage, who: str) -> list[m.Evicted]:
    return [word for word in stage.said.get(who, []) if isinstance(word, m.Evicted)]


def test_it_forms_when_all_have_asked_in_the_order_asked_for() -> None:
    stage = formed()
    assert ask(stage, "c", "cab") == []
    assert ask(stage, "b", "cab") == []
    ask(stage, "a", "cab")
    for who in "abc":
        opened = stage.only(who, m.Opened)
        assert (opened.key, opened.group) == (KEY, 2)
        record = stage.only(who, m.Epoch)
        assert ranks(record) == {"c": 0, "a": 1, "b": 2}
        assert (record.group, record.epoch, record.world) == (2, 1, 3)
    assert stage.core.groups[1].token == stage.core.groups[0].token
    (again,) = ask(stage, "b", "cab")  # OPENED was lost
    assert again.group == 2


def test_who_died_meanwhile_is_left_out() -> None:
    stage = formed()
    ask(stage, "a", "cba")
    ask(stage, "b", "cba")
    for who in "ab":
        stage.report(who, 1, c=m.EvidenceKind.REFUSED)
    record = [word for word in stage.said["a"] if isinstance(word, m.Epoch) and word.group == 2]
    assert ranks(record[0]) == {"b": 0, "a": 1}


def test_what_cannot_be_is_refused() -> None:
    stage = formed()
    for who, members, parent, words in [
        ("a", "bc", 1, "not among"),
        ("a", "ab", 9, "no group number 9"),
    ]:
        (answer,) = ask(stage, who, members, parent=parent)
        assert answer.group == 0 and words in answer.reason
    ask(stage, "a", "ab")
    (answer,) = ask(stage, "b", "ba")
    assert answer.group == 0 and "different" in answer.reason


def test_who_closes_a_subgroup_is_no_dead_peer() -> None:
    """The others' report of its goodbye may come before its own word, or that may be lost."""
    stage = formed()
    group = open_subgroup(stage, "ab")
    report(stage, "b", group, a=GOODBYE)
    (told,) = evicted(stage, "a")
    assert told.left and told.group == group
    assert ranks(stage.only("b", m.Epoch)) == {"b": 1}
    assert set(stage.core.groups[0].present) == {pid("a"), pid("b"), pid("c")}
    stage.say("a", m.Bye(group))
    assert set(stage.core.groups[0].present) == {pid("a"), pid("b"), pid("c")}


def test_a_subgroup_finds_nobody_dead() -> None:
    """Its only other member has a broken link to a peer whose interpreter is busy. In the whole
    group a third one hears that peer."""
    stage = formed()
    group = open_subgroup(stage, "ab")
    for number in (1, group):
        report(stage, "a", number, b=CLOSED)
    report(stage, "c", 1)
    said = stage.tick(5 * TIMEOUTS.dead, "a", "b", "c")
    assert not [word for words in said.values() for word in words if isinstance(word, m.Evicted)]
    for number in (1, group):
        report(stage, "b", number)
        records = [w for w in stage.said["a"] if isinstance(w, m.Epoch) and w.group == number]
        assert len(records[-1].members) == len({1: "abc", group: "ab"}[number])


def test_a_death_in_the_group_is_one_in_its_subgroups() -> None:
    """Their members are asked to report, though none of them has noticed anything."""
    stage = formed()
    group = open_subgroup(stage, "abc")
    nested = open_subgroup(stage, "bc", group, b"n" * 16)
    stage.report("a", 1, c=m.EvidenceKind.REFUSED)
    said = stage.report("b", 1)
    for number, members in ((group, "ab"), (nested, "b")):
        for who in members:
            assert m.Seal(number, 1) in said[who]
        for who in members:
            report(stage, who, number)
        record = [w for w in stage.said[members[0]] if isinstance(w, m.Epoch)][-1]
        assert {chr(member.id[0]) for member in record.members} == set(members)


def test_requests_that_nobody_repeats_are_forgotten() -> None:
    stage = formed()
    for number in range(50):
        ask(stage, "a", "ab", bytes([number]) * 16)
    stage.tick(TIMEOUTS.joiner_lost + 1, "a", "b", "c")
    assert not stage.core._openings
    ask(stage, "b", "ab", bytes(16))  # too late: the other's patience is over
    assert len(stage.core.groups) == 1
    ask(stage, "a", "ab", bytes(16))
    assert len(stage.core.groups) == 2


def test_who_left_before_it_was_formed_is_told() -> None:
    stage = formed()
    parent = open_subgroup(stage, "abc")
    ask(stage, "a", "ab", b"n" * 16, parent)
    stage.say("a", m.Bye(parent))
    ask(stage, "b", "ab", b"n" * 16, parent)
    (answer,) = ask(stage, "a", "ab", b"n" * 16, parent)
    assert answer.group == 0 and "without this peer" in answer.reason


def test_groups_that_all_have_left_are_forgotten() -> None:
    stage = formed("ab")
    for number in range(30):
        group = open_subgroup(stage, "ab", key=bytes([number]) * 16)
        for who in "ab":
            stage.say(who, m.Bye(group))
    assert len(stage.core.groups) == 1
    assert not stage.core._subgroups


def test_names_stay_short_however_deep() -> None:
    stage = formed("abc")
    parent = 1
    for number in range(300):
        parent = open_subgroup(stage, "ab", parent, number.to_bytes(16, "big"))
    (answer,) = ask(stage, "c", "bc", parent=parent)
    assert answer.group == 0 and len(answer.reason) < 200
    assert "no member of group" in answer.reason


def test_a_join_cannot_name_a_subgroup() -> None:
    """A group of that name is another one."""
    stage = formed("ab")
    open_subgroup(stage, "ab")
    stage.join("c", group=stage.core.groups[1].name, size=1)
    assert len(stage.core.groups) == 3
