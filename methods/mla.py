"""Multimodal learning with alternating unimodal adaptation, MLA (Zhang et al., CVPR 2024, arXiv 2311.10707, eq. 3).

    one head g for both; each batch: CE(g(a)), update encoder_a and g; then CE(g(v)), update encoder_v and g
    the head's weight gradient becomes gradient P; then k = P r, P <- P - k k^T / (alpha + r^T k), r the mean feature

Each loss reaches its encoder and g; there is no joint loss. Fused logits are the mean of both modalities', weighted
for each clip by softmax of minus the entropy. L_m, watched alone, is theirs. Saved: P, the place in the epoch.
Default of the published code: alpha 0.1^(1 + batch / batches). There P is never applied, since it looks for a parameter
by a name that none has; `--mla_projection off` trains as it does. Its entropies are over the clips of a batch.
"""

import torch
import torch.nn.functional as F

from methods.base import Method, SharedHead
from utils.training.statistics import batch_mean, by_certainty


class MLA(Method):
    remembers = "projection", "batch", "batches"

    def __init__(self, args, model):
        super().__init__(args, model)
        model.fusion_module = SharedHead(model)
        self.projection = torch.eye(model.fusion_module.head.in_features)
        self.batch, self.batches = 0, 1

    def begin_epoch(self, epoch, model, loaders, device):
        self.batch, self.batches = 0, len(loaders["train"])

    def update(self, model, spectrogram, frames, label, finish):
        head, seen, losses = model.fusion_module.head, [], []
        for encode, clip in ((model.encode_audio, spectrogram), (model.encode_video, frames)):
            feature = encode(clip)  # (B, 512)
            logits = head(feature)
            loss = F.cross_entropy(logits, label)
            loss.backward()
            self.project(head.weight, batch_mean(model, feature.detach()))
            finish()
            seen.append(logits.detach())
            losses.append(loss.detach())
        self.batch += 1
        with torch.no_grad():
            return F.cross_entropy(by_certainty(*seen), label), *losses

    def project(self, weight, mean):
        """Keep the head's gradient off the mean features before this one, (512,), and take this one in."""
        if self.args.mla_projection == "off":
            return
        projection = self.projection.to(mean)
        weight.grad = weight.grad @ projection
        k = projection @ mean
        alpha = 0.1 ** (1 + self.batch / self.batches)
        self.projection = projection - torch.outer(k, k) / (alpha + mean @ k)
