"""What the coordinator's journal says of each epoch: who its members were.

It is read while the coordinator lives, for compacting drops old records; from a copy, because the
file is locked and its last entry may be half written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from collectives.coordinator.facts import Published
from collectives.coordinator.journal import Journal


class Book:
    """Attributes:
    members: by epoch, the numbers of its members.
    """

    def __init__(self, journal: Path) -> None:
        self.members: dict[int, frozenset[int]] = {}
        self.contradictions: list[str] = []
        self._journal = journal

    def read(self) -> None:
        """Adds what is new. Raises JournalError if the file makes no sense."""
        copy = self._journal.with_suffix(".copy")
        shutil.copyfile(self._journal, copy)
        journal = Journal(copy)
        for fact in journal.facts:
            if isinstance(fact, Published):
                self._take(fact)
        journal.close()
        copy.unlink()

    def _take(self, fact: Published) -> None:
        members = frozenset(int(member.name[1:]) for member in fact.record.members)
        epoch = fact.record.epoch
        if self.members.setdefault(epoch, members) != members:
            self.contradictions.append(f"the journal has epoch {epoch} twice, with other members")
