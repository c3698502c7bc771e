"""A coordinator that belongs to nobody, and ends with its job: real processes and signals.

Goal: it outlives whoever started it, keeps nobody waiting, and is not left behind. When it is over
is tested in test_vacancy; here are connections that last or break. Method: a folder of the test is
in the command line of each detached coordinator, as the place of its journal, so that it is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import collectives as cc
from collectives import config
from collectives.coordinator import process, server
from collectives.errors import CollectivesError

COMMAND = ("-m", "collectives.cli.main", "coordinator", "--listen", "127.0.0.1:0")
QUICK = config.LAN.scaled(0.2)
END_S = 20.0  # limits, not what is expected

PEER = """
import sys, time
import collectives as cc
timeouts = cc.LAN.scaled(0.2)
comm = cc.connect(sys.argv[1], group="g", size=int(sys.argv[2]), timeouts=timeouts)
print("member", flush=True)
time.sleep(60)
"""

STARTER = """
import os, sys
from collectives.coordinator import process
process.start_detached("127.0.0.1:0", "--journal", sys.argv[1])
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""


def processes_with(word: str) -> list[int]:
    """Who has that in its command line, but for this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if word.encode() in command and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {END_S:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """To be given to a coordinator as its journal. At the end nobody must have it any more."""
    path = str(tmp_path / "journal")
    yield path
    left = processes_with(path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a coordinator was left behind (killed now)"


def stat(pid: int) -> list[str]:
    """Parent, process group, session and terminal, as /proc tells them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:5]


def end(mark: str) -> None:
    for pid in processes_with(mark):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not processes_with(mark), "the coordinator ends on SIGTERM")


