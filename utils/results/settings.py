"""The settings of runs: flags, with what the tables of datasets, models and methods offer; older runs' settings."""

from dataset import DATASETS
from methods import METHODS, flags, resolve
from models import FUSION_MODULES, MODALITIES
from utils import options


def training_parser():
    """The parser of main_dgl.py."""
    return options.training_parser(tuple(DATASETS), tuple(FUSION_MODULES), MODALITIES, tuple(METHODS), flags())


def validation_parser():
    """The parser of valid.py."""
    return options.validation_parser(tuple(DATASETS))


def as_of_today(recorded):
    """Settings that a run recorded, as a run of today would record them: what they lack counts as its default.

    Raises:
        InputError: they name no method, or two.
    """
    return resolve(vars(training_parser().parse_args([])) | recorded)


def label(method, value):
    """A method, as `describe` tells it of a run's settings, in a legend or a title."""
    return method if value is None else f"{method}, alpha {value:g}"
