"""Communicate between the processes that torchrun started. With one process, every function here is trivial."""

import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils.errors import InputError


def rank():
    """Return the number of this process among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """Return the number of processes on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(tensor):
    """Sum a tensor over the processes, in place, and return it."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average(tensors):
    """Average tensors over the processes, in place, by one all-reduce of a flat tensor."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    total(flat).div_(size())
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view(tensor.shape))


def gather_rows(tensor):
    """Return the rows of all processes, (size * B, ...); gradients flow only to the rows of this process.

    Args:
        tensor: (B, ...), with the same B in every process.
    """
    if size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    parts[rank()] = tensor
    return torch.cat(parts)


def gather(value):
    """Return the values of all processes, a list by rank. `value` is any object that can be pickled."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    """Wait until every process has called this. Afterwards, files that any of them wrote can be read."""
    gather(None)


def first_process():
    """Return a context whose block process 0 runs before the other processes; see `leaders_first`."""
    return leaders_first(rank() == 0)


def is_first_on_machine():
    """Return True in one process of each machine."""
    return size() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def first_on_machine():
    """Return a context whose block one process per machine runs first, for files that may be on a local disk."""
    return leaders_first(is_first_on_machine())


@contextmanager
def leaders_first(leader):
    """Let the leaders finish the block before the other processes start it.

    If a leader raises InputError, it reports the error, and the other processes exit silently with status 0. With
    another status, torchrun would stop the leader before it can report.
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
