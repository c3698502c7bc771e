"""The coordinator as a process and as a server: real sockets, signals, garbage.

What it decides is tested elsewhere, without a network; here it must come up, say so, serve several
groups, shrug off what is no message, and end when it is told to or its parent dies.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from collectives import config
from collectives import messages as m
from collectives.coordinator.journal import Disk, JournalError
from collectives.coordinator.process import CoordinatorProcess
from collectives.coordinator.server import CoordinatorServer
from collectives.errors import SystemFailure

COMMAND = ("python", "-m", "collectives.cli.main", "coordinator")
ANSWER_MS = 10_000


class Client:
    """A peer's connection, by hand."""

    def __init__(self, url: str, peer: bytes, identity: bytes | None = None) -> None:
        host, port = config.parse_url(url)
        self.peer = peer
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket: zmq.Socket[Any] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        identity = m.identity(peer) if identity is None else identity
        if identity:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        self.socket.connect(f"tcp://{host}:{port}")

    def send(self, message: m.Message) -> None:
        self.socket.send(m.encode(message))

    def receive(self, cls: type) -> Any:
        """The next message of that type."""
        while self.socket.poll(ANSWER_MS):
            message = m.decode(self.socket.recv())
            if isinstance(message, cls):
                return message
        raise AssertionError(f"no {cls.__name__} came")

    def join(self, group: str = "g", **other: Any) -> None:
        fields: dict[str, Any] = {
            "version": m.PROTOCOL_VERSION,
            "id": self.peer,
            "group": group,
            "name": "",
            "rank": None,
            "size": 2,
            "min_size": 1,
            "address": "127.0.0.1:1",
            "host": 1,
            "streams": 1,
            "segment_bytes": 64,
        }
        self.send(m.Join(**{**fields, **other}))

    def rehearse(self) -> None:
        """Waits until it is told whom to reach, and says that it has."""
        while not (welcome := self.receive(m.Welcome)).members:
            pass
        self.send(m.Prepared(welcome.group, welcome.round, True, m.NO_PEER, ""))

    def close(self) -> None:
        self.socket.close()
        self.context.term()


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[Client] = []

    def make(url: str, letter: str, identity: bytes | None = None) -> Client:
        clients.append(Client(url, letter.encode() * 16, identity))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def server() -> Iterator[CoordinatorServer]:
    with CoordinatorServer() as running:
        yield running


def answers(client: Client) -> bool:
    client.send(m.Ping())
    return isinstance(client.receive(m.Pong), m.Pong)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_ready_serves_and_ends_on_a_signal(
    spawn: Any, connect: Connect, number: signal.Signals
) -> None:
    child = spawn(*COMMAND, "--listen", "127.0.0.1:0")
    url = child.wait_for(r"^ready (cc://127\.0\.0\.1:\d+)$")[1]
    assert answers(connect(url, "a"))
    child.signal(number)
    assert child.wait() == 0
    assert child.output == f"ready {url}\n"


def test_logging_goes_elsewhere() -> None:
    """Scripts read standard output: one line, whatever is logged."""
    with CoordinatorProcess("127.0.0.1:0", "--log", "debug") as coordinator:
        assert coordinator.process is not None
        assert coordinator.process.stdout is not None
        coordinator.process.send_signal(signal.SIGTERM)
        assert coordinator.process.stdout.read() == ""
        assert coordinator.stop() == 0


def test_it_ends_with_its_parent(spawn: Any) -> None:
    program = (
        "import time\n"
        "from collectives.coordinator.process import CoordinatorProcess\n"
        "c = CoordinatorProcess().start()\n"
        "print('pid', c.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = spawn("python", "-c", program)
    coordinator = int(parent.wait_for(r"^pid (\d+)")[1])
    parent.signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (
        Path(f"/proc/{coordinator}").exists()
        and b"coordinator" in Path(f"/proc/{coordinator}/cmdline").read_bytes()
    ):
        assert time.monotonic() < deadline, "the coordinator outlived its parent"
        os.sched_yield()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "0.0.0.0:0"), "--insecure"),
        (("--listen", "nonsense"), "host:port"),
        (("--listen", "127.0.0.1:99999"), "port"),
        (("--listen", "no-such-host.invalid:0"), "no-such-host.invalid"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    spawn: Any, arguments: tuple[str], words: str
) -> None:
    child = spawn(*COMMAND, *arguments)
    assert child.wait() == 1
    assert words in child.output
    assert child.output.count("\n") == 1


def test_a_port_in_use(server: CoordinatorServer) -> None:
    second = CoordinatorServer(server.url.removeprefix("cc://"))
    with pytest.raises(SystemFailure, match="cannot listen"):
        second.start()
    second.stop()


