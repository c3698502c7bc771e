"""What the library logs: nothing that nobody asked for, and at info what an operator wants to know.

Goal: a program's output is its own, and `COLLECTIVES_LOG` tells the life of a group. Method: a
program with a coordinator and three peers, of which one goes without a word and another leaves; it
runs with several environments and loggings of its own, and what it printed is read.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from collectives import logs
from collectives import messages as m

PROGRAM = """
import sys, threading
import collectives as cc
from collectives.coordinator.server import CoordinatorServer

def peer(url, rank, name):
    comm = cc.connect(url, group="train", size=3, rank=rank, name=name)
    comm.barrier()
    if name == "goes":
        comm.abort()
        return
    comm.barrier()
    if name == "leaves":
        comm.leave()
    else:
        comm.admit()
        comm.close()

with CoordinatorServer() as server:
    names = ["stays", "leaves", "goes"]
    peers = [threading.Thread(target=peer, args=(server.url, *of)) for of in enumerate(names)]
    for thread in peers:
        thread.start()
    for thread in peers:
        thread.join()
"""
LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ \d+ collectives\.(agent|coordinator) (\w+) (.*)")


def run(program: str, level: str | None) -> str:
    """Its standard error. Nothing ever comes to standard output."""
    env = {} if level is None else {"COLLECTIVES_LOG": level}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path), **env},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("level", [None, "error"])
def test_silent_by_default(level: str | None) -> None:
    """A peer lost, another gone, nothing wrong with the library: no word of it."""
    assert run(PROGRAM, level) == ""


def test_the_life_of_a_group_at_info() -> None:
    found = [LINE.fullmatch(line) for line in run(PROGRAM, "info").splitlines()]
    assert all(found)
    lines = [f"{match[1]} {match[2]} {match[3]}" for match in found if match]
    at = r"at 127\.0\.0\.1:\d+"
    for count, pattern in [
        (1, r"coordinator INFO serving at cc://127\.0\.0\.1:\d+"),
        (3, r"agent INFO connected to the coordinator at cc://127\.0\.0\.1:\d+"),
        (1, r"coordinator INFO group 'train': epoch 1 \(formed\): 3 members"),
        (1, r"agent INFO group 'train': epoch 1 \(formed\): 3 members; this peer is rank 2"),
        (1, rf"coordinator INFO rank 2 'goes' {at} closes"),
        (
            1,
            r"coordinator INFO group 'train': epoch 2 \(lost\): 2 members of 3 ranks; "
            rf"lost: rank 2 'goes' {at}",
        ),
        (
            1,
            r"agent INFO group 'train': epoch 2 \(lost\): 2 members of 3 ranks; "
            rf"lost: rank 2 'goes' {at}; this peer is rank 0",
        ),
        (
            1,
            r"agent INFO group 'train': epoch 3 \(boundary\): 1 members; "
            rf"left: rank 1 'leaves' {at}; this peer is rank 0",
        ),
        (3, r"agent INFO group 'train': this peer is out: .*"),
        (1, r"coordinator INFO stopped"),
    ]:
        told = [line for line in lines if re.fullmatch(pattern, line)]
        assert len(told) == count, (pattern, lines)
    # One peer sees it at least; the other may have been told before, or find out more later.
    why = r"agent INFO group 'train': epoch 1 is sealed \(lost\); rank 2 'goes' .*: \w+"
    assert any(re.fullmatch(why, line) for line in lines), lines


def test_details_at_debug_and_no_secrets() -> None:
    token = b"THE RUN'S SECRET"
    chosen = f"lambda self, bits: int.from_bytes({token!r}, 'big')"
    known = f"import random\nrandom.SystemRandom.getrandbits = {chosen}\n"
    output = run(known + PROGRAM, "debug")
    assert re.search(r"agent DEBUG to the coordinator: join version=\d+ group=train name=", output)
    assert re.search(r"coordinator DEBUG to \w+: welcome .*waiting=\d", output)
    assert "ping" not in output
    for secret in (token.hex(), repr(token), token.decode(), str(int.from_bytes(token, "big"))):
        assert secret not in output


@pytest.mark.parametrize(
    "setup",
    [
        "logging.basicConfig(format='MINE %(message)s')",
        "logging.basicConfig(format='MINE %(message)s', filename='/dev/null')",
        "logging.getLogger('collectives').addHandler(logging.StreamHandler())",
        "logging.getLogger().addHandler(logging.NullHandler())",
    ],
)
def test_a_program_that_logs_gets_each_line_once(setup: str) -> None:
    output = run(f"import logging\n{setup}\n{PROGRAM}", "info")
    assert output.count("epoch 3 (boundary)") == 2  # of the coordinator and of a peer
    assert ("MINE" in output) == ("MINE" in setup and "filename" not in setup)


def test_a_program_may_ask_by_itself() -> None:
    ask = "import logging\nlogging.basicConfig(level=logging.INFO, format='MINE %(message)s')\n"
    output = run(ask + PROGRAM, None)
    assert output.count("epoch 3 (boundary)") == 2
    assert all(line.startswith("MINE") for line in output.splitlines())


def test_a_coordinator_that_goes_and_comes() -> None:
    """The connection is told when it breaks and when it is there again."""
    program = """
