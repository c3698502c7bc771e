"""Rules that were rejected, planted one at a time: a simulator that lets one live proves nothing.

Those of the coordinator replace a function of the Python machine. Those of the C core replace a few
lines of one source file in a copy, which is compiled and linked with the objects of the last build
into a module of its own (`build_core`); the product's sources and module know nothing of it. A
replaced line that is not found any more is an error: the mutant is to follow the code.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "build" / "python"
BUILT = ROOT / "build" / "mutants"

# ---- the coordinator ----------------------------------------------------------------------------


def _committed(choose: Callable[[list[int]], int]) -> None:
    """Commits what `choose` makes of the survivors' done watermarks, not the least of them."""
    from collectives.coordinator import decide
    from collectives.messages import Outcome

    right = decide.outcomes

    def outcomes(reports: decide.Reports, decided: Any, *, retry: bool) -> tuple[Outcome, ...]:
        result = []
        for lane in right(reports, decided, retry=retry):
            base = decided[lane.lane].failed if lane.lane in decided else 0
            done = sorted(
                next((mark.done for mark in report.lanes if mark.lane == lane.lane), base)
                for report in reports.values()
            )
            committed = max(base, choose(done))
            failed = max(committed, lane.failed)
            posted = max(failed, lane.posted)
            result.append(replace(lane, committed=committed, failed=failed, posted=posted))
        return tuple(result)

    decide.outcomes = outcomes


def _any() -> None:
    _committed(max)


def _majority() -> None:
    _committed(lambda done: done[(len(done) - 1) // 2])


def _decide_again() -> None:
    """A late report changes the record that is out: its sender lives after all."""
    from collectives.coordinator.group import Group

    right, publish = Group.report, Group._publish

    def publish_and_remember(self: Any, record: Any, *rest: Any) -> None:
        self.before = self.roll.record
        publish(self, record, *rest)

    def report(self: Any, peer: bytes, message: Any, now: float) -> None:
        last, before = self.roll.record, getattr(self, "before", None)
        late = [m for m in before.members if m.id == peer] if before else []
        if message.epoch == self.roll.epoch - 1 and late and peer not in self.members:
            done = {lane.lane: lane.done for lane in message.lanes}
            lanes = tuple(
                replace(lane, committed=min(lane.committed, done.get(lane.lane, lane.committed)))
                for lane in last.lanes
            )
            members = tuple(sorted((*last.members, *late), key=lambda member: member.rank))
            self.roll.record = replace(last, members=members, lanes=lanes)
            for standing in self.present.values():
                self.roll.publish_to(standing, now)
        right(self, peer, message, now)

    Group._publish, Group.report = publish_and_remember, report


def _stale_report() -> None:
    """A report on the epoch before counts for this one."""
    from collectives.coordinator.group import Group

    right = Group.report

    def report(self: Any, peer: bytes, message: Any, now: float) -> None:
        standing = self.present.get(peer)
        if (
            standing is not None
            and standing.report is None
            and message.epoch == self.roll.epoch - 1
        ):
            message = replace(message, epoch=self.roll.epoch)
        right(self, peer, message, now)

    Group.report = report


def _publish_first() -> None:
    """What a step decided is sent before it is in the journal."""
    from fleet_coordinator import Coordinator

    Coordinator.publish_first = True


COORDINATOR: dict[str, Callable[[], None]] = {
    "any": _any,
    "majority": _majority,
    "decide again": _decide_again,
    "stale report": _stale_report,
    "publish first": _publish_first,
}


def plant(name: str) -> None:
    """Replaces a rule of the coordinator in this process, for good."""
    COORDINATOR[name]()


# ---- the C core ---------------------------------------------------------------------------------

Change = tuple[str, str, str]  # file, what stands there once, what takes its place

LANE_DATA = "csrc/group/lane_data.c"

CORE: dict[str, Sequence[Change]] = {
    "local success": [
        (
            "csrc/group/lane.c",
            "if (lane->done > before) tally(group, lane, group->me, lane->done);",
            "uint64_t from = lane->tally.committed;\n"
            "    if (lane->done > from) {\n"
            "        lane->tally.committed = lane->done;\n"
            "        commit(group, lane, from);\n"
            "    }",
        )
    ],
    "no promise": [
        (
            "csrc/group/group.c",
            "    if (group->state != CC__GROUP_ACTIVE) return;\n"
            "    group->state = CC__GROUP_SEALED;\n",
            "    bool told = group->report.epoch == group->epoch;\n"
            "    if (group->state != CC__GROUP_ACTIVE || told) return;\n",
        ),
        (
            "csrc/group/group.c",
            "if (group->state == CC__GROUP_SEALED && suspect) add",
            "if (group->report.epoch == group->epoch && suspect) add",
        ),
        ("csrc/group/group.c", "    release_buffers(group);\n    for", "    for"),
    ],
    "vote after seal": [
        ("csrc/group/lane.c", "if (group->state != CC__GROUP_ACTIVE) return;", ""),
        (
            "csrc/group/group.c",
            "if (group->state == CC__GROUP_ACTIVE) cc__lane_on_vote(group, member, frame);",
            "cc__lane_on_vote(group, member, frame);",
        ),
        (
            "csrc/group/lane_data.c",
            "group->state == CC__GROUP_ACTIVE && frame->epoch",
            "frame->epoch",
        ),
        (
            "csrc/group/lane_data.c",
            "group->state != CC__GROUP_ACTIVE || lane == NULL",
            "lane == NULL",
        ),
        ("csrc/group/group.c", "    release_buffers(group);\n    for", "    for"),
    ],
    "no staging": [("csrc/op/op.c", "    cc__saved_restore(&op->saved);\n", "")],
    "success at a majority of votes": [
        (
            "csrc/agree/commit.c",
            "if (tally->voted[i] < least) least = tally->voted[i];",
            "{\n            uint32_t others = 0;\n"
            "            for (uint32_t j = 0; j < tally->size; j++)\n"
            "                others += tally->voted[j] < least;\n"
            "            if (2 * others >= tally->size && tally->voted[i] < least)\n"
            "                least = tally->voted[i];\n        }",
        )
    ],
}


def build_core(name: str) -> Path:
    """Compiles the package's module with these lines changed; returns where it is."""
    commands = json.loads((OBJECTS / "compile_commands.json").read_text())
    changes: dict[str, list[tuple[str, str]]] = {}
    for file, old, new in CORE[name]:
        changes.setdefault(file, []).append((old, new))
    folder = BUILT / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    linked = []
    for entry in commands:
        file = Path(entry["file"])
        source = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else ""
        if source not in changes:
            linked.append(entry["output"])
            continue
        text = file.read_text()
        for old, new in changes.pop(source):
            assert text.count(old) == 1, f"mutant {name!r}: {source} has not once {old!r}"
            text = text.replace(old, new)
        mutated = folder / file.name
        mutated.write_text(text)
        linked.append(str(mutated.with_suffix(".o")))
        words = [str(mutated) if word == entry["file"] else word for word in _words(entry)]
        words[words.index("-o") + 1] = linked[-1]
        subprocess.run(words, cwd=OBJECTS, check=True)
    assert not changes, f"mutant {name!r}: no {list(changes)} in the build"
    module = folder / "_native.so"
    flags = ["-shared", "-pthread", "-lm", "-ldl"]
    subprocess.run(["gcc", "-o", str(module), *linked, *flags], cwd=OBJECTS, check=True)
    return module


def _words(entry: dict[str, str]) -> list[str]:
    # Values that are never used any more are what a mutant is about.
    return [*shlex.split(entry["command"]), "-w"]
