"""The agent and coordinators that follow each other: one that is out of date, one that does not
know it, one that takes over.

The core is a fake, the coordinator a script of the test, as in test_agent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from agent_stage import TIMEOUTS, MakePeer, Peer, Script, until

from collectives import config
from collectives import errors as e
from collectives import messages as m


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    made: list[Peer] = []

    def make(url: str, letter: str, timeouts: config.Timeouts = TIMEOUTS, **other: Any) -> Peer:
        made.append(Peer(url, letter, timeouts, **other))
        made[-1].agent.start()
        return made[-1]

    yield make
    for one in made:
        one.agent.close()
        one.core.close()


@pytest.fixture
def script() -> Iterator[Script]:
    coordinator = Script()
    yield coordinator
    coordinator.close()


def hear_ping(script: Script, term: int) -> m.Ping:
    while (ping := script.hear(m.Ping)).term != term:
        pass
    return ping  # type: ignore[no-any-return]


def test_a_member_ignores_a_coordinator_that_another_one_has_followed(
    script: Script, peer: MakePeer
) -> None:
    one = peer(script.url, "a")
    record = script.admit(one)
    script.say(one, m.Pong(term=3))
    assert hear_ping(script, 3).group == 1
    after = m.Epoch(1, 2, m.Cause.LINK, 1, 1, m.NO_PEER, 0, record.members, (), term=2)
    script.say(one, m.Seal(1, 1, term=2), m.Evicted(1, 1, False, "old", term=2), after)
    script.say(one, m.Pending(1, 7, term=2), m.Opened(b"k" * 16, 3, term=2))
    script.say(one, m.Seal(1, 1, term=3), m.Pong(term=4))
    hear_ping(script, 4)
    assert [told for told, _ in one.core.told] == ["token", "install", "seal"]
    assert one.agent.root.ended is None


def test_who_is_no_member_yet_takes_any_coordinator(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    script.hear(m.Join)
    script.say(one, m.Welcome(1, 1, b"t" * 16, 0, 0, 1, (), term=9))
    until(lambda: one.core.said("token"))
    script.say(one, m.Welcome(1, 1, b"u" * 16, 0, 0, 1, (), term=1))
    until(lambda: one.core.said("token")[1:])
    script.admit(one)


def test_an_outdated_coordinator_counts_as_none(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a", config.Timeouts(connect=2.0, coordinator_lost=1.0))
    script.admit(one)
    script.say(one, m.Pong(term=3))
    hear_ping(script, 3)
    one.seal()
    until(lambda: script.say(one, m.Pong(term=2)) or one.core.said("expel"))
    assert isinstance(one.agent.root.ended, e.CoordinatorLost)


def test_a_coordinator_that_does_not_know_the_peer_counts_as_none(
    script: Script, peer: MakePeer, caplog: pytest.LogCaptureFixture
) -> None:
    one = peer(script.url, "a", config.Timeouts(connect=2.0, coordinator_lost=1.0))
    script.admit(one)
    one.seal()
    with caplog.at_level(logging.WARNING):
        words = m.Unknown(1, False, "run 7 does not know you"), m.Pong()
        until(lambda: script.say(one, *words) or one.core.said("expel"))
    assert isinstance(one.agent.root.ended, e.CoordinatorLost)
    assert "run 7 does not know you" in str(one.agent.root.ended)
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 2, "that once, however often it was said, and the end"
    assert script.url in told[0] and "run 7 does not know you" in told[0]


def test_without_anything_to_decide_it_goes_on(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a", config.Timeouts(connect=2.0, coordinator_lost=0.1))
    script.admit(one)
    script.say(one, m.Unknown(1, False, "who?"), m.Unknown(9, True, "which?"))
    script.hear(m.Ping)
    assert one.agent.root.ended is None
    script.say(one, m.Seal(1, 1))  # it was found again
    until(lambda: one.core.said("seal"))


def test_it_claims_what_it_is_a_member_of(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    record = script.admit(one, address="localhost:77")
    script.say(one, m.Pong(term=5))
    hear_ping(script, 5)
    script.say(one, m.Unknown(1, True, "who?"))
    claim = script.hear(m.Claim)
    assert claim == m.Claim(5, b"t" * 16, False, one.join, record), "with names as they came"
    one.seal()
    after = m.Epoch(1, 2**32, m.Cause.RECOVERED, 1, 1, m.NO_PEER, 0, record.members, (), term=6)
    script.say(one, after)
    assert script.hear(m.Installed).epoch == 2**32
    until(lambda: one.epochs == [1, 2**32])


def test_who_is_no_member_has_nothing_to_claim(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    script.hear(m.Join)
    script.say(one, m.Unknown(1, True, "who?"))
    script.say(one, m.Welcome(1, 1, b"t" * 16, 0, 0, 1, ()), m.Unknown(1, True, "who?"))
    for _ in range(2):  # a second and more
        assert isinstance(script.hear(m.Claim | m.Join), m.Join)
