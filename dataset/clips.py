"""Read clips of any audio-visual dataset: a spectrogram and a few frames per clip."""

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchaudio.functional import spectrogram
from torchvision.transforms import v2

from dataset.base import AudioSettings, hold_out, within_audio
from dataset.cache import prepare
from dataset.wav import wav_fault
from utils.batches import normalise
from utils.errors import InputError
from utils.pool import ClipError
from utils.seeds import derived_seed

SHORTEST = 0.01  # s of audio
LARGEST = 2**31 - 2**24  # bytes of a clip in the cache; NumPy's structured arrays end at 2 GiB
HEADER = 10**7  # characters of a cache file's header, which lists the frames; NumPy's limit is 10,000
RESTORE = "restore it or take its clip off the split list"

cv2.setNumThreads(0)  # its threads wait busily; clips are read by several workers instead


def load_waveform(path, rate):
    """Read an audio file as mono float32 samples (n,) at `rate` Hz.

    Raises:
        InputError: the file is missing, cannot be read or contains no audio.
    """
    import librosa.core.audio  # here, because the import takes seconds, and a warm cache needs no decoding

    try:
        if reason := wav_fault(path):
            raise InputError(f"{path}: {reason}; {RESTORE}")
        with open(path, "rb") as file:  # with a path, librosa would try other decoders if soundfile fails
            samples, file_rate = librosa.load(file, sr=None)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {RESTORE}") from None
    except librosa.util.exceptions.ParameterError:
        raise InputError(f"{path}: samples that are not finite; {RESTORE}") from None
    except RuntimeError:  # soundfile's errors
        remedy = "restore it (`git lfs pull` if it is a Git LFS pointer) or take its clip off the split list"
        raise InputError(f"{path}: not a readable audio file; {remedy}") from None
    if not len(samples):
        raise InputError(f"{path}: contains no audio; {RESTORE}")
    if len(samples) < SHORTEST * file_rate:
        raise InputError(f"{path}: only {len(samples)} sample(s) of audio; {RESTORE}")
    return librosa.resample(samples, orig_sr=file_rate, target_sr=rate)


@cache
def hann_window(length):
    return torch.hann_window(length)


def log_spectrogram(samples, audio):
    """Return log(|STFT| + 1e-7) of samples (n,): Hann window, centred, zero padding -> (n_fft/2 + 1, 1 + n // hop).

    The amplitude is clipped to [-1, 1] first, as in the authors' code.
    """
    n_fft, window = audio.n_fft, hann_window(audio.n_fft)
    magnitude = spectrogram(
        samples.clamp(-1, 1), 0, window, n_fft, audio.hop, n_fft, power=1, normalized=False, pad_mode="constant"
    )
    return magnitude.add_(1e-7).log_()


