"""One test, run in a process of its own.

The runner forks a child for the test, and the child its ranks; nothing is imported anew, which is
what makes the run quick.
"""

from __future__ import annotations

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

from tree import Tree

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

OUTPUT_MAX = 20_000
"""How many characters of a failed test's output are kept: its end."""


@dataclass(frozen=True)
class Result:
    """What came of a test."""

    name: str
    verdict: str  # PASSED, FAILED or SKIPPED
    reason: str = ""  # one line: why not passed
    seconds: float = 0.0
    output: str = ""  # of a failed test


def run(test: unittest.TestCase, name: str, limit_s: float, tree: Tree) -> Result:
    """Runs `test` in a child. If it fails, no process of it is there when this returns; else the
    tree has those that are, as late ones."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(test, folder)
        verdict, reason = _outcome(pid, folder, limit_s)
        if verdict != FAILED:
            tree.leave(name)
        tree.kill()
        output = (folder / "output").read_text(errors="replace") if verdict == FAILED else ""
    return Result(name, verdict, reason, time.monotonic() - began, output[-OUTPUT_MAX:])


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
