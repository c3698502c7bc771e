"""What a fault does to a group of torch in its default mode. Skipped without torch.

Goal: when a rank is killed, stopped or exits, every other rank raises, quickly, an error that names
the operation and the rank; groups and messages without it go on; a rank that calls another
operation, or none, is named on all. Method: the victim kills itself at a given place of the model's
code, so that what the others are in is known; its last words are the time from which they are
measured.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Call, Worker, outcomes, results  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch import nn  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)

NOTICED_S = 1.0  # of a death that the system tells
LATE_S = cc.LAN.dead  # who is late is known by then
DEAD_S = cc.LAN.dead + 2.0  # of silence: the time itself, and what it takes to agree


def die() -> None:
    """In a hook of the model: this process is gone before it returns."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def works(worker: Worker) -> None:
    """A call: the default group is a group."""
    x = torch.ones(2)
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((2,), float(dist.get_world_size())))


def still_fails(worker: Worker, root: int) -> None:
    """A call: whatever is called later fails as well, at once; `root` lives."""
    x = torch.ones(2)
    for call in (
        lambda: dist.all_reduce(x),
        lambda: dist.all_reduce(torch.ones(1 << 16), async_op=True).wait(),
        lambda: dist.broadcast(x, root),
        lambda: dist.all_gather_into_tensor(torch.empty(2 * dist.get_world_size()), x),
        lambda: dist.barrier(),
    ):
        began = time.monotonic()
        with pytest.raises(cc.PeerLost, match=r"rank \d was lost"):
            call()
        assert time.monotonic() - began < NOTICED_S


def check(calls: list[Call], victim: int, since: float, word: str, limit: float) -> None:
    """All but the victim failed, naming it, within the limit."""
    survivors = [call for rank, call in enumerate(calls) if rank != victim]
    for error in outcomes(survivors):
        assert isinstance(error, RuntimeError), error
        assert f"rank {victim} was lost" in str(error), error
        assert word in str(error) and "survivors" not in str(error), error
    assert max(call.ended_at for call in survivors) - since < limit


def dies_in_training(ranks: Ranks, function: Any, victim: int, word: str) -> None:
    calls = ranks.start(function, victim)
    dying = ranks.peers[victim]
    assert dying.wait_note() == "dies"
    with pytest.raises(EOFError):
        calls[victim].outcome()
    check(calls, victim, dying.noted_at, word, NOTICED_S)
    survivors = [peer for rank, peer in enumerate(ranks.peers) if rank != victim]
    ranks.each(still_fails, (victim + 1) % len(ranks.peers), peers=survivors)


# ---- in training -----------------------------------------------------------------------------


def _model(width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(4)])


def trains_ddp(worker: Worker, victim: int) -> None:
    """A call: a victim dies in its third backward pass, with some buckets on their way."""
    model = nn.parallel.DistributedDataParallel(_model(64), bucket_cap_mb=0.01)
    rank, turn = dist.get_rank(), 0

    def hook(gradient: Any) -> None:
        if rank == victim and turn == 2:
            worker.note("dies")
            die()

    model.module[1].weight.register_hook(hook)
    for turn in range(5):  # noqa: B007
        model(torch.randn(3, 64)).sum().backward()


