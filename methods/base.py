"""Define the base class of the methods, and fusion modules with additional heads for some of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from methods.statistics import certainty_weighted_mean
from models.fusion_modules import Fusion_AUXI


class Output(NamedTuple):
    """The output of one branch of the model for a batch: mean cross-entropy () and logits (B, C, ...)."""

    loss: torch.Tensor
    logits: torch.Tensor


def score(logits, label):
    """Return the Output of logits (B, C, ...) for class numbers (B, ...)."""
    return Output(F.cross_entropy(logits, label), logits)


class Method:
    """Base class of the methods. A new method defines `step`, and other functions as needed.

    Args:
        settings: settings of the run; the method reads its own flags.
        model: AVClassifier with initial weights, before the optimiser is built. A method with its own heads replaces
            `model.fusion_module` by another one (with `fuse` and `alone`).

    Attributes:
        epoch: the current epoch, counted from 0; set before `begin_epoch`.
        linear: True if the gradients are linear in the losses, so that the gradient report can separate the losses.
        saved_attributes: names of the attributes that a resumed run needs, plain tensors and numbers.
        splits: further splits that `begin_epoch` reads: "val", or "plain" for the training clips without augmentation.
    """

    epoch = 0
    linear = True
    saved_attributes = ()
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
        """Prepare an epoch, before its first step.

        Args:
            epoch: number of the epoch, counted from 0.
            model: AVClassifier.
            loaders: {split: loader} for "train" and `splits`.
            device: device of the model.
        """

    def step(self, model, inputs, label):
        """Run the forward and backward passes of one step, and leave the gradients in `.grad`.

        Args:
            model: AVClassifier.
            inputs: {modality: tensor} as `model.encode` takes them.
            label: (B,), class numbers.

        Returns:
            {branch: Output} for "fused" and every modality of the model. A loss that is trained is the tensor that
            `score` returned.
        """
        raise NotImplementedError

    def steps(self, model, inputs, label):
        """Yield the outputs once per optimiser step, with the gradients of that step in `.grad`."""
        yield self.step(model, inputs, label)

    def adjust_gradients(self, model, outputs, label):
        """Change the gradients in place, after they were averaged over the processes.

        Args:
            model: AVClassifier with the gradients of the whole batch.
            outputs: the outputs of `step`, for the clips of this process.
            label: (B,).
        """

    def row(self):
        """Return extra metrics for the epoch's log row: {name: value}."""
        return {}

    def state_dict(self):
        """Return the state that a resumed run needs; it is saved with the model."""
        return {name: getattr(self, name) for name in self.saved_attributes}

    def load_state_dict(self, state):
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: the state belongs to another run; the message gives the reason.
        """
        for name in self.saved_attributes:
            setattr(self, name, state[name])


def encode_all(model, inputs):
    """Return the features of all modalities: {modality: (B, D)}, or with mmtm {modality: maps}."""
    return {name: model.encode(name, inputs[name]) for name in model.modalities}


def linear_head(model):
    """Return a linear classifier for one feature, initialised like the model's own linear layers."""
    head = nn.Linear(model.dim, model.n_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class OwnHeads(Fusion_AUXI):
    """The model's fusion module, with a separate linear head `<modality>_head` for each modality alone.

    With mmtm, a head scores the output of the modality's own stream, so its loss also reaches that stream.
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
        """Return the logits of the modality's head: (B, dim) -> (B, n_classes)."""
        return getattr(self, f"{name}_head")(vector)


class MeanOfHeads(OwnHeads):
    """A linear head for each modality; the fused logits are the mean of all heads."""

    def __init__(self, model):
        super().__init__(model)
        del self.joint

    def fuse(self, features):
        return sum(self.alone(name, feature) for name, feature in features.items()) / len(features)

    def alone(self, name, feature):
        return self.head(name, feature)


class SharedHead(Fusion_AUXI):
    """One linear head for all modalities; the fused logits are the mean of all logits, weighted by certainty."""

    def __init__(self, model):
        super().__init__(model.n_classes, model.dim, model.modalities)
        self.head = linear_head(model)

    def fuse(self, features):
        return certainty_weighted_mean(*(self.head(feature) for feature in features.values()))

    def alone(self, name, feature):
        return self.head(feature)
