"""Breadth-first search through every state that a small model can reach.

A model hands out a first state and, for a state, all steps that may come next; a step ends in
another state or in a `Violation`, a sentence that says which promise was broken. The search visits
every reachable state once and returns the shortest trace to the first violation, so a broken rule
is shown by the smallest interleaving that breaks it. There is no sampling and no seed: the answer
is a proof for the bounds that the model was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Violation(str):
    """A promise that a step breaks, in words."""


class Model(Protocol[S]):
    """What can be explored."""

    def first(self) -> S:
        """The state in which everything starts."""

    def steps(self, state: S) -> Iterable[tuple[str, S | Violation]]:
        """Every step that is possible in `state`: what happens and where it leads."""

    def key(self, state: S) -> Hashable:
        """Equal for states that differ in names alone. One of them is explored."""


@dataclass(frozen=True)
class Verdict:
    """What a search found: `violation` is None if every reachable state keeps every promise."""

    states: int
    violation: Violation | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        if self.violation is None:
            return f"safe, {self.states} states, all interleavings"
        return f"VIOLATION after {self.states} states: {self.violation}\n  " + "\n  ".join(
            self.trace
        )


def explore(
    model: Model[S], states_max: int = 50_000_000, goal: Callable[[S], bool] | None = None
) -> Verdict:
    """Visits every reachable state. With a `goal` it also stops at a state in which that holds, as
    at a violation: so a test can show that the model gets where it should.

    Raises:
        RuntimeError: more than `states_max` states are reachable; the bounds are too large.
    """
    first = model.first()
    came_from: dict[Hashable, tuple[Hashable, str] | None] = {model.key(first): None}
    queue = deque([first])

    def trace(key: Hashable, last_step: str) -> tuple[str, ...]:
        steps = [last_step]
        while (before := came_from[key]) is not None:
            key, step = before
            steps.append(step)
        return tuple(reversed(steps))

    while queue:
        state = queue.popleft()
        key = model.key(state)
        if goal is not None and goal(state):
            return Verdict(len(came_from), Violation("the goal is reached"), trace(key, "goal"))
        for step, after in model.steps(state):
            if isinstance(after, Violation):
                return Verdict(len(came_from), after, trace(key, step))
            after_key = model.key(after)
            if after_key not in came_from:
                came_from[after_key] = (key, step)
                queue.append(after)
        if len(came_from) > states_max:
            raise RuntimeError(f"more than {states_max} states: choose smaller bounds")
    return Verdict(len(came_from), None, ())
