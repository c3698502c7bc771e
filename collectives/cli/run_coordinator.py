"""The coordinator of a job: with a journal, and started again when it crashes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from collectives.cli.run_job import how
from collectives.coordinator.process import CoordinatorProcess
from collectives.errors import CollectivesError

PAUSE_MIN = 0.25  # seconds before it is started again; doubled while it does not stay
PAUSE_MAX = 30.0
STAYS = 60.0  # seconds after which a crash is the first one again


class KeptCoordinator:
    """Use it in a `with` statement. `url` stays the same. What happens is told to `say`."""

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        self._process = CoordinatorProcess(journal=Path(folder) / "journal")
        self._say = say
        self._pause = PAUSE_MIN
        self._started = 0.0
        self.due: float | None = None
        """When it is started again."""

    @property
    def url(self) -> str:
        return self._process.url

    def __enter__(self) -> KeptCoordinator:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.stop()

    def look(self) -> None:
        """Does what is to be done by now."""
        now = time.monotonic()
        if self.due is None and not self._process.running:
            if now - self._started > STAYS:
                self._pause = PAUSE_MIN
            assert self._process.process is not None
            number, code = self._process.process.pid, self._process.stop()
            self._later(f"the coordinator (process {number}) {how(code)}")
        elif self.due is not None and self.due <= now:
            try:
                self._start()
            except (CollectivesError, OSError) as error:
                self._later(str(error))

    def _later(self, why: str) -> None:
        self.due = time.monotonic() + self._pause
        self._say(f"{why}; it is started again in {self._pause:g} s")
        self._pause = min(2 * self._pause, PAUSE_MAX)

    def _start(self) -> None:
        self._process.start()
        self._started = time.monotonic()
        self.due = None
