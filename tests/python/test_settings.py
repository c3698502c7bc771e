"""The table of settings: what wins, what is refused and how, and that the page says the same.

Goal: each row does what it says. Method: every variable with a good and with wrong values, in an
environment of its own; as arguments too; against the defaults and limits of the core; and in a
process that connects, where the core itself is asked what it was given.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, Worker

import collectives as cc
from collectives import settings as s
from collectives._core import ffi, lib
from collectives.coordinator.server import CoordinatorServer

ROOT = Path(__file__).resolve().parents[2]

# Of each setting: a good text, what it means, wrong texts, a wrong argument.
GOOD: dict[str, tuple[str, Any]] = {
    "coordinator": ("cc://node:1", "cc://node:1"),
    "log": (" DEBUG ", "debug"),
    "transport": ("TCP", "tcp"),
    "timeouts": ("Wan", cc.WAN),
    "interface": ("eth1", "eth1"),
    "streams": ("4", 4),
    "segment_bytes": ("65536", 65536),
    "congestion": ("bbr", "bbr"),
    "send_buffer_bytes": ("1048576", 1 << 20),
    "receive_buffer_bytes": ("0", 0),
    "trace": ("1024", 1024),
    "trace_dir": ("/tmp/of traces", "/tmp/of traces"),
    "insecure": ("1", True),
    "rejoin": ("1", True),
}
WRONG: dict[str, tuple[list[str], list[Any]]] = {
    "coordinator": (["node:1", "cc://node:99999", "http://node"], ["node:1", ""]),
    "log": (["loud", "1"], ["LOUD", 10]),
    "transport": (["pigeon"], ["pigeon", 1]),
    "timeouts": (["moon", "1.5"], [1.5, "wan"]),
    "interface": (["eth 1", "eth\N{LATIN SMALL LETTER O WITH DIAERESIS}"], ["", 1]),
    "streams": (["17", "0", "two", "-1", "+1", "1_0", "\u0661", "9" * 5000], [17, 0, 1.0, True]),
    "segment_bytes": (["100", "0", "1048640", "64K"], [100, 0, 1 << 21, "64"]),
    "congestion": (["b b r"], ["", b"bbr"]),
    "send_buffer_bytes": (["-1", "1e6", str(1 << 31)], [-1, 1 << 31]),
    "receive_buffer_bytes": (["-1", "x"], [-1, "1"]),
    "trace": (["-1", "1048577", "all"], [-1, 1 << 21, "1"]),
    "trace_dir": (["x" * 5000], ["", " a", "a\0", 1]),
    "insecure": (["yes", "2", "true"], [1, "1"]),
    "rejoin": (["yes", "-1"], [0, "0"]),
}
NAMES = [row.name for row in s.rows()]


def test_every_setting_is_tested_here() -> None:
    assert set(NAMES) == set(GOOD) == set(WRONG)


def test_nothing_given() -> None:
    assert s.Settings.resolve({}) == s.Settings()
    empty = {s.variable(name): "  " for name in NAMES}
    assert s.Settings.resolve(empty) == s.Settings()


def test_the_environment_wins_over_the_defaults() -> None:
    found = s.Settings.resolve({s.variable(name): text for name, (text, _) in GOOD.items()})
    assert {name: getattr(found, name) for name in NAMES} == {n: v for n, (_, v) in GOOD.items()}
    assert found.from_variables == set(NAMES)


def test_arguments_win_over_the_environment() -> None:
    """What is not looked at may be wrong; what is None is not given."""
    wrong = {s.variable(name): texts[0] for name, (texts, _) in WRONG.items()}
    found = s.Settings.resolve(wrong, **{name: value for name, (_, value) in GOOD.items()})
    assert {name: getattr(found, name) for name in NAMES} == {n: v for n, (_, v) in GOOD.items()}
    assert found.from_variables == set()
    found = s.Settings.resolve({"COLLECTIVES_STREAMS": "3"}, streams=None, segment_bytes=128)
    assert (found.streams, found.segment_bytes) == (3, 128)
    with pytest.raises(TypeError, match="'colour'"):
        s.Settings.resolve({}, colour="red")


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, (texts, _) in WRONG.items() for text in texts]
)
def test_a_wrong_variable(name: str, text: str) -> None:
    """The error names the variable, the value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        s.Settings.resolve({s.variable(name): text})
    message = str(caught.value)
    assert message.startswith(f"COLLECTIVES_{name.upper()}")
    assert text[:60] in message and len(message) < 400
    assert tells_what_is_allowed(message)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, (_, values) in WRONG.items() for value in values],
)
def test_a_wrong_argument(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        s.Settings.resolve({}, **{name: value})
    message = str(caught.value)
    assert re.match(rf"{name}\b", message)
    assert repr(value) in message
    assert tells_what_is_allowed(message)


def tells_what_is_allowed(message: str) -> bool:
    words = (
        "debug, info",
        "0 or 1",
        "True or False",
        "tcp",
        "lan",
        "LAN",
        "name of a",
        "64 to 1048576",
        "1 to 16",
        "0 to 1048576",
        "of a folder",
    )
    return any(word in message for word in (*words, "0 to 1073741824", "cc://host:", "0 to 65535"))


def test_defaults_and_limits_are_the_cores() -> None:
    """The table repeats them, so that the coordinator can do without the core."""
    default = ffi.new("cc_options *")
    lib.cc_options_default(default)
    given = s.Settings()
    assert ffi.string(default.transport).decode() == given.transport
    for name in ("streams", "segment_bytes", "send_buffer_bytes", "receive_buffer_bytes"):
        assert getattr(default, name) == getattr(given, name)
    assert not default.congestion and not default.interface
    message = ffi.new("char[]", int(lib.CC_MESSAGE_MAX))
    context = ffi.new("cc_context **")
    for name, values in (
        ("streams", (1, 16, 17)),
        ("segment_bytes", (64, 1 << 20, (1 << 20) + 64)),
    ):
        for value in values:
            lib.cc_options_default(default)
            default.id.bytes = bytes(range(16))
            setattr(default, name, value)
            status = lib.cc_context_open(default, context, message)
            allowed = value != values[-1]
            assert (status == lib.CC_OK) == allowed
            if allowed:
                lib.cc_context_free(context[0])
            else:
                with pytest.raises(ValueError):
                    s.Settings.resolve({}, **{name: value})


def test_connect_takes_them_all() -> None:
    parameters = inspect.signature(cc.connect).parameters
    assert [name for name in NAMES if name not in parameters] == ["log", "rejoin"]
    assert all(parameters[n].default is None for n in NAMES if n not in ("log", "rejoin"))


def test_the_page_says_the_same() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == s.page(), "bring it up to date: make docs"


# ---- in a process --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("INTERFACE", "nosuch0", "none that is up"),
        ("CONGESTION", "nosuch", "does not have it"),
        ("CONGESTION", "x" * 40, "longer than any"),
        ("STREAMS", "17", "1 to 16"),
        ("COORDINATOR", "nowhere", "cc://host"),
    ],
)
def test_connect_names_the_variable(monkeypatch, name: str, value: str, told: str) -> None:
    """Also where only the core finds out that the system does not have it."""
    monkeypatch.setenv("COLLECTIVES_COORDINATOR", "cc://127.0.0.1:9")
    monkeypatch.setenv(f"COLLECTIVES_{name}", value)
    with pytest.raises((ValueError, NotImplementedError, cc.CollectivesError)) as caught:
        cc.connect(insecure=True, timeout=0)
    message = str(caught.value)
    assert f"COLLECTIVES_{name}" in message and value in message and told in message


