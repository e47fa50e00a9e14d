"""The cache of decoded clips: the same items, changed clips again, within its limit, without harm to any run."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from dataset import DATASETS, cache
from dataset.loader import build_loader
from tests.conftest import ROOT
from tests.test_reader import settings
from utils.errors import warn_once

CPU = torch.device("cpu")


@pytest.fixture
def moved(corpus, tmp_path):
    """The corpus of 18 and 6 clips, without a cache."""
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "moved"


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
    (moved.parent / "link").symlink_to(moved)
    shutil.copy(dataset.clips[5].wav, dataset.clips[4].wav)
    _, after = items(moved)
    assert torch.equal(after[4][0]["audio"], before[5][0]["audio"])
    assert decoded[1:] == [[dataset.clips[4].id]] and files.items() < tree(moved).items()
    monkeypatch.chdir(moved.parent)
    items(type(moved)("moved"), image_size=48)  # training crops from whole images
    assert not decoded[2], "the same folder under a relative path"
    for size in (48, 40):
        items(moved, "test", image_size=size)
    assert [len(jobs) for jobs in decoded[3:]] == [6, 6] and len(tree(moved)) == 18 + 1 + 6 + 6


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


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("problem", ["read-only", "no folder", "full disk", "no space left"])
def test_a_cache_that_cannot_be_written_is_one_warning(moved, capsys, monkeypatch, problem):
    _, expected = items(moved, cache_gb=0)
    shutil.rmtree(moved / ".cache")
    capsys.readouterr()
    if problem == "read-only":  # root may write into a folder of any mode
        monkeypatch.setattr("builtins.open", denying(moved / ".cache", PermissionError(13, "Permission denied")))
    elif problem == "no space left":
        monkeypatch.setattr("builtins.open", denying(moved / ".cache", OSError(28, "No space left on device")))
    elif problem == "no folder":
        (moved / ".cache").write_text("")
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * cache.GB, 96 * cache.GB, 4 * cache.GB))
    dataset, found = items(moved)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: --cache_path {moved / '.cache'}: ") and not dataset.cached and not tree(moved)
    assert_same(expected, found)


def denying(folder, error, kind="w"):
    """Return `open` that raises the error for files in a folder that are to be written, or with "r" to be read."""

    def denied(path, mode="r", *rest, **options):
        if kind in mode and str(path).startswith(str(folder)):
            raise error
        return open_(path, mode, *rest, **options)

    open_ = open
    return denied


@pytest.mark.parametrize("harm", ["truncated", "empty", "deleted", "text"])
def test_a_file_that_is_lost_while_it_is_used_does_no_harm(moved, harm):
    dataset, expected = items(moved)
    if harm == "deleted":
        shutil.rmtree(moved / ".cache")
    for path in tree(moved):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes({"truncated": content[:-4], "empty": b"", "text": b"404 Not Found"}[harm])
    assert_same(expected, dataset)
    assert_same(expected, items(moved)[1])


def test_a_clip_that_cannot_be_decoded_is_remembered_until_its_file_changes(moved, decoded):
    dataset, expected = items(moved)
    wav = moved / "AudioWAV" / f"{dataset.clips[7].id}.wav"
    content = wav.read_bytes()
    wav.write_text("404 Not Found")
    for _ in range(2):
        dataset, _ = items(moved)
        assert list(dataset.damaged) == [wav.stem] and len(dataset) == 17
    assert decoded[1:] == [[wav.stem], []]
    (note,) = (moved / ".cache").glob("*.txt")
    assert note.read_text() == dataset.damaged[wav.stem] == f"{wav}: not a readable audio file"
    wav.write_bytes(content)
    assert_same(expected, items(moved)[1])


def test_a_file_that_may_not_be_read_is_not_remembered(moved, decoded, monkeypatch):
    """Its owner may permit it at any time, which changes neither its size nor its time."""
    dataset, expected = items(moved, cache_gb=0)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denying(dataset.clips[7].wav, PermissionError(13, "Permission denied"), "r"))
        dataset, _ = items(moved)
    (reason,) = dataset.damaged.values()
    assert reason.endswith(": Permission denied") and len(dataset) == 17
    assert not list((moved / ".cache").glob("*.txt"))
    assert_same(expected, items(moved)[1])


PREPARE = "import sys; from pathlib import Path; from tests.test_cache import items; items(Path(sys.argv[1]))"


def test_two_processes_that_prepare_at_once_end_with_the_same_files(moved):
    processes = [subprocess.Popen([sys.executable, "-c", PREPARE, moved], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    files = tree(moved)
    dataset, cached = items(moved)
    assert {str(path) for path in files} == set(dataset.cached.values()) and tree(moved) == files
    assert_same(items(moved, cache_gb=0)[1], cached)
