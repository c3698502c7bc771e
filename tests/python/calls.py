"""Any collective, drawn at random: its arguments, its inputs, what numpy says it must give, and the
comparison. Used by property tests and by the soak.

Each peer computes from everybody's input what it must get; the values are small and whole, so that
nothing is rounded and the order of operands does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import collectives as cc

SIZE = 3
REDUCING = ("all_reduce", "reduce", "reduce_scatter")
ROOTED = ("broadcast", "reduce", "gather", "scatter")
SPLIT = ("all_gather", "gather", "scatter", "reduce_scatter", "all_to_all")
ALGORITHMS = {
    "all_reduce": ("auto", "ring", "recursive_doubling", "direct", "halving_doubling"),
    "broadcast": ("auto", "ring", "direct", "tree"),
    "all_gather": ("auto", "ring", "direct"),
    "reduce": ("auto", "ring", "direct", "tree"),
    "gather": ("auto", "direct"),
    "scatter": ("auto", "direct"),
    "reduce_scatter": ("auto", "ring", "direct"),
    "all_to_all": ("auto", "direct"),
}
FLOATS = ("float16", "float32", "float64", "bfloat16")
OPS = ("sum", "min", "max", "prod")


@dataclass(frozen=True)
class Call:
    """One collective, as all members call it. `shape` is that of one entry of a block, `splits` how
    many entries each pair of ranks exchanges; a kind without splits takes the shape alone."""

    kind: str
    dtype: str
    op: str
    algorithm: str
    root: int
    shape: tuple[int, ...]
    splits: tuple[tuple[int, ...], ...] | None
    layout: str  # of inputs and outputs: "plain", "strided", "reversed", "transposed"
    in_place: bool
    waits: bool
    seed: int


# ---- in the peer ---------------------------------------------------------------------------------


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same values in other memory."""
    if layout == "plain" or values.ndim == 0:
        return values.copy()
    if layout == "strided":
        room = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        view = room[..., ::2]
    elif layout == "reversed":
        view = np.zeros(values.shape, values.dtype)[::-1]
    else:
        view = np.zeros(values.shape[::-1], values.dtype).T
    view[...] = values
    return view


def blocks_of(call: Call, rank: int) -> list[int] | None:
    """The `counts` that this rank passes, as entries for each rank."""
    if call.splits is None:
        return None
    return list(call.splits[rank if call.kind == "all_to_all" else 0])


def input_shape(call: Call, rank: int) -> tuple[int, ...]:
    counts = blocks_of(call, rank)
    if call.kind not in SPLIT or (counts is None and call.kind in ("all_gather", "gather")):
        return call.shape
    if counts is None:
        return (SIZE, *call.shape)
    whole = call.kind in ("scatter", "reduce_scatter", "all_to_all")
    return (sum(counts) if whole else counts[rank], *call.shape)


def input_of(call: Call, rank: int) -> np.ndarray:
    rng = np.random.default_rng([call.seed, rank])
    low, high = (0, 2) if call.dtype == "bool" else (1, 3) if call.op == "prod" else (0, 8)
    return rng.integers(low, high, input_shape(call, rank)).astype(numpy_dtype(call.dtype))


def block(call: Call, data: np.ndarray, giver: int, rank: int) -> np.ndarray:
    """The block for `rank` in the array of `giver`."""
    counts = blocks_of(call, giver)
    if counts is None:
        return data[rank]
    return data[sum(counts[:rank]) : sum(counts[: rank + 1])]


def reduced(call: Call, inputs: list[np.ndarray]) -> np.ndarray:
    rows = np.stack(inputs)
    if call.op == "premul":
        rows = rows * np.arange(1, SIZE + 1).reshape(-1, *[1] * (rows.ndim - 1))
    if call.dtype == "bool":
        any_of = call.op in ("sum", "max", "bor")
        if call.op == "bxor":
            return np.asarray(np.logical_xor.reduce(rows))
        return np.asarray(rows.any(0) if any_of else rows.all(0))
    if call.dtype in FLOATS:
        rows = rows.astype(np.float64)
    function = {
        "min": np.minimum,
        "max": np.maximum,
        "prod": np.multiply,
        "band": np.bitwise_and,
        "bor": np.bitwise_or,
        "bxor": np.bitwise_xor,
    }.get(call.op, np.add)
    total = function.reduce(rows, axis=0, dtype=rows.dtype)
    return np.asarray(total / SIZE if call.op == "avg" else total)


def expected(call: Call, rank: int) -> np.ndarray | None:
    inputs = [input_of(call, r) for r in range(SIZE)]
    if call.kind in ("reduce", "gather") and rank != call.root:
        return None
    if call.kind == "broadcast":
        return inputs[call.root]
    if call.kind in ("all_reduce", "reduce"):
        return reduced(call, inputs)
    if call.kind in ("all_gather", "gather"):
        return np.stack(inputs) if call.splits is None else np.concatenate(inputs)
    if call.kind == "scatter":
        return block(call, inputs[call.root], call.root, rank)
    if call.kind == "reduce_scatter":
        return block(call, reduced(call, inputs), 0, rank)
    pieces = [block(call, data, giver, rank) for giver, data in enumerate(inputs)]
    return np.stack(pieces) if call.splits is None else np.concatenate(pieces)


@dataclass
class Begun:
    """A call under way: its input, and what it returned. `want` is None where no result comes."""

    call: Call
    x: np.ndarray
    out: np.ndarray | None
    want: np.ndarray | None
    returned: Any  # a Work, or the result


def begin(comm: cc.Communicator, call: Call, *, lane: int = 0, async_op: bool = True) -> Begun:
    """Makes a call."""
    x = laid_out(input_of(call, comm.rank), call.layout)
    options: dict[str, Any] = {"algorithm": call.algorithm, "async_op": async_op, "lane": lane}
    if call.kind in ROOTED:
        options["root"] = call.root
    if call.kind in REDUCING:
        factor = cc.premul(comm.rank + 1)
        options["op"] = factor if call.op == "premul" else call.op
        options["preserve"] = call.seed % 3 != 0
    if call.splits is not None:
        options["counts"] = blocks_of(call, comm.rank)
        if call.kind == "all_to_all":
            options["receive_counts"] = [row[comm.rank] for row in call.splits]
    out = None
    want = expected(call, comm.rank)
    if call.in_place and call.kind in ("all_reduce", "reduce", "broadcast"):
        out = x
    elif call.seed % 2 and want is not None:
        out = laid_out(np.ones(want.shape, x.dtype), call.layout)
    return Begun(call, x, out, want, getattr(comm, call.kind)(x, out=out, **options))


def check(comm: cc.Communicator, begun: Begun) -> None:
    """Waits for a call's result and compares it; the input must be what it was."""
    call, x, out, want, result = begun.call, begun.x, begun.out, begun.want, begun.returned
    if isinstance(result, cc.Work):
        work, result = result, result.wait()
        assert work.info.contributors == SIZE
    if want is None:
        assert result is None, call
    else:
        assert result.dtype == x.dtype and result.shape == want.shape, call
        if call.op == "avg":
            near = {"float16": 1e-3, "bfloat16": 1e-2}.get(call.dtype, 1e-6)
            assert np.allclose(result.astype(float), want, rtol=near), call
        else:
            assert (result.astype(want.dtype) == want).all(), call
        assert out is None or result is out, call
    if out is not x or want is None:
        assert (x == input_of(call, comm.rank)).all(), f"the input was changed: {call}"
