"""Timeouts and addresses: what is read, what is refused, and that the message says what to do."""

from __future__ import annotations

import dataclasses
import math

import pytest

from collectives import config as c


def test_the_presets() -> None:
    assert c.timeouts_named("WAN") is c.WAN
    for field in dataclasses.fields(c.Timeouts):
        lan, wan = getattr(c.LAN, field.name), getattr(c.WAN, field.name)
        assert (wan is None) if lan is None else math.isclose(wan, 5 * lan)
    assert c.LAN.settle_time == c.LAN.dead
    assert c.Timeouts(settle=0.5).settle_time == 0.5
    assert c.milliseconds(0.0001) == 1 and c.milliseconds(2) == 2000
    with pytest.raises(ValueError, match="'lan' or 'wan'"):
        c.timeouts_named("moon")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e9])
def test_timeouts_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="connect must be"):
        c.Timeouts(connect=value)


def test_timeouts_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="twice ping"):
        c.Timeouts(ping=3.0)
    with pytest.raises(ValueError, match="between beat"):
        c.Timeouts(suspect=2.0)
    with pytest.raises(ValueError, match="twice beat"):
        c.Timeouts(beat=1.0, dead=1.5)
    with pytest.raises(TypeError, match="dead must be a number"):
        c.Timeouts(dead="2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("cc://node:1", ("node", 1)),
        ("CC://10.0.0.1:65535/", ("10.0.0.1", 65535)),
        ("cc://node", ("node", c.DEFAULT_PORT)),
        ("cc://[::1]:29", ("::1", 29)),
        ("cc://[fe80::1%eth0]", ("fe80::1%eth0", c.DEFAULT_PORT)),
    ],
)
def test_urls(url: str, expected: tuple[str, int]) -> None:
    assert c.parse_url(url) == expected
    assert c.parse_address(c.format_address(*expected)) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "node:1", "tcp://node:1", "cc://", "cc://:1", "cc://node:", "cc://node:0"),
        *("cc://node:65536", "cc://node:x", "cc://node:-1", "cc://node:١", "cc://::1:5"),
        *("cc://[::1", "cc://[node]:1", "cc://a b:1", "cc://n/path:1", "cc://user@n:1"),
        *("cc://nöde:1", "cc://node:1:2", "cc://[::1]x:1"),
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|URL|port|IPv6"):
        c.parse_url(url)


def test_numeric_addresses_are_left_alone() -> None:
    assert c.resolve_host("10.1.2.3") == "10.1.2.3"
    assert c.resolve_host("::1") == "::1"
    assert c.resolve_host("localhost") == "127.0.0.1"
    assert c.is_loopback("127.9.9.9")
    assert c.is_loopback("::1")
    assert not c.is_loopback("0.0.0.0")
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        c.resolve_host("no-such-host.invalid")
