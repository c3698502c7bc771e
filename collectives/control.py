"""A peer's connection to the coordinator: a ZeroMQ DEALER that connects again by itself.

It also listens to the connection's own events, to be able to say why nobody answers: the address
does not answer, it refuses, or what answers is no coordinator.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import typing
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from collectives import config, logs
from collectives.errors import ProtocolError
from collectives.messages import (
    MESSAGE_BYTES_MAX,
    Message,
    Ping,
    Pong,
    ToCoordinator,
    ToPeer,
    decode,
    encode,
    identity,
)

log = logging.getLogger("collectives.agent")

BATCH_MAX = 64
QUEUE_MAX = 64

_lock = threading.Lock()
_context: tuple[int, zmq.Context[Any]] | None = None


def _context_of_this_process() -> zmq.Context[Any]:
    """One ZeroMQ context per process, made when first needed: its threads do not survive a fork,
    so a child must never touch its parent's, not even to end it."""
    global _context
    with _lock:
        if _context is None or _context[0] != os.getpid():
            if _context is not None:
                _abandoned.append(_context[1])
            _context = os.getpid(), zmq.Context()
        return _context[1]


_abandoned: list[zmq.Context[Any]] = []


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _tell(direction: str, message: Message) -> None:
    if log.isEnabledFor(logging.DEBUG) and not isinstance(message, (Ping, Pong)):
        log.debug("%s the coordinator: %s", direction, logs.message_text(message))


class Connection:
    """Not thread-safe: the agent's thread owns it.

    Attributes:
        sources: what to poll for reading: when one is ready, call `look` and `receive`.
    """

    def __init__(self, url: str, peer: bytes, timeouts: config.Timeouts) -> None:
        """Starts to connect. Raises OSError if the host has no address."""
        host, port = config.parse_url(url)
        numeric = config.resolve_host(host)
        self._url = url
        self._state = "no answer"
        self._linger_ms = config.milliseconds(timeouts.linger)
        keepalive_ms = config.milliseconds(timeouts.dead)
        self._socket: zmq.Socket[Any] = _context_of_this_process().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, identity(peer))
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in numeric else 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        self._socket.setsockopt(zmq.RECONNECT_IVL, config.milliseconds(timeouts.beat / 4))
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, config.milliseconds(timeouts.ping))
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, keepalive_ms)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5 * keepalive_ms)
        self._monitor: zmq.Socket[Any] = self._socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_DISCONNECTED
        )
        self.sources = (self._socket, self._monitor)
        self._socket.connect(f"tcp://{config.format_address(numeric, port)}")

    def send(self, message: ToCoordinator) -> None:
        """Sends, or drops it if the queue is full: whatever matters is sent again."""
        _tell("to", message)
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode(message), zmq.NOBLOCK)

    def receive(self) -> Iterator[ToPeer]:
        """What has come. What is no message is dropped."""
        for _ in range(BATCH_MAX):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(b"".join(frames))
            except ProtocolError as error:
                log.warning("dropped a message from the coordinator at %s: %s", self._url, error)
                continue
            _tell("from", message)
            yield typing.cast(ToPeer, message)

    @property
    def is_up(self) -> bool:
        """Whether the other end speaks ZeroMQ, as of the last `look`."""
        return self._state == "greeted"

    def look(self) -> bool:
        """Takes note of what became of the connection; returns whether it came up anew."""
        came_up = False
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return came_up and self.is_up
            if event == zmq.EVENT_DISCONNECTED:  # it is dialled anew by itself
                if self.is_up:
                    log.info("the connection to the coordinator at %s broke", self._url)
                continue
            came_up = came_up or event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                log.info("connected to the coordinator at %s", self._url)
                self._state = "greeted"
            elif event == zmq.EVENT_CONNECTED:
                self._state = "connected"
            elif event == zmq.EVENT_CONNECT_RETRIED:
                # Connected, but never greeted: what is there does not speak ZeroMQ.
                before = self._state
                self._state = "stranger" if before in ("connected", "stranger") else "refused"
            else:
                self._state = "stranger"

    def why_silent(self, seconds: float) -> str:
        """Why nobody answered for so long, and what to do."""
        why = {
            "no answer": "no answer from that address; check host, port, firewall",
            "refused": "the connection was refused: is the coordinator running, on this port?",
            "connected": "something accepts connections there, but it is no coordinator",
            "greeted": "something speaks ZeroMQ there, but did not answer: it is no coordinator, "
            "or it hangs",
            "stranger": "something accepts connections there, but it is no coordinator",
        }[self._state]
        return f"no coordinator at {self._url} in {seconds:g} s: {why}"

    def close(self) -> None:
        """Gives what was sent a moment to leave, in the background."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=self._linger_ms)
