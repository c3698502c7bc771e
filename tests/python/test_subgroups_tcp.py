"""Goal: subgroups are groups like any other. They hold whom they should, in the right order; their
results do not mix with those of other groups over the same connections; they recover from a death
on their own; closing one ends nothing else; and bad input is an error on all whom it concerns.

Method: real processes over TCP; every result is computed a second time from the ranks alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cluster import QUICK, SMALL, Cluster, Worker, close, outcomes, results
from test_api import how_it_ends, total

import collectives as cc

pytestmark = pytest.mark.timeout(60)


def split(worker: Worker, color: int | None, key: int = 0, **options: Any) -> tuple[int, int]:
    sub = worker.comm.split(color, key, **options)
    if sub is None:
        return (-1, 0)
    worker.kept["sub"] = sub
    return sub.rank, sub.size


def subgroup(worker: Worker, ranks: Sequence[int], **options: Any) -> tuple[int, int]:
    sub = worker.kept["sub"] = worker.comm.subgroup(ranks, **options)
    return sub.rank, sub.size


def gathered(worker: Worker) -> list[int]:
    """The ranks in the whole group of the subgroup's members, by their rank there."""
    return [int(row) for row in worker.kept["sub"].all_gather(np.int64(worker.comm.rank))]


def sub_ends(worker: Worker) -> str:
    try:
        worker.kept["sub"].all_reduce(np.ones(100))
    except cc.CollectivesError as error:
        return type(error).__name__
    return "ok"


def close_sub(worker: Worker) -> None:
    worker.kept["sub"].close()


# ---- who is in it --------------------------------------------------------------------------------


def test_split_by_color_and_key() -> None:
    colors, keys = [7, 0, 7, None, 0], [0, 1, -5, 3, 1]
    expected = [(1, 2), (0, 2), (0, 2), (-1, 0), (1, 2)]
    with Cluster(5, **SMALL) as group:
        pairs = zip(group.peers, colors, keys, strict=True)
        assert results([p.start(split, c, k) for p, c, k in pairs]) == expected
        members = [[2, 0], [1, 4], [2, 0], None, [1, 4]]
        calls = [
            peer.start(gathered) if own else None
            for peer, own in zip(group.peers, members, strict=True)
        ]
        assert [call and call.result() for call in calls] == members
        assert group.each(total) == [5] * 5


def test_subgroup_concerns_its_members_alone() -> None:
    with Cluster(4) as group:
        a, b, c, d = group.peers
        waiting = [a.start(total), c.start(total)]  # the others are busy elsewhere meanwhile
        calls = [b.start(subgroup, [3, 1]), d.start(subgroup, [3, 1])]
        assert results(calls) == [(1, 2), (0, 2)]
        assert results([b.start(gathered), d.start(gathered)]) == [[3, 1], [3, 1]]
        assert results([b.start(total), d.start(total), *waiting]) == [4] * 4
        assert a.call(subgroup, [0]) == (0, 1)  # alone
        assert a.call(gathered) == [0]


