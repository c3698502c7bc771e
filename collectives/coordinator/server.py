"""The coordinator on the network: a ZeroMQ ROUTER, asyncio, and the machine of `core`.

All that is decided is decided in `core`; this module only moves messages, tells the time, writes
facts to the journal before anything of their step is sent, and keeps out what is no message. A
message that cannot be delivered is dropped, as ROUTER does: whatever matters is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import zmq
import zmq.asyncio

from collectives import config, logs
from collectives.coordinator.core import GROUPS_MAX, Core, Received, Send, Tick
from collectives.coordinator.journal import Journal, open_or_set_aside
from collectives.coordinator.vacancy import Vacancy
from collectives.errors import CollectivesError, ProtocolError, SystemFailure
from collectives.messages import (
    MESSAGE_BYTES_MAX,
    Bye,
    Epoch,
    Evicted,
    Message,
    Ping,
    Pong,
    Refused,
    Unknown,
    decode,
    encode,
    identity,
    peer_of,
)
from collectives.settings import Settings

log = logging.getLogger("collectives.coordinator")

BATCH_MAX = 64


def listen_address(listen: str, insecure: bool) -> tuple[str, int]:
    """The numeric host and the port to listen on. Raises ValueError if that is not allowed."""
    host, port = config.parse_address(listen)
    host = config.resolve_host(host)
    if not insecure and not config.is_loopback(host):
        raise ValueError(
            f"refusing to listen on {config.format_address(host, port)} without a key: everybody "
            "who reaches that address could join or disturb a run. Listen on 127.0.0.1, or pass "
            "--insecure (insecure=True) where the network can be trusted"
        )
    return host, port


async def serve(
    listen: str = f"127.0.0.1:{config.DEFAULT_PORT}",
    *,
    insecure: bool = False,
    timeouts: config.Timeouts = config.LAN,
    journal: str | os.PathLike[str] | None = None,
    recover: bool = False,
    until_empty: bool = False,
    join_within: float | None = None,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set (or the task is cancelled), or nobody is left.

    Args:
        listen: ``host:port``; port 0 takes any free one.
        insecure: allow an address that other machines reach.
        timeouts: those between peer and coordinator count here, and `dead` and `settle`.
        journal: the file that makes a restart possible; it is made if it is not there. None: the
            groups are lost with the coordinator.
        recover: the journal was lost, or is damaged (then it is set aside): groups that it does not
            have are taken over from their members. What a member did not know to be decided ends
            with `OutcomeUnknown`.
        until_empty: end when all members that there were have left, closed or died, and nobody
            waits to join. Without it `stop` alone ends it.
        join_within: end, then, as well if there was no member for so many seconds. None: for
            `coordinator_lost`.
        on_ready: called with the URL, ``cc://host:port``, once peers can connect.

    Raises:
        ValueError: the address is wrong, or not allowed without a key.
        SystemFailure: nothing can listen there, for example because the port is in use.
        JournalError: the journal is damaged, in use, or cannot be written any more.
    """
    host, port = listen_address(listen, insecure)
    opened = open_or_set_aside if recover else Journal
    book = None if journal is None else opened(journal)
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    try:
        core = _restored(book, timeouts, recover)
        local = config.is_loopback(host)
        vacancy = Vacancy(timeouts, join_within, is_local=local) if until_empty else None
        # Where no network can fail, a connection lasts as long as its process, also a stopped one.
        keepalive = not (until_empty and local)
        port = _bind(router, host, port, timeouts, keepalive)
        url = config.SCHEME + config.format_address(host, port)
        log.info("serving at %s", url)
        if on_ready is not None:
            on_ready(url)
        await _run(_Desk(router, core, book), vacancy, stop or asyncio.Event())
        log.info("stopped")
    finally:
        router.close(linger=0)
        context.term()
        if book is not None:
            book.close()


