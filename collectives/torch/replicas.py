"""DistributedDataParallel in an elastic group: what of it takes the group's first size for granted.

Three things do. Gradients are divided by the size; here a communication hook averages over those
that contributed. Buffers come from rank 0 at the beginning of each forward; here, if that is lost,
from the next rank. And after the first iteration rank 0 tells how gradients are put into buckets;
here, if it is lost then, the buckets stay as they were made and are looked at again an iteration
later. Each of these rests on outcomes that are the same on all ranks, so that all go the same way.

There is no ``from __future__ import annotations`` here: DDP looks at its hook's annotations.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import collectives as cc
from collectives.torch.group import ProcessGroup


def average(group: ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A communication hook: the average over those that contribute, in place."""
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.AVG, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class Replica:
    """A DDP model of this rank, made elastic.

    Raises: ValueError: it is of another group, or reduces its gradients in a way of its own.
    """

    def __init__(self, model: DistributedDataParallel, group: ProcessGroup) -> None:
        _check(model, group)
        self._model = model
        self._register_average()
        if not hasattr(model, "buffer_hook"):
            where = torch.nn.parallel.distributed._BufferCommHookLocation.PRE_FORWARD
            model._register_buffer_comm_hook(self, Replica._spread_buffers, where)
        model.register_forward_pre_hook(self._before_forward)

    @property
    def _group(self) -> ProcessGroup:  # not kept here: the model can be copied, a group cannot
        return self._model.process_group

    def _register_average(self) -> None:
        hooks = self._model._comm_hooks
        hooks.clear()
        self._model.register_comm_hook(self._group, average)
        hooks[:] = [(average, None)]  # of which copies of the model have copies

    def _spread_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """The lowest rank that lives gives its buffers to all. Which one that is shows in what
        comes of the broadcasts: a look at the members may differ from rank to rank."""
        tensors, at_a_time = list(buffers.values()), self._model.broadcast_bucket_size
        for source in range(self._group.size()):
            try:
                return dist._broadcast_coalesced(self._group, tensors, at_a_time, source)
            except cc.PeerLost:
                continue
        raise AssertionError("this rank lives")

    def _before_forward(self, model: DistributedDataParallel, _: Any) -> None:
        """Does what DDP's forward would: there it would fail if rank 0 is lost."""
        if not torch.is_grad_enabled():
            return
        try:
            if model.reducer._rebuild_buckets():
                model._has_rebuilt_buckets = True
        except cc.PeerLost:
            self.renew()

    def renew(self) -> None:
        """Makes all that DDP has learned from iterations anew, as it was in the beginning. All
        ranks call it, between two steps."""
        model = self._model
        model.reducer._remove_autograd_hooks()
        parameters, sparse = model._build_params_for_reducer()
        names = model._build_debug_param_to_name_mapping(parameters)
        model._ddp_init_helper(parameters, sparse, names, model.static_graph)
        self._register_average()
        model._has_rebuilt_buckets = False
        model.require_forward_param_sync = True
        if model.static_graph:
            model._static_graph_delay_allreduce_enqueued = False
            model.reducer._set_static_graph()
            model.logger._set_static_graph()


def _check(model: DistributedDataParallel, group: ProcessGroup) -> None:
    if model.process_group is not group:
        raise ValueError("an elastic DDP model must be of the default group")
    if (
        model._delay_all_reduce_params
        or model._comm_hooks
        or model._use_python_reducer
        or any(hasattr(p, "_in_backward_optimizers") for p in model.parameters())
    ):
        raise ValueError(
            "this DDP model reduces its gradients in a way of its own (a communication hook, mixed "
            "precision, an optimizer in backward, a delayed all_reduce): it cannot be elastic"
        )
