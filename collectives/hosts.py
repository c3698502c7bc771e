"""Members' addresses with the names of their hosts looked up, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from collectives import config
from collectives.messages import Member


class Hosts:
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
