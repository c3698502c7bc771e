"""The comparison with other libraries: its arithmetic, its tables, and that nobody is left behind.

Goal: a table says what was measured, and a library that fails costs its own cells only. Method:
invented measurements whose medians and ratios are known; ranks that answer, keep silent or end; and
one real run, of ours alone, with two ranks and two sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts, not a package

import compare  # noqa: E402
import environments  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
from bench_ranks import Failed, Ranks  # noqa: E402

# ---- arithmetic -----------------------------------------------------------------------------


def test_repetitions_fill_the_time_within_bounds() -> None:
    assert compare.iterations(1000.0, 0.3, 2, 5000) == 300
    assert compare.iterations(9e6, 0.3, 2, 5000) == 2
    assert compare.iterations(0.0, 0.3, 2, 5000) == 5000


def test_every_second_round_goes_backwards() -> None:
    names = [contender.name for contender in compare.ordered(compare.CONTENDERS, 0)]
    assert names == list(report.COLUMNS)
    again = [contender.name for contender in compare.ordered(compare.CONTENDERS, 1)]
    assert again == names[::-1]


def test_who_takes_part_and_how() -> None:
    by_name = {contender.name: contender for contender in compare.CONTENDERS}
    ours, inplace, mpi = (by_name[k] for k in ("collectives", "collectives_inplace", "openmpi"))
    assert (ours.place("all_reduce"), inplace.place("all_reduce")) == ("out", "in")
    assert (mpi.place("all_reduce"), mpi.place("all_gather")) == ("in", "out")
    assert inplace.takes_part("reduce", 4)
    assert not inplace.takes_part("all_gather", 4)
    assert mpi.takes_part("send_recv", 2)
    assert not mpi.takes_part("send_recv", 4)


class Script:
    """Ranks that take a known time for each repetition and remember what they were asked."""

    def __init__(self, times_us: list[float]) -> None:
        self.times_us = times_us
        self.asked: list[str] = []

    def __call__(self, line: str) -> list[dict]:
        self.asked.append(line)
        word, *words = line.split()
        count = {"case": 1, "run": int(words[0]) if word == "run" else 0, "rest": 0}[word]
        return [{"us": [us] * count, "bytes": 4096, "notes": "ring"} for us in self.times_us]


def test_a_measurement_checks_warms_up_and_repeats() -> None:
    ask = Script([500.0, 1000.0])
    found = compare.measure(ask, "all_reduce", "out", 4096, 0.5)
    assert ask.asked == ["case all_reduce out 4096", "run 50 5", "run 500 50", "rest"]
    assert (found["median_us"], found["iterations"]) == (1000.0, 500)
    assert (found["actual_bytes"], found["algorithm"]) == (4096, "ring")


def test_what_is_slow_is_repeated_least() -> None:
    ask = Script([2e6, 3e6])
    found = compare.measure(ask, "reduce", "in", 4096, 0.5)
    assert ask.asked == ["case reduce in 4096", "run 2 1", "rest"]
    assert found["median_us"] == 3e6


def test_what_a_library_does_not_have_is_absent() -> None:
    found = compare.measure(lambda line: [{"absent": "not here"}] * 2, "gather", "out", 4, 0.5)
    assert found == {"absent": "not here"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ops", "all_toast"], "'all_toast' is none of all_reduce"),
        (["--libraries", "gloo,nccl"], "'nccl' is none of collectives"),
        (["--bytes", "4,x"], "'X' is no size"),
        (["--rounds", "0"], "no positive number"),
    ],
)
def test_wrong_arguments(capsys, words, told) -> None:
    with pytest.raises(SystemExit):
        compare.parser().parse_args(words)
    assert told in capsys.readouterr().err


def test_everything_is_the_default() -> None:
    args = compare.parser().parse_args([])
    assert args.ranks == [2, 4, 8]
    assert (args.bytes[0], args.bytes[-1]) == (4, 256 << 20)
    assert (args.ops, args.libraries) == (compare.OPERATIONS, environments.LIBRARIES)
    with pytest.raises(argparse.ArgumentTypeError):
        compare.one_of(["a"])("b")


# ---- tables and plots -----------------------------------------------------------------------


def rows_of(op: str, times: dict[str, list[float]], size: int = 4096, **more) -> list[dict]:
    """Of one cell; the list has a median for each round."""
    return [
        {"congestion": "cubic", "ranks": 2, "op": op, "bytes": size}
        | {"contender": name, "round": number, "median_us": us, **more}
        for name, medians in times.items()
        for number, us in enumerate(medians)
    ]


TIMES = {"collectives": [100.0, 90, 200], "gloo": [450.0, 450, 300], "openmpi": [150.0, 900, 500]}
MACHINE = {"date": "today", "cpus": 2, "cpu": "a cpu", "kernel": "6", "congestion": "bbr"}
MACHINE |= {"notes": ["mpich is absent: no wheel"], "versions": {"gloo": "torch 2"}}


def test_cells_and_ratios() -> None:
    """By round the best other takes 150, 450 and 300 us: 1.5, 5 and 1.5 times as long as ours."""
    results = report.Results(rows_of("all_reduce", TIMES))
    (cell,) = results.cells("all_reduce", "cubic")
    assert results.median(cell, "gloo") == 450
    assert results.median(cell, "mpich") is None
    assert results.speedup(cell) == (1.5, 1.5, 5.0)
    assert report.table(results, "all_reduce", "cubic").splitlines() == [
        "| ranks | bytes | collectives | Gloo | Open MPI | speed-up | range |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 2 | 4 KiB | **100 µs** | 450 µs | 500 µs | 1.50 | 1.50 – 5.00 |",
    ]


def test_what_failed_is_told_and_has_no_cell() -> None:
    rows = [{"machine": MACHINE}, *rows_of("all_reduce", TIMES)]
    failed = rows_of("all_reduce", {"mpich": [0.0]}, absent="failed: no answer", failed=True)
    text = report.tables(report.Results([*rows, *failed]))
    assert "- mpich is absent: no wheel" in text
    assert "- MPICH: failed: no answer: all_reduce, 2 ranks, 4 KiB (cubic)." in text
    assert "| 2 | 4 KiB | **100 µs** | 450 µs |" in text


def test_without_others_there_is_no_speedup() -> None:
    results = report.Results(rows_of("barrier", {"collectives": [7.0]}, size=0))
    assert report.table(results, "barrier", "cubic").endswith("| 2 | – | **7.00 µs** | – | – |")


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (4.567, "4.57 µs"),
        (9.996, "10.0 µs"),
        (48.51, "48.5 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (12345, "12.3 ms"),
        (294e3, "294 ms"),
        (2.0213e6, "2.02 s"),
    ],
)
def test_times(us, text) -> None:
    assert report.time_text(us) == text


def test_sizes() -> None:
    sizes = [0, 4, 1500, 16 << 10, 1 << 20, 2 << 30]
    assert [report.size_text(size) for size in sizes] == [
        *("–", "4 B", "1500 B", "16 KiB", "1 MiB", "2 GiB")
    ]


def test_the_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Above\n\n{report.BEGIN}\nstale\n{report.END}\n\nBelow.\n")
    rows = rows_of("all_reduce", TIMES) + rows_of("all_reduce", TIMES, size=1 << 20)
    for _ in range(2):  # writing it again changes nothing
        report.write_docs(report.Results(rows), page, tmp_path / "performance")
    text = page.read_text()
    assert text.startswith("# Above\n\n" + report.BEGIN)
    assert text.endswith(report.END + "\n\nBelow.\n")
    assert "stale" not in text
    assert text.count("### all_reduce, cubic") == 1
    assert "](performance/all_reduce-cubic.svg)" in text
    ElementTree.parse(tmp_path / "performance" / "all_reduce-cubic.svg")


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Mine\n")
    with pytest.raises(ValueError, match="needs the lines"):
        report.write_docs(report.Results([]), page, tmp_path / "performance")
    assert page.read_text() == "# Mine\n"


def test_a_plot_has_a_line_for_each_library() -> None:
    lines = {"a": [(4.0, 10.0), (1024.0, 30.0)], "b": [(4.0, 5.0), (1024.0, 1000.0)]}
    order = ["a", "b", "c", "d", "e", "f"]
    tree = ElementTree.fromstring(plot.svg("x < y", {"2 ranks": lines}, order))
    space = "{http://www.w3.org/2000/svg}"
    found = tree.findall(f"{space}polyline")
    assert [line.get("stroke") for line in found] == list(plot.COLOURS[:2])
    left, right = (float(point.split(",")[0]) for point in found[0].get("points", "").split())
    assert right - left == plot.WIDTH
    texts = [text.text for text in tree.findall(f"{space}text")]
    assert {"x < y: time by bytes", "2 ranks", "a", "b", "4", "1K", "1 µs", "1 ms"} <= set(texts)


# ---- ranks ----------------------------------------------------------------------------------

RANK = """
import json, os, socket, sys, time
channel = socket.socket(socket.AF_UNIX)
channel.connect(sys.argv[1])
channel.sendall(json.dumps({"rank": int(sys.argv[2]), "address": "-"}).encode() + b"\\n")
for line in channel.makefile():
    if line == "end\\n":
        break
    if line == f"exit {sys.argv[2]}\\n":
        sys.exit("that was it")
    if line == "sleep\\n":
        time.sleep(600)
    channel.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\\n")
