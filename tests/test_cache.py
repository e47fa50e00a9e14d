"""The cache of decoded clips, and clips that cannot be decoded: found before training, left out, listed."""

import csv
import io
import multiprocessing
import os
import random
import re
import shutil
import struct
import time
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch

import main_dgl
import valid
from dataset import DATASETS, build_dataset, cache, clips
from dataset.clips import load_waveform
from dataset.loader import build_loader
from tests.conftest import SMALL, data_flags, run_here
from tests.test_reader import settings
from utils.errors import InputError, warn_once

CPU = torch.device("cpu")


def tree(root):
    """Return {file in the cache: time of change}."""
    return {path: path.stat().st_mtime_ns for path in (root / ".cache").glob("*")}


def items(root, split="train", **changes):
    """Return a dataset after `prepare`, and its items in epoch 3."""
    warn_once.cache_clear()
    dataset = build_loader(settings(root, **changes), split, CPU).dataset
    dataset.epoch = 3
    return dataset, list(dataset)


def assert_same(first, second):
    for (a, label), (b, other) in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("audio", "visual")) and label == other


@pytest.fixture
def decoded(monkeypatch):
    """Return a list that gets the ids of the clips that are decoded to be cached, a list for each time."""
    jobs_of, each_clip = [], cache.each_clip
    monkeypatch.setattr(cache, "each_clip", lambda f, jobs, *rest: jobs_of.append([*jobs]) or each_clip(f, jobs, *rest))
    return jobs_of


@pytest.mark.parametrize("repeat_to", [None, 10])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cached_items_equal_decoded_ones(moved, split, repeat_to, monkeypatch):
    monkeypatch.setattr(DATASETS["CREMAD"], "audio", replace(DATASETS["CREMAD"].audio, repeat_to=repeat_to))
    plain, expected = items(moved, split, cache_gb=0)
    assert not plain.cached and not tree(moved)
    dataset, cached = items(moved, split)
    assert dataset.cached.keys() == {clip.id for clip in plain.clips}
    assert {str(path) for path in tree(moved)} == set(dataset.cached.values())  # and no temporary file
    assert_same(expected, cached)


def test_only_a_changed_clip_or_setting_gets_another_file(moved, decoded, monkeypatch):
    dataset, before = items(moved)
    files = tree(moved)
    shutil.copy(dataset.clips[5].wav, dataset.clips[4].wav)
    _, after = items(moved)
    assert torch.equal(after[4][0]["audio"], before[5][0]["audio"])
    assert decoded[1:] == [[dataset.clips[4].id]] and files.items() < tree(moved).items()
    monkeypatch.chdir(moved.parent)
    items(Path("moved"), image_size=48)  # training crops from whole images
    assert not decoded[2], "the same folder under a relative path"
    for size in (48, 40):
        items(moved, "test", image_size=size)
    assert [len(jobs) for jobs in decoded[3:]] == [6, 6] and len(tree(moved)) == 18 + 1 + 6 + 6
    for wav, size, later in ((dataset.clips[6].wav, 0, 1), (dataset.clips[7].wav, 1, 0)):  # either of the two changes
        state = os.stat(wav)
        with open(wav, "ab") as file:
            file.write(bytes(size))
        os.utime(wav, ns=(state.st_atime_ns, state.st_mtime_ns + later))
    items(moved)
    assert decoded[5] == [dataset.clips[6].id, dataset.clips[7].id]


def test_what_exceeds_the_limit_is_decoded_with_one_warning(moved, capsys):
    _, expected = items(moved, cache_gb=0)
    assert not capsys.readouterr().err, "this was asked for"
    whole, _ = items(moved)
    limit = sum(sorted(os.path.getsize(path) for path in whole.cached.values())[-5:]) / cache.GB
    shutil.rmtree(moved / ".cache")
    capsys.readouterr()
    for workers in (1, 3):
        dataset, cached = items(moved, cache_gb=limit, num_workers=workers)
        assert 0 < len(dataset.cached) < 18 and sum(map(os.path.getsize, tree(moved))) <= limit * cache.GB
        assert_same(expected, cached)
        error = capsys.readouterr().err
        assert error.count("warning: --cache_path") == 1 and "--cache_gb" in error
    assert len(items(moved)[0].cached) == 18 and not capsys.readouterr().err, "more room, more clips"


def denying(folder, error, kind="w"):
    """Return `open` that raises the error for files in a folder that are to be written, or with "r" to be read."""

    def denied(path, mode="r", *rest, **options):
        if kind in mode and str(path).startswith(str(folder)):
            raise error
        return open_(path, mode, *rest, **options)

    open_ = open
    return denied


