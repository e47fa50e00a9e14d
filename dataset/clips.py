"""The clip reader that every dataset shares: a spectrogram and a few frames per clip (DESIGN section 1, Datasets)."""

import hashlib
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torchvision import transforms

from utils.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AudioSettings:
    """How a dataset's sound becomes a spectrogram: sampling rate in Hz, length in seconds, STFT window and hop.

    Sound is repeated to fill `repeat_to` seconds, of which `seconds` are cropped: anywhere in training, the middle in
    evaluation. Without `repeat_to` it is repeated to fill `seconds`, and the first ones are taken.
    """

    rate: int
    seconds: int
    n_fft: int
    hop: int
    repeat_to: int | None = None


class Clip(NamedTuple):
    """One entry of an index: sound, names of the frames in `folder`, and position of its class in the `classes`."""

    id: str
    wav: str
    folder: str
    frames: tuple[str, ...]
    label: int


def derived_seed(*parts):
    """A 63-bit seed that is a function of `parts`, the same in every process and on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def load_waveform(path, rate):
    """A sound file as mono float32 samples (n,) at `rate` Hz, resampled as librosa.load does (soxr, high quality).

    `rate` None leaves the file's own.

    Raises:
        InputError: the file is missing, unreadable or holds no sample.
    """
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError):
        remedy = "restore it (`git lfs pull` if it is a Git LFS pointer) or take its clip off the split list"
        raise InputError(f"{path}: not a readable sound file; {remedy}") from None
    if not len(samples):
        raise InputError(f"{path}: holds no sound; restore it or take its clip off the split list")
    samples = samples.mean(axis=1)
    if rate and file_rate != rate:
        length = -(-len(samples) * rate // file_rate)  # rounded up
        samples = soxr.resample(samples, file_rate, rate, quality="HQ")[:length]
        samples = np.pad(samples, (0, length - len(samples)))
    return samples


def log_spectrogram(samples, audio):
    """log(|STFT| + 1e-7) of samples (n,): Hann window, centred, zeros beyond both ends -> (n_fft/2 + 1, 1 + n // hop).

    The amplitude is clipped to [-1, 1] first (DESIGN section 1, Datasets).
    """
    samples = torch.from_numpy(samples).clamp(-1, 1)
    window = torch.hann_window(audio.n_fft)
    stft = torch.stft(
        samples, audio.n_fft, audio.hop, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return (stft.abs() + 1e-7).log()


def load_image(path):
    """A frame as an RGB PIL image.

    Raises:
        InputError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"{path}: not a readable picture; extract the clip's frames again") from None


def list_folder(path, flag):
    """The names in a folder, as a set.

    Raises:
        InputError: it is missing or no folder; the message names `flag` as the one to change.
    """
    try:
        return set(os.listdir(path))
    except OSError:
        raise InputError(f"{path}: no such folder; get and preprocess the dataset, or change {flag}") from None


