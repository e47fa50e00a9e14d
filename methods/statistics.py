"""Compute statistics of a batch for methods. `true_probability` and `batch_mean` cover all processes."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils.processes import size, total


def dot(x, y):
    """Return the inner product of two lists of tensors, summed in float64, or in float32 on MPS, which has no other."""
    dtype = torch.float32 if x[0].device.type == "mps" else torch.float64
    return torch.stack([(one * other).sum(dtype=dtype) for one, other in zip(x, y, strict=True)]).sum()


def ratio(x, y, smallest):
    """Return max(|x| / |y|, 1) for two lists of tensors, or 0 if |y| is not above `smallest`."""
    length = dot(y, y).sqrt()
    quotient = (dot(x, x).sqrt() / length).clamp(min=1)
    return torch.where(length > smallest, quotient, 0).to(y[0].dtype)


def certainty_weighted_mean(*logits):
    """Return the mean of several logits (B, C), weighted for each clip by the softmax of their negative entropies."""
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
def evaluating(module):
    """Let the BatchNorm layers of a module use their running statistics, unchanged, while the block lasts."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        layer.eval()
    yield
    for layer in layers:
        layer.train()
