"""`collectives run`: real launchers, ranks and signals.

Goal: survivors go on, the dead come back, the coordinator does, and nothing is left behind, however
the launcher ends. Method: small scripts that use `connect`. The folder of a test is in the command
line of its ranks, so that all processes of a job are found.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_detached import processes_with, wait_until

from collectives.cli.run_store import Store

HEAD = """
import os, signal, sys, time
import numpy as np
import collectives as cc
RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
NEW = os.environ.get("COLLECTIVES_REJOIN") == "1"
def say(text):
    os.write(1, f"rank {RANK} {text}\\n".encode())
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def connect():
    return cc.connect(size=SIZE, rank=RANK, timeouts=cc.LAN.scaled(0.2), timeout=20)
def until_some(comm, what):
    "Works on until all have seen that some have left or joined; who is new saw itself join."
    seen = NEW
    while not comm.all_reduce(np.array([seen], np.int32), op="min")[0]:
        seen = seen or bool(getattr(comm.admit(), what))
"""


class Job:
    """Starts launchers of scripts of this test."""

    def __init__(self, folder: Path, spawn: Any) -> None:
        self.folder = folder
        self._spawn = spawn

    def script(self, body: str) -> Path:
        path = self.folder / "script.py"
        path.write_text(HEAD + textwrap.dedent(body))
        return path

    def start(self, *arguments: object, **options: Any) -> Any:
        env = {"COLLECTIVES_COORDINATOR": "", "TMPDIR": str(self.folder), **options.pop("env", {})}
        command = ("-m", "collectives.cli.main", "run")
        return self._spawn("python", *command, *arguments, env=env, **options)

    def run(self, body: str, *options: object, size: int = 3, **more: Any) -> Any:
        return self.start("--nproc", size, *options, self.script(body), **more)

    @property
    def processes(self) -> list[int]:
        """Of the launchers, all that they have started, and all that was started by that."""
        return processes_with(str(self.folder))

    def coordinator(self) -> int:
        """The process that has its journal in the launcher's folder."""
        ours = processes_with(str(self.folder / "collectives-run-"))
        (pid,) = set(ours) & set(processes_with("/journal"))
        return pid


@pytest.fixture
def job(tmp_path: Path, spawn: Any) -> Iterator[Job]:
    """At its end nothing of the test may run, nor be in the temporary folder."""
    job = Job(tmp_path, spawn)
    yield job
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not job.processes, "all end")
    left = job.processes
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind (killed now)"
    assert list(tmp_path.glob("collectives-run-*")) == []


# ---- what a rank gets ----------------------------------------------------------------------------


def test_the_environment_is_that_of_torchrun(job: Job) -> None:
    body = """
    import json
    say("env " + json.dumps(dict(os.environ)))
    say("arguments " + json.dumps(sys.argv[1:]))
    """
    unset = {"COLLECTIVES_REJOIN": "1", "OMP_NUM_THREADS": ""}
    child = job.start("--nproc", 2, job.script(body), "--nproc", "7", "--", "-m", env=unset)
    assert child.wait() == 0
    envs = [json.loads(child.wait_for(rf"^rank {rank} env (.*)")[1]) for rank in range(2)]
    for rank, env in enumerate(envs):
        arguments = json.loads(child.wait_for(rf"^rank {rank} arguments (.*)")[1])
        assert arguments == ["--nproc", "7", "--", "-m"]
        assert "COLLECTIVES_REJOIN" not in env
        assert env["COLLECTIVES_COORDINATOR"].startswith("cc://127.0.0.1:")
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert env["LOCAL_RANK"] == env["RANK"] == env["ROLE_RANK"] == str(rank)
        sizes = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")
        assert {env[name] for name in sizes} == {"2"}
        assert (env["GROUP_RANK"], env["GROUP_WORLD_SIZE"], env["ROLE_NAME"]) == (
            "0",
            "1",
            "default",
        )
        assert env["TORCHELASTIC_RESTART_COUNT"] == env["TORCHELASTIC_MAX_RESTARTS"] == "0"
        hosted = importlib.util.find_spec("torch") is not None
        assert env["TORCHELASTIC_USE_AGENT_STORE"] == str(hosted)
    same = ("COLLECTIVES_COORDINATOR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    assert [envs[0][name] for name in same] == [envs[1][name] for name in same]
    assert child.output.count("\n") == 4


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("3", "3")])
def test_ranks_share_the_machine(job: Job, monkeypatch: Any, given: Any, threads: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = {} if given is None else {"OMP_NUM_THREADS": given}
    program = ("sh", "-c", 'echo "<$OMP_NUM_THREADS>"')
    child = job.start("--nproc", 2, "--no-python", *program, env=env)
    assert child.wait() == 0
    assert child.output == f"<{threads}>\n" * 2
    alone = job.start("--nproc", 1, "--no-python", *program, env=env)
    assert alone.wait() == 0
    assert alone.output == f"<{given or ''}>\n"


def test_a_module(job: Job) -> None:
    child = job.start("--nproc", 2, "-m", "json.tool", "--help")
    assert child.wait() == 0
    assert child.output.count("usage:") == 2


def test_a_coordinator_that_runs_already(job: Job, spawn: Any) -> None:
    command = ("-m", "collectives.cli.main", "coordinator", "--listen", "127.0.0.1:0")
    url = spawn("python", *command).wait_for("ready (.*)")[1]
    program = ("--no-python", "sh", "-c", "echo $COLLECTIVES_COORDINATOR")
    named = job.start("--nproc", 1, "--coordinator", url, *program)
    by_variable = job.start("--nproc", 1, *program, env={"COLLECTIVES_COORDINATOR": url})
    for child in (named, by_variable):
        assert child.wait() == 0
        assert child.output == url + "\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--nproc", "0"), "--nproc"),
        (("--nproc", "1", "--max-restarts", "-1"), "--max-restarts"),
        (("--nproc", "1", "--grace", "nan"), "--grace"),
        (("--nproc", "1", "--coordinator", "nowhere"), "coordinator"),
        (("--nproc", "1", "--no-python"), "no-such-program"),
    ],
)
def test_a_wrong_command_is_an_error_that_names_it(job: Job, options: Any, told: str) -> None:
    child = job.start(*options, "no-such-program")
    assert child.wait() == 1
    assert "collectives run: error:" in child.output and told in child.output
    assert "Traceback" not in child.output


