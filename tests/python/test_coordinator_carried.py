"""Reports that one member carries for another: the coordinator's machine.

Goal: a report counts the same whoever brings it, and bringing it says nothing else about its peer.
Method: short plays as in test_coordinator_core.py; then the random schedules of
test_coordinator_random.py, with carriers drawn at random.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_coordinator_random as schedules
from coordinator_stage import CLOSED, DEADLINE, GONE, LINK, LOST, SILENT, Stage, epochs, pid, ranks

from collectives import messages as m


def carried(
    of: str, epoch: int = 1, marks: tuple[int, int, int] = (0, 0, 1), **evidence: m.EvidenceKind
) -> m.Report:
    against = tuple(m.Evidence(pid(letter), kind) for letter, kind in evidence.items())
    lanes = (m.LaneReport(0, *marks),)
    return m.Report(1, epoch, LOST, 0, 0, lanes, against, of=pid(of))


def test_a_carried_report_decides_like_any_other() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (1, 2, 3)}, c=GONE)
    stage.say("a", carried("b", marks=(1, 1, 2), c=GONE))
    record = stage.record("a")
    assert record == stage.record("b")
    assert ranks(record) == {"a": 0, "b": 1}
    assert (record.cause, record.lost) == (LOST, pid("c"))
    assert record.lanes == (m.Outcome(0, 1, 1, 3),)


def test_who_is_cut_off_from_the_coordinator_is_kept() -> None:
    """Alive by its report, however long nothing else is heard of it."""
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (0, 0, 1)}, c=GONE)
    assert epochs(stage.tick(10, "a")) == []
    stage.say("a", carried("b"))
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    stage.say("a", m.Installed(1, 2, False))
    said = stage.tick(60, "a")
    assert all(isinstance(word, m.Epoch) for word in said["b"])  # again and again
    assert epochs(said) == [2]


def test_it_may_come_from_several_and_from_itself() -> None:
    stage = Stage(4)
    stage.form("abcd")
    for carrier in "acbac":
        stage.say(carrier, carried("b", d=CLOSED) if carrier != "b" else carried("b"))
    stage.report("b", 1, {0: (0, 0, 1)})  # as itself, without a name in it
    assert not any(isinstance(w, m.Evicted) for words in stage.said.values() for w in words)
    stage.report("a", 1, {0: (0, 0, 1)}, d=GONE)
    stage.report("c", 1, {0: (0, 0, 1)})
    assert ranks(stage.record("a")) == {"a": 0, "b": 1, "c": 2}


def test_evidence_is_that_of_its_author() -> None:
    """What b says against c is not what a says."""
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (0, 0, 1)})
    stage.say("a", carried("b", c=SILENT))
    assert epochs(stage.tick(20, "a", "b")) == []  # a still hears c
    stage.report("a", 1, {0: (0, 0, 1)}, c=SILENT)
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}


def test_only_the_first_report_on_an_epoch_calls_for_the_others() -> None:
    stage = Stage(3)
    stage.form("abc")
    said = stage.say("a", carried("b"))
    assert said == {"a": [m.Seal(1, 1)], "c": [m.Seal(1, 1)]}


@pytest.mark.parametrize("epoch", [1, 3])
def test_of_another_epoch_it_is_ignored(epoch: int) -> None:
    stage = Stage(2)
    stage.form("ab")
    for who in "ab":
        stage.report(who, 1, {0: (0, 0, 1)}, cause=LINK)
    assert stage.say("a", carried("b", epoch)) == {}
    assert epochs(stage.tick(0.4)) == []


def test_what_cannot_be_true_is_ignored_not_punished() -> None:
    stage = Stage(2)
    stage.form("ab")
    assert stage.say("a", carried("b", marks=(5, 4, 6))) == {}
    stage.report("a", 1, {0: (0, 0, 1)}, cause=DEADLINE)
    stage.report("b", 1, {0: (0, 1, 1)}, cause=DEADLINE)
    record = stage.record("a")
    assert ranks(record) == {"a": 0, "b": 1}
    assert record.lanes == (m.Outcome(0, 0, 1, 1),)


def test_other_watermarks_than_it_said_itself_are_ignored() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("b", 1, {0: (0, 1, 1)})
    assert stage.say("a", carried("b", marks=(0, 0, 1))) == {}
    for who in "ac":
        stage.report(who, 1, {0: (0, 1, 1)})
    assert stage.record("a").lanes == (m.Outcome(0, 1, 1, 1),)


def test_strangers_and_the_evicted_neither_carry_nor_are_carried() -> None:
    stage = Stage(3)
    stage.form("abc")
    stage.report("a", 1, {0: (0, 0, 1)}, c=GONE)
    stage.report("b", 1, {0: (0, 0, 1)})
    assert ranks(stage.record("a")) == {"a": 0, "b": 1}
    assert stage.say("a", carried("c", 2)) == {}  # it is gone
    assert stage.say("a", carried("x", 2)) == {}  # it never was there
    assert isinstance(stage.say("c", carried("b", 2))["c"][0], m.Evicted)
    assert isinstance(stage.say("x", carried("b", 2))["x"][0], m.Unknown)
    said = stage.report("a", 2, {0: (0, 0, 1)})
    assert said == {"b": [m.Seal(1, 2)]}, "b has not reported on epoch 2"


def send_by_chance(peer: schedules.Peer) -> None:
    """Instead of Peer.send_report: half of the reports travel by way of another member."""
    assert peer.report is not None and peer.record is not None
    world = peer.world
    peer.next_report = world.now + 0.5
    carrier = world.peers[world.rng.choice(peer.record.members).id]
    connected = frozenset((peer.id, carrier.id)) not in world.broken
    if world.rng.random() < 0.5 and carrier is not peer and carrier.active and connected:
        world.send(carrier.id, replace(peer.report, of=peer.id))
    else:
        world.send(peer.id, peer.report)


@pytest.mark.parametrize("min_size", [1, 2, 3])
def test_random_schedules_with_carriers(
    min_size: int, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(schedules.Peer, "send_report", send_by_chance)
    for number in range(seed, seed + 20):
        try:
            schedules.run(number, min_size)
        except AssertionError as error:
            raise AssertionError(f"seed={number} min_size={min_size}: {error}") from error
