"""What a method is, and the heads that some methods give the model."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from methods.statistics import by_certainty
from models.fusion_modules import Fusion_AUXI


class Output(NamedTuple):
    """What one branch of the model answers on a batch: its mean cross-entropy () and its logits (B, C, ...)."""

    loss: torch.Tensor
    logits: torch.Tensor


def score(logits, label):
    """Return the Output of logits (B, C, ...) for class numbers (B, ...)."""
    return Output(F.cross_entropy(logits, label), logits)


class Method:
    """Base of the methods. A new one defines `step`, and the rest as it needs it.

    Args:
        settings: of the run; the method reads its own flags.
        model: AVClassifier with initial weights, before the optimiser is built. A method with heads of its own puts
            another fusion module (with `fuse` and `alone`) in the place of `model.fusion_module`.

    Attributes:
        epoch: the current epoch, counted from 0; set before `begin_epoch`.
        linear: whether the gradients are linear in the losses, so that the gradient report can tell them apart.
        remembers: names of the attributes that a resumed run needs, plain tensors and numbers.
        splits: what `begin_epoch` reads besides the training clips: "val", or "plain", the training clips without
            augmentation.
    """

    epoch = 0
    linear = True
    remembers = ()
    splits = ()

    def __init__(self, settings, model):
        self.settings = settings

    def prepare(self, model):
        """Load what only training needs, such as teacher checkpoints. Called before any data is read.

        Args:
            model: AVClassifier with initial weights, on the CPU, with the method's heads.

        Raises:
            InputError: something is missing, or does not fit the settings.
        """

    def begin_epoch(self, epoch, model, loaders, device):
        """Do what an epoch needs before its first step.

        Args:
            epoch: its number, counted from 0.
            model: AVClassifier.
            loaders: {split: loader}, with "train" and those of `splits`.
            device: where the model is.
        """

    def step(self, model, inputs, label):
        """Run forward and backward of one step; leave the gradients in `.grad`.

        Args:
            model: AVClassifier.
            inputs: {modality: tensor} as `model.encode` takes them.
            label: (B,), class numbers.

        Returns:
            {branch: Output} for "fused" and every modality of the model. A loss that trains is the tensor that `score`
            returned.
        """
        raise NotImplementedError

    def steps(self, model, inputs, label):
        """Yield the outputs once per optimiser step, with the gradients of that step in `.grad`."""
        yield self.step(model, inputs, label)

    def adjust_gradients(self, model, outputs, label):
        """Change the gradients in place, once they are those of the whole batch, averaged over processes.

        Args:
            model: AVClassifier with gradients.
            outputs: what `step` returned, of this process's clips.
            label: (B,).
        """

    def row(self):
        """Return extra metrics for the epoch's log row: {name: value}."""
        return {}

    def state_dict(self):
        """Return what a resumed run needs; it is saved with the model."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state):
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another run; the message says why.
        """
        for name in self.remembers:
            setattr(self, name, state[name])


def encode_all(model, inputs):
    """Return the features of all modalities, {modality: (B, D)}, or with mmtm maps."""
    return {name: model.encode(name, inputs[name]) for name in model.modalities}


def linear_head(model):
    """Return a linear classifier of one feature, with the same kind of initial weights as the model's own."""
    head = nn.Linear(model.dim, model.n_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class OwnHeads(Fusion_AUXI):
    """The model's fusion module, and a linear head `<modality>_head` of its own for each modality alone.

    With mmtm a head scores what the modality's own stream ends in, so its loss reaches that stream too.
    """

    def __init__(self, model):
        super().__init__(model.n_classes, model.dim, model.modalities)
        self.joint = model.fusion_module
        for name in model.modalities:
            setattr(self, f"{name}_head", linear_head(model))

    def fuse(self, features):
        return self.joint.fuse(features)

    def alone(self, name, feature):
        return self.head(name, self.joint.vector(name, feature))

    def head(self, name, vector):
        """Return the logits of a modality's own head: (B, dim) -> (B, n_classes)."""
        return getattr(self, f"{name}_head")(vector)


class MeanOfHeads(OwnHeads):
    """A linear head for each modality; fused logits are their mean."""

    def __init__(self, model):
        super().__init__(model)
        del self.joint

    def fuse(self, features):
        return sum(self.alone(name, feature) for name, feature in features.items()) / len(features)

    def alone(self, name, feature):
        return self.head(name, feature)


class SharedHead(Fusion_AUXI):
    """One linear head for all; fused logits are their mean, weighted for each clip by softmax of minus the entropy."""

    def __init__(self, model):
        super().__init__(model.n_classes, model.dim, model.modalities)
        self.head = linear_head(model)

    def fuse(self, features):
        return by_certainty(*(self.head(feature) for feature in features.values()))

    def alone(self, name, feature):
        return self.head(feature)
