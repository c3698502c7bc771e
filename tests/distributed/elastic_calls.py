"""Calls and models for tests of elastic training: what ranks train, and where they die."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cluster import Worker, results
from ranks import Ranks
from torch.nn.parallel import DistributedDataParallel

import collectives.torch as ct


def die(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bits(*values: Any) -> bytes:
    """All bits of tensors, modules and optimizers."""
    found = []
    for value in values:
        if hasattr(value, "state_dict"):
            value = value.state_dict()
        if isinstance(value, dict):
            found += [repr(k).encode() + bits(v) for k, v in value.items()]
        elif isinstance(value, (list, tuple)):
            found.append(bits(*value))
        elif isinstance(value, torch.Tensor):
            found.append(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.append(repr(value).encode())
    return b"|".join(found)


class Net(torch.nn.Module):
    """With buffers, if `norm`; with a layer that not every rank uses in each step, if `unused`."""

    def __init__(self, norm: bool = False, unused: bool = False, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(6, 16)
        self.norm = torch.nn.BatchNorm1d(16) if norm else torch.nn.Identity()
        self.sometimes = torch.nn.Linear(16, 16) if unused else None
        self.last = torch.nn.Linear(16, 3)

    def forward(self, x: Any, use: bool = True) -> Any:
        x = self.norm(self.first(x)).relu()
        if self.sometimes is not None and use:
            x = self.sometimes(x)
        return self.last(x)


def batch(step: int) -> tuple[Any, Any]:
    """This rank's part of it."""
    torch.manual_seed(1000 * step + dist.get_rank())
    return torch.randn(8, 6), torch.randint(3, (8,))


def prepare(worker: Worker, net: dict[str, Any], **ddp: Any) -> None:
    """A call: a model, an optimizer and an elastic run."""
    model = DistributedDataParallel(Net(**net), bucket_cap_mb=1e-4, **ddp)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    run = ct.elastic(model, optimizer, scheduler, state={"step": 0})
    worker.kept.update(model=model, optimizer=optimizer, scheduler=scheduler, run=run)


def train(
    worker: Worker,
    until: int,
    deaths: dict[int, tuple[int, str]],
    micro: int = 1,
    joins: tuple[int, int] = (-1, 0),
    evaluate: bool = False,
    idle_after: int = 100,
) -> bytes:
    """A call: trains until this step; returns the bits of all that must be equal then.

    `deaths`: at a step, the rank of that time and the place: see `_plan`, or "boundary"
    (instead of that before it) or "end" (of the step).
    `joins`: before this step it waits until so many wait to come in. `micro`: batches in a step.
    `evaluate`: after each step. `idle_after`: when no rank uses the layer that not all use; zeros
    stand for its gradients then.
    """
    kept = worker.kept
    model, run = kept["model"], kept["run"]
    sizes = kept.setdefault("sizes", [])
    while (step := run.state["step"]) < until:
        if step == joins[0]:
            wait_for_joiners(worker, joins[1])
        rank, place = deaths.get(step, (-1, ""))
        if rank == dist.get_rank() and place == "boundary":
            die()
        kept["change"] = run.boundary() or kept.get("change")
        sizes.append(dist.get_world_size())
        handles = _plan(worker, model, place) if rank == dist.get_rank() else []
        kept["optimizer"].zero_grad(set_to_none=step < idle_after)
        for part in range(micro):
            inputs, targets = batch(step * micro + part)
            used = (step + dist.get_rank()) % 2 == 0 and step < idle_after
            with model.no_sync() if part < micro - 1 else nullcontext():
                loss = torch.nn.functional.cross_entropy(
                    model(inputs, used) if model.module.sometimes else model(inputs), targets
                )
                loss.backward()
        for handle in handles:
            handle.remove()
        kept["optimizer"].step()
        kept["scheduler"].step()
        run.state["step"] += 1
        if rank == dist.get_rank() and place == "end":
            die()
        if rank >= 0:
            kept["survived at"] = time.monotonic()
        if evaluate:
            _evaluate(model)
    _evaluate(model)  # which gives all the same buffers
    return bits(model, kept["optimizer"], kept["scheduler"], run.state)


def _evaluate(model: Any) -> None:
    model.eval()
    with torch.no_grad():
        model(batch(0)[0])
    model.train()


def wait_for_joiners(worker: Worker, count: int) -> None:
    worker.note("they may come")
    while dist.group.WORLD.communicator.pending < count:
        time.sleep(0.002)
    worker.note("they wait")


def _plan(worker: Worker, model: Any, place: str) -> list[Any]:
    """Lets this process die at a place: "forward" of DDP, before anything, or "middle" of the
    forward; "broadcast n"; a parameter's name, at its gradient; or "halt": wait to be killed, at
    the last gradient. It lives on if the handles are removed before it comes there."""
    if place == "forward":
        return [model.register_forward_pre_hook(lambda *_: die(), prepend=True)]
    if place == "middle":
        return [model.module.first.register_forward_pre_hook(lambda *_: die())]
    if place in ("boundary", "end"):
        return []
    if place == "halt":

        def halt(_: Any) -> None:
            worker.note("here")
            signal.pause()

        return [model.module.first.weight.register_hook(halt)]
    if place.startswith("broadcast"):
        _die_in_broadcast(int(place.split()[1]))
        return []
    return [model.module.get_parameter(place).register_hook(die)]


def _die_in_broadcast(number: int) -> None:
    """Lets this process die in the broadcast with this number from now on."""
    group, left = dist.group.WORLD, iter(range(number, -1, -1))
    post = group.broadcast

    def broadcast(*arguments: Any) -> Any:
        work = post(*arguments)
        if next(left) == 0:
            die()
        return work

    group.broadcast = broadcast


def train_through(ranks: Ranks, deaths: dict[int, tuple[int, str]], **options: Any) -> list[Any]:
    """Lets all train eight steps, in which these ranks die; what `train` returned to the others."""
    calls = ranks.start(train, 8, deaths, **options)
    gone, left = [], list(range(len(calls)))
    for step in sorted(deaths):
        gone.append(left.pop(deaths[step][0]))
    found = results([calls[rank] for rank in left])
    for rank in gone:
        with pytest.raises(EOFError):
            calls[rank].outcome()
    return found


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "buffers": ({"norm": True}, {}),
    "unused": ({"norm": True, "unused": True}, {"find_unused_parameters": True}),
    "static": ({"norm": True}, {"static_graph": True}),
    "view": ({}, {"gradient_as_bucket_view": True}),
}