@pytest.mark.parametrize(
    "problem",
    [PermissionError(13, "Permission denied"), OSError(28, "No space left on device"), "no folder", "full disk"],
    ids=str,
)
def test_a_cache_that_cannot_be_written_is_one_warning(moved, capsys, monkeypatch, problem):
    _, expected = items(moved, cache_gb=0)
    shutil.rmtree(moved / ".cache")
    capsys.readouterr()
    if problem == "no folder":
        (moved / ".cache").write_text("")
    elif problem == "full disk":
        usage = namedtuple("Usage", "total used free")(100 * cache.GB, 96 * cache.GB, 4 * cache.GB)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:  # root may write into a folder of any mode
        monkeypatch.setattr("builtins.open", denying(moved / ".cache", problem))
    dataset, found = items(moved)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --cache_path {moved / '.cache'}: ") and not dataset.cached and not tree(moved)
    assert_same(expected, found)


def test_a_file_that_is_lost_while_it_is_used_does_no_harm(moved):
    dataset, expected = items(moved)
    files = {path: path.read_bytes() for path in tree(moved)}
    for harm in (lambda content: content[:-4], lambda content: b"", lambda content: b"404 Not Found", None):
        shutil.rmtree(moved / ".cache")
        for path, content in files.items() if harm else ():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(harm(content))
        assert_same(expected, dataset)
        assert_same(expected, items(moved)[1])


def test_a_clip_that_cannot_be_decoded_is_remembered_until_its_file_changes(moved, decoded, monkeypatch):
    """Check that an unreadable file is not remembered: permission to read it changes neither size nor time."""
    dataset, expected = items(moved, cache_gb=0)
    wav = Path(dataset.clips[7].wav)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denying(wav, PermissionError(13, "Permission denied"), "r"))
        dataset, _ = items(moved)
    assert dataset.damaged == {wav.stem: f"{wav}: Permission denied"} and len(dataset) == 17
    assert not list((moved / ".cache").glob("*.txt"))
    content = wav.read_bytes()
    wav.write_text("404 Not Found")
    for jobs in ([wav.stem], []):
        dataset, _ = items(moved)
        assert list(dataset.damaged) == [wav.stem] and len(dataset) == 17 and decoded[-1] == jobs
    (note,) = (moved / ".cache").glob("*.txt")
    assert note.read_text() == dataset.damaged[wav.stem] == f"{wav}: not a readable audio file"
    wav.write_bytes(content)
    assert_same(expected, items(moved)[1])