def test_without_torch_the_port_is_kept_for_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Store(pytest.fail) as store:
        assert not store.hosted
        with socket.create_server(("127.0.0.1", store.port)):
            socket.create_connection(("127.0.0.1", store.port), 5).close()


# ---- ranks die -----------------------------------------------------------------------------------


def test_survivors_go_on(job: Job) -> None:
    body = """
    with connect() as comm:
        if RANK == 1:
            die()
        until_some(comm, "left")
        say(f"is done, {comm.size} are here")
    """
    child = job.run(body)
    assert child.wait() == 0
    assert child.output.count("is done, 2 are here") == 2
    (line,) = re.findall("^collectives run: .*", child.output, re.M)
    assert re.fullmatch(
        r"collectives run: rank 1 \(process \d+\) was killed by SIGKILL; \d ranks? goe?s? on", line
    )


def test_a_failure_is_in_the_exit_code_and_the_others_go_on(job: Job) -> None:
    body = """
    with connect() as comm:
        if RANK == 0:
            sys.exit(5)
        until_some(comm, "left")
        say(f"is done, {comm.size} are here")
    """
    child = job.run(body)
    assert child.wait() == 5
    assert child.output.count("is done, 2 are here") == 2
    child.wait_for(r"^collectives run: rank 0 \(process \d+\) exited with 5; ")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_dead_rank_comes_back(job: Job, victim: int) -> None:
    body = f"""
    with connect() as comm:
        if RANK == {victim} and not NEW:
            die()
        until_some(comm, "joined")
        say(f"is done, {{'new' if NEW else 'old'}}")
    """
    child = job.run(body, "--restart-dead")
    assert child.wait() == 0
    for rank in range(3):
        child.wait_for(f"rank {rank} is done, {'new' if rank == victim else 'old'}")
    assert re.search(rf"rank {victim} .* started again in 0.5 s \(1/3\)", child.output)


def test_restarts_are_counted_and_then_it_has_failed(job: Job) -> None:
    """The other one waits for it to be over, by the line of the launcher."""
    body = """
    if RANK == 1:
        say("tries, new" if NEW else "tries")
        sys.exit(6)
    while os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    """
    flag = job.folder / "flag"
    flag.touch()
    script = job.script(body)
    child = job.start("--nproc", 2, "--restart-dead", "--max-restarts", 1, script, flag)
    child.wait_for("exited with 6; 1 rank goes on")
    flag.unlink()
    assert child.wait() == 6
    assert child.output.count("tries") == 2 and child.output.count("tries, new") == 1


def test_what_a_rank_has_started_ends_with_it(job: Job) -> None:
    body = """
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", __file__])
    if RANK == 0:
        die()
    """
    child = job.run(body, size=2)
    assert child.wait() == 0
    wait_until(lambda: not job.processes, "what the ranks have started ends")


# ---- the coordinator crashes ---------------------------------------------------------------------


def test_the_coordinator_comes_back(job: Job) -> None:
    """It knows the group from its journal, and lets a rank in that comes after the crash."""
    body = """
    with connect() as comm:
        say(f"is there, {'new' if NEW else 'old'}")
        until_some(comm, "joined")
        say(f"is done, {comm.size} are here")
    """
    child = job.run(body, "--restart-dead")
    for rank in range(3):
        child.wait_for(f"rank {rank} is there, old")
    before = job.coordinator()
    os.kill(before, signal.SIGKILL)
    child.wait_for(rf"the coordinator \(process {before}\) was killed by SIGKILL")
    os.kill(rank_process(job, 2), signal.SIGKILL)
    assert child.wait() == 0
    child.wait_for("rank 2 is there, new")
    assert child.output.count("is done, 3 are here") == 3
    assert child.output.count("the coordinator") == 1


