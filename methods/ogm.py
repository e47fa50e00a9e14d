"""On-the-fly gradient modulation, OGM and OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332, eq. 8 to 11, 16).

    s_u = sum over the batch of p_y of modality u's own logits; rho_u = mean over the others j of s_u / s_j
    gradient of encoder u times k_u = 1 - tanh(ogm_alpha * rho_u) where rho_u > 1, else 1
    `--ogm_rule journal`: k_u = max(0, 1 - ogm_alpha * tanh(rho_u - 1)), which tends to 1 as rho_u does (eq. 11 there)
    GE: plus Gaussian noise, with the standard deviation that the gradient had before

The multimodal loss trains the whole model, as in joint training. The mean over the others, and a bias split evenly,
are from the journal version (TPAMI 2024, eq. 6 and 7); with two modalities they equal CVPR's eq. 8 and 9.
Three things are from the published code, not from the paper: the window of epochs 0 to 50, that only convolutions are
modulated, and that the noise has each tensor's own deviation (the paper: covariance of the gradient over clips, eq. 12,
13). If an encoder has no convolutions, all its parameters are modulated, as in the paper's Algorithm 1.
Defaults: ogm_alpha 0.1 (the code's value for VGGSound; 0.8 for CREMA-D).
"""

import torch

from methods.joint import Joint
from methods.statistics import mean_over_others, true_probability


class OGM(Joint):
    noise = False

    @torch.no_grad()
    def adjust_gradients(self, model, outputs, label):
        if not self.settings.modulation_starts <= self.epoch <= self.settings.modulation_ends:
            return
        shared = model.fusion_module.shared_bias  # b / n remains in the logits
        scores = torch.stack([true_probability(outputs[name].logits - shared, label) for name in model.modalities])
        rho = mean_over_others(scores, torch.div)
        for name, coefficient in zip(model.modalities, self.coefficients(rho), strict=True):
            parameters = list(model.encoder_parameters(name))
            convolutions = [parameter for parameter in parameters if parameter.dim() == 4]
            for gradient in (parameter.grad for parameter in convolutions or parameters):
                deviation = gradient.std()
                gradient *= coefficient
                if self.noise:  # a contiguous tensor is drawn six times as fast on the CPU
                    gradient += deviation * torch.randn_like(gradient, memory_format=torch.contiguous_format)

    def coefficients(self, rho):
        """Return the coefficients k of all modalities from rho: (n,) -> (n,)."""
        alpha = self.settings.ogm_alpha
        if self.settings.ogm_rule == "journal":
            return torch.where(rho > 1, (1 - alpha * torch.tanh(rho - 1)).clamp(min=0), 1)
        return torch.where(rho > 1, 1 - torch.tanh(alpha * rho), 1)


class OGM_GE(OGM):
    noise = True
