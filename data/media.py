"""Extract JPEG frames and a wav file from one video. PyAV demuxes and decodes with FFmpeg's libraries.

Every fault of a file raises a ClipError, which skips that clip only.
"""

import itertools
import math
import os
import re
import wave
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from data.containers import find_fault
from utils.files import is_pointer, move_when_complete, remove
from utils.pool import ClipError

AUDIO_RATE = 16000  # Hz
LATE = 0.1  # s; audio that starts later than this after the video gets silence in front of it
TOLERANCE = 1  # s; lengths in the headers of undamaged clips are wrong by up to this
UNSTEADY = 0.5  # s; time stamps that differ more from a constant rate mean a variable frame rate
ROUNDING = 0.001  # s, precision of time stamps in Matroska and FLV
LONGEST = 600  # s; one frame is repeated, or silence is added, for no longer than this
DAMAGED = 10**18  # ns (in 2001), the modification time of outputs of damaged videos; any file system can store it
IN_MEMORY = 2**28  # bytes; packets of larger files are not stored, the file is demuxed twice
STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # of cover art, which Matroska does not mark as such
TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv")  # containers that store the time of every frame
CUT = "Packet corrupt"  # FFmpeg's warning where a file ends within a packet
# A clip that was cut out of a longer video can start with frames that depend on missing frames; an edit list hides
# them. If an MP3 stream ends within a frame, every player leaves out that frame.
HARMLESS = re.compile(
    r"mmco: unref short failure|co located POCs unavailable|[Rr]eference picture missing|Missing reference picture"
    r"|Could not find ref with POC|[Rr]equested reference|Not all references are available|number of reference frames"
    r"|Invalid frame dimensions 0x0|warning: first frame is no keyframe"
    r"|Attempted to read next track in single-track mode"
)

open_container = partial(av.open, metadata_errors="replace")  # metadata may have any encoding
av.logging.set_level(av.logging.WARNING)
av.logging.set_skip_repeated(False)  # otherwise a message that the previous file also caused would be missing


class SilentClip(ClipError):
    """A video without audio."""


def extract_frames(video, folder, unfinished, per_second=1, min_frames=1, keep_damaged=False):
    """Write the frames that `choose_frames` chooses to a new `folder`: all or nothing.

    Args:
        unfinished: a folder on the same disk, to write in until everything is written.
        min_frames: fewer frames than this are an error.
        keep_damaged: extract the decodable part of a truncated or damaged video.

    Returns:
        "done", or with `keep_damaged` the reason why the video is not whole.

    Raises:
        ClipError: a Git LFS pointer, a video that is truncated, damaged or cannot be decoded, or too few frames.
    """
    with opened(video, keep_damaged) as media, move_when_complete(Path(folder), unfinished) as new:
        save_frames(media, best_video(media.container), per_second, new)
        reason = media.check()
        count = len(os.listdir(new))
        if count < min_frames:
            raise ClipError(f"too short: {count} frame(s) at {per_second} a second, {min_frames} are needed")
        set_time(new, media, reason)
    return reason or "done"


def extract_audio(video, wav, unfinished, keep_damaged=False):
    """Write a video's audio to `wav`, 16 kHz, 16 bit, mono, with silence before audio that starts after the video.

    Arguments and what is returned are as in `extract_frames`.

    Raises:
        SilentClip: no audio track, or one without a sample.
        ClipError: a Git LFS pointer, or audio that is truncated, damaged or cannot be decoded.
    """
    with opened(video, keep_damaged) as media, move_when_complete(Path(wav), unfinished) as new:
        stream = best_audio(media.container)
        samples = decode_audio(media, stream)
        reason = media.check()
        if not samples:
            raise SilentClip("too short: its audio track has no sample")
        late = start_of(stream) - start_of(best_video(media.container) or stream)
        silence = bytes(2 * round(min(late, LONGEST) * AUDIO_RATE)) if late > LATE else b""
        with wave.open(str(new), "wb") as file:
            file.setparams((1, 2, AUDIO_RATE, 0, "NONE", "not compressed"))
            file.writeframes(silence + samples)
        set_time(new, media, reason)
    return reason or "done"