def trains_fsdp(worker: Worker, victim: int) -> None:
    """A call: a victim dies in the middle of its second forward pass."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model, rank, turn = _model(), dist.get_rank(), 0
    model = nn.Sequential(
        *[FullyShardedDataParallel(layer, device_id=torch.device("cpu")) for layer in model]
    )

    def hook(*_: Any) -> None:
        if rank == victim and turn == 1:
            worker.note("dies")
            die()

    model[2].register_forward_pre_hook(hook)
    for turn in range(4):  # noqa: B007
        model(torch.randn(3, 8)).sum().backward()


def trains_fsdp2(worker: Worker, victim: int) -> None:
    """A call: the same with `fully_shard`."""
    from torch.distributed.fsdp import fully_shard

    model, rank, turn = _model(), dist.get_rank(), 0
    model[2].register_forward_pre_hook(
        lambda *_: (worker.note("dies"), die()) if rank == victim and turn == 1 else None
    )
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    for turn in range(4):  # noqa: B007
        model(torch.randn(3, 8)).sum().backward()


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_in_ddp_backward(victim: int) -> None:
    with Ranks(3) as ranks:
        dies_in_training(ranks, trains_ddp, victim, "all_reduce")


@pytest.mark.parametrize(
    ("train", "victim"), [(trains_fsdp, 0), (trains_fsdp, 2), (trains_fsdp2, 0), (trains_fsdp2, 2)]
)
def test_killed_in_fsdp_forward(train: Any, victim: int) -> None:
    with Ranks(3) as ranks:
        dies_in_training(ranks, train, victim, "all_gather")


# ---- each operation --------------------------------------------------------------------------


def _operations() -> dict[str, Any]:
    size = dist.get_world_size()
    x, many = torch.ones(6), torch.ones(6 * size)
    rows = [torch.empty(6) for _ in range(size)]
    at_root = dist.get_rank() == 1
    return {
        "all_reduce": lambda: dist.all_reduce(x),
        "large all_reduce": lambda: dist.all_reduce(torch.ones(1 << 19)),
        "reduce": lambda: dist.reduce(x, 1),
        "broadcast": lambda: dist.broadcast(x, 2),
        "all_gather": lambda: dist.all_gather(rows, x),
        "gather": lambda: dist.gather(x, rows if at_root else None, 1),
        "scatter": lambda: dist.scatter(x, None, 2),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(x, many),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty(6 * size), many),
        "broadcast by a survivor": lambda: dist.broadcast(x, 1),
        "scatter by a survivor": lambda: dist.scatter(x, rows if at_root else None, 1),
        "reduce at the dead": lambda: dist.reduce(x, 2),
        "gather at the dead": lambda: dist.gather(x, None, 2),
        "barrier": lambda: dist.barrier(),
    }


def is_in(worker: Worker, operation: str) -> None:
    """A call: waits in this operation."""
    call = _operations()[operation]
    worker.note("begins")
    call()


def lose_rank_2_in(ranks: Ranks, operation: str) -> tuple[list[Call], float]:
    """Ranks 0 and 1 are in it; rank 2 dies without having called it."""
    calls = ranks.start(is_in, operation, peers=ranks.peers[:2])
    for peer in ranks.peers[:2]:
        peer.wait_note()
    return calls, ranks.peers[2].kill()


@pytest.mark.parametrize(
    "operation",
    [
        *("all_reduce", "large all_reduce", "reduce", "all_gather", "gather"),
        *("broadcast", "scatter", "reduce_scatter", "all_to_all", "barrier"),
    ],
)
def test_killed_before_it_calls(operation: str) -> None:
    with Ranks(3) as ranks:
        calls, since = lose_rank_2_in(ranks, operation)
        check(calls, 2, since, operation.split()[-1], NOTICED_S)
        ranks.each(still_fails, 0, peers=ranks.peers[:2])


@pytest.mark.parametrize(
    "operation",
    [
        *("broadcast by a survivor", "scatter by a survivor"),
        *("reduce at the dead", "gather at the dead"),
    ],
)
def test_what_all_survivors_have_done_is_complete(operation: str) -> None:
    """These wait for nothing of the lost rank: all survivors succeed, or none. The next fails."""
    with Ranks(3) as ranks:
        calls, _ = lose_rank_2_in(ranks, operation)
        first, second = outcomes(calls)
        assert type(first) is type(second), (first, second)
        assert first is None or isinstance(first, cc.PeerLost), first
        ranks.each(still_fails, 0, peers=ranks.peers[:2])


def leaves_with_an_error(worker: Worker) -> None:
    """A call: a script's end by an exception, as far as others see it."""
    worker.note("dies")
    ctypes.pythonapi.Py_Exit(1)


def test_a_rank_that_exits() -> None:
    with Ranks(3) as ranks:
        calls = ranks.start(is_in, "all_reduce", peers=ranks.peers[1:])
        for peer in ranks.peers[1:]:
            peer.wait_note()
        ranks.peers[0].start(leaves_with_an_error)
        ranks.peers[0].wait_note()
        for error in outcomes(calls):
            assert isinstance(error, cc.PeerLost), error
            assert "all_reduce" in str(error) and "rank 0" in str(error), error


def test_a_rank_that_stops() -> None:
    with Ranks(3) as ranks:
        ranks.each(works)
        since = ranks.peers[2].signal(signal.SIGSTOP)
        calls = ranks.start(is_in, "all_reduce", peers=ranks.peers[:2])
        check(calls, 2, since, "all_reduce", DEAD_S)
        ranks.peers[2].signal(signal.SIGCONT)
        with pytest.raises(cc.CollectivesError):
            ranks.peers[2].call(works)
        ranks.each(still_fails, 0, peers=ranks.peers[:2])


# ---- messages --------------------------------------------------------------------------------


def exchanges(worker: Worker, count: int) -> None:
    """A call: ranks 0 and 1 talk to each other, whatever becomes of others."""
    rank = dist.get_rank()
    for i in range(count):
        x = torch.full((100,), float(i))
        received = torch.empty(100)
        ours = dist.isend(x, 1 - rank, tag=i)
        dist.recv(received, 1 - rank, tag=i)
        ours.wait()
        assert torch.equal(received, x)
        if i == count // 4:
            worker.note("under way")