"""


def two_ranks() -> Ranks:
    commands = [[sys.executable, "-c", RANK, "SOCKET", str(i)] for i in range(2)]
    return Ranks("it", 2, commands, {})


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_ranks_answer_and_are_gone_at_the_end() -> None:
    with two_ranks() as ranks:
        assert ranks.start() == ["-", "-"]
        pids = [answer["pid"] for answer in ranks.ask("hello", 30)]
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


def test_silence_ends_them() -> None:
    with two_ranks() as ranks:
        ranks.start()
        pids = [answer["pid"] for answer in ranks.ask("hello", 30)]
        with pytest.raises(Failed, match="it: rank 0 gave no answer in time after 'sleep'"):
            ranks.ask("sleep", 0.1)
        assert not any(is_alive(pid) for pid in pids)


def test_the_end_of_one_is_told_with_what_it_printed() -> None:
    with two_ranks() as ranks:
        ranks.start()
        with pytest.raises(Failed, match=r"it: rank 1 ended after 'exit 1'\n.*that was it"):
            ranks.ask("exit 1", 30)


def test_ranks_that_do_not_start() -> None:
    commands = [[sys.executable, "-c", "exit('no')"]]
    told = r"it: exited with 1\n.*no"
    with Ranks("it", 1, commands, {}) as ranks, pytest.raises(Failed, match=told):
        ranks.start()


# ---- the whole ------------------------------------------------------------------------------


def test_ours_alone(tmp_path: Path, capsys) -> None:
    file = tmp_path / "results.json"
    words = [
        "--libraries",
        "collectives",
        "--ranks",
        "2",
        "--bytes",
        "4,64K",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
    ]
    words += ["--ops", "all_reduce,scatter,barrier,send_recv", "--congestion", "system"]
    assert compare.main([*words, "--json", str(file)]) == 0
    about, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert about["machine"]["notes"] == []
    assert [row["contender"] for row in rows if row["op"] == "all_reduce"] == [
        *("collectives", "collectives_inplace", "collectives", "collectives_inplace")
    ]
    assert [(row["op"], row["bytes"], row["actual_bytes"]) for row in rows[4:]] == [
        ("scatter", 4, 8),
        ("scatter", 65536, 65536),
        ("barrier", 0, 0),
        ("send_recv", 4, 4),
        ("send_recv", 65536, 65536),
    ]
    assert all(0 < row["median_us"] < 60e6 for row in rows)
    assert "### all_reduce, system" in capsys.readouterr().out
