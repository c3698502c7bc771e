"""A smoke test for sanitizers, run as a program: several peers as threads of one process, so that
one sanitizer sees all of the core. Prints one line and exits 0 if all went well."""

from __future__ import annotations

import sys
import threading
import traceback

import numpy as np

import collectives as cc
from collectives.coordinator.server import CoordinatorServer

PEERS = 3
ROUNDS = 20


def peer(url: str, failures: list[str]) -> None:
    try:
        with cc.connect(url, size=PEERS, segment_bytes=4096, streams=2) as comm:
            work = []
            for i in range(ROUNDS):
                x = np.full(1 + 3000 * (i % 4), comm.rank + 1.0, np.float32)
                work.append((comm.all_reduce(x, async_op=True, lane=i % 3), x))
                small = comm.all_reduce(np.ones(4, np.int64))
                if small.tolist() != [PEERS] * 4:
                    failures.append("small sum")
            for item, _ in work:
                if not (item.wait() == PEERS * (PEERS + 1) / 2).all():
                    failures.append("large sum")
            rows = comm.all_gather(np.array([comm.rank]))
            if rows.ravel().tolist() != list(range(PEERS)):
                failures.append("all_gather")
            comm.broadcast(np.zeros(9000), root=1, algorithm="ring")
            comm.barrier()
    except Exception:
        failures.append(traceback.format_exc())


def main() -> int:
    failures: list[str] = []
    with CoordinatorServer() as server:
        threads = [threading.Thread(target=peer, args=(server.url, failures)) for _ in range(PEERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print("smoke: FAILED\n" + "\n".join(failures) if failures else "smoke: ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
