"""Processes that fork. The child has no part in the group: its calls raise `Closed`, it keeps none
of the parent's connections open, and it ends as it likes. The parent goes on as if nothing was.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cluster import SMALL, Cluster, Worker

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def in_child(function: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The result of a function in a forked child; an AssertionError if it hangs or crashes."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(seconds) + 1)
            with os.fdopen(writer, "wb") as file:
                file.write(pickle.dumps(function()))
            status = 0
        except BaseException as error:
            os.write(2, f"in the forked child: {error!r}\n".encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the forked child ended with status {status}"
    return pickle.loads(data)


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


def name_of_error(call: Callable[[], Any]) -> str:
    began = time.monotonic()
    try:
        call()
    except BaseException as error:
        assert time.monotonic() - began < 1, "it took its time"
        return type(error).__name__
    return "ok"


def uses_in_the_child(worker: Worker) -> list[str]:
    """A call: forks with an operation open, and tells what the child's calls end in."""
    comm = worker.comm
    work = comm.all_reduce(np.ones(100_000), async_op=True)

    def child() -> list[str]:
        calls: list[Callable[[], Any]] = [
            lambda: comm.all_reduce(np.ones(3)),
            lambda: comm.all_reduce(np.ones(3), async_op=True, lane=4),
            comm.barrier,
            comm.admit,
            comm.leave,
            lambda: work.wait(5),
            work.wait,
        ]
        found = [name_of_error(call) for call in calls]
        comm.close()
        comm.close()
        _ = repr(comm), repr(work), comm.rank, comm.size, comm.members, comm.epoch, comm.stats
        return found

    found = in_child(child)
    worker.kept["work"] = work
    return found


def the_open_work(worker: Worker) -> float:
    if "work" not in worker.kept:
        return float(worker.comm.all_reduce(np.ones(100_000))[-1])
    return float(worker.kept.pop("work").wait(20)[-1])


def test_the_childs_calls_are_closed_and_the_parent_goes_on() -> None:
    with Cluster(3, **SMALL) as group:
        assert group.each(total) == [3] * 3
        assert group.peers[1].call(uses_in_the_child) == ["Closed"] * 7
        assert group.each(the_open_work) == [3.0] * 3
        assert group.each(total) == [3] * 3


def sockets() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(("socket:", "anon_inode:")):
                found[int(name)] = target
    return found


def tcp_inodes() -> set[str]:
    """The TCP sockets of this network namespace, as /proc/self/fd names them."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{table}") as file:
            found |= {f"socket:[{line.split()[9]}]" for line in list(file)[1:]}
    return found


def what_the_child_holds(worker: Worker) -> tuple[list[str], int]:
    """A call: the parent's TCP sockets that a forked child still holds, but for those of ZeroMQ,
    which cannot be closed there; and how many TCP sockets the parent has."""
    tcp = tcp_inodes()
    mine = {target for target in sockets().values() if target in tcp}
    control = worker.kept.get("control", set())

    def child() -> list[str]:
        return sorted((set(sockets().values()) & mine) - control)

    return in_child(child), len(mine)


def remember_others(worker: Worker) -> None:
    """A call: what is open before the group is joined is not the library's."""
    worker.kept["before"] = set(sockets().values())


def control_sockets(worker: Worker, url: str) -> list[str]:
    """A call: the sockets whose other end is the coordinator."""
    port = int(url.rpartition(":")[2])
    found = []
    with open("/proc/self/net/tcp") as file:
        for line in list(file)[1:]:
            fields = line.split()
            if int(fields[2].rpartition(":")[2], 16) == port:
                found.append(f"socket:[{fields[9]}]")
    worker.kept["control"] = set(found)
    return sorted(set(found) & set(sockets().values()))


def test_no_connection_of_the_parent_stays_open_in_the_child() -> None:
    with Cluster(3) as group:
        assert group.each(total) == [3] * 3
        peer = group.peers[1]
        assert len(peer.call(control_sockets, group.url)) == 1
        held, count = peer.call(what_the_child_holds)
        assert count >= 3, "the test looked at the wrong sockets"
        assert held == []
        assert group.each(total) == [3] * 3


