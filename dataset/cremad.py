"""CREMA-D: 7,442 clips of actors who speak sentences in six emotions (Cao et al., 2014)."""

import os

from dataset.audio_visual import SplitLists
from dataset.base import AudioSettings
from dataset.raw import list_videos


class CREMAD(SplitLists):
    """`<split>.csv`, rows `<id>,<emotion>`; layout as in data/CREMAD/README.md."""

    classes, n_classes = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"), 6
    audio = AudioSettings(rate=22050, seconds=3, n_fft=512, hop=353)
    root = "train_test_data/CREMA-D"
    audio_path, visual_path, split_path = "{root}/AudioWAV", "{root}", "data/CREMAD"

    def remedy(self, args):
        folders = f"--root {args.visual_path} --split_path {args.split_path}"
        return f"create it with `python data/CREMAD/make_split.py {folders}`, or copy the authors' list there"

    def videos(self, args):
        videos = list_videos(os.path.join(args.root, "VideoFlash"), "--root")
        return [(video.name, "", video.stem, video) for video in videos], ""
