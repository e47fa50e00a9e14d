"""Extract and read a single video in the same way as the clips of a dataset."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

from data.extraction import quieten_decoders
from data.media import AUDIO_RATE, extract_clip
from dataset import DATASETS
from dataset.base import Clip, list_frames
from dataset.clips import ClipDataset
from utils.errors import InputError
from utils.pool import process_clips

FILM_LIMIT = 3600  # s to extract frames and audio of a video, which can be longer than a dataset's clips


class OneClip:
    """A dataset of a single clip, read as the clips of another dataset are."""

    classes = ()

    def __init__(self, clip, source):
        self.clip, self.audio_settings = clip, source.audio_settings

    def clips(self, args, split):
        return [self.clip]


def read_video(video, args):
    """Return a video as an item of `args.dataset` in evaluation. A video without audio gets silence.

    Args:
        video: path of a file that FFmpeg reads.
        args: settings of the data: dataset, fps, num_frame, image_size.

    Returns:
        ({"audio": spectrogram (1, F, T), "visual": frames (3, N, H, W)}, 0), and whether it has audio.

    Raises:
        InputError: it cannot be decoded, or has fewer than `num_frame` frames.
    """
    with TemporaryDirectory() as folder:
        wav, frames = Path(folder) / "audio.wav", Path(folder) / "frames"
        job = (video, wav, frames, args.fps, args.num_frame)
        _, failures = process_clips(extract_clip, {video: job}, workers=1, start=quieten_decoders, limit=FILM_LIMIT)
        if failures:
            raise InputError(f"{video}: {failures[video]}; give --video a whole video file")
        has_audio = wav.exists()
        if not has_audio:
            soundfile.write(wav, np.zeros(AUDIO_RATE), AUDIO_RATE)
        clip = Clip(video, str(wav), str(frames), list_frames(frames), label=0)
        return ClipDataset(OneClip(clip, DATASETS[args.dataset]()), args, "test")[0], has_audio
