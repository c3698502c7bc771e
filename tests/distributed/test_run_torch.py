"""`collectives run` with torch. Skipped without it.

Goal: `env://` works as under torchrun, for our backend and for Gloo, and the store outlives rank 0,
so that a rank that dies in an elastic run can come back.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(120)

HEAD = """
import os, signal, sys
import torch, torch.distributed as dist
import collectives.torch
torch.set_num_threads(1)
def say(text):
    os.write(1, f"rank {os.environ['RANK']} {text}\\n".encode())
"""


def start(
    folder: Path, spawn: Any, body: str, *options: object, arguments: tuple[object, ...] = ()
) -> Any:
    path = folder / "script.py"
    path.write_text(HEAD + body)
    command = ("-m", "collectives.cli.main", "run", "--nproc", "2", *options)
    env = {"COLLECTIVES_COORDINATOR": "", "TMPDIR": str(folder)}
    return spawn("python", *command, path, *arguments, env=env)


def child_processes(parent: int, word: str) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    found = [int(pid) for pid in path.read_text().split()]
    return [pid for pid in found if word in Path(f"/proc/{pid}/cmdline").read_text()]


def test_gloo(tmp_path: Path, spawn: Any) -> None:
    body = """
dist.init_process_group("gloo")
x = torch.ones(3) + dist.get_rank()
dist.all_reduce(x)
say(f"{x.tolist()} {dist.is_torchelastic_launched()}")
dist.destroy_process_group()
"""
    child = start(tmp_path, spawn, body)
    assert child.wait(60) == 0
    for rank in range(2):
        child.wait_for(rf"rank {rank} \[3.0, 3.0, 3.0\] True")


def test_the_store_outlives_rank_0(tmp_path: Path, spawn: Any) -> None:
    body = """
dist.init_process_group("collectives")
x = torch.ones(3)
dist.all_reduce(x)
say(f"{x.tolist()}")
if dist.get_rank() == 0:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        dist.all_reduce(x)
except RuntimeError as error:
    say(type(error).__name__)
store = dist.distributed_c10d._get_default_store()
store.set("who is left", os.environ["RANK"])
say(f"has {store.get('who is left').decode()!r}")
"""
    child = start(tmp_path, spawn, body)
    assert child.wait(60) == 0
    child.wait_for("rank 0 .* was killed by SIGKILL; 1 rank goes on")
    child.wait_for("rank 1 PeerLost")
    child.wait_for("rank 1 has '1'")


def test_the_loss_of_the_store_is_told(tmp_path: Path, spawn: Any) -> None:
    body = """
dist.init_process_group("collectives")
say("is ready")
x = torch.zeros(1)
while not x:  # until both have seen the file
    x = torch.tensor([float(os.path.exists(__file__ + ".go"))])
    dist.all_reduce(x, op=dist.ReduceOp.MIN)
"""
    child = start(tmp_path, spawn, body)
    for rank in range(2):
        child.wait_for(f"rank {rank} is ready", 60)
    (store,) = child_processes(child.pid, "collectives.torch.store")
    os.kill(store, signal.SIGKILL)
    child.wait_for(rf"the store of torch.distributed \(process {store}\) was killed by SIGKILL")
    (tmp_path / "script.py.go").touch()
    assert child.wait(60) == 0
    assert len(re.findall("collectives run:", child.output)) == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_comes_back(tmp_path: Path, spawn: Any, victim: int) -> None:
    body = """
import hashlib, time
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("collectives")
comes_back = os.environ.get("COLLECTIVES_REJOIN") == "1"
model = DistributedDataParallel(torch.nn.Linear(3, 3))
optimizer = torch.optim.Adam(model.parameters())
run = collectives.torch.elastic(model, optimizer, state={"step": 0})
while run.state["step"] < 12:
    if run.state["step"] == 6 and not comes_back:
        while dist.group.WORLD.communicator.pending == 0:
            time.sleep(0.01)
    run.boundary()
    optimizer.zero_grad()
    loss = model(torch.ones(2, 3) + dist.get_rank()).sum()
    if run.state["step"] == 3 and os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    loss.backward()
    optimizer.step()
    run.state["step"] += 1
weights = model.module.weight.detach().numpy()
say(f"has {hashlib.sha256(weights).hexdigest()} of {dist.get_world_size()}")
"""
    child = start(tmp_path, spawn, body, "--restart-dead", arguments=(victim,))
    assert child.wait(60) == 0
    found = [child.wait_for(rf"rank {rank} has (\w+) of 2") for rank in range(2)]
    assert len({match.group(1) for match in found}) == 1
