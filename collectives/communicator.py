"""The communicator: what users hold.

It checks arguments, hands operations to the core and results to the caller. It is a thin layer:
who is a member and what became of an operation is decided by the coordinator and the core.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from collectives import messages, trace
from collectives._core import lib
from collectives.agent import Agent
from collectives.core import Context
from collectives.errors import CollectivesError
from collectives.membership import Change, Member
from collectives.objects import ObjectOperations
from collectives.seat import Seat
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
        stats: counters of this peer's core, over all its groups: bytes on data links, operations,
            epochs.
    """

    def __init__(self, context: Context, agent: Agent, seat: Seat, peer: bytes) -> None:
        super().__init__(context, seat)
        self._agent = agent
        self._id = peer
        self._lock = threading.Lock()
        self._boundary_work: Work | None = None  # whose change is not taken over yet
        self._asked: Counter[tuple[bytes, ...]] = Counter()  # subgroups, by their members
        assert seat.settled is not None
        self._settle(seat.settled)
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
                self._settle(self._seat.wait_boundary(work.info.epoch))
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
        return self._seat.pending

    @property
    def members(self) -> tuple[Member, ...]:
        self._catch_up()
        alive = {member.id for member in self._current().members}
        return tuple(Member.of(m, m.id in alive) for m in self._snapshot.members)

    @property
    def ended(self) -> CollectivesError | None:
        """Why this peer is in the group no more, as operations raise it; None while it is."""
        if self._closed:
            return self._why_closed()
        return self._seat.ended or self._agent.root.ended

    @property
    def stats(self) -> dict[str, int]:
        """Counters of this peer's core: bytes on data links, operations, epochs."""
        return self._context.stats()

    def _current(self) -> messages.Epoch:
        return self._seat.current or self._snapshot

    def admit(self, timeout: float | None = None) -> Change:
        """A boundary: lets waiting joiners in, leavers go, and closes the holes of dead ranks.

        All members call it, as the same operation of lane 0. It waits for everything that this
        peer has posted but messages; no other operation may be posted meanwhile. When nobody waits
        it costs one exchange of votes. Below `min_size` it waits for joiners. When a member dies
        before it is done, it begins again, and closes the hole; a death that it does not see is the
        next one's matter.

        Args:
            timeout: its deadline in seconds, as that of any operation; None: none.

        Raises: as `Work.wait`; a failure is the same on all members. CollectivesError: another
            thread's operation is open, or (raised there) was called meanwhile.
        """
        return self._boundary("admit", 0, timeout)

    def leave(self) -> None:
        """An `admit` after which this peer is no member any more, and closed, also if it raises."""
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

        def made(work: Work) -> None:
            if not flags:
                self._boundary_work = work

        work = self._post_work(name, {"timeout": timeout}, made, flags)
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

    # ---- subgroups --------------------------------------------------------------------------

    def split(
        self, color: int | None, key: int = 0, *, lane: int = 0, timeout: float | None = None
    ) -> Communicator | None:
        """Divides the members: those that pass the same color form a group of their own, with ranks
        in the order of `key`, and of equal keys in that of their ranks here. All members call it,
        as the same operation of the lane.

        The new communicator shares the connections of the one that `connect` made, and ends with
        that at the latest. A member that dies is lost to both, and each recovers on its own. A
        subgroup only shrinks: joiners come to this group, by `admit`; then split again. Whoever
        needs a subgroup no more should `close` it; a peer can be in 64 groups at once.

        Args:
            color: any whole number of 64 bits; None: this peer will be in none of the new groups,
                and gets None.
            key: a whole number of 64 bits.
            timeout: of the exchange of colors, and then, in seconds, of the wait for the others.

        Raises: as `Work.wait`; TimedOut, Refused: the group did not form, and why.
        """
        self._catch_up()
        members = self._snapshot.members  # whatever an admit in another thread makes of them
        row = np.array([color is not None, color or 0, key], np.int64)
        work = self.all_gather(row, lane=lane, timeout=timeout, async_op=True)
        rows, info = work.wait(), work.info
        if color is None:
            return None
        chosen = sorted(
            (int(rows[rank][2]), rank)
            for rank in range(len(rows))
            if rank not in info.missing and rows[rank][0] and rows[rank][1] == color
        )
        what = f"split {self._group} {lane} {info.sequence} {color}"
        return self._subgroup([members[rank].id for _, rank in chosen], what, timeout)

    def subgroup(self, ranks: Sequence[int], *, timeout: float | None = None) -> Communicator:
        """A group of these ranks, in this order. They all call it with the same ranks, and nobody
        else has to. See `split`.

        Raises:
            ValueError: a rank that is none, or comes twice, or this peer is not among them.
            TimedOut, Refused: the group did not form, and why.
        """
        ranks = list(ranks)
        for rank in ranks:
            if not isinstance(rank, int) or not 0 <= rank < self.size:
                raise ValueError(f"{rank!r} is no rank of this group of {self.size}")
        if len(set(ranks)) < len(ranks):
            raise ValueError(f"a rank comes twice in {ranks}")
        if self.rank not in ranks:
            raise ValueError(f"this peer, rank {self.rank}, is not among the ranks {ranks}")
        members = tuple(self._snapshot.members[rank].id for rank in ranks)
        with self._lock:
            self._asked[members] += 1
            nth = self._asked[members]
        return self._subgroup(members, f"subgroup {self._group} {nth} {ranks}", timeout)

    def _subgroup(self, members: Sequence[bytes], what: str, timeout: float | None) -> Communicator:
        key = hashlib.blake2b(what.encode(), digest_size=messages.ID_BYTES)
        for member in members:
            key.update(member)
        if self._closed:
            raise self._why_closed()
        seat = self._agent.open_subgroup(self._seat, members, key.digest(), timeout)
        return Communicator(self._context, self._agent, seat, self._id)

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Ends this peer's membership, and that in all subgroups. Operations under way raise
        `Closed` here; the others go on once they need this peer no more, or learn that it is lost.
        May be called again."""
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
        if self._seat is self._agent.root:
            self._agent.close()
            self._context.close(abort=abort)
        else:
            self._agent.close_subgroup(self._seat)

    def trace(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """What this peer did lately, in all its groups, as a Chrome trace object; with `path` it is
        written there as well. Perfetto opens it, and ``collectives trace merge`` joins those of
        several peers: docs/trace.md. At any time, also after a failure and after `close`.

        Raises OSError: the file could not be written.
        """
        found = trace.snapshot(self._context, self._agent.root, self._id)
        if path is not None:
            trace.write(found, path)
        return found

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
