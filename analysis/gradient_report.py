"""Measure how strongly each loss of a method reaches each module, by running a step with one loss at a time."""

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
    """Print the gradient report of these settings for one batch, with initial weights; nothing is trained.

    Raises:
        InputError: there are several processes, or the model or the data cannot be loaded.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: --gradient_report runs in one process; start it with python")
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
    """A context that collects the cross-entropies computed in it, in order, each times its weight (default 1)."""

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
    """Run a training step on one batch for each loss, with all other losses times 0, and measure the gradients.

    This works because the gradients of a step are linear in its losses. A method whose gradients are not linear has the
    row "all" only.

    Args:
        method: Method.
        model: AVClassifier; its gradients are cleared, its weights stay unchanged.
        inputs, label: as in `Method.step`.

    Returns:
        {"L_m": {"fusion": norm, <modality>: norm}, "L_<modality>": .., "all": ..}: L2 norms before clipping. "all" is
        the unchanged step.
    """
    initial_state = copy.deepcopy((method.state_dict(), model.state_dict()))

    def run_step(weights=()):
        torch.manual_seed(0)  # OGM-GE draws noise
        squares = 0
        with ScaledLosses(weights) as scaled:
            for outputs in method.steps(model, inputs, label):
                method.adjust_gradients(model, outputs, label)
                drop_frozen_gradients(model)
                squares = squares + gradient_norms(model).cpu().double() ** 2
                model.zero_grad()
        for part, state in zip((method, model), copy.deepcopy(initial_state), strict=True):
            part.load_state_dict(state)  # every row starts from the same state
        numbers = {
            branch: next((k for k, loss in enumerate(scaled.losses) if loss is output.loss), None)
            for branch, output in outputs.items()
        }
        return numbers, len(scaled.losses), dict(zip(modules_of(model), squares.sqrt().tolist(), strict=True))

    model.zero_grad()
    numbers, count, norms = run_step()
    if not method.linear:
        return {"all": norms}
    rows = {}
    for branch, number in numbers.items():
        if number is not None and (
            count > 1 or branch != "fused"
        ):  # the only loss of a single encoder is not multimodal
            name = "L_m" if branch == "fused" else f"L_{branch}"
            rows[name] = run_step([float(k == number) for k in range(count)])[2]
    return rows | {"all": norms}


def as_table(report):
    """Return the report as aligned lines of text; "0" means that the gradient is exactly 0."""
    modules, width = list(report["all"]), max(map(len, report))
    headings = [module if module == "fusion" else f"{module} encoder" for module in modules]
    lines = [" " * width + "".join(f"{heading:>16}" for heading in headings)]
    for loss, norms in report.items():
        cells = (f"{'0' if norm == 0 else f'{norm:.4g}':>16}" for norm in norms.values())
        lines.append(f"{loss:{width}}" + "".join(cells))
    if list(report) == ["all"]:
        lines.append("the losses cannot be separated, because the gradients are not linear in them")
    return "\n".join(lines)
