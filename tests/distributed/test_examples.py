"""The examples do what they say, under both launchers. Skipped without torch.

Goal: whoever copies a command out of an example's docstring sees what the example claims. Method:
these commands are run as they stand, and others that kill another rank; every line that must be
printed is read. The examples compare replicas, checkpoints and tensors themselves, and fail if they
differ; so exit codes matter as well.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "collectives": ("collectives.cli.main",),
    "torchrun": ("torch.distributed.run", "--standalone"),  # at a free port
}


def commands(name: str) -> list[str]:
    text = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text()))
    return re.findall(rf"^    (.* examples/{name}.*)$", text or "", re.MULTILINE)


def output(spawn: Any, command: str) -> str:
    """What a command prints that ends well."""
    launcher, *words = command.split()
    script = next(i for i, word in enumerate(words) if word.startswith("examples/"))
    words[script] = str(ROOT / words[script])
    child = spawn("python", "-m", *LAUNCHERS[launcher], *words, env={"COLLECTIVES_COORDINATOR": ""})
    assert child.wait(110) == 0
    return child.output


def test_each_example_tells_both_commands() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")} - {"text.py"}
    assert names == {"checkpoint.py", "ddp_elastic.py", "dtensor.py", "fsdp2.py"}
    for name in names:
        assert {command.split()[0] for command in commands(name)} == set(LAUNCHERS)


@pytest.mark.parametrize("command", commands("checkpoint.py"))
def test_checkpoint(spawn: Any, command: str) -> None:
    found = re.findall(r"\[(\d)\] (\w+): (\d+) equal values", output(spawn, command))
    expected = [(rank, name) for rank in "01" for name in ("behind", "waited")]
    assert sorted((rank, name) for rank, name, _ in found) == expected
    values = 4 + 4 * 3  # parameters, and for each two averages and a step count
    assert all(int(count) > values for _, _, count in found)


@pytest.mark.parametrize("command", commands("dtensor.py"))
def test_dtensor(spawn: Any, command: str) -> None:
    pattern = r"\[(\d)\] has \[(.*?)\], loss (\S+) -> (\S+) as in one process"
    found = re.findall(pattern, output(spawn, command))
    assert sorted(rank for rank, *_ in found) == ["0", "1", "2"]
    for _, parts, first, last in found:
        assert parts == "(32, 32), (32,), (8, 32), (8,)"  # of 96 by 32, and 8 by 96
        assert float(last) < float(first) / 2


@pytest.mark.parametrize("command", commands("fsdp2.py"))
def test_fsdp2(spawn: Any, command: str) -> None:
    pattern = r"\[(\d)\] (\d+) of (\d+) parameters, loss (\d\.\d\d) -> (\d\.\d\d)"
    found = re.findall(pattern, output(spawn, command))
    assert sorted(rank for rank, *_ in found) == ["0", "1", "2"]
    ((whole, first, last),) = {tuple(rest) for _, _, *rest in found}
    assert sum(int(part) for _, part, *_ in found) == int(whole)
    assert float(last) < float(first) - 1


VICTIM_2 = [c.replace("--victim 0", "--victim 2") for c in commands("ddp_elastic.py")]


@pytest.mark.parametrize("command", sorted({*commands("ddp_elastic.py"), *VICTIM_2}))
def test_ddp_elastic(spawn: Any, command: str) -> None:
    printed = output(spawn, command)
    victims = re.findall(r"--victim (\d)", command)
    returns = "--restart-dead" in command
    survivors = sorted({"0", "1", "2"} - {*victims})
    ended = ["0", "1", "2"] if returns else survivors

    pattern = r"\[(\d)\] loss (\d\.\d\d) -> (\d\.\d\d), (\d) identical replicas"
    found = re.findall(pattern, printed)
    assert sorted(rank for rank, *_ in found) == ended
    ((first, last, replicas),) = {tuple(rest) for _, *rest in found}
    assert float(last) < float(first) - 0.5
    assert int(replicas) == len(ended)

    assert re.findall(r"rank (\d) \(process \d+\) was killed by SIGKILL", printed) == victims
    pattern = r"\[(\d)\] goes on with step (\d+) as one of (\d)"
    changes = sorted((size, int(step), rank) for rank, step, size in re.findall(pattern, printed))
    shrunk = [("2", 11, rank) for rank in survivors if victims]
    assert changes[: len(shrunk)] == shrunk
    grown = changes[len(shrunk) :]
    assert [(size, rank) for size, _, rank in grown] == [("3", rank) for rank in ended if returns]
    assert len({step for _, step, _ in grown}) == returns
    assert all(11 < step <= 20 for _, step, _ in grown)  # 20: where the members wait
