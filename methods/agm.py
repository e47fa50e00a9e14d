"""Adaptive gradient modulation (Li et al., ICCV 2023, arXiv 2308.07686), by each modality's Shapley value.

    T = logits of both, A with the picture masked, V with the sound masked (zeros); m_a = (T + A - V) / 2, m_v = T - m_a
    s_u = mean of -log p_y of m_u; r_a = exp(s_v - s_a), tau_a the same of the means of s over all batches before
    backward of m_u with kappa_u dL_m/dT, kappa_u = exp(alpha min(tau_u - r_u, 10)); r_v, tau_v = 1 / r_a, 1 / tau_a

A modality further ahead than usual has r > tau and kappa < 1. L_m, so modulated, reaches everything. L_a and L_v,
watched alone, are those of m_a and m_v. Saved: both means and the number of batches, which no epoch resets.
Defaults of the published code: alpha 1, epochs 0 to 20. To mask, it encodes the whole batch again, BatchNorm
evaluating: `--agm_mask passes`. Ours takes the features that T has, and those of one masked clip.
"""

import math

import torch
import torch.nn.functional as F

from methods.base import Method
from utils.training.batchnorm import evaluating
from utils.training.statistics import batch_mean, log_likelihood


class AGM(Method):
    remembers = "means", "batches"

    def __init__(self, args, model):
        super().__init__(args, model)
        self.means, self.batches = torch.zeros(2), 0  # of s_a and s_v

    def step(self, model, spectrogram, frames, label):
        fuse = model.fusion_module.fuse
        a, v = a_heard, v_seen = model.encode_audio(spectrogram), model.encode_video(frames)
        with evaluating(model.audio_net), evaluating(model.visual_net):  # after a and v, whose statistics it keeps
            a_none = model.encode_audio(torch.zeros_like(spectrogram[:1])).expand_as(a)
            v_none = model.encode_video(torch.zeros_like(frames[:1])).expand_as(v)
            if self.args.agm_mask == "passes":
                a_heard, v_seen = model.encode_audio(spectrogram), model.encode_video(frames)
        both, heard, seen = fuse(a, v), fuse(a_heard, v_none), fuse(a_none, v_seen)
        shares = (both + heard - seen) / 2, (both + seen - heard) / 2  # m_a, m_v
        loss = F.cross_entropy(both, label)
        (gradient,) = torch.autograd.grad(loss, both, retain_graph=True)
        torch.autograd.backward(shares, [kappa * gradient for kappa in self.coefficients(model, shares, label)])
        with torch.no_grad():
            return loss.detach(), *(F.cross_entropy(logits, label) for logits in shares)

    @torch.no_grad()
    def coefficients(self, model, shares, label):
        """kappa_a, kappa_v of the batch, (2,), which is then taken into the means."""
        floor = math.log(1e-8)
        scores = [batch_mean(model, -log_likelihood(logits, label).clamp(min=floor)) for logits in shares]
        scores, means = torch.stack(scores), self.means.to(scores[0])
        ahead, usual = (torch.exp(values.flip(0) - values) for values in (scores, means))  # r, tau
        self.means, self.batches = (means * self.batches + scores) / (self.batches + 1), self.batches + 1
        if self.epoch > self.args.agm_ends:
            return torch.ones_like(scores)
        return torch.exp(self.args.agm_alpha * (usual - ahead).clamp(max=10))
