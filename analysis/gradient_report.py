"""Which loss reaches which module, and how strongly: a method made visible by running its step."""

import copy
import os

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dataset.loader import build_loader
from engine.build import build
from engine.device import choose_device, set_precision
from engine.gradients import drop_frozen_gradients, gradient_norms, modules_of
from engine.settings import label as name_of
from methods import describe
from utils.batches import to_device
from utils.errors import InputError


def show_gradients(settings):
    """Print the report of these settings on one batch, with initial weights; nothing is trained.

    Raises:
        InputError: there are several processes, or the model or the clips cannot be built.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: --gradient_report takes one process; start it with python")
    device = choose_device(settings.device, settings.gpu_ids)
    set_precision(settings.deterministic)
    model, method = build(settings, device)
    loaders = {split: build_loader(settings, split, device) for split in ("train", *method.splits)}
    method.begin_epoch(0, model, loaders, device)
    method.epoch = getattr(settings, "modulation_starts", 0)
    inputs, label = to_device(next(iter(loaders["train"])), device)
    print(f"{name_of(*describe(vars(settings)))}: L2 norm of the gradient that each loss sends to each module")
    print(as_table(gradient_report(method, model.train(), inputs, label)))


class ScaledLosses(TorchFunctionMode):
    """A context that keeps the cross-entropies computed in it, in their order, each times its weight (default 1)."""

    def __init__(self, weights=()):
        super().__init__()
        self.weights, self.losses = weights, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is F.cross_entropy:
            if self.weights:
                result = self.weights[len(self.losses)] * result
            self.losses.append(result)
        return result


def gradient_report(method, model, inputs, label):
    """Run one batch through a training step, with one loss at a time, and measure what arrives in `.grad`.

    The step's gradients are linear in its losses. So each row is the step itself, run with every other loss times 0:
    how it leads and weights the gradient is measured, not assumed. A method that is not linear has the last row only.

    Args:
        method: Method.
        model: AVClassifier; its gradients are cleared, its weights stay.
        inputs, label: as Method.step.

    Returns:
        {"L_m": {"fusion": norm, each modality: norm}, "L_<modality>": .., "all": ..}: L2 norms before clipping, "all"
        of the unchanged step.
    """
    remembered = copy.deepcopy((method.state_dict(), model.state_dict()))

    def run(weights=()):
        torch.manual_seed(0)  # OGM-GE draws noise
        squares = 0
        with ScaledLosses(weights) as scaled:
            for outputs in method.steps(model, inputs, label):
                method.adjust_gradients(model, outputs, label)
                drop_frozen_gradients(model)
                squares = squares + gradient_norms(model).cpu().double() ** 2
                model.zero_grad()
        for part, state in zip((method, model), copy.deepcopy(remembered), strict=True):
            part.load_state_dict(state)  # so that all rows start alike
        numbers = {
            branch: next((k for k, loss in enumerate(scaled.losses) if loss is output.loss), None)
            for branch, output in outputs.items()
        }
        return numbers, len(scaled.losses), dict(zip(modules_of(model), squares.sqrt().tolist(), strict=True))

    model.zero_grad()
    numbers, count, whole = run()
    if not method.linear:
        return {"all": whole}
    rows = {}
    for branch, number in numbers.items():
        if number is not None and (count > 1 or branch != "fused"):  # one encoder's only loss is no multimodal one
            name = "L_m" if branch == "fused" else f"L_{branch}"
            rows[name] = run([float(k == number) for k in range(count)])[2]
    return rows | {"all": whole}


def as_table(report):
    """Return the report as aligned lines of text, 0 only where the gradient is exactly 0."""
    modules, width = list(report["all"]), max(map(len, report))
    headings = [module if module == "fusion" else f"{module} encoder" for module in modules]
    lines = [" " * width + "".join(f"{heading:>16}" for heading in headings)]
    for loss, norms in report.items():
        cells = (f"{'0' if norm == 0 else f'{norm:.4g}':>16}" for norm in norms.values())
        lines.append(f"{loss:{width}}" + "".join(cells))
    if list(report) == ["all"]:
        lines.append("the losses cannot be told apart: the gradients are not linear in them")
    return "\n".join(lines)
