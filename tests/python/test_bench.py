"""`collectives bench`: its lines, its figures, and that a wrong result is no result.

Goal: every number is what its name says. Method: the command with few repetitions on 2 and 3 ranks,
its figures computed again from each other and from invented times; ranks that join a coordinator of
their own; and a rank whose all_reduce is off by one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from collectives.cli import bench, bench_trial
from collectives.cli import main as cli

COMMAND = ("-m", "collectives.cli.main", "bench")
FEW = ("--iterations", 12)
FIELDS = {
    "op", "ranks", "bytes", "transport", "algorithm", "median_us", "p10_us", "p90_us",
    "algbw_GBps", "busbw_GBps", "rss_MiB", "cpu_s", "inplace", "dtype", "iterations",
}  # fmt: skip


def check_line(line: str, op: str, ranks: int, size: int) -> dict:
    result = json.loads(line)
    assert set(result) == FIELDS
    assert (result["op"], result["ranks"], result["bytes"]) == (op, ranks, size)
    assert 0 < result["p10_us"] <= result["median_us"] <= result["p90_us"] < 60e6
    assert result["algbw_GBps"] == pytest.approx(
        size / result["median_us"] / 1e3, abs=1e-6, rel=0.01
    )
    assert 5 < result["rss_MiB"] < 4096
    assert 0 <= result["cpu_s"] < 60
    assert result["iterations"] == FEW[1]
    return result


def test_lines_of_two_ranks(spawn) -> None:
    child = spawn("python", *COMMAND, "all_reduce", "--bytes", "4,16384,300K", *FEW, "--json")
    assert child.wait(40) == 0
    lines = child.output.splitlines()
    assert len(lines) == 3
    for line, size in zip(lines, (4, 16384, 300 << 10), strict=True):
        result = check_line(line, "all_reduce", 2, size)
        assert result["busbw_GBps"] == result["algbw_GBps"]  # 2 (n - 1) / n is 1 for two
        assert result["algorithm"] in ("direct", "recursive_doubling", "ring")
        assert result["transport"] == "tcp"
        assert result["inplace"] is False


@pytest.mark.parametrize(
    ("op", "arguments", "size", "share"),
    [
        ("all_reduce", ("--inplace", "--algorithm", "ring", "--dtype", "bfloat16"), 60000, 4 / 3),
        ("all_reduce", ("--dtype", "int64", "--streams", 3, "--segment-bytes", 4096), 60000, 4 / 3),
        ("broadcast", ("--inplace", "--dtype", "float64"), 60000, 1),
        ("all_gather", (), 60000, 2 / 3),
        ("barrier", (), 0, 1),
        ("reduce", ("--inplace",), 60000, 1),
        ("gather", ("--dtype", "int32"), 60000, 2 / 3),
        ("scatter", (), 60000, 2 / 3),
        ("reduce_scatter", ("--dtype", "bfloat16"), 60000, 2 / 3),
        ("all_to_all", (), 60000, 2 / 3),
    ],
)
def test_operations_of_three_ranks(spawn, op, arguments, size, share) -> None:
    words = (op, "--ranks", 3, "--bytes", 60000, *arguments, *FEW, "--json")
    child = spawn("python", *COMMAND, *words)
    assert child.wait(40) == 0
    (line,) = child.output.splitlines()
    result = check_line(line, op, 3, size)
    assert result["busbw_GBps"] == pytest.approx(result["algbw_GBps"] * share, rel=1e-3, abs=2e-6)
    assert result["inplace"] == ("--inplace" in arguments)


def test_messages_of_two_ranks(spawn) -> None:
    words = ("send_recv", "--bytes", 4096, "--dtype", "bfloat16", *FEW, "--json")
    child = spawn("python", *COMMAND, *words)
    assert child.wait(40) == 0
    assert check_line(child.output, "send_recv", 2, 4096)["algorithm"] == "none"


def test_a_table_for_people(spawn) -> None:
    child = spawn("python", *COMMAND, "all_reduce", "--bytes", "64,128", *FEW)
    assert child.wait(40) == 0
    title, head, *rows = child.output.splitlines()
    assert title.startswith("all_reduce, 2 ranks, float32, out of place")
    assert [row.split()[0] for row in rows] == ["64", "128"]
    assert {len(row.split()) for row in (*rows, head.replace(" GB/s", ""))} == {len(bench._COLUMNS)}


def test_ranks_of_two_commands_measure_together(spawn) -> None:
    coordinator = spawn(
        "python", "-m", "collectives.cli.main", "coordinator", "--listen", "127.0.0.1:0"
    )
    url = coordinator.wait_for(r"ready (\S+)")[1]
    words = ("all_reduce", "--ranks", 3, "--bytes", 4096, *FEW, "--json", "--coordinator", url)
    two = spawn("python", *COMMAND, *words, "--local", 2)
    one = spawn("python", *COMMAND, *words)
    assert two.wait(40) == 0
    assert one.wait(40) == 0
    check_line(two.output, "all_reduce", 3, 4096)
    assert one.output == two.output
    assert coordinator.process.poll() is None


def test_a_wrong_result_is_an_error(tmp_path: Path, monkeypatch, capsys) -> None:
    worker = tmp_path / "wrong.py"
    worker.write_text(
        "import collectives as cc\n"
        "from collectives.cli import _launch, bench_worker\n"
        "right = cc.Communicator.all_reduce\n"
        "def wrong(self, x, **more):\n"
        "    x[777] += self.rank\n"
        "    return right(self, x, **more)\n"
        "cc.Communicator.all_reduce = wrong\n"
        "_launch.work(bench_worker.main)\n"
    )
    monkeypatch.setattr(bench, "WORKER", str(worker))
    assert cli.main(["bench", "all_reduce", "--bytes", "4096", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "all_reduce of 4096 bytes gives a wrong result: element 777 is" in captured.err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["all_reduce", "--bytes", "4,x"], 2, "'X' is no size"),
        (["all_reduce", "--bytes", "0"], 2, "is no size"),
        (["all_reduce", "--ranks", "0"], 2, "no positive number"),
        (["all_toast"], 2, "all_toast"),
        (["all_reduce", "--ranks", "2", "--local", "1"], 1, "--local 1"),
        (["all_gather", "--inplace"], 1, "no in-place form"),
        (["send_recv", "--ranks", "3"], 1, "between two ranks"),
        (["all_reduce", "--coordinator", "http://nowhere"], 1, "cc://host"),
    ],
)
def test_wrong_arguments(spawn, words, status, told) -> None:
    child = spawn("python", *COMMAND, *words)
    assert child.wait(20) == status
    assert told in child.output


def test_sizes() -> None:
    assert bench.sizes("4,16k,1M,2G") == [4, 16384, 1 << 20, 2 << 30]
    with pytest.raises(argparse.ArgumentTypeError):
        bench.sizes("-4")


def test_the_slowest_rank_counts() -> None:
    """Three ranks, four repetitions: their maxima are 10, 20, 30 and 40 us."""
    times = np.array([[10.0, 1, 2, 3], [1, 20, 3, 40], [2, 1, 30, 4]])
    found = bench_trial.figures("all_reduce", 3, 1_000_000, times)
    assert found["median_us"] == 25
    assert found["p10_us"] == 13
    assert found["p90_us"] == 37
    assert found["algbw_GBps"] == 40
    assert found["busbw_GBps"] == pytest.approx(160 / 3, rel=1e-6)
    assert bench_trial.figures("all_gather", 4, 1000, times)["busbw_GBps"] == 0.03
    assert bench_trial.figures("broadcast", 4, 1000, times)["busbw_GBps"] == 0.04
    assert bench_trial.figures("send_recv", 2, 1000, times)["median_us"] == 12.5  # one way


def test_repetitions_fill_the_time_within_bounds() -> None:
    assert bench_trial.iterations_for(0.001, 1.0) == 1000
    assert bench_trial.iterations_for(10.0, 1.0) == 5
    assert bench_trial.iterations_for(0.0, 1.0) == 5000
    assert bench_trial.iterations_for(0.001, 0) == 5


@pytest.mark.parametrize(
    ("op", "order"), [("all_reduce", "brrr" * 8 + "br"), ("gather", "br" * 25)]
)
def test_each_repetition_is_timed_and_batches_begin_with_a_barrier(op, order) -> None:
    calls: list[str] = []
    step = bench_trial.step_for(op, 25)
    times = bench_trial.repeat(lambda: calls.append("r"), lambda: calls.append("b"), 25, step)
    assert len(times) == 25
    assert (times >= 0).all()
    assert "".join(calls) == order


# ---- known values ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", bench_trial.DTYPES)
@pytest.mark.parametrize("ranks", [2, 25, 200])
def test_known_values_are_checked_everywhere(dtype, ranks) -> None:
    """Sums of small integers by plain Python; a wrong last element is found."""
    count = 70000  # more than one chunk
    array = np.zeros(count, bench_trial.DTYPES[dtype])
    bench_trial.fill(array, 1, ranks, dtype)
    bench_trial.check(array, [1], ranks, dtype, "it")
    bench_trial.check(array[12345:], [1], ranks, dtype, "it", 12345)
    modulus = 11 if ranks <= 25 else 2
    total = [sum((i * 7 + r * 3) % modulus for r in range(ranks)) for i in range(50)]
    if dtype == "bfloat16":
        sums = (np.array(total, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        assert ((sums.astype(np.uint32) << 16).view(np.float32) == total).all()  # exact
    else:
        sums = np.array(total, array.dtype)
    bench_trial.check(sums, list(range(ranks)), ranks, dtype, "it")
    array[-1] += 1
    with pytest.raises(ValueError, match="element 69999"):
        bench_trial.check(array, [1], ranks, dtype, "it")


def by_definition(op: str, inputs: list[np.ndarray], rank: int, block: int) -> np.ndarray:
    """What a rank must get, from all inputs, as the manual says it."""
    own = slice(rank * block, (rank + 1) * block)
    return {
        "all_reduce": lambda: sum(inputs),
        "broadcast": lambda: inputs[0],
        "all_gather": lambda: np.concatenate(inputs),
        "barrier": lambda: np.zeros(0),
        "reduce": lambda: sum(inputs) if rank == 0 else np.zeros(0),
        "gather": lambda: np.concatenate(inputs) if rank == 0 else np.zeros(0),
        "scatter": lambda: inputs[0][own],
        "reduce_scatter": lambda: sum(inputs)[own],
        "all_to_all": lambda: np.concatenate([x[own] for x in inputs]),
        "send_recv": lambda: inputs[1 - rank],
    }[op]()


@pytest.mark.parametrize("op", bench_trial.OPERATIONS)
def test_every_operation_is_checked_by_its_definition(op) -> None:
    """For each rank the right output passes, and one with a wrong element, anywhere, does not."""
    ranks = 2 if op == "send_recv" else 3
    shapes = [bench_trial.shape(op, 300, rank, ranks) for rank in range(ranks)]
    inputs = [np.zeros(shape.given, np.float32) for shape in shapes]
    for rank, given in enumerate(inputs):
        bench_trial.fill(given, rank, ranks, "float32")
    for rank, shape in enumerate(shapes):
        out = by_definition(op, inputs, rank, shape.block).astype(np.float32)
        assert out.size == shape.out
        assert max(shape.given, shape.out) <= shape.largest == (0 if op == "barrier" else 300)
        bench_trial.check_output(out, op, rank, ranks, "float32")
        for i in range(0, out.size, 37):
            wrong = out.copy()
            wrong[i] += 1
            with pytest.raises(ValueError, match=f"{op} of {out.nbytes} bytes"):
                bench_trial.check_output(wrong, op, rank, ranks, "float32")


def test_a_block_has_one_element_at_least() -> None:
    shape = bench_trial.shape("gather", 1, 0, 4)
    assert (shape.block, shape.given, shape.out, shape.largest) == (1, 1, 4, 4)
    shape = bench_trial.shape("gather", 1, 3, 4)
    assert (shape.given, shape.out) == (1, 0)
