"""Flags that the scripts under data/ share."""

from pathlib import Path

from utils.config import at_least
from utils.errors import OneLineParser


def add_folder(parser, flag, default, what):
    """Add a flag that names a folder."""
    parser.add_argument(flag, type=Path, default=Path(default), metavar="DIR", help=f"{what} (default: %(default)s)")


def dataset_parser(description, root):
    """Return a parser with --root, the folder of the dataset."""
    parser = OneLineParser(description=description)
    add_folder(parser, "--root", root, "folder of the dataset")
    return parser


def add_split_path(parser, default):
    """Add --split_path, for lists that are not in --root."""
    add_folder(parser, "--split_path", default, "folder of the dataset's lists")


def add_target(parser):
    """Add --target, for a --root that is read-only."""
    parser.add_argument(
        "--target", type=Path, metavar="DIR", help="folder to write to, where --root is read-only (default: --root)"
    )


def add_kinetics_source(parser):
    """Add --source, the raw files that Kinetics-Sounds and Kinetics-400 share."""
    add_folder(parser, "--source", "train_test_data/kinect400/raw", "folder of the raw train/ and val/")


def extraction_parser(description, root, min_frames=None):
    """Return the parser of a script that extracts audio, or frames if `min_frames` gives that flag its default."""
    parser = dataset_parser(description, root)
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--keep_damaged",
        action="store_true",
        help="keep the decodable part of truncated or damaged clips and list them (default: reject them)",
    )
    if min_frames:
        parser.add_argument("--fps", type=at_least(1), default=1, metavar="N", help="frames per second (default: 1)")
        parser.add_argument(
            "--min_frames",
            type=at_least(1),
            default=min_frames,
            metavar="N",
            help="reject clips with fewer frames; training needs --num_frame of them (default: %(default)s)",
        )
    return parser
