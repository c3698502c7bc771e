"""Work objects and their futures, as user code and C++ see them. Skipped without torch.

Goal: a Work tells the truth at any time and from any thread; a future yields a list of tensors, and
its callbacks may call other collectives; a Work that nobody keeps does no harm. Method: one rank
posts, and the test decides when the others follow, so that what is under way is under way for
certain; no time is measured but to find that a wait has passed.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, results  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402

pytestmark = pytest.mark.timeout(60)

SOON = timedelta(milliseconds=50)


def ones_sum(worker: Worker, count: int = 1) -> None:
    """A call: what the other ranks do while one tries something out."""
    for _ in range(count):
        x = torch.ones(4)
        dist.all_reduce(x)
        assert torch.equal(x, torch.full((4,), float(dist.get_world_size())))


# ---- a Work ----------------------------------------------------------------------------------


def looks_at_a_work(worker: Worker) -> None:
    """A call: what a Work says before the others have come, and after."""
    x = torch.ones(4)
    work = dist.all_reduce(x, async_op=True)
    assert not work.is_completed() and not work.is_success() and work.exception() is None
    future = work.get_future()
    assert not future.done()
    with pytest.raises(TimeoutError, match=r"all_reduce.*goes on"):
        work.wait(SOON)
    with pytest.raises(RuntimeError):  # a script for torch knows no other
        work.wait(SOON)
    assert work.exception() is None, "only the waiting has passed"
    worker.note("under way")
    assert work.wait() is True and work.wait(SOON) is True
    assert work.is_completed() and work.is_success() and work.exception() is None
    assert torch.equal(x, torch.full((4,), 2.0))
    (result,) = work.result()
    assert result is x
    work.synchronize()
    (value,) = future.wait()
    assert value.data_ptr() == x.data_ptr()
    with pytest.raises(RuntimeError, match="only a recv"):
        work.source_rank()


def test_a_work_tells_the_truth_before_and_after() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(looks_at_a_work)
        assert ranks.peers[0].wait_note() == "under way"
        ranks.peers[1].call(ones_sum)
        first.result()
        ranks.each(ones_sum)


def waits_in_threads(worker: Worker) -> None:
    """A call: many threads wait for one Work, whose result has to be brought into place."""
    size, rank = dist.get_world_size(), dist.get_rank()
    targets = [torch.zeros(3, 2).t() for _ in range(size)]  # strided: copied at the end
    work = dist.all_gather(targets, torch.full((2, 3), float(rank)), async_op=True)
    wrong: list[Any] = []

    def wait() -> None:
        try:
            work.wait()
            for source, target in enumerate(targets):
                assert torch.equal(target, torch.full((2, 3), float(source)))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    worker.note("waiting")
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not wrong


def test_many_threads_may_wait_for_one_work() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(waits_in_threads)
        ranks.peers[0].wait_note()
        ranks.peers[1].call(waits_in_threads)
        first.result()


def drops(worker: Worker, count: int) -> None:
    """A call: posts operations, keeps neither Work nor tensor, and goes on."""
    for i in range(count):
        dist.all_reduce(torch.full((1000,), float(i)), async_op=True)
        dist.all_gather([torch.empty(9) for _ in range(2)], torch.ones(9), async_op=True)
        if i % 3 == 0:
            dist.all_reduce(torch.ones(5), async_op=True).get_future()
    gc.collect()
    ones_sum(worker)


def test_works_may_be_dropped_while_under_way() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(drops, 25)
        ranks.peers[1].call(drops, 25)
        first.result()
        ranks.each(ones_sum)


def keeps_nothing(worker: Worker) -> None:
    """A call: memory of an operation that is over is given back, without another operation."""
    for post in (
        lambda x: dist.all_reduce(x, async_op=True),
        lambda x: dist.all_gather([torch.empty(3) for _ in range(2)], x, async_op=True),
        lambda x: dist.all_reduce(x, async_op=True).get_future(),
    ):
        x = torch.ones(3)
        work, memory = post(x), weakref.ref(x)
        work.wait()
        del x, work
        deadline = time.monotonic() + 10
        while memory() is not None:  # the thread of a future may be about to let go
            assert time.monotonic() < deadline
    ones_sum(worker)


def test_what_is_over_keeps_no_memory() -> None:
    with Ranks(2) as ranks:
        ranks.each(keeps_nothing)


def posts_many(worker: Worker, count: int) -> None:
    """A call: more operations at once than the core takes, waited for in reverse."""
    size = dist.get_world_size()
    xs = [torch.full((16,), float(i)) for i in range(count)]
    works = [dist.all_reduce(x, async_op=True) for x in xs]
    for work in reversed(works):
        assert work.wait()
    for i, x in enumerate(xs):
        assert torch.equal(x, torch.full((16,), float(i * size)))


def test_300_operations_at_once() -> None:
    with Ranks(3) as ranks:
        ranks.each(posts_many, 300)


def is_interrupted(worker: Worker, count: int) -> None:
    """A call: posts more than the core takes before anybody else comes, and has to wait; a signal's
    handler posts one more."""
    posted: list[Any] = []

    def handle(*_: Any) -> None:
        posted.append(dist.all_reduce(torch.ones(4), async_op=True))
        worker.note("handled")

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    works = [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(count)]
    for work in works + posted:
        work.wait()
    assert len(posted) == 1


def test_a_signal_handler_may_post_in_the_middle_of_a_post() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(is_interrupted, 70)
        assert ranks.peers[0].wait_note() == "handled"
        ranks.peers[1].call(ones_sum, 71)
        first.result()
        ranks.each(ones_sum)


# ---- futures ---------------------------------------------------------------------------------


def follows(worker: Worker) -> None:
    """A call: callbacks that each run another collective and wait for it, and are followed
    themselves."""
    size, rank = dist.get_world_size(), dist.get_rank()

    def again(future: Any) -> Any:
        (value,) = future.value()
        other = torch.full((3,), float(rank))
        dist.all_reduce(other, op=dist.ReduceOp.MAX)
        assert torch.equal(other, torch.full((3,), size - 1.0))
        return [value * 2]

    future = dist.all_reduce(torch.ones(2), async_op=True).get_future()
    for _ in range(10):
        future = future.then(again)
    (value,) = future.wait()
    assert torch.equal(value, torch.full((2,), size * 2.0**10))


def nests(worker: Worker) -> None:
    """A call: a callback waits for a future whose callback waits for a future, and so on."""
    size = dist.get_world_size()

    def level(depth: int) -> Any:
        future = dist.all_reduce(torch.ones(1), async_op=True).get_future()
        if not depth:
            return future
        return future.then(lambda done: [done.value()[0] + level(depth - 1).wait()[0]])

    (value,) = level(12).wait()
    assert torch.equal(value, torch.full((1,), 13.0 * size))


def collects(worker: Worker) -> None:
    """A call: many futures at once, each with a callback."""
    size = dist.get_world_size()
    futures = [
        dist.all_reduce(torch.full((8,), float(i)), async_op=True)
        .get_future()
        .then(lambda future: future.value()[0].sum().item())
        for i in range(100)
    ]
    done = torch.futures.collect_all(futures).wait()
    assert [future.value() for future in done] == [8.0 * i * size for i in range(100)]


@pytest.mark.parametrize("call", [follows, nests, collects])
def test_callbacks_may_call_collectives(call: Any) -> None:
    with Ranks(2) as ranks:
        ranks.each(call)
        ranks.each(ones_sum)


def values_of_futures(worker: Worker) -> None:
    """A call: the value of every kind of operation's future is a list of its tensors."""
    size, rank = dist.get_world_size(), dist.get_rank()
    x = torch.ones(2)
    outputs = [torch.empty(2) for _ in range(size)]
    flat = torch.empty(2 * size)
    part = torch.empty(1)
    for work, expected in [
        (dist.all_reduce(x, async_op=True), [x]),
        (dist.broadcast(x, 0, async_op=True), [x]),
        (dist.reduce(x, 0, async_op=True), [x]),
        (dist.all_gather(outputs, torch.ones(2), async_op=True), [outputs]),
        (dist.all_gather_into_tensor(flat, torch.ones(2), async_op=True), [flat]),
        (dist.reduce_scatter_tensor(part, torch.ones(size), async_op=True), [part]),
        (dist.all_to_all_single(x, torch.ones(2), async_op=True), [x]),
        (dist.barrier(async_op=True), []),
    ]:
        value = work.get_future().wait()
        assert isinstance(value, list) and len(value) == len(expected)
        for got, wanted in zip(value, expected, strict=True):
            pairs = zip(got, wanted, strict=True) if isinstance(got, list) else [(got, wanted)]
            assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    other = (rank + 1) % size
    send, receive = dist.isend(torch.full((2,), float(rank)), other), dist.irecv(x, other)
    assert send is not None and receive is not None
    (value,) = receive.get_future().wait()
    assert torch.equal(value, torch.full((2,), float(other))) and receive.source_rank() == other
    send.wait()


