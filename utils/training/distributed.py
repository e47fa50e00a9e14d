"""Several processes, one per GPU, as torchrun starts them; alone, everything here does nothing.

Every process has the same weights and its part of every batch. The gradients are averaged as if the batch had been one:
those of the encoders by DistributedDataParallel while their backward runs, those of fusion when the step is done. Two
of DGL's three backward passes go through fusion's weights, and a DistributedDataParallel would hold the first for all.
"""

import copy
import os
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def processes(device):
    """Join the processes that torchrun started, if it did, for as long as the block lasts."""
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # one decodes clips while the others wait
    try:
        with redirect_stdout(sys.stdout if rank() == 0 else None):  # None: print says nothing
            yield
    finally:
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


def part(batch):
    """This process's part of a list. One that would get nothing gets the first element; its `share` is 0."""
    return batch[rank() :: size()] or batch[:1]


def share(count):
    """This process's part of a batch of `count`, 0 to 1."""
    return len(range(rank(), count, size())) / count


@contextmanager
def first_alone():
    """A block that the first process of each machine is through with before the others enter it.

    If it raises there, that process tells why and the others end without a word: with exit status 0, since at a failure
    torchrun would stop the one that is about to speak.
    """
    alone, failed = os.environ.get("LOCAL_RANK", "0") == "0", False
    if not alone and anywhere(False):
        sys.exit()
    try:
        yield
    except BaseException:
        failed = True
        raise
    finally:
        if alone and anywhere(failed) and not failed:
            sys.exit()


def total(tensor):
    """The sum of a tensor over the processes; changes it in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def anywhere(flag):
    """Whether `flag` is true in any process."""
    return flag if size() == 1 else bool(total(torch.tensor(int(flag))))


def everyones(value):
    """The values of all processes, in a list."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


class Shared:
    """A model's twin to train in several processes: the same weights, gradients averaged over all processes.

    Attributes:
        model: to be given to the training step in the original's place; the original is what is evaluated and saved.
            Its `share` is this process's part of the batch in hand, 0 to 1, the weight of its gradients.
    """

    def __init__(self, model):
        self.model = model
        if size() == 1:
            return
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)
        for name in ("audio_net", "visual_net"):
            if hasattr(model, name):
                encoder = DistributedDataParallel(getattr(model, name), forward_sync_buffers=False)
                encoder.register_comm_hook(self, weighted_sum)
                setattr(self.model, name, encoder)
        self.model.__dict__["original"] = model  # no part of it, so not among its modules

    def reduce_fusion(self):
        """Average fusion's gradients, after the last backward pass."""
        if size() > 1:
            for parameter in self.model.fusion_module.parameters():
                total(parameter.grad.mul_(self.model.share))


def original(model):
    """The model whose twin this is, or itself: its encoders average nothing, as who averages by hand needs them."""
    return vars(model).get("original", model)


def weighted_sum(shared, bucket):
    """DistributedDataParallel's hook: the sum of the gradients, each weighed by its process's share of the batch."""
    reduced = dist.all_reduce(bucket.buffer().mul_(shared.model.share), async_op=True)
    return reduced.get_future().then(lambda future: future.value()[0])
