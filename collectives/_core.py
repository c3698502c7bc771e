"""The door to the C core: the only module that imports the extension.

`lib` holds the functions and constants of csrc/collectives.h, `ffi` makes and reads C memory.
Everything else in the package takes both from here, so that a missing or stale build is explained
once, and a test can check that nothing else depends on how the core is bound.
"""

from __future__ import annotations

__all__ = ["ffi", "lib"]

try:
    from collectives._native import ffi, lib
except ImportError as error:
    raise ImportError(
        f"the compiled core of collectives could not be loaded ({error}). In a checkout run "
        "`make build` and use .venv/bin/python; elsewhere install the package with pip"
    ) from error
