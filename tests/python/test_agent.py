"""The agent between a core and a coordinator.

The core is a fake that records what it is told and yields what the test wants. The coordinator is
the real one where the whole way matters, and a script of the test where its silence, its repeats or
its lies matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from agent_stage import TIMEOUTS, WAIT_S, MakePeer, Peer, Script, until

from collectives import agent as a
from collectives import config
from collectives import errors as e
from collectives import messages as m
from collectives.coordinator.server import CoordinatorServer


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
def server() -> Iterator[CoordinatorServer]:
    with CoordinatorServer(timeouts=TIMEOUTS) as running:
        yield running


@pytest.fixture
def script() -> Iterator[Script]:
    coordinator = Script()
    yield coordinator
    coordinator.close()


# ---- with the real coordinator -------------------------------------------------------------------


def test_two_peers_form_a_group(server: CoordinatorServer, peer: MakePeer) -> None:
    one, two = peer(server.url, "a"), peer(server.url, "b")
    record = one.agent.wait_joined(WAIT_S)
    assert two.agent.wait_joined(WAIT_S) == record
    assert [member.name for member in record.members] == ["a", "b"]
    until(lambda: one.epochs == two.epochs == [1])
    assert one.core.told[0][0] == "token"  # before anybody may dial
    assert one.core.said("token") == two.core.said("token")
    assert one.core.said("install") == [record]


def test_a_report_becomes_an_epoch_at_once(server: CoordinatorServer, peer: MakePeer) -> None:
    one, two = peer(server.url, "a"), peer(server.url, "b")
    for each in (one, two):
        each.agent.wait_joined(WAIT_S)
    started = time.monotonic()
    one.seal(evidence=(m.Evidence(two.join.id, m.EvidenceKind.REFUSED),))
    record = one.wait_epoch(1)
    # Nothing on the way waits for a timer: the shortest of them is `repeat`.
    assert time.monotonic() - started < TIMEOUTS.repeat
    assert [member.name for member in record.members] == ["a"]
    assert record.lost == two.join.id
    ((status, reason),) = until(lambda: two.core.said("expel"))
    assert status == "EVICTED"
    assert "taken for dead" in reason
    assert isinstance(two.agent.root.ended, e.Evicted)


def test_a_joiner_prepares_and_is_admitted(server: CoordinatorServer, peer: MakePeer) -> None:
    one, two = peer(server.url, "a"), peer(server.url, "b")
    first = one.agent.wait_joined(WAIT_S)
    two.agent.wait_joined(WAIT_S)
    three = peer(server.url, "c")
    until(lambda: one.agent.root.pending == two.agent.root.pending == 1)
    assert three.core.said("prepare") == [(3, first.members)]
    with pytest.raises(e.TimedOut, match=r"not admitted .* admit\(\)"):
        three.agent.wait_joined(0)
    boundary = {"cause": m.Cause.BOUNDARY, "boundary": 1, "wants": m.WANT_JOIN}
    lanes = (m.LaneReport(0, 0, 1, 1),)
    one.seal(lanes=lanes, **boundary)
    assert until(lambda: two.core.said("seal")) == [1]  # asked to report as well
    two.seal(lanes=lanes, **boundary)
    record = three.agent.wait_joined(WAIT_S)
    assert record.world == 3
    assert record.lanes == (m.Outcome(0, 1, 1, 1),)
    until(lambda: one.agent.root.pending == 0 and one.epochs == [1, 2])


def test_a_joiner_that_reaches_nobody_is_refused(server: CoordinatorServer, peer: MakePeer) -> None:
    one, two = peer(server.url, "a"), peer(server.url, "b")
    one.agent.wait_joined(WAIT_S)
    two.agent.wait_joined(WAIT_S)
    three = Peer(server.url, "c", TIMEOUTS)
    three.core.reachable = False
    three.agent.start()
    with pytest.raises(e.Refused, match="could not reach the peer of rank 0"):
        three.agent.wait_joined(WAIT_S)
    three.agent.close()
    three.core.close()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"size": 3}, "size=2, this peer asks for size=3"),
        ({"version": m.PROTOCOL_VERSION + 1}, "install the same version"),
    ],
)
def test_who_is_refused_learns_why(
    server: CoordinatorServer, peer: MakePeer, other: dict[str, Any], words: str
) -> None:
    one = peer(server.url, "a")
    until(lambda: one.core.said("token"))
    with pytest.raises(e.Refused, match=words):
        peer(server.url, "b", **other).agent.wait_joined(WAIT_S)


def test_waiting_says_for_what(server: CoordinatorServer, peer: MakePeer) -> None:
    one = peer(server.url, "a")
    until(lambda: one.core.said("token"))
    with pytest.raises(e.TimedOut, match="1 of 2 peers are there"):
        one.agent.wait_joined(0.01)


def test_a_coordinator_that_comes_back_finds_its_joiners(peer: MakePeer) -> None:
    with CoordinatorServer(timeouts=TIMEOUTS) as first:
        one = peer(first.url, "a")
        until(lambda: one.core.said("token"))
    with CoordinatorServer(first.url.removeprefix("cc://"), timeouts=TIMEOUTS):
        two = peer(first.url, "b")
        assert one.agent.wait_joined(WAIT_S) == two.agent.wait_joined(WAIT_S)
    assert len(one.core.said("token")) == 2


def test_closing_says_goodbye(server: CoordinatorServer, peer: MakePeer) -> None:
    one, two = peer(server.url, "a"), peer(server.url, "b")
    for each in (one, two):
        each.agent.wait_joined(WAIT_S)
    started = time.monotonic()
    two.agent.close()
    assert time.monotonic() - started < 1.0
    two.agent.close()
    one.seal()  # without evidence: only the goodbye settles it before 15 times the dead time
    assert [member.name for member in one.wait_epoch(1).members] == ["a"]


# ---- with a scripted coordinator -----------------------------------------------------------------


def test_reports_are_repeated_until_an_epoch_comes(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    record = script.admit(one)
    report = one.seal()
    for _ in range(3):
        assert script.hear(m.Report) == report
    more = one.seal(evidence=(m.Evidence(b"z" * 16, m.EvidenceKind.SILENT),))
    while script.hear(m.Report) != more:
        pass  # those that were under way
    after = m.Epoch(1, 2, m.Cause.LINK, 1, 1, m.NO_PEER, 0, record.members, ())
    script.say(one, after)
    assert script.hear(m.Installed).epoch == 2
    pings = [script.hear(m.Ping | m.Report) for _ in range(2)]  # a second and more
    assert all(isinstance(message, m.Ping) for message in pings)


def test_repeated_and_old_records_are_only_acknowledged(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    record = script.admit(one, epoch=5)
    old = m.Epoch(1, 4, m.Cause.LINK, 1, 1, m.NO_PEER, 0, record.members, ())
    script.say(one, record, old)
    for _ in range(2):
        assert script.hear(m.Installed) == m.Installed(1, 5, False)
    assert one.core.said("install") == [record]
    one.core.push(a.Ready(1, 4))
    one.core.push(a.Ready(1, 5))
    assert script.hear(m.Installed) == m.Installed(1, 5, True)
    assert one.epochs == [5]


@pytest.mark.parametrize(
    ("left", "status", "error"), [(False, "EVICTED", e.Evicted), (True, "CLOSED", e.Closed)]
)
def test_evicted(
    script: Script, peer: MakePeer, left: bool, status: str, error: type[Exception]
) -> None:
    one = peer(script.url, "a")
    script.admit(one)
    script.say(one, m.Evicted(1, 1, left, "because"))
    assert until(lambda: one.core.said("expel")) == [(status, "because")]
    with pytest.raises(error, match="because"):
        one.wait_epoch(1)


def test_a_coordinator_that_stays_away(script: Script, peer: MakePeer) -> None:
    timeouts = config.Timeouts(connect=2.0, coordinator_lost=0.4)
    one = peer(script.url, "a", timeouts)
    script.admit(one)
    idle = peer(script.url, "b", timeouts)
    script.admit(idle)
    one.seal()
    ((status, reason),) = until(lambda: one.core.said("expel"))
    assert status == "COORDINATOR_LOST"
    assert script.url in reason
    assert isinstance(one.agent.root.ended, e.CoordinatorLost)
    # Who has nothing to decide does not miss the coordinator.
    assert not idle.core.said("expel")


def test_an_answering_coordinator_is_not_lost(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a", config.Timeouts(connect=2.0, coordinator_lost=1.0))
    script.admit(one)
    one.seal()
    for _ in range(4):  # two seconds of reports
        script.hear(m.Report)
        script.say(one, m.Pong())
    assert not one.core.said("expel")


def test_names_are_resolved(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    script.admit(one, address="localhost:77")
    assert one.core.said("install")[0].members[0].address == "127.0.0.1:77"


def test_a_name_without_address_ends_the_membership(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    script.hear(m.Join)
    member = m.Member(one.join.id, 0, 1, 1, "no-such-host.invalid:77", "")
    record = m.Epoch(1, 1, m.Cause.FORMED, 1, 1, m.NO_PEER, 0, (member,), ())
    script.say(one, m.Welcome(1, 1, b"t" * 16, 0, 0, 1, ()), record)
    with pytest.raises(e.Evicted, match=r"no-such-host\.invalid"):
        one.agent.wait_joined(WAIT_S)
    script.hear(m.Bye)


def test_garbage_from_the_coordinator_is_dropped(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    record = script.admit(one)
    for data in (b"", b"\xc1", b"x" * 1000):
        script.router.send_multipart([m.identity(one.join.id), data])
    script.say(one, m.Ping(), m.Seal(1, 99), m.Pending(9, 1), m.Evicted(7, 1, False, "other"))
    script.say(one, m.Refused("too late"), m.Welcome(1, 1, b"u" * 16, 0, 0, 1, ()), record)
    assert script.hear(m.Installed).epoch == 1
    assert [name for name, _ in one.core.told] == ["token", "install"]


def test_a_fault_in_the_agent_leaves_nobody_waiting(script: Script, peer: MakePeer) -> None:
    one = peer(script.url, "a")
    script.admit(one)
    one.core.next_event = lambda: 1 // 0  # type: ignore[assignment,method-assign,return-value]
    script.say(one, m.Pong())
    ((status, reason),) = until(lambda: one.core.said("expel"))
    assert status == "COORDINATOR_LOST"
    assert "ZeroDivisionError" in reason


# ---- without a coordinator -----------------------------------------------------------------------


@contextlib.contextmanager
def listener(greet: bytes | None) -> Iterator[int]:
    """A TCP port that is no coordinator: it says `greet` to everybody, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    if greet is not None:
                        connection.sendall(greet)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


