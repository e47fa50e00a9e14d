"""The flags of the scripts: none comes or goes by accident, and docs/flags.md lists them all."""

from engine import settings
from tests.conftest import ROOT
from utils.config import as_markdown

DATA = "dataset root audio_path visual_path split_path fps num_frame image_size val_ratio cache_path cache_gb"
DATA = {*DATA.split(), "batch_size", "num_workers", "test_share", "audio_seconds"}
DEVICE = {"device", "gpu_ids"}
METHOD = {"method", "modulation", "no_mgt", "no_ugt", "alpha", "ogm_alpha", "modulation_starts", "modulation_ends"}
MODEL = {"fusion_method", "modality", "epochs", "optimizer", "learning_rate", "lr_decay_step", "lr_decay_ratio", "amp"}
MODEL |= {"backbone", "weights", "freeze", "alone", "compile"}
RUN = {"train", "max_skipped", "resume", "ckpt_path", "gradient_report", "random_seed", "deterministic"}
RUN |= {"overwrite", "config"}
BOARD = {"use_tensorboard", "tensorboard_path", "tensorboard_steps", "log_suppression"}
OF_METHODS = {
    "joint_uni": "weight",
    "ogm": "rule",
    "agm": "alpha clip mask ends",
    "pmr": "alpha mu momentum entropy ends rule",
    "mmpareto": "gamma rescale",
    "relearn": "lambda every times unimodal",
    "umt": "audio visual text lambda",
    "inforeg": "beta k unimodal",
    "gblend": "runs weights",
    "lfm": "weights match tau",
    "mla": "projection",
}
METHOD |= {f"{method}_{name}" for method, names in OF_METHODS.items() for name in names.split()}
VALIDATION = {"paths", "ckpt_path", "video", "linear_probe", "json", "confusion", "predictions"}


def names(parser):
    return {action.dest for action in parser._actions} - {"help"}


def test_flags_of_training():
    assert names(settings.training_parser()) == DATA | DEVICE | METHOD | MODEL | RUN | BOARD


def test_flags_of_validation():
    assert names(settings.validation_parser()) == DATA | DEVICE | VALIDATION


def test_docs_flags_md_is_generated():
    """If this fails, run `python -m utils.config > docs/flags.md`."""
    assert (ROOT / "docs" / "flags.md").read_text() == as_markdown()