def fork_many(worker: Worker, count: int) -> list[float]:
    """A call: forks again and again while operations are under way in another thread."""
    comm, sums = worker.comm, []

    def run() -> None:
        for _ in range(count):
            sums.append(float(comm.all_reduce(np.ones(20_000))[0]))

    thread = threading.Thread(target=run)
    thread.start()
    children = []
    while thread.is_alive() and len(children) < 60:
        pid = os.fork()
        if pid == 0:
            code = 0 if name_of_error(comm.barrier) == "Closed" else 3
            os._exit(code)
        children.append(pid)
    thread.join(30)
    assert not thread.is_alive(), "the parent hangs"
    for pid in children:
        deadline = time.monotonic() + 10
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError("a forked child hangs")
            time.sleep(0.002)
        assert found[1] == 0, f"a child ended with status {found[1]}"
    return sums


def only_sums(worker: Worker, count: int) -> list[float]:
    return [float(worker.comm.all_reduce(np.ones(20_000))[0]) for _ in range(count)]


def test_forks_while_operations_are_under_way() -> None:
    with Cluster(2, **SMALL) as group:
        forking = group.peers[0].start(fork_many, 400)
        assert group.peers[1].call(only_sums, 400) == [2.0] * 400
        assert forking.result() == [2.0] * 400
        assert group.each(total) == [2, 2]


def child_with_a_life_of_its_own(worker: Worker, url: str) -> tuple[int, int]:
    """A call: the child joins another group, all on its own; the parent's is not touched."""

    def child() -> int:
        comm = cc.connect(url, group="of the child")
        found = int(comm.all_reduce(np.array([41]))[0]) + comm.size
        comm.close()
        return found

    return in_child(child), int(worker.comm.all_reduce(np.array([1]))[0])


def test_the_child_may_join_a_group_itself() -> None:
    with Cluster(2) as group:
        forking = group.peers[0].start(child_with_a_life_of_its_own, group.url)
        assert group.peers[1].call(total) == 2
        assert forking.result() == (42, 2)


def normal_exit(worker: Worker) -> int:
    """A call: a child that ends as a program does, with atexit and all, from multiprocessing."""
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join(10)
    assert process.exitcode is not None, "the child hangs when it exits"
    return process.exitcode


def test_a_child_that_exits_normally() -> None:
    with Cluster(2) as group:
        assert group.peers[0].call(normal_exit) == 0
        assert group.each(total) == [2, 2]


def starts_a_program(worker: Worker) -> tuple[int, list[str]]:
    """A call: a program started by subprocess inherits no descriptor of ours, even if asked to keep
    what may be kept."""
    code = "import os; print(sum(os.path.exists(f'/proc/self/fd/{n}') for n in range(3, 200)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        close_fds=False,
        timeout=20,
        check=True,
    )
    ours = {n: what for n, what in sockets().items() if what not in worker.kept["before"]}
    return int(done.stdout), [what for n, what in ours.items() if os.get_inheritable(n)]


def test_programs_that_are_started_inherit_nothing() -> None:
    with Cluster(0) as group:
        group.add(2)
        group.each(remember_others)
        before = [count for count, _ in group.each(starts_a_program)]
        group.form(group.peers)
        assert group.each(total) == [2, 2]
        after = group.each(starts_a_program)
        assert [count for count, _ in after] == before
        assert [inheritable for _, inheritable in after] == [[], []]
        assert group.each(total) == [2, 2]


def dies_in_the_child(worker: Worker) -> int:
    """A call: the child drops everything and collects the garbage; that is its own memory."""
    comm = worker.comm
    works = [comm.all_reduce(np.ones(30_000), async_op=True) for _ in range(4)]

    def child() -> int:
        import gc

        works.clear()
        del worker.comm
        gc.collect()
        return 0

    found = in_child(child)
    worker.kept["works"] = works
    return found


def finish_four(worker: Worker) -> list[float]:
    works = worker.kept.pop("works", None)
    if works is None:
        works = [worker.comm.all_reduce(np.ones(30_000), async_op=True) for _ in range(4)]
    return [float(work.wait(20)[0]) for work in works]


def test_the_childs_garbage_collection_harms_nobody() -> None:
    with Cluster(2) as group:
        assert group.peers[0].call(dies_in_the_child) == 0
        assert group.each(finish_four) == [[2.0] * 4] * 2
