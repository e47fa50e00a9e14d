"""Encoders that start with given weights: torchvision's of ImageNet, or those in a file."""

import os
import re

import torch
from torchvision.models import get_model_weights

from models.fusion_modules import MMTMFusion_AUXI
from models.weights import first_line, is_state_dict, read, without_prefix
from utils.errors import InputError

CLASSIFIER = "fc."  # of torchvision's networks, which the encoders lack


def load_initial_weights(model, weights, backbone):
    """Start a model's encoders from given weights; prints which encoders have been loaded.

    With mmtm, an encoder's layer3 and layer4 are in the fusion module; they are loaded too.

    Args:
        model: AVClassifier; changed in place.
        weights: "imagenet" for torchvision's published weights, or files, separated by commas: checkpoints of this
            project, whose encoders are taken, or state dicts of a network, which every encoder starts with.
        backbone: architecture of the encoders, a key of BACKBONES.

    Raises:
        InputError: weights cannot be read or downloaded, or do not fit.
    """
    for source in ["imagenet"] if weights == "imagenet" else weights.split(","):
        found = published(backbone) if source == "imagenet" else tensors_in(source)
        parts = {name: network_in(found, name) for name in model.modalities}
        if not any(parts.values()) and not any(name.partition(".")[0].endswith("_net") for name in found):
            network = {key: value for key, value in found.items() if not key.startswith(CLASSIFIER)}
            parts = dict.fromkeys(model.modalities, network)
        loaded = [name for name, part in parts.items() if part]
        if not loaded:
            raise InputError(f"--weights {source}: has no encoder that this model has; give another file")
        for name in loaded:
            load_into(network_of(model, name), parts[name], source, backbone)
        print(f"--weights {source}: loaded into the {' and '.join(loaded)} encoder")


def network_in(tensors, name):
    """Return the tensors of a modality's network in a checkpoint, by torchvision's names; {} if it has none."""
    start = re.compile(rf"({name}_net|fusion_module\.(joint\.)?streams\.{name})\.")  # streams are mmtm's
    return {start.sub("", key, count=1): value for key, value in tensors.items() if start.match(key)}


def network_of(model, name):
    """Return the tensors of a modality's network in a model, by torchvision's names; they share its memory."""
    tensors = model.encoder(name).state_dict()
    for module in model.fusion_module.modules():
        if isinstance(module, MMTMFusion_AUXI):
            tensors |= module.streams[name].state_dict()
    return tensors


def published(backbone):
    """Return torchvision's weights of ImageNet, downloaded on first use into PyTorch's folder for them.

    Raises:
        InputError: torchvision has none for this backbone, or they cannot be downloaded or read.
    """
    try:
        weights = get_model_weights(backbone).IMAGENET1K_V1
    except ValueError:
        raise InputError(f"--weights imagenet: torchvision has none of --backbone {backbone}; give a file") from None
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(weights.url))
    if os.path.exists(path):
        try:
            return tensors_in(path)
        except InputError as error:
            reason = str(error).removeprefix("--weights ").partition(";")[0]
            raise InputError(f"--weights imagenet: {reason}; if it is half a download, remove it") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; a file other than the published one
        reason, name = first_line(error), os.path.basename(path)
        raise InputError(
            f"--weights imagenet: cannot be fetched ({reason}); put {name} into {folder}, or give a file"
        ) from None


def tensors_in(path):
    """Return the weights in a checkpoint or a state dict, {name: tensor}.

    Raises:
        InputError: the file is missing, damaged, would run code, or holds something else.
    """
    try:
        found = read(path)
    except InputError as error:
        raise InputError(f"--weights {error}") from None
    found = found.get("model", found) if isinstance(found, dict) else found
    if not is_state_dict(found):
        raise InputError(f"--weights {path}: no weights by name in it; give a checkpoint or a state dict")
    return without_prefix(found)


def load_into(own, weights, source, backbone):
    """Copy weights into a network's tensors; sum a first layer of three colours for a network of one channel.

    A spectrogram is an image without colours: for a grey image the summed layer answers as the whole layer does.

    Args:
        own: {name: tensor} of the network.
        weights: {name: tensor} to copy.

    Raises:
        InputError: a tensor is missing, has another shape, or has no place; the message names it.
    """
    weights, first = dict(weights), next(iter(own))
    if first in weights and weights[first].dim() == 4 and weights[first].shape[1] == 3 and own[first].shape[1] == 1:
        weights[first] = weights[first].sum(dim=1, keepdim=True)
    for name in [*own, *weights]:
        shapes = [tuple(part[name].shape) if name in part else "none" for part in (weights, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"--weights {source}: does not fit --backbone {backbone}: {name} is {shapes[0]} there, {shapes[1]} here"
            )
    for name, tensor in own.items():
        tensor.copy_(weights[name])
