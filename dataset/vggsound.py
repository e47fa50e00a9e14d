"""VGGSound: 199,176 clips of 309 sounds (Chen et al., 2020)."""

import os

from dataset.index import Index, list_folder, pair_by_id
from utils.lists import read_vggsound


class VGGSound(Index):
    """`vggsound.csv`; layout as in data/VGGSound/README.md."""

    audio_path = "train_test_data/vggsound/audio"
    visual_path = "train_test_data/vggsound/video"
    split_path = "data/VGGSound"

    def clips(self, args, split):
        rows = read_vggsound(os.path.join(args.split_path, "vggsound.csv"))
        self.classes = tuple(sorted({label for _, label, _ in rows}))
        labels = {name: label for label, name in enumerate(self.classes)}
        wav_path = os.path.join(args.audio_path, f"{split}-audios", f"{split}-set")
        frames_path = os.path.join(args.visual_path, f"{split}-set-img", f"Image-{args.fps:02d}-FPS")
        rows = [(clip_id, labels[name]) for clip_id, name, of_split in rows if of_split == split]
        wavs = list_folder(wav_path, "--audio_path")
        list_folder(frames_path, "--visual_path or --fps")
        return pair_by_id(rows, wav_path, wavs, frames_path, suffix=".mp4")
