"""The flight recorder in groups of real processes.

Goal: what a program did, and a death, can be seen in a trace; a failure leaves one behind; the
traces of peers whose clocks differ come together. Method: peers work and die; every trace is
checked against the format (chrome.py) and against what the peers were told. Clocks are set wrong by
hand, and merging must set them right.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chrome import bars, check, named, operations
from cluster import QUICK, Cluster, Worker, close, results

import collectives as cc
from collectives import trace as recorder
from collectives._core import lib
from collectives.cli.main import main
from collectives.coordinator.server import CoordinatorServer
from collectives.trace_merge import merge

pytestmark = pytest.mark.timeout(60)

CLOCK_AHEAD_US = 1_234_500_000
WALL_WRONG_US = 300_000
"""The time of day of a wrong clock is late by this."""


def sums(worker: Worker, count: int, length: int = 8) -> None:
    """A call: so many sums."""
    x = np.ones(length, np.float32)
    for _ in range(count):
        worker.comm.all_reduce(x)


def trace(worker: Worker) -> dict[str, Any]:
    return worker.comm.trace()


def message(worker: Worker, length: int) -> None:
    """A call: rank 0 sends to rank 1."""
    if worker.comm.rank == 0:
        worker.comm.send(np.ones(length, np.uint8), 1, tag=5)
    elif worker.comm.rank == 1:
        worker.comm.recv(np.empty(length, np.uint8), tag=5)


def in_flight(worker: Worker, count: int) -> None:
    """A call: operations that overlap."""
    works = [worker.comm.all_reduce(np.ones(3000), async_op=True) for _ in range(count)]
    for work in works:
        work.wait()


def one_sum(worker: Worker, retry: bool = True) -> str:
    """A call: how a sum ends."""
    work = worker.comm.all_reduce(np.array([1]), retry=retry, async_op=True)
    worker.note("begun")
    try:
        work.wait()
    except cc.CollectivesError as error:
        return type(error).__name__
    return "ok"


# ---- on demand -----------------------------------------------------------------------------------


def test_what_was_called_is_there(tmp_path: Path) -> None:
    with Cluster(2, name="worker") as group:
        group.each(sums, 5)
        group.each(sums, 2, 1 << 18)
        group.each(message, 100)
        group.each(message, 100_000)
        group.each(in_flight, 10)
        traces = group.each(trace)
        path = tmp_path / "on demand.json"
        group.peers[0].call(write_trace, str(path))
        check(json.loads(path.read_text()))
    for rank, found in enumerate(traces):
        entries = check(found)
        about = found["otherData"]
        assert (about["rank"], about["name"], about["first_event"]) == (rank, "worker", 1)
        assert {entry["pid"] for entry in entries} == {rank}
        done = operations(entries)
        assert [bar["args"]["sequence"] for bar in done] == list(range(1, 18))
        assert {bar["name"] for bar in done} == {"all_reduce"}
        assert [bar["args"]["bytes"] for bar in done] == [32] * 5 + [1 << 20] * 2 + [24000] * 10
        for bar in done:
            args = bar["args"]
            assert (args["status"], args["attempts"], args["epoch"]) == ("ok", 1, 1)
            assert args["algorithm"] not in ("", "auto")
            phases = args["waits_us"] + args["moves_us"] + args["votes_us"]
            assert phases == pytest.approx(bar["dur"], abs=0.01)
        short, long = (bar for bar in bars(entries) if bar["cat"] == "message")
        assert {short["name"], long["name"]} == {("send", "receive")[rank]}
        assert [bar["args"]["bytes"] for bar in (short, long)] == [100, 100_000]
        assert short["args"]["peer"] == f"rank {1 - rank} worker"
        (formed,) = named(entries, "epoch installed")
        assert formed["args"] | {"group": 0} == {
            "group": 0,
            "epoch": 1,
            "cause": "formed",
            "members": 2,
        }
        assert len(named(entries, "link up")) == 1


def write_trace(worker: Worker, path: str) -> None:
    assert worker.comm.trace(path)["otherData"] == json.loads(Path(path).read_text())["otherData"]


def test_a_death_can_be_seen() -> None:
    """Two of three are blocked in a sum when the third one dies."""
    with Cluster(3, name="p") as group:
        group.each(sums, 3)
        calls = group.start(one_sum, peers=group.peers[:2])
        for peer in group.peers[:2]:
            assert peer.wait_note() == "begun"
        group.peers[2].kill()
        assert results(calls) == ["ok"] * 2
        both = [check(found) for found in group.each(trace, peers=group.peers[:2])]
        # Who is told to seal may drop the link before it sees that it broke.
        broken = [entry for entries in both for entry in named(entries, "link lost")]
        assert broken and {entry["args"]["peer"] for entry in broken} == {"rank 2 p"}
        assert {entry["args"]["evidence"] for entry in broken} <= {"closed", "refused"}
        for entries in both:
            (sealed,) = named(entries, "sealed")
            assert (sealed["args"]["cause"], sealed["args"]["epoch"]) == ("lost", 1)
            assert named(entries, "reported")
            installed = named(entries, "epoch installed")
            assert [e["args"]["cause"] for e in installed] == ["formed", "lost"]
            assert installed[1]["args"]["members"] == 2
            (again,) = named(entries, "begun again")
            last = operations(entries)[-1]
            assert last["args"] | {"attempts": 2, "epoch": 2, "status": "ok"} == last["args"]
            assert last["ts"] < sealed["ts"] < installed[1]["ts"] <= again["ts"]
            assert again["ts"] < last["ts"] + last["dur"]


def test_an_open_operation_and_after_close() -> None:
    with Cluster(2) as group:
        call = group.peers[0].start(one_sum)
        assert group.peers[0].wait_note() == "begun"
        # The other thread of that peer is blocked: look after the operation is over.
        group.peers[1].call(one_sum)
        assert call.result() == "ok"
        group.peers[0].call(post_only)
        found = check(group.peers[0].call(trace))
        assert operations(found)[-1]["args"]["status"] == "open"
        group.peers[0].call(close)
        found = check(group.peers[0].call(trace))
        assert operations(found)[-1]["args"]["status"] == "closed"
        assert named(found, "group ended")[0]["args"]["status"] == "closed"


def post_only(worker: Worker) -> None:
    worker.kept["work"] = worker.comm.all_reduce(np.ones(4), async_op=True)


def test_a_small_ring_and_none() -> None:
    """Only the last events are kept, and a bar whose beginning is gone is whole all the same."""
    with CoordinatorServer() as server:
        with cc.connect(server.url, trace=5) as comm:  # 8 are kept
            for _ in range(20):
                comm.barrier()
            found = comm.trace()
            assert found["otherData"]["last_event"] - found["otherData"]["first_event"] == 7
            done = operations(check(found))
            assert [bar["args"]["sequence"] for bar in done] == [18, 19, 20]
            assert all(bar["args"]["status"] == "ok" for bar in done)
            assert "attempts" not in done[0]["args"] and done[1]["args"]["attempts"] == 1
        with cc.connect(server.url, trace=0) as comm:
            comm.barrier()
            assert check(comm.trace()) == []


# ---- on failure ----------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("collectives-*.json"))


def test_a_failure_leaves_a_trace(tmp_path: Path) -> None:
    """One of each survivor, though two operations fail; none of who fails at nothing."""
    folder = tmp_path / "not there yet"
    with Cluster(3, name="a/b", trace_dir=str(folder)) as group:
        group.each(sums, 3)
        calls = group.start(one_sum, False, peers=group.peers[:2])
        for peer in group.peers[:2]:
            peer.wait_note()
        assert files(folder) == []  # so far
        group.peers[2].kill()
        assert results(calls) == ["PeerLost"] * 2
        pids = {peer.pid for peer in group.peers[:2]}
        assert {path.name for path in files(folder)} == {
            f"collectives-a_b-{pid}-0.json" for pid in pids
        }
        for path in files(folder):
            entries = check(json.loads(path.read_text()))
            assert operations(entries)[-1]["args"]["status"] == "peer_lost"
            assert named(entries, "sealed")
        # In this epoch, with the same error: no second one.
        assert group.each(scatter, peers=group.peers[:2]) == ["PeerLost"] * 2
        assert len(files(folder)) == 2


def scatter(worker: Worker) -> str:
    """A call: something that cannot be while a rank is a hole."""
    comm = worker.comm
    try:
        comm.reduce_scatter(np.ones((comm.size, 2)))
    except cc.CollectivesError as error:
        return type(error).__name__
    return "ok"


def test_an_eviction_leaves_a_trace(tmp_path: Path) -> None:
    """Though it waits for nothing: the agent writes it."""
    with Cluster(2, timeouts=QUICK, trace_dir=str(tmp_path)) as group:
        group.each(sums, 2)
        group.peers[1].signal(signal.SIGSTOP)
        assert group.peers[0].call(one_sum) == "ok"
        group.peers[1].signal(signal.SIGCONT)
        deadline = time.monotonic() + 20
        while not (found := files(tmp_path)):
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.01)
        (path,) = [path for path in found if f"-{group.peers[1].pid}-" in path.name]
        ended = named(check(json.loads(path.read_text())), "group ended")
        assert [entry["args"]["status"] for entry in ended] == ["evicted"]


def test_a_trace_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with Cluster(2, trace_dir=str(blocked)) as group:
        call = group.peers[0].start(one_sum, False)
        group.peers[0].wait_note()
        group.peers[1].kill()
        assert call.result() == "PeerLost"
    assert blocked.read_text() == ""


def fail_often(worker: Worker, folder: str) -> int:
    """A call: as if something failed in each of many epochs."""
    comm = worker.comm
    on_failure = recorder.Recorder(comm._context, comm._agent.root, comm._id, folder)
    for epoch in range(recorder.FILES_MAX + 5):
        on_failure(int(lib.CC_PEER_LOST), epoch)
        on_failure(int(lib.CC_PEER_LOST), epoch)
        on_failure(int(lib.CC_CLOSED), epoch)
    return len(files(Path(folder)))


def test_a_process_writes_so_many(tmp_path: Path) -> None:
    with Cluster(1) as group:
        assert group.peers[0].call(fail_often, str(tmp_path)) == recorder.FILES_MAX


# ---- merged --------------------------------------------------------------------------------------


def test_a_wrong_clock_is_set_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two peers, one of which dies; its clock is then set wrong. On a busy machine votes may
    take long, so they work until some were quick enough to tell the time by."""
    with Cluster(2, name="n") as group:
        group.each(sums, 5, 1 << 16)
        for _ in range(15):
            group.each(sums, 200)
            survivor, dead = group.each(trace)
            if shift_of(survivor, dead)["within_us"] < 1000:
                break
        call = group.peers[0].start(one_sum)
        group.peers[0].wait_note()
        group.peers[1].kill()
        assert call.result() == "ok"
        survivor = group.peers[0].call(trace)
    right = run_merge(tmp_path, [survivor, dead])
    assert "shifted by" not in capsys.readouterr().out
    wrong = run_merge(tmp_path, [survivor, set_wrong(dead)])
    assert capsys.readouterr().out.count("shifted by") == 2
    told = shift_of(survivor, dead)
    assert told["by"] == "operations" and told["within_us"] < 1000
    assert told["shifted_us"] == pytest.approx(WALL_WRONG_US, abs=1000)
    for pid in range(2):
        true, found = ([e for e in check(m) if e["pid"] == pid] for m in (right, wrong))
        assert [(e["name"], e["tid"]) for e in true] == [(e["name"], e["tid"]) for e in found]
        times = [e["ts"] for e in true]
        assert [e["ts"] for e in found] == pytest.approx(times, abs=1000), f"peer {pid}"


