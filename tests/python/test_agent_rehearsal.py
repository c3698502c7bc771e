"""The agent of a peer that is to prepare: what it asks of its core, and what it says of that.

Goal: PREPARED is said of the round that the coordinator asked for last, of no other, and again
whenever the coordinator asks again; it has what the core measured. Method: as in test_agent, a fake
core and a coordinator that follows a script.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agent_stage import TIMEOUTS, WAIT_S, Peer, Script, until

from collectives import errors as e
from collectives import messages as m
from collectives.coordinator.server import CoordinatorServer

TOKEN, OTHER_TOKEN = b"t" * 16, b"u" * 16
TRIO = tuple(
    m.Member(letter.encode() * 16, rank, rank + 1, 1, f"127.0.0.1:500{rank}", letter)
    for rank, letter in enumerate("abc")
)
PAIR = TRIO[::2]


@pytest.fixture
def script() -> Iterator[Script]:
    coordinator = Script()
    yield coordinator
    coordinator.close()


@pytest.fixture
def one(script: Script) -> Iterator[Peer]:
    """The peer a, which has said JOIN."""
    peer = Peer(script.url, "a", TIMEOUTS)
    peer.agent.start()
    script.hear(m.Join)
    yield peer
    peer.agent.close()
    peer.core.close()


def welcome(number: int, members: tuple[m.Member, ...], token: bytes = TOKEN) -> m.Welcome:
    return m.Welcome(1, 1, token, 0, number, 3, members)


def waits_for(peer: Peer) -> str:
    with pytest.raises(e.TimedOut) as info:
        peer.agent.wait_joined(0)
    return str(info.value)


def test_what_was_measured_is_said_as_often_as_it_is_asked(script: Script, one: Peer) -> None:
    one.core.network = (700, 9)
    for _ in range(3):
        script.say(one, welcome(4, TRIO))
        assert script.hear(m.Prepared) == m.Prepared(1, 4, True, m.NO_PEER, "", 700, 9)
        one.core.network = (1, 1)
    assert one.core.said("prepare") == [(1, TRIO)]
    script.say(one, welcome(5, PAIR))
    assert script.hear(m.Prepared) == m.Prepared(1, 5, True, m.NO_PEER, "", 1, 1)
    assert one.core.said("prepare") == [(1, TRIO), (1, PAIR)]


def test_a_rehearsal_that_failed_is_tried_again(script: Script, one: Peer) -> None:
    one.core.reachable = False
    for _ in range(2):
        script.say(one, welcome(4, TRIO))
        assert script.hear(m.Prepared) == m.Prepared(1, 4, False, TRIO[0].id, "refused")
    one.core.reachable = True
    script.say(one, welcome(4, TRIO))
    assert script.hear(m.Prepared) == m.Prepared(1, 4, True, m.NO_PEER, "")
    assert one.core.said("prepare") == [(1, TRIO)] * 3


@pytest.mark.parametrize("later", [welcome(5, PAIR), welcome(4, PAIR, OTHER_TOKEN)])
def test_what_is_out_of_date_is_not_said(script: Script, one: Peer, later: m.Welcome) -> None:
    """While the core rehearses, the round ends, or another coordinator counts rounds anew."""
    one.core.holding = True
    script.say(one, welcome(4, TRIO))
    until(lambda: one.core.said("prepare"))
    script.say(one, later)
    until(lambda: len(one.core.said("prepare")) == 2)  # at once: someone may be gone
    assert "2 peers" in waits_for(one)
    one.core.network = (2, 2)
    one.core.rehearsed()
    # The first that comes is already the one about the later round.
    assert script.hear(m.Prepared) == m.Prepared(1, later.round, True, m.NO_PEER, "", 2, 2)
    assert one.core.said("prepare") == [(1, TRIO), (1, PAIR)]


def test_another_coordinator_is_not_told_what_an_earlier_one_was(script: Script, one: Peer) -> None:
    script.say(one, welcome(4, TRIO))
    script.hear(m.Prepared)
    script.say(one, welcome(4, PAIR, OTHER_TOKEN))
    script.hear(m.Prepared)
    assert one.core.said("token") == [TOKEN, OTHER_TOKEN]
    assert one.core.said("prepare") == [(1, TRIO), (1, PAIR)]


def test_waiting_says_how_far_it_has_come(script: Script, one: Peer) -> None:
    one.core.holding = True
    script.say(one, welcome(0, ()))
    until(lambda: "3 of 2 peers are there" in waits_for(one))
    script.say(one, welcome(1, TRIO))
    until(lambda: "3 peers are there, but not all of them have reached each" in waits_for(one))
    script.say(one, welcome(2, TRIO[1:]))  # a running group
    until(lambda: "its 2 members have to call admit()" in waits_for(one))


def test_the_group_has_the_network_of_its_slowest_member() -> None:
    with CoordinatorServer(timeouts=TIMEOUTS) as server:
        peers = [Peer(server.url, letter, TIMEOUTS) for letter in "ab"]
        for peer, network in zip(peers, [(3000, 900), (5000, 4000)], strict=True):
            peer.core.network = network
            peer.agent.start()
        records = [peer.agent.wait_joined(WAIT_S) for peer in peers]
        assert records[0] == records[1]
        assert (records[0].latency_ns, records[0].bytes_per_s) == (8192, 512)
        for peer in peers:
            peer.agent.close()
            peer.core.close()
