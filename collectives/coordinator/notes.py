"""Where the facts of one group go: to be written down, or, while the group is being recovered from
what its members tell, nowhere yet. A coordinator that crashes in the middle of that has to begin
anew, for it must not take for decided what was only told.
"""

from __future__ import annotations

from collections.abc import Callable

from collectives.coordinator.facts import Fact


class Notes:
    def __init__(self, write: Callable[[Fact], None]) -> None:
        self._write = write
        self._held: list[Fact] | None = None

    @property
    def are_held(self) -> bool:
        return self._held is not None

    def note(self, fact: Fact) -> None:
        if self._held is None:
            self._write(fact)
        else:
            self._held.append(fact)

    def hold(self) -> None:
        """From now on, facts wait."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Those that have waited are written down, and so is what follows."""
        held, self._held = self._held or [], None
        for fact in held:
            self._write(fact)
