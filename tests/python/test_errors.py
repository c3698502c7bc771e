"""Errors: one family, each also what Python calls it; the core's statuses map to them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from collectives import errors as e

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "collectives.h"


def header_statuses() -> dict[int, str]:
    """cc_status as the header has it: the numbers are the positions."""
    body = re.search(r"typedef enum cc_status \{(.*?)\}", HEADER.read_text(), re.DOTALL)
    assert body is not None
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return dict(enumerate(re.findall(r"CC_(\w+)", code)))


NAMES = header_statuses()


@pytest.mark.parametrize(
    "status", [n for n, name in NAMES.items() if name not in ("OK", "PENDING")]
)
def test_every_status_of_the_header_has_an_exception(status: int) -> None:
    error = e.from_status(status, "what happened", names=NAMES)
    assert "what happened" in str(error)
    assert type(error) is not Exception
    if NAMES[status] not in ("INVALID", "UNSUPPORTED", "NO_MEMORY"):
        assert isinstance(error, e.CollectivesError)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("PEER_LOST", e.PeerLost),
        ("COORDINATOR_LOST", e.OutcomeUnknown),
        ("TIMED_OUT", TimeoutError),
        ("REFUSED", ConnectionError),
        ("INVALID", ValueError),
        ("UNSUPPORTED", NotImplementedError),
        ("NO_MEMORY", MemoryError),
        ("SYSTEM", OSError),
    ],
)
def test_what_each_is(name: str, cls: type[Exception]) -> None:
    number = {name: number for number, name in NAMES.items()}[name]
    assert isinstance(e.from_status(number, "x", names=NAMES), cls)


def test_a_lost_peer_says_who() -> None:
    number = {name: number for number, name in NAMES.items()}["PEER_LOST"]
    lost = e.from_status(
        number, "gone", names=NAMES, peer=b"p" * 16, rank=3, operation="all_reduce"
    )
    copy = pickle.loads(pickle.dumps(lost))  # as multiprocessing does
    for error in (lost, copy):
        assert isinstance(error, e.PeerLost)
        assert (error.peer, error.rank, error.operation) == (b"p" * 16, 3, "all_reduce")
        assert str(error) == "gone"


def test_an_unknown_status_is_still_an_error() -> None:
    assert "4711" in str(e.from_status(4711, "", names=NAMES))