def load_image(path):
    """Read an image as a tensor of bytes, (H, W, 3), RGB.

    Raises:
        InputError: the file is missing or no image.
    """
    try:
        with open(path, "rb") as file:
            content = np.frombuffer(file.read(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable, or extract the clip's frames again") from None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{path}: {error}") from None
        image = None
    if image is None:
        raise InputError(f"{path}: not a readable image; extract the clip's frames again")
    return torch.from_numpy(image)


def resize(image, size):
    """Resize (H, W, 3) to (size, size, 3): bilinear with antialiasing, equal to PIL within one of 255 steps."""
    return v2.functional.resize(image.permute(2, 0, 1), [size, size]).permute(1, 2, 0)


@dataclass(frozen=True)
class Decoder:
    """Decode the part of a clip that is the same in all epochs and can be cached.

    Args:
        audio: AudioSettings.
        num_frame: frames per clip, N.
        size: side of the images, in pixels.
        training: return whole images and all frames, of which each epoch draws crops and N frames.
    """

    audio: AudioSettings
    num_frame: int
    size: int
    training: bool

    def waveform(self, clip):
        """Return the clip's samples (n,), repeated to the length that `AudioSettings` describes.

        Raises:
            InputError: its file cannot be decoded.
        """
        audio, samples = self.audio, load_waveform(clip.wav, self.audio.rate)
        filled = audio.rate * audio.seconds
        if audio.repeat_to is not None:
            filled = max(len(samples), audio.rate * audio.repeat_to)
        return np.resize(samples, round(filled))

    def frame(self, clip, k):
        """Return the k-th of the clip's `frames`, bytes (H, W, 3); in evaluation resized.

        Raises:
            InputError: its file cannot be decoded.
        """
        image = load_image(os.path.join(clip.folder, self.frames(clip)[k]))
        return image if self.training else resize(image, self.size)

    def frames(self, clip):
        """Return the names of the frames in use: all in training, in evaluation the middles of N equal parts."""
        if self.training:
            return clip.frames
        return [clip.frames[(2 * k + 1) * len(clip.frames) // (2 * self.num_frame)] for k in range(self.num_frame)]

    def arrays(self, clip):
        """Return a clip as a structured array: `waveform` and `frame0`, `frame1`, ...; None if it exceeds LARGEST.

        Raises:
            ClipError: one of its files cannot be decoded; names the file.
        """
        file = clip.wav
        try:
            arrays = {"waveform": self.waveform(clip)}
            size = arrays["waveform"].nbytes
            for k, name in enumerate(self.frames(clip)):
                file = os.path.join(clip.folder, name)
                image = self.frame(clip, k).numpy()
                size += image.nbytes
                if size <= LARGEST:  # all frames are decoded, to find damaged ones
                    arrays[f"frame{k}"] = image
                with Image.open(file) as image:
                    image.load()  # raises for a truncated file, which OpenCV fills up with grey
        except InputError as error:
            raise ClipError(f"{file}: {str(error).removeprefix(f'{file}: ').partition(';')[0]}") from None
        except MemoryError:  # the file may be whole
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise ClipError(f"{file}: {str(error) or f'its decoder failed with {type(error).__name__}'}") from None
        if size > LARGEST:
            return None
        fields = [(name, array.dtype, array.shape) for name, array in arrays.items()]
        return np.array(tuple(arrays.values()), fields)


class ClipDataset(Dataset):
    """Items ({"audio": spectrogram (1, F, T), "visual": frames (3, N, H, W)}, label) of one split.

    Training draws N frames, in order of time, and crops and flips at random, as a function of (seed, epoch, clip)
    alone. Evaluation takes N evenly spaced frames and is deterministic.

    A list of numbers as index gives a batch for utils.batches.to_device: spectrograms (B, 1, F, T), frames as bytes
    (B, N, H, W, 3), and labels (B,).

    Args:
        source: a dataset of this folder, such as CREMAD().
        args: settings: paths, fps, num_frame (N), image_size, random_seed, val_ratio.
        split: "train", "test", or "val", the training clips that --val_ratio holds out; "plain" is "train" as in
            evaluation.
        training: draw and augment; by default for the split "train".

    Attributes:
        clips: a list of Clip.
        skipped: ids of the split that have no audio or fewer than N frames.
        cut: ids of clips whose audio is much shorter than their frames; evaluation takes frames within the audio.
        damaged: {id: reason} of clips that cannot be decoded, see dataset/cache.py.
        cached: {id: file in the cache} of clips that need not be decoded again.
        epoch: draws, crops, flips and order depend on it.
        classes: names of the classes, in the order of their labels.

    Raises:
        InputError: a folder or list is missing or wrong, or every clip is skipped.
    """

    def __init__(self, source, args, split, training=None):
        training, num_frame = split == "train" if training is None else training, args.num_frame
        self.decoder = Decoder(source.audio_settings(args), num_frame, args.image_size, training)
        self.seed = args.random_seed
        self.random_crop = v2.RandomResizedCrop(args.image_size)
        self.training, self.epoch = training, 0
        self.clips, self.skipped, self.cut, self.damaged, self.cached = [], [], [], {}, {}
        for clip in source.clips(args, "test" if split == "test" else "train"):
            if clip.wav and len(clip.frames) >= num_frame:
                self.clips.append(clip)
            else:
                self.skipped.append(clip.id)
        if not training:
            self.clips, whole = [within_audio(clip, args.fps, num_frame) for clip in self.clips], self.clips
            self.cut = [clip.id for clip, old in zip(self.clips, whole, strict=True) if clip is not old]
        self.classes = source.classes
        if not self.clips:
            raise InputError(
                f"{args.dataset} {split}: none of the {len(self.skipped)} clips listed has audio and "
                f"{num_frame} frame(s); check --audio_path, --visual_path, --split_path, --num_frame"
            )
        if args.val_ratio and split != "test":
            held_out = hold_out(self.clips, args.val_ratio, args.random_seed, "val")
            self.skipped = self.skipped if split == "train" else []
            self.clips = [clip for clip in self.clips if (clip.id in held_out) == (split == "val")]
            if not self.clips:
                raise InputError(
                    f"{args.dataset}: --val_ratio holds out no clip, because every class has a single one; add clips"
                )

    def __str__(self):
        """Return the number of clips, and how many are left out and why, with the first id of each kind."""
        text = f"{len(self)} clips"
        if self.skipped:
            text += f", {len(self.skipped)} skipped without audio or enough frames, the first is {self.skipped[0]}"
        if self.cut:
            text += f", {len(self.cut)} with audio much shorter than their frames, the first is {self.cut[0]}"
        if self.damaged:
            text += f", {len(self.damaged)} skipped as damaged, the first is {next(iter(self.damaged))}"
        return text

    def left_out(self):
        """Yield (id, reason) for every clip of the split that is left out."""
        for clip_id in self.skipped:
            yield clip_id, f"no audio, or fewer than {self.decoder.num_frame} frame(s)"
        yield from self.damaged.items()

    def prepare(self, args, workers):
        """Decode the clips that are not in the cache, in `workers` processes; see dataset/cache.py."""
        prepare(self, args, workers)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        if isinstance(i, list):
            return self.batch([self.clips[k] for k in i])
        inputs, label = self.batch([self.clips[i]])
        return {"audio": inputs["audio"][0], "visual": normalise(inputs["visual"][0]).permute(3, 0, 1, 2)}, label.item()

    def batch(self, clips):
        """Return a batch of clips, as drawn in this epoch."""
        waveforms, images = [], []
        with torch.random.fork_rng(devices=()):  # torchvision draws from the CPU's global generator alone
            for clip in clips:
                torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, clip.id))
                cached = self.from_cache(clip)
                waveform = self.decoder.waveform(clip) if cached is None else cached["waveform"]
                waveforms.append(self.crop(torch.from_numpy(waveform)))
                for k in self.frame_numbers(clip):
                    image = self.decoder.frame(clip, k) if cached is None else torch.from_numpy(cached[f"frame{k}"])
                    images.append(self.augment(image) if self.training else image)
        spectrograms = torch.stack([log_spectrogram(waveform, self.decoder.audio) for waveform in waveforms])
        images = torch.stack(images).unflatten(0, (len(clips), -1))
        return {"audio": spectrograms.unsqueeze(1), "visual": images}, torch.tensor([clip.label for clip in clips])

    def from_cache(self, clip):
        """Return a clip's arrays, mapped into memory, or None if they have to be decoded."""
        if clip.id in self.cached:
            with suppress(OSError, ValueError, EOFError):  # the cache can be deleted at any time
                return np.load(self.cached[clip.id], mmap_mode="c", max_header_size=HEADER)
        return None

    def crop(self, samples):
        """Return the dataset's `seconds` of samples (n,): anywhere in training, the middle in evaluation."""
        length = round(self.decoder.audio.rate * self.decoder.audio.seconds)
        room = len(samples) - length
        start = torch.randint(room + 1, ()).item() if self.training else room // 2
        return samples[start : start + length]

    def frame_numbers(self, clip):
        """Return the numbers of the clip's N frames in this epoch."""
        if self.training:
            return sorted(torch.randperm(len(clip.frames))[: self.decoder.num_frame].tolist())
        return range(self.decoder.num_frame)

    def augment(self, image):
        """Crop, resize and flip an image at random: (H, W, 3) -> (size, size, 3).

        The result equals torchvision's RandomResizedCrop and RandomHorizontalFlip to the bit, in 0.5 instead of 1.0 ms
        of one core (480 x 360 to 224 x 224), because the crop is contiguous in memory when it is resized.
        """
        box = self.random_crop.make_params([image.permute(2, 0, 1)])
        top, left = box["top"], box["left"]
        crop = image[top : top + box["height"], left : left + box["width"]].contiguous()
        image = resize(crop, self.decoder.size)
        return image.flip(1) if torch.rand(()) < 0.5 else image
