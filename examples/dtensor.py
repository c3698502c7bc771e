"""Tensor parallelism: the matrices of a network are spread over the ranks.

    torchrun --nproc-per-node 3 examples/dtensor.py
    collectives run --nproc 3 examples/dtensor.py

Each rank has some of the hidden units: rows of the first matrix and columns of the second, as torch
stores them. What they yield is summed by one `all_reduce` in forward. Each rank trains the same
network whole, too, and compares.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import collectives.torch

STEPS = 20


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 96), torch.nn.GELU(), torch.nn.Linear(96, 8))


def train(model: torch.nn.Module) -> torch.Tensor:
    """Learns the sums of four numbers each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for step in range(STEPS):
        random = torch.Generator().manual_seed(step)
        inputs = torch.randn(64, 32, generator=random)  # the same on all ranks
        loss = torch.nn.functional.mse_loss(model(inputs), inputs.unflatten(1, (8, 4)).sum(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def main() -> None:
    dist.init_process_group("collectives")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    spread = parallelize_module(network(), mesh, plan)
    whole = network()

    losses = train(spread)
    torch.testing.assert_close(losses, train(whole))  # sums of another order: close, not equal
    for ours, theirs in zip(spread.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs)
    assert losses[-1] < losses[0] / 2, "nothing was learned"
    parts = [tuple(parameter.to_local().shape) for parameter in spread.parameters()]
    print(
        f"[{dist.get_rank()}] has {parts}, loss {losses[0]:.2f} -> {losses[-1]:.2f} "
        "as in one process"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
