"""Define every flag of main_dgl.py and valid.py: name, type, default, help, group, and effect on results.

The table FLAGS is the only source of the parsers, run.json, the checks before a run resumes, the names of run folders,
and docs/flags.md. `python -m utils.config` prints docs/flags.md.
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from utils.errors import OneLineParser


def at_least(minimum, kind=int):
    """Return an argparse type that accepts finite numbers of `kind` that are at least `minimum`."""

    def number(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not minimum <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least {minimum}")
        return value

    return number


def number_that(condition, description):
    """Return an argparse type that accepts finite numbers of at least 0 for which `condition(number)` is true.

    Args:
        condition: function of the number.
        description: the condition in words, for error messages, such as "below 1".
    """

    def number(text):
        value = at_least(0, float)(text)
        if not condition(value):
            raise argparse.ArgumentTypeError(f"{text} is not {description}")
        return value

    return number


positive = number_that(lambda value: value > 0, "above 0")
ratio = number_that(lambda value: 0 < value < 1, "between 0 and 1")
below_one = number_that(lambda value: value < 1, "below 1")
share = number_that(lambda value: value <= 1, "at most 1")
number, count, one_or_more = at_least(0, float), at_least(0), at_least(1)


def integers(text):
    """Parse '[70]', '30,60' or '30 60' into a list of integers of at least 0; '[]' is the empty list."""
    return [count(word) for word in text.strip().strip("[]()").replace(",", " ").split()]


def weights(text):
    """Parse '0.2,0.5,0.3' or '0.2 0.5 0.3' into a list of numbers of at least 0."""
    return [number(word) for word in text.strip().strip("[]").replace(",", " ").split()]


@dataclass(frozen=True)
class Flag:
    """One flag of the command line.

    Attributes:
        name: the flag without dashes, on the command line and in run.json.
        group: heading in --help.
        help: what the flag does and when to change it, without the default.
        type: function that converts the typed text; bool for a flag without a value.
        choices: the accepted values; () if `build_parser` gets them from its caller, or if any value is accepted.
        results: True if the flag changes results. Such flags are part of a run's folder name, and a resumed run must
            have the same values.
        methods: names of the methods that the flag belongs to; () for all methods.
        scripts: the scripts that take the flag, main_dgl.py ("main") or valid.py ("valid").
    """

    name: str
    group: str
    help: str
    type: Callable = str
    default: object = None
    choices: tuple = ()
    metavar: str | None = None
    results: bool = True
    aliases: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ("main",)

    def default_text(self):
        """Return the default as a user would type it; "" if there is no default."""
        if self.type is bool or self.default in (None, []):
            return ""
        return self.default if isinstance(self.default, str) else format_value(self.default)

    def help_text(self):
        """Return the help text, after the flag's methods and before its default."""
        owners = f"{', '.join(self.methods)}: " if self.methods else ""
        default = self.default_text()
        return owners + self.help + (f" (default: {default})" if default else "")


DGL, OGM, BOTH = ("dgl", "no_mgt", "no_ugt", "no_mgt+no_ugt"), ("ogm", "ogm_ge"), ("main", "valid")

# Settings outside the group "run" that a resumed run may change: files may have moved, and --epochs may grow.
FREE = {
    "root",
    "audio_path",
    "visual_path",
    "split_path",
    "cache_path",
    "cache_gb",
    "num_workers",
    "epochs",
    "gblend_runs",
    "umt_audio",
    "umt_visual",
    "umt_text",
}
# The settings of FREE that are also part of a run's folder name, because runs with other teachers are other runs.
NAMED = {"gblend_runs", "umt_audio", "umt_visual", "umt_text"}
ALIASES = {"num_frame": ("use_video_frames",)}


def flags(group, *rows, **attributes):
    """Return a list of Flags.

    Args:
        group: group of all of them.
        rows: (name, type or choices, default, metavar, help) of each.
        attributes: further attributes of all of them, such as `methods`.
    """
    group_flags = []
    for name, kind, default, metavar, text in rows:
        options = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        options |= {"results": group != "run" and name not in FREE, "aliases": ALIASES.get(name, ())}
        group_flags.append(Flag(name, group, text, default=default, metavar=metavar, **options, **attributes))
    return group_flags


