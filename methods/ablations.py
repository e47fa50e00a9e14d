"""DGL without one or both of its gradient truncations (paper section 3.2 and Table 3).

-MGT: without multimodal gradient truncation, L_m also reaches the encoders
-UGT: without unimodal gradient truncation, alpha * sum of L_u also reaches the fusion module
both: the plain sum L_m + alpha * sum of L_u, with heads that share the fusion module's weights
"""

import torch

from methods.base import Method, encode_all, score


class Ablation(Method):
    """DGL with both truncations; without `mgt`, L_m reaches the encoders, without `ugt`, L_u the fusion module."""

    mgt = ugt = True

    def step(self, model, inputs, label):
        fusion, features = model.fusion_module, encode_all(model, inputs)
        theta = list(fusion.parameters())
        # cut the graph between encoders and fusion module, so that each loss reaches only the modules it may reach
        border = {name: feature.detach().requires_grad_() for name, feature in features.items()}
        alone = {name: score(fusion.alone(name, feature), label) for name, feature in border.items()}
        unimodal = self.settings.alpha * sum(output.loss for output in alone.values())
        unimodal.backward(inputs=[*border.values(), *(() if self.ugt else theta)])
        fused = score(fusion.fuse(border), label)
        fused.loss.backward(inputs=theta if self.mgt else [*border.values(), *theta])
        torch.autograd.backward(list(features.values()), [feature.grad for feature in border.values()])
        return {"fused": fused, **alone}


class NoMGT(Ablation):
    mgt = False


class NoUGT(Ablation):
    ugt = False


class NoMGTNoUGT(Ablation):
    mgt = ugt = False
