"""A fleet: the product's C core, courier and coordinator, all in one process, under one clock.

World (world.py) plays the coordinator itself, by a rule written down once more. A Fleet has no rule
of its own: records come from `collectives.coordinator.core`, carried by the product's couriers
through a control network that loses, delays and repeats. What it adds is the world around them:
processes that are born, die, stop, and go on; and a program that all of them run.
Everything is a function of the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from typing import Any

import fleet_points
from control_network import DOWN, MS, NEVER, UP, US, ControlNetwork
from fleet_calls import Call, Message, Plan
from fleet_coordinator import Coordinator
from fleet_process import ROOT, Clock, Process

from collectives import messages
from collectives._core import ffi, lib
from collectives.config import Timeouts
from collectives.coordinator.core import Core
from collectives.errors import Evicted

TIMEOUTS = Timeouts(beat=0.4, dead=1.2, connect=2.0, linger=0.5, joiner_lost=3.0)


@dataclass(frozen=True)
class Roll:
    """An epoch as it was published, and which processes its members are."""

    message: messages.Epoch
    members: list[Process]
    ranks: dict[int, int]  # by index of the process
    lineage: int  # how often the group was formed up to it

    @property
    def world(self) -> int:
        return self.message.world


class Stuck(AssertionError):
    """What must happen within a bound did not."""


class Fleet:
    """See the module; use as a context manager.

    Attributes:
        rolls: every record that was published, by epoch.
        split_rolls: those of subgroups, by number and epoch.
        points: how often each rare path was taken.
        stop_phase: the phase after which programs end; None: they go on.
    """

    def __init__(
        self,
        seed: int,
        *,
        size: int = 3,
        min_size: int = 1,
        grain_ns: int = 20 * US,
        skewed: bool = False,
        leavers: bool = False,
        timeouts: Timeouts = TIMEOUTS,
        core_class: type[Core] = Core,
        process_class: type[Process] = Process,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.size, self.min_size = size, min_size
        self.grain_ns = grain_ns
        self.skewed, self.leavers = skewed, leavers
        self.timeouts = timeouts
        self.verbose = verbose
        self.options = {"streams": 1, "segment_bytes": 1024} | options
        self.process_class = process_class
        self.sim = lib.cc_sim_open(seed)
        self.now_ns = 0
        self.network = ControlNetwork(random.Random(seed + 1))
        self.plan = Plan(seed, self.rng)
        self.processes: list[Process] = []
        self.running: list[Process] = []
        self.by_id: dict[bytes, Process] = {}
        self.calls: list[Call] = []
        self.messages: list[Message] = []
        self.rolls: dict[int, Roll] = {}
        self.split_rolls: dict[tuple[int, int], Roll] = {}
        self.points: Counter[str] = Counter()
        self.stop_phase: int | None = None
        self.calm = False  # no fault will come any more,
        self.calm_ns = 0  # and since when
        self.steps = 0
        self.furthest = 0  # the phase that somebody has reached
        self._wake_ns = 0
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._n_later = 0
        self.coordinator = Coordinator(self, core_class)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            ffi.release(process.context)
        lib.cc_sim_close(self.sim)

    def tell(self, text: str) -> None:
        """A line of the event log."""
        if self.verbose:
            print(f"{self.now_ns / MS:12.3f} ms  {text}")

    # ---- processes ----------------------------------------------------------------------------

    def spawn(self) -> Process:
        """A new process, which wants to be a member."""
        clock = Clock(0, 0)
        if self.skewed:
            offset = self.rng.randrange(10**12)
            clock = Clock(offset, self.rng.choice([-10_000, -500, 0, 500, 10_000]))
        process = self.process_class(self, len(self.processes), clock, **self.options)
        self.processes.append(process)
        self.running.append(process)
        self.by_id[process.id] = process
        self.tell(f"{process} is born")
        self.touch()
        return process

    def kill(self, process: Process) -> None:
        """It dies at once; what it had sent to the coordinator may still arrive."""
        self.tell(f"{process} dies")
        lib.cc_sim_kill(self.sim, process.address.encode())
        self._gone(process)

    def close(self, process: Process, *, abort: bool) -> None:
        """It ends in order, as `Communicator.close` does."""
        self.tell(f"{process} closes")
        if not process.is_out:
            process.courier.leave()
        lib.cc_context_close(process.context, int(abort))
        self._gone(process)

    def _gone(self, process: Process) -> None:
        process.alive = False
        self.running.remove(process)
        self.touch()

    def pause(self, process: Process, paused: bool) -> None:
        if process.alive:
            self.tell(f"{process} {'stops' if paused else 'goes on'}")
            lib.cc_sim_pause(self.sim, process.address.encode(), int(paused))
            process.paused = paused
            self.touch()

    def cut(self, sender: Process, receiver: Process, cut: bool) -> None:
        """Of the data network, one direction."""
        self.tell(f"{sender} -> {receiver} {'cut' if cut else 'whole again'}")
        lib.cc_sim_cut(self.sim, sender.address.encode(), receiver.address.encode(), int(cut))
        self.touch()

    def break_link(self, a: Process, b: Process) -> None:
        self.tell(f"the link {a} - {b} breaks")
        lib.cc_sim_break(self.sim, a.address.encode(), b.address.encode())
        self.touch()

    @property
    def members(self) -> list[Process]:
        """Those of the last record."""
        return self.rolls[max(self.rolls)].members if self.rolls else []

    def is_member(self, process: Process) -> bool:
        return process in self.members

    @property
    def whole(self) -> bool:
        """All that live are members of one epoch, and all of them know that all are there."""
        epoch = max(self.rolls, default=0)
        return bool(self.running and epoch) and all(
            process.epoch == epoch and process.core.ready == epoch and not process.is_out
            for process in self.running
        )

    def roll_of(self, group: int, epoch: int) -> Roll | None:
        if group in (0, ROOT):
            return self.rolls.get(epoch)
        return self.split_rolls.get((group, epoch))

    # ---- what others tell ---------------------------------------------------------------------

    def published(self, record: messages.Epoch) -> None:
        """A record is on its way to somebody: it must be the one that was published before, in
        whatever term."""
        record = replace(record, term=0)
        known = self.roll_of(record.group, record.epoch)
        if known is not None:
            assert known.message == record, f"epoch {record.epoch} was published with two contents"
            return
        members = [self.by_id[member.id] for member in record.members]
        ranks = {self.by_id[member.id].index: member.rank for member in record.members}
        if record.group != ROOT:
            self.split_rolls[record.group, record.epoch] = Roll(record, members, ranks, 0)
            return
        last = max(self.rolls, default=0)
        assert record.epoch > last, f"epoch {record.epoch} was published after {last}"
        formed = record.cause is messages.Cause.FORMED
        lineage = (self.rolls[last].lineage if last else 0) + formed
        if last:
            fleet_points.at_record(self, self.rolls[last], record)
        for member in members:
            member.lineage = lineage
        self.rolls[record.epoch] = Roll(record, members, ranks, lineage)
        self.points[f"record: {record.cause.name.lower()}"] += 1
        if formed and lineage > 1:
            self.points["a new lineage"] += 1
        self.tell(f"epoch {record.epoch} ({record.cause.name}): {members}, {record.lanes}")

    def entered(self, phase: int) -> None:
        self.furthest = max(self.furthest, phase)

    def finished(self, call: Call) -> None:
        """A process found an operation complete."""
        if self.verbose:
            status = call.operation.status
            what = f"{call.spec.kind} {call.lane}/{call.number}"
            self.tell(f"{call.process} has {what}: {status} {call.operation.message}")

    def may_leave(self, process: Process) -> bool:
        """Whether its next boundary is its last."""
        return self.leavers and not self.calm and self.rng.random() < 0.06

    def rest_ns(self, rng: random.Random) -> int:
        """How long a process does something else between two phases: longer while somebody waits
        to be admitted, or a group would do thousands of operations meanwhile."""
        waiting = len(self.members) < len(self.running)
        return rng.randrange(300 * MS if waiting or self.calm else 2 * MS)

    # ---- time ---------------------------------------------------------------------------------

    def later(self, delay_ns: int, act: Callable[[], None]) -> None:
        """Has something done after so much time."""
        self._n_later += 1
        heappush(self._later, (self.now_ns + delay_ns, self._n_later, act))

    def touch(self) -> None:
        """Somebody did something to a process: it is to be stepped before time moves on."""
        self._wake_ns = 0

    def step(self) -> None:
        """Moves time on to what happens next, then lets everybody do what they can."""
        self.steps += 1
        network, coordinator = self.network, self.coordinator
        now = self.now_ns
        wake = min(self._wake_ns, lib.cc_sim_next_ns(self.sim), network.next_ns, coordinator.due_ns)
        if self._later:
            wake = min(wake, self._later[0][0])
        if wake >= NEVER:
            wake = now + 10 * MS
        now = max(wake, now + self.grain_ns)
        self.now_ns = now
        lib.cc_sim_advance(self.sim, now)
        if network.next_ns <= now:
            self._deliver(now)
        while self._later and self._later[0][0] <= now:
            heappop(self._later)[2]()
        if coordinator.due_ns <= now:
            coordinator.step(now)
        self._wake_ns = NEVER
        wake = NEVER
        for process in self.running:
            if not process.paused:
                due = process.step(now)
                if due < wake:
                    wake = due
        self._wake_ns = min(wake, self._wake_ns)
        for process in [p for p in self.running if p.is_out]:
            self._sent_away(process)

    def crashed(self) -> None:
        """The coordinator came to the point at which it was to crash."""
        self.coordinator.die(forgets=self.rng.random() < 0.5)
        self.later(self.rng.randrange(1 if self.calm else 2_000 * MS), self.restart_coordinator)

    def restart_coordinator(self) -> None:
        """Peers redial it by themselves, each in its own time."""
        if self.coordinator.runs:
            return
        self.tell("the coordinator is started again")
        self.points["coordinator restarts"] += 1
        self.coordinator.start()
        for process in self.running:
            self.later(self.rng.randrange(500 * MS), process.reconnected)

    def _deliver(self, now: int) -> None:
        for letter in self.network.arrived(now):
            if letter.way == UP:
                self.coordinator.receive(letter.peer, letter.data)
                continue
            process = self.by_id[letter.peer]
            if process.alive:
                process.inbox.append(letter.data)

    def _sent_away(self, process: Process) -> None:
        """A process that is in no group any more ends; another one may come in its place."""
        if process.program.stopped or process.program.phase < 0:
            error = process.seat.ended
            self.points[f"out: {type(error).__name__}"] += 1
            self.close(process, abort=self.rng.random() < 0.5)
            if not self.calm and self.rng.random() < 0.7:
                self.later(self.rng.randrange(100 * MS), partial(self._return, error))

    def _return(self, error: Exception) -> None:
        """In the place of a process that was sent away."""
        if not self.calm:
            self.spawn().returns = isinstance(error, Evicted)

    def run(self, until: Callable[[], bool], limit_ms: int) -> None:
        """Steps until something holds. Raises Stuck if it does not within so much virtual time."""
        end = self.now_ns + limit_ms * MS
        while not until():
            if self.now_ns >= end or self.steps > 400_000:
                raise Stuck(f"nothing came of it in {limit_ms} ms")
            self.step()

    def send_down(self, peer: bytes, data: bytes) -> None:
        self.network.send(DOWN, peer, data, self.now_ns)
