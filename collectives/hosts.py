"""Hosts: which one this is, and the addresses of others by name."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace

from collectives import config
from collectives.messages import Member


def host_number() -> int:
    """Equal for peers of one host: of one boot of one machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
    except OSError:
        boot = str(uuid.getnode())
    try:
        network = os.stat("/proc/self/ns/net").st_ino  # peers in other namespaces are remote
    except OSError:
        network = 0
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{boot}{network}").int >> 64


class Hosts:
    """Members' addresses with the names of their hosts looked up, each once."""

    def __init__(self) -> None:
        self._numeric: dict[str, str] = {}

    def resolved(self, members: Sequence[Member]) -> list[Member]:
        """The members with numeric addresses. Blocks as long as the system's resolver does. Raises
        OSError naming the host that has none."""
        result = []
        for member in members:
            host, port = config.parse_address(member.address)
            if host not in self._numeric:
                self._numeric[host] = config.resolve_host(host)
            address = config.format_address(self._numeric[host], port)
            result.append(member if address == member.address else replace(member, address=address))
        return result
