"""Elastic training: ranks die in the middle of a step, and the others go on. Skipped without torch.

Goal: whoever dies, and wherever in a step, the survivors complete that step with gradients that are
the average over those that contributed, the same bits on all, and train on as a smaller group.
Method: the victim kills itself at a point of the step that is chosen, rank 0 as well as the last
one; gradients are whole numbers, so that averages are known exactly; replicas are compared by all
their bits.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Worker, results  # noqa: E402
from ranks import Ranks  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import collectives.torch as ct  # noqa: E402

pytestmark = pytest.mark.timeout(120)


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


# ---- exact gradients -----------------------------------------------------------------------------

LAYERS = 4
FACTORS = [12.0, 60.0, 36.0, 84.0]  # of ranks; any sum of them is divided by 2, 3 or 4 exactly


class Weighted(torch.nn.Module):
    """The gradient of each weight is what the factor says. The last layer's comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            [torch.zeros(5, dtype=torch.float64) for _ in range(LAYERS)]
        )

    def forward(self, factor: float) -> Any:
        return sum((w * factor * (i + 1)).sum() for i, w in enumerate(self.weights))


def a_step_with_a_death(worker: Worker, victim: int, layer: int, view: bool) -> dict[str, Any]:
    """A call: two whole steps, then one in which the victim dies at its gradient of this layer,
    when the others of its gradients have been reduced by all."""
    rank = dist.get_rank()
    model = DistributedDataParallel(Weighted(), bucket_cap_mb=1e-6, gradient_as_bucket_view=view)
    run = ct.elastic(model, state={"step": 0})

    def last_words(_: Any) -> None:
        if run.state["step"] == 2:
            for work in list(dist.group.WORLD._open):
                work.wait()
            die()

    if rank == victim:
        model.module.weights[layer].register_hook(last_words)
    gradients = []
    for step in range(4):
        run.state["step"] = step
        if step == 3:
            assert len(run.boundary().left) == 1
        else:
            assert not run.boundary()
        model.zero_grad()
        model(FACTORS[rank]).backward()
        gradients.append([w.grad.tolist() for w in model.module.weights])
    return {
        "gradients": gradients,
        "rank": dist.get_rank(),
        "size": dist.get_world_size(),
        "ranks": dist.get_process_group_ranks(None),
        "source": spread(dist.get_world_size() - 1),
    }


def spread(source: int) -> int:
    x = torch.tensor([dist.get_rank()])
    dist.broadcast(x, src=source)
    return int(x)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("victim", [0, 3])
def test_gradients_are_the_average_of_those_that_contributed(victim: int, view: bool) -> None:
    everyone, layer = range(4), 1
    others = [rank for rank in everyone if rank != victim]
    with Ranks(4) as ranks:
        calls = ranks.start(a_step_with_a_death, victim, layer, view)
        found = results([calls[rank] for rank in others])

    def average(of: list[int], i: int) -> list[float]:
        return [sum(FACTORS[rank] for rank in of) * (i + 1) / len(of)] * 5

    def averages(of: list[list[int]]) -> list[list[float]]:
        return [average(of[i], i) for i in range(LAYERS)]

    all_four, three = list(everyone), others
    mixed = [three if i <= layer else all_four for i in range(LAYERS)]
    want = [averages(of) for of in ([all_four] * 4, [all_four] * 4, mixed, [three] * 4)]
    for rank, one in enumerate(found):
        assert one["gradients"] == want
        assert (one["rank"], one["size"], one["source"]) == (rank, 3, 2)
        assert one["ranks"] == [0, 1, 2]


