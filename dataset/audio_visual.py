"""Base of the datasets of audio and frames: which clips they have, and where the files are."""

import os

from dataset.base import Clip, Source, list_frames
from dataset.clips import ClipDataset
from dataset.lists import read_split
from utils.errors import InputError
from utils.files import folder_hint


class AudioVisual(Source):
    """Base of the datasets of audio and frames. A subclass sets the attributes and defines `clips`.

    Attributes:
        classes: `clips` sets them if they stand in files.
        audio: AudioSettings.
        num_frame: frames per clip.
        audio_path, visual_path, split_path: folders of the wav files, of the frames, and of the lists.
        raw_flags: flags of the extraction scripts next to --root: target, split_path, source.
    """

    audio, num_frame = None, 1
    audio_path = visual_path = split_path = ""
    decides = ("root", "backbone", "audio_path", "visual_path", "split_path", "num_frame")
    raw_flags = ("target",)

    def audio_settings(self, args):
        """Return the AudioSettings of a run."""
        return self.audio

    def preprocessing(self, args):
        """Return advice for a message about a missing folder."""
        return "get and preprocess the dataset"

    def wav(self, split, clip_id):
        """Return the path of a clip's wav file below audio_path."""
        return f"{clip_id}.wav"

    def frames(self, split, clip_id, fps):
        """Return the path of the folder of a clip's frames below visual_path."""
        return f"{image_folder(fps)}/{clip_id}"

    def items(self, args, split, training=None):
        dataset = ClipDataset(self, args, split, training)
        if len(dataset.classes) > self.outputs(args):
            where = args.split_path or args.audio_path
            raise InputError(
                f"{where}: {len(dataset.classes)} classes, but {args.dataset} has {self.outputs(args)}; "
                "remove the others"
            )
        return dataset

    def clips(self, args, split):
        """Return an iterable of the split's clips, "train" or "test"; `wav` is "" where there is no wav file.

        Args:
            args: settings: audio_path, visual_path, split_path, fps.

        Raises:
            InputError: a folder or list is missing or wrong.
        """
        raise NotImplementedError

    def videos(self, args):
        """Return the raw videos, [(name for messages, split, clip id, path), ...], and a text about missing ones or "".

        Args:
            args: flags of an extraction script: root, and `raw_flags`.

        Raises:
            InputError: a folder or list is missing or wrong.
        """
        raise NotImplementedError

    def pair(self, args, split, rows):
        """Yield a Clip for each (id, label) of `rows`.

        Raises:
            InputError: the folder of the wav files or of the frames is missing.
        """
        for path, flag in (
            (os.path.join(args.audio_path, self.wav(split, "")), "--audio_path"),
            (os.path.join(args.visual_path, self.frames(split, "", args.fps)), "--visual_path or --fps"),
        ):
            check_folder(os.path.dirname(path), flag, self.preprocessing(args))
        for clip_id, label in rows:
            wav = os.path.join(args.audio_path, self.wav(split, clip_id))
            folder = os.path.join(args.visual_path, self.frames(split, clip_id, args.fps))
            yield Clip(clip_id, wav if os.path.isfile(wav) else "", folder, list_frames(folder), label)


class SplitLists(AudioVisual):
    """Base of the datasets with lists `<split>.csv`, rows `<id>,<class>`."""

    def remedy(self, args):
        """Return advice for a message about a missing list."""
        return "get or create it as described in the dataset's readme"

    def clips(self, args, split):
        rows = read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes, remedy=self.remedy(args))
        return self.pair(args, split, rows)


def image_folder(fps):
    """Return the name of a folder of frames, extracted at `fps` per second."""
    return f"Image-{fps:02d}-FPS"


def check_folder(path, flag, remedy="get and preprocess the dataset"):
    """Raise InputError if there is no such folder, or it cannot be read; the message names `flag`."""
    try:
        with os.scandir(path):
            pass
    except OSError as error:
        remedy = "make it readable" if isinstance(error, PermissionError) else remedy
        raise InputError(f"{path}: {error.strerror}{folder_hint(path)}; {remedy}, or change {flag}") from None
