"""What every outcome must keep to, whatever happened: the checks of all tests with faults.

One outcome per operation on all peers, the dead and the evicted among them; success means the right
bytes everywhere, failure means that inputs are intact; and the survivors can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from programs import Spec, post
from results import check_result
from world import OK, PENDING, Operation, Peer, World

from collectives._core import lib

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
            assert op.intact, f"{where}: the input of peer {index} has changed"
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


def steps_of(prepare: Callable[[], tuple[World, list[Row]]]) -> int:
    """How many steps the operations take without a fault."""
    world, rows = prepare()
    with world:
        before = world.steps
        world.finish(op for _, ops in rows for op in ops.values())
        return world.steps - before
