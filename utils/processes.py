"""Several processes, as torchrun starts them: who is first, and sums over all. In one process everything is trivial."""

import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils.errors import InputError


def rank():
    """Return this process's number among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """Return the number of processes on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(tensor):
    """Sum a tensor over the processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average(tensors):
    """Average tensors over the processes, in place, by one all-reduce of all of them as one flat tensor."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    total(flat).div_(size())
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view(tensor.shape))


def gather_rows(tensor):
    """Return the rows (B, ...) of all processes, of equal B; a gradient flows to this process's own rows only."""
    if size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    parts[rank()] = tensor
    return torch.cat(parts)


def gather(value):
    """Return the values of all processes, in a list by rank. `value` is any object that can be pickled."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    """Return when every process has come here: what any of them has written before can be read."""
    gather(None)


def first_process():
    """A block that process 0 runs before all others do: see `leaders_first`."""
    return leaders_first(rank() == 0)


def is_first_on_machine():
    """Return True in one process of each machine."""
    return size() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def first_on_machine():
    """A block that one process of each machine runs before the others do, for files that may be on a local disk."""
    return leaders_first(is_first_on_machine())


@contextmanager
def leaders_first(leader):
    """A block that the leaders finish before the other processes enter it.

    If a leader raises InputError, it reports the error and the others end without a word, with exit status 0: a failure
    would make torchrun stop the process that is about to report.
    """
    if size() == 1:
        yield
        return
    if not leader and any(gather(False)):
        sys.exit()
    try:
        yield
    except InputError:
        if leader:
            gather(True)
        raise
    if leader and any(gather(False)):
        sys.exit()
