"""The README's example does what the README says.

Goal: nobody's first ten minutes end in an example that does not run. Method: its code is taken out
of the README as it stands and run by four processes with a real coordinator; the weight that each
must print is computed here.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return found


def test_the_example_runs(spawn, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block("python"))
    coordinator = spawn(
        "python", "-m", "collectives.cli.main", "coordinator", "--listen", "127.0.0.1:0"
    )
    url = coordinator.wait_for(r"ready (\S+)")[1]
    peers = [spawn("python", script, env={"COLLECTIVES_COORDINATOR": url}) for _ in range(4)]
    for peer in peers:
        assert peer.wait(40) == 0
    assert sorted(peer.output for peer in peers) == expected_lines()


def test_the_example_runs_in_one_command(spawn, tmp_path: Path) -> None:
    (command,) = re.findall(r"`collectives (run .*) example.py`", README)
    script = tmp_path / "example.py"
    script.write_text(block("python"))
    words = ["-m", "collectives.cli.main", *command.split(), script]
    child = spawn("python", *words, env={"COLLECTIVES_COORDINATOR": ""})
    assert child.wait(40) == 0
    # Into a pipe, print() writes a line and its end separately: ranks may come between.
    printed = sorted(re.findall(r"rank . of 4: weight -.\...", child.output))
    assert "".join(printed) == "".join(expected_lines()).replace("\n", "")
    assert len(child.output) == sum(map(len, expected_lines()))


def expected_lines() -> list[str]:
    mean = (1 + 2 + 3 + 4) / 4
    weight = f"{-0.01 * mean * 100:.2f}"
    return [f"rank {rank} of 4: weight {weight}\n" for rank in range(4)]


def test_the_shell_lines_name_commands_that_exist(spawn) -> None:
    """The port is fixed there, so they are not run; but their words are."""
    shell = block("sh")
    assert "for i in 1 2 3 4; do python example.py" in shell
    help_text = spawn("python", "-m", "collectives.cli.main", "coordinator", "--help")
    assert help_text.wait(20) == 0
    (option,) = re.findall(r"collectives coordinator (--\w+)", shell)
    assert option in help_text.output
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert "docs/protocol.md" in links
    assert "docs/algorithms.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
    tree = re.findall(r"^    (\w+)/ {2,}", README, re.MULTILINE)
    assert len(tree) == 8
    assert [folder for folder in tree if not (ROOT / folder).is_dir()] == []
