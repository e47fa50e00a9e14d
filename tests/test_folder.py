"""A run's folder follows its settings: other settings start a run of their own, the same ones resume it."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

import main_dgl
from dataset import DATASETS
from engine.folder import folder_of
from engine.provenance import changes
from tests.conftest import ROOT, SMALL, contents, data_flags, rows_of, run_here, settings_of
from tests.torture import assert_same_run
from utils.config import PATHS, TRAINING


@pytest.fixture
def flags(few):
    """Return the flags of a run of an epoch on the few clips."""
    return [*data_flags(few), *SMALL, "--batch_size", 6, "--num_workers", 0, "--epochs", 1]


@pytest.fixture
def base(flags, tmp_path, monkeypatch):
    """Return the folder of a run with these flags, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / folder_of(settings_of(*flags))


@pytest.fixture
def train(base, flags, small, capsys):
    """Train an epoch in an empty folder, with these flags more -> what it printed."""

    def call(*more):
        capsys.readouterr()
        run_here(main_dgl, "--train", *flags, *more)
        return capsys.readouterr().out

    return call


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ("", "dgl-alpha4-seed0-batch_size6-image_size32-learning_rate0.001"),
        ("--epochs 3 --num_workers 2", "dgl-alpha4-seed0-batch_size6-image_size32-learning_rate0.001"),
        ("--alpha 0.5", "dgl-alpha0.5-seed0-batch_size6-image_size32-learning_rate0.001"),
        ("--learning_rate 0.002", "dgl-alpha4-seed0-batch_size6-image_size32"),
        ("--fusion_method sum", "dgl-alpha4-seed0-batch_size6-fusion_methodsum-image_size32-learning_rate0.001"),
        ("--random_seed 3 --method joint", "joint-seed3-batch_size6-image_size32-learning_rate0.001"),
    ],
)
def test_the_name_follows_the_settings_and_nothing_on_the_disk(base, flags, changes, name):
    for _ in range(2):
        found = folder_of(settings_of(*flags, *changes.split()))
        assert found == f"ckpt/{base.parent.name}/{name}"
        base.mkdir(parents=True, exist_ok=True)
        (base / "run.json").write_text('{"settings": {"fusion_method": "gated"}}')


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
    """Check that the settings at its top are the dataset's defaults."""
    text = (ROOT / script).read_text()
    values = dict(re.findall(r"^(\w+)=\$\{\w+:-(\S+)\}", text, re.MULTILINE))
    typed = re.search(r"^train_and_validate (.*) \"\$@\"$", text, re.MULTILINE)[1].split()
    for flag in ("alpha", "learning_rate", "lr_decay_step", "epochs", "batch_size"):
        typed += [f"--{flag}", values[flag]]
    typed = [values["root"] if word == '"$root"' else word for word in typed]
    assert folder_of(settings_of(*typed, "--modality", "full", "--modulation", "Normal")) == f"ckpt/{name}"


@pytest.mark.parametrize("name", DATASETS)
def test_root_moves_the_folders_of_a_dataset(name):
    usual, moved = settings_of("--dataset", name), settings_of("--dataset", name, "--root", "/mine")
    for flag in PATHS if name != "MOSI" else ():
        assert getattr(moved, flag) == getattr(usual, flag).replace(usual.root, "/mine")
    assert moved.root == "/mine"
    again = settings_of("--dataset", name, "--root", f"./{usual.root}")
    assert folder_of(moved) != folder_of(usual) == folder_of(again)


def test_other_teachers_have_a_folder_of_their_own():
    """Check that a run's name contains its teachers, which may be moved before it is resumed."""
    flags = ["--method", "umt", "--learning_rate", 0.002, "--umt_visual", "v/best.pth", "--umt_audio"]
    first, again, other = (folder_of(settings_of(*flags, path)) for path in ("a/best.pth", "a/best.pth", "b/best.pth"))
    assert first == again != other and first.startswith("ckpt/cremad/umt-seed0-umt_audiobest.pth-")


def test_other_settings_and_data_start_other_runs_and_the_same_resume(
    train, base, flags, few, tmp_path, capsys, rejected
):
    output = train()
    assert str(base.relative_to(tmp_path)) in output
    first = record(base)
    start = first["starts"][0]
    assert "--epochs 1" in start["command"] and start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert start["processor"] and start["host"] and start["threads"] == torch.get_num_threads()
    assert first["data"]["train"]["clips"] == len((few / "train.csv").read_text().splitlines()) == 6
    assert first["settings"].keys() <= TRAINING.keys()

    before = contents(base)
    assert "finished; use --overwrite" in train() and (base / "last.pth").read_bytes() == before["last.pth"]
    train("--alpha", 0.5)
    mine = shutil.copytree(few, tmp_path / "mine", symlinks=True)
    train("--split_path", mine)
    runs = {path.parent for path in tmp_path.rglob("best.pth")}
    half = tmp_path / folder_of(settings_of(*flags, "--alpha", 0.5))
    (other,) = runs - {base, half}
    assert len(runs) == 3 and (base / "last.pth").read_bytes() == before["last.pth"]
    assert other.parent.name.startswith("cremad-") and "mine" in other.parent.name

    capsys.readouterr()
    run_here(main_dgl, *flags, "--alpha", 0.5)
    assert f"{half.relative_to(tmp_path)}/best.pth, epoch 0" in capsys.readouterr().out
    shutil.rmtree(half)
    error = rejected(main_dgl, *flags, "--alpha", 0.5)
    assert f"{half.relative_to(tmp_path)}/best.pth" in error and "add --train" in error and str(tmp_path) in error

    assert "resuming in epoch 1" in train("--epochs", 2)
    found = record(base)
    assert found["settings"]["epochs"] == 2 and len(found["starts"]) == 2 and found["data"]["train"]["clips"] == 6


