"""One peer of a simulated world, and the operations that it posts, over the core's C interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from collectives._core import ffi, lib
from collectives.core import text

if TYPE_CHECKING:
    from world import World

US = 1_000
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
OK, PENDING, PEER_LOST = int(lib.CC_OK), int(lib.CC_PENDING), int(lib.CC_PEER_LOST)


class Refused(Exception):
    """A post was refused; nothing was posted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status


class Operation:
    """A posted operation, the memory it uses, and a copy of its input."""

    def __init__(self, peer: Peer, work: Any, given: Any, out: Any) -> None:
        self.peer = peer
        self.work = ffi.gc(work, lib.cc_work_free)
        self.given = given
        self.before = None if given is None else given.copy()
        self.out = out

    @property
    def status(self) -> int:
        return int(lib.cc_wait(self.work, 0))

    @property
    def done(self) -> bool:
        return bool(lib.cc_wait(self.work, 0) != PENDING)

    @property
    def info(self) -> Any:
        info = ffi.new("cc_info *")
        lib.cc_work_info(self.work, info)
        return info

    @property
    def message(self) -> str:
        info = self.info  # what it points to lives as long as this
        return text(info.message)

    @property
    def intact(self) -> bool:
        """Whether the input has the very bytes that it had when the operation was posted."""
        return self.given is None or self.given.tobytes() == self.before.tobytes()


class Peer:
    """One context, driven by hand."""

    def __init__(self, world: World, index: int, **options: Any) -> None:
        self.world = world
        self.index = index
        self.id = (index + 1).to_bytes(2, "big") * 8
        native = ffi.new("cc_options *")
        lib.cc_options_default(native)
        name = ffi.new("char[]", b"sim")
        native.transport = name
        native.id.bytes = self.id
        native.manual = 1
        native.world = world.sim
        for key, value in options.items():
            if key.endswith("_ms"):
                setattr(native.timeouts, key, value)
            else:
                setattr(native, key, value)
        self.dead_ms = int(native.timeouts.dead_ms)
        out, message = ffi.new("cc_context **"), ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
        status = lib.cc_context_open(native, out, message)
        assert status == OK, text(message)
        self.context = out[0]
        lib.cc_context_set_token(self.context, b"t" * 16)
        address = ffi.new("char[]", int(lib.CC_ADDRESS_MAX))
        lib.cc_context_address(self.context, address)
        self.address = text(address)
        self.operations: list[Operation] = []  # kept: their buffers are the library's while open
        self.alive = True  # its process runs
        self.paused = False
        self.report: Any = None  # the last one, of whatever epoch
        self.reported_ns = 0  # when the first one of that epoch came
        self.sealed_by_coordinator = 0
        self.ready = 0
        self.prepared: tuple[int, bytes] | None = None
        self._event = ffi.new("cc_event *")

    def __repr__(self) -> str:
        return f"peer {self.index}"

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
            request.world = out.size // max(1, given.size)  # rows of an all_gather
            request.__setattr__("in", ffi.from_buffer(given) if given.size else ffi.NULL)
            request.out = ffi.from_buffer(out) if out.size else ffi.NULL
        work, message = ffi.new("cc_work **"), ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
        # The copy is made before: a single member is done at once, in place.
        operation = Operation(self, ffi.NULL, given, out)
        status = lib.cc_post(self.context, GROUP, request, work, message)
        if status != OK:
            raise Refused(status, text(message))
        operation.work = ffi.gc(work[0], lib.cc_work_free)
        self.world.touch()
        self.operations.append(operation)
        return operation

    def take_events(self) -> None:
        event = self._event
        while lib.cc_next_event(self.context, event) == OK:
            if event.kind == lib.CC_EVENT_SEALED:
                if not self.report or self.report.epoch != event.report.epoch:
                    self.reported_ns = self.world.now_ns
                self.report = ffi.new("cc_report *", event.report)
            elif event.kind == lib.CC_EVENT_READY:
                self.ready = int(event.epoch)
            else:
                self.prepared = int(event.status), bytes(event.peer.bytes)

    @property
    def sealed(self) -> bool:
        """Whether it has reported on the world's epoch."""
        return bool(self.report) and int(self.report.epoch) == self.world.epoch

    @property
    def evidence(self) -> dict[int, int]:
        """Whom its report accuses of what, by index of the peer."""
        if not self.sealed:
            return {}
        found = self.report.evidence[0 : self.report.n_evidence]
        return {
            int.from_bytes(bytes(item.peer.bytes[0:2]), "big") - 1: int(item.kind) for item in found
        }

    @property
    def lanes(self) -> dict[int, Any]:
        return {lane.lane: lane for lane in self.report.lanes[0 : self.report.n_lanes]}

    @property
    def stats(self) -> Any:
        stats = ffi.new("cc_stats *")
        lib.cc_context_stats(self.context, stats)
        return stats

    def set_pending(self, joiners: int) -> None:
        lib.cc_set_pending(self.context, GROUP, joiners)

    def close(self, *, abort: bool = False) -> None:
        """Its process ends in order, as cc_context_close does it."""
        lib.cc_context_close(self.context, int(abort))
        self.world.touch()
        self.alive = False
