"""The runner of torch's own tests can fail: with tests that fail, hang, crash, or stay away.

Goal: a run that says that all passed means it, and leaves no process behind, whatever a test does.
Method: a suite without torch, of one test of each kind, in the same runner (fake_suite.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Spawn

FAKE = Path(__file__).resolve().parent / "fake_suite.py"
LIMIT_S = 3

VERDICTS = {
    "test_crashes": "failed",
    "test_fails": "failed",
    "test_hangs": "failed",
    "test_leaves_a_daemon": "failed",
    "test_of_no_gate": "skipped",
    "test_of_the_second_gate": "passed",
    "test_passes": "passed",
    "test_skips": "skipped",
}


class Runner:
    """Runs the fake suite, in a folder that has the records and the results."""

    def __init__(self, spawn: Spawn, folder: Path) -> None:
        self.folder = folder
        self._spawn = spawn
        self.record("gloo", VERDICTS)

    def record(self, backend: str, verdicts: dict[str, str]) -> None:
        lines = [f"{verdict} {name}\n" for name, verdict in verdicts.items()]
        (self.folder / f"{backend}-2.txt").write_text("".join(["# about\n", *lines]))

    def start(self, *arguments: str, hangs: bool = False) -> Any:
        env = {"FAKE_SUITE_FOLDER": str(self.folder), "FAKE_SUITE_HANGS": "yes" if hangs else ""}
        words = ("--ranks", "2", "--records", str(self.folder), "--limit", str(LIMIT_S))
        words += ("--json", str(self.folder / "results.json"), *arguments)
        return self._spawn("python", FAKE, *words, env=env)

    def run(self, status: int, *arguments: str, hangs: bool = False) -> str:
        """Its output; AssertionError if it ends with another exit status."""
        child = self.start(*arguments, hangs=hangs)
        found = child.wait()
        assert found == status, f"exit status {found}:\n{child.output}"
        return str(child.output)

    def results(self) -> dict[str, dict[str, Any]]:
        found = json.loads((self.folder / "results.json").read_text())["results"]
        return {result["name"]: result for result in found}

    def gone(self, name: str) -> bool:
        """Whether a process that the suite took down the pid of is there no more."""
        return not Path("/proc", (self.folder / name).read_text()).exists()


@pytest.fixture
def runner(spawn: Spawn, tmp_path: Path) -> Runner:
    return Runner(spawn, tmp_path)


def test_each_kind_is_told_apart_and_no_process_is_left(runner: Runner) -> None:
    output = runner.run(0, hangs=True)
    results = runner.results()
    assert {name: result["verdict"] for name, result in results.items()} == VERDICTS
    reasons = {name: result["reason"] for name, result in results.items()}
    assert reasons["test_crashes"] == "its process ended with exit code -9"
    assert "one is not two" in reasons["test_fails"]
    assert reasons["test_hangs"] == f"was still running after {LIMIT_S} s"
    assert "left a process behind" in reasons["test_leaves_a_daemon"]
    assert reasons["test_of_no_gate"] == "both gates are shut"
    assert reasons["test_skips"] == "not today"
    assert "what it printed" in results["test_fails"]["output"]
    assert "hanging now" in results["test_hangs"]["output"]
    assert "2 of 6 passed, 2 skipped" in output
    assert "all that must pass passed" in output
    assert all(runner.gone(name) for name in ("hanging", "hanging-child", "daemon"))


def test_what_must_pass_and_does_not_is_named(runner: Runner) -> None:
    runner.record("own", {**VERDICTS, "test_fails": "passed", "test_skips": "passed"})
    output = runner.run(1, "--backend", "own")
    assert "==== test_fails" in output and "what it printed" in output
    assert "FAULT: test_fails must pass, but failed: AssertionError: one is not two" in output
    assert "FAULT: test_skips must pass, but skipped: not today" in output
    assert "2 faults" in output


def test_more_skipped_than_for_the_baseline_is_a_fault(runner: Runner) -> None:
    runner.record("own", VERDICTS)
    runner.record("gloo", {**VERDICTS, "test_skips": "failed"})
    output = runner.run(1, "--backend", "own")
    assert "FAULT: test_skips is skipped, and gloo is not spared: not today" in output
    assert "1 faults" in output


def test_a_test_that_vanished_and_one_that_is_new_are_faults(runner: Runner) -> None:
    verdicts = {**VERDICTS, "test_of_old": "passed"}
    del verdicts["test_passes"]
    runner.record("gloo", verdicts)
    output = runner.run(1)
    assert "FAULT: test_of_old was not run" in output
    assert "FAULT: test_passes is new" in output


def test_what_is_better_than_recorded_is_told(runner: Runner) -> None:
    runner.record("own", {**VERDICTS, "test_passes": "failed"})
    assert "better: test_passes passes now" in runner.run(0, "--backend", "own")


def test_a_record_is_what_the_next_run_is_compared_with(runner: Runner) -> None:
    (runner.folder / "gloo-2.txt").unlink()
    runner.run(0, "--record")
    assert "skipped test_skips  not today" in (runner.folder / "gloo-2.txt").read_text()
    assert "better" not in runner.run(0)


def test_without_a_record_the_run_fails(runner: Runner) -> None:
    assert "own-2.txt to compare with" in runner.run(1, "--backend", "own")


def test_a_part_of_the_suite_is_compared_with_nothing(runner: Runner) -> None:
    output = runner.run(0, "--backend", "own", "--only", "passes")
    assert "1 of 1 passed, 0 skipped" in output
    assert "all that must pass" not in output


def test_a_runner_that_is_ended_leaves_no_process(runner: Runner) -> None:
    child = runner.start("--only", "hangs", "--limit", "60", hangs=True)
    pids = [runner.folder / name for name in ("hanging", "hanging-child")]
    while not all(pid.exists() for pid in pids):
        assert child.process.poll() is None, child.output
        os.sched_yield()
    child.process.terminate()
    assert child.wait() == 143
    assert all(runner.gone(pid.name) for pid in pids)
