"""The protocol's agreement, proved for small bounds; and each rejected rule, refuted.

Method: every interleaving is explored (explore.py). A safe verdict counts only because the same
model, with one rule replaced, finds what that rule breaks, and because it reaches the situations
that matter. Nothing is random and nothing waits; the bounds keep each test to seconds, and
`STATES_MAX` stops one that grew. `run.py` takes larger bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boundary_model
import commit_model
import mismatch_model
import pytest
from boundary_model import JOIN, LEAVE, NOTHING, Boundary
from commit_model import FAILED, OPEN, Data
from explore import explore
from mismatch_model import Mismatch

STATES_MAX = 1_000_000


SAFE: list[Any] = [
    Data(peers=2, epochs=3),
    Data(peers=2, epochs=3, retry=True),
    Data(peers=2, epochs=3, operations=("local", "all"), retry=True),
    Data(peers=2, epochs=3, single_votes=True),
    Data(peers=2, epochs=2, single_votes=True, retry=True),
    Data(peers=3, epochs=2),
    Data(peers=3, epochs=2, retry=True),
    Data(peers=3, epochs=3, operations=("all",)),
    Data(peers=3, epochs=3, operations=("local",), retry=True),
    Data(peers=3, epochs=3, restarts=0),
    Data(peers=3, epochs=3, retry=True, restarts=0),
    Boundary(peers=2, epochs=3, wishes=(NOTHING, JOIN, LEAVE)),
    Boundary(peers=3, epochs=2, wishes=(NOTHING, JOIN, LEAVE)),
    Boundary(peers=3, epochs=3, boundaries=1),
    Boundary(peers=3, epochs=3, restarts=0),
    Mismatch(peers=2, early_calls=True),
    Mismatch(peers=3),
]


@pytest.mark.parametrize("model", SAFE, ids=str)
def test_every_interleaving_keeps_every_promise(model: Any) -> None:
    verdict = explore(model, STATES_MAX)
    assert verdict.violation is None, str(verdict)


# For each mutant the bounds that show it, and the words of the promise that it breaks.
BROKEN: list[tuple[Any, str]] = [
    (Data(peers=2, mutant="local success"), "has outcomes [-1, 1]"),
    (Data(peers=3, mutant="majority votes"), "has outcomes [-1, 1]"),
    (Data(peers=2, mutant="or"), "without its result"),
    (Data(peers=3, mutant="majority"), "without its result"),
    (Data(peers=2, mutant="least posted"), "was not decided there"),
    (Data(peers=2, operations=("local",), mutant="decide again"), "has outcomes [-1, 1]"),
    (Data(peers=2, operations=("local",), mutant="no journal"), "has outcomes [-1, 1]"),
    (Data(peers=2, epochs=3, retry=True, mutant="stale report"), "ended with 2 and is now 0"),
    (Data(peers=2, epochs=3, retry=True, mutant="stale vote"), "ended with 2 and is now 0"),
    (Data(peers=2, mutant="vote after seal"), "has outcomes [-1, 1]"),
    (Data(peers=2, retry=True, mutant="no promise"), "ended with 1 and is now 0"),
    (Data(peers=2, epochs=3, mutant="last reason"), "has outcomes [-2, -1]"),
    (Data(peers=2, epochs=3, mutant="apply twice"), "ended with -1 and is now 2"),
    (Boundary(peers=2, mutant="any wish"), "is carried out beside others"),
    (Boundary(peers=2, mutant="late wish"), "is carried out and unchanged"),
    (Boundary(peers=2, mutant="other boundary"), "is carried out beside others"),
    (Boundary(peers=2, mutant="fail on death"), "is failed and unchanged"),
    (Boundary(peers=3, boundaries=1, mutant="majority"), "is carried out and unchanged"),
    (Boundary(peers=2, mutant="local carry"), "is carried out and unchanged"),
    (Boundary(peers=2, mutant="vote after seal"), "was unchanged and is failed"),
    (Mismatch(peers=3, mutant="return at once"), "ended with mismatch and success"),
    (Mismatch(peers=2, mutant="return after votes"), "ended with mismatch and success"),
    (Mismatch(peers=2, mutant="votes without calls"), "different things succeeded"),
    (Mismatch(peers=2, mutant="seen but done"), "different things succeeded"),
    (Mismatch(peers=2, mutant="reports without calls"), "different things succeeded"),
]


@pytest.mark.parametrize(("model", "words"), BROKEN, ids=lambda value: getattr(value, "mutant", ""))
def test_a_rejected_rule_breaks_a_promise(model: Any, words: str) -> None:
    verdict = explore(model, STATES_MAX)
    assert verdict.violation is not None, f"{model.mutant!r} survives {verdict.states} states"
    assert words in verdict.violation, str(verdict)


@pytest.mark.parametrize("model", [Data, Boundary, Mismatch])
def test_every_mutant_is_tried(model: Any) -> None:
    tried = {broken.mutant for broken, _ in BROKEN if type(broken) is model}
    assert tried == set(model.MUTANTS)


def _evicted_but_successful(state: commit_model.State) -> bool:
    """Somebody who is no member of the last epoch returned success by votes of the one before."""
    return any(p.last == 1 and p.outcome[0] == 1 for p in state.peers) and any(
        p.last == 2 and p.outcome[0] == OPEN for p in state.peers
    )


def _part_of_two(state: commit_model.State) -> bool:
    """The same record lets one operation succeed and the one behind it fail."""
    return any(p.epoch == 2 and p.outcome == (1, FAILED) for p in state.peers)


def _failed_unposted(state: commit_model.State) -> bool:
    """An operation fails at a peer that has not posted it yet."""
    return any(p.outcome[1] == FAILED and p.posted == 0 for p in state.peers)


def _second_attempt(state: commit_model.State) -> bool:
    """Two survivors of three succeed with an operation of epoch 1 in epoch 2."""
    return sum(p.last == 1 for p in state.peers) == 1 and (
        sum(p.epoch == 2 and p.outcome[0] == 2 and p.posted > 0 for p in state.peers) == 2
    )


def _two_epochs(state: commit_model.State) -> bool:
    """One peer dies in each of two epochs, and the third one goes on."""
    return sorted(p.last for p in state.peers) == [1, 2, 3] and any(
        p.epoch == 3 for p in state.peers
    )


def _third_attempt(state: commit_model.State) -> bool:
    """Two operations in flight were interrupted twice in a row, and one succeeds in each epoch."""
    return any(p.outcome == (2, 3) for p in state.peers)


def _forgotten_report(state: commit_model.State) -> bool:
    """The coordinator restarted and a record came of reports that were sent again."""
    return state.restarts == 1 and bool(state.records)


@pytest.mark.parametrize(
    ("model", "goal"),
    [
        (Data(peers=3), _evicted_but_successful),
        (Data(peers=2, operations=("local", "local")), _part_of_two),
        (Data(peers=2), _failed_unposted),
        (Data(peers=3, retry=True), _second_attempt),
        (Data(peers=3, epochs=3, operations=("all",)), _two_epochs),
        (Data(peers=2, epochs=3, retry=True), _third_attempt),
        (Data(peers=2), _forgotten_report),
    ],
    ids=lambda value: getattr(value, "__name__", "data"),
)
def test_operations_get_where_they_should(
    model: Data, goal: Callable[[commit_model.State], bool]
) -> None:
    assert explore(model, STATES_MAX, goal).violation == "the goal is reached"


def _dead_returned(state: boundary_model.State) -> bool:
    """A dead peer had returned "unchanged"; the survivors got the same from a record."""
    return any(
        p.last == 1 and p.results[0] == boundary_model.UNCHANGED for p in state.peers
    ) and any(p.epoch == 2 and p.results[0] == boundary_model.UNCHANGED for p in state.peers)


def _carried_without_a_dead_one(state: boundary_model.State) -> bool:
    """Carried out although a member is dead; somebody leaves by it."""
    return (
        any(record.carried for record in state.records)
        and any(p.last == 1 for p in state.peers)
        and any(p.member == 1 and p.last == 2 and p.epoch == 2 for p in state.peers)
    )


def _carried_after_failure(state: boundary_model.State) -> bool:
    """The first boundary fails, the second is carried out in the next epoch."""
    return any(p.results == (boundary_model.FAILED, boundary_model.CARRIED) for p in state.peers)


@pytest.mark.parametrize(
    ("model", "goal"),
    [
        (Boundary(peers=3, epochs=2), _dead_returned),
        (Boundary(peers=3, epochs=2, wishes=(JOIN, LEAVE)), _carried_without_a_dead_one),
        (Boundary(peers=2, epochs=3), _carried_after_failure),
    ],
    ids=lambda value: getattr(value, "__name__", "boundary"),
)
def test_boundaries_get_where_they_should(
    model: Boundary, goal: Callable[[boundary_model.State], bool]
) -> None:
    assert explore(model, STATES_MAX, goal).violation == "the goal is reached"


@pytest.mark.parametrize("outcome", [mismatch_model.SUCCESS, mismatch_model.MISMATCH])
def test_a_call_of_three_ends_both_ways(outcome: str) -> None:
    def all_alike(state: mismatch_model.State) -> bool:
        return all(peer.outcome == outcome for peer in state.peers)

    assert explore(Mismatch(peers=3), STATES_MAX, all_alike).violation == "the goal is reached"


def _outcomes(model: Data) -> set[tuple[tuple[int, ...], ...]]:
    """All combinations of outcomes that can be reached, whoever has them."""
    found: set[tuple[tuple[int, ...], ...]] = set()

    def note(state: commit_model.State) -> bool:
        found.add(tuple(sorted(peer.outcome for peer in state.peers)))
        return False

    assert explore(model, STATES_MAX, note).violation is None
    return found


@pytest.mark.parametrize("retry", [False, True])
def test_votes_one_by_one_or_together_allow_the_same(retry: bool) -> None:
    """The shortcut that keeps three peers affordable loses no outcome."""
    together = _outcomes(Data(peers=2, epochs=2, retry=retry))
    one_by_one = _outcomes(Data(peers=2, epochs=2, retry=retry, single_votes=True))
    assert together == one_by_one
    assert len(together) > 5
