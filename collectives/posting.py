"""How operations run: from checked buffers to the core and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from collectives._core import ffi, lib
from collectives.buffers import Buffer, Parts
from collectives.core import Context, text
from collectives.errors import Closed, CollectivesError, from_status
from collectives.seat import Seat
from collectives.work import ALGORITHMS, SLICE_MS, Work, timeout_ms

KINDS = {
    "all_reduce": lib.CC_ALL_REDUCE,
    "all_reduce_many": lib.CC_ALL_REDUCE,
    "broadcast": lib.CC_BROADCAST,
    "all_gather": lib.CC_ALL_GATHER,
    "barrier": lib.CC_BARRIER,
    "admit": lib.CC_BOUNDARY,
    "leave": lib.CC_BOUNDARY,
    "reduce": lib.CC_REDUCE,
    "gather": lib.CC_GATHER,
    "scatter": lib.CC_SCATTER,
    "reduce_scatter": lib.CC_REDUCE_SCATTER,
    "all_to_all": lib.CC_ALL_TO_ALL,
    "send": lib.CC_SEND,
    "recv": lib.CC_RECEIVE,
}
_MAX_UNPRUNED = 64


class MessageOptions(TypedDict, total=False):
    """What send and recv take besides their own arguments, by keyword.

    Keys:
        async_op: return a `Work` at once instead of the result.
        dtype: ``"bfloat16"`` if the array is of uint16 and means that.
        timeout: the operation's own deadline in seconds, from the call on.
    """

    async_op: bool
    dtype: str | None
    timeout: float | None


class Options(MessageOptions, total=False):
    """What every collective takes besides its own arguments, by keyword.

    Keys:
        async_op, dtype: as `MessageOptions`.
        algorithm: ``"auto"`` (default), ``"ring"``, ``"recursive_doubling"``, ``"direct"``,
            ``"halving_doubling"``, ``"tree"``; docs/algorithms.md says which one can do what.
        lane: 0 to 15; operations of one lane have one order, the same on all members.
        timeout: the operation's own deadline in seconds, from the call on, all attempts included.
            It fails on all members then, and what else is under way in the group with it.
        retry: False makes it fail with `PeerLost`, on all members, where it would otherwise begin
            again among the survivors. The same on all members.
    """

    algorithm: str
    lane: int
    retry: bool


_ANY_OPTIONS = frozenset({*MessageOptions.__annotations__, *Options.__annotations__})
_OPTIONS = dict.fromkeys(KINDS, _ANY_OPTIONS)
_OPTIONS["send"] = _OPTIONS["recv"] = frozenset(MessageOptions.__annotations__)
_NONE: Mapping[str, Any] = {}


def choice(table: dict[str, int], value: str, what: str) -> int:
    """What a name stands for. Raises ValueError with the names there are."""
    try:
        return table[value]
    except (KeyError, TypeError):
        raise ValueError(f"{what} must be one of {', '.join(table)}, not {value!r}") from None


class Posting:
    """The part of a communicator that posts operations and waits for them."""

    def __init__(self, context: Context, seat: Seat) -> None:
        self._context = context
        self._seat = seat
        self._group = seat.group
        self._open: set[Work] = set()  # keeps buffers alive while the core may touch them
        self._closed = False
        self._orphans: list[Any] = []  # buffers of operations that lost their Work to a Ctrl-C

    def _run(
        self,
        name: str,
        given: Buffer | None,
        target: Buffer | Parts | None,
        options: Mapping[str, Any] = _NONE,
        **fields: Any,
    ) -> Any:
        """Posts an operation; returns its result, or its Work if it is to be asynchronous."""
        async_op = options.get("async_op", False)
        handle = None
        cc_wait, pending = lib.cc_wait, lib.CC_PENDING
        _local.out[0] = ffi.NULL
        try:
            handle = self._post(name, given, target, options, sync=not async_op, **fields)
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
        if status != lib.CC_OK:
            return self._work(handle, name, given, target).wait()  # raises
        lib.cc_work_free(handle)
        if target is None:
            return None
        if target.is_copy:
            target.deliver()
        return target.array

    def _post_work(
        self, name: str, options: Mapping[str, Any], made: Callable[[Work], None], flags: int
    ) -> Work:
        """Posts an operation without buffers, and calls `made` with its Work: also if a Ctrl-C
        comes right behind the post, for it is under way all the same."""
        work = None
        _local.out[0] = ffi.NULL
        try:
            self._post(name, None, None, options, flags=flags, sync=True)
        finally:
            if _local.out[0]:
                work = self._work(_local.out[0], name, None, None)
                made(work)
        assert work is not None
        return work

    def _work(
        self, handle: Any, name: str, given: Buffer | None, target: Buffer | Parts | None
    ) -> Work:
        work = Work(handle, name, given, target, self._open.discard)
        self._open.add(work)
        self._prune()
        return work

    def _post(
        self,
        name: str,
        given: Buffer | None,
        target: Buffer | Parts | None,
        options: Mapping[str, Any],
        *,
        sync: bool,
        op: int = 0,
        factor: float = 0.0,
        root: int = 0,
        tag: int = 0,
        count: int = 0,
        world: int = 0,
        counts: Any = None,
        receive_counts: Any = None,
        flags: int = 0,
    ) -> Any:
        """Posts an operation and returns the core's handle on it."""
        algorithm, lane, timeout, timed = lib.CC_AUTO, 0, None, -1
        if options:
            if unknown := options.keys() - _OPTIONS[name]:
                raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
            algorithm = choice(ALGORITHMS, options.get("algorithm", "auto"), "algorithm")
            lane, timeout = options.get("lane", 0), options.get("timeout")
            timed = timeout_ms(timeout)
            if not isinstance(lane, int) or not 0 <= lane < lib.CC_REPORT_LANES_MAX:
                raise ValueError(f"lane must be 0 to {lib.CC_REPORT_LANES_MAX - 1}, not {lane!r}")
            if not options.get("retry", True):
                flags |= lib.CC_NO_RETRY
        if self._closed:
            raise self._why_closed()
        local = _local
        request = local.request
        request.kind, request.op, request.factor = KINDS[name], op, factor
        request.root, request.tag, request.world = root, tag, world
        request.algorithm, request.lane, request.timeout_ms = algorithm, lane, timed
        request.flags = flags if sync else flags | lib.CC_ASYNC
        request.count = count
        request.counts = ffi.NULL if counts is None else counts
        request.receive_counts = ffi.NULL if receive_counts is None else receive_counts
        typed = given if given is not None else target
        request.dtype = 0 if typed is None else typed.code
        if isinstance(target, Parts):
            status = lib.cc_post_many(
                *(self._context.native, self._group, request, target.pointer),
                *(len(target.targets), local.out, local.message),
            )
        else:
            request.__setattr__("in", ffi.NULL if given is None else given.pointer)
            request.out = ffi.NULL if target is None else target.pointer
            status = lib.cc_post(
                self._context.native, self._group, request, local.out, local.message
            )
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
        ended = self._seat.ended
        return ended if ended is not None else Closed("the communicator is closed")


class _Local(threading.local):
    """C memory that each thread uses again for every call."""

    def __init__(self) -> None:
        self.request = ffi.new("cc_request *")
        self.out = ffi.new("cc_work **")
        self.message = ffi.new("char[]", int(lib.CC_MESSAGE_MAX))


_local = _Local()
