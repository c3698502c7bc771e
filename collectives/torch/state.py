"""The state of a run, from a rank that has it to those that have just come.

It is pickled without its tensors. Their bytes follow in pieces of some MiB: parts of a large one
from where it lies to where it will be, small ones together. Ranks that have the state take part in
the broadcasts and forget what they bring. If the source dies, the next rank that has the state
begins again from the start.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import collectives as cc
from collectives.torch.tensors import Tensor

PIECE_BYTES = 8 << 20


def share(comm: cc.Communicator, state: Callable[[], Any] | None, timeout: float) -> Any:
    """Gives the state of the lowest rank that has it to all that do not. All members call it.

    Args:
        state: makes the state, of whatever can be pickled; None: this rank has none.
        timeout: of each exchange, in seconds.

    Returns: the state, where there was none; elsewhere None.

    Raises, on all members: CollectivesError: nobody has it, or it cannot be pickled. What
        `Work.wait` raises.
    """
    while True:
        has = comm.all_gather(np.array(state is not None), timeout=timeout)
        sources = np.flatnonzero(has)  # False is also what stands for a rank without a member
        if not len(sources):
            raise cc.CollectivesError("no rank that has the state of the run is left")
        source = int(sources[0])
        try:
            if state is not None and source == comm.rank:
                return _give(comm, state, timeout)
            return _take(comm, source, state is None, timeout)
        except cc.PeerLost:  # the source, seen by all in the same exchange
            continue


def _give(comm: cc.Communicator, state: Callable[[], Any], timeout: float) -> None:
    me = comm.rank
    try:
        frame, tensors = pack(state())
    except Exception as error:
        comm.broadcast_object(None, me, timeout=timeout)
        raise cc.CollectivesError("the state of this run cannot be pickled") from error
    lengths = [len(tensor) for tensor in tensors]
    comm.broadcast_object((frame, lengths), me, timeout=timeout)
    for piece in pieces(lengths):
        parts = [tensors[i][start:stop] for i, start, stop in piece]
        given = parts[0] if len(parts) == 1 else torch.cat(parts)
        comm.broadcast(given, me, out=given, timeout=timeout)


def _take(comm: cc.Communicator, source: int, wanted: bool, timeout: float) -> Any:
    told = comm.broadcast_object(root=source, timeout=timeout)
    if told is None:
        raise cc.CollectivesError(f"the state of this run cannot be pickled, says rank {source}")
    frame, lengths = told
    state, tensors = unpack(frame) if wanted else (None, [])
    scratch = torch.empty(PIECE_BYTES, dtype=torch.uint8)
    for piece in pieces(lengths):
        sizes = [stop - start for _, start, stop in piece]
        parts = [tensors[i][start:stop] for i, start, stop in piece] if wanted else []
        target = parts[0] if len(parts) == 1 else scratch[: sum(sizes)]
        comm.broadcast(target, source, out=target, timeout=timeout)
        if len(parts) > 1:
            for part, received in zip(parts, target.split(sizes), strict=True):
                part.copy_(received)
    return state


def pieces(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """What travels together: parts of tensors, each as its index, start and stop."""
    piece: list[tuple[int, int, int]] = []
    room = PIECE_BYTES
    for index, length in enumerate(lengths):
        for start in range(0, length, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, length)
            if stop - start > room:
                yield piece
                piece, room = [], PIECE_BYTES
            piece.append((index, start, stop))
            room -= stop - start
    if piece:
        yield piece


# ---- as bytes ------------------------------------------------------------------------------------


def pack(state: Any) -> tuple[bytes, list[Tensor]]:
    """A state as its pickle without tensors, and the bytes of these, which are views where that is
    possible. Raises what pickle raises."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(state)
    return file.getvalue(), [_bytes(tensor.contiguous()) for tensor in pickler.tensors]


def unpack(frame: bytes) -> tuple[Any, list[Tensor]]:
    """A state whose tensors are still to be filled, and their bytes to be filled."""
    unpickler = _Unpickler(io.BytesIO(frame))
    state = unpickler.load()
    return state, [_bytes(tensor) for tensor in unpickler.tensors]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.tensors: list[Tensor] = []
        self._met: dict[int, tuple[int, Tensor]] = {}  # what comes twice is one tensor there, too

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return None  # it is pickled with its bytes
        number, _ = self._met.setdefault(id(value), (len(self.tensors), value))
        if number == len(self.tensors):
            self.tensors.append(value.detach().resolve_conj().resolve_neg())
        return number, tuple(value.shape), value.dtype, value.requires_grad


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._made: list[Tensor] = []

    def persistent_load(self, told: Any) -> Tensor:
        number, shape, dtype, requires_grad = told
        if number == len(self._made):
            empty = torch.empty(shape, dtype=dtype)
            self.tensors.append(empty.detach())
            self._made.append(empty.requires_grad_(requires_grad))
        return self._made[number]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_quantized


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
