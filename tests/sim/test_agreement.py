"""Goal: whatever fails and whenever, each operation has one outcome on all peers, the dead and the
evicted among them; success means the right bytes everywhere, failure means that inputs are intact.

Method: peers in a simulated world, one fault at every step of the simulator in turn. The survivors
report, and `World.settle` decides by the rule of docs/protocol.md section 6. Then every promise is
checked (`check_outcomes`), and the survivors must be able to go on. A failure names its seed, and
the step of the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from programs import Spec, any_spec, check_result, post
from world import OK, PEER_LOST, PENDING, Operation, Peer, Refused, World

from collectives._core import lib

SEED = 31_000
CLOSED, REFUSED = int(lib.CC_EVIDENCE_CLOSED), int(lib.CC_EVIDENCE_REFUSED)
SILENT, GOODBYE = int(lib.CC_EVIDENCE_SILENT), int(lib.CC_EVIDENCE_GOODBYE)

Row = tuple[Spec, Mapping[int, Operation]]


def formed(seed: int, n: int, **options: float) -> World:
    """A group whose members are all ready."""
    settings: dict[str, float] = {"segment_bytes": 1024, "streams": 2} | options
    min_size = int(settings.pop("min_size", 1))
    world = World(seed, n, **settings)
    world.install(min_size=min_size)
    world.run(world.is_ready)
    return world


def post_all(world: World, spec: Spec, peers: Sequence[Peer] | None = None) -> Row:
    record = world.record
    members = record.members if peers is None else peers
    return spec, {p.index: post(p, spec, record.world, record.ranks[p.index]) for p in members}


def check_outcomes(world: World, rows: Sequence[Row]) -> list[int]:
    """Checks the promises for what is complete on all survivors; returns the outcomes."""
    outcomes = []
    for spec, operations in rows:
        statuses = {index: op.status for index, op in operations.items()}
        survivors = {peer.index for peer in world.members if peer.alive}
        agreed = {status for index, status in statuses.items() if index in survivors}
        where = f"seed {world.seed}: {spec}: {statuses}"
        assert len(agreed) <= 1, where
        if not agreed:
            continue
        outcome = agreed.pop()
        outcomes.append(outcome)
        assert outcome != PENDING, where
        gone = {status for index, status in statuses.items() if index not in survivors}
        assert gone <= {outcome, PENDING, int(lib.CC_CLOSED), int(lib.CC_EVICTED)}, where
        if outcome == OK:
            done = {i: op for i, op in operations.items() if statuses[i] == OK}
            epochs = {int(op.info.epoch) for op in done.values()}
            assert len(epochs) == 1, where
            check_result(spec, world.records[epochs.pop()], done)
            continue
        for index in survivors & operations.keys():
            op = operations[index]
            # A broadcast has one input, and other members' buffers are its output alone.
            inputs = spec.kind != "broadcast" or world.record.ranks[index] == spec.root
            assert op.intact or not inputs, f"{where}: the input of peer {index} has changed"
            assert f"operation {op.info.sequence}" in op.message, op.message
    return outcomes


def go_on(world: World) -> None:
    """The members of the epoch can still work, and with nobody else."""
    for algorithm in ("auto", "ring"):
        row = post_all(world, Spec("all_reduce", 300, "int32", algorithm=algorithm, seed=99))
        world.finish(row[1].values())
        assert check_outcomes(world, [row]) == [OK]
        for op in row[1].values():
            assert op.info.contributors == len(world.members)
    assert not any(peer.sealed for peer in world.members)


# ---- a death at every moment ------------------------------------------------------------------


def steps_of(prepare: Callable[[], tuple[World, list[Row]]]) -> int:
    """How many steps the operations take without a fault."""
    world, rows = prepare()
    with world:
        before = world.steps
        world.finish(op for _, ops in rows for op in ops.values())
        return world.steps - before


def die_at(
    prepare: Callable[[], tuple[World, list[Row]]], step: int, victims: list[int]
) -> list[int]:
    """One run in which peers die after so many steps; returns the outcomes."""
    world, rows = prepare()
    with world:
        for _ in range(step):
            world.step()
        dead = [world.peers[victim] for victim in victims]
        for peer in dead:
            world.kill(peer)
        at_death = [{p.index: ops[p.index].status for p in dead} for _, ops in rows]
        started = world.now_ns
        record = world.recover()
        assert world.now_ns - started < 1_000_000_000, "a refused dial tells a death at once"
        for (_, ops), before in zip(rows, at_death, strict=True):
            assert {p.index: ops[p.index].status for p in dead} == before
        outcomes = check_outcomes(world, rows)
        assert record.members == world.alive
        for _, ops in rows:
            for peer in world.alive:
                info = ops[peer.index].info
                if info.status == PEER_LOST:
                    assert info.lost_rank in victims
                    assert f"rank {info.lost_rank} " in ops[peer.index].message
        go_on(world)
        return outcomes


def every_death(
    prepare: Callable[[], tuple[World, list[Row]]], n: int, seed: int, runs: int
) -> set[int]:
    """Every victim at every step, or as many of these by chance as `runs`. A set of outcomes."""
    steps = steps_of(prepare)
    cases = [(step, victim) for step in range(steps + 2) for victim in range(n)]
    if len(cases) > runs:
        chosen = np.random.default_rng(seed).choice(len(cases), runs, replace=False)
        cases = [cases[i] for i in sorted(chosen)]
    outcomes: set[int] = set()
    for step, victim in cases:
        try:
            outcomes.update(die_at(prepare, step, [victim]))
        except BaseException:
            print(f"seed {seed}: peer {victim} of {n} dies after step {step} of {steps}")
            raise
    return outcomes


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ["ring", "recursive_doubling", "direct"])
@pytest.mark.parametrize("count", [50, 4500])  # eager (but for the ring), and in segments
def test_a_death_at_every_moment_of_an_all_reduce(n: int, algorithm: str, count: int) -> None:
    seed = SEED + n

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, n, segment_bytes=4096)
        return world, [
            post_all(
                world, Spec("all_reduce", count, "float32", "sum", algorithm, in_place=True, seed=5)
            )
        ]

    outcomes = every_death(prepare, n, seed, 120)
    # The method can tell: some deaths came early enough to interrupt, some too late.
    assert outcomes == {OK, PEER_LOST}


@pytest.mark.parametrize("kind", ["broadcast", "all_gather", "barrier"])
def test_a_death_at_every_moment_of_other_operations(kind: str) -> None:
    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, 3)
        return world, [post_all(world, Spec(kind, 0 if kind == "barrier" else 700, root=0))]

    # A barrier that all have posted is done: nothing can undo it.
    expected = {OK} if kind == "barrier" else {OK, PEER_LOST}
    assert every_death(prepare, 3, SEED, 200) == expected


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_a_death_with_several_operations_in_flight(seed: int) -> None:
    """In one lane the outcome is a prefix of successes; lanes are independent."""
    n = 3 + seed % 2

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, n)
        return world, [post_all(world, any_spec(world.random, n)) for _ in range(8)]

    assert OK in every_death(prepare, n, seed, 40)


@pytest.mark.parametrize("seed", range(SEED, SEED + 5))
def test_two_deaths_at_once_and_one_after_the_other(seed: int) -> None:
    """The second dies with the first, or at any later moment: during detection, between the
    decision and its installation, while the next epoch's links are greeted."""

    def prepare() -> tuple[World, list[Row]]:
        world = formed(seed, 5)
        return world, [post_all(world, Spec("all_reduce", 2000, in_place=True)) for _ in range(2)]

    die_at(prepare, seed % 20, [1, 3])
    for delay in range(0, 60, 3):
        world, rows = prepare()
        with world:
            for _ in range(10 + seed % 7):
                world.step()
            world.kill(world.peers[seed % 5])
            second = world.peers[(seed + 1 + delay % 4) % 5]
            for _ in range(delay):
                world.step()
                if world.settled():
                    break
            if not world.settled():
                world.kill(second)
                world.recover()
            else:
                record = world.decide()
                early = [p for p in record.members if world.random.random() < 0.5]
                world.deliver(record, early)
                for _ in range(world.random.randrange(12)):
                    world.step()
                world.kill(second)
                world.deliver(record)
                rows += [post_all(world, Spec("barrier", 0), world.alive)]
                world.recover()
            world.finish(op for _, ops in rows for i, op in ops.items() if world.peers[i].alive)
            check_outcomes(world, rows)
            assert len(world.members) == 3
            go_on(world)


