"""On-the-fly gradient modulation, OGM and OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332, eq. 8 to 10, 16).

    s_u = sum over the batch of p_y of modality u's own logits; rho_u = mean over the others j of s_u / s_j
    gradient of encoder u times k_u = 1 - tanh(ogm_alpha * rho_u) where rho_u > 1, else 1
    GE: plus Gaussian noise, with the standard deviation that the gradient had before

The multimodal loss reaches everything, as in joint training; the modulation changes the encoders' convolutions alone.
The mean over the others is that of the journal version (TPAMI 2024, eq. 7); with two modalities it is CVPR's eq. 9.
Defaults: ogm_alpha 0.1 (the authors' for VGGSound; 0.8 for CREMA-D), epochs 0 to 50, both included.
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
        shared = model.fusion_module.shared_bias  # each modality has its part of it
        scores = torch.stack([true_probability(outputs[name].logits - shared, label) for name in model.modalities])
        rho = mean_over_others(scores, torch.div)
        coefficients = torch.where(rho > 1, 1 - torch.tanh(self.settings.ogm_alpha * rho), 1)
        for name, coefficient in zip(model.modalities, coefficients, strict=True):
            for gradient in (parameter.grad for parameter in model.encoder_parameters(name) if parameter.dim() == 4):
                deviation = gradient.std()
                gradient *= coefficient
                if self.noise:  # in the order of shape, not of memory: on the CPU drawn in a sixth of the time
                    gradient += deviation * torch.randn_like(gradient, memory_format=torch.contiguous_format)


class OGM_GE(OGM):
    noise = True
