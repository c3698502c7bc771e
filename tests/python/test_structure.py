"""The tree is the architecture: includes and imports point one way.

Goal: a file that reaches up, or sideways into a room it has no business in, fails the build.
Method: a table says for each room of the tree which other rooms its files may use; a checker reads
every #include and import and compares. The checker itself is tested with planted violations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 450
SOURCES = ("csrc", "transport", "bindings", "collectives", "tests", "benchmarks", "examples")
# A tool that was taken over as it is, with a README of its own.
FOREIGN = ROOT / "tests" / "wan"

# ---- C ------------------------------------------------------------------------------------------

# Room -> its files. The first room that matches has the file.
C_ROOMS: dict[str, tuple[str, ...]] = {
    "public": ("csrc/collectives.h", "csrc/collectives_*.h"),
    "base": ("csrc/base/*",),
    "transport": ("transport/*",),
    "wire": ("csrc/wire/*",),
    "plan": ("csrc/plan/*",),
    "agree": ("csrc/agree/*",),
    "kernels": ("csrc/kernels/*",),
    "link": ("csrc/link/*",),
    "op": ("csrc/op/*",),
    "group": ("csrc/group/*",),
    "api": ("csrc/api.*", "csrc/api_*"),
    "bindings": ("bindings/*",),
}

# Room -> the rooms it may include besides itself and the public header.
C_MAY_USE: dict[str, set[str]] = {
    "public": set(),
    "base": set(),
    "transport": {"base"},
    "wire": {"base"},
    "plan": {"base"},
    "agree": {"base"},
    "kernels": {"base"},
    "link": {"agree", "base", "transport", "wire"},
    "op": {"agree", "base", "kernels", "link", "plan", "wire"},
    "group": {"agree", "base", "kernels", "link", "op", "plan", "transport", "wire"},
    "api": {"agree", "base", "group", "kernels", "link", "op", "plan", "transport", "wire"},
    "bindings": {"kernels", "plan", "transport"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def room_of(path: str) -> str | None:
    for room, patterns in C_ROOMS.items():
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            return room
    return None


def c_violations(files: Mapping[str, str]) -> list[str]:
    """`files`: path from the root -> content."""
    found = []
    for path, text in files.items():
        room = room_of(path)
        if room is None:
            found.append(f"{path} is in no room: give it a line in C_ROOMS and C_MAY_USE")
            continue
        for header in INCLUDE.findall(text):
            used = room_of(header)
            if used is None:
                found.append(f'{path} includes "{header}": not a path from the root of the tree')
            elif used not in {room, "public"} | C_MAY_USE[room]:
                found.append(f'{path} ({room}) may not include "{header}" ({used})')
    return found


# Times that code may have besides `Timeouts`: none of the protocol.
LOCAL_TIMES = {
    *("SPIN_NS", "IDLE_NS", "BLOCK_MAX_NS", "TCP_PAUSE_NS"),  # of a thread, between looks
    *("TRIM_NS", "KEEP_NS"),  # of memory that nobody wants
    "_START_S",  # of a process on this machine
    *("WAIT_SLICE_S", "SLICE_MS"),  # of a wait, so that Ctrl-C is noticed
    "_END_S",  # of threads, at the process's end
    *("SOFTWARE_NS", "GAUGE_MIN_NS", "LATENCY_NS", "MESSAGE_NS"),  # what work costs, not how long
    "CC__MS",  # a unit
}
TIME = re.compile(r"^(?:#define )?(_?[A-Z][A-Z0-9_]*_(?:S|MS|NS|SECONDS))\b(?:: \w+)? +\S", re.M)


def times(text: str) -> set[str]:
    """The constants of a file that are times, by their names: the unit is last."""
    return {name for name in TIME.findall(text) if not name.endswith("_PER_S")}


# ---- Python -------------------------------------------------------------------------------------

EXTENSION = "collectives._native"
STARTS_A_COORDINATOR = "collectives.torch.rendezvous"  # as a process, where nobody did
SHARED = {
    f"collectives.{name}"
    for name in ("codec", "config", "errors", "fields", "logs", "messages", "settings")
}
IMPURE = {"asyncio", "secrets", "selectors", "socket", "threading", "time", "zmq"}
# The coordinator's edge to the world: the only parts of it that may do input and output.
COORDINATOR_EDGE = re.compile(r"collectives\.coordinator(\.(server|process|journal|__main__)\w*)?$")


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def module_name(path: str) -> str:
    parts = list(PurePosixPath(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: str, text: str) -> Iterator[str]:
    """Full dotted names of all that is imported, anywhere in the file, `from` names included."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_fault(module: str, used: str) -> str | None:
    """Why `module` may not import `used`."""
    coordinator = within(module, "collectives.coordinator")
    command_line = within(module, "collectives.cli")
    if within(used, EXTENSION) and module != "collectives._core":
        return "only collectives._core imports the extension"
    if within(used, "collectives.cli") and not command_line:
        return "the command line is nobody's library"
    starts_one = module == STARTS_A_COORDINATOR and within(used, "collectives.coordinator.process")
    if within(used, "collectives.coordinator") and not (coordinator or command_line or starts_one):
        return "a peer does not depend on the coordinator"
    if within(used, "torch") and not within(module, "collectives.torch"):
        return "torch is optional"
    beside = within(used, "collectives") and not within(used, "collectives.coordinator")
    if coordinator and beside and not any(within(used, shared) for shared in SHARED):
        return "the coordinator shares messages, errors and config with the peers, nothing else"
    if coordinator and not COORDINATOR_EDGE.match(module):
        if any(within(used, m) for m in IMPURE):
            return "the coordinator's decisions are pure: no socket, thread or clock"
        if within(used, "collectives") and COORDINATOR_EDGE.match(used):
            return "the coordinator's decisions do not know who drives them"
    return None


