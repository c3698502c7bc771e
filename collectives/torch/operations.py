"""The collectives of a process group: torch's calls as those of a `Communicator`.

torch hands in lists of tensors and an options object. What it waits for at once (`asyncOp` false)
runs at once, and no work is returned, as upstream has it. All work is in place or into tensors of
the caller; strided ones are right, whatever their strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import AllreduceOptions, ReduceOp

import collectives as cc
from collectives.torch.plain import PRESERVE_BYTES
from collectives.torch.plain import all_reduce as reduce_plain
from collectives.torch.posting import Posting, profiling
from collectives.torch.sparse import Sparse
from collectives.torch.tensors import Blocks, Tensor, content, numbers, one
from collectives.torch.work import Work

_ZERO = timedelta(0)
_SHORTEST = timedelta(milliseconds=1)
_OPS = {
    ReduceOp.SUM: "sum",
    ReduceOp.AVG: "avg",
    ReduceOp.MIN: "min",
    ReduceOp.MAX: "max",
    ReduceOp.PRODUCT: "prod",
    ReduceOp.BAND: "band",
    ReduceOp.BOR: "bor",
    ReduceOp.BXOR: "bxor",
}


def reduction(op: Any, *tensors: Tensor) -> str | cc.Premul:
    """A ReduceOp as `Communicator.all_reduce` has it. Raises TypeError, also if these tensors
    cannot be reduced by it: `numbers` has complex ones as pairs, which can be added up alone."""
    kind = getattr(op, "op", op)
    if (name := _OPS.get(kind)) is not None:
        if name not in ("sum", "avg") and any(tensor.is_complex() for tensor in tensors):
            raise TypeError(f"complex tensors can be summed and averaged, not reduced by {op}")
        return name
    if kind == ReduceOp.PREMUL_SUM:
        factor = op.__getstate__()[1]
        return cc.premul(float(factor))
    raise TypeError(f"the reduction {op} is not known")


class Operations(Posting):
    """The part of `ProcessGroup` that runs operations.

    All raise what `Communicator`'s raise, here or from the `Work`; the timeout of a call is its
    deadline, on all ranks.
    """

    # ---- reductions ------------------------------------------------------------------------------

    def _reduce_in_place(self, tensor: Tensor, op: Any) -> Callable[..., Any]:
        x, kind = numbers(tensor), reduction(op, tensor)
        preserve = self._preserve(x)
        return lambda **options: self._comm.all_reduce(
            x, op=kind, out=x, preserve=preserve, **options
        )

    def _preserve(self, *tensors: Tensor) -> bool:
        """Whether a failed reduction in place has to leave its input as it was. Torch does not ask
        for that; but without it an operation cannot begin again, and a copy of little is cheap."""
        return self.elastic or sum(t.numel() * t.itemsize for t in tensors) <= PRESERVE_BYTES

    def allreduce(self, tensors: Any, opts: Any = None, timeout: Any = None) -> Work | None:
        tensor = one(tensors)
        if type(opts) is AllreduceOptions and not opts.asyncOp and self._reduce_plain(tensor, opts):
            return None
        op, opts = _op_and_options(opts)
        if tensor.layout is torch.sparse_coo:
            return self._reduce_sparse(tensor, op, opts)
        return self._run("all_reduce", opts, [self._reduce_in_place(tensor, op)], [tensor])

    def _reduce_sparse(self, tensor: Tensor, op: Any, opts: Any) -> Work | None:
        sparse = Sparse(tensor, op)
        calls = [
            self._reduce_in_place(sparse.values, op),
            self._reduce_in_place(sparse.present, ReduceOp.MAX),
        ]
        return self._run("all_reduce", opts, calls, [tensor], sparse.spread)

    def _reduce_plain(self, tensor: Tensor, opts: Any) -> bool:
        """Does it the short way, if it can."""
        if self._open or self._coalesced is not None or profiling():
            return False
        timeout = opts.timeout
        limit = self._timeout_ms if timeout <= _ZERO else int(timeout.total_seconds() * 1e3)
        done = reduce_plain(self._comm, tensor, opts.reduceOp, self.elastic, limit)
        self._sequence += done
        return done

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work | None:
        op, opts = _op_and_options(opts)
        plain, kind = [numbers(tensor) for tensor in tensors], reduction(op, *tensors)
        by_dtype: dict[Any, list[Tensor]] = {}
        for tensor in plain:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)

        def call(same: list[Tensor]) -> Callable[..., Any]:
            preserve = self._preserve(*same)
            return lambda **options: self._comm.all_reduce_many(
                same, op=kind, out=same, preserve=preserve, **options
            )

        if isinstance(kind, cc.Premul):  # the core has that for one tensor alone
            calls = [self._reduce_in_place(tensor, op) for tensor in tensors]
        else:
            calls = [call(same) for same in by_dtype.values()]
        return self._run("all_reduce", opts, calls, list(tensors))

    def reduce(self, tensors: Any, opts: Any = None) -> Work | None:
        tensor = one(tensors)
        plain, kind, root = numbers(tensor), reduction(opts.reduceOp, tensor), opts.rootRank
        out = plain if root == self._comm.rank else None
        preserve = self._preserve(plain)

        def call(**options: Any) -> Any:
            return self._comm.reduce(plain, root, op=kind, out=out, preserve=preserve, **options)

        return self._run("reduce", opts, [call], [tensor])

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> Work | None:
        size = self._comm.size
        target, blocks = one(outputs), Blocks([numbers(t) for t in inputs[0]], size)
        op, opts = _op_and_options(opts)
        plain, kind, counts = numbers(target), reduction(op, target), blocks.counts
        flat = blocks.gather()

        def call(**options: Any) -> Any:
            if blocks.even:
                x = _rows(flat, size)
                return self._comm.reduce_scatter(x, op=kind, out=plain, **options)
            return self._comm.reduce_scatter(flat, op=kind, counts=counts, out=plain, **options)

        return self._run("reduce_scatter", opts, [call], [target])

    def _scatter_reduced(self, output: Tensor, given: Tensor, op: Any) -> Callable[..., Any]:
        plain, kind = numbers(output), reduction(op, output)
        x = _rows(numbers(given), self._comm.size)
        return lambda **options: self._comm.reduce_scatter(x, op=kind, out=plain, **options)

    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any = None) -> Work | None:
        op, opts = _op_and_options(opts)
        call = self._scatter_reduced(output, given, op)
        return self._run("_reduce_scatter_base", opts, [call], [output])

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work | None:
        op, opts = _op_and_options(opts)
        pairs = zip(outputs, inputs, strict=True)
        calls = [self._scatter_reduced(output, given, op) for output, given in pairs]
        return self._run("_reduce_scatter_base", opts, calls, list(outputs))

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    # ---- moving data -----------------------------------------------------------------------------

    def broadcast(self, tensors: Any, opts: Any = None, timeout: Any = None) -> Work | None:
        tensor = one(tensors)
        root, opts = (opts, None) if isinstance(opts, int) else (opts.rootRank, opts)
        plain = content(tensor)

        def call(**options: Any) -> Any:
            return self._comm.broadcast(plain, root, out=plain, **options)

        return self._run("broadcast", opts, [call], [tensor])

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Work | None:
        results = outputs[0]
        call, finish = self._gather_all(results, one(inputs))
        return self._run("all_gather", opts, [call], [results], finish)

    def _gather_all(
        self, results: list[Tensor], given: Tensor
    ) -> tuple[Callable[..., Any], Callable[[], None]]:
        blocks, plain = Blocks(results, self._comm.size), content(given).reshape(-1)

        def call(**options: Any) -> Any:
            counts = None if blocks.even else blocks.counts
            return self._comm.all_gather(plain, counts=counts, out=blocks.flat, **options)

        return call, blocks.spread

    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work | None:
        """`outputs` is a list for each rank, of a tensor for each input."""
        per_input = [list(results) for results in zip(*outputs, strict=True)]
        both = [
            self._gather_all(results, given)
            for results, given in zip(per_input, inputs, strict=True)
        ]

        def finish() -> None:
            for _, spread in both:
                spread()

        return self._run("all_gather", opts, [call for call, _ in both], list(outputs), finish)

    def _gather_flat(self, output: Tensor, given: Tensor) -> Callable[..., Any]:
        target, plain = content(output), content(given)
        return lambda **options: self._comm.all_gather(plain, out=target, **options)

    def all_gather_single(self, output: Tensor, given: Tensor, opts: Any = None) -> Work | None:
        call = self._gather_flat(output, given)
        return self._run("_all_gather_base", opts, [call], [output])

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work | None:
        pairs = zip(outputs, inputs, strict=True)
        calls = [self._gather_flat(output, given) for output, given in pairs]
        return self._run("_all_gather_base", opts, calls, list(outputs))

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> Work | None:
        given, root = one(inputs), opts.rootRank
        plain = content(given).reshape(-1)
        at_root = root == self._comm.rank
        blocks = Blocks(outputs[0], self._comm.size, plain.numel()) if at_root else None

        def call(**options: Any) -> Any:
            out = None if blocks is None else blocks.flat
            return self._comm.gather(plain, root, out=out, **options)

        finish = None if blocks is None else blocks.spread
        return self._run("gather", opts, [call], [outputs[0] if at_root else []], finish)

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> Work | None:
        target, root = one(outputs), opts.rootRank
        plain = content(target)
        x = None
        if root == self._comm.rank:
            size = self._comm.size
            x = _rows(Blocks(inputs[0], size, plain.numel()).gather(), size)

        def call(**options: Any) -> Any:
            return self._comm.scatter(x, root, out=plain, **options)

        return self._run("scatter", opts, [call], [target])

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        size = self._comm.size
        received, sent = Blocks(outputs, size), Blocks(inputs, size)
        flat = sent.gather()

        def call(**options: Any) -> Any:
            counts, receive_counts = sent.counts, received.counts
            return self._comm.all_to_all(
                flat, counts=counts, receive_counts=receive_counts, out=received.flat, **options
            )

        return self._run("all_to_all", opts, [call], list(outputs), received.spread)

    def all_to_all_single(
        self,
        output: Tensor,
        given: Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any = None,
    ) -> Work | None:
        target, plain = content(output), content(given)
        counts = _elements(plain, input_splits, self._comm.size)
        receive_counts = _elements(target, output_splits, self._comm.size)
        flat = plain.reshape(-1)

        def call(**options: Any) -> Any:
            return self._comm.all_to_all(
                flat, counts=counts, receive_counts=receive_counts, out=target, **options
            )

        return self._run("all_to_all", opts, [call], [output])

    alltoall_base = all_to_all_single

    # ---- barriers and messages -------------------------------------------------------------------

    def barrier(self, opts: Any = None) -> Work | None:
        return self._run("barrier", opts, [lambda **options: self._comm.barrier(**options)], [])

    def monitored_barrier(
        self, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        """A barrier whose failure names who did not come: all ranks of whom that is known, whether
        or not all are asked for.

        Raises: TimedOut, naming them, on all ranks that came; PeerLost.
        """
        opts = dist.BarrierOptions()
        opts.asyncOp = False
        # Zero is no time here, and nothing said elsewhere.
        opts.timeout = self._timeout if timeout is None else max(timeout, _SHORTEST)
        try:
            self.barrier(opts)
        except cc.TimedOut as error:  # in the words of Gloo's, which is looked for
            text = f"Rank {self._comm.rank} timed out in monitoredBarrier: {error}"
            raise cc.TimedOut(text) from None

    def send(self, tensors: Any, to: int, tag: int = 0) -> Work:
        tensor = one(tensors)
        return self._message("send", tensor, self._comm.send, content(tensor), to, tag=tag)

    def recv(self, tensors: Any, source: int | None, tag: int = 0) -> Work:
        tensor = one(tensors)
        return self._message("recv", tensor, self._comm.recv, content(tensor), source, tag=tag)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        return self.recv(tensors, None, tag)


def _op_and_options(opts: Any) -> tuple[Any, Any]:
    """torch's calls take options, or in a short form a ReduceOp, or nothing."""
    if opts is None:
        return ReduceOp.SUM, None
    if hasattr(opts, "reduceOp"):
        return opts.reduceOp, opts
    return opts, None


def _rows(tensor: Tensor, size: int) -> Tensor:
    """A row for each of so many ranks."""
    if tensor.numel() % size:
        shape = tuple(tensor.shape)
        raise ValueError(f"a tensor of shape {shape} cannot be split evenly among {size} ranks")
    return tensor.reshape(size, tensor.numel() // size)


def _elements(tensor: Tensor, splits: Sequence[int], size: int) -> list[int]:
    """How many elements go to each rank, or come from it. Splits are of the first axis."""
    if not len(splits):
        return [_rows(tensor, size).shape[1]] * size
    rows = tensor.shape[0] if tensor.dim() else 1
    if len(splits) != size or sum(splits) != rows:
        raise ValueError(
            f"split sizes {list(splits)} do not fit {size} ranks and a first axis of {rows}"
        )
    row = tensor[0].numel() if rows else 0
    return [split * row for split in splits]
