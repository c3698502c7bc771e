"""Arrays and tensors as the core sees them: a pointer, a count and a dtype.

numpy arrays and CPU torch tensors come in here and nowhere else; the result is of the same kind as
the input. torch is never imported: a tensor can only come from a torch that is loaded already.
bfloat16 is a numpy dtype of that name (ml_dtypes registers one), a torch dtype, or numpy's uint16
together with ``dtype="bfloat16"``.

The core wants contiguous memory. A strided input is copied before the operation is posted; for a
strided output the core fills a copy, whose content goes into it when the operation has succeeded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from collectives._core import ffi, lib

DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_BY_NAME = {name: int(getattr(lib, f"CC_{name.upper()}")) for name in DTYPES}
_BFLOAT16 = _BY_NAME["bfloat16"]
NUMPY_CODES: dict[Any, int] = {
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
        self.keep = keep  # what the pointer depends on: the array, a view or a copy of it

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def is_copy(self) -> bool:
        """Whether the array itself is strided, and the core has a copy."""
        if self.keep is self.array:
            return False
        if isinstance(self.array, np.ndarray):
            return not self.array.flags.c_contiguous
        return not self.array.is_contiguous()

    def deliver(self) -> None:
        """For an output: brings the result to where the caller wants it."""
        if not self.is_copy:
            return
        if isinstance(self.array, np.ndarray):
            self.array[...] = self.keep.view(self.array.dtype)
        else:
            self.array.detach().copy_(self.keep)


class Parts:
    """The buffers of an all_reduce of several arrays; what `Buffer` is for one."""

    __slots__ = ("array", "code", "given", "pointer", "targets")

    def __init__(self, given: Sequence[Buffer], targets: Sequence[Buffer]) -> None:
        self.given, self.targets = given, targets
        self.array = [target.array for target in targets]
        self.code = given[0].code
        self.pointer = ffi.new("cc_part[]", len(given))
        for part, source, target in zip(self.pointer, given, targets, strict=True):
            part.__setattr__("in", source.pointer)
            part.out, part.count = target.pointer, source.count

    @property
    def is_copy(self) -> bool:
        return any(target.is_copy for target in self.targets)

    def deliver(self) -> None:
        for target in self.targets:
            target.deliver()


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _unsupported(dtype: Any) -> TypeError:
    return TypeError(f"dtype {dtype} is not supported; supported are {', '.join(DTYPES)}")


def _numpy_code(array: np.ndarray[Any, Any], dtype: str | None) -> int:
    if dtype == "bfloat16" and array.dtype in (np.uint16, np.int16):
        return _BFLOAT16
    code = NUMPY_CODES.get(array.dtype)
    if code is None:
        if array.dtype.name != "bfloat16" or not array.dtype.isnative:
            raise _unsupported(array.dtype)
        code = NUMPY_CODES[array.dtype] = _BFLOAT16
    if dtype is not None and _BY_NAME.get(dtype) != code:
        raise TypeError(f"dtype={dtype!r} does not fit an array of {array.dtype}")
    return code


def _overlaps_itself(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether two elements may share memory. An interleaving that no slicing or transposing makes
    counts as an overlap, too."""
    axes = sorted((abs(s), n) for n, s in zip(shape, strides, strict=True) if n > 1)
    reach = item
    for stride, length in axes:
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


def _numpy_buffer(array: np.ndarray[Any, Any], dtype: str | None, out: bool) -> Buffer:
    code = _numpy_code(array, dtype)
    plain = array
    if out and not array.flags.writeable:
        raise ValueError("the output array is read-only")
    if not array.flags.c_contiguous:
        if out and _overlaps_itself(array.shape, array.strides, array.itemsize):
            raise ValueError("elements of the output array share memory")
        plain = np.empty(array.shape, array.dtype) if out else np.ascontiguousarray(array)
    if code == _BFLOAT16:
        plain = plain.view(np.uint16)  # the buffer protocol has no bfloat16
    pointer = ffi.from_buffer(plain) if plain.size else ffi.NULL
    return Buffer(array, pointer, array.size, code, plain)


def _torch_buffer(tensor: Any, dtype: str | None, out: bool) -> Buffer:
    torch = sys.modules["torch"]
    if not _torch_codes:
        known = {getattr(torch, name, None): code for name, code in _BY_NAME.items()}
        _torch_codes.update({key: code for key, code in known.items() if key is not None})
    code = _torch_codes.get(tensor.dtype)
    if code is None:
        raise _unsupported(tensor.dtype)
    if not tensor.is_cpu:
        raise ValueError(f"a tensor on {tensor.device} cannot be used: only CPU tensors can")
    if dtype is not None and _BY_NAME.get(dtype) != code:
        raise TypeError(f"dtype={dtype!r} does not fit a tensor of {tensor.dtype}")
    plain = tensor.detach() if tensor.requires_grad else tensor
    if plain.layout is not torch.strided or plain.is_conj() or plain.is_neg():
        raise ValueError("only dense, strided tensors can be used")
    if not plain.is_contiguous():
        if out and _overlaps_itself(plain.shape, plain.stride(), 1):
            raise ValueError("elements of the output tensor share memory")
        plain = torch.empty(plain.shape, dtype=plain.dtype) if out else plain.contiguous()
    pointer = ffi.cast("char *", plain.data_ptr()) if plain.numel() else ffi.NULL
    return Buffer(tensor, pointer, plain.numel(), code, plain)


def buffer_of(value: Any, dtype: str | None = None, *, out: bool = False) -> Buffer:
    """The memory of an array or tensor, or a copy if that is strided. An output must be writable,
    and no two of its elements may share memory. Raises TypeError or ValueError."""
    if isinstance(value, np.ndarray):
        code = NUMPY_CODES.get(value.dtype)
        flags = value.flags
        if code is None or dtype is not None or not value.size:
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


def output_for(
    given: Buffer, x: Any, out: Any, dtype: str | None, shape: tuple[int, ...] | None = None
) -> Buffer:
    """The output of an operation on x, whose buffer is `given`: `out`, or else a new array of this
    shape, by default x's. Raises TypeError or ValueError if `out` does not fit."""
    shape = given.shape if shape is None else shape
    if out is None:
        return buffer_of(_new(given.array, shape), dtype, out=True)
    if out is x and given.is_copy:
        target = given  # in place, in the copy
        if isinstance(x, np.ndarray) and not x.flags.writeable:
            raise ValueError("the output array is read-only")
        buffer_of(out, dtype, out=True)
    else:
        target = buffer_of(out, dtype, out=True)
    if target.code != given.code:
        raise TypeError("the output has another dtype than the input")
    if target.count != math.prod(shape):
        raise ValueError(f"the output has {target.count} elements; {math.prod(shape)} are needed")
    return target


def _new(like: Any, shape: tuple[int, ...]) -> Any:
    if _is_tensor(like):
        return sys.modules["torch"].empty(shape, dtype=like.dtype)
    return np.empty(shape, like.dtype)
