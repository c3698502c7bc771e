"""From a torch store to a group: docs/design/006-torch.md.

The store is used at the start alone; a group lives on without it. A process that is to join a run
finds there which group the run has, as the last one that rank 0 made.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import collectives as cc
from collectives.config import format_address, is_loopback, resolve_host
from collectives.coordinator.process import start_detached
from collectives.hosts import host_number
from collectives.settings import Settings

_FAILED = "failed: "
_RUN = "run"  # the key of the group that was made last


@dataclass(frozen=True)
class Address:
    """Where a group is: its coordinator's URL, its name, and its size in the beginning."""

    url: str
    group: str
    size: int

    @classmethod
    def read(cls, text: str) -> Address:
        url, group, size = text.split()
        return cls(url, group, int(size))

    def __str__(self) -> str:
        return f"{self.url} {self.group} {self.size}"

    def connect(self, name: str, timeout: timedelta, rank: int | None = None) -> cc.Communicator:
        return cc.connect(
            self.url,
            group=self.group,
            size=self.size,
            rank=rank,
            name=name,
            timeout=timeout.total_seconds(),
        )


def join(store: Any, rank: int, size: int, timeout: timedelta) -> cc.Communicator:
    """A group of `size` ranks, all of which call this with stores that share their keys.

    Raises: RuntimeError: rank 0 could start no coordinator, and why; or the store's own error when
        a rank does not come within the timeout. What `connect` raises.
    """
    settings = Settings.resolve()
    mine = store.add(f"rank/{rank}", 1)  # the how-manieth group it makes from this store
    store.set(f"{mine}/host/{rank}", f"{host_number()} {int(settings.insecure)}")
    if rank == 0:
        try:
            url = _coordinator(store, mine, size, settings)
            address = str(Address(url, f"torch-{uuid.uuid4().hex}", size))
        except Exception as error:
            store.set(f"{mine}/coordinator", f"{_FAILED}{error}")
            raise
        store.set(f"{mine}/coordinator", address)
        store.set(_RUN, address)
    told = store.get(f"{mine}/coordinator").decode()
    if told.startswith(_FAILED):
        raise RuntimeError(f"rank 0 found no coordinator: {told.removeprefix(_FAILED)}")
    return Address.read(told).connect(f"rank {rank}", timeout, rank)


def stand_aside(store: Any, timeout: timedelta) -> tuple[cc.Communicator, Address]:
    """A group of this process alone, and the run that it may join later.

    Raises: RuntimeError: the store knows of no run. What `connect` raises.
    """
    try:
        run = Address.read(store.get(_RUN).decode())
    except Exception as error:
        raise RuntimeError(
            "COLLECTIVES_REJOIN=1, but the store knows of no run to join: it has to outlive rank "
            "0, so it must be the launcher's (collectives run, torchrun)"
        ) from error
    alone = Address(run.url, f"{run.group}-{uuid.uuid4().hex}", 1)
    return alone.connect("joiner", timeout), run


def _coordinator(store: Any, mine: int, size: int, settings: Settings) -> str:
    """The URL of the one that the environment names, or of a new one that ends with its members."""
    if settings.coordinator is not None:
        return settings.coordinator
    told = [store.get(f"{mine}/host/{rank}").decode().split() for rank in range(size)]
    if len({host for host, _ in told}) == 1:
        return start_detached()
    careful = [rank for rank, (_, insecure) in enumerate(told) if insecure == "0"]
    if careful:
        raise ValueError(
            "the ranks are on different hosts, and there is no key yet: set "
            f"COLLECTIVES_INSECURE=1 on all of them if you trust the network (rank {careful[0]} "
            "has not)"
        )
    return start_detached(format_address(_own_address(), 0), "--insecure")


def _own_address() -> str:
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
