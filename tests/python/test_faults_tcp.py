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
from cluster import QUICK, SMALL, Cluster, Peer, Worker, close, outcomes, results, scaled

import collectives as cc
from collectives.coordinator.process import CoordinatorProcess

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


def waiting_sum(worker: Worker) -> tuple[str, float]:
    worker.note("begun")
    try:
        one_sum(worker)
    except cc.CollectivesError as error:
        return type(error).__name__, time.monotonic()
    return "ok", time.monotonic()


@pytest.mark.parametrize("forked", [False, True])
def test_kill_of_one_that_everybody_waits_for(forked: bool) -> None:
    """The others are blocked in the call when it dies: the time to the error is what counts."""
    delays = []
    for _ in range(3):
        with Cluster(4) as group:
            if forked:
                group.peers[3].call(fork_a_sleeper)
            calls = group.start(waiting_sum, peers=group.peers[:3])
            for peer in group.peers[:3]:
                peer.wait_note()
            killed_at = group.peers[3].kill()
            for name, at in results(calls, 10):
                assert name == "PeerLost"
                delays.append(at - killed_at)
            assert group.each(one_sum, peers=group.peers[:3]) == [3] * 3
    print(f"forked={forked}: {statistics.median(delays) * 1000:.0f} ms to the error (median)")
    assert max(delays) < 1.0


# ---- stopped processes ---------------------------------------------------------------------------


def ends_evicted(worker: Worker) -> tuple[str, str]:
    """A call: runs operations until one fails, and tells how, and how the next one fails."""
    worker.note("begun")
    while True:
        try:
            worker.comm.all_reduce(np.ones(2000))
        except cc.CollectivesError as error:
            with pytest.raises(cc.CollectivesError) as again:
                worker.comm.barrier()
            return type(error).__name__, type(again.value).__name__


def until_a_loss(worker: Worker) -> tuple[int, str, float]:
    """A call: runs operations until one fails or is done by fewer. (None need fail: the one that
    was interrupted is a success if all survivors had its result.)"""
    worker.note("begun")
    number = 0
    while True:
        number += 1
        work = worker.comm.all_reduce(np.ones(2000), async_op=True)
        try:
            work.wait()
        except cc.PeerLost:
            return number, "PeerLost", time.monotonic()
        if work.info.contributors < worker.comm.size:
            return number, "fewer", time.monotonic()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_member_is_lost_and_evicted_when_it_goes_on(victim: int) -> None:
    with Cluster(3, timeouts=QUICK) as group:
        survivors = [peer for rank, peer in enumerate(group.peers) if rank != victim]
        calls = group.start(until_a_loss, peers=survivors)
        stopped_call = group.peers[victim].start(ends_evicted)
        for peer in group.peers:
            peer.wait_note()
        stopped_at = group.peers[victim].signal(signal.SIGSTOP)
        ended = results(calls, 15)
        assert len({(number, how) for number, how, _ in ended}) == 1
        for _, _, at in ended:
            assert at - stopped_at < QUICK.dead + QUICK.settle_time + 1.5
        assert group.each(one_sum, peers=survivors) == [2, 2]
        group.peers[victim].signal(signal.SIGCONT)
        assert stopped_call.result(10) == ("Evicted", "Evicted")
        assert group.each(one_sum, peers=survivors) == [2, 2]


def rounds(worker: Worker, seed: int, seconds: float) -> int:
    """A call: operations for a while; all end at the same one. Any error is one too many."""
    worker.note("begun")
    comm, end = worker.comm, time.monotonic() + seconds
    number = 0
    while True:
        number += 1
        late = comm.all_reduce(np.array([float(time.monotonic() > end)] * 500), op="max")
        if late[0]:
            return number


