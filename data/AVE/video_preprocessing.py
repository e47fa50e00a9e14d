"""AVE: AVE/<id>.mp4 -> Image-01-FPS-SE/<id>/<frame index>.jpg, one frame a second.

    python data/AVE/video_preprocessing.py [--root train_test_data/AVE_Dataset] [--target DIR]
           [--fps 1] [--min_frames 1] [--workers N]

<id> from trainSet.txt, valSet.txt and testSet.txt in <root>; those without a video are counted as missing. Runs in
parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in failed_frames.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_frames, find_videos, outputs_of
from data.flags import add_target, extraction_parser
from data.lists import read_ave
from utils.errors import run


def main():
    parser = extraction_parser("Extract frames of AVE.", "train_test_data/AVE_Dataset", min_frames=1)
    add_target(parser)
    args = parser.parse_args()
    ids = {clip_id for name in ("train", "val", "test") for clip_id, _ in read_ave(args.root / f"{name}Set.txt")}
    videos, missing = find_videos(args.root / "AVE", ids)
    target = outputs_of(args) / f"Image-{args.fps:02d}-FPS-SE"
    jobs = {video.name: (video, target / clip_id) for clip_id, video in videos}
    extract_all_frames(jobs, target, args, missing)


if __name__ == "__main__":
    run(main)
