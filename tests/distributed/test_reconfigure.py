"""A process group that gets other members, by handles: torch 2.14's protocol. Skipped without it.

Goal: after a reconfiguration the group is that of the handles, with their order as ranks, and it
works; what failed left the old group as it was; nobody who does not come holds the others up beyond
the timeout. Method: real processes; sums that tell who took part; kills.
"""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, outcomes, results  # noqa: E402
from movers import Movers, add_up, move  # noqa: E402
from ranks import Ranks, has_ended, is_up  # noqa: E402
from torch._C._distributed_c10d import ErrorType  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import collectives as cc  # noqa: E402
import collectives.torch  # noqa: E402

pytestmark = pytest.mark.timeout(120)


def test_a_list_orders_ranks() -> None:
    with Movers(3) as movers:
        a, b, c = movers.peers
        movers.unite(1, a, b, c)
        movers.unite(2, c, a, b)


def test_a_set_is_sorted() -> None:
    with Movers(4) as movers:
        handles = list(movers.handles.values())
        ranks = results(movers.start(move, 1, set(handles)))
        assert ranks == [(sorted(handles).index(handle), 4) for handle in handles]
        assert movers.each(add_up) == [1111.0] * 4


def test_shrink_and_grow() -> None:
    """Those who are left out do nothing, and their old group fails: its others have gone."""
    with Movers(3) as movers:
        a, b, c = movers.peers
        movers.unite(1, a, b, c)
        movers.unite(2, a, c)
        with pytest.raises(cc.PeerLost):
            b.call(add_up)
        movers.unite(3, a)
        (d,) = movers.invite(1)
        movers.unite(4, d, a, b, c)


def test_groups_side_by_side_merge_and_split() -> None:
    """The groups of one split have the same uuid, as those of torchft's local ranks."""
    with Movers(4) as movers:
        a, b, c, d = movers.peers
        calls = movers.start(move, 1, movers.of([a, b]), peers=[a, b])
        calls += movers.start(move, 1, movers.of([c, d]), peers=[c, d])
        assert [call.result() for call in calls] == [(0, 2), (1, 2), (0, 2), (1, 2)]
        assert movers.each(add_up) == [11.0] * 4
        movers.unite(2, a, b, c, d)
        movers.unite(3, b, d)
        movers.unite(3, a, c)


def test_the_dead_are_left_out_and_new_ones_come() -> None:
    """Also the first one, at whose door all had met."""
    with Movers(3) as movers:
        a, b, c = movers.peers
        movers.unite(1, a, b, c)
        a.kill()
        for outcome in outcomes(movers.start(add_up, peers=[b, c])):
            assert isinstance(outcome, cc.PeerLost) and "rank 0 was lost" in str(outcome)
        lost = ("rank 0 was lost", ErrorType.REMOTE_ERROR.name)
        assert movers.each(state, peers=[b, c]) == [lost, lost]
        movers.unite(2, b, c)
        assert movers.each(state, peers=[b, c]) == [("None", ErrorType.SUCCESS.name)] * 2
        (d,) = movers.invite(1)
        movers.unite(3, d, b, c)


def state(worker: Worker) -> tuple[str, str]:
    group = worker.kept["group"]
    return str(group.errored()), group.get_error().name


def abort(worker: Worker) -> None:
    worker.kept["group"].abort()


def test_an_abort_can_be_recovered_from() -> None:
    with Movers(2) as movers:
        a, b = movers.peers
        movers.unite(1, a, b)
        a.call(abort)
        assert a.call(state)[1] == ErrorType.COMM_ERROR.name
        with pytest.raises(cc.Closed):
            a.call(add_up)
        movers.unite(2, a, b)


def url_of(worker: Worker) -> str:
    return str(worker.kept["group"].communicator._agent._url)


def test_each_group_has_a_coordinator_that_ends_with_it() -> None:
    """Where none is named."""
    with Movers(3, own_coordinator=True) as movers:
        a, b, c = movers.peers
        movers.unite(1, a, b, c)
        first = a.call(url_of)
        a.kill()
        movers.unite(2, b, c)
        second = b.call(url_of)
        assert second != first and is_up(second)
        assert has_ended(first)
        movers.each(abort, peers=[b, c])
        assert has_ended(second)


def configure(worker: Worker, address: str, *arguments: Any) -> tuple[int, int]:
    group = worker.kept["group"]
    assert group.configure(address, *arguments) is None
    return group.rank(), group.size()