def test_stopped_for_less_than_the_dead_time_nobody_is_evicted(seed: int) -> None:
    rng = random.Random(seed)
    with Cluster(3, timeouts=scaled(cc.LAN, dead=1.5)) as group:
        calls = group.start(rounds, seed, 2.0)
        for peer in group.peers:
            peer.wait_note()
        for _ in range(3):
            peer = rng.choice(group.peers)
            peer.signal(signal.SIGSTOP)
            time.sleep(rng.uniform(0.1, 0.5))
            peer.signal(signal.SIGCONT)
            time.sleep(rng.uniform(0, 0.1))
        assert len(set(results(calls, 20))) == 1
        assert group.each(one_sum) == [3] * 3


def hold_the_interpreter(worker: Worker, seconds: float) -> None:
    """A call: keeps the interpreter lock for as long as it likes, as a long C call would."""
    import ctypes

    libc = ctypes.PyDLL(None)
    worker.note("begun")
    libc.usleep(int(seconds * 1e6))


def test_a_busy_interpreter_is_not_a_dead_one() -> None:
    with Cluster(3, timeouts=QUICK) as group:
        assert group.each(one_sum) == [3] * 3
        busy = group.peers[1].start(hold_the_interpreter, 2.5 * QUICK.dead)
        group.peers[1].wait_note()
        calls = group.start(one_sum, peers=[group.peers[0], group.peers[2]])
        busy.result()
        assert group.peers[1].call(one_sum) == 3
        assert results(calls) == [3, 3]


# ---- faults and membership -----------------------------------------------------------------------


def wait_pending(worker: Worker, joiners: int = 1) -> None:
    deadline = time.monotonic() + 10
    while worker.comm.pending != joiners:
        assert time.monotonic() < deadline, f"pending is {worker.comm.pending}, not {joiners}"
        time.sleep(0.002)


def admit(worker: Worker, timeout: float | None = None) -> tuple[int, int]:
    """A call: admits, and returns how many joined and left."""
    worker.note("begun")
    change = worker.comm.admit(timeout=timeout)
    return len(change.joined), len(change.left)


def admit_and_sum(worker: Worker) -> tuple[str, int]:
    """A call: admits, again if that failed; returns how the first ended and a sum afterwards."""
    first = ""
    for _ in range(5):
        try:
            worker.comm.admit()
            first = first or "ok"
            break
        except cc.PeerLost:
            first = first or "PeerLost"
    return first, retried_sum(worker)[0]


def test_kill_during_admit(seed: int) -> None:
    """With a joiner waiting, a member dies somewhere in the boundary. All survivors tell the same,
    the joiner gets in, and everybody works together afterwards."""
    rng = random.Random(seed)
    with Cluster(0, timeouts=scaled(cc.LAN, dead=1.0, settle=1.0)) as group:
        seen = []
        members: list[Peer] = []
        for round_number in range(6):
            members += group.add(3 - len(members))
            name = f"round {round_number}"
            group.form(members, group=name)
            (joiner,) = group.add(1)
            joining = group.start_join(joiner, group=name, size=3)
            group.each(wait_pending, peers=members)
            calls = group.start(admit_and_sum, peers=members)
            time.sleep(rng.uniform(0, 0.006))
            victim = rng.randrange(3)
            members[victim].kill()
            survivors = [peer for rank, peer in enumerate(members) if rank != victim]
            # The joiner takes part in the sums once it is in.
            joining.result(20)
            joined = joiner.start(retried_sum)
            found = results([c for rank, c in enumerate(calls) if rank != victim], 20)
            assert len({first for first, _ in found}) == 1, found
            seen.append(found[0][0])
            totals = [total for _, total in found] + [joined.result(20)[0]]
            assert set(totals) <= {3, 4} and len(set(totals)) == 1, totals
            members[victim].reap()
            group.each(close, peers=[*survivors, joiner])
            members = [*survivors, joiner]
        print("how the interrupted boundaries ended:", seen)


def working_with_admits(worker: Worker, seconds: float) -> list[str]:
    """A call: sums and boundaries in turn, for a while; all end at the same one. Returns the
    errors."""
    comm, end, errors = worker.comm, time.monotonic() + seconds, []
    worker.note("begun")
    while True:
        try:
            late = comm.all_reduce(np.array([float(time.monotonic() > end)]), op="max")
            if late[0]:
                return errors
            comm.admit()
        except cc.PeerLost as error:
            errors.append(str(error))