def test_two_processes_that_prepare_at_once_end_with_the_same_files(moved):
    processes = [multiprocessing.get_context("fork").Process(target=items, args=(moved,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    files = tree(moved)
    dataset, cached = items(moved)
    assert {str(path) for path in files} == set(dataset.cached.values()) and tree(moved) == files
    assert_same(items(moved, cache_gb=0)[1], cached)


def nan_wav(_):
    file = io.BytesIO()
    soundfile.write(file, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT", format="WAV")
    return file.getvalue()


def oversized_jpeg(content):
    """Return a JPEG whose header gives 65,000 x 65,000, which a decoder rejects as a bomb."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + b"\xfd\xe8\xfd\xe8" + content[at + 4 :]


def with_rate(rate):
    return lambda content: content[:24] + struct.pack("<I", rate) + content[28:]


PAGE, POINTER = b"404 Not Found\n", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
UNREADABLE, IMAGE = "not a readable audio file", "not a readable image"
DAMAGES = [  # number of the file, its new content by the old one, the reason with both sizes; None where it is whole
    (0, lambda content: content[: len(content) * 2 // 3], "truncated, {} of {} bytes"),
    (0, with_rate(1), "a sampling rate of 1 Hz, which no audio has"),
    (0, with_rate(2**32 - 1), "a sampling rate of 4294967295 Hz, which no audio has"),
    (0, lambda _: POINTER, "a Git LFS pointer, not the audio: run `git lfs pull` where you cloned the dataset"),
    (0, lambda content: content[:40] + struct.pack("<I", 2) + content[:2], "only 1 sample(s) of audio"),
    (0, nan_wav, ""),
    (0, lambda _: PAGE, UNREADABLE),
    (0, lambda _: b"", UNREADABLE),
    (0, lambda content: content[:30], UNREADABLE),
    (0, lambda content: bytes(len(content)), UNREADABLE),
    (0, lambda content: content[:4] + b"\xff\xff\xff\x7f" + content[8:], None),  # from a pipe, which knows no size
    (-1, lambda _: PAGE, IMAGE),
    (-1, lambda _: b"", IMAGE),
    (-1, lambda content: bytes(len(content)), IMAGE),
    (-1, lambda content: content[: len(content) * 2 // 3], ""),
    (-1, oversized_jpeg, ""),
]


def test_each_kind_of_damage_is_found_with_its_reason(moved):
    expected = {}
    for clip, (number, change, reason) in zip(build_dataset(settings(moved), "train").clips, DAMAGES, strict=False):
        path = Path(clip.files()[number])
        old = path.read_bytes()
        path.write_bytes(change(old))
        if reason is not None:
            expected[clip.id] = f"{path}: {reason}".format(path.stat().st_size, len(old))
            if number == 0 and reason:
                with pytest.raises(InputError, match=re.escape(expected[clip.id])):
                    load_waveform(path, 16000)
    loader = build_loader(settings(moved, batch_size=18 - len(expected)), "train", CPU)
    dataset = loader.dataset
    assert dataset.damaged.keys() == expected.keys() and len(expected) == len(DAMAGES) - 1
    assert {clip_id: dataset.damaged[clip_id][: len(reason)] for clip_id, reason in expected.items()} == expected
    assert len(dataset) == 18 - len(expected) == sum(map(len, loader.sampler))
    assert f"{len(expected)} skipped as damaged, the first is {next(iter(dataset.damaged))}" in str(dataset)


def test_a_decoder_that_hangs_costs_its_clip(moved, monkeypatch):
    clip = build_dataset(settings(moved), "train").clips[0]
    hanging, load_image = clip.files()[-1], clips.load_image
    monkeypatch.setattr(clips, "load_image", lambda path: load_image(path) if path != hanging else time.sleep(99))
    monkeypatch.setattr(cache, "each_clip", partial(cache.each_clip, limit=2))
    dataset, _ = items(moved)
    assert list(dataset.damaged) == [clip.id] and "2 s" in dataset.damaged[clip.id]


def test_training_continues_without_damaged_clips_and_lists_each(moved, tmp_path, small, capsys, rejected):
    """Damage an eighth of the clips, drawn at random; one more has no audio at all."""
    rng = random.Random(0)
    *chosen, silent = rng.sample(sorted(path.stem for path in (moved / "AudioWAV").glob("*.wav")), 4)
    for clip_id in chosen:
        files = [moved / "AudioWAV" / f"{clip_id}.wav", *sorted((moved / "Image-01-FPS" / clip_id).iterdir())]
        rng.choice(files).write_bytes(PAGE)
    (moved / "AudioWAV" / f"{silent}.wav").unlink()
    command = ["--train", *data_flags(moved), *SMALL, "--epochs", 1, "--ckpt_path", tmp_path / "run"]
    error = rejected(main_dgl, *command)
    assert "3 of 23 clips" in error and "--max_skipped 0.05" in error and not (tmp_path / "run").exists()

    run_here(main_dgl, *command, "--max_skipped", 0.15)
    with open(tmp_path / "run" / "skipped.csv", newline="") as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*chosen, silent} and rows[silent]["reason"].startswith("no audio")
    assert all(clip_id in rows[clip_id]["reason"] for clip_id in chosen)
    tests = {line.split(",")[0] for line in (moved / "test.csv").read_text().splitlines()}
    assert all((row["split"] == "test") == (clip_id in tests) for clip_id, row in rows.items())
    capsys.readouterr()
    run_here(valid, "--ckpt_path", tmp_path / "run" / "best.pth")
    assert f"test: {6 - len(tests & rows.keys())} clips" in capsys.readouterr().out


def test_clips_of_many_frames_are_cached_and_large_ones_decoded_each_time(moved, capsys, monkeypatch):
    frame = next((moved / "Image-01-FPS").glob("1001*ANG*/00000.jpg"), None) or next(
        (moved / "Image-01-FPS").glob("*/00000.jpg")
    )
    for number in range(1000, 1300):
        shutil.copy(frame, frame.with_name(f"{number:05d}.jpg"))
    dataset, expected = items(moved)
    assert len(dataset.cached) == 18 and all(dataset.from_cache(clip) is not None for clip in dataset.clips)
    shutil.rmtree(moved / ".cache")
    monkeypatch.setattr("dataset.clips.LARGEST", 2**24)
    capsys.readouterr()
    dataset, found = items(moved)
    assert len(dataset.cached) == 17 and "more than 2 GiB" in capsys.readouterr().err
    assert_same(expected, found)


def test_too_little_memory_is_no_damage(moved, capsys, monkeypatch):
    decode = cv2.imdecode

    def failing(content, flags):
        if len(content) == largest:
            raise no_memory
        return decode(content, flags)

    largest = max(path.stat().st_size for path in moved.glob("Image-01-FPS/*/*.jpg"))
    no_memory = cv2.error()
    no_memory.code = cv2.Error.StsNoMem
    warn_once.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imdecode", failing)
        dataset = build_loader(settings(moved), "train", CPU).dataset
    assert not dataset.damaged and len(dataset.cached) < 18 and "memory ran out" in capsys.readouterr().err
    assert len(items(moved)[0].cached) == 18
