"""Plans as Python sees them, on expressions instead of numbers.

Every element of member i's input is the text "i"; combining writes "(left+right)". So the result
spells out who was added to whom, in which order, and how often. tests/c/test_plan.c covers more
sizes and orders of arrival; here a second, independent executor must agree.
"""

from __future__ import annotations

import random

import pytest
from plan_reference import SEND, Execution, build_plan, expected_all_reduce

from collectives._core import lib

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 11]
ALGORITHMS = [lib.CC_RING, lib.CC_RECURSIVE_DOUBLING, lib.CC_DIRECT]
NAMES = {lib.CC_RING: "ring", lib.CC_RECURSIVE_DOUBLING: "doubling", lib.CC_DIRECT: "direct"}


def join(left: str, right: str) -> str:
    return f"({left}+{right})"


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES.get)
@pytest.mark.parametrize("size", SIZES)
def test_all_reduce(size: int, algorithm: int, in_place: bool, rng: random.Random) -> None:
    for count in sorted({0, 1, size - 1, size, size + 1, 19}):
        inputs = [[str(member)] * count for member in range(size)]
        plans = [build_plan(lib.CC_ALL_REDUCE, algorithm, size, i, count) for i in range(size)]
        outputs = Execution(
            plans,
            inputs,
            count,
            combine=join,
            finish=lambda total: f"{total}!",
            in_place=in_place,
            segment=rng.randint(2, 8),
            rng=rng,
        ).outputs()
        expected = [f"{total}!" for total in expected_all_reduce(algorithm, inputs, join)]
        assert outputs == [expected] * size


def test_order_of_operands_by_hand() -> None:
    """The reference itself, against results written out by hand."""
    inputs = [[name] * 3 for name in "abc"]
    assert expected_all_reduce(lib.CC_DIRECT, inputs, join) == ["((a+b)+c)"] * 3
    assert expected_all_reduce(lib.CC_RECURSIVE_DOUBLING, inputs, join) == ["((a+b)+c)"] * 3
    ring = ["((a+b)+c)", "((b+c)+a)", "((c+a)+b)"]
    assert expected_all_reduce(lib.CC_RING, inputs, join) == ring
    inputs = [[name] for name in "abcdef"]
    tree = ["(((a+b)+(c+d))+(e+f))"]
    assert expected_all_reduce(lib.CC_RECURSIVE_DOUBLING, inputs, join) == tree


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("algorithm", [lib.CC_RING, lib.CC_DIRECT], ids=NAMES.get)
@pytest.mark.parametrize("size", SIZES)
def test_broadcast(size: int, algorithm: int, in_place: bool, rng: random.Random) -> None:
    for root in range(size):
        inputs = [[f"{member}.{i}" for i in range(11)] for member in range(size)]
        plans = [
            build_plan(lib.CC_BROADCAST, algorithm, size, i, 11, root=root) for i in range(size)
        ]
        execution = Execution(
            plans, inputs, 11, combine=join, in_place=in_place, segment=rng.randint(2, 8), rng=rng
        )
        assert execution.outputs() == [inputs[root]] * size


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("algorithm", [lib.CC_RING, lib.CC_DIRECT], ids=NAMES.get)
@pytest.mark.parametrize("size", SIZES)
def test_all_gather(size: int, algorithm: int, in_place: bool, rng: random.Random) -> None:
    """Rows stand where the ranks say, also in place, where the input lies in row 0."""
    ranks = sorted([0, *rng.sample(range(1, 2 * size), size - 1)])
    count, rows = 7, ranks[-1] + 1
    inputs = [[f"{member}.{i}" for i in range(count)] for member in range(size)]
    plans = [
        build_plan(lib.CC_ALL_GATHER, algorithm, size, i, count, ranks=ranks) for i in range(size)
    ]
    outputs = Execution(
        plans,
        inputs,
        rows * count,
        combine=join,
        in_place=in_place,
        segment=rng.randint(2, 8),
        rng=rng,
    ).outputs()
    for output in outputs:
        for member, rank in enumerate(ranks):
            assert output[rank * count : (rank + 1) * count] == inputs[member]


@pytest.mark.parametrize("size", [2, 3, 8, 17])
def test_ring_sends_the_least(size: int) -> None:
    """Each member sends 2(m-1)/m of the vector, but for the rounding of two chunks."""
    for me in range(size):
        plan = build_plan(lib.CC_ALL_REDUCE, lib.CC_RING, size, me, 4099)
        sent = sum(move.count for move in plan.moves if move.kind == SEND)
        assert abs(sent - 2 * (size - 1) * 4099 / size) <= 2


def test_eager_up_to_its_bound() -> None:
    """16 KiB travel before the receiver is known to be ready, one element more does not."""
    for algorithm in (lib.CC_RECURSIVE_DOUBLING, lib.CC_DIRECT):
        assert build_plan(lib.CC_ALL_REDUCE, algorithm, 5, 0, 4096).eager
        assert not build_plan(lib.CC_ALL_REDUCE, algorithm, 5, 0, 4097).eager
    assert not build_plan(lib.CC_ALL_REDUCE, lib.CC_RING, 5, 0, 4096).eager


def test_what_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="not supported"):
        build_plan(lib.CC_BROADCAST, lib.CC_RECURSIVE_DOUBLING, 4, 0, 1)
    with pytest.raises(ValueError, match="invalid"):
        build_plan(lib.CC_ALL_REDUCE, lib.CC_RING, 4, 4, 1)
    with pytest.raises(ValueError, match="memory"):
        build_plan(lib.CC_ALL_REDUCE, lib.CC_RING, 4, 0, 2**64 - 1)
