"""Goal: peers that call different operations by the same number all learn of it, and from the
message who called what; nobody hangs, and nobody returns success.

Method: one of n peers differs, in each way in which calls can differ, posted in any order.
"""

from __future__ import annotations

import numpy as np
import pytest
from programs import Spec, post
from promises import formed, go_on
from world import OK, Operation

from collectives._core import lib

SEED = 31_000
BASE = Spec("all_reduce", 700, "float32", "sum", "ring")
MISMATCHES = {
    "count": (BASE, Spec("all_reduce", 701, "float32", "sum", "ring")),
    "dtype": (BASE, Spec("all_reduce", 700, "int32", "sum", "ring")),
    "op": (BASE, Spec("all_reduce", 700, "float32", "max", "ring")),
    "algorithm": (BASE, Spec("all_reduce", 700, "float32", "sum", "direct")),
    "kind": (BASE, Spec("all_gather", 700, "float32", "sum", "ring")),
    "root": (Spec("broadcast", 9, root=0), Spec("broadcast", 9, root=1)),
    "eager count": (Spec("all_reduce", 5), Spec("all_reduce", 6)),
    "empty": (Spec("all_reduce", 0), Spec("all_reduce", 1)),
    "barrier": (Spec("barrier", 0), Spec("all_reduce", 0)),
    "admit": (Spec("barrier", 0), Spec("boundary", 0)),
}


@pytest.mark.parametrize("what", MISMATCHES)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_different_calls_are_an_error_on_all_sides(what: str, n: int) -> None:
    """Whoever posts first, and however late the others come."""
    usual, odd = MISMATCHES[what]
    for seed in range(SEED, SEED + 6):
        with formed(seed, n) as world:
            stranger = world.random.randrange(n)
            ops: dict[int, Operation] = {}
            for index in world.random.sample(range(n), n):
                spec = odd if index == stranger else usual
                ops[index] = post(world.peers[index], spec, n, index)
                world.run_ms(world.random.choice([0, 0, 0.03, 2]))
            record = world.settle()
            assert record.cause == lib.CC_CAUSE_MISMATCH and record.members == world.peers
            world.finish(ops.values())
            for op in ops.values():
                assert op.status == lib.CC_MISMATCH and op.intact, f"seed {seed}"
                assert f"rank {stranger}" in op.message, op.message
                for kind in {usual.kind, odd.kind}:
                    assert {"boundary": "admit"}.get(kind, kind) in op.message, op.message
                if what in ("count", "eager count"):
                    assert str(usual.count) in op.message and str(odd.count) in op.message
            go_on(world)


def test_a_different_order_of_calls_is_a_mismatch() -> None:
    for seed in range(SEED, SEED + 10):
        with formed(seed, 3) as world:
            first, second = Spec("all_reduce", 5), Spec("broadcast", 5)
            ops: list[Operation] = []
            for peer in world.peers:
                order = [first, second] if peer.index != seed % 3 else [second, first]
                ops += [post(peer, spec, 3, peer.index) for spec in order]
                world.run_ms(world.random.choice([0, 0.03, 2]))
            world.settle()
            world.finish(ops)
            assert {op.status for op in ops} == {int(lib.CC_MISMATCH)}
            go_on(world)


def test_fields_that_a_call_does_not_use_make_no_difference() -> None:
    """A broadcast has no reduction, a barrier no dtype, an all-reduce no root."""
    with formed(SEED, 2) as world:
        a, b = world.peers
        x = [np.arange(4, dtype=np.float32) for _ in range(2)]
        pairs = [
            (a.post("broadcast", x[0], x[0], op="sum"), b.post("broadcast", x[1], x[1], op="max")),
            (a.post("all_reduce", x[0], x[0], root=0), b.post("all_reduce", x[1], x[1], root=1)),
            (a.post("barrier", op="sum", root=0), b.post("barrier", x[0], x[1], op="min", root=1)),
        ]
        for pair in pairs:
            world.finish(pair, 1000)
            assert [op.status for op in pair] == [OK, OK]


def test_a_mismatch_of_calls_that_fail_by_themselves() -> None:
    """An operation whose root is a hole fails on all alike, without data; another call by the same
    number must still be noticed, whoever comes first."""
    for first in range(2):
        with formed(SEED, 3) as world:
            world.kill(world.peers[2])
            world.recover()
            x = [np.ones(4, np.float32) for _ in range(2)]
            ops: dict[int, Operation] = {}
            for index in (first, 1 - first):
                peer = world.peers[index]
                if index == 0:
                    ops[index] = peer.post("broadcast", x[0], x[0], root=2)
                else:
                    ops[index] = peer.post("barrier")
                world.run_ms(5)
            world.settle()
            world.finish(ops.values())
            assert {op.status for op in ops.values()} == {int(lib.CC_MISMATCH)}
            go_on(world)


def test_the_cause_of_a_failure_is_that_of_its_own_epoch() -> None:
    """A slow member posts a call that failed two epochs ago: it is told what the others were."""
    with formed(SEED, 3) as world:
        a, b, slow = world.peers
        ops = [post(a, Spec("all_reduce", 3), 3, 0), post(b, Spec("all_reduce", 4), 3, 1)]
        world.settle()
        world.finish(ops)
        assert {op.status for op in ops} == {int(lib.CC_MISMATCH)}
        world.run(world.is_ready)
        world.renew()
        op = post(slow, Spec("all_reduce", 3), 3, 2)
        assert op.status == lib.CC_MISMATCH and "all_reduce" in op.message, op.message
        go_on(world)
