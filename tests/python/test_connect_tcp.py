"""Coordinators that are none, options of `connect` that are wrong, and settings that contradict the
group's: each is an error that names what is wrong, within the time that was allowed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import zmq
from cluster import (
    Cluster,
    Worker,
    results,
    scaled,
)
from test_bad_input import SOON_S, total

import collectives as cc
from collectives import messages

pytestmark = pytest.mark.timeout(60)

# ---- no coordinator there ------------------------------------------------------------------------

BRIEF = scaled(cc.LAN, connect=1.0)


def attempt(worker: Worker, url: str, **options: Any) -> tuple[str, bool, str, float]:
    """A call: connects where that cannot work. Returns the error's class, whether it is one of
    ours, its text, and how long it took."""
    began = time.monotonic()
    try:
        worker.comm = cc.connect(url, **{"timeouts": BRIEF, **options})
    except BaseException as error:
        ours = isinstance(error, cc.CollectivesError)
        return type(error).__name__, ours, str(error), time.monotonic() - began
    worker.comm.close()
    return "ok", True, "", time.monotonic() - began


@pytest.fixture(scope="module")
def loner() -> Iterator[Cluster]:
    with Cluster(0) as group:
        group.add(1)
        yield group


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Accepts connections and says `answer` to each; None: it is silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    done = threading.Event()
    kept = []

    def run() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            kept.append(connection)
            if answer is not None:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"cc://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join()
        for connection in [listener, *kept]:
            connection.close()


def check_unreachable(found: tuple[str, bool, str, float], url: str) -> str:
    name, ours, text, seconds = found
    assert (name, ours) == ("CoordinatorUnreachable", True), text
    assert url in text
    assert 0.5 < seconds < BRIEF.connect + 1.0
    return text


def test_nobody_listens_there(loner: Cluster) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"cc://127.0.0.1:{probe.getsockname()[1]}"
    text = check_unreachable(loner.peers[0].call(attempt, url), url)
    assert "refused" in text


@pytest.mark.parametrize(
    "answer",
    [None, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"", bytes(range(256)) * 40],
    ids=["silent", "http", "closing", "noise"],
)
def test_something_else_listens_there(loner: Cluster, answer: bytes | None) -> None:
    with server(answer) as url:
        text = check_unreachable(loner.peers[0].call(attempt, url), url)
        assert "no coordinator" in text


@contextmanager
def fake_coordinator(answer: bytes | None) -> Iterator[str]:
    """Speaks ZeroMQ and says the same to whatever comes."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            if router.poll(50):
                name, *_ = router.recv_multipart()
                if answer is not None:
                    router.send_multipart([name, answer])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"cc://127.0.0.1:{port}"
    finally:
        done.set()
        thread.join()
        router.close(linger=0)
        context.term()


@pytest.mark.parametrize(
    "answer",
    [None, b"", b"\x00" * 100, msgpack.packb({"type": "welcome"}), msgpack.packb([1, 2])],
    ids=["silent", "empty", "zeros", "half a message", "a list"],
)
def test_a_coordinator_that_talks_nonsense(loner: Cluster, answer: bytes | None) -> None:
    with fake_coordinator(answer) as url:
        check_unreachable(loner.peers[0].call(attempt, url), url)


def test_a_coordinator_that_refuses(loner: Cluster) -> None:
    reason = "this coordinator speaks protocol version 7, the peer version 1"
    with fake_coordinator(messages.encode(messages.Refused(reason))) as url:
        name, _, text, seconds = loner.peers[0].call(attempt, url)
        assert name == "Refused" and reason in text and url in text
        assert seconds < 0.9


def test_the_coordinator_refuses_another_version(loner: Cluster) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.ROUTING_ID, messages.identity(b"x" * 16))
        dealer.connect(loner.url.replace("cc://", "tcp://"))
        dealer.send(msgpack.packb({"type": "join", "version": 99, "something": "new"}))
        assert dealer.poll(5000)
        answer = messages.decode(dealer.recv())
        assert isinstance(answer, messages.Refused)
        assert "99" in answer.reason and str(messages.PROTOCOL_VERSION) in answer.reason


def test_a_host_that_does_not_exist(loner: Cluster) -> None:
    name, ours, text, seconds = loner.peers[0].call(
        attempt, "cc://no-such-host.invalid:1234", insecure=True
    )
    assert name == "CoordinatorUnreachable" and ours, f"{name}: {text}"
    assert "no-such-host.invalid" in text
    assert seconds < 10


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:1", "http://127.0.0.1:1", "cc://", "cc://h:0", "cc://h:x", "cc://h:1:2"]
)
def test_wrong_urls(loner: Cluster, url: str) -> None:
    name, _, text, _ = loner.peers[0].call(attempt, url)
    assert name == "ValueError" and text