# fmt: off
FLAGS = (  # name, type or choices, default, metavar, help
    *flags(
        "data",
        ("dataset", str, "CREMAD", None, "name of the dataset"),
        ("root", str, None, "DIR", "folder of the dataset (default: its folder in train_test_data/)"),
        ("audio_path", str, None, "DIR", "folder of the wav files (default: the dataset's subfolder of --root)"),
        ("visual_path", str, None, "DIR", "folder of the frames (default: the dataset's subfolder of --root)"),
        ("split_path", str, None, "DIR", "folder of the lists of clips (default: the dataset's)"),
        ("fps", one_or_more, 1, "N", "use the frames that were extracted at N frames per second"),
        ("num_frame", one_or_more, None, "N", "frames per clip (default: the dataset's); clips with fewer are skipped"),
        ("image_size", at_least(32), 224, "PIXELS", "side of the square frames; use 64 on a small machine"),
        (
            "val_ratio", below_one, None, "R",
            "hold out this share of the training clips and choose the best epoch on them; the choice of clips is "
            "stratified and depends on the seed (default: 0, choose the best epoch on the test set, as in the "
            "literature)",
        ),
        (
            "test_share", ratio, 0.2, "R",
            "Folder without test/: share of each class that is held out for testing; the clips depend on the seed",
        ),
        (
            "audio_seconds", at_least(0.5, float), 3.0, "S",
            "Folder: seconds of audio per clip; shorter audio is repeated",
        ),
        (
            "cache_path", str, "train_test_data/.cache", "DIR",
            "cache of decoded clips, shared by all runs; you can delete it at any time",
        ),
        (
            "cache_gb", number, 16.0, "GB",
            "maximum size of the cache; clips that do not fit are decoded each time; 0: no cache",
        ),
        ("batch_size", one_or_more, 64, "N", "clips per batch, in all processes together"),
        (
            "num_workers", count, None, "N",
            "data-loading workers (default: one per core, at most 16; on the CPU one per 8 cores)",
        ),
        scripts=BOTH,
    ),
    *flags(
        "model",
        (
            "fusion_method", str, "concat", None,
            "fusion module; concat, sum and mixer take any number of modalities, the others two; mmtm needs ResNets",
        ),
        (
            "modality", str, None, None,
            "full: all encoders; audio, visual, text: same as --method audio, visual, text (default: the method's)",
        ),
        ("backbone", str, None, None, "architecture of the encoders (default: the dataset's, resnet18 or mlp)"),
        (
            "weights", str, None, "FILE",
            "initial weights of the encoders: imagenet (from torchvision), or FILE[,FILE], checkpoints or state dicts "
            "(default: random)",
        ),
        (
            "freeze", ("audio", "visual", "text", "both"), None, None,
            "do not train this encoder; both: train no encoder",
        ),
        (
            "alone", ("own", "zeros"), "own", None,
            "how the fusion module scores one modality alone. own, as in the authors' code: its feature takes the "
            "place of the others (film, bilinear), it gates itself (gated), or only its own layer is used (sum). "
            "zeros, as in the paper: 0 takes the place of the others, always so with concat, mixer and mmtm",
        ),
    ),
    *flags(
        "optimisation",
        ("epochs", one_or_more, 100, "N", "number of epochs"),
        (
            "optimizer", ("sgd", "AdaGrad", "Adam"), "sgd", None,
            "sgd: momentum 0.9, weight decay 1e-4, learning rate by schedule; Adam: AdamW with weight decay 0.01; Adam "
            "and AdaGrad have a constant learning rate",
        ),
        ("learning_rate", positive, 0.001, "LR", "initial learning rate"),
        (
            "lr_decay_step", integers, [70], "EPOCHS",
            "epochs, counted from 0, at which the learning rate decays, such as '[70]' or 30,60",
        ),
        ("lr_decay_ratio", positive, 0.1, "R", "factor of the learning rate at each decay"),
        ("random_seed", count, 0, "N", "seed of the initial weights, the order of the clips, and the crops"),
        (
            "compile", bool, False, None,
            "compile the encoders with torch.compile: the first step is slow, later steps are faster",
        ),
        ("amp", ("bf16",), None, None, "data type in which autocast trains the encoders (default: float32)"),
        ("deterministic", bool, False, None, "on a GPU, repeat a run to the bit: slower kernels, no TF32"),
    ),
    *flags(
        "method",
        (
            "method", str, None, None,
            "training method (default: dgl); joint, the baseline, is ordinary end-to-end training of the same model",
        ),
        (
            "modulation", ("Normal", "OGM", "OGM_GE"), None, None,
            "OGM, OGM_GE: same as --method ogm, ogm_ge, as in the authors' code",
        ),
        ("no_mgt", bool, False, None, "same as --method no_mgt: the multimodal gradient reaches the encoders"),
        ("no_ugt", bool, False, None, "same as --method no_ugt: the unimodal gradient reaches the fusion module"),
    ),
    *flags(
        "method",
        ("alpha", number, 4.0, "A", "weight of the unimodal losses, the only value to tune: try 1 to 8"),
        methods=DGL,
    ),
    *flags(
        "method",
        ("ogm_alpha", number, 0.1, "A", "strength of the modulation"),
        (
            "ogm_rule", ("cvpr", "journal"), "cvpr", None,
            "coefficient; cvpr: 1 - tanh(alpha rho); journal: 1 - alpha tanh(rho - 1), at least 0, and 1 at rho = 1",
        ),
        ("modulation_starts", count, 0, "EPOCH", "first epoch, counted from 0, that is modulated"),
        ("modulation_ends", count, 50, "EPOCH", "last epoch, counted from 0, that is modulated"),
        methods=OGM,
    ),
    *flags(
        "method",
        (
            "joint_uni_weight", number, 1.0, "W",
            "weight of the unimodal losses; probably alpha of what Table 4 of the DGL paper calls G-Blending",
        ),
        methods=("joint_uni",),
    ),
    *flags(
        "method",
        (
            "gblend_runs", str, None, "DIR,DIR,...",
            "finished runs of joint and of each modality alone, trained with --val_ratio",
        ),
        ("gblend_weights", weights, None, "W,W,...", "weights of the joint and unimodal losses, such as 0.2,0.5,0.3"),
        methods=("gblend",),
    ),
    *flags(
        "method",
        ("agm_alpha", number, 1.0, "A", "strength of the modulation"),
        (
            "agm_clip", bool, False, None,
            "clip all gradients to norm 1 if an entry of the fusion module's gradient is above 1, as in the published "
            "code",
        ),
        (
            "agm_mask", ("shared", "passes"), "shared", None,
            "features next to a masked modality; shared: those of the full pass; passes: encode the batch again",
        ),
        ("agm_ends", count, 20, "EPOCH", "last epoch, counted from 0, that is modulated"),
        methods=("agm",),
    ),
    *flags(
        "method",
        ("pmr_alpha", number, 1.0, "A", "weight of the slower modality's prototype loss"),
        ("pmr_mu", number, 0.01, "MU", "weight of the leading modality's entropy"),
        ("pmr_momentum", share, 0.2, "SHARE", "share of the old prototypes in the new ones, 0 to 1"),
        ("pmr_entropy", count, 10, "EPOCHS", "number of epochs with the entropy term, from the first epoch on"),
        ("pmr_ends", count, None, "EPOCH", "last epoch, counted from 0, that is rebalanced (default: the last one)"),
        ("pmr_rule", ("paper", "code"), "paper", None, "source of the coefficients: paper or published code"),
        methods=("pmr",),
    ),
    *flags(
        "method",
        ("mmpareto_gamma", number, 1.5, "GAMMA", "factor of the encoders' gradients"),
        (
            "mmpareto_rescale", ("encoder", "tensor"), "encoder", None,
            "restore the gradient's length for each encoder or for each tensor",
        ),
        methods=("mmpareto",),
    ),
    *flags(
        "method",
        (
            "mla_projection", ("on", "off"), "on", None,
            "project the gradient of the head; off: plain alternation, as in the published code",
        ),
        methods=("mla",),
    ),
    *flags(
        "method",
        (
            "lfm_match", ("infonce", "code"), "infonce", None,
            "matching loss; infonce: InfoNCE of the features, as in the paper; code: divergence of the outputs",
        ),
        ("lfm_tau", positive, 0.1, "TAU", "temperature of InfoNCE; the paper does not state one"),
        (
            "lfm_weights", ("heuristic", "fitted"), "heuristic", None,
            "weight of the matching loss by epoch; fitted: the published code's curve for CREMA-D",
        ),
        methods=("lfm",),
    ),
    *flags(
        "method",
        (
            "relearn_lambda", number, 3.0, "LAMBDA",
            "how strongly an encoder is moved towards its initial weights; the paper has 3 for CREMA-D, 7 for "
            "Kinetics-Sounds and UCF-101, 8 for MOSI",
        ),
        (
            "relearn_every", one_or_more, 20, "EPOCHS",
            "epochs between two re-learning steps; the paper has 20, for MOSI 5",
        ),
        ("relearn_times", count, 3, "N", "maximum number of re-learning steps; the paper has no maximum"),
        ("relearn_unimodal", number, 0.0, "W", "weight of unimodal losses with separate heads; 1 is the paper's Ours+"),
        methods=("relearn",),
    ),
    *flags(
        "method",
        ("umt_audio", str, None, "FILE", "audio teacher, best.pth of a run of --method audio"),
        ("umt_visual", str, None, "FILE", "visual teacher, best.pth of a run of --method visual"),
        ("umt_text", str, None, "FILE", "text teacher, best.pth of a run of --method text"),
        (
            "umt_lambda", number, 10.0, "LAMBDA",
            "weight of the distance to the teachers' features; tune it: try 1, 10, 50",
        ),
        methods=("umt",),
    ),
    *flags(
        "method",
        ("inforeg_beta", number, 0.9, "BETA", "strength of the regulation"),
        (
            "inforeg_k", at_least(-math.inf, float), 0.04, "K",
            "relative rise of an encoder's trace above which the encoder is regulated",
        ),
        (
            "inforeg_unimodal", number, 0.0, "W",
            "weight of unimodal losses with separate heads; 1 is the paper's InfoReg*",
        ),
        methods=("inforeg",),
    ),
    *flags(
        "run",
        ("train", bool, False, None, "train; without it, evaluate CKPT_PATH/best.pth"),
        (
            "max_skipped", share, 0.05, "R",
            "leave out damaged clips if they are at most this share of all clips; otherwise stop",
        ),
        (
            "ckpt_path", str, None, "DIR",
            "folder for best.pth, last.pth, log.jsonl, run.json, result.json and figures; the same command again "
            "resumes the run in it (default: a folder in ckpt/ named after the settings)",
        ),
        ("resume", bool, False, None, "take every flag that you do not type from the run in CKPT_PATH"),
        ("overwrite", bool, False, None, "remove the run that is in CKPT_PATH and start again"),
        (
            "config", str, None, "FILE",
            "run.json of a run: take every flag that you do not type from it, except CKPT_PATH",
        ),
    ),
    *flags(
        "run",
        ("device", str, "auto", None, "auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"),
        ("gpu_ids", integers, [], "ID", "number of the GPU to use; with several processes, one number for each"),
        scripts=BOTH,
    ),
    *flags(
        "run",
        ("use_tensorboard", bool, False, None, "write losses, accuracies and gradient norms for TensorBoard"),
        (
            "tensorboard_path", str, None, "DIR",
            "folder for TensorBoard; each run has a subfolder named after CKPT_PATH (default: CKPT_PATH/tensorboard)",
        ),
        ("tensorboard_steps", bool, False, None, "also write TensorBoard's values for every step"),
        (
            "log_suppression", bool, False, None,
            "log for each epoch how much fusion suppresses the gradient of each encoder (concat, sum only); reads the "
            "training clips once more per epoch; python -m analysis.suppression draws the values",
        ),
        (
            "gradient_report", bool, False, None,
            "instead of training, run one batch and print how strongly each loss reaches each module",
        ),
    ),
    *flags(
        "run",
        (
            "ckpt_path", str, None, "PATH",
            "best.pth or last.pth of a run, or its folder for its best.pth; several are compared in one table",
        ),
        ("video", str, None, "FILE", "print the top classes of this video instead; any format that FFmpeg reads"),
        (
            "linear_probe", bool, False, None,
            "also fit a linear classifier on each frozen encoder's training features and report its test accuracy",
        ),
        (
            "json", str, None, "FILE",
            "also write the metrics to this JSON file; for several checkpoints it holds a list",
        ),
        ("confusion", str, None, "FILE", "also draw the confusion matrices to this PNG file"),
        ("predictions", str, None, "FILE", "also write the predictions for every clip to this CSV file"),
        scripts=("valid",),
    ),
)
# fmt: on

