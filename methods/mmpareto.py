"""MMPareto (Wei and Hu, ICML 2024, arXiv 2405.17730): multimodal and unimodal gradients that do not hinder each other.

    of each encoder, as whole vectors: g_m = dL_m, g_u = dL_u; where cos(g_m, g_u) > 0: c = 1/2, else
    c = argmin |c g_m + (1 - c) g_u| = (|g_u|^2 - g_m.g_u) / |g_m - g_u|^2
    h = 2 c g_m + 2 (1 - c) g_u;  gradient = gamma max(1, |g_m + g_u| / |h|) h

Heads, each unimodal loss having a linear one of its own, get the plain sum of the losses. Nothing is saved.
Defaults, of the published code for CREMA-D: gamma 1.5, which the norm's limit of 40 may hide. That code rescales every
tensor of an encoder apart, which bends h: `--mmpareto_rescale tensor`.
"""

import torch
import torch.nn.functional as F

from methods.base import Method, OwnHeads
from utils.training import distributed
from utils.training.statistics import dot, ratio


class MMPareto(Method):
    linear = False

    def __init__(self, args, model):
        super().__init__(args, model)
        model.fusion_module = OwnHeads(model)

    def step(self, model, spectrogram, frames, label):
        bare, fusion = distributed.original(model), model.fusion_module
        features = bare.encode_audio(spectrogram), bare.encode_video(frames)
        border = [feature.detach().requires_grad_() for feature in features]
        loss = F.cross_entropy(fusion.fuse(*border), label)
        loss.backward()
        losses_u = []
        for encoder, feature, copy, alone in zip(
            (bare.audio_net, bare.visual_net), features, border, (fusion.audio_alone, fusion.visual_alone), strict=True
        ):
            of_joint, copy.grad = copy.grad, None
            loss_u = F.cross_entropy(alone(copy), label)
            loss_u.backward()
            parameters = list(encoder.parameters())
            g_m = torch.autograd.grad(feature, parameters, of_joint, retain_graph=True)
            g_u = torch.autograd.grad(feature, parameters, copy.grad)
            for gradient in (*g_m, *g_u):
                distributed.total(gradient.mul_(model.share))
            for parameter, gradient in zip(parameters, self.combined(g_m, g_u), strict=True):
                parameter.grad = gradient
            losses_u.append(loss_u.detach())
        return loss.detach(), *losses_u

    def combined(self, g_m, g_u):
        """The gradient of an encoder: lists of tensors, one of its parameter's shape each -> such a list."""
        inner, square_m, square_u = dot(g_m, g_u), dot(g_m, g_m), dot(g_u, g_u)
        c = (square_u - inner) / (square_m + square_u - 2 * inner)
        c = torch.where(inner > 0, 0.5, c).to(g_m[0].dtype)
        h = [2 * c * m + 2 * (1 - c) * u for m, u in zip(g_m, g_u, strict=True)]
        plain = [m + u for m, u in zip(g_m, g_u, strict=True)]
        if self.args.mmpareto_rescale == "tensor":
            rescale = [ratio([p], [x]) for p, x in zip(plain, h, strict=True)]
        else:
            rescale = [ratio(plain, h)] * len(h)
        return [self.args.mmpareto_gamma * each * x for each, x in zip(rescale, h, strict=True)]
