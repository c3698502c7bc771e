"""Operations as data: what to call, the inputs of every peer, and the result that must come of it.

The expected results are computed here with numpy, from the definitions alone: integers wrap around,
min and max are exact, `direct` folds from the left in member order. For sums of floats by another
algorithm the order of the additions is its own affair: all members must agree to the bit and be as
near to the true sum as n roundings allow.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from world import OK, US, Operation, Peer, Record, World

INTEGERS = ("int32", "int64")
FLOATS = ("float32", "float64", "bfloat16")
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Spec:
    """One call, the same on all peers. `root` is a rank."""

    kind: str = "all_reduce"
    count: int = 1
    dtype: str = "float32"
    op: str = "sum"
    algorithm: str = "auto"
    root: int = 0
    lane: int = 0
    in_place: bool = False
    seed: int = 0  # of the inputs


def storage(dtype: str) -> str:
    return "uint16" if dtype == "bfloat16" else dtype


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even: of the two neighbours the nearer, else the even one."""
    below = values.view(np.uint32) >> 16  # towards zero
    above = below + 1
    exact = values.astype(np.float64)
    low, high = (
        np.abs(exact - (b.astype(np.uint32) << 16).view(np.float32).astype(np.float64))
        for b in (below, above)
    )
    up = (high < low) | ((high == low) & (below % 2 == 1))
    return np.where(up, above, below).astype(np.uint16)


def given(spec: Spec, peer: Peer) -> np.ndarray:
    """A peer's input."""
    rng = np.random.default_rng([spec.seed, peer.index])
    if spec.dtype in INTEGERS:
        limits = np.iinfo(spec.dtype)
        return rng.integers(limits.min, limits.max, spec.count, spec.dtype, endpoint=True)
    values = rng.standard_normal(spec.count) * 10.0 ** rng.integers(-3, 3, spec.count)
    if spec.dtype == "bfloat16":
        return to_bfloat16(values.astype(np.float32))
    return values.astype(spec.dtype)


def post(peer: Peer, spec: Spec, world: int, rank: int, **options: int) -> Operation:
    """Posts it on one peer. An output is full of garbage before."""
    settings = {"algorithm": spec.algorithm, "lane": spec.lane, **options}
    if spec.kind in ("barrier", "boundary"):
        return peer.post(spec.kind, **settings)
    data = given(spec, peer)
    settings |= {"dtype": spec.dtype, "op": spec.op, "root": spec.root}
    if spec.kind == "all_gather":
        out = np.frombuffer(b"\x5a" * (data.nbytes * world), data.dtype).copy()
        if spec.in_place:
            row = out[rank * spec.count : (rank + 1) * spec.count]
            row[:] = data
            data = row
    else:
        out = data if spec.in_place else np.frombuffer(b"\x5a" * data.nbytes, data.dtype).copy()
    return peer.post(spec.kind, data, out, **settings)


# ---- what must come of it ---------------------------------------------------------------------


def folded(inputs: Sequence[np.ndarray], spec: Spec) -> np.ndarray:
    """All-reduce from the left in member order, each step rounded to the dtype."""
    bits = spec.dtype == "bfloat16"
    values = [to_float32(data) if bits else data for data in inputs]
    total = values[0].copy()
    with np.errstate(over="ignore"):
        for value in values[1:]:
            if spec.op == "min":
                total = np.minimum(total, value)
            elif spec.op == "max":
                total = np.maximum(total, value)
            else:
                total = total + value
            if bits:
                total = to_float32(to_bfloat16(total))
    if spec.op == "avg" and len(values) > 1:
        total = total / total.dtype.type(len(values))
    return to_bfloat16(total) if bits else total


def near_the_truth(inputs: Sequence[np.ndarray], spec: Spec, result: np.ndarray) -> bool:
    """Whether a sum of floats is within n roundings of the sum in longer numbers."""
    bits = spec.dtype == "bfloat16"
    values = [(to_float32(data) if bits else data).astype(np.longdouble) for data in inputs]
    truth, size = sum(values), sum(np.abs(value) for value in values)
    if spec.op == "avg":
        truth, size = truth / len(values), size / len(values)
    found = (to_float32(result) if bits else result).astype(np.longdouble)
    return bool(np.all(np.abs(found - truth) <= len(values) * EPSILON[spec.dtype] * size))


def check_result(spec: Spec, record: Record, operations: Mapping[int, Operation]) -> None:
    """Checks what was returned as success against the contributors of the epoch it ran in.
    `operations` by index of the peer."""
    if spec.kind in ("barrier", "boundary"):
        return
    contributors = record.members
    inputs = [given(spec, peer) for peer in contributors]
    results = {index: op.out for index, op in operations.items()}
    first = next(iter(results.values()))
    for index, result in results.items():
        assert result.tobytes() == first.tobytes(), f"{spec}: peer {index} has other bits"
    rows: list[np.ndarray]
    if spec.kind == "broadcast":
        root = next(p for p in contributors if record.ranks[p.index] == spec.root)
        assert first.tobytes() == given(spec, root).tobytes(), spec
    elif spec.kind == "all_gather":
        rows = [np.zeros(spec.count, storage(spec.dtype)) for _ in range(record.world)]
        for peer, data in zip(contributors, inputs, strict=True):
            rows[record.ranks[peer.index]] = data
        assert first.tobytes() == b"".join(row.tobytes() for row in rows), spec
    else:
        exact = spec.dtype in INTEGERS or spec.op in ("min", "max") or len(inputs) <= 2
        if exact or spec.algorithm == "direct":
            assert first.tobytes() == folded(inputs, spec).tobytes(), spec
        else:
            assert near_the_truth(inputs, spec, first), spec
    for index, op in operations.items():
        info = op.info
        assert info.status == OK and info.contributors == len(contributors), (spec, index)
        assert info.epoch == record.epoch, (spec, index)


