"""A run's folder follows its settings: an edit starts a run of its own, the same again resumes."""

import json
import re
import shutil

import pytest
import torch

import main_dgl
from dataset import DATASETS
from engine.folder import dataset_name, folder_of
from tests.conftest import ROOT, SMALL, data_flags, run_here, settings_of
from tests.torture import assert_same_run
from utils.config import PATHS, TRAINING

FLAGS = [*SMALL, "--batch_size", 6, "--num_workers", 0, "--epochs", 1]


def name_of(few, method="dgl-alpha4-seed0", *others):
    """Return the name below ckpt/ of a run on the few clips, whose other settings differ from CREMA-D's defaults."""
    settings = settings_of(*data_flags(few))
    rest = {"batch_size": "6", "image_size": "32", "learning_rate": "0.001"} | dict(others)
    text = "".join(f"-{name}{value}" for name, value in sorted(rest.items()) if value)
    return f"{dataset_name(settings)}/{method}{text}"


@pytest.fixture
def base(few, tmp_path, monkeypatch):
    """The folder of a run with the flags of `train`."""
    monkeypatch.chdir(tmp_path)
    return f"ckpt/{name_of(few)}"


@pytest.fixture
def train(base, few, tmp_path, small, monkeypatch, capsys):
    """Train an epoch in an empty folder, with these flags more -> what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        capsys.readouterr()
        run_here(main_dgl, "--train", *data_flags(few), *FLAGS, *flags)
        return capsys.readouterr().out

    return call


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_an_edit_has_a_folder_of_its_own(train, base, few, tmp_path):
    assert base in train()
    before = (tmp_path / base / "last.pth").read_bytes()
    train("--alpha", 0.5)
    train("--learning_rate", 0.002)
    train("--learning_rate", 0.002, "--fusion_method", "gated")
    train("--random_seed", 3, "--method", "joint")
    names = {
        name_of(few),
        name_of(few, "dgl-alpha0.5-seed0"),
        name_of(few, "dgl-alpha4-seed0", ("learning_rate", None)),
        name_of(few, "dgl-alpha4-seed0", ("learning_rate", None), ("fusion_method", "gated")),
        name_of(few, "joint-seed3"),
    }
    assert {path.parent.relative_to(tmp_path / "ckpt").as_posix() for path in tmp_path.rglob("best.pth")} == names
    assert (tmp_path / base / "last.pth").read_bytes() == before


def test_the_name_does_not_depend_on_what_is_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_of("--dataset", "CREMAD", "--learning_rate", 0.002)
    assert folder_of(settings) == "ckpt/cremad/dgl-alpha4-seed0"
    (tmp_path / "ckpt" / "cremad" / "dgl-alpha4-seed0").mkdir(parents=True)
    (tmp_path / "ckpt" / "cremad" / "dgl-alpha4-seed0" / "run.json").write_text(
        '{"settings": {"fusion_method": "sum"}}'
    )
    assert folder_of(settings) == "ckpt/cremad/dgl-alpha4-seed0"
    assert folder_of(settings_of("--epochs", 3, "--num_workers", 2, "--learning_rate", 0.002)) == folder_of(settings)


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("cramed_dgl.sh", "cremad/dgl-alpha4-seed0"),
        ("ks_dgl.sh", "kineticsound/dgl-alpha3-seed0"),
        ("vggsound_dgl.sh", "vggsound/dgl-alpha2-seed0"),
        ("ave_dgl.sh", "ave/dgl-alpha4-seed0"),
        ("kinect400_dgl.sh", "kinect400/dgl-alpha3-seed0"),
        ("avmnist_dgl.sh", "avmnist/dgl-alpha4-seed0"),
        ("folder_dgl.sh", "folder/dgl-alpha4-seed0"),
    ],
)
def test_a_datasets_script_has_the_shortest_name(script, name):
    """The settings at its top are the dataset's defaults."""
    text = (ROOT / script).read_text()
    values = dict(re.findall(r"^(\w+)=\$\{\w+:-(\S+)\}", text, re.MULTILINE))
    flags = [
        word
        for flag in ("alpha", "learning_rate", "lr_decay_step", "epochs", "batch_size")
        for word in (f"--{flag}", values[flag])
    ]
    flags += re.search(r"^train_and_validate (.*) \"\$@\"$", text, re.MULTILINE)[1].split()
    flags = [values["root"] if word == '"$root"' else word for word in flags]
    assert folder_of(settings_of(*flags, "--modality", "full", "--modulation", "Normal")) == f"ckpt/{name}"


