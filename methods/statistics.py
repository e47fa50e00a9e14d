"""Statistics of a batch or of clips that methods use; the same in every process."""

from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils.batches import to_device
from utils.processes import gather, rank, size, total
from utils.seeds import derived_seed


def dot(x, y):
    """Return the inner product of two lists of tensors, summed in float64."""
    return torch.stack([(one * other).sum(dtype=torch.float64) for one, other in zip(x, y, strict=True)]).sum()


def ratio(x, y, smallest):
    """Return |x| / |y| of two lists of tensors, at least 1; 0 if |y| is not above `smallest`."""
    length = dot(y, y).sqrt()
    found = (dot(x, x).sqrt() / length).clamp(min=1)
    return torch.where(length > smallest, found, 0).to(y[0].dtype)


def by_certainty(*logits):
    """Return the mean of several logits (B, C), weighted for each clip by softmax of minus their entropies."""
    weights = torch.stack([-entropy(each.log_softmax(dim=1)) for each in logits]).softmax(dim=0)
    return (weights.unsqueeze(2) * torch.stack(logits)).sum(dim=0)


def entropy(log_p):
    """Return the entropy of log-probabilities in nats: (B, C) -> (B,)."""
    return -(log_p.exp() * log_p).sum(dim=1)


def log_likelihood(logits, label):
    """Return the log-probability of the true class: (B, C), (B,) -> (B,)."""
    return F.log_softmax(logits, dim=1).gather(1, label.unsqueeze(1)).squeeze(1)


def true_probability(logits, label):
    """Return the sum over the whole batch of the true class's probability: (B, C), (B,) -> ()."""
    return total(logits.softmax(dim=1).gather(1, label.unsqueeze(1)).sum(dtype=torch.float32))


def batch_mean(values):
    """Return the mean over the clips of the whole batch: (B, ...) -> (...)."""
    return total(values.mean(dim=0)) / size()


def mean_over_others(values, function):
    """Return the mean over j != u of function(values[u], values[j]), for every u: (n,) -> (n,)."""
    pairs = function(values.unsqueeze(1), values.unsqueeze(0))
    return pairs.fill_diagonal_(0).sum(dim=1) / (len(values) - 1)


@contextmanager
def evaluating(encoder):
    """A block in which an encoder's BatchNorm layers use their running statistics and leave them unchanged."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        layer.eval()
    yield
    for layer in layers:
        layer.train()


def drawn_of_each_class(clips, part, fewest, seed):
    """Draw this part of the clips of every class by seed, at least `fewest` if there are so many -> their numbers."""
    classes = {}
    for number, clip in enumerate(clips):
        classes.setdefault(clip.label, []).append(number)
    drawn = []
    for numbers in classes.values():
        numbers.sort(key=lambda number: derived_seed(seed, "drawn", clips[number].id))
        drawn += numbers[: max(int(part * len(numbers)), fewest)]
    return sorted(drawn)


@torch.no_grad()
def features_of(model, dataset, batch_size, device, numbers=None):
    """Compute the features of a dataset's clips, or of `numbers` in order, shared between the processes.

    Args:
        model: AVClassifier; left in evaluation mode.
        dataset: gives a batch for a list of clip numbers.

    Returns:
        {modality: (M, D)} and labels (M,), on the CPU, whole in every process.
    """
    model.eval()
    numbers = range(len(dataset)) if numbers is None else numbers
    mine, features, labels = list(numbers)[rank() :: size()], {name: [] for name in model.modalities}, []
    for i in range(0, len(mine), batch_size):
        inputs, label = to_device(dataset[mine[i : i + batch_size]], device)
        labels.append(label.cpu())
        for name in model.modalities:
            features[name].append(model.encode(name, inputs[name]).cpu())
    parts = [part for part in gather((mine, features, labels)) if part[0]]
    order = torch.tensor([number for some, _, _ in parts for number in some]).argsort()
    whole = {name: torch.cat([x for _, found, _ in parts for x in found[name]])[order] for name in model.modalities}
    return whole, torch.cat([label for *_, found in parts for label in found])[order]


def purity(features, label, clusters):
    """Return the share of clips (M, D) whose label is the commonest of their k-means cluster, 0 to 1."""
    from sklearn.cluster import KMeans  # 85 MB, for one method

    features = features.double().numpy()
    low, high = features.min(axis=0), features.max(axis=0)
    scaled = 2 * (features - low) / np.where(high > low, high - low, 1) - 1
    found = KMeans(min(clusters, len(label)), n_init=10, random_state=0).fit_predict(scaled)
    return of_clusters(label.numpy(), found)


def of_clusters(label, cluster):
    """Return the purity of a clustering: labels and clusters by number, (M,) each."""
    return sum(np.bincount(label[cluster == each]).max() for each in np.unique(cluster)) / len(label)
