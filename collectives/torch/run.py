"""Elastic training: a run whose ranks die and come back while it goes on.

    run = collectives.torch.elastic(model, optimizer, scheduler, state={"step": 0})
    while run.state["step"] < steps:
        run.boundary()
        inputs, targets = batch(run.state["step"], dist.get_rank(), dist.get_world_size())
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
        run.state["step"] += 1

When a rank dies, the step that it died in is completed by the others. At the next boundary the
ranks close up.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import collectives as cc
from collectives.torch.group import ProcessGroup
from collectives.torch.replicas import Replica


class Run:
    """An elastic run; made by `elastic`.

    Attributes:
        state: what else belongs to the state of the run: the program's own.
    """

    def __init__(self, group: ProcessGroup, parts: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.state = state
        self._group, self._parts = group, parts
        self._replicas = [Replica(model, group) for model in _ddp_models(parts)]
        group.elastic = True

    def boundary(self, timeout: float | None = None) -> cc.Change:
        """Between two steps: closes the ranks of the dead. All ranks call it.

        Args:
            timeout: its deadline in seconds; by default the group's.

        Raises: what `Communicator.admit` raises.
        """
        group = self._group
        limit = group._timeout.total_seconds() if timeout is None else timeout
        change = group.communicator.admit(timeout=limit)
        group._use(group.communicator)
        return change


def elastic(*parts: Any, state: dict[str, Any] | None = None) -> Run:
    """Makes training with the default group elastic. All ranks call it, once, with the same: when
    the models are in DDP and the optimizers are made, and before the first step.

    Args:
        parts: whatever has a state: modules, optimizers, schedulers, samplers; anything with
            `state_dict` and `load_state_dict`. Gradients of DDP models, the modules' own ones
            included, are averaged over the ranks that contribute.
        state: what else belongs to the state of the run; anything that can be pickled.

    Raises:
        TypeError: the default group is not one of this library, or a part has no state.
        ValueError: a DDP model is of another group, or has a communication hook of its own.
        RuntimeError: the group is elastic already.
    """
    group = dist.group.WORLD
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            'elastic needs a default group of this library: init_process_group("collectives")'
        )
    if group.elastic:
        raise RuntimeError("the default group is elastic already: elastic was called before")
    for part in parts:
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"a {type(part).__name__} has no state_dict and load_state_dict: put it into state="
            )
    return Run(group, parts, {} if state is None else state)


def _ddp_models(parts: tuple[Any, ...]) -> list[DistributedDataParallel]:
    modules = [m for part in parts if isinstance(part, torch.nn.Module) for m in part.modules()]
    return [m for m in dict.fromkeys(modules) if isinstance(m, DistributedDataParallel)]