def extract_clip(video, wav, frames, per_second, min_frames):
    """Extract a video's frames to the folder `frames`, and its audio to `wav` if it has any."""
    with suppress(SilentClip):
        extract_audio(video, wav, wav.parent)
    return extract_frames(video, frames, frames.parent, per_second, min_frames)


@contextmanager
def opened(path, keep_damaged):
    """Open a video as a Media. Any error in the block becomes a ClipError, except errors of the disk."""
    path = Path(path).absolute()
    if is_pointer(path):
        raise ClipError("a Git LFS pointer, not the video: run `git lfs pull` where you cloned the dataset")
    try:
        fault = find_fault(path)
        if fault and not keep_damaged:
            raise ClipError(fault)
        with av.logging.Capture(local=False) as log, open_container(path) as container:
            yield Media(path, container, log, fault, keep_damaged)
    except av.FFmpegError as error:
        raise ClipError(f"not decodable: {error.strerror}; download it again") from None
    except (ClipError, OSError):
        raise
    except Exception as error:  # damaged files can raise any exception
        raise ClipError(f"not decodable: {type(error).__name__}: {error}; download it again") from None


class Media:
    """An open video file, and the evidence of whether it is complete.

    Attributes:
        container: PyAV's container.
        log: messages of FFmpeg's libraries so far, [(level, origin, message), ...].
    """

    def __init__(self, path, container, log, fault, keep_damaged):
        self.path, self.container, self.log, self.fault, self.keep_damaged = path, container, log, fault, keep_damaged
        self.stored, self.ends = None, None  # ends: {index of a stream: end of its last packet}
        self.time = os.stat(path).st_mtime_ns

    def packets(self, stream):
        """Return the packets of a stream in the order of the file. Can be called several times."""
        if os.path.getsize(self.path) > IN_MEMORY:
            return self.demux(stream)
        if self.stored is None:
            self.stored = list(self.demux(stream))
        return self.stored

    def demux(self, stream):
        """Yield the packets of a stream until the file or its readable part ends; record where each stream ends."""
        try:
            container = self.container if self.ends is None else open_container(self.path)
            self.ends = {}
            for packet in container.demux():
                time = packet.dts if packet.pts is None else packet.pts
                if packet.size and time is not None:
                    end = time + (packet.duration or 0)
                    self.ends[packet.stream_index] = max(end, self.ends.get(packet.stream_index, end))
                if packet.size and packet.stream_index == stream.index:
                    yield packet
        except Exception as error:  # PyAV raises IndexError where damage looks like another stream
            self.log_error(error)

    def decode(self, stream, packets):
        """Yield the frames of packets of a stream. A packet that cannot be decoded is left out and logged."""
        decoder = stream.codec_context
        if decoder is None:
            raise ClipError(f"not decodable: its {stream.type} codec is unknown; download it again or convert it")
        if not decoder.is_open:
            decoder.thread_count = 1
        decoder.flush_buffers()
        decoder.skip_frame = "DEFAULT"
        for packet in itertools.chain(packets, [None]):
            try:
                yield from decoder.decode(packet)
            except av.FFmpegError as error:
                self.log_error(error)

    def log_error(self, error):
        """Add an exception to the log."""
        words = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        self.log.append((av.logging.ERROR, self.container.format.name, words))

    def check(self):
        """Return why the file is incomplete or damaged, "" if it is neither; raise ClipError unless `keep_damaged`."""
        reason = self.fault or self.shortfall() or first_error(self.log)
        if reason and not self.keep_damaged:
            raise ClipError(reason)
        return reason

    def shortfall(self):
        """Return a reason if the last packet ends before the end that the headers give, else ""."""
        name, pairs = self.container.format.name, []
        streams = {stream.index: stream for stream in self.container.streams if stream.time_base}
        ends = {index: end * streams[index].time_base for index, end in self.ends.items() if index in streams}
        if name in ("flv", "matroska,webm"):  # one length for all streams, also subtitles
            pairs = [((self.container.duration or 0) / av.time_base, max(ends.values(), default=0))]
        elif name == "avi" or name.startswith("mov"):
            for index, stream in streams.items():  # an AVI's duration is that of the part that is left
                length = stream.frames if name == "avi" else stream.duration
                if length and stream.type in ("video", "audio") and not stream.disposition & Disposition.attached_pic:
                    pairs.append((start_of(stream) + length * stream.time_base, ends.get(index, 0)))
        for expected, end in pairs:
            if end < expected - TOLERANCE:
                return f"truncated: {float(end):.1f} of {float(expected):.1f} s; download it again"
        return ""


