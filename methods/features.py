"""Features of many clips, which some methods compute between two epochs; the same in every process."""

import numpy as np
import torch

from models.backbone import pooled
from utils.batches import to_device
from utils.processes import gather, rank, size
from utils.seeds import derived_seed


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


def as_vector(feature):
    """Return a feature as a vector (B, D): the maps of mmtm, where its encoders end, are averaged."""
    return feature if feature.dim() == 2 else pooled(feature)


@torch.no_grad()
def features_of(model, dataset, batch_size, device, numbers=None):
    """Compute the features of a dataset's clips, or of `numbers` in order, as vectors, shared between the processes.

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
            features[name].append(as_vector(model.encode(name, inputs[name])).cpu())
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
