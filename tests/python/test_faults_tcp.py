"""Real faults in groups of real processes: killed, stopped, several at once, in every phase.

The method: all members run the same seeded stream of operations and write down what became of each.
A fault hits at a random moment. Afterwards the survivors' records are compared: for each number all
must have the same result or the same error, results must be the sum over exactly the members that
contributed, inputs must be untouched where there is no result, and the stream must go on.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import statistics
import time
from collections import deque
from typing import Any

import numpy as np
import pytest
from cluster import SMALL, Cluster, Peer, Worker, close, results

import collectives as cc

pytestmark = pytest.mark.timeout(90)

NOTICED_S = 2.0
"""From a kill to the error at a survivor at the latest, on a machine that is busy."""


# ---- the stream ----------------------------------------------------------------------------------


def operation(seed: int, number: int, present: list[int]) -> tuple[str, int, str, int, bool]:
    """What the operation of this number is, the same on all: kind, count, algorithm, root, whether
    in place."""
    rng = random.Random(seed * 1_000_003 + number)
    kind = rng.choice(["all_reduce"] * 4 + ["all_gather", "broadcast", "barrier"])
    algorithms = ["auto", "ring", "direct"] + ["recursive_doubling"] * (kind == "all_reduce")
    count = rng.choice([1, 5, 300, 5000, 60_000])
    return kind, count, rng.choice(algorithms), rng.choice(present), rng.random() < 0.5


def values(seed: int, number: int, rank: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, number, rank]).integers(-1000, 1000, count)


def expected(
    what: tuple[str, int, str, int, bool], seed: int, number: int, ranks: list[int], size: int
) -> bytes:
    kind, count, _, root, _ = what
    if kind == "barrier":
        return b""
    if kind == "broadcast":
        return values(seed, number, root, count).tobytes()
    rows = {rank: values(seed, number, rank, count) for rank in ranks}
    if kind == "all_reduce":
        return sum(rows.values()).tobytes()
    zero = np.zeros(count, np.int64)
    return np.stack([rows.get(rank, zero) for rank in range(size)]).tobytes()


def post(
    comm: cc.Communicator, what: tuple[str, int, str, int, bool], seed: int, number: int, lane: int
) -> tuple[cc.Work, np.ndarray]:
    kind, count, algorithm, root, in_place = what
    if kind == "barrier":
        return comm.barrier(async_op=True, lane=lane), np.zeros(0)
    x = values(seed, number, comm.rank, count)
    if kind == "all_gather":
        return comm.all_gather(x, async_op=True, algorithm=algorithm, lane=lane), x
    out = x if in_place else None
    if kind == "broadcast":
        options = {"out": out, "async_op": True, "lane": lane, "algorithm": algorithm}
        return comm.broadcast(x, root, **options), x
    return comm.all_reduce(x, out=out, async_op=True, algorithm=algorithm, lane=lane), x


def stream(
    worker: Worker,
    seed: int,
    present: list[int],
    victims: list[int],
    window: int,
    lanes: int = 1,
    more: int = 30,
) -> dict[str, Any]:
    """A call: runs operations, `window` of them in flight, until `more` after the first that a
    fault has touched. Returns what became of each, and when the first error came. The end is one
    that all survivors agree on, because errors and contributors are."""
    comm = worker.comm
    left = [rank for rank in present if rank not in victims]
    found: dict[int, str] = {}
    first_error_at = touched = 0
    errors: list[dict[str, Any]] = []
    open_works: deque[tuple[int, cc.Work, np.ndarray]] = deque()
    worker.note("begun")
    number = 0
    while not touched or number < touched + more:
        number += 1
        what = operation(seed, number, present)
        open_works.append((number, *post(comm, what, seed, number, number % lanes)))
        while len(open_works) >= window or (open_works and touched and number >= touched + more):
            index, work, x = open_works.popleft()
            what = operation(seed, index, present)
            result, lost = None, None
            try:
                result = work.wait()
            except cc.PeerLost as error:
                lost = error
            if lost is not None:
                first_error_at = first_error_at or time.monotonic()
                has_input = what[0] != "barrier" and (
                    what[0] != "broadcast" or what[3] == comm.rank
                )
                original = values(seed, index, comm.rank, what[1]) if has_input else x
                assert x.tobytes() == original.tobytes(), (
                    f"the input of operation {index} {what} was changed: {lost}"
                )
                found[index] = "PeerLost"
                errors.append({"rank": lost.rank, "peer": lost.peer, "text": str(lost)})
                touched = touched or index
                continue
            taken = {len(present): present, len(left): left}.get(work.info.contributors)
            if what[0] == "broadcast":
                taken = present
            assert taken is not None, f"{work.info.contributors} contributors to {index} {what}"
            if taken is left:
                touched = touched or index
            data = b"" if result is None else result.tobytes()
            want = expected(what, seed, index, taken, comm.size)
            assert data == want, f"operation {index} {what} of {comm.rank} has a wrong result"
            found[index] = hashlib.sha256(data).hexdigest()
    return {"found": found, "first_error_at": first_error_at, "errors": errors}


def agree(records: list[dict[str, Any]]) -> None:
    """The same outcome for the same number on all survivors, up to the same last number."""
    first = records[0]["found"]
    for record in records[1:]:
        differing = {
            number: (first.get(number), record["found"].get(number))
            for number in first.keys() | record["found"].keys()
            if first.get(number) != record["found"].get(number)
        }
        assert not differing, f"the survivors disagree: {differing}"


def ids(worker: Worker) -> list[bytes]:
    return [member.id for member in worker.comm.members]


def one_sum(worker: Worker, value: int = 1) -> int:
    """A call: a small sum over ones; tells how many took part."""
    return int(worker.comm.all_reduce(np.array([value]))[0])


def retried_sum(worker: Worker) -> tuple[int, list[str]]:
    """A call: a sum that is called again as long as members are lost."""
    errors: list[str] = []
    while True:
        try:
            return one_sum(worker), errors
        except cc.PeerLost as error:
            errors.append(str(error))
            assert len(errors) < 10, errors


# ---- kills ---------------------------------------------------------------------------------------


def test_kill_one_of_four_at_random_moments(seed: int) -> None:
    """24 kills in 12 groups: of four members one dies, and then of the three one more."""
    rng = random.Random(seed)
    delays: list[float] = []
    with Cluster(0, **SMALL) as group:
        members: list[Peer] = []
        for round_number in range(12):
            members += group.add(4 - len(members))
            group.form(members, group=f"round {round_number}")
            known = members[0].call(ids)
            by_rank = dict(enumerate(members))
            for kill in range(2):
                victim = rng.choice(sorted(by_rank))
                present = sorted(by_rank)
                window, lanes = rng.choice([(1, 1), (1, 1), (4, 1), (6, 2), (32, 16)])
                run = seed + 100 * round_number + kill
                calls = {
                    rank: peer.start(stream, run, present, [victim], window, lanes)
                    for rank, peer in by_rank.items()
                }
                for peer in by_rank.values():
                    assert peer.wait_note() == "begun"
                time.sleep(rng.uniform(0, 0.03))  # the schedule of the fault
                killed_at = by_rank[victim].kill()
                del calls[victim]
                records = results(calls.values(), 15)
                agree(records)
                for record in records:
                    for error in record["errors"]:
                        assert error["rank"] == victim, error
                        # Of a root that was lost before the call the core knows the rank alone.
                        unknown = "its root" in error["text"] and error["peer"] is None
                        assert unknown or error["peer"] == known[victim], error
                    if record["first_error_at"]:
                        delays.append(record["first_error_at"] - killed_at)
                by_rank.pop(victim).reap()
            members = list(by_rank.values())
            group.each(close, peers=members)
    assert len(delays) >= 24, "too few of the kills met an operation"
    print(
        f"from kill to error: median {statistics.median(delays) * 1000:.0f} ms, "
        f"greatest {max(delays) * 1000:.0f} ms, {len(delays)} errors"
    )
    assert max(delays) < NOTICED_S


def stream_two(
    worker: Worker, seed: int, victims: list[int], more: int = 20
) -> tuple[dict[int, str], int]:
    """A call: like `stream`, for several deaths that may or may not fall into one epoch: any subset
    of the victims may have contributed. Ends `more` after the first with none of them."""
    comm, found = worker.comm, {}
    left = [rank for rank in range(comm.size) if rank not in victims]
    worker.note("begun")
    number = end = 0
    while not end or number < end:
        number += 1
        x = values(seed, number, comm.rank, 2000)
        work = comm.all_reduce(x, async_op=True)
        lost = None
        try:
            found[number] = hashlib.sha256(work.wait().tobytes()).hexdigest()
        except cc.PeerLost as error:
            found[number], lost = "PeerLost", error
        if lost is not None:
            assert lost.rank in victims
            assert x.tobytes() == values(seed, number, comm.rank, 2000).tobytes()
        elif work.info.contributors == len(left) and not end:
            want = sum(values(seed, number, rank, 2000) for rank in left)
            assert found[number] == hashlib.sha256(want.tobytes()).hexdigest()
            end = number + more
    return found, work.info.contributors


@pytest.mark.parametrize("spread", [0.0, 0.04], ids=["together", "in a row"])
@pytest.mark.parametrize(("size", "victims"), [(5, [1, 3]), (4, [0, 1, 2]), (4, [1, 2, 3])])
def test_several_killed(size: int, victims: list[int], spread: float, seed: int) -> None:
    """Two of five, and all but one of four: the last one goes on alone. In a row: the second death
    falls into the recovery from the first."""
    rng = random.Random(seed + size)
    for attempt in range(3):
        with Cluster(size, **SMALL) as group:
            calls = group.start(stream_two, seed + attempt, victims)
            for peer in group.peers:
                peer.wait_note()
            time.sleep(rng.uniform(0, 0.02))
            for victim in rng.sample(victims, len(victims)):
                group.peers[victim].kill()
                time.sleep(rng.uniform(0, spread))
            records = results([c for rank, c in enumerate(calls) if rank not in victims], 15)
            assert all(record == records[0] for record in records)
            assert records[0][1] == size - len(victims)


def test_kill_while_idle() -> None:
    """Nobody calls anything while a member dies; the next call is told or does without it."""
    with Cluster(4) as group:
        assert group.each(one_sum) == [4] * 4
        group.peers[2].kill()
        survivors = [group.peers[rank] for rank in (0, 1, 3)]
        began = time.monotonic()
        found = group.each(retried_sum, peers=survivors)
        assert time.monotonic() - began < NOTICED_S
        assert [total for total, _ in found] == [3] * 3
        assert len({len(errors) for _, errors in found}) == 1
        alive = survivors[0].call(who_is_alive)
        assert alive == [True, True, False, True]


def who_is_alive(worker: Worker) -> list[bool]:
    return [member.alive for member in worker.comm.members]


def wait_for_death(worker: Worker, rank: int) -> float:
    """A call: waits, without any operation, until `members` tells that a rank is dead."""
    deadline = time.monotonic() + 10
    while worker.comm.members[rank].alive:
        assert time.monotonic() < deadline, "nobody noticed"
        time.sleep(0.002)
    return time.monotonic()


def test_a_death_shows_in_members_without_any_operation() -> None:
    with Cluster(3) as group:
        assert group.each(one_sum) == [3] * 3
        calls = group.start(wait_for_death, 2, peers=group.peers[:2])
        killed_at = group.peers[2].kill()
        for noticed_at in results(calls):
            assert noticed_at - killed_at < NOTICED_S
        assert group.each(one_sum, peers=group.peers[:2]) == [2, 2]


def fork_a_sleeper(worker: Worker) -> int:
    """A call: forks a child that does nothing and lives on."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    return pid


