"""The rare paths: which of them a life has taken.

A batch of lives is worth what it reaches. Each path has a name and is counted in `Fleet.points`; a
test asserts over a batch that none was missed. Nothing here changes what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collectives._core import ffi, lib

if TYPE_CHECKING:
    from fleet import Fleet
    from fleet_process import Process

STATES = (
    *("joining", "rehearsing", "before install", "during install", "sealed"),
    *("idle", "before post", "moving", "done, not committed"),
)


def at_death(fleet: Fleet, process: Process) -> None:
    """Called right before a process dies: in which state it does."""
    state = state_of(fleet, process)
    fleet.points[f"death: {state}"] += 1
    if any(other is not process and _installs(fleet, other) for other in fleet.members):
        fleet.points["second death during install"] += 1


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
