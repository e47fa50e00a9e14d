"""Encoders that begin with weights of others: torchvision's of ImageNet, or those in a file."""

import os

import torch
from torchvision.models import get_model_weights

from models import ENCODERS
from utils.errors import InputError
from utils.training import checkpoint

CLASSIFIER = "fc."  # of torchvision's networks, which ours lack


def begin_with(model, weights, backbone):
    """Start a model's encoders from other weights than random ones; what is told of it is printed.

    Args:
        model: AVClassifier; changed in place.
        weights: "imagenet" for torchvision's published weights, else files, separated by commas: checkpoints of this
            project, whose encoders are taken, or state dicts of a network, which both encoders begin with.
        backbone: what the encoders are, a key of BACKBONES.

    Raises:
        InputError: weights cannot be had, or do not fit.
    """
    encoders = {name: net for name, net in model.named_children() if name in ENCODERS}
    for source in ["imagenet"] if weights == "imagenet" else weights.split(","):
        found = published(backbone) if source == "imagenet" else tensors_in(source)
        parts = {name: part_of(found, f"{name}.") for name in ENCODERS}
        if not any(parts.values()):
            parts = dict.fromkeys(
                ENCODERS, {key: value for key, value in found.items() if not key.startswith(CLASSIFIER)}
            )
        taken = [name for name in encoders if parts[name]]
        if not taken:
            raise InputError(f"--weights {source}: has no encoder that this model has; give another file")
        for name in taken:
            put_into(encoders[name], parts[name], source, backbone)
        print(f"--weights {source}: {' and '.join(ENCODERS[name] for name in taken)} encoder begin with it")


def part_of(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def published(backbone):
    """torchvision's weights of ImageNet, fetched on first use into PyTorch's folder for them.

    Raises:
        InputError: torchvision has none of this backbone, or they cannot be fetched or read.
    """
    try:
        weights = get_model_weights(backbone).IMAGENET1K_V1
    except ValueError:
        raise InputError(f"--weights imagenet: torchvision has none of --backbone {backbone}; give a file") from None
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(weights.url))
    if os.path.exists(path):
        return tensors_in(path)
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; another file than was published
        reason, name = checkpoint.first_line(error), os.path.basename(path)
        raise InputError(
            f"--weights imagenet: cannot be fetched ({reason}); put {name} into {folder}, or give a file"
        ) from None


def tensors_in(path):
    """The weights in a checkpoint of ours or of the authors' code, or in a state dict -> {name: tensor}.

    Raises:
        InputError: it is missing, damaged, would run code, or holds something else.
    """
    try:
        found = checkpoint.read(path)
    except InputError as error:
        raise InputError(f"--weights {error}") from None
    found = found.get("model", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise InputError(f"--weights {path}: no weights by name in it; give a checkpoint or a state dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def put_into(encoder, weights, source, backbone):
    """Give an encoder these weights; a first layer of colours is summed over them where the encoder has one channel.

    Sound is a picture without colours: on a grey one the sum answers as the whole layer does.

    Raises:
        InputError: one lacks, or is of another shape, or has no place; it is named.
    """
    own, weights = encoder.state_dict(), dict(weights)
    first = next(iter(own))
    if first in weights and weights[first].dim() == 4 and weights[first].shape[1] == 3 and own[first].shape[1] == 1:
        weights[first] = weights[first].sum(dim=1, keepdim=True)
    for name in [*own, *weights]:
        shapes = [tuple(part[name].shape) if name in part else "none" for part in (weights, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"--weights {source}: does not fit --backbone {backbone}: {name} is {shapes[0]} there, {shapes[1]} here"
            )
    encoder.load_state_dict(weights)
