"""Goal: several groups in one context, over the same links. What is said in one is not taken for
the other's, a death seals every group that has the peer, and a group that one peer closed, or never
wanted, holds nobody up.

Method: as in test_deaths.py; a second group has the record of the first under another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from promises import formed
from world import GROUP, OK, PENDING, Operation, Peer, Refused, World

from collectives._core import ffi, lib

SEED = 53_000
OTHER = 8
CLOSED = int(lib.CC_CLOSED)
GOODBYE = int(lib.CC_EVIDENCE_GOODBYE)


def install(world: World, group: int, peers: Sequence[Peer] | None = None, epoch: int = 1) -> None:
    """The present members as another group; the record reaches these peers."""
    record = world.record
    native = ffi.new("cc_epoch *", record.native[0])
    native.group, native.epoch, native.n_lanes = group, epoch, 0
    for peer in record.members if peers is None else peers:
        assert lib.cc_install(peer.context, native) == OK
    world.touch()


def close(world: World, peer: Peer, group: int) -> None:
    lib.cc_group_close(peer.context, group)
    world.touch()


def sums(world: World, group: int, salt: int, n: int = 3000) -> list[Operation]:
    return [
        peer.post(
            "all_reduce",
            np.arange(n, dtype=np.int64) * (peer.index + 1) + salt,
            np.empty(n, np.int64),
            group=group,
        )
        for peer in world.members
    ]


def expected(world: World, salt: int, n: int = 3000) -> np.ndarray[Any, Any]:
    total = sum(np.arange(n, dtype=np.int64) * (p.index + 1) + salt for p in world.members)
    return np.asarray(total)


def check(world: World, operations: list[Operation], salt: int) -> None:
    for operation in operations:
        assert operation.status == OK
        assert np.array_equal(operation.out, expected(world, salt))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_operations_of_two_groups_at_once(n: int) -> None:
    """They are posted in different orders on the peers: only within a group the order counts."""
    for seed in range(SEED, SEED + 5):
        with formed(seed, n, lag=0.3, segment_bytes=1024) as world:
            install(world, OTHER)
            one = [sums(world, GROUP, i) for i in range(3)]
            two = [sums(world, OTHER, 10 + i) for i in range(3)]
            world.finish([op for row in one + two for op in row])
            for i in range(3):
                check(world, one[i], i)
                check(world, two[i], 10 + i)
            assert {op.info.sequence for row in two for op in row} == {1, 2, 3}


def test_a_death_seals_every_group_of_the_peer() -> None:
    with formed(SEED, 3) as world:
        install(world, OTHER)
        world.kill(world.peers[2])
        survivors = world.peers[:2]
        world.run(lambda: all(p.sealed and OTHER in p.reports for p in survivors))
        assert all(p.reports[OTHER].epoch == 1 for p in survivors)


def test_a_closed_group_ends_for_this_peer_alone() -> None:
    """Its own operation ends; who needed it has its goodbye in the report; the other group does
    not notice."""
    with formed(SEED, 3) as world:
        install(world, OTHER)
        leaver, others = world.peers[2], world.peers[:2]
        held = [peer.post("barrier", group=OTHER) for peer in others]
        world.run_ms(50)
        close(world, leaver, OTHER)
        world.run(lambda: all(OTHER in peer.reports for peer in others))
        for peer in others:
            report = peer.reports[OTHER]
            found = [(bytes(e.peer.bytes), e.kind) for e in report.evidence[0 : report.n_evidence]]
            assert found == [(leaver.id, GOODBYE)]
        assert [op.status for op in held] == [PENDING] * 2  # until the coordinator decides
        again = sums(world, GROUP, 2)
        world.finish(again)
        check(world, again, 2)
        with pytest.raises(Refused):
            leaver.post("barrier", group=OTHER)


def test_open_operations_of_a_closed_group_end() -> None:
    with formed(SEED, 2) as world:
        install(world, OTHER)
        mine = world.peers[0].post("barrier", group=OTHER)
        close(world, world.peers[0], OTHER)
        assert mine.status == CLOSED


def test_a_group_that_was_declined_holds_nobody_up() -> None:
    """One peer gives the group up before its record comes: the others hear of it though they
    install later, and a record that is still under way is refused."""
    for late in (False, True):
        with formed(SEED, 3) as world:
            decliner, others = world.peers[2], world.peers[:2]
            if late:
                install(world, OTHER, others)
                world.run_ms(20)
            close(world, decliner, OTHER)
            world.run_ms(20)
            if not late:
                install(world, OTHER, others)
            held = [peer.post("barrier", group=OTHER) for peer in others]
            world.run(lambda: all(OTHER in peer.reports for peer in others))  # noqa: B023
            assert not any(op.done for op in held)
            native = ffi.new("cc_epoch *", world.record.native[0])
            native.group, native.n_lanes = OTHER, 0
            assert lib.cc_install(decliner.context, native) == CLOSED


def test_a_goodbye_that_was_lost_is_said_again() -> None:
    """The connection breaks before the BYE of the group gets through; it comes with the next."""
    with formed(SEED, 2) as world:
        install(world, OTHER)
        world.run_ms(20)
        a, b = world.peers
        world.break_link(a, b)
        close(world, a, OTHER)
        held = b.post("barrier", group=OTHER)
        world.run(lambda: OTHER in b.reports)
        assert held.status == PENDING


def test_closed_groups_make_room() -> None:
    """Far more groups, one after the other, than a context can have at once."""
    with formed(SEED, 2) as world:
        for i in range(3 * 64):
            install(world, 100 + i)
            row = sums(world, 100 + i, i, 10)
            world.finish(row)
            for operation, peer in zip(row, world.members, strict=True):
                assert np.array_equal(operation.out, expected(world, i, 10))
                close(world, peer, 100 + i)
            world.run_ms(5)
        before = int(world.peers[0].stats.operations)
        world.finish(sums(world, GROUP, 1))
        assert int(world.peers[0].stats.operations) == before + 1


def test_too_many_groups_are_refused() -> None:
    with formed(SEED, 2) as world:
        native = ffi.new("cc_epoch *", world.record.native[0])
        statuses = []
        for i in range(70):
            native.group = 100 + i
            statuses.append(lib.cc_install(world.peers[0].context, native))
        assert statuses.count(OK) == 63 and set(statuses) == {OK, int(lib.CC_BUSY)}
