"""Prototypical modal rebalance, PMR (Fan et al., CVPR 2023, eq. 6 to 13, Algorithm 1): train the slower modality more.

    c_k = mean feature of class k; p = softmax over k of -|feature - c_k|; S_u = sum over the batch of p_y
    help_u = mean over the others j of clip(S_j / S_u - 1, 0, 1); hold_u = the same of clip(S_u / S_j - 1, 0, 1)
    L = L_m + alpha sum of help_u PCE_u, in the first epochs - mu sum of hold_u H_u

PCE is the mean of -log p_y, H the mean entropy. L_m trains the whole model; the added terms train only their own
encoder. Prototypes are computed before every epoch, c = eps c_old + (1 - eps) c_new, and are constant during it. State:
the prototypes, (C, D), and which classes have one. With mmtm, a feature is the average of the encoder's last maps.
The paper has two modalities. The mean over the others is our extension; with two modalities it is eq. 11 and 13.
Defaults: alpha 1 (the paper has 1 or 2), mu 0.01 (or 0.001), up to the last epoch (Algorithm 1; a command line of the
code has --pmr_ends 70), eps 0.2 (the code's flag). The paper does not state the number of epochs with H; ours is 10.
`--pmr_rule code` is the rule of the published code: help is 0 or 1, and there is no H. That code computes prototypes
from augmented batches, and they are NaN for a class without clips; ours leaves out such a class. In the first epoch the
prototypes are those of the initial model, whose BatchNorm still has mean 0 and variance 1.
"""

import torch
import torch.nn.functional as F

from methods.base import Method
from methods.features import as_vector, draw_per_class, features_of
from methods.joint import joint_step
from methods.statistics import entropy, mean_over_others
from utils.processes import total

FEWEST = 10  # minimum number of clips for a prototype, if a tenth of the class is less


class PMR(Method):
    linear = False
    saved_attributes = "prototypes", "present"
    splits = ("plain",)
    prototypes, present = None, None

    def begin_epoch(self, epoch, model, loaders, device):
        dataset = loaders["plain"].dataset
        numbers = draw_per_class(dataset.clips, 0.1, FEWEST, self.settings.random_seed)
        features, label = features_of(model, dataset, self.settings.batch_size, device, numbers)
        counts = torch.bincount(label, minlength=model.n_classes)
        self.present, old, self.prototypes = counts > 0, self.prototypes, {}
        for name, feature in features.items():
            sums = feature.new_zeros(model.n_classes, feature.shape[1]).index_add_(0, label, feature)
            new = sums / counts.clamp(min=1).unsqueeze(1)
            self.prototypes[name] = (
                new if old is None else torch.lerp(new, old[name].to(new), self.settings.pmr_momentum)
            )

    def step(self, model, inputs, label):
        ends = self.settings.pmr_ends is not None and self.epoch > self.settings.pmr_ends
        return joint_step(model, inputs, label, None if ends else lambda features: self.rebalance(label, features))

    def rebalance(self, label, features):
        """Return the terms to add to the loss, from the features {modality: feature}."""
        log_p = [self.log_probabilities(as_vector(z), self.prototypes[name]) for name, z in features.items()]
        own = [each.gather(1, label.unsqueeze(1)) for each in log_p]
        helps, holds = self.coefficients(torch.stack([total(each.detach().exp().sum()) for each in own]))
        extra = -self.settings.pmr_alpha * sum(help * each.mean() for help, each in zip(helps, own, strict=True))
        if self.epoch < self.settings.pmr_entropy and self.settings.pmr_rule == "paper":
            held_back = zip(holds, log_p, strict=True)
            extra = extra - self.settings.pmr_mu * sum(hold * entropy(each).mean() for hold, each in held_back)
        return extra

    def log_probabilities(self, feature, prototypes):
        """Return log p of the classes by distance, about -1e9 without a prototype: (B, D) -> (B, C)."""
        prototypes = prototypes.to(feature)
        # cdist has gradient 0 at distance 0, where a square root has an infinite one
        distance = torch.cdist(feature, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        return F.log_softmax((-distance).masked_fill(~self.present.to(feature.device), -1e9), dim=1)

    def coefficients(self, scores):
        """Return the coefficients (help, hold) of all modalities from their scores S: (n,) -> (n,), (n,)."""
        holds = mean_over_others(scores, lambda own, other: (own / other - 1).clamp(0, 1))
        if self.settings.pmr_rule == "code":
            return mean_over_others(scores, lambda own, other: (own < other).to(own)), holds
        return mean_over_others(scores, lambda own, other: (other / own - 1).clamp(0, 1)), holds
