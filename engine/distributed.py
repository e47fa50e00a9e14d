"""Join the processes that torchrun starts, one per GPU.

Every process has the same weights and an equal part of every training batch. After the backward passes of a step,
engine/gradients.py averages the gradients over the processes. The result is the gradient of the whole batch.
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
    """Join the process group of torchrun while the block lasts; without torchrun, do nothing. Only process 0 prints."""
    if "RANK" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while one decodes clips
    with redirect_stdout(sys.stdout if rank() == 0 else None):  # with None, print has no effect
        yield
    dist.destroy_process_group()
