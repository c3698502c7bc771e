"""Plans in pure Python: read from C, carried out on lists of any Python objects, and the results
that they must give, from the definitions.

An executor whose elements are expressions rather than numbers shows what a plan computes: the
result "((a+b)+c)" tells the order of the operands, not only their sum. It is also the independent
reference for end-to-end tests: `expected_all_reduce` with numpy scalars gives the very bits that
an algorithm must produce.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from collectives._core import ffi, lib

SEND, PLACE, REDUCE, COPY, LOCAL = 1, 2, 3, 4, 5
IN, OUT, STAGE = 0, 1, 2
FENCE, INCOMING_FIRST, FINISH = 1, 2, 4

Combine = Callable[[Any, Any], Any]


class Unwritten:
    """What memory holds before anything was written to it."""

    def __repr__(self) -> str:
        return "unwritten"


UNWRITTEN = Unwritten()


@dataclass(frozen=True)
class Move:
    """As cc__move, with lengths and offsets in elements."""

    kind: int
    flags: int
    peer: int
    slot: int
    after: int
    count: int
    src: tuple[int, int]
    src2: tuple[int, int]
    dst: tuple[int, int]
    hold: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    algorithm: int
    eager: bool
    stage_count: int
    moves: list[Move]


def build_plan(
    kind: int,
    algorithm: int,
    size: int,
    me: int,
    count: int,
    element_bytes: int = 4,
    root: int = 0,
    ranks: Sequence[int] | None = None,
) -> Plan:
    """One member's plan.

    Raises:
        ValueError: the core refuses such a plan; the message is its status text.
    """
    rows = ffi.new("uint32_t[]", list(range(size) if ranks is None else ranks))
    request = ffi.new("cc__plan_input *")
    request.kind, request.algorithm = kind, algorithm
    request.size, request.me, request.root = size, me, root
    request.count, request.element_bytes, request.ranks = count, element_bytes, rows
    plan = ffi.new("cc__plan *")
    status = lib.cc__plan_build(request, plan)
    if status != lib.CC_OK:
        raise ValueError(ffi.string(lib.cc_status_text(status)).decode())
    try:
        return Plan(
            algorithm=plan.algorithm,
            eager=bool(plan.eager),
            stage_count=plan.stage_bytes // element_bytes,
            moves=[_read(plan.moves[i], element_bytes) for i in range(plan.n_moves)],
        )
    finally:
        lib.cc__plan_free(plan)


def _read(move: Any, element_bytes: int) -> Move:
    def place(where: Any) -> tuple[int, int]:
        assert where.offset % element_bytes == 0
        return where.area, where.offset // element_bytes

    assert move.bytes % element_bytes == 0
    return Move(
        kind=move.kind,
        flags=move.flags,
        peer=move.peer,
        slot=move.slot,
        after=move.after,
        count=move.bytes // element_bytes,
        src=place(move.src),
        src2=place(move.src2),
        dst=place(move.dst),
        hold=place(move.hold),
    )


@dataclass
class _Member:
    plan: Plan
    areas: list[list[Any]]
    done: list[set[int]] = field(default_factory=list)  # of each move: finished segments


class Execution:
    """All members of one operation, moved segment by segment in a random order.

    `inputs[i]` is member i's input, `out_count` the length of its output in elements. In place the
    output begins with the input. `outputs()` runs the plans to their end.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        inputs: Sequence[Sequence[Any]],
        out_count: int,
        *,
        combine: Combine,
        finish: Callable[[Any], Any] = lambda value: value,
        in_place: bool = False,
        segment: int = 4,
        rng: random.Random,
    ) -> None:
        self.combine, self.finish = combine, finish
        self.in_place, self.segment, self.rng = in_place, segment, rng
        self.members = []
        for plan, values in zip(plans, inputs, strict=True):
            room = [UNWRITTEN] * (out_count - len(values) if in_place else 0)
            first: list[Any] = [*values, *room]
            out = first if in_place else [UNWRITTEN] * out_count
            stage: list[Any] = [UNWRITTEN] * plan.stage_count
            done: list[set[int]] = [set() for _ in plan.moves]
            self.members.append(_Member(plan, [first, out, stage], done))
        # What can be done next: (what, member, move, segment, payload).
        self.items: list[tuple[str, int, int, int, list[Any]]] = [
            ("work", who, index, segment_index, [])
            for who, plan in enumerate(plans)
            for index, move in enumerate(plan.moves)
            if move.kind not in (PLACE, REDUCE)
            for segment_index in range(self._segments(move))
        ]

    def outputs(self) -> list[list[Any]]:
        """Every member's output. A deadlock or a message nobody expects is an AssertionError."""
        while self.items:
            self._carry_out(self._take_ready())
        for who, member in enumerate(self.members):
            for move, done in zip(member.plan.moves, member.done, strict=True):
                assert len(done) == self._segments(move), f"member {who} never got {move}"
        return [member.areas[OUT] for member in self.members]

    def _take_ready(self) -> tuple[str, int, int, int, list[Any]]:
        """Removes the first thing that can be done, looking from a random one on."""
        start = self.rng.randrange(len(self.items))
        for step in range(len(self.items)):
            at = (start + step) % len(self.items)
            if self._is_ready(self.items[at]):
                self.items[at], self.items[-1] = self.items[-1], self.items[at]
                return self.items.pop()
        raise AssertionError(f"deadlock: {len(self.items)} segments can never move")

    def _segments(self, move: Move) -> int:
        return -(-move.count // self.segment)

    def _move_is_ready(self, who: int, index: int, segment: int) -> bool:
        member = self.members[who]
        move = member.plan.moves[index]
        if move.after >= 0 and not member.done[move.after].issuperset(range(segment + 1)):
            return False
        earlier = zip(member.plan.moves[:index], member.done[:index], strict=True)
        return not move.flags & FENCE or all(len(done) == self._segments(m) for m, done in earlier)

    def _is_ready(self, item: tuple[str, int, int, int, list[Any]]) -> bool:
        what, who, index, segment, _ = item
        return what == "arrive" or self._move_is_ready(who, index, segment)

    def _range(self, move: Move, segment: int) -> range:
        return range(segment * self.segment, min((segment + 1) * self.segment, move.count))

    def _load(self, who: int, place: tuple[int, int], span: range) -> list[Any]:
        values = self.members[who].areas[place[0]][place[1] + span.start : place[1] + span.stop]
        assert len(values) == len(span)
        assert UNWRITTEN not in values, f"member {who} reads what was never written"
        return values

    def _store(self, who: int, place: tuple[int, int], span: range, values: list[Any]) -> None:
        area = self.members[who].areas[place[0]]
        assert place[0] != IN
        assert place[1] + span.stop <= len(area)
        area[place[1] + span.start : place[1] + span.stop] = values

    def _carry_out(self, item: tuple[str, int, int, int, list[Any]]) -> None:
        what, who, index, segment, payload = item
        move = self.members[who].plan.moves[index]
        span = self._range(move, segment)
        if what == "arrive" and not self._move_is_ready(who, index, segment):
            assert move.hold[0] == STAGE, f"no place to hold what comes early for {move}"
            self._store(who, move.hold, span, payload)
            self.items.append(("held", who, index, segment, []))
            return
        if what == "held":
            payload = self._load(who, move.hold, span)
        if move.kind == SEND:
            receipt = self._receipt(who, move)
            values = self._load(who, move.src, span)
            self.items.append(("arrive", move.peer, receipt, segment, values))
        else:
            if move.kind == COPY:
                payload = self._load(who, move.src, span)
            elif move.kind in (REDUCE, LOCAL):
                left = self._load(who, move.src, span)
                right = self._load(who, move.src2, span) if move.kind == LOCAL else payload
                if move.flags & INCOMING_FIRST:
                    left, right = right, left
                payload = [self.combine(a, b) for a, b in zip(left, right, strict=True)]
            if move.flags & FINISH:
                payload = [self.finish(value) for value in payload]
            self._store(who, move.dst, span, payload)
        assert segment not in self.members[who].done[index]
        self.members[who].done[index].add(segment)

    def _receipt(self, who: int, send: Move) -> int:
        matches = [
            i
            for i, move in enumerate(self.members[send.peer].plan.moves)
            if move.kind in (PLACE, REDUCE) and (move.peer, move.slot) == (who, send.slot)
        ]
        assert len(matches) == 1, f"{send} of member {who} is expected {len(matches)} times"
        assert self.members[send.peer].plan.moves[matches[0]].count == send.count
        return matches[0]


def expected_all_reduce(
    algorithm: int, inputs: Sequence[Sequence[Any]], combine: Combine
) -> list[Any]:
    """What `algorithm` computes, element by element and operand by operand.

    DIRECT is the left fold in member order. RING sums chunk c, which starts at element
    floor(count * c / size), in ring order from member c on. RECURSIVE_DOUBLING first joins pairs
    at the front until a power of two is left, then neighbouring blocks.
    """
    size, count = len(inputs), len(inputs[0])
    result = []
    for i in range(count):
        values = [row[i] for row in inputs]
        if algorithm == lib.CC_RING:
            first = max(c for c in range(size) if count * c // size <= i)
            values = values[first:] + values[:first]
        if algorithm == lib.CC_RECURSIVE_DOUBLING:
            folded = size - 2 ** (size.bit_length() - 1)
            pairs = [combine(values[2 * k], values[2 * k + 1]) for k in range(folded)]
            values = pairs + values[2 * folded :]
            while len(values) > 1:
                values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        total = values[0]
        for value in values[1:]:
            total = combine(total, value)
        result.append(total)
    return result
