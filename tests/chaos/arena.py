"""Where the processes run: each slot in a network namespace of its own, which can be cut off, or
all of them on loopback, where nothing can.

Namespaces need root, the emulator in tests/wan connects them. What is missing for them is told in
words; the run is then one without blackholes, and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

WAN = Path(__file__).resolve().parents[1] / "wan"
COORDINATOR = 0  # its slot; those of the peers are 1, 2, ...


def why_no_namespaces() -> str | None:
    """What is missing for them."""
    if sys.version_info < (3, 11):
        return "tests/wan needs Python 3.11"
    if os.geteuid() != 0:
        return "tests/wan needs root"
    if not os.path.exists("/dev/net/tun"):
        return "tests/wan needs /dev/net/tun"
    missing = [name for name in ("gcc", "ip") if shutil.which(name) is None]
    return f"tests/wan needs {' and '.join(missing)}" if missing else None


class Loopback:
    """No network at all: everybody shares loopback."""

    can_cut = False

    def __init__(self, slots: int, folder: Path) -> None:
        pass

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def address(self, slot: int) -> str | None:
        """The slot's own address, if it has one."""
        return None

    def popen(self, slot: int, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, start_new_session=True, **options)

    def cut(self, slot: int, partial: bool = False) -> None:
        raise AssertionError("nobody can be cut off on loopback")

    def heal(self, slot: int) -> None:
        raise AssertionError("nobody was cut off on loopback")


class Namespaces(Loopback):
    """A network namespace for each slot. `folder`: for the emulator's program."""

    can_cut = True

    def __init__(self, slots: int, folder: Path) -> None:
        emulator = folder / "wan-emulator"
        command = ["gcc", "-std=c11", "-O2", "-o", emulator, WAN / "wan.c", "-lm"]
        subprocess.run(command, check=True)
        os.environ["WAN_EMULATOR"] = str(emulator)
        if str(WAN) not in sys.path:
            sys.path.append(str(WAN))
        from wan import Wan

        topology = folder / "topology.toml"
        topology.write_text(f"hosts = {slots}\n")
        self._net = Wan(topology, name=f"chaos{os.getpid()}")

    def __enter__(self) -> Namespaces:
        self._net.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._net.down()

    def _host(self, slot: int) -> str:
        return str(self._net.hosts[slot])

    def address(self, slot: int) -> str | None:
        return str(self._net.address(self._host(slot)))

    def popen(self, slot: int, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        found: subprocess.Popen[bytes] = self._net.popen(
            self._host(slot), command, start_new_session=True, **options
        )
        return found

    def cut(self, slot: int, partial: bool = False) -> None:
        """A blackhole: what is on its way is lost too, and nobody is told. `partial`: between this
        slot and those of the other peers alone."""
        host = self._host(slot)
        if not partial:
            self._net.cut(host)
            return
        others = ",".join(h for h in self._net.hosts if h not in (host, self._host(COORDINATOR)))
        self._net.block(host, others)
        self._net.block(others, host)

    def heal(self, slot: int) -> None:
        host = self._host(slot)
        self._net.heal(host)
        self._net.unblock(host, "*")
        self._net.unblock("*", host)
