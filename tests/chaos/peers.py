"""The peers of a run as the driver sees them, each with its ledger."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from arena import Loopback
from faults import Fault
from ledger import HOLE, Ledger, State
from process import Process

HERE = Path(__file__).resolve().parent
PLANT = "COLLECTIVES_CHAOS_PLANT"
PLANTED = 3  # the number of the peer that obeys it


class Peer(Process):
    """A peer. Its number is its own for ever: no later process has it.

    Attributes:
        fault: what the driver did to it, or None; `hit_at` when.
        struck: whether it was in an operation when it was killed.
        released_at: when it was let go on again, after a stop or a cut; 0 before.
    """

    def __init__(
        self,
        arena: Loopback,
        slot: int,
        number: int,
        folder: Path,
        words: list[str],
        plant: str = "",
    ) -> None:
        self.number = number
        self.fault: Fault | None = None
        self.hit_at = self.released_at = 0.0
        self.struck = False
        self.started_at = self.moved_at = time.monotonic()
        self.exit: int | None = None
        self._path = folder / f"p{number}.ledger"
        self._ledger: Ledger | None = None
        self._progress: tuple[int, int] = (0, 0)
        address = arena.address(slot)
        command = [str(HERE / "member.py"), str(self._path), str(number), *words]
        env = {
            "COLLECTIVES_LOG": "info",
            "OPENBLAS_NUM_THREADS": "1",
            PLANT: plant,
        }
        super().__init__(
            arena, slot, [*command, *([address] if address else [])], folder / f"p{number}.log", env
        )

    def __str__(self) -> str:
        return f"p{self.number} (slot {self.slot}, process {self.pid})"

    @property
    def ledger(self) -> Ledger | None:
        """None until it has made one."""
        if self._ledger is None:
            with contextlib.suppress(FileNotFoundError, ValueError):  # not there, or not whole
                self._ledger = Ledger(self._path)
        return self._ledger

    @property
    def state(self) -> State:
        return self.ledger.state if self.ledger else State.STARTING

    @property
    def is_member(self) -> bool:
        """It has done its first operation, nothing was done to it, and it runs."""
        ledger = self.ledger
        return (
            self.fault is None
            and self.exit is None
            and ledger is not None
            and ledger.state is State.MEMBER
            and ledger.word("lines") > 0
        )

    def idle_s(self, now: float) -> float:
        """For how long it has made no progress."""
        progress = (self.state, self.ledger.word("ended") if self.ledger else 0)
        if progress != self._progress:
            self._progress, self.moved_at = progress, now
        return now - self.moved_at

    @property
    def sees(self) -> tuple[float, frozenset[int]]:
        """Who contributed to the last operation of which it knows that, and when that was."""
        if self.ledger is not None:
            for line in self.ledger.lines[-8:][::-1]:
                if line["world"]:
                    roster = {int(n) for n in line["roster"][: line["world"]]} - {HOLE}
                    return float(line["at"]), frozenset(roster)
        return 0.0, frozenset()
