"""From a store to a group, and the coordinator that rank 0 starts. Skipped without torch.

Goal: every way in which torch finds its peers works; what goes wrong is told to all ranks at once;
the coordinator outlives rank 0 and nobody else's group, and ends with the job. Method: ranks that
are not initialised yet are told how to find each other; whether the coordinator lives is asked at
its port.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Call, Cluster, Peer, Worker, outcomes, results  # noqa: E402
from ranks import Ranks, has_ended, is_up  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)

LIMIT = timedelta(seconds=20)


def initialises(worker: Worker, environment: dict[str, str], **options: Any) -> str:
    """A call: makes the default group with this environment, sees that it works, and tells who
    coordinates it."""
    os.environ.update(environment)
    import collectives.torch  # noqa: F401

    torch.set_num_threads(1)
    dist.init_process_group("collectives", **{"timeout": LIMIT, **options})
    _sum()
    return coordinator(worker)


def coordinator(worker: Worker) -> str:
    """A call: the URL of the coordinator, as rank 0 told it."""
    from collectives.torch import rendezvous

    store = dist.group.WORLD.get_group_store()
    return rendezvous.Address.parse(store.get("1/coordinator").decode()).url


def _sum(group: Any = None) -> None:
    x = torch.ones(3)
    dist.all_reduce(x, group=group)
    assert torch.equal(x, torch.full((3,), float(dist.get_world_size(group))))


def works(worker: Worker) -> None:
    """A call: the default group is a group."""
    _sum()


def ends(worker: Worker) -> None:
    """A call: destroys all groups."""
    dist.destroy_process_group()


@contextlib.contextmanager
def processes(size: int) -> Iterator[Cluster]:
    """Processes that have joined nothing yet, and a coordinator that they need not use."""
    with Ranks(0) as cluster:
        cluster.add(size)
        yield cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- ways to find each other -----------------------------------------------------------------


def test_environment_with_the_store_of_a_launcher() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with processes(3) as cluster:
        calls = []
        for rank, peer in enumerate(cluster.peers):
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            environment |= {"RANK": str(rank), "WORLD_SIZE": "3"}
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            calls.append(peer.start(initialises, environment))
        (url,) = set(results(calls))
        cluster.each(ends)
        assert has_ended(url)


def test_tcp() -> None:
    with processes(3) as cluster:
        options = {"init_method": f"tcp://127.0.0.1:{free_port()}", "world_size": 3}
        results([p.start(initialises, {}, rank=i, **options) for i, p in enumerate(cluster.peers)])


def with_a_store(worker: Worker, path: str, rank: int, size: int) -> None:
    """A call: the default group from a store object."""
    initialises(worker, {}, store=dist.FileStore(path, size), rank=rank, world_size=size)


def test_a_store(tmp_path: Path) -> None:
    with processes(2) as cluster:
        path = str(tmp_path / "store")
        results([p.start(with_a_store, path, i, 2) for i, p in enumerate(cluster.peers)])


# ---- the coordinator that rank 0 starts ------------------------------------------------------


def test_it_outlives_rank_0_and_ends_with_the_last() -> None:
    with Ranks(3, own_coordinator=True) as ranks:
        (url,) = set(ranks.each(coordinator))
        assert url != ranks.url and is_up(url)
        ranks.peers[0].kill()
        for error in outcomes(ranks.start(works, peers=ranks.peers[1:])):
            assert isinstance(error, cc.PeerLost), error
        assert is_up(url)
        ranks.peers[1].kill()
        assert is_up(url)
        ranks.peers[2].kill()
        assert has_ended(url)


def test_it_ends_with_its_group_and_another_comes_with_the_next() -> None:
    with Ranks(2, own_coordinator=True) as ranks:
        (first,) = set(ranks.each(coordinator))
        ranks.each(ends)
        ranks.initialise("another store")
        (second,) = set(ranks.each(coordinator))
        assert first != second
        ranks.each(works)
        assert has_ended(first) and is_up(second)
        ranks.each(ends)
        assert has_ended(second)


def test_one_rank_alone() -> None:
    with Ranks(1, own_coordinator=True) as ranks:
        (url,) = ranks.each(coordinator)
        ranks.each(works)
        ranks.each(ends)
        assert has_ended(url)


def test_a_rank_that_leaves_first_takes_nothing_along() -> None:
    """As when rank 0 is done with its script before the others."""
    with Ranks(3, own_coordinator=True) as ranks:
        (url,) = set(ranks.each(coordinator))
        ranks.peers[0].call(ends)
        for error in outcomes(ranks.start(works, peers=ranks.peers[1:])):
            assert isinstance(error, cc.PeerLost), error
        assert is_up(url)
        ranks.each(ends, peers=ranks.peers[1:])
        assert has_ended(url)


# ---- what goes wrong -------------------------------------------------------------------------


def start_with(peers: Sequence[Peer], store: Path, environments: Sequence[Any]) -> list[Call]:
    """Lets these be the ranks of one group, each with an environment."""
    options = {"init_method": f"file://{store}", "world_size": len(peers)}
    return [
        peer.start(initialises, environment, rank=rank, **options)
        for rank, (peer, environment) in enumerate(zip(peers, environments, strict=True))
    ]


def test_a_wrong_address_is_told_to_all_ranks(tmp_path: Path) -> None:
    with processes(8) as cluster, socket.create_server(("127.0.0.1", 0)) as silent:
        urls = [
            f"cc://127.0.0.1:{free_port()}",  # nobody is there
            f"cc://127.0.0.1:{silent.getsockname()[1]}",  # something else is there
            "cc://no.such.host.invalid:29400",
            "http://127.0.0.1:1",
        ]
        began, calls = time.monotonic(), {}
        for i, url in enumerate(urls):
            wrong = {"COLLECTIVES_COORDINATOR": url}
            peers = cluster.peers[2 * i : 2 * i + 2]
            calls[url] = start_with(peers, tmp_path / f"store {i}", [wrong, wrong])
        for url in urls:
            for error in outcomes(calls[url]):
                assert isinstance(error, (RuntimeError, ValueError)), error
                assert url in str(error), error
        assert time.monotonic() - began < LIMIT.total_seconds()


def test_what_rank_0_cannot_do_is_told_to_all_ranks(tmp_path: Path) -> None:
    with processes(3) as cluster:
        bad = [{"COLLECTIVES_COORDINATOR": "nonsense"}, {}, {}]
        began = time.monotonic()
        for error in outcomes(start_with(cluster.peers, tmp_path / "store", bad)):
            assert isinstance(error, (RuntimeError, ValueError)), error
            assert "nonsense" in str(error), error
        assert time.monotonic() - began < LIMIT.total_seconds() / 2


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    with processes(2) as cluster:
        options = {"init_method": f"file://{tmp_path}/store", "world_size": 3}
        options["timeout"] = timedelta(seconds=1)
        known = {"COLLECTIVES_COORDINATOR": cluster.url}
        calls = [
            p.start(initialises, known, rank=i, **options) for i, p in enumerate(cluster.peers)
        ]
        for error in outcomes(calls):
            assert isinstance(error, cc.TimedOut), error
            assert "rank 2" in str(error) or "of 3 peers" in str(error), error
