"""A rank of the torch benchmark: collectives and Gloo in one process, measured in turns."""

from __future__ import annotations

import datetime
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import collectives.torch  # noqa: F401 (registers the backend)
from collectives.cli._launch import Message, Parent, work

BACKENDS = ("collectives", "gloo")
TIMEOUT = datetime.timedelta(seconds=120)
VOCABULARY, LENGTH, BATCH = 256, 32, 8  # of the transformer that DDP trains


class Rank:
    def __init__(self, spec: Message) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        warnings.simplefilter("ignore")
        dist.init_process_group(
            "collectives",
            init_method=f"file://{spec['store']}",
            rank=spec["rank"],
            world_size=spec["ranks"],
            timeout=TIMEOUT,
        )
        gloo = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.groups: dict[str, Any] = {"collectives": dist.group.WORLD, "gloo": gloo}

    def ask(self, what: str, **arguments: Any) -> Any:
        return getattr(self, what)(**arguments)

    def _time(self, group: str, run: Callable[[], Any], count: int) -> float:
        """Microseconds of a call, together with whatever the slowest rank makes it wait for."""
        dist.barrier(self.groups[group])
        begin = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - begin) / count * 1e6

    def all_reduce(self, size_bytes: int, count: int, order: Sequence[str]) -> dict[str, float]:
        """In place, waited for, each backend in its turn."""
        found = {}
        for name in order:
            x = torch.zeros(size_bytes // 4)
            x[0] = 1
            dist.all_reduce(x, group=self.groups[name])
            if x[0] != dist.get_world_size() or x[1:].any():
                raise AssertionError(f"{name}: a wrong sum")
            x.zero_()
            run = self._of(name, x)
            self._time(name, run, max(1, count // 10))
            found[name] = self._time(name, run, count)
        return found

    def _of(self, name: str, x: Any) -> Callable[[], Any]:
        group = self.groups[name]
        return lambda: dist.all_reduce(x, group=group)

    def calls(self, size_bytes: int, count: int, order: Sequence[str]) -> dict[str, float]:
        """The same all_reduce through torch, through torch as a work, and through the library's own
        API with numpy, in place."""
        x, comm = torch.zeros(size_bytes // 4), self.groups["collectives"].communicator
        array = np.zeros(size_bytes // 4, np.float32)
        runs = {
            "torch": lambda: dist.all_reduce(x),
            "torch, async": lambda: dist.all_reduce(x, async_op=True).wait(),
            "numpy": lambda: comm.all_reduce(array, out=array),
            "gloo": self._of("gloo", x),
        }
        found = {}
        for name in order:
            self._time("collectives", runs[name], max(1, count // 10))
            found[name] = self._time("collectives", runs[name], count)
        return found

    def train(self, steps: int, order: Sequence[str]) -> dict[str, float]:
        """Steps of DDP on a small transformer."""
        found = {}
        for name in order:
            torch.manual_seed(1)
            model = DistributedDataParallel(Transformer(), process_group=self.groups[name])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))

            def step(model: Any = model, optimizer: Any = optimizer, tokens: Any = tokens) -> None:
                optimizer.zero_grad()
                logits = model(tokens[:, :-1])
                targets = tokens[:, 1:].reshape(-1)
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
                optimizer.step()

            self._time(name, step, 3)  # DDP settles its buckets
            found[name] = self._time(name, step, steps)
        return found


class Transformer(torch.nn.Module):
    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, layers)
        self.head = torch.nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.body(self.embedding(tokens)))


def main(parent: Parent, spec: Message) -> None:
    rank = Rank(spec)
    parent.send(ready=True)
    while (question := parent.receive()).get("what") != "end":
        parent.send(answer=rank.ask(**question))
    dist.destroy_process_group()
    parent.send(answer=None)


if __name__ == "__main__":
    work(main)
