"""The process group: what torch holds, and what it must know of it."""

from __future__ import annotations

import atexit
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

import collectives as cc
from collectives.torch import rendezvous
from collectives.torch.operations import Operations
from collectives.torch.reconfiguration import Nobody, Reconfiguration
from collectives.torch.work import end_waiters

NAME = "collectives"
_END_S = 5.0  # for threads to notice that their groups are closed

_groups: set[ProcessGroup] = set()  # C++ keeps weak references only


class ProcessGroup(Operations, Reconfiguration, dist.ProcessGroup):
    """A process group of torch.distributed over a `Communicator`.

    Attributes:
        communicator: what it runs on; for what torch has no call for.
        elastic: operations run among the survivors, and ranks follow at boundaries: see `elastic`.
            Otherwise each fails on all survivors once a rank is lost.
        run: the group that this process is to join, by `elastic`: this one is of itself alone.
    """

    def __init__(
        self,
        communicator: Any,
        store: Any,
        timeout: timedelta,
        run: rendezvous.Address | None = None,
    ) -> None:
        dist.ProcessGroup.__init__(self, communicator.rank, communicator.size)
        Reconfiguration.__init__(self)
        self.elastic, self.run = False, run
        self._store = store
        self.set_timeout(timeout)
        self._group_name = self._group_description = ""
        self._use(communicator)

    def _use(self, communicator: cc.Communicator) -> None:
        """Runs on this communicator from now on, with its ranks as they are now."""
        Operations.__init__(self)  # nothing is under way in it
        self._comm = communicator
        self._rank, self._size = communicator.rank, communicator.size
        _groups.add(self)
        known = dist.distributed_c10d._world.pg_group_ranks
        if self is dist.group.WORLD:
            known[self] = {rank: rank for rank in range(self._size)}

    @property
    def communicator(self) -> cc.Communicator:
        return self._comm

    # ---- what torch asks -------------------------------------------------------------------------

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    getRank, getSize = rank, size

    def name(self) -> str:
        return NAME

    getBackendName = _get_backend_name = name

    def get_group_store(self) -> Any:
        return self._store

    @property
    def group_name(self) -> str:
        return self._group_name

    @property
    def group_desc(self) -> str:
        return self._group_description

    def _set_group_name(self, name: str) -> None:
        self._group_name = name

    def _set_group_desc(self, description: str) -> None:
        self._group_description = description

    setGroupName, setGroupDesc = _set_group_name, _set_group_desc

    def getGroupName(self) -> str:
        return self._group_name

    def getGroupDesc(self) -> str:
        return self._group_description

    @property
    def _device_types(self) -> list[Any]:
        return [torch.device("cpu")]

    @property
    def supports_coalescing(self) -> bool:
        return False

    def _get_backend(self, device: Any) -> ProcessGroup:
        return self

    def _set_sequence_number_for_group(self) -> None:
        self._sequence = 0

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def set_timeout(self, timeout: timedelta) -> None:
        """The deadline of operations that bring none of their own."""
        self._timeout = timeout
        self._timeout_ms = round(timeout.total_seconds() * 1000)

    # ---- the end ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Leaves the group, as `Communicator.close`. Operations under way fail here."""
        _groups.discard(self)
        self._comm.close()

    def abort(self) -> None:
        """As `shutdown`, at once; from any thread."""
        _groups.discard(self)
        self._comm.abort()

    def __repr__(self) -> str:
        return f"<ProcessGroup {self._group_name!r}: rank {self._rank} of {self._size}>"


def create(options: Any, _: Any = None) -> ProcessGroup:
    """What torch calls for `init_process_group` and `new_group`, with its
    _DistributedBackendOptions."""
    if getattr(options, "enable_reconfigure", False):  # torch >= 2.14
        nobody = Nobody(options.group_rank, options.group_size)
        return ProcessGroup(nobody, options.store, options.timeout)
    ranks = list(options.global_ranks_in_group)
    parent = dist.group.WORLD if ranks else None
    run = None
    if isinstance(parent, ProcessGroup):
        comm = _subgroup(parent.communicator, ranks, options.timeout)
    elif not ranks and rendezvous.rejoins():
        comm, run = rendezvous.stand_aside(options.store, options.timeout)
    else:
        comm = rendezvous.join(
            options.store, options.group_rank, options.group_size, options.timeout
        )
    return ProcessGroup(comm, options.store, options.timeout, run)


def reconfigurable(timeout: timedelta = default_pg_timeout) -> ProcessGroup:
    """A group with no members yet, which `reconfigure` gives it: for torchft's `Manager(pg=...)`.

    Args:
        timeout: of its operations, and of a `reconfigure` that brings none.
    """
    return ProcessGroup(Nobody(), None, timeout)


def _subgroup(comm: cc.Communicator, ranks: list[int], timeout: timedelta) -> cc.Communicator:
    made = comm.subgroup(ranks, timeout=timeout.total_seconds())
    if made.size == len(ranks):
        return made
    made.close()
    lost = next((r for r in ranks if not comm.members[r].alive), None)
    raise cc.PeerLost(
        f"new_group: rank {lost} of the group's ranks {ranks} was lost",
        rank=lost,
        operation="new_group",
    )


@atexit.register
def _end_all() -> None:
    for group in list(_groups):
        group.shutdown()
    end_waiters(_END_S)