@pytest.mark.parametrize("name", DATASETS)
def test_root_moves_the_folders_of_a_dataset(name):
    usual, moved = settings_of("--dataset", name), settings_of("--dataset", name, "--root", "/mine")
    for flag in PATHS if name != "MOSI" else ():
        assert getattr(moved, flag) == getattr(usual, flag).replace(usual.root, "/mine")
    assert moved.root == "/mine"
    again = settings_of("--dataset", name, "--root", f"./{usual.root}")
    assert folder_of(moved) != folder_of(usual) == folder_of(again)


def test_the_same_again_is_left_alone_or_resumed(train, base, tmp_path):
    train()
    before = (tmp_path / base / "last.pth").read_bytes()
    assert "finished; --overwrite" in train() and (tmp_path / base / "last.pth").read_bytes() == before
    assert "resuming in epoch 1" in train("--epochs", 2)
    assert len(record(tmp_path / base)["starts"]) == 2


def test_a_finished_run_without_its_checkpoints_is_left_alone(train, base, few, tmp_path, capsys):
    """As where last.pth, the largest file, was removed to save disk: nothing of the run is lost or written over."""
    train()
    before = {path.name: path.read_bytes() for path in (tmp_path / base).iterdir() if path.name != "last.pth"}
    (tmp_path / base / "last.pth").unlink()
    output = train("--ckpt_path", base)
    assert "finished" in output
    for flags in (["--learning_rate", 0.01, "--ckpt_path", base], ["--epochs", 2], ["--epochs", 2, "--resume"]):
        with pytest.raises(SystemExit) as end:
            train("--ckpt_path", base, *flags)
        error = capsys.readouterr().err
        assert end.value.code == 2 and flags[0] in error and base in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / base).iterdir()} == before
    (tmp_path / base / "run.json").unlink()
    with pytest.raises(SystemExit):
        train("--learning_rate", 0.01, "--ckpt_path", base)
    train("--epochs", 2, "--overwrite")
    assert (tmp_path / base / "last.pth").exists()


def test_other_data_are_another_run(train, base, few, tmp_path):
    train()
    shutil.copytree(few, tmp_path / "mine", symlinks=True)
    train("--split_path", tmp_path / "mine")
    runs = [path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("best.pth")]
    (other,) = set(runs) - {base}
    assert other.split("/")[1].startswith("cremad-") and "mine" in other.split("/")[1]


def test_without_train_it_validates_the_run_of_its_settings(train, base, few, tmp_path, capsys):
    train("--alpha", 2)
    flags = [*data_flags(few), *FLAGS]
    run_here(main_dgl, *flags, "--alpha", 2)
    assert f"ckpt/{name_of(few, 'dgl-alpha2-seed0')}/best.pth, epoch 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_here(main_dgl, *flags)
    error = capsys.readouterr().err
    assert f"{base}/best.pth" in error and "--train trains" in error and str(tmp_path) in error


def test_a_typed_folder_with_another_run_is_rejected_before_decoding(train, tmp_path, capsys, monkeypatch):
    train("--ckpt_path", "mine")
    monkeypatch.setattr("dataset.clips.prepare", None)  # calling it would raise
    with pytest.raises(SystemExit) as end:
        train("--ckpt_path", "mine", "--alpha", 5)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--alpha 5.0" in error and "4.0" in error and "--overwrite" in error


def test_overwrite_starts_again(train, tmp_path):
    train("--ckpt_path", "mine", "--epochs", 2)
    train("--ckpt_path", "mine", "--alpha", 5, "--overwrite")
    assert record(tmp_path / "mine")["settings"]["alpha"] == 5 and len(record(tmp_path / "mine")["starts"]) == 1
    assert len((tmp_path / "mine" / "log.jsonl").read_text().splitlines()) == 1
    assert torch.load(tmp_path / "mine" / "last.pth", weights_only=True)["settings"]["alpha"] == 5