TRAINING = {flag.name: flag for flag in FLAGS if "main" in flag.scripts}
METHOD_FLAGS = {name: flag for name, flag in TRAINING.items() if flag.methods}
DEFAULTS = {name: flag.default for name, flag in TRAINING.items()}
PATHS = ("audio_path", "visual_path", "split_path")  # where a dataset's files are


def changes_results(name):
    """Return True if the setting `name` changes the results of a run."""
    return name in TRAINING and TRAINING[name].results


def build_parser(script, description, choices):
    """Return the parser of main_dgl.py ("main") or valid.py ("valid").

    Args:
        description: text at the top of --help.
        choices: {flag name: accepted values} of the flags whose values other packages define.
    """
    parser = OneLineParser(description=description)
    groups = {}
    for flag in FLAGS:
        if script not in flag.scripts:
            continue
        flag = replace(flag, choices=tuple(choices.get(flag.name, flag.choices)))
        group = groups.setdefault(flag.group, None) or parser.add_argument_group(flag.group)
        groups[flag.group] = group
        names = [f"--{name}" for name in (flag.name, *flag.aliases)]
        if flag.type is bool:
            group.add_argument(*names, action="store_true", help=flag.help_text())
        else:
            group.add_argument(
                *names,
                type=flag.type,
                default=flag.default,
                choices=flag.choices or None,
                metavar=None if flag.choices else flag.metavar or flag.name.upper(),
                help=flag.help_text().replace("%", "%%"),
            )
    return parser


