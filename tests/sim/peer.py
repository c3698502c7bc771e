"""One peer of a simulated world, and the operations that it posts, over the core's C interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collectives._core import ffi, lib
from collectives.core import text

if TYPE_CHECKING:
    from world import World

US = 1_000
MS = 1_000_000
GROUP = 7


def _codes(*names: str) -> dict[str, int]:
    return {name: int(getattr(lib, f"CC_{name.upper()}")) for name in names}


KINDS = _codes("all_reduce", "broadcast", "all_gather", "barrier", "boundary", "reduce", "gather")
KINDS |= _codes("scatter", "reduce_scatter", "all_to_all", "send", "receive")
OPS = _codes("sum", "avg", "min", "max", "prod", "band", "bor", "bxor", "premul_sum")
ALGORITHMS = _codes("auto", "ring", "recursive_doubling", "direct", "halving_doubling", "tree")
DTYPES = _codes("float32", "float64", "int32", "int64", "bfloat16", "float16", "int8", "int16")
DTYPES |= _codes("uint8", "uint16", "uint32", "uint64", "bool")
OK, PENDING, PEER_LOST = int(lib.CC_OK), int(lib.CC_PENDING), int(lib.CC_PEER_LOST)


def index_of(peer_id: Any) -> int:
    """Which peer has this id."""
    return int.from_bytes(bytes(peer_id.bytes[0:2]), "big") - 1


class Refused(Exception):
    """A post was refused; nothing was posted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status


class Operation:
    """A posted operation, the memory it uses, and a copy of its input."""

    def __init__(self, peer: Caller, work: Any, given: Any, out: Any) -> None:
        self.peer = peer
        self.work = ffi.gc(work, lib.cc_work_free)
        self.given = given  # None: it gives nothing, or nothing that counts
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


class Caller:
    """Somebody with a context, driven by hand, who posts operations.

    Attributes:
        world: what it lives in; `touch` is called when it did something.
        operations: all it posted. Kept: their buffers are the library's while they are open.
        alive: its process runs.
    """

    context: Any
    address: str

    def __init__(self, world: Any, index: int) -> None:
        self.world = world
        self.index = index
        self.id = (index + 1).to_bytes(2, "big") * 8
        self.operations: list[Operation] = []
        self.alive = True
        self.paused = False

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
        world: int | None = None,
        count: int | None = None,
        counts: Sequence[int] | None = None,
        receive_counts: Sequence[int] | None = None,
        factor: float = 1,
        tag: int = 0,
        group: int = GROUP,
    ) -> Operation:
        request = ffi.new("cc_request *")
        request.kind, request.op, request.root = KINDS[kind], OPS[op], root
        request.algorithm, request.lane = ALGORITHMS[algorithm], lane
        request.flags, request.timeout_ms = flags, timeout_ms
        request.factor, request.tag = factor, tag
        some = given if given is not None else out
        if some is not None:
            request.dtype = DTYPES[dtype or some.dtype.name]
        if given is not None:
            request.count = given.size if count is None else count
            request.__setattr__("in", ffi.from_buffer(given) if given.size else ffi.NULL)
        elif count is not None:
            request.count = count
        elif kind == "receive" and out is not None:
            request.count = out.size
        if out is not None:
            rows = out.size // max(1, request.count)  # of an all_gather
            request.world = rows if world is None else world
            request.out = ffi.from_buffer(out) if out.size else ffi.NULL
        elif world is not None:
            request.world = world
        keep = [ffi.new("uint64_t[]", list(c)) if c else ffi.NULL for c in (counts, receive_counts)]
        request.counts, request.receive_counts = keep
        work, message = ffi.new("cc_work **"), ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
        # The copy is made before: a single member is done at once, in place.
        operation = Operation(self, ffi.NULL, given, out)
        status = lib.cc_post(self.context, group, request, work, message)
        if status != OK:
            raise Refused(status, text(message))
        operation.work = ffi.gc(work[0], lib.cc_work_free)
        self.world.touch()
        self.operations.append(operation)
        return operation

    @property
    def stats(self) -> Any:
        stats = ffi.new("cc_stats *")
        lib.cc_context_stats(self.context, stats)
        return stats

    def close(self, *, abort: bool = False) -> None:
        """Its process ends in order, as cc_context_close does it."""
        lib.cc_context_close(self.context, int(abort))
        self.world.touch()
        self.alive = False


class Peer(Caller):
    """A member of a World, which plays its coordinator."""

    def __init__(self, world: World, index: int, **options: Any) -> None:
        super().__init__(world, index)
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
        self.has_agent = True  # else nobody takes its events or installs anything in it
        self.report: Any = None  # the last one, of whatever epoch
        self.reports: dict[int, Any] = {}  # the last ones on other groups
        self.reported_ns = 0  # when the first one of that epoch came
        self.sealed_by_coordinator = 0
        self.ready = 0
        self.prepared: tuple[int, bytes] | None = None
        self.on_carried: Callable[[int], None] = lambda _: None  # told whose report it was handed
        self.on_waits: Callable[[Any], None] = lambda _: None  # told of CC_EVENT_WAITS
        self._event = ffi.new("cc_event *")

    def take_events(self) -> None:
        event = self._event
        while lib.cc_next_event(self.context, event) == OK:
            if event.kind == lib.CC_EVENT_TOLD:
                continue
            if event.kind == lib.CC_EVENT_WAITS:
                self.on_waits(event)
                continue
            if event.kind == lib.CC_EVENT_SEALED and any(bytes(event.peer.bytes)):
                other = self.world.peers[index_of(event.peer)]
                self.on_carried(other.index)
                if event.group == GROUP and not other.has_agent:
                    other.take_report(event.report)
            elif event.kind != lib.CC_EVENT_PREPARED and event.group != GROUP:
                if event.kind == lib.CC_EVENT_SEALED:
                    self.reports[int(event.group)] = ffi.new("cc_report *", event.report)
            elif event.kind == lib.CC_EVENT_SEALED:
                self.take_report(event.report)
            elif event.kind == lib.CC_EVENT_READY:
                self.ready = int(event.epoch)
            else:
                self.prepared = int(event.status), bytes(event.peer.bytes)

    def take_report(self, report: Any) -> None:
        """What this peer froze, from itself or by way of another one."""
        if not self.report or self.report.epoch != report.epoch:
            self.reported_ns = self.world.now_ns
        self.report = ffi.new("cc_report *", report)

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
        return {index_of(item.peer): int(item.kind) for item in found}

    @property
    def lanes(self) -> dict[int, Any]:
        return {lane.lane: lane for lane in self.report.lanes[0 : self.report.n_lanes]}

    def set_pending(self, joiners: int) -> None:
        lib.cc_set_pending(self.context, GROUP, joiners)
