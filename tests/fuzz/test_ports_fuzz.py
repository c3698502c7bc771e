"""Anybody may send anything to a peer's data port and to the coordinator's: here strangers do,
while operations run. Bytes that are no hello are dropped, hellos that are not right are turned
away, and messages that are none are ignored; no operation notices, no epoch changes, nothing is
left open, and newcomers still get in.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))

from cluster import SMALL, Cluster, Worker, results, scaled

import collectives as cc
from collectives import messages

pytestmark = pytest.mark.timeout(60)

HELLO_BYTES = 80
PROBE = 0xFFFF
DIAL, ANSWER, RELAY = 1, 2, 3
UNREACHABLE = 16


def hello(
    *,
    to: bytes,
    token: bytes,
    sender: bytes,
    version: int = 1,
    role: int = DIAL,
    stream: int = 0,
    streams: int = 3,
    segment_bytes: int = 4096,
    link: int = 1,
) -> bytes:
    """A hello as docs/protocol.md, section 2, and transport/handshake.c lay it out."""
    head = struct.pack(
        "<4sIHHHHIIQ", b"CCHI", version, role, 0, stream, streams, segment_bytes, 0, link
    )
    return head + sender + to + token


# ---- in the peers --------------------------------------------------------------------------------


def who(worker: Worker) -> tuple[str, bytes, bytes]:
    """A call: the address that others dial, the id, the token of the run."""
    comm = worker.comm
    me = next(member for member in comm._current().members if member.id == comm._id)
    welcome = comm._agent._courier.joiner.welcome
    assert welcome is not None
    return me.address, comm._id, welcome.token


def work_until_told(worker: Worker, path: str) -> tuple[int, int]:
    """A call: sums until a file is there, all members alike. Any error is one too many."""
    comm, number = worker.comm, 0
    epoch = comm.epoch
    while True:
        number += 1
        x = np.full(3000, float(os.path.exists(path)))
        large = comm.all_reduce(np.full(20_000, number), async_op=True)
        if comm.all_reduce(x, op="max", algorithm="direct")[0]:
            large.wait()
            return number, comm.epoch - epoch
        if number == 1:
            worker.note("begun")
        assert (large.wait() == number * comm.size).all()


def total(worker: Worker) -> int:
    return int(worker.comm.all_reduce(np.array([1]))[0])


def bad_connections(worker: Worker) -> int:
    return worker.comm.stats["bad_connections"]


def descriptors(worker: Worker) -> int:
    return len(os.listdir("/proc/self/fd"))


def admit(worker: Worker) -> int:
    deadline = time.monotonic() + 10
    while not worker.comm.pending:
        assert time.monotonic() < deadline, "the joiner never got ready"
        time.sleep(0.002)
    return len(worker.comm.admit().joined)


def few_descriptors(group: Cluster, before: list[int]) -> None:
    """What strangers opened is closed again, after the connect timeout at the latest."""
    deadline = time.monotonic() + 10
    while True:
        now = group.each(descriptors)
        if all(n <= b for n, b in zip(now, before, strict=True)):
            return
        assert time.monotonic() < deadline, f"descriptors before {before}, now {now}"
        time.sleep(0.05)


Where = list[tuple[tuple[str, int], bytes, bytes]]


def endpoints(group: Cluster) -> Where:
    """Where the peers listen, their ids and the token. Asked before they are at work."""
    found = []
    for address, peer, token in group.each(who):
        host, _, port = address.rpartition(":")
        found.append(((host, int(port)), peer, token))
    return found


@contextmanager
def busy_group(tmp_path: Path, turned_away: int = 0) -> Iterator[tuple[Cluster, Where]]:
    """A group at work, and where its members listen. It must come out of the block as it went in,
    but for at least so many connections that were turned away."""
    with Cluster(3, timeouts=scaled(cc.LAN, connect=1.0), **SMALL) as group:
        where = endpoints(group)
        before = group.each(descriptors)
        stop = tmp_path / "stop"
        calls = group.start(work_until_told, str(stop))
        for peer in group.peers:
            assert peer.wait_note() == "begun"
        try:
            yield group, where
        finally:
            stop.touch()
        ended = results(calls, 20)
        assert len(set(ended)) == 1 and ended[0][0] > 1
        assert ended[0][1] == 0, "the epoch changed"
        few_descriptors(group, before)
        assert sum(group.each(bad_connections)) >= turned_away
        members = list(group.peers)
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=3)
        assert group.each(admit, peers=members) == [1] * 3
        assert joining.result() == 3
        assert group.each(total) == [4] * 4


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{seed} {request.node.name}")


# ---- the data port -------------------------------------------------------------------------------


def say(where: tuple[str, int], data: bytes, *, listen: bool = False) -> bytes:
    """Connects, says something, and hangs up, rudely or after the answer."""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(where, timeout=3) as stranger,
    ):
        stranger.sendall(data)
        if not listen:
            # No goodbye: what is unread is answered with a reset.
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        answer = b""
        while chunk := stranger.recv(4096):
            answer += chunk
        return answer
    return b""


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Cut off, with bytes changed, doubled, or something behind it."""
    changed = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == 1:
        return bytes(changed) + rng.randbytes(rng.randrange(300))
    if kind == 2:
        return bytes(changed) * 3
    return bytes(changed)


