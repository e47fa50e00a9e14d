"""Folder: your own videos, in a folder for each class."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from dataset.audio_visual import AudioVisual
from dataset.base import AudioSettings, hold_out
from dataset.raw import list_classes, list_videos
from utils.errors import InputError, warn_once
from utils.files import folder_hint


class Folder(AudioVisual):
    """`<root>/{train,test}/<class>/<video>`, or `<root>/<class>/<video>`, of which a share is held out for testing.

    The classes are the class folders that have a training clip with audio and frames. A clip's id is its path below
    the root; data/Folder/extract.py writes its wav file and frames below `<root>/.extracted`.
    """

    audio, num_frame = AudioSettings(rate=22050, seconds=3, n_fft=512, hop=256), 1
    script = {"learning_rate": 0.002, "lr_decay_step": [20], "epochs": 30, "batch_size": 8}
    root = "train_test_data/my_videos"
    audio_path, visual_path, split_path = "{root}/.extracted/audio", "{root}/.extracted", "{root}"
    without = frozenset()

    def preprocessing(self, args):
        return f"run `python data/Folder/extract.py --root {args.root}`"

    def audio_settings(self, args):
        return replace(self.audio, seconds=args.audio_seconds)

    def outputs(self, args):
        """Return the number of classes: a checkpoint's, or those of the folder."""
        if getattr(args, "classes", None):
            return len(args.classes)
        return len(self.all_clips(args)[0])

    def clips(self, args, split):
        self.classes, clips, left_out = self.all_clips(args)
        usable = [clip for clip in clips if is_usable(clip, args)]
        if is_split(args.root):
            test = {clip.id for clip in clips if clip.id.startswith("test/")}
        else:
            test = hold_out(usable, args.test_share, args.random_seed, "test")
        if left_out:
            words = f"no training clip with audio and {args.num_frame} frame(s)"
            warn_once(f"{args.root}: class(es) left out, {words}: {', '.join(left_out)}")
        tested = {self.classes[clip.label] for clip in usable if clip.id in test}
        if untested := [name for name in self.classes if name not in tested]:
            warn_once(f"{args.root}: class(es) without a test clip: {', '.join(untested)}")
        return [clip for clip in clips if (clip.id in test) == (split == "test")]

    def all_clips(self, args):
        """Return the names of the classes, the clips of both splits, and the names of the classes that are left out.

        A class is left out if it has no training clip with audio and frames.

        Raises:
            InputError: fewer than two classes have a training clip with audio and frames.
        """
        found = list_class_videos(args.root)
        clips = list(self.pair(args, "", ((clip_id, name) for clip_id, name, _ in found)))
        trained = Counter(clip.label for clip in clips if is_usable(clip, args) and not clip.id.startswith("test/"))
        classes = sorted(trained)
        left_out = sorted({clip.label for clip in clips} - set(classes))
        if len(classes) < 2:
            raise InputError(
                f"{args.root}: only {len(classes)} class(es) with a training clip that has audio and {args.num_frame} "
                f"frame(s), two are needed; {self.preprocessing(args)}, or change --num_frame or --fps"
            )
        labels = {name: label for label, name in enumerate(classes)}
        clips = [clip._replace(label=labels[clip.label]) for clip in clips if clip.label in labels]
        return tuple(classes), clips, left_out

    def videos(self, args):
        return [(clip_id, "", clip_id, video) for clip_id, _, video in list_class_videos(args.root)], ""


def is_usable(clip, args):
    """Return True if a clip has audio and enough frames."""
    return clip.wav and len(clip.frames) >= args.num_frame


def is_split(root):
    """Return True if a folder is divided into train/ and test/.

    Raises:
        InputError: it has only one of the two.
    """
    existing = [name for name in ("train", "test") if os.path.isdir(os.path.join(root, name))]
    if len(existing) == 1:
        raise InputError(
            f"{root}: has {existing[0]}/ only; add the other one, or rename {existing[0]}/ if it is a class"
        )
    return bool(existing)


def list_class_videos(root):
    """Return [(id, class, path of the video), ...] of a folder, in order.

    Raises:
        InputError: the folder is missing, or no class folder in it has a video.
    """
    root, found = Path(root), []
    parts = [root / "train", root / "test"] if is_split(root) else [root]
    try:
        for folder in (folder for part in parts for folder in list_classes(part)):
            for video in list_videos(folder, "--root"):
                found.append((video.relative_to(root).as_posix(), folder.name, video))
    except OSError as error:
        raise InputError(
            f"{root}: {error.strerror}{folder_hint(root)}; put your videos into {root}/<class>/, or change --root"
        ) from None
    if not found:
        raise InputError(f"{root}: no video in a folder {root}/<class>/; put your videos there, or change --root")
    return found
