"""The collectives between real processes over TCP, with everything that could go wrong in the
bytes made to happen: tiny segments, tiny socket buffers, reads and writes cut short, several
streams. Each peer compares its results with a reference that it computes from everybody's input,
and the test compares a digest of all results between the peers: all must hold the same bits.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cluster import NARROW, SMALL, Cluster, Worker, results

import collectives as cc

pytestmark = pytest.mark.timeout(60)

ALGORITHMS = ("auto", "ring", "recursive_doubling", "direct")
COPYING = ("auto", "ring", "direct")  # what broadcast and all_gather can do
DTYPES = ("float32", "float64", "int32", "int64", "bfloat16")
OPS = ("sum", "avg", "min", "max")
SIZES = (0, 1, 1021)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def whole(seed: int, case: int, rank: int, size: int, dtype: str, shape: Any) -> np.ndarray:
    """Small whole numbers: their sums are exact in every dtype, in any order."""
    generator = np.random.default_rng([seed, case, rank])
    bound = 8 if dtype == "bfloat16" else 1000
    return generator.integers(-bound, bound, shape).astype(dtype_of(dtype))


def expected(inputs: list[np.ndarray], op: str) -> np.ndarray:
    rows = np.stack([row.astype(np.float64) for row in inputs])
    function = {"sum": np.sum, "avg": np.mean, "min": np.min, "max": np.max}[op]
    return np.asarray(function(rows, axis=0))


def check_sum(result: np.ndarray, inputs: list[np.ndarray], op: str, what: str) -> None:
    want = expected(inputs, op)
    got = result.astype(np.float64)
    if op == "avg":
        tolerance = 2**-7 if result.dtype.itemsize == 2 else 1e-6
        assert np.allclose(got, want, rtol=tolerance, atol=tolerance), what
    else:
        assert (got == want).all(), what


def cases(floats_only: tuple[str, ...] = ("avg",)) -> Iterator[tuple[str, str, str, int]]:
    for algorithm in ALGORITHMS:
        for dtype in DTYPES:
            for op in OPS:
                if op in floats_only and dtype.startswith("int"):
                    continue
                for size in SIZES:
                    yield algorithm, dtype, op, size


def all_the_sums(worker: Worker, seed: int) -> str:
    """A call: all_reduce in every combination, in place and out of place. Returns a digest."""
    comm, digest = worker.comm, hashlib.sha256()
    for number, (algorithm, dtype, op, count) in enumerate(cases()):
        what = f"{op} of {count} {dtype} by {algorithm}, rank {comm.rank} of {comm.size}"
        shapes = (count,) if count < 2 else (count // 3, 3) if count % 3 == 0 else (count,)
        inputs = [whole(seed, number, r, comm.size, dtype, shapes) for r in range(comm.size)]
        x = inputs[comm.rank].copy()
        if number % 2:
            result = comm.all_reduce(x, op=op, algorithm=algorithm, out=x)
            assert result is x
        else:
            result = comm.all_reduce(x, op=op, algorithm=algorithm)
            assert x.tobytes() == inputs[comm.rank].tobytes(), f"{what}: the input was changed"
        assert result.dtype == x.dtype and result.shape == x.shape
        check_sum(result, inputs, op, what)
        digest.update(result.tobytes())
    return digest.hexdigest()


def others(worker: Worker, seed: int) -> str:
    """A call: broadcast from every root, all_gather, barrier."""
    comm, digest = worker.comm, hashlib.sha256()
    number = 1000
    for algorithm in COPYING:
        for dtype in DTYPES:
            for count in SIZES:
                number += 1
                root = number % comm.size
                rows = [whole(seed, number, r, comm.size, dtype, count) for r in range(comm.size)]
                x = rows[comm.rank].copy()
                if number % 3 == 0:
                    result = comm.broadcast(x, root, algorithm=algorithm, out=x)
                else:
                    result = comm.broadcast(x, root, algorithm=algorithm)
                    assert x.tobytes() == rows[comm.rank].tobytes()
                what = f"{count} {dtype} by {algorithm}"
                assert result.tobytes() == rows[root].tobytes(), f"broadcast of {what}"
                digest.update(result.tobytes())
                if number % 2:
                    result = comm.all_gather(x := rows[comm.rank], algorithm=algorithm)
                else:
                    out = np.full((comm.size, count), 77, dtype_of(dtype))
                    result = comm.all_gather(x := rows[comm.rank], algorithm=algorithm, out=out)
                    assert result is out
                assert result.shape == (comm.size, *x.shape)
                assert result.tobytes() == np.stack(rows).tobytes(), f"all_gather of {what}"
                digest.update(result.tobytes())
            comm.barrier()
    return digest.hexdigest()


def large(worker: Worker, seed: int, count: int) -> str:
    """A call: odd sizes of several MiB, real fractions, so that a wrong order of the sums shows."""
    comm, digest = worker.comm, hashlib.sha256()
    inputs = [
        np.random.default_rng([seed, r]).standard_normal(count, np.float32)
        for r in range(comm.size)
    ]
    for algorithm in ALGORITHMS:
        x = inputs[comm.rank].copy()
        result = comm.all_reduce(x, algorithm=algorithm, out=x if algorithm == "ring" else None)
        assert np.allclose(result, np.sum(inputs, axis=0, dtype=np.float64), atol=1e-4), algorithm
        digest.update(result.tobytes())
    root = comm.size - 1
    assert comm.broadcast(inputs[comm.rank], root).tobytes() == inputs[root].tobytes()
    rows = comm.all_gather(inputs[comm.rank])
    assert rows.tobytes() == np.stack(inputs).tobytes()
    return digest.hexdigest()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_collective_with_short_reads_and_writes(size: int, seed: int) -> None:
    with Cluster(size, **SMALL, **NARROW) as group:
        assert len(set(group.each(all_the_sums, seed))) == 1
        assert len(set(group.each(others, seed))) == 1
        assert len(set(group.each(large, seed, 100_003))) == 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_collective_with_default_options(size: int, seed: int) -> None:
    with Cluster(size) as group:
        assert len(set(group.each(all_the_sums, seed))) == 1
        assert len(set(group.each(others, seed))) == 1
        assert len(set(group.each(large, seed, 1_000_003))) == 1


def special_values(worker: Worker, algorithm: str) -> list[str]:
    """A call: NaN, infinities and zeros of both signs, in places that differ between ranks."""
    comm = worker.comm
    values = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, np.float32(1e-45), 3e38, -3e38]
    table = np.array(np.meshgrid(*[values] * comm.size)).reshape(comm.size, -1)
    found = []
    for dtype in ("float32", "float64", "bfloat16"):
        for op in OPS:
            with np.errstate(all="ignore"):
                x = table[comm.rank].astype(dtype_of(dtype))
            found.append(hashlib.sha256(comm.all_reduce(x, op=op, algorithm=algorithm).tobytes()))
    return [item.hexdigest() for item in found]


@pytest.mark.parametrize("size", [2, 3])
def test_special_values_have_the_same_bits_everywhere(size: int) -> None:
    with Cluster(size, **SMALL) as group:
        for algorithm in ALGORITHMS:
            first, *rest = group.each(special_values, algorithm)
            assert all(other == first for other in rest), algorithm


def signs_of_zero(worker: Worker) -> list[bytes]:
    x = np.array([0.0, -0.0] if worker.comm.rank else [-0.0, 0.0], np.float32)
    return [worker.comm.all_reduce(x, op=op).tobytes() for op in ("min", "max")]


def test_negative_zero_is_below_zero() -> None:
    with Cluster(2) as group:
        for found in group.each(signs_of_zero):
            assert found == [np.array([-0.0] * 2, "f4").tobytes(), bytes(8)]


def several_in_flight(worker: Worker, seed: int) -> str:
    """A call: many operations of mixed sizes and kinds at once, waited for in another order."""
    comm, digest = worker.comm, hashlib.sha256()
    generator = np.random.default_rng(seed)
    works, want = [], []
    for number in range(40):
        count = int(generator.choice([0, 1, 7, 4096, 20_001]))
        lane = int(generator.integers(0, 3))
        algorithm = str(generator.choice(COPYING))
        rows = [whole(seed, number, r, comm.size, "int64", count) for r in range(comm.size)]
        mine = rows[comm.rank]
        kind = int(generator.integers(0, 4))
        if kind == 0:
            works.append(comm.all_gather(mine, async_op=True, lane=lane, algorithm=algorithm))
            want.append(np.stack(rows))
        elif kind == 1:
            root = number % comm.size
            works.append(comm.broadcast(mine, root, async_op=True, lane=lane, algorithm=algorithm))
            want.append(rows[root])
        elif kind == 2:
            works.append(comm.barrier(async_op=True, lane=lane))
            want.append(np.zeros(0))
        else:
            works.append(comm.all_reduce(mine, async_op=True, lane=lane, algorithm=algorithm))
            want.append(np.sum(rows, axis=0))
    for number in np.random.default_rng([seed, comm.rank]).permutation(len(works)):
        result = works[number].wait()
        if result is not None:
            assert result.tobytes() == want[number].tobytes(), f"operation {number}"
        assert works[number].info.contributors in (comm.size, 1)
    for work in works:
        result = work.wait()
        digest.update(b"" if result is None else result.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("size", [2, 4])
def test_several_operations_in_flight(size: int, seed: int) -> None:
    with Cluster(size, **SMALL, io_max_bytes=3000) as group:
        for round_number in range(3):
            assert len(set(group.each(several_in_flight, seed + round_number))) == 1


def lanes_from_threads(worker: Worker, rounds: int) -> list[str]:
    """A call: a thread for each lane; returns what went wrong."""
    comm, wrong = worker.comm, []

    def run(lane: int) -> None:
        try:
            for number in range(rounds):
                count = (number * 37 + lane * 11) % 3000
                x = np.full(count, (comm.rank + 1) * (lane + 1) + number, np.int64)
                want = sum((r + 1) * (lane + 1) + number for r in range(comm.size))
                if not (comm.all_reduce(x, lane=lane) == want).all():
                    wrong.append(f"lane {lane}, round {number}: wrong sum")
        except Exception as error:
            wrong.append(f"lane {lane}: {error!r}")

    threads = [threading.Thread(target=run, args=(lane,)) for lane in (0, 1, 7, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        if thread.is_alive():
            wrong.append("a thread hangs")
    return wrong


def test_lanes_from_several_threads() -> None:
    with Cluster(3, **SMALL) as group:
        for wrong in group.each(lanes_from_threads, 60):
            assert wrong == []


def dropped(worker: Worker, count: int) -> tuple[int, list[str]]:
    """A call: posts many operations and forgets their handles; then one whose result counts."""
    comm, refused = worker.comm, []

    def post(values: np.ndarray) -> cc.Work:
        while True:
            try:
                return comm.all_reduce(values, async_op=True)
            except cc.CollectivesError as error:  # a bound is reached
                refused.append(str(error))
                time.sleep(0.001)

    for _ in range(count):
        post(np.ones(1000))
    return int(post(np.array([1])).wait()[0]), refused[:1]


def test_more_in_flight_than_are_allowed_with_the_handles_dropped() -> None:
    """At most 64 operations of a lane may be open: the next one waits or is refused with a clear
    error, and one that was refused has not used up a number."""
    with Cluster(2, **SMALL) as group:
        first, second = group.peers
        early = first.start(dropped, 200)
        late = second.start(dropped, 200)
        for total, refused in (early.result(), late.result()):
            assert total == 2
            assert all("64" in text or "open" in text for text in refused), refused


def fill_a_lane(worker: Worker) -> tuple[int, str]:
    works = []
    try:
        while len(works) < 200:
            works.append(worker.comm.all_reduce(np.ones(10), async_op=True, timeout=20))
    except cc.CollectivesError as error:
        worker.kept["works"] = works
        return len(works), str(error)
    worker.kept["works"] = works
    return len(works), ""


def finish(worker: Worker, count: int) -> int:
    works = worker.kept.pop("works", [])
    for _ in range(count - len(works)):
        works.append(worker.comm.all_reduce(np.ones(10), async_op=True))
    return sum(int((work.wait() == worker.comm.size).all()) for work in works)


def test_a_full_lane_says_so_and_goes_on() -> None:
    with Cluster(2) as group:
        count, message = group.peers[0].call(fill_a_lane)
        assert count == 64 and message
        calls = [peer.start(finish, count) for peer in reversed(group.peers)]
        assert [call.result() for call in calls] == [count, count]


def endpoint(worker: Worker) -> list[str]:
    comm = worker.comm
    assert comm.all_reduce(np.array([comm.rank]))[0] == sum(range(comm.size))
    return [member.address for member in comm._current().members]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
def test_ipv6_loopback() -> None:
    with Cluster(3, listen="[::1]:0") as group:
        for addresses in group.each(endpoint):
            assert all(address.startswith("[::1]:") for address in addresses)


def test_a_host_name_as_coordinator_and_as_address() -> None:
    with Cluster(0) as group:
        group.url = group.url.replace("127.0.0.1", "localhost")
        group.add(2)
        group.form(group.peers, bind="localhost", advertise="localhost")
        for addresses in group.each(endpoint):
            assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_port_range_and_advertised_address() -> None:
    """127.0.0.2 leads to the same machine, so an advertised address that is not the bound one can
    be told apart and is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = min(probe.getsockname()[1], 65000)
    ports = (first, first + 200)
    with Cluster(3, ports=ports, bind="127.0.0.1", advertise="127.0.0.1") as group:
        found = {int(a.rpartition(":")[2]) for a in group.each(endpoint)[0]}
        assert len(found) == 3 and all(ports[0] <= port <= ports[1] for port in found)