def test_noise_on_the_data_port(tmp_path: Path, rng: random.Random) -> None:
    noise = [
        b"",
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"CCHI",
        b"CCHI\x01\x00\x00\x00",
        b"\xcc\x01" + bytes(54),
    ]
    with busy_group(tmp_path, turned_away=100) as (_, where):
        for _ in range(150):
            data = rng.choice([*noise, rng.randbytes(rng.randrange(1, 3000))])
            say(rng.choice(where)[0], data, listen=False)
        for data in noise[1:4]:
            assert say(where[0][0], data, listen=True) == b"", "a stranger got an answer"


def test_mutated_hellos_of_members(tmp_path: Path, rng: random.Random) -> None:
    """As a member, but without the token: nothing of that touches the member's link."""
    with busy_group(tmp_path) as (_, where):
        for number in range(200):
            address, to, _ = rng.choice(where)
            sender = rng.choice(where)[1]
            data = hello(
                to=to,
                token=rng.randbytes(16),
                sender=sender,
                role=rng.choice([DIAL, RELAY]),
                stream=rng.choice([0, 1, 2, 3, PROBE]),
                link=rng.choice([0, 1, 1 << 62, (1 << 64) - 1]),
            )
            if number % 3:
                data = mutated(rng, data)
            say(address, data, listen=False)


def test_hellos_of_strangers_who_know_the_token(tmp_path: Path, rng: random.Random) -> None:
    """They get as far as a link of their own, whatever they send on it."""
    with busy_group(tmp_path) as (_, where):
        for _ in range(60):
            address, to, token = rng.choice(where)
            sender = rng.randbytes(16)
            options = {"to": to, "token": token, "sender": sender, "link": rng.randrange(1, 1000)}
            frames = rng.choice(
                [
                    rng.randbytes(500),
                    b"\xcc\x01" + rng.randbytes(54),
                    b"".join(
                        b"\xcc\x01" + bytes([kind, rng.randrange(16)]) + rng.randbytes(52)
                        for kind in range(1, 17)
                    ),
                    b"",
                ]
            )
            with contextlib.ExitStack() as stack:
                for stream in range(rng.choice([1, 2, 4, 4, 4])):
                    stranger = stack.enter_context(socket.create_connection(address, timeout=3))
                    data = hello(**options, stream=stream)
                    with contextlib.suppress(ConnectionError):
                        stranger.sendall(mutated(rng, data) if rng.random() < 0.2 else data)
                        stranger.sendall(frames)


def test_hellos_to_be_relayed(tmp_path: Path, rng: random.Random) -> None:
    """By those who know the token, to members and to nobody, with noise behind them."""
    with busy_group(tmp_path) as (_, where), contextlib.ExitStack() as stack:
        for number in range(60):
            address, _, token = rng.choice(where)
            data = hello(
                to=rng.choice(where)[1] if number % 2 else rng.randbytes(16),
                token=token,
                sender=rng.randbytes(16),
                role=RELAY,
                stream=rng.choice([0, 1, 2, 3, PROBE]),
                link=rng.randrange(1, 1000),
            )
            if number % 3 == 0:
                say(address, mutated(rng, data), listen=False)
                continue
            stranger = stack.enter_context(socket.create_connection(address, timeout=3))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(data + rng.randbytes(rng.randrange(500)))


def test_wrong_hellos_get_the_right_answer(tmp_path: Path) -> None:
    """Another version is told so; a stranger is turned away without the token."""
    with busy_group(tmp_path) as (_, where):
        address, to, token = where[0]
        me = b"m" * 16
        answer = say(address, hello(to=to, token=token, sender=me, version=9), listen=True)
        assert answer[:4] == b"CCHI" and struct.unpack_from("<I", answer, 4)[0] == 1
        for wrong in (
            {"token": b"?" * 16},
            {"to": b"?" * 16},
            {"streams": 5},
            {"segment_bytes": 8192},
            {"stream": 9},
        ):
            options = {"to": to, "token": token, "sender": me, **wrong}
            answer = say(address, hello(**options), listen=True)
            assert len(answer) == HELLO_BYTES, wrong
            role, status = struct.unpack_from("<HH", answer, 8)
            assert role == ANSWER and status != 0, wrong
            assert token not in answer, f"the token was given to a stranger: {wrong}"
            relayed = say(address, hello(**{**options, "role": RELAY}), listen=True)
            assert len(relayed) == HELLO_BYTES, wrong
            # Who is meant is not for a relay to judge, only whether it knows that peer.
            wanted = UNREACHABLE if "to" in wrong else status
            assert struct.unpack_from("<HH", relayed, 8) == (ANSWER, wanted), wrong
            assert token not in relayed, f"the token was given to a stranger: {wrong}"
        assert say(address, hello(to=to, token=token, sender=me, role=ANSWER), listen=True) == b""