# ---- programs ---------------------------------------------------------------------------------


def any_spec(rng: random.Random, world: int, **fixed: object) -> Spec:
    """A call at random, of lengths around the sizes at which something changes."""
    kind = rng.choice(["all_reduce"] * 4 + ["broadcast", "all_gather", "barrier"])
    dtype = rng.choice(INTEGERS + FLOATS)
    algorithms = ["auto", "ring", "direct"]
    ops = ["sum", "min", "max"] + ["avg"] * (dtype in FLOATS)
    spec = Spec(
        kind=kind,
        count=rng.choice([0, 1, 3, world, 31, 64, 65, 257, 1000, 4099]),
        dtype=dtype,
        op=rng.choice(ops) if kind == "all_reduce" else "sum",
        algorithm=rng.choice(algorithms + ["recursive_doubling"] * (kind == "all_reduce")),
        root=rng.randrange(world) if kind == "broadcast" else 0,
        lane=rng.choice([0, 0, 0, 1, 5]),
        in_place=rng.random() < 0.5,
        seed=rng.randrange(2**32),
    )
    if kind == "barrier":
        spec = replace(spec, count=0, dtype="float32", algorithm="auto", in_place=False)
    return replace(spec, **fixed)  # type: ignore[arg-type]


class Runner:
    """Posts a program on all members, each in its own time: the order within a lane is the same,
    everything else (which lane next, how far ahead, when) is drawn for each peer."""

    def __init__(self, world: World, specs: Sequence[Spec], ahead: int = 12) -> None:
        self.world = world
        self.ahead = ahead
        self.lanes: dict[int, list[Spec]] = {}
        for spec in specs:
            self.lanes.setdefault(spec.lane, []).append(spec)
        self.posted: dict[int, dict[int, list[Operation]]] = {}
        self.closed: dict[tuple[int, int], int] = {}  # how many are done: they end in order

    def operations(self, peer: Peer, lane: int) -> list[Operation]:
        return self.posted.setdefault(peer.index, {}).setdefault(lane, [])

    def open(self, peer: Peer, lane: int) -> int:
        """How many operations of a peer are open in a lane."""
        mine = self.operations(peer, lane)
        done = self.closed.get((peer.index, lane), 0)
        while done < len(mine) and mine[done].done:
            done += 1
        self.closed[peer.index, lane] = done
        return len(mine) - done

    def left(self, peer: Peer) -> list[int]:
        """Lanes in which a peer has something left to post."""
        return [n for n, specs in self.lanes.items() if len(self.operations(peer, n)) < len(specs)]

    def post_some(self, peers: Sequence[Peer], chance: float = 0.3) -> bool:
        """Lets each peer post something, or not. Returns whether anything is left to post."""
        rng = self.world.random
        left = False
        for peer in peers:
            lanes = self.left(peer)
            left |= bool(lanes)
            if not lanes or rng.random() > chance or not peer.alive or peer.paused:
                continue
            lane = rng.choice(lanes)
            room = self.ahead - self.open(peer, lane)
            mine = self.operations(peer, lane)
            for spec in self.lanes[lane][len(mine) :][: min(room, rng.choice([1, 1, 1, 4]))]:
                record = self.world.record
                mine.append(post(peer, spec, record.world, record.ranks[peer.index]))
        self.world.stride_ns = 40 * US if left else None
        return left

    def complete(self, peers: Sequence[Peer]) -> bool:
        """Whether all have posted all, and all of it is done."""
        return not any(self.left(p) or any(self.open(p, n) for n in self.lanes) for p in peers)

    def run(self, peers: Sequence[Peer]) -> None:
        """Without faults, to the end."""
        self.world.run(lambda: not self.post_some(peers) and self.complete(peers))

    def rows(self) -> list[tuple[Spec, dict[int, Operation]]]:
        """Every call with the operations of those who made it, by index of the peer."""
        return [
            (
                spec,
                {i: ops[lane][n] for i, ops in self.posted.items() if n < len(ops.get(lane, []))},
            )
            for lane, specs in self.lanes.items()
            for n, spec in enumerate(specs)
        ]


def parity(world: World) -> None:
    """No peer has sealed anything: a run without faults is undisturbed."""
    for peer in world.alive:
        assert not peer.sealed, f"seed {world.seed}: {peer} sealed: {peer.evidence}"
        assert peer.stats.bad_connections == 0
