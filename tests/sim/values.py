"""The dtypes as numbers: their inputs at random, and rounding to bfloat16, which numpy lacks."""

from __future__ import annotations

import numpy as np

INTEGERS = ("int32", "int64", "int8", "int16", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*INTEGERS, *FLOATS, "bool")
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-8, "float16": 2.0**-10}
SMALLEST = {"float32": 2.0**-149, "float64": 0.0, "bfloat16": 2.0**-133, "float16": 2.0**-24}


def storage(dtype: str) -> str:
    """The numpy dtype that holds it."""
    return "uint16" if dtype == "bfloat16" else dtype


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


def to_values(data: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers to calculate with: 16 bits are calculated in float32."""
    if dtype == "bfloat16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32) if dtype == "float16" else data


def from_values(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded once to the dtype."""
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def any_input(rng: np.random.Generator, count: int, dtype: str, op: str) -> np.ndarray:
    """Inputs whose reductions stay finite."""
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(bool)
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, count, dtype, endpoint=True)
    if op == "prod":
        values = rng.uniform(0.5, 2.0, count) * rng.choice([-1.0, 1.0], count)
    else:
        values = rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)
    return from_values(values.astype(np.float64 if dtype == "float64" else np.float32), dtype)
