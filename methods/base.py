"""What a training rule is, and the heads that some of them give the model."""

from torch import nn

from models.fusion_modules import Fusion_AUXI
from utils.training.statistics import by_certainty


class Method:
    """Base of the training rules; a new one defines `step`, and the rest as it needs it.

    Args:
        args: settings, of which the rule reads its own flags.
        model: AVClassifier as it begins, before the optimiser is built; a rule with heads of its own puts a module
            with `fuse`, `audio_alone` and `visual_alone` in the place of `model.fusion_module`.

    Attributes:
        epoch: the one in hand, counted from 0; set by the loop before its first step, also after a resumption.
        linear: whether the gradients are linear in the three losses, which the gradient report's rows suppose.
        remembers: names of the attributes that it goes on from after a resumption, plain tensors and numbers.
        splits: what `begin_epoch` reads beside the training clips: "val", or "plain", these as in evaluation.
    """

    epoch = 0
    linear = True
    remembers = ()
    splits = ()

    def __init__(self, args, model):
        self.args = args

    def prepare(self, model):
        """What is needed to train, and not to evaluate: it is read before any clip is.

        Args:
            model: AVClassifier as it begins, on the CPU, with the rule's heads.

        Raises:
            InputError: it is not there, or does not fit the settings.
        """

    def begin_epoch(self, epoch, model, loaders, device):
        """What is to be done before an epoch's first step; a run that is resumed within the epoch skips it.

        Args:
            epoch: its number, counted from 0.
            model: AVClassifier.
            loaders: {split: loader}, "train" and those of `splits` among them.
            device: where the model is.
        """

    def step(self, model, spectrogram, frames, label):
        """Forward and backward of one step, gradients left in `.grad`.

        Args:
            model: AVClassifier, in several processes its twin of utils/training/distributed.py.
            spectrogram: (B, 1, F, T).
            frames: (B, 3, N, H, W).
            label: (B,), class numbers.

        Returns:
            (loss, loss_a, loss_v): multimodal, audio and visual cross-entropy, the very tensors that F.cross_entropy
            gave, detached; NaN for a modality that the model lacks.
        """
        raise NotImplementedError

    def update(self, model, spectrogram, frames, label, finish):
        """One training step, as `step`; `finish` averages, clips, lets the optimiser step and clears the gradients."""
        losses = self.step(model, spectrogram, frames, label)
        finish()
        return losses

    def row(self):
        """What the log's row of the epoch says of the rule, numbers by name."""
        return {}

    def state_dict(self):
        """What the rule remembers between two steps; it is saved with the model."""
        return {name: getattr(self, name) for name in self.remembers}

    def load_state_dict(self, state):
        """Go on from what `state_dict` gave; ValueError says why this cannot be."""
        for name in self.remembers:
            setattr(self, name, state[name])


def linear_head(model):
    """A linear classifier of one feature, begun as the model's own."""
    head = nn.Linear(model.dim, model.n_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class OwnHeads(Fusion_AUXI):
    """The model's fusion module, with linear heads of their own for the modalities alone."""

    def __init__(self, model):
        super().__init__()
        self.joint = model.fusion_module
        self.audio_head, self.visual_head = linear_head(model), linear_head(model)

    def fuse(self, x, y):
        return self.joint.fuse(x, y)

    def audio_alone(self, x):
        return self.audio_head(x)

    def visual_alone(self, y):
        return self.visual_head(y)


class MeanOfHeads(OwnHeads):
    """Linear heads alone; fused logits are half their sum."""

    def __init__(self, model):
        super().__init__(model)
        del self.joint

    def fuse(self, x, y):
        return (self.audio_head(x) + self.visual_head(y)) / 2


class SharedHead(Fusion_AUXI):
    """One linear head for both; fused logits are their mean, weighted for each clip by softmax of minus the entropy."""

    def __init__(self, model):
        super().__init__()
        self.head = linear_head(model)

    def fuse(self, x, y):
        return by_certainty(self.head(x), self.head(y))

    def audio_alone(self, x):
        return self.head(x)

    def visual_alone(self, y):
        return self.head(y)
