"""The collectives: what each does to which arrays. Arguments are checked here, before anything is
sent; docs/algorithms.md says how they are carried out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from collectives._core import ffi, lib
from collectives.buffers import Buffer, Parts, buffer_of, output_for
from collectives.posting import MessageOptions, Options, Posting, choice

if TYPE_CHECKING:
    from typing_extensions import Unpack

_OPS = {
    name: int(getattr(lib, f"CC_{name.upper()}"))
    for name in ("sum", "avg", "min", "max", "prod", "band", "bor", "bxor")
}


@dataclass(frozen=True)
class Premul:
    """See `premul`."""

    factor: float


def premul(factor: float) -> Premul:
    """A reduction: the sum of each member's input times its own `factor`, a finite number or not,
    rounded to the arrays' dtype (floating point only) after the multiplication."""
    return Premul(float(factor))


class Operations(Posting):
    """The collectives of a communicator.

    Arrays are numpy arrays or CPU torch tensors of these dtypes, equal on all members: float16, 32
    and 64, bfloat16, int8 to int64, uint8 to uint64, bool. Results are of the same kind as the
    input. Any shape goes, scalars and empty arrays too; strided ones are copied on the way.

    Without ``out=`` the result is a new array. ``out=x`` is in place; any other overlap of the two
    is an error, but that the smaller one may be this rank's block of the larger. `out` may have
    any shape of the right number of elements. When an operation fails, inputs are as they were
    (but see `preserve`), and an `out` that is no input is undefined.

    Where one array holds a *block for each rank*, its first axis is the rank: it has `size`
    entries. With `counts`, one number for each rank, blocks lie one behind the other along the
    first axis, and rank r's has ``counts[r]`` entries. A rank without a member (it died since the
    last `admit`) has a block all the same; where blocks are gathered its own is zeros.

    Every collective takes the keywords of `Options`: async_op, algorithm, dtype, lane, timeout,
    retry, whole. All raise TypeError, ValueError or NotImplementedError for arguments that cannot
    be, and send nothing then, as they do with CollectivesError if 64 operations of the lane are
    open, or an `admit` is; otherwise what `Work.wait` raises.

    When a member dies, an operation begins again among the survivors, inside the call. It raises
    `PeerLost` on all of them if it cannot be right without the dead one: reduce_scatter, scatter
    and all_to_all, and what has a root if that is dead.
    """

    @property
    @abstractmethod
    def rank(self) -> int:
        """This peer's rank."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of ranks."""

    # ---- the same for all --------------------------------------------------------------------

    def all_reduce(
        self,
        x: Any,
        *,
        op: str | Premul = "sum",
        out: Any = None,
        preserve: bool = True,
        **options: Unpack[Options],
    ) -> Any:
        """Combines the members' arrays element by element; all get the same bits.

        Args:
            x: an array of equal count on all members.
            op: ``"sum"``, ``"avg"`` (floating point; over the contributors), ``"min"``, ``"max"``,
                ``"prod"``, ``"band"``, ``"bor"``, ``"bxor"`` (integers and bool) or
                ``premul(factor)``. Of booleans the sum is "or" and the product is "and".
            preserve: in place, keep the input until the outcome is decided. False saves the copy;
                then x is undefined on failure, and the operation cannot begin again, in place or
                not. The same on all members.
        """
        if not options and preserve is True and type(x) is np.ndarray:
            plain = _OPS.get(op) if type(op) is str else None
            if plain is not None and (result := self._reduce_plain(x, out, plain)) is not None:
                return result
        given = buffer_of(x, options.get("dtype"))
        target = output_for(given, x, out, options.get("dtype"))
        return self._run(
            "all_reduce", given, target, options, count=given.count, **_reduction(op, preserve)
        )

    def all_reduce_many(
        self,
        xs: Sequence[Any],
        *,
        op: str | Premul = "sum",
        out: Sequence[Any] | None = None,
        preserve: bool = True,
        **options: Unpack[Options],
    ) -> Any:
        """`all_reduce` of several arrays of one dtype as if they were one, with one vote. Returns
        the list of results; ``out=xs`` is in place. It takes memory for a copy of all of them."""
        xs = list(xs)
        outs = [None] * len(xs) if out is None else list(out)
        if not xs or len(outs) != len(xs):
            raise ValueError(
                f"{len(outs)} outputs for {len(xs)} arrays; there must be one at least"
            )
        dtype = options.get("dtype")
        given = [buffer_of(x, dtype) for x in xs]
        targets = [output_for(g, x, o, dtype) for g, x, o in zip(given, xs, outs, strict=True)]
        if len({buffer.code for buffer in given}) > 1:
            raise TypeError("the arrays have different dtypes; reduce those of each dtype together")
        parts = Parts(given, targets)
        return self._run("all_reduce_many", None, parts, options, **_reduction(op, preserve))

    def broadcast(
        self, x: Any, root: int = 0, *, out: Any = None, **options: Unpack[Options]
    ) -> Any:
        """Gives all members the root's array. On other members x tells count and dtype only;
        ``out=x`` overwrites it with the root's."""
        given = buffer_of(x, options.get("dtype"))
        target = output_for(given, x, out, options.get("dtype"))
        return self._run(
            "broadcast", given, target, options, root=self._root(root), count=given.count
        )

    def all_gather(
        self,
        x: Any,
        *,
        counts: Sequence[int] | None = None,
        out: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Gives all members everybody's array, as blocks: shape ``(size, *x.shape)``, or, with
        `counts`, all arrays behind each other along the first axis. `Work.info.missing` names the
        ranks without a member."""
        given = buffer_of(x, options.get("dtype"))
        shape, fields = self._gathered(given, counts)
        target = output_for(given, x, out, options.get("dtype"), shape)
        return self._run("all_gather", given, target, options, **fields)

    def barrier(self, **options: Unpack[Options]) -> Any:
        """Returns when all members have called it. Result: None."""
        return self._run("barrier", None, None, options)

    # ---- with a root --------------------------------------------------------------------------

    def reduce(
        self,
        x: Any,
        root: int = 0,
        *,
        op: str | Premul = "sum",
        out: Any = None,
        preserve: bool = True,
        **options: Unpack[Options],
    ) -> Any:
        """As `all_reduce`, with the result at the root alone; None elsewhere, where `out` is not
        looked at."""
        given = buffer_of(x, options.get("dtype"))
        target = None
        if self._root(root) == self.rank:
            target = output_for(given, x, out, options.get("dtype"))
        fields = _reduction(op, preserve)
        return self._run("reduce", given, target, options, root=root, count=given.count, **fields)

    def gather(
        self,
        x: Any,
        root: int = 0,
        *,
        counts: Sequence[int] | None = None,
        out: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """As `all_gather`, with the result at the root alone; None elsewhere."""
        given = buffer_of(x, options.get("dtype"))
        shape, fields = self._gathered(given, counts)
        target = None
        if self._root(root) == self.rank:
            target = output_for(given, x, out, options.get("dtype"), shape)
        return self._run("gather", given, target, options, root=root, **fields)

    def scatter(
        self,
        x: Any = None,
        root: int = 0,
        *,
        counts: Sequence[int] | None = None,
        out: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Gives each member its block of the root's array: shape ``x.shape[1:]``, or, with
        `counts`, ``(counts[rank], *x.shape[1:])``.

        Args:
            x: at the root an array of blocks. Elsewhere it may be None, if there is an `out`;
                otherwise it tells shape and dtype only.
        """
        given = None
        if x is None:
            if self._root(root) == self.rank or out is None:
                raise ValueError("scatter needs x at the root, and x or out elsewhere")
            target = buffer_of(out, options.get("dtype"), out=True)
            fields = self._own_block(target, counts)
        else:
            given = buffer_of(x, options.get("dtype"))
            shape, fields = self._block(given, counts)
            target = output_for(given, x, out, options.get("dtype"), shape)
        return self._run("scatter", given, target, options, root=self._root(root), **fields)

    # ---- a block for each ------------------------------------------------------------------------

    def reduce_scatter(
        self,
        x: Any,
        *,
        op: str | Premul = "sum",
        counts: Sequence[int] | None = None,
        out: Any = None,
        preserve: bool = True,
        **options: Unpack[Options],
    ) -> Any:
        """Combines the members' arrays of blocks, as `all_reduce`, and gives each member its block
        of the result, of the shape that `scatter` has."""
        given = buffer_of(x, options.get("dtype"))
        shape, fields = self._block(given, counts)
        target = output_for(given, x, out, options.get("dtype"), shape)
        return self._run(
            "reduce_scatter", given, target, options, **fields, **_reduction(op, preserve)
        )

    def all_to_all(
        self,
        x: Any,
        *,
        counts: Sequence[int] | None = None,
        receive_counts: Sequence[int] | None = None,
        out: Any = None,
        **options: Unpack[Options],
    ) -> Any:
        """Gives each member a block of each member's array: block r of the result is this rank's
        block of rank r's array. Shape as x, with `receive_counts` but for the first axis.

        Args:
            counts: how long the blocks of x are.
            receive_counts: how long the blocks of the result are: what this rank's block is in
                the `counts` of each other. A difference is a `Mismatch` on all members.
        """
        given = buffer_of(x, options.get("dtype"))
        _, fields = self._block(given, counts)
        shape = given.shape
        if (counts is None) != (receive_counts is None):
            raise ValueError("all_to_all takes both counts and receive_counts, or none")
        if receive_counts is not None:
            fields["receive_counts"], total = self._native_counts(given, receive_counts)
            shape = (total, *given.shape[1:])
        target = output_for(given, x, out, options.get("dtype"), shape)
        return self._run("all_to_all", given, target, options, **fields)

    # ---- point to point --------------------------------------------------------------------------

    def send(self, x: Any, to: int, *, tag: int = 0, **options: Unpack[MessageOptions]) -> Any:
        """Sends an array to one member, and returns None once that has taken it with `recv`.

        Messages are no part of the members' common order: any thread may send and receive at any
        time, and a failure of other members does not disturb them. Those of one sender, receiver
        and tag are received in the order in which they were sent, each of them once.

        Args:
            to: the receiver's rank.
            tag: 0 to 2**31 - 1.

        Raises:
            PeerLost: the receiver died, was cut off or closed; it may have taken the message.
            Mismatch: it asked for another dtype or count.
            TimedOut: the deadline passed, and it may have taken the message; or the receiver's did
                while it took it, and the message is gone.
            CollectivesError: it has 256 messages to take, or 1024 sends and receives are open here.
        """
        given = buffer_of(x, options.get("dtype"))
        fields = {"root": self._peer(to), "tag": _tag(tag), "count": given.count}
        return self._run("send", given, None, options, **fields)

    def recv(
        self,
        out: Any,
        source: int | None = None,
        *,
        tag: int = 0,
        **options: Unpack[MessageOptions],
    ) -> Any:
        """Receives a message into `out`, which has the dtype and count that were sent, and returns
        it. See `send`.

        Args:
            source: the sender's rank; None takes the first message of anyone, and
                `Work.info.source` tells whose it was.

        Raises:
            PeerLost: the sender died, was cut off or closed. With None: nobody else is left.
            Mismatch: the message is of another dtype or count; it is gone.
            TimedOut: the deadline passed; a message that was under way is gone.
            CollectivesError: 1024 sends and receives are open here.
        """
        target = buffer_of(out, options.get("dtype"), out=True)
        root = lib.CC_ANY_SOURCE if source is None else self._peer(source)
        fields = {"root": root, "tag": _tag(tag), "count": target.count}
        return self._run("recv", None, target, options, **fields)

    def _peer(self, rank: int) -> int:
        if not isinstance(rank, int) or not 0 <= rank < self.size:
            raise ValueError(f"{rank!r} is no rank of this group of {self.size}")
        if rank == self.rank:
            raise ValueError("a peer cannot send to itself or receive from itself")
        return rank

    # ---- geometry ------------------------------------------------------------------------------

    def _root(self, root: int) -> int:
        if not isinstance(root, int) or not 0 <= root < self.size:
            raise ValueError(f"root {root!r} is no rank of this group of {self.size}")
        return root

    def _native_counts(self, like: Buffer, counts: Sequence[int]) -> tuple[Any, int]:
        """Counts of entries as the core has them, in elements; and their sum, in entries."""
        if len(counts) != self.size:
            raise ValueError(f"{len(counts)} counts for a group of {self.size}")
        entries = [int(count) for count in counts]
        if any(entry < 0 for entry in entries) or entries != list(counts):
            raise ValueError(f"counts must be whole numbers and not negative, not {counts!r}")
        each = math.prod(like.shape[1:])
        if sum(entries) * max(each, 1) >= 2**60:
            raise ValueError("counts are too large")
        return ffi.new("uint64_t[]", [entry * each for entry in entries]), sum(entries)

    def _gathered(
        self, given: Buffer, counts: Sequence[int] | None
    ) -> tuple[tuple[int, ...], dict[str, Any]]:
        """The shape of all blocks of which `given` is one, and what to post."""
        size = self.size
        if counts is None:
            return (size, *given.shape), {"world": size, "count": given.count}
        fields = self._own_block(given, counts)
        return (sum(counts), *given.shape[1:]), fields

    def _own_block(self, block: Buffer, counts: Sequence[int] | None) -> dict[str, Any]:
        """What to post if this is this rank's block."""
        size, rank = self.size, self.rank
        if counts is None:
            return {"world": size, "count": block.count}
        native, _ = self._native_counts(block, counts)
        if not block.shape or block.shape[0] != counts[rank]:
            raise ValueError(
                f"counts[{rank}] is {counts[rank]}, but this rank's array has shape {block.shape}"
            )
        return {"world": size, "counts": native}

    def _block(
        self, given: Buffer, counts: Sequence[int] | None
    ) -> tuple[tuple[int, ...], dict[str, Any]]:
        """The shape of this rank's block of an array of blocks, and what to post."""
        size, rank, shape = self.size, self.rank, given.shape
        if counts is None:
            if not shape or shape[0] != size:
                raise ValueError(
                    f"the first axis must have an entry for each of {size} ranks, not shape {shape}"
                )
            return shape[1:], {"world": size, "count": given.count // size}
        native, total = self._native_counts(given, counts)
        if not shape or shape[0] != total:
            raise ValueError(f"counts add up to {total}, but the array has shape {shape}")
        return (counts[rank], *shape[1:]), {"world": size, "counts": native}


def _tag(tag: int) -> int:
    if not isinstance(tag, int) or not 0 <= tag < lib.CC_TAGS:
        raise ValueError(f"tag must be 0 to {lib.CC_TAGS - 1}, not {tag!r}")
    return tag


def _reduction(op: str | Premul, preserve: bool) -> dict[str, Any]:
    flags = lib.CC_PRESERVE if preserve else 0
    if isinstance(op, Premul):
        return {"op": lib.CC_PREMUL_SUM, "factor": op.factor, "flags": flags}
    return {"op": choice(_OPS, op, "op"), "flags": flags}
