"""Videos of many kinds, written here with FFmpeg: which frames and which audio are extracted, and what is rejected.

The frames of a clip have the grey value 20 + 20 * time in s, and its audio the pitch 300 + 100 * second Hz.
"""

import random

import cv2
import numpy as np
import pytest
import soundfile

from data.media import extract_audio, extract_clip, extract_frames
from tests.conftest import ffmpeg, write_video
from utils.files import remove
from utils.pool import ClipError, process_clips

SECONDS, RATE = 6, 10
RAW = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-r", RATE, "-i", "-"]
AUDIO = ["-f", "lavfi", "-i", f"aevalsrc='0.3*sin(2*PI*(300+100*floor(t))*t)':s=16000:d={SECONDS}"]
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
AV1 = ["-c:v", "libaom-av1", "-cpu-used", 8, "-c:a", "aac"]
CONTAINERS = {
    "mp4": H264,
    "mov": [*H264, "-movflags", "faststart"],
    "frag.mp4": [*H264, "-g", RATE, "-movflags", "frag_keyframe+empty_moov"],
    "mkv": H264,
    "webm": ["-c:v", "libvpx", "-b:v", "300k", "-c:a", "libopus"],
    "avi": ["-c:v", "mpeg4", "-q:v", 3, "-c:a", "libmp3lame"],
    "flv": ["-c:v", "flv1", "-q:v", 3, "-ar", 44100, "-c:a", "libmp3lame"],
    "mpg": ["-c:v", "mpeg1video", "-r", 25, "-q:v", 3, "-c:a", "mp2"],
}
TIMES = {f"{k * RATE:05d}": k for k in range(SECONDS)}


def write(path, *flags, inputs=AUDIO):
    """Write a clip, by default with its audio; its frames have noise, so that each takes some bytes."""
    noise = np.random.default_rng(0).integers(-8, 9, (SECONDS * RATE, 64, 64, 3))
    greys = 20 + 20 * np.arange(SECONDS * RATE) // RATE
    images = (noise + greys[:, None, None, None]).astype(np.uint8)
    ffmpeg(*RAW, *inputs, *(flags or H264), path, data=images.tobytes())
    return path


def frames(video, **options):
    """Extract the frames of a video -> {name: time in s by its grey value}."""
    folder = video.with_name("frames")
    remove(folder)
    extract_frames(video, folder, video.parent, **options)
    greys = {path.stem: cv2.imread(str(path)).mean() for path in folder.iterdir()}
    return {name: (grey - 20) / 20 for name, grey in sorted(greys.items())}


