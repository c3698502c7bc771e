"""The chaos test (`make chaos`), sixty faults of it; and that it can fail.

Goal: a run that passes means something. Method: invented ledgers, right ones and ones with a fault
each, which the checker must find and name; short runs in which one peer is wrong, dies, hangs or
leaks on purpose; and one run of all kinds of faults that this machine allows.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

import faults  # noqa: E402
import script  # noqa: E402
from checker import Checker, Story, digest  # noqa: E402
from ledger import HOLE, LINE, Input, Kind, Ledger, State, Status  # noqa: E402

SEED = 5
PEERS = 3

# ---- the plan and the script ---------------------------------------------------------------------


def test_the_plan_follows_from_the_seed_and_keeps_its_shares() -> None:
    assert faults.plan(7, 100) == faults.plan(7, 100) != faults.plan(8, 100)
    for count, wanted in ((1000, (600, 150, 150, 100)), (60, (36, 9, 9, 6)), (7, (4, 1, 1, 1))):
        found = Counter(fault.kind for fault in faults.plan(7, count))
        assert tuple(found[kind] for kind in faults.Kind) == wanted
        assert sum(faults.shares(count).values()) == count


def test_the_script_has_everything_in_it() -> None:
    calls = [script.call_of(SEED, number) for number in range(3000)]
    assert {call.kind for call in calls} == {"all_reduce", "all_gather", "broadcast", "admit"}
    reductions = [call for call in calls if call.kind == "all_reduce"]
    assert min(call.size_bytes for call in reductions) <= 16
    assert max(call.size_bytes for call in reductions) > 6 << 20
    assert {call.algorithm for call in reductions} == set(script.ALGORITHMS)
    assert {call.dtype for call in reductions} == set(script.EXACT)
    assert {call.in_place for call in reductions} == {True, False}
    assert sum(call.exact for call in calls) > len(calls) / 2
    batches = [script.batch_of(SEED, number) for number in range(300)]
    assert {len(batch) for batch in batches} == set(range(1, script.BATCH_MAX + 1))
    for number, batch in enumerate(batches):
        assert batch == [script.call_of(SEED, number + i) for i in range(len(batch))]


@pytest.mark.parametrize("dtype", [*script.EXACT])
def test_inputs_differ_from_peer_to_peer_and_from_place_to_place(dtype: str) -> None:
    call = script.Call("all_reduce", dtype, count=1000)
    one, same, other, later = (
        script.input_of(SEED, *who, call) for who in ((1, 9), (1, 9), (2, 9), (1, 10))
    )
    assert one.dtype == dtype and one.shape == (1000,)
    assert one.tobytes() == same.tobytes()
    for found in (other, later, np.roll(one, 1)):
        assert (one == found).mean() < 0.1


def test_the_reference_by_hand() -> None:
    """Element by element, in Python's own numbers."""
    for op, fold in (("sum", sum), ("max", max), ("min", min), ("avg", lambda v: sum(v) / len(v))):
        for dtype in ("float64", "uint8") if op != "avg" else ("float64",):
            call = script.Call("all_reduce", dtype, count=50, op=op)
            inputs = [script.input_of(SEED, peer, 4, call).tolist() for peer in (8, 1, 5)]
            want = [fold(values) for values in zip(*inputs, strict=True)]
            if dtype == "uint8":
                want = [value % 256 for value in want]
            assert script.expected(SEED, 4, call, [8, None, 1, 5]).tolist() == want
    call = script.Call("all_gather", "int32", count=2)
    rows = [script.input_of(SEED, peer, 4, call).tolist() for peer in (8, 1)]
    assert script.expected(SEED, 4, call, [8, None, 1]).tolist() == [*rows[0], 0, 0, *rows[1]]
    call = script.Call("broadcast", "int32", count=2, root=5)  # of three ranks: rank 2
    assert script.expected(SEED, 4, call, [8, None, 1]).tolist() == rows[1]
    assert script.expected(SEED, 4, call, [8, 1, None]) is None


# ---- the ledger ----------------------------------------------------------------------------------

WRITER = """
import os, signal, sys
from pathlib import Path
from ledger import Ledger, State
ledger = Ledger(Path(sys.argv[1]), create=True)
ledger.state = State.MEMBER
for number in range(1, 1000):
    ledger.set_word("begun", number)
    if number == 500:
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.write(number=number, roster=[1, 2], world=2)
    ledger.set_word("ended", number)
"""


