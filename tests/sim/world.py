"""Peers in one process: the product's own core over transport "sim", under a virtual clock.

A World holds some peers, installs epochs in them by hand, and lets time pass until something holds.
Everything is a function of the seed; a failure is replayed with it. Who is a member is decided
here, by the rule of docs/protocol.md section 6 written down once more (`settle`), independent of
the product's coordinator, which has tests of its own.

Time moves from one event to the next, and all peers that run are stepped at each. `lag` lets a
peer miss steps at random, as a process that the scheduler neglects: more orders of events.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peer import GROUP, MS, OK, PEER_LOST, PENDING, US, Operation, Peer, Refused

from collectives._core import ffi, lib
from collectives.core import text

__all__ = ["GROUP", "MS", "OK", "PEER_LOST", "PENDING", "US"]
__all__ += ["Operation", "Peer", "Record", "Refused", "World", "prepare_joiner"]
FOREVER = 2**63 - 1


@dataclass
class Record:
    """An epoch record, as it was published."""

    epoch: int
    members: list[Peer]
    ranks: dict[int, int]  # by index of the peer
    world: int
    cause: int
    lost: Peer | None
    outcomes: dict[int, tuple[int, int, int]]  # committed, failed, posted by lane
    native: Any
    keep: tuple[Any, ...]

    @property
    def dead_rank(self) -> int:
        return int(self.native.lost_rank)


class World:
    """Some peers; use as a context manager."""

    def __init__(
        self, seed: int, n: int, *, lag: float = 0, grain_ns: int = 0, **options: Any
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.sim = lib.cc_sim_open(seed)
        self.lag = lag
        self.grain_ns = grain_ns  # events closer together than this happen at once: faster
        self.options = options
        self.peers = [Peer(self, i, **options) for i in range(n)]
        self.epoch = 0
        self.records: dict[int, Record] = {}
        self.steps = 0
        self.wake_ns = 0  # when a peer wants to be stepped next
        self.stride_ns: int | None = None  # time moves on by this at most, for who acts meanwhile

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            print(f"world: seed {self.seed}, at {self.now_ns / MS} ms, epoch {self.epoch}")
        for peer in self.peers:
            lib.cc_context_free(peer.context)
        lib.cc_sim_close(self.sim)

    def add(self) -> Peer:
        self.peers.append(Peer(self, len(self.peers), **self.options))
        return self.peers[-1]

    @property
    def now_ns(self) -> int:
        return int(lib.cc_sim_now_ns(self.sim))

    @property
    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.alive]

    @property
    def record(self) -> Record:
        return self.records[self.epoch]

    @property
    def members(self) -> list[Peer]:
        return self.record.members

    # ---- membership: the coordinator's part ---------------------------------------------------

    def write(
        self,
        members: Sequence[Peer],
        *,
        cause: int = int(lib.CC_CAUSE_FORMED),
        ranks: dict[int, int] | None = None,
        world: int | None = None,
        min_size: int | None = None,
        lost: Peer | None = None,
        detail: str = "",
        outcomes: dict[int, tuple[int, int, int]] | None = None,
    ) -> Record:
        """Makes the next epoch's record. Ranks are the positions among `members` unless given."""
        before = self.records.get(self.epoch)
        if min_size is None:
            min_size = before.native.min_size if before else 1
        if ranks is None:
            ranks = {peer.index: i for i, peer in enumerate(members)}
        outcomes = dict(before.outcomes if before else {}) | (outcomes or {})
        self.epoch += 1
        native = ffi.new("cc_epoch *")
        table = ffi.new("cc_member[]", len(members))
        for entry, peer in zip(table, members, strict=True):
            entry.id.bytes = peer.id
            entry.rank = ranks[peer.index]
            entry.serial = peer.index + 1
            entry.host = 1
            entry.address = peer.address.encode()
        lanes = ffi.new("cc_outcome[]", 16)
        for entry, (lane, marks) in zip(lanes, outcomes.items(), strict=False):
            entry.lane = lane
            entry.committed, entry.failed, entry.posted = marks
        said = ffi.new("char[]", detail.encode())
        native.group, native.epoch, native.cause = GROUP, self.epoch, cause
        native.world = len(members) if world is None else world
        native.min_size, native.detail = min_size, said
        if lost is not None:
            native.lost.bytes = lost.id
            native.lost_rank = before.ranks[lost.index] if before else 0
        native.members, native.n_members = table, len(members)
        native.lanes, native.n_lanes = lanes, len(outcomes)
        self.records[self.epoch] = Record(
            epoch=self.epoch,
            members=list(members),
            ranks=ranks,
            world=int(native.world),
            cause=cause,
            lost=lost,
            outcomes=outcomes,
            native=native,
            keep=(table, lanes, said),
        )
        return self.record

    def deliver(self, record: Record, peers: Iterable[Peer] | None = None) -> None:
        """Publishes a record to its members, or to some of them."""
        for peer in record.members if peers is None else peers:
            if peer.alive and peer.has_agent:
                status = lib.cc_install(peer.context, record.native)
                self.touch()
                assert status == OK, f"{peer} refused epoch {record.epoch}: status {status}"

    def install(self, members: Sequence[Peer] | None = None, **options: Any) -> Record:
        """Publishes the next epoch."""
        record = self.write(self.alive if members is None else members, **options)
        self.deliver(record)
        return record

    def accused(self, peer: Peer) -> bool:
        """Whether the reports prove the death of a member that has not reported itself."""
        reports = [other for other in self.members if other.sealed]
        charges = [other.evidence.get(peer.index) for other in reports]
        if lib.CC_EVIDENCE_REFUSED in charges or lib.CC_EVIDENCE_GOODBYE in charges:
            return True
        waited = self.now_ns - min((other.reported_ns for other in reports), default=self.now_ns)
        if waited >= 15 * peer.dead_ms * MS:
            return True
        if not reports or None in charges:
            return False
        closed = {int(lib.CC_EVIDENCE_CLOSED), int(lib.CC_EVIDENCE_PROTOCOL)}
        return not closed.intersection(charges) or waited >= peer.dead_ms * MS

    def settled(self) -> bool:
        """Whether every member has reported or is dead. With the first report all have to seal."""
        if not any(peer.sealed for peer in self.members):
            return False
        for peer in self.members:
            reachable = peer.alive and peer.has_agent and not peer.paused
            if reachable and peer.sealed_by_coordinator < self.epoch:
                peer.sealed_by_coordinator = self.epoch
                lib.cc_seal(peer.context, GROUP, self.epoch)
                self.touch()
                peer.take_events()
        return all(peer.sealed or self.accused(peer) for peer in self.members)

    def decide(self, joiners: Sequence[Peer] = ()) -> Record:
        """The next record, from the reports on this epoch."""
        old = self.record
        survivors = [peer for peer in old.members if peer.sealed]
        dead = [peer for peer in old.members if not peer.sealed]
        causes = [int(peer.report.cause) for peer in survivors]
        cause = int(lib.CC_CAUSE_LOST if dead else lib.CC_CAUSE_LINK)
        if lib.CC_CAUSE_MISMATCH in causes:
            cause = int(lib.CC_CAUSE_MISMATCH)
        elif lib.CC_CAUSE_DEADLINE in causes and not dead:
            cause = int(lib.CC_CAUSE_DEADLINE)
        outcomes: dict[int, tuple[int, int, int]] = {}
        for lane in {lane for peer in survivors for lane in peer.lanes}:
            base = old.outcomes.get(lane, (0, 0, 0))[1]
            found = [peer.lanes.get(lane) for peer in survivors]
            done = min(base if lane is None else int(lane.done) for lane in found)
            posted = max(done, *(int(lane.posted) for lane in found if lane is not None))
            retry = cause in (lib.CC_CAUSE_LOST, lib.CC_CAUSE_LINK)
            outcomes[lane] = done, done if retry else posted, posted
        boundary = max(int(peer.report.boundary) for peer in survivors)
        wants = [int(peer.report.wants) if peer.report.boundary else 0 for peer in survivors]
        if boundary and outcomes[0][0] >= boundary and any(wants):
            leaving = [p for p, want in zip(survivors, wants, strict=True) if want & 2]
            stay = [peer for peer in survivors if peer not in leaving]
            record = self.write(
                [*stay, *joiners], cause=int(lib.CC_CAUSE_BOUNDARY), outcomes=outcomes
            )
            for peer in leaving:
                lib.cc_expel(peer.context, GROUP, lib.CC_CLOSED, b"it has left")
            return record
        details = [text(peer.report.detail) for peer in survivors if peer.report.cause == cause]
        return self.write(
            survivors,
            cause=cause,
            ranks={peer.index: old.ranks[peer.index] for peer in survivors},
            world=old.world,
            lost=dead[0] if dead else None,
            detail=next((detail for detail in details if detail), ""),
            outcomes=outcomes,
        )

    def settle(self, joiners: Sequence[Peer] = (), limit_ms: int = 30_000) -> Record:
        """Waits for the reports, decides, and publishes: a peer that lives is never lost."""
        self.run(self.settled, limit_ms)
        lost = [p for p in self.members if not p.sealed and p.alive and not p.paused]
        assert not lost, f"seed {self.seed}: evicted though alive: {lost}"
        record = self.decide(joiners)
        self.deliver(record)
        return record

    def recover(self, limit_ms: int = 30_000) -> Record:
        """Settles epoch after epoch until all members of the last one live and are ready."""
        while True:
            record = self.settle(limit_ms=limit_ms)
            self.run(lambda: self.is_ready() or any(p.sealed for p in self.members), limit_ms)
            if self.is_ready():
                return record

    def renew(self) -> Record:
        """The same members in a new epoch."""
        lib.cc_seal(self.members[0].context, GROUP, self.epoch)
        self.touch()
        return self.recover()

    def carry(
        self,
        operations: Iterable[Operation],
        joiners: Sequence[Peer] = (),
        limit_ms: int = 60_000,
    ) -> list[Record]:
        """Runs until all are complete, settling whatever is sealed meanwhile; returns the records
        that came of it. What a failure interrupts begins again, so this may take several."""
        left, records = list(operations), []

        def complete() -> bool:
            return all(op.done for op in left)

        while not complete():
            self.run(lambda: complete() or any(p.sealed for p in self.members), limit_ms)
            if not complete():
                records.append(self.settle(joiners, limit_ms))
        return records

    def is_ready(self) -> bool:
        """Whether all members live and have installed the epoch, as those with an agent tell."""
        tell = [peer for peer in self.members if peer.has_agent]
        return all(p.alive for p in self.members) and all(p.ready == self.epoch for p in tell)

    # ---- faults -------------------------------------------------------------------------------

    def kill(self, peer: Peer) -> None:
        lib.cc_sim_kill(self.sim, peer.address.encode())
        peer.alive = False

    def pause(self, peer: Peer, paused: bool = True) -> None:
        """Stops the process: it does nothing, and nothing leaves or reaches it."""
        lib.cc_sim_pause(self.sim, peer.address.encode(), int(paused))
        peer.paused = paused
        self.touch()

    def cut(self, sender: Peer, receiver: Peer, cut: bool = True) -> None:
        lib.cc_sim_cut(self.sim, sender.address.encode(), receiver.address.encode(), int(cut))

    def break_link(self, a: Peer, b: Peer) -> None:
        lib.cc_sim_break(self.sim, a.address.encode(), b.address.encode())

    def corrupt(self, sender: Peer, receiver: Peer) -> None:
        """The next frame of each of their streams is nonsense."""
        lib.cc_sim_corrupt(self.sim, sender.address.encode(), receiver.address.encode())

    # ---- time ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Moves time on to what happens next, then lets every peer do what it can."""
        sim, now = self.sim, self.now_ns
        wake = min(self.wake_ns, lib.cc_sim_next_ns(sim))
        if wake == FOREVER:  # everybody is paused
            wake = now + 10 * MS
        if self.stride_ns is not None and self.steps:
            wake = min(wake, now + self.random.randrange(self.stride_ns))
        if self.grain_ns and self.wake_ns:
            wake = max(wake, now + self.grain_ns)
        if wake > now:
            lib.cc_sim_advance(sim, wake)
        self.steps += 1
        wake = FOREVER
        for peer in self.peers:
            if not peer.alive or peer.paused:
                continue
            if self.lag and self.random.random() < self.lag:  # whatever it misses: soon it is late
                due = self.now_ns + self.random.randrange(20 * US)
            else:
                due = lib.cc_step(peer.context)
                if peer.has_agent:
                    peer.take_events()
            wake = min(wake, due)
        self.wake_ns = wake

    def touch(self) -> None:
        """Somebody did something to a peer: it is to be stepped before time moves on."""
        self.wake_ns = 0

    def run(self, until: Callable[[], bool], limit_ms: int = 60_000) -> None:
        """Steps until something holds; fails if it does not within a virtual minute, or if time
        stands still."""
        now, stuck = self.now_ns, 0
        end = now + limit_ms * MS
        while not until():
            assert now < end, f"seed {self.seed}: nothing came of it within {limit_ms} ms"
            assert stuck < 10_000, f"seed {self.seed}: time stands still at {now} ns"
            self.step()
            then, now = now, lib.cc_sim_now_ns(self.sim)
            stuck = stuck + 1 if now == then else 0

    def run_ms(self, duration_ms: float) -> None:
        """Lets so much time pass."""
        end = self.now_ns + int(duration_ms * MS)
        while min(self.wake_ns, lib.cc_sim_next_ns(self.sim)) <= end:
            self.step()
        lib.cc_sim_advance(self.sim, end)

    def finish(self, operations: Iterable[Operation], limit_ms: int = 60_000) -> None:
        """Runs until all are complete."""
        left = list(operations)

        def complete() -> bool:
            while left and left[-1].done:
                left.pop()
            return not left

        self.run(complete, limit_ms)


def prepare_joiner(
    world: World, joiner: Peer, members: Sequence[Peer] | None = None
) -> tuple[int, bytes]:
    """A joiner's rehearsal: its result, and who made it fail."""
    members = world.members if members is None else members
    table = ffi.new("cc_member[]", max(1, len(members)))
    for entry, peer in zip(table, members, strict=False):
        entry.id.bytes = peer.id
        entry.serial = peer.index + 1
        entry.address = peer.address.encode()
    joiner.prepared = None
    others = world.peers
    if joiner not in others:  # a stranger to the world: it is stepped only here
        world.peers = [*others, joiner]
    assert lib.cc_prepare(joiner.context, joiner.index + 1, table, len(members)) == OK
    world.touch()
    world.run(lambda: joiner.prepared is not None)
    world.peers = others
    assert joiner.prepared is not None
    return joiner.prepared
