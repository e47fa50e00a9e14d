"""Which loss reaches which module, and how strongly: a training rule made visible by running its step."""

import copy
import os

import torch

from dataset.loader import build_loader
from methods import describe
from utils.errors import InputError
from utils.results import settings
from utils.training.device import choose_device, set_precision, to_device
from utils.training.measurement import MODULES, WatchedLosses, gradient_norms

LOSSES = ("L_m", "L_a", "L_v")


def show_gradients(args, initial_model):
    """Print the report of these settings on one batch, with initial weights; nothing is trained.

    Args:
        args: settings, with their defaults filled in.
        initial_model: makes model and training rule from settings and a device.

    Raises:
        InputError: there are several processes, or what `initial_model` or the clips raise.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: --gradient_report takes one process; start it with python")
    device = choose_device(args.device, args.gpu_ids)
    set_precision(args.deterministic)
    model, method = initial_model(args, device)
    loaders = {split: build_loader(args, split, device) for split in ("train", *method.splits)}
    method.begin_epoch(0, model, loaders, device)
    method.epoch = getattr(args, "modulation_starts", 0)
    batch = to_device(next(iter(loaders["train"])), device)
    print(f"{settings.label(*describe(vars(args)))}: L2 norm of the gradient that each loss sends to each module")
    print(as_table(gradient_report(method, model.train(), *batch)))


def gradient_report(method, model, spectrogram, frames, label):
    """Run one batch through a training step, with one loss at a time, and measure what arrives in `.grad`.

    The step's gradients are linear in its losses. So each row is the step itself, run with every other loss times 0:
    how it leads and weights the gradient is seen, not supposed. Of a method that is not linear there is the last row.

    Args:
        method: Method.
        model: AVClassifier; its gradients are cleared, its weights stay.
        spectrogram, frames, label: as `dgl_step`.

    Returns:
        {"L_m": {"fusion": norm, "audio": norm, "visual": norm}, "L_a": .., "L_v": .., "all": ..}: L2 norms before
        clipping, "all" of the unchanged step; without the losses and the encoders that the model lacks.
    """

    remembered, buffers = copy.deepcopy((method.state_dict(), dict(model.named_buffers())))

    def run(weights=None):
        torch.manual_seed(0)  # OGM-GE draws noise
        squares = torch.zeros(len(MODULES), dtype=torch.float64)

        def finish():
            squares.add_(gradient_norms(model).cpu() ** 2)
            model.zero_grad()

        model.zero_grad()
        with WatchedLosses(weights) as watched:
            losses = method.update(model, spectrogram, frames, label, finish)
        method.load_state_dict(copy.deepcopy(remembered))  # that all rows begin alike
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        norms = dict(zip(MODULES, squares.sqrt().tolist(), strict=True))
        return watched.find(losses), {name: norm for name, norm in norms.items() if norm == norm}  # NaN: lacks it

    numbers, whole = run()
    if not method.linear:
        return {"all": whole}
    count = len({number for number in numbers if number is not None})
    rows = {}
    for name, number in zip(LOSSES, numbers, strict=True):
        if number is not None:
            _, rows[name] = run([float(each == number) for each in range(count)])
    if count == 1:  # one encoder alone: its only loss is no multimodal one
        del rows["L_m"]
    return rows | {"all": whole}


def as_table(report):
    """The report as aligned lines of text, 0 only where the gradient is exactly 0."""
    headings = {"fusion": "fusion", "audio": "audio encoder", "visual": "visual encoder"}
    lines = [" " * 3 + "".join(f"{headings[module]:>16}" for module in report["all"])]
    for loss, norms in report.items():
        lines.append(f"{loss:3}" + "".join(f"{'0' if norm == 0 else f'{norm:.4g}':>16}" for norm in norms.values()))
    if list(report) == ["all"]:
        lines.append("what each loss sends cannot be told apart: the gradients are not linear in L_m, L_a and L_v")
    return "\n".join(lines)
