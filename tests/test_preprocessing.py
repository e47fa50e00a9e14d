"""The scripts that turn raw videos into frames, wav files and lists, their processes, and the demo's clips."""

import csv
import faulthandler
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from data.demo import make_clips
from tests import launcher
from tests.conftest import ROOT, ffmpeg, run_fork, run_here, write_video
from utils.pool import process_clips

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 271360\n".format("4d7a" * 16)


def write_flv(path, frames):
    """Write an FLV of 29.97 frames per second; frame i has the grey value 20 + 3 * i."""
    write_video(path, 20 + 3 * np.arange(frames), "30000/1001", codec="flv1")


def names(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def images(*numbers):
    return [f"{number:05d}.jpg" for number in numbers]


def read_failures(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["clip", "reason"]
    return dict(rows)


@pytest.fixture
def extract(capsys):
    """Return a function that runs a script of data/ -> what it printed."""

    def call(script, *flags):
        capsys.readouterr()
        run_here(f"data/{script}", *flags, "--workers", 2)
        return capsys.readouterr().out

    return call


def test_frames_of_flvs_of_which_bad_ones_are_named(tmp_path, extract):
    videos, frames = tmp_path / "VideoFlash", tmp_path / "Image-01-FPS"
    flags = "CREMAD/video_preprocessing.py", "--root", tmp_path
    write_flv(videos / "1001_DFA_ANG_XX.flv", 75)
    write_flv(videos / "a b;$(x)&'é.flv", 30)
    (videos / "cut.flv").write_bytes(b"FLV\x01 and then nothing")
    (videos / "empty.flv").touch()
    for k in range(30):
        (videos / f"{k:02d}.flv").write_text(LFS_POINTER)
    output = extract(*flags)
    assert "2 done, 0 already there, 32 failed" in output and output.count("failed: ") == 20
    assert "2 not decodable\n" in output and "30 a Git LFS pointer" in output and "git lfs pull" in output
    assert "failed_frames.csv" in output
    kinds = dict.fromkeys((f"{k:02d}.flv" for k in range(30)), "a Git LFS pointer, not the video")
    kinds |= dict.fromkeys(("cut.flv", "empty.flv"), "not decodable")
    failures = read_failures(tmp_path / "failed_frames.csv")
    assert {name: reason.partition(":")[0] for name, reason in failures.items()} == kinds
    assert names(frames) == ["1001_DFA_ANG_XX", "a b;$(x)&'é"] and len(names(frames / "a b;$(x)&'é")) == 2
    assert names(frames / "1001_DFA_ANG_XX") == images(0, 29, 58)
    for number in (0, 29, 58):
        image = cv2.imread(str(frames / "1001_DFA_ANG_XX" / f"{number:05d}.jpg"))
        assert image.shape == (48, 64, 3) and abs(image.mean() - (20 + 3 * number)) < 1.4  # half of a frame's step

    first, half = frames / "1001_DFA_ANG_XX" / "00000.jpg", tmp_path / ".partial" / "cut" / "00000.jpg"
    written = first.stat().st_mtime_ns
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    for name in failures:
        shutil.copy(videos / "a b;$(x)&'é.flv", videos / name)
    assert "32 done, 2 already there, 0 failed" in extract(*flags)
    assert first.stat().st_mtime_ns == written and cv2.imread(str(frames / "cut" / "00000.jpg")) is not None
    assert not (tmp_path / ".partial").exists() and not (tmp_path / "failed_frames.csv").exists()
    extract(*flags, "--fps", 5)
    assert names(tmp_path / "Image-05-FPS" / "1001_DFA_ANG_XX") == images(*range(0, 75, 5))


def make(root, files):
    """Make empty folders, whose names end with a slash, and files that are Git LFS pointers."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).mkdir(parents=True, exist_ok=True) if file.endswith("/") else (root / file).write_text(
            LFS_POINTER
        )


def of_cremad(*ids):
    return [f"AudioWAV/{clip_id}.wav" for clip_id in ids] + [f"Image-01-FPS/{clip_id}/" for clip_id in ids]


IDS = [f"{1001 + a}_{s}_{e}_XX" for a in range(8) for s in ("DFA", "IEO", "TIE") for e in ("NEU", "HAP", "ANG")]
EXTRACT, EXTRACT_KINETICS, SPLIT = "CREMAD/video_preprocessing", "kinect400/video_preprocessing", "CREMAD/make_split"


@pytest.mark.parametrize(
    ("script", "files", "flags", "words"),
    [
        (EXTRACT, ["VideoFlash/"], "", "{}: no video of the dataset"),
        (EXTRACT, [], "", "{}/VideoFlash: No such file"),
        (EXTRACT, ["VideoFlash/a.flv"], "", "{}/failed_frames.csv: no clip could be processed"),
        (EXTRACT, ["VideoFlash/a.flv"], "--target {}/new/a", "{}/new/a/failed_frames.csv: no clip could be processed"),
        (EXTRACT_KINETICS, ["raw/train/c/", "raw/val/c/"], "", "{}/raw: no video in a folder train/<class>/.*--source"),
        (EXTRACT_KINETICS, ["raw/train/x.mp4", "raw/val/"], "", "{}/raw: .*1 are outside of such folders.*--source"),
        (SPLIT, ["AudioWAV/", "Image-01-FPS/"], "", "video_preprocessing"),
        (SPLIT, of_cremad("1001_DFA_JOY_XX"), "", "1001_DFA_JOY_XX"),
        (SPLIT, of_cremad("holiday"), "", "holiday"),
        (SPLIT, of_cremad("1001_DFA_ANG_XX"), "", "only clip of ANG"),
        (SPLIT, of_cremad("1001_DFA_ANG_XX", "1001_IEO_ANG_XX"), "--by_actor", "two actors"),
        (SPLIT, of_cremad(*IDS), "--test_ratio 1.5", "--test_ratio"),
        (SPLIT, of_cremad(*IDS), "--test_ratio nan", "--test_ratio"),
    ],
)
def test_what_cannot_be_extracted_or_split_is_one_line(tmp_path, rejected, script, files, flags, words):
    make(tmp_path, files)
    folder = {SPLIT: ["--split_path", tmp_path / "out"], EXTRACT_KINETICS: ["--source", tmp_path / "raw"]}.get(
        script, []
    )
    error = rejected(f"data/{script}.py", "--root", tmp_path, *folder, *flags.format(tmp_path).split())
    assert re.search(words.format(tmp_path), error) and not (tmp_path / "out").exists()


def test_damaged_clips_are_kept_where_that_is_wanted_and_listed(tmp_path, extract):
    folder, frames = tmp_path / "raw" / "train" / "c", tmp_path / "visual" / "train_img" / "Image-01-FPS" / "c"
    (tmp_path / "raw" / "val").mkdir(parents=True)
    for name in ("a.flv", "b.mp4"):
        write_video(folder / name, [50] * 60, tone=440)
    content = (folder / "a.flv").read_bytes()
    (folder / "half.flv").write_bytes(content[: len(content) * 6 // 10])
    flags = ["--source", tmp_path / "raw", "--root", tmp_path]
    extract_frames = partial(extract, "kinect400/video_preprocessing.py", *flags)
    assert "2 done, 0 already there, 1 failed\n" in extract_frames()
    assert "1 done, 2 already there, 0 failed, 1 damaged but kept" in extract_frames("--keep_damaged")
    assert 3 <= len(names(frames / "half")) < 6
    assert read_failures(tmp_path / "failed_frames.csv")["train/c/half.flv"].startswith("kept: truncated: ")
    assert "1 done, 2 already there, 0 failed, 1 damaged but kept" in extract_frames("--keep_damaged")  # again
    assert "0 done, 2 already there, 1 failed\n" in extract_frames() and not (frames / "half").exists()
    output = extract("kinect400/mp4_to_wav.py", *flags, "--keep_damaged")
    assert "3 done, 0 already there, 0 failed, 1 damaged but kept" in output


def test_a_clip_that_has_changed_since_is_extracted_again(tmp_path, extract):
    video, flags = tmp_path / "VideoFlash" / "a.flv", ("CREMAD/video_preprocessing.py", "--root", tmp_path)
    write_flv(video, 30)
    extract(*flags)
    for frames, seconds in ((60, -1000), (75, 1000)):  # also by an older file
        changed = video.stat().st_mtime_ns + seconds * 10**9
        write_flv(video, frames)
        os.utime(video, ns=(changed, changed))
        assert "1 done, 0 already there" in extract(*flags)
        assert names(tmp_path / "Image-01-FPS" / "a") == images(*range(0, frames, 29))
        assert "0 done, 1 already there" in extract(*flags)


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


def test_frames_and_audio_of_clips_with_any_name(tmp_path, extract, monkeypatch):
    """Extract H.264 or MPEG-4 video with AAC audio, and a silent, a short and a broken clip."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "raw" / "train" / "playing guitar"
    (tmp_path / "raw" / "val").mkdir(parents=True)
    for k, name in enumerate(ODD_NAMES):
        write_video(
            folder / f"{name}.mp4", 20 + 3 * np.arange(35), codec=("libx264", "mpeg4")[k % 2], tone=300 + 100 * k
        )
    write_video(folder / "silent.mp4", [50] * 35)
    write_video(folder / "short.mkv", [50] * 15, tone=440)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video")
    flags = ["--source", tmp_path / "raw", "--root", tmp_path]
    for script in ("mp4_to_wav", "video_preprocessing"):
        assert "11 done, 0 already there, 2 failed" in extract(f"KineticSound/{script}.py", *flags)
    for kind, name, reason in (
        ("audio", "silent.mp4", "no audio track"),
        ("frames", "short.mkv", "too short: 2 frame(s) at 1 a second, 3 are needed"),
    ):
        failures = read_failures(tmp_path / f"failed_{kind}.csv")
        assert failures.pop(f"train/playing_guitar/{name}") == reason and len(failures) == 1
        assert failures["train/playing_guitar/broken.mp4"].startswith("not decodable: ")

    for name in ODD_NAMES:
        frames = tmp_path / "visual" / "train_img" / "Image-01-FPS" / "playing_guitar" / name
        assert names(frames) == images(0, 10, 20, 30)
        wav, expected = tmp_path / "audio" / "train" / "playing_guitar" / f"{name}.wav", tmp_path / "expected.wav"
        assert soundfile.info(wav).samplerate == 16000 and soundfile.info(wav).subtype == "PCM_16"
        ffmpeg("-i", f"file:{folder / name}.mp4", "-ac", 1, "-ar", 16000, expected)
        ours, theirs = (soundfile.read(path, dtype="int16")[0] for path in (wav, expected))
        assert len(ours) > 3 * 16000 and abs(len(ours) - len(theirs)) <= 1
        assert (ours[:-160] == theirs[: len(ours) - 160]).all()  # versions of FFmpeg differ in the last samples
    assert not list(tmp_path.rglob(".partial")) and not list(tmp_path.rglob("hacked"))


def working_in(folder):
    """Return the processes whose current folder it is; those that have ended but are not waited for have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            found += [path] * (os.readlink(path) == str(folder))
    return found


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("script", "pattern", "flags"),
    [("mp4_to_wav.py", "Audios/*.wav", []), ("video_preprocessing.py", "Image-05-FPS-SE/[!.]*", ["--fps", "5"])],
)
def test_killed_runs_leave_nothing_half_written(tmp_path, script, pattern, flags):
    """Kill the parent only: its workers have to end by themselves."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    (killed / "AVE").mkdir(parents=True)
    streams = ["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-f", "lavfi", "-i", "sine"]
    ffmpeg(*streams, "-t", 4, "-c:v", "mpeg4", "-c:a", "aac", killed / "AVE" / "000.mp4")
    for k in range(1, 24):
        shutil.copy(killed / "AVE" / "000.mp4", killed / "AVE" / f"{k:03d}.mp4")
    for k, name in enumerate(("train", "val", "test")):
        rows = [f"Bell&{number:03d}&good&0&10\n" for number in range(8 * k, 8 * k + 8)]
        (killed / f"{name}Set.txt").write_text("".join(rows))
    shutil.copytree(killed, whole)

    command = [str(ROOT / "data" / "AVE" / script), "--workers", "2", *flags, "--root"]
    for count in (1, 5, 11):
        with open(os.devnull, "w") as nowhere:
            process = launcher.start([*command, str(killed)], killed, os.environ, nowhere, nowhere)
        while len(list(killed.glob(pattern))) < count:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while working_in(killed):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.02)
    done = len([path for path in killed.glob(pattern) if not path.name.startswith(".")])
    assert 10 <= done < 24
    assert f"{24 - done} done, {done} already there, 0 failed" in run_fork(*command, killed).stdout
    run_fork(*command, whole)
    trees = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (killed, whole)
    ]
    assert trees[0] == trees[1] and not list(tmp_path.rglob(".partial"))


