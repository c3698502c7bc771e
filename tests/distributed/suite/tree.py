"""The processes below this one: found, killed and reaped, however they came to be there.

This process is the subreaper of all that it starts: whose parent dies becomes its child. So nobody
gets away, not even a daemon in a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

LEAVE_S = 10.0
"""How long what a test has left behind may take to end by itself. A coordinator, say, notices only
after all ranks have gone that it is needed no more."""

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Late:
    """A process that was there after its test."""

    test: str
    since: float
    command: str


class Tree:
    """The tree whose root this process is. There is one of it."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._late: dict[int, Late] = {}

    def kill(self) -> None:
        """Kills all but those that are late. A dead one's children become ours, hence the loop."""
        while pids := [pid for pid in _descendants() if pid not in self._late]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.001)

    def kill_all(self) -> None:
        self._late.clear()
        self.kill()

    def leave(self, test: str) -> None:
        """Whoever is there still may take its time, and is late from now on."""
        self._reap()
        for pid in _descendants():
            self._late.setdefault(pid, Late(test, time.monotonic(), f"{pid} ({_command(pid)})"))

    def overdue(self) -> list[Late]:
        """Kills those that took too long, and returns them."""
        self._reap()
        now = time.monotonic()
        found = {pid: late for pid, late in self._late.items() if now - late.since > LEAVE_S}
        for pid in found:
            del self._late[pid]
        if found:
            self.kill()
        return list(found.values())

    @property
    def is_empty(self) -> bool:
        self._reap()
        return not _descendants()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._late.pop(pid, None)


def _descendants() -> list[int]:
    """All processes below this one, those included that have ended and were not reaped."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; behind it stand state and parent.
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(ppid, []).append(int(folder.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "ended"
    return b" ".join(words).decode(errors="replace")
