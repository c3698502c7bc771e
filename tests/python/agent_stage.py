"""What surrounds an agent in its tests: a fake core, and a coordinator that follows a script."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from collectives import agent as a
from collectives import config
from collectives import messages as m

TIMEOUTS = config.Timeouts(beat=0.05, dead=0.3, connect=2.0, joiner_lost=5.0)
WAIT_S = 10.0


def until(condition: Callable[[], Any]) -> Any:
    """Waits for a condition; there is a thread on the other side."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found


class FakeCore:
    """A core that does nothing but remember."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.reachable = True
        self.known: m.Epoch | None = None  # the record that is said to be installed
        self.network = (0, 0)  # what a rehearsal measures
        self.holding = False  # whether rehearsals last until `rehearsed` is called
        self._events: deque[a.Event] = deque()
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def push(self, event: a.Event) -> None:
        self._events.append(event)
        os.write(self._write, b"x")

    def said(self, what: str) -> list[Any]:
        return [value for name, value in self.told if name == what]

    # ---- collectives.events.Core ----

    def address(self) -> str:
        return "127.0.0.1:5000"

    def set_token(self, token: bytes) -> None:
        self.told.append(("token", token))

    def install(self, epoch: m.Epoch) -> None:
        self.told.append(("install", epoch))

    def record(self, last: m.Epoch) -> m.Epoch | None:
        return self.known

    def prepare(self, serial: int, members: Sequence[m.Member]) -> None:
        self.told.append(("prepare", (serial, tuple(members))))
        if not self.holding:
            self.rehearsed(members[0].id)

    def rehearsed(self, at_fault: bytes = m.NO_PEER) -> None:
        latency_ns, bytes_per_s = self.network
        good = a.Prepared(True, latency_ns=latency_ns, bytes_per_s=bytes_per_s)
        self.push(good if self.reachable else a.Prepared(False, at_fault, "refused"))

    def set_pending(self, group: int, joiners: int) -> None:
        self.told.append(("pending", joiners))

    def seal(self, group: int, epoch: int) -> None:
        self.told.append(("seal", epoch))

    def expel(self, group: int, status_name: str, reason: str) -> None:
        self.told.append(("expel", (status_name, reason)))

    def close_group(self, group: int) -> None:
        self.told.append(("close_group", group))

    def next_event(self) -> a.Event | None:
        if not self._events:
            return None
        os.read(self._read, 1)
        return self._events.popleft()

    def fd(self) -> int:
        return self._read


class Peer:
    """An agent and its fake core."""

    def __init__(self, url: str, letter: str, timeouts: config.Timeouts, **other: Any) -> None:
        self.core = FakeCore()
        self.epochs: list[int] = []
        fields: dict[str, Any] = {
            "version": m.PROTOCOL_VERSION,
            "id": letter.encode() * 16,
            "group": "g",
            "name": letter,
            "rank": None,
            "size": 2,
            "min_size": 1,
            "host": 1,
            "address": self.core.address(),
            "streams": 1,
            "segment_bytes": 64,
        }
        self.join = m.Join(**{**fields, **other})
        self.agent = a.Agent(
            self.core, url, self.join, timeouts, lambda record: self.epochs.append(record.epoch)
        )

    def wait_epoch(self, after: int) -> m.Epoch:
        """The record installed last, once it is newer than this."""

        def newer() -> m.Epoch | None:
            if self.agent.root.ended is not None:
                raise self.agent.root.ended
            current = self.agent.root.current
            return current if current is not None and current.epoch > after else None

        record: m.Epoch = until(newer)
        return record

    def seal(self, **other: Any) -> m.Report:
        current = self.agent.root.current
        assert current is not None
        fields: dict[str, Any] = {
            "group": current.group,
            "epoch": current.epoch,
            "cause": m.Cause.LOST,
            "boundary": 0,
            "wants": 0,
            "lanes": (),
            "evidence": (),
        }
        report = m.Report(**{**fields, **other})
        self.core.push(a.Sealed(report))
        return report


MakePeer = Callable[..., Peer]


class Script:
    """A coordinator that says what the test says."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.router: zmq.Socket[Any] = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.url = f"cc://127.0.0.1:{port}"

    def close(self) -> None:
        self.router.close()
        self.context.term()

    def hear(self, cls: type) -> Any:
        """The next message of that type."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if self.router.poll(100):
                message = m.decode(self.router.recv_multipart()[1])
                if isinstance(message, cls):
                    return message
        raise AssertionError(f"no {cls.__name__} came")

    def say(self, to: Peer, *messages: m.Message) -> None:
        for message in messages:
            self.router.send_multipart([m.identity(to.join.id), m.encode(message)])

    def admit(self, to: Peer, epoch: int = 1, address: str = "127.0.0.1:5000") -> m.Epoch:
        self.hear(m.Join)
        member = m.Member(to.join.id, 0, 1, 1, address, "")
        record = m.Epoch(1, epoch, m.Cause.FORMED, 1, 1, m.NO_PEER, 0, (member,), ())
        self.say(to, m.Welcome(1, 1, b"t" * 16, 0, 0, 1, ()), record)
        assert self.hear(m.Installed) == m.Installed(1, epoch, False)
        return record
