"""AVE: 4,143 clips of audio-visual events in 28 categories (Tian et al., 2018)."""

import os

from dataset.index import Index, list_folder, pair_by_id
from utils.lists import read_ave


class AVE(Index):
    """`trainSet.txt` and `testSet.txt`; layout as in data/AVE/README.md.

    `valSet.txt` is not used, but for its categories.
    """

    audio_path = "train_test_data/AVE_Dataset/Audios"
    visual_path = "train_test_data/AVE_Dataset"
    split_path = "train_test_data/AVE_Dataset"

    def clips(self, args, split):
        lists = {name: read_ave(os.path.join(args.split_path, f"{name}Set.txt")) for name in ("train", "val", "test")}
        self.classes = tuple(sorted({category for rows in lists.values() for _, category in rows}))
        labels = {category: label for label, category in enumerate(self.classes)}
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS-SE")
        rows = [(clip_id, labels[category]) for clip_id, category in lists[split]]
        wavs = list_folder(args.audio_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, args.audio_path, wavs, frames_path)
