"""Joint training with unimodal losses, the "uniform baseline" of Wei and Hu, ICML 2024, arXiv 2405.17730.

    L = L_m + weight * sum of L_u, each unimodal loss with a separate linear head (eq. 1, where the weight is 1)

Each encoder gets the gradients of L_m and of its own loss, each head that of its loss. No state is saved. Huang et al.,
CVPR 2025, arXiv 2503.18595, use parts of the joint head for L_u; ours has separate heads, as G-Blending and MMPareto.
With one weight from 1 to 5, this is probably the method that DGL's Table 4 calls G-Blending.
"""

from methods.base import Method, OwnHeads, encode_all, score


class JointUni(Method):
    def __init__(self, settings, model):
        super().__init__(settings, model)
        model.fusion_module = OwnHeads(model)
        self.weights = unimodal_weights(model, getattr(settings, "joint_uni_weight", 1))

    def step(self, model, inputs, label):
        return weighted_step(model, inputs, label, self.weights)


def unimodal_weights(model, weight):
    """Return the weights of L_m, which is 1, and of each L_u, in the order of model.branches."""
    return [1, *[weight] * len(model.modalities)]


def weighted_step(model, inputs, label, weights):
    """Run one step that trains a weighted sum of the losses, as `Method.step`.

    A weight of 0 gives gradients of 0, not None, so that every parameter has a gradient.

    Args:
        weights: weights of the losses, in the order of model.branches.
    """
    fusion, features = model.fusion_module, encode_all(model, inputs)
    alone = {name: score(fusion.alone(name, feature), label) for name, feature in features.items()}
    outputs = {"fused": score(fusion.fuse(features), label), **alone}
    sum(weight * output.loss for weight, output in zip(weights, outputs.values(), strict=True)).backward()
    return outputs
