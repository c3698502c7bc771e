"""How groups and processes end. Skipped without torch.

Goal: destroying, aborting, forking and exiting in any state neither hang, nor crash, nor leave
a traceback. Method: a rank ends its interpreter in the middle of a test, as a script's end does,
with what it prints kept in a file; threads meet at an operation that cannot complete.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, results  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)

QUICK_S = 3.0  # an end is not held up: every wait of ours that runs out has 5 s at least


def all_sum(worker: Worker, count: int = 4) -> None:
    """A call: the group works."""
    x = torch.ones(count)
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((count,), float(dist.get_world_size())))


# ---- from another thread ---------------------------------------------------------------------


def waits(x: Any, waits_in: str, called: threading.Event) -> None:
    if waits_in == "call":
        called.set()
        dist.all_reduce(x)
    elif waits_in == "recv":
        called.set()
        dist.recv(x, 1)
    else:
        work = dist.all_reduce(x, async_op=True)
        called.set()
        work.wait() if waits_in == "work" else work.get_future().wait()


def ended_by_a_thread(worker: Worker, how: str, waits_in: str) -> None:
    """A call: waits for an operation that nobody else calls, until a thread ends the group."""
    group = dist.group.WORLD
    called = threading.Event()

    def end() -> None:
        called.wait()
        getattr(group, how)() if how != "destroy" else dist.destroy_process_group()

    thread = threading.Thread(target=end)
    thread.start()
    x = torch.ones(1 << 14)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="closed"):
        waits(x, waits_in, called)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < QUICK_S
    with pytest.raises((RuntimeError, ValueError)):
        dist.all_reduce(x)


@pytest.mark.parametrize("how", ["abort", "shutdown", "destroy"])
@pytest.mark.parametrize("waits_in", ["call", "work", "future", "recv"])
def test_a_thread_ends_the_group_while_another_waits(how: str, waits_in: str) -> None:
    with Ranks(2) as ranks:
        ranks.peers[0].call(ended_by_a_thread, how, waits_in)
        with pytest.raises(cc.PeerLost):
            ranks.peers[1].call(all_sum, 1 << 14)


# ---- destroy and init again ------------------------------------------------------------------


def destroys(worker: Worker) -> None:
    """A call: ends all groups."""
    dist.destroy_process_group()
    assert not dist.is_initialized()


def test_destroy_and_init_again_through_other_files() -> None:
    with Ranks(2) as ranks:
        for turn in range(3):
            ranks.each(all_sum)
            ranks.each(destroys)
            ranks.initialise(f"store {turn}")
        ranks.each(all_sum)


def inits_again(worker: Worker, rank: int, size: int, path: str, turns: int) -> None:
    """A call: groups one after the other from one store object, some of them with groups within."""
    dist.destroy_process_group()
    store = dist.FileStore(path, size)
    for turn in range(turns):
        dist.init_process_group(
            "collectives",
            store=dist.PrefixStore("same", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=20),
        )
        group = dist.new_group([0, 1]) if turn % 2 else None
        all_sum(worker)
        if group is not None and rank < 2:
            dist.barrier(group)
        dist.destroy_process_group()


def test_destroy_and_init_again_through_the_same_store(tmp_path: Path) -> None:
    with Ranks(3) as ranks:
        calls = [
            peer.start(inits_again, rank, 3, str(tmp_path / "store"), 4)
            for rank, peer in enumerate(ranks.peers)
        ]
        results(calls)


def makes_and_ends_groups(worker: Worker, count: int) -> None:
    """A call: more groups, one after the other, than a peer can be in at once."""
    for _ in range(count):
        group = dist.new_group([0, 1])
        x = torch.ones(1)
        dist.all_reduce(x, group=group)
        assert x.item() == 2.0
        dist.destroy_process_group(group)
    all_sum(worker)


def test_ended_groups_leave_room_for_others() -> None:
    with Ranks(2) as ranks:
        ranks.each(makes_and_ends_groups, 70)


# ---- the end of a process --------------------------------------------------------------------


def exits(worker: Worker, output: str, state: str) -> None:
    """A call: the interpreter ends here as it does at the end of a script, in this state."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w")
    x = torch.ones(1 << 12)
    if state == "works pending":
        worker.kept["works"] = [dist.all_reduce(x, async_op=True) for _ in range(10)]
    elif state == "dropped works pending":
        for _ in range(10):
            dist.all_reduce(x, async_op=True)
    elif state == "futures pending":
        worker.kept["futures"] = [
            dist.all_reduce(x, async_op=True).get_future().then(lambda f: f.value()[0] * 2)
            for _ in range(10)
        ]
    elif state == "a thread waits in a future":
        future = dist.all_reduce(x, async_op=True).get_future()
        threading.Thread(target=lambda: _quietly(future.wait), daemon=True).start()
    elif state == "a thread waits in a call":
        threading.Thread(target=lambda: _quietly(dist.all_reduce, x), daemon=True).start()
    elif state == "a callback waits for what never comes":
        future = dist.irecv(torch.ones(1), 1).get_future()
        future.then(lambda f: _quietly(dist.recv, x, 1))
    elif state == "messages pending":
        worker.kept["works"] = [dist.isend(x, 1), dist.irecv(x, 1)]
    elif state == "groups":
        worker.kept["groups"] = [dist.new_group([0]) for _ in range(3)]
    elif state == "destroyed":
        dist.destroy_process_group()
    elif state == "aborted":
        dist.group.WORLD.abort()
    elif state == "failed":
        worker.note("ready")
        with pytest.raises(cc.PeerLost):
            dist.all_reduce(x)
    began = time.monotonic()
    atexit._run_exitfuncs()  # the first thing that Python does then
    worker.note(time.monotonic() - began)
    ctypes.pythonapi.Py_Exit(0)


