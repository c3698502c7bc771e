"""A command that goes on as a process of its own, and tells who started it when it is ready.

It forks twice, as daemons do: the process that goes on is nobody's child, leads no session and
belongs to no terminal, so neither Ctrl-C nor a hang-up nor a signal to the job's process group
reaches it. To be called before there are threads, event loops or sockets.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn, TextIO


def detach() -> TextIO:
    """Returns in the process that goes on, with a channel for one line. The process that was called
    prints that line and exits with 0; if none comes, with 1. Standard error is that of the caller
    still, and there one reads why."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        os.waitpid(child, 0)
        _pass_on(read)
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return os.fdopen(write, "w")


def _pass_on(channel: int) -> NoReturn:
    with os.fdopen(channel) as lines:
        line = lines.readline()
    print(line, end="", flush=True)
    sys.exit(0 if line.endswith("\n") else 1)