def test_a_record_that_comes_late_to_some() -> None:
    """Members install at different times; who is early posts, sends and waits."""
    for seed in range(SEED, SEED + 20):
        with formed(seed, 4) as world:
            rows = [post_all(world, Spec("all_reduce", 1500, in_place=True))]
            for _ in range(world.random.randrange(60)):
                world.step()
            world.kill(world.peers[2])
            world.run(world.settled)
            record = world.decide()
            for peer in world.random.sample(world.alive, 3):
                world.deliver(record, [peer])
                rows.append(post_all(world, Spec("barrier", 0, lane=3), [peer]))
                world.run_ms(world.random.choice([0, 0.05, 3]))
            ops = [op for _, ops in rows for i, op in ops.items() if world.peers[i].alive]
            world.finish(ops)
            check_outcomes(world, rows[:1])
            assert all(next(iter(ops.values())).status == OK for _, ops in rows[1:])
            go_on(world)


# ---- faults that kill nobody ------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4])
def test_a_broken_link_between_live_peers(n: int) -> None:
    """Nobody is lost: the next epoch has the same members, and the link is dialled again."""
    spec = Spec("all_reduce", 1200, algorithm="ring", in_place=True)

    def prepare() -> tuple[World, list[Row]]:
        world = formed(SEED, n)
        return world, [post_all(world, spec)]

    outcomes = set()
    for step in range(0, steps_of(prepare) + 2, n):
        world, rows = prepare()
        with world:
            for _ in range(step):
                world.step()
            world.break_link(world.peers[0], world.peers[1])
            record = world.recover()
            assert record.members == world.peers and record.cause == lib.CC_CAUSE_LINK
            for op in rows[0][1].values():
                assert op.status == OK or "connection" in op.message
            outcomes.update(check_outcomes(world, rows))
            go_on(world)
    assert outcomes == {OK, PEER_LOST}


