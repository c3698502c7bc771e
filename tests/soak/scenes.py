"""What a peer does in the soak: rounds of scenes, drawn from the seed and the round's number alone,
so that all peers draw the same without a word, and any round can be played again by itself.

A scene uses one of two groups: in "tiny" every frame, read and write is a short one; "plain" has
the defaults, and arrays of many segments. Each result is compared with what numpy makes of all
inputs (tests/python/calls.py), each message with what its sender must have sent.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from calls import ALGORITHMS, FLOATS, OPS, REDUCING, SIZE, SPLIT, Call, begin, check, numpy_dtype
from cluster import Worker

import collectives as cc
from collectives.buffers import DTYPES

# The receive buffers are not NARROW's. With 4 KiB Linux can end up with a window below half of the
# largest that it has offered: too small for its sender, which waits for more, and each heartbeat
# from the other end puts off the probe that would end that. Once in minutes a link came to a stand.
GROUPS: dict[str, dict[str, Any]] = {
    "tiny": {"segment_bytes": 64, "streams": 3, "send_buffer_bytes": 4096, "io_max_bytes": 1000},
    "plain": {},
}
ELEMENTS_MAX = {"tiny": 3000, "plain": 20_000}  # of a usual array
LONG = {"tiny": 20_000, "plain": 1_000_000}  # of one in a round
IN_FLIGHT_MAX = 12
MANY_TAGS = 3


def connect(worker: Worker, url: str, rank: int) -> None:
    """A call: joins both groups."""
    for name, options in GROUPS.items():
        worker.kept[name] = cc.connect(url, group=name, size=SIZE, rank=rank, **options)


def disconnect(worker: Worker) -> None:
    """A call: leaves both, in order."""
    for name in GROUPS:
        worker.kept.pop(name).leave()


# ---- collectives ---------------------------------------------------------------------------------


def shape_of(rng: random.Random, elements_max: int) -> tuple[int, ...]:
    """Up to three axes, some of them of no or one entry, of so many elements together."""
    shape: list[int] = []
    left = elements_max
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        shape.append(rng.choice([0, 1, 2, 3, rng.randint(0, 17), rng.randint(0, left)]))
        shape[-1] = min(shape[-1], left)
        left //= max(shape[-1], 1)
    return tuple(shape)


def draw_call(rng: random.Random, elements_max: int) -> Call:
    kind = rng.choice(sorted(ALGORITHMS))
    dtype = rng.choice(DTYPES)
    ops = OPS + (("avg", "premul") if dtype in FLOATS else ("band", "bor", "bxor"))
    splits = None
    if kind in SPLIT:
        elements_max //= SIZE
        if rng.random() < 0.5:
            splits = tuple(tuple(rng.randint(0, 20) for _ in range(SIZE)) for _ in range(SIZE))
            elements_max //= 20
    return Call(
        kind=kind,
        dtype=dtype,
        op=rng.choice(ops) if kind in REDUCING else "sum",
        algorithm=rng.choice(ALGORITHMS[kind]),
        root=rng.randrange(SIZE),
        shape=shape_of(rng, elements_max),
        splits=splits,
        layout=rng.choice(["plain", "plain", "strided", "reversed", "transposed"]),
        in_place=rng.random() < 0.5,
        waits=rng.random() < 0.3,
        seed=rng.getrandbits(32),
    )


def sequence(
    comm: cc.Communicator, rng: random.Random, count: int, elements_max: int, lane: int = 0
) -> int:
    """Calls of one lane, several under way at once; their results are taken in any order."""
    own = random.Random(rng.getrandbits(32) + comm.rank)  # of what the others need not know
    waiting = []
    for _ in range(count):
        call = draw_call(rng, elements_max)
        waiting.append(begin(comm, call, lane=lane, async_op=rng.random() < 0.7))
        if call.waits or len(waiting) >= IN_FLIGHT_MAX:
            own.shuffle(waiting)
            while waiting:
                check(comm, waiting.pop())
    while waiting:
        check(comm, waiting.pop())
    return count


def one_lane(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    return sequence(comm, rng, rng.randint(5, 25), elements_max)


def a_long_one(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    return sequence(comm, rng, 1, LONG["plain" if elements_max > 10_000 else "tiny"])


def lanes(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """Threads with a lane each, at once."""
    numbers = rng.sample(range(16), rng.randint(2, 4))
    rngs = [random.Random(rng.getrandbits(64)) for _ in numbers]
    counts = [rng.randint(3, 10) for _ in numbers]
    failed: list[BaseException] = []

    def run(i: int) -> None:
        try:
            sequence(comm, rngs[i], counts[i], elements_max // 4, lane=numbers[i])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(numbers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(counts)


def many(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """all_reduce_many in and out of place, now and then of one array."""
    dtype = numpy_dtype(rng.choice(DTYPES[:4]))
    shapes = [shape_of(rng, elements_max // 8) for _ in range(rng.randint(1, 8))]
    in_place = rng.random() < 0.5
    arrays = [np.full(shape, i % 4 + comm.rank).astype(dtype) for i, shape in enumerate(shapes)]
    totals = comm.all_reduce_many(arrays, out=arrays if in_place else None)
    for i, (total, shape, array) in enumerate(zip(totals, shapes, arrays, strict=True)):
        assert total.shape == shape and total.dtype == dtype
        assert (total.astype(float) == SIZE * (i % 4) + sum(range(SIZE))).all()
        assert (total is array) == in_place
    return 1


def boundary(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """Nobody waits to be admitted, so nothing changes."""
    if rng.random() < 0.5:
        comm.barrier()
        return 1
    assert not comm.admit()
    assert comm.size == SIZE
    return 1


def subgroups(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """Groups split off, each with operations of its own, and closed again."""
    colors = [rng.choice([None, 1, 2]) for _ in range(SIZE)]
    count = rng.randint(0, elements_max)
    part = comm.split(colors[comm.rank])
    if part is None:
        return 4
    with part:
        ranks = [rank for rank in range(SIZE) if colors[rank] == colors[comm.rank]]
        assert part.size == len(ranks) and ranks[part.rank] == comm.rank
        total = part.all_reduce(np.full(count, comm.rank, np.int64))
        assert (total == sum(ranks)).all()
        assert part.all_gather(np.array(comm.rank)).tolist() == ranks
        part.barrier()
    return 4


# ---- objects and messages ------------------------------------------------------------------------


def thing(rng: random.Random, rank: int) -> Any:
    """Some object, another one for each rank."""
    length = rng.choice([0, 1, 100, 10_000])
    choices: list[Any] = [
        None,
        {"rank": rank, "text": "x" * (length + rank)},
        [rank] * (length // 10),
        np.arange(length + rank),
        bytes(length),
    ]
    return rng.choice(choices)


def same(a: Any, b: Any) -> bool:
    return (
        bool(type(a) is type(b) and np.array_equal(a, b)) if isinstance(b, np.ndarray) else a == b
    )


def objects(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    kind, root, seed = rng.randrange(3), rng.randrange(SIZE), rng.getrandbits(32)
    things = [thing(random.Random(seed + rank), rank) for rank in range(SIZE)]
    mine = things[comm.rank]
    if kind == 0:
        assert same(comm.broadcast_object(mine, root), things[root])
        return 2
    if kind == 1:
        gathered = comm.gather_object(mine, root)
        assert (gathered is None) == (comm.rank != root)
    else:
        gathered = comm.all_gather_object(mine)
    for found, wanted in zip(gathered or [], things, strict=False):
        assert same(found, wanted)
    return 2


def content(seed: int, number: int, elements_max: int) -> np.ndarray:
    rng = random.Random(seed + number)
    dtype = numpy_dtype(rng.choice(DTYPES))
    shape = shape_of(rng, elements_max // 4)
    return np.random.default_rng(seed + number).integers(0, 2, shape).astype(dtype)


def messages(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """Every pair exchanges some, under tags; each receiver takes them in an order of its own."""
    seed = rng.getrandbits(32)
    planned = [  # sender, receiver, tag; the position is the message's number
        (*rng.sample(range(SIZE), 2), rng.randrange(MANY_TAGS)) for _ in range(rng.randint(4, 30))
    ]
    own = random.Random(seed + comm.rank)
    sends = [
        comm.send(content(seed, number, elements_max), to, tag=tag, async_op=True)
        for number, (sender, to, tag) in enumerate(planned)
        if sender == comm.rank
    ]
    queues: dict[tuple[int, int], list[int]] = {}
    for number, (sender, to, tag) in enumerate(planned):
        if to == comm.rank:
            queues.setdefault((sender, tag), []).append(number)
    waiting = []
    while queues:
        source, tag = own.choice(sorted(queues))
        number = queues[source, tag].pop(0)
        if not queues[source, tag]:
            del queues[source, tag]
        wanted = content(seed, number, elements_max)
        into = np.ones_like(wanted)
        if own.random() < 0.5 and wanted.ndim:
            into = np.ones(wanted.shape[::-1], wanted.dtype).T
        work = comm.recv(into, source, tag=tag, async_op=True)
        waiting.append((work, source, into, wanted))
    own.shuffle(waiting)
    for work, source, into, wanted in waiting:
        assert work.wait() is into
        assert work.info.source == source
        assert np.array_equal(into, wanted)
    for sent in sends:
        assert sent.wait() is None
    return len(planned)


def from_anyone(comm: cc.Communicator, rng: random.Random, elements_max: int) -> int:
    """One peer takes a message of each other, whoever is first. The tag is of this scene alone:
    who has sent may be in the next one already, and send there before another sends here."""
    to, count, tag = rng.randrange(SIZE), rng.randint(0, elements_max), rng.randint(100, 2**31 - 1)
    if comm.rank != to:
        comm.send(np.full(count, comm.rank, np.int32), to, tag=tag)
        return SIZE - 1
    sources = set()
    for _ in range(SIZE - 1):
        into = np.full(count, -1, np.int32)
        work = comm.recv(into, tag=tag, async_op=True)
        work.wait()
        assert (into == work.info.source).all()
        sources.add(work.info.source)
    assert sources == set(range(SIZE)) - {to}
    return SIZE - 1


# ---- rounds --------------------------------------------------------------------------------------

Scene = Callable[[cc.Communicator, random.Random, int], int]
SCENES: dict[Scene, float] = {
    one_lane: 8,
    lanes: 4,
    messages: 3,
    many: 2,
    objects: 2,
    from_anyone: 1,
    boundary: 1,
    subgroups: 1,
    a_long_one: 0.5,
}


def play(
    worker: Worker, seed: int, number: int, scenes: int, only: list[str], plant: str | None = None
) -> tuple[int, dict[str, float]]:
    """A call: one round. Returns how many operations it had, and what `usage` then says."""
    rng = random.Random(f"{seed} {number}")
    drawn = {scene: SCENES[scene] for scene in SCENES if scene.__name__ in only}
    count = 0
    for _ in range(scenes):
        group = rng.choice(sorted(GROUPS))
        scene = rng.choices(list(drawn), list(drawn.values()))[0]
        scene_rng = random.Random(rng.getrandbits(64))
        count += scene(worker.kept[group], scene_rng, ELEMENTS_MAX[group])
    if plant and number > 0 and worker.kept["plain"].rank == 1:
        worker.kept.setdefault("planted", []).append(PLANTS[plant]())
    return count, usage(os.getpid())


def usage(pid: int) -> dict[str, float]:
    """What a process holds: MiB in memory, descriptors, threads."""
    if pid == os.getpid():
        gc.collect()
        # What was freed is kept by the allocator, up to the most that was ever in use at once: it
        # would hide a leak, or look like one when a rare round has longer arrays than all before.
        ctypes.CDLL(None).malloc_trim(0)
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


def _wrong() -> None:
    raise AssertionError("planted: a wrong result")


PLANTS: dict[str, Callable[[], Any]] = {
    "wrong": _wrong,
    "death": os.abort,
    "hang": lambda: threading.Event().wait(),
    "memory": lambda: np.ones(1 << 17),  # 1 MiB
    "descriptor": lambda: os.dup(0),
    "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
}
"""Faults on purpose, which the soak must find."""
