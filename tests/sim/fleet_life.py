"""One seed's life of a fleet: a phase in which everything may go wrong, and one in which nothing
does any more and everything must come to its end.

A life that fails says which command replays it, with `-v` event by event.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from control_network import MS, US
from fleet import TIMEOUTS, Fleet
from fleet_faults import Faults
from fleet_points import at_end
from fleet_promises import check_all

from collectives._core import lib

OPERATIONS_MIN = 50
IMPATIENT = replace(TIMEOUTS, coordinator_lost=1.5)
DANGER_MS = 240_000  # within that the faults are over
AFTERMATH_NS = 5_000 * MS
REST_MS = 60_000  # within that all that is left must be finished


def settings(rng: random.Random) -> dict[str, Any]:
    """What kind of fleet a life has."""
    size = rng.randrange(2, 6)
    return {
        "size": size,
        "min_size": rng.choice([1, 1, 1, 2, size]),
        "skewed": rng.random() < 0.3,
        "leavers": rng.random() < 0.3,
        "streams": rng.choice([1, 1, 2]),
        "segment_bytes": rng.choice([256, 1024, 4096]),
        "io_max_bytes": rng.choice([0, 0, 0, 700]),
        "timeouts": rng.choice([TIMEOUTS, TIMEOUTS, TIMEOUTS, IMPATIENT]),
    }


class Life:
    """The life of one seed. `changes` replace what it would draw."""

    def __init__(
        self, seed: int, *, verbose: bool = False, faultless: bool = False, **changes: Any
    ) -> None:
        self.rng = random.Random(seed)
        self.fleet = Fleet(seed, verbose=verbose, **(settings(self.rng) | changes))
        latency = self.rng.choice([5, 50, 500]) * US
        lib.cc_sim_set_latency(self.fleet.sim, 1 * US, latency)
        lib.cc_sim_set_window(self.fleet.sim, self.rng.choice([3000, 1 << 16]))
        self.fleet.grain_ns = max(10 * US, latency // 8)
        self.faults = Faults(self.fleet, self.rng)
        if faultless:
            self._make_harmless()
        self._phases = -(-OPERATIONS_MIN // sum(self.fleet.plan.sizes.values()))
        self._last_fault_ns = 0

    def _make_harmless(self) -> None:
        """No fault, but delays that stay below the time after which silence is suspicious."""
        fleet, rng = self.fleet, self.rng
        self.faults.left = 0
        fleet.plan.deadlines = False
        fleet.network.delay_ns = (20 * US, rng.choice([1, 30, 300]) * MS)
        fleet.network.in_order = rng.random() < 0.5
        fleet.network.repeat = rng.choice([0, 0.3])
        latency = rng.choice([100 * US, 5 * MS, 100 * MS])
        lib.cc_sim_set_latency(fleet.sim, 1 * US, latency)
        fleet.grain_ns = latency // 8

    def run(self) -> Counter[str]:
        """Lives it, checks it, and returns the points that it has reached."""
        with self.fleet as fleet:
            for _ in range(fleet.size):
                self.faults.come(self.rng.choice([0, 0, 20 * MS]))
            fleet.run(self._danger_is_over, DANGER_MS)
            self.faults.end()
            fleet.tell("no more faults")
            self._come_to_rest()
            check_all(fleet)
            at_end(fleet)
            return fleet.points

    def _danger_is_over(self) -> bool:
        """All faults have come, and then there was work for a while; or it lacks somebody."""
        fleet, faults = self.fleet, self.faults
        if faults.left:
            faults.turn()
            self._last_fault_ns = fleet.now_ns
            return False
        waited = fleet.now_ns - self._last_fault_ns
        return fleet.furthest >= self._phases or waited > AFTERMATH_NS

    def _come_to_rest(self) -> None:
        """Everybody who lives becomes a member of one epoch, and all finish a phase together."""
        fleet = self.fleet
        fleet.run(self._all_there, REST_MS)
        fleet.stop_phase = max(fleet.furthest + 1, self._phases)
        fleet.run(lambda: all(process.program.stopped for process in fleet.running), REST_MS)
        fleet.run(lambda: fleet.whole, REST_MS)  # the last operations may have sealed an epoch

    def _all_there(self) -> bool:
        fleet = self.fleet
        while len(fleet.running) < fleet.size:  # who was sent away is replaced as well
            fleet.spawn()
        return fleet.whole and all(process.program.phase >= 0 for process in fleet.running)


def live(seed: int, **changes: Any) -> Counter[str]:
    """One life, see `Life`. Prints how to replay it if it fails."""
    life = Life(seed, **changes)
    try:
        return life.run()
    except BaseException as error:
        fleet = life.fleet
        print(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"  at {fleet.now_ns / MS:.3f} ms, step {fleet.steps}, epoch "
            f"{max(fleet.rolls, default=0)}, faults {life.faults.kinds}\n"
            f"  again, event by event: python tests/sim/fleet_run.py --seed {seed} -v"
        )
        raise
