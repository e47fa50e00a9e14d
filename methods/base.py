"""What a training rule is."""


class Method:
    """Base of the training rules; a new one defines `step`, and the rest as it needs it.

    Args:
        args: settings, of which the rule reads its own flags.
        model: AVClassifier as it begins, before the optimiser is built; a rule with heads of its own puts a module
            with `fuse`, `audio_alone` and `visual_alone` in the place of `model.fusion_module`.

    Attributes:
        epoch: the one in hand, counted from 0; set by the loop before its first step, also after a resumption.
        linear: whether the gradients are linear in the losses, which the gradient report's rows suppose.
    """

    epoch = 0
    linear = True

    def __init__(self, args, model):
        self.args = args

    def begin_epoch(self, epoch, model, loaders, device):
        """What is to be done before an epoch's first step; a run that is resumed within the epoch skips it.

        Args:
            epoch: its number, counted from 0.
            model: AVClassifier.
            loaders: {split: loader}, "train" among them.
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

    def state_dict(self):
        """What the rule remembers between two steps, plain tensors and numbers by name; it is saved with the model."""
        return {}

    def load_state_dict(self, state):
        """Go on from what `state_dict` gave."""
