"""On-the-fly gradient modulation, OGM and OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332, eq. 8 to 10).

    s_u = sum over the batch of p_y of modality u's own logits, rho_a = s_a / s_v, rho_v = 1 / rho_a
    gradient of encoder u times k_u = 1 - tanh(ogm_alpha * rho_u) where rho_u > 1, else 1
    GE: plus Gaussian noise, with the standard deviation that the gradient had before

The multimodal loss reaches everything, as in joint training; the modulation changes the encoders' convolutions alone.
Defaults: ogm_alpha 0.1 (the authors' for VGGSound; 0.8 for CREMA-D), epochs 0 to 50, both included.
"""

import torch

from methods.base import Method
from methods.joint import joint_step
from utils.training import distributed


class OGM(Method):
    noise = False

    def step(self, model, spectrogram, frames, label):
        modulated = self.args.modulation_starts <= self.epoch <= self.args.modulation_ends
        return joint_step(model, spectrogram, frames, label, self.modulate if modulated else None)

    def modulate(self, model, logits_a, logits_v, label):
        """Change both encoders' 4-D gradients in place.

        Args:
            model: AVClassifier of both modalities, with gradients.
            logits_a, logits_v: each modality's own logits (B, C); a bias that both share is halved between them.
            label: (B,).
        """
        shared = model.fusion_module.shared_bias
        counts = model.share > 0  # a process that has no clip of the batch was given one that is another's
        score_a, score_v = (
            distributed.total(counts * probability.gather(1, label.unsqueeze(1)).sum(dtype=torch.float32))
            for probability in ((logits - shared).softmax(dim=1) for logits in (logits_a, logits_v))
        )
        for encoder, rho in ((model.audio_net, score_a / score_v), (model.visual_net, score_v / score_a)):
            coefficient = torch.where(rho > 1, 1 - torch.tanh(self.args.ogm_alpha * rho), 1)
            for gradient in (parameter.grad for parameter in encoder.parameters() if parameter.dim() == 4):
                deviation = gradient.std()
                gradient *= coefficient
                if self.noise:  # in the order of shape, not of memory: on the CPU drawn in a sixth of the time
                    gradient += deviation * torch.randn_like(gradient, memory_format=torch.contiguous_format)


class OGM_GE(OGM):
    noise = True
