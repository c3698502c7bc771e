"""Operations as data: what to call, the inputs of every peer, and programs of many calls.

What must come of a call is in results.py. Everything is a function of a Spec, so a test can say
what it posted and every peer's input can be made again when the result is checked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from values import DTYPES, FLOATS, INTEGERS, any_input, storage
from world import US, Operation, Peer, World

from collectives._core import lib

__all__ = ["DTYPES", "FLOATS", "INTEGERS", "Runner", "Spec", "any_spec", "given", "post", "storage"]

REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")
ROOTED = ("broadcast", "reduce", "gather", "scatter")
OUT_BLOCKS = ("all_gather", "gather", "all_to_all")
IN_BLOCKS = ("scatter", "reduce_scatter", "all_to_all")
WITH_BLOCKS = ("all_gather", "gather", "scatter", "reduce_scatter", "all_to_all")
KINDS = ("all_reduce", "broadcast", *WITH_BLOCKS, "reduce", "barrier")
ALGORITHMS = {
    "all_reduce": ("auto", "ring", "recursive_doubling", "direct", "halving_doubling"),
    "broadcast": ("auto", "ring", "direct", "tree"),
    "reduce": ("auto", "ring", "direct", "tree"),
    "all_gather": ("auto", "ring", "direct"),
    "reduce_scatter": ("auto", "ring", "direct"),
    "gather": ("auto", "direct"),
    "scatter": ("auto", "direct"),
    "all_to_all": ("auto", "direct"),
    "barrier": ("auto",),
}


@dataclass(frozen=True)
class Spec:
    """One call, the same on all peers. `root` is a rank; `count` is that of one block for the kinds
    that have blocks, or about so many where they are uneven."""

    kind: str = "all_reduce"
    count: int = 1
    dtype: str = "float32"
    op: str = "sum"
    algorithm: str = "auto"
    root: int = 0
    lane: int = 0
    in_place: bool = False
    seed: int = 0  # of the inputs
    uneven: bool = False
    retry: bool = True
    whole: bool = False


def ops_of(dtype: str) -> tuple[str, ...]:
    """The reductions that are defined for a dtype."""
    common = ("sum", "prod", "min", "max")
    return common + (("avg", "premul_sum") if dtype in FLOATS else ("band", "bor", "bxor"))


def factor_of(index: int) -> float:
    """What a peer multiplies its input with in a premul_sum."""
    return 0.75 + index


@lru_cache(maxsize=1024)
def blocks(spec: Spec, world: int, sender: int = 0) -> list[int]:
    """The lengths of the blocks by rank; of what `sender` sends, where that differs."""
    if not spec.uneven:
        return [spec.count] * world
    source = [spec.seed, sender if spec.kind == "all_to_all" else 0, 99]
    lengths = np.random.default_rng(source).integers(0, 2 * spec.count + 1, world)
    return [int(length) for length in lengths]


@lru_cache(maxsize=2048)
def given(spec: Spec, index: int, rank: int, world: int) -> np.ndarray:
    """A peer's input. Not to be written to: it is wanted again when the result is checked."""
    rng = np.random.default_rng([spec.seed, index])
    count = spec.count
    if spec.kind in IN_BLOCKS:
        count = sum(blocks(spec, world, rank))
    elif spec.kind in WITH_BLOCKS:
        count = blocks(spec, world)[rank]
    data = any_input(rng, count, spec.dtype, spec.op)
    data.flags.writeable = False
    return data


def _garbage(count: int, dtype: str) -> np.ndarray:
    """An output as it may be before. Not zeros; of booleans, what no boolean is."""
    size = count * np.dtype(storage(dtype)).itemsize
    return np.frombuffer(b"\x5a" * size, storage(dtype)).copy()


def _output(spec: Spec, data: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A new output of the right length."""
    if spec.kind not in WITH_BLOCKS:
        return _garbage(spec.count, spec.dtype)
    if spec.kind == "all_to_all":
        return _garbage(sum(blocks(spec, world, s)[rank] for s in range(world)), spec.dtype)
    lengths = blocks(spec, world)
    whole = spec.kind in OUT_BLOCKS
    return _garbage(sum(lengths) if whole else lengths[rank], spec.dtype)


def _buffers(spec: Spec, peer: Peer, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    data = given(spec, peer.index, rank, world).copy()
    before = sum(blocks(spec, world)[:rank]) if spec.kind in WITH_BLOCKS else 0
    if not spec.in_place or spec.kind == "all_to_all":
        return data, _output(spec, data, rank, world)
    if spec.kind in IN_BLOCKS:
        return data, data[before : before + blocks(spec, world)[rank]]
    if spec.kind not in OUT_BLOCKS:
        return data, data
    out = _output(spec, data, rank, world)
    row = out[before : before + data.size]
    row[:] = data
    return row, out


def post(peer: Peer, spec: Spec, world: int, rank: int, **options: int) -> Operation:
    """Posts it on one peer. Buffers that play no part at this rank are not passed."""
    settings: dict[str, object] = {"algorithm": spec.algorithm, "lane": spec.lane, **options}
    if spec.whole or not spec.retry:
        flags = 0 if spec.retry else lib.CC_NO_RETRY
        flags |= lib.CC_WHOLE if spec.whole else 0
        settings["flags"] = int(lib.CC_PRESERVE | flags)
    if spec.kind in ("barrier", "boundary"):
        return peer.post(spec.kind, **settings)
    data, out = _buffers(spec, peer, rank, world)
    settings |= {"dtype": spec.dtype, "root": spec.root, "world": world, "count": spec.count}
    if spec.kind in REDUCTIONS:
        settings |= {"op": spec.op, "factor": factor_of(peer.index)}
    if spec.uneven and spec.kind in WITH_BLOCKS:
        settings |= {"count": 0, "counts": blocks(spec, world, rank)}
        if spec.kind == "all_to_all":
            settings["receive_counts"] = [blocks(spec, world, s)[rank] for s in range(world)]
    root = rank == spec.root
    given_away = None if spec.kind in ("broadcast", "scatter") and not root else data
    taken = None if spec.kind in ("reduce", "gather") and not root else out
    return peer.post(spec.kind, given_away, taken, **settings)


# ---- programs ---------------------------------------------------------------------------------


def any_spec(rng: random.Random, world: int, **fixed: object) -> Spec:
    """A call at random, of lengths around the sizes at which something changes."""
    kind = rng.choice(("all_reduce", "all_reduce", *KINDS))
    dtype = rng.choice(DTYPES)
    spec = Spec(
        kind=kind,
        count=rng.choice([0, 1, 3, world, 31, 64, 65, 257, 1000, 4099]),
        dtype=dtype,
        op=rng.choice(ops_of(dtype)) if kind in REDUCTIONS else "sum",
        algorithm=rng.choice(ALGORITHMS[kind]),
        root=rng.randrange(world) if kind in ROOTED else 0,
        lane=rng.choice([0, 0, 0, 1, 5]),
        in_place=rng.random() < 0.5,
        seed=rng.randrange(2**32),
        uneven=kind in WITH_BLOCKS and rng.random() < 0.5,
        retry=rng.random() < 0.8,
    )
    if kind == "barrier":
        spec = replace(spec, count=0, dtype="float32", in_place=False)
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
