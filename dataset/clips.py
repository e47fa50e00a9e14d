"""The clip reader that every dataset shares: a spectrogram and a few frames per clip."""

import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.sharedctypes import RawValue

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchaudio.functional import spectrogram
from torchvision.transforms import v2

from data.wav import mended, wav_fault
from dataset.index import AudioSettings, within_sound
from utils.batches import normalise
from utils.errors import InputError
from utils.seeds import derived_seed

SHORTEST = 0.01  # s of sound

cv2.setNumThreads(0)  # its threads wait busily; clips are read by several processes instead


def load_waveform(path, rate):
    """A sound file as mono float32 samples (n,) at `rate` Hz.

    Raises:
        InputError: the file is missing, unreadable or holds no sample.
    """
    import librosa  # here, because its seconds are only for those who decode: a warm cache does without

    try:
        if reason := wav_fault(path):
            raise InputError(f"{path}: {reason}; restore it or take its clip off the split list")
        with mended(path) as file:  # of a path that soundfile refuses, librosa would try other decoders
            samples, file_rate = librosa.load(file, sr=None)
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        remedy = "restore it (`git lfs pull` if it is a Git LFS pointer) or take its clip off the split list"
        raise InputError(f"{path}: not a readable sound file; {remedy}") from None
    if not len(samples):
        raise InputError(f"{path}: holds no sound; restore it or take its clip off the split list")
    if len(samples) < SHORTEST * file_rate:
        remedy = "restore it or take its clip off the split list"
        raise InputError(f"{path}: holds {len(samples)} sample(s) of sound, too short to be heard; {remedy}")
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: samples that are not finite; restore it or take its clip off the split list")
    return librosa.resample(samples, orig_sr=file_rate, target_sr=rate)


@cache
def hann_window(length):
    return torch.hann_window(length)


def log_spectrogram(samples, audio):
    """log(|STFT| + 1e-7) of samples (n,): Hann window, centred, zeros beyond both ends -> (n_fft/2 + 1, 1 + n // hop).

    The amplitude is clipped to [-1, 1] first, as in the authors' code.
    """
    n_fft, window = audio.n_fft, hann_window(audio.n_fft)
    magnitude = spectrogram(
        samples.clamp(-1, 1), 0, window, n_fft, audio.hop, n_fft, power=1, normalized=False, pad_mode="constant"
    )
    return magnitude.add_(1e-7).log_()


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
    return v2.functional.resize(picture.permute(2, 0, 1), [size, size]).permute(1, 2, 0)


