"""Goal: what begins again keeps its deadline, and what must not begin again is known alike to those
who were there and to those who joined since.

Method: as in test_deaths.py, with the very orders of events that went wrong once.
"""

from __future__ import annotations

import numpy as np
from promises import formed
from world import OK, PEER_LOST, Operation, Peer

from collectives._core import lib

SEED = 61_000
FINAL = int(lib.CC_PRESERVE) | int(lib.CC_NO_RETRY)
TIMED_OUT, MISMATCH = int(lib.CC_TIMED_OUT), int(lib.CC_MISMATCH)


def sums(peer: Peer, **options: int) -> Operation:
    return peer.post("all_reduce", np.ones(4, np.float32), np.zeros(4, np.float32), **options)


def test_a_deadline_that_passed_at_a_death_is_looked_at_again() -> None:
    """It seals the epoch, but the record says that a member was lost: the operation goes on, and a
    member that never posts it would hold it up for ever."""
    with formed(SEED, 3) as world:
        one, _, victim = world.peers
        operation = sums(one, timeout_ms=100)
        world.run_ms(95)
        world.pause(victim)
        world.run_ms(10)
        world.kill(victim)
        victim.paused = False
        record = world.settle()
        assert record.cause == lib.CC_CAUSE_LOST and not operation.done
        world.carry([operation], limit_ms=5000)
        assert operation.status == TIMED_OUT


def test_a_joiner_knows_of_interruptions_what_members_know() -> None:
    """One member posts ahead what must not begin again, is interrupted, and dies. The numbers that
    it used are free again; after a boundary all take the same view of them."""
    with formed(SEED, 3) as world:
        one, two, ahead = world.peers
        for _ in range(3):
            sums(ahead, flags=FINAL)
        world.run_ms(1)
        world.renew()
        world.kill(ahead)
        world.recover()
        joiner = world.add()
        boundary = [peer.post("boundary") for peer in (one, two)]
        world.run(lambda: all(peer.sealed for peer in (one, two)))
        world.settle([joiner])
        world.finish(boundary)
        members = (one, two, joiner)
        world.run(world.is_ready)
        operations = [sums(peer, flags=FINAL) for peer in members]
        world.finish(operations)
        statuses = {operation.status for operation in operations}
        assert statuses in ({OK}, {PEER_LOST})
        again = [sums(peer) for peer in members]
        world.finish(again)
        assert {operation.status for operation in again} == {OK}


def test_who_is_late_to_post_is_told_what_the_others_were_told() -> None:
    """Two records end two operations for two reasons, and one member posts both only then."""
    with formed(SEED, 3) as world:
        one, two, late = world.peers
        first = [sums(one), one_more(two)]
        world.settle()
        world.finish(first)
        second = [sums(one, timeout_ms=50), sums(two)]
        world.settle()
        world.finish(second)
        assert [operation.status for operation in first + second] == [MISMATCH] * 2 + [
            TIMED_OUT
        ] * 2
        told = [sums(late), sums(late)]
        world.finish(told)
        assert [operation.status for operation in told] == [MISMATCH, TIMED_OUT]


def one_more(peer: Peer) -> Operation:
    """Another call than `sums`."""
    return peer.post("all_reduce", np.ones(5, np.float32), np.zeros(5, np.float32))
