"""CREMA-D: VideoFlash/<id>.flv -> Image-01-FPS/<id>/<frame index>.jpg, one frame a second.

    python data/CREMAD/video_preprocessing.py [--root train_test_data/CREMA-D] [--fps 1] [--workers N]

Runs in parallel and continues where it stopped. Clips that cannot be decoded are listed at the end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.errors import InputError, OneLineParser, run
from utils.options import at_least
from utils.preprocessing import extract_frames, print_summary, process_clips, remove_partial


def main():
    parser = OneLineParser(description="Extract frames from the FLV clips of CREMA-D.")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("train_test_data/CREMA-D"),
        help="folder of VideoFlash (default: %(default)s)",
    )
    parser.add_argument("--fps", type=at_least(1), default=1, metavar="N", help="frames per second (default: 1)")
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes (default: one per core)")
    args = parser.parse_args()

    source, target = args.root / "VideoFlash", args.root / f"Image-{args.fps:02d}-FPS"
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; put the dataset's VideoFlash there, or change --root")
    videos = sorted(source.glob("*.flv"))
    if not videos:
        raise InputError(f"{source}: no .flv clip in it; see data/CREMAD/README.md for the download")
    target.mkdir(exist_ok=True)
    remove_partial(target)
    jobs = {video.name: (video, target / video.stem, args.fps) for video in videos}
    results, failures = process_clips(extract_frames, jobs, args.workers)
    print_summary(results, failures)
    if not results:
        raise InputError(f"{source}: no clip could be decoded, see the list above")


if __name__ == "__main__":
    run(main)