def test_a_ledger_outlives_its_peer(spawn, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    child = spawn("python", "-c", WRITER, path, env={"PYTHONPATH": str(HERE)})
    assert child.wait() == -signal.SIGKILL, child.output
    ledger = Ledger(path)
    assert ledger.state is State.MEMBER and ledger.in_operation
    assert ledger.lines["number"].tolist() == list(range(1, 500))
    assert ledger.lines[-1]["roster"].tolist()[:3] == [1, 2, HOLE]


# ---- the checker ---------------------------------------------------------------------------------


def right_stories(last: int = 60) -> list[Story]:
    """What three peers write of the first operations if all is well; the last of them dies in the
    middle, and nobody misses it."""
    died_at = last // 2
    lines = {peer: [] for peer in range(PEERS)}
    for number in range(1, last + 1):
        call = script.call_of(SEED, number)
        kind = Kind.CALL if number > 1 and call.kind != "admit" else Kind.SYNC
        alive = [peer for peer in range(PEERS) if peer < PEERS - 1 or number < died_at]
        roster = [peer if peer in alive else HOLE for peer in range(PEERS)]
        line = np.zeros(1, LINE)
        line["number"], line["kind"], line["status"] = number, kind, Status.OK
        line["epoch"] = 1 if number < died_at else 2
        line["attempts"] = 2 if number == died_at else 1
        line["world"], line["roster"] = PEERS, HOLE
        line["roster"][0][:PEERS] = roster
        if kind is Kind.SYNC:
            line["digest"] = digest(np.array([sum(alive)]))
        else:
            found = script.expected(
                SEED, number, call, [peer if peer in alive else None for peer in range(PEERS)]
            )
            if found is None:  # the root is the dead one
                line["status"], line["attempts"], line["world"] = Status.PEER_LOST, 0, 0
            else:
                line["digest"] = digest(found)
                line["total"] = 0.0 if call.is_known else float(np.sum(found, dtype=np.float64))
        for peer in alive:
            lines[peer].append(line.copy())
    return [
        Story(peer, np.concatenate(found), died_at if peer == PEERS - 1 else last, peer == 2)
        for peer, found in lines.items()
    ]


MEMBERS = {1: frozenset(range(PEERS)), 2: frozenset(range(PEERS - 1))}
"""What the journal has of these two epochs."""


def complaints(stories: list[Story]) -> list[str]:
    return Checker(SEED, stories, MEMBERS).check().wrong


def at(story: Story, number: int) -> np.ndarray:
    """A view of one line."""
    return story.lines[number - int(story.lines["number"][0]) :][:1]


def a_call(dtype: str = "", last: int = 28) -> int:
    """The number of an all_reduce before the death."""
    for number in range(2, last):
        call = script.call_of(SEED, number)
        if call.kind == "all_reduce" and dtype in call.dtype and call.retry and call.exact:
            return number
    raise AssertionError("the script has no such call: take another seed")


def test_right_ledgers_are_right() -> None:
    verdict = Checker(SEED, right_stories(), MEMBERS).check()
    assert verdict.wrong == []
    assert verdict.in_journal == verdict.operations - verdict.lost
    assert verdict.operations == 60 and verdict.again == 1 and verdict.epochs == 2
    assert verdict.recomputed > 30


def plant_bits(stories: list[Story], number: int) -> None:
    at(stories[1], number)["digest"] += 1


def plant_same_wrong_bits(stories: list[Story], number: int) -> None:
    for story in stories:
        at(story, number)["digest"] += 1


def plant_only_the_dead_saw_it(stories: list[Story], number: int) -> None:
    at(stories[2], number)["digest"] += 1


def plant_two_outcomes(stories: list[Story], number: int) -> None:
    at(stories[1], number)["status"] = Status.PEER_LOST


def plant_needless_loss(stories: list[Story], number: int) -> None:
    for story in stories:
        at(story, number)["status"] = Status.PEER_LOST


def plant_missing_contributor(stories: list[Story], number: int) -> None:
    """The others leave one out that has the result. Its bits are those of the others."""
    call = script.call_of(SEED, number)
    for story in stories:
        at(story, number)["roster"][0][1] = HOLE
        at(story, number)["digest"] = digest(script.expected(SEED, number, call, [0, None, 2]))


def plant_no_agreement(stories: list[Story], number: int) -> None:
    at(stories[0], number)["roster"][0][2] = HOLE


def plant_stranger(stories: list[Story], number: int) -> None:
    for story in stories:
        at(story, number)["roster"][0][0] = 17


def plant_no_such_member(stories: list[Story], number: int) -> None:
    """All say that the dead one took part, in the epoch that was made without it."""
    for story in stories:
        at(story, number)["epoch"] = 2
        story.lines["epoch"][number:] = 2


def plant_gap(stories: list[Story], number: int) -> None:
    stories[1].lines = stories[1].lines[stories[1].lines["number"] != number]


def plant_input(stories: list[Story], number: int) -> None:
    at(stories[1], number)["input"] = Input.CHANGED


def plant_eviction(stories: list[Story], number: int) -> None:
    stories[1].lines = stories[1].lines[: number - 1 + 1].copy()
    at(stories[1], number)["status"] = Status.EVICTED


def plant_other_call(stories: list[Story], number: int) -> None:
    at(stories[1], number)["kind"] = Kind.ADMIT


def plant_error(stories: list[Story], number: int) -> None:
    at(stories[2], number)["status"] = Status.OTHER


def plant_old_epoch(stories: list[Story], number: int) -> None:
    stories[0].lines["epoch"][: number - 1] = 2


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (plant_bits, r"operation {n}, .*: the bits differ"),
        (plant_same_wrong_bits, r"operation {n}, .*: not the result of \[0, 1, 2\]"),
        (plant_only_the_dead_saw_it, r"operation {n}, .*: the bits differ"),
        (plant_two_outcomes, r"operation {n} has two outcomes"),
        (plant_needless_loss, r"operation {n}, .*: it failed though it could begin again"),
        (plant_missing_contributor, r"operation {n}: \[1\] have its result and did not contribute"),
        (plant_no_agreement, r"operation {n}: peers do not agree on who contributed"),
        (plant_stranger, r"operation {n}: p17 contributed and never called it"),
        (
            plant_no_such_member,
            r"operation {n}: \[0, 1, 2\] contributed, and in the journal",
        ),
        (plant_gap, r"p1: what follows operation .* is not {n}"),
        (plant_input, r"operation {n}, .*: the input of p1 was changed"),
        (plant_eviction, r"p1 was evicted though nothing was done to it"),
        (plant_other_call, r"operation {n}: peers called different ones"),
        (plant_error, r"p2 got an error that is no outcome"),
        (plant_old_epoch, r"p0: its epochs fall"),
    ],
)
def test_a_wrong_ledger_is_found(plant, told: str) -> None:
    stories, number = right_stories(), a_call("int")
    plant(stories, number)
    found = complaints(stories)
    assert any(re.match(told.format(n=number), text) for text in found), found


