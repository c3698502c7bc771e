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
ranks close up. A process that was started in its place (COLLECTIVES_REJOIN=1) is a group of its own
until it calls `elastic`, so that whatever it does before needs nobody; `elastic` takes it to a
boundary of the others, where it gets the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import collectives as cc
from collectives.torch.group import ProcessGroup
from collectives.torch.rendezvous import Address
from collectives.torch.replicas import Replica
from collectives.torch.state import share

# By name: to import them takes seconds.
_SHARDED = {"FullyShardedDataParallel", "FSDPModule", "DTensor", "ZeroRedundancyOptimizer"}


class Run:
    """An elastic run; made by `elastic`.

    Attributes:
        state: what else belongs to the state of the run, as it was given to `elastic`.
    """

    def __init__(self, group: ProcessGroup, parts: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.state = state
        self._group, self._parts = group, parts
        self._replicas = [Replica(model, group) for model in _ddp_models(parts)]
        self._entered: cc.Change | None = None  # by the boundary at which this process is
        group.elastic = True
        if group.run is not None:
            self._enter(group.run)

    def _enter(self, run: Address) -> None:
        group, alone = self._group, self._group.communicator
        group._use(run.connect("joiner", group._timeout, existing=True))
        alone.close()
        comm = group.communicator
        try:
            self._share(None)
        except BaseException:
            comm.close()  # the others need not wait for who does not train with them
            raise
        self._entered = cc.Change(comm.epoch, (comm.members[comm.rank],), ())

    def boundary(self, timeout: float | None = None) -> cc.Change:
        """Between two steps: lets in who waits, and closes the ranks of the dead. All ranks call
        it. Where somebody came in, parameters have no gradients afterwards.

        Args:
            timeout: its deadline in seconds; by default the group's.

        Returns: who came and who left. The first one of a process that has just come is the one
            that it came by.

        Raises: what `Communicator.admit` raises. CollectivesError: who came could not be given the
            state, and why.
        """
        if self._entered is not None:
            entered, self._entered = self._entered, None
            return entered
        group = self._group
        limit = group._timeout.total_seconds() if timeout is None else timeout
        change = group.communicator.admit(timeout=limit)
        if change:
            group._use(group.communicator)
        if change.joined:
            self._share(self._pack)
        return change

    def _share(self, state: Callable[[], Any] | None) -> None:
        """Gives the state to those that have just come, of whom this process may be one."""
        group = self._group
        received = share(group.communicator, state, group._timeout.total_seconds())
        if state is None:
            self._unpack(received)
        for part in self._parts:
            if isinstance(part, torch.nn.Module):
                part.zero_grad(set_to_none=True)  # as with those that have just come
        for replica in self._replicas:
            replica.renew()

    def _pack(self) -> Any:
        return self._kinds(), [part.state_dict() for part in self._parts], self.state

    def _kinds(self) -> list[str]:
        return [type(part).__name__ for part in self._parts]

    def _unpack(self, received: Any) -> None:
        kinds, parts, state = received
        if kinds != self._kinds():
            raise ValueError(
                f"elastic was called with {self._kinds()} here, and with {kinds} in the run to join"
            )
        for part, its_state in zip(self._parts, parts, strict=True):
            part.load_state_dict(its_state)
        self.state.clear()
        self.state.update(state)


def elastic(*parts: Any, state: dict[str, Any] | None = None) -> Run:
    """Makes training with the default group elastic. All ranks call it, once, with the same: when
    the models are in DDP and the optimizers are made, right before the loop of steps. A process
    that joins a run that goes on waits here for its next boundary, and has the state afterwards.

    Args:
        parts: whatever has a state: modules, optimizers, schedulers, samplers; anything with
            `state_dict` and `load_state_dict`. Gradients of DDP models, the modules' own ones
            included, are averaged over the ranks that contribute.
        state: what else belongs to the state of the run; anything that can be pickled.

    Raises:
        TypeError: the default group is not one of this library, or a part has no state.
        ValueError: a DDP model is of another group, or has a communication hook of its own; a part
            is sharded; or the run to join has other parts.
        RuntimeError: the group is elastic already.
        CollectivesError: this process was to join a run, and could not.
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
        if _is_sharded(part):
            raise ValueError(
                f"this {type(part).__name__} is sharded, so what a dead rank has of it is lost: it "
                "cannot be elastic; use checkpoints"
            )
    return Run(group, parts, {} if state is None else state)


def _ddp_models(parts: tuple[Any, ...]) -> list[DistributedDataParallel]:
    modules = [m for part in parts if isinstance(part, torch.nn.Module) for m in part.modules()]
    return [m for m in dict.fromkeys(modules) if isinstance(m, DistributedDataParallel)]


def _is_sharded(part: Any) -> bool:
    things = [part]
    if isinstance(part, torch.nn.Module):
        things += [*part.modules(), *part.parameters()]
    return any(kind.__name__ in _SHARDED for thing in things for kind in type(thing).__mro__)
