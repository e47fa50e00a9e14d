"""From raw clips to frames, wav and lists: right, whole, failures by name; splits that keep their promise."""

import csv
import faulthandler
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from data.media import extract_frames
from tests.conftest import ROOT, ffmpeg, run_fork, write_video
from utils.pool import process_clips

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 271360\n".format("4d7a" * 16)


def write_flv(path, frames, rate="30000/1001"):
    """An FLV of plain grey pictures; frame i has the grey value 20 + 3 * i."""
    write_video(path, 20 + 3 * np.arange(frames), rate, codec="flv1")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "VideoFlash").mkdir()
    return tmp_path


def extract(root, *flags, check=True):
    return run_fork("data/CREMAD/video_preprocessing.py", "--root", root, "--workers", 2, *flags, check=check)


def test_frames_0_29_58_of_a_29_97_fps_flv(root):
    write_flv(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", 75)
    write_flv(root / "VideoFlash" / "a b;$(x)&'é.flv", 30)
    assert "2 done, 0 already there, 0 failed" in extract(root).stdout
    folder = root / "Image-01-FPS" / "1001_DFA_ANG_XX"
    assert sorted(path.name for path in folder.iterdir()) == ["00000.jpg", "00029.jpg", "00058.jpg"]
    for index in (0, 29, 58):
        picture = cv2.imread(str(folder / f"{index:05d}.jpg"))
        assert picture.shape == (48, 64, 3)
        assert abs(picture.mean() - (20 + 3 * index)) < 1.4  # half of a frame's step
    assert len(list((root / "Image-01-FPS" / "a b;$(x)&'é").iterdir())) == 2


def test_fps_flag(root):
    write_flv(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", 25, rate="25")
    extract(root, "--fps", 5)
    names = sorted(path.name for path in (root / "Image-05-FPS" / "1001_DFA_ANG_XX").iterdir())
    assert names == [f"{k:05d}.jpg" for k in range(0, 25, 5)]


def test_bad_clips_are_named_and_the_rest_goes_on(root):
    write_flv(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", 35)
    (root / "VideoFlash" / "1002_DFA_ANG_XX.flv").write_text(LFS_POINTER)
    (root / "VideoFlash" / "1003_DFA_ANG_XX.flv").write_bytes(b"FLV\x01 and then nothing")
    (root / "VideoFlash" / "1004_DFA_ANG_XX.flv").write_bytes(b"")
    done = extract(root)
    assert "1 done, 0 already there, 3 failed" in done.stdout
    assert "2 not decodable\n" in done.stdout and "git lfs pull" in done.stdout
    assert [path.name for path in (root / "Image-01-FPS").glob("[!.]*")] == ["1001_DFA_ANG_XX"]
    failures = read_failures(root / "failed_frames.csv")
    assert {name: reason.partition(":")[0] for name, reason in failures.items()} == {
        "1002_DFA_ANG_XX.flv": "a Git LFS pointer, not the video",
        "1003_DFA_ANG_XX.flv": "not decodable",
        "1004_DFA_ANG_XX.flv": "not decodable",
    }
    for name in failures:
        write_flv(root / "VideoFlash" / name, 30)
    assert "3 done, 1 already there, 0 failed" in extract(root).stdout
    assert not (root / "failed_frames.csv").exists()


def test_it_continues_where_it_stopped(root):
    write_flv(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", 35)
    extract(root)
    first = root / "Image-01-FPS" / "1001_DFA_ANG_XX" / "00000.jpg"
    written = first.stat().st_mtime_ns
    write_flv(root / "VideoFlash" / "1002_DFA_ANG_XX.flv", 35)
    half_written = root / ".partial" / "1002"
    half_written.mkdir(parents=True)
    (half_written / "00000.jpg").write_bytes(b"half")
    assert "1 done, 1 already there, 0 failed" in extract(root).stdout
    assert first.stat().st_mtime_ns == written and not half_written.parent.exists()
    assert cv2.imread(str(root / "Image-01-FPS" / "1002_DFA_ANG_XX" / "00000.jpg")) is not None


def test_nothing_to_do_is_an_error(root):
    for folder in (root, root / "elsewhere"):
        done = extract(folder, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(folder) in done.stderr
    (root / "VideoFlash" / "1002_DFA_ANG_XX.flv").write_text(LFS_POINTER)
    assert extract(root, check=False).returncode == 2


def read_failures(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["clip", "reason"]
    return dict(rows)


@pytest.mark.parametrize("keys", [1, 7, 250], ids=lambda keys: f"key every {keys}")
def test_an_flv_of_which_few_packets_are_decoded_gives_the_same_frames(tmp_path, keys):
    """Moving images, so that each frame depends on the frame before; damaged files are rejected."""
    path = tmp_path / "clip.flv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-f", "lavfi", "-i", "sine", "-t", 4, "-g", keys, path)
    whole, cut = path.read_bytes(), tmp_path / "cut.flv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    damaged = tmp_path / "damaged.flv"
    damaged.write_bytes(whole[: len(whole) // 2] + bytes(500) + whole[len(whole) // 2 + 500 :])
    jobs = {clip.name: (clip, tmp_path / clip.stem, tmp_path) for clip in (path, cut, damaged)}
    _, failures = process_clips(extract_frames, jobs, 2)
    assert {name: reason.partition(":")[0] for name, reason in failures.items()} == {
        "cut.flv": "truncated",
        "damaged.flv": "damaged",
    }
    process_clips(partial(extract_frames, keep_damaged=True), jobs, 2)
    expected = {f"{k:05d}.jpg": cv2.imencode(".jpg", image)[1].tobytes() for k, image in enumerate(decode_all(path))}
    for clip, names in ((path, {f"{k:05d}.jpg" for k in range(0, 100, 25)}), (cut, None), (damaged, None)):
        found = {image.name: image.read_bytes() for image in (tmp_path / clip.stem).iterdir()}
        assert found.keys() == names or names is None and len(found) >= 2
        if clip != damaged:
            assert found == {name: expected[name] for name in found}


def decode_all(path):
    """Yield all frames of a video, decoded one after the other by OpenCV."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    while capture.grab():
        yield capture.retrieve()[1]


KINDS = {
    "b-frames.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "b-frames.avi": ["-c:v", "mpeg4", "-bf", 2],
    "h264.avi": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],  # the times of its packets are those of decoding
    "open-gop.mkv": ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", "open-gop=1:keyint=12"],
    "hidden.webm": ["-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "-b:v", "200k"],  # frames not shown
    "vp9.webm": ["-c:v", "libvpx-vp9", "-b:v", "200k", "-deadline", "realtime", "-cpu-used", 8],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-bf", 2],
    "flv1.flv": ["-c:v", "flv1", "-g", 12],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_second", [1, 3, 1000])
def test_skipping_frames_that_nobody_needs_changes_no_frame(tmp_path, kind, per_second):
    path, step = tmp_path / kind, max(1, 25 // per_second)
    for number in (1, 2) if kind == "hidden.webm" else (1,):  # libvpx hides frames in a second pass only
        passes = ["-pass", number, "-passlogfile", tmp_path / "log"] if kind == "hidden.webm" else []
        ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-t", 3, *KINDS[kind], *passes, path)
    extract_frames(path, tmp_path / "frames", tmp_path, per_second)
    expected = {f"{k:05d}.jpg": image for k, image in enumerate(decode_all(path)) if k % step == 0}
    assert sorted(image.name for image in (tmp_path / "frames").iterdir()) == sorted(expected)
    for name, image in expected.items():
        assert (tmp_path / "frames" / name).read_bytes() == cv2.imencode(".jpg", image)[1].tobytes()


ODD_NAMES = [
    "a b",
    "it's",
    'say "x"',
    "semi;colon",
    "$(touch hacked)",
    "this & that",
    "Ünïcödé 音",
    "-vn",
    "%03d",
    "a:b",
]


def test_frames_and_sound_of_clips_with_any_name(tmp_path):
    """Through the scripts, H.264 or MPEG-4 video with AAC sound; a silent, a short and a broken one beside them."""
    folder = tmp_path / "raw" / "train" / "playing guitar"
    (tmp_path / "raw" / "val").mkdir(parents=True)
    for k, name in enumerate(ODD_NAMES):
        codec = ("libx264", "mpeg4")[k % 2]
        write_video(folder / f"{name}.mp4", 20 + 3 * np.arange(35), codec=codec, tone=300 + 100 * k)
    write_video(folder / "silent.mp4", [50] * 35)
    write_video(folder / "short.mkv", [50] * 15, tone=440)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video")
    flags = ["--source", tmp_path / "raw", "--root", tmp_path, "--workers", 2]
    sound = run_fork("data/KineticSound/mp4_to_wav.py", *flags).stdout
    frames = run_fork("data/KineticSound/video_preprocessing.py", *flags).stdout
    assert "11 done, 0 already there, 2 failed" in sound and "11 done, 0 already there, 2 failed" in frames

    failures = read_failures(tmp_path / "failed_audio.csv")
    assert failures.pop("train/playing_guitar/silent.mp4") == "no audio track"
    assert failures.popitem()[1].startswith("not decodable: ") and not failures
    failures = read_failures(tmp_path / "failed_frames.csv")
    assert failures["train/playing_guitar/short.mkv"] == "too short: 2 frame(s) at 1 a second, 3 are needed"
    assert failures["train/playing_guitar/broken.mp4"].startswith("not decodable: ") and len(failures) == 2

    for name in ODD_NAMES:
        pictures = tmp_path / "visual" / "train_img" / "Image-01-FPS" / "playing_guitar" / name
        assert sorted(path.name for path in pictures.iterdir()) == [f"{k:05d}.jpg" for k in (0, 10, 20, 30)]
        for index in (0, 10, 20, 30):
            picture = cv2.imdecode(np.fromfile(pictures / f"{index:05d}.jpg", np.uint8), cv2.IMREAD_COLOR)
            assert abs(picture.mean() - (20 + 3 * index)) < 1.4  # half of a frame's step
        wav = tmp_path / "audio" / "train" / "playing_guitar" / f"{name}.wav"
        assert soundfile.info(wav).samplerate == 16000 and soundfile.info(wav).subtype == "PCM_16"
        ffmpeg("-i", f"file:{folder / name}.mp4", "-ac", 1, "-ar", 16000, tmp_path / "expected.wav")
        ours, theirs = (soundfile.read(path, dtype="int16")[0] for path in (wav, tmp_path / "expected.wav"))
        assert len(ours) > 3 * 16000 and abs(len(ours) - len(theirs)) <= 1
        assert (ours[:-160] == theirs[: len(ours) - 160]).all()  # versions of FFmpeg differ in the last samples
    assert not list(tmp_path.rglob(".partial")) and not (ROOT / "hacked").exists()


def read_tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def processes_of(root):
    """Command lines that name `root`; those that have ended but are not waited for have none."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line for line in lines if os.fsencode(root) in line]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("script", "pattern", "flags"),
    [("mp4_to_wav.py", "Audios/*.wav", []), ("video_preprocessing.py", "Image-05-FPS-SE/[!.]*", ["--fps", "5"])],
)
def test_killed_runs_leave_nothing_half_written(tmp_path, script, pattern, flags):
    """Only the parent is killed: its workers have to end by themselves."""
    folder = tmp_path / "killed" / "AVE"
    folder.mkdir(parents=True)
    streams = ["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-f", "lavfi", "-i", "sine"]
    ffmpeg(*streams, "-t", 4, "-c:v", "mpeg4", "-c:a", "aac", folder / "000.mp4")
    for k in range(1, 24):
        shutil.copy(folder / "000.mp4", folder / f"{k:03d}.mp4")
    rows = [f"Bell&{k:03d}&good&0&10\n" for k in range(24)]
    for k, name in enumerate(("train", "val", "test")):
        (folder.parent / f"{name}Set.txt").write_text("".join(rows[8 * k : 8 * k + 8]))
    shutil.copytree(folder.parent, tmp_path / "whole")

    command = [f"data/AVE/{script}", "--workers", "2", *flags, "--root"]
    for count in (1, 5, 11):
        process = subprocess.Popen([sys.executable, *command, folder.parent], cwd=ROOT)
        while len(list(folder.parent.glob(pattern))) < count:
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while processes_of(folder.parent):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.02)
    killed = len([path for path in folder.parent.glob(pattern) if not path.name.startswith(".")])
    done = run_fork(*command, folder.parent)
    assert 10 <= killed < 24 and f"{24 - killed} done, {killed} already there, 0 failed" in done.stdout
    run_fork(*command, tmp_path / "whole")
    assert read_tree(folder.parent) == read_tree(tmp_path / "whole")
    assert not list(tmp_path.rglob(".partial"))


def misbehave(number):
    if number in (3, 4):
        faulthandler.disable()  # of pytest, which would tell of it
        os.kill(os.getpid(), signal.SIGKILL if number == 3 else signal.SIGSEGV)
    if number == 7:
        any(itertools.repeat(False))  # in C, where no handler of a signal is called
    if number == 8:
        subprocess.run(["sleep", "98765"])
    if number == 19:
        os._exit(5)
    return "done"


def test_a_crash_or_a_hang_concerns_its_clip_alone():
    results, failures = process_clips(misbehave, {f"{k:02d}": (k,) for k in range(20)}, 2, limit=4)
    assert results == {"done": 15} and list(failures) == ["03", "04", "07", "08", "19"]
    assert failures["03"].startswith("crashed: its decoder ended by signal 9, Killed")
    assert failures["04"].startswith("crashed: its decoder ended by signal 11, Segmentation fault")
    assert failures["07"] == failures["08"] == "hung: its decoder did not end within 4 s; download it again"
    assert failures["19"].startswith("crashed: its decoder ended with status 5")
    if Path("/proc/self/cmdline").exists():
        assert not processes_of("98765"), "what a hung worker has started goes on"


def die(flag):
    if not flag or not flag.exists():
        if flag:
            flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_between_two_clips_costs_none(tmp_path):
    jobs = {str(k): (k,) for k in range(3)}
    results, failures = process_clips(misbehave, jobs, 2, start=partial(die, tmp_path / "flag"))
    assert results == {"done": 3} and not failures
    results, failures = process_clips(misbehave, jobs, 2, start=partial(die, None))
    assert not results and {reason.partition(":")[0] for reason in failures.values()} == {"crashed"}


def test_long_lists_of_failures_are_cut(root):
    for k in range(30):
        (root / "VideoFlash" / f"{k:02d}.flv").write_text(LFS_POINTER)
    write_flv(root / "VideoFlash" / "good.flv", 5)
    output = extract(root).stdout
    assert output.count("failed: ") == 20 and "30 a Git LFS pointer" in output and "failed_frames.csv" in output
    assert len(read_failures(root / "failed_frames.csv")) == 30


def make_layout(root, ids):
    (root / "AudioWAV").mkdir(parents=True)
    for clip_id in ids:
        (root / "AudioWAV" / f"{clip_id}.wav").touch()
        (root / "Image-01-FPS" / clip_id).mkdir(parents=True)


def read_lists(folder):
    lists = {}
    for name in ("train", "test"):
        rows = [line.split(",") for line in (folder / f"{name}.csv").read_text().splitlines()]
        assert all(clip_id.split("_")[2] == emotion for clip_id, emotion in rows)
        lists[name] = [clip_id for clip_id, _ in rows]
    return lists


IDS = [f"{1001 + a}_{s}_{e}_XX" for a in range(8) for s in ("DFA", "IEO", "TIE") for e in ("NEU", "HAP", "ANG")]


def test_stratified_split(tmp_path):
    make_layout(tmp_path, IDS)
    flags = ["--root", tmp_path, "--test_ratio", 0.25]
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        run_fork("data/CREMAD/make_split.py", *flags, "--seed", seed, "--split_path", tmp_path / name)
    a, b, c = (read_lists(tmp_path / name) for name in "abc")
    assert a == b != c
    assert sorted(a["train"] + a["test"]) == sorted(IDS)
    assert Counter(i.split("_")[2] for i in a["test"]) == {"NEU": 6, "HAP": 6, "ANG": 6}


def test_split_by_actor(tmp_path):
    make_layout(tmp_path, IDS)
    run_fork("data/CREMAD/make_split.py", "--root", tmp_path, "--split_path", tmp_path, "--by_actor")
    lists = read_lists(tmp_path)
    actors = {name: {i.split("_")[0] for i in ids} for name, ids in lists.items()}
    assert actors["train"] and actors["test"] and not actors["train"] & actors["test"]
    assert sorted(lists["train"] + lists["test"]) == sorted(IDS)


@pytest.mark.parametrize(
    ("ids", "flags", "word"),
    [
        ([], [], "video_preprocessing"),
        (["1001_DFA_JOY_XX"], [], "1001_DFA_JOY_XX"),
        (["holiday"], [], "holiday"),
        (["1001_DFA_ANG_XX"], [], "only clip of ANG"),
        (["1001_DFA_ANG_XX", "1001_IEO_ANG_XX"], ["--by_actor"], "two actors"),
        (IDS, ["--test_ratio", "1.5"], "--test_ratio"),
        (IDS, ["--test_ratio", "nan"], "--test_ratio"),
    ],
)
def test_bad_splits_are_one_line(tmp_path, ids, flags, word):
    make_layout(tmp_path, ids)
    (tmp_path / "Image-01-FPS").mkdir(exist_ok=True)
    done = run_fork(
        "data/CREMAD/make_split.py", "--root", tmp_path, "--split_path", tmp_path / "out", *flags, check=False
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr
    assert not (tmp_path / "out").exists()