def test_a_forked_child_does_not_hide_the_death_of_its_parent(seed: int) -> None:
    with Cluster(4) as group:
        assert group.each(one_sum) == [4] * 4
        child = group.peers[1].call(fork_a_sleeper)
        present = [0, 1, 2, 3]
        calls = group.start(stream, seed, present, [1], 1)
        for peer in group.peers:
            peer.wait_note()
        killed_at = group.peers[1].kill()
        records = results([calls[rank] for rank in (0, 2, 3)], 10)
        os.kill(child, 0)  # it does live on
        agree(records)
        delays = [r["first_error_at"] - killed_at for r in records if r["first_error_at"]]
        if delays:
            print(f"with a forked child, from kill to error: {max(delays) * 1000:.0f} ms")
            assert max(delays) < 1.0


def waiting_sum(worker: Worker, retry: bool = True) -> tuple[str, float]:
    """A call: how a sum ends, and when. A sum that succeeds is that of the survivors."""
    comm = worker.comm
    work = comm.all_reduce(np.array([1]), retry=retry, async_op=True)
    worker.note("begun")
    try:
        assert work.wait()[0] == work.info.contributors == len(comm.members) - 1
        assert work.info.attempts == 2 and work.info.lost_time > 0
    except cc.CollectivesError as error:
        return type(error).__name__, time.monotonic()
    return "ok", time.monotonic()


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("forked", [False, True])
def test_kill_of_one_that_everybody_waits_for(forked: bool, retry: bool) -> None:
    """The others are blocked in the call when it dies: the time to its end is what counts."""
    delays = []
    for _ in range(3):
        with Cluster(4) as group:
            if forked:
                group.peers[3].call(fork_a_sleeper)
            calls = group.start(waiting_sum, retry, peers=group.peers[:3])
            for peer in group.peers[:3]:
                peer.wait_note()
            killed_at = group.peers[3].kill()
            for name, at in results(calls, 10):
                assert name == ("ok" if retry else "PeerLost")
                delays.append(at - killed_at)
            assert group.each(one_sum, peers=group.peers[:3]) == [3] * 3
    what = "the sum of the survivors" if retry else "the error"
    print(f"forked={forked}: {statistics.median(delays) * 1000:.0f} ms to {what} (median)")
    assert max(delays) < 1.0
