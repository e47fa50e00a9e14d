"""The cache of decoded clips: the same tensors, changed clips anew, within its bound, gone without harm."""

import gc
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch

from dataset import DATASETS, cache
from dataset.loader import build_loader
from tests.conftest import SMALL, data_flags, start_quietly
from tests.test_reader import settings

CPU = torch.device("cpu")


@pytest.fixture
def moved(corpus, tmp_path):
    """The corpus of 18 and 6 clips, without a cache."""
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "moved"


def tree(folder):
    """{path: time of change} of the cached arrays."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".f32", ".u8")}


def items(root, split="train", **changes):
    dataset = build_loader(settings(root, **changes), split, CPU).dataset
    dataset.set_epoch(3)
    return dataset, [dataset[i] for i in range(len(dataset))]


def assert_same(first, second):
    for (a, label), (b, other) in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("audio", "visual")) and label == other


def sound(item):
    return item[0]["audio"]


@pytest.mark.parametrize("settings_of", ["CREMAD", "KineticSound"])  # the first 3 s, and 10 s to crop
@pytest.mark.parametrize("split", ["train", "test"])
def test_cached_items_are_the_decoded_ones(corpus, moved, settings_of, split, monkeypatch):
    entry = replace(DATASETS["CREMAD"], audio=DATASETS[settings_of].audio)
    monkeypatch.setitem(DATASETS, "CREMAD", entry)
    plain, decoded = items(moved, split, cache_gb=0)
    assert not plain.stored and not tree(moved)
    filled, cached = items(moved, split)
    assert len(filled.stored) == len(filled) == len(tree(moved)) / 2
    assert_same(decoded, cached)
    again, _ = items(moved, split)
    assert again.stored == filled.stored


def test_a_changed_clip_or_setting_is_made_anew(moved):
    dataset, before = items(moved)
    made = tree(moved)
    items(moved)
    assert tree(moved) == made
    clip = dataset.clips[4]

    other = dataset.clips[5]
    shutil.copy(moved / "AudioWAV" / f"{other.id}.wav", clip.wav)
    os.utime(clip.wav, ns=(1, 1))
    _, after = items(moved)
    changed = {path for path, time_ in tree(moved).items() if time_ != made[path]}
    assert len(changed) == 2
    assert torch.equal(sound(after[4]), sound(before[5])) and not torch.equal(sound(after[4]), sound(before[4]))
    folders = {path.parent for path in tree(moved)}
    items(moved, "test", image_size=48)
    items(moved, "test", image_size=40)
    assert len({path.parent for path in tree(moved)}) == len(folders) + 2


def test_the_bound_holds_and_what_does_not_fit_is_decoded(moved):
    _, decoded = items(moved, cache_gb=0)
    whole, _ = items(moved)
    sizes = [sum(stored.sizes()) for stored in whole.stored.values()]
    shutil.rmtree(moved / ".cache")
    limit = sum(sizes[:5]) / 1e9
    for _ in range(2):  # neither does it grow the next time
        dataset, cached = items(moved, cache_gb=limit)
        assert list(dataset.stored) == [clip.wav for clip in dataset.clips[:5]]
        assert sum(path.stat().st_size for path in tree(moved)) <= limit * 1e9
        assert_same(decoded, cached)
    assert list(items(moved)[0].stored) == [clip.wav for clip in dataset.clips], "more room, more clips"
    del dataset, whole
    gc.collect()
    items(moved, "test", cache_gb=limit)  # another setting: the older one makes room
    assert sum(path.stat().st_size for path in tree(moved)) <= limit * 1e9
    assert not items(moved, cache_gb=0)[0].stored and not tree(moved)


def test_what_the_run_reads_makes_no_room(moved):
    """Training clips fill the cache: the test clips find no place in it, and take none."""
    train, _ = items(moved)
    made = tree(moved)
    limit = sum(path.stat().st_size for path in made) / 1e9
    test, _ = items(moved, "test", cache_gb=limit)
    assert not test.stored and tree(moved) == made
    del train
    gc.collect()
    (other := moved / ".cache" / "mine-too").mkdir()
    (other / "text").write_text("not the cache's")
    assert items(moved, "test", cache_gb=limit)[0].stored and not made.items() & tree(moved).items()
    assert (other / "text").exists()


def test_what_was_not_finished_makes_room(moved):
    """A run that was killed while it decoded leaves arrays that no index names."""
    dataset, _ = items(moved)
    made = tree(moved)
    limit = sum(path.stat().st_size for path in made) / 1e9
    for index in (moved / ".cache").glob("*/index.json"):
        index.unlink()
    del dataset
    gc.collect()
    assert items(moved, "test", cache_gb=limit)[0].stored and not made.items() & tree(moved).items()


def test_a_changed_clip_that_no_longer_fits_is_decoded(moved):
    dataset, before = items(moved)
    limit = sum(sum(stored.sizes()) for stored in dataset.stored.values()) / 1e9
    first, second = dataset.clips[:2]
    shutil.copy(second.wav, first.wav)
    os.utime(first.wav, ns=(1, 1))
    _, after = items(moved, cache_gb=limit)  # full: its place is still taken when it is looked for
    assert torch.equal(sound(after[0]), sound(before[1]))


def test_a_cache_that_goes_while_it_is_used_does_no_harm(moved):
    dataset, cached = items(moved)
    cache.mapped.cache_clear()
    shutil.rmtree(moved / ".cache")
    assert_same(cached, [dataset[i] for i in range(len(dataset))])


def test_a_cut_array_is_made_anew(moved):
    dataset, cached = items(moved)
    path = next(iter(tree(moved)))
    content = path.read_bytes()
    path.unlink()  # what is mapped stays as it was
    path.write_bytes(content[:-4])
    again, after = items(moved)
    assert len(again.stored) == len(dataset)
    assert_same(cached, after)


def test_a_cache_that_cannot_be_written_is_a_warning(moved, capsys):
    _, decoded = items(moved, cache_gb=0)
    shutil.rmtree(moved / ".cache")
    (moved / ".cache").write_text("no folder")
    dataset, read = items(moved)
    assert not dataset.stored and "--cache_path" in capsys.readouterr().err
    assert_same(decoded, read)


def test_a_killed_run_leaves_nothing_half_written(moved, tmp_path):
    command = ["main_dgl.py", "--train", *data_flags(moved), *SMALL, "--ckpt_path", tmp_path / "run"]
    process = start_quietly(command)
    while process.poll() is None and not tree(moved):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole, cached = items(moved)
    assert len(whole.stored) == len(whole)
    for path in (moved / ".cache").glob("*/index.json"):
        json.loads(path.read_text())
    shutil.rmtree(moved / ".cache")
    assert_same(cached, items(moved)[1])