class Service:
    """A coordinator that ends with its job, in a thread, with short times."""

    def __init__(self, listen: str = "127.0.0.1:0", **options: Any) -> None:
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._options = {"timeouts": QUICK, "until_empty": True, **options}
        self.thread = threading.Thread(target=self._main, args=(listen,))

    def _main(self, listen: str) -> None:
        def ready(url: str) -> None:
            self.url = url
            self._ready.set()

        serving = server.serve(listen, on_ready=ready, stop=self._stop, **self._options)
        self._loop.run_until_complete(serving)
        self._loop.close()

    def __enter__(self) -> Service:
        self.thread.start()
        assert self._ready.wait(END_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, as it should
            self._loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(END_S)

    def ends_within(self, seconds: float) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()


# ---- until it is empty ---------------------------------------------------------------------------


def test_it_ends_with_exit_code_0_when_all_have_closed(spawn: Any) -> None:
    child = spawn("python", *COMMAND, "--until-empty")
    url = child.wait_for(r"^ready (.*)$")[1]
    comm = cc.connect(url, group="g", size=1)
    assert child.process.poll() is None
    comm.close()
    assert child.wait() == 0
    assert child.output == f"ready {url}\n"


def test_it_ends_with_exit_code_0_when_nobody_comes(spawn: Any) -> None:
    child = spawn("python", *COMMAND, "--until-empty", "--join-within", "0.2")
    assert child.wait() == 0


def test_it_ends_when_all_members_are_killed_together(spawn: Any) -> None:
    with Service() as service:
        peers = [spawn("python", "-c", PEER, service.url, "2") for _ in range(2)]
        for peer in peers:
            peer.wait_for("member")
        for peer in peers:
            peer.signal(signal.SIGKILL)
        assert service.ends_within(END_S)


def test_members_that_were_all_stopped_find_it_again(spawn: Any) -> None:
    """Ctrl-Z: for longer than a silent joiner or a silent connection is waited for."""
    with Service() as service:
        peer = spawn("python", "-c", PEER, service.url, "1")
        peer.wait_for("member")
        peer.signal(signal.SIGSTOP)
        assert not service.ends_within(QUICK.joiner_lost + 6 * QUICK.dead)
        peer.signal(signal.SIGCONT)
        peer.signal(signal.SIGKILL)
        assert service.ends_within(END_S)


def test_far_members_are_waited_for_longer(spawn: Any) -> None:
    with Service("0.0.0.0:0", insecure=True) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        peer = spawn("python", "-c", PEER, url, "1")
        peer.wait_for("member")
        peer.signal(signal.SIGKILL)
        assert not service.ends_within(2 * QUICK.joiner_lost)


# ---- detached ------------------------------------------------------------------------------------


def test_detached_it_is_nobodys_child_and_keeps_nobody_waiting(mark: str) -> None:
    command = [sys.executable, *COMMAND, "--detach", "--journal", mark]
    starter = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    out, _ = starter.communicate(timeout=END_S)  # to the end of the pipe
    assert starter.returncode == 0
    assert out.startswith("ready cc://127.0.0.1:") and out.count("\n") == 1
    (coordinator,) = processes_with(mark)
    parent, group, session, terminal = map(int, stat(coordinator))
    assert parent not in (os.getpid(), starter.pid)
    assert coordinator not in (group, session)
    assert starter.pid not in (group, session)
    assert terminal == 0
    for descriptor in (0, 1):
        assert os.readlink(f"/proc/{coordinator}/fd/{descriptor}") == os.devnull
    assert os.readlink(f"/proc/{coordinator}/fd/2") == os.readlink("/proc/self/fd/2")
    with cc.connect(out.split()[1], group="g", size=1):
        pass
    assert processes_with(mark) == [coordinator]
    end(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_the_job_does_not_reach_it(mark: str, spawn: Any, number: int) -> None:
    words = [sys.executable, *COMMAND, "--detach", "--journal", mark]
    # Its standard error goes elsewhere, for that it keeps.
    job = spawn("sh", "-c", '"$@" 2>/dev/null; sleep 60', "job", *words)
    url = job.wait_for(r"^ready (.*)$")[1]
    os.killpg(job.pid, number)
    assert job.wait() != 0
    with cc.connect(url, group="g", size=1):
        pass
    end(mark)


def test_why_it_does_not_start_is_said_and_the_exit_code_is_1(spawn: Any) -> None:
    child = spawn("python", *COMMAND, "--detach", "--listen", "0.0.0.0:0")
    assert child.wait() == 1
    assert "--insecure" in child.output
    assert child.output.count("\n") == 1


def test_if_nobody_waits_for_it_to_start_it_does_not_stay(mark: str) -> None:
    """Whoever started it was killed before it was ready: nobody knows its address."""
    fifo = Path(mark).with_name("fifo")
    os.mkfifo(fifo)
    program = (
        "import os, sys\n"
        "from collectives.coordinator import server\n"
        "listen_address = server.listen_address\n"
        "def wait(*a): open(sys.argv[1]).read(); return listen_address(*a)\n"
        "server.listen_address = wait\n"
        "from collectives.cli import main\n"
        "sys.exit(main.main(sys.argv[2:]))\n"
    )
    command = [sys.executable, "-c", program, str(fifo), "coordinator", "--listen", "127.0.0.1:0"]
    starter = subprocess.Popen([*command, "--detach", "--journal", mark], start_new_session=True)
    with open(fifo, "w"):  # it is about to listen
        starter.kill()
        starter.wait()
        assert len(processes_with(mark)) == 1
    wait_until(lambda: not processes_with(mark), "a coordinator that nobody knows ends")


def test_it_cannot_be_detached_and_have_an_input(spawn: Any) -> None:
    child = spawn("python", *COMMAND, "--detach", "--until-input-ends")
    assert child.wait() == 1
    assert "--until-input-ends" in child.output


# ---- from a program ------------------------------------------------------------------------------


def test_a_program_starts_one_and_it_ends_with_the_last_member(mark: str, spawn: Any) -> None:
    program = (
        "import sys\n"
        "from collectives.coordinator.process import start_detached\n"
        "print('url', start_detached('127.0.0.1:0', '--journal', sys.argv[1]), flush=True)\n"
        "sys.stdin.read()\n"
    )
    rank0 = subprocess.Popen(
        [sys.executable, "-c", program, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert rank0.stdout is not None
        url = rank0.stdout.readline().split()[1]
        comm = cc.connect(url, group="g", size=1)
        os.killpg(rank0.pid, signal.SIGKILL)
        rank0.communicate(timeout=END_S)  # nobody else has its pipes
        assert len(processes_with(mark)) == 1
        comm.barrier()
        comm.close()
        wait_until(lambda: not processes_with(mark), "the coordinator ends with its last member")
    finally:
        rank0.kill()
        rank0.communicate()


def test_a_program_has_no_child_and_no_zombie_of_it(mark: str) -> None:
    said = subprocess.run(  # this process may have children of other tests
        [sys.executable, "-c", STARTER, mark], capture_output=True, text=True, timeout=END_S
    )
    assert said.stdout == "no child\n", said
    end(mark)


def test_a_program_is_told_why_none_starts() -> None:
    with pytest.raises(CollectivesError, match=r"exit code 1.*--insecure"):
        process.start_detached("0.0.0.0:0")
    with pytest.raises(CollectivesError, match=r"(?s)exit code 2.*--no-such-option"):
        process.start_detached("127.0.0.1:0", "--no-such-option")  # after two lines of usage


def test_torch_and_the_folder_one_is_in_are_left_alone(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first would take seconds, the second may hold anything: here what breaks every import."""
    library, folder = tmp_path / "library", tmp_path / "folder"
    for where, name in ((library, "torch.py"), (folder, "asyncio.py"), (folder, "select.py")):
        where.mkdir(exist_ok=True)
        (where / name).write_text("raise SystemExit(f'{__file__} was imported')\n")
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.chdir(folder)
    assert process.start_detached("127.0.0.1:0", "--journal", mark).startswith(config.SCHEME)
    end(mark)
