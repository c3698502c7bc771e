"""What carries messages between a peer's core and the coordinator, without thread, socket or clock.

It decides nothing. The core seals, and the courier takes its report to the coordinator; the
coordinator decides, and the courier takes its record to the core. Whatever was not acknowledged is
sent again. Who drives it says what time it is, hands in what the coordinator said, and asks when
time itself is the next thing to happen: `collectives.agent` does so in a thread, over ZeroMQ, and
a simulator for many peers at once under a virtual clock.

A peer has one courier for all its groups: the one that it joined, and those that were split off it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from collectives import config, logs, messages
from collectives.errors import (
    Closed,
    CollectivesError,
    CoordinatorLost,
    CoordinatorUnreachable,
    Evicted,
    Refused,
)
from collectives.events import Core, Link, Ready, Sealed, Told, Waits
from collectives.joiner import Joiner
from collectives.messages import NO_PEER, Epoch, Join, Member
from collectives.openings import Openings
from collectives.seat import Seat

log = logging.getLogger("collectives.agent")


class Courier:
    """Takes a peer into a group and keeps it in there. One thread at a time calls it; `now` is in
    seconds and never decreases.

    Args:
        core: see `Core`. It must outlive the courier.
        url: of the coordinator, for messages.
        join: the JOIN to send; its address is what other peers dial.
        timeouts: those between peer and coordinator are used.
        resolve: makes the addresses of members numeric, or raises OSError.
        on_epoch: called after each installed record of the joined group.

    Attributes:
        root: this peer's place in the group that it joined; once that has ended, all has.
    """

    def __init__(
        self,
        core: Core,
        url: str,
        join: Join,
        timeouts: config.Timeouts,
        resolve: Callable[[Sequence[Member]], list[Member]],
        on_epoch: Callable[[Epoch], None] | None = None,
    ) -> None:
        self.root = Seat()
        self.joiner = Joiner(core, join, resolve, timeouts.ping)
        self._core = core
        self._url = url
        self._join = join
        self._timeouts = timeouts
        self._resolve = resolve
        self._on_epoch = on_epoch
        self._seats: dict[int, Seat] = {}
        self._openings = Openings(timeouts.ping)
        self._link: Link | None = None
        self._started = self._heard_at = self._next_ping = 0.0
        self._term = 0  # the coordinator's, the greatest heard as a member
        self._stranger_to = ""  # what a coordinator said that does not know this peer

    # ---- for who drives it -----------------------------------------------------------------------

    def start(self, link: Link, now: float) -> None:
        """From now on there is a connection, be it up or not. Called once, before all else."""
        self._link = link
        self._started = self._heard_at = now

    def tick(self, now: float) -> float:
        """Sends what is due and returns when the next thing will be: call it then at the latest."""
        link, times = self._to, []
        if self.root.current is None:
            times.append(self.joiner.tick(link, now))
        if now >= self._next_ping:
            if link.is_up:  # or they would only queue up
                member_of = self.root.group if self.root.current else 0
                link.send(messages.Ping(member_of, self._term))
            self._next_ping = now + self._timeouts.ping
        times.append(self._next_ping)
        if self._openings:
            times.append(self._openings.tick(link, now))
        for seat in self._seats.values():
            if seat.report is not None:
                times.append(self._report_again(seat, seat.report, now))
            if seat.carried:
                times.append(self._carry_again(seat, now))
        times.append(self._look_for_coordinator(now))
        return min(times)

    def came_up(self) -> None:
        """The connection is a new one: what was sent before may have been lost with the old."""
        self.joiner.again()
        self._openings.again()
        self._next_ping = 0.0
        for seat in self._seats.values():
            seat.next_report = seat.next_carried = 0.0

    def take(self, message: messages.ToPeer, now: float) -> None:
        """Acts on a message of the coordinator, and on what the core made of it."""
        if self.root.ended is not None or self._is_stale(message):
            return
        self._heard_at = now
        if isinstance(message, messages.Unknown):
            self._take_unknown(message)
        else:
            self._act(message)
        self.take_events(now)

    def take_events(self, now: float) -> None:
        """Takes all events out of the core and acts on them at once."""
        while self.root.ended is None and (event := self._core.next_event()) is not None:
            if isinstance(event, Sealed):
                self._take_report(event.report, now)
            elif isinstance(event, Ready):
                seat = self._seats.get(event.group)
                if seat and seat.current and event.epoch == seat.current.epoch:
                    self._to.send(messages.Installed(event.group, event.epoch, True))
            elif isinstance(event, Told):
                self._take_told(event.group)
            elif isinstance(event, Waits):
                self._warn(event)
            elif self.root.current is None:
                self.joiner.take_prepared(self._to, event)

    def open(self, seat: Seat, request: messages.Subgroup) -> None:
        """Asks for a subgroup; the seat tells what became of it."""
        self._openings.ask(self._to, seat, request)

    def forget(self, seat: Seat, told: int) -> None:
        """The seat was closed by its owner, who has told the core of this group number."""
        self._openings.forget(seat)
        if self._seats.pop(seat.group, None) is None:
            return
        if seat.group != told:
            self._core.close_group(seat.group)
        self._to.send(messages.Bye(seat.group))

    def leave(self) -> None:
        """Says goodbye to the coordinator."""
        self._to.send(messages.Bye())

    def fail(self, error: CollectivesError) -> None:
        """It cannot go on: operations must not wait forever."""
        self.end("CLOSED" if self.root.current is None else "COORDINATOR_LOST", error)

    def end(self, status_name: str | None, error: CollectivesError) -> None:
        """This peer is in no group any more: every operation is told, once. Without a status by the
        core itself, which is closed next and says goodbye first."""
        if self.root.ended is None:
            level = logging.INFO if status_name in ("CLOSED", None) else logging.WARNING
            log.log(level, "group %r: this peer is out: %s", self._join.group, error)
        self._openings.end(error)
        for seat in {self.root, *self._seats.values()}:
            if seat.end(error) and status_name is not None:
                self._core.expel(seat.group, status_name, str(error))

    @property
    def _to(self) -> Link:
        assert self._link is not None, "start comes first"
        return self._link

    # ---- time ------------------------------------------------------------------------------------

    def _report_again(self, seat: Seat, report: messages.Report, now: float) -> float:
        heard = 0.0 if seat.is_unknown else self._heard_at
        lost_at = max(heard, seat.report_since) + self._timeouts.coordinator_lost
        if now >= lost_at:
            why = f"said that {self._stranger_to}" if seat.is_unknown else "was not heard"
            self.fail(
                CoordinatorLost(
                    f"the coordinator at {self._url} {why}, for "
                    f"{self._timeouts.coordinator_lost:g} s while a decision was outstanding; what "
                    "became of the open operations is unknown"
                )
            )
        elif now >= seat.next_report:
            self._to.send(report)
            seat.next_report = now + self._timeouts.repeat
        return min(seat.next_report, lost_at)

    def _carry_again(self, seat: Seat, now: float) -> float:
        if now >= seat.next_carried:
            for report in seat.carried.values():
                self._to.send(report)
            seat.next_carried = now + self._timeouts.carry_time
        return seat.next_carried

    def _look_for_coordinator(self, now: float) -> float:
        """Gives up if nobody has ever answered. Returns when it will."""
        if self.joiner.welcome is not None:
            return float("inf")
        until = self._started + self._timeouts.connect
        if now >= until:
            self.fail(CoordinatorUnreachable(self._to.why_silent(self._timeouts.connect)))
        return until

    # ---- from the core ---------------------------------------------------------------------------

    def _take_report(self, report: messages.Report, now: float) -> None:
        seat = self._seats.get(report.group)
        if report.of != NO_PEER:
            if seat and seat.carry(report, now, self._timeouts.carry_time):
                self._to.send(report)
            return
        known = seat.report if seat else None
        if seat and seat.take_report(report, now, self._timeouts.repeat):
            self._to.send(report)
            if report != known:
                self._tell(seat, logs.report_text, report, seat.current)

    def _take_told(self, group: int) -> None:
        """The core is ahead of the coordinator's record, which other members have got."""
        seat = self._seats.get(group)
        if seat is None or seat.current is None:
            return
        record = self._core.record(seat.current)
        if record is not None and record.epoch > seat.current.epoch:
            assert seat.published is not None
            staying = {member.id for member in record.members}
            named = tuple(m for m in seat.published.members if m.id in staying)
            self._take_installed(seat, record, replace(record, members=named))

    # ---- from the coordinator --------------------------------------------------------------------

    def _is_stale(self, message: messages.ToPeer) -> bool:
        """Whether this is of a coordinator that another one has followed: it may not know what
        that one decided. Who is no member yet has no decision to lose, and takes what there is."""
        if not isinstance(message, messages.Word):
            return False
        if self.root.current is not None and message.term < self._term:
            log.debug("ignored %s of term %d", message.TYPE, message.term)
            return True
        self._term = message.term
        return False

    def _act(self, message: messages.ToPeer) -> None:
        if isinstance(message, messages.Welcome):
            if self.root.current is None:
                self.joiner.take_welcome(self._to, message)
                self.root.group = message.group
                self._seats[message.group] = self.root
        elif isinstance(message, messages.Refused):
            if self.root.current is None:
                reason = f"the coordinator at {self._url} refused: {message.reason}"
                self.fail(Refused(reason))
        elif isinstance(message, messages.Opened):
            self._take_opened(message)
        elif isinstance(message, Epoch):
            self._take_epoch(message)
        elif isinstance(message, (messages.Seal, messages.Evicted, messages.Pending)):
            seat = self._seats.get(message.group)
            if seat is not None:
                seat.is_unknown = False
                self._take_for(seat, message)
            elif isinstance(message, messages.Seal):
                self._take_foreign(message.group)

    def _take_for(
        self, seat: Seat, message: messages.Seal | messages.Evicted | messages.Pending
    ) -> None:
        if isinstance(message, messages.Evicted):
            if not message.left:  # what is no member of one group is a member of none
                self.end("EVICTED", Evicted(message.reason))
            elif seat is self.root:
                self.end("CLOSED", Closed(message.reason))
            else:
                del self._seats[seat.group]
                seat.end(Closed(message.reason))
                self._core.expel(seat.group, "CLOSED", message.reason)
        elif seat.current is None:
            return
        elif isinstance(message, messages.Seal):
            if message.epoch == seat.current.epoch:
                self._core.seal(message.group, message.epoch)
        else:
            self._core.set_pending(message.group, message.joiners)
            seat.pending = message.joiners  # whoever sees it may call admit, which goes by the core

    def _take_epoch(self, message: Epoch) -> None:
        # The first record needs the token, which is in the WELCOME; both are sent again.
        seat = self._seats.get(message.group)
        if seat is None:
            self._take_foreign(message.group)
            return
        seat.is_unknown = False
        if seat.current is not None and message.epoch <= seat.current.epoch:
            # The coordinator did not hear that it is installed.
            self._to.send(messages.Installed(message.group, seat.current.epoch, False))
            return
        try:
            record = replace(message, members=tuple(self._resolve(message.members)))
            self._core.install(record)
        except (OSError, ValueError, CollectivesError) as error:
            self._cannot_install(seat, message, error)
            return
        self._take_installed(seat, record, message)

    def _take_installed(self, seat: Seat, record: Epoch, published: Epoch) -> None:
        before, seat.published = seat.current, published
        seat.take_record(record)
        self._to.send(messages.Installed(record.group, record.epoch, False))
        self._tell(seat, logs.epoch_text, record, before, self._join.id)
        if seat is self.root and self._on_epoch is not None:
            try:
                self._on_epoch(record)
            except Exception:  # it is the owner's code; the courier goes on
                log.exception("on_epoch failed for epoch %d", record.epoch)

    def _cannot_install(self, seat: Seat, message: Epoch, error: Exception) -> None:
        if seat.ended is not None:
            return  # it was closed meanwhile
        if seat is not self.root and seat.current is None:  # such as one group too many
            del self._seats[seat.group]
            self._decline(seat.group)
            seat.end(Refused(f"this peer cannot take part in the subgroup: {error}"))
            return
        log.error("epoch %d could not be installed: %s", message.epoch, error)
        self._to.send(messages.Bye())
        reason = f"this peer cannot take part in epoch {message.epoch}: {error}"
        self.end("EVICTED", Evicted(reason))

    def _tell(self, seat: Seat, text: Callable[..., str], *about: object) -> None:
        if log.isEnabledFor(logging.INFO):
            log.info("%s: %s", self._name(seat), text(*about))

    def _take_unknown(self, message: messages.Unknown) -> None:
        """The coordinator does not know this member: it has lost, or never had, what the one had
        that this peer joined. Until that is repaired nothing can be decided."""
        seat, welcome = self._seats.get(message.group), self.joiner.welcome
        if seat is None or seat.current is None or welcome is None:
            return
        if message.reason != self._stranger_to:
            log.warning("the coordinator at %s: %s", self._url, message.reason)
            self._stranger_to = message.reason
        seat.is_unknown |= not message.recover
        for each in self._seats.values() if message.recover else ():  # the first is the root
            if each.published is not None:
                is_subgroup = each is not self.root
                about = self._term, welcome.token, is_subgroup, self._join
                self._to.send(messages.Claim(*about, each.published))

    def _warn(self, event: Waits) -> None:
        seat = self._seats.get(event.group)
        if seat is None or seat.current is None:
            return
        named = [member for member in seat.current.members if member.rank in event.ranks]
        text = logs.waits_text(
            event.call, event.sequence, event.seconds, named, event.count, event.late
        )
        log.warning("%s: %s", self._name(seat), text)

    def _name(self, seat: Seat) -> str:
        return f"group {self._join.group!r}" if seat is self.root else f"group {seat.group}"

    # ---- subgroups -------------------------------------------------------------------------------

    def _take_opened(self, message: messages.Opened) -> None:
        seat = self._openings.take(message)
        if seat is not None:
            seat.group = message.group
            self._seats[message.group] = seat
        elif message.group and message.group not in self._seats:
            self._decline(message.group)

    def _take_foreign(self, group: int) -> None:
        """The coordinator takes this peer for a member of a group that it closed, and whose BYE got
        lost. While subgroups are being opened it may be one of these."""
        if self.root.current is not None and not self._openings:
            self._decline(group)

    def _decline(self, group: int) -> None:
        """This peer is in no such group any more, whatever the others think."""
        self._core.close_group(group)
        self._to.send(messages.Bye(group))
