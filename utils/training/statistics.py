"""Figures of gradients, of a batch or of clips, that training rules go by; the same in all of several processes."""

import numpy as np
import torch
import torch.nn.functional as F

from utils.training import distributed
from utils.training.device import to_device
from utils.training.seeds import derived_seed


def dot(x, y):
    """Inner product of two lists of tensors, summed in float64."""
    return torch.stack([(one * other).sum(dtype=torch.float64) for one, other in zip(x, y, strict=True)]).sum()


def ratio(x, y):
    """|x| / |y| of two lists of tensors, at least 1."""
    norms = dot(x, x).sqrt() / dot(y, y).sqrt().clamp(min=torch.finfo(y[0].dtype).tiny)
    return norms.clamp(min=1).to(y[0].dtype)


def by_certainty(*logits):
    """The mean of several logits (B, C), each weighted by softmax over them of minus its entropy -> (B, C)."""
    weights = torch.stack([-entropy(each.log_softmax(dim=1)) for each in logits]).softmax(dim=0)
    return (weights.unsqueeze(2) * torch.stack(logits)).sum(dim=0)


def entropy(log_p):
    """Of log-probabilities (B, C) -> (B,), in nats."""
    return -(log_p.exp() * log_p).sum(dim=1)


def log_likelihood(logits, label):
    """Log-probability of the true class: (B, C), (B,) -> (B,). No cross-entropy, those are the losses alone."""
    return F.log_softmax(logits, dim=1).gather(1, label.unsqueeze(1)).squeeze(1)


def batch_mean(model, values):
    """The mean over the clips (B, ...) of the whole batch, of which this process has its share."""
    return distributed.total(model.share * values.mean(dim=0))


def drawn_of_each_class(clips, part, fewest, seed):
    """Numbers of this part of the clips of every class, drawn by seed; `fewest` of them where there are so many."""
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
    """Features of a dataset's clips, or of `numbers` in order -> a (M, 512), v (M, 512), label (M,) on the CPU.

    The model is left in evaluation mode. Several processes share the work, and all get the whole.
    """
    model.eval()
    numbers, parts = range(len(dataset)) if numbers is None else numbers, []
    mine = list(numbers)[distributed.rank() :: distributed.size()]
    for i in range(0, len(mine), batch_size):
        spectrogram, frames, label = to_device(dataset[mine[i : i + batch_size]], device)
        parts.append((model.encode_audio(spectrogram).cpu(), model.encode_video(frames).cpu(), label.cpu()))
    everyones = distributed.everyones((mine, [torch.cat(each) for each in zip(*parts, strict=True)]))
    order = torch.tensor([number for some, _ in everyones for number in some]).argsort()
    return [torch.cat(each)[order] for each in zip(*(features for _, features in everyones if features), strict=True)]


def purity(features, label, clusters):
    """Share of clips (M, 512) whose label is their k-means cluster's commonest, 0 to 1."""
    from sklearn.cluster import KMeans  # a second to import

    features = features.double().numpy()
    low, high = features.min(axis=0), features.max(axis=0)
    scaled = 2 * (features - low) / np.where(high > low, high - low, 1) - 1
    found = KMeans(min(clusters, len(label)), n_init=10, random_state=0).fit_predict(scaled)
    return of_clusters(label.numpy(), found)


def of_clusters(label, cluster):
    """Purity of a clustering: labels and clusters by number, (M,) each."""
    return sum(np.bincount(label[cluster == each]).max() for each in np.unique(cluster)) / len(label)
