"""BatchNorm statistics that belong to the weights that are evaluated."""

from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import InputError
from utils.training import distributed


def refuse_single_values(args, dataset):
    """Raise InputError if BatchNorm would find one value per channel: a clip alone, of pictures up to 32 pixels."""
    last = (len(dataset) - 1) % args.batch_size + 1
    pictures = max(last // distributed.size(), 1) * dataset.decoder.num_frame
    if args.modality != "audio" and args.image_size <= 32 and pictures == 1:
        raise InputError(
            f"--image_size {args.image_size}: a batch of one clip, the last one of {len(dataset)}, leaves BatchNorm a "
            f"single value; take 33 pixels or more, or another --batch_size"
        )


@torch.no_grad()
def refresh_batchnorm(model, batches):
    """Set BatchNorm's running statistics to their plain average over `batches`, with the weights of now.

    Those of frozen encoders stay.

    Running averages lag about ten steps behind the weights, which at the learning rates of early training costs tens
    of points of accuracy in evaluation ("precise BatchNorm", Wu and Johnson 2021, arXiv 2105.07576, section 3).

    Args:
        model: AVClassifier; left in training mode, with its momenta as they were. Weights and gradients stay.
        batches: pairs of spectrogram (B, 1, F, T) and frames (B, 3, N, H, W) of equal B; with none the running
            statistics stay. Several processes average theirs.
    """
    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers if batches else ():
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's way to say: a plain average of all batches
    for spectrogram, frames in batches:
        model(spectrogram, frames)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        for statistics in (layer.running_mean, layer.running_var):
            distributed.total(statistics).div_(distributed.size())


@contextmanager
def evaluating(encoder):
    """A block in which an encoder's BatchNorm evaluates; the rest of it, and the model's own mode, stay."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        layer.eval()
    yield
    for layer in layers:
        layer.train()
