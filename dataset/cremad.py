"""CREMA-D: 7,442 spoken sentences in six emotions (Cao et al., 2014)."""

from data.lists import CREMAD_EMOTIONS
from dataset.index import SplitLists


class CREMAD(SplitLists):
    """`<split>.csv`, rows `<id>,<emotion>`; layout as in data/CREMAD/README.md."""

    classes = CREMAD_EMOTIONS
    audio_path = "train_test_data/CREMA-D/AudioWAV"
    visual_path = "train_test_data/CREMA-D"
    split_path = "data/CREMAD"

    def remedy(self, args):
        folders = f"--root {args.visual_path} --split_path {args.split_path}"
        return f"make it with `python data/CREMAD/make_split.py {folders}`, or put the authors' there"
