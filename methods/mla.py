"""Multimodal learning with alternating unimodal adaptation, MLA (Zhang et al., CVPR 2024, eq. 1 to 8, Algorithm 1).

    one head g for all; each batch: CE(g(z_1)), update encoder_1 and g; then CE(g(z_2)), update encoder_2 and g; ...
    the head's weight gradient becomes gradient P; then k = P r, P <- P - k k^T / (alpha + r^T k), r the mean feature

Each loss trains its encoder and g; there is no joint loss. The fused logits are the mean over the modalities, weighted
for each clip by the softmax of the negative entropies (eq. 6 to 8). L_m is the loss of the fused logits; it is measured
only. State: P, and the number of the batch in the epoch. The order follows the paper's text: P includes the modalities
before this one. In its eq. 3 and 5 and Algorithm 1, P includes this modality too. r is the mean over the batch, as in
the code; eq. 4 has the mean over all clips. alpha = 0.1^(1 + batch / batches) is the code's; the paper has a constant
without a value. The published code never applies P, because no parameter has the name that it looks for;
`--mla_projection off` trains like that code.
"""

import torch

from methods.base import Method, SharedHead, score
from methods.statistics import batch_mean, certainty_weighted_mean


class MLA(Method):
    saved_attributes = "projection", "batch"

    def __init__(self, settings, model):
        super().__init__(settings, model)
        model.fusion_module = SharedHead(model)
        self.projection = torch.eye(model.fusion_module.head.in_features)
        self.batch, self.batches = 0, 1

    def begin_epoch(self, epoch, model, loaders, device):
        self.batch, self.batches = 0, len(loaders["train"])

    def steps(self, model, inputs, label):
        head, outputs = model.fusion_module.head, {}
        for name in model.modalities:
            feature = model.encode(name, inputs[name])  # (B, D)
            outputs[name] = score(head(feature), label)
            outputs[name].loss.backward()
            self.project(head.weight, batch_mean(feature.detach()))
            if len(outputs) == len(model.modalities):
                with torch.no_grad():
                    fused = certainty_weighted_mean(*(output.logits for output in outputs.values()))
                    outputs = {"fused": score(fused, label), **outputs}
            yield outputs
        self.batch += 1

    def project(self, weight, mean):
        """Project the head's gradient away from earlier mean features, then add `mean`, (D,), to the projection."""
        if self.settings.mla_projection == "off":
            return
        projection = self.projection.to(mean)
        weight.grad = weight.grad @ projection
        k = projection @ mean
        alpha = 0.1 ** (1 + self.batch / self.batches)
        self.projection = projection - torch.outer(k, k) / (alpha + mean @ k)
