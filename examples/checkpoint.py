"""Checkpoints that fit another number of ranks.

    torchrun --nproc-per-node 3 examples/checkpoint.py
    collectives run --nproc 3 examples/checkpoint.py

A sharded model and its optimizer are saved by all ranks, each its part: once while all wait, and
once in the background, while training goes on. Then two of the ranks, with a mesh of their own,
load each checkpoint into new ones, as a later run with fewer ranks would, and compare all values.
"""

import copy
import operator
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import collectives.torch

Pair = tuple[torch.nn.Module, torch.optim.Optimizer]


def make(mesh: DeviceMesh, seed: int) -> Pair:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 10))
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(pair: Pair, steps: int) -> None:
    model, optimizer = pair
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 20)).square().mean().backward()
        optimizer.step()


def state(pair: Pair, full: bool = False) -> dict[str, Any]:
    """What belongs into a checkpoint: values by their names. Full: not this rank's part alone."""
    options = StateDictOptions(full_state_dict=full, flatten_optimizer_state_dict=True)
    model, optimizer = get_state_dict(*pair, options=options)
    return {**model, **optimizer}


def main() -> None:
    dist.init_process_group("collectives")
    with tempfile.TemporaryDirectory() as mine:
        folder = [mine]
        dist.broadcast_object_list(folder)  # that of rank 0
        save_and_load(Path(folder[0]))
        dist.barrier()
    dist.destroy_process_group()


def save_and_load(folder: Path) -> None:
    background = dist.new_group()  # what runs in the background has an order of its own
    pair = make(init_device_mesh("cpu", (dist.get_world_size(),)), seed=0)
    train(pair, 3)
    expected = {"waited": copy.deepcopy(state(pair, full=True))}  # training changes some in place
    dcp.save(state(pair), checkpoint_id=folder / "waited")
    train(pair, 3)
    expected["behind"] = copy.deepcopy(state(pair, full=True))
    saving = dcp.async_save(state(pair), checkpoint_id=folder / "behind", process_group=background)
    train(pair, 3)
    saving.result()

    few = DeviceMesh("cpu", [0, 1])  # all ranks make it
    if dist.get_rank() < 2:
        for name, values in expected.items():
            load_and_compare(folder / name, values, few)


def load_and_compare(path: Path, expected: dict[str, Any], mesh: DeviceMesh) -> None:
    pair = make(mesh, seed=1)
    values = state(pair)
    dcp.load(values, checkpoint_id=path, process_group=mesh.get_group())
    names = pair[0].state_dict().keys()
    set_state_dict(
        *pair,
        model_state_dict={name: values[name] for name in names},
        optim_state_dict={name: values[name] for name in values.keys() - names},
    )
    loaded = state(pair, full=True)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        equal = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert equal(loaded[name], value), name
    print(f"[{mesh.get_rank()}] {path.name}: {len(loaded)} equal values")


if __name__ == "__main__":
    main()
