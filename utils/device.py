"""Choice of the device."""

import sys

import torch

from utils.errors import InputError


def choose_device(device="auto", gpu_ids=()):
    """The torch.device to run on: `device` when it is not "auto", else GPU `gpu_ids[0]`, else what the machine has.

    Asking for GPUs by number on a machine without one warns and goes on with the CPU.

    Raises:
        InputError: a device this machine does not have.
    """
    if device != "auto":
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise InputError(
                f"--device {device}: not on this machine; leave the flag out to choose by itself"
            ) from None
        return torch.device(device)
    if torch.cuda.is_available():
        wanted = gpu_ids[0] if gpu_ids else 0
        if wanted >= torch.cuda.device_count():
            raise InputError(f"--gpu_ids {wanted}: this machine's GPUs are 0 to {torch.cuda.device_count() - 1}")
        if len(gpu_ids) > 1:
            print(f"warning: --gpu_ids: one GPU is used, number {wanted}", file=sys.stderr)
        return torch.device("cuda", wanted)
    if gpu_ids:
        print("warning: --gpu_ids: no GPU on this machine, running on the CPU", file=sys.stderr)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