def waits_for_a_message(worker: Worker, source: int | None) -> None:
    """A call: a message that never comes."""
    work = dist.irecv(torch.empty(1), source)
    worker.note("waits")
    work.wait()


def sends_what_nobody_takes(worker: Worker, to: int) -> None:
    """A call: a message that is never received."""
    work = dist.isend(torch.empty(1), to)
    worker.note("waits")
    work.wait()


def test_messages_of_others_go_on() -> None:
    with Ranks(3) as ranks:
        calls = ranks.start(exchanges, 400, peers=ranks.peers[:2])
        for peer in ranks.peers[:2]:
            peer.wait_note()
        ranks.peers[2].kill()
        results(calls)
        ranks.each(exchanges, 4, peers=ranks.peers[:2])


def test_messages_of_the_lost_rank_fail() -> None:
    with Ranks(3) as ranks:
        calls = [
            ranks.peers[0].start(waits_for_a_message, 2),
            ranks.peers[1].start(sends_what_nobody_takes, 2),
        ]
        for peer in ranks.peers[:2]:
            peer.wait_note()
        since = ranks.peers[2].kill()
        for call, word in zip(calls, ("recv", "send"), strict=True):
            error = call.outcome()
            assert isinstance(error, cc.PeerLost), error
            assert error.rank == 2 and error.operation == word, error
            assert word in str(error) and "rank 2" in str(error), error
            assert call.ended_at - since < NOTICED_S
        for peer in ranks.peers[:2]:  # and what is called now
            with pytest.raises(cc.PeerLost, match="rank 2"):
                peer.call(waits_for_a_message, 2)


def test_a_message_from_anybody_when_all_others_are_lost() -> None:
    with Ranks(3) as ranks:
        call = ranks.peers[0].start(waits_for_a_message, None)
        ranks.peers[0].wait_note()
        ranks.peers[1].kill()
        since = ranks.peers[2].kill()
        assert isinstance(call.outcome(), cc.PeerLost)
        assert call.ended_at - since < NOTICED_S


# ---- no fault, but wrong ---------------------------------------------------------------------


def calls_by_rank(worker: Worker, kind: str) -> None:
    """A call: rank 0 calls something else than the others."""
    first = dist.get_rank() == 0
    x = torch.ones(8)
    if kind == "operation":
        dist.barrier() if first else dist.all_reduce(x)
    elif kind == "count":
        dist.all_reduce(torch.ones(9) if first else x)
    elif kind == "dtype":
        dist.all_reduce(torch.ones(8, dtype=torch.int64) if first else x)
    elif kind == "reduction":
        dist.all_reduce(x, op=dist.ReduceOp.MAX if first else dist.ReduceOp.SUM)
    elif kind == "root":
        dist.broadcast(x, 0 if first else 1)
    elif kind == "list":
        dist.all_reduce_coalesced([x] if first else [x[:4], x[4:]])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("operation", ["barrier", "all_reduce"]),
        ("count", ["count=9", "count=8"]),
        ("dtype", ["int64", "float32"]),
        ("reduction", ["max", "sum"]),
        ("root", ["root=0", "root=1"]),
    ],
)
def test_a_mismatch_is_named_on_all(kind: str, words: list[str]) -> None:
    with Ranks(3) as ranks:
        for error in outcomes(ranks.start(calls_by_rank, kind)):
            assert isinstance(error, cc.Mismatch), error
            assert all(word in str(error) for word in [*words, "rank 0"]), error
        ranks.each(works)


def has_little_time(worker: Worker, how: str) -> None:
    """A call: waits for a rank that does not come in time."""
    x = torch.ones(8)
    limit = timedelta(seconds=LATE_S)
    if how == "group":
        dist.all_reduce(x, group=worker.kept["group"])
    elif how == "monitored":
        dist.group.WORLD.monitored_barrier(timeout=limit)


def has_a_group(worker: Worker) -> None:
    """A call: a group with a short timeout."""
    worker.kept["group"] = dist.new_group(timeout=timedelta(seconds=LATE_S))


@pytest.mark.parametrize("how", ["group", "monitored"])
def test_who_is_late_is_named_on_all(how: str) -> None:
    with Ranks(3) as ranks:
        ranks.each(has_a_group)
        began = time.monotonic()
        for error in outcomes(ranks.start(has_little_time, how, peers=[*ranks.peers[:2]])):
            assert isinstance(error, cc.TimedOut), error
            assert "rank 2" in str(error), error
        assert time.monotonic() - began < LATE_S + NOTICED_S
        late = ranks.peers[2].start(has_little_time, how).outcome()
        assert isinstance(late, cc.TimedOut), late
        ranks.each(works)