def set_time(output, media, reason):
    """Give an output the video's modification time, or DAMAGED; data/extraction.py compares it."""
    os.utime(output, ns=(DAMAGED, DAMAGED) if reason else (media.time, media.time))


def first_error(log):
    """Return the first message of a log that shows damage, as the reason for a ClipError; "" if there is none."""
    for level, origin, message in log:
        if CUT in message:
            return "truncated: the file ends within a packet; download it again"
        if level <= av.logging.ERROR and not HARMLESS.search(message):
            return f"damaged: [{origin}] {message.strip().rstrip('.')}; download it again"
    return ""


def start_of(stream):
    """Return when a stream starts, in s."""
    return (stream.start_time or 0) * (stream.time_base or 0)


def best_video(container):
    """Return the video stream to extract: no cover art, then the default one, then the first one; None without any."""

    def order(stream):
        return codec_of(stream) in STILL_CODECS, not stream.disposition & Disposition.default

    videos = (each for each in container.streams.video if not each.disposition & Disposition.attached_pic)
    return min(videos, key=order, default=None)


def codec_of(stream):
    """Return the name of a stream's decoder; "" where FFmpeg has none for it."""
    return stream.codec_context.name if stream.codec_context else ""


def best_audio(container):
    """Return the audio stream to extract: the default one, then the one with most channels.

    Raises:
        SilentClip: there is no audio stream.
    """
    if not (audio := container.streams.audio):
        raise SilentClip("no audio track")
    return max(audio, key=lambda each: (each.disposition & Disposition.default, getattr(each, "channels", 0)))


def save_frames(media, stream, per_second, folder):
    """Write the frames that `choose_frames` chooses to `folder`, as `<number, 5 digits>.jpg`."""
    if stream is None:
        raise ClipError("not decodable: no video in it; download it again")
    times = packet_times(stream, media.packets(stream))
    chosen = {times[k]: numbers for k, numbers in choose_frames(times, stream, per_second).items()}
    timed = media.container.format.name in TIMED
    packets = needed_packets(stream, media.packets(stream), chosen) if timed else media.packets(stream)
    keys = save_chosen(((frame.pts, frame) for frame in media.decode(stream, packets)), chosen, folder)
    found = chosen.keys() <= set(keys) if timed else keys == times
    if not times or not found and not first_error(media.log):  # packets and frames do not correspond: count frames
        times = [frame.pts for frame in media.decode(stream, media.packets(stream))]
        chosen = choose_frames(times, stream, per_second)
        keys = save_chosen(enumerate(media.decode(stream, media.packets(stream))), chosen, folder)
    if codec_of(stream) in STILL_CODECS and len(times) == 1:
        raise ClipError("not decodable: no video in it, but a single image such as a cover; download it again")
    if not chosen.keys() & set(keys):
        raise ClipError(f"not decodable: no frame in it, its codec is {codec_of(stream)}; download it again")


def packet_times(stream, packets):
    """Return the presentation times of a video's frames, sorted, in units of stream.time_base; [] if unknown."""
    if codec_of(stream) == "vp8":
        packets = (packet for packet in packets if memoryview(packet)[0] & 16)  # the others are only references
    times = [packet.pts for packet in packets if not packet.is_discard]
    return [] if None in times or len(set(times)) < len(times) else sorted(times)


