"""torch tensors in the collectives. Skipped where torch is not installed."""

from __future__ import annotations

from typing import Any

import pytest
from cluster import Cluster, Worker

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(120)

DTYPES = ("float32", "float64", "int32", "int64", "bfloat16")


def tensors(worker: Worker) -> None:
    """A call: every dtype, in place and out of place, odd shapes."""
    comm = worker.comm
    size = comm.size
    for name in DTYPES:
        dtype = getattr(torch, name)
        x = torch.arange(24).to(dtype).reshape(4, 6) + comm.rank
        want = (torch.arange(24) * size + sum(range(size))).to(dtype).reshape(4, 6)
        result = comm.all_reduce(x)
        assert type(result) is torch.Tensor and result.dtype == dtype and result.shape == x.shape
        assert torch.equal(result, want), name
        result = comm.all_reduce(x.t())  # not contiguous
        assert torch.equal(result, want.t()), name
        result = comm.all_reduce(x[:, ::2])
        assert torch.equal(result, want[:, ::2]), name
        rows = comm.all_gather(x)
        assert rows.shape == (size, 4, 6)
        assert all(torch.equal(rows[rank], x - comm.rank + rank) for rank in range(size)), name
        assert torch.equal(comm.broadcast(x, size - 1), x - comm.rank + size - 1)
        out = torch.empty_like(x)
        assert comm.all_reduce(x, out=out) is out and torch.equal(out, want)
        assert comm.all_reduce(x, out=x) is x and torch.equal(x, want)
        zero_d = torch.tensor(3).to(dtype)
        result = comm.all_reduce(zero_d)
        assert result.shape == () and result.item() == 3 * size
        assert comm.all_reduce(torch.empty(0, dtype=dtype)).shape == (0,)
        assert comm.all_gather(torch.ones((), dtype=dtype)).shape == (size,)


def gradients(worker: Worker) -> None:
    """A call: tensors that require gradients. The result does not, and the graph is untouched."""
    comm = worker.comm
    x = torch.ones(5, requires_grad=True)
    result = comm.all_reduce(x)
    assert not result.requires_grad and torch.equal(result, torch.full((5,), float(comm.size)))
    (x * 3).sum().backward()
    assert x.grad is not None
    comm.all_reduce(x.grad, out=x.grad, op="avg")
    assert torch.equal(x.grad, torch.full((5,), 3.0))
    y = x * 2  # not a leaf
    assert torch.equal(comm.all_reduce(y), torch.full((5,), 2.0 * comm.size))
    parameter = torch.nn.Parameter(torch.ones(3))
    comm.broadcast(parameter.data, out=parameter.data)
    views = torch.arange(20.0).split([3, 7, 10])
    for view in views:
        comm.all_reduce(view, out=view)
    assert torch.equal(torch.cat(views), torch.arange(20.0) * comm.size)
    with torch.inference_mode():
        assert comm.all_reduce(torch.ones(2)).sum().item() == 2 * comm.size
    assert torch.equal(comm.all_reduce(torch.ones(1).expand(4)), torch.full((4,), 1.0 * comm.size))


def mixed(worker: Worker) -> None:
    """A call: numpy on one side and torch on the other is the same operation."""
    comm = worker.comm
    x: Any = torch.ones(100) if comm.rank else torch.ones(100).numpy()
    result = comm.all_reduce(x)
    assert type(result) is type(x) and float(result[0]) == comm.size


def strided(worker: Worker) -> None:
    """A call: tensors that are not contiguous go in and out, and what lies between stays."""
    comm = worker.comm
    around = torch.full((8,), 7.0)
    comm.all_reduce(torch.ones(4), out=around[::2])
    assert around.tolist() == [float(comm.size), 7.0] * 4
    around = torch.arange(8.0)
    x = around[::2]
    comm.all_reduce(x, out=x)
    assert around.tolist() == [v * comm.size if v % 2 == 0 else v for v in range(8)]
    half = comm.all_reduce(torch.ones(3, dtype=torch.float16))
    assert half.dtype == torch.float16 and half.tolist() == [float(comm.size)] * 3
    either = comm.all_reduce(torch.tensor([comm.rank == 0, False]))
    assert either.dtype == torch.bool and either.tolist() == [True, False]


def wrong(worker: Worker) -> dict[str, str]:
    comm = worker.comm
    ones = torch.ones(4)
    calls: dict[str, Any] = {
        "meta": lambda: comm.all_reduce(torch.ones(4, device="meta")),
        "meta output": lambda: comm.all_reduce(ones, out=torch.ones(4, device="meta")),
        "sparse": lambda: comm.all_reduce(torch.eye(3).to_sparse()),
        "complex": lambda: comm.all_reduce(ones.to(torch.complex64)),
        "conjugate": lambda: comm.all_reduce(ones.to(torch.complex64).conj()),
        "quantised": lambda: comm.all_reduce(torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)),
        "output of another dtype": lambda: comm.all_reduce(ones, out=ones.double()),
        "output of another size": lambda: comm.all_reduce(ones, out=torch.ones(5)),
        "dtype that contradicts": lambda: comm.all_reduce(ones, dtype="bfloat16"),
        "expanded output": lambda: comm.all_reduce(ones, out=torch.ones(1).expand(4)),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "ok"
        except Exception as error:
            found[name] = type(error).__name__
    return found


@pytest.fixture(scope="module")
def pair() -> Any:
    with Cluster(2) as group:
        yield group


def test_tensors_of_every_dtype(pair: Cluster) -> None:
    pair.each(tensors, limit=60)


def test_tensors_with_gradients(pair: Cluster) -> None:
    pair.each(gradients)


def test_numpy_and_torch_in_one_operation(pair: Cluster) -> None:
    pair.each(mixed)


def test_strided_half_and_bool_tensors(pair: Cluster) -> None:
    pair.each(strided)


def number_of_a_barrier(worker: Worker) -> int:
    work = worker.comm.barrier(async_op=True)
    work.wait(10)
    return int(work.info.sequence)


def test_wrong_tensors_are_errors_before_anything_is_sent(pair: Cluster) -> None:
    (before,) = set(pair.each(number_of_a_barrier))
    for name, error in pair.peers[0].call(wrong).items():
        assert error in ("ValueError", "TypeError"), f"{name}: {error}"
    assert pair.each(number_of_a_barrier) == [before + 1] * 2
