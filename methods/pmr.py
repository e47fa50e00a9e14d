"""Prototypical modal rebalance, PMR (Fan et al., CVPR 2023, eq. 6 to 13, Algorithm 1): help the slower modality.

    c_k = mean feature of class k; p = softmax over k of -|feature - c_k|; rho = sum of p_y of audio / the same of video
    rho < 1: beta = clip(1/rho - 1, 0, 1), gamma = 0; else beta = 0, gamma = clip(rho - 1, 0, 1)
    L = L_m + alpha (beta PCE_a + gamma PCE_v), in the first epochs - mu (gamma H(p_a) + beta H(p_v))

PCE is the mean of -log p_y, H the mean entropy. L_m reaches everything, what is added its own encoder alone. Prototypes
are made before every epoch, c = eps c_old + (1 - eps) c_new, constants in it. Saved: both, (C, 512).
Defaults: alpha 1 (the paper has 1 or 2), mu 0.01, eps 0.2 and epochs 0 to 70 (the code's flags); the paper says not how
many epochs H lasts, ours are 10. `--pmr_rule code`: beta, gamma 0 or 1 and no H, as the published code, which also
takes its prototypes from augmented batches and has NaN where a class has no clip; ours leaves that class out.
"""

from functools import partial

import torch
import torch.nn.functional as F

from methods.base import Method
from methods.joint import joint_step
from utils.training import distributed
from utils.training.statistics import drawn_of_each_class, entropy, features_of

FEWEST = 10  # clips of a class that make its prototype, where a tenth is less


class PMR(Method):
    linear = False
    remembers = "prototypes", "present"
    splits = ("plain",)
    prototypes, present = None, None

    def begin_epoch(self, epoch, model, loaders, device):
        dataset = loaders["plain"].dataset
        numbers = drawn_of_each_class(dataset.clips, 0.1, FEWEST, self.args.random_seed)
        *features, label = features_of(model, dataset, self.args.batch_size, device, numbers)
        counts = torch.bincount(label, minlength=model.n_classes)
        self.present, old = counts > 0, self.prototypes
        self.prototypes = []
        for number, feature in enumerate(features):
            sums = feature.new_zeros(model.n_classes, feature.shape[1]).index_add_(0, label, feature)
            new = sums / counts.clamp(min=1).unsqueeze(1)
            self.prototypes.append(new if old is None else torch.lerp(new, old[number].to(new), self.args.pmr_momentum))

    def step(self, model, spectrogram, frames, label):
        rebalance = partial(self.rebalance, model, label) if self.epoch <= self.args.pmr_ends else None
        return joint_step(model, spectrogram, frames, label, extra=rebalance)

    def rebalance(self, model, label, *features):
        """What is added to the loss for a, v (B, 512) each."""
        log_p = [self.log_probabilities(feature, c) for feature, c in zip(features, self.prototypes, strict=True)]
        own = [each.gather(1, label.unsqueeze(1)) for each in log_p]
        score_a, score_v = (distributed.total((model.share > 0) * each.detach().exp().sum()) for each in own)
        helps = self.helps(score_a / score_v)
        extra = -self.args.pmr_alpha * sum(help * each.mean() for help, each in zip(helps, own, strict=True))
        if self.epoch < self.args.pmr_entropy and self.args.pmr_rule == "paper":
            held_back = zip(reversed(helps), log_p, strict=True)
            extra = extra - self.args.pmr_mu * sum(help * entropy(each).mean() for help, each in held_back)
        return extra

    def log_probabilities(self, feature, prototypes):
        """Of the classes that have a prototype, by distance; of others nearly minus infinity: (B, 512) -> (B, C)."""
        prototypes = prototypes.to(feature)
        # its gradient at distance 0 is 0; that of the square root would be infinite
        distance = torch.cdist(feature, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        return F.log_softmax((-distance).masked_fill(~self.present.to(feature.device), -1e9), dim=1)

    def helps(self, rho):
        """How much audio and video are helped: (beta, gamma)."""
        if self.args.pmr_rule == "code":
            return (rho < 1).to(rho), (rho >= 1).to(rho)
        return (1 / rho - 1).clamp(0, 1), (rho - 1).clamp(0, 1)
