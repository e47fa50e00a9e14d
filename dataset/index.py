"""What an index is made of: a dataset's file in this folder says which clips there are, and where their files lie."""

import math
import os
import sys
from dataclasses import dataclass
from typing import NamedTuple

from data.lists import read_split
from data.wav import mended
from utils.errors import InputError
from utils.files import looked_in


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

    def files(self):
        """The paths of its files, the sound first."""
        return self.wav, *(os.path.join(self.folder, name) for name in self.frames)


class Index:
    """Base of the datasets' indices.

    Attributes:
        classes: names of the classes, in the order of their labels.
        audio_path, visual_path, split_path: where its files are unless flags say otherwise; "" where there are none.
    """

    classes = ()
    audio_path = visual_path = split_path = ""

    def clips(self, args, split):
        """Yield a Clip per entry of the split, "train" or "test"; `wav` is "" where there is no sound file.

        A dataset whose classes stand in its files sets `self.classes` here first.

        Raises:
            InputError: a folder or list is missing or wrong.
        """
        raise NotImplementedError


class SplitLists(Index):
    """Base of datasets with lists `<split>.csv`, rows `<id>,<class>`, and files that are named by id.

    Sound in <audio_path>/<id>.wav, frames in <visual_path>/Image-<fps, 2 digits>-FPS/<id>/.
    """

    def remedy(self, args):
        """What to do where a list is missing, in words."""
        raise NotImplementedError

    def clips(self, args, split):
        rows = read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes, remedy=self.remedy(args))
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS")
        wavs = list_folder(args.audio_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, args.audio_path, wavs, frames_path)


def list_folder(path, flag):
    """The names in a folder, as a set.

    Raises:
        InputError: it is missing or no folder; the message names `flag` as the one to change.
    """
    try:
        return set(os.listdir(path))
    except OSError:
        raise InputError(
            f"{path}: no such folder{looked_in(path)}; get and preprocess the dataset, or change {flag}"
        ) from None


def list_frames(folder):
    """Names of the frames in a folder, JPEG or PNG, in order; none when there is no such folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith((".jpg", ".png")))
    except OSError:
        return ()
    return tuple(map(sys.intern, names))  # nearly all clips share their frames' names


def within_sound(clip, fps, num_frame):
    """A Clip without the frames beyond its sound, where its pictures go on for more than twice as long.

    Frames, `fps` of a second, begin with the sound; `num_frame` of them stay in any case.
    """
    import soundfile  # which --help does without

    try:
        with mended(clip.wav) as file:
            info = soundfile.info(file)
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return clip  # what it lacks is told when it is decoded
    seconds = info.frames / info.samplerate
    if len(clip.frames) / fps <= 2 * seconds + 1:
        return clip
    return clip._replace(frames=clip.frames[: max(num_frame, math.ceil(seconds * fps))])


def pair_by_id(rows, wav_path, wavs, frames_path, suffix=""):
    """Yield a Clip for each (id, label) of `rows`: sound `<id>.wav` if it is in `wavs`, frames in `<id><suffix>/`."""
    for clip_id, label in rows:
        name, folder = f"{clip_id}.wav", os.path.join(frames_path, f"{clip_id}{suffix}")
        wav = os.path.join(wav_path, name) if name in wavs else ""
        yield Clip(clip_id, wav, folder, list_frames(folder), label)