def test_a_pause_below_the_limit_disturbs_nobody() -> None:
    for seed in range(SEED, SEED + 5):
        with formed(seed, 3, dead_ms=2000) as world:
            rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
            for _ in range(world.random.randrange(40)):
                world.step()
            world.pause(world.peers[1])
            world.run_ms(1700)
            world.pause(world.peers[1], False)
            world.finish(rows[0][1].values())
            assert check_outcomes(world, rows) == [OK]
            go_on(world)


def test_a_pause_beyond_the_limit_is_silence() -> None:
    """Who was paused is evicted, accuses nobody when it wakes up, and hears of its eviction."""
    for n in (2, 4):
        with formed(SEED, n, dead_ms=2000) as world:
            sleeper, *others = world.peers
            rows = [post_all(world, Spec("all_reduce", 9000, "int64", in_place=True))]
            world.pause(sleeper)
            before = world.now_ns
            record = world.settle()
            assert record.members == others
            assert 1.8e9 <= world.now_ns - before <= 2.6e9
            world.finish(rows[0][1][p.index] for p in others)
            assert check_outcomes(world, rows) == [PEER_LOST]
            go_on(world)
            world.pause(sleeper, False)
            world.run_ms(50)
            assert not set(sleeper.evidence.values()) & {SILENT}
            lib.cc_expel(sleeper.context, 7, lib.CC_EVICTED, b"it was silent")
            op = rows[0][1][sleeper.index]
            assert op.status == lib.CC_EVICTED and op.intact and "silent" in op.message
            world.run_ms(5000)
            go_on(world)


def test_everybody_asleep_accuses_nobody() -> None:
    """All processes stop for a minute, as on a laptop that is closed: time passes for everyone, no
    one has missed anything."""
    with formed(SEED, 3, dead_ms=2000) as world:
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        for _ in range(10):
            world.step()
        for peer in world.peers:
            world.pause(peer)
        lib.cc_sim_advance(world.sim, world.now_ns + 60_000_000_000)
        for peer in world.random.sample(world.peers, 3):
            world.pause(peer, False)
            for _ in range(5):
                world.step()
        world.finish(rows[0][1].values())
        assert check_outcomes(world, rows) == [OK]
        go_on(world)


