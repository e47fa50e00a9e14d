"""VGGSound: 199,176 clips of 309 sounds (Chen et al., 2020)."""

import os

from dataset.audio_visual import AudioVisual, image_folder
from dataset.base import AudioSettings
from dataset.lists import read_vggsound, vggsound_aliases
from dataset.raw import find_videos


class VGGSound(AudioVisual):
    """`vggsound.csv`; layout as in data/VGGSound/README.md."""

    n_classes, num_frame = 309, 3
    audio = AudioSettings(rate=16000, seconds=5, n_fft=256, hop=128, repeat_to=10)
    root = "train_test_data/vggsound"
    audio_path, visual_path, split_path = "{root}/audio", "{root}/video", "data/VGGSound"
    raw_flags = ("split_path", "target")

    def wav(self, split, clip_id):
        return f"{split}-audios/{split}-set/{clip_id}.wav"

    def frames(self, split, clip_id, fps):
        return f"{split}-set-img/{image_folder(fps)}/{clip_id}.mp4"

    def rows(self, folder):
        """Return [(id, label, split), ...]."""
        return read_vggsound(os.path.join(folder, "vggsound.csv"))

    def clips(self, args, split):
        rows = self.rows(args.split_path)
        self.classes = tuple(sorted({name for _, name, _ in rows}))
        labels = {name: label for label, name in enumerate(self.classes)}
        return self.pair(args, split, [(clip_id, labels[name]) for clip_id, name, part in rows if part == split])

    def videos(self, args):
        splits = {clip_id: split for clip_id, _, split in self.rows(args.split_path)}
        found, missing = find_videos(os.path.join(args.root, "video"), splits, vggsound_aliases)
        return [(video.name, splits[clip_id], clip_id, video) for clip_id, video in found], missing