def test_what_cannot_be_written_down_is_not_said(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The disk is full: the coordinator ends, and the one who joined last has heard nothing."""

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with CoordinatorServer(journal=tmp_path / "journal") as server:
        first, second = connect(server.url, "a"), connect(server.url, "b")
        first.join()
        assert first.receive(m.Welcome).term == 1
        assert answers(second)
        monkeypatch.setattr(Disk, "sync", fails)
        second.join("another")
        server._thread.join(10)
        assert not server._thread.is_alive()
        assert second.socket.poll(0) == 0
        assert isinstance(server._error, JournalError)
    told = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert len(told) == 1 and "no space left" in told[0] and str(tmp_path / "journal") in told[0]
    monkeypatch.undo()
    with CoordinatorServer(journal=tmp_path / "journal") as server:
        again = connect(server.url, "a")
        again.join()
        assert again.receive(m.Welcome).term == 2


def test_all_addresses_if_insecure(connect: Connect) -> None:
    with CoordinatorServer("0.0.0.0:0", insecure=True) as server:
        port = config.parse_url(server.url)[1]
        assert answers(connect(f"cc://127.0.0.1:{port}", "a"))


def test_stopping_frees_the_port(connect: Connect) -> None:
    server = CoordinatorServer().start()
    server.stop()
    server.stop()
    with CoordinatorServer(server.url.removeprefix("cc://")) as again:
        assert again.url == server.url
        assert answers(connect(again.url, "a"))


def test_garbage_does_no_harm(server: CoordinatorServer, connect: Connect, seed: int) -> None:
    rng = random.Random(seed)
    where = config.parse_url(server.url)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    sockets = []
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        rng.randbytes(5000),
        b"",
        b"\xff",
        greeting,
        greeting + rng.randbytes(3000),
        greeting + b"\x02" + b"\xff" * 8,  # a frame of 2^64 - 1 bytes
    ):
        raw = socket.create_connection(where, timeout=5)
        raw.sendall(data)
        sockets.append(raw)
    good = m.encode(m.Ping())
    stranger = connect(server.url, "s", identity=b"who is this")
    nobody = connect(server.url, "n", identity=b"")
    peer = connect(server.url, "p")
    for client in (stranger, nobody, peer):
        client.socket.send(rng.randbytes(200))
        client.socket.send(b"")
        client.socket.send_multipart([b"", good])
        client.socket.send_multipart([good] * 5)
        client.socket.send(msgpack.packb({"type": "join"}))
        client.socket.send(m.encode(m.Pong()))
    assert answers(peer)
    assert stranger.socket.poll(0) == 0
    for raw in sockets:
        raw.close()
    assert answers(connect(server.url, "q"))


def test_a_message_too_long_costs_only_its_sender(
    server: CoordinatorServer, connect: Connect
) -> None:
    sender, other = connect(server.url, "a"), connect(server.url, "b")
    sender.socket.send(bytes(4 << 20))
    assert answers(other)
    assert answers(sender)  # on a new connection


def test_two_groups_form_beside_each_other(server: CoordinatorServer, connect: Connect) -> None:
    clients = {letter: connect(server.url, letter) for letter in "abcd"}
    for letter, client in clients.items():
        client.join("one" if letter in "ac" else "two")
    for client in clients.values():
        client.rehearse()
    records = {letter: client.receive(m.Epoch) for letter, client in clients.items()}
    assert records["a"] == records["c"]
    assert records["b"] == records["d"]
    assert {member.id[:1] for member in records["a"].members} == {b"a", b"c"}
    assert {member.id[:1] for member in records["b"].members} == {b"b", b"d"}
    assert records["a"].group != records["b"].group


def test_another_version_is_told_so(server: CoordinatorServer, connect: Connect) -> None:
    client = connect(server.url, "a")
    client.socket.send(msgpack.packb({"type": "join", "version": 99, "news": [1, {"x": None}]}))
    reason = client.receive(m.Refused).reason
    assert "version 99" in reason
    assert f"version {m.PROTOCOL_VERSION}" in reason


def test_a_peer_may_not_speak_for_another(server: CoordinatorServer, connect: Connect) -> None:
    client = connect(server.url, "a")
    client.join(id=b"z" * 16)
    assert "another peer" in client.receive(m.Refused).reason


def test_what_is_not_acknowledged_is_sent_again(
    server: CoordinatorServer, connect: Connect
) -> None:
    first, second = connect(server.url, "a"), connect(server.url, "b")
    first.join()
    second.join()
    first.rehearse()
    second.rehearse()
    record = first.receive(m.Epoch)
    assert first.receive(m.Epoch) == record


def test_a_peer_that_connects_again_is_found_again(
    server: CoordinatorServer, connect: Connect
) -> None:
    """Its old connection may still look alive: the new one takes over."""
    old = connect(server.url, "a")
    old.join()
    old.receive(m.Welcome)
    new = connect(server.url, "a")
    new.join()
    assert new.receive(m.Welcome).waiting == 1
    other = connect(server.url, "b")
    other.join()
    new.rehearse()
    other.rehearse()
    assert len(new.receive(m.Epoch).members) == 2
