"""Goal: the algorithm that is chosen follows the network, as the model of docs/algorithms.md says.

Method: the model is written down here a second time, in floating point and from that page: how
many steps, messages and bytes lie on an algorithm's critical path, and what a network makes of
them. The core's choice is compared with the cheapest by it, over networks, lengths and numbers of
members. Then latency and bandwidth are turned one at a time, and the choice must move the way they
push it. What peers on an emulated network make of this is in test_choice_wan.py.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest

from collectives._core import ffi, lib

KINDS = {
    "all_reduce": ("direct", "recursive_doubling", "halving_doubling", "ring"),
    "broadcast": ("direct", "tree", "ring"),
    "reduce": ("direct", "tree", "ring"),
    "all_gather": ("direct", "ring"),
    "reduce_scatter": ("direct", "ring"),
}
ALGORITHMS = {name: int(getattr(lib, f"CC_{name.upper()}")) for name in KINDS["all_reduce"]}
ALGORITHMS["tree"] = int(lib.CC_TREE)
NAMES = {code: name for name, code in ALGORITHMS.items()}
MEMBERS = (2, 3, 4, 5, 7, 8, 12, 16, 33, 64)
LENGTHS = tuple(length for e in range(31) for length in (1 << e, (3 << e) // 2 + 1))


@dataclass(frozen=True)
class Network:
    latency: float  # seconds
    bandwidth: float  # bytes per second


NETWORKS = {
    "fast": Network(5e-6, 10e9),
    "machine room": Network(30e-6, 1e9),
    "region": Network(5e-3, 100e6),
    "world": Network(100e-3, 25e6),
}


# ---- the model -----------------------------------------------------------------------------------

START_S = 35e-6  # of one more message, at its sender
REDUCED_BYTE_S = 1e-9
CROWD = 1.25
EAGER_BYTES = 16 << 10
PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Path:
    """What lies on the critical path of an operation."""

    steps: int  # messages, one after the other
    starts: int  # messages that one member starts there
    sent: float  # bytes
    reduced: float = 0  # bytes
    overlaps: bool = False  # they are reduced while others are sent
    eager: bool = False  # nothing waits for its receiver to be ready

    def seconds(self, network: Network) -> float:
        wire, memory = self.sent / network.bandwidth, self.reduced * REDUCED_BYTE_S
        bytes_s = max(wire, memory) if self.overlaps else wire + memory
        waits = 0 if self.eager else 1
        return (self.steps + waits) * network.latency + self.starts * START_S + bytes_s


def path_of(kind: str, algorithm: str, m: int, n: int) -> Path:
    """`n` bytes, for the kinds that have blocks those of all blocks, and `m` members."""
    if kind == "all_reduce":
        return _all_reduce(algorithm, m, n)
    if kind in ("broadcast", "reduce"):
        return _to_or_from_one(kind == "reduce", algorithm, m, n)
    others = n * (m - 1) / m
    reduced = others if kind == "reduce_scatter" else 0
    if algorithm == "direct":
        return Path(1, m - 1, CROWD * others, reduced, eager=n / m <= EAGER_BYTES)
    return Path(m - 1, m - 1, others, reduced, overlaps=True)


def _all_reduce(algorithm: str, m: int, n: int) -> Path:
    rounds, eager = math.floor(math.log2(m)), n <= EAGER_BYTES
    pairs = 2**rounds < m  # some give their input to another before, and get the total after
    if algorithm == "direct":
        return Path(1, m - 1, (m - 1) * n, (m - 1) * n, eager=eager)
    if algorithm == "recursive_doubling":
        steps = rounds + 2 * pairs
        return Path(steps, steps, steps * n, (rounds + pairs) * n, eager=eager)
    if algorithm == "halving_doubling":
        steps, half = 2 * rounds + 2 * pairs, n * (1 - 2**-rounds)
        return Path(steps, steps, 2 * half + 2 * n * pairs, half + n * pairs)
    share = n * (m - 1) / m
    return Path(2 * (m - 1), 2 * (m - 1), 2 * share, share, overlaps=True)


def _to_or_from_one(reduces: bool, algorithm: str, m: int, n: int) -> Path:
    eager, rounds = n <= EAGER_BYTES, math.ceil(math.log2(m))
    if algorithm == "direct":
        return Path(1, m - 1, (m - 1) * n, (m - 1) * n * reduces, eager=eager)
    if algorithm == "tree":
        return Path(rounds, rounds, rounds * n, rounds * n * reduces, eager=eager)
    return Path(m - 1, m - 1, n + (m - 2) * min(n, PIECE_BYTES), eager=eager)


def chosen(kind: str, network: Network, m: int, n: int) -> str:
    """By the core."""
    native = ffi.new("cc_network *")
    native.latency_ns = round(network.latency * 1e9)
    native.bytes_per_s = round(network.bandwidth)
    return NAMES[lib.cc__plan_choose(native, getattr(lib, f"CC_{kind.upper()}"), m, n)]


# ---- the same choice -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_cheapest_is_chosen(kind: str, network: Network) -> None:
    """But for rounding and what a table leaves open: it says "at most" for some members."""
    others = []
    for m, n in itertools.product(MEMBERS, LENGTHS):
        costs = {a: path_of(kind, a, m, n).seconds(network) for a in KINDS[kind]}
        least, choice = min(costs.values()), chosen(kind, network, m, n)
        assert costs[choice] <= 1.1 * least, f"{choice} for {m} members and {n} bytes: {costs}"
        if costs[choice] > least:
            others.append((m, n, choice))
    assert len(others) <= len(MEMBERS) * len(LENGTHS) // 50, others


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_has_its_place(kind: str) -> None:
    """Or the comparison could not tell a wrong model from a right one."""
    table = itertools.product(NETWORKS.values(), MEMBERS, LENGTHS)
    assert {chosen(kind, *case) for case in table} == set(KINDS[kind])


def test_a_network_that_was_not_measured_is_a_machine_room() -> None:
    unknown = Network(0, 0)
    for kind, m, n in itertools.product(KINDS, MEMBERS, LENGTHS):
        assert chosen(kind, unknown, m, n) == chosen(kind, NETWORKS["machine room"], m, n)


def test_no_figure_is_out_of_range() -> None:
    worst = (2**64 - 1, 0, 1)
    for kind, latency, bandwidth, m, n in itertools.product(
        KINDS, worst, worst, (1, 2, 3, 1023, 1024), (0, 1, 2**60)
    ):
        native = ffi.new("cc_network *", [latency, bandwidth])
        code = lib.cc__plan_choose(native, getattr(lib, f"CC_{kind.upper()}"), m, n)
        assert NAMES[code] in KINDS[kind]


# ---- what turns it -------------------------------------------------------------------------------


def test_latency_and_bandwidth_turn_the_same_all_reduce() -> None:
    """64 KiB among 8 members: far away few steps count, on a thin wire few bytes."""
    m, n = 8, 64 << 10
    ring = path_of("all_reduce", "ring", m, n)
    far = path_of("all_reduce", chosen("all_reduce", NETWORKS["world"], m, n), m, n)
    assert far.steps <= math.log2(m)
    assert far.sent > ring.sent
    thin = path_of("all_reduce", chosen("all_reduce", Network(30e-6, 1e6), m, n), m, n)
    assert thin.sent == ring.sent
    assert thin.steps > far.steps


@pytest.mark.parametrize(
    ("n", "near", "far"),
    [
        (4, "recursive_doubling", "direct"),
        (1 << 10, "recursive_doubling", "direct"),
        (256 << 10, "ring", "direct"),
        (4 << 20, "ring", "recursive_doubling"),
        (64 << 20, "ring", "halving_doubling"),
    ],
)
def test_four_members_near_and_far(n: int, near: str, far: str) -> None:
    assert chosen("all_reduce", NETWORKS["machine room"], 4, n) == near
    assert chosen("all_reduce", NETWORKS["world"], 4, n) == far


@pytest.mark.parametrize("kind", KINDS)
def test_more_latency_never_takes_more_steps(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    turned = 0
    for _ in range(300):
        m, n = rng.randrange(2, 130), round(2 ** rng.uniform(0, 32))
        bandwidth = 10 ** rng.uniform(4, 10.5)
        latencies = sorted(10 ** rng.uniform(-6, 1.5) for _ in range(25))
        names = [chosen(kind, Network(latency, bandwidth), m, n) for latency in latencies]
        steps = [path_of(kind, name, m, n).steps for name in names]
        where = f"seed {seed}: {m} members, {n} bytes, {bandwidth:g} B/s, {latencies}: {names}"
        assert steps == sorted(steps, reverse=True), where
        turned += steps[0] != steps[-1]
    assert turned > 50


def test_less_bandwidth_never_sends_more_in_an_all_reduce(seed: int) -> None:
    rng = random.Random(seed)
    turned = 0
    for _ in range(300):
        m, n = rng.randrange(2, 130), round(2 ** rng.uniform(10, 32))
        latency = 10 ** rng.uniform(-6, 0)
        bandwidths = sorted((10 ** rng.uniform(4, 10.5) for _ in range(25)), reverse=True)
        names = [chosen("all_reduce", Network(latency, b), m, n) for b in bandwidths]
        sent = [path_of("all_reduce", name, m, n).sent for name in names]
        where = f"seed {seed}: {m} members, {n} bytes, {latency:g} s, {bandwidths}: {names}"
        assert sent == sorted(sent, reverse=True), where
        turned += sent[0] != sent[-1]
    assert turned > 50
