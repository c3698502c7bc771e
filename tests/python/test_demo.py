"""`collectives demo`: it passes, it can fail, and it leaves nothing behind.

Goal: the demo's verdict can be trusted. Method: the command as users run it, with few steps; with a
member whose weights lose one bit, so that the checks must fail; with a worker that is killed, and
with every way to end the command. What the demo computes with is tested by itself.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from collectives.cli import demo, demo_model, demo_worker

MARK = "COLLECTIVES_TEST_MARK"
COMMAND = ("-m", "collectives.cli.main", "demo")


def marked(mark: str) -> dict[int, str]:
    """The processes that inherited the mark: pid -> command line. A zombie has no environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = command
        except OSError:
            continue  # It ended while we looked.
    return found


@pytest.fixture
def mark():
    """An environment variable's value; whoever has it at the end of the test is a failure."""
    mark = uuid.uuid4().hex
    yield mark
    for pid in (left := marked(mark)):
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the demo left processes behind (killed now): {left}"


def start(spawn, mark: str, *arguments: object):
    return spawn("python", *COMMAND, *arguments, env={MARK: mark, "PYTHONUNBUFFERED": "1"})


# ---- the command --------------------------------------------------------------------------------


def test_few_steps_pass(spawn, mark) -> None:
    child = start(spawn, mark, "--steps", 30, "--peers", 3)
    assert child.wait(50) == 0
    output = child.output
    assert "all checks passed" in output
    assert "FAILED" not in output
    found = re.findall(r"^ *(\d+) +(\d+) +(\d+) +([\d.]+)", output, re.MULTILINE)
    rows = [[float(cell) for cell in row] for row in found]
    assert rows[0][0] == 1
    assert rows[-1][0] == 30
    assert rows[0][2] == 3
    assert max(row[2] for row in rows) == 4  # the newcomer
    assert rows[-1][2] == 3  # without the one that left
    assert rows[-1][3] < rows[0][3]
    joined = int(re.search(r"peer-3 joins: it has the state of step (\d+)", output)[1])
    assert 10 <= joined <= 15
    assert re.search(r"peer-1 leaves after 22 steps", output)


def test_one_wrong_bit_fails(spawn, mark) -> None:
    child = start(spawn, mark, "--steps", 20, "--peers", 2, "--corrupt-rank", 1)
    assert child.wait(50) == 1
    failed = [line for line in child.output.splitlines() if "FAILED" in line]
    assert "hashes are not one" in failed[0]
    assert "at peer-0" in failed[1]
    assert "peer-2" not in failed[1]
    assert len(failed) == 3  # and the verdict


def test_a_killed_worker_is_shown_and_ends_all(spawn, mark) -> None:
    child = start(spawn, mark, "--steps", 100000)
    child.wait_for(r"^ +1 +1 +4 ")
    workers = [pid for pid, command in marked(mark).items() if "demo_worker" in command]
    os.kill(workers[0], signal.SIGKILL)
    assert child.wait(20) == 1
    assert re.search(rf"peer-\d \(process {workers[0]}\) was ended by SIGKILL", child.output)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all(spawn, mark, number, status) -> None:
    child = start(spawn, mark, "--steps", 100000)
    child.wait_for(r"^ +1 +1 +4 ")
    child.signal(number)
    assert child.wait(20) == status


def test_workers_do_not_outlive_a_killed_demo(spawn, mark) -> None:
    child = start(spawn, mark, "--steps", 100000)
    child.wait_for(r"^ +1 +1 +4 ")
    child.signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)
    assert marked(mark) == {}


@pytest.mark.parametrize("arguments", [("--steps", 19), ("--peers", 1), ("--seed", -1)])
def test_wrong_arguments_are_refused(spawn, arguments) -> None:
    child = spawn("python", *COMMAND, *arguments)
    assert child.wait(20) == 1
    assert arguments[0] in child.output


# ---- the judge ----------------------------------------------------------------------------------


def test_contradictory_records_are_refused(tmp_path) -> None:
    run = demo.Demo(argparse.Namespace(steps=20, peers=2), tmp_path)
    first, second, newcomer = run.records
    first.places, first.end = [(0, 0, 2), (6, 0, 3), (15, 0, 2)], (20, "")
    second.places, second.left = [(0, 1, 2), (6, 1, 3)], (15, "")
    newcomer.places, newcomer.end = [(6, 2, 3), (15, 1, 2)], (20, "")
    assert run.sizes() == [2] * 6 + [3] * 9 + [2] * 5
    newcomer.places[0] = (7, 2, 3)
    with pytest.raises(ValueError, match="step 6"):
        run.sizes()


def test_the_schedule_has_its_order() -> None:
    for steps in (20, 21, 360, 1000):
        plan = demo_worker.Schedule(steps)
        assert 0 < plan.newcomer_connects < plan.newcomer_needed < plan.leaver_goes < steps
        assert plan.is_boundary(plan.newcomer_needed)
        assert plan.is_boundary(plan.leaver_goes)
        assert not plan.is_boundary(0)


# ---- the model ----------------------------------------------------------------------------------


def test_the_gradient_is_the_slope(seed) -> None:
    """In float64, against differences of the loss in random directions."""
    random = np.random.default_rng(seed)
    model = demo_model.Model(vocabulary=11)
    weights = random.standard_normal(model.count) * 0.3
    batch = random.integers(0, 11, (5, demo_model.CONTEXT)), random.integers(0, 11, 5)
    gradient = np.empty(model.count)
    model.loss(weights, *batch, gradient=gradient)
    for view in model.views(np.arange(model.count)):  # each layer by itself
        direction = np.zeros(model.count)
        direction[view.ravel()] = random.standard_normal(view.size)
        direction *= 1e-6 / np.linalg.norm(direction)
        rise = model.loss(weights + direction, *batch) - model.loss(weights - direction, *batch)
        assert rise / 2 == pytest.approx(gradient @ direction, rel=1e-3, abs=1e-12)


def test_batches_are_repeatable_and_from_the_own_part(seed) -> None:
    text = demo_model.Text()
    contexts, targets = text.batch(seed, 3, 1, 4)
    again = text.batch(seed, 3, 1, 4)
    assert np.array_equal(contexts, again[0])
    assert np.array_equal(targets, again[1])
    assert not np.array_equal(contexts, text.batch(seed, 4, 1, 4)[0])
    # A text of its own positions shows where the windows lie.
    text.train = np.arange(1000)
    contexts, targets = text.batch(seed, 3, 1, 4)
    assert contexts.min() >= 250
    assert targets.max() < 500
    assert np.array_equal(targets, contexts[:, -1] + 1)


def test_adam_takes_its_first_step_against_the_sign() -> None:
    state = np.zeros((3, 3), np.float32)
    demo_model.update(state, np.array([2, -0.5, 0], np.float32), 0)
    assert state[0] == pytest.approx([-demo_model.RATE, demo_model.RATE, 0], rel=1e-4)


def test_the_mean_is_folded_from_the_left() -> None:
    """1 + (1e8 - 1e8) is 1, but (1 + 1e8) - 1e8 is 0 in float32."""
    rows = [np.array([value], np.float32) for value in (1, 1e8, -1e8, 4)]
    assert demo_model.mean_by_left_fold(rows)[0] == 1.0
    assert rows[0][0] == 1
