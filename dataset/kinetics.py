"""Kinetics-400 (Kay et al., 2017), and Kinetics-Sounds, its classes with typical sounds (Arandjelovic, 2017)."""

import os
from collections import Counter
from pathlib import Path

from dataset.audio_visual import AudioVisual, check_folder, image_folder
from dataset.base import AudioSettings
from dataset.lists import read_classes
from dataset.raw import find_class_videos, list_classes
from utils.errors import InputError, warn_once

PROJECT = Path(__file__).resolve().parents[1]


class Kinetics400(AudioVisual):
    """Class folders, without a list; layout as in data/kinect400/README.md. A clip's id is `<class>/<video>`."""

    n_classes, num_frame = 400, 3
    audio = AudioSettings(rate=16000, seconds=8, n_fft=256, hop=128, repeat_to=10)
    root = "train_test_data/kinect400"
    audio_path, visual_path = "{root}/audio", "{root}/visual"
    raw_flags, source = ("source",), "train_test_data/kinect400/raw"

    def wav(self, split, clip_id):
        return f"{split}/{clip_id}.wav"

    def frames(self, split, clip_id, fps):
        return f"{'train_img' if split == 'train' else 'val_img'}/{image_folder(fps)}/{clip_id}"

    def clips(self, args, split):
        self.classes = self.class_names(args)
        labels = {name: label for label, name in enumerate(self.classes)}
        rows, others = [], Counter()
        wavs, folders = self.listed(args, split)
        for clip_id in sorted(wavs | folders):
            name = clip_id.partition("/")[0]
            if name in labels:
                rows.append((clip_id, labels[name]))
            else:
                others[name] += 1
        self.leave_out(others, f"{args.dataset} {split}")
        return self.pair(args, split, rows)

    def listed(self, args, split):
        """Return the ids of a split that have a wav file, and those that have a folder of frames: two sets."""
        wav_folder = os.path.dirname(os.path.join(args.audio_path, self.wav(split, "")))
        frames_folder = os.path.dirname(os.path.join(args.visual_path, self.frames(split, "", args.fps)))
        wavs = list_tree(wav_folder, "--audio_path")
        return {name.removesuffix(".wav") for name in wavs}, list_tree(frames_folder, "--visual_path or --fps")

    def class_names(self, args):
        """Return the classes that have a training clip with audio and frames."""
        wavs, folders = self.listed(args, "train")
        return tuple(sorted({clip_id.partition("/")[0] for clip_id in wavs & folders}))

    def leave_out(self, others, where):
        """Warn of the clips of other classes, {name: number of clips}."""
        if others:
            words = f"{others.total()} clip(s) left out, of classes without a training clip that has audio and frames"
            warn_once(f"{where}: {words}: {', '.join(others)}")

    def videos(self, args):
        found = find_class_videos(args.source, self.wanted(args))
        return [
            (f"{split}/{name}/{video.name}", split, f"{name}/{video.stem}", video) for split, name, video in found
        ], ""

    def wanted(self, args):
        """Return the classes to extract; None for all."""


class KineticSound(Kinetics400):
    """Kinetics-Sounds: as Kinetics400, with the classes in `class.txt` only, in its order."""

    n_classes = 34
    audio = AudioSettings(rate=16000, seconds=5, n_fft=256, hop=128, repeat_to=10)
    root = "train_test_data/kinect_sound"
    split_path = "data/KineticSound"
    raw_flags = ("source", "split_path")

    def class_names(self, args):
        return tuple(read_classes(os.path.join(args.split_path, "class.txt")))

    def leave_out(self, others, where):
        if others:
            raise InputError(f"{where}: a folder {next(iter(others))}, which is not one of the classes; move it away")

    def wanted(self, args):
        is_default = str(args.split_path) == self.split_path  # found from any working directory
        return read_classes((PROJECT if is_default else Path()) / args.split_path / "class.txt")


def list_tree(path, flag):
    """Return the content of the class folders in a folder, as a set of `<class>/<name>`."""
    check_folder(path, flag)
    try:
        found = ((folder.name, name) for folder in list_classes(path) for name in os.listdir(folder))
        return {f"{label}/{name}" for label, name in found if not name.startswith(".")}
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable, or change {flag}") from None