def test_every_future_yields_its_tensors() -> None:
    with Ranks(2) as ranks:
        ranks.each(values_of_futures)


# ---- failures --------------------------------------------------------------------------------


def fails(worker: Worker) -> str:
    """A call: an operation whose other rank dies, looked at from all sides."""
    work = dist.all_reduce(torch.ones(4), async_op=True)
    future = work.get_future()
    seen = future.then(lambda done: done.value())  # raises what the operation failed with
    rescued = future.then(_rescue)
    worker.note("under way")
    with pytest.raises(cc.PeerLost) as caught:
        work.wait()
    for _ in range(2):  # each time
        with pytest.raises(cc.PeerLost):
            work.wait()
    assert work.is_completed() and not work.is_success()
    assert isinstance(work.exception(), cc.PeerLost)
    with pytest.raises(cc.PeerLost):
        work.result()
    with pytest.raises(cc.PeerLost):
        work.synchronize()
    for one in (future, seen):
        with pytest.raises(RuntimeError, match="rank 1 was lost"):
            one.wait()
    assert "rank 1 was lost" in rescued.wait()
    late = work.get_future()  # asked for when all is over
    with pytest.raises(RuntimeError, match="rank 1 was lost"):
        late.wait()
    return str(caught.value)


def _rescue(future: Any) -> str:
    try:
        future.value()
    except RuntimeError as error:
        return str(error)
    return "it went well"


