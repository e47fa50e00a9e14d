"""InfoReg (Huang et al., CVPR 2025, arXiv 2503.18595, eq. 7 to 16, Algorithm 1): regulate who learns fast and leads.

    s_u = mean over the batch of log p_y of modality u's own logits
    Delta_u = mean over the modalities with a smaller score of s_u - s_j, 0 for the smallest (eq. 9, 10)
    window of u in epoch t: (Tr_t-1 - Tr_t-2) / Tr_t-1 > K, Tr the epoch's mean of |gradient of encoder u|^2
    where Delta_u > 0, in the window: gradient of encoder u += exp(beta tanh(Delta_u)) (w - w_start)

w_start are the encoder's weights as the epoch began, so that the first step is that of joint training. L_m reaches
everything; with --inforeg_unimodal 1 (InfoReg*) the unimodal losses too, by heads of their own.
Eq. 7 has Tr from squared norms of single clips' gradients at the epoch's end; ours are those of the epoch's batches.
Defaults of the paper for CREMA-D and Kinetics-Sounds: beta 0.9, K 0.04. Saved: Tr of two epochs, sums.

Eq. 8 as printed is a mean of -log p_y, with which the worse modality would lead; text and code regulate the better.
The published code has factors of its own, takes audio's Tr for both, and stops in its first batch.
"""

import torch

from methods.base import Method, OwnHeads
from methods.joint import joint_step
from methods.joint_uni import unimodal_weights, weighted_step
from methods.statistics import batch_mean, log_likelihood


class InfoReg(Method):
    remembers = "traces", "sums", "batches"

    def __init__(self, settings, model):
        super().__init__(settings, model)
        if settings.inforeg_unimodal:
            model.fusion_module = OwnHeads(model)
        self.traces = []  # Tr of the last two epochs, n numbers each
        self.sums, self.batches = torch.zeros(len(model.modalities)), 0  # of |gradient|^2 in the current epoch

    def begin_epoch(self, epoch, model, loaders, device):
        if self.batches:
            self.traces = [*self.traces, (self.sums / self.batches).tolist()][-2:]
        self.sums, self.batches = torch.zeros(len(model.modalities)), 0
        self.start = {name: [p.detach().clone() for p in model.encoder_parameters(name)] for name in model.modalities}

    def step(self, model, inputs, label):
        if weight := self.settings.inforeg_unimodal:
            return weighted_step(model, inputs, label, unimodal_weights(model, weight))
        return joint_step(model, inputs, label)

    @torch.no_grad()
    def adjust_gradients(self, model, outputs, label):
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in model.encoder_parameters(name)]) for name in model.modalities
        ]
        self.sums = self.sums.to(norms[0]) + torch.stack(norms) ** 2
        self.batches += 1
        shared = model.fusion_module.shared_bias
        scores = torch.stack(
            [batch_mean(log_likelihood(outputs[name].logits - shared, label)) for name in model.modalities]
        )
        for name, lead, learns in zip(model.modalities, leads(scores), self.windows(model), strict=True):
            if learns:
                strength = torch.where(lead > 0, torch.exp(self.settings.inforeg_beta * torch.tanh(lead)), 0)
                for parameter, before in zip(model.encoder_parameters(name), self.start[name], strict=True):
                    parameter.grad += strength * (parameter - before.to(parameter))

    def windows(self, model):
        """Return for each encoder whether it is in its window."""
        if len(self.traces) < 2:
            return [False] * len(model.modalities)
        return [(now - before) / now > self.settings.inforeg_k for before, now in zip(*self.traces, strict=True)]


def leads(scores):
    """Return how far each modality is ahead of those with a smaller score, on average: (n,) -> (n,), 0 for the last."""
    ahead = (scores.unsqueeze(1) - scores.unsqueeze(0)).clamp(min=0)
    return ahead.sum(dim=1) / (ahead > 0).sum(dim=1).clamp(min=1)
