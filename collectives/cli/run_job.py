"""What becomes of a job when a rank ends: who is started again, when all is over, the exit code.

Decisions alone, as of any other machine here: what is told are ends and the time, what is asked is
what to do. A rank is *lost* if a signal killed it: that is what groups survive. If it ended with
another exit code than 0, it has *failed*, and that is told by the job's exit code; but where the
dead are started again, a failure counts like a loss until the restarts are used up.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

FIRST_PAUSE = 0.5  # seconds before a rank is started again; doubled each time


@dataclass
class _Rank:
    code: int | None = None  # how its last process ended, minus a signal; None: it runs
    restarts: int = 0
    due: float | None = None  # when it is started again


class Job:
    """Ranks 0 to `size - 1`, all of which run at first. Each may be started again `restarts_max`
    times. Times are seconds of one clock."""

    def __init__(self, size: int, restarts_max: int = 0) -> None:
        self._ranks = [_Rank() for _ in range(size)]
        self._restarts_max = restarts_max
        self._order: list[int] = []  # ranks, as they ended
        self._stopped_by: int | None = None

    @property
    def running(self) -> list[int]:
        return [number for number, rank in enumerate(self._ranks) if rank.code is None]

    @property
    def over(self) -> bool:
        return not self.running

    @property
    def next_due(self) -> float | None:
        """When the next one is to be started."""
        return min((rank.due for rank in self._ranks if rank.due is not None), default=None)

    def take_due(self, now: float) -> list[int]:
        """Who is to be started now; they count as running."""
        due = [n for n, rank in enumerate(self._ranks) if rank.due is not None and rank.due <= now]
        for rank in (self._ranks[number] for number in due):
            rank.code, rank.due = None, None
            rank.restarts += 1
        return due

    def end(self, number: int, code: int, now: float) -> str:
        """A rank's process has ended. Returns what follows, in words; it is empty if the rank has
        finished, or because the job is being stopped."""
        rank = self._ranks[number]
        rank.code = code
        self._order.append(number)
        again = self._others_need(rank)
        if again:
            pause = FIRST_PAUSE * 2**rank.restarts
            rank.due = now + pause
        elif code == 0 or self.over:
            self._start_nobody()
        if code == 0 or self._stopped_by is not None:
            return ""
        if again:
            return f"it is started again in {pause:g} s ({rank.restarts + 1}/{self._restarts_max})"
        left = len(self.running)
        return (
            f"{left} {'rank goes' if left == 1 else 'ranks go'} on"
            if left
            else "no rank runs any more"
        )

    def _others_need(self, rank: _Rank) -> bool:
        """Whether it should come back: to what runs, and is not ending."""
        ending = self._stopped_by is not None or any(other.code == 0 for other in self._ranks)
        return rank.restarts < self._restarts_max and not self.over and not ending

    def stop(self, number: int) -> None:
        """By this signal: nobody is started again."""
        self._stopped_by = number
        self._start_nobody()

    def _start_nobody(self) -> None:
        for rank in self._ranks:
            rank.due = None

    @property
    def exit_code(self) -> int:
        """When it is over. 0: a rank has finished, and all others have, or were lost. Otherwise
        that of the first that failed, or 128 + the signal that stopped the job, or killed the last
        rank."""
        if self._stopped_by is not None:
            return 128 + self._stopped_by
        ended = [self._ranks[number] for number in self._order]
        finished = any(rank.code == 0 for rank in ended)
        for rank in ended:
            if rank.code is not None and rank.code > 0:
                if not finished or rank.restarts == self._restarts_max:
                    return rank.code
        return 0 if finished else 128 - (ended[-1].code or 0)


def how(code: int) -> str:
    """How a process ended, in words; `code` as subprocess gives it."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