# ---- training ------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """With buffers, if `norm`; with a layer that not every rank uses in each step, if `unused`."""

    def __init__(self, norm: bool = False, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
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


def train(worker: Worker, until: int, deaths: dict[int, tuple[int, str]], micro: int = 1) -> Any:
    """A call: trains until this step. `deaths`: at a step, the rank of that time and the place:
    see `_plan`, or "end" (of the step)."""
    kept = worker.kept
    model, run, losses = kept["model"], kept["run"], []
    sizes = kept.setdefault("sizes", [])
    while (step := run.state["step"]) < until:
        run.boundary()
        if run.state["step"] != step:
            continue  # the state has come
        sizes.append(dist.get_world_size())
        rank, place = deaths.get(step, (-1, ""))
        handles = _plan(worker, model, place) if rank == dist.get_rank() else []
        kept["optimizer"].zero_grad()
        for part in range(micro):
            inputs, targets = batch(step * micro + part)
            used = (step + dist.get_rank()) % 2 == 0
            with model.no_sync() if part < micro - 1 else nullcontext():
                loss = torch.nn.functional.cross_entropy(
                    model(inputs, used) if model.module.sometimes else model(inputs), targets
                )
                loss.backward()
        for handle in handles:
            handle.remove()
        kept["optimizer"].step()
        kept["scheduler"].step()
        losses.append(float(loss.detach()))
        run.state["step"] += 1
        if rank == dist.get_rank() and place == "end":
            die()
        if rank >= 0:
            kept["survived at"] = time.monotonic()
    model.eval()
    with torch.no_grad():
        model(batch(0)[0])  # which gives all the same buffers
    model.train()
    return bits(model, kept["optimizer"], kept["scheduler"], run.state)


def _plan(worker: Worker, model: Any, place: str) -> list[Any]:
    """Lets this process die at a place: "forward" of DDP, before anything, or "middle" of the
    forward; "broadcast n"; a parameter's name, at its gradient; or "halt": wait to be killed, at
    the last gradient. It lives on if the handles are removed before it comes there."""
    if place == "forward":
        return [model.register_forward_pre_hook(lambda *_: die(), prepend=True)]
    if place == "middle":
        return [model.module.first.register_forward_pre_hook(lambda *_: die())]
    if place == "end":
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
SCHEDULES = [
    {0: (0, "last.bias"), 1: (4, "forward"), 3: (0, "middle"), 5: (2, "first.weight")},
    {0: (5, "first.weight"), 1: (0, "forward"), 2: (3, "end"), 4: (0, "last.weight")},
]
"""Rank 0 and the last one; in the iteration that DDP learns from, in the next one, and later."""


@pytest.mark.parametrize("schedule", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_others_train_on_alike(kind: str, schedule: int) -> None:
    net, ddp = KINDS[kind]
    with Ranks(6) as ranks:
        ranks.each(prepare, net, **ddp)
        found = train_through(ranks, SCHEDULES[schedule])
    assert len(found) == 2
    assert len(set(found)) == 1


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["buffers", "static"])
def test_rank_0_dies_in_a_broadcast_of_the_forward(kind: str, number: int) -> None:
    """The second forward broadcasts the order of gradients, then buffers of two dtypes; with a
    static graph it is the third one that does the former."""
    net, ddp = KINDS[kind]
    with Ranks(3) as ranks:
        ranks.each(prepare, net, **ddp)
        found = train_through(ranks, {1: (0, f"broadcast {number}")})
    assert len(found) == 2
    assert len(set(found)) == 1


@pytest.mark.parametrize("victim", [0, 2])
def test_gradients_that_are_accumulated(victim: int) -> None:
    with Ranks(3) as ranks:
        ranks.each(prepare, {"norm": True})
        found = train_through(ranks, {1: (victim, "last.bias"), 4: (0, "forward")}, micro=3)
    assert len(set(found)) == 1


def survived_at(worker: Worker) -> float:
    return worker.kept["survived at"]


@pytest.mark.parametrize("victim", [0, 2])
def test_the_step_is_complete_soon_after_the_kill(victim: int) -> None:
    """Killed while the others wait for it in the middle of backward."""
    with Ranks(3) as ranks:
        ranks.each(prepare, {"norm": True})
        calls = ranks.start(train, 3, {2: (victim, "halt")})
        ranks.peers[victim].wait_note()
        killed_at = ranks.peers[victim].kill()
        others = [rank for rank in range(3) if rank != victim]
        results([calls[rank] for rank in others])
        took = max(ranks.peers[rank].call(survived_at) for rank in others) - killed_at
    print(f"from the kill to the survivors' completed step: {took * 1000:.0f} ms")
    assert took < 1.0


def sizes(worker: Worker) -> list[int]:
    return worker.kept["sizes"]


def test_the_size_follows_at_the_next_boundary() -> None:
    with Ranks(3) as ranks:
        ranks.each(prepare, {})
        train_through(ranks, {2: (0, "last.bias"), 4: (0, "first.weight")})
        assert ranks.peers[2].call(sizes) == [3, 3, 3, 2, 2, 1, 1, 1]


# ---- misuse --------------------------------------------------------------------------------------


def misuse(worker: Worker) -> list[str]:
    """A call: what is said to those who call it wrongly."""
    said = []

    def refused(kind: type[Exception], *parts: Any) -> None:
        with pytest.raises(kind) as error:
            ct.elastic(*parts)
        said.append(str(error.value))

    hooked = DistributedDataParallel(Net())
    hooked.register_comm_hook(None, hook)
    refused(ValueError, hooked)
    small = DistributedDataParallel(Net(), process_group=dist.new_group([0, 1]))
    refused(ValueError, small)
    refused(TypeError, torch.zeros(3))
    assert not dist.group.WORLD.elastic
    ct.elastic(DistributedDataParallel(Net()))
    refused(RuntimeError)
    dist.destroy_process_group()
    refused(TypeError)
    return said


def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP looks at annotations
    raise AssertionError("never called")


def test_misuse_is_refused() -> None:
    words = ["of its own", "default group", "state_dict", "already", "init_process_group"]
    with Ranks(2) as ranks:
        for said in ranks.each(misuse):
            for word, text in zip(words, said, strict=True):
                assert word in text
