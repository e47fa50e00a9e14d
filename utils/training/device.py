"""Choice of the device, and the way of a batch on to it."""

import os
import sys
from functools import cache

import torch

from utils.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def choose_device(device="auto", gpu_ids=()):
    """The torch.device to run on: `device` when it is not "auto", else a GPU of `gpu_ids`, else what the machine has.

    Of several processes, which torchrun starts, each gets a GPU of its own. Asking for GPUs by number on a machine
    without one warns and goes on with the CPU.

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
    """Have modules compiled when they run first, by torch.compile; their names and checkpoints stay as they are.

    Raises:
        InputError: nothing can be compiled here, for want of a compiler, say.
    """
    try:
        torch.compile(torch.nn.ReLU())(torch.ones(1, device=device))
    except Exception as error:  # whatever compilers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"--compile: does not run here ({reason}); leave it out") from None
    for module in modules:
        module.compile()


def set_precision(deterministic):
    """On CUDA: TF32 and the fastest convolutions that cuDNN finds, or if `deterministic` the same bits each time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


@cache
def scale_and_shift(width, device):
    """What normalises a row of `width` pixels of three bytes: on the device once, not copied at every step."""
    mean, deviation = (255 * torch.tensor(values).repeat(width) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (1 / deviation).to(device), (-mean / deviation).to(device)


def normalise(pictures):
    """Pictures as bytes (..., H, W, 3) -> float32 of the same shape, with ImageNet's mean and standard deviation.

    torchvision's ToDtype and Normalize need 0.38 ms of one core for a picture of 224 x 224, this 0.05: a third of what
    all of an evaluation's reading takes.
    """
    scale, shift = scale_and_shift(pictures.shape[-2], pictures.device)
    rows = pictures.reshape(-1, len(scale)).float()  # long rows: loops over three values would be slow
    return torch.addcmul(shift, rows, scale, out=rows).view(pictures.shape)


def to_device(batch, device):
    """A loader's batch as the model takes it, on `device`.

    Args:
        batch: spectrogram (B, F, T), pictures as bytes (B, N, H, W, 3) or normalised frames (B, 3, N, H, W), and label
            (B,); arrays are tensors too.

    Returns:
        spectrogram (B, 1, F, T), normalised frames (B, 3, N, H, W), label (B,).
    """
    spectrogram, frames, label = (torch.as_tensor(part).to(device, non_blocking=True) for part in batch)
    if frames.dtype == torch.uint8:
        frames = normalise(frames).permute(0, 4, 1, 2, 3)
    return spectrogram.unsqueeze(1), frames, label