def test_many_connections_that_say_nothing(tmp_path: Path) -> None:
    """More than may be half open at a time; they are dropped after the connect timeout, and a peer
    can still be reached meanwhile and afterwards."""
    with busy_group(tmp_path) as (_, where), contextlib.ExitStack() as stack:
        address = where[0][0]
        for number in range(300):
            with contextlib.suppress(OSError):
                stranger = stack.enter_context(socket.create_connection(address, timeout=3))
                stranger.sendall(b"CCHI"[: number % 5])
        first = stack.enter_context(socket.create_connection(address, timeout=5))
        began = time.monotonic()
        assert first.recv(10) == b""
        assert time.monotonic() - began < 4, "a silent stranger was kept"


# ---- the coordinator's port ----------------------------------------------------------------------


def coordinator_port(group: Cluster) -> tuple[str, int]:
    host, _, port = group.url.removeprefix("cc://").rpartition(":")
    return host, int(port)


def test_noise_on_the_coordinators_port(tmp_path: Path, rng: random.Random) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    with busy_group(tmp_path) as (group, _):
        where = coordinator_port(group)
        for _ in range(100):
            data = rng.choice(
                [
                    rng.randbytes(rng.randrange(2000)),
                    greeting,
                    greeting + rng.randbytes(200),
                    greeting
                    + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
                    + rng.randbytes(99),
                    greeting + b"\x06" + b"\xff" * 8,
                    b"GET / HTTP/1.1\r\n\r\n",
                ]
            )
            say(where, data, listen=False)


def some_messages(rng: random.Random) -> list[bytes]:
    """Right messages, of peers that nobody knows."""
    id_ = rng.randbytes(16)
    join = messages.Join(
        version=messages.PROTOCOL_VERSION,
        id=id_,
        group=rng.choice(["default", "another", "x" * 128]),
        name="stranger",
        rank=rng.choice([None, 0, 5]),
        size=rng.choice([1, 3, 1000]),
        min_size=1,
        address="127.0.0.1:9",
        host=1,
        streams=3,
        segment_bytes=4096,
    )
    report = messages.Report(
        group=1,
        epoch=rng.choice([1, 2, 1 << 40]),
        cause=messages.Cause.LOST,
        boundary=0,
        wants=0,
        lanes=(messages.LaneReport(0, 0, 0, 1 << 50),),
        evidence=(messages.Evidence(rng.randbytes(16), messages.EvidenceKind.REFUSED),),
    )
    return [
        messages.encode(message)
        for message in (
            join,
            report,
            messages.Prepared(1, 1, True, bytes(16), ""),
            messages.Installed(1, 1, True),
            messages.Installed(7, 1, True),
            messages.Ping(),
            messages.Bye(),
        )
    ]


def test_wrong_messages_to_the_coordinator(tmp_path: Path, rng: random.Random) -> None:
    """Mutated messages, right ones of strangers, deep nests, huge claims, strange identities."""
    odd: list[Any] = [
        b"",
        b"\x81\xa4type",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc7\xff\x01" + bytes(255),
        msgpack.packb({"type": "join", "version": 2}),
        msgpack.packb({"type": 5}),
        msgpack.packb({"type": "epoch"}),
        msgpack.packb({b"type": b"ping"}),
    ]
    with busy_group(tmp_path) as (group, _), zmq.Context() as context:
        for number in range(12):
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 200)
                names = [b"P" + rng.randbytes(16), b"P", rng.randbytes(30), b"Q" * 17]
                dealer.setsockopt(zmq.ROUTING_ID, names[0] if number % 2 else rng.choice(names))
                dealer.connect(group.url.replace("cc://", "tcp://"))
                for _ in range(25):
                    data = rng.choice(odd + some_messages(rng))
                    if data and rng.random() < 0.5:
                        data = mutated(rng, data)
                    frames = [data] if rng.random() < 0.9 else [data, b"", data]
                    with contextlib.suppress(zmq.Again):
                        dealer.send_multipart(frames, zmq.NOBLOCK)


def test_a_message_that_is_too_long(tmp_path: Path) -> None:
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        with busy_group(tmp_path) as (group, _):
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.ROUTING_ID, b"P" + b"z" * 16)
            dealer.connect(group.url.replace("cc://", "tcp://"))
            dealer.send(bytes(messages.MESSAGE_BYTES_MAX + 1))
            dealer.send(messages.encode(messages.Ping()))
            dealer.poll(500)
    finally:
        dealer.close()
        context.term()
