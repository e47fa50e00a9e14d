"""AVE: 4,143 clips of audio-visual events in 28 categories (Tian et al., 2018)."""

import os

from dataset.audio_visual import AudioVisual
from dataset.base import AudioSettings
from dataset.lists import read_ave
from dataset.raw import find_videos


class AVE(AudioVisual):
    """`trainSet.txt` and `testSet.txt`; layout as in data/AVE/README.md.

    Of `valSet.txt` training uses only the categories. The extraction scripts extract its clips too.
    """

    n_classes = 28
    audio = AudioSettings(rate=22050, seconds=3, n_fft=512, hop=256)
    root = "train_test_data/AVE_Dataset"
    audio_path, visual_path, split_path = "{root}/Audios", "{root}", "{root}"

    def frames(self, split, clip_id, fps):
        images, _, name = super().frames(split, clip_id, fps).partition("/")
        return f"{images}-SE/{name}"

    def lists(self, folder):
        """Return {split: [(id, category), ...]}."""
        return {name: read_ave(os.path.join(folder, f"{name}Set.txt")) for name in ("train", "val", "test")}

    def clips(self, args, split):
        lists = self.lists(args.split_path)
        self.classes = tuple(sorted({category for rows in lists.values() for _, category in rows}))
        labels = {category: label for label, category in enumerate(self.classes)}
        return self.pair(args, split, [(clip_id, labels[category]) for clip_id, category in lists[split]])

    def videos(self, args):
        ids = {clip_id for rows in self.lists(args.root).values() for clip_id, _ in rows}
        found, missing = find_videos(os.path.join(args.root, "AVE"), ids)
        return [(video.name, "", clip_id, video) for clip_id, video in found], missing
