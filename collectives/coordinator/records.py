"""The records of epochs: what the first one, and each next one, says.

Pure functions from the last record and what was decided to the new record. Ranks are what matters
here: they are given out when a group forms, become holes when their owner dies, and move only at a
boundary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from collectives.coordinator import decide
from collectives.messages import MEMBERS_MAX, NO_PEER, Cause, Epoch, Join, Member, Outcome

_RETRIED = (Cause.LOST, Cause.LINK)
"""A program that called different operations, or whose time is over, would only fail again."""

EPOCHS_SKIPPED = 1 << 32  # more than any coordinator publishes
LATENCY_NS_MAX = 1 << 63  # the greatest power of two that fits into a record

Arrival = tuple[Join, int]
"""Who joins, and as the how-manieth it came."""


def objection(ours: Join, join: Join, waiting: Sequence[Join], running: bool) -> str | None:
    """Why someone may not wait for this group, or None. `ours` fixed the group's settings."""
    for what in ("size", "min_size", "streams", "segment_bytes"):
        mine, other = getattr(ours, what), getattr(join, what)
        if mine != other:
            return (
                f"group {ours.group!r} has {what}={mine}, this peer asks for {what}={other}; "
                "all peers of a group must use the same"
            )
    if join.min_size > join.size:
        return f"min_size={join.min_size} is more than size={join.size}"
    if join.rank is not None and join.rank >= join.size:
        return f"rank={join.rank} is not below size={join.size}"
    if len(waiting) >= MEMBERS_MAX:
        return f"{MEMBERS_MAX} peers wait for group {ours.group!r} already"
    if join.rank is not None and not running:
        for other_join in waiting:
            if other_join.rank == join.rank:
                who = other_join.name or other_join.id.hex()
                return f"rank={join.rank} is taken by peer {who!r}"
    return None


def formed(number: int, last: Epoch | None, arrivals: Sequence[Arrival]) -> Epoch:
    """The first record of a lineage. Who asked for a rank has it; the others get what is left, by
    name, then id. `last` is the record of a lineage before, whose numbers go on."""
    ranked: dict[int, Arrival] = {}
    others: list[Arrival] = []
    for arrival in arrivals:
        # Two may ask for one rank if they joined a running group, where it did not count.
        rank = arrival[0].rank
        if rank is None or ranked.setdefault(rank, arrival) is not arrival:
            others.append(arrival)
    others.sort(key=lambda arrival: (arrival[0].name, arrival[0].id), reverse=True)
    members = tuple(
        _member(ranked[rank] if rank in ranked else others.pop(), rank)
        for rank in range(len(arrivals))
    )
    return Epoch(
        group=number,
        epoch=last.epoch + 1 if last else 1,
        cause=Cause.FORMED,
        world=len(members),
        min_size=arrivals[0][0].min_size,
        lost=NO_PEER,
        lost_rank=0,
        members=members,
        # What the lineage before left undecided, nobody here has seen.
        lanes=tuple(
            Outcome(lane.lane, lane.failed, lane.failed, lane.failed)
            for lane in (last.lanes if last else ())
        ),
    )


def formed_of(number: int, members: Sequence[Member]) -> Epoch:
    """The first record of a subgroup."""
    return Epoch(
        group=number,
        epoch=1,
        cause=Cause.FORMED,
        world=len(members),
        min_size=1,
        lost=NO_PEER,
        lost_rank=0,
        members=tuple(replace(member, rank=rank) for rank, member in enumerate(members)),
        lanes=(),
    )


def without_the_dead(last: Epoch, reports: decide.Reports, linked: bool) -> Epoch:
    """The next record without a boundary: ranks stay, those of the dead are holes. `linked` says
    that a link broke between survivors; `reports` are in the order in which they came."""
    members = tuple(member for member in last.members if member.id in reports)
    lost = next((member for member in last.members if member.id not in reports), None)
    cause, detail = _why(reports, lost is not None, linked)
    return Epoch(
        group=last.group,
        epoch=last.epoch + 1,
        cause=cause,
        world=last.world,
        min_size=last.min_size,
        lost=lost.id if lost and cause is Cause.LOST else NO_PEER,
        lost_rank=lost.rank if lost and cause is Cause.LOST else 0,
        members=members,
        lanes=decide.outcomes(reports, decide.by_lane(last), retry=cause in _RETRIED),
        detail=detail,
    )


