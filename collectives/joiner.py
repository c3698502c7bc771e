"""How a peer gets into its group: JOIN, again and again, and the rehearsal that WELCOME asks for.

docs/protocol.md, section 6, has the rules. All of it is for the courier, but `waiting_for`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from collectives import logs, messages
from collectives.errors import CollectivesError
from collectives.events import Core, Link, Prepared
from collectives.messages import NO_PEER, Join, Member, Welcome

log = logging.getLogger("collectives.agent")


class Joiner:
    """One peer's way into the group of its JOIN.

    Args:
        resolve: makes the addresses of members numeric, or raises OSError.
        repeat_s: the JOIN is said this often.
    """

    def __init__(
        self,
        core: Core,
        join: Join,
        resolve: Callable[[Sequence[Member]], list[Member]],
        repeat_s: float,
    ) -> None:
        self.welcome: Welcome | None = None
        self._core = core
        self._join = join
        self._resolve = resolve
        self._repeat_s = repeat_s
        self._preparing: Welcome | None = None
        self._prepared: messages.Prepared | None = None  # what was said of the last good one
        self._next_join = 0.0

    def again(self) -> None:
        """The connection is a new one: what was sent may have been lost."""
        self._next_join = 0.0

    def tick(self, link: Link, now: float) -> float:
        """Sends the JOIN if it is time to, and returns when it will be again."""
        if now >= self._next_join:
            link.send(self._join)
            self._next_join = now + self._repeat_s
        return self._next_join

    def take_welcome(self, link: Link, message: Welcome) -> None:
        if self.welcome is None or self.welcome.token != message.token:
            self._core.set_token(message.token)
            self._prepared = None  # another coordinator, which counts its own rounds
        if self.welcome is None or self.welcome.waiting != message.waiting:
            log.info("%s", logs.waiting_text(message, self._join))
        before, self.welcome = self._preparing, message
        if before is not None and (before.token, before.round) == (message.token, message.round):
            return
        self._preparing = None  # an earlier round's: whom it waits for may be gone
        if not message.members:
            return  # the next WELCOME comes with the next JOIN, or with the next epoch
        if self._prepared is not None and self._prepared.round == message.round:
            link.send(self._prepared)
            return
        self._preparing = message
        try:
            self._core.prepare(message.serial, self._resolve(message.members))
        except (OSError, ValueError, CollectivesError) as error:
            self.take_prepared(link, Prepared(False, NO_PEER, str(error)))

    def take_prepared(self, link: Link, event: Prepared) -> None:
        about, self._preparing = self._preparing, None
        if about is None:
            return
        said = messages.Prepared(
            group=about.group,
            round=about.round,
            ok=event.ok,
            peer=event.peer,
            reason=event.reason[:512],
            latency_ns=event.latency_ns,
            bytes_per_s=event.bytes_per_s,
        )
        if event.ok:
            self._prepared = said
        link.send(said)

    def waiting_for(self, url: str, seconds: float) -> str:
        """What this peer still waits for, after so long."""
        group, welcome = self._join.group, self.welcome
        if welcome is None:
            return f"no answer from the coordinator at {url} in {seconds:g} s"
        count = len(welcome.members)
        if any(member.id == self._join.id for member in welcome.members):
            return (
                f"group {group!r} did not form in {seconds:g} s: {count} peers are there, but not "
                "all of them have reached each other"
            )
        if welcome.members:
            return (
                f"not admitted to group {group!r} in {seconds:g} s: its {count} members have to "
                "call admit() for that"
            )
        return (
            f"group {group!r} did not form in {seconds:g} s: {welcome.waiting} of "
            f"{self._join.size} peers are there"
        )
