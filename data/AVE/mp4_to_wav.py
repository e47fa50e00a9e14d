"""AVE: AVE/<id>.mp4 -> Audios/<id>.wav, 16 kHz.

    python data/AVE/mp4_to_wav.py [--root train_test_data/AVE_Dataset] [--target DIR]
           [--workers N]

<id> from trainSet.txt, valSet.txt and testSet.txt in <root>; those without a video are counted as missing. Runs in
parallel and continues where it stopped.
Clips that fail, also truncated and damaged ones, are listed in failed_sound.csv; --keep_damaged takes what
there is of those.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.extraction import extract_all_sound, find_videos, outputs_of
from data.flags import add_target, extraction_parser
from data.lists import read_ave
from utils.errors import run


def main():
    parser = extraction_parser("Extract the sound of AVE.", "train_test_data/AVE_Dataset")
    add_target(parser)
    args = parser.parse_args()
    ids = {clip_id for name in ("train", "val", "test") for clip_id, _ in read_ave(args.root / f"{name}Set.txt")}
    videos, missing = find_videos(args.root / "AVE", ids)
    target = outputs_of(args) / "Audios"
    jobs = {video.name: (video, target / f"{clip_id}.wav") for clip_id, video in videos}
    extract_all_sound(jobs, target, args, missing)


if __name__ == "__main__":
    run(main)
