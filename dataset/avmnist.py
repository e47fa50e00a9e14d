"""AV-MNIST: 3,000 spoken digits, each with a handwritten one of its own (after Vielzeuf et al., 2018)."""

from dataset.audio_visual import SplitLists
from dataset.base import AudioSettings


class AVMNIST(SplitLists):
    """`<split>.csv`, rows `<id>,<digit>`; layout as in data/AVMNIST/README.md."""

    classes, n_classes = tuple("0123456789"), 10
    audio = AudioSettings(rate=8000, seconds=1, n_fft=256, hop=64)
    script = {"learning_rate": 0.01, "lr_decay_step": [4], "batch_size": 32, "image_size": 32, "val_ratio": 0.1}
    root = "train_test_data/AV-MNIST"
    audio_path, visual_path, split_path = "{root}/recordings", "{root}", "{root}"

    def remedy(self, args):
        folders = f"--root {args.visual_path} --split_path {args.split_path}"
        return f"create it with `python data/AVMNIST/make_pairs.py {folders}`"