def misbehave(number, folder="."):
    if number in (3, 4):
        faulthandler.disable()  # of pytest, which would report it
        os.kill(os.getpid(), signal.SIGKILL if number == 3 else signal.SIGSEGV)
    if number == 5:
        raise KeyError("nobody")
    if number == 7:
        any(itertools.repeat(False))  # in C, where no handler of a signal is called
    if number == 8:
        subprocess.run(["sleep", "98765"], cwd=folder)
    if number == 19:
        os._exit(5)
    return "done"


def test_an_error_a_crash_or_a_hang_concerns_its_clip_alone(tmp_path):
    results, failures = process_clips(misbehave, {f"{k:02d}": (k, tmp_path) for k in range(20)}, 2, limit=4)
    assert results == {"done": 14} and list(failures) == ["03", "04", "05", "07", "08", "19"]
    assert failures["03"].startswith("crashed: its decoder ended by signal 9, Killed")
    assert failures["04"].startswith("crashed: its decoder ended by signal 11, Segmentation fault")
    assert failures["05"] == "not processed: KeyError: 'nobody'; check this file, or leave it out"
    assert failures["07"] == failures["08"] == "hung: its decoder did not end within 4 s; download it again"
    assert failures["19"].startswith("crashed: its decoder ended with status 5")
    assert not working_in(tmp_path), "a process that a hung worker started is still running"