def test_a_subgroup_of_a_subgroup() -> None:
    with Cluster(4) as group:
        group.each(split, 1)
        calls = [peer.start(nested, index // 2) for index, peer in enumerate(group.peers)]
        assert results(calls) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def nested(worker: Worker, color: int) -> list[int]:
    sub = worker.kept["sub"].split(color)
    return [int(row) for row in sub.all_gather(np.int64(worker.comm.rank))]


# ---- many at once --------------------------------------------------------------------------------


def all_at_once(worker: Worker, rounds: int) -> list[str]:
    """Operations of the group, of its two halves and of a ring of pairs, each from a thread."""
    comm = worker.comm
    half = comm.split(comm.rank % 2)
    whole = comm.split(0, -comm.rank)
    assert half is not None and whole is not None
    faults: list[str] = []

    def run(group: cc.Communicator, members: list[int], salt: int) -> None:
        for i in range(rounds):
            n = 1 + (i * 977 + salt) % 3000
            given = np.arange(n, dtype=np.int64) * (comm.rank + 1) + salt
            found = group.all_reduce(given)
            expected = sum(np.arange(n, dtype=np.int64) * (rank + 1) + salt for rank in members)
            if not np.array_equal(found, expected):
                faults.append(f"round {i} of the group with salt {salt}")

    everyone = list(range(comm.size))
    mine = [rank for rank in everyone if rank % 2 == comm.rank % 2]
    jobs = [(comm, everyone, 1), (half, mine, 2 + comm.rank % 2), (whole, everyone, 5)]
    threads = [threading.Thread(target=run, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
        if thread.is_alive():
            faults.append("a thread hangs")
    return faults


def test_groups_do_not_mix() -> None:
    with Cluster(4, **SMALL) as group:
        assert group.each(all_at_once, 60) == [[]] * 4


def split_and_close(worker: Worker, rounds: int) -> int:
    """More groups, one after the other, than a peer can be in at once."""
    for i in range(rounds):
        with worker.comm.split((worker.comm.rank + i) % 2) as sub:  # type: ignore[union-attr]
            assert int(sub.all_reduce(np.array([1]))[0]) == sub.size
    return rounds


def test_closed_groups_make_room() -> None:
    with Cluster(3) as group:
        assert group.each(split_and_close, 100) == [100] * 3
        assert group.each(total) == [3] * 3


# ---- how they end --------------------------------------------------------------------------------


def test_closing_a_subgroup_ends_nothing_else() -> None:
    """Who still needs the one that closed learns that it is gone; the others' group goes on."""
    with Cluster(3) as group:
        group.each(split, 0)
        group.peers[1].call(close_sub)
        assert group.peers[1].call(sub_ends) == "Closed"
        others = [group.peers[0], group.peers[2]]
        assert group.each(sub_ends, peers=others) == ["ok", "ok"]
        assert group.each(gathered, peers=others) == [[0, 0, 2]] * 2  # a hole at rank 1
        assert group.each(total) == [3] * 3
        assert [peer.alive for peer in group.peers] == [True] * 3


def test_leaving_a_subgroup() -> None:
    with Cluster(3) as group:
        group.each(split, 0)
        calls = [peer.start(sub_boundary, index == 2) for index, peer in enumerate(group.peers)]
        assert results(calls) == [(2, [2]), (2, [2]), None]
        assert group.each(gathered, peers=group.peers[:2]) == [[0, 1]] * 2
        assert group.each(total) == [3] * 3


def sub_boundary(worker: Worker, leaves: bool) -> tuple[int, list[int]] | None:
    sub = worker.kept["sub"]
    if leaves:
        sub.leave()
        return None
    change = sub.admit()
    return sub.size, [member.rank for member in change.left]


def test_closing_the_group_ends_its_subgroups() -> None:
    with Cluster(3) as group:
        group.each(split, 0)
        group.peers[2].call(close)
        assert group.peers[2].call(sub_ends) == "Closed"
        others = group.peers[:2]
        assert group.each(sub_ends, peers=others) == ["ok", "ok"]
        assert group.each(total, peers=others) == [2, 2]


def sub_sum(worker: Worker, elements: int) -> tuple[float, int]:
    work = worker.kept["sub"].all_reduce(np.full(elements, 1.0 + worker.comm.rank), async_op=True)
    worker.note("posted")
    return float(work.wait()[-1]), work.info.contributors


def test_a_death_is_settled_in_every_group() -> None:
    """The dead one's subgroup completes its operation over the survivors; a subgroup without it
    is not disturbed."""
    with Cluster(4, timeouts=QUICK) as group:
        calls = [peer.start(split, index % 2) for index, peer in enumerate(group.peers)]
        results(calls)
        victim = group.peers[3]
        survivors = group.peers[:3]
        calls = group.start(sub_sum, 1 << 20, peers=[group.peers[0], group.peers[1]])
        for peer in group.peers[:2]:
            peer.wait_note()
        victim.kill()
        calls.append(group.peers[2].start(sub_sum, 1 << 20))
        assert [call.result() for call in calls] == [(4.0, 2), (2.0, 1), (4.0, 2)]
        assert group.each(how_it_ends, peers=survivors) == ["ok"] * 3
        epochs = group.each(sub_epoch, peers=survivors)
        assert epochs[0] == epochs[2] == 1 and epochs[1] > 1


def sub_epoch(worker: Worker) -> int:
    return int(worker.kept["sub"].epoch)


def test_a_member_that_dies_before_the_subgroup_forms_is_left_out() -> None:
    with Cluster(4, timeouts=QUICK) as group:
        calls = group.start(subgroup, [3, 2, 1, 0], peers=group.peers[:3])
        group.peers[3].kill()
        assert [call.result() for call in calls] == [(2, 3), (1, 3), (0, 3)]
        assert group.each(gathered, peers=group.peers[:3]) == [[2, 1, 0]] * 3


# ---- bad input -----------------------------------------------------------------------------------


def refused(worker: Worker, ranks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        worker.comm.subgroup(ranks)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([1], "not among"), ([0, 0], "twice"), ([0, 2], "no rank"), ([-1], "no rank"), ([], "among")],
)
def test_bad_ranks(ranks: list[int], words: str) -> None:
    with Cluster(2) as group:
        group.peers[0].call(refused, ranks, words)
        assert group.each(total) == [2, 2]


def test_who_waits_in_vain_can_go_on() -> None:
    """One member never calls. When it does, after the other's patience was over, it gets a group
    from which the other has gone; and the next try works."""
    with Cluster(2, timeouts=QUICK) as group:
        a, b = group.peers
        with pytest.raises(cc.TimedOut, match="not all of its members"):
            a.call(subgroup, [0, 1], timeout=0.3)
        assert b.call(subgroup, [0, 1]) == (1, 2)
        assert b.call(sub_ends) == "ok"  # alone: a said that it is gone
        assert group.each(subgroup, [0, 1]) == [(0, 2), (1, 2)]
        assert group.each(sub_ends) == ["ok", "ok"]


def test_subgroup_of_a_closed_communicator() -> None:
    with Cluster(2) as group:
        group.peers[0].call(close)
        ended = outcomes([group.peers[0].start(subgroup, [0])])
        assert isinstance(ended[0], cc.Closed)
