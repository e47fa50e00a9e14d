"""CREMA-D: 7,442 spoken sentences in six emotions (Cao et al., 2014)."""

import os

from dataset.clips import Clip, ClipDataset, list_folder, list_frames, read_split


class CREMAD(ClipDataset):
    """Index of `<split>.csv`, rows `<id>,<emotion>`; layout as in DESIGN section 1, Datasets."""

    classes = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    audio_path = "train_test_data/CREMA-D/AudioWAV"
    visual_path = "train_test_data/CREMA-D"

    def index(self, args, split):
        wavs = list_folder(args.audio_path, "--audio_path")
        frames_path = os.path.join(args.visual_path, f"Image-{args.fps:02d}-FPS")
        list_folder(frames_path, "--visual_path or --fps")
        for clip_id, label in read_split(os.path.join(args.split_path, f"{split}.csv"), self.classes):
            name = f"{clip_id}.wav"
            wav = os.path.join(args.audio_path, name) if name in wavs else ""
            yield Clip(clip_id, wav, list_frames(os.path.join(frames_path, clip_id)), label)
