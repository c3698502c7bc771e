"""The kernels against numpy (and ml_dtypes for bfloat16), bit by bit, on random bit patterns.

Numpy decides neither the sign of min(-0, +0) nor the payload of a NaN; both are put right in the
expected value: -0 < +0, and NaN is the one canonical NaN of its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from collectives._core import ffi, lib

COUNT = 20_011

FLOATS = {
    name: getattr(lib, f"CC_{name.upper()}")
    for name in ("float16", "float32", "float64", "bfloat16")
}
INTEGERS = {
    name: getattr(lib, f"CC_{name.upper()}")
    for name in (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
}
OPS = {
    name: getattr(lib, f"CC_{name.upper()}")
    for name in ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
}
CANONICAL_NAN = {
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float32": 0x7FC00000,
    "float64": 0x7FF8000000000000,
}
_FUNCTIONS = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


@pytest.fixture(params=["portable", "fastest"])
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test runs on the portable loops and on the ones this machine would choose."""
    has_avx2 = lib.cc__kernels_force_portable(request.param == "portable")
    if request.param == "fastest" and not has_avx2:
        pytest.skip("this machine has no faster twin than the portable one")
    yield
    lib.cc__kernels_force_portable(0)


Array = np.ndarray[Any, Any]


def dtype_of(name: str) -> np.dtype[Any]:
    scalar: Any = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name
    dtype: np.dtype[Any] = np.dtype(scalar)
    return dtype


def bits(array: Array) -> Array:
    unsigned: Array = array.view(f"u{array.dtype.itemsize}")
    return unsigned


def random_pair(dtype: np.dtype[Any], seed: int) -> tuple[Any, Any]:
    """Any bits; in half of the places the two have about the same exponent, so sums round."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (2, COUNT * dtype.itemsize), dtype=np.uint8)
    left, right = raw[0].view(dtype), raw[1].view(dtype)
    near = bits(left) ^ (bits(right) >> (9 if dtype.itemsize > 2 else 6))
    right = np.where(np.arange(COUNT) % 2 == 0, bits(right), near).astype(near.dtype).view(dtype)
    special = (
        np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]) if dtype.kind not in "iu" else None
    )
    if special is not None:
        left[: 6 * 6] = np.repeat(special, 6).astype(dtype)
        right[: 6 * 6] = np.tile(special, 6).astype(dtype)
    return left, right


def canonical(array: Array) -> Array:
    result = bits(array).copy()
    result[np.isnan(array)] = CANONICAL_NAN[array.dtype.name]
    floats: Array = result.view(array.dtype)
    return floats


def expected(left: Any, right: Any, op: str) -> Array:
    if left.dtype.kind in "iu":
        result: Array = _FUNCTIONS[op](left, right)
        return result
    wide = np.float64 if left.dtype.itemsize == 8 else np.float32
    a, b = left.astype(wide), right.astype(wide)
    with np.errstate(all="ignore"):
        if op in ("sum", "avg", "prod"):
            return canonical((a * b if op == "prod" else a + b).astype(left.dtype))
        chosen = (np.minimum if op == "min" else np.maximum)(a, b)
        chosen = chosen.astype(left.dtype)
    zeros = (a == 0) & (b == 0)
    signs = np.signbit(a) | np.signbit(b) if op == "min" else np.signbit(a) & np.signbit(b)
    chosen[zeros] = np.where(signs, -0.0, 0.0)[zeros]
    return canonical(chosen)


def reduce(dst: Any, left: Any, right: Any, dtype: int, op: str) -> None:
    def pointer(array: Array) -> Any:
        return ffi.cast("void *", array.ctypes.data)

    lib.cc__reduce(pointer(dst), pointer(left), pointer(right), dst.size, dtype, OPS[op])


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_reduce(name: str, op: str, seed: int) -> None:
    code = {**FLOATS, **INTEGERS}[name]
    if (op == "avg" and name in INTEGERS) or (op in ("band", "bor", "bxor") and name in FLOATS):
        assert not lib.cc__reduce_supports(code, OPS[op])
        return
    left, right = random_pair(dtype_of(name), seed)
    want = bits(expected(left, right, op))
    out = np.empty_like(left)
    reduce(out, left, right, code, op)
    np.testing.assert_array_equal(bits(out), want)
    reduce(left, left, right, code, op)  # in place
    np.testing.assert_array_equal(bits(left), want)


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 10, 1000])
@pytest.mark.parametrize("name", FLOATS)
def test_divide(name: str, divisor: int, seed: int) -> None:
    values, _ = random_pair(dtype_of(name), seed)
    wide = np.float64 if name == "float64" else np.float32
    with np.errstate(all="ignore"):
        want = canonical((values.astype(wide) / wide(divisor)).astype(values.dtype))
    lib.cc__divide(ffi.cast("void *", values.ctypes.data), values.size, FLOATS[name], divisor)
    np.testing.assert_array_equal(bits(values), bits(want))


@pytest.mark.usefixtures("twin")
def test_bfloat16_rounds_once_per_addition() -> None:
    """Two halves of a last place, added one by one, are both rounded away; together they count."""
    one, half_place = 0x3F80, 0x3B80  # 1, 2**-8
    total = np.full(33, one, np.uint16)
    term = np.full(33, half_place, np.uint16)
    reduce(total, total, term, lib.CC_BFLOAT16, "sum")
    reduce(total, total, term, lib.CC_BFLOAT16, "sum")
    assert (total == one).all()
    reduce(term, term, term, lib.CC_BFLOAT16, "sum")
    reduce(total, total, term, lib.CC_BFLOAT16, "sum")
    assert (total == 0x3F81).all()
