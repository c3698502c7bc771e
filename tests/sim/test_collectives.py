"""Goal: without a fault every operation gives the right result, to the bit, on all peers.

Method: peers in a simulated world run programs of operations in every combination of kind,
algorithm, dtype and reduction, with short segments so that a little data makes many of them, over
networks that cut every write in random pieces. Each peer posts in its own time. The results are
compared with numpy (programs.py). A failure names its seed.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from programs import (
    ALGORITHMS,
    DTYPES,
    KINDS,
    REDUCTIONS,
    ROOTED,
    WITH_BLOCKS,
    Runner,
    Spec,
    any_spec,
    ops_of,
    parity,
    post,
)
from results import check_result
from world import OK, US, Refused, World

from collectives._core import lib

SEED = 20_240
NETWORKS = {
    # One short stream: every frame is written in many pieces.
    "narrow": {"streams": 1, "segment_bytes": 256, "window": 300, "io_max_bytes": 100},
    # Segments overtake each other.
    "wide": {"streams": 3, "segment_bytes": 1024, "window": 1 << 16},
}


def open_world(seed: int, n: int, network: str, **options: float) -> World:
    settings = dict(NETWORKS[network])
    window = settings.pop("window")
    world = World(seed, n, **settings, **options)
    lib.cc_sim_set_window(world.sim, window)
    return world


def combinations() -> list[Spec]:
    """Every kind, algorithm, dtype and reduction that there is."""
    specs = [Spec("barrier", count=0)]
    for kind, dtype in itertools.product(KINDS, DTYPES):
        if kind == "barrier":
            continue
        for algorithm in ALGORITHMS[kind]:
            for op in ops_of(dtype) if kind in REDUCTIONS else ["sum"]:
                specs.append(Spec(kind, 1, dtype, op, algorithm))
    return specs


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", range(1, 9))
def test_every_operation_gives_the_result_of_its_definition(n: int, network: str) -> None:
    seed = SEED + 10 * n + (network == "wide")
    rng = random.Random(seed)
    counts = [0, 1, n - 1, n, 7, 33, 130, 641]
    specs = [
        replace(
            spec,
            count=0 if spec.kind == "barrier" else rng.choice(counts),
            root=rng.randrange(n) if spec.kind in ROOTED else 0,
            in_place=rng.random() < 0.5,
            uneven=spec.kind in WITH_BLOCKS and rng.random() < 0.5,
            lane=rng.choice([0, 0, 1, 15]),
            seed=rng.randrange(2**32),
        )
        for spec in combinations()
    ]
    rng.shuffle(specs)
    with open_world(seed, n, network, grain_ns=2 * US) as world:
        record = world.install()
        runner = Runner(world, specs)
        runner.run(world.peers)
        for spec, operations in runner.rows():
            assert len(operations) == n
            check_result(spec, record, operations)
            for op in operations.values():
                assert spec.in_place or op.intact, spec
        parity(world)


@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_broadcast_from_every_root_in_and_out_of_place(algorithm: str) -> None:
    for n in (2, 3, 5):
        with open_world(SEED + n, n, "wide") as world:
            record = world.install()
            for root in range(n):
                for count in (1, 700, 5000):
                    for in_place in (False, True):
                        spec = Spec("broadcast", count, "float32", "sum", algorithm, root)
                        spec = replace(spec, in_place=in_place, seed=root + count)
                        ops = {p.index: post(p, spec, n, p.index) for p in world.peers}
                        world.finish(ops.values())
                        check_result(spec, record, ops)


@pytest.mark.parametrize("algorithm", ["auto", "ring", "recursive_doubling", "direct"])
@pytest.mark.parametrize("in_place", [False, True])
def test_messages_of_many_segments(algorithm: str, in_place: bool) -> None:
    """Beyond the eager bound, lengths that are no multiple of a segment or of the group."""
    for n, count in ((2, 5001), (3, 12_289), (5, 8193), (6, 9001)):
        with open_world(SEED + n, n, "wide") as world:
            record = world.install()
            spec = Spec("all_reduce", count, "float32", "sum", algorithm, in_place=in_place)
            ops = {p.index: post(p, spec, n, p.index) for p in world.peers}
            world.finish(ops.values())
            check_result(spec, record, ops)


@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_all_gather_leaves_zeros_for_ranks_without_a_member(algorithm: str) -> None:
    with open_world(SEED, 4, "narrow") as world:
        record = world.install(ranks={0: 1, 1: 2, 2: 4, 3: 5}, world=7)
        for count in (1, 100, 1500):
            for in_place in (False, True):
                spec = Spec("all_gather", count, "int32", algorithm=algorithm, in_place=in_place)
                ops = {p.index: post(p, spec, 7, record.ranks[p.index]) for p in world.peers}
                world.finish(ops.values())
                check_result(spec, record, ops)


@pytest.mark.parametrize("seed", range(SEED, SEED + 6))
def test_operations_in_flight_together(seed: int) -> None:
    """Several in one lane and in several lanes, posted far ahead by some and late by others, on
    processes that miss their turn now and then, over latencies from one to a hundred."""
    rng = random.Random(seed)
    n = rng.randrange(2, 6)
    with open_world(seed, n, rng.choice(list(NETWORKS)), lag=0.3) as world:
        lib.cc_sim_set_latency(world.sim, 1 * US, 200 * US)
        record = world.install()
        runner = Runner(world, [any_spec(rng, n) for _ in range(40)], ahead=30)
        runner.run(world.peers)
        for spec, operations in runner.rows():
            check_result(spec, record, operations)
        parity(world)


def test_one_peer_may_be_64_operations_ahead_and_no_more() -> None:
    """The bound is told as CC_BUSY, and nothing is lost by it."""
    with World(SEED, 3) as world:
        world.install()
        first, *others = world.peers
        ones = [np.full(3, i, np.int64) for i in range(70)]
        ops = [first.post("all_reduce", one, np.empty_like(one)) for one in ones[:64]]
        with pytest.raises(Refused) as refused:
            first.post("barrier")
        assert refused.value.status == lib.CC_BUSY
        world.run_ms(5)
        other_lane = first.post("barrier", lane=1)
        rest = []
        for peer in others:
            rest += [peer.post("all_reduce", one, np.empty_like(one)) for one in ones[:64]]
            rest.append(peer.post("barrier", lane=1))
        world.finish([*ops, *rest, other_lane])
        for i, op in enumerate(ops):
            assert op.status == OK and (op.out == 3 * i).all()
        world.finish([peer.post("barrier") for peer in world.peers])
        parity(world)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_ring_sends_no_more_than_it_must(n: int) -> None:
    """Each member sends 2 (n - 1) / n of the vector, a header for each segment, and little else."""
    count, segment = 256 * 1024, 4096
    with World(SEED, n, segment_bytes=segment, streams=3, grain_ns=20 * US) as world:
        world.install()
        world.finish([peer.post("barrier") for peer in world.peers])
        before = [int(peer.stats.sent_bytes) for peer in world.peers]
        data = [np.ones(count, np.float32) for _ in world.peers]
        ops = [
            peer.post("all_reduce", x, x, algorithm="ring")
            for peer, x in zip(world.peers, data, strict=True)
        ]
        world.finish(ops)
        payload = 2 * (n - 1) * count * 4 / n
        headers = 64 * (payload / segment + 2 * n)
        for peer, old in zip(world.peers, before, strict=True):
            sent = peer.stats.sent_bytes - old
            assert payload <= sent <= 1.01 * (payload + headers), (peer, sent, payload)
        assert sum(p.stats.sent_bytes for p in world.peers) >= n * payload


def test_a_quiet_group_stays_together() -> None:
    """Ten minutes without an operation: heartbeats are all that flows, and nobody is accused."""
    with World(SEED, 3, beat_ms=200, dead_ms=2000) as world:
        world.install()
        world.finish([peer.post("barrier") for peer in world.peers])
        before = [int(peer.stats.sent_bytes) for peer in world.peers]
        world.run_ms(600_000)
        for peer, old in zip(world.peers, before, strict=True):
            # Two links, a beat of 64 bytes at least every 200 ms and at most every 100 ms.
            assert 2 * 64 * 3000 <= peer.stats.sent_bytes - old <= 2 * 64 * 6100
        parity(world)
        world.finish([peer.post("barrier") for peer in world.peers])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_seed_gives_the_same_run(network: str) -> None:
    """Statuses, times and bytes: what a failure's seed is worth."""

    def trace(seed: int) -> list[object]:
        rng = random.Random(seed)
        found: list[object] = []
        with open_world(seed, 4, network, lag=0.2) as world:
            world.install()
            runner = Runner(world, [any_spec(rng, 4) for _ in range(20)])
            runner.run(world.peers)
            victim = world.peers[rng.randrange(4)]
            ops = [post(p, Spec("all_reduce", 900), 4, p.index) for p in world.peers]
            world.kill(victim)
            found.append(world.recover().outcomes)
            for _, operations in runner.rows():
                found += [op.out.tobytes() for op in operations.values() if op.out is not None]
            found += [(op.status, op.message) for op in ops]
            found += [(p.stats.sent_bytes, p.stats.received_bytes) for p in world.alive]
            found += [world.now_ns, world.steps]
        return found

    assert trace(SEED) == trace(SEED)
    assert trace(SEED) != trace(SEED + 1)