@dataclass(frozen=True)
class Decoder:
    """What of a clip is the same in all epochs. dataset/cache.py keeps it, so that it is computed once.

    Args:
        audio: AudioSettings.
        num_frame: frames per clip, N.
        size: side of the pictures, in pixels.
        training: leave to each epoch what it draws: crops of pictures, and N of all frames.
    """

    audio: AudioSettings
    num_frame: int
    size: int
    training: bool

    def sound(self, clip):
        """The clip's samples (n,): repeated to fill the seconds that are used, and cut to them unless they are a crop.

        Raises:
            InputError: its file cannot be decoded.
        """
        samples = load_waveform(clip.wav, self.audio.rate)
        return torch.from_numpy(np.resize(samples, self.length(len(samples))))

    def length(self, samples):
        """How many samples `sound` gives of a file that has so many."""
        audio = self.audio
        return audio.rate * audio.seconds if audio.repeat_to is None else max(samples, audio.rate * audio.repeat_to)

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
        import soundfile

        try:
            info = soundfile.info(clip.wav)
            sound = self.length(-(-info.frames * self.audio.rate // info.samplerate))
            width = height = self.size
            if self.training:
                with Image.open(os.path.join(clip.folder, clip.frames[0])) as image:  # reads the header alone
                    width, height = image.size
            return 4 * sound + 3 * width * height * len(self.frames(clip))
        except Exception:  # decoders raise nearly anything on a damaged file, which is told when it is decoded
            return 0


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
    """Items ({"audio": spectrogram (1, F, T), "visual": frames (3, N, H, W)}, label) of one split.

    Training draws N frames in order of time, crops and flips at random, as a function of (seed, epoch, clip) alone;
    evaluation takes N evenly spaced frames and is deterministic.

    A list of numbers in place of one gives a batch as utils.batches.to_device takes it: spectrograms (B, 1, F, T),
    frames as bytes (B, N, H, W, 3), and labels (B,).

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
        cut: ids of clips whose pictures go on long after their sound; evaluation takes those within it.
        damaged: {id: reason} of clips that cannot be decoded, see dataset/cache.py.
        stored: {path of the sound: Stored} of clips that need not be decoded again, see there.
        classes: names of the classes, in the order of their labels.

    Raises:
        InputError: a folder or list is missing or wrong, or every clip is skipped.
    """

    def __init__(self, index, args, split, audio, num_frame, training=None):
        training = split == "train" if training is None else training
        self.decoder, self.seed = Decoder(audio, num_frame, args.image_size, training), args.random_seed
        self.random_crop = v2.RandomResizedCrop(args.image_size)
        self.shared_epoch = RawValue("q", 0)  # so that workers that live through the run see the epoch change
        self.clips, self.skipped, self.cut, self.damaged, self.stored = [], [], [], {}, {}
        for clip in index.clips(args, "test" if split == "test" else "train"):
            if clip.wav and len(clip.frames) >= num_frame:
                self.clips.append(clip)
            else:
                self.skipped.append(clip.id)
        if not training:
            self.clips, whole = [within_sound(clip, args.fps, num_frame) for clip in self.clips], self.clips
            self.cut = [clip.id for clip, old in zip(self.clips, whole, strict=True) if clip is not old]
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
        if self.cut:
            text += f", {len(self.cut)} with frames taken within a much shorter sound, {self.cut[0]} first"
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
        return self.shared_epoch.value

    def set_epoch(self, epoch):
        """Set the epoch that draws, crops, flips and order depend on."""
        self.shared_epoch.value = epoch

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        if isinstance(i, list):
            return self.batch([self.clips[k] for k in i])
        inputs, label = self.batch([self.clips[i]])
        return {"audio": inputs["audio"][0], "visual": normalise(inputs["visual"][0]).permute(3, 0, 1, 2)}, label.item()

    def batch(self, clips):
        """Return clips as they look in this epoch: a batch as the class describes it."""
        sounds, pictures = [], []
        with torch.random.fork_rng(devices=()):  # torchvision draws from the CPU's global generator alone
            for clip in clips:
                torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, clip.id))
                sounds.append(self.crop(self.fixed("sound", clip)))
                pictures += self.pictures(clip)
        spectrograms = torch.stack([log_spectrogram(sound, self.decoder.audio) for sound in sounds]).unsqueeze(1)
        pictures = torch.stack(pictures).unflatten(0, (len(clips), -1))
        return {"audio": spectrograms, "visual": pictures}, torch.tensor([clip.label for clip in clips])

    def crop(self, samples):
        """The dataset's `seconds` of samples (n,): anywhere in training, the middle in evaluation."""
        length = self.decoder.audio.rate * self.decoder.audio.seconds
        room = len(samples) - length
        start = torch.randint(room + 1, ()).item() if self.decoder.training else room // 2
        return samples[start : start + length]

    def pictures(self, clip):
        """Yield the clip's N pictures in this epoch, bytes (size, size, 3)."""
        numbers = range(self.decoder.num_frame)
        if self.decoder.training:
            numbers = sorted(torch.randperm(len(clip.frames))[: self.decoder.num_frame].tolist())
        for k in numbers:
            picture = self.fixed("picture", clip, k)
            yield self.augment(picture) if self.decoder.training else picture

    def fixed(self, kind, clip, *number):
        """`sound` or `picture` of a clip, from the cache where it is there, else decoded."""
        if clip.wav in self.stored:
            with suppress(RuntimeError):  # the cache may be deleted at any time
                return getattr(self.stored[clip.wav], kind)(*number)
        return getattr(self.decoder, kind)(clip, *number)

    def augment(self, picture):
        """A picture (H, W, 3) cropped, resized and flipped at random -> (size, size, 3).

        The bits of torchvision's RandomResizedCrop and RandomHorizontalFlip, which resize pixels that do not lie
        together, in 1.0 ms of one core where this takes 0.5 (480 x 360 to 224 x 224): with three frames a clip, reading
        from the cache would take 1.4 times as long.
        """
        box = self.random_crop.make_params([picture.permute(2, 0, 1)])
        top, left = box["top"], box["left"]
        crop = picture[top : top + box["height"], left : left + box["width"]].contiguous()
        picture = resize(crop, self.decoder.size)
        return picture.flip(1) if torch.rand(()) < 0.5 else picture