def rank_process(job: Job, rank: int) -> int:
    found = []
    for pid in processes_with(str(job.folder / "script.py")):
        with contextlib.suppress(OSError):
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    (pid,) = found
    return pid


# ---- the launcher is told to end -----------------------------------------------------------------

OBEYS = """
def end(number, frame):
    say(f"ends by {signal.Signals(number).name}")
    os._exit(0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
say("is ready")
while True:
    signal.pause()
"""
DEFIES = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: say("defies"))
say("is ready")
while True:
    signal.pause()
"""


def ready(child: Any, size: int = 2) -> Any:
    for rank in range(size):
        child.wait_for(f"rank {rank} is ready")
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_awaited(job: Job, number: signal.Signals) -> None:
    child = ready(job.run(OBEYS, "--restart-dead", size=2))
    os.killpg(child.pid, number)  # as a terminal does
    assert child.wait() == 128 + number
    assert child.output.count(f"ends by {number.name}") == 2
    assert "collectives run:" not in child.output


def test_a_second_signal_kills_at_once(job: Job) -> None:
    child = ready(job.run(DEFIES, size=2))
    child.signal(signal.SIGINT)
    for rank in range(2):
        child.wait_for(f"rank {rank} defies")
    assert child.process.poll() is None
    began = time.monotonic()
    child.signal(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - began < 5


def test_who_takes_too_long_is_killed(job: Job) -> None:
    child = ready(job.run(DEFIES, "--grace", 0.3, size=2))
    began = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.wait() == 143
    assert 0.3 <= time.monotonic() - began < 10
    assert child.output.count("defies") == 2


def test_what_nohup_ignores_stays_ignored(job: Job) -> None:
    arguments = ("-m", "collectives.cli.main", "run", "--nproc", "1", job.script(OBEYS))
    child = job._spawn(
        "sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, *arguments,
        env={"TMPDIR": str(job.folder)},
    )  # fmt: skip
    ready(child, 1)
    child.signal(signal.SIGHUP)
    child.signal(signal.SIGTERM)
    assert child.wait() == 143
    assert "ends by SIGHUP" not in child.output


def test_nobody_reads_its_lines(job: Job) -> None:
    """Standard error is a pipe that nobody reads from any more: the job goes on all the same."""
    body = """
    if RANK == 0:
        die()
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    """
    flag = job.folder / "flag"
    words = [sys.executable, "-m", "collectives.cli.main", "run", "--nproc", "2"]
    line = " ".join(map(str, [*words, job.script(body), flag]))
    child = job._spawn(
        "bash", "-c", f"{line} 2> >(exec 0<&-; echo closed); echo code $?",
        env={"TMPDIR": str(job.folder)},
    )  # fmt: skip
    child.wait_for("closed")
    flag.touch()
    child.wait_for("code 0")
    assert child.wait() == 0


# ---- the launcher is killed ----------------------------------------------------------------------


def killed(job: Job, child: Any) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    wait_until(lambda: not job.processes, "all that it has started ends")
    wait_until(lambda: not list(job.folder.glob("collectives-run-*")), "its folder is removed")


def test_if_it_is_killed_nothing_is_left(job: Job) -> None:
    child = ready(job.run(DEFIES, size=2))
    assert len(job.processes) >= 5  # launcher, guard, coordinator, ranks
    killed(job, child)


def test_nothing_that_a_rank_has_started_is_left_either(job: Job) -> None:
    script = job.script(DEFIES)
    words = ("--no-python", "sh", "-c", '"$@" & wait', "sh", sys.executable, script)
    killed(job, ready(job.start("--nproc", 2, *words)))


def test_nor_what_a_launcher_that_is_a_rank_has(job: Job) -> None:
    inner = ("-m", "collectives.cli.main", "run", "--nproc", "2", job.script(DEFIES))
    killed(job, ready(job.start("--nproc", 1, *inner)))


def test_it_may_be_killed_while_it_starts(job: Job) -> None:
    """It is struck while ranks are started, before it has told the guard of the last one."""
    program = ("--no-python", "sh", "-c", "echo is ready; sleep 60; :", job.folder)
    child = job.start("--nproc", 64, *program)
    child.wait_for("is ready")
    killed(job, child)


def test_without_its_guard_it_goes_on(job: Job) -> None:
    child = ready(job.run(OBEYS, size=2))
    ours = set(processes_with(str(job.folder / "collectives-run-")))
    (guard,) = ours - {job.coordinator()}
    os.kill(guard, signal.SIGKILL)
    child.signal(signal.SIGTERM)
    assert child.wait() == 143
    assert list(job.folder.glob("collectives-run-*")) == []
