"""The table of datasets, and the builders that the scripts call. A new dataset is an index file and a row here."""

import os
import signal
from dataclasses import dataclass

from torch.utils.data import DataLoader

from dataset.ave import AVE
from dataset.clips import AudioSettings, ClipDataset, EpochSampler
from dataset.cremad import CREMAD
from dataset.damage import leave_out_damaged
from dataset.kinetics import Kinetics400, KineticSound
from dataset.vggsound import VGGSound
from utils.errors import InputError
from utils.interruption import Interruption


@dataclass(frozen=True)
class Entry:
    """A dataset: its class, number of model outputs, audio settings and frames per clip."""

    dataset: type[ClipDataset]
    n_classes: int
    audio: AudioSettings
    num_frame: int


FIVE_OF_TEN = AudioSettings(rate=16000, seconds=5, n_fft=256, hop=128, repeat_to=10)
EIGHT_OF_TEN = AudioSettings(rate=16000, seconds=8, n_fft=256, hop=128, repeat_to=10)

DATASETS = {
    "CREMAD": Entry(CREMAD, 6, AudioSettings(rate=22050, seconds=3, n_fft=512, hop=353), num_frame=1),
    "KineticSound": Entry(KineticSound, 34, FIVE_OF_TEN, num_frame=3),
    "VGGSound": Entry(VGGSound, 309, FIVE_OF_TEN, num_frame=3),
    "AVE": Entry(AVE, 28, AudioSettings(rate=22050, seconds=3, n_fft=512, hop=256), num_frame=1),
    "kinect400": Entry(Kinetics400, 400, EIGHT_OF_TEN, num_frame=3),
}


def fill_defaults(args):
    """Give the flags that a dataset decides (paths, num_frame) its values where they are None. Returns args."""
    entry = DATASETS[args.dataset]
    args.audio_path = args.audio_path or entry.dataset.audio_path
    args.visual_path = args.visual_path or entry.dataset.visual_path
    args.split_path = args.split_path or entry.dataset.split_path
    args.num_frame = args.num_frame or entry.num_frame
    return args


def build_dataset(args, split, training=None):
    """A split of `args.dataset`, "train", "val" or "test": items (spectrogram (F, T), frames (3, N, H, W), label).

    `training=False` reads the training clips as in evaluation, without draws and augmentation.

    Raises:
        InputError: a folder or list is missing, empty or wrong, or has more classes than the dataset.
    """
    args = fill_defaults(args)
    entry = DATASETS[args.dataset]
    dataset = entry.dataset(args, split, entry.audio, args.num_frame, training)
    if len(dataset.classes) > entry.n_classes:
        where = args.split_path or args.audio_path
        raise InputError(f"{where}: {len(dataset.classes)} classes, {args.dataset} has {entry.n_classes}; mend it")
    return dataset


def ignore_signals(_):
    """Leave SIGINT and SIGTERM, which a terminal or a cluster sends to every process, to the one that trains."""
    for number in Interruption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def build_loader(args, split, device, training=None):
    """A DataLoader over `build_dataset(args, split, training)`, in random order for training, whole to the last clip.

    Clips that cannot be decoded are left out.
    The number of workers changes the speed and nothing else. Pinned memory on CUDA.
    """
    dataset = build_dataset(args, split, training)
    workers = args.num_workers
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 16)
    leave_out_damaged(dataset, args, max(workers, 1))
    return DataLoader(
        dataset,
        batch_size=args.batch_size,
        sampler=EpochSampler(dataset) if dataset.training else None,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )
