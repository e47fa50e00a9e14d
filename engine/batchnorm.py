"""Compute BatchNorm's running statistics with the weights that are evaluated."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import InputError
from utils.processes import average, size

BATCHNORM_CLIPS = 256  # clips over which BatchNorm's statistics are averaged before an evaluation


def batches_to_refresh(batch_size):
    """Return how many of the last batches of an epoch `refresh_batchnorm` needs."""
    return -(-BATCHNORM_CLIPS // batch_size)


def check_batch_size(settings, loader):
    """Reject batches of one small image per process.

    BatchNorm cannot normalise a single value per channel, which is all that an image of up to 32 pixels has in layer4.

    Raises:
        InputError: the batches are too small.
    """
    if settings.backbone == "mlp" or settings.modality == "audio":  # the MLP has no BatchNorm; spectrograms are larger
        return
    if settings.image_size <= 32 and loader.sampler.size // size() * settings.num_frame == 1:
        raise InputError(
            f"--batch_size {settings.batch_size}: one clip leaves BatchNorm a single value with --image_size "
            f"{settings.image_size}; use a larger batch, or 33 pixels or more"
        )


@torch.no_grad()
def refresh_batchnorm(model, batches):
    """Set BatchNorm's running statistics to their plain average over `batches`, with the current weights.

    The statistics of frozen encoders stay unchanged. Running averages lag about ten steps behind the weights. At the
    learning rates of early training this lag costs tens of points of accuracy in evaluation ("precise BatchNorm", Wu
    and Johnson 2021, arXiv 2105.07576, section 3).

    Args:
        model: AVClassifier; afterwards in training mode, with unchanged weights, gradients and BatchNorm momenta.
        batches: inputs of the model, {modality: tensor}, all of the same size. Statistics are averaged over processes.
    """
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # in PyTorch, None means a plain average over all batches
    for inputs in batches:
        model(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    average([statistics for layer in layers for statistics in (layer.running_mean, layer.running_var)])
