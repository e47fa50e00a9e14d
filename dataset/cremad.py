"""CREMA-D: 7,442 spoken sentences in six emotions (Cao et al., 2014)."""

import os

from data.lists import CREMAD_EMOTIONS, read_split
from dataset.index import Index, list_folder, pair_by_id


class CREMAD(Index):
    """`<split>.csv`, rows `<id>,<emotion>`; layout as in data/CREMAD/README.md."""

    classes = CREMAD_EMOTIONS
    audio_path = "train_test_data/CREMA-D/AudioWAV"
    visual_path = "train_test_data/CREMA-D"
    split_path = "data/CREMAD"

    def clips(self, args, split):
        folders = f"--root {args.visual_path} --split_path {args.split_path}"
        remedy = f"make it with `python data/CREMAD/make_split.py {folders}`, or put the authors' there"
        rows = read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes, remedy=remedy)
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS")
        wavs = list_folder(args.audio_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, args.audio_path, wavs, frames_path)