def _quietly(call: Any, *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):
        call(*arguments)


STATES = [
    *("idle", "destroyed", "aborted", "groups", "works pending", "dropped works pending"),
    *("futures pending", "messages pending", "a thread waits in a future"),
    *("a thread waits in a call", "a callback waits for what never comes", "failed"),
]


@pytest.mark.parametrize("state", STATES)
def test_a_process_exits_quietly(state: str, tmp_path: Path) -> None:
    with Ranks(2) as ranks:
        output = tmp_path / "output"
        peer = ranks.peers[0]
        peer.start(exits, str(output), state)
        if state == "failed":
            peer.wait_note()
            ranks.peers[1].kill()
        took = peer.wait_note()
        peer._process.join(20)
        assert peer._process.exitcode == 0, output.read_text()
        assert output.read_text() == ""
        assert took < QUICK_S
        if state != "failed":
            with pytest.raises(cc.PeerLost):
                ranks.peers[1].call(all_sum, 1 << 12)


SCRIPT = """
import sys, torch, torch.distributed as dist, collectives.torch
dist.init_process_group("collectives", init_method="file://" + sys.argv[1], rank=0, world_size=1)
x = torch.ones(3)
future = dist.all_reduce(x, async_op=True).get_future()
future.then(lambda done: print("sum", done.value()[0].sum().item()))
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
print("end of the script", flush=True)
"""


def test_a_whole_script_without_destroy(spawn: Any, tmp_path: Path) -> None:
    with Ranks(0) as ranks:
        child = spawn(
            *("python", "-c", SCRIPT, tmp_path / "store"),
            env={"COLLECTIVES_COORDINATOR": ranks.url, "OMP_NUM_THREADS": "1"},
        )
        child.wait_for("end of the script", 40)
        assert child.wait() == 0
        assert "Traceback" not in child.output and "sum 3.0" in child.output


# ---- fork ------------------------------------------------------------------------------------


def forks(worker: Worker, ends: str) -> None:
    """A call: a child is forked in the middle of it all, and what it may do does not hurt us."""
    work = dist.all_reduce(torch.ones(4), async_op=True)
    future = work.get_future()
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(RuntimeError):
                dist.all_reduce(torch.ones(4))
            fresh = torch.futures.Future()  # what needs no group works
            fresh.set_result(1)
            if ends == "exit":
                ctypes.pythonapi.Py_Exit(7)
        finally:
            os._exit(7 if ends == "_exit" else 1)
    status = _reap(child)
    assert os.waitstatus_to_exitcode(status) == 7
    worker.note("child is gone")
    work.wait()
    assert torch.equal(future.wait()[0], torch.full((4,), 2.0))
    all_sum(worker)


def _reap(child: int) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")


@pytest.mark.parametrize("ends", ["exit", "_exit"])
def test_a_forked_child_does_not_disturb(ends: str) -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(forks, ends)
        ranks.peers[0].wait_note()
        ranks.peers[1].call(all_sum)
        second = ranks.peers[1].start(all_sum)
        first.result()
        second.result()
        ranks.each(all_sum)
