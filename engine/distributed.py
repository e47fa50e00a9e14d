"""Several processes, one per GPU, as torchrun starts them; alone, everything here does nothing.

Every process has the same weights and an equal part of every training batch. When a step's backward passes are done,
engine/gradients.py averages the gradients, as if the batch had been one.
"""

import os
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.processes import rank


@contextmanager
def processes(device):
    """Join the processes that torchrun started, if it did, while the block lasts. Only process 0 prints."""
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # one decodes clips while the others wait
    with redirect_stdout(sys.stdout if rank() == 0 else None):  # None: print says nothing
        yield
    dist.destroy_process_group()
