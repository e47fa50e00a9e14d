"""Base of all datasets. All facts about one dataset are in one file of this folder."""

import math
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from utils.errors import InputError
from utils.seeds import derived_seed

PAPER = {"learning_rate": 0.002}  # in the authors' scripts; main_dgl.py has 0.001


@dataclass(frozen=True)
class AudioSettings:
    """How audio becomes a spectrogram: sampling rate in Hz, length in seconds, STFT window and hop in samples.

    Audio shorter than `repeat_to` seconds is repeated to this length. Then `seconds` of the audio are kept: at a random
    place in training, the middle in evaluation. Without `repeat_to`, audio shorter than `seconds` is repeated to
    `seconds`, and of longer audio the first `seconds` are kept.
    """

    rate: int
    seconds: float
    n_fft: int
    hop: int
    repeat_to: float | None = None


class Clip(NamedTuple):
    """A clip of a dataset: its wav file, the names of the frames in `folder`, and its class as a number."""

    id: str
    wav: str
    folder: str
    frames: tuple[str, ...]
    label: int

    def files(self):
        """Return the paths of its files, the wav file first."""
        return self.wav, *(os.path.join(self.folder, name) for name in self.frames)


class Source:
    """Base of all datasets. A subclass sets the attributes and defines `items`.

    Attributes:
        inputs: {modality: size of an encoder's input}, channels of images or width of feature vectors.
        backbone: architecture of the encoders, a key of models.backbone.BACKBONES.
        classes: names of the classes, in the order of their labels.
        n_classes: number of model outputs.
        script: settings of the dataset's script that are not the flags' defaults, {flag: value}.
        root: folder of the dataset.
        decides: flags whose defaults are attributes of the dataset; in strings "{root}" is replaced by the root.
        without: flags that have no effect.
    """

    inputs, backbone = {"audio": 1, "visual": 3}, "resnet18"
    classes, n_classes, script, root = (), 0, PAPER, ""
    decides = ("root", "backbone")
    without = frozenset({"test_share", "audio_seconds"})

    @classmethod
    def defaults(cls):
        """Return the dataset's own defaults, {flag: value}: the attributes named in `decides`, and `script`."""
        return {name: getattr(cls, name) for name in cls.decides} | cls.script

    @classmethod
    def complete(cls, settings):
        """Return settings {name: value} without flags that have no effect; fill in the dataset's defaults."""
        settings = {name: value for name, value in settings.items() if name not in cls.without}
        for name in cls.decides:  # root first
            if settings.get(name) in (None, ""):
                value = getattr(cls, name)
                settings[name] = value.format(root=settings.get("root")) if isinstance(value, str) else value
        return settings

    def outputs(self, args):
        """Return the number of model outputs."""
        return self.n_classes

    def items(self, args, split, training=None):
        """Return a split as a torch Dataset.

        Args:
            args: settings.
            split: "train", "test", "val" (the training clips that --val_ratio holds out), or "plain" (the clips of
                "train" without augmentation).
            training: draw and augment; by default for the split "train".

        Raises:
            InputError: a folder or list is missing, empty or wrong.
        """
        raise NotImplementedError


def list_frames(folder):
    """Return the names of the frames in a folder, JPEG or PNG, in order; none if there is no such folder.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        names = [name for name in os.listdir(folder) if name.endswith((".jpg", ".png")) and not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; make it readable, or take its clip off the list") from None
    numbered = all(os.path.splitext(name)[0].isdigit() for name in names)
    names.sort(key=lambda name: (len(name) * numbered, name))  # 100020.jpg is later than 99990.jpg
    return tuple(map(sys.intern, names))  # nearly all clips share their frames' names


def within_audio(clip, fps, num_frame):
    """Return a Clip without the frames after the end of its audio, if they last more than twice as long, plus 1 s.

    At least `num_frame` frames are kept. Frames, `fps` per second, start when the audio starts.
    """
    import soundfile  # here, so that --help need not import it

    try:
        with open(clip.wav, "rb") as file:
            info = soundfile.info(file)
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return clip  # decoding reports what is wrong with the file
    seconds = info.frames / info.samplerate
    if len(clip.frames) / fps <= 2 * seconds + 1:
        return clip
    return clip._replace(frames=clip.frames[: max(num_frame, math.ceil(seconds * fps))])


def hold_out(clips, share, seed, split):
    """Draw the ids of `share` of every class's clips for `split`: at least one, but never all clips of a class."""
    classes = defaultdict(set)
    for clip in clips:
        classes[clip.label].add(clip.id)
    held_out = set()
    for ids in classes.values():
        count = min(max(round(share * len(ids)), 1), len(ids) - 1)
        held_out.update(sorted(ids, key=lambda clip_id: derived_seed(seed, split, clip_id))[:count])
    return held_out