def listen_once(worker: Worker, url: str, **options: Any) -> str:
    with pytest.raises((cc.CollectivesError, ValueError)) as caught:
        cc.connect(url, timeout=5, **options)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_no_free_port_in_the_range_is_a_clear_error() -> None:
    with Cluster(0) as group, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (peer,) = group.add(1)
        message = peer.call(listen_once, group.url, ports=(port, port))
        assert message.startswith("SystemFailure") and str(port) in message


def slow_to_listen(worker: Worker, url: str, delay: float, **options: Any) -> float:
    """A call: joins while its agent, which takes what the coordinator says, is held up for a
    moment before each message, as on a machine with more to do than it can."""
    from collectives.courier import Courier

    take = Courier.take

    def late(self: Courier, message: Any, now: float) -> None:
        time.sleep(delay)
        take(self, message, now)

    Courier.take = late  # type: ignore[method-assign]
    try:
        worker.comm = cc.connect(url, **options)
        result = worker.comm.all_reduce(np.ones(1000))
        return float(result[0])
    finally:
        Courier.take = take  # type: ignore[method-assign]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_group_forms_though_one_hears_of_it_late(slow: int) -> None:
    """The others dial it before it knows the run's token. That is no evidence against it."""
    with Cluster(0) as group:
        group.add(3)
        calls = []
        for rank, peer in enumerate(group.peers):
            delay = 0.15 if rank == slow else 0.0
            calls.append(peer.start(slow_to_listen, group.url, delay, size=3, rank=rank))
        assert results(calls) == [3.0] * 3
        assert set(group.each(epoch_now)) == {1}


def epoch_now(worker: Worker) -> int:
    return worker.comm.epoch
