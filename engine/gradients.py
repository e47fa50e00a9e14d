"""What is done with the gradients between a method's backward passes and the optimiser's step."""

import torch

from utils.processes import average

CLIP_NORM = 40  # of all gradients together, as in the authors' code


def average_gradients(model):
    """Average the gradients of all parameters over the processes, by one all-reduce; with one process do nothing."""
    average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def modules_of(model):
    """Return {name in the log: module} of the fusion module and each encoder."""
    return {"fusion": model.fusion_module} | {name: model.encoder(name) for name in model.modalities}


def gradient_norms(model):
    """Return the L2 norm of the gradient in each module, (modules,), without waiting for the device."""
    gradients = [[p.grad for p in module.parameters() if p.grad is not None] for module in modules_of(model).values()]
    device = next(model.parameters()).device
    return torch.stack([torch.nn.utils.get_total_norm(some).to(device) for some in gradients])


def entry_sizes(model):
    """Return for each encoder the sum over its parameters of the mean absolute entry of the gradient, (modalities,)."""
    none = torch.zeros((), device=next(model.parameters()).device)
    gradients = [[p.grad for p in model.encoder_parameters(name) if p.grad is not None] for name in model.modalities]
    return torch.stack([sum((gradient.abs().mean() for gradient in some), none) for some in gradients])


def drop_frozen_gradients(model):
    """Drop the gradients of frozen encoders: neither clipped with the others nor changed by weight decay."""
    for name in model.frozen:
        for parameter in model.encoder_parameters(name):
            parameter.grad = None


def clip_gradients(model):
    """Clip all gradients together to CLIP_NORM; drop those of frozen encoders.

    Returns:
        (modules + 1,): the norms before clipping, of each module and of all together.
    """
    drop_frozen_gradients(model)
    norms = gradient_norms(model)
    return torch.cat([norms, torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM).view(1)])
