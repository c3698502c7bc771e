"""The soak (`make soak`) can fail: each kind of fault, planted at one peer, is found and told.

Goal: a soak that passes means something. Method: a few short rounds with nothing wrong, then with a
wrong result, a peer that dies or hangs, and things that pile up; the replay command that it prints
is the way back to the same round; and nothing of it stays behind.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PROGRAM = TESTS / "soak" / "soak.py"
sys.path.append(str(PROGRAM.parent))

import soak  # noqa: E402

SHORT = ("--seconds", 40, "--scenes", 2, "--limit", 20)


@pytest.fixture
def run(spawn, seed):
    """Starts a soak; at the end no process of it may be there."""
    mark = uuid.uuid4().hex

    def start(*arguments: object):
        env = {"PYTHONPATH": str(TESTS / "python"), "COLLECTIVES_TEST_MARK": mark}
        return spawn("python", PROGRAM, "--seed", seed, *arguments, env=env)

    yield start
    left = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                left.append(int(folder.name))
        except OSError:
            continue
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the soak left processes behind (killed now): {left}"


def test_a_few_rounds(run, seed) -> None:
    child = run(*SHORT, "--rounds", 6)
    assert child.wait(50) == 0, child.output
    assert child.output.startswith(f"soak: seed {seed},")
    found = re.search(
        r"soak passed: 6 rounds, (\d+) operations in .*every result right", child.output
    )
    assert found and int(found[1]) > 10
    assert "too short to tell what grows" in child.output


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("wrong", r"AssertionError: planted: a wrong result"),
        ("death", r"Failed: peer 1 \(process \d+\) died"),
        ("hang", r"Failed: it takes longer than 2 s: something hangs"),
    ],
)
def test_a_fault_is_told_with_the_way_back(run, seed, plant: str, told: str) -> None:
    child = run(*SHORT, "--limit", 2, "--plant", plant)
    assert child.wait(50) == 1
    assert re.search(rf"soak FAILED in round 1: {told}", child.output), child.output
    again = f"--seed {seed} --scenes 2 --first 1 --rounds 1"
    assert f'make soak SOAK="{again}"' in child.output
    assert (" in play" in child.output) == (plant != "death")  # where, or where it hangs
    if plant == "wrong":
        child = run(*again.split()[2:], "--plant", plant)
        assert child.wait(50) == 1
        assert "soak FAILED in round 1:" in child.output


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("descriptor", r"peer 1 grew by \+\d+\.\d descriptors; 0 are allowed"),
        ("memory", r"peer 1 grew by \+\d+\.\d MiB; 8 are allowed"),
        ("thread", r"peer 1 grew by \+\d+\.\d threads; 0 are allowed"),
    ],
)
def test_what_piles_up_is_found(run, plant: str, told: str) -> None:
    child = run(*SHORT, "--scenes", 1, "--rounds", 40, "--plant", plant)
    assert child.wait(50) == 1
    assert re.search(told, child.output), child.output


def test_a_signal_ends_all(run) -> None:
    child = run("--seconds", 600)
    child.wait_for("soak: seed")
    child.signal(signal.SIGTERM)
    assert child.wait(20) == 143


def test_growth_compares_the_medians_of_two_windows() -> None:
    """A hundred rounds: warm-up to 25, the first window to 50, the last from 75 on."""

    def usage(at: int) -> soak.Usage:
        outlier = 500.0 if at in (30, 80) else 0.0
        warm = min(at, 25)
        return {"MiB": 40 + warm + 0.1 * at + outlier, "descriptors": 9.0, "threads": 2.0}

    samples = [{"a": usage(at), "b": usage(0)} for at in range(100)]
    grown = soak.growth(samples)
    assert grown is not None
    # Of 25 to 49 without 30 and with one above all, the median is 38; of 75 to 99 it is 88.
    assert grown["MiB"]["a"] == pytest.approx(5.0)
    assert grown["MiB"]["b"] == 0 and grown["descriptors"] == {"a": 0, "b": 0}
    assert soak.growth(samples[::5]) is None
    assert soak.growth([]) is None
