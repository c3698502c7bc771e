"""The store of torch.distributed for the ranks of `collectives run`.

By torch's own way rank 0 hosts it, and takes it along when it dies. So the launcher does, in a
process of its own, which is started by the first connection: a job without torch never pays for its
import. Until then the launcher holds the port.
"""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable

from collectives.cli.run_job import how
from collectives.coordinator.process import environment


class Store:
    """Use it in a `with` statement.

    Attributes:
        hosted: torch is here. Otherwise the port is only kept free, for rank 0 to host a store.
        port: on loopback.
        listener: what to watch for the first connection; None when it has come.
        process: of the store, from then on; None again if it died, which is told to `say`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.hosted = importlib.util.find_spec("torch") is not None
        self.process: subprocess.Popen[bytes] | None = None
        self.listener: socket.socket | None = socket.socket()
        # Rank 0 may bind it again: the port is taken only for those who ask for any.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        if self.hosted:
            self.listener.listen(1024)

    def start(self) -> None:
        """Somebody has connected."""
        assert self.listener is not None
        descriptor = self.listener.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collectives.torch.store", str(descriptor)],
            stdin=subprocess.PIPE,  # it ends when that does
            env=environment(),
            pass_fds=[descriptor],
            start_new_session=True,
        )
        self.listener.close()
        self.listener = None

    def look(self) -> None:
        """Whether it has ended. It is not started again: what was in it is lost."""
        if self.process is not None and (code := self.process.poll()) is not None:
            number, lost = self.process.pid, "who needs it from now on waits in vain"
            self._say(f"the store of torch.distributed (process {number}) {how(code)}; {lost}")
            self._end()

    def _end(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.listener is not None:
            self.listener.close()
        self._end()