def test_a_finished_run_without_its_checkpoints_is_left_alone(train, base, flags, rejected):
    """Remove last.pth, the largest file, as users do to save disk: nothing of the run is lost or overwritten."""
    train()
    (base / "last.pth").unlink()
    before, here = contents(base), ["--ckpt_path", base]
    assert "finished" in train(*here)
    for more in (["--learning_rate", 0.01], ["--epochs", 2], ["--epochs", 2, "--resume"]):
        error = rejected(main_dgl, "--train", *flags, *here, *more)
        assert more[0] in error and str(base) in error and "--overwrite" in error
    assert contents(base) == before
    (base / "run.json").unlink()
    rejected(main_dgl, "--train", *flags, *here, "--learning_rate", 0.01)
    train("--epochs", 2, "--overwrite")
    assert (base / "last.pth").exists()


def test_a_typed_folder_with_another_run_is_rejected_before_decoding_or_overwritten(
    train, flags, few, tmp_path, monkeypatch, rejected
):
    mine, lists = tmp_path / "mine", shutil.copytree(few, tmp_path / "lists", symlinks=True)
    flags = [*flags, "--split_path", lists, "--ckpt_path", "mine"]
    train("--split_path", lists, "--ckpt_path", "mine")
    rows = (lists / "train.csv").read_text().splitlines(keepends=True)
    with monkeypatch.context() as patch:
        patch.setattr("dataset.clips.prepare", None)  # calling it would raise
        error = rejected(main_dgl, "--train", *flags, "--alpha", 5)
        assert "--alpha 5.0" in error and "4.0" in error and "--overwrite" in error
        (lists / "train.csv").write_text("".join(rows[1:]))
        for more in ([], ["--epochs", 2]):  # finished, or to be resumed
            assert "trained on other clips" in rejected(main_dgl, "--train", *flags, *more)
    train("--ckpt_path", "mine", "--alpha", 5, "--overwrite")
    assert record(mine)["settings"]["alpha"] == 5 and len(record(mine)["starts"]) == 1
    assert len(rows_of(mine)) == 1
    assert torch.load(mine / "last.pth", weights_only=True)["settings"]["alpha"] == 5


def test_a_record_makes_the_run_again(train, flags, tmp_path, rejected):
    """Check that --config starts it elsewhere, --resume resumes it in place, and typed flags override the record."""
    changes = ["--fusion_method", "sum", "--learning_rate", 0.01]
    train("--alpha", 2, *changes)
    folder = tmp_path / folder_of(settings_of(*flags, "--alpha", 2, *changes))
    config = ["--config", str(folder / "run.json")]
    run_here(main_dgl, "--train", *config, "--ckpt_path", "again")
    assert_same_run(folder, tmp_path / "again")
    run_here(main_dgl, "--train", *config, "--alpha", 3)
    other = record(tmp_path / folder_of(settings_of(*flags, "--alpha", 3, *changes)))["settings"]
    assert other["fusion_method"] == "sum" and other["alpha"] == 3
    run_here(main_dgl, "--train", "--resume", "--ckpt_path", "again", "--epochs", 2)
    assert len(rows_of(tmp_path / "again")) == 2

    settings = main_dgl.parse_args([*config, "--dataset", "KineticSound"])
    expected = settings_of("--dataset", "KineticSound")
    assert settings.alpha == 2 and settings.batch_size == 6
    for name in ("audio_path", "visual_path", "split_path", "num_frame"):
        assert getattr(settings, name) == getattr(expected, name), name
    for more, method in {"--modulation OGM": "ogm", "--no_mgt": "no_mgt", "--modulation Normal": "dgl"}.items():
        assert main_dgl.parse_args([*config, "--modality", "full", *more.split()]).method == method

    for text in ("[]", "{", json.dumps({"settings": {"alpha": "many"}})):
        (tmp_path / "odd.json").write_text(text)
        assert "odd.json" in rejected(main_dgl, "--train", "--config", tmp_path / "odd.json")
    assert "--ckpt_path" in rejected(main_dgl, "--train", "--resume")


def test_changed_files_have_their_whole_names(monkeypatch):
    monkeypatch.setattr(
        "engine.provenance.subprocess.run", lambda *_, **__: SimpleNamespace(stdout=" M a.py\n?? b.py\n", returncode=0)
    )
    assert changes() == ["a.py", "b.py"]
