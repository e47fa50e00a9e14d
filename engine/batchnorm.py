"""BatchNorm statistics that belong to the weights that are evaluated."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import InputError
from utils.processes import average, size

BATCHNORM_CLIPS = 256  # clips over which BatchNorm's statistics are averaged before an evaluation


def batches_kept(batch_size):
    """Return how many of an epoch's last batches are kept for `refresh_batchnorm`."""
    return -(-BATCHNORM_CLIPS // batch_size)


def check_batch_size(settings, loader):
    """Raise InputError if BatchNorm would find one value per channel: one image of up to 32 pixels per process."""
    if settings.backbone == "mlp" or settings.modality == "audio":  # no BatchNorm, or spectrograms, which are larger
        return
    if settings.image_size <= 32 and loader.sampler.size // size() * settings.num_frame == 1:
        raise InputError(
            f"--batch_size {settings.batch_size}: one clip leaves BatchNorm a single value with --image_size "
            f"{settings.image_size}; use a larger batch, or 33 pixels or more"
        )


@torch.no_grad()
def refresh_batchnorm(model, batches):
    """Set BatchNorm's running statistics to their plain average over `batches`, with the current weights.

    Those of frozen encoders stay. Running averages lag about ten steps behind the weights, which at the learning rates
    of early training costs tens of points of accuracy in evaluation ("precise BatchNorm", Wu and Johnson 2021, arXiv
    2105.07576, section 3).

    Args:
        model: AVClassifier; left in training mode, with its momenta as they were. Weights and gradients stay.
        batches: inputs of the model, {modality: tensor}, all of the same size. Several processes average theirs.
    """
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to say: a plain average of all batches
    for inputs in batches:
        model(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    average([statistics for layer in layers for statistics in (layer.running_mean, layer.running_var)])
