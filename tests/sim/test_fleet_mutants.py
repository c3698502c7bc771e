"""Goal: the fleets' checks can fail. Each rule that was rejected, planted, breaks a promise.

Method: fleet_mutants.py has the rules. Those of the coordinator replace a function, those of the C
core a few lines in a copy of one file, which is built into a module of its own. The lives go on
until one fails, and one must within as many as run on every push.
"""

from __future__ import annotations

from typing import Any

import pytest
from fleet_mutants import COORDINATOR, CORE, build_core
from test_fleet import LIVES, RUN


def caught(child: Any) -> None:
    assert child.wait(900) == 1, f"it lived through {LIVES} lives:\n{child.output}"
    assert "event by event" in child.output


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", COORDINATOR)
def test_a_rejected_rule_of_the_coordinator_is_caught(name: str, spawn: Any) -> None:
    caught(spawn("python", RUN, "--seeds", LIVES, "--mutant", name))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", CORE)
def test_a_rejected_rule_of_the_core_is_caught(name: str, spawn: Any) -> None:
    caught(spawn("python", RUN, "--seeds", LIVES, "--native", build_core(name)))