import logging, threading
from collectives.coordinator.server import CoordinatorServer
import collectives as cc
class Watch(logging.Handler):
    def __init__(self):
        super().__init__()
        self.seen = {word: threading.Event() for word in ("broke", "connected")}
    def emit(self, record):
        for word, event in self.seen.items():
            if word in record.getMessage():
                event.set()
watch = Watch()
logging.getLogger("collectives.agent").addHandler(watch)
first = CoordinatorServer().start()
with cc.connect(first.url) as comm:
    first.stop()
    assert watch.seen["broke"].wait(20)
    watch.seen["connected"].clear()
    with CoordinatorServer(first.url.removeprefix("cc://")):
        assert watch.seen["connected"].wait(20)
        comm.close()
"""
    lines = [line.split(" ", 3)[3] for line in run(program, "info").splitlines()]
    told = [re.sub(r"cc://\S+", "URL", line) for line in lines if "the coordinator" in line]
    assert told == [
        "collectives.agent INFO connected to the coordinator at URL",
        "collectives.agent INFO the connection to the coordinator at URL broke",
        "collectives.agent INFO connected to the coordinator at URL",
    ]


def member(rank: int, name: str = "") -> m.Member:
    return m.Member(bytes([rank + 1] * 16), rank, rank + 1, 7, f"10.0.0.{rank + 1}:99", name)


def epoch(number: int, cause: m.Cause, *members: m.Member, detail: str = "") -> m.Epoch:
    return m.Epoch(1, number, cause, 20, 1, m.NO_PEER, 0, members, (), detail)


def test_texts() -> None:
    few = epoch(4, m.Cause.BOUNDARY, member(0, "a"), member(2))
    many = epoch(5, m.Cause.BOUNDARY, *(member(rank) for rank in range(12)), detail="why")
    text = logs.epoch_text(many, few)
    assert text.startswith("epoch 5 (boundary): 12 members of 20 ranks; joined: rank 1 at 10.0.0.2")
    assert text.endswith(" and 2 more; why") and "left" not in text
    text = logs.epoch_text(few, many, member(2).id)
    assert "left: rank 1 at" in text and text.endswith("; this peer is rank 2")
    assert "lost" in logs.epoch_text(epoch(6, m.Cause.LINK, member(2)), few)
    lanes: tuple[m.LaneReport, ...] = ()
    evidence = (m.Evidence(member(2).id, m.EvidenceKind.SILENT), m.Evidence(b"?" * 16, 1))
    report = m.Report(1, 4, m.Cause.LOST, 0, 0, lanes, evidence)
    text = logs.report_text(report, few)
    assert text == "epoch 4 is sealed (lost); rank 2 at 10.0.0.3:99: silent"
    welcome = m.Welcome(1, 2, b"secret of 16 byt", 0, 7, 3, ())
    assert "secret" not in logs.message_text(welcome)
    text = "welcome term=0 group=1 serial=2 epoch=0 round=7 waiting=3 0 members"
    assert logs.message_text(welcome) == text


def test_texts_of_stragglers() -> None:
    few = [member(1, "a"), member(2)]
    text = logs.waits_text("barrier()", 12, 30.2, few[:1], 1, True)
    assert text == (
        "operation 12, barrier(), has waited 30 s for rank 1 ('a'), which has not called it yet"
    )
    text = logs.waits_text("barrier()", 12, 60.1, few, 2, False)
    assert text.endswith("for rank 1 ('a'), rank 2, which called it and do not move")
    many = [member(rank) for rank in range(12)]
    text = logs.waits_text("barrier()", 1, 9.0, many, 40, True)
    assert text.endswith(", rank 7 and 32 more, which have not called it yet")


def test_levels_can_change(monkeypatch) -> None:
    logger = logging.getLogger("collectives")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logs, "_handler", None)
    level = logger.level
    try:
        before = len(logger.handlers)
        logs.attach(None)
        assert len(logger.handlers) == before and logger.level == level
        for name in ("info", "error", "debug"):
            logs.attach(name)
            assert logger.level == getattr(logging, name.upper())
            assert len(logger.handlers) == before + 1
    finally:
        logger.setLevel(level)
