"""A peer's place in one group, as its courier keeps it: the record installed last, the report that
is not answered yet, and how it ended.

The courier changes it; any thread may wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from collectives.errors import CollectivesError, TimedOut
from collectives.messages import Cause, Epoch, Report

WAIT_SLICE_S = 0.1  # so that Ctrl-C is noticed: a matter of this process, not of the protocol


class Seat:
    """A place in a group.

    Attributes:
        group: the group's number; 0 until the coordinator has told it.
        settled: the record that ranks go by: of the last boundary, or of the beginning; or None.
        current: the record installed last, or None. Host names in records are resolved.
        pending: how many joiners are ready to be admitted.
        ended: why this peer is in the group no more, or never will be; or None.
    """

    def __init__(self, root: Seat | None = None) -> None:
        self.group = 0
        self._root = root  # of a subgroup's: where it ends, this one does
        self.settled: Epoch | None = None
        self.current: Epoch | None = None
        self.pending = 0
        self.ended: CollectivesError | None = None
        self.published: Epoch | None = None  # `current` as it came, with names of hosts
        self.is_unknown = False  # to the coordinator that was heard last
        self.report: Report | None = None  # sent again until it is answered by a record
        self.carried: dict[bytes, Report] = {}  # those of other members, likewise
        self.report_since = self.next_report = self.next_carried = 0.0
        self._changed = threading.Condition()

    # ---- for any thread --------------------------------------------------------------------------

    def wait_member(self, timeout: float | None, why_not: Callable[[], str]) -> Epoch:
        """Waits until this peer is a member, and returns the record. Raises why it never will be,
        or TimedOut with what `why_not` says."""
        return self._wait(lambda: self.current, timeout, why_not)

    def wait_boundary(self, after: int) -> Epoch:
        """Waits until a boundary's record newer than epoch `after` is installed, and returns it.
        Raises why this peer is in the group no more."""

        def newer() -> Epoch | None:
            settled = self.settled
            return settled if settled is not None and settled.epoch > after else None

        return self._wait(newer, None, str)

    def _wait(
        self, wanted: Callable[[], Epoch | None], timeout: float | None, why_not: Callable[[], str]
    ) -> Epoch:
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (record := wanted()) is None:
                ended = self.ended or (self._root.ended if self._root else None)
                if ended is not None:
                    raise ended
                left = WAIT_SLICE_S
                if until is not None:
                    left = min(until - time.monotonic(), left)
                if left <= 0:
                    raise TimedOut(why_not())
                self._changed.wait(left)
            return record

    def end(self, error: CollectivesError) -> bool:
        """Whether it had not ended before."""
        with self._changed:
            if self.ended is not None:
                return False
            self.ended = error
            self.report = None
            self.carried = {}
            self._changed.notify_all()
        return True

    # ---- for the courier ------------------------------------------------------------------------

    def take_record(self, record: Epoch) -> None:
        if self.report is not None and self.report.epoch < record.epoch:
            self.report = None
        self.carried = {of: r for of, r in self.carried.items() if r.epoch >= record.epoch}
        with self._changed:
            if self.settled is None or record.cause is Cause.BOUNDARY:
                self.settled = record
            self.current = record
            self._changed.notify_all()

    def take_report(self, report: Report, now: float, repeat_s: float) -> bool:
        """Whether a report is of the present epoch, and to be sent."""
        if self.current is None or report.epoch < self.current.epoch:
            return False
        if self.report is None or self.report.epoch != report.epoch:
            self.report_since = now
        self.report, self.next_report = report, now + repeat_s
        return True

    def carry(self, report: Report, now: float, repeat_s: float) -> bool:
        """Whether a report of another member is to be sent. It may be of an epoch that this peer
        has yet to install."""
        if self.current is None or report.epoch < self.current.epoch:
            return False
        self.carried[report.of] = report
        self.next_carried = now + repeat_s
        return True
