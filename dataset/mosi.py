"""CMU-MOSI: 2,199 utterances of film reviews, negative or positive (Zadeh et al., 2016), as feature vectors."""

import csv
import math
import os
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from dataset.base import Source, hold_out
from utils.errors import InputError
from utils.files import folder_hint

FILES = {"audio": "audio", "visual": "video", "text": "text"}  # modality: name in the files' names


class Utterance(NamedTuple):
    """An utterance: `<split>-<line of the files>`, and its class as a number."""

    id: str
    label: int


class MOSI(Source):
    """`<root>/<name>/<name>_{train,test}0.csv`, an utterance a row, the label in the last column."""

    inputs, backbone = {"audio": 73, "visual": 100, "text": 100}, "mlp"
    classes, n_classes = ("negative", "positive"), 2
    root, num_workers = "train_test_data/MOSI", 0
    script = {"learning_rate": 0.002, "epochs": 30, "lr_decay_step": [20]}
    decides = ("root", "backbone", "num_workers")
    without = Source.without | {"audio_path", "visual_path", "split_path", "fps", "num_frame", "image_size"}
    without |= {"cache_path", "cache_gb", "video"}

    def items(self, args, split, training=None):
        return Utterances(args, split, split == "train" if training is None else training)


class Utterances(Dataset):
    """Items ({modality: (width,)}, label) of one split, standardised by mean and deviation of the training set.

    A list of numbers as index gives a batch: ({modality: (B, width)}, label (B,)).

    Args:
        args: settings: root, random_seed, val_ratio.
        split: "train", "test", or "val", the training utterances that --val_ratio holds out; "plain" equals "train".
        training: draw another order in each epoch.

    Attributes:
        clips: a list of Utterance.
        classes, damaged, skipped, epoch, seed, training: as in dataset.clips.ClipDataset.

    Raises:
        InputError: a file is missing or damaged, or the files do not fit each other; names the line.
    """

    classes, damaged, skipped = MOSI.classes, {}, ()

    def __init__(self, args, split, training):
        self.training, self.seed, self.epoch = training, args.random_seed, 0
        features, labels = read_features(args.root, "train")
        statistics = {name: torch.std_mean(values, dim=0, correction=0) for name, values in features.items()}
        part = "test" if split == "test" else "train"
        if part == "test":
            features, labels = read_features(args.root, part)
        self.clips = [Utterance(f"{part}-{line}", label) for line, label in enumerate(labels.tolist(), 1)]
        numbers = range(len(self.clips))
        if args.val_ratio and part == "train":
            held_out = hold_out(self.clips, args.val_ratio, self.seed, "val")
            numbers = [k for k in numbers if (self.clips[k].id in held_out) == (split == "val")]
        self.clips, self.labels = [self.clips[k] for k in numbers], labels[list(numbers)]
        self.features = {}
        for name, (deviation, mean) in statistics.items():
            standardised = (features[name] - mean) / deviation.where(deviation > 0, 1)  # some columns are constant
            self.features[name] = standardised[list(numbers)].float()

    def __str__(self):
        return f"{len(self)} utterances"

    def left_out(self):
        """Return (), because a damaged file is rejected and no utterance is left out."""
        return ()

    def prepare(self, args, workers):
        """Do nothing: all values are in memory."""

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.features.items()}, self.labels[i]


def read_features(root, split):
    """Read the files of a split -> ({modality: float64 (n, width)}, labels (n,)).

    Raises:
        InputError: a file is missing or damaged, or the files do not fit each other; names the line.
    """
    features, first = {}, None
    for name, file in FILES.items():
        path = os.path.join(root, file, f"{file}_{split}0.csv")
        values, labels = read_file(path, MOSI.inputs[name])
        features[name] = values
        if first is None:
            first, first_labels = path, labels
        if len(labels) != len(first_labels):
            raise InputError(f"{path}: {len(labels)} rows, but {first} has {len(first_labels)}; download both again")
        if wrong := (labels != first_labels).nonzero().flatten().tolist():
            raise InputError(f"{path}, line {wrong[0] + 1}: another label than in {first}; download both again")
    return features, first_labels


def read_file(path, width):
    """Read one file -> (float64 (n, width), labels (n,)).

    Raises:
        InputError: it is missing, or a line is damaged; names the line.
    """
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line, cells in enumerate(csv.reader(file), 1):
                if not cells:  # a blank line
                    continue
                row = [number(cell) for cell in cells]
                if len(row) != width + 1 or not all(map(math.isfinite, row)) or row[-1] not in (0, 1):
                    form = f"{width} finite numbers and a label, 0 or 1"
                    raise InputError(f"{path}, line {line}: not {form}; download the file again")
                rows.append(row)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}{folder_hint(path)}; get it as described in data/MOSI/README.md, or change --root"
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a CSV file of numbers; download it again") from None
    if not rows:
        raise InputError(f"{path}: an empty file; download it again")
    values = torch.tensor(rows, dtype=torch.float64)
    return values[:, :-1], values[:, -1].long()


def number(cell):
    """Return a cell as a number, NaN for text."""
    try:
        return float(cell)
    except ValueError:
        return math.nan
