"""What users hold: waiting, interrupting, closing, working from several threads, and what must
not be left behind: threads, descriptors, output.
"""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import SMALL, Cluster, Worker, close, results

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


# ---- waiting -------------------------------------------------------------------------------------


def impatient(worker: Worker) -> tuple[list[str], list[float], bool]:
    """A call: waits with limits for an operation that the other one has not called yet."""
    x = np.arange(50_000.0)
    work = worker.comm.all_reduce(x, async_op=True)
    ends, took = [], []
    for limit in (0, 0.001, 0.05, 0.2):
        began = time.monotonic()
        try:
            work.wait(limit)
            ends.append("ok")
        except TimeoutError as error:
            ends.append(type(error).__name__)
        took.append(time.monotonic() - began - limit)
    assert not work.done
    assert "under way" in repr(work)
    with pytest.raises(RuntimeError):
        _ = work.info
    with pytest.raises(ValueError):
        work.wait(-1)
    worker.note("waited")
    result = work.wait(20)
    assert work.done and work.wait() is result and work.wait(0) is result
    info = work.info
    assert (info.sequence, info.contributors, info.attempts) == (1, 2, 1)
    return ends, took, bool((result == 2 * x).all())


def same_sum(worker: Worker) -> None:
    worker.comm.all_reduce(np.arange(50_000.0))


def test_wait_with_a_limit_only_stops_waiting() -> None:
    with Cluster(2, **SMALL) as group:
        call = group.peers[0].start(impatient)
        assert group.peers[0].wait_note() == "waited"
        group.peers[1].call(same_sum)
        ends, took, right = call.result()
        assert ends == ["TimedOut"] * 4 and right
        assert max(took) < 0.5


def several_waiters(worker: Worker) -> list[float]:
    """A call: five threads wait for one work."""
    work = worker.comm.all_reduce(np.ones(100), async_op=True)
    found: list[float] = []

    def wait() -> None:
        found.append(float(work.wait(20)[0]))

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    worker.note("waiting")
    for thread in threads:
        thread.join(20)
    return found


def test_several_threads_wait_for_the_same_work() -> None:
    with Cluster(2) as group:
        call = group.peers[0].start(several_waiters)
        assert group.peers[0].wait_note() == "waiting"
        group.peers[1].call(hundred)
        assert call.result() == [2.0] * 5


def hundred(worker: Worker) -> None:
    worker.comm.all_reduce(np.ones(100))


# ---- Ctrl-C --------------------------------------------------------------------------------------


def interrupted(worker: Worker) -> tuple[str, float]:
    """A call: waits until SIGINT comes. The operation has been posted when the test is told."""
    work = worker.comm.all_reduce(np.ones(100), async_op=True)
    try:
        worker.note("waiting")
        work.wait()
    except KeyboardInterrupt:
        return "KeyboardInterrupt", time.monotonic()
    return "ok", time.monotonic()


def interrupted_join(worker: Worker, url: str) -> tuple[str, float]:
    """A call: waits in connect until SIGINT comes."""
    try:
        worker.note("waiting")
        worker.comm = cc.connect(url, size=2)
    except KeyboardInterrupt:
        return "KeyboardInterrupt", time.monotonic()
    return "ok", time.monotonic()


def test_interrupt_while_waiting() -> None:
    """The operation goes on, and completes once the other one has called it as well."""
    delays = []
    with Cluster(2) as group:
        waiter, other = group.peers
        for _ in range(5):
            call = waiter.start(interrupted)
            waiter.wait_note()
            sent_at = waiter.signal(signal.SIGINT)
            name, at = call.result(10)
            assert name == "KeyboardInterrupt"
            delays.append(at - sent_at)
            other.call(hundred)
            assert group.each(total) == [2, 2]
        waiter.call(close, limit=5)
    print(f"from SIGINT to KeyboardInterrupt: at most {max(delays) * 1000:.0f} ms")
    assert max(delays) < 0.5


def test_interrupt_and_close_with_the_operation_open() -> None:
    with Cluster(2) as group:
        waiter, other = group.peers
        call = waiter.start(interrupted)
        waiter.wait_note()
        waiter.signal(signal.SIGINT)
        assert call.result(10)[0] == "KeyboardInterrupt"
        began = time.monotonic()
        waiter.call(close, limit=5)
        assert time.monotonic() - began < 3
        (name,) = {other.call(how_it_ends)}
        assert name == "ok"  # over the one that is left


