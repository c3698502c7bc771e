"""A backend of torch.distributed that survives.

    import torch.distributed as dist
    import collectives.torch                        # not needed with torch >= 2.14

    dist.init_process_group("collectives")          # env://, file://, tcp:// or a store

Everything else is a script for Gloo, unchanged. No coordinator has to be started: rank 0 starts
one, unless ``COLLECTIVES_COORDINATOR`` names one. When a rank is lost, every operation fails with
`collectives.PeerLost` on all others; with `elastic` it goes on among them instead. See
docs/torch.md.

Importing this starts no thread and opens no socket.
"""

from __future__ import annotations

import torch.distributed as dist

from collectives.torch.group import NAME, ProcessGroup, create, reconfigurable
from collectives.torch.reconfiguration import (
    get_reconfigure_handle,
    reconfigure,
    supports_reconfigure,
)
from collectives.torch.run import Run, elastic

__all__ = [
    "ProcessGroup",
    "Run",
    "elastic",
    "get_reconfigure_handle",
    "reconfigurable",
    "reconfigure",
    "supports_reconfigure",
]


def register() -> None:
    """Makes the backend known to torch. Importing this does; torch >= 2.14 calls it by itself."""
    if NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu"])


register()
