"""Kinetics-400 (Kay et al., 2017), and Kinetics-Sounds, the classes of it that can be heard (Arandjelovic, 2017)."""

import os
import sys
from collections import Counter

from data.lists import read_classes
from dataset.index import Index, list_folder, pair_by_id
from utils.errors import InputError


class Kinetics400(Index):
    """Class folders, without a list; layout as in data/kinect400/README.md.

    A clip is what its class folder has sound or frames of.
    """

    audio_path = "train_test_data/kinect400/audio"
    visual_path = "train_test_data/kinect400/visual"

    def clips(self, args, split):
        self.classes = self.class_names(args)
        labels = {name: label for label, name in enumerate(self.classes)}
        wav_path, frames_path = paths(args, split)
        wavs, folders = list_clips(args, split)
        rows, others = [], Counter()
        for clip_id in sorted({wav.removesuffix(".wav") for wav in wavs} | folders):
            name = clip_id.partition("/")[0]
            if name in labels:
                rows.append((clip_id, labels[name]))
            else:
                others[name] += 1
        self.leave_out(others, f"{args.dataset} {split}")
        return pair_by_id(rows, wav_path, wavs, frames_path)

    def class_names(self, args):
        """The classes that have a training clip with sound and frames."""
        wavs, folders = list_clips(args, "train")
        usable = {wav.removesuffix(".wav") for wav in wavs} & folders
        return tuple(sorted({clip_id.partition("/")[0] for clip_id in usable}))

    def leave_out(self, others, where):
        """Tell how many clips there are of other classes, {name: number of clips}."""
        if others and os.environ.get("RANK", "0") == "0":  # the first of several processes
            words = f"{others.total()} clip(s) left out, of classes without a training clip that has sound and frames"
            print(f"warning: {where}: {words}: {', '.join(others)}", file=sys.stderr)


class KineticSound(Kinetics400):
    """The same for the classes in `class.txt`, in its order."""

    audio_path = "train_test_data/kinect_sound/audio"
    visual_path = "train_test_data/kinect_sound/visual"
    split_path = "data/KineticSound"

    def class_names(self, args):
        return tuple(read_classes(os.path.join(args.split_path, "class.txt")))

    def leave_out(self, others, where):
        if others:
            raise InputError(f"{where}: a folder {next(iter(others))}, which is none of the classes; move it away")


def paths(args, split):
    """The folders of a split's sound and frames."""
    folder = {"train": "train_img", "test": "val_img"}[split]
    frames_path = os.path.join(args.visual_path, folder, f"Image-{args.fps:02d}-FPS")
    return os.path.join(args.audio_path, split), frames_path


def list_clips(args, split):
    """What there is of a split: sound, as a set of `<class>/<name>.wav`, and frames, as one of `<class>/<name>`."""
    wav_path, frames_path = paths(args, split)
    return list_tree(wav_path, "--audio_path"), list_tree(frames_path, "--visual_path or --fps")


def list_classes(path, flag):
    """Names of the class folders in a folder, in order; errors as `list_folder`."""
    names = sorted(name for name in list_folder(path, flag) if not name.startswith("."))
    return [name for name in names if os.path.isdir(os.path.join(path, name))]


def list_tree(path, flag):
    """What the class folders in a folder hold, as a set of `<class>/<name>`; errors as `list_folder`."""
    folders = {name: list_folder(os.path.join(path, name), flag) for name in list_classes(path, flag)}
    return {f"{folder}/{name}" for folder, names in folders.items() for name in names if not name.startswith(".")}
