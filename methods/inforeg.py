"""InfoReg (Huang et al., CVPR 2025, arXiv 2503.18595, eq. 7 to 16, Algorithm 1): regulate who learns fast and leads.

    s_u = mean over the batch of log p_y of modality u's own logits; Delta_u = s_u - s_other
    window of u in epoch t: (Tr_t-1 - Tr_t-2) / Tr_t-1 > K, Tr the epoch's mean of |gradient of encoder u|^2
    where Delta_u > 0, in the window: gradient of encoder u += exp(beta tanh(Delta_u)) (w - w_start)

w_start are the encoder's weights as the epoch began, so that the first step is that of joint training. L_m reaches
everything; with --inforeg_unimodal 1 (InfoReg*) L_a and L_v too, by heads of their own.
Defaults of the paper for CREMA-D and Kinetics-Sounds: beta 0.9, K 0.04. Saved: w_start, Tr of two epochs, sums of this.

Eq. 8 as printed is a mean of -log p_y, with which the worse modality would lead; text and code regulate the better.
The published code has factors of its own, takes audio's Tr for both, and stops in its first batch.
"""

import torch

from methods.base import Method, OwnHeads
from methods.joint import joint_step
from methods.joint_uni import weighted_step
from utils.training.statistics import batch_mean, log_likelihood


class InfoReg(Method):
    remembers = "start", "traces", "sums", "steps"

    def __init__(self, args, model):
        super().__init__(args, model)
        if args.inforeg_unimodal:
            model.fusion_module = OwnHeads(model)
        self.start, self.traces, self.sums, self.steps = None, [], torch.zeros(2), 0  # sums of |gradient|^2, (2,)

    def begin_epoch(self, epoch, model, loaders, device):
        if self.steps:
            self.traces = [*self.traces, (self.sums / self.steps).tolist()][-2:]
        self.start = [[p.detach().clone() for p in encoder.parameters()] for encoder in encoders(model)]
        self.sums, self.steps = torch.zeros(2), 0

    def step(self, model, *clips):
        if weight := self.args.inforeg_unimodal:
            return weighted_step(model, *clips, (1, weight, weight), self.regulate)
        return joint_step(model, *clips, self.regulate)

    def regulate(self, model, logits_a, logits_v, label):
        """Take in both encoders' gradients, then change them in place; arguments as OGM.modulate."""
        norms = [torch.nn.utils.get_total_norm([p.grad for p in encoder.parameters()]) for encoder in encoders(model)]
        self.sums = self.sums.to(norms[0]) + torch.stack(norms) ** 2
        self.steps += 1
        bias = model.fusion_module.shared_bias
        score_a, score_v = (batch_mean(model, log_likelihood(each - bias, label)) for each in (logits_a, logits_v))
        for encoder, start, lead, learns in zip(
            encoders(model), self.start, (score_a - score_v, score_v - score_a), self.windows(), strict=True
        ):
            if learns:
                strength = torch.where(lead > 0, torch.exp(self.args.inforeg_beta * torch.tanh(lead)), 0)
                for parameter, before in zip(encoder.parameters(), start, strict=True):
                    parameter.grad += strength * (parameter - before.to(parameter))

    def windows(self):
        """Whether the audio and the visual encoder are in their window."""
        if len(self.traces) < 2:
            return False, False
        return tuple((now - before) / now > self.args.inforeg_k for before, now in zip(*self.traces, strict=True))


def encoders(model):
    return model.audio_net, model.visual_net