def _restored(journal: Journal | None, timeouts: config.Timeouts, recover: bool) -> Core:
    """The machine as the journal has it; what it takes to start again is in the journal too."""
    if journal is None:
        log.info("without a journal: if this coordinator ends, its groups cannot go on")
        return Core(random.SystemRandom(), timeouts, recover=recover)
    run = journal.run.hex()[:8]
    core = Core(random.SystemRandom(), timeouts, recover=recover, run=run)
    core.restore(journal.facts, asyncio.get_running_loop().time())
    journal.facts.clear()
    journal.append(core.take_facts())
    log.info("journal %s, run %s: %d groups", journal.path, run, len(core.groups))
    return core


def _bind(
    router: zmq.asyncio.Socket, host: str, port: int, timeouts: config.Timeouts, keepalive: bool
) -> int:
    router.setsockopt(zmq.IPV6, 1 if ":" in host else 0)
    router.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    router.setsockopt(zmq.HANDSHAKE_IVL, config.milliseconds(timeouts.connect))
    # A peer that connects again after its connection broke must not wait for the old one to end.
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # to hear that a peer has no connection
    if keepalive:
        keepalive_ms = config.milliseconds(timeouts.dead)
        router.setsockopt(zmq.HEARTBEAT_IVL, keepalive_ms)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5 * keepalive_ms)
    router.setsockopt(zmq.BACKLOG, 1024)
    try:
        router.bind(f"tcp://{config.format_address(host, port) if port else _any_port(host)}")
    except zmq.ZMQError as error:
        where = config.format_address(host, port)
        raise SystemFailure(f"the coordinator cannot listen on {where}: {error}") from None
    endpoint = router.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


def _any_port(host: str) -> str:
    return f"[{host}]:*" if ":" in host else f"{host}:*"


