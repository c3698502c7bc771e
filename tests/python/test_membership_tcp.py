"""Members that come and go: joining, leaving, boundaries at which nothing changes and boundaries
that are interrupted; and what every peer sees of it, which must be the same.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from cluster import (
    SMALL,
    Cluster,
    Peer,
    Worker,
    close,
    results,
    scaled,
)
from test_api import how_it_ends, total

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def state(worker: Worker) -> dict[str, Any]:
    comm = worker.comm
    return {
        "rank": comm.rank,
        "size": comm.size,
        "epoch": comm.epoch,
        "names": [member.name for member in comm.members],
        "ranks": [member.rank for member in comm.members],
        "alive": [member.alive for member in comm.members],
        "ids": [member.id for member in comm.members],
        "pending": comm.pending,
    }


# ---- joining and leaving -------------------------------------------------------------------------


def wait_pending(worker: Worker, joiners: int) -> None:
    deadline = time.monotonic() + 10
    while worker.comm.pending != joiners:
        assert time.monotonic() < deadline, f"pending is {worker.comm.pending}, not {joiners}"
        time.sleep(0.002)


def admit(worker: Worker) -> dict[str, Any]:
    change = worker.comm.admit()
    return {
        "epoch": change.epoch,
        "joined": [(member.rank, member.name) for member in change.joined],
        "left": [(member.rank, member.name) for member in change.left],
        "changed": bool(change),
        "size": worker.comm.size,
        "rank": worker.comm.rank,
    }


def leave(worker: Worker) -> str:
    worker.comm.leave()
    with pytest.raises(cc.Closed):
        worker.comm.barrier()
    return repr(worker.comm)


def with_names(group: Cluster, peers: list[Peer]) -> None:
    calls = [
        group.start_join(peer, name=f"peer {i}", rank=i, size=len(peers))
        for i, peer in enumerate(peers)
    ]
    results(calls)


def test_one_alone_is_a_group() -> None:
    with Cluster(1) as group:
        (peer,) = group.peers
        assert peer.call(total) == 1
        assert peer.call(admit)["changed"] is False
        found = peer.call(state)
        assert (found["rank"], found["size"], found["alive"]) == (0, 1, [True])
        peer.call(leave)


def test_admit_when_nobody_waits_changes_nothing() -> None:
    with Cluster(3) as group:
        before = group.peers[0].call(state)
        for _ in range(20):
            for change in group.each(admit):
                assert not change["changed"] and change["epoch"] == before["epoch"]
                assert change["joined"] == change["left"] == []
        assert group.peers[0].call(state) == before


def work_then_admit(worker: Worker, count: int) -> tuple[list[int], dict[str, Any], list[int]]:
    """A call: several operations in flight, a boundary behind them, and operations after it."""
    comm = worker.comm
    before = [comm.all_reduce(np.full(3000, i), async_op=True, lane=i % 3) for i in range(count)]
    change = admit(worker)
    assert all(work.done for work in before), "admit waits for what was posted before"
    after = [comm.all_reduce(np.full(3000, i), async_op=True) for i in range(count)]
    return [int(w.wait()[0]) for w in before], change, [int(w.wait()[0]) for w in after]


def sums(worker: Worker, count: int) -> list[int]:
    works = [worker.comm.all_reduce(np.full(3000, i), async_op=True) for i in range(count)]
    return [int(work.wait()[0]) for work in works]


def test_two_joiners_at_once_with_operations_in_flight() -> None:
    with Cluster(0, **SMALL) as group:
        members = group.add(2)
        with_names(group, members)
        joiners = group.add(2)
        joining = [
            group.start_join(peer, size=2, name=f"new {i}") for i, peer in enumerate(joiners)
        ]
        group.each(wait_pending, 2, peers=members)
        calls = group.start(work_then_admit, 10, peers=members)
        assert sorted(results(joining)) == [2, 3]
        late = group.start(sums, 10, peers=joiners)
        for before, change, after in results(calls):
            assert before == [2 * i for i in range(10)]
            assert after == [4 * i for i in range(10)]
            assert [rank for rank, _ in change["joined"]] == [2, 3]
            assert {name for _, name in change["joined"]} == {"new 0", "new 1"}
            assert change["left"] == [] and change["changed"] and change["size"] == 4
        assert results(late) == [[4 * i for i in range(10)]] * 2
        states = group.each(state)
        for found in states:
            assert found["ids"] == states[0]["ids"]
            assert found["names"] == states[0]["names"]
            assert found["epoch"] == states[0]["epoch"]
            assert found["alive"] == [True] * 4 and found["pending"] == 0
        assert [found["rank"] for found in states] == [
            *(0, 1),
            states[0]["names"].index("new 0"),
            states[0]["names"].index("new 1"),
        ]


def test_a_joiner_that_nobody_admits_times_out_and_says_why() -> None:
    with Cluster(2) as group:
        (joiner,) = group.add(1)
        began = time.monotonic()
        with pytest.raises(cc.TimedOut, match=r"admit\(\)"):
            group.start_join(joiner, size=2, timeout=0.5).result()
        assert time.monotonic() - began < 2.5
        assert group.each(total, peers=group.peers[:2]) == [2, 2]
        group.each(wait_pending, 0, peers=group.peers[:2])
        assert [c["changed"] for c in group.each(admit, peers=group.peers[:2])] == [False] * 2


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_one_leaves_while_the_others_admit(leaver: int) -> None:
    with Cluster(0) as group:
        with_names(group, group.add(3))
        for _ in range(2):
            assert group.each(total) == [3] * 3
        stay = [peer for rank, peer in enumerate(group.peers) if rank != leaver]
        leaving = group.peers[leaver].start(leave)
        changes = group.each(admit, peers=stay)
        assert "closed" in leaving.result(10)
        for rank, change in enumerate(changes):
            assert change["left"] == [(leaver, f"peer {leaver}")]
            assert (change["rank"], change["size"]) == (rank, 2)
        assert group.each(total, peers=stay) == [2, 2]


def test_all_leave_together() -> None:
    with Cluster(3) as group:
        assert group.each(total) == [3] * 3
        group.each(leave)
        group.form(group.peers)  # a new lineage of the same name
        assert group.each(total) == [3] * 3


def test_one_leaves_as_another_joins() -> None:
    with Cluster(0) as group:
        members = group.add(3)
        with_names(group, members)
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=3, name="new")
        group.each(wait_pending, 1, peers=members)
        leaving = members[0].start(leave)
        changes = group.each(admit, peers=members[1:])
        leaving.result(10)
        assert joining.result() == 2
        for change in changes:
            assert change["left"] == [(0, "peer 0")] and change["joined"] == [(2, "new")]
        assert group.each(total, peers=[*members[1:], joiner]) == [3] * 3


def wait_for_a_death(worker: Worker, rank: int) -> None:
    """A call: waits until `members` tells of it; without operations, of which all need as many."""
    deadline = time.monotonic() + 10
    while worker.comm.members[rank].alive:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_ranks_stay_until_admit_and_close_up_then() -> None:
    with Cluster(0) as group:
        members = group.add(4)
        with_names(group, members)
        members[1].kill()
        left = [members[0], members[2], members[3]]
        group.each(wait_for_a_death, 1, peers=left)
        for rank, peer in zip((0, 2, 3), left, strict=True):
            found = peer.call(state)
            assert (found["rank"], found["size"]) == (rank, 4)
            assert found["alive"] == [True, False, True, True]
        changes = group.each(admit, peers=left)
        for rank, change in enumerate(changes):
            assert (change["rank"], change["size"]) == (rank, 3)
            assert change["left"] == [(1, "peer 1")] and change["joined"] == []
        assert group.each(total, peers=left) == [3] * 3


def gather_ranks(worker: Worker) -> list[int]:
    return worker.comm.all_gather(np.array([worker.comm.rank + 1])).ravel().tolist()


def test_all_gather_has_a_row_of_zeros_for_a_hole() -> None:
    with Cluster(3) as group:
        assert group.each(gather_ranks) == [[1, 2, 3]] * 3
        group.peers[1].kill()
        left = [group.peers[0], group.peers[2]]
        group.each(wait_for_a_death, 1, peers=left)
        assert group.each(gather_ranks, peers=left) == [[1, 0, 3]] * 2
        for name, text in group.each(broadcast_from, 1, peers=left):
            assert name == "PeerLost" and text == "root 1"
        assert group.each(broadcast_from, 2, peers=left) == [("ok", "")] * 2


def broadcast_from(worker: Worker, root: int) -> tuple[str, str]:
    try:
        result = worker.comm.broadcast(np.full(3, worker.comm.rank), root)
        assert (result == root).all()
    except cc.PeerLost as error:
        return "PeerLost", f"root {error.rank}"
    return "ok", ""


def test_close_while_others_wait_for_it() -> None:
    """An orderly close is told at once: nobody waits for a time limit."""
    with Cluster(3) as group:
        assert group.each(total) == [3] * 3
        calls = group.start(how_it_ends_at, peers=group.peers[:2])
        for peer in group.peers[:2]:
            peer.wait_note()
        closed_at = time.monotonic()
        group.peers[2].call(close)
        for name, at in results(calls):
            assert name == "ok" and at - closed_at < 1.0
        assert group.each(total, peers=group.peers[:2]) == [2, 2]


def how_it_ends_at(worker: Worker) -> tuple[str, float]:
    worker.note("waiting")
    return how_it_ends(worker), time.monotonic()


def epochs_seen(worker: Worker, url: str) -> None:
    """A call: joins with a callback that writes the epochs down."""
    worker.kept["epochs"] = []
    worker.comm = cc.connect(url, size=2, on_epoch=worker.kept["epochs"].append)


def kept_epochs(worker: Worker) -> tuple[list[int], int]:
    return worker.kept["epochs"], worker.comm.epoch


def test_on_epoch_is_called_for_each_epoch() -> None:
    with Cluster(0) as group:
        first, second = group.add(2)
        joining = first.start(epochs_seen, group.url)
        second.call(epochs_seen, group.url)
        joining.result()
        (joiner,) = group.add(1)
        joined = group.start_join(joiner, size=2)
        group.each(wait_pending, 1, peers=[first, second])
        group.each(admit, peers=[first, second])
        joined.result()
        seen, now = first.call(kept_epochs)
        assert seen == sorted(set(seen)) and seen[-1] == now and len(seen) == 2


def test_members_come_and_go_many_times(seed: int) -> None:
    rng = random.Random(seed)
    with Cluster(0, timeouts=scaled(cc.LAN, linger=0.5)) as group:
        members = group.add(2)
        with_names(group, members)
        idle: list[Peer] = group.add(3)
        for _ in range(12):
            coming = [idle.pop() for _ in range(rng.randint(0, min(2, len(idle))))]
            going = rng.sample(members, rng.randint(0, min(2, len(members) - 1)))
            joining = [group.start_join(peer, size=2) for peer in coming]
            group.each(wait_pending, len(coming), peers=members)
            leaving = [peer.start(leave) for peer in going]
            staying = [peer for peer in members if peer not in going]
            changes = group.each(admit, peers=staying)
            results([*joining, *leaving])
            for change in changes:
                assert (len(change["joined"]), len(change["left"])) == (len(coming), len(going))
            members = staying + coming
            idle += going
            assert group.each(total, peers=members) == [len(members)] * len(members)
            states = [found["ids"] for found in group.each(state, peers=members)]
            assert all(ids == states[0] for ids in states)


# ---- a boundary that is interrupted --------------------------------------------------------------


def interrupted_admit(worker: Worker) -> str:
    """A call: SIGINT comes while it waits in admit."""

    def interrupt() -> None:
        while worker.comm._boundary_work is None:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    try:
        thread.start()
        worker.comm.admit()
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "ok"


def admit_count(worker: Worker) -> int:
    return len(worker.comm.admit().joined)


def guarded_gather(worker: Worker) -> tuple[str, Any]:
    """A call: gathers into the middle of an array, and looks whether what is around it changed. An
    output for the size before the boundary is refused, and made anew."""
    comm = worker.comm
    guard = np.full(12 * 1000, 7.5)
    ended = "never"
    while ended in ("never", "ValueError"):
        out = guard[3000 : 3000 + comm.size * 1000]
        try:
            comm.all_gather(np.full(1000, comm.rank), out=out.view(np.int64))
            ended = "ok"
        except (cc.CollectivesError, ValueError) as error:
            ended = type(error).__name__
        around = np.concatenate([guard[:3000], guard[3000 + out.size :]])
        assert (around == 7.5).all(), f"{ended}, of {comm.size}: memory around it was written"
    return ended, comm.size


def test_an_interrupted_admit_is_carried_out_all_the_same() -> None:
    """Ctrl-C ends the waiting, not the boundary. The peer must not go on with the old size, or a
    gather would write more rows than its output has."""
    with Cluster(2) as group:
        first, second = group.peers
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=2)
        group.each(wait_pending, 1, peers=[first, second])
        assert first.call(interrupted_admit) == "KeyboardInterrupt"
        assert second.call(admit_count) == 1
        assert joining.result() == 2
        for ended, size in group.each(guarded_gather, peers=[first, second, joiner]):
            assert (ended, size) == ("ok", 3)
        assert group.each(total) == [3] * 3


def test_timeout_of_nothing() -> None:
    """An operation that may take no time fails on all, and harms nothing."""
    with Cluster(2) as group:
        names = set(group.each(no_time))
        assert names <= {"TimedOut", "ok"} and len(names) == 1
        assert group.each(total) == [2, 2]


def no_time(worker: Worker) -> str:
    try:
        worker.comm.all_reduce(np.ones(1000), timeout=0)
    except cc.TimedOut:
        return "TimedOut"
    return "ok"


def failing_callback(worker: Worker, url: str) -> int:
    """A call: joins with a callback that fails."""

    def on_epoch(_: int) -> None:
        raise ZeroDivisionError("the callback's own fault")

    worker.comm = cc.connect(url, group="gr\u00fcn \u65e5\u672c", name="\u00e4", on_epoch=on_epoch)
    return int(worker.comm.all_reduce(np.array([1]))[0])


def test_a_callback_that_fails_and_names_beyond_ascii() -> None:
    with Cluster(0) as group:
        (peer,) = group.add(1)
        assert peer.call(failing_callback, group.url) == 1
        assert peer.call(state)["names"] == ["\u00e4"]


def outlives(worker: Worker) -> tuple[float, str]:
    """A call: works that are used after their communicator was closed and collected."""
    import gc

    comm = worker.comm
    done = comm.all_reduce(np.ones(1000), async_op=True)
    comm.barrier()
    never = comm.all_reduce(np.ones(1000), async_op=True, lane=9)
    comm.close()
    del comm, worker.comm
    gc.collect()
    assert done.done and never.done
    try:
        never.wait(5)
        ended = "ok"
    except cc.CollectivesError as error:
        ended = type(error).__name__
    return float(done.wait()[0]), ended


def test_works_outlive_their_communicator() -> None:
    with Cluster(2) as group:
        found = group.each(outlives)
        assert [one for one, _ in found] == [2.0, 2.0]
        assert {ended for _, ended in found} <= {"Closed", "PeerLost", "ok"}
