"""A single video, extracted and read just as the clips of a dataset are."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

from data.extraction import SOUND_RATE, extract_clip, find_ffmpeg, quieten_decoders
from dataset import DATASETS, fill_defaults
from dataset.clips import ClipDataset
from dataset.index import Clip, Index, list_frames
from utils.errors import InputError
from utils.pool import process_clips

FILM_LIMIT = 3600  # seconds to extract the frames and the sound of one, which may be longer than any dataset's


class OneClip(Index):
    """The index of a single clip."""

    def __init__(self, clip):
        self.clip = clip

    def clips(self, args, split):
        yield self.clip


def read_video(video, args):
    """A video as an item of `args.dataset` in evaluation; silence stands in for the sound of one that has none.

    Args:
        video: path of a file that FFmpeg reads.
        args: settings of the data: dataset, fps, num_frame, image_size.

    Returns:
        ({"audio": spectrogram (1, F, T), "visual": frames (3, N, H, W)}, 0), and whether it has audio.

    Raises:
        InputError: it cannot be decoded, has no picture, or too few for `num_frame`.
    """
    args = fill_defaults(args)
    with TemporaryDirectory() as folder:
        wav, frames = Path(folder) / "sound.wav", Path(folder) / "frames"
        job = (video, wav, frames, find_ffmpeg(), args.fps, args.num_frame)
        _, failures = process_clips(extract_clip, {video: job}, workers=1, start=quieten_decoders, limit=FILM_LIMIT)
        if failures:
            raise InputError(f"{video}: {failures[video]}; give --video a whole video file")
        has_sound = wav.exists()
        if not has_sound:
            soundfile.write(wav, np.zeros(SOUND_RATE), SOUND_RATE)
        index = OneClip(Clip(video, str(wav), str(frames), list_frames(frames), label=0))
        return ClipDataset(index, args, "test", DATASETS[args.dataset].audio, args.num_frame)[0], has_sound
