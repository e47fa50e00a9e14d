"""The pictures of a video: which of them are kept, and who decodes them."""

import io
import itertools
import math
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial

import cv2

from data.containers import TOLERANCE, tracks
from data.flv import SIGNATURE, shorten_flv
from data.probe import best_video, complaint, find_ffmpeg, list_streams, messages_kept
from utils.pool import ClipError

STILL_CODECS = (b"MJPG", b"png ", b"bmp ", b"gif ", b"webp", b"tiff")  # those of cover art
UNSTEADY = 0.5  # s by which time stamps may differ from a constant rate
ROUNDING = 0.001  # s, of the time stamps of Matroska and FLV
LONGEST = 600  # s for which one picture is repeated


def save_video(video, data, per_second, folder):
    """Write frames 0, k, 2k, ... of a video to a new `folder` as `<frame index, 5 digits>.jpg`.

    k = int(frames per second / per_second), at least 1, as the authors have it. Where time stamps differ from a
    constant rate by more than half a second, the pictures are those shown at 0, 1, 2, ... / per_second s, under the
    same names. OpenCV decodes; what it cannot, FFmpeg does.

    Args:
        video: path.
        data: the bytes of the file.

    Returns:
        why the pictures are not all there, or not as they were; "" if nothing speaks against them.

    Raises:
        ClipError: neither can decode it, or there is no picture but cover art.
    """
    lengths = [seconds for kind, seconds in tracks(data) if kind == "video"]
    with decoded_by_opencv(str(video)) as capture:
        rate, codec = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    still = codec.to_bytes(4, "little") in STILL_CODECS
    if rate > 0 and (len(lengths) < 2 and not still or first_is_best(video)):
        reason = save_shortened(data, rate, per_second, folder) if data[:3] == SIGNATURE else None
        if reason is None:
            promised = min(filter(None, lengths), default=0)
            reason = save_stream(partial(decoded_by_opencv, str(video)), per_second, folder, promised, still)
        if any(folder.iterdir()):
            return reason
    stream = best_video(list_streams(video))
    if not stream:
        raise ClipError("not decodable: no video in it; download it again")
    reason = save_stream(partial(decoded_by_ffmpeg, video, stream), per_second, folder)
    if not any(folder.iterdir()):
        raise ClipError(f"not decodable: no frame in it, its codec is {stream.codec}; download it again")
    return reason


def first_is_best(video):
    """Whether the first stream of pictures, which OpenCV takes, is the one to take: no cover art, and the default."""
    streams = [stream for stream in list_streams(video) if stream.kind == "Video"]
    return streams[:1] == [best_video(streams)]


@contextmanager
def decoded_by_opencv(source):
    """A capture of a path, or of a file in memory, which is let go at the end, since it holds much memory."""
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    yield capture
    capture.release()


@contextmanager
def decoded_by_ffmpeg(video, stream):
    """A capture of what the program FFmpeg decodes, through a pipe, turned upright and with its time stamps."""
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-threads", "1", "-i", f"file:{video}"]
    command += ["-map", f"0:{stream.number}", "-fps_mode", "passthrough", "-c:v", "rawvideo", "-pix_fmt", "yuv420p"]
    command += ["-allow_raw_vfw", "1", "-f", "matroska", "-"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        yield cv2.VideoCapture(f"/dev/fd/{process.stdout.fileno()}", cv2.CAP_FFMPEG)


def save_shortened(data, rate, per_second, folder):
    """`save_video` for an FLV, of which only what is wanted is decoded.

    Returns:
        as `save_video`; None if it has to be decoded as a whole.
    """
    shortened = shorten_flv(data[:], step_of(rate, per_second))
    if not shortened:
        return None
    content, numbers = shortened
    with messages_kept() as messages, decoded_by_opencv(io.BytesIO(content)) as capture:
        times = save_frames(capture, numbers, rate, per_second, folder)
        return damage(messages()) if len(times) == len(numbers) and is_steady(times, numbers, rate) else None


def save_stream(decoded, per_second, folder, promised=0, still=False):
    """`save_video` for the capture in the context `decoded()`.

    Args:
        promised: its length in seconds by the container, or 0.
        still: whether its codec is one for still pictures, too, of which a single one is cover art.
    """
    with messages_kept() as messages:
        with decoded() as capture:
            rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            times = save_frames(capture, itertools.count(), rate, per_second, folder)
        reason = damage(messages())
    if still and len(times) == 1:
        raise ClipError("not decodable: no video in it, but a single picture such as a cover; download it again")
    if not times:
        return reason
    end = times[-1] + 1 / rate
    if not reason and len(times) < frames and end < promised - TOLERANCE:
        return f"truncated: {len(times)} of {frames:.0f} frames; download it again"
    if not is_steady(times, itertools.count(), rate):
        with messages_kept(), decoded() as capture:
            save_moments(capture, times, end, step_of(rate, per_second), per_second, folder)
    return reason


def damage(messages):
    words = complaint(messages)
    return words and f"damaged: {words}; download it again"


def step_of(rate, per_second):
    return max(1, int(rate / per_second))


def is_steady(times, numbers, rate):
    """Whether frames of these numbers and times, in s, come at a constant rate; times that go back say nothing."""
    if any(later < earlier for earlier, later in itertools.pairwise(times)):
        return True
    return all(abs(seconds - number / rate) <= UNSTEADY for seconds, number in zip(times, numbers, strict=False))


def save_frames(capture, numbers, rate, per_second, folder):
    """Write the frames whose number divides by k to a new `folder`, which is emptied if it is there.

    Args:
        numbers: those of the frames that the capture gives.

    Returns:
        the time of each frame that there was, in s.
    """
    start_folder(folder)
    step, times = step_of(rate, per_second), []
    for number in numbers:
        if not capture.grab():
            break
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        if number % step == 0:
            save_picture(take(capture, number), folder, number)
    return times


def save_moments(capture, times, end, step, per_second, folder):
    """Write the pictures shown at 0, 1, 2, ... / per_second s to a new `folder`, numbered 0, step, 2 step, ...

    Args:
        times: those of the capture's frames, in s; `end`, when the last one ends.
    """
    start_folder(folder)
    moment = 0
    for number, until in enumerate([*times[1:], end]):
        if not capture.grab():
            break
        # one that is shown for very long has a wrong time, and would fill the disk
        first, moment = moment, max(moment, math.ceil(per_second * (until - ROUNDING)))
        if moment > first:
            picture = take(capture, number)
            for k in range(first, min(moment, first + LONGEST * per_second)):
                save_picture(picture, folder, k * step)


def start_folder(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def take(capture, number):
    decoded, picture = capture.retrieve()
    if not decoded:
        raise ClipError(f"not decodable: frame {number}; download it again")
    return picture


def save_picture(picture, folder, number):
    if not cv2.imwrite(str(folder / f"{number:05d}.jpg"), picture):
        raise ClipError("not writable: check the disk")
