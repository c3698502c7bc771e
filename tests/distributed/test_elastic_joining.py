"""Elastic training: processes come in while a run goes on. Skipped without torch.

Goal: whoever comes in at a boundary has the state of the run afterwards, bit for bit, and trains on
with the others as one of them, whatever dies meanwhile. Method: joiners start with other weights;
members wait before a step until they are there; after the last step the bits of models, optimizers,
schedulers and the program's own state are compared.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from cluster import Peer, Worker, results  # noqa: E402
from elastic_calls import KINDS, die, prepare, train, wait_for_joiners  # noqa: E402
from ranks import Ranks  # noqa: E402

import collectives as cc  # noqa: E402
import collectives.torch as ct  # noqa: E402
from collectives.torch import state as transfer  # noqa: E402

pytestmark = pytest.mark.timeout(120)
STEPS = 8


def train_with_joiners(
    ranks: Ranks, kind: str, joins: tuple[int, int], deaths: dict[int, Any], **options: Any
) -> tuple[list[Any], list[Any]]:
    """The calls of the members, and of so many joiners, which come in before that step."""
    net, ddp = KINDS[kind]
    ranks.each(prepare, net, **ddp)
    members = ranks.start(train, STEPS, deaths, joins=joins, **options)
    ranks.peers[1].wait_note()
    return members, [start_joiner(ranks, kind, **options) for _ in range(joins[1])]


def start_joiner(ranks: Ranks, kind: str, **options: Any) -> Any:
    """The call of one more process that trains with the others, once it has come in."""
    peer = ranks.rejoin()
    net, ddp = KINDS[kind]
    peer.start(prepare, {**net, "seed": 7}, **ddp)
    return peer.start(train, STEPS, {}, **options)


def place(worker: Worker) -> tuple[int, int, list[int], Any]:
    """Where it is now."""
    kept = worker.kept
    ranks = dist.get_process_group_ranks(None)
    assert ranks == list(range(dist.get_world_size()))
    return dist.get_rank(), dist.get_world_size(), kept["sizes"], kept["change"]


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_rank_comes_back(kind: str, evaluate: bool) -> None:
    """Rank 0 dies in the step that DDP learns from, and another process comes in later."""
    deaths = {0: (0, "last.bias"), 5: (1, "first.weight")}
    with Ranks(3) as ranks:
        members, (joiner,) = train_with_joiners(ranks, kind, (3, 1), deaths, evaluate=evaluate)
        found = results([members[1], joiner])  # rank 2 became 1, and died
        assert found[0] == found[1]
        rank, size, sizes, change = joiner.peer.call(place)
        assert (rank, size, sizes) == (1, 2, [3, 3, 3, 2, 2])
        assert [member.name for member in change.left] == ["rank 2"]
        assert ranks.peers[1].call(place)[2] == [3, 2, 2, 3, 3, 3, 2, 2]


def test_two_come_in_at_once_while_gradients_are_accumulated() -> None:
    with Ranks(2) as ranks:
        members, joiners = train_with_joiners(ranks, "buffers", (4, 2), {}, micro=3)
        found = results([*members, *joiners])
        assert len(set(found)) == 1
        ranks_now = [peer.call(place)[:3] for peer in ranks.peers]
    assert sorted(ranks_now[2:]) == [(2, 4, [4] * 4), (3, 4, [4] * 4)]


def test_gradients_that_are_zeros_are_none_to_whoever_comes_in() -> None:
    """To an optimizer that is not the same; so they become none with all."""
    with Ranks(2) as ranks:
        members, joiners = train_with_joiners(ranks, "unused", (4, 1), {}, idle_after=2)
        assert len(set(results(members + joiners))) == 1


@pytest.mark.parametrize("victim", [0, 2])
def test_one_dies_at_the_boundary_that_another_comes_in_by(victim: int) -> None:
    deaths = {2: (victim, "boundary")}
    with Ranks(3) as ranks:
        members, joiners = train_with_joiners(ranks, "buffers", (2, 1), deaths)
        others = [call for rank, call in enumerate(members) if rank != victim]
        found = results(others + joiners)
    assert len(set(found)) == 1


def test_one_dies_while_it_waits_to_come_in() -> None:
    with Ranks(2) as ranks:
        members, (joiner,) = train_with_joiners(ranks, "plain", (2, 1), {})
        ranks.peers[1].wait_note()
        joiner.peer.kill()
        assert len(set(results(members))) == 1


# ---- the transfer --------------------------------------------------------------------------------


def large_state(worker: Worker, victim: int, number: int) -> None:
    """A call: a run with a state of several pieces, large tensors and small ones among them. The
    victim dies before the broadcast with this number."""
    parts = {f"part {i}": torch.arange(count) for i, count in enumerate([5, 3_000_000, 0, 7])}
    run = ct.elastic(state={"step": 3, "parts": parts, "rank 2": dist.get_rank() == 2})
    worker.kept["run"] = run
    if dist.get_rank() == victim:
        comm, left = dist.group.WORLD.communicator, iter(range(number, -1, -1))
        broadcast = comm.broadcast

        def counted(*arguments: Any, **options: Any) -> Any:
            if next(left) == 0:
                die()
            return broadcast(*arguments, **options)

        comm.broadcast = counted


def enter(worker: Worker) -> dict[str, Any]:
    """A call: comes in, with a state that has nothing of the others'."""
    state = {"nothing": 0}
    run = ct.elastic(state=state)
    assert run.state is state
    assert run.boundary().joined[0].name == "joiner"
    assert dist.get_rank() == dist.get_world_size() - 1
    return state