def python_violations(files: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in files.items():
        module = module_name(path)
        for used in imports(path, text):
            if fault := import_fault(module, used):
                found.append(f"{path} imports {used}: {fault}")
    return found


# ---- the tree -----------------------------------------------------------------------------------


def read(folders: Iterable[str], *suffixes: str) -> dict[str, str]:
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes
        and "__pycache__" not in path.parts
        and FOREIGN not in path.parents
    }
    assert files, f"no {suffixes} in {folders}: is {ROOT} the root of the tree?"
    return files


def too_long(files: Mapping[str, str]) -> list[str]:
    return [
        f"{path} has {lines} lines, at most {LINES_MAX} are allowed: split it by its nouns"
        for path, text in files.items()
        if (lines := len(text.splitlines())) > LINES_MAX
    ]


def test_includes_point_down() -> None:
    assert c_violations(read(["csrc", "transport", "bindings"], ".c", ".h")) == []


def test_imports_point_down() -> None:
    assert python_violations(read(["collectives"], ".py")) == []


def test_files_are_small() -> None:
    assert too_long(read(SOURCES, ".c", ".h", ".py")) == []


def test_all_times_of_the_protocol_are_timeouts() -> None:
    """Simulated delays are the simulator's, and how long a benchmark waits its own affair."""
    files = read(["csrc", "transport", "collectives"], ".c", ".h", ".py")
    found = {path: times(text) - LOCAL_TIMES for path, text in files.items()}
    foreign = ("transport/sim", "collectives/cli/")
    assert {path: t for path, t in found.items() if t and not path.startswith(foreign)} == {}


# ---- the checker --------------------------------------------------------------------------------


def test_the_table_has_no_cycle() -> None:
    open_rooms = {room: set(used) for room, used in C_MAY_USE.items()}
    assert open_rooms.keys() == C_ROOMS.keys()
    while open_rooms:
        lowest = {room for room, used in open_rooms.items() if not used & open_rooms.keys()}
        assert lowest, f"these rooms may use each other in a circle: {sorted(open_rooms)}"
        for room in lowest:
            del open_rooms[room]


def test_a_constant_that_is_a_time_is_found() -> None:
    text = "OPEN_S = 1.0\nRATE_PER_S = 2\nN = 1\n#define AGAIN_NS (5 * CC__MS)\n_A_MS: int = 3\n"
    assert times(text + "    INNER_S = 1\n") == {"OPEN_S", "AGAIN_NS", "_A_MS"}


