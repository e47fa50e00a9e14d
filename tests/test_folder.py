"""A run's folder follows its settings: an edit begins a run of its own, the same again goes on."""

import json
import shutil

import pytest
import torch

import main_dgl
from dataset import cache
from tests.conftest import SMALL, data_flags, run_here
from tests.torture import assert_same_run
from utils.results import settings

BASE = "ckpt/cremad/dgl-alpha4-seed0"


@pytest.fixture
def train(few, tmp_path, small, monkeypatch, capsys):
    """Train an epoch in an empty folder, with these flags more -> what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        capsys.readouterr()
        run_here(main_dgl, "--train", *data_flags(few), *SMALL, "--num_workers", 0, "--epochs", 1, *flags)
        return capsys.readouterr().out

    return call


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_an_edit_has_a_folder_of_its_own(train, tmp_path):
    assert BASE in train()
    before = (tmp_path / BASE / "last.pth").read_bytes()
    train("--alpha", 0.5)
    train("--learning_rate", 0.01)
    train("--learning_rate", 0.01, "--fusion_method", "gated")
    train("--random_seed", 3, "--method", "joint")
    names = {"", "-learning_rate0.01", "-fusion_methodgated-learning_rate0.01"}
    names = {f"dgl-alpha4-seed0{name}" for name in names} | {"dgl-alpha0.5-seed0", "joint-seed3"}
    assert {path.name for path in (tmp_path / "ckpt" / "cremad").iterdir()} == names
    assert (tmp_path / BASE / "last.pth").read_bytes() == before


def test_the_same_again_is_left_alone_or_goes_on(train, tmp_path):
    train()
    before = (tmp_path / BASE / "last.pth").read_bytes()
    assert "finished; --overwrite" in train() and (tmp_path / BASE / "last.pth").read_bytes() == before
    assert "resuming in epoch 1" in train("--epochs", 2)
    assert len(record(tmp_path / BASE)["starts"]) == 2
    assert not (tmp_path / BASE / ".lock").exists()


def test_a_run_that_saved_nothing_is_told(train, tmp_path):
    (tmp_path / BASE).mkdir(parents=True)
    (tmp_path / BASE / "run.json").write_text("{}")  # as a run leaves it that is killed in its first epoch
    assert f"{BASE}: a run was killed here before anything was saved" in train()
    assert "killed" not in train("--epochs", 2)


def test_a_finished_run_without_its_checkpoints_is_left_alone(train, tmp_path, capsys):
    """As where last.pth, the largest file, was removed to save disk: nothing of the run is lost or written over."""
    train()
    before = {path.name: path.read_bytes() for path in (tmp_path / BASE).iterdir() if path.name != "last.pth"}
    (tmp_path / BASE / "last.pth").unlink()
    output = train("--ckpt_path", BASE)
    assert "finished" in output and "killed" not in output
    train("--learning_rate", 0.01)
    assert (tmp_path / f"{BASE}-learning_rate0.01" / "last.pth").exists()
    for flags in (["--learning_rate", 0.01, "--ckpt_path", BASE], ["--epochs", 2], ["--epochs", 2, "--resume"]):
        with pytest.raises(SystemExit) as end:
            train("--ckpt_path", BASE, *flags)
        error = capsys.readouterr().err
        assert end.value.code == 2 and flags[0] in error and BASE in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / BASE).iterdir()} == before
    (tmp_path / BASE / "run.json").unlink()
    with pytest.raises(SystemExit):
        train("--learning_rate", 0.01, "--ckpt_path", BASE)
    train("--epochs", 2, "--overwrite")
    assert (tmp_path / BASE / "last.pth").exists()


def test_other_data_are_another_run(train, few, tmp_path):
    train()
    shutil.copytree(few, tmp_path / "mine", symlinks=True)
    train("--split_path", tmp_path / "mine")
    assert (tmp_path / f"{BASE}-splitmine" / "best.pth").exists()


def test_without_train_it_validates_the_run_of_its_settings(train, few, tmp_path, capsys):
    train("--alpha", 2)
    flags = [*data_flags(few), *SMALL, "--epochs", 1]
    run_here(main_dgl, *flags, "--alpha", 2)
    assert "ckpt/cremad/dgl-alpha2-seed0/best.pth, epoch 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_here(main_dgl, *flags)
    error = capsys.readouterr().err
    assert f"{BASE}/best.pth" in error and "--train trains" in error and str(tmp_path) in error


def test_a_typed_folder_refuses_before_it_decodes(train, tmp_path, capsys, monkeypatch):
    train("--ckpt_path", "mine")
    monkeypatch.setattr(cache, "prepare", None)  # calling it would raise
    monkeypatch.setattr("dataset.loader.prepare", None)
    with pytest.raises(SystemExit) as end:
        train("--ckpt_path", "mine", "--alpha", 5)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--alpha 5.0" in error and "4.0" in error and "--overwrite" in error


def test_overwrite_begins_anew(train, tmp_path):
    train("--ckpt_path", "mine", "--epochs", 2)
    train("--ckpt_path", "mine", "--alpha", 5, "--overwrite")
    assert record(tmp_path / "mine")["settings"]["alpha"] == 5 and len(record(tmp_path / "mine")["starts"]) == 1
    assert len((tmp_path / "mine" / "log.jsonl").read_text().splitlines()) == 1
    assert torch.load(tmp_path / "mine" / "last.pth", weights_only=True)["settings"]["alpha"] == 5


def test_a_record_makes_the_run_again(train, few, tmp_path, capsys):
    """--config begins it elsewhere, --resume goes on with it where it is; what is typed wins."""
    train("--alpha", 2, "--fusion_method", "sum", "--learning_rate", 0.01)
    folder = tmp_path / "ckpt" / "cremad" / "dgl-alpha2-seed0"
    run_here(main_dgl, "--train", "--config", folder / "run.json", "--ckpt_path", "again")
    assert_same_run(folder, tmp_path / "again")
    run_here(main_dgl, "--train", "--config", folder / "run.json", "--alpha", 3)
    other = record(tmp_path / "ckpt" / "cremad" / "dgl-alpha3-seed0")["settings"]
    assert other["fusion_method"] == "sum" and other["alpha"] == 3
    run_here(main_dgl, "--train", "--resume", "--ckpt_path", "again", "--epochs", 2)
    assert len((tmp_path / "again" / "log.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    for text in ("[]", "{", json.dumps({"settings": {"alpha": "many"}})):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(SystemExit) as end:
            run_here(main_dgl, "--train", "--config", tmp_path / "odd.json")
        assert end.value.code == 2 and "odd.json" in capsys.readouterr().err


def test_the_record_says_what_made_the_run(train, few, tmp_path):
    train()
    found = record(tmp_path / BASE)
    start = found["starts"][0]
    assert "--epochs 1" in start["command"] and start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert start["processor"] and start["host"] and start["threads"] == torch.get_num_threads()
    assert found["data"]["train"]["clips"] == len((few / "train.csv").read_text().splitlines())
    assert found["settings"].keys() == vars(settings.training_parser().parse_args([])).keys() & found["settings"].keys()


def test_other_lists_are_refused_before_decoding(train, few, tmp_path, capsys, monkeypatch):
    shutil.copytree(few, tmp_path / "mine", symlinks=True)
    flags = ["--split_path", tmp_path / "mine", "--ckpt_path", "run"]
    train(*flags)
    rows = (tmp_path / "mine" / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "mine" / "train.csv").write_text("".join(rows[1:]))
    monkeypatch.setattr("dataset.loader.prepare", None)
    with pytest.raises(SystemExit) as end:
        train(*flags, "--epochs", 2)
    assert end.value.code == 2 and "other training clips" in capsys.readouterr().err
