"""The agent: the thread that drives a peer's courier, and what other threads ask of it.

The thread sleeps in one poll over the connection to the coordinator, the core's event descriptor
and a wake-up pipe, so nothing waits for a turn: recovery takes as long as the messages do. What it
says and does then is in `collectives.courier`.

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
from functools import partial

import zmq

from collectives import config, messages
from collectives.control import Connection
from collectives.courier import Courier
from collectives.errors import Closed, CollectivesError, CoordinatorUnreachable
from collectives.events import Core, Event, Prepared, Ready, Sealed
from collectives.hosts import Hosts
from collectives.messages import Epoch, Join
from collectives.seat import Seat

__all__ = ["Agent", "Core", "Event", "Prepared", "Ready", "Sealed"]

log = logging.getLogger("collectives.agent")


class Agent:
    """Joins a group for one core and keeps it in there.

    Args:
        core: see `Core`. It must outlive the agent.
        url: of the coordinator, ``cc://host:port``.
        join: the JOIN to send; its address is what other peers dial.
        timeouts: those between peer and coordinator are used.
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
        self._courier = Courier(core, url, join, timeouts, Hosts().resolved, on_epoch)
        self.root = self._courier.root
        self._core = core
        self._url = url
        self._peer = join.id
        self._timeouts = timeouts
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._main, name="cc-agent", daemon=True)
        self._closing = threading.Event()
        self._requests: deque[Callable[[], None]] = deque()  # of other threads
        self._pipe_lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
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
            timeout, lambda: self._courier.joiner.waiting_for(self._url, timeout or 0.0)
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
        self._ask(partial(self._courier.open, seat, request))
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
            self._ask(partial(self._courier.forget, seat, told))

    def close(self) -> None:
        """Says goodbye to the coordinator and ends the thread, within `timeouts.linger`. May be
        called again, from any thread, and in a forked child, where it does nothing."""
        if self._pid != os.getpid():
            return
        self._closing.set()
        if self._thread.ident is None:
            self._close_pipe()
        else:
            self._wake()
            if self._thread is not threading.current_thread():
                self._thread.join(self._timeouts.linger)
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
        courier = self._courier
        try:
            with contextlib.closing(self._connect()) as link:
                self._run(courier, link)
            courier.end(None, Closed("the communicator is closed"))
        except CollectivesError as error:
            courier.fail(error)
        except Exception as error:  # a fault of ours must not leave operations waiting forever
            log.exception("the agent failed")
            courier.end("COORDINATOR_LOST", CollectivesError(f"the agent failed: {error!r}"))
        finally:
            self._close_pipe()

    def _connect(self) -> Connection:
        try:
            return Connection(self._url, self._peer, self._timeouts)
        except OSError as error:
            raise CoordinatorUnreachable(
                f"the coordinator at {self._url} cannot be reached: {error}"
            ) from None

    def _run(self, courier: Courier, link: Connection) -> None:
        poller = zmq.Poller()
        for source in (*link.sources, self._core.fd(), self._wake_read):
            poller.register(source, zmq.POLLIN)
        courier.start(link, time.monotonic())
        while self.root.ended is None:
            now = time.monotonic()
            wanted = courier.tick(now)
            ready = dict(poller.poll(max(0, int((wanted - now) * 1000) + 1)))
            if self._closing.is_set():
                courier.leave()
                return
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            while self._requests:
                self._requests.popleft()()
            if link.look():
                courier.came_up()
            now = time.monotonic()
            courier.take_events(now)
            for message in link.receive():
                courier.take(message, now)


_live: weakref.WeakSet[Agent] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has no agent thread; it must not keep the parent's pipes open."""
    for agent in list(_live):
        for descriptor in (agent._wake_read, agent._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _live.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
