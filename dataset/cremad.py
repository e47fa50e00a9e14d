"""CREMA-D: 7,442 spoken sentences in six emotions (Cao et al., 2014)."""

import os

from dataset.index import Index, list_folder, pair_by_id
from utils.lists import CREMAD_EMOTIONS, read_split


class CREMAD(Index):
    """`<split>.csv`, rows `<id>,<emotion>`; layout as in data/CREMAD/README.md."""

    classes = CREMAD_EMOTIONS
    audio_path = "train_test_data/CREMA-D/AudioWAV"
    visual_path = "train_test_data/CREMA-D"
    split_path = "data/CREMAD"

    def clips(self, args, split):
        rows = read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes)
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS")
        wavs = list_folder(args.audio_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, args.audio_path, wavs, frames_path)
