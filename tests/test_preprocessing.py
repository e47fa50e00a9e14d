"""From FLV to frames and lists: right frames, whole folders, failures by name, splits that keep their promise."""

import subprocess
from collections import Counter

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from tests.conftest import run_script

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 271360\n".format("4d7a" * 16)


def write_flv(path, frames, rate="30000/1001"):
    """An FLV of plain grey pictures by FFmpeg; frame i has the grey value 20 + 3 * i."""
    grey = np.stack([np.full((48, 64, 3), 20 + 3 * i, np.uint8) for i in range(frames)])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48"]
    command += ["-r", rate, "-i", "-", "-c:v", "flv1", "-q:v", "2", str(path)]
    subprocess.run(command, input=grey.tobytes(), check=True)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "VideoFlash").mkdir()
    return tmp_path


def extract(root, *flags, check=True):
    return run_script("data/CREMAD/video_preprocessing.py", "--root", root, "--workers", 2, *flags, check=check)


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
    assert "1002_DFA_ANG_XX.flv: a Git LFS pointer" in done.stdout and "git lfs pull" in done.stdout
    assert "1003_DFA_ANG_XX.flv: cannot be decoded" in done.stdout
    assert "1004_DFA_ANG_XX.flv: cannot be decoded" in done.stdout
    assert [path.name for path in (root / "Image-01-FPS").iterdir()] == ["1001_DFA_ANG_XX"]


def test_it_continues_where_it_stopped(root):
    write_flv(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", 35)
    extract(root)
    first = root / "Image-01-FPS" / "1001_DFA_ANG_XX" / "00000.jpg"
    written = first.stat().st_mtime_ns
    write_flv(root / "VideoFlash" / "1002_DFA_ANG_XX.flv", 35)
    half_written = root / "Image-01-FPS" / ".partial-1002_DFA_ANG_XX"
    half_written.mkdir()
    (half_written / "00000.jpg").write_bytes(b"half")
    assert "1 done, 1 already there, 0 failed" in extract(root).stdout
    assert first.stat().st_mtime_ns == written and not half_written.exists()
    assert cv2.imread(str(root / "Image-01-FPS" / "1002_DFA_ANG_XX" / "00000.jpg")) is not None


def test_nothing_to_do_is_an_error(root):
    for folder in (root, root / "elsewhere"):
        done = extract(folder, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(folder) in done.stderr
    (root / "VideoFlash" / "1002_DFA_ANG_XX.flv").write_text(LFS_POINTER)
    assert extract(root, check=False).returncode == 2


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
        run_script("data/CREMAD/make_split.py", *flags, "--seed", seed, "--split_path", tmp_path / name)
    a, b, c = (read_lists(tmp_path / name) for name in "abc")
    assert a == b != c
    assert sorted(a["train"] + a["test"]) == sorted(IDS)
    assert Counter(i.split("_")[2] for i in a["test"]) == {"NEU": 6, "HAP": 6, "ANG": 6}


def test_split_by_actor(tmp_path):
    make_layout(tmp_path, IDS)
    run_script("data/CREMAD/make_split.py", "--root", tmp_path, "--split_path", tmp_path, "--by_actor")
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
    done = run_script(
        "data/CREMAD/make_split.py", "--root", tmp_path, "--split_path", tmp_path / "out", *flags, check=False
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr
    assert not (tmp_path / "out").exists()
