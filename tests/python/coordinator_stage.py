"""A stage for short plays with the coordinator's machine: peers called by letters, and a clock."""

from __future__ import annotations

import random
from typing import Any

from collectives import messages as m
from collectives.config import Timeouts
from collectives.coordinator import facts as f
from collectives.coordinator.core import Core, Received, Tick

TIMEOUTS = Timeouts(dead=2.0, joiner_lost=5.0)
LINK, LOST, DEADLINE, BOUNDARY = m.Cause.LINK, m.Cause.LOST, m.Cause.DEADLINE, m.Cause.BOUNDARY


def pid(letter: str) -> bytes:
    return letter.encode() * 16


class Stage:
    """A coordinator, a clock, and what it last said to whom. Peers are called by letters."""

    def __init__(self, size: int = 3, min_size: int = 1) -> None:
        self.core = Core(random.Random(1), TIMEOUTS)
        self.size, self.min_size = size, min_size
        self.now = 100.0
        self.said: dict[str, list[m.Message]] = {}
        self.welcomes: dict[str, list[m.Welcome]] = {}  # all there were
        self.entries: list[bytes] = []  # of the journal of a coordinator that has one

    def say(self, who: str, message: m.Message) -> dict[str, list[m.Message]]:
        return self._take(Received(pid(who), message))

    def tick(self, seconds: float, *pinging: str) -> dict[str, list[m.Message]]:
        """Lets time pass, second by second while somebody pings; returns all that was said."""
        said: dict[str, list[m.Message]] = {}
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for answer in [self._take(Tick())] + [self.say(who, m.Ping()) for who in pinging]:
                for who, words in answer.items():
                    said.setdefault(who, []).extend(words)
        return said

    def _take(self, event: Received | Tick) -> dict[str, list[m.Message]]:
        self.said = {}
        actions = self.core.step(event, self.now)
        self._write_down()
        for action in actions:
            sent = m.decode(m.encode(action.message))
            assert sent == action.message
            who = chr(action.peer[0])
            self.said.setdefault(who, []).append(sent)
            if isinstance(sent, m.Welcome):
                self.welcomes.setdefault(who, []).append(sent)
        return self.said

    def restart(self, **options: Any) -> None:
        """Another coordinator in its place, by the journal. The first time, it gets one."""
        self.core = Core(random.Random(len(self.entries) + 2), TIMEOUTS, **options)
        self.core.restore([fact for entry in self.entries for fact in f.decode(entry)], self.now)
        self._write_down()

    def _write_down(self) -> None:
        facts = self.core.take_facts()
        if facts:
            self.entries.append(f.encode(facts))

    def join(self, who: str, **other: Any) -> dict[str, list[m.Message]]:
        fields = {
            "version": m.PROTOCOL_VERSION,
            "id": pid(who),
            "group": "train",
            "name": "",
            "rank": None,
            "size": self.size,
            "min_size": self.min_size,
            "address": f"10.0.0.{ord(who)}:5000",
            "host": 7,
            "streams": 2,
            "segment_bytes": 65536,
        }
        return self.say(who, m.Join(**{**fields, **other}))

    def form(self, letters: str) -> m.Epoch:
        for who in letters:
            self.join(who)
        for who in letters:
            self.rehearse(who)
        record = self.record(letters[0])
        for who in letters:
            self.say(who, m.Installed(1, record.epoch, False))
        return record

    def report(
        self,
        who: str,
        epoch: int,
        lanes: dict[int, tuple[int, int, int]] | None = None,
        cause: m.Cause = LOST,
        boundary: int = 0,
        wants: int = 0,
        **evidence: m.EvidenceKind,
    ) -> dict[str, list[m.Message]]:
        marks = tuple(m.LaneReport(lane, *mark) for lane, mark in (lanes or {}).items())
        against = tuple(m.Evidence(pid(letter), kind) for letter, kind in evidence.items())
        return self.say(who, m.Report(1, epoch, cause, boundary, wants, marks, against))

    def rehearse(self, *letters: str, **other: Any) -> dict[str, list[m.Message]]:
        """Lets joiners answer the WELCOME they got last: see `answer`."""
        for who in letters:
            self.answer(who, self.welcomes[who][-1], **other)
        return self.said

    def prepare(self, who: str, epoch: int, fault: str = "") -> dict[str, list[m.Message]]:
        """Lets a joiner answer the last WELCOME that it got in this epoch."""
        asked = [welcome for welcome in self.welcomes[who] if welcome.epoch == epoch]
        return self.answer(who, asked[-1], fault)

    def answer(
        self, who: str, asked: m.Welcome, fault: str = "", network: tuple[int, int] = (0, 0)
    ) -> dict[str, list[m.Message]]:
        """Says PREPARED: everybody was reached, or not the one at fault."""
        peer, why = (pid(fault), "refused") if fault else (m.NO_PEER, "")
        told = m.Prepared(asked.group, asked.round, not fault, peer, why, *network)
        return self.say(who, told)

    def record(self, who: str) -> m.Epoch:
        """The last EPOCH among what was said to someone just now."""
        return [word for word in self.said[who] if isinstance(word, m.Epoch)][-1]

    def only(self, who: str, cls: type) -> Any:
        (found,) = [word for word in self.said.get(who, []) if isinstance(word, cls)]
        return found


def names(welcome: m.Welcome) -> str:
    """Whom it asks to prepare for."""
    return "".join(chr(member.id[0]) for member in welcome.members)


def ranks(record: m.Epoch) -> dict[str, int]:
    return {chr(member.id[0]): member.rank for member in record.members}


GONE = m.EvidenceKind.REFUSED
CLOSED = m.EvidenceKind.CLOSED
SILENT = m.EvidenceKind.SILENT


def epochs(said: dict[str, list[m.Message]]) -> list[int]:
    """The records among what was said to anybody."""
    return sorted({w.epoch for words in said.values() for w in words if isinstance(w, m.Epoch)})