def die(flag):
    if flag is None or not flag.exists():
        if flag:
            flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_between_two_clips_costs_none(tmp_path):
    jobs = {str(k): (k,) for k in range(3)}
    assert process_clips(misbehave, jobs, 2, start=partial(die, tmp_path / "flag")) == ({"done": 3}, {})
    results, failures = process_clips(misbehave, jobs, 2, start=partial(die, None))
    assert not results and {reason.partition(":")[0] for reason in failures.values()} == {"crashed"}


def test_splits_by_emotion_and_by_actor(tmp_path):
    make(tmp_path, of_cremad(*IDS))
    splits = []
    for flags in ((), (), ("--seed", 1), ("--by_actor",)):
        out = tmp_path / str(len(splits))
        run_here("data/CREMAD/make_split.py", "--root", tmp_path, "--test_ratio", 0.25, "--split_path", out, *flags)
        rows = [(out / f"{name}.csv").read_text().split() for name in ("train", "test")]
        assert sorted(rows[0] + rows[1]) == sorted(f"{clip_id},{clip_id.split('_')[2]}" for clip_id in IDS)
        splits.append(rows)
    assert splits[0] == splits[1] != splits[2]
    assert Counter(row.rpartition(",")[2] for row in splits[0][1]) == {"NEU": 6, "HAP": 6, "ANG": 6}
    actors = [{row.partition("_")[0] for row in rows} for rows in splits[3]]
    assert all(actors) and not actors[0] & actors[1]