@pytest.mark.parametrize(
    ("path", "header", "fault"),
    [
        ("csrc/op/op.c", "csrc/group/group.h", "may not include"),
        ("csrc/link/link.h", "csrc/op/op.h", "may not include"),
        ("csrc/link/dial.c", "csrc/api.h", "may not include"),
        ("csrc/plan/ring.c", "csrc/kernels/kernels.h", "may not include"),
        ("csrc/plan/ring.c", "csrc/link/link.h", "may not include"),
        ("csrc/agree/commit.c", "csrc/plan/plan.h", "may not include"),
        ("csrc/kernels/reduce.c", "transport/transport.h", "may not include"),
        ("transport/tcp.c", "csrc/wire/wire.h", "may not include"),
        ("transport/tcp.c", "csrc/link/link.h", "may not include"),
        ("csrc/base/clock.c", "transport/transport.h", "may not include"),
        ("csrc/wire/wire.c", "csrc/op/buffer.h", "may not include"),
        ("csrc/collectives.h", "csrc/base/clock.h", "may not include"),
        ("csrc/plan/ring.c", "plan.h", "not a path from the root"),
        ("csrc/plan/ring.c", "../kernels/kernels.h", "not a path from the root"),
        ("csrc/novelty.c", "csrc/collectives.h", "in no room"),
    ],
)
def test_a_forbidden_include_is_found(path: str, header: str, fault: str) -> None:
    text = f'/* About. */\n#include <stdio.h>\n#  include "{header}"\n'
    (found,) = c_violations({path: text})
    assert path in found
    assert fault in found


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("csrc/api.c", "csrc/group/group.h"),
        ("csrc/group/context.c", "csrc/group/progress.h"),
        ("csrc/group/vote.c", "csrc/agree/commit.h"),
        ("csrc/op/op.c", "csrc/kernels/kernels.h"),
        ("csrc/link/link.c", "transport/transport.h"),
        ("csrc/op/buffer.c", "csrc/link/link.h"),
        ("csrc/plan/ring.c", "csrc/plan/builders.h"),
        ("csrc/base/status.c", "csrc/collectives.h"),
        ("transport/sim.c", "csrc/base/clock.h"),
    ],
)
def test_an_allowed_include_is_not(path: str, header: str) -> None:
    assert c_violations({path: f'#include "{header}"\n'}) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("collectives/communicator.py", "from collectives import _native"),
        ("collectives/communicator.py", "from collectives._native import lib"),
        ("collectives/communicator.py", "from ._native import lib"),
        ("collectives/__init__.py", "from ._native import lib"),
        ("collectives/agent.py", "from collectives.coordinator.core import step"),
        ("collectives/agent.py", "from .coordinator import core"),
        ("collectives/work.py", "import collectives.cli.main"),
        ("collectives/coordinator/server.py", "from collectives.cli import main"),
        ("collectives/coordinator/server.py", "from collectives import agent"),
        ("collectives/coordinator/server.py", "from ..communicator import Communicator"),
        ("collectives/coordinator/core.py", "import zmq.asyncio"),
        ("collectives/coordinator/core.py", "def f():\n    import time"),
        ("collectives/coordinator/core.py", "from asyncio import sleep"),
        ("collectives/coordinator/core.py", "import socket"),
        ("collectives/coordinator/core.py", "from collectives._core import lib"),
        ("collectives/coordinator/core.py", "from collectives.coordinator import server"),
        ("collectives/coordinator/decide.py", "import threading"),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    (found,) = python_violations({path: f'"""About."""\n{line}\n'})
    assert path in found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("collectives/_core.py", "from collectives import _native"),
        ("collectives/communicator.py", "from collectives._core import ffi, lib"),
        ("collectives/cli/main.py", "from collectives.coordinator import server"),
        ("collectives/cli/main.py", "from collectives.cli import demo"),
        ("collectives/coordinator/server.py", "import asyncio, zmq, time"),
        ("collectives/coordinator/__init__.py", "from collectives.coordinator.core import Core"),
        ("collectives/coordinator/core.py", "from collectives.messages import Join"),
        ("collectives/coordinator/core.py", "from . import decide"),
        ("collectives/agent.py", "import timeit, zmq, threading"),
    ],
)
def test_an_allowed_import_is_not(path: str, line: str) -> None:
    assert python_violations({path: line}) == []


def test_a_long_file_is_found() -> None:
    assert too_long({"a.c": "x\n" * LINES_MAX}) == []
    assert too_long({"a.c": "x\n" * (LINES_MAX + 1)}) != []
