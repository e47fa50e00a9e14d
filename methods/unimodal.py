"""The unimodal baseline: one encoder alone with a linear classifier."""

from methods.base import Method, encode_all, score


class Unimodal(Method):
    def step(self, model, inputs, label):
        output = score(model.fusion_module.fuse(encode_all(model, inputs)), label)
        output.loss.backward()
        return dict.fromkeys(model.branches, output)
