"""`collectives demo`: it passes, it can fail, and it leaves nothing behind.

Goal: the demo's verdict can be trusted. Method: the command as users run it, with few steps; with a
member whose weights lose one bit, so that the checks must fail; with a worker that is killed though
that was not planned, and with every way to end the command. What the demo computes with, and how it
judges what the peers told, is tested by itself.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import time
import uuid
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from collectives.cli import demo, demo_model, demo_worker
from collectives.cli.demo_record import Place, Record, contributors

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
    assert rows[-1][2] == 2  # without the one that was killed and the one that left
    assert rows[-1][3] < rows[0][3]
    joined = int(re.search(r"peer-3 joins: it has the state of step (\d+)", output)[1])
    assert 10 <= joined <= 15
    assert re.search(r"peer-1 leaves after 22 steps", output)
    # If its part still counts, the next boundary may close the hole before any step has it.
    hole = [] if "with its part" in output else ["is finished among 3 of 4", "the hole is closed"]
    events = [
        "the coordinator is killed after 5 steps",
        "the coordinator is started again after 10 steps",
        "peer-3 joins",
        "peer-2 is killed in the middle of step 19",
        *hole,
        "peer-1 leaves",
        "5 steps went on without it; started again, it let peer-3 in and found peer-2 dead",
        "peer-2 was killed in the middle of step 19: its survivors finished that step among",
    ]
    places = [output.find(event) for event in events]
    assert -1 not in places and places == sorted(places)


def test_one_wrong_bit_fails(spawn, mark) -> None:
    child = start(spawn, mark, "--steps", 20, "--peers", 2, "--corrupt-rank", 1)
    assert child.wait(50) == 1
    failed = [line for line in child.output.splitlines() if "FAILED" in line]
    assert "hashes are not one" in failed[0]
    assert "at peer-0" in failed[1]
    assert "peer-2" not in failed[1]
    assert len(failed) == 3  # and the verdict
    # Two peers are too few to lose one; the coordinator is killed all the same.
    assert "with --peers 3 or more" in child.output
    assert "in the middle of step" not in child.output
    assert "  ok      the coordinator was killed after 3 steps" in child.output


def test_a_killed_worker_is_shown_and_ends_all(spawn, mark) -> None:
    """Be it the one that would be killed later."""
    child = start(spawn, mark, "--steps", 100000)
    child.wait_for(r"^ +1 +1 +4 ")
    workers = [pid for pid, command in marked(mark).items() if "demo_worker" in command]
    victim = sorted(workers)[demo.VICTIM]  # they were started one after another
    os.kill(victim, signal.SIGKILL)
    assert child.wait(20) == 1
    assert re.search(rf"peer-\d \(process {victim}\) was ended by SIGKILL", child.output)


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


def training() -> list[Record]:
    """Of 20 steps: one joins before step 6, one is killed in step 10, the hole is closed before
    step 12, one leaves before step 15."""
    names = [Record(f"peer-{i}", Path()) for i in range(4)]
    first, leaver, victim, newcomer = names
    hole = (2,)
    first.places = [Place(0, 0, 3), Place(6, 0, 4), Place(10, 0, 4, hole), Place(12, 0, 3)]
    first.places.append(Place(15, 0, 2))
    leaver.places = [Place(0, 1, 3), Place(6, 1, 4), Place(10, 1, 4, hole), Place(12, 1, 3)]
    victim.places = [Place(0, 2, 3), Place(6, 2, 4)]
    newcomer.places = [Place(6, 3, 4), Place(10, 3, 4, hole), Place(12, 2, 3), Place(15, 1, 2)]
    first.end = newcomer.end = 20, ""
    leaver.left, victim.killed = (15, ""), 10
    return names


BEFORE, HOLE = [(3, [0, 1, 2])] * 6 + [(4, [0, 1, 2, 3])] * 4, (4, [0, 1, 3])
AFTER = [(3, [0, 1, 2])] * 3 + [(2, [0, 1])] * 5


def test_the_part_of_a_killed_peer_counts_if_its_survivors_say_so() -> None:
    records = training()
    assert contributors(records, 20) == [*BEFORE, HOLE, HOLE, *AFTER]
    for record in records:
        record.places = [
            Place(11, *astuple(place)[1:]) if place.missing else place for place in record.places
        ]
    assert contributors(records, 20) == [*BEFORE, (4, [0, 1, 2, 3]), HOLE, *AFTER]


@pytest.mark.parametrize(
    ("peer", "nth", "place", "step"),
    [
        (3, 0, Place(7, 3, 4), 6),  # came later than the others say
        (1, 2, Place(10, 1, 4), 10),  # the victim's part is in its result alone
        (1, 2, Place(11, 1, 4, (2,)), 10),
        (0, 2, Place(10, 0, 4, (1,)), 10),  # another hole
        (3, 2, Place(12, 1, 3), 12),  # two have one rank
        (2, 1, Place(6, 3, 4), 6),
    ],
)
def test_contradictory_records_are_refused(peer, nth, place, step) -> None:
    records = training()
    records[peer].places[nth] = place
    with pytest.raises(ValueError, match=f"step {step}$"):
        contributors(records, 20)


def test_a_hole_that_nobody_died_for_is_refused() -> None:
    records = training()
    records[2].killed, records[2].end = None, (20, "")
    with pytest.raises(ValueError, match=r"step 10$"):
        contributors(records, 20)


def test_the_schedule_has_its_order() -> None:
    for steps in (20, 21, 360, 1000):
        plan = demo_worker.Schedule(steps)
        assert 0 < plan.coordinator_dies < plan.newcomer_connects < plan.newcomer_needed
        assert plan.newcomer_needed < plan.victim_dies < plan.leaver_goes < steps
        assert plan.is_boundary(plan.newcomer_needed)
        assert plan.is_boundary(plan.leaver_goes)
        assert not plan.is_boundary(0)


FULL, FEWER = (4, [0, 1, 2, 3]), (3, [0, 1, 2])


@pytest.mark.parametrize(
    ("after", "text"),
    [
        ([HOLE], "among 3, without its part, and closed the hole before step 14"),
        ([FULL], "among 4, with its part, and closed the hole before step 14"),
        ([FULL, HOLE], "among 4, with its part, and closed the hole before step 15"),
        ([HOLE, HOLE], None),  # a boundary left it open
        ([HOLE, FEWER, HOLE], None),
        ([FULL, FULL, HOLE], None),
    ],
)
def test_the_hole_must_be_closed_at_the_next_boundary(tmp_path, after, text) -> None:
    """Of 20 steps, where each is a boundary; the victim dies in step 12."""
    run = demo.Demo(argparse.Namespace(steps=20, peers=3), tmp_path)
    run.victim.places, run.victim.killed = [Place(0, 2, 4)], 12
    run.contributors = [FULL] * 12 + after + [FEWER] * (8 - len(after))
    ((passed, said),) = run._check_victim()
    assert passed == (text is not None)
    assert text is None or text in said


@pytest.mark.parametrize(
    ("killed", "outage", "joined", "died", "passed"),
    [
        (True, [3, 6], 10, 12, True),
        (False, [3, 6], 10, 12, False),
        (True, [3, 3], 10, 12, False),
        (True, [3, 6], 5, 12, False),
        (True, [3, 6], 10, 5, False),
    ],
)
def test_the_coordinator_must_have_been_needed_later(
    tmp_path, killed, outage, joined, died, passed
) -> None:
    run = demo.Demo(argparse.Namespace(steps=20, peers=3), tmp_path)
    run.killed, run.outage = killed, outage
    run.newcomer.joined, run.victim.killed = (joined, ""), died
    assert run._check_coordinator()[0] == passed


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


def test_the_reference_takes_the_mean_of_those_that_contributed(tmp_path) -> None:
    """Of ranks 0 and 2 of three, computed here."""

    class Said:
        def send(self, **message: object) -> None:
            self.last = message

    said = Said()
    spec = {"seed": 1, "contributors": [(3, [0, 2])], "digest_steps": [0]}
    demo_worker.reference(said, {**spec, "file": str(tmp_path / "state")})
    text = demo_model.Text()
    model = demo_model.Model(text.vocabulary)
    state = model.initial(1)
    gradients = [np.zeros(model.count, np.float32) for _ in range(2)]
    for rank, gradient in zip((0, 2), gradients, strict=True):
        model.loss(state[0], *text.batch(1, 0, rank, 3), gradient=gradient)
    before = demo_model.digest(state)
    demo_model.update(state, (gradients[0] + gradients[1]) / np.float32(2), 0)
    assert said.last["digests"] == {0: before, 1: demo_model.digest(state)}
    assert (tmp_path / "state").read_bytes() == state.tobytes()
