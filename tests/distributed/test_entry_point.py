"""The name that torch >= 2.14 finds the backend by, without an import. Skipped without torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from collectives.coordinator.server import CoordinatorServer  # noqa: E402

FINDS = hasattr(dist.Backend, "_ensure_backend_registered")
SCRIPT = """
import sys, torch, torch.distributed as dist
assert "collectives" not in sys.modules
dist.init_process_group("collectives", store=dist.HashStore(), rank=0, world_size=1)
x = torch.ones(2)
dist.all_reduce(x)
print(dist.get_backend(), x.tolist())
dist.destroy_process_group()
"""


def test_the_entry_point_registers_the_backend() -> None:
    (found,) = entry_points(group="torch.distributed.backends", name="collectives")
    registrar = found.load()
    registrar()
    registrar()  # as after an import
    assert "COLLECTIVES" in dist.Backend._plugins


@pytest.mark.skipif(not FINDS, reason="torch >= 2.14 looks for it")
def test_no_import_is_needed(spawn: Any) -> None:
    with CoordinatorServer("127.0.0.1:0") as server:
        environment = {"COLLECTIVES_COORDINATOR": server.url, "OMP_NUM_THREADS": "1"}
        child = spawn("python", "-c", SCRIPT, env=environment)
        assert child.wait() == 0
    assert "collectives [1.0, 1.0]" in child.output
