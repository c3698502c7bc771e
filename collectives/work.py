"""An operation that may still be under way."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from collectives import logs
from collectives._core import ffi, lib
from collectives.buffers import Buffer, Parts
from collectives.core import text
from collectives.errors import TimedOut, from_status
from collectives.messages import MEMBERS_MAX

SLICE_MS = 50  # of waiting in C, so that Ctrl-C is noticed: not of the protocol


@dataclass(frozen=True)
class Info:
    """How an operation went.

    Attributes:
        sequence: its number in its lane; of a message, among those of its sender to its receiver.
        epoch: the epoch in which it ran last; 0 for messages.
        contributors: how many members took part; 0 if it failed.
        attempts: how often it was begun.
        algorithm: its name, as the argument of that name has it; "auto" for messages.
        missing: the ranks that had no member: their blocks of an all_gather or gather are zeros.
        source: of a recv: the sender's rank; otherwise None.
        lost_time: seconds spent on attempts that a failure ended.
    """

    sequence: int
    epoch: int
    contributors: int
    attempts: int
    algorithm: str
    missing: tuple[int, ...]
    source: int | None
    lost_time: float


ALGORITHMS = {
    "auto": lib.CC_AUTO,
    "ring": lib.CC_RING,
    "recursive_doubling": lib.CC_RECURSIVE_DOUBLING,
    "direct": lib.CC_DIRECT,
    "halving_doubling": lib.CC_HALVING_DOUBLING,
    "tree": lib.CC_TREE,
}
_ALGORITHM_NAMES = {code: name for name, code in ALGORITHMS.items()}


class Work:
    """A handle on an operation. Any thread may use it; several may wait.

    The buffers of the operation belong to the library until `done`. A Work may be dropped while it
    is under way: the operation goes on, and its buffers stay alive until it is complete.
    """

    __slots__ = (
        *("__weakref__", "_failed", "_finished", "_given", "_handle", "_name", "_target"),
        "_undelivered",
    )

    def __init__(
        self,
        handle: Any,
        name: str,
        given: Buffer | None,
        target: Buffer | Parts | None,
        finished: Callable[[Work], None],
        failed: Callable[[int, int], None],
    ) -> None:
        self._handle = ffi.gc(handle, lib.cc_work_free)
        self._name = name
        self._given = given  # kept alive, as the core may read it
        self._target = target
        self._finished = finished
        self._failed = failed
        self._undelivered = threading.Lock() if target is not None and target.is_copy else None

    @property
    def done(self) -> bool:
        """Whether the operation is complete, well or badly."""
        return bool(lib.cc_wait(self._handle, 0) != lib.CC_PENDING)

    def wait(self, timeout: float | None = None) -> Any:
        """Waits for the result and returns it.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes. It only stops the
                waiting, the operation goes on. (An operation's own deadline is its `timeout`
                argument.)

        Raises:
            TimedOut: the time is over and the operation is still under way; whom it waits for, if
                that is known.
            PeerLost, GroupTooSmall, Mismatch, Evicted, OutcomeUnknown, Closed: it failed.
        """
        handle, cc_wait, pending = self._handle, lib.cc_wait, lib.CC_PENDING
        if timeout_ms(timeout) < 0:
            while (status := cc_wait(handle, SLICE_MS)) == pending:
                pass
        else:
            assert timeout is not None
            end = time.monotonic() + timeout
            while (status := cc_wait(handle, _slice(end))) == pending:
                if time.monotonic() >= end:
                    raise TimedOut(
                        f"{self._name} is not complete after {timeout:g} s{self._why()}; it goes on"
                    )
        return self._complete(status)

    def _complete(self, status: int) -> Any:
        self._finished(self)
        if status == lib.CC_OK:
            return self._deliver()
        native = self._native_info()
        self._failed(status, int(native.epoch))
        raise from_status(
            status,
            text(native.message),
            peer=bytes(native.lost.bytes) if any(native.lost.bytes) else None,
            rank=int(native.lost_rank),
            operation=self._name,
        )

    def _deliver(self) -> Any:
        if self._target is None:
            return None
        lock = self._undelivered
        if lock is not None:
            with lock:  # once, and before any waiter returns
                if self._undelivered is not None:
                    self._target.deliver()
                    self._undelivered = None
        return self._target.array

    def waits_for(self) -> dict[int, str]:
        """The ranks that the operation waits for, as far as this peer knows, each "late": it has
        not called it, or an earlier operation of the lane; or "stalled": it has called it, and
        neither sends what this peer waits for nor is done with its own part.

        While some are late, the others wait for these as well and are not named. Who is late is
        known once nothing has moved for `Timeouts.suspect` and a few beats, who is stalled after
        `Timeouts.stalled`; before that, for sends and receives, and once it is `done`, the result
        is empty. Does not wait."""
        native = ffi.new("cc_straggler[]", MEMBERS_MAX)
        count = lib.cc_work_stragglers(self._handle, native, MEMBERS_MAX)
        words = {lib.CC_LATE: "late", lib.CC_STALLED: "stalled"}
        return {int(one.rank): words[one.delay] for one in native[0:count]}

    def _why(self) -> str:
        """Whom it waits for, to follow what it did not do."""
        found = self.waits_for()
        if not found:
            return ""
        ranks = [f"rank {rank}" for rank in found]
        return f", waiting for {logs.stragglers_text(ranks, len(ranks), 'late' in found.values())}"

    def _native_info(self) -> Any:
        native = ffi.new("cc_info *")
        lib.cc_work_info(self._handle, native)
        return native

    @property
    def info(self) -> Info:
        """How it went. Raises RuntimeError while it is under way."""
        native = self._native_info()
        if native.status == lib.CC_PENDING:
            raise RuntimeError(f"{self._name} is still under way: wait for it first")
        return Info(
            sequence=int(native.sequence),
            epoch=int(native.epoch),
            contributors=int(native.contributors),
            attempts=int(native.attempts),
            algorithm=_ALGORITHM_NAMES[native.algorithm],
            missing=tuple(
                8 * i + bit
                for i, byte in enumerate(bytes(native.missing))
                if byte
                for bit in range(8)
                if byte >> bit & 1
            ),
            source=int(native.source) if self._name == "recv" else None,
            lost_time=native.lost_ns / 1e9,
        )

    @property
    def is_message(self) -> bool:
        """Whether it is a send or recv: no part of the members' common order."""
        return self._name in ("send", "recv")

    @property
    def changed(self) -> bool:
        """For a boundary: whether membership changed."""
        return bool(self._native_info().changed)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Any:
        if not self.done:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            reader, writer = os.pipe()
            try:
                os.set_blocking(writer, False)
                loop.add_reader(reader, _resolve, future)
                if lib.cc_work_notify(self._handle, writer) != lib.CC_OK:
                    raise MemoryError("no memory for one more task that awaits this Work")
                await future
            finally:
                lib.cc_work_forget(self._handle, writer)
                loop.remove_reader(reader)
                os.close(reader)
                os.close(writer)
        return self._complete(lib.cc_wait(self._handle, 0))

    def __repr__(self) -> str:
        return f"<Work {self._name} {'done' if self.done else 'under way'}>"


def timeout_ms(timeout: float | None) -> int:
    """A timeout in seconds as the core has it: -1 stands for none, and for centuries."""
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds and not negative, not {timeout!r}")
    return -1 if timeout > 1e10 else int(timeout * 1000)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _slice(end: float) -> int:
    left_ms = round((end - time.monotonic()) * 1000)
    return max(0, min(SLICE_MS, left_ms))
