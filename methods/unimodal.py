"""One encoder alone with a linear classifier: the unimodal baseline, what a modality achieves without the others."""

from methods.base import Method, encode_all, score


class Unimodal(Method):
    def step(self, model, inputs, label):
        output = score(model.fusion_module.fuse(encode_all(model, inputs)), label)
        output.loss.backward()
        return dict.fromkeys(model.branches, output)
