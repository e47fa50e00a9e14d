"""Build the model, the method and the optimiser from the settings."""

import torch

from dataset import DATASETS
from engine.device import compile_when_run
from methods import build_method
from models.basic_model import AVClassifier
from models.pretrained import load_initial_weights
from utils.errors import InputError
from utils.processes import first_process


def build_model(settings):
    """Return the model and the method that the settings name, with random weights: (AVClassifier, Method).

    Weights are drawn from PyTorch's generator in this order: encoders, fusion module, heads of the method.

    Raises:
        InputError: the fusion module does not support this number of modalities or this backbone.
    """
    source, fusion = DATASETS[settings.dataset](), settings.fusion_method
    names = fusion, settings.modality, settings.backbone, settings.alone
    try:
        model = AVClassifier(source.outputs(settings), *names, source.inputs)
    except ValueError as error:
        raise InputError(f"--fusion_method {fusion}: {error}; use concat, sum or mixer") from None
    return model, build_method(settings, model)


def build(settings, device):
    """Return the model and the method at the start of a run with these settings: (AVClassifier, Method).

    Raises:
        InputError: a run or a file of weights that the settings name is missing or does not fit.
    """
    torch.manual_seed(settings.random_seed)
    model, method = build_model(settings)
    with first_process():  # only one process reports an error
        if settings.weights:
            load_initial_weights(model, settings.weights, settings.backbone)
        method.prepare(model)
    model.frozen = [name for name in model.modalities if settings.freeze in (name, "both")]
    model.amp = settings.amp == "bf16"
    model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU
    if settings.compile:
        compile_when_run([model.encoder(name) for name in model.modalities], device)
    return model, method


def build_optimizer(model, settings):
    """Return the optimiser that --optimizer names and its learning rate schedule, as in the authors' code.

    sgd has momentum 0.9, weight decay 1e-4, and a learning rate that decays at --lr_decay_step. Adam is AdamW with
    weight decay 0.01, AdaGrad has no weight decay; both have a constant learning rate.
    """
    rate, steps = settings.learning_rate, []
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
        steps = settings.lr_decay_step
    elif settings.optimizer == "AdaGrad":
        optimizer = torch.optim.Adagrad(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, settings.lr_decay_ratio)
