"""Joint training, the baseline of every method: the multimodal loss trains the whole model.

    L = CE(F(z_1, ..., z_n))

Encoders and fusion module get the gradient of L. The unimodal logits are measured only; they train nothing.
"""

import torch

from methods.base import Method, encode_all, score


class Joint(Method):
    def step(self, model, inputs, label):
        return joint_step(model, inputs, label)


def joint_step(model, inputs, label, extra=None):
    """Run one step of joint training, as `Method.step`.

    Args:
        extra: function that takes the features {modality: (B, D)} and returns a term to add to the loss, or None.
    """
    fusion, features = model.fusion_module, encode_all(model, inputs)
    outputs = {"fused": score(fusion.fuse(features), label)}
    loss = outputs["fused"].loss
    (loss + extra(features) if extra else loss).backward()
    with torch.no_grad():
        return outputs | {name: score(fusion.alone(name, feature), label) for name, feature in features.items()}
