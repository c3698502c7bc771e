"""Training that goes on when a rank dies, and takes it back.

    collectives run --nproc 3 examples/ddp_elastic.py
    collectives run --nproc 3 examples/ddp_elastic.py --victim 0
    collectives run --nproc 3 --restart-dead examples/ddp_elastic.py --victim 0 --wait-for-victim
    torchrun --nproc-per-node 3 examples/ddp_elastic.py

A small recurrent network learns how a text goes on. With `--victim` that rank kills itself in the
middle of a backward, when some gradients are on their way: the others complete the step and train
on. With --restart-dead it is started again and gets the state of the run from them. In the end all
have the same weights, bit for bit. torchrun ends all ranks when one dies: no `--victim` there.
"""

import argparse
import hashlib
import os
import signal
import time

import torch
import torch.distributed as dist
from text import CHARACTERS, batch
from torch.nn.parallel import DistributedDataParallel

import collectives.torch


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(CHARACTERS, 32)
        self.recurrent = torch.nn.GRU(32, 96, batch_first=True)
        self.last = torch.nn.Linear(96, CHARACTERS)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.embedding(characters))
        return self.last(states.flatten(0, 1))


def main(options: argparse.Namespace) -> None:
    dist.init_process_group("collectives")
    torch.manual_seed(0)
    model = DistributedDataParallel(Network(), bucket_cap_mb=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    run = collectives.torch.elastic(model, optimizer, state={"step": 0, "losses": []})
    while (step := run.state["step"]) < options.steps:
        if options.wait_for_victim and step == options.steps // 2:
            wait_for_victim()
        if run.boundary():
            tell(f"goes on with step {step} as one of {dist.get_world_size()}")
        rank, size = dist.get_rank(), dist.get_world_size()
        if (rank, step) == (options.victim, options.at):
            model.module.embedding.weight.register_hook(die)  # the last gradient that is made
        inputs, targets = batch(step, rank, size)
        loss = torch.nn.functional.cross_entropy(model(inputs), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)  # over those that live
        run.state["losses"].append(mean.item())
        run.state["step"] += 1
    first, *_, last = run.state["losses"]
    tell(f"loss {first:.2f} -> {last:.2f}, {identical_replicas(model)} identical replicas")
    assert last < first - 0.5
    dist.destroy_process_group()


def identical_replicas(model: torch.nn.Module) -> int:
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    mine = torch.frombuffer(bytearray(hashlib.sha256(weights).digest()), dtype=torch.uint8)
    digests = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(digests, mine)
    assert all(torch.equal(digest, mine) for digest in digests), "the replicas differ"
    return len(digests)


def die(_: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_victim(limit_s: float = 60) -> None:
    """So short a run would be over before the victim has started again. Others need not wait."""
    until = time.monotonic() + limit_s
    missing = dist.get_world_size() < int(os.environ["WORLD_SIZE"])
    while missing and dist.group.WORLD.communicator.pending == 0 and time.monotonic() < until:
        time.sleep(0.05)


def tell(what: str) -> None:
    print(f"[{os.environ['RANK']}] {what}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--victim", type=int, help="the rank that kills itself")
    parser.add_argument("--at", type=int, default=10, help="the step in which it does")
    parser.add_argument("--wait-for-victim", action="store_true", help="halfway, until it is back")
    main(parser.parse_args())
