"""The training rules beside DGL: joint training, OGM and OGM-GE, the ablations of DGL, and one encoder alone.

Each step has the contract of `dgl_step` in main_dgl.py: forward and backward, gradients left in `.grad` for the caller
to zero, clip and step, and (loss, loss_a, loss_v) returned as detached scalars.
"""

import torch
import torch.nn.functional as F

from models.fusion_modules import ConcatFusion_AUXI
from utils import distributed


def joint_step(model, spectrogram, frames, label, modulation="Normal", ogm_alpha=0.1):
    """One step of ordinary end-to-end training: the multimodal loss reaches everything, the unimodal ones nothing.

    Args:
        model, spectrogram, frames, label: as `dgl_step`.
        modulation: "Normal"; "OGM" or "OGM_GE" change the encoders' gradients by `modulate`.
        ogm_alpha: strength of the modulation.
    """
    fusion = model.fusion_module
    a, v = model.encode_audio(spectrogram), model.encode_video(frames)  # (B, 512) each
    loss = F.cross_entropy(fusion.fuse(a, v), label)
    loss.backward()
    with torch.no_grad():
        logits_a, logits_v = fusion.audio_alone(a), fusion.visual_alone(v)
        if modulation != "Normal":
            shared = fusion.fc_out.bias / 2 if isinstance(fusion, ConcatFusion_AUXI) else 0
            modulate(model, logits_a - shared, logits_v - shared, label, ogm_alpha, noise=modulation == "OGM_GE")
        return loss.detach(), F.cross_entropy(logits_a, label), F.cross_entropy(logits_v, label)


def modulate(model, logits_a, logits_v, label, ogm_alpha, noise):
    """On-the-fly gradient modulation of both encoders' 4-D gradients, in place (Peng et al., CVPR 2022, eq. 8 to 10).

    A modality's score is the batch's sum of the softmax probabilities of the true class. The modality that leads by
    the ratio rho > 1 has its gradients multiplied by 1 - tanh(ogm_alpha * rho).

    Args:
        model: AVClassifier of both modalities, with gradients.
        logits_a, logits_v: each modality's own logits (B, C); a bias that both share is halved between them.
        label: (B,).
        ogm_alpha: strength, at least 0.
        noise: GE, generalisation enhancement: add Gaussian noise with the standard deviation that each gradient had
            before its modulation, to the gradients of both encoders.
    """
    counts = model.share > 0  # a process that has no clip of the batch was given one that is another's
    score_a, score_v = (
        distributed.total(counts * logits.softmax(dim=1).gather(1, label.unsqueeze(1)).sum(dtype=torch.float32))
        for logits in (logits_a, logits_v)
    )
    for encoder, rho in ((model.audio_net, score_a / score_v), (model.visual_net, score_v / score_a)):
        coefficient = torch.where(rho > 1, 1 - torch.tanh(ogm_alpha * rho), 1)
        for parameter in encoder.parameters():
            if parameter.dim() == 4:
                deviation = parameter.grad.std()
                parameter.grad *= coefficient
                if noise:
                    parameter.grad += deviation * torch.randn_like(parameter.grad)


def ablation_step(model, spectrogram, frames, label, alpha, mgt=True, ugt=True):
    """One step of DGL with a truncation left out; with both in place its gradients are those of `dgl_step`.

    The features are the border between encoders and fusion: each loss is led to the sides that it may reach.

    Args:
        model, spectrogram, frames, label, alpha: as `dgl_step`.
        mgt: multimodal gradient truncation; without it the multimodal loss reaches the encoders too.
        ugt: unimodal gradient truncation; without it the unimodal losses, times alpha, reach fusion too.
    """
    fusion = model.fusion_module
    theta = list(fusion.parameters())
    features = model.encode_audio(spectrogram), model.encode_video(frames)
    border = [feature.detach().requires_grad_() for feature in features]
    loss_a = F.cross_entropy(fusion.audio_alone(border[0]), label)
    loss_v = F.cross_entropy(fusion.visual_alone(border[1]), label)
    (alpha * (loss_a + loss_v)).backward(inputs=border if ugt else border + theta)
    loss = F.cross_entropy(fusion.fuse(*border), label)
    loss.backward(inputs=theta if mgt else border + theta)
    torch.autograd.backward(features, [feature.grad for feature in border])
    return loss.detach(), loss_a.detach(), loss_v.detach()


def unimodal_step(model, spectrogram, frames, label):
    """One step of one encoder with its linear classifier. The loss of the modality that the model lacks is NaN."""
    logits, logits_a, _ = model(spectrogram, frames)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    loss, missing = loss.detach(), torch.full_like(loss, float("nan"))
    return (loss, missing, loss) if logits_a is None else (loss, loss, missing)