def choose_frames(times, stream, per_second):
    """Choose frames 0, k, 2k, ..., where k = int(frames per second / per_second), at least 1, as the authors do.

    If `times` differ from a constant rate by more than half a second, choose the frames shown at n / per_second s, for
    n = 0, 1, 2, ..., and give them the same numbers 0, k, 2k, ...

    Args:
        times: presentation times of all frames, in units of stream.time_base; None for an unknown time.

    Returns:
        {position of a frame in `times`: [numbers of the files it is saved to]}.
    """
    rate = float(stream.average_rate or stream.guessed_rate or 1)
    step = max(1, int(rate / per_second))
    by_number = {k: [k] for k in range(0, len(times), step)}
    if None in times or times != sorted(times):
        return by_number
    unit = float(stream.time_base)
    seconds = [(time - times[0]) * unit for time in times]
    if all(abs(time - k / rate) <= UNSTEADY for k, time in enumerate(seconds)):
        return by_number
    chosen, moment = {}, 0
    for k, until in enumerate([*seconds[1:], seconds[-1] + 1 / rate]):
        first, moment = moment, max(moment, math.ceil(per_second * (until - ROUNDING)))
        # a frame that lasts very long has a wrong time stamp, and its copies would fill the disk
        if moment > first:
            chosen[k] = [number * step for number in range(first, min(moment, first + LONGEST * per_second))]
    return chosen


def needed_packets(stream, packets, chosen):
    """Yield the packets to decode; the decoder skips frames that are not chosen and that no other frame needs."""
    decoder, waiting = stream.codec_context, []
    in_order = codec_of(stream) == "flv"  # each frame needs only the frames since the last key frame
    for packet in packets:
        if packet.is_keyframe and in_order:
            waiting = []
        waiting.append(packet)
        if packet.pts in chosen or not in_order:
            for each in waiting:
                decoder.skip_frame = "DEFAULT" if each.pts in chosen else "NONREF"
                yield each
            waiting = []


def save_chosen(frames, chosen, folder):
    """Write the chosen ones of (key, frame), upright, to a new `folder`; return all keys. chosen: {key: [numbers]}."""
    remove(folder)
    folder.mkdir()
    keys, converter = [], VideoReformatter()
    for key, frame in frames:
        keys.append(key)
        if key in chosen:
            image = converter.reformat(frame, format="bgr24", interpolation="BICUBIC", threads=1)  # as in OpenCV
            image = np.ascontiguousarray(np.rot90(image.to_ndarray(), frame.rotation // 90))
            for number in chosen[key]:
                done, content = cv2.imencode(".jpg", image)  # not imwrite, which ends the process at paths not in UTF-8
                if not done:
                    raise ClipError("not decodable: its frames are too large for JPEG; convert it")
                (folder / f"{number:05d}.jpg").write_bytes(content)
    return keys


def decode_audio(media, stream):
    """Decode and resample an audio stream; return 16-bit mono samples at AUDIO_RATE Hz, as bytes."""
    parts, resampler, previous = [], None, None
    for frame in itertools.chain(media.decode(stream, media.packets(stream)), [None]):
        current = frame and (frame.format.name, frame.layout.name, frame.sample_rate)
        if current != previous:  # at both ends, and where the format changes
            parts += resampler.resample(None) if resampler else []
            resampler = frame and av.AudioResampler("s16", "mono", AUDIO_RATE)
            previous = current
        parts += resampler.resample(frame) if resampler else []
    samples = b"".join(part.to_ndarray().tobytes() for part in parts if part)
    if media.container.format.name.startswith("mov") and stream.frames:  # an edit list can end within a frame
        samples = samples[: 2 * math.ceil(stream.duration * stream.time_base * AUDIO_RATE)]
    return samples