def how_it_ends(worker: Worker) -> str:
    try:
        worker.comm.all_reduce(np.ones(100))
    except cc.CollectivesError as error:
        return type(error).__name__
    return "ok"


def test_interrupt_while_connecting() -> None:
    with Cluster(0) as group:
        (peer,) = group.add(1)
        for _ in range(3):
            call = peer.start(interrupted_join, group.url)
            peer.wait_note()
            sent_at = peer.signal(signal.SIGINT)
            name, at = call.result(10)
            assert name == "KeyboardInterrupt" and at - sent_at < 1.5
        first, second = peer, *group.add(1)
        group.form([first, second])  # nothing of the interrupted ones is in the way
        assert group.each(total) == [2, 2]


# ---- the end -------------------------------------------------------------------------------------


def closed_calls(worker: Worker) -> list[str]:
    """A call: closes, twice, and tells what calls afterwards end in."""
    comm = worker.comm
    assert comm.all_reduce(np.array([1]))[0] == comm.size
    comm.close()
    comm.close()
    comm.abort()
    found = []
    for call in (
        lambda: comm.all_reduce(np.ones(3)),
        lambda: comm.all_gather(np.ones(3), async_op=True),
        lambda: comm.broadcast(np.ones(3)),
        comm.barrier,
        comm.admit,
        comm.leave,
    ):
        try:
            call()
            found.append("ok")
        except cc.CollectivesError as error:
            found.append(type(error).__name__)
    assert "closed" in repr(comm)
    assert comm.rank in range(comm.size) and len(comm.members) == comm.size
    assert comm.stats["epochs"] >= 0
    return found


def test_after_close_everything_is_closed() -> None:
    with Cluster(2) as group:
        for found in group.each(closed_calls):
            assert found == ["Closed"] * 6


def close_under_waiters(worker: Worker) -> list[str]:
    """A call: closes while threads wait, in several ways, for what never completes."""
    comm, found = worker.comm, []

    def wait(call: Callable[[], Any]) -> None:
        try:
            call()
            found.append("ok")
        except cc.CollectivesError as error:
            found.append(type(error).__name__)

    lanes = (1, 2, 3)
    works = [comm.all_reduce(np.ones(100_000), async_op=True, lane=lane) for lane in lanes]
    calls = [works[0].wait, works[1].wait, lambda: works[2].wait(20), works[0].wait]
    calls += [lambda: comm.barrier(lane=5), lambda: comm.all_gather(np.ones(5), lane=6)]
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # so that they do wait; if they do not yet, they find it closed
    comm.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a waiter hangs after close"
    return found


def test_close_wakes_all_who_wait() -> None:
    with Cluster(2, **SMALL) as group:
        assert group.peers[0].call(close_under_waiters) == ["Closed"] * 6
        assert group.peers[1].call(how_it_ends) == "ok"


def with_statement(worker: Worker, url: str, fails: bool) -> str:
    """A call: uses a communicator in a with statement that may fail."""
    try:
        with cc.connect(url, group=f"with {fails}") as comm:
            assert comm.all_reduce(np.array([5]))[0] == 5
            if fails:
                raise KeyError("inside")
    except KeyError:
        pass
    with pytest.raises(cc.Closed):
        comm.barrier()
    return comm.__repr__()


def test_with_statement() -> None:
    with Cluster(0) as group:
        (peer,) = group.add(1)
        for fails in (False, True):
            assert "closed" in peer.call(with_statement, group.url, fails)


PROGRAM = """
    import sys
    import numpy as np
    import collectives as cc

    comm = cc.connect(sys.argv[1], group=sys.argv[2], size=int(sys.argv[3]))
    works = []
    total = comm.all_reduce(np.ones(1000))
    assert (total == comm.size).all()
    {end}
"""

ENDS = {
    "falls off the end": "",
    "works open": "works = [comm.all_reduce(np.ones(9999), async_op=True) for _ in range(9)]",
    "exit": "sys.exit(0)",
    "communicator dropped": "del comm",
    "communicator in a cycle": "comm.me = comm; del comm",
    "work dropped": "comm.all_reduce(np.ones(9999), async_op=True); del comm",
    "unbound module": "import collectives._core; comm.barrier()",
}


