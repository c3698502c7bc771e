"""The agent: a thread that carries messages between a peer's core and the coordinator.

It decides nothing. The core seals, and the agent takes its report to the coordinator; the
coordinator decides, and the agent takes its record to the core. Whatever was not acknowledged is
sent again. The thread sleeps in one poll over the connection, the core's event descriptor and a
wake-up pipe, so nothing waits for a turn: recovery takes as long as the messages do.

A peer has one agent for all its groups: the one that it joined, and those that were split off it.
The agent is never on the path of an operation. When it is late, because another thread holds the
interpreter, only a decision is late.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import zmq

from collectives import config, logs, messages
from collectives.control import Connection
from collectives.errors import (
    Closed,
    CollectivesError,
    CoordinatorLost,
    CoordinatorUnreachable,
    Evicted,
    Refused,
)
from collectives.events import Core, Event, Prepared, Ready, Sealed
from collectives.hosts import Hosts
from collectives.joiner import Joiner
from collectives.messages import Epoch, Join
from collectives.openings import Openings
from collectives.seat import Seat

__all__ = ["Agent", "Core", "Event", "Prepared", "Ready", "Sealed"]

log = logging.getLogger("collectives.agent")

REPORT_S = 0.5
PING_S = 1.0
CLOSE_S = 1.0


class Agent:
    """Joins a group for one core and keeps it in there.

    Args:
        core: see `Core`. It must outlive the agent.
        url: of the coordinator, ``cc://host:port``.
        join: the JOIN to send; its address is what other peers dial.
        timeouts: `connect` and `coordinator_lost` are used.
        on_epoch: called by the agent's thread after each installed record of the joined group.

    Attributes:
        root: this peer's place in the group that it joined.
    """

    def __init__(
        self,
        core: Core,
        url: str,
        join: Join,
        timeouts: config.Timeouts = config.LAN,
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> None:
        config.parse_url(url)
        self.root = Seat()
        self._core = core
        self._url = url
        self._join = join
        self._timeouts = timeouts
        self._on_epoch = on_epoch
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._main, name="cc-agent", daemon=True)
        self._closing = threading.Event()
        self._requests: deque[Callable[[], None]] = deque()  # of other threads
        self._pipe_lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # What only the thread touches:
        self._link: Connection | None = None
        self._hosts = Hosts()
        self._joiner = Joiner(core, join, self._hosts.resolved)
        self._seats: dict[int, Seat] = {}
        self._openings = Openings()
        self._next_ping = 0.0
        _live.add(self)

    # ---- for any thread --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts to join. Raises nothing: what goes wrong, `wait_joined` tells."""
        self._thread.start()

    def wait_joined(self, timeout: float | None = None) -> Epoch:
        """Waits until this peer is a member, and returns the first record.

        Raises:
            CoordinatorUnreachable: nobody answered at the URL within `timeouts.connect`.
            Refused: the coordinator does not let this peer in, and why.
            TimedOut: the group did not form, or nobody admitted this peer, in `timeout` seconds.
            Closed: the agent was closed meanwhile, or belongs to the parent process.
        """
        self._check_process()
        return self.root.wait_member(
            timeout, lambda: self._joiner.waiting_for(self._url, timeout or 0.0)
        )

    def open_subgroup(
        self, parent: Seat, members: Sequence[bytes], key: bytes, timeout: float | None = None
    ) -> Seat:
        """A place in a group of these members of `parent`, once all of them that live have asked
        for it with the same 16-byte key. Rank r is the r-th of those.

        Raises:
            Refused: the coordinator does not let this peer in, and why.
            TimedOut: not all members asked in `timeout` seconds.
            Closed, Evicted, CoordinatorLost: this peer is in no group any more.
        """
        self._check_process()
        seat = Seat(self.root)
        request = messages.Subgroup(parent.group, key, tuple(members))
        self._ask(partial(self._open, seat, request))
        try:
            seat.wait_member(
                timeout,
                lambda: (
                    f"a subgroup of {len(members)} did not form in {timeout or 0.0:g} s: not "
                    "all of its members called for it, with the same ranks"
                ),
            )
        except BaseException:
            self.close_subgroup(seat)
            raise
        return seat

    def close_subgroup(self, seat: Seat) -> None:
        """Ends this peer's part in a subgroup, and tells its members. May be called again."""
        seat.end(Closed("the communicator is closed"))
        if self._pid == os.getpid():
            told = seat.group
            if told:
                self._core.close_group(told)
            self._ask(partial(self._forget, seat, told))

    def close(self) -> None:
        """Says goodbye to the coordinator and ends the thread, within a second. May be called
        again, from any thread, and in a forked child, where it does nothing."""
        if self._pid != os.getpid():
            return
        self._closing.set()
        if self._thread.ident is None:
            self._close_pipe()
        else:
            self._wake()
            if self._thread is not threading.current_thread():
                self._thread.join(CLOSE_S)
        self.root.end(Closed("the communicator is closed"))

    leave = close

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise Closed("this communicator belongs to the parent of this process")

    def _ask(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        self._wake()

    def _wake(self) -> None:
        with self._pipe_lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if self._wake_write >= 0:
                os.write(self._wake_write, b"x")

    def _close_pipe(self) -> None:
        with self._pipe_lock:
            _live.discard(self)
            if self._wake_write >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    # ---- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._run()
            self._end(None, Closed("the communicator is closed"))
        except CollectivesError as error:
            self._end("CLOSED" if self.root.current is None else "COORDINATOR_LOST", error)
        except Exception as error:  # a fault of ours must not leave operations waiting forever
            log.exception("the agent failed")
            self._end("COORDINATOR_LOST", CollectivesError(f"the agent failed: {error!r}"))
        finally:
            link, self._link = self._link, None
            if link is not None:
                link.close()
            self._close_pipe()

    def _run(self) -> None:
        try:
            self._link = link = Connection(self._url, self._join.id)
        except OSError as error:
            raise CoordinatorUnreachable(
                f"the coordinator at {self._url} cannot be reached: {error}"
            ) from None
        poller = zmq.Poller()
        for source in (*link.sources, self._core.fd(), self._wake_read):
            poller.register(source, zmq.POLLIN)
        started = link.heard_at = time.monotonic()
        while self.root.ended is None:
            now = time.monotonic()
            wanted = self._timers(link, now)
            if self._joiner.welcome is None:
                wanted = min(wanted, started + self._timeouts.connect)
                if now >= started + self._timeouts.connect:
                    raise CoordinatorUnreachable(link.why_silent(self._timeouts.connect))
            ready = dict(poller.poll(max(0, int((wanted - now) * 1000) + 1)))
            if self._closing.is_set():
                link.send(messages.Bye())
                return
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            while self._requests:
                self._requests.popleft()()
            if link.look():
                self._say_all_again()
            self._take_events(link)
            for message in link.receive():
                self._take(link, message)
                self._take_events(link)

    def _say_all_again(self) -> None:
        """What was sent before may have been lost with the old connection."""
        self._joiner.again()
        self._openings.again()
        self._next_ping = 0.0
        for seat in self._seats.values():
            seat.next_report = 0.0

    def _timers(self, link: Connection, now: float) -> float:
        """Sends what is due and returns when the next thing will be."""
        times = []
        if self.root.current is None:
            times.append(self._joiner.tick(link, now))
        if now >= self._next_ping:
            if link.is_up:  # or they would only queue up
                link.send(messages.Ping())
            self._next_ping = now + PING_S
        times.append(self._next_ping)
        if self._openings:
            times.append(self._openings.tick(link, now))
        for seat in self._seats.values():
            if seat.report is not None:
                times.append(self._report_again(link, seat, seat.report, now))
        return min(times)

    def _report_again(
        self, link: Connection, seat: Seat, report: messages.Report, now: float
    ) -> float:
        lost_at = max(link.heard_at, seat.report_since) + self._timeouts.coordinator_lost
        if now >= lost_at:
            raise CoordinatorLost(
                f"the coordinator at {self._url} was not heard for "
                f"{self._timeouts.coordinator_lost:g} s while a decision was outstanding; what "
                "became of the open operations is unknown"
            )
        if now >= seat.next_report:
            link.send(report)
            seat.next_report = now + REPORT_S
        return min(seat.next_report, lost_at)

    def _take_events(self, link: Connection) -> None:
        """Takes all events out of the core and acts on them at once."""
        while self.root.ended is None and (event := self._core.next_event()) is not None:
            if isinstance(event, Sealed):
                seat, report = self._seats.get(event.report.group), event.report
                known = seat.report if seat else None
                if seat and seat.take_report(report, time.monotonic(), REPORT_S):
                    link.send(report)
                    if report != known:
                        self._tell(seat, logs.report_text, report, seat.current)
            elif isinstance(event, Ready):
                seat = self._seats.get(event.group)
                if seat and seat.current and event.epoch == seat.current.epoch:
                    link.send(messages.Installed(event.group, event.epoch, True))
            elif self.root.current is None:
                self._joiner.take_prepared(link, event)

    def _take(self, link: Connection, message: messages.ToPeer) -> None:
        """Acts on a message of the coordinator."""
        if self.root.ended is not None:
            return
        if isinstance(message, messages.Welcome):
            if self.root.current is None:
                self._joiner.take_welcome(link, message)
                self.root.group = message.group
                self._seats[message.group] = self.root
        elif isinstance(message, messages.Refused):
            if self.root.current is None:
                raise Refused(f"the coordinator at {self._url} refused: {message.reason}")
        elif isinstance(message, messages.Opened):
            self._take_opened(message)
        elif isinstance(message, Epoch):
            self._take_epoch(link, message)
        elif isinstance(message, (messages.Seal, messages.Evicted, messages.Pending)):
            seat = self._seats.get(message.group)
            if seat is not None:
                self._take_for(seat, message)
            elif isinstance(message, messages.Seal):
                self._take_foreign(message.group)

    def _take_for(
        self, seat: Seat, message: messages.Seal | messages.Evicted | messages.Pending
    ) -> None:
        if isinstance(message, messages.Evicted):
            if not message.left:  # what is no member of one group is a member of none
                self._end("EVICTED", Evicted(message.reason))
            elif seat is self.root:
                self._end("CLOSED", Closed(message.reason))
            else:
                del self._seats[seat.group]
                seat.end(Closed(message.reason))
                self._core.expel(seat.group, "CLOSED", message.reason)
        elif seat.current is None:
            return
        elif isinstance(message, messages.Seal):
            if message.epoch == seat.current.epoch:
                self._core.seal(message.group, message.epoch)
        else:
            seat.pending = message.joiners
            self._core.set_pending(message.group, message.joiners)

    def _take_epoch(self, link: Connection, message: Epoch) -> None:
        # The first record needs the token, which is in the WELCOME; both are sent again.
        seat = self._seats.get(message.group)
        if seat is None:
            self._take_foreign(message.group)
            return
        if seat.current is not None and message.epoch <= seat.current.epoch:
            # The coordinator did not hear that it is installed.
            link.send(messages.Installed(message.group, seat.current.epoch, False))
            return
        try:
            record = replace(message, members=tuple(self._hosts.resolved(message.members)))
            self._core.install(record)
        except (OSError, ValueError, CollectivesError) as error:
            if seat.ended is not None:
                return  # it was closed meanwhile
            if seat is not self.root and seat.current is None:  # such as one group too many
                del self._seats[seat.group]
                self._decline(seat.group)
                seat.end(Refused(f"this peer cannot take part in the subgroup: {error}"))
                return
            log.error("epoch %d could not be installed: %s", message.epoch, error)
            link.send(messages.Bye())
            reason = f"this peer cannot take part in epoch {message.epoch}: {error}"
            self._end("EVICTED", Evicted(reason))
            return
        before = seat.current
        seat.take_record(record)
        link.send(messages.Installed(message.group, message.epoch, False))
        self._tell(seat, logs.epoch_text, record, before, self._join.id)
        if seat is self.root and self._on_epoch is not None:
            try:
                self._on_epoch(record)
            except Exception:  # it is the owner's code; the agent goes on
                log.exception("on_epoch failed for epoch %d", message.epoch)

    def _tell(self, seat: Seat, text: Callable[..., str], *about: object) -> None:
        if log.isEnabledFor(logging.INFO):
            name = repr(self._join.group) if seat is self.root else str(seat.group)
            log.info("group %s: %s", name, text(*about))

    # ---- subgroups -------------------------------------------------------------------------------

    def _open(self, seat: Seat, request: messages.Subgroup) -> None:
        assert self._link is not None
        self._openings.ask(self._link, seat, request)

    def _take_opened(self, message: messages.Opened) -> None:
        seat = self._openings.take(message)
        if seat is not None:
            seat.group = message.group
            self._seats[message.group] = seat
        elif message.group and message.group not in self._seats:
            self._decline(message.group)

    def _take_foreign(self, group: int) -> None:
        """The coordinator takes this peer for a member of a group that it closed, and whose BYE got
        lost. While subgroups are being opened it may be one of these."""
        if self.root.current is not None and not self._openings:
            self._decline(group)

    def _decline(self, group: int) -> None:
        """This peer is in no such group any more, whatever the others think."""
        assert self._link is not None
        self._core.close_group(group)
        self._link.send(messages.Bye(group))

    def _forget(self, seat: Seat, told: int) -> None:
        """The seat was closed by its owner, who has told the core of this group number."""
        assert self._link is not None
        self._openings.forget(seat)
        if self._seats.pop(seat.group, None) is None:
            return
        if seat.group != told:
            self._core.close_group(seat.group)
        self._link.send(messages.Bye(seat.group))

    # ---- the end ---------------------------------------------------------------------------------

    def _end(self, status_name: str | None, error: CollectivesError) -> None:
        """This peer is in no group any more: every operation is told, once. Without a status by the
        core itself, which is closed next and says goodbye first."""
        if self.root.ended is None:
            level = logging.INFO if status_name in ("CLOSED", None) else logging.WARNING
            log.log(level, "group %r: this peer is out: %s", self._join.group, error)
        self._openings.end(error)
        for seat in {self.root, *self._seats.values()}:
            if seat.end(error) and status_name is not None:
                self._core.expel(seat.group, status_name, str(error))


_live: weakref.WeakSet[Agent] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has no agent thread; it must not keep the parent's pipes open."""
    for agent in list(_live):
        for descriptor in (agent._wake_read, agent._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _live.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
