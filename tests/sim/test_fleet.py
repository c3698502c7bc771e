"""Goal: the product's own core, courier and coordinator together keep every promise, come what may.

Method: lives of fleets (fleet_life.py), each a function of its seed: a program of all collectives
in several lanes, messages and boundaries, while processes, both networks and the coordinator fail;
then no more faults, and all must finish in one epoch. The checks are in fleet_promises.py. That the
lives reach what is rare is counted and asserted; that the checks notice is test_fleet_mutants.py's
matter. The lives run in processes of their own, with one order of sets, so that a seed that fails
here fails everywhere: the command that replays it is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from fleet_points import EVERY

RUN = Path(__file__).with_name("fleet_run.py")
LIVES = 2000


@pytest.fixture
def lives(spawn: Any, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """Lives these fleets; returns the points that they have reached."""

    def run(*options: object) -> dict[str, int]:
        file = tmp_path / "points.json"
        child = spawn("python", RUN, "--points", file, *options)
        assert child.wait(1200) == 0, child.output
        points: dict[str, int] = json.loads(file.read_text())["points"]
        return points

    return run


@pytest.mark.timeout(1200)
def test_lives_with_faults_keep_every_promise_and_reach_every_rare_path(lives: Any) -> None:
    points = lives("--seeds", LIVES)
    missed = [name for name in EVERY if not points.get(name)]
    assert not missed, f"in {LIVES} lives none of these happened: {missed}"


@pytest.mark.timeout(300)
def test_without_a_fault_nobody_is_taken_for_dead(lives: Any) -> None:
    points = lives("--seeds", 60, "--faultless")
    records = {name for name in points if name.startswith("record")}
    assert records == {"record: formed", "record: boundary"}
    assert {name for name in points if name.startswith("out")} == {"out: Closed"}, "who left"


@pytest.mark.timeout(120)
def test_a_seed_is_the_same_life_every_time(spawn: Any) -> None:
    children = [spawn(sys.executable, RUN, "--seed", 11, "-v") for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    first, second = (child.output for child in children)
    assert first == second
    assert len(first) > 10_000


@pytest.mark.parametrize("seed", range(5))
def test_without_the_coordinator_operations_go_on(seed: int) -> None:
    """It is away, and no member fails: nobody notices. Who comes meanwhile is let in later."""
    with Fleet(seed, size=3) as fleet:
        fleet.plan.deadlines = fleet.plan.splits = False  # what needs it
        for _ in range(3):
            fleet.spawn()
        fleet.run(lambda: fleet.whole, 5_000)
        fleet.coordinator.die(forgets=True)
        reached = fleet.furthest
        fleet.run(lambda: fleet.furthest > reached + 5, 5_000)
        assert fleet.whole
        assert list(fleet.rolls) == [1]
        newcomer = fleet.spawn()
        fleet.run(lambda: fleet.furthest > reached + 8, 5_000)
        fleet.restart_coordinator()
        fleet.run(lambda: fleet.whole and newcomer.program.phase >= 0, 5_000)