def seconds_heard(video):
    """Extract the audio of a video -> the second that is heard in each half second, None where it is silent."""
    wav = video.with_name("audio.wav")
    remove(wav)
    extract_audio(video, wav, video.parent)
    samples, rate = soundfile.read(wav)
    heard = []
    for part in samples[: len(samples) // 8000 * 8000].reshape(-1, 8000):
        peak = np.abs(np.fft.rfft(part[2000:6000])).argmax() * rate / 4000
        heard.append(None if np.abs(part).max() < 0.01 else round((peak - 300) / 100))
    return heard


def test_av1_is_decoded_and_turned_upright(tmp_path):
    assert frames(write(tmp_path / "a.mp4", *AV1, "-pix_fmt", "yuv420p10le")) == pytest.approx(TIMES, abs=0.2)
    wide = write(tmp_path / "wide.mp4", "-vf", "scale=96:64", *AV1, "-pix_fmt", "yuv420p")
    ffmpeg("-display_rotation", 90, "-i", wide, "-c", "copy", tmp_path / "turned.mp4")
    frames(tmp_path / "turned.mp4")
    assert {cv2.imread(str(path)).shape for path in (tmp_path / "frames").iterdir()} == {(96, 64, 3)}


def test_a_codec_that_nothing_decodes(tmp_path):
    video = write(tmp_path / "a.mkv", *H264, "-write_crc32", 0)
    video.write_bytes(video.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS/"))
    with pytest.raises(ClipError, match="not decodable: its video codec is unknown"):
        frames(video)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a clip in each of CONTAINERS -> {name: its content}."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / f"a.{name}", *flags).read_bytes() for name, flags in CONTAINERS.items()}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("extract", [frames, seconds_heard])
def test_whole_files_are_extracted_and_cut_and_damaged_ones_rejected(whole, tmp_path, monkeypatch, container, extract):
    video, content = tmp_path / f"a.{container}", whole[container]
    video.write_bytes(content)
    if extract is seconds_heard:
        assert seconds_heard(video)[: 2 * SECONDS] == [k // 2 for k in range(2 * SECONDS)]
    for kept in (10**9, 0) if extract is frames else ():  # bytes of a file up to which it is demuxed once
        monkeypatch.setattr("data.media.IN_MEMORY", kept)
        found, rate = frames(video), 25 if container == "mpg" else RATE
        assert found == pytest.approx({name: int(name) / rate for name in found}, abs=0.2)
        assert found.keys() == TIMES.keys() or container in ("mpg", "frag.mp4") and len(found) >= SECONDS
    for share in (0.5, 0.95):
        video.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ClipError, match="^(truncated|not decodable)"):
            extract(video)
    middle, tenth = len(content) // 2, len(content) // 10
    video.write_bytes(content[:middle] + bytes(tenth) + content[middle + tenth :])
    with pytest.raises(ClipError, match="^(damaged|truncated)"):
        extract(video)


def test_damage_anywhere_costs_its_file_only_and_cuts_are_never_done(whole, tmp_path, monkeypatch):
    """Damage a random byte, cut at a random place, and point boxes of a MOV to wrong places."""
    rng, contents = random.Random(16), {"whole.mp4": whole["mp4"]}
    for name, content in whole.items():
        for k in range(4):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            contents |= {f"byte{k}.{name}": changed, f"cut{k}.{name}": content[: rng.randrange(1, len(content))]}
    at = whole["mov"].index(b"mvhd")
    boxes = whole["mov"][: at - 4] + (0x7FFFFFFF).to_bytes(4, "big") + b"trak" + whole["mov"][at + 4 :]
    contents |= {"cut boxes.mov": boxes, "cut header.mp4": boxes[:30] + b"\0\0\0\x09moov\0"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for extract in (extract_frames, extract_audio):
        jobs = {name: (tmp_path / name, tmp_path / f"{extract.__name__} {name}", tmp_path) for name in contents}
        results, failures = process_clips(extract, jobs, 2)
        assert results.total() + len(failures) == len(jobs) and "whole.mp4" not in failures
        assert {name for name in jobs if name.startswith("cut")} <= failures.keys()
        assert not [reason for reason in failures.values() if reason.startswith("crashed")]
    monkeypatch.setattr(cv2, "imencode", lambda *_: 1 / 0)
    with pytest.raises(ClipError, match="not decodable: ZeroDivisionError: division by zero"):
        frames(tmp_path / "whole.mp4")


def test_a_mov_that_promises_more_than_its_packets(whole, tmp_path):
    """Remove fragments at the end, which leaves the boxes whole."""
    content, short = bytearray(whole["frag.mp4"]), tmp_path / "a.mov"
    starts = [at - 4 for at in range(len(content)) if content[at : at + 4] == b"moof"]
    del content[starts[3] :]
    for name in (b"mvhd", b"mdhd"):  # with the duration, which FFmpeg leaves out
        at = content.index(name) + 16
        content[at + 4 : at + 8] = (SECONDS * int.from_bytes(content[at : at + 4], "big")).to_bytes(4, "big")
    short.write_bytes(content)
    with pytest.raises(ClipError, match=r"truncated: \d\.\d of \d\.\d s"):
        frames(short)
    assert "truncated" in extract_frames(short, tmp_path / "kept", tmp_path, keep_damaged=True)
    assert 2 <= len(list((tmp_path / "kept").iterdir())) < SECONDS


def test_a_clip_without_audio_has_frames(tmp_path):
    video = write(tmp_path / "a.mp4", *H264, inputs=())
    assert extract_clip(video, tmp_path / "a.wav", tmp_path / "a", 1, 1) == "done"
    assert len(list((tmp_path / "a").iterdir())) == SECONDS and not (tmp_path / "a.wav").exists()


WHITE, WHITE_IMAGE = (
    [*AUDIO, "-f", "lavfi", "-i", f"color=white:s=64x64:r={r}:d={d}"] for r, d in ((RATE, SECONDS), (1, 1))
)
BOTH = ["-map", "2:v", "-map", "0:v", "-map", "1:a"]  # white first, which would have the time 11.75 s
VIDEO = ["-c:v:1", "libx264", "-pix_fmt:v:1", "yuv420p", "-c:a", "aac"]
COVER = ["-c:v:0", "mjpeg", "-disposition:v:0", "attached_pic"]
SECOND = ["-disposition:v:0", "0", "-disposition:v:1", "default"]
FIRST = ["-disposition:v:0", "default", "-disposition:v:1", "0"]


@pytest.mark.parametrize(
    ("suffix", "flags", "expected"),
    [
        ("mkv", [*BOTH, *COVER, *VIDEO], TIMES),
        ("mp4", [*BOTH, *COVER, *VIDEO], TIMES),
        ("mkv", [*BOTH, "-c:v:0", "png", *VIDEO], TIMES),
        ("mkv", [*BOTH[:2], *BOTH[4:], *COVER], None),
        ("mp4", [*BOTH, *SECOND, *H264], TIMES),
        ("mkv", [*BOTH, *SECOND, *H264], TIMES),
        ("mp4", [*BOTH, *FIRST, *H264], dict.fromkeys(TIMES, 11.75)),
        ("mkv", [*BOTH, *FIRST, *H264], dict.fromkeys(TIMES, 11.75)),
    ],
)
def test_no_cover_art_but_the_default_stream(tmp_path, suffix, flags, expected):
    video = write(tmp_path / f"a.{suffix}", *flags, inputs=WHITE if "default" in flags else WHITE_IMAGE)
    if expected:
        assert frames(video) == pytest.approx(expected, abs=0.2)
    else:
        with pytest.raises(ClipError, match="no video in it"):
            frames(video)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mpg"])
def test_audio_that_starts_late_is_padded(tmp_path, suffix):
    video = write(tmp_path / f"a.{suffix}", *CONTAINERS[suffix])
    late = tmp_path / f"late.{suffix}"
    ffmpeg("-i", video, "-itsoffset", 2, "-i", video, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    assert seconds_heard(late)[:8] == [None] * 4 + [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "select", "expected"),
    [
        ("sparse.mp4", "lt(t,3)+not(mod(n,5))", [0, 1, 2, 3, 4, 5]),  # 10 frames per second, then 2
        ("held.mkv", "lt(n,20)+eq(n,59)", [0, 1, 1.9, 1.9, 1.9, 1.9]),  # one frame for four seconds
    ],
)
def test_variable_rates_are_followed_by_time(tmp_path, name, select, expected):
    video = write(tmp_path / name, "-vf", f"select='{select}'", "-fps_mode", "vfr", *H264)
    assert list(frames(video).values()) == pytest.approx(expected, abs=0.3)


def test_a_wrong_nominal_rate_is_followed_by_time(tmp_path):
    """Write a Matroska file of 10 frames per second whose header gives 25."""
    video = write(tmp_path / "a.mkv", *H264, "-write_crc32", 0)
    rates = [(10**9 // rate).to_bytes(4, "big") for rate in (RATE, 25)]
    video.write_bytes(video.read_bytes().replace(*rates))
    assert list(frames(video).values()) == pytest.approx(list(range(SECONDS)), abs=0.2)


KINDS = {
    "b-frames.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "b-frames.avi": ["-c:v", "mpeg4", "-bf", 2],
    "h264.avi": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],  # the times of its packets are those of decoding
    "open-gop.mkv": ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", "open-gop=1:keyint=12"],
    "hidden.webm": ["-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "-b:v", "200k"],  # frames not shown
    "vp9.webm": ["-c:v", "libvpx-vp9", "-b:v", "200k", "-deadline", "realtime", "-cpu-used", 8],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-bf", 2],
    "keys.flv": ["-c:v", "flv1", "-g", 1],
    "few-keys.flv": ["-c:v", "flv1", "-g", 7],
    "one-key.flv": ["-c:v", "flv1", "-g", 250],
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_equal_opencvs_though_few_packets_are_decoded(tmp_path, kind):
    """Compare moving images, where each frame depends on others; also frames left in a truncated FLV."""
    path = tmp_path / kind
    for number in (1, 2) if kind == "hidden.webm" else (1,):  # libvpx hides frames in a second pass only
        passes = ["-pass", number, "-passlogfile", tmp_path / "log"] if kind == "hidden.webm" else []
        streams = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-f", "lavfi", "-i", "sine"]
        ffmpeg(*streams, "-t", 3, *KINDS[kind], *passes, path)
    content, capture, images = path.read_bytes(), cv2.VideoCapture(str(path)), []
    while capture.grab():
        images.append(cv2.imencode(".jpg", capture.retrieve()[1])[1].tobytes())

    def extracted(content, per_second, **options):
        remove(tmp_path / "frames")
        path.write_bytes(content)
        result = extract_frames(path, tmp_path / "frames", tmp_path, per_second, **options)
        return result, {int(image.stem): image.read_bytes() for image in (tmp_path / "frames").iterdir()}

    for per_second, step in ((1, 25), (3, 8), (1000, 1)):
        assert extracted(content, per_second) == ("done", {k: images[k] for k in range(0, len(images), step)})
        if kind.endswith(".flv"):
            reason, found = extracted(content[: len(content) * 2 // 3], per_second, keep_damaged=True)
            assert reason.startswith("truncated") and len(found) >= 2
            del found[max(found)]  # which may be there in part
            assert all(image == images[k] for k, image in found.items())
    if kind.endswith(".flv"):
        middle = len(content) // 2
        reason, found = extracted(content[:middle] + bytes(500) + content[middle + 500 :], 1000, keep_damaged=True)
        assert reason.startswith("damaged") and len(found) >= 2


def test_subtitles_beyond_the_end_of_video_and_audio(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:09,000\nwords\n")
    write_video(tmp_path / "a.mp4", [90] * 30, tone=440)
    ffmpeg("-i", tmp_path / "a.mp4", "-i", tmp_path / "a.srt", "-c", "copy", "-c:s", "srt", tmp_path / "a.mkv")
    assert extract_frames(tmp_path / "a.mkv", tmp_path / "frames", tmp_path) == "done"
    assert extract_audio(tmp_path / "a.mkv", tmp_path / "a.wav", tmp_path) == "done"
