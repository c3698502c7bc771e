"""Whatever bytes come, `decode` returns a message that encodes to the same, or says ProtocolError.

Two kinds of input: bytes that are msgpack by chance only, and good messages with something changed,
which get much further.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives import messages as m
from collectives.config import LAN
from collectives.coordinator import facts as f
from collectives.coordinator.core import Core, Received, Tick
from collectives.errors import ProtocolError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 20),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from([b"a" * 16, b"b" * 16, "h:1", "g", "10.0.0.1:5"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)
IDS = st.sampled_from([bytes([letter]) * 16 for letter in b"abcd"])
U64 = st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1))
GROUP = st.sampled_from([1, 2])
LANES = st.lists(
    st.builds(m.LaneReport, st.integers(0, 15), U64, U64, U64),
    max_size=3,
    unique_by=lambda lane: lane.lane,
).map(tuple)
EVIDENCE = st.lists(st.builds(m.Evidence, IDS, st.sampled_from(m.EvidenceKind)), max_size=4)
CAUSES = st.sampled_from(sorted(set(m.Cause) - {m.Cause.FORMED, m.Cause.RECOVERED}))
EPOCHS = st.one_of(st.integers(1, 8), st.integers(1, 2**64 - 1))
SIZES = st.sampled_from([1, 2, 3])
RANKS = st.none() | st.integers(0, 3)


def joins(ids: st.SearchStrategy[bytes]) -> st.SearchStrategy[m.Join]:
    return st.builds(
        m.Join,
        version=st.just(m.PROTOCOL_VERSION),
        id=ids,
        group=st.sampled_from(["g", "h"]),
        name=st.sampled_from(["", "n"]),
        rank=RANKS,
        size=SIZES,
        min_size=SIZES,
        address=st.just("h:1"),
        host=st.just(1),
        streams=st.just(2),
        segment_bytes=st.just(64),
    )


MEMBERS = st.lists(st.sampled_from(range(4)), min_size=1, max_size=4, unique=True).map(
    lambda found: tuple(
        m.Member(bytes([b"abcd"[i]]) * 16, rank, i + 1, 1, "h:1", "")
        for rank, i in enumerate(sorted(found))
    )
)
RECORDS = st.builds(
    m.Epoch,
    *(GROUP, EPOCHS, st.sampled_from(m.Cause), st.just(4), SIZES, IDS, st.just(0), MEMBERS),
    st.lists(
        st.tuples(st.integers(0, 15), st.lists(U64, min_size=3, max_size=3).map(sorted)).map(
            lambda lane: m.Outcome(lane[0], *lane[1])
        ),
        max_size=3,
        unique_by=lambda lane: lane.lane,
    ).map(tuple),
)
TERMS = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))


def claims(ids: st.SearchStrategy[bytes]) -> st.SearchStrategy[m.Claim]:
    parts = st.tuples(TERMS, st.sampled_from([b"t" * 16, b"u" * 16]), st.booleans())
    return st.tuples(parts, joins(ids), RECORDS).filter(is_claim).map(make_claim)


def is_claim(parts: Any) -> bool:
    _, join, record = parts
    is_member = any(member.id == join.id for member in record.members)
    return is_member and record.epoch < 2**63


def make_claim(parts: Any) -> m.Claim:
    about, join, record = parts
    return m.Claim(*about, join, record)


TO_COORDINATOR = st.one_of(
    claims(IDS),
    st.builds(m.Ping, GROUP, TERMS),
    joins(IDS),
    st.builds(m.Prepared, GROUP, EPOCHS, st.booleans(), IDS, st.just("why")),
    st.builds(m.Report, GROUP, EPOCHS, CAUSES, U64, st.integers(0, 3), LANES, EVIDENCE.map(tuple)),
    st.builds(m.Installed, GROUP, EPOCHS, st.booleans()),
    st.just(m.Ping()),
    st.just(m.Bye()),
    st.just(m.ForeignJoin(9)),
)


def check(data: bytes) -> None:
    try:
        message = m.decode(data)
    except ProtocolError:
        return
    if not isinstance(message, m.ForeignJoin):
        assert m.decode(m.encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=6), st.sampled_from([*m._TYPES]))
def test_any_map(fields: dict[str, Any], kind: str) -> None:
    check(msgpack.packb({**fields, "type": kind}))


@settings(max_examples=400)
@given(TO_COORDINATOR, st.data())
def test_good_messages_with_something_changed(message: m.Message, data: st.DataObject) -> None:
    if isinstance(message, m.ForeignJoin):
        return
    encoded = m.encode(message)
    assert m.decode(encoded) == message
    plain = msgpack.unpackb(encoded)
    name = data.draw(st.sampled_from(sorted(plain)))
    check(msgpack.packb({**plain, name: data.draw(VALUES)}))
    place = data.draw(st.integers(0, len(encoded) - 1))
    check(encoded[:place] + bytes([data.draw(st.integers(0, 255))]) + encoded[place + 1 :])
    check(encoded[:place])


@settings(max_examples=300)
@given(st.lists(st.tuples(IDS, TO_COORDINATOR, st.floats(0, 4)), max_size=40), st.booleans())
def test_valid_nonsense_does_not_upset_the_coordinator(
    events: list[tuple[bytes, m.Message, float]], recover: bool
) -> None:
    """Peers that lie: anything valid, in any order. What it answers can always be sent, and what
    it leaves to be written down makes the same coordinator again."""
    core = Core(random.Random(0), LAN, recover=recover)
    core.restore([], 0.0)
    journal = core.take_facts()
    now = 0.0
    epochs: dict[int, int] = {}
    for peer, message, delay in events:
        if isinstance(message, m.Claim):
            peer = message.join.id
        event = Tick() if delay > 3 else Received(peer, message)
        actions = core.step(event, now)
        facts = core.take_facts()
        assert f.decode(f.encode(facts)) == facts
        journal += facts
        for action in actions:
            assert m.decode(m.encode(action.message)) == action.message
            if isinstance(action.message, m.Epoch):
                last = epochs.get(action.message.group, 0)
                assert action.message.epoch >= last
                epochs[action.message.group] = action.message.epoch
        now += delay
        if core.deadline() <= now:
            core.step(Tick(), now)
            journal += core.take_facts()
            assert core.deadline() > now
    if not core.is_recovering:
        again = Core(random.Random(0), LAN)
        again.restore(journal, now)
        assert again.snapshot()[2:] == core.snapshot()[2:]
