"""The rare paths: which of them a life has taken.

A batch of lives is worth what it reaches. Each path has a name and is counted in `Fleet.points`; a
test asserts over a batch that none was missed. Nothing here changes what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collectives import messages
from collectives._core import ffi, lib
from collectives.messages import Cause

if TYPE_CHECKING:
    from fleet import Fleet, Roll
    from fleet_process import Process

STATES = (
    *("joining", "rehearsing", "before install", "during install", "sealed"),
    *("idle", "before post", "moving", "done, not committed"),
)
EVERY = (
    *(f"death: {state}" for state in STATES),
    "second death during install",
    "abort after local completion",
    "committed by a record",
    "a member that was lost had succeeded already",
    "an operation began again",
    "a boundary was interrupted",
    "a boundary was carried out without a member",
    "eviction and return",
    "a new lineage",
    "a record came over the data links",
    "subgroup: used",
    *("record: " + cause for cause in ("boundary", "lost", "link", "deadline", "mismatch")),
    *("out: " + error for error in ("Closed", "Evicted", "CoordinatorLost")),
    *("told: " + status for status in ("peer lost", "group too small", "mismatch", "timed out")),
    *("told: " + status for status in ("evicted", "coordinator lost")),
    *("message: " + status for status in ("ok", "peer lost")),
)
"""What a batch of some thousand lives has to reach."""
STATUSES = {
    int(getattr(lib, f"CC_{name}")): name.lower().replace("_", " ")
    for name in (
        *("OK", "PENDING", "PEER_LOST", "EVICTED", "GROUP_TOO_SMALL", "OUTCOME_UNKNOWN"),
        *("COORDINATOR_LOST", "MISMATCH", "TIMED_OUT", "CLOSED"),
    )
}


def at_death(fleet: Fleet, process: Process) -> None:
    """Called right before a process dies: in which state it does."""
    state = state_of(fleet, process)
    fleet.points[f"death: {state}"] += 1
    if any(other is not process and _installs(fleet, other) for other in fleet.members):
        fleet.points["second death during install"] += 1


def at_record(fleet: Fleet, before: Roll, record: messages.Epoch) -> None:
    """Called when a record is published for the first time: what it makes of the reports."""
    points = fleet.points
    stay = {member.id for member in record.members}
    reports = {
        process.id: process.core.sealed
        for process in before.members
        if process.core.sealed is not None and process.core.sealed.epoch == before.message.epoch
    }
    if any(report.boundary for peer, report in reports.items() if peer in stay):
        if record.cause is Cause.BOUNDARY:
            gone = [process for process in before.members if not process.alive]
            points["a boundary was carried out without a member"] += bool(gone)
        else:
            points["a boundary was interrupted"] += 1
    outcomes = {lane.lane: lane for lane in record.lanes}
    for peer, report in reports.items():
        if peer in stay:
            for lane in report.lanes:
                outcome = outcomes[lane.lane]
                points["abort after local completion"] += lane.done > outcome.committed
                points["committed by a record"] += outcome.committed > lane.committed
    lost = {process for process in before.members if process.id not in stay}
    if record.cause is Cause.LOST:
        for call in fleet.calls[-400:]:
            if call.group == 0 and call.process in lost and call.operation.status == lib.CC_OK:
                late = any(
                    mark.lane == call.lane and mark.committed < call.number
                    for peer, report in reports.items()
                    if peer in stay
                    for mark in report.lanes
                )
                points["a member that was lost had succeeded already"] += late
    for member in record.members:
        process = fleet.by_id[member.id]
        if process.returns and process.lineage == 0:
            points["eviction and return"] += 1


def at_end(fleet: Fleet) -> None:
    """Called when a life is over: what its processes were told."""
    for call in fleet.calls:
        info = call.operation.info
        if call.told:
            fleet.points[f"told: {STATUSES[call.told[0]]}"] += 1
        if info.status == lib.CC_OK and info.attempts > 1:
            fleet.points["an operation began again"] += 1
    for message in fleet.messages:
        fleet.points[f"message: {STATUSES[message.operation.status]}"] += 1


def state_of(fleet: Fleet, process: Process) -> str:
    seat = process.seat
    latest = max(fleet.rolls, default=0)
    if seat.current is None:
        if latest and process in fleet.rolls[latest].members:
            return "before install"
        return "rehearsing" if process.courier.joiner.welcome else "joining"
    if latest > seat.current.epoch and process in fleet.rolls[latest].members:
        return "before install"
    if seat.report is not None:
        return "sealed"
    if process.core.ready != seat.current.epoch:
        return "during install"
    return _doing(fleet, process)


def _installs(fleet: Fleet, process: Process) -> bool:
    epoch = max(fleet.rolls, default=0)
    return process.alive and process.epoch == epoch and process.core.ready < epoch


def _doing(fleet: Fleet, process: Process) -> str:
    """What an active member does with its operations: only its core knows. So it is made to seal,
    which nobody can hear, for nothing leaves a process between its last step and its death."""
    current = process.seat.current
    lib.cc_sim_mute(fleet.sim, process.address.encode(), 0)
    lib.cc_seal(process.context, current.group, current.epoch)
    event = ffi.new("cc_event *")
    while lib.cc_next_event(process.context, event) == lib.CC_OK:
        if event.kind == lib.CC_EVENT_SEALED and event.group == current.group:
            lanes = event.report.lanes[0 : event.report.n_lanes]
            if any(lane.posted > lane.done for lane in lanes):
                return "moving"
            if any(lane.done > lane.committed for lane in lanes):
                return "done, not committed"
            others = [p for p in fleet.members if p is not process and p.alive]
            busy = any(lane.open for p in others for lane in p.program.lanes.values())
            return "before post" if busy else "idle"
    return "sealed"  # its core had sealed, and its courier had no turn since
