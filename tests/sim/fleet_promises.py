"""What must hold in every life of a fleet, whatever happened: the invariants of docs/simulator.md.

Nothing here takes part in the run. Records are compared as they are published and installed
(fleet.py, fleet_process.py); what became of operations and messages is checked at the end, over
all processes that ever lived, the dead and those that were sent away among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from control_network import MS
from fleet import Fleet, Roll
from fleet_calls import Call, Message, checksums, content
from peer import OK, PENDING
from results import check_result

from collectives._core import lib
from collectives.messages import Cause

UNTOLD = {PENDING} | {
    int(status)
    for status in (lib.CC_CLOSED, lib.CC_EVICTED, lib.CC_COORDINATOR_LOST, lib.CC_OUTCOME_UNKNOWN)
}
"""What leaves open what became of an operation."""
DECIDED_MS = 25_000
"""Within that an operation whose deadline has passed is decided, if nothing goes wrong any more: a
member that nobody accuses may be silent for 15 times the dead time, and lives all the same."""
QUEUE_MAX = 500  # messages under way between all peers and the coordinator


def check_all(fleet: Fleet) -> None:
    check_records(fleet.rolls)
    check_calls(fleet)
    for message in fleet.messages:
        check_message(fleet, message)
    tokens = {process.core.token for process in fleet.processes} - {None}
    assert len(tokens) <= 1, f"the run has {len(tokens)} keys"
    assert fleet.network.most <= QUEUE_MAX, f"{fleet.network.most} messages were under way"


def check_records(rolls: dict[int, Roll]) -> None:
    """From each record to the next: who may be in it, and no lane goes back."""
    previous = None
    for _, roll in sorted(rolls.items()):
        if previous is not None:
            before, now = previous.message, roll.message
            if now.cause not in (Cause.FORMED, Cause.BOUNDARY):
                old = {(member.id, member.rank) for member in before.members}
                assert {(member.id, member.rank) for member in now.members} <= old
                assert now.world == before.world, "ranks moved without a boundary"
            lanes = {lane.lane: lane for lane in now.lanes}
            for lane in before.lanes:
                assert lanes[lane.lane].committed >= lane.failed, f"lane {lane.lane} went back"
        previous = roll


def check_calls(fleet: Fleet) -> None:
    """One outcome for each operation, and what it says is true."""
    rows: dict[tuple[int, int, int], list[Call]] = defaultdict(list)
    for call in fleet.calls:
        rows[call.group, call.lane, call.number].append(call)
    for (group, lane, number), calls in rows.items():
        try:
            _check_row(fleet, calls)
        except BaseException:
            print(f"operation {number} of lane {lane}, group {group}: {calls[0].spec}")
            for call in calls:
                info = call.operation.info
                print(f"  {call.process}: status {info.status}, epoch {info.epoch}, {call.told}")
            raise


def _check_row(fleet: Fleet, calls: Sequence[Call]) -> None:
    decided: dict[int, set[int]] = defaultdict(set)
    succeeded: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        operation = call.operation
        info = operation.info
        status = int(info.status)
        assert call.told or not call.process.alive, "it is not complete on a process that lives"
        if call.told and call.deadline_ns is not None and call.process.alive:
            late_ns = call.told_ns - max(call.deadline_ns, fleet.calm_ns)
            assert late_ns <= DECIDED_MS * MS, f"{call.process} waited {late_ns} ns too long"
        if call.told:
            assert call.told == (status, *checksums(operation)), "it changed after its end"
            assert info.sequence == call.number, f"number {info.sequence}, not {call.number}"
        if status not in UNTOLD:
            decided[0 if call.group else call.process.lineage].add(status)
        if status == OK:
            succeeded[int(info.epoch)].append(call)
        elif status != PENDING:
            assert operation.intact, f"the input of {call.process} has changed"
    for lineage, outcomes in decided.items():
        assert len(outcomes) == 1, f"two outcomes in lineage {lineage}: {outcomes}"
    rolls = {epoch: fleet.roll_of(calls[0].group, epoch) for epoch in succeeded}
    lineages = [rolls[epoch].lineage for epoch in succeeded]
    assert len(lineages) == len(set(lineages)), f"it succeeded in epochs {sorted(succeeded)}"
    for epoch, group in succeeded.items():
        _check_success(rolls[epoch], group)


def _check_success(roll: Roll, calls: list[Call]) -> None:
    spec = calls[0].spec
    assert all(call.spec == spec for call in calls), "different calls succeeded"
    if spec.kind == "boundary":
        changed = {bool(call.operation.info.changed) for call in calls}
        assert len(changed) == 1, "a boundary changed something for some members only"
        return
    check_result(spec, roll, {call.process.index: call.operation for call in calls})


def check_message(fleet: Fleet, message: Message) -> None:
    """It came whole, or its ends were told that it did not."""
    operation = message.operation
    status = operation.status
    assert status != PENDING or not message.process.alive, f"{message} is not over"
    if not message.sends and status == OK:
        expected = content(message.key, message.other, operation.out.size)
        assert operation.out.tobytes() == expected.tobytes(), f"{message} has other bytes"
    if message.sends and status == OK:
        ends = [
            other
            for other in fleet.messages
            if other.key == message.key
            and not other.sends
            and other.process.id == message.other
            and other.other == message.process.id
        ]
        taken = [end for end in ends if end.operation.status == OK]
        assert len(taken) == 1, f"{message} was taken {len(taken)} times"