def test_kill_of_a_joiner_while_it_connects(seed: int) -> None:
    """However far it came, the members are not harmed. One that was admitted already and then
    killed is a lost member like any other."""
    rng = random.Random(seed)
    with Cluster(2, timeouts=scaled(cc.LAN, dead=1.0, settle=1.0)) as group:
        members = list(group.peers)
        calls = group.start(working_with_admits, 2.0, peers=members)
        for _ in range(8):
            (joiner,) = group.add(1)
            group.start_join(joiner, size=2)
            time.sleep(rng.uniform(0, 0.15))
            joiner.kill()
            joiner.reap()
        first, second = results(calls, 20)
        assert len(first) == len(second)
        assert group.each(admit, peers=members)[0][0] == 0
        assert group.each(one_sum, peers=members) == [2, 2]


def test_a_joiner_that_stops_before_it_is_admitted() -> None:
    """It was ready, and then it hangs: the boundary makes it a member, and the members lose it
    again as they would any other, in the time that takes."""
    with Cluster(2, timeouts=QUICK) as group:
        members = list(group.peers)
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=2)
        group.each(wait_pending, peers=members)
        joiner.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert group.each(admit, peers=members) == [(1, 0)] * 2
        found = group.each(retried_sum, peers=members)
        assert time.monotonic() - began < QUICK.dead + QUICK.settle_time + NOTICED_S
        assert [total for total, _ in found] == [2, 2]
        joiner.signal(signal.SIGCONT)
        joining.outcome(10)
        (error,) = outcomes([joiner.start(one_sum)], 10)
        assert isinstance(error, (cc.Evicted, AttributeError)), error  # it may not have joined


def test_a_stopped_member_and_a_dead_one() -> None:
    with Cluster(4, timeouts=QUICK) as group:
        calls = group.start(until_a_loss, peers=[group.peers[0], group.peers[2]])
        group.start(ends_evicted, peers=[group.peers[1], group.peers[3]])
        for peer in group.peers:
            peer.wait_note()
        group.peers[1].signal(signal.SIGSTOP)
        struck_at = group.peers[3].kill()
        ended = results(calls, 15)
        assert len({(number, how) for number, how, _ in ended}) == 1
        survivors = [group.peers[0], group.peers[2]]
        found = group.each(retried_sum, peers=survivors)
        assert time.monotonic() - struck_at < 2 * (QUICK.dead + QUICK.settle_time) + NOTICED_S
        assert [total for total, _ in found] == [2, 2]
        assert len({len(errors) for _, errors in found}) == 1


def too_small(worker: Worker) -> list[str]:
    names = []
    worker.note("begun")
    for _ in range(3):
        try:
            worker.comm.all_reduce(np.ones(10))
            names.append("ok")
        except cc.CollectivesError as error:
            names.append(type(error).__name__)
    return names


def test_below_the_floor_operations_fail_and_admit_waits_for_a_joiner() -> None:
    with Cluster(3, min_size=3) as group:
        assert group.each(one_sum) == [3] * 3
        survivors = group.peers[:2]
        calls = group.start(too_small, peers=survivors)
        for peer in survivors:
            peer.wait_note()
        group.peers[2].kill()
        for names in results(calls, 10):
            assert names == ["GroupTooSmall"] * 3
        admitting = group.start(admit, peers=survivors)
        (joiner,) = group.add(1)
        joining = group.start_join(joiner, size=3)
        joining.result(15)
        assert results(admitting, 15) == [(1, 1)] * 2
        assert group.each(one_sum, peers=[*survivors, joiner]) == [3] * 3


