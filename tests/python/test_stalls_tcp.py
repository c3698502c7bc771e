"""Real faults, continued: processes that are stopped and go on, deaths around a boundary and below
the floor, a coordinator that dies or hangs, and operations whose own time is up.
"""

from __future__ import annotations

import random
import signal
import time

import numpy as np
import pytest
from cluster import (
    QUICK,
    Cluster,
    Peer,
    Worker,
    close,
    outcomes,
    results,
    scaled,
)
from test_faults_tcp import NOTICED_S, one_sum, retried_sum, waiting_sum

import collectives as cc
from collectives.coordinator.process import CoordinatorProcess

pytestmark = pytest.mark.timeout(90)

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
        assert [name for name, _ in results(calls, 10)] == ["ok"] * 2
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
