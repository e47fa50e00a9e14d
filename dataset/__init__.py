"""The table of datasets, and the builder of one. A new dataset is a file in this folder and a row here."""

import utils  # noqa: F401, I001  before all else: it rejects a Python that is too old

from dataset.ave import AVE
from dataset.avmnist import AVMNIST
from dataset.cremad import CREMAD
from dataset.folder import Folder
from dataset.kinetics import Kinetics400, KineticSound
from dataset.mosi import MOSI
from dataset.vggsound import VGGSound

DATASETS = {
    "CREMAD": CREMAD,
    "KineticSound": KineticSound,
    "VGGSound": VGGSound,
    "AVE": AVE,
    "kinect400": Kinetics400,
    "AVMNIST": AVMNIST,
    "MOSI": MOSI,
    "Folder": Folder,
}


def build_dataset(args, split, training=None):
    """Return a split of `args.dataset`, "train", "val" or "test", as a torch Dataset; see `Source.items`."""
    return DATASETS[args.dataset]().items(args, split, training)
