"""One test, run in a process tree of its own that never outlives it.

The runner forks a child for the test, and the child its ranks; nothing is imported anew, which is
what makes the run quick. The runner is the subreaper of all of them: a process whose parent died
becomes the runner's child, so that nobody gets away, not even a daemon in a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
import unittest
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

OUTPUT_MAX = 20_000
"""How many characters of a failed test's output are kept: its end."""

LEAVE_S = 10.0
"""How long processes that a test has left behind may take to end by themselves. A coordinator, say,
notices that its last member has gone only after all ranks have."""

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Result:
    """What came of a test."""

    name: str
    verdict: str  # PASSED, FAILED or SKIPPED
    reason: str = ""  # one line: why not passed
    seconds: float = 0.0
    output: str = ""  # of a failed test


def adopt_orphans() -> None:
    """Makes this process the parent of all its descendants that lose theirs."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def run(test: unittest.TestCase, name: str, limit_s: float) -> Result:
    """Runs `test` in a child. Whatever it does, no process of it is there when this returns."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(test, folder)
        try:
            verdict, reason = _outcome(pid, folder, limit_s)
            left = _wait_for_the_rest(0 if verdict == FAILED else LEAVE_S)
        finally:
            kill_all()
        if left and verdict != FAILED:
            verdict, reason = FAILED, f"left processes behind: {'; '.join(left)}"
        output = (folder / "output").read_text(errors="replace") if verdict == FAILED else ""
    return Result(name, verdict, reason, time.monotonic() - began, output[-OUTPUT_MAX:])


def kill_all() -> None:
    """Kills and reaps all descendants. A dead one's children become ours, hence the loop."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while _reap():
            pass
        time.sleep(0.001)


def descendants(ancestor: int) -> list[int]:
    """All processes below `ancestor`, those included that have ended and were not reaped."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; behind it stand state and parent.
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(ppid, []).append(int(folder.name))
    found, at = [ancestor], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found[1:]


# ---- the runner's side --------------------------------------------------------------------------


def _outcome(pid: int, folder: Path, limit_s: float) -> tuple[str, str]:
    """Waits for the child; its verdict and the reason."""
    ended = os.pidfd_open(pid)
    try:
        if not select.select([ended], [], [], limit_s)[0]:
            return FAILED, f"was still running after {limit_s:g} s"
    finally:
        os.close(ended)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        verdict, reason = json.loads((folder / "verdict").read_text())
    except FileNotFoundError:
        return FAILED, f"its process ended with exit code {status}"
    return verdict, reason


def _wait_for_the_rest(seconds: float) -> list[str]:
    """Waits for all descendants to end; the command lines of those that did not."""
    deadline = time.monotonic() + seconds
    while True:
        while _reap():
            pass
        left = descendants(os.getpid())
        if not left or time.monotonic() >= deadline:
            return [_command(pid) for pid in left]
        time.sleep(0.005)


def _reap() -> bool:
    """Reaps a child that has ended; whether there was one."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    return f"{pid} ({b' '.join(words).decode(errors='replace')})"


# ---- the child's side ---------------------------------------------------------------------------


def _child(test: unittest.TestCase, folder: Path) -> None:
    """Runs the test and ends the process. The verdict comes as a file, whole or not at all."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        verdict = _verdict(test)
        (folder / "half").write_text(json.dumps(verdict))
        (folder / "half").rename(folder / "verdict")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _verdict(test: unittest.TestCase) -> tuple[str, str]:
    result = unittest.TestResult()
    unittest.TestSuite([test]).run(result)
    if faults := result.errors + result.failures:
        for _, text in faults:
            print(text, file=sys.stderr)
        return FAILED, _last_line(faults[0][1])
    if result.unexpectedSuccesses:
        return FAILED, "passed, which it was not expected to"
    if result.skipped:
        return SKIPPED, result.skipped[0][1]
    if result.testsRun != 1:
        return FAILED, "did not run"
    return PASSED, ""


def _last_line(text: str) -> str:
    """The line of a traceback that names the error."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no traceback"
