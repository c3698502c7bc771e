"""Goal: distance turns the choice of algorithms, on real sockets: peers that are 40 ms apart
measure it when they join, all find it in the epoch's record, and call by another algorithm than
neighbours.

Method: four peers and a coordinator in network namespaces, which the emulator in tests/wan
connects, first side by side, then with a delay. It needs root, and is skipped with the reason
without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_choice import KINDS, Network, path_of
from test_choice import Path as Cost

TESTS = Path(__file__).resolve().parents[1]
PEERS = 4
DELAY_MS = 40  # one way
BYTES = 2 << 20  # side by side the ring wins for any latency below 0.7 ms
LIMIT_S = 25

PEER = """
import json, sys
import numpy as np
import collectives as cc

url, address, group, size, length = sys.argv[1:]
with cc.connect(url, group=group, size=int(size), bind=address, insecure=True) as comm:
    record = comm._current()
    work = comm.all_reduce(np.full(int(length) // 4, comm.rank, np.float32), async_op=True)
    assert (work.wait() == sum(range(comm.size))).all()
    network = record.latency_ns, record.bytes_per_s
    print(json.dumps([*network, work.info.algorithm, work.info.contributors]), flush=True)
    comm.barrier()
"""


def why_not() -> str | None:
    """What is missing for an emulated network."""
    if sys.version_info < (3, 11):
        return "tests/wan needs Python 3.11"
    if os.geteuid() != 0:
        return "tests/wan needs root"
    if not os.path.exists("/dev/net/tun"):
        return "tests/wan needs /dev/net/tun"
    missing = [name for name in ("gcc", "ip") if shutil.which(name) is None]
    return f"tests/wan needs {' and '.join(missing)}" if missing else None


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The emulator's module, once it is compiled."""
    if reason := why_not():
        pytest.skip(reason)
    emulator = tmp_path_factory.mktemp("wan") / "wan-emulator"
    command = ["gcc", "-std=c11", "-O1", "-o", emulator, TESTS / "wan" / "wan.c", "-lm"]
    subprocess.run(command, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS / "wan")
        patch.setenv("WAN_EMULATOR", str(emulator))
        import wan

        yield wan


def start(net: Any, host: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return net.popen(host, command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def meet(net: Any, url: str, group: str) -> tuple[Network, str]:
    """Lets the peers join and call: the network in their record, and the algorithm."""
    peers = [
        start(net, host, "-c", PEER, url, net.address(host), group, PEERS, BYTES)
        for host in net.hosts
    ]
    found = [json.loads(peer.communicate(timeout=LIMIT_S)[0]) for peer in peers]
    assert [peer.returncode for peer in peers] == [0] * PEERS
    latency_ns, bytes_per_s, algorithm, _ = found[0]
    assert found == [[latency_ns, bytes_per_s, algorithm, PEERS]] * PEERS, "peers differ"
    print(f"{group}: {latency_ns} ns, {bytes_per_s} bytes/s, {algorithm}")
    return Network(latency_ns / 1e9, bytes_per_s), algorithm


def path(algorithm: str) -> Cost:
    return path_of("all_reduce", algorithm, PEERS, BYTES)


def is_cheapest(algorithm: str, network: Network) -> bool:
    costs = {name: path(name).seconds(network) for name in KINDS["all_reduce"]}
    return costs[algorithm] <= 1.1 * min(costs.values())


def test_distance_turns_the_choice(wan: Any, tmp_path: Path) -> None:
    topology = tmp_path / "four.toml"
    topology.write_text(f"hosts = {PEERS}\n")
    with wan.Wan(topology) as net:
        listen = f"{net.address('h1')}:0"
        coordinator = start(
            *(net, "h1", "-m", "collectives.cli.main", "coordinator", "--insecure"),
            *("--listen", listen),
        )
        assert coordinator.stdout is not None
        with coordinator.stdout:
            ready, url = coordinator.stdout.readline().split()
            assert ready == "ready"
            near, near_algorithm = meet(net, url, "near")
            net.link("*", "*", delay_ms=DELAY_MS)
            far, far_algorithm = meet(net, url, "far")
    assert near.latency < 2e-3
    assert DELAY_MS <= far.latency * 1e3 <= 4 * DELAY_MS
    assert near_algorithm == "ring"
    assert far_algorithm != "ring"
    assert path(far_algorithm).steps < path("ring").steps
    assert is_cheapest(near_algorithm, near)
    assert is_cheapest(far_algorithm, far)
