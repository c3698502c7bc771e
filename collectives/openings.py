"""The subgroups that a courier has asked for and that have not formed yet. For it alone."""

from __future__ import annotations

from collectives.errors import CollectivesError, Refused
from collectives.events import Link
from collectives.messages import Opened, Subgroup
from collectives.seat import Seat


class Openings:
    """`repeat_s`: each is asked for this often."""

    def __init__(self, repeat_s: float) -> None:
        self._repeat_s = repeat_s
        self._asked: dict[bytes, tuple[Seat, Subgroup]] = {}
        self._next = 0.0

    def __bool__(self) -> bool:
        return bool(self._asked)

    def again(self) -> None:
        """The connection is a new one: what was sent may have been lost."""
        self._next = 0.0

    def ask(self, link: Link, seat: Seat, request: Subgroup) -> None:
        if seat.ended is None:
            self._asked[request.key] = (seat, request)
            link.send(request)

    def tick(self, link: Link, now: float) -> float:
        """Asks again if it is time to, and returns when it will be."""
        if now >= self._next:
            for _, request in self._asked.values():
                link.send(request)
            self._next = now + self._repeat_s
        return self._next

    def take(self, message: Opened) -> Seat | None:
        """Whose the answer is, if it is a group that somebody still wants."""
        seat, _ = self._asked.pop(message.key, (None, None))
        if seat is None or message.group:
            return seat
        seat.end(Refused(message.reason))
        return None

    def forget(self, seat: Seat) -> None:
        for key in [key for key, (asker, _) in self._asked.items() if asker is seat]:
            del self._asked[key]

    def end(self, error: CollectivesError) -> None:
        for seat, _ in self._asked.values():
            seat.end(error)