def test_an_argument_is_not_blamed_on_a_variable(monkeypatch) -> None:
    monkeypatch.setenv("COLLECTIVES_CONGESTION", "reno")
    with pytest.raises(NotImplementedError) as caught:
        cc.connect("cc://127.0.0.1:9", congestion="nosuch", timeout=0)
    assert "nosuch" in str(caught.value) and "COLLECTIVES" not in str(caught.value)


def test_the_interface_is_listened_at(monkeypatch) -> None:
    with CoordinatorServer() as server:
        monkeypatch.setenv("COLLECTIVES_COORDINATOR", server.url)
        monkeypatch.setenv("COLLECTIVES_INTERFACE", "lo")
        with cc.connect() as comm:  # loopback needs no key
            assert comm._seat.current.members[0].address.startswith("127.0.0.1:")
        with pytest.raises(ValueError, match="listen on loopback only: eth9"):
            cc.connect(interface="eth9")


def set_variables(worker: Worker, **variables: str) -> None:
    """A call: the environment of the peer, before it connects."""
    os.environ.update(variables)


def contribute(worker: Worker) -> tuple[int, int]:
    """A call: sends 60000 bytes in a ring, and counts what that took on the links."""
    before = worker.comm.stats["sent_bytes"]
    total = worker.comm.all_reduce(np.ones(60000, np.uint8), algorithm="ring")
    return int(total.sum()), worker.comm.stats["sent_bytes"] - before


def test_what_the_environment_says_reaches_the_core() -> None:
    """Two groups whose peers connect with the same arguments. One has long frames by its
    environment, the other frames of 64 bytes, whose headers show in what is sent."""
    sent: dict[str, list[int]] = {}
    for segment_bytes in ("65536", "64"):
        with Cluster(0) as group:
            peers = group.add(2)
            for peer in peers:
                peer.call(set_variables, COLLECTIVES_SEGMENT_BYTES=segment_bytes)
            group.form(peers)
            counts = group.each(contribute)
            assert [total for total, _ in counts] == [120000] * 2
            sent[segment_bytes] = [count for _, count in counts]
    assert max(sent["65536"]) < 65000 and min(sent["64"]) > 75000, sent
