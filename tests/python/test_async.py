"""Works in asyncio: `await`, `gather`, time limits, cancelling. Nothing may block the loop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import numpy as np
import pytest
from cluster import SMALL, Cluster, Worker

import collectives as cc
from collectives.coordinator.server import CoordinatorServer

pytestmark = pytest.mark.timeout(60)


async def several_peers(url: str, count: int, **options: Any) -> list[cc.Communicator]:
    """Communicators of several peers in this one process."""
    joining = [
        asyncio.to_thread(cc.connect, url, size=count, rank=rank, **options)
        for rank in range(count)
    ]
    return await asyncio.gather(*joining)


@pytest.fixture
def url() -> Any:
    with CoordinatorServer() as server:
        yield server.url


async def close_all(comms: list[cc.Communicator]) -> None:
    await asyncio.gather(*(asyncio.to_thread(comm.close) for comm in comms))


async def test_gather_over_the_works_of_several_peers(url: str) -> None:
    comms = await several_peers(url, 3, **SMALL)
    try:
        for round_number in range(20):
            works = [
                comm.all_reduce(np.full(size, comm.rank + round_number), async_op=True)
                for size in (1, 3000, 40_000)
                for comm in comms
            ]
            found = await asyncio.gather(*works)
            assert all((result == 3 + 3 * round_number).all() for result in found)
        assert await asyncio.gather(*(comm.barrier(async_op=True) for comm in comms)) == [None] * 3
    finally:
        await close_all(comms)


async def test_the_loop_goes_on_while_a_work_is_awaited(url: str) -> None:
    comms = await several_peers(url, 2)
    try:
        early = asyncio.ensure_future(wait_for(comms[0].all_reduce(np.ones(5), async_op=True)))
        beats = 0
        for _ in range(20):
            await asyncio.sleep(0.005)
            beats += 1
        assert beats == 20 and not early.done()
        late = comms[1].all_reduce(np.ones(5), async_op=True)
        assert (await early == 2).all() and (await late == 2).all()
        assert (await late == 2).all(), "awaited again"
        assert (late.wait() == 2).all()
    finally:
        await close_all(comms)


async def wait_for(work: cc.Work) -> Any:
    return await work


async def test_several_tasks_await_one_work(url: str) -> None:
    """All of them are told when it is complete."""
    comms = await several_peers(url, 2)
    try:
        work = comms[0].all_reduce(np.ones(5), async_op=True)
        tasks = [asyncio.ensure_future(wait_for(work)) for _ in range(4)]
        await asyncio.sleep(0.02)
        comms[1].all_reduce(np.ones(5), async_op=True)
        found = await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert all((result == 2).all() for result in found)
    finally:
        await close_all(comms)


async def test_one_thread_waits_and_a_task_awaits(url: str) -> None:
    comms = await several_peers(url, 2)
    try:
        work = comms[0].all_reduce(np.ones(5), async_op=True)
        thread = asyncio.ensure_future(asyncio.to_thread(work.wait, 20))
        task = asyncio.ensure_future(wait_for(work))
        await asyncio.sleep(0.02)
        comms[1].all_reduce(np.ones(5), async_op=True)
        found = await asyncio.wait_for(asyncio.gather(thread, task), 10)
        assert all((result == 2).all() for result in found)
    finally:
        await close_all(comms)


async def test_a_cancelled_await_leaves_the_operation_alone(url: str) -> None:
    comms = await several_peers(url, 2)
    try:
        work = comms[0].all_reduce(np.ones(5), async_op=True)
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait_for(work), 0.01)
        other = comms[1].all_reduce(np.ones(5), async_op=True)
        assert (await work == 2).all() and (await other == 2).all()
    finally:
        await close_all(comms)


async def test_errors_come_out_of_await(url: str) -> None:
    comms = await several_peers(url, 2)
    try:
        works = [comms[i].all_reduce(np.ones(5 + i), async_op=True) for i in range(2)]
        found = await asyncio.gather(*works, return_exceptions=True)
        assert [type(error) for error in found] == [cc.Mismatch] * 2
        work = comms[0].all_reduce(np.ones(5), async_op=True, retry=False)
        waiting = asyncio.ensure_future(wait_for(work))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(comms[1].close)
        with pytest.raises(cc.PeerLost):
            await asyncio.wait_for(waiting, 10)
    finally:
        await close_all(comms)


async def test_close_ends_an_await(url: str) -> None:
    comms = await several_peers(url, 2)
    work = comms[0].all_reduce(np.ones(5), async_op=True)
    waiting = asyncio.ensure_future(wait_for(work))
    await asyncio.sleep(0.01)
    await close_all(comms)
    with pytest.raises(cc.Closed):
        await asyncio.wait_for(waiting, 10)


async def test_awaiting_leaves_no_descriptors(url: str) -> None:
    comms = await several_peers(url, 2)
    try:
        counts = []
        for _ in range(30):
            works = [comm.all_reduce(np.ones(20_000), async_op=True) for comm in comms]
            await asyncio.gather(*works)
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[-1] <= counts[0], counts
    finally:
        await close_all(comms)


async def stream(worker: Worker, count: int) -> list[int]:
    comm, found = worker.comm, []
    for number in range(count):
        first = comm.all_reduce(np.full(4000, number), async_op=True)
        second = comm.all_reduce(np.full(4, number), async_op=True, lane=1)
        one, two = await asyncio.gather(first, second)
        found.append(int(one[0] + two[0]))
    return found


def run_stream(worker: Worker, count: int) -> list[int]:
    """A call: an event loop of its own in each process."""
    return asyncio.run(stream(worker, count))


def test_event_loops_in_several_processes() -> None:
    with Cluster(3, **SMALL) as group:
        assert group.each(run_stream, 50) == [[6 * number for number in range(50)]] * 3


async def until_lost(worker: Worker) -> tuple[str, float]:
    worker.note("waiting")
    try:
        await worker.comm.all_reduce(np.ones(10), async_op=True)
    except cc.CollectivesError as error:
        return type(error).__name__, time.monotonic()
    return "ok", time.monotonic()


def run_until_lost(worker: Worker) -> tuple[str, float]:
    return asyncio.run(until_lost(worker))


def test_a_death_ends_an_await() -> None:
    with Cluster(2) as group:
        call = group.peers[0].start(run_until_lost)
        group.peers[0].wait_note()
        killed_at = group.peers[1].kill()
        name, at = call.result(10)
        assert name == "ok" and at - killed_at < 2.0
