"""`python -m collectives.torch.store DESCRIPTOR`: a TCPStore on a socket that listens already.

It lives as long as its standard input. `collectives run` starts it, with ranks waiting in the
socket's queue.
"""

from __future__ import annotations

import socket
import sys

from torch.distributed import TCPStore


def main(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as listener:
        host, port = listener.getsockname()
        listener.detach()  # it is the store's now
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
    sys.stdin.read()
    del store


if __name__ == "__main__":
    main(int(sys.argv[1]))
