"""Peers in one process: the product's own core over transport "sim", under a virtual clock.

A World holds some peers, installs epochs in them by hand, and lets time pass until something holds.
Everything is a function of the seed; a failure is replayed with it. (Who is a member is decided by
the test: the coordinator has tests of its own, and the simulator joins both.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from collectives._core import ffi, lib
from collectives.core import text

MS = 1_000_000
GROUP = 7
KINDS = {
    "all_reduce": lib.CC_ALL_REDUCE,
    "broadcast": lib.CC_BROADCAST,
    "all_gather": lib.CC_ALL_GATHER,
    "barrier": lib.CC_BARRIER,
    "boundary": lib.CC_BOUNDARY,
}
OPS = {"sum": lib.CC_SUM, "avg": lib.CC_AVG, "min": lib.CC_MIN, "max": lib.CC_MAX}
ALGORITHMS = {
    "auto": lib.CC_AUTO,
    "ring": lib.CC_RING,
    "recursive_doubling": lib.CC_RECURSIVE_DOUBLING,
    "direct": lib.CC_DIRECT,
}
DTYPES = {
    "float32": lib.CC_FLOAT32,
    "float64": lib.CC_FLOAT64,
    "int32": lib.CC_INT32,
    "int64": lib.CC_INT64,
    "bfloat16": lib.CC_BFLOAT16,
}


class Operation:
    """A posted operation and the memory it uses."""

    def __init__(self, work: Any, given: Any, out: Any) -> None:
        self.work = ffi.gc(work, lib.cc_work_free)
        self.given = given
        self.out = out

    @property
    def status(self) -> int:
        return int(lib.cc_wait(self.work, 0))

    @property
    def done(self) -> bool:
        return self.status != lib.CC_PENDING

    @property
    def info(self) -> Any:
        info = ffi.new("cc_info *")
        lib.cc_work_info(self.work, info)
        return info

    @property
    def message(self) -> str:
        return text(self.info.message)


class Peer:
    def __init__(self, world: World, index: int, **options: Any) -> None:
        self.world = world
        self.index = index
        self.id = bytes([index + 1]) * 16
        native = ffi.new("cc_options *")
        lib.cc_options_default(native)
        name = ffi.new("char[]", b"sim")
        native.transport = name
        native.id.bytes = self.id
        native.manual = 1
        native.world = world.sim
        for key, value in options.items():
            setattr(native, key, value)
        out, message = ffi.new("cc_context **"), ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
        status = lib.cc_context_open(native, out, message)
        assert status == lib.CC_OK, text(message)
        self.context = out[0]
        lib.cc_context_set_token(self.context, b"t" * 16)
        address = ffi.new("char[]", int(lib.CC_ADDRESS_MAX))
        lib.cc_context_address(self.context, address)
        self.address = text(address)
        self.alive = True
        self.report: Any = None
        self.ready = 0
        self.wake_ns = 0

    def post(
        self,
        kind: str,
        given: np.ndarray | None = None,
        out: np.ndarray | None = None,
        *,
        op: str = "sum",
        root: int = 0,
        algorithm: str = "auto",
        dtype: str | None = None,
        lane: int = 0,
        flags: int = int(lib.CC_PRESERVE),
        timeout_ms: int = -1,
    ) -> Operation:
        request = ffi.new("cc_request *")
        request.kind, request.op, request.root = KINDS[kind], OPS[op], root
        request.algorithm, request.lane = ALGORITHMS[algorithm], lane
        request.flags, request.timeout_ms = flags, timeout_ms
        if given is not None and out is not None:
            request.dtype = DTYPES[dtype or given.dtype.name]
            request.count = given.size
            request.__setattr__("in", ffi.from_buffer(given) if given.size else ffi.NULL)
            request.out = ffi.from_buffer(out) if out.size else ffi.NULL
        work, message = ffi.new("cc_work **"), ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
        status = lib.cc_post(self.context, GROUP, request, work, message)
        if status != lib.CC_OK:
            raise ValueError(f"status {status}: {text(message)}")
        self.wake_ns = 0
        return Operation(work[0], given, out)

    def take_events(self) -> None:
        event = ffi.new("cc_event *")
        while lib.cc_next_event(self.context, event) == lib.CC_OK:
            if event.kind == lib.CC_EVENT_SEALED:
                self.report = ffi.new("cc_report *", event.report)
            elif event.kind == lib.CC_EVENT_READY:
                self.ready = int(event.epoch)


class World:
    """Some peers; use as a context manager."""

    def __init__(self, seed: int, n: int, **options: Any) -> None:
        self.sim = lib.cc_sim_open(seed)
        self.options = options
        self.peers = [Peer(self, i, **options) for i in range(n)]
        self.epoch = 0
        self.outcomes: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            lib.cc_context_free(peer.context)
        lib.cc_sim_close(self.sim)

    def add(self) -> Peer:
        self.peers.append(Peer(self, len(self.peers), **self.options))
        return self.peers[-1]

    @property
    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.alive]

    def install(
        self,
        members: list[Peer] | None = None,
        *,
        cause: int = int(lib.CC_CAUSE_FORMED),
        ranks: dict[int, int] | None = None,
        world: int | None = None,
        min_size: int = 1,
        lost: Peer | None = None,
        outcomes: dict[int, tuple[int, int]] | None = None,
        to: list[Peer] | None = None,
    ) -> None:
        """Publishes the next epoch. Ranks are the positions among `members` unless given."""
        members = self.alive if members is None else members
        self.epoch += 1 if to is None or self.epoch == 0 else 0
        native = ffi.new("cc_epoch *")
        table = ffi.new("cc_member[]", len(members))
        for i, peer in enumerate(members):
            table[i].id.bytes = peer.id
            table[i].rank = i if ranks is None else ranks[peer.index]
            table[i].serial = peer.index + 1
            table[i].host = 1
            table[i].address = peer.address.encode()
        lanes = ffi.new("cc_outcome[]", 16)
        for i, (lane, (committed, failed)) in enumerate((outcomes or {}).items()):
            lanes[i].lane, lanes[i].committed, lanes[i].failed = lane, committed, failed
        detail = ffi.new("char[]", b"")
        native.group, native.epoch, native.cause = GROUP, self.epoch, cause
        native.world = len(members) if world is None else world
        native.min_size, native.detail = min_size, detail
        if lost is not None:
            native.lost.bytes, native.lost_rank = lost.id, lost.index
        native.members, native.n_members = table, len(members)
        native.lanes, native.n_lanes = lanes, len(outcomes or {})
        for peer in to or members:
            assert lib.cc_install(peer.context, native) == lib.CC_OK
            peer.wake_ns = 0

    def settle(self, lost: Peer | None = None, **options: Any) -> dict[int, tuple[int, int]]:
        """Waits for the survivors' reports and publishes what follows from them: the rule of
        docs/protocol.md section 6, written down once more."""
        self.run(lambda: all(p.report and p.report.epoch == self.epoch for p in self.alive))
        outcomes: dict[int, tuple[int, int]] = {}
        for lane in range(16):
            found = [
                report
                for peer in self.alive
                for report in peer.report.lanes[0 : peer.report.n_lanes]
                if report.lane == lane
            ]
            if not found:
                continue
            base = self.outcomes.get(lane, (0, 0))[1]
            done = min(r.done for r in found) if len(found) == len(self.alive) else base
            outcomes[lane] = done, max(r.posted for r in found)
        self.outcomes = outcomes
        causes = [p.report.cause for p in self.alive if p.report.cause != lib.CC_CAUSE_LOST]
        cause = causes[0] if causes and lost is None else int(lib.CC_CAUSE_LOST)
        options.setdefault("cause", cause)
        self.install(self.alive, lost=lost, outcomes=outcomes, **options)
        return outcomes

    def kill(self, peer: Peer) -> None:
        lib.cc_sim_kill(self.sim, peer.address.encode())
        peer.alive = False

    def step(self) -> None:
        """Lets every peer do what it can, then moves time on to what happens next."""
        sim = self.sim
        now = lib.cc_sim_now_ns(sim)
        wake = lib.cc_sim_next_ns(sim)
        for peer in self.peers:
            if peer.alive:
                peer.wake_ns = lib.cc_step(peer.context)
                peer.take_events()
                wake = min(wake, peer.wake_ns)
        wake = min(wake, lib.cc_sim_next_ns(sim))
        if wake > now:
            lib.cc_sim_advance(sim, wake)

    def run(self, until: Callable[[], bool], limit_ms: int = 60_000) -> None:
        """Steps until something holds; fails if it does not within a virtual minute."""
        end = lib.cc_sim_now_ns(self.sim) + limit_ms * MS
        while not until():
            assert lib.cc_sim_now_ns(self.sim) < end, "nothing came of it within the limit"
            self.step()

    def finish(self, operations: list[Operation], limit_ms: int = 60_000) -> None:
        self.run(lambda: all(operation.done for operation in operations), limit_ms)
