"""Multimodal learning with alternating unimodal adaptation, MLA (Zhang et al., CVPR 2024, eq. 1 to 8, Algorithm 1).

    one head g for all; each batch: CE(g(z_1)), update encoder_1 and g; then CE(g(z_2)), update encoder_2 and g; ...
    the head's weight gradient becomes gradient P; then k = P r, P <- P - k k^T / (alpha + r^T k), r the mean feature

Each loss reaches its encoder and g; there is no joint loss. Fused logits are the mean of all modalities', weighted
for each clip by softmax of minus the entropy (eq. 6 to 8). L_m, only watched, is theirs. Saved: P, the place in the
epoch. The order follows the paper's prose: P holds the modalities before this one. Its eq. 3 and 5 and Algorithm 1
print that P takes in this modality first. r is the batch's mean, as in the code; eq. 4 has the mean over all clips.
alpha 0.1^(1 + batch / batches) is the code's; the paper has a constant without a value. In the code P is never applied,
since it looks for a parameter by a name that none has; `--mla_projection off` trains as it does.
"""

import torch

from methods.base import Method, SharedHead, score
from methods.statistics import batch_mean, by_certainty


class MLA(Method):
    remembers = "projection", "batch"

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
                    fused = by_certainty(*(output.logits for output in outputs.values()))
                    outputs = {"fused": score(fused, label), **outputs}
            yield outputs
        self.batch += 1

    def project(self, weight, mean):
        """Keep the head's gradient off the mean features before this one, (D,), and add this one to them."""
        if self.settings.mla_projection == "off":
            return
        projection = self.projection.to(mean)
        weight.grad = weight.grad @ projection
        k = projection @ mean
        alpha = 0.1 ** (1 + self.batch / self.batches)
        self.projection = projection - torch.outer(k, k) / (alpha + mean @ k)
