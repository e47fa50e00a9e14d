"""Evaluation, shared by main_dgl.py and valid.py."""

import copy
import itertools

import numpy as np
import torch

from utils.training import distributed
from utils.training.batchnorm import refresh_batchnorm
from utils.training.device import to_device
from utils.training.measurement import BRANCHES
from utils.training.run import BATCHNORM_CLIPS


@torch.inference_mode()
def evaluate(model, dataloader, device, watch=iter):
    """Accuracies of the fused, audio and visual branches over every clip of a loader.

    Args:
        model: AVClassifier; left in evaluation mode.
        dataloader: batches as utils.training.device.to_device takes them; in several processes a loader of
            dataset/loader.py, of which each sees its part.
        device: where the model is.
        watch: what to draw the loader's batches through, such as Interruption.watch.

    Returns:
        accuracies: {"fused": .., "audio": .., "visual": ..}, each 0 to 1, None for a branch that the model lacks.
        predictions: {"label": (M,), and per branch probabilities (M, C)} on the CPU, in the loader's order.
    """
    model.eval()
    labels, logits = [], {branch: [] for branch in BRANCHES}
    for batch in watch(dataloader):
        spectrogram, frames, label = to_device(batch, device)
        outputs = model(spectrogram, frames)
        labels.append(label)
        for branch, output in zip(BRANCHES, outputs, strict=True):
            if output is not None:
                logits[branch].append(output)
    predictions = {"label": torch.cat(labels).cpu()}
    for branch in BRANCHES:
        if logits[branch]:
            predictions[branch] = torch.cat(logits[branch]).float().softmax(dim=1).cpu()
    if distributed.size() > 1:
        predictions = gather(predictions, dataloader.sampler)
    return {branch: accuracy(predictions, branch) for branch in BRANCHES}, predictions


def held_out_loss(split, predictions):
    """What a row of the log says of held-out clips beside their accuracies: {"val_loss": cross-entropy}, mean per clip.

    Of the test set it says nothing. G-Blending's weights come of it.
    """
    return {"val_loss": mean_loss(predictions)} if split == "val" else {}


def mean_loss(predictions):
    """Cross-entropy of the fused branch's predictions, mean per clip."""
    probability = predictions["fused"].double().gather(1, predictions["label"].unsqueeze(1))
    return -probability.clamp(min=1e-30).log().mean().item()


def untrained_losses(run):
    """Losses of a run that begins, on its training and its held-out clips: {"loss": .., "val_loss": ..}, mean per clip.

    Measured on a copy of the model, its BatchNorm having seen clips as in every evaluation.
    """
    model, loader = copy.deepcopy(run.model), run.loader
    loader.dataset.set_epoch(0)
    first = itertools.islice(loader, -(-BATCHNORM_CLIPS // run.args.batch_size))
    refresh_batchnorm(model, [to_device(batch, run.device)[:2] for batch in first])
    losses = [mean_loss(evaluate(model, run.loaders[split], run.device)[1]) for split in ("train", "val")]
    return dict(zip(("loss", "val_loss"), losses, strict=True))


def gather(predictions, sampler):
    """The predictions of all processes, every clip once and in the order of the clips."""
    numbers = [number for batch in sampler for number in batch]
    whole = {}
    for of_one, values in distributed.everyones((numbers, predictions)):
        for name, value in values.items():
            whole.setdefault(name, value.new_empty(len(sampler.dataset), *value.shape[1:]))[of_one] = value
    return whole


def class_names(names, n_classes):
    """The names of a model's classes, numbers for those that have none."""
    return [*names, *map(str, range(len(names), n_classes))][:n_classes]


def accuracy(predictions, branch, of_class=None):
    """Share of clips, or of those labelled `of_class`, whose top class is right: 0 to 1, None where there are none."""
    if branch not in predictions:
        return None
    hits = predictions[branch].argmax(dim=1) == predictions["label"]
    if of_class is not None:
        hits = hits[predictions["label"] == of_class]
    return hits.double().mean().item() if len(hits) else None


def macro_f1(predictions, branch):
    """F1 of the top class, its plain mean over the classes that have a clip: 0 to 1, None for a branch that is missing.

    A class that is never predicted counts as 0. As scikit-learn's f1_score over those classes.
    """
    if branch not in predictions:
        return None
    from sklearn.metrics import f1_score  # a second to import, so only on demand

    label, predicted = predictions["label"].numpy(), predictions[branch].argmax(dim=1).numpy()
    return float(f1_score(label, predicted, labels=np.unique(label), average="macro", zero_division=0))


def mean_average_precision(predictions, branch):
    """Average precision of a class's probability, this class against the rest, its mean as in `macro_f1`.

    As scikit-learn's average_precision_score: a step at every distinct probability, without interpolation.
    """
    if branch not in predictions:
        return None
    from sklearn.metrics import average_precision_score

    label, probability = predictions["label"].numpy(), predictions[branch].numpy()
    return float(np.mean([average_precision_score(label == c, probability[:, c]) for c in np.unique(label)]))
