"""AV-MNIST: 3,000 spoken digits, each with a handwritten one of its own (after Vielzeuf et al., 2018)."""

import os

from data.lists import DIGITS, read_split
from dataset.index import Index, list_folder, pair_by_id


class AVMNIST(Index):
    """`<split>.csv`, rows `<id>,<digit>`; layout as in data/AVMNIST/README.md."""

    classes = DIGITS
    audio_path = "train_test_data/AV-MNIST/recordings"
    visual_path = split_path = "train_test_data/AV-MNIST"

    def clips(self, args, split):
        rows = read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes)
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS")
        wavs = list_folder(args.audio_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, args.audio_path, wavs, frames_path)
