"""Videos as they are in the wild, one kind after the other: made here with FFmpeg, told by grey value and pitch.

A clip's pictures have the grey value 20 + 20 * time in s, and its sound the pitch 300 + 100 * second Hz.
"""

import os
import random
import shutil

import cv2
import numpy as np
import pytest
import soundfile

from data.media import extract_audio, extract_clip, extract_frames
from tests.conftest import ffmpeg, run_fork
from utils.files import remove
from utils.pool import ClipError, process_clips

SECONDS, RATE, SIZE = 6, 10, (64, 64)
RAW = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-r", RATE, "-i", "-"]
PITCH = f"aevalsrc='0.3*sin(2*PI*(300+100*floor(t))*t)':s=16000:d={SECONDS}"
SOUND = ["-f", "lavfi", "-i", PITCH]
H264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
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


def greys(seconds=SECONDS):
    """Raw pictures with noise, so that each takes some bytes."""
    noise = np.random.default_rng(0).integers(-8, 9, (seconds * RATE, 64, 64, 3))
    return (noise + (20 + 20 * np.arange(seconds * RATE) // RATE)[:, None, None, None]).astype(np.uint8).tobytes()


def write(path, *flags, inputs=(), data=None):
    """A video of that with sound; `inputs`: more of FFmpeg's inputs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg(*RAW, *SOUND, *inputs, *(flags or H264), f"file:{path}", data=data or greys())
    return path


def frames(video, **options):
    """{name: time in s by its grey value} of the pictures that are extracted, and the pictures."""
    folder = video.parent / f"{video.name}.frames"
    extract_frames(video, folder, video.parent, **options)
    pictures = {path.stem: cv2.imread(str(path)) for path in sorted(folder.iterdir())}
    return {name: round((picture.mean() - 20) / 20, 1) for name, picture in pictures.items()}, pictures


def seconds_heard(video, **options):
    """The second that is heard in each half second, None where it is silent."""
    wav = video.parent / f"{video.name}.wav"
    extract_audio(video, wav, video.parent, **options)
    samples, rate = soundfile.read(wav)
    heard = []
    for part in samples[: len(samples) // 8000 * 8000].reshape(-1, 8000):
        peak = np.abs(np.fft.rfft(part[2000:6000])).argmax() * rate / 4000
        heard.append(None if np.abs(part).max() < 0.01 else round((peak - 300) / 100))
    return heard


WHOLE = dict(zip((f"{k:05d}" for k in range(0, SECONDS * RATE, RATE)), range(SECONDS), strict=True))


def near(found, expected, tolerance=0.2):
    return found.keys() == expected.keys() and all(abs(found[k] - expected[k]) <= tolerance for k in found)


# What a decoder lacks is not damage


def test_av1_is_decoded_and_turned_upright(tmp_path):
    video = write(tmp_path / "a.mp4", "-c:v", "libaom-av1", "-cpu-used", 8, "-pix_fmt", "yuv420p10le", "-c:a", "aac")
    assert near(frames(video)[0], WHOLE)
    turned = tmp_path / "turned.mp4"
    wide = ["-vf", "scale=96:64", "-c:v", "libaom-av1", "-cpu-used", 8, "-pix_fmt", "yuv420p"]
    ffmpeg("-display_rotation", 90, "-i", write(tmp_path / "wide.mp4", *wide), "-c", "copy", turned)
    assert {picture.shape for picture in frames(turned)[1].values()} == {(96, 64, 3)}


def test_a_codec_that_nothing_decodes(tmp_path):
    video = write(tmp_path / "a.mkv", *H264, "-write_crc32", 0)
    video.write_bytes(video.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS/"))
    with pytest.raises(ClipError, match="not decodable: its video codec is unknown"):
        frames(video)


# Done means whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / f"a.{name}", *flags) for name, flags in CONTAINERS.items()}


def hurt(video, tmp_path, change):
    copy = tmp_path / video.name
    copy.write_bytes(change(bytearray(video.read_bytes())))
    return copy


def hole(content):
    """A tenth of it zeros, behind the middle."""
    start, length = len(content) // 2, len(content) // 10
    content[start : start + length] = bytes(length)
    return content


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("take", [frames, seconds_heard])
def test_whole_files_are_done_and_cut_and_damaged_ones_fail(whole, tmp_path, container, take):
    video = hurt(whole[container], tmp_path, bytes)
    if take is frames:
        rate = 25 if container == "mpg" else RATE
        found = frames(video)[0]
        assert near(found, {name: int(name) / rate for name in found}) and len(found) >= SECONDS
    else:
        assert seconds_heard(video)[: 2 * SECONDS] == [k // 2 for k in range(2 * SECONDS)]
    for share in (0.5, 0.95):
        cut = hurt(whole[container], tmp_path, lambda content, s=share: content[: int(s * len(content))])
        remove_outputs(cut)
        with pytest.raises(ClipError, match="^(truncated|not decodable)"):
            take(cut)
    with pytest.raises(ClipError, match="^(damaged|truncated)"):
        take(hurt(whole[container], tmp_path, hole))


def remove_outputs(video):
    shutil.rmtree(f"{video}.frames", ignore_errors=True)
    video.with_name(f"{video.name}.wav").unlink(missing_ok=True)


def test_few_damages_of_any_place_crash_nothing_and_cuts_are_never_done(whole, tmp_path):
    """Small here; 800 of them over eight containers are a matter of minutes."""
    rng, jobs = random.Random(16), {}
    for name, video in whole.items():
        content = video.read_bytes()
        for k in range(4):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            for kind, data in (("byte", changed), ("cut", content[: rng.randrange(1, len(content))])):
                path = tmp_path / f"{kind}{k}.{name}"
                path.write_bytes(data)
                jobs[path.name] = (path, tmp_path / f"{path.name}.out", tmp_path)
    for function in (extract_frames, extract_audio):
        results, failures = process_clips(function, jobs, 2)
        assert results.total() + len(failures) == len(jobs)
        assert {name for name in jobs if name.startswith("cut")} <= failures.keys()
        assert not [reason for reason in failures.values() if reason.startswith("crashed")]
        for _, output, _ in jobs.values():
            shutil.rmtree(output, ignore_errors=True)


def test_any_exception_costs_its_file_only(whole, tmp_path, monkeypatch):
    """A moov whose boxes lead astray, and an error that nobody has thought of."""
    good = hurt(whole["mp4"], tmp_path, bytes)
    content = bytearray(whole["mov"].read_bytes())
    at = content.index(b"mvhd")
    content[at - 4 : at + 4] = (0x7FFFFFFF).to_bytes(4, "big") + b"trak"
    (tmp_path / "moov.mov").write_bytes(content)
    (tmp_path / "short.mp4").write_bytes(content[:30] + b"\0\0\0\x09moov\0")
    jobs = {
        path.name: (path, tmp_path / f"{path.name}.out", tmp_path)
        for path in (good, tmp_path / "moov.mov", tmp_path / "short.mp4")
    }
    for function in (extract_frames, extract_audio):
        results, failures = process_clips(function, jobs, 2)
        assert results == {"done": 1} and failures.keys() == {"moov.mov", "short.mp4"}
        remove(tmp_path / f"{good.name}.out")
    monkeypatch.setattr("data.media.packet_times", lambda *_: 1 / 0)
    with pytest.raises(ClipError, match="not decodable: ZeroDivisionError: division by zero"):
        frames(good)
    _, failures = process_clips(fail, {"a": ()}, 1)
    assert failures == {"a": "not processed: KeyError: 'nobody'; look at this file, or leave it out"}


def fail():
    raise KeyError("nobody")


def test_large_files_are_demuxed_twice(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("data.media.IN_MEMORY", 0)
    for container in ("mp4", "flv", "avi", "webm"):
        assert near(frames(hurt(whole[container], tmp_path, bytes))[0], WHOLE)


def test_a_mov_that_promises_more_than_its_packets(whole, tmp_path):
    """Fragments that are missing at the end leave the boxes whole."""
    content = whole["frag.mp4"].read_bytes()
    starts = [at - 4 for at in range(len(content)) if content[at : at + 4] == b"moof"]
    content = bytearray(content[: starts[3]])
    for name, position in ((b"mvhd", 12), (b"mdhd", 12)):  # the duration, which FFmpeg leaves out
        at = content.index(name) + 4
        scale = int.from_bytes(content[at + position : at + position + 4], "big")
        content[at + position + 4 : at + position + 8] = (SECONDS * scale).to_bytes(4, "big")
    short = tmp_path / "a.mov"
    short.write_bytes(content)
    with pytest.raises(ClipError, match=r"truncated: \d\.\d of \d\.\d s"):
        frames(short)
    assert "truncated" in extract_frames(short, tmp_path / "kept", tmp_path, keep_damaged=True)
    assert 2 <= len(list((tmp_path / "kept").iterdir())) < SECONDS


def test_a_clip_without_audio_has_frames(tmp_path):
    video = tmp_path / "a.mp4"
    ffmpeg(*RAW, *H264[:-2], video, data=greys())
    assert extract_clip(video, tmp_path / "a.wav", tmp_path / "a", 1, 1) == "done"
    assert len(list((tmp_path / "a").iterdir())) == SECONDS and not (tmp_path / "a.wav").exists()


@pytest.fixture
def raw(tmp_path):
    """Kinetics in its raw form with an empty class."""
    for split in ("train", "val"):
        (tmp_path / "raw" / split / "c").mkdir(parents=True)
    return tmp_path / "raw"


def extract(raw, *flags, script="video_preprocessing.py", check=True):
    flags = ["--source", raw, "--root", raw.parent / "out", "--workers", 2, *flags]
    return run_fork(f"data/kinect400/{script}", *flags, check=check)


def outputs(raw, name):
    return raw.parent / "out" / "visual" / "train_img" / "Image-01-FPS" / "c" / name


def test_damaged_clips_are_kept_where_that_is_wanted_and_listed(raw, whole):
    for name in ("mp4", "mov"):
        shutil.copy(whole[name], raw / "train" / "c" / f"whole_{name}.{name}")
    half = whole["mov"].read_bytes()[: whole["mov"].stat().st_size * 6 // 10]
    (raw / "train" / "c" / "half.mov").write_bytes(half)
    assert "2 done, 0 already there, 1 failed\n" in extract(raw).stdout
    kept = extract(raw, "--keep_damaged").stdout
    assert "1 done, 2 already there, 0 failed, 1 damaged but kept" in kept
    assert 3 <= len(list(outputs(raw, "half").iterdir())) < SECONDS
    listed = (raw.parent / "out" / "failed_frames.csv").read_text()
    assert "train/c/half.mov,kept: truncated: " in listed
    assert "0 done, 3 already there, 0 failed, 1 damaged but kept" in extract(raw, "--keep_damaged").stdout
    assert "0 done, 2 already there, 1 failed\n" in extract(raw).stdout
    assert not outputs(raw, "half").exists()
    sound = extract(raw, "--keep_damaged", script="mp4_to_wav.py").stdout
    assert "3 done, 0 already there, 0 failed, 1 damaged but kept" in sound


@pytest.mark.parametrize("recorded", [True, False])
def test_a_clip_that_has_changed_since_is_extracted_anew(raw, whole, tmp_path, recorded):
    """By size and time; an output of a version that kept no record is of an older file."""
    video = raw / "train" / "c" / "a.mp4"
    write(video, *H264, data=greys(3))
    extract(raw)
    assert len(list(outputs(raw, "a").iterdir())) == 3
    if not recorded:
        next(tmp_path.rglob(".sources.csv")).unlink()
    before = video.stat()
    shutil.copy(whole["mp4"], video)
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12 if recorded else before.st_mtime_ns + 10**12))
    assert "1 done, 0 already there" in extract(raw).stdout
    assert len(list(outputs(raw, "a").iterdir())) == SECONDS
    assert "0 done, 1 already there" in extract(raw).stdout


# The right stream


@pytest.fixture(scope="module")
def cover(tmp_path_factory):
    path = tmp_path_factory.mktemp("cover") / "cover.jpg"
    ffmpeg("-f", "lavfi", "-i", "color=white:s=300x300", "-frames:v", 1, path)
    return path


def test_no_cover_art(tmp_path, cover):
    cover_first = ["-map", "2:v", "-map", "0:v", "-map", "1:a", "-c:v:0", "copy", "-disposition:v:0", "attached_pic"]
    for name in ("a.mkv", "a.mp4"):
        flags = [*cover_first, "-c:v:1", "libx264", "-pix_fmt:v:1", "yuv420p", "-c:a", "aac"]
        found, pictures = frames(write(tmp_path / name, *flags, inputs=["-i", cover]))
        assert near(found, WHOLE) and pictures["00000"].shape == (64, 64, 3)
    png = cover.with_suffix(".png")
    ffmpeg("-y", "-i", cover, png)
    found, pictures = frames(
        write(tmp_path / "b.mkv", *cover_first[:6], *flags[-6:], "-c:v:0", "png", inputs=["-i", png])
    )
    assert near(found, WHOLE) and pictures["00000"].shape == (64, 64, 3)
    alone = write(tmp_path / "alone.mkv", *cover_first[:2], *cover_first[4:], "-c:a", "aac", inputs=["-i", cover])
    with pytest.raises(ClipError, match="no video in it"):
        frames(alone)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_default_track(tmp_path, suffix):
    white = ["-f", "lavfi", "-i", f"color=white:s=64x64:r={RATE}:d={SECONDS}"]
    flags = ["-map", "2:v", "-map", "0:v", "-map", "1:a", "-disposition:v:0", "0", "-disposition:v:1", "default"]
    assert near(frames(write(tmp_path / f"a.{suffix}", *flags, *H264, inputs=white))[0], WHOLE)
    flags[-3:] = ["default", "-disposition:v:1", "0"]
    found, _ = frames(write(tmp_path / f"b.{suffix}", *flags, *H264, inputs=white))
    assert found.keys() == WHOLE.keys() and min(found.values()) > 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mpg"])
def test_sound_that_begins_late_is_padded(tmp_path, suffix):
    video = write(tmp_path / f"a.{suffix}", "-map", "0:v", "-map", "1:a", *CONTAINERS[suffix])
    late = tmp_path / f"late.{suffix}"
    ffmpeg("-i", video, "-itsoffset", 2, "-i", video, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    assert seconds_heard(late)[:8] == [None] * 4 + [0, 0, 1, 1]


# A second is a second


def test_variable_rates_go_by_time(tmp_path):
    sparse = "select='lt(t,3)+not(mod(n,5))'"  # 10 a second, then 2
    video = write(tmp_path / "a.mp4", "-vf", sparse, "-fps_mode", "vfr", *H264)
    assert list(frames(video)[0].values()) == pytest.approx(list(range(SECONDS)), abs=0.3)
    held = "select='lt(n,20)+eq(n,59)'"  # one picture for four seconds
    video = write(tmp_path / "held.mkv", "-vf", held, "-fps_mode", "vfr", *H264)
    assert list(frames(video)[0].values()) == pytest.approx([0, 1, 1.9, 1.9, 1.9, 1.9], abs=0.3)


def test_a_wrong_nominal_rate_goes_by_time(tmp_path):
    """A Matroska that says 25 a second, and has 10."""
    video = write(tmp_path / "a.mkv", *H264, "-write_crc32", 0)
    rates = [(10**9 // rate).to_bytes(4, "big") for rate in (RATE, 25)]
    video.write_bytes(video.read_bytes().replace(*rates))
    assert list(frames(video)[0].values()) == pytest.approx(list(range(SECONDS)), abs=0.2)


# Names


def test_two_videos_of_one_name_are_refused_and_hidden_files_passed_over(raw, whole):
    shutil.copy(whole["mp4"], raw / "train" / "c" / "x.mp4")
    shutil.copy(whole["webm"], raw / "train" / "c" / "x.WEBM")
    shutil.copy(whole["mp4"], raw / "train" / "c" / "y.MP4")
    (raw / "train" / "c" / "._y.mp4").write_bytes(b"of macOS")
    for script in ("mp4_to_wav.py", "video_preprocessing.py"):
        output = extract(raw, script=script).stdout
        assert "1 done, 0 already there, 2 failed" in output
        assert "two videos of one name: train/c/x.WEBM and train/c/x.mp4; remove all but one" in output


def one_line(done):
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    return done.stderr


def test_flat_and_empty_folders_name_source(raw, whole):
    assert "--source" in one_line(extract(raw, check=False)) and "raw" in one_line(extract(raw, check=False))
    shutil.copy(whole["mp4"], raw / "train" / "x.mp4")
    error = one_line(extract(raw, check=False))
    assert "--source" in error and "1 lie outside of such folders" in error


def test_listed_classes_without_a_folder_are_named(raw, whole):
    (raw / "train" / "playing guitar").mkdir()
    (raw / "val" / "playing guitar").mkdir()
    shutil.copy(whole["mp4"], raw / "train" / "playing guitar" / "x.mp4")
    flags = ["--source", raw, "--root", raw.parent / "out"]
    done = run_fork("data/KineticSound/mp4_to_wav.py", *flags)
    assert "1 done" in done.stdout and "no folder of blowing_nose, bowling" in done.stderr
    assert "playing_guitar" not in done.stderr


def test_names_of_vggsound(tmp_path, whole):
    rows = [
        "aaa,30,dog,train",
        "bbb,5,dog,train",
        "ccc,0,dog,test",
        "ddd,7,dog,test",
        "eee,1,dog,test",
        "eee,2,dog,test",
    ]
    (tmp_path / "vggsound.csv").write_text("".join(f"{row}\n" for row in rows))
    (tmp_path / "video").mkdir()
    for name in ("aaa_30.mp4", "bbb_000005.WEBM", "ccc.MP4", "ddd_7.000.mkv", "eee.mp4", "fff_1.mp4"):
        shutil.copy(whole["mp4"], tmp_path / "video" / name)
    flags = ["--root", tmp_path, "--split_path", tmp_path]
    for script in ("mp4_to_wav.py", "video_preprocessing.py"):
        output = run_fork(f"data/VGGSound/{script}", *flags).stdout
        assert "4 done, 0 already there, 0 failed, 2 missing, 2 of other names" in output
        assert "eee.mp4" in output and "looked for eee_000001.mp4" in output
    assert (tmp_path / "audio" / "train-audios" / "train-set" / "aaa_000030.wav").exists()
    assert (tmp_path / "video" / "test-set-img" / "Image-01-FPS" / "ccc_000000.mp4").is_dir()


def test_names_of_ave(tmp_path, whole):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}Set.txt").write_text(f"Bell&{name}&good&0&10\n")
    (tmp_path / "AVE").mkdir()
    for name in ("train.webm", "val.MKV", "TEST.mp4"):
        shutil.copy(whole["mp4"], tmp_path / "AVE" / name)
    output = run_fork("data/AVE/mp4_to_wav.py", "--root", tmp_path).stdout
    assert "2 done, 0 already there, 0 failed, 1 missing, 1 of other names" in output and "TEST.mp4" in output