def test_a_record_makes_the_run_again(train, few, tmp_path, capsys):
    """--config begins it elsewhere, --resume goes on with it where it is; what is typed wins."""
    train("--alpha", 2, "--fusion_method", "sum", "--learning_rate", 0.01)
    changed = ("fusion_method", "sum"), ("learning_rate", 0.01)
    folder = tmp_path / "ckpt" / name_of(few, "dgl-alpha2-seed0", *changed)
    run_here(main_dgl, "--train", "--config", folder / "run.json", "--ckpt_path", "again")
    assert_same_run(folder, tmp_path / "again")
    run_here(main_dgl, "--train", "--config", folder / "run.json", "--alpha", 3)
    other = record(tmp_path / "ckpt" / name_of(few, "dgl-alpha3-seed0", *changed))["settings"]
    assert other["fusion_method"] == "sum" and other["alpha"] == 3
    run_here(main_dgl, "--train", "--resume", "--ckpt_path", "again", "--epochs", 2)
    assert len((tmp_path / "again" / "log.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    for text in ("[]", "{", json.dumps({"settings": {"alpha": "many"}})):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(SystemExit) as end:
            run_here(main_dgl, "--train", "--config", tmp_path / "odd.json")
        assert end.value.code == 2 and "odd.json" in capsys.readouterr().err


def test_the_record_says_what_made_the_run(train, base, few, tmp_path):
    train()
    found = record(tmp_path / base)
    start = found["starts"][0]
    assert "--epochs 1" in start["command"] and start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert start["processor"] and start["host"] and start["threads"] == torch.get_num_threads()
    assert found["data"]["train"]["clips"] == len((few / "train.csv").read_text().splitlines())
    assert found["settings"].keys() <= TRAINING.keys()


def test_other_lists_are_refused_before_decoding(train, few, tmp_path, capsys, monkeypatch):
    shutil.copytree(few, tmp_path / "mine", symlinks=True)
    flags = ["--split_path", tmp_path / "mine", "--ckpt_path", "run"]
    train(*flags)
    rows = (tmp_path / "mine" / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "mine" / "train.csv").write_text("".join(rows[1:]))
    monkeypatch.setattr("dataset.clips.prepare", None)
    for more in ([], ["--epochs", 2]):  # finished, or to be resumed
        with pytest.raises(SystemExit) as end:
            train(*flags, *more)
        assert end.value.code == 2 and "trained on other clips" in capsys.readouterr().err


def test_other_teachers_have_a_folder_of_their_own():
    """Check that a run's name says which teachers it learnt from, though they may be moved before it is resumed."""
    flags = ["--method", "umt", "--learning_rate", 0.002, "--umt_visual", "v/best.pth", "--umt_audio"]
    first, again, other = (folder_of(settings_of(*flags, path)) for path in ("a/best.pth", "a/best.pth", "b/best.pth"))
    assert first == again != other and first.startswith("ckpt/cremad/umt-seed0-umt_audiobest.pth-")


def test_the_record_has_the_settings_of_the_last_start(train, base, tmp_path):
    train()
    train("--epochs", 2)
    found = record(tmp_path / base)
    assert found["settings"]["epochs"] == 2 and len(found["starts"]) == 2 and found["data"]["train"]["clips"] == 6


def test_a_record_for_another_dataset_keeps_what_is_not_of_the_first(train, base, tmp_path):
    train("--alpha", 2)
    (path,) = tmp_path.rglob("run.json")
    settings = main_dgl.parse_args(["--config", str(path), "--dataset", "KineticSound"])
    expected = settings_of("--dataset", "KineticSound")
    assert settings.alpha == 2 and settings.batch_size == 6
    for name in ("audio_path", "visual_path", "split_path", "num_frame"):
        assert getattr(settings, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("flags", "method"),
    [(["--modulation", "OGM"], "ogm"), (["--no_mgt"], "no_mgt"), (["--modulation", "Normal"], "dgl")],
)
def test_a_record_and_another_method_by_the_authors_flags(train, base, tmp_path, flags, method):
    train()
    assert main_dgl.parse_args(["--config", f"{base}/run.json", "--modality", "full", *flags]).method == method


def test_resume_needs_a_folder(capsys):
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, "--train", "--resume")
    assert end.value.code == 2 and "--ckpt_path" in capsys.readouterr().err
