"""Choose the device of a run, its numerical precision, and how memory is returned."""

import ctypes
import os
import sys
from contextlib import suppress

import torch

from utils.errors import InputError


def choose_device(device="auto", gpu_ids=()):
    """Return the torch.device to run on.

    It is `device` unless that is "auto" or "cuda", else a GPU of `gpu_ids`, else the best device of this machine. Each
    process that torchrun starts gets a GPU of its own. If `gpu_ids` names GPUs on a machine without CUDA, this prints a
    warning and chooses another device.

    Raises:
        InputError: this machine does not have the device, or several GPUs are named for one process.
    """
    processes, number = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if device.startswith("cuda:") and processes > 1:
        raise InputError(f"--device {device}: names one GPU for {processes} processes; leave it out, or use --gpu_ids")
    if device != "auto":
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise InputError(
                f"--device {device}: not on this machine; leave the flag out to use the best device"
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
            raise InputError(
                f"--nproc_per_node={processes}: there are {len(gpu_ids)} GPUs for them; start fewer processes"
            )
        if gpu_ids[number] >= torch.cuda.device_count():
            raise InputError(
                f"--gpu_ids {gpu_ids[number]}: this machine's GPUs are 0 to {torch.cuda.device_count() - 1}; use these"
            )
        return torch.device("cuda", gpu_ids[number])
    found = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if gpu_ids:
        print(f"warning: --gpu_ids: no CUDA GPU on this machine, running on {found}", file=sys.stderr)
    return found


def compile_when_run(modules, device):
    """Compile modules with torch.compile at their first run; their names and checkpoints stay the same.

    Raises:
        InputError: torch.compile does not work on this machine, for example because there is no compiler.
    """
    try:
        torch.compile(torch.nn.ReLU())(torch.ones(1, device=device))
    except Exception as error:  # a compiler can raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"--compile: fails on this machine ({reason}); leave it out") from None
    for module in modules:
        module.compile()


def return_freed_memory():
    """Let glibc return the memory of large tensors as soon as they are freed, and use large pages (Linux only).

    Otherwise glibc keeps freed activations of up to 32 MB, and later ones do not fit between them. A training step on
    the CPU then needs 1.1 times the memory.
    """
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's switch for transparent huge pages
        with suppress(OSError, AttributeError):  # the C library is not glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 8 * 2**20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD


def set_precision(deterministic):
    """Use TF32 and cuDNN's fastest convolutions on CUDA, or if `deterministic` only repeatable algorithms."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
