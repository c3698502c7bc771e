"""The guard of `collectives run`: if the launcher is killed, it kills the ranks.

Ranks are programs of any kind, so nothing in them can watch the launcher. A process of its own
does, by a pipe that ends with the launcher. It is told the process groups of ranks, and learns of
one that was started just before the end by its environment: until a process has begun its own
program, it holds the pipe open too, so none is missed. The guard is no rank's child and has a
session of its own. Of a launcher that is a rank itself it does not keep the mark, or it would be
killed before it has done its work.

It is run as a file, for it should start in no time: the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LONG_ENOUGH = 30.0  # seconds; who is not gone by then cannot be killed


class Guard:
    """The launcher's side. Use it in a `with` statement.

    Args:
        mark: "NAME=value" in the environment of all ranks, and of nobody else.
        folder: removed when the launcher is gone.
    """

    def __init__(self, mark: str, folder: str) -> None:
        name = mark.partition("=")[0]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if key != name},
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """A process group that must not outlive us."""
        self._say(group)

    def remove(self, group: int) -> None:
        """To be called before its number can become somebody else's."""
        self._say(-group)

    def _say(self, number: int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it
            self._process.stdin.write(b"%d\n" % number)
            self._process.stdin.flush()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


# ---- the guard's side ----------------------------------------------------------------------------


def main(mark: str, folder: str) -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line)
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    deadline = time.monotonic() + LONG_ENOUGH
    while time.monotonic() < deadline:
        time.sleep(0.01)  # for the last one's environment to be in its place
        found = list(_left(groups, mark.encode()))
        if not found:
            break
        groups.update(group for _, group in found)
        for pid, _ in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _left(groups: set[int], mark: bytes) -> Iterator[tuple[int, int]]:
    """(process, its group) of all that belong to ranks."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            pid = int(entry.name)
            # The name, in parentheses, may hold anything.
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if state == "Z":
                continue
            if int(group) in groups or (
                int(group) == pid and mark in (entry / "environ").read_bytes().split(b"\0")
            ):
                yield pid, int(group)


if __name__ == "__main__":
    main(*sys.argv[1:])
