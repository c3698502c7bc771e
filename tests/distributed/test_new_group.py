"""Groups within groups, beside each other, and beside Gloo's. Skipped without torch.

Goal: `new_group` gives a group of exactly those ranks, whatever the order, overlap or nesting;
groups do not disturb each other, from one thread or several; Gloo's live beside ours, either as
the default. Method: every rank is told the same list of groups, and each group's sums show who
took part.
"""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, outcomes, results  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402
from collectives.torch import ProcessGroup  # noqa: E402

pytestmark = pytest.mark.timeout(60)


def _sum(group: Any, ranks: Any) -> None:
    """An all_reduce that shows who took part: each rank is a bit."""
    x = torch.tensor([1 << dist.get_rank()])
    dist.all_reduce(x, group=group)
    assert x.item() == sum(1 << rank for rank in ranks), (x, ranks)


def all_subsets(worker: Worker) -> None:
    """A call: a group for every set of ranks, all of them at once."""
    size, rank = dist.get_world_size(), dist.get_rank()
    sets = [chosen for n in range(1, size + 1) for chosen in itertools.combinations(range(size), n)]
    groups = [(dist.new_group(list(chosen)), chosen) for chosen in sets]
    for group, chosen in reversed(groups):
        if rank not in chosen:
            assert group == dist.GroupMember.NON_GROUP_MEMBER
            continue
        assert isinstance(group, ProcessGroup)
        assert dist.get_world_size(group) == len(chosen)
        assert dist.get_rank(group) == chosen.index(rank)
        assert dist.get_process_group_ranks(group) == list(chosen)
        _sum(group, chosen)
        x = torch.tensor([rank])
        dist.broadcast(x, src=chosen[-1], group=group)  # src is a rank of the default group
        assert x.item() == chosen[-1]
        y = torch.tensor([rank])
        dist.broadcast(y, group_src=0, group=group)
        assert y.item() == chosen[0]
    _sum(None, range(size))


def test_a_group_for_every_subset() -> None:
    with Ranks(4) as ranks:
        ranks.each(all_subsets)


def order_and_names(worker: Worker) -> None:
    """A call: ranks in any order; names and descriptions; groups of groups."""
    rank = dist.get_rank()
    group = dist.new_group([2, 0, 1], group_desc="backwards")
    assert dist.get_process_group_ranks(group) == [0, 1, 2]  # torch sorts them
    assert dist.get_rank(group) == rank
    assert group.group_desc == "backwards" and group.group_name != dist.group.WORLD.group_name
    assert group.size() == 3 and group.rank() == rank and group.name() == "collectives"
    assert dist.get_backend(group) == "collectives"
    unsorted = dist.new_group([1, 2], backend="collectives", timeout=timedelta(seconds=7))
    if rank:
        _sum(unsorted, [1, 2])
        unsorted.barrier().wait()
    whole = dist.new_group()
    _sum(whole, range(3))
    mine, others = dist.new_subgroups_by_enumeration([[0], [1, 2]])
    _sum(mine, [0] if rank == 0 else [1, 2])
    assert len(others) == 2


def local_groups(worker: Worker) -> None:
    """A call: groups that only their members know of."""
    rank = dist.get_rank()
    ranks = [0, 2] if rank != 1 else [1]
    group = dist.new_group(ranks, use_local_synchronization=True)
    _sum(group, ranks)