def test_a_cut_in_one_direction_is_silence_for_who_hears_nothing() -> None:
    with formed(SEED, 3, dead_ms=2000) as world:
        mute, deaf, third = world.peers
        rows = [post_all(world, Spec("all_reduce", 9000, "int64", algorithm="ring"))]
        world.cut(mute, deaf)
        world.run(world.settled)
        assert deaf.evidence == {mute.index: SILENT}
        assert mute.evidence == third.evidence == {}
        world.cut(mute, deaf, False)
        record = world.decide()
        assert record.cause == lib.CC_CAUSE_LINK and record.members == world.peers
        world.deliver(record)
        world.finish(rows[0][1].values())
        assert check_outcomes(world, rows) == [PEER_LOST]
        go_on(world)


def test_a_member_that_dies_before_it_was_ever_connected() -> None:
    """The first epoch names someone who is already gone. Who dials it is refused; who is to be
    dialled by it hears nothing, and says so in the end."""
    for victim in range(3):
        with World(SEED, 3, connect_ms=1000, dead_ms=2000) as world:
            world.kill(world.peers[victim])
            world.install(world.peers)
            rows = [post_all(world, Spec("all_reduce", 20), world.alive)]
            world.recover()
            world.finish(rows[0][1].values())
            assert check_outcomes(world, rows) == [PEER_LOST]
            go_on(world)


def test_a_deadline_passes_on_all() -> None:
    """Also on who has not posted yet: it is told as soon as it does."""
    with formed(SEED, 3) as world:
        x = [np.ones(10, np.float32) for _ in range(3)]
        a, b, late = world.peers
        ops = [a.post("all_reduce", x[0], x[0], timeout_ms=50), b.post("all_reduce", x[1], x[1])]
        world.settle()
        assert 50e6 <= world.now_ns <= 100e6
        ops.append(late.post("all_reduce", x[2], x[2]))
        world.finish(ops)
        for op in ops:
            assert op.status == lib.CC_TIMED_OUT and op.intact
            assert "deadline" in op.message and "rank 0" in op.message, op.message
        go_on(world)


def test_a_deadline_that_is_met_or_far_away_disturbs_nobody() -> None:
    with formed(SEED, 2) as world:
        for timeout_ms in (1000, 2**63 - 1, 2**53, -1, -(2**63)):
            ops = [peer.post("barrier", timeout_ms=timeout_ms) for peer in world.peers]
            world.finish(ops)
            assert [op.status for op in ops] == [OK, OK], timeout_ms
        world.run_ms(3000)
        assert not any(peer.sealed for peer in world.peers)


def test_a_deadline_that_passes_while_the_epoch_is_sealed() -> None:
    """The peer must not spin until the record comes; afterwards the operation has its outcome."""
    with formed(SEED, 3) as world:
        x = np.ones(9, np.float32)
        ops = [p.post("all_reduce", x.copy(), x.copy(), timeout_ms=20) for p in world.peers[:2]]
        world.step()
        world.kill(world.peers[2])
        world.run(world.settled)
        waiting = [peer.post("barrier", timeout_ms=30) for peer in world.peers[:2]]
        world.run_ms(500)
        before = world.steps
        world.run_ms(1000)
        assert world.steps - before < 100, "a sealed peer has nothing to do but to beat"
        world.deliver(world.decide())
        world.finish(ops)
        assert {op.status for op in ops} == {PEER_LOST}
        world.run(lambda: world.settled() or all(op.done for op in waiting))
        if not all(op.done for op in waiting):
            world.settle()
        world.finish(waiting)
        assert {op.status for op in waiting} <= {OK, int(lib.CC_TIMED_OUT)}
        go_on(world)


# ---- different calls --------------------------------------------------------------------------

