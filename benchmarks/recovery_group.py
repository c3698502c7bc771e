"""The group of the recovery benchmark: four rank processes and a coordinator, in an arena of the
chaos test; who died is replaced by a process that was started before."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arena import Loopback
from process import Coordinator, Failed, Process

RANK = Path(__file__).resolve().parent / "recovery_rank.py"
LIMIT_S = 60.0

Message = dict[str, Any]


class Rank(Process):
    """One process."""

    def __init__(self, arena: Loopback, slot: int, folder: Path) -> None:
        self.host = arena.address(slot) or "-"
        self._received = b""
        env = {"OPENBLAS_NUM_THREADS": "1"}
        super().__init__(arena, slot, [str(RANK)], folder / f"rank-{slot}.log", env)

    def send(self, *words: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self.popen.stdin.flush()

    def receive(self, limit: float = LIMIT_S) -> Message:
        """The next answer. Raises Failed."""
        assert self.popen.stdout is not None
        descriptor = self.popen.stdout.fileno()
        end = time.monotonic() + limit
        while b"\n" not in self._received:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Failed(f"the rank in slot {self.slot} gave no answer in {limit:g} s")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise Failed(f"the rank in slot {self.slot} ended: {self.log.read_text()[-2000:]}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        found: Message = json.loads(line)
        return found


class Group:
    """Use it in a `with` statement: at its end none of the processes is left.

    Args:
        joins: gets the seconds that each join took.
    """

    def __init__(
        self,
        arena: Loopback,
        folder: Path,
        size: int,
        size_bytes: int,
        joins: list[float],
    ) -> None:
        self.arena, self.folder, self.size, self.size_bytes = arena, folder, size, size_bytes
        self.joins = joins
        self.ranks: dict[int, Rank] = {}  # by slot
        self.coordinator: Coordinator

    def __enter__(self) -> Group:
        self.coordinator = Coordinator(self.arena, self.folder)
        try:
            for slot in range(1, self.size + 1):
                self.start(slot)
            for slot, rank in self.ranks.items():
                rank.send("connect", self.coordinator.url, slot - 1, rank.host, self.size)
            self.answers(self.ranks.values())
            self.ask("size", self.size_bytes)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        for rank in self.ranks.values():
            rank.end()
        self.coordinator.end()

    def start(self, slot: int) -> Rank:
        """A process that has imported everything and joined nothing."""
        if slot in self.ranks:
            self.ranks[slot].end()
        rank = self.ranks[slot] = Rank(self.arena, slot, self.folder)
        rank.receive()
        return rank

    def answers(self, ranks: Iterable[Rank], limit: float = LIMIT_S) -> list[Message]:
        end = time.monotonic() + limit
        return [rank.receive(max(0.0, end - time.monotonic())) for rank in ranks]

    def ask(self, *words: object) -> list[Message]:
        for rank in self.ranks.values():
            rank.send(*words)
        return self.answers(self.ranks.values(), 2 * LIMIT_S)

    def replace(self, slot: int) -> float:
        """Ends the process of a slot and lets a new one join. Returns when it was a member."""
        newcomer = self.start(slot)
        others = [rank for rank in self.ranks.values() if rank is not newcomer]
        for rank in others:
            rank.send("admit")
        newcomer.send("connect", self.coordinator.url, "-", newcomer.host)
        joined = newcomer.receive()
        self.joins.append(joined["took"])
        sizes = [answer["size"] for answer in self.answers(others)]
        if sizes != [self.size] * len(others):
            raise Failed(f"after a join the group has {sizes} ranks, not {self.size}")
        newcomer.send("size", self.size_bytes)
        newcomer.receive()
        return float(joined["joined"])

    def undisturbed(self) -> float:
        """Seconds of one all_reduce."""
        for rank in self.ranks.values():
            rank.send("reduce", 0)
        begun: float = max(answer["begun"] for answer in self.answers(self.ranks.values()))
        ended: float = max(answer["ended"] for answer in self.answers(self.ranks.values()))
        return ended - begun

    def strike(self, how: str, rng: random.Random, busy_s: float = 0.0) -> Message | None:
        """Strikes one rank in the middle of an all_reduce: "kill", "stop" or "cut". Returns the
        seconds to the result on the last survivor; with `busy_s` on the last one that is not busy,
        and on the busy one after it woke. None: it was over before it struck. Raises Failed for a
        wrong result."""
        delay = rng.uniform(0.1, 0.7) * self.undisturbed()
        victim = self.ranks[rng.randint(1, self.size)]
        survivors = [rank for rank in self.ranks.values() if rank is not victim]
        busy = rng.choice(survivors) if busy_s else None
        for rank in self.ranks.values():
            rank.send("reduce", busy_s if rank is busy else 0)
        self.answers(self.ranks.values())
        time.sleep(delay)
        at = time.monotonic()
        if how == "kill":
            victim.signal(signal.SIGKILL)
        elif how == "stop":
            victim.signal(signal.SIGSTOP)
        else:
            self.arena.cut(victim.slot)
        found = self.answers(survivors)
        ended = {rank: answer["ended"] for rank, answer in zip(survivors, found, strict=True)}
        if not all(answer["right"] for answer in found):
            raise Failed(f"after a {how}: a wrong result: {found}")
        woke = max(answer["woke"] for answer in found)
        quick = [when for rank, when in ended.items() if rank is not busy]
        if how == "cut":
            self.arena.heal(victim.slot)
        self.replace(victim.slot)
        if min(quick) <= at:
            return None
        return {
            "seconds": max(quick) - at,
            "busy_s": max(0.0, ended[busy] - woke) if busy else 0.0,
            "contributors": found[0]["contributors"],
        }

    def without_coordinator(self, seconds: float) -> Message:
        """Kills the coordinator while all compute, and starts it again after so long. Returns
        failed operations, and the seconds from then to a join."""
        for rank in self.ranks.values():
            rank.send("stream", seconds + 1)
        time.sleep(0.5)
        self.coordinator.end()
        found = self.answers(self.ranks.values(), seconds + LIMIT_S)
        newcomer = self.start(self.size + 1)
        others = [rank for rank in self.ranks.values() if rank is not newcomer]
        self.coordinator = Coordinator(self.arena, self.folder, self.coordinator.port)
        ready = time.monotonic()
        for rank in others:
            rank.send("admit")
        newcomer.send("connect", self.coordinator.url, "-", newcomer.host)
        joined = newcomer.receive()["joined"]
        self.answers(others)
        return {
            "down_s": seconds,
            "operations": min(each["operations"] for each in found),
            "failed": max(each["failed"] for each in found),
            "worst_s": max(each["worst_s"] for each in found),
            "membership_s": joined - ready,
        }
