"""Tensors as the core takes them: flat, dense, of a dtype that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from collectives.buffers import DTYPES

Tensor = Any  # torch is optional, and so no part of type checks

_KNOWN = {getattr(torch, name) for name in DTYPES}


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself, without gradient; TypeError if it cannot be used."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"expected a tensor, not {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"expected a dense tensor, not one of layout {tensor.layout}")
    return tensor.detach() if tensor.requires_grad else tensor


def numbers(tensor: Tensor) -> Tensor:
    """For reductions: a complex tensor as pairs of real numbers, in the same memory; RuntimeError
    if it is a conjugate that torch has not computed yet."""
    plain = dense(tensor)
    return torch.view_as_real(plain) if plain.is_complex() else plain


def content(tensor: Tensor) -> Tensor:
    """For what only moves data: a tensor of any dtype, as one that the core knows. It shares
    memory with the given one."""
    plain = dense(tensor)
    if plain.dtype in _KNOWN:
        return plain
    if plain.is_complex():
        return torch.view_as_real(plain)
    if plain.itemsize > 1 or plain.is_quantized:  # its scale would stay behind
        raise TypeError(f"tensors of {plain.dtype} cannot be sent")
    return plain.view(torch.uint8)


class Blocks:
    """The tensors of a list as one flat tensor, rank by rank.

    Args:
        size: there must be so many.
        count: of elements that each must have; None: any.

    Attributes:
        flat: all their elements. A view if they lie behind each other in memory, as those that
            were made by chunking do; else a copy.
        counts: how many elements each has.
    """

    def __init__(self, tensors: Sequence[Tensor], size: int, count: int | None = None) -> None:
        self._tensors = [content(tensor) for tensor in tensors]
        if len(self._tensors) != size:
            raise ValueError(
                f"expected a list of {size} tensors, one for each of the ranks, not of {len(tensors)}"
            )
        dtypes = {tensor.dtype for tensor in self._tensors}
        if len(dtypes) > 1:
            raise TypeError(f"the tensors of a list must have one dtype, not {dtypes}")
        self.counts = [tensor.numel() for tensor in self._tensors]
        if count is not None and self.counts != [count] * size:
            raise ValueError(
                f"each tensor of the list must have {count} elements, not {self.counts}"
            )
        view = _adjacent(self._tensors)
        self._is_view = view is not None
        self.flat = torch.empty(sum(self.counts), dtype=dtypes.pop()) if view is None else view

    @property
    def even(self) -> bool:
        return len(set(self.counts)) == 1

    def gather(self) -> Tensor:
        """Brings the tensors' values into `flat`; returns it."""
        if not self._is_view:
            torch.cat([tensor.reshape(-1) for tensor in self._tensors], out=self.flat)
        return self.flat

    def spread(self) -> None:
        """Brings the values of `flat` into the tensors."""
        if self._is_view:
            return
        for tensor, piece in zip(self._tensors, self.flat.split(self.counts), strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _adjacent(tensors: Sequence[Tensor]) -> Tensor | None:
    """All of these as one view, if they lie behind each other in one storage."""
    first = tensors[0]
    at, storage = first.data_ptr(), first.untyped_storage()._cdata  # one may end where others go on
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.is_neg():
            return None
        if tensor.untyped_storage()._cdata != storage:
            return None
        if tensor.numel():
            if tensor.data_ptr() != at:
                return None
            at += tensor.numel() * tensor.itemsize
    total = sum(tensor.numel() for tensor in tensors)
    return first.as_strided((total,), (1,))


def one(tensors: Any) -> Tensor:
    """The tensor of a list of one, as torch hands it in, or of none."""
    if isinstance(tensors, torch.Tensor):
        return tensors
    if len(tensors) != 1:
        raise ValueError(f"expected a list of one tensor, not of {len(tensors)}")
    found: Tensor = tensors[0]
    return found
