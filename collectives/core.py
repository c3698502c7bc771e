"""The core's context as Python objects: what the agent and the communicator call.

Nothing is decided here. Every method may be called from any thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from collectives import messages
from collectives._core import ffi, lib
from collectives.config import Timeouts, milliseconds
from collectives.errors import from_status
from collectives.events import Event, Prepared, Ready, Sealed, Told, Waits

_MESSAGE = int(lib.CC_MESSAGE_MAX)


def text(message: Any) -> str:
    """A NUL-terminated C string."""
    found: bytes = ffi.string(message)
    return found.decode("utf-8", "replace")


class Context:
    """A cc_context. `options` are fields of cc_options by name.

    Attributes:
        run: names the run: a hash of its token, which is secret; "" before that is known.
        on_failure: called with a status and an epoch when an operation has failed, by who waits for
            it, and when this peer has been expelled, by who did it.
    """

    def __init__(self, peer_id: bytes, timeouts: Timeouts, **options: Any) -> None:
        native = ffi.new("cc_options *")
        lib.cc_options_default(native)
        native.id.bytes = peer_id
        native.timeouts.beat_ms = milliseconds(timeouts.beat)
        native.timeouts.dead_ms = milliseconds(timeouts.dead)
        native.timeouts.connect_ms = milliseconds(timeouts.connect)
        native.timeouts.linger_ms = milliseconds(timeouts.linger)
        native.timeouts.suspect_ms = milliseconds(timeouts.suspect_time)
        native.timeouts.stalled_ms = milliseconds(timeouts.stalled)
        keep = []
        for name, value in options.items():
            if isinstance(value, str):
                value = ffi.new("char[]", value.encode())
                keep.append(value)
            if value is not None:
                setattr(native, name, value)
        out = ffi.new("cc_context **")
        message = ffi.new("char[]", _MESSAGE)
        status = lib.cc_context_open(native, out, message)
        if status != lib.CC_OK:
            raise from_status(status, text(message))
        self.native = ffi.gc(out[0], lib.cc_context_free)
        self._event = ffi.new("cc_event *")
        self.run = ""
        self.on_failure: Callable[[int, int], None] = lambda status, epoch: None

    # ---- what the courier calls (collectives.events.Core) ------------------------------------

    def address(self) -> str:
        out = ffi.new("char[]", int(lib.CC_ADDRESS_MAX))
        lib.cc_context_address(self.native, out)
        return text(out)

    def set_token(self, token: bytes) -> None:
        self.run = hashlib.blake2b(token, digest_size=8, person=b"cc trace").hexdigest()
        lib.cc_context_set_token(self.native, token)

    def _members(self, members: Sequence[messages.Member]) -> Any:
        native = ffi.new("cc_member[]", max(1, len(members)))
        for to, member in zip(native, members, strict=False):
            to.id.bytes = member.id
            to.rank = member.rank
            to.serial = member.serial
            to.host = member.host
            to.address = member.address.encode()
        return native

    def install(self, record: messages.Epoch) -> None:
        members = self._members(record.members)
        lanes = ffi.new("cc_outcome[]", max(1, len(record.lanes)))
        for to, lane in zip(lanes, record.lanes, strict=False):
            to.lane, to.committed = lane.lane, lane.committed
            to.failed, to.posted = lane.failed, lane.posted
        detail = ffi.new("char[]", record.detail.encode()[: int(lib.CC_DETAIL_MAX) - 1])
        native = ffi.new("cc_epoch *")
        native.group = record.group
        native.epoch = record.epoch
        native.cause = int(record.cause)
        native.world = record.world
        native.min_size = record.min_size
        native.network.latency_ns = record.latency_ns
        native.network.bytes_per_s = record.bytes_per_s
        native.lost.bytes = record.lost
        native.lost_rank = record.lost_rank
        native.detail = detail
        native.members, native.n_members = members, len(record.members)
        native.lanes, native.n_lanes = lanes, len(record.lanes)
        self._check(lib.cc_install(self.native, native), "installing an epoch")

    def record(self, last: messages.Epoch) -> messages.Epoch | None:
        room = len(last.members)
        native, members = ffi.new("cc_epoch *"), ffi.new("cc_member[]", room)
        lanes = ffi.new("cc_outcome[]", int(lib.CC_REPORT_LANES_MAX))
        detail = ffi.new("char[]", int(lib.CC_DETAIL_MAX))
        status = lib.cc_record(self.native, last.group, native, members, room, lanes, detail)
        if status != lib.CC_OK:
            return None
        present = {bytes(member.id.bytes) for member in members[0 : native.n_members]}
        return messages.Epoch(
            group=last.group,
            epoch=native.epoch,
            cause=messages.Cause(native.cause),
            world=native.world,
            min_size=native.min_size,
            lost=bytes(native.lost.bytes),
            lost_rank=native.lost_rank,
            members=tuple(member for member in last.members if member.id in present),
            lanes=tuple(
                messages.Outcome(lane.lane, lane.committed, lane.failed, lane.posted)
                for lane in lanes[0 : native.n_lanes]
            ),
            detail=text(detail),
            latency_ns=native.network.latency_ns,
            bytes_per_s=native.network.bytes_per_s,
        )

    def prepare(self, serial: int, members: Sequence[messages.Member]) -> None:
        native = self._members(members)
        status = lib.cc_prepare(self.native, serial, native, len(members))
        self._check(status, "connecting to the members")

    def set_pending(self, group: int, joiners: int) -> None:
        lib.cc_set_pending(self.native, group, joiners)

    def seal(self, group: int, epoch: int) -> None:
        lib.cc_seal(self.native, group, epoch)

    def expel(self, group: int, status_name: str, reason: str) -> None:
        status = getattr(lib, f"CC_{status_name}")
        lib.cc_expel(self.native, group, status, reason.encode()[: _MESSAGE - 1])
        self.on_failure(status, 0)

    def close_group(self, group: int) -> None:
        lib.cc_group_close(self.native, group)

    def fd(self) -> int:
        return int(lib.cc_context_fd(self.native))

    def next_event(self) -> Event | None:
        event = self._event
        if lib.cc_next_event(self.native, event) != lib.CC_OK:
            return None
        if event.kind == lib.CC_EVENT_READY:
            return Ready(event.group, event.epoch)
        if event.kind == lib.CC_EVENT_TOLD:
            return Told(event.group, event.epoch)
        if event.kind == lib.CC_EVENT_WAITS:
            named = min(event.n_stragglers, int(lib.CC_STRAGGLERS_MAX))
            return Waits(
                group=event.group,
                lane=event.lane,
                sequence=event.sequence,
                call=text(event.call),
                seconds=event.waited_ns / 1e9,
                late=event.stragglers[0].delay == lib.CC_LATE,
                ranks=tuple(int(one.rank) for one in event.stragglers[0:named]),
                count=event.n_stragglers,
            )
        if event.kind == lib.CC_EVENT_PREPARED:
            return Prepared(
                ok=event.status == lib.CC_OK,
                peer=bytes(event.peer.bytes),
                reason=text(lib.cc_status_text(event.status)),
                latency_ns=event.network.latency_ns,
                bytes_per_s=event.network.bytes_per_s,
            )
        return Sealed(self._report(event.report, bytes(event.peer.bytes)))

    def _report(self, native: Any, of: bytes) -> messages.Report:
        return messages.Report(
            group=native.group,
            epoch=native.epoch,
            cause=messages.Cause(native.cause),
            boundary=native.boundary,
            wants=native.wants,
            lanes=tuple(
                messages.LaneReport(lane.lane, lane.committed, lane.done, lane.posted)
                for lane in native.lanes[0 : native.n_lanes]
            ),
            evidence=tuple(
                messages.Evidence(bytes(item.peer.bytes), messages.EvidenceKind(item.kind))
                for item in native.evidence[0 : native.n_evidence]
            ),
            detail=text(native.detail),
            calls=tuple(
                messages.Call(lane.lane, lane.committed + 1 + i, lane.calls[i])
                for lane in native.lanes[0 : native.n_lanes]
                for i in range(lane.n_calls)
                if lane.calls[i]
            ),
            of=of,
        )

    # ---- the end ----------------------------------------------------------------------------

    def close(self, *, abort: bool = False) -> None:
        lib.cc_context_close(self.native, int(abort))

    def stats(self) -> dict[str, int]:
        native = ffi.new("cc_stats *")
        lib.cc_context_stats(self.native, native)
        names = ("sent_bytes", "received_bytes", "operations", "epochs", "bad_connections")
        return {name: int(getattr(native, name)) for name in names}

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != lib.CC_OK:
            raise from_status(status, f"{what} failed: {text(lib.cc_status_text(status))}")
