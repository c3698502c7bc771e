"""A rank of `collectives run`: one process, and what it starts.

It leads a session of its own, as torchrun's workers do: Ctrl-C reaches the launcher alone, which
passes it on, and a signal to the rank's process group reaches whatever the rank has started there.
When it ends, what is left of that group is killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collectives.settings import variable

REJOIN = variable("rejoin")
"""Set for a rank that is started in the place of a dead one."""


@dataclass(frozen=True)
class Place:
    """What the ranks of a job are told by their environment.

    Attributes:
        size: so many ranks, all on this host.
        run: a name that no other run has.
        coordinator: its URL.
        port: of the store of torch.distributed, on loopback.
        store: whether we host that store; else rank 0 does.
    """

    size: int
    run: str
    coordinator: str
    port: int
    store: bool

    def environment(self, rank: int, rejoins: bool) -> dict[str, str]:
        """That of torchrun, for one node, and ours."""
        env = dict(os.environ)
        if self.size > 1:
            env.setdefault("OMP_NUM_THREADS", "1")
        env.pop(REJOIN, None)
        if rejoins:
            env[REJOIN] = "1"
        return env | {
            variable("coordinator"): self.coordinator,
            "RANK": str(rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(self.size),
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": str(self.size),
            "ROLE_NAME": "default",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_RUN_ID": self.run,
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_USE_AGENT_STORE": str(self.store),
        }


class Rank:
    """A process that runs. Its input and output are ours, and whatever else we hand down."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        # What is not to be inherited is closed by exec itself, and no sooner: see `run_guard`.
        self._process = subprocess.Popen(command, env=env, start_new_session=True, close_fds=False)
        self.pid = self._process.pid

    @property
    def has_ended(self) -> bool:
        """Its number stays taken until `wait`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int) -> None:
        """To its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self) -> int:
        """Returns its exit code, or minus the signal that killed it."""
        return self._process.wait()
