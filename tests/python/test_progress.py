"""Progress on terminals only, and nothing left of it.

Goal: who watches sees how far it is; a log, a pipe and the screen afterwards have nothing of it.
Method: the commands with standard error at a pseudo terminal of a known width, whose screen is then
worked out from all that was written; and the helper by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

import pytest

from collectives.cli.progress import BAR_WIDTH, Progress

COLUMNS = 60


def at_a_terminal(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, columns: int = COLUMNS
) -> tuple[str, str]:
    """Runs Python; returns its standard output and what came to its terminal, which is standard
    error alone."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "vt100", **(env or {})},
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    seen = b""
    try:
        with contextlib.suppress(OSError):  # the terminal's other end is closed: no more comes
            while chunk := os.read(ours, 4096):
                seen += chunk
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, (output, seen)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
    return output.decode(), seen.decode()


def frames(written: str) -> list[str]:
    """What stood in the last line after each write, without spaces at its end. Nothing may ever
    reach the width of the screen, where it would become two lines."""
    row, found = "", []
    for text in written.split("\r"):
        row = text + row[len(text) :]
        assert len(row.rstrip()) < COLUMNS, row
        found.append(row.rstrip())
    return found


def test_bench_at_a_terminal() -> None:
    words = ("all_reduce", "--bytes", "4,64", "--iterations", "5", "--json")
    output, seen = at_a_terminal(["-m", "collectives.cli.main", "bench", *words])
    assert len(output.splitlines()) == 2
    shown = frames(seen)
    half = "#" * (BAR_WIDTH // 2) + "." * (BAR_WIDTH // 2)
    wanted = ["waiting for 2 ranks", f"[{'.' * BAR_WIDTH}] 0/2 measuring 4 bytes", ""]
    wanted += [f"[{half}] 1/2 measuring 64 bytes"]
    assert [frame for frame in wanted if frame not in shown] == []
    assert shown[-1] == "" and "\n" not in seen


def test_demo_at_a_terminal() -> None:
    words = ("--steps", "20", "--peers", "2")
    output, seen = at_a_terminal(["-m", "collectives.cli.main", "demo", *words])
    assert "all checks passed" in output and "[" not in output and "\r" not in output
    shown = frames(seen)
    assert f"[{'#' * (BAR_WIDTH // 2)}{'.' * (BAR_WIDTH // 2)}] 10/20 steps" in shown
    assert any("steps in one process" in frame for frame in shown)
    assert shown[-1] == "" and "\n" not in seen


def test_a_command_in_a_pipe_writes_nothing(spawn) -> None:
    child = spawn(
        "python",
        *("-m", "collectives.cli.main", "bench", "all_reduce", "--bytes", "4"),
        *("--iterations", "5", "--json"),
    )
    assert child.wait(40) == 0
    assert len(child.output.splitlines()) == 1 and "\r" not in child.output


PROGRAM = """
from collectives.cli.progress import Progress
with Progress("starting", 3) as bar:
    bar.show("a text that is longer than the screen is wide " * 3, 1)
    bar.line("a result")
    bar.show("short", 2)
"""


def test_lines_of_both_streams_at_one_terminal() -> None:
    """With standard output there too, a result stands alone in its line."""
    both = f"import os\nos.dup2(2, 1)\n{PROGRAM}"
    _, seen = at_a_terminal(["-c", both])
    before, after = seen.split("a result\r\n")
    assert frames(before)[-1] == "" and frames(after)[-1] == ""
    assert any(frame.endswith("] 2/3 short") for frame in frames(after))
    assert max(map(len, frames(before))) == COLUMNS - 1


@pytest.mark.parametrize(("env", "columns"), [({"TERM": "dumb"}, COLUMNS), ({}, 0)])
def test_terminals_that_can_or_say_nothing(env: dict[str, str], columns: int) -> None:
    output, seen = at_a_terminal(["-c", PROGRAM], env, columns)
    assert output == "a result\n"
    assert (seen == "") == bool(env)


def test_no_terminal(capsys) -> None:
    stream = io.StringIO()
    with Progress("something", 2, stream=stream) as bar:
        bar.show("else", 1)
        bar.line("a result")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("a result\n", "")


def test_it_is_erased_after_an_error() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def work() -> None:
        with Progress("something", stream=stream) as bar:
            bar.show("else")
            raise KeyError

    stream = Terminal()
    with pytest.raises(KeyError):
        work()
    assert frames(stream.getvalue())[-1] == "" and "else" in stream.getvalue()
