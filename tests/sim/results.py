"""What must come of an operation, computed from its definition alone.

Integers wrap around, min and max are exact, `direct` folds from the left in member order. For
floating-point sums and products by another algorithm the order is its own affair: all members must
agree to the bit and be as near to the truth as so many roundings allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from programs import FLOATS, Spec, blocks, factor_of, given, storage
from values import EPSILON, SMALLEST, from_values, to_values
from world import OK, Operation, Record

_FOLDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": np.add,
    "avg": np.add,
    "premul_sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_SAME_BITS = ("all_reduce", "broadcast", "all_gather")


def folded(inputs: Sequence[np.ndarray], spec: Spec) -> np.ndarray:
    """The inputs combined from the left, each step rounded to the dtype. `inputs` are scaled."""
    if spec.dtype == "bool":
        fold = {"sum": np.logical_or, "prod": np.logical_and}.get(spec.op, _FOLDS[spec.op])
        values = [data.astype(bool) for data in inputs]
    else:
        fold = _FOLDS[spec.op]
        values = [to_values(data, spec.dtype) for data in inputs]
    total = values[0]
    with np.errstate(over="ignore"):
        for value in values[1:]:
            total = to_values(from_values(fold(total, value), spec.dtype), spec.dtype)
    if spec.op == "avg" and len(values) > 1:
        total = total / total.dtype.type(len(values))
    return from_values(total, spec.dtype)


def scaled(spec: Spec, index: int, data: np.ndarray) -> np.ndarray:
    """An input as the sum takes it."""
    if spec.op != "premul_sum" or spec.kind not in ("all_reduce", "reduce", "reduce_scatter"):
        return data
    values = to_values(data, spec.dtype)
    return from_values(values * values.dtype.type(factor_of(index)), spec.dtype)


def near_the_truth(inputs: Sequence[np.ndarray], spec: Spec, result: np.ndarray) -> bool:
    """Whether a sum or product of floats is within n roundings of that in longer numbers."""
    values = [to_values(data, spec.dtype).astype(np.longdouble) for data in inputs]
    if spec.op == "prod":
        truth = np.prod(values, axis=0)
        size = np.abs(truth)
    else:
        truth, size = np.sum(values, axis=0), np.sum(np.abs(values), axis=0)
    if spec.op == "avg":
        truth, size = truth / len(values), size / len(values)
    found = to_values(result, spec.dtype).astype(np.longdouble)
    slack = len(values) * (EPSILON[spec.dtype] * size + SMALLEST[spec.dtype])
    return bool(np.all(np.abs(found - truth) <= slack))


def reduction_is_exact(spec: Spec, n: int) -> bool:
    if spec.dtype not in FLOATS or spec.op in ("min", "max"):
        return True
    return n <= 2 or spec.algorithm == "direct"


def _gathered(spec: Spec, record: Record, inputs: Mapping[int, np.ndarray]) -> np.ndarray:
    """All blocks by rank; zeros where a rank has no member."""
    rows = []
    for rank, length in enumerate(blocks(spec, record.world)):
        rows.append(inputs.get(rank, np.zeros(length, storage(spec.dtype))))
    return np.concatenate(rows) if rows else np.zeros(0, storage(spec.dtype))


def _split(data: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    return np.split(data, np.cumsum(lengths)[:-1])


def _moved(
    spec: Spec, record: Record, inputs: Mapping[int, np.ndarray], rank: int
) -> np.ndarray | None:
    """The result of a rank, of kinds that reduce nothing."""
    world = record.world
    if spec.kind == "broadcast":
        return inputs[spec.root]
    if spec.kind == "all_gather":
        return _gathered(spec, record, inputs)
    if spec.kind == "gather":
        return _gathered(spec, record, inputs) if rank == spec.root else None
    if spec.kind == "scatter":
        return _split(inputs[spec.root], blocks(spec, world))[rank]
    assert spec.kind == "all_to_all"
    return np.concatenate(
        [_split(inputs[other], blocks(spec, world, sender=other))[rank] for other in range(world)]
    )


def _check_reduction(
    spec: Spec, record: Record, inputs: Mapping[int, np.ndarray], rank: int, found: np.ndarray
) -> None:
    shares = list(inputs.values())
    if spec.kind == "reduce_scatter":
        shares = [_split(data, blocks(spec, record.world))[rank] for data in shares]
    if reduction_is_exact(spec, len(shares)):
        assert found.tobytes() == folded(shares, spec).tobytes(), (spec, rank)
    else:
        assert near_the_truth(shares, spec, found), (spec, rank)


def check_result(spec: Spec, record: Record, operations: Mapping[int, Operation]) -> None:
    """Checks what was returned as success against the contributors of the epoch it ran in.
    `operations` by index of the peer."""
    if spec.kind in ("barrier", "boundary"):
        return
    inputs = {}
    for peer in record.members:
        rank = record.ranks[peer.index]
        data = given(spec, peer.index, rank, record.world)
        inputs[rank] = scaled(spec, peer.index, data)
    if spec.kind in _SAME_BITS:
        assert len({op.out.tobytes() for op in operations.values()}) <= 1, f"{spec}: bits differ"
    for index, op in operations.items():
        assert op.status == OK, (spec, index, op.message)
        assert op.info.contributors == len(record.members)
        rank = record.ranks[index]
        if spec.kind in ("all_reduce", "reduce", "reduce_scatter"):
            if spec.kind != "reduce" or rank == spec.root:
                _check_reduction(spec, record, inputs, rank, op.out)
            continue
        expected = _moved(spec, record, inputs, rank)
        if expected is not None:
            assert op.out.tobytes() == expected.tobytes(), (spec, rank)