def test_hard_clips_of_the_demo_are_as_long_with_more_noise_and_weaker_faces(tmp_path, monkeypatch):
    """Compare the noise before each voice starts, by the median of all clips, because it has few samples."""
    monkeypatch.chdir(tmp_path)
    for grade in ("easy", "hard"):
        run_here(make_clips, "--grade", grade, "--clips_per_class", 2)
    roots = [tmp_path / "train_test_data" / name / "CREMA-D" for name in ("demo", "demo-hard")]
    louder, distance = [], {}
    for wav in sorted((roots[0] / "AudioWAV").iterdir()):
        easy, hard = (soundfile.read(root / "AudioWAV" / wav.name)[0] for root in roots)
        assert len(easy) == len(hard)
        louder.append(np.std(hard[:8]) / np.std(easy[:8]))
        videos = (str(root / "VideoFlash" / f"{wav.stem}.flv") for root in roots)
        easy, hard = (cv2.VideoCapture(video).read()[1].astype(float) for video in videos)
        assert (hard[:40, :40].std(axis=(0, 1)) > 1.1 * easy[:40, :40].std(axis=(0, 1))).all()  # of the backdrop
        distance[wav.stem] = np.abs(cv2.blur(easy, (25, 25)) - cv2.blur(hard, (25, 25))).mean()
    assert np.median(louder) > 1.5
    assert distance["1001_D00_ANG_XX"] > 2 * distance["1001_D00_NEU_XX"], "a neutral face is the same but for grain"
