"""The agent: a thread that carries messages between a peer's core and the coordinator.

It decides nothing. The core seals, and the agent takes its report to the coordinator; the
coordinator decides, and the agent takes its record to the core. Whatever was not acknowledged is
sent again. The thread sleeps in one poll over the connection, the core's event descriptor and a
wake-up pipe, so nothing waits for a turn: recovery takes as long as the messages do.

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
from collections.abc import Callable, Sequence
from dataclasses import replace

import zmq

from collectives import config, messages
from collectives.control import Connection
from collectives.errors import (
    Closed,
    CollectivesError,
    CoordinatorLost,
    CoordinatorUnreachable,
    Evicted,
    Refused,
    TimedOut,
)
from collectives.events import Core, Event, Prepared, Ready, Sealed
from collectives.messages import NO_PEER, Epoch, Join, Member, Report, Welcome

__all__ = ["Agent", "Core", "Event", "Prepared", "Ready", "Sealed"]

log = logging.getLogger("collectives.agent")

JOIN_S = 1.0
REPORT_S = 0.5
PING_S = 1.0
WAIT_SLICE_S = 0.1
CLOSE_S = 1.0


class Agent:
    """Joins a group for one core and keeps it in there.

    Args:
        core: see `Core`. It must outlive the agent.
        url: of the coordinator, ``cc://host:port``.
        join: the JOIN to send; its address is what other peers dial.
        timeouts: `connect` and `coordinator_lost` are used.
        on_epoch: called by the agent's thread after each installed record.

    Attributes:
        current: the record installed last, or None. Host names in it are resolved.
        pending: how many joiners are ready to be admitted.
        ended: why this peer is in no group any more, or None.
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
        self.current: Epoch | None = None
        self.pending = 0
        self.ended: CollectivesError | None = None
        self._core = core
        self._url = url
        self._join = join
        self._timeouts = timeouts
        self._on_epoch = on_epoch
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._main, name="cc-agent", daemon=True)
        self._changed = threading.Event()  # joined, or ended before that
        self._installed = threading.Event()  # `current` is a new one
        self._closing = threading.Event()
        self._pipe_lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # What only the thread touches:
        self._link: Connection | None = None
        self._welcome: Welcome | None = None
        self._preparing: Welcome | None = None
        self._prepared: Welcome | None = None
        self._report: Report | None = None
        self._report_since = 0.0
        self._next_join = self._next_ping = self._next_report = 0.0
        self._hosts: dict[str, str] = {}
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
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._pid != os.getpid():
                raise Closed("this communicator belongs to the parent of this process")
            if self.current is not None:
                return self.current
            if self.ended is not None:
                raise self.ended
            left = WAIT_SLICE_S if until is None else min(until - time.monotonic(), WAIT_SLICE_S)
            if left <= 0:
                raise TimedOut(self._waiting_for(timeout or 0.0))
            # In slices, so that Ctrl-C is noticed.
            self._changed.wait(left)

    def wait_epoch(self, after: int) -> Epoch:
        """Waits until a record newer than epoch `after` is installed, and returns it. Raises why
        this peer is in no group any more."""
        while True:
            record = self.current
            if record is not None and record.epoch > after:
                return record
            if self.ended is not None:
                raise self.ended
            self._installed.clear()
            if self.current is record:
                self._installed.wait(WAIT_SLICE_S)

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
        if self.ended is None:
            self.ended = Closed("the communicator is closed")
        self._changed.set()

    leave = close

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

    def _waiting_for(self, timeout: float) -> str:
        group, welcome = self._join.group, self._welcome
        if welcome is None:
            return f"no answer from the coordinator at {self._url} in {timeout:g} s"
        if welcome.members:
            return (
                f"not admitted to group {group!r} in {timeout:g} s: its {len(welcome.members)} "
                "members have to call admit() for that"
            )
        return (
            f"group {group!r} did not form in {timeout:g} s: {welcome.waiting} of "
            f"{self._join.size} peers are there"
        )

    # ---- the thread ------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._run()
        except CollectivesError as error:
            self._end("CLOSED" if self.current is None else "COORDINATOR_LOST", error)
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
        while self.ended is None:
            now = time.monotonic()
            wanted = self._timers(now)
            if self._welcome is None:
                wanted = min(wanted, started + self._timeouts.connect)
                if now >= started + self._timeouts.connect:
                    raise CoordinatorUnreachable(link.why_silent(self._timeouts.connect))
            poller.poll(max(0, int((wanted - now) * 1000) + 1))
            if self._closing.is_set():
                link.send(messages.Bye())
                return
            if link.look():
                # What was sent before may have been lost with the old connection.
                self._next_join = self._next_ping = self._next_report = 0.0
            self._take_events()
            for message in link.receive():
                self._take(message)
                self._take_events()

    def _timers(self, now: float) -> float:
        """Sends what is due and returns when the next thing will be."""
        assert self._link is not None
        times = []
        if self.current is None:
            if now >= self._next_join:
                self._link.send(self._join)
                self._next_join = now + JOIN_S
            times.append(self._next_join)
        if now >= self._next_ping:
            if self._link.is_up:  # or they would only queue up
                self._link.send(messages.Ping())
            self._next_ping = now + PING_S
        times.append(self._next_ping)
        if self._report is not None:
            lost_at = max(self._link.heard_at, self._report_since) + self._timeouts.coordinator_lost
            if now >= lost_at:
                raise CoordinatorLost(
                    f"the coordinator at {self._url} was not heard for "
                    f"{self._timeouts.coordinator_lost:g} s while a decision was outstanding; what "
                    "became of the open operations is unknown"
                )
            if now >= self._next_report:
                self._link.send(self._report)
                self._next_report = now + REPORT_S
            times += [self._next_report, lost_at]
        return min(times)

    def _take_events(self) -> None:
        """Takes all events out of the core and acts on them at once."""
        assert self._link is not None
        while self.ended is None and (event := self._core.next_event()) is not None:
            if isinstance(event, Sealed):
                report = event.report
                if self.current is None or report.epoch < self.current.epoch:
                    continue
                now = time.monotonic()
                if self._report is None or self._report.epoch != report.epoch:
                    self._report_since = now
                self._report, self._next_report = report, now + REPORT_S
                self._link.send(report)
            elif isinstance(event, Ready):
                if self.current is not None and event.epoch == self.current.epoch:
                    self._link.send(messages.Installed(self.current.group, event.epoch, True))
            else:
                self._take_prepared(event)

    def _take(self, message: messages.ToPeer) -> None:
        """Acts on a message of the coordinator."""
        if self.ended is not None:
            return
        if isinstance(message, Welcome):
            self._take_welcome(message)
        elif isinstance(message, messages.Refused):
            if self.current is None:
                raise Refused(f"the coordinator at {self._url} refused: {message.reason}")
        elif isinstance(message, Epoch):
            self._take_epoch(message)
        elif isinstance(message, messages.Seal):
            if self.current is not None and message.epoch == self.current.epoch:
                self._core.seal(message.epoch)
        elif isinstance(message, messages.Evicted):
            if self._welcome is None or message.group == self._welcome.group:
                status = "CLOSED" if message.left else "EVICTED"
                self._end(status, (Closed if message.left else Evicted)(message.reason))
        elif isinstance(message, messages.Pending):
            if self.current is None or message.group != self.current.group:
                return
            self.pending = message.joiners
            self._core.set_pending(message.joiners)

    def _take_welcome(self, message: Welcome) -> None:
        assert self._link is not None
        if self.current is not None:
            return
        if self._welcome is None or self._welcome.token != message.token:
            self._core.set_token(message.token)
        self._welcome = message
        if not message.members or self._preparing is not None:
            return  # the next WELCOME comes within a second, or with the next epoch
        if self._prepared is not None and self._prepared.epoch == message.epoch:
            self._link.send(messages.Prepared(message.group, message.epoch, True, NO_PEER, ""))
            return
        self._preparing = message
        try:
            self._core.prepare(message.serial, self._resolved(message.members))
        except (OSError, ValueError, CollectivesError) as error:
            self._take_prepared(Prepared(False, NO_PEER, str(error)))

    def _take_prepared(self, event: Prepared) -> None:
        assert self._link is not None
        about, self._preparing = self._preparing, None
        if about is None or self.current is not None:
            return
        if event.ok:
            self._prepared = about
        self._link.send(
            messages.Prepared(about.group, about.epoch, event.ok, event.peer, event.reason[:512])
        )
        if self._welcome is not None and self._welcome.epoch > about.epoch:
            self._take_welcome(self._welcome)

    def _take_epoch(self, message: Epoch) -> None:
        assert self._link is not None
        # The first record needs the token, which is in the WELCOME; both are sent again.
        if self._welcome is None or message.group != self._welcome.group:
            return
        if self.current is not None and message.epoch <= self.current.epoch:
            # The coordinator did not hear that it is installed.
            self._link.send(messages.Installed(message.group, self.current.epoch, False))
            return
        try:
            record = replace(message, members=tuple(self._resolved(message.members)))
            self._core.install(record)
        except (OSError, ValueError, CollectivesError) as error:
            log.error("epoch %d could not be installed: %s", message.epoch, error)
            self._link.send(messages.Bye())
            reason = f"this peer cannot take part in epoch {message.epoch}: {error}"
            self._end("EVICTED", Evicted(reason))
            return
        if self._report is not None and self._report.epoch < message.epoch:
            self._report = None
        self.current = record
        self._changed.set()
        self._installed.set()
        self._link.send(messages.Installed(message.group, message.epoch, False))
        if self._on_epoch is not None:
            try:
                self._on_epoch(record)
            except Exception:  # it is the owner's code; the agent goes on
                log.exception("on_epoch failed for epoch %d", message.epoch)

    def _resolved(self, members: Sequence[Member]) -> list[Member]:
        """The members with numeric addresses. Raises OSError naming the host that has none."""
        result = []
        for member in members:
            host, port = config.parse_address(member.address)
            if host not in self._hosts:
                self._hosts[host] = config.resolve_host(host)
            address = config.format_address(self._hosts[host], port)
            result.append(member if address == member.address else replace(member, address=address))
        return result

    def _end(self, status_name: str, error: CollectivesError) -> None:
        """This peer is in no group any more: every operation is told, once."""
        if self.ended is None:
            self.ended = error
            self._core.expel(status_name, str(error))
            self._changed.set()
            self._installed.set()


_live: weakref.WeakSet[Agent] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has no agent thread; it must not keep the parent's pipes open."""
    for agent in list(_live):
        for descriptor in (agent._wake_read, agent._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _live.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
