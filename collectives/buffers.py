"""Arrays and tensors as the core sees them: a pointer, a count and a dtype.

numpy arrays and CPU torch tensors come in here and nowhere else; the result is of the same kind as
the input. torch is never imported: a tensor can only come from a torch that is loaded already.
bfloat16 is a numpy dtype of that name (ml_dtypes registers one), a torch dtype, or numpy's uint16
together with ``dtype="bfloat16"``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from collectives._core import ffi, lib

_BY_NAME = {
    "float32": lib.CC_FLOAT32,
    "float64": lib.CC_FLOAT64,
    "int32": lib.CC_INT32,
    "int64": lib.CC_INT64,
    "bfloat16": lib.CC_BFLOAT16,
}
DTYPES = tuple(_BY_NAME)
_BFLOAT16 = int(lib.CC_BFLOAT16)
_numpy_codes: dict[Any, int] = {
    np.dtype(name): code for name, code in _BY_NAME.items() if name != "bfloat16"
}
_torch_codes: dict[Any, int] = {}


class Buffer:
    """Contiguous memory of an array or tensor. Keeps it alive."""

    __slots__ = ("array", "code", "count", "keep", "pointer")

    def __init__(self, array: Any, pointer: Any, count: int, code: int, keep: Any) -> None:
        self.array = array  # what the caller knows it as
        self.pointer = pointer
        self.count = count
        self.code = code
        self.keep = keep  # what the pointer depends on


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _unsupported(dtype: Any) -> TypeError:
    return TypeError(f"dtype {dtype} is not supported; supported are {', '.join(DTYPES)}")


def _numpy_code(array: np.ndarray[Any, Any], dtype: str | None) -> int:
    if dtype == "bfloat16" and array.dtype in (np.uint16, np.int16):
        return int(lib.CC_BFLOAT16)
    code = _numpy_codes.get(array.dtype)
    if code is None:
        if array.dtype.name != "bfloat16" or not array.dtype.isnative:
            raise _unsupported(array.dtype)
        code = _numpy_codes[array.dtype] = int(lib.CC_BFLOAT16)
    if dtype is not None and _BY_NAME.get(dtype) != code:
        raise TypeError(f"dtype={dtype!r} does not fit an array of {array.dtype}")
    return code


def _numpy_buffer(array: np.ndarray[Any, Any], dtype: str | None, out: bool) -> Buffer:
    code = _numpy_code(array, dtype)
    plain = array
    if not array.flags.c_contiguous:
        if out:
            raise ValueError("the output array must be C-contiguous")
        plain = np.ascontiguousarray(array)
    if out and not array.flags.writeable:
        raise ValueError("the output array is read-only")
    if code == lib.CC_BFLOAT16:
        plain = plain.view(np.uint16)  # the buffer protocol has no bfloat16
    pointer = ffi.from_buffer(plain) if plain.size else ffi.NULL
    return Buffer(array, pointer, array.size, code, plain)


def _torch_buffer(tensor: Any, dtype: str | None, out: bool) -> Buffer:
    if not _torch_codes:
        torch = sys.modules["torch"]
        _torch_codes.update({getattr(torch, name): code for name, code in _BY_NAME.items()})
    if tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device} cannot be used: only CPU tensors can")
    code = _torch_codes.get(tensor.dtype)
    if code is None:
        raise _unsupported(tensor.dtype)
    if dtype is not None and _BY_NAME.get(dtype) != code:
        raise TypeError(f"dtype={dtype!r} does not fit a tensor of {tensor.dtype}")
    plain = tensor.detach()
    if plain.layout is not sys.modules["torch"].strided or plain.is_conj() or plain.is_neg():
        raise ValueError("only dense, strided tensors can be used")
    if not plain.is_contiguous():
        if out:
            raise ValueError("the output tensor must be contiguous")
        plain = plain.contiguous()
    pointer = ffi.cast("char *", plain.data_ptr()) if plain.numel() else ffi.NULL
    return Buffer(tensor, pointer, plain.numel(), code, plain)


def buffer_of(value: Any, dtype: str | None = None, *, out: bool = False) -> Buffer:
    """The memory of an array or tensor. A strided input is copied; an output must be contiguous
    and writable. Raises TypeError or ValueError."""
    if isinstance(value, np.ndarray):
        code = _numpy_codes.get(value.dtype)
        flags = value.flags
        if code is None or code == _BFLOAT16 or dtype is not None or not value.size:
            return _numpy_buffer(value, dtype, out)
        if flags.c_contiguous and (flags.writeable or not out):  # what most are, without detours
            return Buffer(value, ffi.from_buffer(value), value.size, code, value)
        return _numpy_buffer(value, dtype, out)
    if _is_tensor(value):
        return _torch_buffer(value, dtype, out)
    if out:
        raise TypeError(f"out must be a numpy array or a torch tensor, not {type(value).__name__}")
    if isinstance(value, (int, float, list, tuple, np.generic)):
        return _numpy_buffer(np.asarray(value), dtype, False)
    raise TypeError(f"expected a numpy array or a torch tensor, not {type(value).__name__}")


def new_like(buffer: Buffer, rows: int | None = None) -> Any:
    """A new array or tensor like the buffer's; with `rows`, so many of them stacked."""
    source = buffer.array
    if _is_tensor(source):
        torch = sys.modules["torch"]
        shape = tuple(source.shape)
        return torch.empty(shape if rows is None else (rows, *shape), dtype=source.dtype)
    source = buffer.keep if not isinstance(source, np.ndarray) else source
    return np.empty(source.shape if rows is None else (rows, *source.shape), source.dtype)


def check_output(given: Buffer, out: Buffer, rows: int = 1) -> None:
    """Whether an output fits an input. Raises TypeError or ValueError."""
    if out.code != given.code:
        raise TypeError("the output has another dtype than the input")
    if out.count != given.count * rows:
        raise ValueError(f"the output has {out.count} elements; {given.count * rows} are needed")
