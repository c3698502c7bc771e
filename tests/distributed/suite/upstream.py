"""torch's own distributed tests, which ship in its wheel, for a backend of any name.

The tests read the backend's name while they are imported, and skip what they do not expect of it.
They know a few names only; so they are imported under one that they know, a gate, and run with the
real name. What the first gate shuts is tried behind the second. No test is changed. Which
conditions are lifted by that, and why, is told in docs/torch_suite.md.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any

GATES = ("gloo", "mpi")
"""gloo's gate has all but the tests of all_to_all on CPU, which only mpi's has."""

SPARED = "mpi"
"""The name in the environment that upstream's conditions on the number of ranks spare. Tests of
groups are of ranks 1 and 2 and need three, but are skipped below eight: for upstream's machines
with four GPUs, it says there, and for the time being."""

FEATURES = ("gpu", "cuda", "ddp", "subgroup", "plugin")
MODULE = "torch.testing._internal.distributed.distributed_test"


def suites(backend: str, ranks: int, limit_s: float) -> Iterator[type[unittest.TestCase]]:
    """The tests behind each gate, ready to run until the next is asked for."""
    os.environ.update(
        WORLD_SIZE=str(ranks),
        INIT_METHOD="file:///dev/null",  # each test sets its own, but needs to know the kind now
        PYTORCH_PRINT_REPRO_ON_FAILURE="0",  # a command that is not how it was run
        # Upstream ends hanging ranks itself and shows where they hang, if it comes to it in time.
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(max(1, int(limit_s * 0.75))),
    )
    if backend == "collectives":
        importlib.import_module("collectives.torch")
    for gate in GATES:
        module = _load(gate, backend)
        os.environ["BACKEND"] = SPARED if ranks >= 3 else backend
        yield _suite(module)


def version() -> str:
    """What is run, for the reader of a report."""
    return f"torch {importlib.import_module('torch').__version__}"


class Name(str):
    """The real name, also equal to the gate's: some tests know two names, and do nothing else."""

    gate = ""

    def __eq__(self, other: object) -> bool:
        return other in (str(self), self.gate)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _load(gate: str, backend: str) -> types.ModuleType:
    """Imports the tests under a gate's name. They are pickled by name, so the module that runs is
    the one that is imported."""
    os.environ["BACKEND"] = gate
    sys.modules.pop(MODULE, None)
    module = importlib.import_module(MODULE)
    for feature in FEATURES:
        module.DistTestCases.backend_feature[feature].add(backend)
    module.BACKEND = Name(backend)
    module.BACKEND.gate = gate
    return module


def _suite(module: types.ModuleType) -> type[unittest.TestCase]:
    """As upstream's test_distributed_spawn.py makes it, but that ranks are forked off."""
    from torch.multiprocessing import get_context
    from torch.testing._internal.common_distributed import TEST_SKIPS

    skips = {skip.exit_code: skip.message for skip in TEST_SKIPS.values()}

    class Suite(module.TestDistBackend, module.DistributedTest._DistTestBase):  # type: ignore
        def setUp(self) -> None:
            super().setUp()
            if reason := _refusal(getattr(type(self), self._testMethodName), skips):
                self.skipTest(reason)
            # Set for each test, and read by upstream when a spawned rank imports it.
            module.INIT_METHOD = os.environ["INIT_METHOD"]
            self._start_processes(get_context("fork").Process)

        def _check_return_codes(self, fn: Any, elapsed_time: float) -> None:
            """Upstream looks at the first rank's, and for its own sign of an error at all."""
            super()._check_return_codes(fn, elapsed_time)
            codes = [process.exitcode for process in self.processes]
            if len(set(codes)) > 1:
                self.fail(f"the ranks ended with different exit codes: {codes}")

    return Suite


class Nobody:
    """In place of a test's `self`: ends the process if the test touches it."""

    _handle_test_skip = None  # what upstream's decorators look for, before they skip

    def __getattr__(self, name: str) -> None:
        os._exit(0)


def _refusal(test: Callable[[Any], None], skips: dict[int, str]) -> str | None:
    """Why all ranks would skip this test. Each says so by its exit code, for want of a GPU mostly,
    before it does anything; so one that is alone can be asked, which spares making a group."""
    pid = os.fork()
    if pid == 0:
        try:
            test(Nobody())
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(0)
    return skips.get(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
