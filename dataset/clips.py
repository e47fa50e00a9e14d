"""The clip reader that every dataset shares: a spectrogram and a few frames per clip."""

import math
import os
import random
import wave
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from dataset.index import AudioSettings
from utils.errors import InputError
from utils.training.device import normalise
from utils.training.seeds import derived_seed

cv2.setNumThreads(0)  # its threads wait busily; clips are read by several processes instead


def read_pcm16(path):
    """What soundfile.read gives of a wav of 16-bit integers, the same bits in a quarter of the time; None of others."""
    with suppress(wave.Error, EOFError), wave.open(os.fspath(path)) as file:
        if file.getsampwidth() == 2:
            channels = file.getnchannels()
            content = file.readframes(min(file.getnframes(), os.path.getsize(path)))  # a header may promise gigabytes
            samples = np.frombuffer(content, "<i2", len(content) // (2 * channels) * channels) * np.float32(2**-15)
            return samples if channels == 1 else samples.reshape(-1, channels), file.getframerate()


def load_waveform(path, rate):
    """A sound file as mono float32 samples (n,) at `rate` Hz, resampled as librosa.load does (soxr, high quality).

    Raises:
        InputError: the file is missing, unreadable or holds no sample.
    """
    try:
        samples, file_rate = read_pcm16(path) or soundfile.read(path, dtype="float32")
    except (OSError, soundfile.SoundFileError):
        remedy = "restore it (`git lfs pull` if it is a Git LFS pointer) or take its clip off the split list"
        raise InputError(f"{path}: not a readable sound file; {remedy}") from None
    if not len(samples):
        raise InputError(f"{path}: holds no sound; restore it or take its clip off the split list")
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: samples that are not finite; restore it or take its clip off the split list")
    if samples.ndim > 1:
        samples = samples.mean(axis=1)
    if file_rate != rate:
        length = -(-len(samples) * rate // file_rate)  # rounded up
        samples = soxr.resample(samples, file_rate, rate, quality="HQ")[:length]
        if len(samples) < length:
            samples = np.pad(samples, (0, length - len(samples)))
    return samples


@cache
def hann_window(length):
    return torch.hann_window(length)


def log_spectrogram(samples, audio):
    """log(|STFT| + 1e-7) of samples (n,): Hann window, centred, zeros beyond both ends -> (n_fft/2 + 1, 1 + n // hop).

    The amplitude is clipped to [-1, 1] first. Half the time of torch.stft and torch.abs.
    """
    padded = np.zeros(len(samples) + audio.n_fft, np.float32)
    np.clip(samples, -1, 1, out=padded[audio.n_fft // 2 : -(audio.n_fft // 2)])
    windows = torch.from_numpy(padded).unfold(0, audio.n_fft, audio.hop) * hann_window(audio.n_fft)  # (T, n_fft)
    magnitude = torch.from_numpy(np.abs(torch.fft.rfft(windows).numpy()))
    return magnitude.add_(1e-7).log_().T


def load_picture(path):
    """A frame as a tensor of bytes, (H, W, 3), RGB.

    Raises:
        InputError: the file is missing or no picture.
    """
    try:
        with open(path, "rb") as file:
            content = np.frombuffer(file.read(), np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, cv2.error):
        picture = None
    if picture is None:
        raise InputError(f"{path}: not a readable picture; extract the clip's frames again")
    return torch.from_numpy(picture)


def resize(picture, size):
    """A picture (H, W, 3) as (size, size, 3): bilinear with antialiasing, as PIL does it, to the last of 255 steps."""
    # channels last to the strides, also of a batch of one: otherwise the pixels are taken apart and put together again
    picture = picture.unsqueeze(0).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    picture = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
    return picture.permute(0, 2, 3, 1).squeeze(0)


@dataclass(frozen=True)
class Decoder:
    """What of a clip is the same in all epochs. dataset/cache.py keeps it, so that it is computed once.

    Args:
        audio: AudioSettings.
        num_frame: frames per clip, N.
        size: side of the pictures, in pixels.
        training: leave to each epoch what it draws: crops, and N of all frames.
    """

    audio: AudioSettings
    num_frame: int
    size: int
    training: bool

    @property
    def crops_sound(self):
        """Whether each epoch crops the sound elsewhere."""
        return self.training and self.audio.repeat_to is not None

    def sound(self, clip):
        """The spectrogram (F, T), or where each epoch crops the sound elsewhere its samples (n,).

        Raises:
            InputError: its file cannot be decoded.
        """
        samples, audio = load_waveform(clip.wav, self.audio.rate), self.audio
        length = audio.rate * audio.seconds
        if audio.repeat_to is None:
            samples = np.resize(samples, length)  # repeated to fill, then cut
        else:
            samples = np.resize(samples, max(len(samples), audio.rate * audio.repeat_to))
            if self.crops_sound:
                return torch.from_numpy(samples)
            start = (len(samples) - length) // 2
            samples = samples[start : start + length]
        return log_spectrogram(samples, audio)

    def picture(self, clip, k):
        """The k-th of the clip's `frames`, bytes (H, W, 3); in evaluation resized.

        Raises:
            InputError: its file cannot be decoded.
        """
        picture = load_picture(os.path.join(clip.folder, self.frames(clip)[k]))
        return picture if self.training else resize(picture, self.size)

    def frames(self, clip):
        """Names of the frames to choose from: all in training, in evaluation the middles of N equal parts."""
        if self.training:
            return clip.frames
        return [clip.frames[(2 * k + 1) * len(clip.frames) // (2 * self.num_frame)] for k in range(self.num_frame)]

    def expected_bytes(self, clip):
        """How much memory a clip's sound and pictures take, from the headers of its files; 0 if they cannot be read."""
        try:
            samples = self.audio.rate * self.audio.seconds
            sound = (self.audio.n_fft // 2 + 1) * (samples // self.audio.hop + 1)
            if self.crops_sound:
                info = soundfile.info(clip.wav)
                samples = -(-info.frames * self.audio.rate // info.samplerate)
                sound = max(samples, self.audio.rate * self.audio.repeat_to)
            width = height = self.size
            if self.training:
                with Image.open(os.path.join(clip.folder, clip.frames[0])) as image:  # reads the header alone
                    width, height = image.size
            return 4 * sound + 3 * width * height * len(self.frames(clip))
        except Exception:  # decoders raise nearly anything on a damaged file, which is told when it is decoded
            return 0


def draw_crop(height, width, rng):
    """The box of a RandomResizedCrop with its usual ranges: 8 to 100 % of the area, aspect ratio 3:4 to 4:3.

    Returns:
        (top, left, height, width); after ten draws that do not fit, the largest central box of such a ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


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
    """Items (spectrogram (F, T), frames (3, N, H, W), label) of one split.

    Training draws N frames in order of time, crops and flips at random, as a function of (seed, epoch, clip) alone;
    evaluation takes N evenly spaced frames and is deterministic.

    A list of numbers in place of one gives a batch as utils.training.device.to_device takes it: spectrograms (B, F, T),
    pictures as bytes (B, N, H, W, 3), and labels (B,).

    Args:
        index: the dataset's Index.
        args: settings: paths, fps, image_size, random_seed, val_ratio.
        split: "train", "test", or "val", the training clips that --val_ratio holds out; "plain", "train" as evaluated.
        audio: AudioSettings.
        num_frame: frames per clip, N.
        training: draw and augment; by default for the split "train".

    Attributes:
        clips: a list of Clip.
        skipped: ids of the split that have no sound or fewer than N frames.
        damaged: {id: reason} of clips that cannot be decoded, see dataset/cache.py.
        stored: {path of the sound: Stored} of clips that need not be decoded again, see there.
        classes: names of the classes, in the order of their labels.

    Raises:
        InputError: a folder or list is missing or wrong, or every clip is skipped.
    """

    def __init__(self, index, args, split, audio, num_frame, training=None):
        training = split == "train" if training is None else training
        self.decoder, self.seed = Decoder(audio, num_frame, args.image_size, training), args.random_seed
        # shared memory, so that workers that live through the run see the epoch change
        self.shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.clips, self.skipped, self.damaged, self.stored = [], [], {}, {}
        for clip in index.clips(args, "test" if split == "test" else "train"):
            if clip.wav and len(clip.frames) >= num_frame:
                self.clips.append(clip)
            else:
                self.skipped.append(clip.id)
        self.classes = index.classes
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
            yield clip_id, f"no sound, or fewer than {self.decoder.num_frame} frame(s)"
        yield from self.damaged.items()

    @property
    def epoch(self):
        return self.shared_epoch.item()

    def set_epoch(self, epoch):
        """Set the epoch that draws, crops, flips and order depend on."""
        self.shared_epoch.fill_(epoch)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        if isinstance(i, list):
            return self.batch([self.clips[k] for k in i])
        spectrogram, pictures, label = (part[0] for part in self.batch([self.clips[i]]))
        return spectrogram, normalise(pictures).permute(3, 0, 1, 2), label.item()

    def batch(self, clips):
        """Clips as they look in this epoch: spectrograms (B, F, T), pictures as bytes (B, N, H, W, 3), labels (B,)."""
        draws = [(clip, random.Random(derived_seed(self.seed, self.epoch, clip.id))) for clip in clips]
        # first all sounds, then all pictures: what a processor does over and over stays in its caches
        sounds = torch.stack([self.sound(*draw) for draw in draws])
        pictures = torch.stack([picture for draw in draws for picture in self.pictures(*draw)])
        return sounds, pictures.unflatten(0, (len(clips), -1)), torch.tensor([clip.label for clip in clips])

    def sound(self, clip, rng):
        """The clip's spectrogram (F, T) in this epoch."""
        sound, audio = self.fixed("sound", clip), self.decoder.audio
        if self.decoder.crops_sound:
            start = rng.randint(0, len(sound) - audio.rate * audio.seconds)
            sound = log_spectrogram(sound[start : start + audio.rate * audio.seconds].numpy(), audio)
        return sound

    def pictures(self, clip, rng):
        """Yield the clip's N pictures in this epoch, bytes (size, size, 3)."""
        numbers = range(self.decoder.num_frame)
        if self.decoder.training:
            numbers = sorted(rng.sample(range(len(clip.frames)), self.decoder.num_frame))
        for k in numbers:
            yield self.augment(self.fixed("picture", clip, k), rng)

    def fixed(self, kind, clip, *number):
        """`sound` or `picture` of a clip, from the cache where it is there, else decoded."""
        if clip.wav in self.stored:
            with suppress(RuntimeError):  # the cache may be deleted at any time
                return getattr(self.stored[clip.wav], kind)(*number)
        return getattr(self.decoder, kind)(clip, *number)

    def augment(self, picture, rng):
        """A picture (H, W, 3) cropped, resized and flipped at random in training -> (size, size, 3)."""
        if not self.decoder.training:
            return picture
        size = self.decoder.size
        top, left, height, width = draw_crop(*picture.shape[:2], rng)
        picture = resize(picture[top : top + height, left : left + width], size)
        return picture.flip(1) if rng.random() < 0.5 else picture
