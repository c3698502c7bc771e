"""How operations of a process group run: at once, or as a `Work`, and how many at a time."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Protocol

import torch

import collectives as cc
from collectives.torch.tensors import Tensor
from collectives.torch.work import Work

_ZERO = timedelta(0)
_OPEN_MAX = 60  # operations at a time; the core takes 64 in a lane
_KEPT_MAX = 64
_nothing = nullcontext()
profiling = torch._C._autograd._profiler_enabled


class Options(Protocol):
    """What the options objects of torch have in common."""

    asyncOp: bool
    timeout: timedelta


class Posting:
    """The part of `ProcessGroup` that posts operations and waits for them. Any thread may."""

    _comm: cc.Communicator
    _timeout: timedelta
    _timeout_ms: int
    elastic: bool

    def __init__(self) -> None:
        self._sequence = 0
        # In the order in which they were posted. One that nobody has any more is over: its
        # communicator keeps it until then. Not kept here, or its buffers would live too long.
        self._open: deque[weakref.ref[cc.Work]] = deque()
        self._posting = threading.RLock()  # a signal's handler may post in the middle of a post
        self._coalesced: list[Work] | None = None
        # DDP's reducer, under join(), keeps the C++ half of an all_reduce of one element, and waits
        # for ever for one whose Python half is gone.
        self._kept: deque[Work] = deque(maxlen=_KEPT_MAX)

    def _options(self, opts: Options | None) -> dict[str, Any]:
        timeout = self._timeout
        if opts is not None and opts.timeout > _ZERO:
            timeout = opts.timeout
        return {"timeout": timeout.total_seconds(), "whole": not self.elastic}

    def _run(
        self,
        name: str,
        opts: Options | None,
        calls: Sequence[Callable[..., Any]],
        results: list[Any],
        finish: Callable[[], None] | None = None,
    ) -> Work | None:
        """Makes these calls of the communicator, each with the options that all have. `results` is
        what the work's future yields, `finish` brings them to where torch wants them."""
        self._sequence += 1
        options = self._options(opts)
        at_once = opts is not None and not opts.asyncOp and self._coalesced is None
        with self._recorded(name):
            if at_once and not self._still_open():
                for call in calls:
                    call(**options)
                if finish is not None:
                    finish()
                return None
            work = Work([self._post(call, options) for call in calls], results, finish)
            if at_once:
                work.wait()
                return None
        if name == "all_reduce" and results and results[0].numel() == 1:
            self._kept.append(work)
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work

    def _post(self, call: Callable[..., Any], options: dict[str, Any]) -> cc.Work:
        """Posts it once there is room for it: the core takes so many at a time."""
        with self._posting:  # threads, as those of callbacks are, may post in one group
            while len(self._open) >= _OPEN_MAX:
                oldest = self._open.popleft()()
                with suppress(Exception):  # its own waiter is told
                    if oldest is not None:
                        oldest.wait()
            work: cc.Work = call(async_op=True, **options)
            self._open.append(weakref.ref(work))
        return work

    def _still_open(self) -> bool:
        """Whether operations are open, which are to be counted."""
        with self._posting:
            while self._open and ((oldest := self._open[0]()) is None or oldest.done):
                self._open.popleft()
            return bool(self._open)

    def _recorded(self, name: str) -> AbstractContextManager[Any]:
        if not profiling():
            return _nothing
        return torch.autograd.profiler.record_function(f"collectives:{name}")

    def _start_coalescing(self, device: Any) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: Any) -> Work:
        works, self._coalesced = self._coalesced or [], None
        return _together(works)

    def _message(
        self, name: str, tensor: Tensor, call: Callable[..., Any], *arguments: Any, tag: int
    ) -> Work:
        limit = self._timeout.total_seconds()
        with self._recorded(name):
            work = Work([call(*arguments, tag=tag, timeout=limit, async_op=True)], [tensor])
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work


def _together(works: Sequence[Work]) -> Work:
    """One work for several."""

    def finish() -> None:
        for work in works:
            work.wait()

    parts = [part for work in works for part in work._works]
    return Work(parts, [tensor for work in works for tensor in work._tensors], finish)
