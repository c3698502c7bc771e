"""How operations run: from checked buffers to the core and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np

from collectives._core import ffi, lib
from collectives.buffers import NUMPY_CODES, Buffer, Parts, buffer_of
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
_PENDING = lib.CC_PENDING


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
        whole: True makes it fail with `PeerLost`, on all members, if a rank has no member, at once
            or when one is lost during it. The same on all members.
    """

    algorithm: str
    lane: int
    retry: bool
    whole: bool


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
        if options.get("async_op", False):
            return self._start(name, given, target, options, **fields)
        frame = _take_frame()
        out = frame.out
        try:
            status = self._post(frame, name, given, target, options, wait=True, **fields)
            while status == _PENDING:
                status = lib.cc_wait(out[0], SLICE_MS)
        except BaseException:
            if out[0]:  # a Ctrl-C: the operation goes on, and its buffers must live on
                self._work(out[0], name, given, target)
            raise
        handle = out[0]
        _local.frames.append(frame)
        if status != lib.CC_OK:
            return self._work(handle, name, given, target).wait()  # raises
        if handle:
            lib.cc_work_free(handle)
        if target is None:
            return None
        if target.is_copy:
            target.deliver()
        return target.array

    def _start(
        self,
        name: str,
        given: Buffer | None,
        target: Buffer | Parts | None,
        options: Mapping[str, Any],
        **fields: Any,
    ) -> Work:
        frame = _take_frame()
        try:
            self._post(frame, name, given, target, options, **fields)
            work = self._work(frame.out[0], name, given, target)
        except BaseException:
            if frame.out[0]:  # whether or not there is a Work that was lost
                self._orphans.append((given, target))
            raise
        _local.frames.append(frame)
        return work

    def _reduce_plain(self, x: np.ndarray[Any, Any], out: Any, op: int) -> Any:
        """A short way for what most all_reduces are: numpy arrays in one piece, no options. Its
        result, or None: the long way is needed, which finds out why."""
        code, count, flags = NUMPY_CODES.get(x.dtype), x.size, x.flags
        if code is None or not count or not flags.c_contiguous or self._closed:
            return None
        if out is None:
            out = np.empty(x.shape, x.dtype)
        elif not (out is x or _is_like(out, x)) or not out.flags.writeable:
            return None
        source, target = ffi.from_buffer(x), ffi.from_buffer(out)
        self._reduce_at(source, target, code, op, count, lib.CC_PRESERVE, -1, x, out)
        return out

    def _reduce_at(
        self,
        source: Any,
        target: Any,
        code: int,
        op: int,
        count: int,
        flags: int,
        timed: int,
        x: Any,
        out: Any,
    ) -> None:
        """An all_reduce of what lies at `source`, waited for. All is as the core has it, and is
        right: nothing is checked. `x` and `out` are whose memory it is."""
        frame = _take_frame()
        request, handle = frame.plain, frame.out
        request.dtype, request.op, request.count = code, op, count
        request.flags, request.timeout_ms = flags, timed
        request.__setattr__("in", source)
        request.out = target
        try:
            status = lib.cc_run(
                self._context.native, self._group, request, SLICE_MS, handle, frame.message
            )
            while status == _PENDING:
                status = lib.cc_wait(handle[0], SLICE_MS)
        except BaseException:
            if handle[0]:
                self._work(handle[0], "all_reduce", buffer_of(x), buffer_of(out, out=True))
            raise
        work = handle[0]
        _local.frames.append(frame)
        if status == lib.CC_OK:
            if work:
                lib.cc_work_free(work)
            return
        if not work:
            raise self._post_error(status, text(frame.message))
        self._work(work, "all_reduce", buffer_of(x), buffer_of(out, out=True)).wait()  # raises

    def _post_work(
        self, name: str, options: Mapping[str, Any], made: Callable[[Work], None], flags: int
    ) -> Work:
        """Posts an operation without buffers, and calls `made` with its Work: also if a Ctrl-C
        comes right behind the post, for it is under way all the same."""
        work = None
        frame = _take_frame()
        try:
            self._post(frame, name, None, None, options, flags=flags, sync=True)
        finally:
            if frame.out[0]:
                work = self._work(frame.out[0], name, None, None)
                made(work)
        assert work is not None
        return work

    def _work(
        self, handle: Any, name: str, given: Buffer | None, target: Buffer | Parts | None
    ) -> Work:
        failed = self._context.on_failure
        work = Work(handle, name, given, target, self._open.discard, failed)
        self._open.add(work)
        self._prune()
        return work

    def _post(
        self,
        frame: _Frame,
        name: str,
        given: Buffer | None,
        target: Buffer | Parts | None,
        options: Mapping[str, Any],
        *,
        wait: bool = False,
        sync: bool = False,
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
        """Posts an operation, whose handle is in the frame then; with `wait` it may be over
        already, and has no handle if it went well. `sync`: the caller will wait at once. Returns
        its status."""
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
            if options.get("whole", False):
                flags |= lib.CC_WHOLE
        if self._closed:
            raise self._why_closed()
        request = frame.request
        request.kind, request.op, request.factor = KINDS[name], op, factor
        request.root, request.tag, request.world = root, tag, world
        request.algorithm, request.lane, request.timeout_ms = algorithm, lane, timed
        request.flags = flags if wait or sync else flags | lib.CC_ASYNC
        request.count = count
        request.counts = ffi.NULL if counts is None else counts
        request.receive_counts = ffi.NULL if receive_counts is None else receive_counts
        typed = given if given is not None else target
        request.dtype = 0 if typed is None else typed.code
        native, group = self._context.native, self._group
        if isinstance(target, Parts):
            status = lib.cc_post_many(
                *(native, group, request, target.pointer),
                *(len(target.targets), frame.out, frame.message),
            )
            return self._posted(frame, status, wait)
        request.__setattr__("in", ffi.NULL if given is None else given.pointer)
        request.out = ffi.NULL if target is None else target.pointer
        if not wait:
            status = lib.cc_post(native, group, request, frame.out, frame.message)
            return self._posted(frame, status)
        status = lib.cc_run(native, group, request, SLICE_MS, frame.out, frame.message)
        return status if frame.out[0] else self._posted(frame, status)

    def _posted(self, frame: _Frame, status: int, pending: bool = False) -> int:
        """The status of a post, or what it was refused for."""
        if status != lib.CC_OK:
            raise self._post_error(status, text(frame.message))
        return _PENDING if pending else status

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


def _is_like(out: Any, x: np.ndarray[Any, Any]) -> bool:
    """Whether it is an array in one piece, of the same dtype and count."""
    if type(out) is not np.ndarray or out.dtype is not x.dtype or out.size != x.size:
        return False
    return bool(out.flags.c_contiguous)


class _Frame:
    """C memory of one call under way. A signal's handler may call in the middle of another call of
    the same thread, so each has its own."""

    __slots__ = ("message", "out", "plain", "request")

    def __init__(self) -> None:
        self.request = ffi.new("cc_request *")
        self.plain = ffi.new("cc_request *")
        self.plain.kind = lib.CC_ALL_REDUCE
        self.out = ffi.new("cc_work **")
        self.message = ffi.new("char[]", int(lib.CC_MESSAGE_MAX))


def _take_frame() -> _Frame:
    """A frame that nobody uses; it is given back to `_local.frames` by calls that went well."""
    frames = _local.frames
    frame = frames.pop() if frames else _Frame()
    frame.out[0] = ffi.NULL
    return frame


class _Local(threading.local):
    """Frames that each thread uses again."""

    def __init__(self) -> None:
        self.frames: list[_Frame] = []


_local = _Local()