BASE = Spec("all_reduce", 700, "float32", "sum", "ring")
MISMATCHES = {
    "count": (BASE, Spec("all_reduce", 701, "float32", "sum", "ring")),
    "dtype": (BASE, Spec("all_reduce", 700, "int32", "sum", "ring")),
    "op": (BASE, Spec("all_reduce", 700, "float32", "max", "ring")),
    "algorithm": (BASE, Spec("all_reduce", 700, "float32", "sum", "direct")),
    "kind": (BASE, Spec("all_gather", 700, "float32", "sum", "ring")),
    "root": (Spec("broadcast", 9, root=0), Spec("broadcast", 9, root=1)),
    "eager count": (Spec("all_reduce", 5), Spec("all_reduce", 6)),
    "empty": (Spec("all_reduce", 0), Spec("all_reduce", 1)),
    "barrier": (Spec("barrier", 0), Spec("all_reduce", 0)),
    "admit": (Spec("barrier", 0), Spec("boundary", 0)),
}


@pytest.mark.parametrize("what", MISMATCHES)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_different_calls_are_an_error_on_all_sides(what: str, n: int) -> None:
    """Whoever posts first, and however late the others come."""
    usual, odd = MISMATCHES[what]
    for seed in range(SEED, SEED + 6):
        with formed(seed, n) as world:
            stranger = world.random.randrange(n)
            ops: dict[int, Operation] = {}
            for index in world.random.sample(range(n), n):
                spec = odd if index == stranger else usual
                ops[index] = post(world.peers[index], spec, n, index)
                world.run_ms(world.random.choice([0, 0, 0.03, 2]))
            record = world.settle()
            assert record.cause == lib.CC_CAUSE_MISMATCH and record.members == world.peers
            world.finish(ops.values())
            for op in ops.values():
                assert op.status == lib.CC_MISMATCH and op.intact, f"seed {seed}"
                assert f"rank {stranger}" in op.message, op.message
                for kind in {usual.kind, odd.kind}:
                    assert {"boundary": "admit"}.get(kind, kind) in op.message, op.message
                if what in ("count", "eager count"):
                    assert str(usual.count) in op.message and str(odd.count) in op.message
            go_on(world)


def test_a_different_order_of_calls_is_a_mismatch() -> None:
    for seed in range(SEED, SEED + 10):
        with formed(seed, 3) as world:
            first, second = Spec("all_reduce", 5), Spec("broadcast", 5)
            ops: list[Operation] = []
            for peer in world.peers:
                order = [first, second] if peer.index != seed % 3 else [second, first]
                ops += [post(peer, spec, 3, peer.index) for spec in order]
                world.run_ms(world.random.choice([0, 0.03, 2]))
            world.settle()
            world.finish(ops)
            assert {op.status for op in ops} == {int(lib.CC_MISMATCH)}
            go_on(world)


def test_fields_that_a_call_does_not_use_make_no_difference() -> None:
    """A broadcast has no reduction, a barrier no dtype, an all-reduce no root."""
    with formed(SEED, 2) as world:
        a, b = world.peers
        x = [np.arange(4, dtype=np.float32) for _ in range(2)]
        pairs = [
            (a.post("broadcast", x[0], x[0], op="sum"), b.post("broadcast", x[1], x[1], op="max")),
            (a.post("all_reduce", x[0], x[0], root=0), b.post("all_reduce", x[1], x[1], root=1)),
            (a.post("barrier", op="sum", root=0), b.post("barrier", x[0], x[1], op="min", root=1)),
        ]
        for pair in pairs:
            world.finish(pair, 1000)
            assert [op.status for op in pair] == [OK, OK]


def test_a_mismatch_of_calls_that_fail_by_themselves() -> None:
    """An operation whose root is a hole fails on all alike, without data; another call by the same
    number must still be noticed, whoever comes first."""
    for first in range(2):
        with formed(SEED, 3) as world:
            world.kill(world.peers[2])
            world.recover()
            x = [np.ones(4, np.float32) for _ in range(2)]
            ops: dict[int, Operation] = {}
            for index in (first, 1 - first):
                peer = world.peers[index]
                if index == 0:
                    ops[index] = peer.post("broadcast", x[0], x[0], root=2)
                else:
                    ops[index] = peer.post("barrier")
                world.run_ms(5)
            world.settle()
            world.finish(ops.values())
            assert {op.status for op in ops.values()} == {int(lib.CC_MISMATCH)}
            go_on(world)


