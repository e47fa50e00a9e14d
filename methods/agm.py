"""Adaptive gradient modulation (Li et al., ICCV 2023, arXiv 2308.07686), by each modality's Shapley value.

    f(K) = logits with the modalities outside K masked (zeros), f of none is 0; n modalities
    m_u = sum over K without u of |K|! (n - |K| - 1)! / n! (f(K + u) - f(K)); two: m_a = (f(av) + f(a) - f(v)) / 2
    s_u = mean of -log p_y of m_u; r_u = exp(n / (n - 1) (mean s - s_u)), tau_u the same of the means of s so far
    backward of m_u with kappa_u dL_m/df(all), kappa_u = exp(alpha min(tau_u - r_u, 10))

A modality that leads more than on average has r > tau and kappa < 1. The modulated gradient of L_m reaches the whole
model. The unimodal losses are those of m_u; they are measured only. State: the means and the number of batches, which
are not reset between epochs.
The paper's text was not found. The rule, its sign and its form for three modalities are from the published code, and
so are the defaults: alpha 1, epochs 0 to 20, cap 10 (its file for CREMA-D). The code's README trains with learning rate
1e-4, batch size 64 and, in a line for AV-MNIST, alpha 2.5. kappa can reach e^(10 alpha); the code clips all gradients
to a norm of 1 if an entry of the head's gradient is above 1: `--agm_clip`. For masked logits, the code encodes the
whole batch again, with BatchNorm in evaluation mode: `--agm_mask passes`. By default, ours uses the features of f(all)
and those of one masked clip. The BatchNorm layers of mmtm are in evaluation mode too, in every f(K) except f(all).
"""

import math
from contextlib import ExitStack
from itertools import combinations

import torch

from methods.base import Method, encode_all, score
from methods.statistics import batch_mean, evaluating, log_likelihood


class AGM(Method):
    saved_attributes = "means", "batches"

    def __init__(self, settings, model):
        super().__init__(settings, model)
        self.means, self.batches = torch.zeros(len(model.modalities)), 0  # of s_u
        self.linear = not settings.agm_clip

    def step(self, model, inputs, label):
        features = present = encode_all(model, inputs)
        everything, logits = frozenset(model.modalities), {frozenset(): 0}
        logits[everything] = model.fusion_module.fuse(features)
        with ExitStack() as stack:  # after f(all), which alone updates BatchNorm's statistics
            for module in (model.fusion_module, *map(model.encoder, model.modalities)):
                stack.enter_context(evaluating(module))
            zeros = {name: torch.zeros_like(x[:1]) for name, x in inputs.items()}
            masked = {name: x.expand_as(features[name]) for name, x in encode_all(model, zeros).items()}
            if self.settings.agm_mask == "passes":
                present = encode_all(model, inputs)
            for subset in subsets(everything)[1:-1]:
                logits[subset] = model.fusion_module.fuse(masked | {name: present[name] for name in subset})
        shares = {name: shapley(name, logits) for name in model.modalities}
        fused = score(logits[everything], label)
        (gradient,) = torch.autograd.grad(fused.loss, fused.logits, retain_graph=True)
        kappas = self.coefficients(list(shares.values()), label)
        torch.autograd.backward(list(shares.values()), [kappa * gradient for kappa in kappas])
        with torch.no_grad():
            return {"fused": fused} | {name: score(each, label) for name, each in shares.items()}

    @torch.no_grad()
    def adjust_gradients(self, model, outputs, label):
        if not self.settings.agm_clip:
            return
        largest = torch.stack([p.grad.abs().max() for p in model.fusion_module.parameters()]).max()
        frozen = {p for name in model.frozen for p in model.encoder_parameters(name)}
        gradients = [p.grad for p in model.parameters() if p.grad is not None and p not in frozen]
        norm = torch.nn.utils.get_total_norm(gradients)
        factor = torch.where(largest > 1, 1 / norm, 1)
        for gradient in gradients:
            gradient *= factor

    @torch.no_grad()
    def coefficients(self, shares, label):
        """Return kappa of every modality, (n,), and add the scores of the batch to the means."""
        floor = math.log(1e-8)
        scores = torch.stack([batch_mean(-log_likelihood(logits, label).clamp(min=floor)) for logits in shares])
        means, n = self.means.to(scores), len(shares)
        r, tau = (torch.exp(n / (n - 1) * (values.mean() - values)) for values in (scores, means))
        self.means, self.batches = (means * self.batches + scores) / (self.batches + 1), self.batches + 1
        if self.epoch > self.settings.agm_ends:
            return torch.ones_like(scores)
        return torch.exp(self.settings.agm_alpha * (tau - r).clamp(max=10))


def subsets(names):
    """Return all subsets of a set, smaller ones first."""
    return [frozenset(subset) for size in range(len(names) + 1) for subset in combinations(sorted(names), size)]


def shapley(name, logits):
    """Return a modality's Shapley value (B, C) from the logits of every subset, {subset: (B, C)}."""
    n, value = max(map(len, logits)), 0
    for subset in logits:
        if name not in subset:
            weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1) / math.factorial(n)
            value = value + weight * (logits[subset | {name}] - logits[subset])
    return value
