"""Every flag of the scripts, in named groups: all of them for main_dgl.py, those of data and run for valid.py.

The scripts under data/ build theirs from `dataset_parser` and `extraction_parser`.

Flags that a dataset decides (paths, frames) default to None here and are filled in from the dataset's entry.
"""

import argparse
import sys
from pathlib import Path

from utils.errors import OneLineParser

# Settings that a resumed run may change: how long, where, and on what machine it runs.
FREE_SETTINGS = {"train", "resume", "epochs", "audio_path", "visual_path", "split_path", "cache_path", "cache_gb"}
FREE_SETTINGS |= {"max_skipped", "num_workers", "device", "gpu_ids", "ckpt_path", "use_tensorboard", "tensorboard_path"}
FREE_SETTINGS |= {"tensorboard_steps", "gradient_report", "overwrite", "config"}
FREE_SETTINGS |= {"umt_audio", "umt_visual", "gblend_runs"}  # where they lie: the methods look at what is in them


def at_least(minimum, kind=int):
    """An argparse type: a finite number of `kind`, not below `minimum`."""

    def number(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not minimum <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least {minimum}")
        return value

    return number


def number_that(holds, words):
    """An argparse type: a finite number of at least 0 for which `holds` is true, else an error in these words."""

    def number(text):
        value = at_least(0, float)(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    return number


positive = number_that(lambda value: value > 0, "above 0")
ratio = number_that(lambda value: 0 < value < 1, "between 0 and 1")
share = number_that(lambda value: value <= 1, "at most 1")


def integers(text):
    """An argparse type: '[70]', '30,60' or '30 60' -> a list of integers of at least 0; '[]' is the empty list."""
    return [at_least(0)(word) for word in text.strip().strip("[]()").replace(",", " ").split()]


def one_of(*words):
    """An argparse type: one of these words."""

    def word(text):
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    word.metavar = f"{{{','.join(words)}}}"
    return word


def three_weights(text):
    """An argparse type: '0.2,0.5,0.3' or '0.2 0.5 0.3' -> a list of three numbers of at least 0."""
    weights = [at_least(0, float)(word) for word in text.strip().strip("[]").replace(",", " ").split()]
    if len(weights) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers")
    return weights


def add_data_flags(parser, datasets):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default="CREMAD", help="dataset (default: %(default)s)")
    group.add_argument("--audio_path", metavar="DIR", help="folder of the wav files (default: as the dataset's readme)")
    group.add_argument("--visual_path", metavar="DIR", help="folder that holds the frames (default: likewise)")
    group.add_argument("--split_path", metavar="DIR", help="folder of the dataset's lists (default: likewise)")
    group.add_argument(
        "--fps", type=at_least(1), default=1, metavar="N", help="read frames extracted at N per second (default: 1)"
    )
    group.add_argument(
        "--num_frame",
        "--use_video_frames",
        type=at_least(1),
        metavar="N",
        help="frames per clip (default: the dataset's); clips with fewer are skipped",
    )
    group.add_argument(
        "--image_size",
        type=at_least(32),
        default=224,
        metavar="PIXELS",
        help="side of the square frames (default: 224; 64 for small machines)",
    )
    group.add_argument(
        "--val_ratio",
        type=ratio,
        metavar="R",
        help="hold out this share of the training clips, stratified and by seed, and choose the best epoch on them "
        "(default: none held out, the best epoch is chosen on the test set, as in the literature)",
    )
    group.add_argument(
        "--cache_path",
        default="train_test_data/.cache",
        metavar="DIR",
        help="decoded clips, kept between runs; may be deleted at any time (default: %(default)s)",
    )
    group.add_argument(
        "--cache_gb",
        type=at_least(0, float),
        default=16,
        metavar="GB",
        help="how large --cache_path may grow (default: 16); clips that do not fit are decoded each time; 0: none kept",
    )
    group.add_argument("--batch_size", type=at_least(1), default=64, metavar="N", help="clips per batch (default: 64)")
    group.add_argument(
        "--num_workers",
        type=at_least(0),
        metavar="N",
        help="reader processes (default: one per core, at most 16, on the CPU one per 8; no effect on results)",
    )


def add_device_flags(group):
    group.add_argument(
        "--device", default="auto", help="auto (default: GPU where there is one), cpu, cuda, cuda:1, mps"
    )
    group.add_argument("--gpu_ids", type=integers, default=[], metavar="ID", help="GPU to use, by number")


def training_parser(datasets, fusion_methods, modalities, backbones, methods, method_flags):
    """The parser of main_dgl.py; choices and the methods' flags, {Flag: methods}, are given by the caller.

    utils import neither datasets, models nor methods: utils/results/settings.py knows them.
    """
    parser = OneLineParser(
        description="Train with Disentangled Gradient Learning or a baseline; without --train, evaluate best.pth."
    )
    add_data_flags(parser, datasets)

    group = parser.add_argument_group("model")
    group.add_argument(
        "--fusion_method", choices=fusion_methods, default="concat", help="fusion module (default: %(default)s)"
    )
    group.add_argument(
        "--modality",
        choices=modalities,
        help="full: both encoders; audio, visual: as --method audio, visual (default: the method's)",
    )

    group.add_argument(
        "--backbone", choices=backbones, default="resnet18", help="what both encoders are (default: %(default)s)"
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="begin the encoders with these weights: imagenet for torchvision's, or checkpoints or state dicts, "
        "FILE[,FILE] (default: at random)",
    )
    group.add_argument(
        "--freeze", choices=("audio", "visual", "both"), help="leave this encoder, or both, as they begin"
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=at_least(1), default=100, metavar="N", help="epochs (default: 100)")
    group.add_argument(
        "--optimizer", choices=("sgd", "AdaGrad", "Adam"), default="sgd", help="sgd (default) has momentum 0.9"
    )
    group.add_argument("--learning_rate", type=positive, default=0.001, metavar="LR", help="(default: 0.001)")
    group.add_argument(
        "--lr_decay_step",
        type=integers,
        default=[70],
        metavar="EPOCHS",
        help="epochs, counted from 0, at which the learning rate decays, such as '[70]' (default) or 30,60",
    )
    group.add_argument("--lr_decay_ratio", type=positive, default=0.1, metavar="R", help="decay factor (default: 0.1)")
    group.add_argument(
        "--random_seed", type=at_least(0), default=0, metavar="N", help="initial weights, order, crops (default: 0)"
    )

    group.add_argument(
        "--compile", action="store_true", help="compile the encoders (torch.compile): slow to begin with, then faster"
    )
    group.add_argument("--amp", choices=("bf16",), help="train the encoders in bfloat16 (autocast; default: float32)")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: slower kernels that give the same bits each time, and no TF32",
    )

    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=methods,
        help="training rule (default: dgl); joint is ordinary end-to-end training of the same model, the baseline",
    )
    group.add_argument(
        "--modulation", choices=("Normal", "OGM", "OGM_GE"), help="the authors' name for --method ogm, ogm_ge"
    )
    group.add_argument(
        "--no_mgt", action="store_true", help="--method no_mgt: multimodal gradient reaches the encoders"
    )
    group.add_argument("--no_ugt", action="store_true", help="--method no_ugt: unimodal gradient reaches fusion")
    for flag, owners in method_flags.items():
        default = f"{flag.default:g}" if isinstance(flag.default, (int, float)) else flag.default
        group.add_argument(
            f"--{flag.name}",
            type=flag.type,
            default=flag.default,
            metavar=flag.metavar or getattr(flag.type, "metavar", None),
            help=f"{', '.join(owners)}: {flag.help}" + ("" if default is None else f" (default: {default})"),
        )

    group = parser.add_argument_group("run")
    group.add_argument("--train", action="store_true", help="train; without it, evaluate CKPT_PATH/best.pth")
    group.add_argument(
        "--max_skipped",
        type=share,
        default=0.05,
        metavar="R",
        help="go on without damaged clips up to this share of all clips (default: 0.05)",
    )
    group.add_argument(
        "--ckpt_path",
        metavar="DIR",
        help="folder for best.pth, last.pth, log.jsonl, run.json, result.json and pictures (default: one that the "
        "settings name, below ckpt/); the same settings again go on with the run in it, as if it had not been "
        "interrupted",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="what is not typed is as in the run in CKPT_PATH, so that this and --ckpt_path go on with it",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="begin anew where a run is, in place of going on with it"
    )
    group.add_argument(
        "--config", metavar="FILE", help="run.json of a run: what is not typed is as in that run, its folder aside"
    )
    add_device_flags(group)
    group.add_argument(
        "--use_tensorboard",
        action="store_true",
        help="write losses, accuracies and gradient magnitudes for TensorBoard; the log has the magnitudes too",
    )
    group.add_argument(
        "--tensorboard_path",
        metavar="DIR",
        help="where to, into a folder named as CKPT_PATH's last part (default: CKPT_PATH/tensorboard)",
    )
    group.add_argument("--tensorboard_steps", action="store_true", help="write them for every step, too")
    group.add_argument(
        "--gradient_report",
        action="store_true",
        help="instead of training, run one batch and print which loss reaches which module, and how strongly",
    )
    return parser