SHORT = config.Timeouts(connect=0.4)


def why_unreachable(url: str, peer: MakePeer) -> str:
    one = peer(url, "a", SHORT)
    started = time.monotonic()
    with pytest.raises(e.CoordinatorUnreachable) as info:
        one.agent.wait_joined(WAIT_S)
    assert time.monotonic() - started < 5
    assert url in str(info.value)
    return str(info.value)


def test_nobody_listens(peer: MakePeer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in why_unreachable(f"cc://127.0.0.1:{port}", peer)


@pytest.mark.parametrize("greet", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10])
def test_something_else_listens(peer: MakePeer, greet: bytes | None) -> None:
    with listener(greet) as port:
        assert "it is no coordinator" in why_unreachable(f"cc://127.0.0.1:{port}", peer)


def test_something_that_speaks_zeromq(script: Script, peer: MakePeer) -> None:
    assert "speaks ZeroMQ" in why_unreachable(script.url, peer)


def test_no_such_host(peer: MakePeer) -> None:
    assert "cannot be resolved" in why_unreachable("cc://no-such-host.invalid:1", peer)


# ---- starting and ending -------------------------------------------------------------------------


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_agent_that_never_started_can_be_closed() -> None:
    before = open_descriptors()
    one = Peer("cc://127.0.0.1:1", "a", TIMEOUTS)
    one.agent.close()
    with pytest.raises(e.Closed):
        one.agent.wait_joined(1)
    one.core.close()
    assert open_descriptors() == before


def test_a_bad_url_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="cc://host"):
        Peer("tcp://127.0.0.1:1", "a", TIMEOUTS)


def test_closing_ends_a_wait(server: CoordinatorServer, peer: MakePeer) -> None:
    one = peer(server.url, "a")
    until(lambda: one.core.said("token"))
    threading.Timer(0.05, one.agent.close).start()
    with pytest.raises(e.Closed):
        one.agent.wait_joined(WAIT_S)


def test_a_forked_child_is_not_the_agent(server: CoordinatorServer, peer: MakePeer) -> None:
    one = peer(server.url, "a", size=1)
    one.agent.wait_joined(WAIT_S)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            one.agent.close()
            try:
                one.agent.wait_joined(1)
            except e.Closed:
                # A communicator of its own works.
                mine = Peer(server.url, "b", TIMEOUTS, group="other", size=1)
                mine.agent.start()
                status = 0 if mine.agent.wait_joined(WAIT_S).world == 1 else 2
                mine.agent.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert one.agent.root.ended is None
    one.seal(cause=m.Cause.DEADLINE)
    assert one.wait_epoch(1).epoch == 2