def _why(reports: decide.Reports, lost: bool, linked: bool) -> tuple[Cause, str]:
    """The cause of a record, and the detail of the first report that has that cause. A mismatch
    comes first: a program that is told to call again would only meet it again."""
    causes = {report.cause for report in reports.values()}
    differing = decide.mismatches(reports)
    if Cause.MISMATCH in causes:
        cause = Cause.MISMATCH
    elif differing:
        lane, sequence = min(differing.items())
        return Cause.MISMATCH, f"members differ in what operation {sequence} of lane {lane} is"
    elif lost:
        cause = Cause.LOST
    elif Cause.DEADLINE in causes and not linked:
        cause = Cause.DEADLINE
    else:
        cause = Cause.LINK
    details = (report.detail for report in reports.values() if report.cause is cause)
    unknown = "who found out was lost before it said which" if cause is Cause.MISMATCH else ""
    return cause, next(filter(None, details), unknown)


def after_boundary(
    last: Epoch,
    reports: decide.Reports,
    leavers: Collection[bytes],
    joiners: Sequence[Arrival],
) -> Epoch | None:
    """The next record when a boundary is carried out: survivors keep their order and close the
    holes, joiners come behind. None if no survivor stays."""
    staying = [m for m in last.members if m.id in reports and m.id not in leavers]
    if not staying:
        return None
    everyone = staying + [_member(joiner, 0) for joiner in joiners]
    members = tuple(
        Member(m.id, rank, m.serial, m.host, m.address, m.name)
        for rank, m in enumerate(everyone[:MEMBERS_MAX])
    )
    return Epoch(
        group=last.group,
        epoch=last.epoch + 1,
        cause=Cause.BOUNDARY,
        world=len(members),
        min_size=last.min_size,
        lost=NO_PEER,
        lost_rank=0,
        members=members,
        lanes=decide.outcomes(reports, decide.by_lane(last), retry=True),
    )


def recovered(last: Epoch, reports: decide.Reports) -> Epoch:
    """The first record of a coordinator that lost what it had decided, after the last one that a
    member knows. Its number is beyond all that may have been published since."""
    return Epoch(
        group=last.group,
        epoch=(last.epoch // EPOCHS_SKIPPED + 1) * EPOCHS_SKIPPED,
        cause=Cause.RECOVERED,
        world=last.world,
        min_size=last.min_size,
        lost=NO_PEER,
        lost_rank=0,
        members=tuple(member for member in last.members if member.id in reports),
        lanes=decide.known(reports, decide.by_lane(last)),
    )


def same(one: Epoch, other: Epoch) -> bool:
    """Whether two peers tell of the same record."""

    def content(record: Epoch) -> tuple[object, ...]:
        members = [(member.id, member.rank, member.serial) for member in record.members]
        return record.epoch, record.cause, record.world, record.lanes, members

    return content(one) == content(other)


def worst(networks: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The greatest latency and the least bandwidth that are known, each rounded to a power of two
    (the worse one), so that records rarely differ in them; 0: not known."""
    networks = list(networks)
    latency = min(max((latency for latency, _ in networks), default=0), LATENCY_NS_MAX)
    bandwidth = min((bandwidth for _, bandwidth in networks if bandwidth), default=0)
    return (
        1 << (latency - 1).bit_length() if latency else 0,
        1 << bandwidth.bit_length() - 1 if bandwidth else 0,
    )


def candidates(joiners: Sequence[Arrival]) -> tuple[Member, ...]:
    """Those who may form a group, for each other to prepare for."""
    return tuple(_member(joiner, rank) for rank, joiner in enumerate(joiners))


def assert_follows(last: Epoch | None, record: Epoch) -> None:
    """What must hold between any two records of a group, whatever peers said."""
    record.check()
    if last is None:
        return
    assert record.group == last.group
    if record.cause is Cause.RECOVERED:
        assert record.epoch > last.epoch
        assert record.epoch % EPOCHS_SKIPPED == 0
    else:
        assert record.epoch == last.epoch + 1
    lanes = decide.by_lane(record)
    for lane in last.lanes:
        assert lanes[lane.lane].committed >= lane.failed, "a lane went back"
    if record.cause not in (Cause.FORMED, Cause.BOUNDARY):
        before = {member.id: member for member in last.members}
        assert record.world == last.world
        assert all(before.get(member.id) == member for member in record.members)


def _member(arrival: Arrival, rank: int) -> Member:
    join, serial = arrival
    return Member(join.id, rank, serial, join.host, join.address, join.name)
