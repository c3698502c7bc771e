"""Collectives of Python objects: pickled, their lengths exchanged, then their bytes.

Unpickling runs code that the sender chose: use them among peers you trust.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from collectives.operations import Operations

_CANNOT = -1  # in place of a length


class ObjectOperations(Operations):
    """The collectives of objects that can be pickled.

    All of them raise ValueError on all members if one's object cannot be pickled; what pickle
    raised is its cause there; otherwise what `Work.wait` raises. They wait, and take `lane` and
    `timeout`, which is each exchange's, in seconds.
    """

    def broadcast_object(
        self, value: Any = None, root: int = 0, *, lane: int = 0, timeout: float | None = None
    ) -> Any:
        """Gives all members the root's object; `value` is not looked at elsewhere. Returns it, and
        the root's own object at the root."""
        at_root = self._root(root) == self.rank
        data, error = _pickled(value) if at_root else (b"", None)
        length = _CANNOT if error else len(data)
        told = self.broadcast(np.array(length), root, lane=lane, timeout=timeout)
        if told == _CANNOT:
            raise _cannot([root]) from error
        received = np.frombuffer(data, np.uint8) if at_root else np.empty(int(told), np.uint8)
        received = self.broadcast(received, root, lane=lane, timeout=timeout)
        return value if at_root else pickle.loads(received.data)

    def gather_object(
        self, value: Any, root: int = 0, *, lane: int = 0, timeout: float | None = None
    ) -> list[Any] | None:
        """The members' objects by rank, at the root; None elsewhere. The entry of a rank without a
        member is None."""
        self._root(root)
        return self._gather_objects(value, root, lane, timeout)

    def all_gather_object(
        self, value: Any, *, lane: int = 0, timeout: float | None = None
    ) -> list[Any]:
        """The members' objects by rank, on all of them. The entry of a rank without a member is
        None."""
        objects = self._gather_objects(value, None, lane, timeout)
        assert objects is not None
        return objects

    def _gather_objects(
        self, value: Any, root: int | None, lane: int, timeout: float | None
    ) -> list[Any] | None:
        data, error = _pickled(value)
        length = _CANNOT if error else len(data)
        lengths = self.all_gather(np.array(length), lane=lane, timeout=timeout)
        if _CANNOT in lengths:
            raise _cannot(np.flatnonzero(lengths == _CANNOT).tolist()) from error
        counts = lengths.tolist()
        mine = np.frombuffer(data, np.uint8)
        work = (
            self.all_gather(mine, counts=counts, async_op=True, lane=lane, timeout=timeout)
            if root is None
            else self.gather(mine, root, counts=counts, async_op=True, lane=lane, timeout=timeout)
        )
        gathered = work.wait()
        if gathered is None:
            return None
        pieces = np.split(gathered, np.cumsum(counts)[:-1])
        missing = work.info.missing
        return [
            None if rank in missing else pickle.loads(piece.data)
            for rank, piece in enumerate(pieces)
        ]


def _pickled(value: Any) -> tuple[bytes, Exception | None]:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), None
    except Exception as error:  # whatever the object's own code raises
        return b"", error


def _cannot(ranks: list[int]) -> ValueError:
    whose = ", ".join(map(str, ranks))
    return ValueError(f"the object of rank {whose} cannot be pickled; nothing was exchanged")
