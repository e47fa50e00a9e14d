"""InfoReg (Huang et al., CVPR 2025, arXiv 2503.18595, eq. 7 to 16, Algorithm 1): regulate a fast, leading encoder.

    s_u = mean over the batch of log p_y of modality u's own logits
    Delta_u = mean of s_u - s_j over the modalities j with a smaller score, 0 for the smallest (eq. 9, 10)
    window of u in epoch t: (Tr_t-1 - Tr_t-2) / Tr_t-1 > K, Tr the epoch's mean of |gradient of encoder u|^2
    if Delta_u > 0, in the window: gradient of encoder u += exp(beta tanh(Delta_u)) (w - w_start)

w_start are the encoder's weights at the start of the epoch, so the first step of an epoch is that of joint training.
L_m trains the whole model. With --inforeg_unimodal 1 (InfoReg*) the unimodal losses do too, through separate heads.
In eq. 7, Tr comes from squared norms of single clips' gradients at the end of the epoch; ours comes from its batches.
Defaults are the paper's for CREMA-D and Kinetics-Sounds: beta 0.9, K 0.04. State: Tr of two epochs, and sums.

Eq. 8 as printed is a mean of -log p_y, with which the worse modality leads; the text and the code regulate the better
one. The published code has other factors, uses audio's Tr for both modalities, and stops in its first batch.
"""

import torch

from methods.base import Method, OwnHeads
from methods.joint import joint_step
from methods.joint_uni import unimodal_weights, weighted_step
from methods.statistics import batch_mean, log_likelihood


class InfoReg(Method):
    saved_attributes = "traces", "sums", "batches"

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
        """Return a list with True for each encoder that is in its window."""
        if len(self.traces) < 2:
            return [False] * len(model.modalities)
        pairs = zip(*self.traces, strict=True)
        return [now > 0 and (now - before) / now > self.settings.inforeg_k for before, now in pairs]


def leads(scores):
    """Return the mean lead of each score over the smaller ones: (n,) -> (n,), 0 for the smallest."""
    ahead = (scores.unsqueeze(1) - scores.unsqueeze(0)).clamp(min=0)
    return ahead.sum(dim=1) / (ahead > 0).sum(dim=1).clamp(min=1)