def test_bad_requests_are_refused_and_use_no_number() -> None:
    with World(SEED, 2) as world:
        peer, other = world.peers
        x = np.zeros(4, np.float32)
        with pytest.raises(Refused) as refused:
            peer.post("barrier")
        assert refused.value.status == lib.CC_INVALID  # no member yet
        world.install()
        ints = np.zeros(4, np.int32)
        cases = [
            (lib.CC_UNSUPPORTED, lambda: peer.post("all_reduce", ints, ints, op="avg")),
            (
                lib.CC_UNSUPPORTED,
                lambda: peer.post("broadcast", x, x, algorithm="recursive_doubling"),
            ),
            (lib.CC_INVALID, lambda: peer.post("broadcast", x, x, root=2)),
            (lib.CC_INVALID, lambda: peer.post("barrier", lane=16)),
            (lib.CC_INVALID, lambda: peer.post("all_reduce", x[:3], x[1:])),
            (
                lib.CC_INVALID,
                lambda: peer.post("all_gather", x, np.zeros(8, np.float32)[:8], lane=99),
            ),
        ]
        for status, call in cases:
            with pytest.raises(Refused) as refused:
                call()
            assert refused.value.status == status
        ops = [p.post("barrier") for p in (peer, other)]
        world.finish(ops)
        assert [op.info.sequence for op in ops] == [1, 1]
