"""Sparse tensors, as DDP has them for embeddings with `sparse=True`: reduced as dense ones.

Which elements are there differs from rank to rank, so a sparse exchange takes two rounds, the
second of which depends on the first; in between, an operation that is not waited for would be out
of the order that all ranks share. A dense reduction is one round, right in every case, and as slow
as it sounds. A second, small one tells which elements are there on any rank, zeros among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import ReduceOp

from collectives.torch.tensors import Tensor


class Sparse:
    """A sparse tensor that is being reduced.

    Attributes:
        values: a dense tensor of all elements, to be reduced in place.
        present: of the shape of the sparse dimensions: 1 where there is something, else 0. To be
            reduced in place to the maximum.
    """

    def __init__(self, tensor: Tensor, op: Any) -> None:
        """Raises TypeError: what is not there has no value but for sums."""
        if getattr(op, "op", op) not in (ReduceOp.SUM, ReduceOp.AVG):
            raise TypeError(f"a sparse tensor can be summed or averaged, not reduced by {op}")
        self._tensor = tensor
        given = tensor.detach().coalesce()
        self.values = given.to_dense()
        self.present = torch.zeros(given.shape[: given.sparse_dim()], dtype=torch.uint8)
        self.present[tuple(given.indices())] = 1

    def spread(self) -> None:
        """Brings the result into the tensor."""
        indices = self.present.nonzero().t()
        values = self.values[tuple(indices)]
        shape = self._tensor.shape
        with torch.no_grad():  # a detached sparse tensor would not pass it on
            self._tensor.copy_(
                torch.sparse_coo_tensor(
                    indices, values, shape, is_coalesced=True, check_invariants=False
                )
            )
