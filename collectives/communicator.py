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

from collectives import messages
from collectives._core import lib
from collectives.agent import Agent
from collectives.core import Context
from collectives.errors import CollectivesError
from collectives.membership import Change, Member
from collectives.objects import ObjectOperations
from collectives.work import Work


class Communicator(ObjectOperations):
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
        super().__init__(context, agent, record.group)
        self._id = peer
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
        for work in [work for work in list(self._open) if not work.is_message]:
            with contextlib.suppress(CollectivesError):  # its own waiter is told
                work.wait()
        self._catch_up()
        before = self._snapshot
        handle = self._post(name, None, None, {"timeout": timeout}, flags=flags, sync=True)
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


_live: weakref.WeakSet[Communicator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for communicator in list(_live):
        communicator.close()
