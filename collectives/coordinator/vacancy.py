"""Whether a coordinator that is to end with its job has anybody left.

Who leaves or closes says so, and of a member that dies the others tell. Only when the last ones die
together is nobody left to tell, and silence alone proves nothing: a busy interpreter is silent,
and so is a process that was stopped. So of members that are all silent it is asked whether they are
connected, which is not up to their interpreter.

Time counts only as far as it was looked: what a coordinator did not hear while it was stopped
itself, or starved, says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from collectives.config import Timeouts
from collectives.coordinator.group import Group
from collectives.coordinator.standing import NEVER


class Vacancy:
    """To be asked from the start on, after every few steps, and at `deadline`.

    Args:
        timeouts: `linger`, `ping`, and `joiner_lost` or `coordinator_lost` are used.
        join_within: for how many seconds the first member is waited for; None: `coordinator_lost`.
        is_local: all peers are on this machine, where nothing but its end takes a process its
            connection. Elsewhere they may be cut off: they are waited for as long as they wait for
            a coordinator.
    """

    def __init__(
        self, timeouts: Timeouts, join_within: float | None = None, *, is_local: bool = False
    ) -> None:
        join_within = timeouts.coordinator_lost if join_within is None else join_within
        if not join_within >= 0:  # NaN neither
            raise ValueError(f"join_within must be a number of seconds from 0 on: {join_within}")
        self._lost = timeouts.joiner_lost if is_local else timeouts.coordinator_lost
        self._linger = timeouts.linger  # for what was said last: it may have to be said again
        self._step = timeouts.ping
        self._left = join_within
        self._had_members = False
        self._found: set[tuple[int, int]] | None = None  # epochs that there were at first
        self._looked = NEVER

    def is_over(
        self, groups: Collection[Group], is_connected: Callable[[bytes], bool], now: float
    ) -> bool:
        """Whether nobody is in any of these groups, or waits, and that for long enough."""
        before, self._looked = min(self._looked, now), now
        self._left -= min(now - before, self._step)
        someone_waits = any(group.lobby.joiners for group in groups)
        heard = {peer: s.heard for group in groups for peer, s in group.present.items()}
        epochs = {(group.number, group.roll.epoch) for group in groups if group.roll.epoch}
        self._found = epochs if self._found is None else self._found
        self._had_members |= (
            bool(heard) or epochs != self._found
        )  # or there were since the last look
        if not self._had_members:
            return self._left <= 0 and not someone_waits
        if someone_waits or any(at >= before or is_connected(peer) for peer, at in heard.items()):
            self._left = self._lost
        elif not heard:
            self._left = min(self._left, self._linger)
        return self._left <= 0

    def deadline(self) -> float:
        """When to ask again at the latest."""
        return self._looked + (min(self._left, self._step) if self._left > 0 else self._step)
