"""The short way of what most all_reduces are: of one dense CPU tensor, in place, waited for.

Most of what a small all_reduce costs is Python's time between torch and the core; this leaves out
all that such a call does not need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import ReduceOp

import collectives as cc
from collectives._core import ffi, lib
from collectives.buffers import DTYPES

PRESERVE_BYTES = 1 << 20  # of inputs that a copy is kept of
_CODES = {
    getattr(torch, name): (int(getattr(lib, f"CC_{name.upper()}")), getattr(torch, name).itemsize)
    for name in DTYPES
}
# By number: a ReduceOp's own hash and comparison are slow.
_OPS = {
    int(getattr(ReduceOp, theirs)): int(getattr(lib, f"CC_{ours}"))
    for theirs, ours in [("SUM", "SUM"), ("AVG", "AVG"), ("MIN", "MIN"), ("MAX", "MAX")]
}
_PRESERVE, _WHOLE = int(lib.CC_PRESERVE), int(lib.CC_WHOLE)
_Tensor = torch.Tensor
_strided = torch.strided
_cast = ffi.cast


def all_reduce(comm: cc.Communicator, tensor: Any, op: Any, elastic: bool, timeout_ms: int) -> bool:
    """Runs it, if `elastic` among those that live; or False: it is not of that kind, and nothing
    was done.

    Raises: what `Communicator.all_reduce` raises.
    """
    known = _CODES.get(tensor.dtype)
    if known is None or type(tensor) is not _Tensor or not tensor.is_cpu:
        return False
    if tensor.layout is not _strided or not tensor.is_contiguous() or tensor.is_neg():
        return False
    kind, count = _OPS.get(int(op.op)), tensor.numel()
    if kind is None or not count or comm._closed:
        return False
    code, itemsize = known
    at = _cast("char *", tensor.data_ptr())
    flags = _PRESERVE if elastic or count * itemsize <= PRESERVE_BYTES else 0
    if not elastic:
        flags |= _WHOLE
    comm._reduce_at(at, at, code, kind, count, flags, timeout_ms, tensor, tensor)
    return True
