"""A run's folder: which one its settings take, who may write into it, and run.json, which says what made the run."""

import json
import os
from contextlib import ExitStack, contextmanager, suppress

from methods import METHODS
from utils.errors import InputError
from utils.files import exclusive, is_locked, write_json
from utils.options import differing, parse_settings
from utils.results.settings import as_of_today, training_parser

RECORD, LAST, RESULT = "run.json", "last.pth", "result.json"
OF_A_RUN = ("best.pth", LAST, "log.jsonl", RESULT, "start.json", "skipped.csv", "curves.png")
OF_A_RUN += ("confusion.png", "best.json", "last.json", "predictions.csv")
PLACES = ("audio_path", "visual_path", "split_path")
NOT_AGAIN = {"train", "resume", "overwrite", "config", "ckpt_path", "tensorboard_path", "gradient_report", "modality"}


def run_name(settings):
    """What tells runs apart at a glance: '<method>[-alpha<value>]-seed<seed>'."""
    tuned = METHODS[settings["method"]].tuned
    value = f"-{tuned}{settings[tuned]:g}" if tuned else ""
    return f"{settings['method']}{value}-seed{settings['random_seed']}"


def folder_of(args):
    """The folder that settings take: `ckpt/<dataset>/<run_name>`; args have their defaults filled in.

    Where a run with other settings is there, the name goes on with what differs: `-learning_rate0.01`.
    """
    folder, ours = os.path.join("ckpt", args.dataset.lower(), run_name(vars(args))), with_places(vars(args))
    while (held := held_by(folder)) and (others := differing(ours, with_places(as_typed(held, ours)))):
        folder += "".join(f"-{name}{shown(value)}" for name, value, _ in others)
    return folder


def with_places(settings):
    """Settings with where their data are among those that tell runs apart, spelled in one way."""
    return settings | {name.removesuffix("_path"): os.path.realpath(settings[name] or "") for name in PLACES}


def as_typed(held, ours):
    """A run's settings less what it has measured itself, as ours have not yet: G-Blending's weights."""
    measured = "gblend_weights"
    return held | {measured: None} if measured in ours and ours[measured] is None else held


def shown(value):
    """A setting's value as part of a folder's name."""
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else os.path.basename(str(value))


def has(folder, *names):
    """Whether any of these files is in a folder."""
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def held_by(folder):
    """The settings of the run that is in a folder, or is about to be, as a run of today records them; else None.

    Raises:
        InputError: they cannot be read.
    """
    if has(folder, RECORD) and (has(folder, LAST, RESULT) or is_locked(folder)):
        return as_of_today(read_record(os.path.join(folder, RECORD))["settings"])
    if has(folder, LAST):  # of a time without records
        from utils.training import checkpoint  # and PyTorch, which takes seconds

        return as_of_today(checkpoint.load(os.path.join(folder, LAST))["settings"])
    settings = result_of(folder)[1]
    return as_of_today(settings) if settings else None


def result_of(folder):
    """A finished run by its result.json -> (its last epoch, its settings); (-1, None) where there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(os.path.join(folder, RESULT), "rb") as file:
        result = json.load(file)
        return int(result["last"]["epoch"]), result.get("settings")
    return -1, None


def read_record(path):
    """A run.json -> {"settings": .., "data": .., "starts": [..]}.

    Raises:
        InputError: it is missing, or none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the run.json of a run") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"{path}: not the run.json of a run; give one of a run, or remove it")
    return record


def with_recorded(args):
    """The settings of a command line, those that were not typed as in the run that --config or --resume names.

    Raises:
        InputError: there is none, or it has a value that its flag does not take.
    """
    path = args.config or (args.ckpt_path if args.resume else None)
    recorded = as_of_today(read_record(path)["settings"]) if args.config else held_by(path) if path else None
    if not recorded:
        return args
    recorded = {name: value for name, value in recorded.items() if name not in NOT_AGAIN}
    parser = training_parser()
    try:
        again = vars(parse_settings(parser, recorded))
    except InputError as error:
        raise InputError(f"{path}: its settings are of no use: {error}") from None
    parser.set_defaults(**{name: again[name] for name in recorded})
    return parser.parse_args()


