"""Compute features of many clips between two epochs, for some methods; every process gets the same values."""

import numpy as np
import torch

from models.backbone import pooled
from utils.batches import to_device
from utils.processes import gather, rank, size
from utils.seeds import derived_seed


def draw_per_class(clips, part, fewest, seed):
    """Draw clips of every class by seed, and return their numbers, sorted.

    Args:
        clips: list of clips.
        part: share of each class to draw.
        fewest: minimum number of clips per class, or all of them if a class has fewer.
        seed: seed of the draw.
    """
    classes = {}
    for number, clip in enumerate(clips):
        classes.setdefault(clip.label, []).append(number)
    drawn = []
    for numbers in classes.values():
        numbers.sort(key=lambda number: derived_seed(seed, "drawn", clips[number].id))
        drawn += numbers[: max(int(part * len(numbers)), fewest)]
    return sorted(drawn)


def as_vector(feature):
    """Return a feature as a vector (B, D); maps, which are the features with mmtm, are averaged."""
    return feature if feature.dim() == 2 else pooled(feature)


@torch.no_grad()
def features_of(model, dataset, batch_size, device, numbers=None):
    """Compute the features of clips as vectors; each process computes a part, and all return the complete result.

    Args:
        model: AVClassifier; afterwards in evaluation mode.
        dataset: returns a batch for a list of clip numbers.
        batch_size: clips per batch.
        device: device of the model.
        numbers: clip numbers in ascending order; None for all clips.

    Returns:
        {modality: (M, D)} and labels (M,), on the CPU, in the order of the clip numbers.
    """
    model.eval()
    numbers = range(len(dataset)) if numbers is None else numbers
    mine, features, labels = list(numbers)[rank() :: size()], {name: [] for name in model.modalities}, []
    for i in range(0, len(mine), batch_size):
        inputs, label = to_device(dataset[mine[i : i + batch_size]], device)
        labels.append(label.cpu())
        for name in model.modalities:
            features[name].append(as_vector(model.encode(name, inputs[name])).cpu())
    parts = [part for part in gather((mine, features, labels)) if part[0]]
    order = torch.tensor([number for numbers, _, _ in parts for number in numbers]).argsort()
    vectors = {name: torch.cat([x for _, part, _ in parts for x in part[name]])[order] for name in model.modalities}
    return vectors, torch.cat([label for *_, labels in parts for label in labels])[order]


def purity(features, label, clusters):
    """Cluster features (M, D) by k-means, and return the share of clips whose label is the commonest of their cluster.

    Args:
        features: (M, D).
        label: (M,).
        clusters: number of clusters.

    Returns:
        The share, 0 to 1.
    """
    from sklearn.cluster import KMeans  # here, because only one method needs its 85 MB of memory

    features = features.double().numpy()
    low, high = features.min(axis=0), features.max(axis=0)
    scaled = 2 * (features - low) / np.where(high > low, high - low, 1) - 1
    cluster = KMeans(min(clusters, len(label)), n_init=10, random_state=0).fit_predict(scaled)
    return cluster_purity(label.numpy(), cluster)


def cluster_purity(label, cluster):
    """Return the purity of a clustering, 0 to 1, from label and cluster numbers, (M,) each."""
    return sum(np.bincount(label[cluster == each]).max() for each in np.unique(cluster)) / len(label)