def test_a_failure_is_told_by_work_and_future_alike() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(fails)
        ranks.peers[0].wait_note()
        ranks.peers[1].kill()
        assert "all_reduce" in first.result()


def raises_in_a_callback(worker: Worker) -> None:
    """A call: what a callback raises is its future's, and nobody else's."""

    def bad(_: Any) -> None:
        raise KeyError("bad callback")

    future = dist.all_reduce(torch.ones(1), async_op=True).get_future()
    with pytest.raises(RuntimeError, match="bad callback"):
        future.then(bad).wait()
    assert torch.equal(future.wait()[0], torch.full((1,), float(dist.get_world_size())))
    ones_sum(worker)


def test_a_callback_may_raise() -> None:
    with Ranks(2) as ranks:
        ranks.each(raises_in_a_callback)


# ---- messages --------------------------------------------------------------------------------


def receives_late(worker: Worker) -> None:
    """A call: a recv whose waiting passes, and that is served all the same."""
    x = torch.zeros(3)
    work = dist.irecv(x, 1)
    assert work is not None and not work.is_completed()
    with pytest.raises(TimeoutError):
        work.wait(SOON)
    worker.note("under way")
    assert work.wait() and work.source_rank() == 1
    assert torch.equal(x, torch.arange(3.0))


def sends(worker: Worker) -> None:
    """A call: one message to rank 0."""
    dist.send(torch.arange(3.0), 0)


def test_waiting_for_a_message_may_pass() -> None:
    with Ranks(2) as ranks:
        first = ranks.peers[0].start(receives_late)
        ranks.peers[0].wait_note()
        results([first, ranks.peers[1].start(sends)])


# ---- threads ---------------------------------------------------------------------------------


def posts_from_threads(worker: Worker, threads: int, count: int) -> None:
    """A call: threads, as those of callbacks are, post the same operation in one group."""
    wrong: list[Any] = []

    def post() -> None:
        try:
            xs = [torch.ones(3) for _ in range(count)]
            works = [dist.all_reduce(x, async_op=True) for x in xs]
            for work in works:
                work.wait()
            assert all(torch.equal(x, torch.full((3,), 2.0)) for x in xs)
        except BaseException as error:
            wrong.append(error)

    running = [threading.Thread(target=post) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong, wrong


def test_threads_may_share_a_group() -> None:
    with Ranks(2) as ranks:
        ranks.each(posts_from_threads, 6, 200)


class Ending:
    """An operation that ends right when the waiting for it has passed."""

    info = None
    done = False

    def wait(self, timeout: float | None = None) -> None:
        if not self.done:
            self.done = True
            raise cc.TimedOut("all_reduce is not complete; it goes on")


def test_waiting_that_passes_as_the_operation_ends_is_no_failure() -> None:
    from collectives.torch.work import Work

    x = torch.ones(1)
    work = Work([Ending()], [x])
    with pytest.raises(TimeoutError):
        work.wait(SOON)
    assert work.is_success() and work.exception() is None
    assert work.get_future().wait()[0].data_ptr() == x.data_ptr()


def test_a_wait_for_several_has_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from collectives.torch import work as module

    now, limits = [100.0], []

    class Slow:
        """An operation that takes 0.4 s by the clock of this test."""

        done = True

        def wait(self, timeout: float | None = None) -> None:
            limits.append(timeout)
            now[0] += 0.4

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    module.Work([Slow() for _ in range(4)], []).wait(timedelta(seconds=1))
    assert limits == pytest.approx([1.0, 0.6, 0.2, 0.0])