def test_configure_is_the_same_with_a_store_of_others() -> None:
    """As torchft up to 0.2 calls it, by position."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with Movers(3) as movers:
        for generation, order in enumerate(([0, 1, 2], [2, 0])):
            peers, size = [movers.peers[at] for at in order], len(order)
            address = f"localhost:{store.port}/torchft/{generation}/0"
            calls = [
                peer.start(configure, address, f"replica {rank}", rank, size, generation, 0, 1, [])
                for rank, peer in enumerate(peers)
            ]
            assert results(calls) == [(rank, size) for rank in range(size)]
            assert movers.each(add_up, peers=peers) == [(10.0**size - 1) / 9] * size
        assert store.num_keys() == 0  # a run may have thousands of generations


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_peer_that_does_not_come_leaves_the_old_group_as_it_was() -> None:
    with Movers(3) as movers:
        a, b, c = movers.peers
        movers.unite(1, a, b)
        for uuid, handles in ((2, movers.of([a, b, c])), (3, movers.of([c, a, b]))):
            calls = movers.start(move, uuid, handles, 1.0, peers=[a, b])
            for call in calls:
                assert isinstance(call.outcome(limit=10), cc.TimedOut)
            assert movers.each(add_up, peers=[a, b]) == [11.0, 11.0]
        movers.unite(4, c, a, b)


def test_a_first_one_that_is_gone_is_noticed_at_once() -> None:
    with Movers(2) as movers:
        a, b = movers.peers
        a.kill()
        a.reap()
        began = time.monotonic()
        with pytest.raises(cc.ConnectError, match="rank 0 is not there"):
            b.call(move, 1, movers.of([a, b]), 20.0)
        assert time.monotonic() - began < 10
        movers.unite(2, b)


def test_a_peer_that_dies_on_the_way() -> None:
    with Movers(3) as movers:
        a, b, c = movers.peers
        calls = movers.start(move, 1, movers.of([a, b, c]), 2.0, peers=[a, b])
        a.kill()
        a.reap()
        assert isinstance(calls[1].outcome(limit=10), (cc.ConnectError, cc.TimedOut))
        movers.unite(2, b, c)


def test_peers_with_different_lists_do_not_meet() -> None:
    with Movers(3) as movers:
        a, b, c = movers.peers
        calls = [
            a.start(move, 1, movers.of([a, b]), 1.0),
            b.start(move, 1, movers.of([a, b, c]), 1.0),
        ]
        for outcome in outcomes(calls, limit=10):
            assert isinstance(outcome, cc.TimedOut)
        movers.unite(2, a, b, c)


def test_handles_that_cannot_be() -> None:
    with Movers(2) as movers:
        a, b = movers.peers
        mine, other = movers.of([a, b])
        mark, name, host, address = mine.split("/")
        elsewhere = "/".join((mark, "0" * 32, "1", address))
        for handles, why in [
            ([], "own handle"),
            ([other], "own handle"),
            ([mine, mine], "twice"),
            ([mine, "gloo:0:1:0:"], "no handle"),
            ([mine, f"collectives/{name}/{host}/somewhere:1"], "no handle"),
            ([mine, f"other/{name}/{host}/{address}"], "no handle"),
            ([mine, elsewhere], "different hosts"),
        ]:
            with pytest.raises(ValueError, match=why):
                a.call(move, 1, handles)
        movers.unite(1, a, b)
        with pytest.raises(RuntimeError, match="uuid 1 was already used"):
            a.call(move, 1, [mine])
        assert movers.each(add_up) == [11.0, 11.0]


def test_a_group_without_members_says_so() -> None:
    group = collectives.torch.reconfigurable()
    try:
        assert collectives.torch.supports_reconfigure(group)
        assert (group.rank(), group.size(), group.errored()) == (0, 1, None)
        for call in (dist.all_reduce, lambda x, group: group.send([x], 0, 1)):
            with pytest.raises(RuntimeError, match="call reconfigure"):
                call(torch.ones(2), group=group)
    finally:
        group.shutdown()


def test_the_helpers_need_a_group() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        collectives.torch.get_reconfigure_handle()


# ---- the default group, and what is built on it --------------------------------------------------


def train(worker: Worker, steps: int) -> list[float]:
    """A call: DDP under one and the same object, whatever becomes of the group."""
    if "model" not in worker.kept:
        torch.manual_seed(1)
        worker.kept["model"] = DistributedDataParallel(torch.nn.Linear(4, 1, bias=False))
    model = worker.kept["model"]
    for _ in range(steps):
        model.zero_grad()
        model(torch.full((2, 4), dist.get_rank() + 1.0)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    return [p for parameter in model.parameters() for p in parameter.flatten().tolist()]


def default_handle(worker: Worker) -> str:
    return collectives.torch.get_reconfigure_handle()


def move_default(worker: Worker, uuid: int, handles: list[str]) -> tuple[int, int]:
    before = dist.group.WORLD
    collectives.torch.reconfigure(uuid, handles).wait()
    assert dist.group.WORLD is before
    return dist.get_rank(), dist.get_world_size()


def test_ddp_goes_on_with_the_survivors() -> None:
    with Ranks(3) as ranks:
        first = ranks.each(train, 2)
        assert first[0] == first[1] == first[2]
        handles = ranks.each(default_handle)
        ranks.peers[1].kill()
        left = [ranks.peers[2], ranks.peers[0]]
        calls = ranks.start(move_default, 1, [handles[2], handles[0]], peers=left)
        assert [call.result() for call in calls] == [(0, 2), (1, 2)]
        second = ranks.each(train, 2, peers=left)
        assert second[0] == second[1]
        # The gradient of each weight is the mean of 2 * (rank + 1) over the ranks that there are.
        steps = [a - b for a, b in zip(first[0], second[0], strict=True)]
        assert steps == pytest.approx([2 * 0.01 * 3.0] * 4, abs=1e-6)


def subgroup(worker: Worker) -> None:
    worker.kept["subgroup"] = dist.new_group([0, 1])


def in_subgroup(worker: Worker) -> float:
    x = torch.ones(1)
    dist.all_reduce(x, group=worker.kept["subgroup"])
    return x.item()


def test_subgroups_end_with_the_group_that_they_are_of() -> None:
    with Ranks(2) as ranks:
        ranks.each(subgroup)
        assert ranks.each(in_subgroup) == [2.0, 2.0]
        handles = ranks.each(default_handle)
        calls = ranks.start(move_default, 1, handles)
        assert [call.result() for call in calls] == [(0, 2), (1, 2)]
        for outcome in outcomes(ranks.start(in_subgroup)):
            assert isinstance(outcome, cc.Closed)
        ranks.each(subgroup)
        assert ranks.each(in_subgroup) == [2.0, 2.0]


def upstream(worker: Worker, rank: int, url: str, path: str) -> list[Any]:
    """A call: torch's own functions, from init_process_group on. Rank 1 joins late."""
    import os

    os.environ["COLLECTIVES_COORDINATOR"] = url
    store = dist.FileStore(path, 2)
    dist.init_process_group(
        "collectives",
        store=store,
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
        enable_reconfigure=True,
    )
    assert dist._supports_reconfigure()
    with pytest.raises(RuntimeError, match="call reconfigure"):
        dist.all_reduce(torch.ones(1))
    mine = dist._get_reconfigure_handle()
    store.set(f"handle {rank}", mine)
    seen = []
    if rank == 0:
        dist._reconfigure(7, {mine}, hints={"any": "thing"}).wait()
        seen.append((dist.get_rank(), dist.get_world_size()))
    handles = [store.get(f"handle {r}").decode() for r in (1, 0)]
    dist._reconfigure(8, handles, timeout=timedelta(seconds=10)).wait()
    x = torch.full((1,), dist.get_rank() + 1.0)
    dist.all_reduce(x)
    seen.append((dist.get_rank(), dist.get_world_size(), x.item()))
    dist.destroy_process_group()
    return seen


@pytest.mark.skipif(not hasattr(dist, "_reconfigure"), reason="torch >= 2.14 has it")
def test_torchs_own_functions(tmp_path: Any) -> None:
    with Movers(2) as movers:
        calls = [
            peer.start(upstream, rank, movers.url, str(tmp_path / "store"))
            for rank, peer in enumerate(movers.peers)
        ]
        assert [call.result() for call in calls] == [[(0, 1), (1, 2, 3.0)], [(0, 2, 3.0)]]


def test_options_are_taken_from_whatever_has_them() -> None:
    """torchft has a class of its own where torch has none; its timeout may be None."""
    with Movers(1) as movers:
        (peer,) = movers.peers
        assert peer.call(move_by, movers.handles[peer]) == (0, 1)


def move_by(worker: Worker, handle: str) -> tuple[int, int]:
    group = worker.kept["group"]
    group.reconfigure(SimpleNamespace(uuid=3, handles=[handle], timeout=None, hints={})).wait()
    return group.rank(), group.size()
