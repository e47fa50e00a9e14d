"""The device that a run uses, and how precisely it computes."""

import ctypes
import os
import sys
from contextlib import suppress

import torch

from utils.errors import InputError


def choose_device(device="auto", gpu_ids=()):
    """Return the torch.device to run on: `device` unless it is "auto", else a GPU of `gpu_ids`, else the best here.

    Each of several processes, which torchrun starts, gets a GPU of its own. Asking for GPUs by number on a machine
    without one warns and continues on the CPU.

    Raises:
        InputError: a device this machine does not have, or several GPUs for one process.
    """
    processes, number = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if device.startswith("cuda:") and processes > 1:
        raise InputError(
            f"--device {device}: one GPU for {processes} processes; leave it out, or name them with --gpu_ids"
        )
    if device != "auto":
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise InputError(
                f"--device {device}: not on this machine; leave the flag out to choose by itself"
            ) from None
        if device != "cuda":
            return torch.device(device)
    if len(gpu_ids) > 1 and processes == 1:
        numbers = ",".join(map(str, gpu_ids))
        raise InputError(
            f"--gpu_ids {numbers}: one process uses one GPU; for several: "
            f"torchrun --nproc_per_node={len(gpu_ids)} main_dgl.py --gpu_ids {numbers} and the other flags"
        )
    if torch.cuda.is_available():
        gpu_ids = gpu_ids or range(torch.cuda.device_count())
        if len(gpu_ids) < processes:
            raise InputError(f"--nproc_per_node={processes}: there are {len(gpu_ids)} GPUs for them; start fewer")
        if gpu_ids[number] >= torch.cuda.device_count():
            raise InputError(
                f"--gpu_ids {gpu_ids[number]}: this machine's GPUs are 0 to {torch.cuda.device_count() - 1}"
            )
        return torch.device("cuda", gpu_ids[number])
    if gpu_ids:
        print("warning: --gpu_ids: no GPU on this machine, running on the CPU", file=sys.stderr)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compile_when_run(modules, device):
    """Compile modules by torch.compile when they run first; their names and checkpoints stay as they are.

    Raises:
        InputError: nothing can be compiled here, because there is no compiler, for example.
    """
    try:
        torch.compile(torch.nn.ReLU())(torch.ones(1, device=device))
    except Exception as error:  # whatever compilers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"--compile: does not run here ({reason}); leave it out") from None
    for module in modules:
        module.compile()


def return_freed_memory():
    """Have glibc return the memory of large tensors as soon as they are freed, in large pages; Linux only.

    Otherwise it keeps freed activations of up to 32 MB, between which the next ones do not fit: a training step on the
    CPU then needs 1.1 times the memory.
    """
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's switch for transparent huge pages
        with suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 8 * 2**20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD


def set_precision(deterministic):
    """Use TF32 and cuDNN's fastest convolutions on CUDA, or if `deterministic` the same bits each time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
