"""What the peers call: each operation's number, with the seed, says all about it, so that peers
need not speak of it and the checker can draw the same calls and inputs again.

Inputs follow from (seed, peer, number). One block of random integers per run is turned, multiplied
and shifted differently for each: cheap, and no two look alike. Most calls are exact, integers of
the whole range or floats that hold small ones, whose result is known to the bit in whatever order
it is summed. The others are floats of any kind: there all peers must agree to the bit, and the sum
of the result is compared with the truth.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

BYTES_MAX = 8 << 20
ALGORITHMS = ("auto", "auto", "ring", "recursive_doubling")
EXACT = ("int32", "int64", "uint8", "int16", "float32", "float64")
OPS = ("sum", "sum", "sum", "max", "min")
FLOAT_OPS = (*OPS, "avg")
SYNC = "sync"  # what follows each boundary: all learn the operation's number, and whether to stop
ADMIT_EVERY = 8
BATCH_MAX = 4
BATCH_BYTES_MAX = 1 << 20
SEGMENTS = (512 << 10, 64 << 10)  # the default, and one that makes many of each message
SMALL_INTEGERS = 64  # in absolute value; with 8 of them and a factor of safety float32 stays exact


@dataclass(frozen=True)
class Call:
    """One operation. `exact`: its inputs add up without rounding."""

    kind: str  # all_reduce, all_gather, broadcast, admit
    dtype: str = "int32"
    count: int = 0
    op: str = "sum"
    algorithm: str = "auto"
    root: int = 0  # modulo the number of ranks
    exact: bool = True
    in_place: bool = False
    retry: bool = True

    @property
    def size_bytes(self) -> int:
        return self.count * np.dtype(self.dtype).itemsize

    @property
    def is_known(self) -> bool:
        """Whether the result is known to the bit: there is no rounding, or nothing is added."""
        return self.exact or self.kind != "all_reduce"


# Posted together when memory is to be measured. The core keeps four large blocks for the next
# operation of about that length: eight at once take the places of all four, whatever they were.
FLUSH = 8 * (Call("all_reduce", count=1 << 16, in_place=True),)


def segment_bytes_of(seed: int) -> int:
    """Of the whole run."""
    return random.Random(f"segments {seed}").choice(SEGMENTS)


def call_of(seed: int, number: int) -> Call:
    """The operation of this number, unless it is the one after a boundary."""
    rng = random.Random(f"call {seed} {number}")
    if rng.randrange(ADMIT_EVERY) == 0:
        return Call("admit")
    kind = rng.choices(["all_reduce", "all_gather", "broadcast"], [12, 1, 1])[0]
    exact = rng.random() < 0.8
    dtype = rng.choice(EXACT if exact else ("float32", "float64"))
    size = np.dtype(dtype).itemsize
    bytes_max = BYTES_MAX if kind == "all_reduce" else BYTES_MAX // 8
    if rng.random() < 0.5:
        bytes_max = min(bytes_max, 1 << 16)
    count = max(1, int(4 * (bytes_max / 4) ** rng.random()) // size)
    return Call(
        kind=kind,
        dtype=dtype,
        count=count,
        op=rng.choice(FLOAT_OPS if "float" in dtype else OPS) if exact else "sum",
        algorithm=rng.choice(ALGORITHMS) if kind == "all_reduce" else "auto",
        root=rng.randrange(1 << 16),
        exact=exact,
        in_place=rng.random() < 0.5,
        retry=rng.random() < 0.95,
    )


def batch_of(seed: int, number: int) -> list[Call]:
    """The operations from this number on that are posted before the first is waited for."""
    first = call_of(seed, number)
    calls = [first]
    wanted = random.Random(f"batch {seed} {number}").choice([1, 1, 1, 2, BATCH_MAX])
    while first.kind != "admit" and len(calls) < wanted:
        call = call_of(seed, number + len(calls))
        if call.kind == "admit" or call.size_bytes > BATCH_BYTES_MAX:
            break
        calls.append(call)
    return calls


def pause_of(seed: int, number: int) -> float:
    """Seconds that a program computes before this operation."""
    rng = random.Random(f"pause {seed} {number}")
    return rng.choice([0.0, rng.uniform(0, 0.004), rng.uniform(0, 0.02)])


# ---- inputs --------------------------------------------------------------------------------------


@cache
def _block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, BYTES_MAX // 4, np.uint32)


def _mixed(*words: int) -> int:
    """A number of 64 bits that looks like chance (the finaliser of splitmix64, word by word)."""
    state = 0
    for word in words:
        state = (state ^ word) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def input_of(seed: int, peer: int, number: int, call: Call) -> np.ndarray:
    """This peer's input, a new array."""
    chance = _mixed(seed, peer, number)
    dtype = np.dtype(call.dtype)
    words = max(1, -(-call.size_bytes // 4))
    block = _block(seed)
    start = chance % (len(block) - words + 1)
    raw = block[start : start + words] * np.uint32(chance >> 16 & 0xFFFFFFFF | 1)
    raw += np.uint32(chance >> 32)
    if dtype.kind in "iu":
        if call.size_bytes % 4:
            return raw.view(np.uint8)[: call.size_bytes].view(dtype).copy()
        return raw.view(dtype)
    numbers = (raw[: call.count] >> 16).astype(dtype)
    if call.exact:
        return np.mod(numbers, 2 * SMALL_INTEGERS, out=numbers) - SMALL_INTEGERS
    # From 2e-3 to 4 in absolute value, either sign: sums in another order differ in their bits.
    return (numbers - 32768.3).astype(dtype) / dtype.type(16384.0)


# ---- results -------------------------------------------------------------------------------------

_FOLDS = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}


def expected(seed: int, number: int, call: Call, roster: Sequence[int | None]) -> np.ndarray | None:
    """The result, from the operation's definition alone; None: its root had no member, so that it
    must fail.

    Args:
        roster: by rank, the peer that contributed; None for a rank without a member.
    """
    if call.kind == "broadcast":
        root = roster[call.root % len(roster)]
        return None if root is None else input_of(seed, root, number, call)
    inputs = {
        rank: input_of(seed, peer, number, call)
        for rank, peer in enumerate(roster)
        if peer is not None
    }
    if call.kind == "all_gather":
        zeros = np.zeros(call.count, call.dtype)
        return np.concatenate([inputs.get(rank, zeros) for rank in range(len(roster))])
    arrays = iter(inputs.values())
    total = next(arrays)
    for array in arrays:
        _FOLDS[call.op](total, array, out=total)
    if call.op == "avg":
        total /= total.dtype.type(len(inputs))
    return total


def near(seed: int, number: int, call: Call, roster: Sequence[int | None]) -> tuple[float, float]:
    """Of an all_reduce of floats: the sum of the result, and how far off as many roundings as
    there are additions may lead."""
    inputs = [input_of(seed, peer, number, call) for peer in roster if peer is not None]
    truth = sum(float(np.sum(x, dtype=np.longdouble)) for x in inputs)
    size = sum(float(np.sum(np.abs(x), dtype=np.longdouble)) for x in inputs)
    slack = len(inputs) * float(np.finfo(call.dtype).eps) * size
    return truth, slack + size * 1e-13  # and those of numpy's own sum
