"""The communicator: what users hold.

It checks arguments, hands operations to the core and results to the caller. It is a thin layer:
who is a member and what became of an operation is decided by the coordinator and the core.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from types import TracebackType
from typing import Any

from collectives import messages
from collectives._core import ffi, lib
from collectives.agent import Agent
from collectives.buffers import Buffer, buffer_of, check_output, new_like
from collectives.core import Context, text
from collectives.errors import Closed, CollectivesError, from_status
from collectives.membership import Change, Member
from collectives.work import ALGORITHMS, SLICE_MS, Work, timeout_ms

_OPS = {"sum": lib.CC_SUM, "avg": lib.CC_AVG, "min": lib.CC_MIN, "max": lib.CC_MAX}
_KINDS = {
    "all_reduce": lib.CC_ALL_REDUCE,
    "broadcast": lib.CC_BROADCAST,
    "all_gather": lib.CC_ALL_GATHER,
    "barrier": lib.CC_BARRIER,
    "admit": lib.CC_BOUNDARY,
    "leave": lib.CC_BOUNDARY,
}
_MAX_UNPRUNED = 64


class Communicator:
    """One peer's membership in one group; made by `connect`.

    Any thread may call it. The operations of one lane must be called in the same order on all
    peers: give each thread a lane of its own.

    Attributes:
        rank: this peer's rank, 0 to size - 1. It changes only in `admit`.
        size: the number of ranks. A peer that died leaves a hole until the next `admit`.
        members: the members as of the last boundary, by rank; `alive` tells who died since.
        epoch: the number of the current epoch.
        pending: how many joiners wait to be admitted.
    """

    def __init__(self, context: Context, agent: Agent, record: messages.Epoch, peer: bytes) -> None:
        self._context = context
        self._agent = agent
        self._id = peer
        self._group = record.group
        self._open: set[Work] = set()  # keeps buffers alive while the core may touch them
        self._closed = False
        self._orphans: list[Any] = []  # buffers of operations that lost their Work to a Ctrl-C
        self._lock = threading.Lock()
        self._boundary_work: Work | None = None  # whose change is not taken over yet
        self._settle(record)
        _live.add(self)

    # ---- membership -------------------------------------------------------------------------

    def _settle(self, record: messages.Epoch) -> None:
        """Takes over ranks and size: at the start and at boundaries only."""
        self._snapshot = record
        self._size = record.world
        self._rank = next(m.rank for m in record.members if m.id == self._id)

    def _catch_up(self) -> None:
        """Takes over what a boundary changed. Called before ranks or size are used: whoever waited
        for the boundary may have been interrupted."""
        with self._lock:
            work = self._boundary_work
            if work is None or not work.done:
                return
            if work.changed:
                self._settle(self._agent.wait_epoch(work.info.epoch))
            self._boundary_work = None

    @property
    def rank(self) -> int:
        self._catch_up()
        return self._rank

    @property
    def size(self) -> int:
        self._catch_up()
        return self._size

    @property
    def epoch(self) -> int:
        return self._current().epoch

    @property
    def pending(self) -> int:
        return self._agent.pending

    @property
    def members(self) -> tuple[Member, ...]:
        self._catch_up()
        alive = {member.id for member in self._current().members}
        return tuple(Member.of(m, m.id in alive) for m in self._snapshot.members)

    @property
    def stats(self) -> dict[str, int]:
        """Counters of this peer's core: bytes on data links, operations, epochs."""
        return self._context.stats()

    def _current(self) -> messages.Epoch:
        return self._agent.current or self._snapshot

    def admit(self, timeout: float | None = None) -> Change:
        """A boundary: lets waiting joiners in, leavers go, and closes the holes of dead ranks.

        All members call it, as the same operation of lane 0. It waits for everything that this
        peer has posted; no other operation may be posted meanwhile. When nobody waits it costs one
        exchange of votes. Below `min_size` it waits for joiners.

        Raises: as `Work.wait`; a failure is the same on all members.
        """
        return self._boundary("admit", 0, timeout)

    def leave(self) -> None:
        """An `admit` after which this peer is no member any more, and closed."""
        try:
            self._boundary("leave", lib.CC_LEAVE, None)
        finally:
            self.close()

    def _boundary(self, name: str, flags: int, timeout: float | None) -> Change:
        for work in list(self._open):
            with contextlib.suppress(CollectivesError):  # its own waiter is told
                work.wait()
        self._catch_up()
        before = self._snapshot
        handle = self._post(name, None, None, flags=flags, timeout=timeout, sync=True)
        work = self._work(handle, name, None, None)
        if not flags:
            self._boundary_work = work
        work.wait()
        if flags or not work.changed:
            return Change(self.epoch, (), ())
        self._catch_up()
        record = self._snapshot
        old = {member.id for member in before.members}
        new = {member.id for member in record.members}
        joined = tuple(Member.of(m, True) for m in record.members if m.id not in old)
        left = tuple(Member.of(m, False) for m in before.members if m.id not in new)
        return Change(record.epoch, joined, left)

    # ---- collectives ------------------------------------------------------------------------

    def all_reduce(
        self,
        x: Any,
        *,
        op: str = "sum",
        out: Any = None,
        async_op: bool = False,
        algorithm: str = "auto",
        dtype: str | None = None,
        lane: int = 0,
        preserve: bool = True,
        timeout: float | None = None,
    ) -> Any:
        """Combines the members' arrays element by element; all get the same bits.

        Args:
            x: numpy array or CPU torch tensor, of equal count and dtype on all members: float32,
                float64, int32, int64, bfloat16. Strided input is copied.
            op: ``"sum"``, ``"avg"`` (floating point; over the contributors), ``"min"``, ``"max"``.
            out: where the result goes; None makes a new one. ``out=x`` is in place; any other
                overlap is an error.
            async_op: return a `Work` at once instead of the result.
            algorithm: ``"auto"``, ``"ring"``, ``"recursive_doubling"``, ``"direct"``.
            dtype: ``"bfloat16"`` if x is an array of uint16 that means that.
            lane: 0 to 15; operations of one lane have one order, the same on all members.
            preserve: in place only: keep the input until the outcome is decided. False saves the
                copy, and leaves x undefined on failure.
            timeout: the operation's own deadline in seconds: it fails on all members.

        Raises:
            TypeError, ValueError: wrong arguments; nothing was sent.
            otherwise as `Work.wait`.
        """
        given = buffer_of(x, dtype)
        target = self._target(given, x, out, dtype)
        return self._run(
            "all_reduce",
            given,
            target,
            async_op,
            op=_choice(_OPS, op, "op"),
            algorithm=_choice(ALGORITHMS, algorithm, "algorithm"),
            flags=lib.CC_PRESERVE if preserve else 0,
            lane=lane,
            timeout=timeout,
        )

    def broadcast(
        self,
        x: Any,
        root: int = 0,
        *,
        out: Any = None,
        async_op: bool = False,
        algorithm: str = "auto",
        dtype: str | None = None,
        lane: int = 0,
        timeout: float | None = None,
    ) -> Any:
        """Gives all members the root's array. On other members x tells count and dtype only.

        Args: as `all_reduce`; `root` is a rank. ``out=x`` overwrites x with the root's; if the
            operation fails, `out` is undefined on members other than the root.
        """
        given = buffer_of(x, dtype)
        target = self._target(given, x, out, dtype)
        if not isinstance(root, int) or not 0 <= root < self.size:
            raise ValueError(f"root {root!r} is no rank of this group of {self._size}")
        return self._run(
            "broadcast",
            given,
            target,
            async_op,
            root=root,
            algorithm=_choice(ALGORITHMS, algorithm, "algorithm"),
            lane=lane,
            timeout=timeout,
        )

    def all_gather(
        self,
        x: Any,
        *,
        out: Any = None,
        async_op: bool = False,
        algorithm: str = "auto",
        dtype: str | None = None,
        lane: int = 0,
        timeout: float | None = None,
    ) -> Any:
        """Gives all members everybody's array, stacked: shape ``(size, *x.shape)``.

        The row of a rank without a member is zeros; `Work.info.missing` names them.

        Args: as `all_reduce`; `out` has size times as many elements as x, of the same dtype.
        """
        given = buffer_of(x, dtype)
        rows = self.size
        result = new_like(given, rows) if out is None else out
        target = buffer_of(result, dtype, out=True)
        check_output(given, target, rows)
        return self._run(
            "all_gather",
            given,
            target,
            async_op,
            algorithm=_choice(ALGORITHMS, algorithm, "algorithm"),
            world=rows,
            lane=lane,
            timeout=timeout,
        )

    def barrier(
        self, *, async_op: bool = False, lane: int = 0, timeout: float | None = None
    ) -> Any:
        """Returns when all members have called it. Result: None."""
        return self._run("barrier", None, None, async_op, lane=lane, timeout=timeout)

    # ---- how operations run -----------------------------------------------------------------

    @staticmethod
    def _target(given: Buffer, x: Any, out: Any, dtype: str | None) -> Buffer:
        if out is None:
            return buffer_of(new_like(given), dtype, out=True)
        if out is x and given.keep is not x and not _same_memory(given, x, dtype):
            raise ValueError("in place needs a contiguous array")
        target = buffer_of(out, dtype, out=True)
        check_output(given, target)
        return target

    def _run(
        self, name: str, given: Buffer | None, target: Buffer | None, async_op: bool, **options: Any
    ) -> Any:
        handle = None
        cc_wait, pending = lib.cc_wait, lib.CC_PENDING
        _local.out[0] = ffi.NULL
        try:
            handle = self._post(name, given, target, sync=not async_op, **options)
            if async_op:
                return self._work(handle, name, given, target)
            while (status := cc_wait(handle, SLICE_MS)) == pending:
                pass
        except BaseException:  # Ctrl-C: the operation goes on, and its buffers must live on
            if handle is not None and not async_op:
                self._work(handle, name, given, target)
            elif _local.out[0]:
                self._orphans.append((given, target))
            raise
        if status == lib.CC_OK:
            lib.cc_work_free(handle)
            return None if target is None else target.array
        return self._work(handle, name, given, target).wait()  # raises

    def _work(self, handle: Any, name: str, given: Buffer | None, target: Buffer | None) -> Work:
        result = None if target is None else target.array
        work = Work(handle, name, result, (given, target), self._open.discard)
        self._open.add(work)
        self._prune()
        return work

    def _post(
        self,
        name: str,
        given: Buffer | None,
        target: Buffer | None,
        *,
        sync: bool,
        op: int = 0,
        root: int = 0,
        world: int = 0,
        algorithm: int = 0,
        flags: int = 0,
        lane: int = 0,
        timeout: float | None = None,
    ) -> Any:
        """Posts an operation and returns the core's handle on it."""
        if not isinstance(lane, int) or not 0 <= lane < lib.CC_REPORT_LANES_MAX:
            raise ValueError(f"lane must be 0 to {lib.CC_REPORT_LANES_MAX - 1}, not {lane!r}")
        if self._closed:
            raise self._why_closed()
        local = _local
        request = local.request
        request.kind = _KINDS[name]
        request.op, request.root, request.algorithm, request.lane = op, root, algorithm, lane
        request.world = world
        request.flags = flags if sync else flags | lib.CC_ASYNC
        request.timeout_ms = timeout_ms(timeout)
        if given is not None and target is not None:
            request.dtype, request.count = given.code, given.count
            request.__setattr__("in", given.pointer)
            request.out = target.pointer
        else:
            request.dtype = request.count = 0
        status = lib.cc_post(self._context.native, self._group, request, local.out, local.message)
        if status != lib.CC_OK:
            raise self._post_error(status, text(local.message))
        return local.out[0]

    def _prune(self) -> None:
        """Forgets works that nobody waited for and that are complete, now and then."""
        if len(self._open) > _MAX_UNPRUNED:
            for work in list(self._open):
                if work.done:
                    self._open.discard(work)

    def _post_error(self, status: int, message: str) -> Exception:
        if status == lib.CC_CLOSED:
            return self._why_closed()
        return from_status(status, message)

    def _why_closed(self) -> CollectivesError:
        ended = self._agent.ended
        return ended if ended is not None else Closed("the communicator is closed")

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Ends this peer's membership. Operations under way raise `Closed` here; the others go on
        once they need this peer no more, or learn that it is lost. May be called again."""
        self._end(abort=False)

    def abort(self) -> None:
        """As `close`, without waiting for anything to be delivered. For use from any thread."""
        self._end(abort=True)

    def _end(self, *, abort: bool) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        _live.discard(self)
        self._agent.close()
        self._context.close(abort=abort)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(abort=error is not None)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"epoch {self.epoch}"
        return f"<Communicator rank {self._rank} of {self._size}, {state}>"


class _Local(threading.local):
    """C memory that each thread uses again for every call."""

    def __init__(self) -> None:
        self.request = ffi.new("cc_request *")
        self.out = ffi.new("cc_work **")
        self.message = ffi.new("char[]", int(lib.CC_MESSAGE_MAX))


_local = _Local()
_live: weakref.WeakSet[Communicator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for communicator in list(_live):
        communicator.close()


def _choice(table: dict[str, int], value: str, what: str) -> int:
    try:
        return table[value]
    except (KeyError, TypeError):
        raise ValueError(f"{what} must be one of {', '.join(table)}, not {value!r}") from None


def _same_memory(given: Buffer, x: Any, dtype: str | None) -> bool:
    return bool(given.pointer == buffer_of(x, dtype, out=True).pointer)