def is_finished(args):
    """Whether the run in args.ckpt_path has its result after args.epochs epochs, and is to be left as it is."""
    return result_of(args.ckpt_path)[0] + 1 >= args.epochs and not args.overwrite


@contextmanager
def opened(args):
    """Choose a run's folder, args.ckpt_path or else `folder_of`, make it, and keep other runs out of it.

    Of several processes the first one looks, and speaks. Nothing has been decoded when it refuses.

    Args:
        args: settings, with their defaults filled in; ckpt_path is set.

    Raises:
        InputError: another run is writing there, or one with other settings is there that is not to be overwritten.
    """
    from utils.training import distributed

    with ExitStack() as stack:
        with distributed.first_alone():
            if distributed.rank() == 0:
                args.ckpt_path = args.ckpt_path or folder_of(args)
                stack.enter_context(exclusive(args.ckpt_path, "--ckpt_path"))
                stack.enter_context(recorded(args))
        args.ckpt_path = distributed.everyones(args.ckpt_path)[0]
        yield


def refuse_other_settings(args):
    """Raise InputError if a run is in the folder that this one cannot go on with, and is not to be overwritten."""
    path = args.ckpt_path
    if args.overwrite or not has(path, LAST, RESULT):
        return
    for name, ours, theirs in differing(vars(args), as_typed(held_by(path) or vars(args), vars(args))):
        raise InputError(
            f"--{name} {ours}: the run in {path} has {theirs}; give the same again, leave out "
            "--ckpt_path for a folder of its own, or begin anew with --overwrite"
        )
    if not has(path, LAST) and not is_finished(args):
        raise InputError(
            f"--epochs {args.epochs}: the run in {path} has ended, and its {LAST} is gone, without which it cannot "
            "go on; choose another --ckpt_path, or begin anew with --overwrite"
        )


@contextmanager
def recorded(args):
    """Refuse a run with other settings in the folder; else let run.json tell others at once who is in it.

    A finished run's stays, also where its checkpoints have been removed.
    """
    refuse_other_settings(args)
    record = os.path.join(args.ckpt_path, RECORD)
    if not has(args.ckpt_path, LAST, RESULT):
        if os.path.exists(record):
            print(f"{args.ckpt_path}: a run was killed here before anything was saved; it begins anew")
        write_json(record, {"settings": vars(args)})
    try:
        yield
    finally:
        if not has(args.ckpt_path, LAST, RESULT):  # it ended before it had anything to keep
            os.remove(record)


def refuse_other_clips(args, data):
    """Raise InputError if the run in the folder is of other training clips than those listed now.

    Args:
        data: `digests` of the datasets, before it is known which of their clips can be decoded.
    """
    record = os.path.join(args.ckpt_path, RECORD)
    before = read_record(record).get("data", {}) if os.path.exists(record) and not args.overwrite else {}
    if before and before["train"] != data["train"]:
        raise InputError(
            f"{args.ckpt_path}: of other training clips, {before['train']['clips']} listed then; "
            "restore them, or choose another --ckpt_path"
        )


def begin(args, data):
    """Write run.json as a run begins, or add to it that it goes on; with --overwrite remove the run that was there.

    Args:
        data: what `digests` says of the data.
    """
    from utils.results.provenance import provenance

    if args.overwrite:
        for name in OF_A_RUN:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(args.ckpt_path, name))
    path, record = os.path.join(args.ckpt_path, RECORD), {"settings": vars(args), "data": data, "starts": []}
    if has(args.ckpt_path, LAST) and os.path.exists(path):
        record |= read_record(path)
    write_json(path, record | {"starts": [*record["starts"], provenance()]})


def digests(datasets):
    """What the lists say: per split the number of clips, and digests of their names and labels and of the classes."""
    from utils.training.seeds import derived_seed

    return {
        split: {
            "clips": len(dataset.clips),
            "lists": f"{derived_seed(*((clip.id, clip.label) for clip in dataset.clips)):016x}",
            "classes": f"{derived_seed(*dataset.classes):016x}",
        }
        for split, dataset in datasets.items()
    }
