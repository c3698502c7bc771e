"""The control messages: all of them survive the wire, and nothing else comes through.

Method: one good message of each type; then each field of each is replaced by values that its type
does not allow, dropped, or joined by a field that does not exist, and `decode` must say no.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from collectives import messages as m
from collectives.errors import ProtocolError

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "collectives.h"

A, B = b"a" * 16, b"\0" * 15 + b"b"
MEMBERS = (
    m.Member(A, 0, 1, 2**64 - 1, "10.0.0.1:5000", "alpha"),
    m.Member(B, 3, 2, 0, "[fe80::1%eth0]:65535", ""),
)
GOOD: list[m.Message] = [
    m.Join(1, A, "train", "n", None, 4, 2, "node-7:5000", 5, 2, 65536),
    m.Join(1, A, "gruppe ü", "", 3, 4, 1, "10.0.0.1:1", 2**64 - 1, 16, 64),
    m.Prepared(1, 9, False, B, "refused", 2**64 - 1, 1),
    m.Report(
        *(1, 2**64 - 1, m.Cause.LOST, 7, 3),
        (m.LaneReport(0, 1, 2, 3), m.LaneReport(15, 0, 0, 2**64 - 1)),
        (m.Evidence(B, m.EvidenceKind.REFUSED),),
        "why",
        of=B,
    ),
    m.Installed(1, 2, True),
    m.Ping(),
    m.Bye(),
    m.Welcome(1, 2, b"t" * 16, 3, 5, 1, MEMBERS),
    m.Welcome(1, 2, b"t" * 16, 0, 0, 1, ()),
    m.Refused("no"),
    m.Pending(1, 2),
    m.Seal(1, 2),
    m.Epoch(1, 2, m.Cause.LOST, 4, 1, B, 3, MEMBERS, (m.Outcome(0, 4, 6, 8),), "detail", 1, 2**63),
    m.Evicted(1, 0, False, "gone"),
    m.Pong(),
    m.Welcome(1, 2, b"t" * 16, 0, 1, 2, MEMBERS),  # they are to form the group
    m.Bye(3),
    m.Subgroup(1, b"k" * 16, (A, B)),
    m.Opened(b"k" * 16, 4, ""),
    m.Ping(1, 2**32 - 1),
    m.Seal(1, 2, term=3),
    m.Unknown(1, True, "who are you?"),
]
GOOD.append(
    m.Claim(7, b"t" * 16, False, m.Join(1, A, "g", "", None, 4, 2, "a:1", 5, 2, 64), GOOD[12])  # type: ignore[arg-type]
)
IDS = [f"{message.TYPE}-{index}" for index, message in enumerate(GOOD)]


def plain(message: m.Message) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(m.encode(message))
    return found


def rejected(value: Any) -> str:
    with pytest.raises(ProtocolError) as info:
        m.decode(msgpack.packb(value))
    return str(info.value)


def test_every_type_has_a_sample() -> None:
    assert {type(message) for message in GOOD} == set(m._TYPES.values())


@pytest.mark.parametrize("message", GOOD, ids=IDS)
def test_round_trip(message: m.Message) -> None:
    data = m.encode(message)
    again = m.decode(data)
    assert again == message
    assert type(again) is type(message)
    assert m.encode(again) == data
    assert hash(again) == hash(message)  # all the way down immutable


@pytest.mark.parametrize("message", GOOD, ids=IDS)
def test_fields_must_be_exactly_those(message: m.Message) -> None:
    good = plain(message)
    for name in good:
        rejected({key: value for key, value in good.items() if key != name})
    assert "surprise" in rejected({**good, "surprise": 1})
    assert "unknown type" in rejected({**good, "type": "no such"})
    rejected({**good, "type": 1})


# Values that no field of any message allows, by the name of the field.
NEVER: dict[str, list[Any]] = {
    "version": [-1, "1", 1.0, None, True, 2**32],
    "id": [b"", b"x" * 15, b"x" * 17, "x" * 16, None, bytes(16), 7],
    "group": [None, b"g", 0, -1, 2**32, "", "x" * 129, "tab\t", 1.5, True],
    "name": [None, "x" * 129, "line\nbreak", b"n", 1],
    "rank": [-1, 1024, "0", True, 1.0],
    "size": [0, 1025, None, "4", True],
    "min_size": [0, 1025, None, True],
    "address": ["", "host", "host:", ":1", "host:0", "host:65536", "::1:5", "h h:1", None, b"h:1"],
    "host": [-1, "x", None, 1.0],
    "streams": [0, 17, None],
    "segment_bytes": [0, 63, 65, (1 << 20) + 64, None],
    "epoch": [-1, None, "1", True],
    "round": [-1, None, "1", 1.0, True],
    "latency_ns": [-1, None, "1", 1.0, True],
    "bytes_per_s": [-1, None, "1", 1.0, True],
    "ok": [0, 1, None, "yes"],
    "existing": [0, 1, None, "yes"],
    "peer": [b"x" * 15, "x" * 16, None],
    "of": [b"", b"x" * 15, b"x" * 17, "x" * 16, None],
    "reason": [None, b"r", "x" * 1025],
    "detail": [None, b"r", "x" * 1025],
    "cause": [0, 8, -1, None, "LOST", True],
    "boundary": [-1, None, 0.0],
    "wants": [4, -1, None],
    "ready": [0, 1, None],
    "serial": [-1, 2**32, None],
    "token": [b"", b"t" * 15, b"t" * 17, "t" * 16, None],
    "waiting": [-1, 2**32, None],
    "members": [None, {}, [None], [[]], [[A, 0, 1, 2, "10.0.0.1:5000"]], "x"],
    "joiners": [-1, 2**32, None],
    "term": [-1, 2**32, None, "1", True],
    "recover": [0, None],
    "is_subgroup": [0, None],
    "join": [None, [], {}, b"join"],
    "record": [None, [], {}, b"record"],
    "world": [0, 1025, None],
    "lost": [b"", b"x" * 17, None],
    "lost_rank": [-1, 2**32, None],
    "lanes": [None, {}, [[0]], [[16, 0, 0]], [[16, 0, 0, 0]], [[-1, 0, 0]], [None], 0],
    "calls": [None, [[0, 1]], [[16, 1, 1]], [[0, -1, 1]], [[0, 1, 1], [0, 1, 2]]],
    "evidence": [None, [[A, 0]], [[A, 6]], [[A]], [[b"x", 1]], [[A, 1]] * 65, [[bytes(16), 1]]],
    "left": [0, 1, None],
    "parent": [0, -1, 2**32, None, "1"],
    "key": [b"", b"k" * 15, b"k" * 17, "k" * 16, None],
    # Where 0 has a meaning, and where members are ids alone:
    "ping.group": [None, b"g", -1, 2**32, "", 1.5, True],
    "bye.group": [None, b"g", -1, 2**32, "", 1.5, True],
    "opened.group": [None, b"g", -1, 2**32, "", 1.5, True],
    "subgroup.members": [None, {}, [], [None], [b"x"], [bytes(16)], [A, A], "x"],
}


@pytest.mark.parametrize("message", GOOD, ids=IDS)
def test_each_field_is_checked(message: m.Message) -> None:
    good = plain(message)
    for field in dataclasses.fields(message):
        assert field.name in NEVER, f"no bad values for {field.name}"
        for value in NEVER.get(f"{message.TYPE}.{field.name}", NEVER[field.name]):
            if field.name == "version" and type(value) is int and 0 <= value < 2**32:
                continue  # another version is another matter, below
            error = rejected({**good, field.name: value})
            assert field.name in error, f"{field.name}={value!r}: {error}"


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (12, {"world": 3}),  # a rank beyond it
        (12, {"lanes": [[0, 6, 4]]}),
        (12, {"lanes": [[1, 0, 0], [1, 0, 0]]}),
        (12, {"members": []}),
        (12, {"members": [[A, 0, 1, 0, "h:1", ""], [A, 1, 2, 0, "h:1", ""]]}),
        (12, {"members": [[A, 1, 1, 0, "h:1", ""], [B, 0, 2, 0, "h:1", ""]]}),
        (12, {"members": [[A, 0, 1, 0, "h:1", ""], [B, 1, 1, 0, "h:1", ""]]}),
        (3, {"lanes": [[1, 0, 0, 0], [1, 0, 0, 0]]}),
        (3, {"cause": 1}),
        (7, {"members": [[A, 0, 1, 0, "h:1", ""], [A, 1, 2, 0, "h:1", ""]]}),
    ],
)
def test_fields_must_fit_together(index: int, change: dict[str, Any]) -> None:
    rejected({**plain(GOOD[index]), **change})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        msgpack.packb([1, 2, 3]),
        msgpack.packb("ping"),
        msgpack.packb({"type": "ping"}) + b"\x00",
        msgpack.packb({1: "ping"}),
        b"\x82\xa4type\xa4ping\xa4type\xa4ping",  # a field twice
        b"\x81\xa4type\xa4pin\xff",  # not UTF-8
        b"\xdd\xff\xff\xff\xff",  # an array that claims 4 G entries
        b"\x91" * 100_000,  # very deep
        b"\xdc\x04\x00" * 300_000,  # deep and wide
        b"\x81\xa4type\xc7\xff\x01" + b"x" * 255,  # an extension
        bytes((1 << 20) + 1),
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.decode(data)


def test_a_newer_join_still_tells_its_version() -> None:
    newer = {"type": "join", "version": 2, "shape": [1, 2], "key": b"k"}
    assert m.decode(msgpack.packb(newer)) == m.ForeignJoin(2)
    rejected({"type": "join", "version": "2"})
    rejected({"type": "ping", "version": 2})
    with pytest.raises(ValueError, match="never sent"):
        m.encode(m.ForeignJoin(2))


def test_a_bad_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match="min_size"):
        m.encode(dataclasses.replace(GOOD[0], min_size=0))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="name"):
        m.encode(dataclasses.replace(GOOD[0], name="x" * 129))  # type: ignore[call-arg]


def test_the_largest_record_fits() -> None:
    members = tuple(
        m.Member(
            *(index.to_bytes(16, "big"), index - 1, 2**32 - index, 2**64 - 1),
            *("h" * 256 + ":65535", "ü" * 128),
        )
        for index in range(1, 1025)
    )
    lanes = tuple(m.Outcome(lane, 2**64 - 1, 2**64 - 1, 2**64 - 1) for lane in range(16))
    record = m.Epoch(1, 2, m.Cause.LOST, 1024, 1, A, 0, members, lanes, "x" * 255)
    assert m.decode(m.encode(record)) == record
    rejected({**plain(record), "members": plain(record)["members"] * 2})


@pytest.mark.parametrize(
    ("enum", "prefix"), [(m.Cause, "CC_CAUSE_"), (m.EvidenceKind, "CC_EVIDENCE_")]
)
def test_numbers_are_those_of_the_header(enum: type[m.Cause], prefix: str) -> None:
    """Counted from the header's text: the first is given, the others follow."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    names = re.findall(rf"^\s*{prefix}(\w+)(?: = 1)?,", text, flags=re.MULTILINE)
    assert {name: index + 1 for index, name in enumerate(names)} == {
        member.name: member.value for member in enum
    }


def test_identities() -> None:
    assert m.peer_of(m.identity(bytes(16))) == bytes(16)
    assert m.peer_of(b"Q" + A) is None
    assert m.peer_of(b"P" + A + b"x") is None
