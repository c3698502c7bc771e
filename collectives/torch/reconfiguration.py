"""A process group that gets other members: by the protocol of torch 2.14, and by torchft's.

Peers tell each other their handles by whatever way they have, and all call `reconfigure` with the
same list. They meet at the first one's door as ranks meet at a store at the start, make a new
communicator, and leave the one they had. torchft's Manager does just that; up to 0.2 it calls
`configure` instead, with a store of its own.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

import collectives as cc
from collectives.config import parse_address
from collectives.torch import rendezvous
from collectives.torch.doors import Door, Handle, visit
from collectives.torch.work import Work


@dataclass
class _Options:
    """What torch 2.14 calls ReconfigureOptions."""

    uuid: int = 0
    handles: Sequence[str] | set[str] = ()
    timeout: timedelta | None = None
    hints: dict[str, str] = field(default_factory=dict)


_options = getattr(torch._C._distributed_c10d, "ReconfigureOptions", _Options)


class Nobody:
    """In the place of a communicator until `reconfigure` makes one: operations raise."""

    members: tuple[cc.Member, ...] = ()
    ended = None

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def close(self) -> None:
        pass

    abort = close

    def __getattr__(self, name: str) -> Any:
        raise cc.CollectivesError("the process group has no members yet: call reconfigure() first")


class Reconfiguration:
    """The part of `ProcessGroup` that changes who is in it."""

    supports_reconfigure = True

    _comm: cc.Communicator
    _timeout: timedelta
    elastic: bool

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._door: Door | None = None
        self._uuids: set[int] = set()  # of all attempts

    def _use(self, communicator: cc.Communicator) -> None:
        raise NotImplementedError

    def get_reconfigure_handle(self) -> str:
        """What the peers of a `reconfigure` must know of this group; the same each time.

        The first call opens a port where they meet if this handle is the first: on loopback, or
        with COLLECTIVES_INSECURE=1 at an address of this host.
        """
        if self._door is None:
            self._door = Door()
        return str(Handle(self._id, self._door.host, self._door.address))

    def reconfigure(self, opts: Any) -> Work:
        """Makes the groups of these handles one group, in place of whatever each was in before.

        All of them call it, with the same options; those whom it leaves out have to do nothing. It
        returns when the group is there, with a work that is done. Operations under way in the old
        group, and its subgroups, end with `Closed`. If it fails, the old group is as it was.

        Args:
            opts: `uuid`, a number that these handles have not been used with; `handles`, a list
                that orders ranks, or a set, which is sorted; `timeout`, by default the group's.
                `hints` are not used.

        Raises:
            ValueError: handles that cannot be, or peers on different hosts that must not meet.
            CollectivesError: the uuid was used before.
            ConnectError: the first of the handles is gone.
            TimedOut: not all of them called it in time. What `connect` raises.
        """
        limit = self._timeout if opts.timeout is None else opts.timeout
        until = time.monotonic() + limit.total_seconds()
        handles = self._ordered(opts.handles)
        rank = [handle.id for handle in handles].index(self._id)
        if opts.uuid in self._uuids:
            raise cc.CollectivesError(
                f"reconfigure: the uuid {opts.uuid} was already used; each call needs a fresh one"
            )
        self._uuids.add(opts.uuid)
        # Peers with different lists must not meet.
        what = hashlib.blake2b(repr((opts.uuid, handles)).encode(), digest_size=16).hexdigest()
        host, port = parse_address(handles[0].address)
        self._move(host, port, what, rank, len(handles), until)
        return Work((), [])

    def _ordered(self, given: Any) -> list[Handle]:
        texts = sorted(given) if isinstance(given, (set, frozenset)) else list(given)
        handles = [Handle.parse(text) for text in texts]
        if len(set(texts)) < len(texts):
            raise ValueError("reconfigure: a handle comes twice")
        if self._id not in [handle.id for handle in handles]:
            raise ValueError("reconfigure: this group's own handle is not among the handles")
        if handles[0].is_loopback and len({handle.host for handle in handles}) > 1:
            raise ValueError(
                "reconfigure: the peers are on different hosts, and the first of them listens on "
                "loopback: set COLLECTIVES_INSECURE=1 on all of them if you trust the network"
            )
        return handles

    def configure(
        self,
        store_addr: str,
        replica_id: str,
        rank: int,
        world_size: int,
        quorum_id: int | None = None,
        group_rank: int | None = None,
        group_world_size: int | None = None,
        global_ranks: list[int] | None = None,
    ) -> None:
        """As `reconfigure`, in the words of torchft up to 0.2.

        Args:
            store_addr: ``host:port/prefix`` of a TCPStore, with a prefix that is new each time.
            rank, world_size: in the new group. The others are not used.
        """
        until = time.monotonic() + self._timeout.total_seconds()
        address, _, prefix = store_addr.partition("/")
        host, _, port = address.rpartition(":")  # torchft puts no brackets around IPv6
        self._move(host.strip("[]"), int(port), prefix, rank, world_size, until)

    def _move(self, host: str, port: int, prefix: str, rank: int, size: int, until: float) -> None:
        """To a group whose ranks meet at a store, under a prefix of its own."""
        store = dist.PrefixStore(prefix, visit(host, port, until))
        try:
            made = rendezvous.meet(store, rank, size, until)
            if rank == 0:
                rendezvous.forget(store, size)
        except dist.DistNetworkError as error:
            raise cc.ConnectError(f"reconfigure: rank 0 was lost: {error}") from None
        old = self._comm
        self._use(made)
        old.close()

    # ---- how it is -------------------------------------------------------------------------------

    def errored(self) -> Exception | None:
        """Why this group does not work until it is reconfigured; None if it does."""
        comm = self._comm
        if comm.ended is not None:
            return comm.ended
        lost = None if self.elastic else next((m.rank for m in comm.members if not m.alive), None)
        return None if lost is None else cc.PeerLost(f"rank {lost} was lost", rank=lost)

    def get_error(self) -> Any:
        """`errored` as torch has it."""
        error = self.errored()
        if error is None:
            return ErrorType.SUCCESS
        return ErrorType.REMOTE_ERROR if isinstance(error, cc.PeerLost) else ErrorType.COMM_ERROR


def supports_reconfigure(group: Any = None) -> bool:
    """torch 2.14's `torch.distributed._supports_reconfigure`, with 2.13 as well."""
    return bool(getattr(_given(group), "supports_reconfigure", False))


def get_reconfigure_handle(group: Any = None) -> str:
    """torch 2.14's `torch.distributed._get_reconfigure_handle`, with 2.13 as well."""
    return _given(group).get_reconfigure_handle()


def reconfigure(
    uuid: int,
    handles: set[str] | list[str],
    group: Any = None,
    timeout: timedelta | None = None,
    hints: dict[str, str] | None = None,
) -> Any:
    """torch 2.14's `torch.distributed._reconfigure`, with 2.13 as well."""
    opts = _options()
    opts.uuid, opts.handles = uuid, handles
    if timeout is not None:
        opts.timeout = timeout
    if hints is not None:
        opts.hints = hints
    return _given(group).reconfigure(opts)


def _given(group: Any) -> Any:
    found = dist.group.WORLD if group is None else group
    if found is None:
        raise ValueError("no default process group: call init_process_group, or pass a group")
    return found
