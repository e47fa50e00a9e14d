"""Measure losses, training accuracies and gradient norms while a model trains."""

import math

import torch

from engine.gradients import CLIP_NORM, entry_sizes, modules_of
from utils.batches import to_device
from utils.errors import InputError
from utils.processes import first_process, rank, size, total
from utils.progress import progress_bar
from utils.seeds import derived_seed

READ_EVERY = 20  # steps between two reads of a GPU's values; reading them at every step would make the GPU wait


def loss_name(branch):
    """Return the name of a branch's training loss in the log."""
    return "loss" if branch == "fused" else f"loss_{branch}"


def branches_of(row):
    """Return the branches in a row of the log, "fused" first."""
    return [name for name in row if f"train_{name}" in row]


class Meter:
    """Means over the steps of an epoch and over all processes. The values stay on the device until they are read.

    Args:
        model: AVClassifier.
        loader: loader of the training clips; error messages name the clips of its batches.
        suppression: also measure the size of each encoder's gradient after clipping, for analysis/suppression.py.
    """

    def __init__(self, model, loader, suppression=False):
        self.model, self.loader, self.branches, self.suppression = model, loader, model.branches, suppression
        self.names = [loss_name(branch) for branch in model.branches] + [f"train_{branch}" for branch in model.branches]
        self.names += [f"suppression_gradient_{name}" for name in model.modalities] * suppression
        self.names += [*(f"gradient_{name}" for name in modules_of(model)), "gradient_norm", "clipped"]
        self.norms, self.unread = [], []
        self.every = READ_EVERY if next(model.parameters()).is_cuda else 1
        self.steps, self.totals = [], [0.0] * len(self.names)  # values of every step, and their sums

    def add_gradients(self, norms):
        """Add the norms that `clip_gradients` returned. Call this once per optimiser step, before zeroing gradients."""
        self.norms.append(torch.cat([entry_sizes(self.model).to(norms), norms]) if self.suppression else norms)

    def add_batch(self, outputs, label):
        """Add a batch: outputs {branch: Output} and labels (B, ...).

        Raises:
            InputError: a loss or a gradient is not finite, in this step or in one since the last read.
        """
        norms = torch.stack(self.norms)
        losses = [outputs[branch].loss.detach() for branch in self.branches]
        hits = [(outputs[branch].logits.argmax(dim=1) == label).to(norms).mean() for branch in self.branches]
        clipped = (norms[:, -1] > CLIP_NORM).to(norms).mean()
        row = torch.cat([torch.stack([*losses, *hits]).to(norms), norms.amax(dim=0), clipped.view(1)])
        self.unread.append(row)
        self.norms = []
        if len(self.unread) == self.every or len(self.steps) + len(self.unread) == len(self.loader):
            self.read()

    def read(self):
        """Read the values of the steps since the last read from the device, and check that they are finite."""
        rows = (total(torch.stack(self.unread)) / size()).tolist()
        self.unread = []
        for row in rows:
            if not all(map(math.isfinite, row)):
                self.report_divergence(len(self.steps))
            self.steps.append(dict(zip(self.names, row, strict=True)))
            self.totals = [sum(pair) for pair in zip(self.totals, row, strict=True)]

    def report_divergence(self, step):
        """Raise InputError for a step whose loss or gradient is not finite."""
        clips = self.loader.dataset.clips
        names = ", ".join(clips[number].id for number in self.loader.sampler.batches()[step])
        with first_process():  # only one process reports an error
            raise InputError(
                f"loss or gradient not finite in epoch {self.loader.dataset.epoch}, step {step}: use a lower "
                f"--learning_rate, or check the clips of this step; this epoch is not saved; clips {names}"
            )

    def means(self):
        """Return the means of all steps so far, {name: value}."""
        return {name: value / len(self.steps) for name, value in zip(self.names, self.totals, strict=True)}

    def __str__(self):
        """Return the mean loss and accuracies so far, for the progress bar."""
        if not self.steps:
            return ""
        means = self.means()
        accuracies = "  ".join(f"{branch} {means[f'train_{branch}']:.3f}" for branch in self.branches)
        return f"loss {means['loss']:.3f}  {accuracies}"


def batches(loader, device, meter):
    """Yield a loader's batches on the device, (inputs, label), and show the meter in a progress bar.

    Before each batch, PyTorch's generator is seeded by (seed, epoch, step), for methods that draw noise.
    """
    dataset = loader.dataset
    bar = progress_bar(loader, f"epoch {dataset.epoch}", leave=False, disable=rank() > 0)
    for number, batch in enumerate(bar):
        torch.manual_seed(derived_seed(dataset.seed, dataset.epoch, "noise", number))
        yield to_device(batch, device)
        bar.set_postfix_str(str(meter), refresh=False)