async def _run(desk: _Desk, vacancy: Vacancy | None, stop: asyncio.Event) -> None:
    """Feeds the machine: what came, and ticks when it wants them, until `stop` is set."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.ensure_future(stop.wait())
    router, core = desk.router, desk.core
    try:
        while not stop.is_set():
            wanted = core.deadline()
            if vacancy is not None:
                if vacancy.is_over(core.groups, desk.reaches, loop.time()):
                    log.info("nobody is left")
                    return
                wanted = min(wanted, vacancy.deadline())
            delay = wanted - loop.time()
            timeout = None if math.isinf(delay) else max(delay, 0)
            polling = asyncio.ensure_future(router.poll())
            await asyncio.wait(
                {polling, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            polling.cancel()
            for _ in range(BATCH_MAX):
                try:
                    frames = await router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                received = _decode(frames)
                if received is not None:
                    await desk.take(received, loop.time())
            if core.deadline() <= loop.time():
                await desk.take(Tick(), loop.time())
    finally:
        stopping.cancel()


def _decode(frames: list[bytes]) -> Received | None:
    """The event in what came, or None: anybody may send anything."""
    peer = peer_of(frames[0])
    if peer is None:
        log.debug("dropped a message of a connection that is no peer's")
        return None
    if len(frames) != 2:
        log.debug("dropped a message of %d frames from %s", len(frames) - 1, peer.hex())
        return None
    try:
        return Received(peer, decode(frames[1]))
    except ProtocolError as error:
        log.warning("dropped a message from %s: %s", peer.hex(), error)
        return None


class _Desk:
    """One step after the other: decided, written down, sent."""

    def __init__(self, router: zmq.asyncio.Socket, core: Core, journal: Journal | None) -> None:
        self.router = router
        self.core = core
        self._journal = journal
        self._chronicle = Chronicle(core)
        self._outbox: zmq.Socket[Any] = zmq.Socket.shadow(router)

    def reaches(self, peer: bytes) -> bool:
        """Whether this peer has a connection. Only by sending something can that be found out."""
        pong = replace(Pong(), term=self.core.term)
        try:
            self._outbox.send_multipart([identity(peer), encode(pong)], zmq.NOBLOCK)
        except zmq.Again:  # it takes nothing at present
            return True
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    async def take(self, event: Received | Tick, now: float) -> None:
        """Raises JournalError, and has sent nothing then, if it cannot be written down."""
        if isinstance(event, Received):
            self._chronicle.received(event)
        actions = self.core.step(event, now)
        if self._journal is not None and (facts := self.core.take_facts()):
            self._journal.append(facts)
            if self._journal.is_large and not self.core.is_recovering:
                self._journal.compact(self.core.snapshot())
        await self._send_all(actions)

    async def _send_all(self, actions: list[Send]) -> None:
        encoded: dict[int, bytes] = {}  # one record goes to many
        for action in actions:
            data = encoded.get(id(action.message))
            if data is None:
                data = encoded[id(action.message)] = encode(action.message)
            self._chronicle.sending(action.peer, action.message)
            try:
                await self.router.send_multipart([identity(action.peer), data], zmq.NOBLOCK)
            except zmq.ZMQError as error:  # it will be repeated
                if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):  # a full queue, or none
                    raise


class Chronicle:
    """What the log is told of the messages: each epoch once, and who was sent away."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._epochs: dict[int, Epoch] = {}  # group number -> the epoch told last
        self._strangers: set[str] = set()  # what was said to some

    def received(self, event: Received) -> None:
        if isinstance(event.message, Bye):
            group = event.message.group  # 0: it is in no group any more
            log.info("%s closes%s", self._who(event.peer), f" group {group}" if group else "")
        self._detail("from", event.peer, event.message)

    def sending(self, peer: bytes, message: Message) -> None:
        if isinstance(message, Epoch):
            self._epoch(message)
        elif isinstance(message, (Refused, Evicted)):
            log.info("%s is %s: %s", self._who(peer), message.TYPE, message.reason)
        elif isinstance(message, Unknown) and message.reason not in self._strangers:
            level = logging.WARNING if message.recover else logging.ERROR
            log.log(level, "%s: %s", self._who(peer), message.reason)
            self._strangers.add(message.reason)
            if len(self._strangers) > GROUPS_MAX:
                self._strangers.clear()
        self._detail("to", peer, message)

    def _epoch(self, record: Epoch) -> None:
        before = self._epochs.get(record.group)
        if before is not None and before.epoch >= record.epoch:
            return  # sent to one more, or again
        self._epochs[record.group] = record
        while len(self._epochs) > GROUPS_MAX:
            del self._epochs[next(iter(self._epochs))]
        if log.isEnabledFor(logging.INFO):
            numbers = {group.number: group.name for group in self._core.groups}
            name = numbers.get(record.group, "?")
            log.info("group %r: %s", name, logs.epoch_text(record, before))

    def _who(self, peer: bytes) -> str:
        for record in self._epochs.values():
            for member in record.members:
                if member.id == peer:
                    return logs.member_text(member)
        return f"peer {peer.hex()}"

    def _detail(self, direction: str, peer: bytes, message: Message) -> None:
        if log.isEnabledFor(logging.DEBUG) and not isinstance(message, (Ping, Pong)):
            log.debug("%s %s: %s", direction, peer.hex(), logs.message_text(message))


class CoordinatorServer:
    """A coordinator in a thread of this process, for tests and benchmarks.

    Use it in a `with` statement, or call `start` and `stop`. `url` is what peers connect to.
    Arguments are those of `serve`; by default any free port is taken.
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        *,
        insecure: bool = False,
        timeouts: config.Timeouts = config.LAN,
        journal: str | os.PathLike[str] | None = None,
        recover: bool = False,
    ) -> None:
        self.url = ""
        self._listen = listen
        self._insecure = insecure
        self._timeouts = timeouts
        self._journal = journal
        self._recover = recover
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="cc-coordinator", daemon=True)

    def start(self) -> CoordinatorServer:
        """Returns once peers can connect. Raises what `serve` raises."""
        logs.attach(Settings.resolve().log)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def stop(self) -> None:
        """Ends it and waits for its thread. May be called again."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> CoordinatorServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except (CollectivesError, ValueError, OSError) as error:
            self._error = error
            if self._ready.is_set():  # nobody else tells of it
                log.error("the coordinator has ended: %s", error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def ready(url: str) -> None:
            self.url = url
            self._ready.set()

        await serve(
            self._listen,
            insecure=self._insecure,
            timeouts=self._timeouts,
            journal=self._journal,
            recover=self._recover,
            on_ready=ready,
            stop=self._stop,
        )