def test_admit_below_the_floor_waits() -> None:
    """It has not returned after a while in which a boundary would be over many times."""
    with Cluster(2, min_size=2, timeouts=QUICK) as group:
        survivor = group.peers[0]
        group.peers[1].kill()
        assert survivor.call(too_small) == ["GroupTooSmall"] * 3
        admitting = survivor.start(admit)
        assert survivor.wait_note() == "begun" or survivor.wait_note() == "begun"
        end = time.monotonic() + 2 * QUICK.dead
        while time.monotonic() < end:
            assert not admitting.over
            time.sleep(0.05)
        (joiner,) = group.add(1)
        group.start_join(joiner, size=2, min_size=2).result()
        assert admitting.result() == (1, 1)
        assert group.each(one_sum, peers=[survivor, joiner]) == [2, 2]


# ---- the coordinator -----------------------------------------------------------------------------


def sums_until_lost(worker: Worker) -> tuple[str, bool, float, str]:
    worker.note("begun")
    while True:
        try:
            worker.comm.all_reduce(np.ones(2000))
        except cc.CollectivesError as error:
            unknown = isinstance(error, cc.OutcomeUnknown)
            return type(error).__name__, unknown, time.monotonic(), str(error)


def test_without_the_coordinator_operations_go_on_and_a_death_cannot_be_decided(
    seed: int,
) -> None:
    times = scaled(cc.LAN, coordinator_lost=1.0)
    with (
        CoordinatorProcess() as coordinator,
        Cluster(3, url=coordinator.url, timeouts=times) as group,
    ):
        assert coordinator.process is not None
        assert group.each(one_sum) == [3] * 3
        coordinator.process.kill()
        coordinator.process.wait()
        assert len(set(group.each(rounds, seed, 1.5))) == 1
        for peer in group.peers:
            assert peer.wait_note() == "begun"
        calls = group.start(sums_until_lost, peers=group.peers[:2])
        for peer in group.peers[:2]:
            assert peer.wait_note() == "begun"
        killed_at = group.peers[2].kill()
        for name, unknown, at, message in results(calls, 15):
            assert (name, unknown) == ("CoordinatorLost", True)
            assert coordinator.url in message
            assert 0.9 < at - killed_at < 1.0 + NOTICED_S + 1
        names = [type(o).__name__ for o in outcomes(group.start(one_sum, peers=group.peers[:2]))]
        assert names == ["CoordinatorLost"] * 2


def test_the_coordinator_pauses_and_a_death_is_decided_when_it_is_back() -> None:
    with CoordinatorProcess() as coordinator, Cluster(3, url=coordinator.url) as group:
        assert coordinator.process is not None
        coordinator.process.send_signal(signal.SIGSTOP)
        calls = group.start(waiting_sum, peers=group.peers[:2])
        for peer in group.peers[:2]:
            peer.wait_note()
        group.peers[2].kill()
        time.sleep(0.5)
        assert not any(call.over for call in calls)
        coordinator.process.send_signal(signal.SIGCONT)
        assert [name for name, _ in results(calls, 10)] == ["PeerLost"] * 2
        assert group.each(one_sum, peers=group.peers[:2]) == [2, 2]


# ---- deadlines -----------------------------------------------------------------------------------


def short_deadline(worker: Worker, timeout: float) -> tuple[str, bool, float]:
    x = np.arange(1000.0)
    began = time.monotonic()
    try:
        worker.comm.all_reduce(x, out=x, timeout=timeout)
    except cc.CollectivesError as error:
        return type(error).__name__, bool((x == np.arange(1000.0)).all()), time.monotonic() - began
    return "ok", True, time.monotonic() - began


def test_an_operations_deadline_fails_it_on_all_and_nobody_is_lost() -> None:
    """One comes late: the others' deadline passes, and it, too, is told, when it comes."""
    with Cluster(3) as group:
        calls = group.start(short_deadline, 0.3, peers=group.peers[:2])
        for name, intact, seconds in results(calls, 10):
            assert (name, intact) == ("TimedOut", True)
            assert 0.25 < seconds < 0.3 + NOTICED_S
        name, intact, seconds = group.peers[2].call(short_deadline, 5.0)
        assert (name, intact) == ("TimedOut", True)
        assert seconds < 1.0
        assert group.each(one_sum) == [3] * 3