def admit(worker: Worker) -> int:
    """A call: a boundary, once somebody waits."""
    wait_for_joiners(worker, 1)
    return len(worker.kept["run"].boundary().joined)


def start_entering(ranks: Ranks, members: list[Peer]) -> tuple[Any, list[Any]]:
    joiner = ranks.rejoin().start(enter)
    return joiner, ranks.start(admit, peers=members)


@pytest.mark.parametrize("number", range(6))
def test_the_source_dies_in_the_middle(number: int) -> None:
    """Before the length, the frame, and each of four pieces."""
    with Ranks(3) as ranks:
        ranks.each(large_state, 0, number)
        members = list(ranks.peers)
        joiner, admits = start_entering(ranks, members)
        state = joiner.result()
        assert results(admits[1:]) == [1, 1]
    assert state.keys() == {"step", "parts", "rank 2"}
    assert (state["step"], state["rank 2"]) == (3, False)
    for i, count in enumerate([5, 3_000_000, 0, 7]):
        assert torch.equal(state["parts"][f"part {i}"], torch.arange(count))


def test_nobody_has_the_state_any_more() -> None:
    with Ranks(1) as ranks:
        ranks.each(large_state, 0, 3)
        joiner, _ = start_entering(ranks, list(ranks.peers))
        with pytest.raises(cc.CollectivesError, match="no rank that has the state"):
            joiner.result()


def is_another(worker: Worker) -> str:
    """A call: comes in with other parts than the run has, and lives on."""
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError) as error:
        ct.elastic(model, state={"step": 0})
    return str(error.value)


def go_on(worker: Worker) -> float:
    """A call: the members' next operation."""
    x = torch.ones(1)
    dist.all_reduce(x)
    return x.item()


def test_a_joiner_that_is_another_program_keeps_nobody_waiting() -> None:
    with Ranks(2) as ranks:
        ranks.each(large_state, -1, 0)
        members = list(ranks.peers)
        joiner = ranks.rejoin().start(is_another)
        assert results(ranks.start(admit, peers=members)) == [1, 1]
        assert "['Linear'] here, and with [] in the run" in joiner.result()
        assert ranks.each(go_on, peers=members) == [2.0, 2.0]


def refuse(worker: Worker) -> None:
    """A call: a run whose state cannot be pickled."""
    worker.kept["run"] = ct.elastic(state={"step": lambda: None})


def test_a_state_that_cannot_be_pickled_fails_on_all() -> None:
    with Ranks(2) as ranks:
        ranks.each(refuse)
        joiner, admits = start_entering(ranks, list(ranks.peers))
        for call in [joiner, *admits]:
            with pytest.raises(cc.CollectivesError, match="cannot be pickled"):
                call.result()


def no_run(worker: Worker, store: str) -> str:
    """A call: the store knows of nothing to join."""
    from datetime import timedelta

    from ranks import initialise

    options = {"timeout": timedelta(seconds=1)}
    with pytest.raises(RuntimeError) as error:
        initialise(worker, 1, 3, store, {"COLLECTIVES_REJOIN": "1"}, **options)
    return str(error.value)


def test_a_store_that_knows_of_no_run(tmp_path: Any) -> None:
    with Ranks(0) as ranks:
        (peer,) = ranks.add()
        assert "knows of no run" in peer.call(no_run, str(tmp_path / "store"))


@pytest.mark.parametrize(
    "lengths", [[], [0], [5], [0, 3, 0], [10], [25], [3, 25, 4, 6, 1], [10, 10], [9, 2, 8, 20]]
)
def test_pieces_are_all_bytes_once(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 10)
    found = list(transfer.pieces(lengths))
    assert all(0 < sum(stop - start for _, start, stop in piece) <= 10 for piece in found)
    got = [(i, at) for piece in found for i, start, stop in piece for at in range(start, stop)]
    assert got == [(i, at) for i, length in enumerate(lengths) for at in range(length)]


def test_a_state_of_every_kind_of_tensor() -> None:
    given = {
        "dtypes": [torch.ones(3, dtype=d) for d in (torch.bool, torch.bfloat16, torch.complex64)],
        "strided": torch.arange(12).reshape(3, 4).t(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "scalar": torch.tensor(5.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
    }
    frame, sent = transfer.pack(given)
    found, empty = transfer.unpack(frame)
    for target, source in zip(empty, sent, strict=True):
        target.copy_(source)
    assert found.keys() == given.keys()
    for ours, theirs in zip(found.pop("dtypes"), given.pop("dtypes"), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.pop("sparse").to_dense(), given.pop("sparse").to_dense())
    for name, theirs in given.items():
        assert torch.equal(found[name], theirs), name


def test_a_tensor_that_comes_twice_is_one() -> None:
    one, other = torch.arange(3.0), torch.ones(2, requires_grad=True)
    frame, sent = transfer.pack({"a": one, "b": [one, other], "c": torch.nn.Parameter(other)})
    assert len(sent) == 3
    found, empty = transfer.unpack(frame)
    for target, source in zip(empty, sent, strict=True):
        target.copy_(source)
    assert found["a"] is found["b"][0] and torch.equal(found["a"], one)
    assert found["b"][1].requires_grad and torch.equal(found["b"][1], other)
    assert torch.equal(found["c"], other)
