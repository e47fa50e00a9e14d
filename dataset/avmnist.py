"""AV-MNIST: 3,000 spoken digits, each with a handwritten one of its own (after Vielzeuf et al., 2018)."""

from data.lists import DIGITS
from dataset.index import SplitLists


class AVMNIST(SplitLists):
    """`<split>.csv`, rows `<id>,<digit>`; layout as in data/AVMNIST/README.md."""

    classes = DIGITS
    audio_path = "train_test_data/AV-MNIST/recordings"
    visual_path = split_path = "train_test_data/AV-MNIST"

    def remedy(self, args):
        folders = f"--root {args.visual_path} --split_path {args.split_path}"
        return f"make it with `python data/AVMNIST/make_pairs.py {folders}`"
