"""The scripts that turn raw videos into frames, wav files and lists, their processes, and the demo's clips."""

import csv
import faulthandler
import itertools
import os
import shutil
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from data.demo import make_clips
from dataset.base import list_frames
from tests import launcher
from tests.conftest import ROOT, contents, ffmpeg, processes_of, run_fork, run_here, wait_for, write_video
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


ODD_NAMES = ["a b", "it's", 'say "x"', "semi;colon", "$(touch hacked)", "this & that", "Ünïcödé 音"]
ODD_NAMES += ["-vn", "%03d", "a:b"]


def test_frames_and_audio_of_clips_with_any_name(tmp_path, extract, monkeypatch):
    """Extract H.264 or MPEG-4 video with AAC audio, and a silent, a short and a broken clip."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "raw" / "train" / "playing guitar"
    (tmp_path / "raw" / "val").mkdir(parents=True)
    for k, name in enumerate(ODD_NAMES):
        codec = ("libx264", "mpeg4")[k % 2]
        write_video(folder / f"{name}.mp4", 20 + 3 * np.arange(35), codec=codec, tone=300 + 100 * k)
    write_video(folder / "silent.mp4", [50] * 35)
    write_video(folder / "short.mkv", [50] * 15, tone=440)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video")
    flags = ["--source", tmp_path / "raw", "--root", tmp_path]
    for script in ("mp4_to_wav", "video_preprocessing"):
        assert "11 done, 0 already there, 2 failed" in extract(f"KineticSound/{script}.py", *flags)
    short = "too short: 2 frame(s) at 1 a second, 3 are needed"
    for kind, name, reason in (("audio", "silent.mp4", "no audio track"), ("frames", "short.mkv", short)):
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


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_killed_runs_leave_nothing_half_written(tmp_path):
    """Kill the parent only: its workers have to end by themselves."""
    killed, whole, pattern = tmp_path / "killed", tmp_path / "whole", "Image-05-FPS-SE/[!.]*"
    (killed / "AVE").mkdir(parents=True)
    streams = ["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-f", "lavfi", "-i", "sine"]
    ffmpeg(*streams, "-t", 4, "-c:v", "mpeg4", "-c:a", "aac", killed / "AVE" / "000.mp4")
    for k in range(1, 24):
        shutil.copy(killed / "AVE" / "000.mp4", killed / "AVE" / f"{k:03d}.mp4")
    for k, name in enumerate(("train", "val", "test")):
        rows = [f"Bell&{number:03d}&good&0&10\n" for number in range(8 * k, 8 * k + 8)]
        (killed / f"{name}Set.txt").write_text("".join(rows))
    shutil.copytree(killed, whole)

    command = [str(ROOT / "data" / "AVE" / "video_preprocessing.py"), "--workers", "2", "--fps", "5", "--root"]
    for count in (1, 5, 11):
        with open(os.devnull, "w") as nowhere:
            process = launcher.start([*command, str(killed)], killed, os.environ, nowhere, nowhere)
        wait_for(lambda count=count: len(list(killed.glob(pattern))) >= count, process, pause=0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not processes_of(killed))
    done = len(list(killed.glob(pattern)))
    assert 10 <= done < 24
    assert f"{24 - done} done, {done} already there, 0 failed" in run_fork(*command, killed).stdout
    run_fork(*command, whole)
    assert contents(killed) == contents(whole) and not list(tmp_path.rglob(".partial"))


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
    assert not processes_of(tmp_path), "a process that a hung worker started is still running"


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
    sentences, emotions, splits = ("DFA", "IEO", "TIE"), ("NEU", "HAP", "ANG"), []
    ids = [f"{actor}_{s}_{e}_XX" for actor in range(1001, 1009) for s in sentences for e in emotions]
    (tmp_path / "AudioWAV").mkdir()
    for clip_id in ids:
        (tmp_path / "Image-01-FPS" / clip_id).mkdir(parents=True)
        (tmp_path / "AudioWAV" / f"{clip_id}.wav").touch()
    for flags in ((), (), ("--seed", 1), ("--by_actor",)):
        out = tmp_path / str(len(splits))
        run_here("data/CREMAD/make_split.py", "--root", tmp_path, "--test_ratio", 0.25, "--split_path", out, *flags)
        rows = [(out / f"{name}.csv").read_text().split() for name in ("train", "test")]
        assert sorted(rows[0] + rows[1]) == sorted(f"{clip_id},{clip_id.split('_')[2]}" for clip_id in ids)
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


def test_outputs_stay_until_they_can_be_replaced(tmp_path, capsys):
    """Take away the videos behind links, and change the time of one that is not decodable any more."""
    for name in ("a", "b"):
        write_video(tmp_path / "disk" / f"{name}.mp4", [90] * 30, tone=440)
        (tmp_path / "AVE").mkdir(exist_ok=True)
        (tmp_path / "AVE" / f"{name}.mp4").symlink_to(tmp_path / "disk" / f"{name}.mp4")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}Set.txt").write_text("Banjo&a&good&0&10\nBanjo&b&good&0&10\n")
    flags = ["--root", tmp_path, "--workers", 2]
    run_here("data/AVE/video_preprocessing.py", *flags)
    shutil.move(tmp_path / "disk", tmp_path / "away")
    with pytest.raises(SystemExit):
        run_here("data/AVE/video_preprocessing.py", *flags)
    assert [len(list_frames(tmp_path / "Image-01-FPS-SE" / name)) for name in ("a", "b")] == [3, 3]
    shutil.move(tmp_path / "away", tmp_path / "disk")
    capsys.readouterr()
    run_here("data/AVE/video_preprocessing.py", *flags)
    assert "0 done, 2 already there" in capsys.readouterr().out
    os.utime(tmp_path / "disk" / "a.mp4", ns=(0, 0))
    for done in (1, 0):
        run_here("data/AVE/video_preprocessing.py", *flags)
        assert f"{done} done, {2 - done} already there" in capsys.readouterr().out
    (tmp_path / "failed_frames.csv").mkdir()
    with pytest.raises(SystemExit):
        run_here("data/AVE/video_preprocessing.py", *flags)
    assert "failed_frames.csv: Is a directory; remove it" in capsys.readouterr().err
