"""MMPareto (Wei and Hu, ICML 2024, arXiv 2405.17730): combine multimodal and unimodal gradients without conflict.

    for each encoder, as one vector: g_m = dL_m, g_u = dL_u; if cos(g_m, g_u) >= 0: c = 1/2, else (eq. 5)
    c = argmin |c g_m + (1 - c) g_u| = (|g_u|^2 - g_m.g_u) / |g_m - g_u|^2
    h = 2 c g_m + 2 (1 - c) g_u;  gradient = gamma |g_m + g_u| / |h| h, 0 if h is 0 (Pareto stationary)

Eq. 1, 5 and 16 and Algorithm 1, for each encoder separately. Each unimodal loss has a separate linear head. The heads
get the plain sum of the losses. No state is saved. Default: gamma 1.5; clipping to a norm of 40 can cancel its effect.
The published code has cos > 0. It rescales every tensor of an encoder separately, which changes the direction of h:
`--mmpareto_rescale tensor`.
"""

import torch

from methods.base import Method, OwnHeads, encode_all, score
from methods.statistics import dot, ratio
from utils.processes import average

SMALLEST = 1e-6  # h counts as 0 if its length, relative to the gradients, is below this


class MMPareto(Method):
    linear = False

    def __init__(self, settings, model):
        super().__init__(settings, model)
        model.fusion_module = OwnHeads(model)

    def step(self, model, inputs, label):
        fusion, features = model.fusion_module, encode_all(model, inputs)
        border = {name: feature.detach().requires_grad_() for name, feature in features.items()}
        outputs = {"fused": score(fusion.fuse(border), label)}
        outputs["fused"].loss.backward()
        for name, feature in features.items():
            joint_grad, border[name].grad = border[name].grad, None
            outputs[name] = score(fusion.alone(name, border[name]), label)
            outputs[name].loss.backward()
            parameters = model.encoder_parameters(name)
            g_m = torch.autograd.grad(feature, parameters, joint_grad, retain_graph=True)
            g_u = torch.autograd.grad(feature, parameters, border[name].grad)
            average([*g_m, *g_u])  # the method is not linear, so it needs the gradients of the whole batch
            for parameter, gradient in zip(parameters, self.combine(g_m, g_u), strict=True):
                parameter.grad = gradient
        return outputs

    def combine(self, g_m, g_u):
        """Return the gradient of an encoder from those of its two losses, all lists of tensors of the same shapes."""
        inner, square_m, square_u = dot(g_m, g_u), dot(g_m, g_m), dot(g_u, g_u)
        c = (square_u - inner) / (square_m + square_u - 2 * inner)
        c = torch.where(inner >= 0, 0.5, c).to(g_m[0].dtype)
        h = [2 * c * m + 2 * (1 - c) * u for m, u in zip(g_m, g_u, strict=True)]
        plain = [m + u for m, u in zip(g_m, g_u, strict=True)]
        if self.settings.mmpareto_rescale == "tensor":
            lengths = [(dot([m], [m]) + dot([u], [u])).sqrt() for m, u in zip(g_m, g_u, strict=True)]
            rescale = [ratio([p], [x], SMALLEST * length) for p, x, length in zip(plain, h, lengths, strict=True)]
        else:
            rescale = [ratio(plain, h, SMALLEST * (square_m + square_u).sqrt())] * len(h)
        return [self.settings.mmpareto_gamma * each * x for each, x in zip(rescale, h, strict=True)]
