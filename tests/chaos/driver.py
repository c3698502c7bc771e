"""The driver: keeps a group of real processes at its size, strikes it by the plan, and watches.

It believes nothing that a peer says about itself but what is in its ledger, and stops at the first
promise that is seen broken: a process that ends by itself, a peer that makes no progress, one that
is evicted though nothing was done to it, or stays a member though it is silent. What the results
are worth is the checker's business, afterwards.

A block of faults leaves two members in peace, drawn anew for each block: its witnesses. At its
beginning and its end, with a whole group, all members must hold equally many descriptors and
threads as those of the first moment; and the memory of the witnesses at its end must be what it was
once they were warm.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from arena import Loopback
from book import Book
from faults import Fault, Kind
from ledger import State
from peers import PLANTED, Peer
from process import JOURNAL, Coordinator, Failed
from script import segment_bytes_of

from collectives.config import LAN
from collectives.settings import Settings

FLOOR = 4  # members that are left after a fault
WITNESSES = 2
BLOCK = 50
WARM_UP = 15  # faults of a block, before memory is flat
STOPPED = (Kind.STOP, Kind.CUT)
TOGETHER_S = 30.0  # all come to a boundary, or to the end
JOIN_S = 60.0
EVICTED_S = 20.0  # who is silent is no member then, and who was has been told
QUIET_S = 15.0  # descriptors and threads of dead links are gone then
AIM_S = 2.0
TICK_S = 0.02
STREAMS = Settings().streams
# What counts only once it was used: the trace, what links keep until it is confirmed, numpy's own;
# and the segments that links hold.
GROWTH_MIB = 10.0


@dataclass
class Tally:
    """What happened, for the report."""

    done: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    skipped: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    struck: int = 0  # kills that fell into an operation
    growth_mib: float = 0.0
    measured: int = 0  # witnesses whose memory was compared
    at: list[tuple[float, Fault, int]] = field(default_factory=list)  # when, what, whom


class Driver:
    """One run. `run` it once, inside a `with` statement, which leaves no process behind.

    Args:
        skip: kinds of faults that cannot be done here, and why.
        limit: seconds without progress, whatever was done to others, after which a peer hangs.
        plant: for its tests: a fault of the peers themselves (member.py).
    """

    def __init__(
        self,
        arena: Loopback,
        folder: Path,
        seed: int,
        size: int,
        skip: dict[Kind, str],
        limit: float,
        plant: str = "",
    ) -> None:
        self.arena, self.folder, self.seed, self.size = arena, folder, seed, size
        self.skip, self.limit, self.plant = skip, limit, plant
        self.book = Book(folder / JOURNAL)
        self.rng = random.Random(f"driver {seed}")
        self.peers: list[Peer] = []  # all there ever were; the position is the number
        self.slots: dict[int, Peer] = {}
        self.coordinator: Coordinator | None = None
        self.back_at = 0.0  # when the coordinator is to be started again; 0: it runs
        self.witnesses: list[Peer] = []
        self.tally = Tally()
        self.stopping = False
        segments_mib = (size - 1) * STREAMS * segment_bytes_of(seed) / 2**20
        self.growth_mib_max = GROWTH_MIB + segments_mib
        self._base: dict[str, int] = {}
        self._memory: dict[Peer, float] = {}  # of the witnesses, once they are warm

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for peer in self.peers:
            peer.end()
        if self.coordinator is not None:
            self.coordinator.end()

    def run(self, faults: list[Fault], told: Callable[[int], None]) -> None:
        """Raises Failed. `told` is called with the number of faults that were done."""
        self.coordinator = Coordinator(self.arena, self.folder)
        self.until(self.whole, JOIN_S, "the group did not form")
        blocks = max(1, len(faults) // BLOCK)
        for number, fault in enumerate(faults):
            if number % BLOCK == 0 and number // BLOCK < blocks:
                if number:
                    self.measure()
                self.begin_block()
            if number % BLOCK == WARM_UP:
                self.measure()
            if fault.kind in self.skip:
                self.tally.skipped[fault.kind] += 1
            else:
                self.inject(fault)
                self.tally.done[fault.kind] += 1
            told(number + 1)
        self.measure()
        self.end_together()
        self.book.read()

    # ---- the group -------------------------------------------------------------------------------

    def tick(self) -> None:
        """Looks at everybody once: replaces who has ended, lets go on who was silent for long."""
        now = time.monotonic()
        if self.back_at and now >= self.back_at:
            assert self.coordinator is not None
            self.coordinator = Coordinator(self.arena, self.folder, self.coordinator.port)
            self.back_at = 0.0
            for peer in self.slots.values():
                peer.moved_at = time.monotonic()
        elif not self.back_at and self.coordinator and self.coordinator.exit_code is not None:
            raise Failed(f"{self.coordinator} exited with {self.coordinator.exit_code}")
        for slot in range(1, self.size + 1):
            peer = self.slots.get(slot)
            if peer is None or peer.exit is not None:
                if not self.stopping:
                    self.start(slot)
                continue
            peer.exit = peer.exit_code
            if peer.exit is not None:
                self.judge_exit(peer)
            elif peer.fault is not None and peer.fault.kind in STOPPED:
                self.look_at_silent(peer, now)
            else:
                self.look_at(peer, now)

    def start(self, slot: int) -> None:
        assert self.coordinator is not None
        words = [str(self.seed), str(self.size), self.coordinator.url]
        peer = Peer(self.arena, slot, len(self.peers), self.folder, words, self.plant)
        self.peers.append(peer)
        self.slots[slot] = peer

    def look_at(self, peer: Peer, now: float) -> None:
        if peer.state is State.EVICTED and peer.ledger:
            raise Failed(f"{peer} was evicted though nothing was done to it: {peer.ledger.reason}")
        limit = self.limit if peer.state is State.MEMBER else JOIN_S
        if not self.back_at and peer.idle_s(now) > limit:
            for other in self.slots.values():
                with contextlib.suppress(ProcessLookupError):
                    other.signal(signal.SIGUSR1)  # it prints its stacks to its log
            time.sleep(0.5)  # for it to do so; the run has failed already
            raise Failed(f"{peer} ({peer.state.name}) has made no progress for {limit:g} s")

    def look_at_silent(self, peer: Peer, now: float) -> None:
        """Lets it go on once its time is over and the others have gone on without it."""
        assert peer.fault is not None
        if self.back_at:
            peer.hit_at = max(peer.hit_at, now - LAN.dead)  # nobody can decide anything now
        elif peer.released_at:
            if now - peer.released_at > EVICTED_S:
                raise Failed(f"{peer} was not told that it is evicted in {EVICTED_S:g} s")
        elif now - peer.hit_at > LAN.dead + peer.fault.hold and not self.counts(peer):
            if peer.fault.kind is Kind.STOP:
                peer.signal(signal.SIGCONT)
            else:
                self.arena.heal(peer.slot)
            peer.released_at = now
        elif now - peer.hit_at > LAN.dead + peer.fault.hold + EVICTED_S:
            raise Failed(f"{peer} was silent for {now - peer.hit_at:.1f} s and is still a member")

    def judge_exit(self, peer: Peer) -> None:
        """Ends a life; raises Failed if it did not end as it should."""
        code, state = peer.end(), peer.state
        if peer.fault is not None and peer.fault.kind is Kind.CUT:
            self.arena.heal(peer.slot)  # for the next one; it may have been told by the coordinator
        right = self.stopping and state is State.DONE and code == 0
        if peer.fault is not None:
            if peer.fault.kind is Kind.KILL:
                right = code == -signal.SIGKILL
            else:
                right = state is State.EVICTED and code == 0
        if not right:
            why = peer.ledger.reason if peer.ledger else "it had not begun"
            raise Failed(f"{peer} ended by itself: {state.name}, exit code {code}: {why}")

    def counts(self, peer: Peer) -> bool:
        """Whether the members think that it is one of them."""
        return peer.number in self.roster()

    def roster(self) -> frozenset[int]:
        """The contributors to the newest operation that an unharmed member has seen."""
        seen = [peer.sees for peer in self.slots.values() if peer.is_member]
        return max(seen, default=(0.0, frozenset()))[1]

    def whole(self) -> bool:
        return (
            not self.back_at
            and len(self.slots) == self.size
            and all(peer.is_member for peer in self.slots.values())
            and self.roster() == {peer.number for peer in self.slots.values()}
        )

    def until(self, condition: Callable[[], bool], limit: float, otherwise: str) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            self.tick()
            if time.monotonic() > deadline:
                raise Failed(f"{otherwise} in {limit:g} s: {self.state()}")
            time.sleep(TICK_S)

    def state(self) -> str:
        told = [f"{peer} {peer.state.name}" for _, peer in sorted(self.slots.items())]
        return f"{', '.join(told)}; the last roster is {sorted(self.roster())}"

    # ---- faults ----------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        if fault.calm:
            self.until(self.whole, JOIN_S, f"the group is not whole before fault {fault.number}")
        ready = self.coordinator_is_up if fault.kind is Kind.COORDINATOR else self.may_lose_one
        self.until(
            lambda: bool(ready(fault)), JOIN_S, f"the group is not fit for fault {fault.number}"
        )
        for _ in self.ticks(fault.wait):
            pass
        if fault.kind is Kind.COORDINATOR:
            self.until(lambda: self.coordinator_is_up(fault), JOIN_S, "the coordinator is away")
            self.kill_coordinator(fault)
            return
        self.until(lambda: bool(self.may_lose_one(fault)), JOIN_S, "too few members are left")
        victims = self.may_lose_one(fault)
        victim = victims[int(fault.pick * len(victims))]
        if fault.aimed:
            self.aim(victim, fault.delay)
        victim.fault, victim.hit_at = fault, time.monotonic()
        self.tally.at.append((victim.hit_at, fault, victim.number))
        if fault.kind is Kind.KILL:
            victim.signal(signal.SIGKILL)
            victim.popen.wait()
            victim.struck = victim.ledger is not None and victim.ledger.in_operation
            self.tally.struck += victim.struck
        elif fault.kind is Kind.STOP:
            victim.signal(signal.SIGSTOP)
        else:
            self.arena.cut(victim.slot, fault.partial)

    def may_lose_one(self, fault: Fault) -> list[Peer]:
        """Whom this fault may hit now, in the order of their slots. Joiners too, by a kill."""
        members = [peer for _, peer in sorted(self.slots.items()) if peer.is_member]
        if len(members) <= FLOOR:
            return []
        joiners = []
        if fault.kind is Kind.KILL and not fault.aimed:
            joiners = [p for _, p in sorted(self.slots.items()) if p.state is State.JOINING]
        return [
            peer
            for peer in members + joiners
            if peer not in self.witnesses and peer.fault is None and peer.exit is None
        ]

    def coordinator_is_up(self, fault: Fault) -> bool:
        return not self.back_at

    def kill_coordinator(self, fault: Fault) -> None:
        assert self.coordinator is not None
        now = time.monotonic()
        self.coordinator.end()
        self.tally.at.append((now, fault, -1))
        self.back_at = now + fault.hold

    def aim(self, victim: Peer, delay: float) -> None:
        """Waits until the victim is in an operation that began `delay` seconds ago; for a time."""
        ledger = victim.ledger
        assert ledger is not None
        deadline = time.monotonic() + AIM_S
        while time.monotonic() < deadline:
            before = ledger.word("begun")
            while ledger.word("begun") == before and time.monotonic() < deadline:
                time.sleep(0.0002)
            time.sleep(delay)
            if ledger.in_operation:
                return

    def ticks(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.tick()
            time.sleep(min(TICK_S, left))
            yield

    # ---- leaks -----------------------------------------------------------------------------------

    def begin_block(self) -> None:
        self.until(self.whole, JOIN_S, "the group is not whole at the beginning of a block")
        self.check_handles()
        self.witnesses = self.rng.sample(sorted(self.slots.values(), key=str), WITNESSES)
        if self.plant:
            self.witnesses[0] = self.peers[PLANTED]  # or it might die before it does wrong
        self._memory = {}

    def measure(self) -> None:
        """With a whole group: everybody holds what one holds, and the witnesses have not grown."""
        self.until(self.whole, JOIN_S, "the group is not whole when it is to be measured")
        self.book.read()
        self.check_handles()
        for peer, memory in self.memory().items():
            if peer not in self._memory:
                self._memory[peer] = memory
                continue
            grown = memory - self._memory[peer]
            self.tally.growth_mib = max(self.tally.growth_mib, grown)
            self.tally.measured += 1
            if grown > self.growth_mib_max:
                raise Failed(f"{peer} grew by {grown:.1f} MiB; {self.growth_mib_max:g} are allowed")

    def check_handles(self) -> None:
        """All members hold equally many, and as many as those of the first moment; a while after a
        death, when the connections to the dead are gone."""
        members = list(self.slots.values())
        for what in ("descriptors", "threads"):
            deadline = time.monotonic() + QUIET_S
            while True:
                held = {peer: peer.held(what) for peer in members}
                base = self._base.setdefault(what, min(held.values()))
                if set(held.values()) == {base}:
                    break
                if time.monotonic() > deadline:
                    each = ", ".join(f"p{peer.number} {count}" for peer, count in held.items())
                    raise Failed(f"{what} leak: {each}; at first each had {base}")
                self.tick()
                time.sleep(TICK_S)

    def memory(self) -> dict[Peer, float]:
        """Of the witnesses, in MiB."""
        members = list(self.slots.values())
        for peer in members:
            assert peer.ledger is not None
            peer.ledger.set_word("rests", peer.ledger.word("rests") + 1)
        self.until(
            lambda: all(
                p.ledger and p.ledger.word("rests") == p.ledger.word("rested") for p in members
            ),
            TOGETHER_S,
            "not everybody came to a boundary",
        )
        return {p: p.ledger.word("memory_kib") / 1024 for p in self.witnesses if p.ledger}

    def end_together(self) -> None:
        self.stopping = True
        for peer in self.slots.values():
            assert peer.ledger is not None
            peer.ledger.set_word("stop", 1)
        self.until(
            lambda: all(peer.exit is not None for peer in self.slots.values()),
            TOGETHER_S,
            "not all ended together",
        )
        assert self.coordinator is not None
        if code := self.coordinator.stop():
            raise Failed(f"{self.coordinator} exited with {code} when it was told to stop")
