"""Joint training, the ordinary way and every method's baseline: the multimodal loss reaches everything.

    L = CE(F(z_1, ..., z_n))

Encoders and fusion module get its gradient; the unimodal logits are only watched, they train nothing.
"""

import torch

from methods.base import Method, encode_all, score


class Joint(Method):
    def step(self, model, inputs, label):
        return joint_step(model, inputs, label)


def joint_step(model, inputs, label, extra=None):
    """Run one step of joint training, as Method.step.

    Args:
        extra: a function of the features, {modality: (B, D)}, that returns a term of the loss.
    """
    fusion, features = model.fusion_module, encode_all(model, inputs)
    outputs = {"fused": score(fusion.fuse(features), label)}
    loss = outputs["fused"].loss
    (loss + extra(features) if extra else loss).backward()
    with torch.no_grad():
        return outputs | {name: score(fusion.alone(name, feature), label) for name, feature in features.items()}
