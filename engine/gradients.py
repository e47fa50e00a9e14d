"""Average, measure and clip gradients between the backward passes and the optimiser's step."""

import torch

from utils.processes import average

CLIP_NORM = 40  # limit for the norm of all gradients together, as in the authors' code


def average_gradients(model):
    """Average the gradients of all parameters over the processes by one all-reduce. One process has nothing to do."""
    average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def modules_of(model):
    """Return the fusion module and the encoders, {name in the log: module}."""
    return {"fusion": model.fusion_module} | {name: model.encoder(name) for name in model.modalities}


def gradient_norms(model):
    """Return the L2 norm of the gradient in each module, (modules,), without waiting for the device."""
    lists = [[p.grad for p in module.parameters() if p.grad is not None] for module in modules_of(model).values()]
    device = next(model.parameters()).device
    return torch.stack([torch.nn.utils.get_total_norm(gradients).to(device) for gradients in lists])


def entry_sizes(model):
    """Return the size of each encoder's gradient, (modalities,): mean absolute entries, summed over parameters."""
    zero = torch.zeros((), device=next(model.parameters()).device)
    lists = [[p.grad for p in model.encoder_parameters(name) if p.grad is not None] for name in model.modalities]
    return torch.stack([sum((gradient.abs().mean() for gradient in gradients), zero) for gradients in lists])


def drop_frozen_gradients(model):
    """Set the gradients of frozen encoders to None, so that clipping and weight decay ignore these encoders."""
    for name in model.frozen:
        for parameter in model.encoder_parameters(name):
            parameter.grad = None


def clip_gradients(model):
    """Drop the gradients of frozen encoders, and clip the norm of all other gradients together to CLIP_NORM.

    Returns:
        (modules + 1,): the norms before clipping, of each module and of all modules together.
    """
    drop_frozen_gradients(model)
    norms = gradient_norms(model)
    return torch.cat([norms, torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM).view(1)])
