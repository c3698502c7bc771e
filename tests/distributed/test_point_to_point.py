"""Messages between two ranks of a torch group. Skipped without torch.

Goal: send, recv, isend, irecv and batches of them match by sender, tag and order, in both ways at
once, of every dtype, and what fails names itself. Method: values tell sender, tag and number.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, outcomes  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)


def value(source: int, tag: int = 0, number: int = 0) -> Any:
    return torch.tensor([source, tag, number])


def by_tag(worker: Worker) -> None:
    """A call: tags are received in another order than they were sent in; each in its own."""
    rank, other = dist.get_rank(), 1 - dist.get_rank()
    tags = [5, 0, 7, 2**31 - 1, 1]
    sends = [dist.isend(value(rank, tag, n), other, tag=tag) for n in range(3) for tag in tags]
    for tag in reversed(tags):
        for n in range(3):
            x = torch.zeros(3, dtype=torch.int64)
            assert dist.recv(x, other, tag=tag) == other
            assert torch.equal(x, value(other, tag, n))
    for work in sends:
        assert work is not None and work.wait()


def in_batches(worker: Worker) -> None:
    """A call: a ring in both ways at once, strided, and more than the core takes operations."""
    rank, size = dist.get_rank(), dist.get_world_size()
    left, right = (rank - 1) % size, (rank + 1) % size
    for _ in range(3):
        from_left = torch.zeros(3, 2).t()
        from_right = torch.zeros(2, 3)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, torch.full((3, 2), rank + 0.5).t(), right, tag=1),
                dist.P2POp(dist.isend, torch.full((2, 3), rank + 0.25), left, tag=2),
                dist.P2POp(dist.irecv, from_left, left, tag=1),
                dist.P2POp(dist.irecv, from_right, right, tag=2),
            ]
        )
        for work in works:
            work.wait()
        assert torch.equal(from_left, torch.full((2, 3), left + 0.5))
        assert torch.equal(from_right, torch.full((2, 3), right + 0.25))
    many = [torch.zeros(2) for _ in range(100)]
    ops = [dist.P2POp(dist.irecv, x, left) for x in many]
    ops += [dist.P2POp(dist.isend, torch.full((2,), float(i)), right) for i in range(100)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert [x[0].item() for x in many] == list(range(100))


def of_anybody(worker: Worker) -> None:
    """A call: rank 0 takes messages of whoever has sent one, and sees whose each is."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank:
        for n in range(20):
            dist.send(value(rank, 3, n), 0, tag=3)
        return
    last = dict.fromkeys(range(1, size), -1)
    for i in range(20 * (size - 1)):
        x = torch.zeros(3, dtype=torch.int64)
        if i % 2:
            source = dist.recv(x, tag=3)
        else:
            work = dist.irecv(x, tag=3)
            assert work is not None
            work.wait()
            source = work.source_rank()
        assert x[0] == source and x[2] == last[source] + 1, "each sender's in order"
        last[source] += 1
    assert set(last.values()) == {19}


def of_every_kind(worker: Worker) -> None:
    """A call: dtypes, shapes, large ones; beside collectives that are under way."""
    rank, other = dist.get_rank(), 1 - dist.get_rank()
    busy = dist.all_reduce(torch.ones(100_000), async_op=True)
    given = [
        torch.arange(6.0).reshape(2, 3).to(dtype)
        for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.complex64, torch.int16)
    ]
    given += [torch.ones(3).to(torch.float8_e5m2), torch.empty(0), torch.tensor(7.0)]
    given += [torch.arange(300_000.0), torch.ones(1).expand(4), torch.ones(2, requires_grad=True)]
    for x in given:
        out = torch.zeros(x.shape, dtype=x.dtype)
        works = [dist.isend(x, other), dist.irecv(out, other)]
        for work in works:
            assert work is not None and work.wait()
        assert (
            torch.equal(out.view(torch.uint8), x.detach().view(torch.uint8))
            if (x.dtype.itemsize == 1)
            else torch.equal(out, x)
        )
    busy.wait()
    assert rank + other == 1


@pytest.mark.parametrize(
    ("size", "call"), [(2, by_tag), (3, in_batches), (2, in_batches), (3, of_anybody)]
)
def test_messages(size: int, call: Any) -> None:
    with Ranks(size) as ranks:
        ranks.each(call)


def test_every_kind_of_tensor() -> None:
    with Ranks(2) as ranks:
        ranks.each(of_every_kind)


def in_groups(worker: Worker) -> None:
    """A call: in a group whose ranks are others, and by its own ranks."""
    group = dist.new_group([2, 0])
    rank = dist.get_rank()
    x = torch.zeros(3, dtype=torch.int64)
    if rank == 0:
        dist.send(value(0), 2, group=group)
        dist.recv(x, group_src=dist.get_group_rank(group, 2), group=group)
        assert torch.equal(x, value(2))
    elif rank == 2:
        assert dist.recv(x, 0, group=group) == 0
        dist.send(value(2), group_dst=dist.get_group_rank(group, 0), group=group)
        assert torch.equal(x, value(0))


def test_messages_in_a_group() -> None:
    with Ranks(3) as ranks:
        ranks.each(in_groups)


# ---- what cannot be ------------------------------------------------------------------------------


def is_refused(worker: Worker) -> None:
    """A call: wrong arguments, and the messages afterwards."""
    rank, other = dist.get_rank(), 1 - dist.get_rank()
    x = torch.ones(2)
    for words, call in [
        ("itself|self|current", lambda: dist.send(x, rank)),
        ("itself|self|current", lambda: dist.isend(x, rank)),
        ("rank", lambda: dist.send(x, 2)),
        ("tag", lambda: dist.isend(x, other, tag=-1)),
        ("tag", lambda: dist.irecv(x, other, tag=2**31)),
        ("share memory", lambda: dist.irecv(torch.ones(1).expand(2), other)),
        ("tensor", lambda: dist.send([1.0], other)),
        ("layout", lambda: dist.send(torch.eye(2).to_sparse(), other)),
    ]:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
            call()
    by_tag(worker)


def test_what_cannot_be_sent() -> None:
    with Ranks(2) as ranks:
        ranks.each(is_refused)


def fits_badly(worker: Worker) -> None:
    """A call: a receiver that asks for another count or dtype: both are told, then all is well."""
    rank = dist.get_rank()
    for given, taken in [
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.ones(3, dtype=torch.int32)),
    ]:
        with pytest.raises(cc.Mismatch, match="recv" if rank else "send"):
            dist.recv(taken, 0) if rank else dist.send(given, 1)
    x = torch.ones(2) * rank
    dist.recv(x, 0) if rank else dist.send(x, 1)
    assert torch.equal(x, torch.zeros(2))


def test_both_are_told_of_a_message_that_does_not_fit() -> None:
    with Ranks(2) as ranks:
        ranks.each(fits_badly)


def waits_in_vain(worker: Worker) -> None:
    """A call: a recv that nobody serves, in a group with a short deadline."""
    dist.recv(torch.empty(1), 1)


def test_a_recv_that_is_not_served_says_so() -> None:
    with Ranks(2, timeout=timedelta(seconds=0.3)) as ranks:
        (error,) = outcomes([ranks.peers[0].start(waits_in_vain)])
        assert isinstance(error, cc.TimedOut), error
        assert "recv" in str(error)
