"""The demo's worker processes: a peer that trains, and the one-process reference.

All peers follow one schedule, which is a function of the number of steps: every few steps is a
boundary; at a sixth of the steps the coordinator is killed; at a third it is started again and the
newcomer told to connect; at half of them the members wait for it if it is not there yet; at five
eighths the victim is killed; at three quarters the leaver goes.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import collectives as cc
from collectives.cli import _launch, demo_model
from collectives.cli.demo_model import Floats, Model, Text

JOIN_PATIENCE = 30.0  # seconds that members wait for the newcomer


@dataclass(frozen=True)
class Schedule:
    """What happens at which step. A boundary is before the step of its number."""

    steps: int

    @property
    def every(self) -> int:
        """A boundary every so many steps."""
        return max(1, self.steps // 60)

    @property
    def coordinator_dies(self) -> int:
        return self.steps // 6

    @property
    def newcomer_connects(self) -> int:
        """The coordinator is back then."""
        return self.steps // 3

    @property
    def newcomer_needed(self) -> int:
        return self.steps // 2

    @property
    def victim_dies(self) -> int:
        """In the middle of this step."""
        return self.steps * 5 // 8

    @property
    def leaver_goes(self) -> int:
        return self.steps * 3 // 4

    def is_boundary(self, step: int) -> bool:
        fixed = (self.newcomer_needed, self.leaver_goes)
        return step > 0 and (step % self.every == 0 or step in fixed)

    def is_report(self, step: int) -> bool:
        return step % max(1, self.steps // 12) == 0 or step == self.steps

    def is_progress(self, step: int) -> bool:
        return step % self.every == 0


class Peer:
    """One peer of the demo, from connecting to the last step or to its leaving."""

    def __init__(self, parent: _launch.Parent, spec: _launch.Message) -> None:
        self.parent = parent
        self.spec = spec
        self.schedule = Schedule(spec["steps"])
        self.text = Text()
        self.model = Model(self.text.vocabulary)
        self.state = self.model.initial(spec["seed"])
        # One element more than weights: the loss travels with the gradient.
        self.gradient = np.zeros(self.model.count + 1, np.float32)
        self.step = 0
        self.place: _launch.Message = {}  # as it was told last
        self.tokens, self.since = 0, time.monotonic()

    def run(self) -> None:
        self.parent.send(event="ready")
        self.parent.receive()  # go: a newcomer's comes later
        with self._connect() as comm:
            arrived = bool(self.spec["newcomer"])
            if arrived:
                self._share(comm)
            while self.step < self.schedule.steps:
                if self.schedule.is_boundary(self.step) and not arrived:
                    if self._leaves():
                        comm.leave()
                        self.parent.send(event="left", **self._digest())
                        return
                    self._boundary(comm)
                arrived = False
                if comm.rank == 0:
                    self._call_parent()
                self._train(comm)
            self._finish(comm)

    def _connect(self) -> cc.Communicator:
        spec = self.spec
        return cc.connect(
            spec["url"],
            group="demo",
            size=spec["peers"],
            name=spec["name"],
            rank=None if spec["newcomer"] else spec["index"],
            timeout=60,
        )

    def _leaves(self) -> bool:
        return bool(self.spec["leaver"]) and self.step == self.schedule.leaver_goes

    def _boundary(self, comm: cc.Communicator) -> None:
        change = comm.admit()
        end = time.monotonic() + JOIN_PATIENCE
        waits = self.step == self.schedule.newcomer_needed
        # Whether it is there is the same question on all members, so all go round as often.
        while waits and not change.joined and comm.size == self.spec["peers"]:
            if time.monotonic() > end:
                raise cc.CollectivesError(f"the newcomer did not come within {JOIN_PATIENCE:g} s")
            time.sleep(0.02)
            change = comm.admit()
        if change.joined:
            self._share(comm)

    def _share(self, comm: cc.Communicator) -> None:
        """Rank 0's weights, moments and step for all: a newcomer knows none of them."""
        comm.broadcast(self.state, root=0, out=self.state)
        self.step = int(comm.broadcast(np.array([self.step]), root=0)[0])
        if self.spec["newcomer"]:
            self.parent.send(event="joined", **self._digest())

    def _call_parent(self) -> None:
        """To kill the coordinator, and to start it again. Rank 0, and all others with it, goes on
        once it is dead, so that it is known which steps went on without it."""
        if self.step in (self.schedule.coordinator_dies, self.schedule.newcomer_connects):
            self.parent.send(event="call", step=self.step)
        if self.step == self.schedule.coordinator_dies:
            self.parent.receive()

    def _tell_place(self, comm: cc.Communicator, info: cc.Info) -> None:
        """Who contributed to this step, if that is another answer than before."""
        place = {"rank": comm.rank, "size": comm.size, "missing": info.missing}
        if place != self.place:
            self.place = place
            told = {"attempts": info.attempts, "lost_s": info.lost_time}
            self.parent.send(event="place", step=self.step, **place, **told)

    def _digest(self) -> dict[str, Any]:
        return {"step": self.step, "digest": demo_model.digest(self.state)}

    def _train(self, comm: cc.Communicator) -> None:
        batch = self.text.batch(self.spec["seed"], self.step, comm.rank, comm.size)
        loss = self.model.loss(self.state[0], *batch, gradient=self.gradient[:-1])
        self.gradient[-1] = loss
        if dies := self.spec["victim"] and self.step == self.schedule.victim_dies:
            self.parent.send(event="dies", step=self.step)
        # "direct" adds from the left in rank order, which the reference repeats. "auto" would take
        # a ring for so long a vector: as deterministic, but another order of additions.
        work = comm.all_reduce(
            self.gradient, out=self.gradient, op="avg", algorithm="direct", async_op=True
        )
        if dies:  # with its part on the way, and before it can know what becomes of it
            os.kill(os.getpid(), signal.SIGKILL)
        work.wait()  # whoever dies: the survivors get the mean of those that contributed
        self._tell_place(comm, work.info)
        demo_model.update(self.state, self.gradient[:-1], self.step)
        self.step += 1
        self.tokens += demo_model.BATCH * work.info.contributors
        if comm.rank == 0 and (self.schedule.is_report(self.step) or self.step == 1):
            self._report(comm, work.info.contributors)
        if comm.rank == 0 and self.schedule.is_progress(self.step):
            self.parent.send(event="progress", step=self.step)
        if comm.rank == self.spec["corrupt_rank"] and self.step == self.schedule.steps:
            self.state[0].view(np.uint32)[self.model.count // 2] ^= 1

    def _report(self, comm: cc.Communicator, members: int) -> None:
        now = time.monotonic()
        rate = self.tokens / (now - self.since)
        self.tokens, self.since = 0, now
        self.parent.send(
            event="step",
            step=self.step,
            epoch=comm.epoch,
            members=members,
            loss=float(self.gradient[-1]),
            tokens_per_s=rate,
        )

    def _finish(self, comm: cc.Communicator) -> None:
        own = self._digest()
        rows = comm.all_gather(np.frombuffer(bytes.fromhex(own["digest"]), np.int64))
        self.state.tofile(self.spec["file"])
        self.parent.send(event="end", gathered=[row.tobytes().hex() for row in rows], **own)


def reference(parent: _launch.Parent, spec: _launch.Message) -> None:
    """Trains alone: in every step it computes the gradients of all members, one after the other.

    `spec["contributors"]` holds the number of ranks of each step, and those that contributed."""
    seed, contributors = spec["seed"], spec["contributors"]
    text = Text()
    model = Model(text.vocabulary)
    state = model.initial(seed)
    before = model.loss(state[0], *text.test())
    digests: dict[int, str] = {}
    most = max(len(ranks) for _, ranks in contributors)
    rows: list[Floats] = [np.zeros(model.count, np.float32) for _ in range(most)]
    schedule = Schedule(len(contributors))
    for step, (size, ranks) in enumerate(contributors):
        if schedule.is_progress(step):
            parent.send(event="progress", step=step)
        if step in spec["digest_steps"]:
            digests[step] = demo_model.digest(state)
        gradients = rows[: len(ranks)]
        for rank, gradient in zip(ranks, gradients, strict=True):
            model.loss(state[0], *text.batch(seed, step, rank, size), gradient=gradient)
        demo_model.update(state, demo_model.mean_by_left_fold(gradients), step)
    digests[schedule.steps] = demo_model.digest(state)
    state.tofile(spec["file"])
    after = model.loss(state[0], *text.test())
    parent.send(event="reference", digests=digests, held_out=[before, after], count=model.count)


def main(parent: _launch.Parent, spec: _launch.Message) -> None:
    if spec["role"] == "reference":
        reference(parent, spec)
    else:
        Peer(parent, spec).run()


if __name__ == "__main__":
    _launch.work(main)
