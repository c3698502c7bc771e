"""Wrong calls and wrong surroundings: each gives an error that says what is wrong, soon, and harms
nobody. Three kinds: members that call different things; arguments that are wrong on one peer, where
nothing may be sent; and coordinators that are none.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import zmq
from cluster import SMALL, Cluster, Worker, close, results, scaled

import collectives as cc
from collectives import messages

pytestmark = pytest.mark.timeout(60)

SOON_S = 2.0


# ---- members that call different things ----------------------------------------------------------

Calls = list[tuple[str, dict[str, Any]]]


def perform(worker: Worker, calls: Calls) -> list[tuple[str, str, float]]:
    """A call: posts these operations, all in flight together, and tells how each ended."""
    comm, found, works = worker.comm, [], []
    began = time.monotonic()
    for name, options in calls:
        options = dict(options)
        if name == "admit":
            try:
                comm.admit()
                found.append(("ok", "", 0.0))
            except cc.CollectivesError as error:
                found.append((type(error).__name__, str(error), time.monotonic() - began))
            continue
        arguments = []
        if name != "barrier":
            dtype, count = options.pop("dtype", "float32"), options.pop("count", 5000)
            arguments = [np.full(count, 3, dtype)]
        works.append(getattr(comm, name)(*arguments, async_op=True, **options))
    for work in works:
        try:
            work.wait(20)
            found.append(("ok", "", 0.0))
        except cc.CollectivesError as error:
            found.append((type(error).__name__, str(error), time.monotonic() - began))
    return found


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


DIFFERENT: list[tuple[str, Calls, Calls, str, str]] = [
    (
        "dtype",
        [("all_reduce", {"dtype": "float32"})],
        [("all_reduce", {"dtype": "int32"})],
        "float32",
        "int32",
    ),
    ("count", [("all_reduce", {"count": 10})], [("all_reduce", {"count": 11})], "10", "11"),
    (
        "large and small",
        [("all_reduce", {"count": 10})],
        [("all_reduce", {"count": 400_000})],
        "10",
        "400000",
    ),
    ("nothing and some", [("all_reduce", {"count": 0})], [("all_reduce", {})], "=0", "5000"),
    ("op", [("all_reduce", {"op": "sum"})], [("all_reduce", {"op": "max"})], "sum", "max"),
    ("root", [("broadcast", {"root": 0})], [("broadcast", {"root": 2})], "root=0", "root=2"),
    ("kind", [("all_reduce", {})], [("all_gather", {})], "all_reduce", "all_gather"),
    ("barrier", [("barrier", {})], [("all_reduce", {"count": 1})], "barrier", "all_reduce"),
    ("boundary", [("admit", {})], [("all_reduce", {"count": 1})], "admit", "all_reduce"),
    (
        "algorithm",
        [("all_reduce", {"algorithm": "ring"})],
        [("all_reduce", {"algorithm": "direct"})],
        "ring",
        "direct",
    ),
    (
        "order",
        [("all_reduce", {"count": 7}), ("broadcast", {"count": 9})],
        [("broadcast", {"count": 9}), ("all_reduce", {"count": 7})],
        "all_reduce",
        "broadcast",
    ),
]


@pytest.fixture(scope="module")
def trio() -> Iterator[Cluster]:
    """One group for all of these: each test leaves it usable, or the next one finds out."""
    with Cluster(3, **SMALL) as group:
        yield group


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize("case", DIFFERENT, ids=[case[0] for case in DIFFERENT])
def test_different_calls_are_a_mismatch_on_all(
    trio: Cluster, case: tuple[str, Calls, Calls, str, str], odd: int
) -> None:
    _, usual, other, first, second = case
    calls = [
        peer.start(perform, other if rank == odd else usual) for rank, peer in enumerate(trio.peers)
    ]
    for found in results(calls, 15):
        for name, message, seconds in found:
            assert name == "Mismatch", message
            assert seconds < SOON_S
            assert first in message and second in message, message
            ranks = set(re.findall(r"rank (\d)", message))
            assert str(odd) in ranks and len(ranks) == 2, message
    assert trio.each(total) == [3] * 3


def late(worker: Worker, first: Calls, second: Calls) -> list[tuple[str, str, float]]:
    """A call: different operations, and more behind them."""
    return perform(worker, first) + perform(worker, second)


def test_a_late_peer_is_told_of_the_mismatch_that_the_others_had(trio: Cluster) -> None:
    early = [
        trio.peers[0].start(perform, [("all_reduce", {"count": 10})]),
        trio.peers[1].start(perform, [("all_reduce", {"count": 12})]),
    ]
    for ((name, message, _),) in results(early):
        assert name == "Mismatch", message
    ((name, message, _),) = trio.peers[2].call(perform, [("all_reduce", {"count": 10})])
    assert name == "Mismatch", message
    assert trio.each(total) == [3] * 3


def test_many_mismatches_in_a_row(trio: Cluster) -> None:
    for number in range(10):
        calls = [
            peer.start(perform, [("all_reduce", {"count": 100 + (rank == number % 3)})] * 4)
            for rank, peer in enumerate(trio.peers)
        ]
        names = {name for found in results(calls) for name, _, _ in found}
        assert names == {"Mismatch"}
    assert trio.each(total) == [3] * 3


def other_lane(worker: Worker, odd: int) -> str:
    """A call: a mismatch in lane 1 while lane 2 works."""
    comm = worker.comm
    good = comm.all_reduce(np.ones(3), async_op=True, lane=2)
    count = 20 + (comm.rank == odd)
    with pytest.raises(cc.Mismatch):
        comm.all_reduce(np.ones(count), lane=1)
    try:
        return "ok" if (good.wait(10) == comm.size).all() else "wrong"
    except cc.CollectivesError as error:
        return type(error).__name__


def test_a_mismatch_in_one_lane_ends_other_lanes_alike(trio: Cluster) -> None:
    assert len(set(trio.each(other_lane, 1))) == 1
    assert trio.each(total) == [3] * 3


# ---- wrong arguments -----------------------------------------------------------------------------


def read_only() -> np.ndarray:
    x = np.ones(4)
    x.flags.writeable = False
    return x


def halves(comm: cc.Communicator) -> Any:
    x = np.arange(10.0)
    return comm.all_reduce(x[:6], out=x[4:])


def gather_overlap(comm: cc.Communicator) -> Any:
    x = np.zeros((comm.size, 4))
    other = (comm.rank + 1) % comm.size
    return comm.all_gather(x[other], out=x)


X = np.ones(4)
WRONG: dict[str, Callable[[cc.Communicator], Any]] = {
    "read-only output": lambda c: c.all_reduce(X, out=read_only()),
    "read-only in place": lambda c: c.all_reduce(x := read_only(), out=x),
    "strided output": lambda c: c.all_reduce(X, out=np.ones(8)[::2]),
    "transposed output": lambda c: c.all_reduce(np.ones((3, 2)), out=np.ones((2, 3)).T),
    "strided in place": lambda c: c.all_reduce(x := np.ones(8)[::2], out=x),
    "backwards in place": lambda c: c.all_reduce(x := np.ones(8)[::-1], out=x),
    "partial overlap": halves,
    "all_gather into a row of another": gather_overlap,
    "output of another dtype": lambda c: c.all_reduce(X, out=np.ones(4, "f4")),
    "output too small": lambda c: c.all_reduce(X, out=np.ones(3)),
    "output too large": lambda c: c.all_reduce(X, out=np.ones(5)),
    "all_gather output too small": lambda c: c.all_gather(X, out=np.ones((c.size - 1, 4))),
    "output is a list": lambda c: c.all_reduce(X, out=[0.0] * 4),
    "output is bytes": lambda c: c.all_reduce(X, out=b"12345678"),
    "negative timeout": lambda c: c.all_reduce(X, timeout=-1),
    "timeout is not a number": lambda c: c.all_reduce(X, timeout=float("nan")),
    "timeout is a text": lambda c: c.all_reduce(X, timeout="1"),
    "timeout of a barrier": lambda c: c.barrier(timeout=-0.5),
    "timeout of admit": lambda c: c.admit(timeout=-0.5),
    "unknown op": lambda c: c.all_reduce(X, op="product"),
    "op is None": lambda c: c.all_reduce(X, op=None),
    "op is a list": lambda c: c.all_reduce(X, op=["sum"]),
    "average of integers": lambda c: c.all_reduce(np.ones(4, "i8"), op="avg"),
    "unknown algorithm": lambda c: c.all_reduce(X, algorithm="best"),
    "algorithm is a number": lambda c: c.all_gather(X, algorithm=1),
    "an algorithm that cannot": lambda c: c.broadcast(X, algorithm="recursive_doubling"),
    "lane -1": lambda c: c.all_reduce(X, lane=-1),
    "lane 16": lambda c: c.barrier(lane=16),
    "lane is a text": lambda c: c.barrier(lane="0"),
    "lane is huge": lambda c: c.barrier(lane=1 << 70),
    "root -1": lambda c: c.broadcast(X, -1),
    "root is the size": lambda c: c.broadcast(X, c.size),
    "root is None": lambda c: c.broadcast(X, None),
    "root is a fraction": lambda c: c.broadcast(X, 0.0),
    "objects": lambda c: c.all_reduce(np.array([1, "x", None], object)),
    "texts": lambda c: c.all_reduce(np.array(["a", "b"])),
    "complex numbers": lambda c: c.all_reduce(np.ones(3, complex)),
    "half precision": lambda c: c.all_reduce(np.ones(3, np.float16)),
    "unsigned": lambda c: c.all_reduce(np.ones(3, np.uint32)),
    "truth values": lambda c: c.all_reduce(np.ones(3, bool)),
    "other byte order": lambda c: c.all_reduce(np.ones(3, ">f4")),
    "records": lambda c: c.all_reduce(np.zeros(3, [("a", "f4")])),
    "times": lambda c: c.all_reduce(np.zeros(3, "m8[s]")),
    "None": lambda c: c.all_reduce(None),
    "a text": lambda c: c.all_reduce("12"),
    "bytes": lambda c: c.all_reduce(b"12345678"),
    "a ragged list": lambda c: c.all_reduce([[1.0], [1.0, 2.0]]),
    "a dict": lambda c: c.broadcast({}),
    "bfloat16 of floats": lambda c: c.all_reduce(X, dtype="bfloat16"),
    "dtype that is none": lambda c: c.all_reduce(X, dtype="nothing"),
    "dtype that contradicts": lambda c: c.all_reduce(X, dtype="float32"),
    "a masked output": lambda c: c.all_reduce(X, out=np.broadcast_to(np.zeros(1), 4)),
}


def wrong_call(worker: Worker, name: str) -> tuple[str, str, bool, int]:
    """A call: makes this call, and tells its error, whether an operation was begun, and what number
    the next one would have had (by asking a barrier that everybody calls)."""
    comm = worker.comm
    operations = comm.stats["operations"]
    kind, text = "ok", ""
    try:
        WRONG[name](comm)
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
    return kind, text, comm.stats["operations"] == operations, len(comm._open)


def next_number(worker: Worker, lane: int = 0) -> int:
    work = worker.comm.barrier(async_op=True, lane=lane)
    work.wait(10)
    return int(work.info.sequence)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_argument_is_an_error_before_anything_is_sent(trio: Cluster, name: str) -> None:
    (before,) = set(trio.each(next_number))
    kind, text, unchanged, _ = trio.peers[1].call(wrong_call, name, limit=10)
    assert kind in ("ValueError", "TypeError", "NotImplementedError"), f"{kind}: {text}"
    assert text and unchanged
    assert trio.each(next_number) == [before + 1] * 3, "a number was used up"


def fine_calls(worker: Worker) -> None:
    """A call: what looks odd and is right."""
    comm, size = worker.comm, worker.comm.size
    assert comm.all_reduce(3) == 3 * size
    assert comm.all_reduce(2.5) == 2.5 * size
    assert comm.all_reduce([1, 2]).tolist() == [size, 2 * size]
    zero_d = comm.all_reduce(np.array(4.0))
    assert zero_d.shape == () and zero_d == 4 * size
    assert comm.all_gather(np.array(7)).shape == (size,)
    x = np.arange(12.0).reshape(3, 4)
    assert (comm.all_reduce(x.T) == x.T * size).all()
    assert (comm.all_reduce(x[::-1, ::2]) == x[::-1, ::2] * size).all()
    assert (comm.all_reduce(np.asfortranarray(x)) == x * size).all()
    assert (comm.all_reduce(np.broadcast_to(np.ones(1), (5, 5))) == size).all()
    assert (comm.all_reduce(read_only()) == size).all()
    same = np.ones(6)
    assert comm.all_reduce(same, out=same[:]) is not same and (same == size).all()
    out = np.empty((4, 3))
    assert comm.all_reduce(x, out=out) is out  # of another shape, as many elements
    big = np.arange(float(3 * size)).reshape(size, 3)
    mine = big[comm.rank]
    comm.all_gather(mine, out=big)  # its own row
    assert (big == np.arange(3.0 * size).reshape(size, 3)).all()
    bits = np.full(3, 1.5).astype(ml_dtypes.bfloat16).view(np.uint16)
    total = comm.all_reduce(bits, dtype="bfloat16")
    assert total.dtype == np.uint16
    assert (total.view(ml_dtypes.bfloat16).astype(float) == 1.5 * size).all()
    long = comm.all_reduce(np.ones(2), timeout=1e9)
    assert (long == size).all()
    assert comm.barrier() is None
    assert (comm.all_reduce(np.matrix([[1.0, 2.0]])) == [[size, 2 * size]]).all()


def test_odd_but_right_arguments(trio: Cluster) -> None:
    trio.each(fine_calls)


def odd_times(worker: Worker) -> list[str]:
    """A call: waits that are as long as can be, on an operation that is complete and on one that is
    not."""
    comm, found = worker.comm, []
    for value in (float("inf"), 1e300, 1e18):
        try:
            comm.all_reduce(np.ones(2), timeout=value)
            found.append("ok")
        except BaseException as error:
            found.append(type(error).__name__)
        work = comm.all_reduce(np.ones(300_000), async_op=True)
        try:
            work.wait(timeout=value)
            found.append("ok")
        except BaseException as error:
            found.append(type(error).__name__)
    return found


def test_endless_times(trio: Cluster) -> None:
    """They are as good as None, or a ValueError; nothing else."""
    first, *rest = trio.each(odd_times)
    assert all(other == first for other in rest)
    assert set(first) <= {"ok", "ValueError"}, first
    assert trio.each(total) == [3] * 3


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


def test_the_same_rank_twice(loner: Cluster) -> None:
    with Cluster(0) as group:
        first, second = group.add(2)
        joining = group.start_join(first, size=2, rank=1)
        kind, _, text, _ = second.call(attempt, group.url, size=2, rank=1, timeout=3)
        assert kind == "Refused" and "1" in text
        second.start(attempt, group.url, size=2, rank=0, timeout=5)
        assert joining.result() == 1
        first.call(close)


def test_a_group_that_does_not_form_in_time_says_who_is_missing(loner: Cluster) -> None:
    kind, _, text, seconds = loner.peers[0].call(
        attempt, loner.url, group="lonely", size=3, timeout=0.5
    )
    assert kind == "TimedOut" and "lonely" in text and "1 of 3" in text
    assert seconds < 1.5