def set_wrong(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace as another machine would have it, whose clock and time of day are wrong."""
    moved = json.loads(json.dumps(trace))
    for entry in moved["traceEvents"]:
        if entry["ph"] != "M":
            entry["ts"] += CLOCK_AHEAD_US
    moved["otherData"]["clock"] = "another"
    moved["otherData"]["wall_ns"] -= (WALL_WRONG_US + CLOCK_AHEAD_US) * 1000
    return moved


def shift_of(survivor: dict[str, Any], dead: dict[str, Any]) -> dict[str, Any]:
    merged = merge({"survivor": survivor, "dead": set_wrong(dead)})
    found: dict[str, Any] = merged["otherData"]["files"]["dead"]
    return found


def run_merge(folder: Path, traces: list[dict[str, Any]]) -> dict[str, Any]:
    """By the command; the order of the files makes no difference."""
    paths = [folder / f"{i}.json" for i in range(len(traces))]
    for path, one in zip(paths, traces, strict=True):
        path.write_text(json.dumps(one))
    texts = []
    for order in (paths, paths[::-1]):
        out = folder / "run.json"
        assert main(["trace", "merge", *map(str, order), "-o", str(out)]) == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] and os.listdir(folder).count("run.json.part") == 0
    return json.loads(texts[0])


def test_what_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    for content, told in (
        ("[]", "is no trace"),
        ("{", "is no JSON"),
        ('{"otherData": 1}', "is no"),
    ):
        path.write_text(content)
        assert main(["trace", "merge", str(path), "-o", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert str(path) in error and told in error
