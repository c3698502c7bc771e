"""Goal: whichever message of a collective is the last that a peer ever sent, each operation has one
outcome on all peers.

Method: for each collective, algorithm, number of peers and victim, a run without a fault counts the
frames that the victim sends, from the first data to the last vote. Then there is one run for each
of these: the victim sends so many frames and no more; they are delivered, and it dies. So where
test_deaths.py cuts between steps, in which a peer may send a lot, this cuts between any two
messages, and there is no case left out. Inputs are small; segments are smaller.
"""

from __future__ import annotations

import pytest
from programs import ALGORITHMS, ROOTED, Spec
from promises import check_outcomes, formed, go_on, post_all
from world import MS, World

from collectives._core import lib

SEED = 83_000
LATENCY_NS = 1 * MS // 10  # of the slowest byte, and some


def formed_with_short_segments(n: int) -> World:
    world = formed(SEED + n, n, segment_bytes=64, streams=1)
    world.grain_ns = 5_000
    return world


def sent(world: World, victim: int) -> int:
    return int(lib.cc_sim_sent(world.sim, world.peers[victim].address.encode()))


def frames(spec: Spec, n: int, victim: int) -> tuple[int, int]:
    """How many frames the victim has sent before the operation is posted, and at its end."""
    with formed_with_short_segments(n) as world:
        before = sent(world, victim)
        _, operations = post_all(world, spec)
        world.finish(operations.values())
        world.run_ms(0.2)
        return before, sent(world, victim)


def dies_after(spec: Spec, n: int, victim: int, count: int) -> str:
    """A run in which that many frames are the victim's last. Returns what became of the call."""
    with formed_with_short_segments(n) as world:
        dead = world.peers[victim]
        lib.cc_sim_mute(world.sim, dead.address.encode(), count)
        row = post_all(world, spec)
        operations = row[1]
        world.run(
            lambda: sent(world, victim) >= count or all(op.done for op in operations.values()),
            1000,
        )
        dead.paused = True  # it does not get another turn; what it sent arrives
        world.run_ms(LATENCY_NS / MS)
        dead.paused = False
        world.kill(dead)
        world.recover()
        world.finish(op for i, op in operations.items() if i != victim)
        outcomes = check_outcomes(world, [row])
        go_on(world)
        survivor = next(op for i, op in operations.items() if i != victim)
        return f"{outcomes[0]}, {'again' if survivor.info.attempts > 1 else 'at once'}"


CASES = [
    (kind, algorithm)
    for kind, algorithms in ALGORITHMS.items()
    for algorithm in (algorithms[1:] or algorithms)
]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize(("kind", "algorithm"), CASES, ids=lambda value: str(value))
def test_a_death_after_each_message(kind: str, algorithm: str, n: int) -> None:
    count = 0 if kind == "barrier" else 40
    root = 1 if kind in ROOTED else 0
    spec = Spec(kind, count, "int32", algorithm=algorithm, root=root, in_place=True, seed=7)
    fates = set()
    for victim in range(n):
        before, after = frames(spec, n, victim)
        assert after > before, "it has sent nothing"
        for last in range(before, after + 1):
            try:
                fates.add(dies_after(spec, n, victim, last))
            except BaseException:
                print(f"{spec}: peer {victim} of {n} dies after frame {last} of {before}-{after}")
                raise
    assert len(fates) > 1 or kind == "barrier", f"whenever it died, it was the same: {fates}"
