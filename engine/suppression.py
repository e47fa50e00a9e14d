"""Measure how much fusion suppresses the gradient of each encoder (paper section 3.1, figures 1(c) and 3).

With fused logits sum over u of W_u z_u, plus b, and their softmax p, for a clip of class y and the encoder of u:

    s_k = exp(sum over the others j of (W_j[k] - W_j[y]) z_j)             eq. 5 and 6, for a wrong class k; without b
    ratio = (1 - p_y of all modalities) / (1 - p_y of u alone)            eq. 4 over eq. 7; u alone has all of b

In joint training, s below 1 means that the other modalities shrink the gradient of u. Both values are means over the
training clips, in evaluation mode at the end of an epoch; s is also a mean over the wrong classes. The third value is
the size of each encoder's gradient: `entry_sizes` in engine/gradients.py.
"""

import math

import torch

from engine.evaluation import gather_predictions
from methods.base import encode_all
from utils.batches import to_device
from utils.processes import size

PREFIX = "suppression_"  # of the names in log.jsonl


@torch.inference_mode()
def measure_suppression(model, loader, device):
    """Return the means of s and of the ratio for each modality; {} for a model of one modality.

    Args:
        model: AVClassifier whose fused logits are a sum of one term per modality; afterwards in evaluation mode.
        loader: loader of the training clips without augmentation. With several processes, each one reads its part.
        device: device of the model.

    Returns:
        {"suppression_s_<modality>": .., "suppression_ratio_<modality>": ..}.
    """
    if len(model.modalities) == 1:
        return {}
    model.eval()
    parts = []
    for batch in loader:
        inputs, label = to_device(batch, device)
        parts.append(suppression(model.fusion_module, encode_all(model, inputs), label))
    values = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    values = gather_predictions(values, loader.sampler) if size() > 1 else values
    return {PREFIX + name: value.mean().item() for name, value in values.items()}


def suppression(fusion, features, label):
    """Return s, averaged over the wrong classes, and the ratio, for every clip and modality.

    Args:
        fusion: fusion module whose `fuse` is a sum of one term per modality.
        features: {modality: (B, D)}.
        label: (B,).

    Returns:
        {"s_<modality>": (B,), "ratio_<modality>": (B,)} in float64, on the CPU.
    """
    fused, true, values = fusion.fuse(features).cpu().double(), label.cpu().unsqueeze(1), {}
    for name, feature in features.items():
        alone = fusion.alone_with_zeros(name, feature).cpu().double()
        others = fused - alone  # (B, C): terms of the other modalities, without bias
        s = (others - others.gather(1, true)).exp().scatter(1, true, 0)
        values[f"s_{name}"] = s.sum(dim=1) / (s.shape[1] - 1)
        values[f"ratio_{name}"] = (log_wrong(fused, true) - log_wrong(alone, true)).exp()
    return values


def log_wrong(logits, true):
    """Return log(1 - p_y), accurate also where p_y rounds to 1: logits (B, C), true classes (B, 1) -> (B,)."""
    return logits.scatter(1, true, -math.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)