def meshes(worker: Worker) -> None:
    """A call: a device mesh, and its dimensions' groups."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    row, column = divmod(dist.get_rank(), 2)
    assert mesh.get_local_rank("replicate") == row and mesh.get_local_rank("shard") == column
    _sum(mesh.get_group("shard"), [2 * row, 2 * row + 1])
    _sum(mesh.get_group("replicate"), [column, column + 2])
    flat = mesh["replicate", "shard"]._flatten("all")
    _sum(flat.get_group(), range(4))


@pytest.mark.parametrize(
    ("size", "call"),
    [(3, order_and_names), (3, local_groups), (4, meshes)],
    ids=["names", "local", "mesh"],
)
def test_groups(size: int, call: Any) -> None:
    with Ranks(size) as ranks:
        ranks.each(call)


# ---- threads ---------------------------------------------------------------------------------


def threads_with_groups(worker: Worker, rounds: int) -> None:
    """A call: a thread for each of several groups, all of them busy at once."""
    rank = dist.get_rank()
    sets = [(0, 1, 2), (0, 1), (1, 2), (0, 2), (0, 1, 2)]
    groups = [(dist.new_group(list(chosen)), chosen) for chosen in sets]
    wrong: list[BaseException] = []

    def use(group: Any, chosen: tuple[int, ...], seed: int) -> None:
        try:
            for turn in range(rounds):
                count = 1 + (seed * 7919 + turn * 104729) % 5000
                x = torch.full((count,), float(rank + turn))
                dist.all_reduce(x, group=group)
                assert torch.all(x == sum(r + turn for r in chosen))
                work = dist.broadcast(x, chosen[turn % len(chosen)], group=group, async_op=True)
                rows = [torch.empty(2) for _ in chosen]
                dist.all_gather(rows, torch.full((2,), float(rank)), group=group)
                assert [row[1].item() for row in rows] == list(chosen)
                work.wait()
        except BaseException as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=use, args=(group, chosen, i))
        for i, (group, chosen) in enumerate(groups)
        if rank in chosen
    ]
    for thread in threads:
        thread.start()
    for turn in range(rounds):
        _sum(None, range(3))
        worker.kept["turn"] = turn
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong, wrong


def test_threads_use_groups_of_their_own() -> None:
    with Ranks(3) as ranks:
        ranks.each(threads_with_groups, 40)


# ---- beside Gloo -----------------------------------------------------------------------------


def gloo_beside(worker: Worker, other: str) -> None:
    """A call: a group of another backend within the default one, used in turns and at once."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole, pair = dist.new_group(backend=other), dist.new_group([0, 2], backend=other)
    assert dist.get_backend(whole) == other != dist.get_backend()
    for _ in range(3):
        _sum(None, range(size))
        _sum(whole, range(size))
        if rank != 1:
            _sum(pair, [0, 2])
    works = [
        dist.all_reduce(torch.ones(1000), group=group, async_op=True) for group in (whole, None) * 5
    ]
    for work in works:
        work.wait()
    nested = dist.new_group([1, 2], backend="collectives" if other == "gloo" else "gloo")
    if rank:
        _sum(nested, [1, 2])
    dist.destroy_process_group(whole)
    _sum(None, range(size))
    dist.destroy_process_group()


@pytest.mark.parametrize(("default", "other"), [("collectives", "gloo"), ("gloo", "collectives")])
def test_gloo_beside_ours(default: str, other: str) -> None:
    with Ranks(3, backend=default) as ranks:
        ranks.each(gloo_beside, other)


def by_device(worker: Worker) -> None:
    """A call: the backend named for the device."""
    assert isinstance(dist.group.WORLD, ProcessGroup)
    _sum(None, range(2))
    group = dist.new_group([0, 1], backend="cpu:collectives")
    _sum(group, range(2))
    dist.barrier()


def test_the_backend_may_be_named_for_the_device() -> None:
    with Ranks(2, backend="cpu:collectives") as ranks:
        ranks.each(by_device)


# ---- with a rank lost ------------------------------------------------------------------------


def makes_a_group(worker: Worker, ranks: list[int]) -> None:
    """A call: as the name says; all ranks may call it, or only the members."""
    worker.kept["group"] = dist.new_group(
        ranks, use_local_synchronization=True, timeout=timedelta(seconds=5)
    )


def uses_its_group(worker: Worker, ranks: list[int]) -> None:
    """A call: of a group made before."""
    _sum(worker.kept["group"], ranks)


def test_groups_without_the_lost_rank_go_on_and_can_be_made() -> None:
    with Ranks(4) as ranks:
        first = ranks.start(makes_a_group, [0, 1], peers=ranks.peers[:2])
        second = ranks.start(makes_a_group, [2, 3], peers=ranks.peers[2:])
        results([*first, *second])
        ranks.peers[3].kill()
        ranks.each(uses_its_group, [0, 1], peers=ranks.peers[:2])
        with pytest.raises(cc.PeerLost, match="rank 1 was lost"):  # its rank in that group
            ranks.peers[2].call(uses_its_group, [2, 3])
        ranks.each(makes_a_group, [0, 1, 2], peers=ranks.peers[:3])
        ranks.each(uses_its_group, [0, 1, 2], peers=ranks.peers[:3])
        with pytest.raises(cc.CollectivesError, match="rank 3"):
            ranks.peers[0].call(makes_a_group, [0, 3])


def waits_for_a_group(worker: Worker, ranks: list[int]) -> None:
    """A call: makes a group of which one member never comes."""
    worker.note("begins")
    makes_a_group(worker, ranks)


def test_a_rank_is_lost_while_a_group_is_made() -> None:
    with Ranks(3) as ranks:
        calls = ranks.start(waits_for_a_group, [0, 1, 2], peers=ranks.peers[:2])
        for peer in ranks.peers[:2]:
            peer.wait_note()
        ranks.peers[2].kill()
        for error in outcomes(calls):
            assert isinstance(error, cc.CollectivesError), error
            assert "rank 2" in str(error) and "lost" in str(error), error
