"""Load initial weights into the encoders: ImageNet weights from torchvision, or weights from files."""

import os
import re

import torch
from torchvision.models import get_model_weights

from models.fusion_modules import MMTMFusion_AUXI
from models.weights import first_line, is_state_dict, read, without_prefix
from utils.errors import InputError

CLASSIFIER = "fc."  # prefix of the classifier in torchvision's networks; the encoders have none


def load_initial_weights(model, weights, backbone):
    """Load initial weights into a model's encoders, and print which encoders were loaded.

    With mmtm, layer3 and layer4 of an encoder are in the fusion module; they are loaded too.

    Args:
        model: AVClassifier, changed in place.
        weights: "imagenet" for the weights that torchvision publishes, or files separated by commas. A file is a
            checkpoint of this project, whose encoders are loaded, or the state dict of one network, which is loaded
            into every encoder.
        backbone: architecture of the encoders, a key of BACKBONES.

    Raises:
        InputError: the weights cannot be read or downloaded, or do not fit.
    """
    for source in ["imagenet"] if weights == "imagenet" else weights.split(","):
        found = imagenet_weights(backbone) if source == "imagenet" else tensors_in(source)
        parts = {name: network_in(found, name) for name in model.modalities}
        if not any(parts.values()) and not any(name.partition(".")[0].endswith("_net") for name in found):
            network = {key: value for key, value in found.items() if not key.startswith(CLASSIFIER)}
            parts = dict.fromkeys(model.modalities, network)
        loaded = [name for name, part in parts.items() if part]
        if not loaded:
            raise InputError(f"--weights {source}: contains no weights for an encoder of this model; use another file")
        for name in loaded:
            load_into(network_of(model, name), parts[name], source, backbone)
        print(f"--weights {source}: loaded into the {' and '.join(loaded)} encoder")


def network_in(tensors, name):
    """Return the tensors of a modality's network in a checkpoint, by torchvision's names; {} if there are none."""
    prefix = re.compile(rf"({name}_net|fusion_module\.(joint\.)?streams\.{name})\.")  # mmtm has streams
    return {prefix.sub("", key, count=1): value for key, value in tensors.items() if prefix.match(key)}


def network_of(model, name):
    """Return the tensors of a modality's network in a model, by torchvision's names; they share the model's memory."""
    tensors = model.encoder(name).state_dict()
    for module in model.fusion_module.modules():
        if isinstance(module, MMTMFusion_AUXI):
            tensors |= module.streams[name].state_dict()
    return tensors


def imagenet_weights(backbone):
    """Return torchvision's ImageNet weights; on first use they are downloaded into PyTorch's cache.

    Raises:
        InputError: torchvision has no weights for this backbone, or they cannot be downloaded or read.
    """
    try:
        weights = get_model_weights(backbone).IMAGENET1K_V1
    except ValueError:
        raise InputError(
            f"--weights imagenet: torchvision has no weights for --backbone {backbone}; use a file"
        ) from None
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(weights.url))
    if os.path.exists(path):
        try:
            return tensors_in(path)
        except InputError as error:
            reason = str(error).removeprefix("--weights ").partition(";")[0]
            raise InputError(f"--weights imagenet: {reason}; if the download is incomplete, remove the file") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, or a file that is not the published one
        reason, name = first_line(error), os.path.basename(path)
        raise InputError(
            f"--weights imagenet: cannot be downloaded ({reason}); put {name} into {folder}, or use a file"
        ) from None


def tensors_in(path):
    """Return the weights in a file with a checkpoint or a state dict, {name: tensor}.

    Raises:
        InputError: the file is missing or damaged, would run code, or contains something else.
    """
    try:
        found = read(path)
    except InputError as error:
        raise InputError(f"--weights {error}") from None
    found = found.get("model", found) if isinstance(found, dict) else found
    if not is_state_dict(found):
        raise InputError(f"--weights {path}: contains no named weights; use a checkpoint or a state dict")
    return without_prefix(found)


def load_into(own, weights, source, backbone):
    """Copy weights into a network's tensors.

    If the network has one input channel, the weights of the first layer are summed over its three colours. For a grey
    image, the summed layer has the same output as the original layer.

    Args:
        own: {name: tensor} of the network, changed in place.
        weights: {name: tensor} to copy.
        source: name of the weights, for error messages.
        backbone: architecture of the network, for error messages.

    Raises:
        InputError: a tensor is missing on one side or has another shape; the message names it.
    """
    weights, first = dict(weights), next(iter(own))
    if first in weights and weights[first].dim() == 4 and weights[first].shape[1] == 3 and own[first].shape[1] == 1:
        weights[first] = weights[first].sum(dim=1, keepdim=True)
    for name in [*own, *weights]:
        shapes = [tuple(part[name].shape) if name in part else "none" for part in (weights, own)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"--weights {source}: does not fit --backbone {backbone}: {name} has shape {shapes[0]} "
                f"in the file and {shapes[1]} in the model; use other weights or another backbone"
            )
    for name, tensor in own.items():
        tensor.copy_(weights[name])