def test_the_cause_of_a_failure_is_that_of_its_own_epoch() -> None:
    """A slow member posts a call that failed two epochs ago: it is told what the others were."""
    with formed(SEED, 3) as world:
        a, b, slow = world.peers
        ops = [post(a, Spec("all_reduce", 3), 3, 0), post(b, Spec("all_reduce", 4), 3, 1)]
        world.settle()
        world.finish(ops)
        assert {op.status for op in ops} == {int(lib.CC_MISMATCH)}
        world.run(world.is_ready)
        world.break_link(a, b)
        world.recover()
        op = post(slow, Spec("all_reduce", 3), 3, 2)
        assert op.status == lib.CC_MISMATCH and "all_reduce" in op.message, op.message
        go_on(world)


# ---- between seal and record ------------------------------------------------------------------


def test_posts_between_seal_and_record_run_in_the_next_epoch() -> None:
    """They wait; whether they are older or newer than what failed is known with the record."""
    for seed in range(SEED, SEED + 10):
        with formed(seed, 4) as world:
            a, b, c, victim = world.peers
            old = [post(p, Spec("all_reduce", 600, in_place=True), 4, p.index) for p in (a, b)]
            world.step()
            world.kill(victim)
            world.run(lambda: a.sealed and b.sealed and c.sealed)
            # c posts number 1 now, and it has failed; number 2 goes on among the survivors.
            old.append(post(c, Spec("all_reduce", 600, in_place=True), 4, 2))
            new = [
                post(p, Spec("all_reduce", 70, "int64", in_place=True), 4, p.index)
                for p in (a, b, c)
            ]
            gather = [post(p, Spec("all_gather", 9, lane=2), 4, p.index) for p in (a, b, c)]
            world.run_ms(world.random.choice([0, 1]))
            assert not any(op.done for op in old + new + gather)
            record = world.settle()
            world.finish(old + new + gather)
            for op in old:
                assert op.status == PEER_LOST and op.intact
            check_result(Spec("all_reduce", 70, "int64"), record, dict(enumerate(new)))
            check_result(Spec("all_gather", 9), record, dict(enumerate(gather)))
            go_on(world)


def test_without_preserve_a_failure_is_still_agreed() -> None:
    for step in range(0, 40, 4):
        with formed(SEED, 3) as world:
            ops = [
                post(p, Spec("all_reduce", 3000, in_place=True), 3, p.index, flags=0)
                for p in world.peers
            ]
            for _ in range(step):
                world.step()
            world.kill(world.peers[0])
            world.recover()
            assert len({op.status for op in ops[1:]}) == 1
            go_on(world)


def test_a_record_is_installed_once() -> None:
    """Publication is idempotent; a record that contradicts itself is refused."""
    with formed(SEED, 2) as world:
        ops = post_all(world, Spec("all_reduce", 100))[1]
        world.deliver(world.record)
        world.finish(ops.values())
        assert all(op.status == OK for op in ops.values())
        peer = world.peers[0]
        for change in ("stranger", "ranks", "lane"):
            record = world.write(world.peers)
            if change == "stranger":
                record.native.members[0].id.bytes = b"?" * 16
            elif change == "ranks":
                record.native.members[0].rank = 1
            else:
                record.native.n_lanes = 1
                record.native.lanes[0].committed = 2
                record.native.lanes[0].failed = 1
            assert lib.cc_install(peer.context, record.native) == lib.CC_INVALID
            world.epoch -= 1
        go_on(world)


def test_ready_is_told_of_the_epoch_that_is_ready() -> None:
    """An event that nobody has taken yet does not turn into one of the next epoch."""
    with World(SEED, 2) as world:
        world.install()
        for peer in world.peers:  # as World.step, but nobody looks at the events
            peer.take_events = lambda: None  # type: ignore[method-assign]
        world.run_ms(5)
        a = world.peers[0]
        world.deliver(world.write(world.peers), [a])
        Peer.take_events(a)
        assert a.ready < 2, "the other member has not installed epoch 2 yet"
