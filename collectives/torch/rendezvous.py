"""From a torch store to a group: docs/design/006-torch.md.

The store is used at the start alone; a group lives on without it. A process that is to join a run
finds there which group the run has, as the last one that rank 0 made.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

import collectives as cc
from collectives.config import format_address, is_loopback, resolve_host
from collectives.coordinator.process import start_detached
from collectives.hosts import host_number
from collectives.settings import Settings

_FAILED = "failed: "
_COORDINATOR = "coordinator"
_RUN = "run"  # the key of the group that was made last


@dataclass(frozen=True)
class Address:
    """Where a group is: its coordinator's URL, its name, and its size in the beginning."""

    url: str
    group: str
    size: int

    @classmethod
    def parse(cls, text: str) -> Address:
        url, group, size = text.split()
        return cls(url, group, int(size))

    def __str__(self) -> str:
        return f"{self.url} {self.group} {self.size}"

    def connect(
        self,
        name: str,
        timeout: timedelta,
        rank: int | None = None,
        *,
        existing: bool = False,
    ) -> cc.Communicator:
        limit = timeout.total_seconds()
        return cc.connect(
            self.url,
            group=self.group,
            size=self.size,
            rank=rank,
            name=name,
            timeout=limit,
            existing=existing,
        )


def _host(rank: int) -> str:
    return f"host/{rank}"


def join(store: Any, rank: int, size: int, timeout: timedelta) -> cc.Communicator:
    """A group of `size` ranks, all of which call this with stores that share their keys.

    Raises: as `meet`.
    """
    mine = store.add(f"rank/{rank}", 1)  # the how-manieth group it makes from this store
    until = time.monotonic() + timeout.total_seconds()
    address = _agree(dist.PrefixStore(str(mine), store), rank, size, until)
    if rank == 0:
        store.set(_RUN, str(address))
    return address.connect(f"rank {rank}", time_left(until), rank)


def rejoins() -> bool:
    """Whether this process is to join a run later."""
    try:
        return Settings.resolve().rejoin
    except ValueError:  # `join` tells the others, too
        return False


def stand_aside(store: Any, timeout: timedelta) -> tuple[cc.Communicator, Address]:
    """A group of this process alone, and the run that it may join later: the last one of the store.

    Raises: RuntimeError: the store knows of none. What `connect` raises.
    """
    until = time.monotonic() + timeout.total_seconds()
    try:
        store.wait([_RUN], timeout)
    except RuntimeError as error:
        raise RuntimeError(
            "COLLECTIVES_REJOIN=1, but the store knows of no run to join: it has to outlive rank "
            "0, so it must be the launcher's (collectives run, torchrun)"
        ) from error
    run = Address.parse(store.get(_RUN).decode())
    alone = Address(run.url, f"{run.group}-{uuid.uuid4().hex}", 1)
    return alone.connect("joiner", time_left(until)), run


def meet(store: Any, rank: int, size: int, until: float) -> cc.Communicator:
    """As `join`, with keys that nobody has used, up to a time of this process's clock.

    Raises: RuntimeError: rank 0 could start no coordinator, and why. TimedOut: a rank did not come.
        What `connect` raises, and the store.
    """
    address = _agree(store, rank, size, until)
    return address.connect(f"rank {rank}", time_left(until), rank)


def _agree(store: Any, rank: int, size: int, until: float) -> Address:
    try:
        settings = Settings.resolve()
        store.set(_host(rank), f"{host_number()} {int(settings.insecure)}")
        if rank == 0:
            url = _coordinator(store, size, settings, until)
            store.set(_COORDINATOR, str(Address(url, f"torch-{uuid.uuid4().hex}", size)))
    except Exception as error:
        if rank == 0:  # all others wait to hear of it
            store.set(_COORDINATOR, f"{_FAILED}{error}")
        raise
    if not _is_told(store, [_COORDINATOR], until):
        raise cc.TimedOut("rank 0 did not come")
    told = store.get(_COORDINATOR).decode()
    if told.startswith(_FAILED):
        raise RuntimeError(f"rank 0 found no coordinator: {told.removeprefix(_FAILED)}")
    return Address.parse(told)


def forget(store: Any, size: int) -> None:
    """Removes what `meet` has left in the store. For one rank, when all have met."""
    for key in (_COORDINATOR, *map(_host, range(size))):
        store.delete_key(key)


def time_left(until: float) -> timedelta:
    """torch takes a timeout of zero for none."""
    return timedelta(seconds=max(until - time.monotonic(), 0.001))


def _is_told(store: Any, keys: list[str], until: float) -> bool:
    try:
        store.wait(keys, time_left(until))
    except dist.DistNetworkError:
        raise
    except RuntimeError:  # which store it is says which class
        return False
    return True


def _coordinator(store: Any, size: int, settings: Settings, until: float) -> str:
    """The URL of the one that the environment names, or of a new one that ends with its members."""
    if settings.coordinator is not None:
        return settings.coordinator
    keys = [_host(rank) for rank in range(size)]
    if not _is_told(store, keys, until):
        absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise cc.TimedOut(f"ranks {absent} did not come")
    told = [store.get(key).decode().split() for key in keys]
    if len({host for host, _ in told}) == 1:
        return start_detached()
    careful = [rank for rank, (_, insecure) in enumerate(told) if insecure == "0"]
    if careful:
        raise ValueError(
            "the ranks are on different hosts, and there is no key yet: set "
            f"COLLECTIVES_INSECURE=1 on all of them if you trust the network (rank {careful[0]} "
            "has not)"
        )
    return start_detached(format_address(own_address(), 0), "--insecure")


def own_address() -> str:
    """An address of this host that others reach: MASTER_ADDR, if that is one of ours."""
    for name in (os.environ.get("MASTER_ADDR", ""), socket.gethostname(), socket.getfqdn()):
        try:
            address = resolve_host(name)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError:
            continue
        if not is_loopback(address):
            return address
    raise OSError(
        "this host has no address that others reach by its name: start `collectives coordinator` "
        "and set COLLECTIVES_COORDINATOR on all ranks"
    )
