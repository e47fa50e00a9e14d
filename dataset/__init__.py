"""The table of datasets, and the builder of one. A new dataset is an index file and a row here."""

import utils  # noqa: F401, I001  before all else: it refuses a Python that is too old

from dataclasses import dataclass, field

from dataset.ave import AVE
from dataset.avmnist import AVMNIST
from dataset.cremad import CREMAD
from dataset.index import AudioSettings, Index
from dataset.kinetics import Kinetics400, KineticSound
from dataset.vggsound import VGGSound
from utils.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A dataset: its index, number of model outputs, audio settings, frames per clip, and its script's settings."""

    index: type[Index]
    n_classes: int
    audio: AudioSettings
    num_frame: int
    script: dict = field(default_factory=dict)

    @property
    def defaults(self):
        """Return the settings of the dataset's script, {name: value}; others have the flags' defaults."""
        return self.script | {"num_frame": self.num_frame}


FIVE_OF_TEN = AudioSettings(rate=16000, seconds=5, n_fft=256, hop=128, repeat_to=10)
EIGHT_OF_TEN = AudioSettings(rate=16000, seconds=8, n_fft=256, hop=128, repeat_to=10)

PAPER = {"learning_rate": 0.002}  # in the authors' scripts; main_dgl.py has 0.001
DIGITS = {"learning_rate": 0.01, "lr_decay_step": [4], "batch_size": 32, "image_size": 32, "val_ratio": 0.1}

DATASETS = {
    "CREMAD": Entry(CREMAD, 6, AudioSettings(rate=22050, seconds=3, n_fft=512, hop=353), 1, PAPER),
    "KineticSound": Entry(KineticSound, 34, FIVE_OF_TEN, 3, PAPER),
    "VGGSound": Entry(VGGSound, 309, FIVE_OF_TEN, 3, PAPER),
    "AVE": Entry(AVE, 28, AudioSettings(rate=22050, seconds=3, n_fft=512, hop=256), 1, PAPER),
    "kinect400": Entry(Kinetics400, 400, EIGHT_OF_TEN, 3, PAPER),
    "AVMNIST": Entry(AVMNIST, 10, AudioSettings(rate=8000, seconds=1, n_fft=256, hop=64), 1, DIGITS),
}


def fill_defaults(args):
    """Give the flags that a dataset decides (paths, num_frame) its values where they are None. Returns args."""
    entry = DATASETS[args.dataset]
    for name in ("audio_path", "visual_path", "split_path"):
        setattr(args, name, getattr(args, name) or getattr(entry.index, name))
    args.num_frame = args.num_frame or entry.num_frame
    return args


def build_dataset(args, split, training=None):
    """Return a split of `args.dataset`, "train", "val" or "test": see dataset/clips.py for its items.

    `training=False` reads the training clips as in evaluation, without draws and augmentation.

    Raises:
        InputError: a folder or list is missing, empty or wrong, or has more classes than the dataset.
    """
    from dataset.clips import ClipDataset  # it imports PyTorch, which the table and --help can do without

    args = fill_defaults(args)
    entry = DATASETS[args.dataset]
    dataset = ClipDataset(entry.index(), args, split, entry.audio, args.num_frame, training)
    if len(dataset.classes) > entry.n_classes:
        where = args.split_path or args.audio_path
        raise InputError(f"{where}: {len(dataset.classes)} classes, {args.dataset} has {entry.n_classes}; mend it")
    return dataset
