"""A peer of the chaos test: `member.py LEDGER NUMBER SEED SIZE URL [ADDRESS]`, one process, one
life in the group.

It joins, and calls what the script says for each number until it is evicted, or all stop together.
Of every operation it writes down the outcome, right or wrong: it judges nothing but whether its
input is what it was. What is no outcome (an error that is no part of the library's promises) ends
the process with 1.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import hashlib
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ledger import FIRST, HOLE, Input, Kind, Ledger, State, Status
from script import FLUSH, Call, batch_of, input_of, pause_of, segment_bytes_of

import collectives as cc

PLAIN = 0.2  # of the calls wait inside, which tells nothing but the result
CONNECT_S = 60.0
PR_SET_PDEATHSIG = 1
PLANTED_AT = (3, 12)  # peer, and the first operation that it does wrong


@dataclass
class Posted:
    """An operation under way."""

    number: int
    call: Call
    x: np.ndarray
    before: bytes  # a digest of the input
    work: cc.Work


def digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(memoryview(array).cast("B"), digest_size=8).digest()


def as_number(eight_bytes: bytes) -> int:
    return int.from_bytes(eight_bytes, "little")


class Member:
    def __init__(self, ledger: Ledger, peer: int, seed: int) -> None:
        self.ledger, self.peer, self.seed = ledger, peer, seed
        self.next = 0  # the number of the next operation
        self.own = random.Random(f"{seed} {peer}")  # of what the others need not know

    def run(self, url: str, **options: Any) -> None:
        self.ledger.state = State.JOINING
        self.comm = self.connect(url, **options)
        self.ledger.state = State.MEMBER
        try:
            stop = self.sync()
            while not stop:
                time.sleep(pause_of(self.seed, self.next))
                calls = batch_of(self.seed, self.next)
                if calls[0].kind == "admit":
                    self.admit()
                    stop = self.sync()
                elif len(calls) == 1 and self.own.random() < PLAIN:
                    self.call_plainly(calls[0])
                else:
                    self.call_together(calls)
            self.comm.close()
            self.ledger.state = State.DONE
        except cc.Evicted as error:
            self.comm.close()
            self.ledger.reason = str(error)
            self.ledger.state = State.EVICTED

    def connect(self, url: str, **options: Any) -> cc.Communicator:
        """Tries again while the coordinator is away, as whatever starts processes would."""
        until = time.monotonic() + CONNECT_S
        while True:
            try:
                return cc.connect(url, name=f"p{self.peer}", **options)
            except cc.CoordinatorUnreachable:
                if time.monotonic() > until:
                    raise

    # ---- operations ------------------------------------------------------------------------------

    def sync(self) -> bool:
        """What follows a boundary: who has just come learns the operation's number, all learn
        whether to stop."""
        self.ledger.set_word("begun", self.next or FIRST)
        rests = self.ledger.word("rests")
        wishes = [self.peer, self.ledger.word("stop"), rests != self.ledger.word("rested")]
        work = self.comm.all_reduce(np.array(wishes), async_op=True)
        found, number = self.outcome(work, Kind.SYNC, digest_of=1), work.info.sequence
        assert found is not None, "an operation failed that begins again"
        assert self.next in (0, number), f"operation {number} should be {self.next}"
        self.next = number + 1
        self.ledger.set_word("begun", number)
        if found[2]:
            self.rest(rests)
        return bool(found[1])

    def rest(self, wish: int) -> None:
        """Notes how much memory is held, with next to nothing kept for the next operation."""
        self.call_together(list(FLUSH), Kind.FLUSH)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
        self.ledger.set_word("memory_kib", int(kib))
        self.ledger.set_word("rested", wish)

    def admit(self) -> None:
        number = self.begin(1)
        try:
            change = self.comm.admit()
        except cc.CollectivesError as error:
            self.failed(number, Kind.ADMIT, error, Input.INTACT)
            return
        roster = [self.number_of(member) for member in self.comm.members] if change else []
        self.ledger.write(
            **self.line(number, Kind.ADMIT, Status.OK, Input.INTACT),
            epoch=change.epoch if change else 0,
            world=len(roster),
            roster=roster,
            digest=as_number(digest(np.array(roster))) if change else 0,
        )
        self.ledger.set_word("ended", number)

    def call_plainly(self, call: Call) -> None:
        """Waits inside the call, as most programs do."""
        x, options = self.arguments(self.next, call)
        before, number = digest(x), self.begin(1)
        try:
            found = getattr(self.comm, call.kind)(x, **options)
        except cc.CollectivesError as error:
            self.failed(number, Kind.CALL, error, self.what_became_of(x, before))
            return
        self.ledger.write(
            **self.line(number, Kind.CALL, Status.OK, self.what_became_of(x, before, found)),
            **self.result(call, found),
        )
        self.ledger.set_word("ended", number)

    def call_together(self, calls: list[Call], kind: Kind = Kind.CALL) -> None:
        posted = []
        given = [self.arguments(self.next + i, call) for i, call in enumerate(calls)]
        digests = [digest(x) for x, _ in given]
        first = self.begin(len(calls))
        for i, (call, (x, options)) in enumerate(zip(calls, given, strict=True)):
            work = getattr(self.comm, call.kind)(x, async_op=True, **options)
            posted.append(Posted(first + i, call, x, digests[i], work))
        for one in posted:
            self.outcome(one.work, kind, one)

    def begin(self, count: int) -> int:
        number = self.next
        self.next += count
        self.ledger.set_word("begun", self.next - 1)
        return number

    def arguments(self, number: int, call: Call) -> tuple[np.ndarray, dict[str, Any]]:
        x = input_of(self.seed, self.peer, number, call)
        options: dict[str, Any] = {"retry": call.retry}
        if call.kind == "all_reduce":
            options |= {"op": call.op, "algorithm": call.algorithm}
        if call.kind == "broadcast":
            options["root"] = call.root % self.comm.size
        if call.in_place and call.kind != "all_gather":
            options["out"] = x
        return x, options

    # ---- outcomes --------------------------------------------------------------------------------

    def outcome(
        self, work: cc.Work, kind: Kind, posted: Posted | None = None, digest_of: int | None = None
    ) -> np.ndarray | None:
        """Waits, and writes down what came of it. Returns the result."""
        found = error = None
        try:
            found = work.wait()
        except cc.CollectivesError as why:
            error = why
        info = work.info
        became = self.what_became_of(posted.x, posted.before, found) if posted else Input.INTACT
        if error is not None:
            self.failed(info.sequence, kind, error, became, epoch=info.epoch)
            return None
        assert posted is None or info.sequence == posted.number
        members = self.comm.members
        assert info.contributors == len(members) - len(info.missing), info
        roster = [HOLE if m.rank in info.missing else self.number_of(m) for m in members]
        result = (
            self.result(posted.call, found)
            if posted
            else {"digest": as_number(digest(found[:digest_of]))}
        )
        self.ledger.write(
            **self.line(info.sequence, kind, Status.OK, became),
            epoch=info.epoch,
            attempts=info.attempts,
            lost_ms=min(65535, round(info.lost_time * 1000)),
            world=len(roster),
            roster=roster,
            **result,
        )
        self.ledger.set_word("ended", info.sequence)
        return found

    def failed(
        self, number: int, kind: Kind, error: Exception, became: Input, epoch: int = 0
    ) -> None:
        """Writes it down. What is not agreed upon by all ends this life, or the process."""
        status = Status.OTHER
        if isinstance(error, cc.PeerLost):
            status = Status.PEER_LOST
        elif isinstance(error, cc.Evicted):
            status = Status.EVICTED
        self.ledger.write(**self.line(number, kind, status, became), epoch=epoch)
        self.ledger.set_word("ended", number)
        if status is not Status.PEER_LOST:
            raise error

    def line(self, number: int, kind: Kind, status: Status, became: Input) -> dict[str, Any]:
        at = time.monotonic()
        return {"number": number, "kind": kind, "status": status, "input": became, "at": at}

    def result(self, call: Call, found: np.ndarray) -> dict[str, Any]:
        self.do_what_is_planted(found)
        total = 0.0 if call.is_known else float(np.sum(found, dtype=np.float64))
        return {"digest": as_number(digest(found)), "total": total}

    @staticmethod
    def what_became_of(x: np.ndarray, before: bytes, found: np.ndarray | None = None) -> Input:
        if found is x:
            return Input.OVERWRITTEN
        return Input.INTACT if digest(x) == before else Input.CHANGED

    def do_what_is_planted(self, found: np.ndarray) -> None:
        """A fault on purpose, which the test must find."""
        plant = os.environ.get("COLLECTIVES_CHAOS_PLANT")
        if plant and self.peer == PLANTED_AT[0] and self.next > PLANTED_AT[1]:
            if plant == "wrong":
                found.reshape(-1)[:1] += 1
            elif plant == "death":
                os._exit(7)
            elif plant == "hang":
                threading.Event().wait()
            elif plant == "descriptor":
                os.dup(0)

    @staticmethod
    def number_of(member: cc.Member) -> int:
        return int(member.name[1:])


def main() -> None:
    path, peer, seed, size, url, *address = sys.argv[1:]
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # The driver's end is ours too, also while we are stopped.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the driver is gone")
    ledger = Ledger(Path(path), create=True)
    options: dict[str, Any] = {"size": int(size), "segment_bytes": segment_bytes_of(int(seed))}
    if address:
        options |= {"bind": address[0], "insecure": True}
    try:
        Member(ledger, int(peer), int(seed)).run(url, group="chaos", **options)
    except BaseException as error:
        ledger.reason = f"{type(error).__name__}: {error}"
        ledger.state = State.FAILED
        raise


if __name__ == "__main__":
    main()
