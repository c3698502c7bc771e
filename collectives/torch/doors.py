"""Doors: where the peers of a reconfiguration meet. Each group has one, and its handle says where.

A door is a store of torch in this process, so a group needs nothing that outlives its members.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

import collectives as cc
from collectives.config import format_address, is_loopback, parse_address
from collectives.hosts import host_number
from collectives.settings import Settings
from collectives.torch.rendezvous import own_address, time_left

_MARK = "collectives"
_LOOPBACK = "127.0.0.1"
_BACKLOG = 1024


@dataclass(frozen=True)
class Handle:
    """What is told of a group before its peers meet: its id, the host, the address of its door."""

    id: str
    host: int
    address: str

    def __str__(self) -> str:
        return f"{_MARK}/{self.id}/{self.host:x}/{self.address}"

    @classmethod
    def parse(cls, text: str) -> Handle:
        try:
            mark, name, host, address = text.split("/")
            is_loopback(parse_address(address)[0])  # raises where it is no numeric address
            if mark != _MARK:
                raise ValueError
            return cls(name, int(host, 16), address)
        except ValueError:
            raise ValueError(f"reconfigure: {text!r} is no handle of this backend") from None

    @property
    def is_loopback(self) -> bool:
        return is_loopback(parse_address(self.address)[0])


class Door:
    """An open one. It closes when nobody refers to it any more."""

    def __init__(self) -> None:
        where = _LOOPBACK
        if Settings.resolve().insecure:
            with contextlib.suppress(OSError):  # it has none; its own peers can still come
                where = own_address()
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((where, 0))
            listener.listen(_BACKLOG)
            port = listener.getsockname()[1]
            self.host = host_number()
            self.address = format_address(where, port)
            self._store = dist.TCPStore(
                where,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )


def visit(host: str, port: int, until: float) -> Any:
    """The store behind a door, as seen from here.

    Raises ConnectError: it is not there, or does not answer in time.
    """
    try:
        # torch's store would go on trying to reach one that is gone.
        socket.create_connection((host, port), time_left(until).total_seconds()).close()
        limit = time_left(until)
        return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    except (OSError, dist.DistError) as error:
        where = format_address(host, port)
        raise cc.ConnectError(f"reconfigure: rank 0 is not there, at {where}: {error}") from None
