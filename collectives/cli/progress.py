"""How far a command is: one line on standard error, for people who watch a terminal.

It is drawn only if standard error is a terminal, and is erased at the end, so that neither a log
nor what remains on the screen has any of it. Results go to standard output as always; `line` prints
one without disturbing the bar, as both may be the same terminal.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TextIO

BAR_WIDTH = 24
_COLUMNS = 80  # of a terminal that does not tell


class Progress:
    """Use it in a `with` statement.

    Args:
        text: what is under way; `total`: how many steps it has, if that is known.
        done: how many of them are done already.
        stream: where to draw; by default standard error.
    """

    def __init__(
        self, text: str = "", total: int = 0, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._watched = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._total = total
        self._drawn = ""
        if text:
            self.show(text, done)

    def show(self, text: str, done: int = 0) -> None:
        """Draws it anew."""
        if not self._watched:
            return
        if self._total:
            filled = BAR_WIDTH * min(done, self._total) // self._total
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            text = f"[{bar}] {done}/{self._total} {text}"
        # Not the last column: some terminals wrap there, and a bar of two lines is never erased.
        text = text[: self._columns() - 1]
        if text != self._drawn:
            self._write(text)

    def line(self, text: str) -> None:
        """Prints a line to standard output, above the bar."""
        drawn = self._drawn
        self.hide()
        print(text, flush=True)
        if drawn:
            self._write(drawn)

    def hide(self) -> None:
        """Erases it; the next `show` brings it back."""
        if self._drawn:
            self._write("")

    def _write(self, text: str) -> None:
        # With spaces, which every terminal knows.
        rest = " " * (len(self._drawn) - len(text))
        back = "\r" + text if rest else ""
        self._stream.write(f"\r{text}{rest}{back}")
        self._stream.flush()
        self._drawn = text

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        except (OSError, ValueError):
            return _COLUMNS

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hide()