def validation_parser(datasets):
    """The parser of valid.py: the checkpoint, and flags that override the settings recorded in it."""
    parser = OneLineParser(
        description="Evaluate a checkpoint. Model and data are rebuilt from the checkpoint; any other flag overrides."
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="as --ckpt_path; with neither, the newest best.pth below ckpt/"
    )
    parser.add_argument(
        "--ckpt_path",
        nargs="+",
        metavar="PATH",
        help="best.pth or last.pth of a run, or its folder for best.pth; several are compared in one table",
    )
    add_data_flags(parser, datasets)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--video", metavar="FILE", help="instead show the top classes of this video, of any format that FFmpeg reads"
    )
    group.add_argument(
        "--linear_probe",
        action="store_true",
        help="also fit a linear classifier on each frozen encoder's training features and report its test accuracy",
    )
    group.add_argument("--json", metavar="FILE", help="also write the figures to this file; a list for several")
    group.add_argument("--confusion", metavar="FILE", help="also draw the confusion matrices to this PNG file")
    group.add_argument("--predictions", metavar="FILE", help="also write every clip's predictions to this CSV file")
    add_device_flags(group)
    return parser


def add_folder(parser, flag, default, what):
    parser.add_argument(flag, type=Path, default=Path(default), metavar="DIR", help=f"{what} (default: %(default)s)")


