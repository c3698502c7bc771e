"""Fully sharded data parallel: each rank keeps a part of every parameter.

    torchrun --nproc-per-node 3 examples/fsdp2.py
    collectives run --nproc 3 examples/fsdp2.py

A small transformer learns how a text goes on. `fully_shard` has the parameters of a layer gathered
before it is used, and its gradients averaged and scattered afterwards. Nothing here but the name of
the backend differs from a program for Gloo. Who dies takes its part of the parameters along, so a
run of this kind goes on from a checkpoint: checkpoint.py.
"""

import torch
import torch.distributed as dist
from text import CHARACTERS, batch
from torch.distributed.fsdp import fully_shard

import collectives.torch

STEPS, WIDTH, LENGTH = 30, 64, 48


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters = torch.nn.Embedding(CHARACTERS, WIDTH)
        self.places = torch.nn.Embedding(LENGTH, WIDTH)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True)
            for _ in range(2)
        )
        self.last = torch.nn.Linear(WIDTH, CHARACTERS)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        later = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)
        x = self.characters(characters) + self.places(torch.arange(LENGTH))
        for layer in self.layers:
            x = layer(x, src_mask=later, is_causal=True)
        return self.last(x.flatten(0, 1))


def main() -> None:
    dist.init_process_group("collectives")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same parameters everywhere: each rank keeps its part of them
    model = Transformer()
    whole = sum(p.numel() for p in model.parameters())
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    mine = sum(p.to_local().numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    losses = []
    for step in range(STEPS):
        inputs, targets = batch(step, rank, size, length=LENGTH)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        losses.append(mean.item())
    assert losses[-1] < losses[0] - 1, "nothing was learned"
    print(f"[{rank}] {mine} of {whole} parameters, loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
