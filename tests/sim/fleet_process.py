"""One process of a fleet: the product's C core, its courier, and a program that calls operations.

The core runs whenever the process does. Courier and program are Python: while the interpreter is
busy with something else, neither gets a turn, as in a process whose main thread sorts a list.
A process has a clock of its own, which starts anywhere and runs too fast or too slow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control_network import NEVER, UP
from fleet_program import Program
from peer import Caller

from collectives import messages
from collectives._core import lib
from collectives.core import Context
from collectives.courier import Courier
from collectives.errors import ProtocolError
from collectives.events import Ready, Sealed

if TYPE_CHECKING:
    from fleet import Fleet

URL = "cc://sim:1"
MILLION = 1_000_000
ROOT = 1  # the number of the group that all join; subgroups have later ones


def used(record: messages.Epoch) -> tuple[messages.Outcome, ...]:
    """Its lanes but those of which it says nothing: a core has made these for its next call."""
    return tuple(lane for lane in record.lanes if lane.posted)


class Clock:
    """A process's own time, from the world's. As `cc_sim_set_clock` says."""

    def __init__(self, offset_ns: int, fast_ppm: int) -> None:
        self.offset_ns, self.fast_ppm = offset_ns, fast_ppm

    def local_ns(self, world_ns: int) -> int:
        whole, rest = divmod(world_ns, MILLION)
        return self.offset_ns + world_ns + whole * self.fast_ppm + int(rest * self.fast_ppm / 1e6)

    def seconds(self, world_ns: int) -> float:
        return self.local_ns(world_ns) / 1e9

    def world_ns(self, local_ns: int) -> int:
        """The first time of the world at which the clock shows this."""
        if local_ns >= NEVER:
            return NEVER
        at = local_ns - self.offset_ns
        if self.fast_ppm:
            at = at * MILLION // (MILLION + self.fast_ppm) - 2
            while self.local_ns(at) < local_ns:
                at += 1
        return at


class Core(Context):
    """The product's, with an eye on what passes between it and the courier.

    Attributes:
        happened: it had an event since this was cleared.
        ready: the last epoch of the root group of which it said READY.
        sealed: its last report on that group, of its own.
        token: the key of the run.
        epochs: what was installed last, by group.
    """

    happened = False
    ready = 0
    sealed: messages.Report | None = None
    token: bytes | None = None
    epochs: dict[int, int]
    fleet: Fleet

    def set_token(self, token: bytes) -> None:
        self.token = token
        super().set_token(token)

    def install(self, record: messages.Epoch) -> None:
        last = self.epochs.get(record.group, 0)
        assert record.epoch > last, f"epoch {record.epoch} after {last}"
        self.epochs[record.group] = record.epoch
        super().install(record)

    def record(self, last: messages.Epoch) -> messages.Epoch | None:
        """One that it has from another member: it must be the one that was published."""
        record = super().record(last)
        if record is not None and record.epoch > last.epoch:
            published = self.fleet.roll_of(record.group, record.epoch).message
            detail = published.detail.encode()[: len(record.detail.encode())].decode()
            found = replace(record, members=published.members, lanes=used(record))
            assert found == replace(published, detail=detail, lanes=used(published))
            ids = [member.id for member in record.members]
            assert ids == [member.id for member in published.members]
            self.fleet.points["a record came over the data links"] += 1
        return record

    def next_event(self) -> Any:
        event = super().next_event()
        if event is not None:
            self.happened = True
            if isinstance(event, Ready) and event.group == ROOT:
                self.ready = event.epoch
            elif isinstance(event, Sealed) and event.report.group == ROOT:
                own = event.report.of == messages.NO_PEER
                self.sealed = event.report if own else self.sealed
        return event


class Process(Caller):
    """See the module.

    Attributes:
        lineage: the one that it is or was in; 0: none yet.
        returns: it came in the place of one that was evicted.
        busy_ns: until then its interpreter does something else.
        inbox: what came from the coordinator and was not looked at yet.
    """

    core_class = Core

    def __init__(self, fleet: Fleet, index: int, clock: Clock, **options: Any) -> None:
        super().__init__(fleet, index)
        self.fleet = fleet
        self.clock = clock
        lib.cc_sim_set_clock(fleet.sim, clock.offset_ns, clock.fast_ppm)
        self.core = self.core_class(
            self.id,
            fleet.timeouts,
            transport="sim",
            bind_address=f"sim:{index + 1}",
            manual=1,
            world=fleet.sim,
            **options,
        )
        self.core.epochs, self.core.fleet = {}, fleet
        self.context = self.core.native
        self.address = self.core.address()
        join = messages.Join(
            version=messages.PROTOCOL_VERSION,
            id=self.id,
            group="fleet",
            name="",
            rank=None,
            size=fleet.size,
            min_size=fleet.min_size,
            address=self.address,
            host=index,
            streams=options["streams"],
            segment_bytes=options["segment_bytes"],
        )
        self.courier = Courier(self.core, URL, join, fleet.timeouts, list)
        self.program = Program(self)
        self.inbox: list[bytes] = []
        self.lineage = 0
        self.returns = False
        self.busy_ns = 0
        self._tick_ns = 0
        self.courier.start(self, clock.seconds(fleet.now_ns))

    @property
    def seat(self) -> Any:
        return self.courier.root

    @property
    def epoch(self) -> int:
        """The one that its courier installed last; 0: none."""
        current = self.seat.current
        return current.epoch if current else 0

    @property
    def is_out(self) -> bool:
        """Whether it was told that it is in no group any more."""
        return self.seat.ended is not None

    # ---- the connection to the coordinator, as the courier sees it ----------------------------

    @property
    def is_up(self) -> bool:
        return self.fleet.coordinator.runs

    def reconnected(self) -> None:
        """Its connection to the coordinator is a new one."""
        if self.alive:
            self.courier.came_up()
            self.wake()

    def send(self, message: messages.ToCoordinator) -> None:
        fleet = self.fleet
        if fleet.verbose:
            fleet.tell(f"{self} says {message}")
        fleet.network.send(UP, self.id, messages.encode(message), fleet.now_ns)

    def why_silent(self, seconds: float) -> str:
        return f"no answer in {seconds:g} s"

    # ---- its turn -----------------------------------------------------------------------------

    def step(self, now: int) -> int:
        """Does what can be done now. Returns when it wants its next turn."""
        due = self.clock.world_ns(lib.cc_step(self.context))
        if now < self.busy_ns:
            return min(due, self.busy_ns)
        core, courier = self.core, self.courier
        if courier.root.ended is None:
            courier.take_events(self.clock.seconds(now))
            if self.inbox or core.happened or now >= self._tick_ns:
                self._run_courier(now)
                due = now
            elif self._tick_ns < due:
                due = self._tick_ns
        return min(due, self.program.step(now))

    def _run_courier(self, now: int) -> None:
        seconds = self.clock.seconds(now)
        inbox, self.inbox = self.inbox, []
        for data in inbox:
            try:
                message: Any = messages.decode(data)
            except ProtocolError as error:  # only the simulator speaks: nothing may be odd
                raise AssertionError(f"{self} cannot read {data!r}") from error
            if self.fleet.verbose:
                self.fleet.tell(f"{self} hears {message}")
            self.courier.take(message, seconds)
        wanted = self.courier.tick(seconds)
        self._tick_ns = self.clock.world_ns(min(NEVER, int(wanted * 1e9) + 1))
        self.core.happened = False

    def wake(self) -> None:
        """Somebody told its courier something: it wants a turn."""
        self._tick_ns = 0
        self.fleet.touch()
