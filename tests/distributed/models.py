"""Models that learn alone and together, for tests: ranks that train on parts of a batch have to
come to what one process comes to with the whole batch.

All is in float64, so that only what is wrong differs by more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

STEPS = 4
ROWS = 4  # of each rank's part of a batch
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def perceptron(width: int = 12, layers: int = 4) -> Any:
    """A model, the same wherever it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts: list[Any] = []
        for _ in range(layers):
            parts += [nn.Linear(width, width), nn.Tanh()]
        return nn.Sequential(*parts).double()


def part(step: int, rank: int, rows: int = ROWS, width: int = 12) -> Any:
    """The inputs of one rank in one step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def whole(step: int, size: int) -> Any:
    """The inputs of all ranks in one step."""
    return torch.cat([part(step, rank) for rank in range(size)])


def sgd(parameters: Iterator[Any]) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def train(model: Any, inputs: Callable[[int], Any], make: Any = sgd, steps: int = STEPS) -> Any:
    """Trains in place on these batches; returns the optimizer."""
    optimizer = make(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
    return optimizer


def alone(size: int, make: Any = sgd, model: Any = None, steps: int = STEPS) -> list[Any]:
    """What one process learns from the whole batches of `size` ranks: its parameters."""
    model = perceptron() if model is None else model
    train(model, lambda step: whole(step, size), make, steps)
    return values(model)


def values(model: Any) -> list[Any]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def check(found: list[Any], expected: list[Any], **tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or CLOSE))
