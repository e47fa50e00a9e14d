"""What FFmpeg says on stderr: which streams a file has, and what of them cannot be decoded."""

import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import imageio_ffmpeg

from utils.errors import InputError

STREAM = re.compile(r"Stream #0:(\d+)\S*: (Video|Audio): ([^,\n]+)(.*)")
STILLS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")
START = re.compile(r"\bstart (-?\d+\.\d+)")
CHOSEN = re.compile(r"Stream #0:(\d+) -> ")
MESSAGE = re.compile(
    r"^\[([^\]]+) @ 0x[0-9a-f]+\] (?!.*\[(?:info|warning)\])(?:.*\[(?:error|fatal)\] )?(.+)$", re.MULTILINE
)
# Of a clip that was cut out of a longer video: its first pictures lean on ones before the cut, and an edit list hides
# them. What ends in the middle of a frame of MP3 is left out by every player.
HARMLESS = re.compile(
    r"mmco: unref short failure|co located POCs unavailable|[Rr]eference picture missing|Missing reference picture"
    r"|Could not find ref with POC|[Rr]equested reference|Not all references are available|number of reference frames"
    r"|Invalid frame dimensions 0x0|warning: first frame is no keyframe|[Ll]ast message repeated"
    r"|Attempted to read next track in single-track mode|hardware accelerated|Failed to get pixel format"
)


class Stream(NamedTuple):
    """A stream of pictures or of sound, as FFmpeg lists it: `start` in seconds."""

    number: int
    kind: str
    codec: str
    start: float
    default: bool
    cover: bool


def find_ffmpeg():
    """The packaged FFmpeg, so that results are the same on all machines; the machine's where none is packaged for it.

    Raises:
        InputError: there is neither.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise InputError("ffmpeg: not on this machine, and none is packaged for it; install FFmpeg") from None


def streams_of(listing):
    """The streams that FFmpeg lists, at its level "info", for the first input."""
    streams = []
    for number, kind, codec, rest in STREAM.findall(listing.partition("Stream mapping:")[0]):
        start = START.search(rest)  # not shown where it is 0
        start = float(start[1]) if start else 0.0
        streams.append(Stream(int(number), kind, codec, start, "(default)" in rest, "(attached pic)" in rest))
    return streams


def best_video(streams):
    """Of several streams of pictures the one to take, None where there is only cover art.

    One that moves before one of a codec for stills, which Matroska does not mark as a cover; then the default one; then
    the first.
    """
    videos = [stream for stream in streams if stream.kind == "Video" and not stream.cover]
    return min(videos, key=lambda stream: (stream.codec.split()[0] in STILLS, not stream.default), default=None)


def lateness(log):
    """By how many seconds the sound that FFmpeg took, by its log, begins after the pictures; 0 where there are none."""
    streams = streams_of(log)
    video, chosen = best_video(streams), CHOSEN.search(log)
    starts = [stream.start for stream in streams if chosen and stream.number == int(chosen[1])]
    return starts[0] - video.start if video and starts else 0.0


def list_streams(video):
    """The streams of a file, from FFmpeg; none where it cannot be read."""
    command = [find_ffmpeg(), "-nostdin", "-hide_banner", "-i", f"file:{video}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    return streams_of(done.stderr.decode(errors="replace"))


def complaint(messages):
    """The first message of a decoder or demuxer that tells of damage, as `[h264] its words`; "" if none does."""
    for origin, words in MESSAGE.findall(messages):
        if not HARMLESS.search(words):
            return f"[{origin}] {words.rstrip('.')}"
    return ""


@cache
def open_log(process):
    """A file without a name for what is written to stderr; each process has its own."""
    return tempfile.TemporaryFile()


@contextmanager
def messages_kept():
    """Keep what is written to stderr by this process, libraries and programs it starts; yield what gives it so far."""
    sys.stderr.flush()
    stderr, log = os.dup(2), open_log(os.getpid()).fileno()
    start = os.lseek(log, 0, os.SEEK_END)
    os.dup2(log, 2)

    def written():
        return os.pread(log, os.fstat(log).st_size - start, start).decode(errors="replace")

    try:
        yield written
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.ftruncate(log, start)
        os.lseek(log, start, os.SEEK_SET)