@pytest.mark.parametrize("end", list(ENDS))
def test_a_program_that_ends_without_close(
    end: str, spawn: Callable[..., Any], tmp_path: Path
) -> None:
    """It ends by itself, soon, with status 0 and without a word."""
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM).replace("{end}", ENDS[end]))
    with Cluster(0) as group:
        children = [spawn("python", file, group.url, end, 2) for _ in range(2)]
        for child in children:
            assert child.wait(15) == 0, child.output
            assert child.output == ""


def test_a_program_with_an_error_says_only_that(spawn: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    text = PROGRAM.replace("{end}", "raise SystemExit('the end')")
    file.write_text(textwrap.dedent(text))
    with Cluster(0) as group:
        children = [spawn("python", file, group.url, "errors", 2) for _ in range(2)]
        for child in children:
            assert child.wait(15) == 1
            assert child.output.strip() == "the end"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads_here() -> int:
    return len(os.listdir("/proc/self/task"))


def many_rounds(worker: Worker, url: str, number: int, rounds: int) -> list[tuple[int, int]]:
    """A call: connects and closes again and again; counts descriptors and threads after each."""
    counts = []
    for round_number in range(rounds):
        comm = cc.connect(url, group=f"round {round_number}", size=2, rank=number)
        comm.all_reduce(np.ones(5000))
        works = [comm.all_reduce(np.ones(50), async_op=True) for _ in range(3)]
        if round_number % 3 == 0:
            works[-1].wait()
        comm.barrier()
        if round_number % 4 == 3:
            comm.abort()
        else:
            comm.close()
        del comm, works
        counts.append((open_descriptors(), threads_here()))
    return counts


def test_descriptors_and_threads_do_not_leak() -> None:
    with Cluster(0) as group:
        group.add(2)
        calls = [peer.start(many_rounds, group.url, i, 20) for i, peer in enumerate(group.peers)]
        for counts in results(calls):
            # The first rounds start ZeroMQ; what it closes in the background may lag behind.
            descriptors, threads = zip(*counts, strict=True)
            assert min(descriptors[-5:]) <= max(descriptors[:5]), descriptors
            assert min(threads[-5:]) <= max(threads[:5]), threads


def failing_rounds(worker: Worker, url: str, rounds: int) -> list[tuple[int, int]]:
    """A call: connects in vain again and again."""
    counts = []
    for _ in range(rounds):
        with pytest.raises(cc.CollectivesError):
            cc.connect(url, group="nobody comes", size=2, timeout=0.05)
        counts.append((open_descriptors(), threads_here()))
    return counts


def test_failed_connects_do_not_leak() -> None:
    with Cluster(0) as group:
        (peer,) = group.add(1)
        descriptors, threads = zip(*peer.call(failing_rounds, group.url, 20), strict=True)
        assert min(descriptors[-5:]) <= max(descriptors[:5]), descriptors
        assert min(threads[-5:]) <= max(threads[:5]), threads


# ---- threads -------------------------------------------------------------------------------------


def two_lanes(worker: Worker, rounds: int) -> list[str]:
    """A call: two threads, each with a lane; one with large, one with small operations."""
    comm, wrong = worker.comm, []

    def run(lane: int, count: int) -> None:
        try:
            for number in range(rounds):
                x = np.full(count, number + comm.rank, np.float32)
                comm.all_reduce(x, out=x, lane=lane)
                if x[0] != sum(number + rank for rank in range(comm.size)):
                    wrong.append(f"lane {lane}, {number}: {x[0]}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=run, args=arguments) for arguments in ((0, 30_000), (1, 10))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        if thread.is_alive():
            wrong.append("a thread hangs")
    return wrong


def test_two_threads_with_a_lane_each() -> None:
    with Cluster(3) as group:
        assert group.each(two_lanes, 150) == [[]] * 3


def many_communicators(worker: Worker, url: str, count: int, rank: int) -> list[int]:
    """A call: members of several groups in one process, used in turn and together."""
    comms = [cc.connect(url, group=f"group {i}", size=2, rank=rank) for i in range(count)]
    works = [comm.all_reduce(np.full(2000, i), async_op=True) for i, comm in enumerate(comms)]
    found = [int(work.wait()[0]) for work in reversed(works)]
    for comm in comms:
        comm.barrier()
        comm.close()
    return found


def test_several_groups_in_one_process() -> None:
    with Cluster(0) as group:
        group.add(2)
        calls = [
            peer.start(many_communicators, group.url, 5, rank)
            for rank, peer in enumerate(group.peers)
        ]
        assert results(calls) == [[8, 6, 4, 2, 0]] * 2