def parse(parser, argv=None):
    """Parse argv and return (settings, typed): a Namespace of all flags, and {name: value} of the typed flags only."""
    settings = parser.parse_args(argv)
    untyped = object()
    defaults = {name: parser.get_default(name) for name in vars(settings)}
    parser.set_defaults(**dict.fromkeys(vars(settings), untyped))
    typed = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not untyped}
    parser.set_defaults(**defaults)
    return settings, typed


def parse_settings(parser, settings):
    """Parse settings {name: plain value} like a command line; None and False count as not typed.

    Raises:
        InputError: a flag does not accept its value.
    """
    typed = {name: value for name, value in settings.items() if value is not None and value is not False}
    return parser.parse_args([f"--{name}" if value is True else f"--{name}={value}" for name, value in typed.items()])


def differing(settings, others):
    """Return the differences between two runs' settings that change results: [(name, value, other value), ...].

    Only names in `settings` are compared. A name that is missing in `others`, as in older runs, counts as its default.
    """
    names = [name for name in TRAINING if name in settings and changes_results(name)]
    values = ((name, settings[name], others.get(name, DEFAULTS[name])) for name in names)
    return [(name, ours, theirs) for name, ours, theirs in values if ours != theirs]


def format_value(value):
    """Return the value of a setting as text for tables and folder names."""
    if isinstance(value, list):
        return ",".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) else os.path.basename(str(value))


def as_markdown():
    """Return the text of docs/flags.md."""
    lines = [
        "# Flags",
        "",
        "`main_dgl.py` and `valid.py` take these flags; `python main_dgl.py --help` lists them too.",
        "A flag marked `*` changes results. A run is resumed only with the same value. Values that are not the default",
        f"are part of the name of the run's folder. So are {', '.join(f'`--{name}`' for name in sorted(NAMED))}.",
    ]
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        lines += ["", f"## {group.capitalize()}", "", "| flag | default | what it does |", "|---|---|---|"]
        for flag in FLAGS:
            if flag.group == group:
                default = f"`{flag.default_text()}`" if flag.default_text() else ""
                only = "" if "main" in flag.scripts else " (`valid.py`)"
                owners = f"`{'`, `'.join(flag.methods)}`: " if flag.methods else ""
                lines.append(f"| `--{flag.name}`{' *' * flag.results}{only} | {default} | {owners}{flag.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