def dataset_parser(description, root):
    """The parser of the scripts under data/: where the dataset is."""
    parser = OneLineParser(description=description)
    add_folder(parser, "--root", root, "folder of the dataset")
    return parser


def add_split_path(parser, default):
    """--split_path, for lists that are not in --root."""
    add_folder(parser, "--split_path", default, "folder of the dataset's lists")


def add_target(parser):
    """--target, for outputs that are not to lie in --root."""
    parser.add_argument(
        "--target", type=Path, metavar="DIR", help="folder to write to, where --root is read alone (default: --root)"
    )


def add_kinetics_source(parser):
    """--source, from which both Kinetics-Sounds and Kinetics-400 are made."""
    add_folder(parser, "--source", "train_test_data/kinect400/raw", "folder of the raw train/ and val/")


def extraction_parser(description, root, min_frames=None):
    """The parser of the scripts that extract sound, or frames where `min_frames` gives that flag its default."""
    parser = dataset_parser(description, root)
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--keep_damaged",
        action="store_true",
        help="take what there is of truncated and damaged clips, and list them (default: they fail)",
    )
    if min_frames:
        parser.add_argument("--fps", type=at_least(1), default=1, metavar="N", help="frames per second (default: 1)")
        parser.add_argument(
            "--min_frames",
            type=at_least(1),
            default=min_frames,
            metavar="N",
            help="a clip with fewer fails as too short; training needs --num_frame of them (default: %(default)s)",
        )
    return parser


def parse_settings(parser, settings):
    """Settings, {name: plain value}, as if they had been typed; None and False are not.

    Raises:
        InputError: a value that its flag does not take.
    """
    typed = {name: value for name, value in settings.items() if value is not None and value is not False}
    return parser.parse_args([f"--{name}" if value is True else f"--{name}={value}" for name, value in typed.items()])


def differing(settings, others):
    """Where settings of a run that are not free are not those of another: [(name, value, the other's value), ...]."""
    names = sorted((settings.keys() | others.keys()) - FREE_SETTINGS, key=lambda name: (name != "method", name))
    values = ((name, settings.get(name), others.get(name)) for name in names)
    return [(name, ours, theirs) for name, ours, theirs in values if ours != theirs]


def parse(parser, argv=None):
    """Parse argv -> (args, typed): every flag with its default, and a dict of only those that were typed."""
    args = parser.parse_args(argv)
    untyped = object()
    parser.set_defaults(**dict.fromkeys(vars(args), untyped))
    return args, {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not untyped}


def check_tensorboard(args, typed):
    """Warn of flags of TensorBoard that have no effect."""
    for name in ("tensorboard_path", "tensorboard_steps"):
        if name in typed and not args.use_tensorboard:
            print(f"warning: --{name}: no effect without --use_tensorboard", file=sys.stderr)
