"""Work objects, and the futures that C++ (DDP's reducer) and communication hooks ask for."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import collectives as cc

_ZERO = timedelta(0)


class Work(dist.Work):
    """An operation of torch.distributed that may still be under way. Any thread may use it.

    `wait` raises what the operation failed with, each time. It may be dropped while under way.
    """

    def __init__(
        self,
        works: Sequence[cc.Work],
        tensors: list[torch.Tensor],
        finish: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._works = works
        self._tensors = tensors  # what a future yields
        self._finish = finish  # brings results to where the caller wants them; once
        self._lock = threading.RLock()  # a signal's handler may wait in the middle of a wait
        self._future: Any = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits for the result; True. A timeout of zero or less stands for none.

        Raises: TimedOut: it is not complete yet; it goes on. Else what it failed with.
        """
        if timeout is None or timeout <= _ZERO:
            for work in self._works:
                work.wait()
        else:
            until = time.monotonic() + timeout.total_seconds()
            for work in self._works:
                work.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            if self._finish is not None:
                self._finish()
                self._finish = None
        return True

    def synchronize(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return all(work.done for work in self._works)

    def is_success(self) -> bool:
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """What it failed with; None while it is under way, or if it went well."""
        if self.is_completed():
            try:
                self.wait()
            except Exception as error:
                return error
        return None

    def result(self) -> list[torch.Tensor]:
        self.wait()
        return self._tensors

    def source_rank(self) -> int:
        """Of a recv: whose message it was, a rank of the group."""
        self.wait()
        source = self._works[0].info.source
        if source is None:
            raise RuntimeError("only a recv has a source rank")
        return source

    _source_rank = source_rank

    def get_future(self) -> Any:
        """A future of the list of tensors. Its callbacks run in a thread of their own, which may
        call other collectives and wait for them; those of an operation that is over run at once."""
        with self._lock:
            if self._future is not None:
                return self._future
            # A failure must not be set: C++ would take it for a value. A callback raises it.
            base: Any = torch.futures.Future()
            self._future = base.then(self._outcome)
        if self.is_completed():
            self._settle(base)
        else:
            _pool.submit(lambda: self._settle(base))
        return self._future

    def _settle(self, base: Any) -> None:
        with suppress(BaseException):  # the callback is told as well
            self.wait()
        base.set_result(None)

    def _outcome(self, _: Any) -> list[torch.Tensor]:
        self.wait()
        return self._tensors


class Pool:
    """Threads that wait for operations. There is always one for whoever comes: a callback may wait
    for an operation whose own callback it is."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads: list[threading.Thread] = []

    def submit(self, task: Callable[[], None]) -> None:
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                thread = threading.Thread(target=self._work, name="collectives waiter", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # what it holds must not live as long as the thread idles
            with self._lock:
                self._idle += 1

    def end(self, timeout: float) -> None:
        """Ends the threads, once what they wait for is over."""
        with self._lock:
            threads, self._threads, self._idle = self._threads, [], 0
        for _ in threads:
            self._tasks.put(None)
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


_pool = Pool()


def end_waiters(timeout: float) -> None:
    """At the process's end, when all groups are closed: a thread that is in C++ would abort it."""
    _pool.end(timeout)


def _renew() -> None:
    global _pool
    _pool = Pool()


os.register_at_fork(after_in_child=_renew)  # threads are not forked