def test_a_float_that_is_not_near_is_found() -> None:
    stories = right_stories()
    number = next(
        n
        for n in range(2, 28)
        if not script.call_of(SEED, n).is_known and stories[0].lines[n - 1]["world"]
    )
    call = script.call_of(SEED, number)
    _, slack = script.near(SEED, number, call, [0, 1, 2])
    for story in stories:
        at(story, number)["total"] += 3 * slack
    (found,) = complaints(stories)
    assert re.match(rf"operation {number}, .*: its sum is", found)


# ---- real processes ------------------------------------------------------------------------------


@pytest.fixture
def run(spawn, seed, tmp_path):
    """Starts a run; at the end no process of it may be there."""
    mark = uuid.uuid4().hex

    def start(*arguments: object):
        env = {"COLLECTIVES_TEST_MARK": mark}
        words = ("--seed", seed, "--folder", tmp_path)
        return spawn("python", HERE / "chaos.py", *words, *arguments, env=env)

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
    assert not left, f"the run left processes behind (killed now): {left}"


@pytest.mark.timeout(480)
def test_sixty_faults(run) -> None:
    child = run("--faults", 60)
    assert child.wait(460) == 0, child.output
    assert "chaos passed:" in child.output
    print(child.output)


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("wrong", r"operation \d+, .*: the bits differ: .*\[3\]"),
        ("death", r"p3 .* ended by itself: MEMBER, exit code 7"),
        ("hang", r"p\d+ .* has made no progress for 6 s"),
        ("descriptor", r"descriptors leak: .*p3 \d+.*; at first each had \d+"),
    ],
)
def test_a_peer_that_breaks_a_promise_is_found(run, plant: str, told: str) -> None:
    child = run("--loopback", "--peers", 5, "--faults", 2, "--limit", 6, "--plant", plant)
    assert child.wait(80) == 1, child.output
    assert re.search(f"chaos: {told}", child.output), child.output
    assert re.search(r'again: make chaos CHAOS="--seed \d+ --faults 2"', child.output)


@pytest.mark.timeout(90)
def test_a_signal_ends_all(run) -> None:
    child = run("--faults", 1000)
    child.wait_for("chaos: seed")
    child.signal(signal.SIGTERM)
    assert child.wait(40) == 143
