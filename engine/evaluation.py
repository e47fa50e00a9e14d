"""Compute predictions and accuracies, for training and for valid.py."""

import copy
import itertools

import numpy as np
import torch

from engine.batchnorm import batches_to_refresh, refresh_batchnorm
from utils.batches import to_device
from utils.errors import InputError
from utils.processes import gather, size


@torch.inference_mode()
def predict(model, loader, device):
    """Return a model's probabilities for every clip of a loader.

    Args:
        model: AVClassifier; afterwards in evaluation mode.
        loader: a loader of dataset/loader.py. With several processes, each one reads its part.
        device: device of the model.

    Returns:
        {"label": (M,), <branch>: probabilities (M, C)} on the CPU, of all M clips in the loader's order.
    """
    model.eval()
    labels, logits = [], {branch: [] for branch in model.branches}
    for batch in loader:
        inputs, label = to_device(batch, device)
        labels.append(label)
        for branch, output in model(inputs).items():
            logits[branch].append(output)
    predictions = {"label": torch.cat(labels).cpu()}
    predictions |= {branch: torch.cat(parts).float().softmax(dim=1).cpu() for branch, parts in logits.items()}
    return gather_predictions(predictions, loader.sampler) if size() > 1 else predictions


def evaluate(model, loader, device):
    """Return the accuracy of every branch, and the predictions.

    Returns:
        accuracies: {"fused": .., <modality>: ..}, 0 to 1.
        predictions: as `predict` returns them.

    Raises:
        InputError: a probability is not finite.
    """
    predictions = predict(model, loader, device)
    if not are_finite(predictions):
        raise InputError("the model's probabilities are not finite; use a lower --learning_rate")
    return {branch: accuracy(predictions, branch) for branch in model.branches}, predictions


def are_finite(predictions):
    """Return True if every probability in the predictions is finite."""
    return all(values.isfinite().all() for values in predictions.values())


def evaluate_epoch(model, data, device):
    """Evaluate the split that chooses the best epoch, and return its values for the epoch's row of the log.

    Returns:
        {"split": .., "fused": .., <modality>: ..}, and for held-out clips "val_loss", which G-Blending needs.
    """
    accuracies, predictions = evaluate(model, data.choosing, device)
    row = {"split": data.chosen_on, **accuracies}
    return row | {"val_loss": mean_loss(predictions)} if data.chosen_on == "val" else row


def mean_loss(predictions):
    """Return the mean cross-entropy per clip of the fused branch's predictions."""
    probability = predictions["fused"].double().gather(1, predictions["label"].unsqueeze(1))
    return -probability.clamp(min=1e-30).log().mean().item()


def untrained_losses(model, data, batch_size, device):
    """Return the mean losses per clip of the initial model: {"loss": training clips, "val_loss": held-out clips}.

    They are measured on a copy of the model with refreshed BatchNorm statistics, as in every evaluation.
    """
    model = copy.deepcopy(model)
    data.set_epoch(0)
    first_batches = itertools.islice(data.train, batches_to_refresh(batch_size))
    refresh_batchnorm(model, [to_device(batch, device)[0] for batch in first_batches])
    losses = [mean_loss(predict(model, loader, device)) for loader in (data.train, data.choosing)]
    return dict(zip(("loss", "val_loss"), losses, strict=True))


def gather_predictions(predictions, sampler):
    """Return the predictions of all processes, each clip once, in the order of the clip numbers."""
    parts = gather(([number for batch in sampler for number in batch], predictions))
    _, order = np.unique([number for numbers, _ in parts for number in numbers], return_index=True)
    return {name: torch.cat([values[name] for _, values in parts])[order] for name in predictions}


def predicted_branches(predictions):
    """Return the branches in predictions, "fused" first."""
    return [name for name in predictions if name != "label"]


def class_names(names, n_classes):
    """Return the names of a model's `n_classes` classes; a class without a name gets its number."""
    return [*names, *map(str, range(len(names), n_classes))][:n_classes]


def accuracy(predictions, branch, of_class=None):
    """Return the share of clips whose top class is correct; None without clips.

    Args:
        predictions: as `predict` returns them.
        branch: "fused" or a modality.
        of_class: count only the clips with this label; None for all clips.
    """
    hits = predictions[branch].argmax(dim=1) == predictions["label"]
    if of_class is not None:
        hits = hits[predictions["label"] == of_class]
    return hits.double().mean().item() if len(hits) else None
