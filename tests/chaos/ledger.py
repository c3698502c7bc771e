"""A peer's ledger: a file that it maps into memory, with what became of each of its operations.

What a process has written to a mapped file outlives it, so the ledger of a peer that was killed in
the middle of a line is complete up to that line: an outcome that only a dead peer has seen counts
as well. A line is written first and counted then. The header says which operation the peer is in,
so that a blow can be aimed, and proves afterwards whether it struck.
"""

from __future__ import annotations

import enum
import mmap
from pathlib import Path

import numpy as np

LINES = 1 << 18
RANKS_MAX = 24
FIRST = 1 << 62  # begun, by a peer that does not know the number yet
HOLE = 0xFFFF  # in a roster: a rank without a member; behind its end too


class State(enum.IntEnum):
    STARTING = 0
    JOINING = 1
    MEMBER = 2
    EVICTED = 3
    DONE = 4  # all stopped together
    FAILED = 5


class Status(enum.IntEnum):
    OK = 1
    PEER_LOST = 2
    EVICTED = 3
    OTHER = 4


class Kind(enum.IntEnum):
    CALL = 1  # what the script says for its number
    ADMIT = 2
    SYNC = 3
    FLUSH = 4  # one of the script's FLUSH, which follow a SYNC


class Input(enum.IntEnum):
    """What became of it."""

    INTACT = 0
    CHANGED = 1
    OVERWRITTEN = 2  # in place, by the result


HEADER = np.dtype(
    [
        ("state", "<u4"),
        ("stop", "<u4"),  # the driver's wish: end together, at the next boundary
        ("begun", "<u8"),  # the last operation that was posted
        ("ended", "<u8"),  # the last one whose outcome is known; less than begun: in an operation
        ("lines", "<u8"),
        ("rests", "<u4"),  # the driver's wish: give back what is only cached, and say what is left
        ("rested", "<u4"),  # the number of the wish that was fulfilled last
        ("memory_kib", "<u4"),  # what was left then
        ("reason", "S512"),  # of EVICTED and FAILED
    ]
)
LINE = np.dtype(
    [
        ("number", "<u8"),
        ("epoch", "<u8"),
        ("kind", "u1"),
        ("status", "u1"),
        ("input", "u1"),
        ("world", "u1"),  # the number of ranks
        ("attempts", "<u2"),  # 0: not known, as are epoch and roster
        ("lost_ms", "<u2"),
        ("digest", "<u8"),  # of the result
        ("total", "<f8"),  # of the result: the sum, if it has one that is near rather than known
        ("at", "<f8"),  # seconds of CLOCK_MONOTONIC, when it returned
        ("roster", "<u2", RANKS_MAX),  # by rank, who contributed; of an admit, who is a member now
    ]
)
HEADER_BYTES = 4096


class Ledger:
    """One peer's. The peer creates it; the driver opens it, at any time, and after its end."""

    def __init__(self, path: Path, create: bool = False) -> None:
        size = HEADER_BYTES + LINES * LINE.itemsize
        with path.open("w+b" if create else "r+b") as file:
            if create:
                file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._header = np.frombuffer(self._map, HEADER, 1)
        self._lines = np.frombuffer(self._map, LINE, LINES, HEADER_BYTES)

    @property
    def state(self) -> State:
        return State(int(self._header["state"][0]))

    @state.setter
    def state(self, state: State) -> None:
        self._header["state"][0] = state

    @property
    def reason(self) -> str:
        return bytes(self._header["reason"][0]).decode(errors="replace")

    @reason.setter
    def reason(self, text: str) -> None:
        self._header["reason"][0] = text.encode()[:512]

    def word(self, name: str) -> int:
        """A number of the header."""
        return int(self._header[name][0])

    def set_word(self, name: str, value: int) -> None:
        self._header[name][0] = value

    @property
    def in_operation(self) -> bool:
        return self.word("begun") > self.word("ended")

    def write(self, **fields: object) -> None:
        """One line. It counts as soon as it is whole."""
        count = self.word("lines")
        if count == LINES:
            raise RuntimeError(f"the ledger is full: it has room for {LINES} operations")
        line = self._lines[count : count + 1]
        line["roster"] = HOLE
        for name, value in fields.items():
            if name == "roster":
                line["roster"][0][: len(value)] = value  # type: ignore[arg-type]
            else:
                line[name] = value
        self._header["lines"][0] = count + 1

    @property
    def lines(self) -> np.ndarray:
        """All that count, as an array of LINE that shares the file's memory."""
        return self._lines[: self.word("lines")]

    @property
    def last(self) -> np.void | None:
        count = self.word("lines")
        return self._lines[count - 1] if count else None