def list_frames(folder):
    """Names of the JPEG frames in a folder, in order; none when there is no such folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))
    except OSError:
        return ()
    return tuple(map(sys.intern, names))  # nearly all clips share their frames' names


def pair_by_id(rows, wav_path, wavs, frames_path, suffix=""):
    """Yield a Clip for each (id, label) of `rows`: sound `<id>.wav` if it is in `wavs`, frames in `<id><suffix>/`."""
    for clip_id, label in rows:
        name, folder = f"{clip_id}.wav", os.path.join(frames_path, f"{clip_id}{suffix}")
        wav = os.path.join(wav_path, name) if name in wavs else ""
        yield Clip(clip_id, wav, folder, list_frames(folder), label)


def hold_out(clips, share, seed):
    """The ids of `share` of the clips of every class, drawn by seed: at least one clip of a class and never all."""
    classes = defaultdict(set)
    for clip in clips:
        classes[clip.label].add(clip.id)
    held_out = set()
    for ids in classes.values():
        count = min(max(round(share * len(ids)), 1), len(ids) - 1)
        held_out.update(sorted(ids, key=lambda clip_id: derived_seed(seed, "val", clip_id))[:count])
    return held_out


class ClipDataset(Dataset):
    """Items (spectrogram (F, T), frames (3, N, H, W), label) of one split. A dataset's subclass builds the index only.

    Training draws N frames in order of time, crops and flips at random, as a function of (seed, epoch, clip) alone;
    evaluation takes N evenly spaced frames and is deterministic.

    Args:
        args: settings (DESIGN section 2): paths, fps, image_size, random_seed, val_ratio.
        split: "train", "test", or "val", the training clips that --val_ratio holds out.
        audio: AudioSettings.
        num_frame: frames per clip, N.
        training: draw and augment; by default for the split "train".

    Attributes:
        clips: the index, a list of Clip.
        skipped: ids of the split that have no sound or fewer than N frames.
        damaged: {id: reason} of clips that cannot be decoded, see dataset/damage.py.
        classes: names of the classes, in the order of their labels.

    Raises:
        InputError: a folder or list is missing or wrong, or every clip is skipped.
    """

    classes = ()
    audio_path = visual_path = split_path = ""

    def __init__(self, args, split, audio, num_frame, training=None):
        self.training = split == "train" if training is None else training
        self.seed, self.audio, self.num_frame = args.random_seed, audio, num_frame
        # shared memory, so that workers that live through the run see the epoch change
        self.shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        size = (args.image_size, args.image_size)
        if self.training:
            augmentation = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            augmentation = [transforms.Resize(size)]
        normalisation = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.transform = transforms.Compose(augmentation + normalisation)
        self.clips, self.skipped, self.damaged = [], [], {}
        for clip in self.index(args, "test" if split == "test" else "train"):
            if clip.wav and len(clip.frames) >= num_frame:
                self.clips.append(clip)
            else:
                self.skipped.append(clip.id)
        if not self.clips:
            raise InputError(
                f"{args.dataset} {split}: none of the {len(self.skipped)} clips listed has sound and "
                f"{num_frame} frame(s); check --audio_path, --visual_path, --split_path, --num_frame"
            )
        if args.val_ratio and split != "test":
            held_out = hold_out(self.clips, args.val_ratio, args.random_seed)
            self.skipped = self.skipped if split == "train" else []
            self.clips = [clip for clip in self.clips if (clip.id in held_out) == (split == "val")]
            if not self.clips:
                raise InputError(
                    f"{args.dataset}: --val_ratio holds out no clip, every class has a single one; add more"
                )

    def __str__(self):
        """The number of clips, and of those left out with the first one's name."""
        text = f"{len(self)} clips"
        if self.skipped:
            text += f", {len(self.skipped)} skipped for want of sound or frames, {self.skipped[0]} first"
        if self.damaged:
            text += f", {len(self.damaged)} skipped as damaged, {next(iter(self.damaged))} first"
        return text

    def left_out(self):
        """Yield (id, reason) of every clip of the split that is left out."""
        for clip_id in self.skipped:
            yield clip_id, f"no sound, or fewer than {self.num_frame} frame(s)"
        yield from self.damaged.items()

    def index(self, args, split):
        """Yield a Clip per entry of the split; `wav` is "" where there is no sound file.

        A dataset whose classes stand in its files sets `self.classes` here first.
        """
        raise NotImplementedError

    @property
    def epoch(self):
        return self.shared_epoch.item()

    def set_epoch(self, epoch):
        """Set the epoch that draws, crops, flips and order depend on."""
        self.shared_epoch.fill_(epoch)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        clip = self.clips[i]
        samples = load_waveform(clip.wav, self.audio.rate)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, clip.id))
            samples = self.crop_sound(samples)
            names = [clip.frames[k] for k in self.frame_numbers(len(clip.frames))]
            frames = [self.transform(load_image(os.path.join(clip.folder, name))) for name in names]
        return log_spectrogram(samples, self.audio), torch.stack(frames, dim=1), clip.label

    def crop_sound(self, samples):
        """Samples (n,) repeated and cropped to the length that AudioSettings says."""
        length = self.audio.rate * self.audio.seconds
        if self.audio.repeat_to is None:
            return np.resize(samples, length)  # repeated to fill, then cut
        samples = np.resize(samples, max(len(samples), self.audio.rate * self.audio.repeat_to))
        spare = len(samples) - length
        start = torch.randint(spare + 1, ()).item() if self.training else spare // 2
        return samples[start : start + length]

    def frame_numbers(self, available):
        """Which N of the available frames to show: drawn in training, the middles of N equal parts in evaluation."""
        if self.training:
            return torch.randperm(available)[: self.num_frame].sort().values.tolist()
        return [(2 * k + 1) * available // (2 * self.num_frame) for k in range(self.num_frame)]


class EpochSampler(Sampler):
    """Every clip once, in an order that is a function of (seed, epoch) alone, beginning at position `start`."""

    def __init__(self, dataset):
        self.dataset, self.start = dataset, 0

    def order(self):
        """The epoch's order, numbers of clips."""
        generator = torch.Generator().manual_seed(derived_seed(self.dataset.seed, self.dataset.epoch, "order"))
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        return iter(self.order()[self.start :])
