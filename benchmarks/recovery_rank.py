"""A rank of the recovery benchmark: obeys lines, answers each with one of JSON.

    connect URL RANK ADDRESS    joins ("-": no wish; on loopback)
    size BYTES                  of the messages from now on
    reduce SECONDS              one all_reduce; with SECONDS its interpreter is busy for so long
    admit                       waits for a joiner and lets it in
    stream SECONDS              all_reduces of 1 MiB until then; all ranks end together
    time VARIANT BYTES COUNT    so many all_reduces, each timed

Times are CLOCK_MONOTONIC, which all processes of a machine share. Results are compared with the
exact one, after the time is taken.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

import collectives as cc

LIMIT_S = 300  # no command takes longer, also if the driver is gone
STREAM_BYTES = 1 << 20
PATTERN = 251
PR_SET_PDEATHSIG = 1

VARIANTS: dict[str, dict[str, Any]] = {
    "out of place": {},
    "in place": {"in_place": True},
    "in place, preserve=False": {"in_place": True, "preserve": False},
    "retry=False": {"retry": False},
}


class Rank:
    comm: cc.Communicator

    def connect(self, url: str, rank: str, address: str, size: str = "4") -> dict[str, Any]:
        options: dict[str, Any] = {} if address == "-" else {"bind": address, "insecure": True}
        began = time.monotonic()
        self.comm = cc.connect(
            url,
            group="recovery",
            size=int(size),
            rank=None if rank == "-" else int(rank),
            **options,
        )
        return {"joined": time.monotonic(), "took": time.monotonic() - began}

    def size(self, size_bytes: str) -> dict[str, Any]:
        self.base = (np.arange(int(size_bytes) // 4) % PATTERN).astype(np.float32)
        self.given = np.empty_like(self.base)
        self.out = np.empty_like(self.base)
        return {}

    def reduce(self, busy_s: str) -> dict[str, Any]:
        np.multiply(self.base, self.comm.rank + 1, out=self.given)
        self.out.fill(0)
        self.comm.barrier()
        say(begun=time.monotonic())
        work = self.comm.all_reduce(self.given, out=self.out, async_op=True)
        woke = 0.0
        if float(busy_s):
            # A C call that keeps the interpreter's lock, as a long kernel or a big sort does.
            ctypes.PyDLL(None).usleep(int(float(busy_s) * 1e6))
            woke = time.monotonic()
        work.wait()
        ended = time.monotonic()
        info = work.info
        factor = sum(r + 1 for r in range(self.comm.size) if r not in info.missing)
        right = bool((self.out == self.base * np.float32(factor)).all())
        right &= bool((self.given == self.base * np.float32(self.comm.rank + 1)).all())
        return {
            "ended": ended,
            "woke": woke,
            "contributors": info.contributors,
            "attempts": info.attempts,
            "right": right,
        }

    def admit(self) -> dict[str, Any]:
        while not self.comm.pending:
            time.sleep(0.001)
        # Nobody knows whether the others have heard of the joiner: one wish is enough.
        self.comm.admit()
        return {"size": self.comm.size}

    def stream(self, seconds: str) -> dict[str, Any]:
        given = np.zeros(STREAM_BYTES // 4, np.float32)
        given[0] = 1
        end = time.monotonic() + float(seconds)
        operations = failed = 0
        worst = 0.0
        over = False
        while not over:
            began = time.monotonic()
            given[1] = began > end
            try:
                total = self.comm.all_reduce(given)
                over = bool(total[1] > 0)
                failed += bool(total[0] != self.comm.size)
            except cc.CollectivesError:
                failed += 1
                over = time.monotonic() > end
            worst = max(worst, time.monotonic() - began)
            operations += 1
        return {"operations": operations, "failed": failed, "worst_s": worst}

    def time(self, variant: str, size_bytes: str, count: str) -> dict[str, Any]:
        options = dict(VARIANTS[variant.replace("_", " ")])
        given = np.zeros(int(size_bytes) // 4, np.float32)
        out = given if options.pop("in_place", False) else np.empty_like(given)
        all_reduce = self.comm.all_reduce
        all_reduce(given, out=out, **options)
        times = []
        for _ in range(int(count)):
            began = time.perf_counter()
            all_reduce(given, out=out, **options)
            times.append((time.perf_counter() - began) * 1e6)
        return {"us": times}


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = Rank()
    say(pid=os.getpid())
    for line in sys.stdin:
        command, *words = line.split()
        signal.alarm(LIMIT_S)
        if command == "end":
            rank.comm.close()
            return
        say(**getattr(rank, command)(*words))
        signal.alarm(0)


if __name__ == "__main__":
    main()