WRONG_OPTIONS: dict[str, dict[str, Any]] = {
    "size 0": {"size": 0},
    "size -1": {"size": -1},
    "size 5000": {"size": 5000},
    "size is a text": {"size": "2"},
    "min_size 0": {"min_size": 0},
    "min_size over size": {"size": 2, "min_size": 3},
    "rank -1": {"rank": -1},
    "rank over size": {"size": 2, "rank": 2},
    "no group name": {"group": ""},
    "long group name": {"group": "x" * 1000},
    "unprintable name": {"name": "a\nb"},
    "streams 0": {"streams": 0},
    "streams 17": {"streams": 17},
    "streams -1": {"streams": -1},
    "segment_bytes 100": {"segment_bytes": 100},
    "segment_bytes 0": {"segment_bytes": 0},
    "segment_bytes 2 MiB": {"segment_bytes": 1 << 21},
    "ports backwards": {"ports": (5000, 4000)},
    "ports too high": {"ports": (70000, 70001)},
    "ports negative": {"ports": (-5, -1)},
    "ports is one number": {"ports": (5000,)},
    "negative timeout": {"timeout": -1},
    "timeouts of another kind": {"timeouts": 5},
    "unknown option": {"colour": "red"},
    "unknown transport": {"transport": "pigeon"},
    "bind to a foreign address": {"bind": "192.0.2.1", "insecure": True},
    "bind to nonsense": {"bind": "a b"},
    "bind to all without a key": {"bind": "0.0.0.0"},
    "advertise nonsense": {"advertise": "1.2.3.4:x"},
    "interface that is none": {"interface": "no-such-interface0"},
}


@pytest.mark.parametrize("name", list(WRONG_OPTIONS))
def test_wrong_options_of_connect(loner: Cluster, name: str) -> None:
    """Without a group that could form: what is wrong is found before, not by waiting."""
    peer = loner.peers[0]
    options = {"size": 2, "group": f"wrong: {name}"[:40], "timeout": 3, **WRONG_OPTIONS[name]}
    found = peer.call(attempt, loner.url, **options)
    kind, _, text, seconds = found
    good = ("ValueError", "TypeError", "Refused", "SystemFailure", "NotImplementedError")
    assert kind in good, found
    assert text and seconds < 2.0


def contradiction(group: Cluster, **options: Any) -> str:
    (peer,) = group.add(1)
    kind, _, text, seconds = peer.call(
        attempt, group.url, **{**group.options, "timeout": 5, **options}
    )
    peer.reap()
    assert kind == "Refused", text
    assert seconds < SOON_S
    return text


def test_settings_that_contradict_the_groups(seed: int) -> None:
    with Cluster(2, min_size=1, streams=3, segment_bytes=4096) as group:
        common = {"size": 2}
        text = contradiction(group, size=3)
        assert "size" in text and "2" in text and "3" in text
        text = contradiction(group, **common, min_size=2)
        assert "min_size" in text and "1" in text and "2" in text
        text = contradiction(group, **common, streams=5)
        assert "streams" in text and "3" in text and "5" in text
        text = contradiction(group, **common, segment_bytes=8192)
        assert "segment_bytes" in text and "4096" in text and "8192" in text
        assert group.each(total, peers=group.peers[:2]) == [2, 2]


def test_the_same_rank_twice() -> None:
    """Either of the two may be the first: the other one is refused."""
    with Cluster(0) as group:
        calls = [group.start_join(peer, size=2, rank=1) for peer in group.add(2)]
        while not any(call.over for call in calls):
            time.sleep(0.01)
        waiting, refused = sorted(calls, key=lambda call: call.over)
        error = refused.outcome()
        assert isinstance(error, cc.Refused) and "rank=1" in str(error)
        other = group.start_join(refused.peer, size=2, rank=0)
        assert results([waiting, other]) == [1, 0]


def test_a_group_that_does_not_form_in_time_says_who_is_missing(loner: Cluster) -> None:
    kind, _, text, seconds = loner.peers[0].call(
        attempt, loner.url, group="lonely", size=3, timeout=0.5
    )
    assert kind == "TimedOut" and "lonely" in text and "1 of 3" in text
    assert seconds < 1.5
