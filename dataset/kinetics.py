"""Kinetics-400 (Kay et al., 2017), and Kinetics-Sounds, the classes of it that can be heard (Arandjelovic, 2017)."""

import os

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
        wav_path = os.path.join(args.audio_path, split)
        folder = {"train": "train_img", "test": "val_img"}[split]
        frames_path = os.path.join(args.visual_path, folder, f"Image-{args.fps:02d}-FPS")
        wavs, folders = list_tree(wav_path, "--audio_path"), list_tree(frames_path, "--visual_path or --fps")
        rows = []
        for clip_id in sorted({wav.removesuffix(".wav") for wav in wavs} | folders):
            name = clip_id.partition("/")[0]
            if name not in labels:
                raise InputError(f"{args.dataset} {split}: a folder {name}, which is none of the classes; move it away")
            rows.append((clip_id, labels[name]))
        return pair_by_id(rows, wav_path, wavs, frames_path)

    def class_names(self, args):
        return tuple(list_classes(os.path.join(args.audio_path, "train"), "--audio_path"))


class KineticSound(Kinetics400):
    """The same for the classes in `class.txt`, in its order."""

    audio_path = "train_test_data/kinect_sound/audio"
    visual_path = "train_test_data/kinect_sound/visual"
    split_path = "data/KineticSound"

    def class_names(self, args):
        return tuple(read_classes(os.path.join(args.split_path, "class.txt")))


def list_classes(path, flag):
    """Names of the class folders in a folder, in order; errors as `list_folder`."""
    names = sorted(name for name in list_folder(path, flag) if not name.startswith("."))
    return [name for name in names if os.path.isdir(os.path.join(path, name))]


def list_tree(path, flag):
    """What the class folders in a folder hold, as a set of `<class>/<name>`; errors as `list_folder`."""
    folders = {name: list_folder(os.path.join(path, name), flag) for name in list_classes(path, flag)}
    return {f"{folder}/{name}" for folder, names in folders.items() for name in names if not name.startswith(".")}
