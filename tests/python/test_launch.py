"""Local ranks: messages go both ways, failures are shown, and no process is left behind.

Goal: whatever a worker does, its parent learns of it and nothing outlives the parent. Method: tiny
worker programs that answer, print noise, fail or hang.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from collectives.cli import _launch
from collectives.errors import CollectivesError, TimedOut

HEAD = "import os, sys, time\nfrom collectives.cli import _launch\n"
TAIL = "\n_launch.work(main)\n"


def program(folder: Path, body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path = folder / "worker.py"
    path.write_text(f"{HEAD}def main(parent, spec):\n{lines}{TAIL}")
    return str(path)


def test_messages_go_both_ways_and_noise_does_not_harm(tmp_path: Path) -> None:
    body = """print("noise that is no message", flush=True)
parent.send(got=spec["x"], threads=os.environ["OMP_NUM_THREADS"])
parent.send(doubled=2 * parent.receive()["y"])"""
    with _launch.Workers() as workers:
        worker = workers.start("one", program(tmp_path, body), {"x": "ü"}, _launch.ONE_THREAD)
        assert workers.receive(20) == (worker, {"got": "ü", "threads": "1"})
        worker.send({"y": 21})
        assert workers.receive(20) == (worker, {"doubled": 42})
        assert workers.receive(20) == (worker, None)
        assert worker.exit_code == 0


def test_a_failure_shows_what_the_worker_printed(tmp_path: Path) -> None:
    body = """print("said before")
raise RuntimeError("it broke")"""
    with _launch.Workers() as workers:
        workers.start("one", program(tmp_path, body), {}, {})
        with pytest.raises(_launch.WorkerFailed, match="exited with 1") as caught:
            workers.receive(20)
    assert "it broke" in str(caught.value)
    assert "Traceback" in str(caught.value)


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    with _launch.Workers() as workers:
        path = program(tmp_path, "parent.send(pid=os.getpid())\nparent.receive()")
        workers.start("one", path, {}, {})
        second = workers.start("two", path, {}, {})
        for _ in range(2):
            workers.receive(20)
        second.process.send_signal(signal.SIGKILL)
        with pytest.raises(_launch.WorkerFailed, match=r"two .* was ended by SIGKILL"):
            workers.receive(20)


def test_a_worker_that_is_killed_as_expected_has_not_failed(tmp_path: Path) -> None:
    body = "parent.send(up=True)\nif spec:\n    parent.receive()"
    with _launch.Workers() as workers:
        path = program(tmp_path, body)
        worker = workers.start("one", path, {"waits": True}, {})
        workers.receive(20)
        worker.expected_exit = -signal.SIGKILL
        worker.process.send_signal(signal.SIGKILL)
        assert workers.receive(20) == (worker, None)
        other = workers.start("two", path, {}, {})
        other.expected_exit = -signal.SIGKILL
        workers.receive(20)
        with pytest.raises(_launch.WorkerFailed, match=r"two .* exited with 0"):
            workers.receive(20)


def test_silence_and_a_dead_coordinator_are_errors(tmp_path: Path) -> None:
    with _launch.Workers() as workers:
        worker = workers.start("one", program(tmp_path, "parent.receive()"), {}, {})
        with pytest.raises(TimedOut, match="one runs"):
            workers.receive(0.1)
        with pytest.raises(CollectivesError, match="coordinator ended"):
            workers.receive(20, lambda: False)
    assert worker.exit_code == -signal.SIGKILL  # it hung, and was ended with the block


def test_a_worker_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    with _launch.Workers() as workers:
        body = "parent.send(up=True)\ntime.sleep(1000)"
        worker = workers.start("one", program(tmp_path, body), {}, {})
        workers.receive(20)
        assert worker.process.stdin is not None
        worker.process.stdin.close()  # as the kernel does when a parent dies
        assert worker.process.wait(20) == 3
