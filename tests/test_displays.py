"""What a run shows: pictures, the terminal, TensorBoard's series, and the report of where gradients go."""

import itertools
import json
import os
import re
import signal
import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

import main_dgl
from analysis.gradient_report import as_table, gradient_report
from engine.board import Board
from engine.figures import confusion_figures, curves_figure, save_figure
from engine.gradients import CLIP_NORM, gradient_norms
from engine.log import summary
from engine.meter import loss_name
from main_dgl import dgl_step
from methods.base import Method, encode_all, score
from tests.conftest import SMALL, data_flags, method_of, run_here
from tests.rules import small_model
from tests.test_dgl_step import batch
from tests.test_resume import interrupt_at

BRANCHES = ("fused", "audio", "visual")


def random_predictions(classes, clips, branches=BRANCHES):
    rng = np.random.default_rng(0)
    predictions = {"label": torch.as_tensor(rng.integers(0, classes, clips))}
    return predictions | {name: torch.as_tensor(rng.random((clips, classes))).softmax(dim=1) for name in branches}


def assert_whole(figure):
    """Raise AssertionError unless all of a figure's text lies in it, and the names along an axis do not overlap."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis, along in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [label for label in labels if label.get_visible()]
            spans = sorted(label.get_window_extent().get_points()[:, along].tolist() for label in labels)
            assert all(before[1] <= after[0] + 1 for before, after in itertools.pairwise(spans)), spans
            texts += labels
        for text in filter(Text.get_text, texts):
            assert all(figure.bbox.padded(1).contains(*corner) for corner in text.get_window_extent().get_points()), (
                text
            )


@pytest.mark.parametrize(
    ("names", "branches"),
    [
        (["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"], ("fused", "visual")),
        ([f"playing_instrument_{number}" for number in range(34)], BRANCHES),
        ([f"playing steel guitar, slide guitar {number}" for number in range(400)], BRANCHES),
    ],
    ids=[6, 34, 400],
)
def test_confusion_matrices(tmp_path, names, branches):
    predictions = random_predictions(len(names), 3000, branches)
    figure = confusion_figures(predictions, names)
    assert_whole(figure)
    panels = figure.axes[: len(branches)]
    for branch, axes in zip(branches, panels, strict=True):
        predicted = predictions[branch].argmax(dim=1)
        counts = confusion_matrix(predictions["label"], predicted, labels=range(len(names)))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        np.testing.assert_allclose(axes.images[0].get_array(), shares)
        if len(names) == 6:
            assert {text.get_position(): int(text.get_text()) for text in axes.texts} == {
                (column, row): counts[row, column] for row, column in np.ndindex(6, 6)
            }
        positions, labels = axes.get_xticks(), axes.get_xticklabels()
        assert len(labels) == (50 if len(names) == 400 else len(names))
        for position, label in zip(positions, labels, strict=True):
            assert names[int(position)].startswith(label.get_text().removesuffix("…"))
    save_figure(figure, tmp_path / "confusion.png")
    assert cv2.imread(str(tmp_path / "confusion.png")).std() > 5  # not blank


def random_row(epoch, rate, lacks=None):
    rng = np.random.default_rng(epoch)
    row = {"epoch": epoch, "learning_rate": rate, "split": "test", "seconds": 10.0 * epoch, "clipped": rng.random()}
    for branch in [branch for branch in BRANCHES if branch != lacks]:
        row |= {branch: rng.random(), f"train_{branch}": rng.random(), loss_name(branch): 1 + rng.random()}
    return row


@pytest.mark.parametrize(("epochs", "lacks"), [(100, None), (5, "visual"), (1, None)])
def test_curves(tmp_path, epochs, lacks):
    log = [random_row(epoch, 0.1 ** (1 + (epoch >= 3) + (epoch >= 70)), lacks) for epoch in range(epochs)]
    figure = curves_figure(log, "dgl-alpha4-seed0: DGL, alpha 4, seed 0")
    assert_whole(figure)
    assert figure.get_suptitle().startswith("dgl-alpha4-seed0") and "can lie above" in figure.get_supxlabel()
    low, high = figure.axes[1].get_ylim()
    assert -0.1 < low <= 0 and 1 <= high < 1.1 and figure.axes[0].get_xlim()[0] > -1
    best = max(range(epochs), key=lambda epoch: log[epoch]["fused"])
    (mark,) = [line for line in figure.axes[1].lines if line.get_marker() == "*"]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([best], [log[best]["fused"]])
    losses, accuracies = figure.axes
    for axes, names in (
        (losses, ("loss", "loss_audio", "loss_visual")),
        (accuracies, [name for branch in BRANCHES for name in (branch, f"train_{branch}")]),
    ):
        lines = [list(line.get_ydata()) for line in axes.lines]
        for name in names:
            assert ([row.get(name) for row in log] in lines) == (name in log[0]), name
        drops = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        assert drops == {100: [2.5, 69.5], 5: [2.5], 1: []}[epochs]
    save_figure(figure, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_lines_of_the_terminal_align_and_tell_the_time_left():
    log = [random_row(epoch, 0.1) for epoch in range(7)]
    lines = [summary(log[:number], epochs=607) for number in range(1, 8)]
    assert len({len(line) for line in lines}) == 1 and len({line.index("best") for line in lines}) == 1
    assert lines[-1].endswith(" 60 s  left  6:40:00")  # 600 epochs of the last five's mean, 40 s
    assert f"best {max(row['fused'] for row in log):.4f}" in lines[-1]


MODULES = {"fusion": "fusion_module", "audio": "audio_net", "visual": "visual_net"}


def norms_of(model, loss):
    """L2 norm of d(loss) per module by torch.autograd.grad."""
    norms = {}
    for name, module in MODULES.items():
        found = torch.autograd.grad(
            loss, list(getattr(model, module).parameters()), retain_graph=True, allow_unused=True
        )
        norms[name] = torch.cat([g.flatten() for g in found if g is not None] or [torch.zeros(1)]).norm().item()
    return norms


@pytest.mark.parametrize(
    ("name", "routes"),
    {
        "dgl": {"L_m": (1, 0, 0), "L_audio": (0, 3, 0), "L_visual": (0, 0, 3)},
        "joint": {"L_m": (1, 1, 1), "L_audio": (0, 0, 0), "L_visual": (0, 0, 0)},
        "no_mgt": {"L_m": (1, 1, 1), "L_audio": (0, 3, 0), "L_visual": (0, 0, 3)},
        "no_ugt": {"L_m": (1, 0, 0), "L_audio": (3, 3, 0), "L_visual": (3, 0, 3)},
    }.items(),
)
@pytest.mark.parametrize("fusion_method", ["concat", "gated"])
def test_gradient_report_is_what_autograd_says(name, routes, fusion_method):
    model, (inputs, label) = small_model(fusion_method).double().train(), batch()
    method = method_of(model, "--method", name, "--alpha", 3)
    report = gradient_report(method, model, inputs, label)
    assert all(parameter.grad is None for parameter in model.parameters())
    features, fusion = encode_all(model, inputs), model.fusion_module
    logits = {"L_m": fusion.fuse(features)} | {f"L_{name}": fusion.alone(name, x) for name, x in features.items()}
    for loss, factors in routes.items():
        norms = norms_of(model, F.cross_entropy(logits[loss], label))
        for (module, norm), factor in zip(norms.items(), factors, strict=True):
            assert report[loss][module] == pytest.approx(factor * norm, rel=1e-5), (loss, module)
            assert (report[loss][module] == 0) == (factor == 0)
    method.step(model, inputs, label)
    assert list(report["all"].values()) == pytest.approx(gradient_norms(model).tolist(), rel=1e-5)


def test_gradient_report_of_a_frozen_encoder():
    model, (inputs, label) = small_model().double().train(), batch()
    model.frozen = ["audio"]
    report = gradient_report(method_of(model, "--alpha", 3), model, inputs, label)
    assert report["L_audio"]["audio"] == report["all"]["audio"] == 0 < report["L_visual"]["visual"]


class Leaking(Method):
    """DGL with the second truncation forgotten."""

    def step(self, model, inputs, label):
        features, fusion = encode_all(model, inputs), model.fusion_module
        outputs = {"fused": score(fusion(features), label)}
        outputs |= {name: score(fusion.alone(name, feature), label) for name, feature in features.items()}
        sum(output.loss for output in outputs.values()).backward()
        return outputs


def test_gradient_report_shows_a_leak():
    model = small_model("sum").double().train()
    report = gradient_report(Leaking(None, model), model, *batch())
    assert report["L_m"]["audio"] == report["L_m"]["visual"] == 0
    assert report["L_audio"]["fusion"] > 0 and report["L_visual"]["fusion"] > 0
    lines = [line.split() for line in as_table(report).splitlines()]
    assert lines[1] == ["L_m", f"{report['L_m']['fusion']:.4g}", "0", "0"] and lines[4][0] == "all"


@pytest.mark.parametrize(
    ("flags", "zeros"),
    [
        ([], {"L_m": "+00", "L_audio": "0+0", "L_visual": "00+", "all": "+++"}),
        (["--method", "ogm_ge"], {"L_m": "+++", "L_audio": "000", "L_visual": "000", "all": "+++"}),
        (["--modality", "visual"], {"L_visual": "++", "all": "++"}),
    ],
    ids=["dgl", "OGM-GE", "visual"],
)
def test_gradient_report_of_the_command_line(corpus, tmp_path, small_encoders, capsys, flags, zeros):
    command = ["--gradient_report", *data_flags(corpus), *SMALL, "--num_workers", 0, *flags]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "run")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: "".join("0" if cell == "0" else "+" for cell in row[1:]) for row in rows[2:]} == zeros
    assert not (tmp_path / "run").exists()


def measured_apart(model, inputs, label, alpha, into):
    """Run dgl_step, and compute what the board should say of it in another way."""
    outputs = dgl_step(model, inputs, label, alpha)
    hits = [(output.logits.argmax(dim=1) == label).double().mean().item() for output in outputs.values()]
    norms = [
        np.linalg.norm(np.concatenate([p.grad.double().numpy().ravel() for p in getattr(model, module).parameters()]))
        for module in MODULES.values()
    ]
    losses = [output.loss.item() for output in outputs.values()]
    into.append([*losses, *hits, *norms, np.linalg.norm(norms), np.linalg.norm(norms) > CLIP_NORM])
    return outputs


def board_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def hparams_of(board):
    """A run's hyperparameters, {name: value}, and the names of its metrics, as the hparams page reads them."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = board.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    values = {name: value.number_value or value.string_value for name, value in start.hparams.items()}
    return values, {metric.name.tag for metric in experiment.metric_infos}


def series_of(board):
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_holds_every_series_and_resumes_without_gap_or_double(
    corpus, tmp_path, small_encoders, capsys, monkeypatch
):
    steps = []
    command = ["--train", *data_flags(corpus), *SMALL, "--num_workers", 0, "--epochs", 2, "--learning_rate", 0.01]
    command += ["--lr_decay_step", "[1]", "--use_tensorboard", "--tensorboard_steps", "--alpha", 2]
    command += ["--tensorboard_path", tmp_path / "boards"]  # of several runs, which stay apart
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(main_dgl, "dgl_step", partial(measured_apart, into=steps))
        patch.setattr("engine.meter.progress_bar", partial(tqdm, mininterval=0))
        run_here(main_dgl, *command, "--ckpt_path", whole)
    bar = capsys.readouterr().err
    assert re.search(r"epoch 1: .*loss \d+\.\d{3}  fused [01]\.\d{3}  audio [01]\.\d{3}  visual [01]\.\d{3}", bar)

    board, log = board_of(tmp_path / "boards" / "whole"), (whole / "log.jsonl").read_text().splitlines()
    series, rows = series_of(board), [json.loads(line) for line in log]
    figures = np.array(steps)
    assert figures.shape == (4, 11)  # two steps an epoch, of 8 of 18 clips
    for row, epoch in zip(rows, np.split(figures, 2), strict=True):
        names = ["loss", "loss_audio", "loss_visual", "train_fused", "train_audio", "train_visual"]
        names += ["gradient_fusion", "gradient_audio", "gradient_visual", "gradient_norm", "clipped"]
        assert [row[name] for name in names] == pytest.approx(epoch.mean(axis=0).tolist(), rel=1e-3)
    tags = {"learning_rate": "learning_rate", "gradient_norm": "gradient_norm", "clipped": "clipped"}
    tags |= {"loss": "loss/fused", "loss_audio": "loss/audio", "loss_visual": "loss/visual"}
    tags |= {branch: f"accuracy/{branch}" for branch in BRANCHES}
    tags |= {f"train_{branch}": f"training_accuracy/{branch}" for branch in BRANCHES}
    tags |= {f"gradient_{module}": f"gradient/{module}" for module in MODULES}
    for name, tag in tags.items():
        assert series[tag] == [(row["epoch"], pytest.approx(row[name])) for row in rows], tag
    best = max(rows, key=lambda row: row["fused"])
    assert series["best/audio"] == [(best["epoch"], pytest.approx(best["audio"]))]
    assert series["last/fused"] == [(1, pytest.approx(rows[1]["fused"]))]

    by_step = series_of(board_of(tmp_path / "boards" / "whole" / "steps"))
    columns = [f"{group}_by_step/{branch}" for group in ("loss", "training_accuracy") for branch in BRANCHES]
    columns += [f"gradient_by_step/{module}" for module in MODULES]
    for tag, column in zip(columns, figures.T, strict=False):
        assert by_step[tag] == [(number, pytest.approx(value, rel=1e-3)) for number, value in enumerate(column)], tag
    assert [value for _, value in by_step["learning_rate_by_step"]] == pytest.approx([0.01] * 2 + [0.001] * 2)

    (image,) = board.Images("confusion")
    picture = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture.std() > 5 and image.step == best["epoch"]
    (settings,) = board.Tensors("settings/text_summary")
    assert "| alpha | 2.0 |" in settings.tensor_proto.string_val[0].decode()
    hyperparameters, metrics = hparams_of(board)
    assert hyperparameters["alpha"] == 2 and hyperparameters["method"] == "dgl"
    assert metrics == {f"{name}/{branch}" for name in ("best", "last") for branch in BRANCHES} <= series.keys()

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_at(patch, "dgl_step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run_here(main_dgl, *command, "--ckpt_path", parts)
    run_here(main_dgl, *command, "--resume", "--ckpt_path", parts)
    resumed = series_of(board_of(tmp_path / "boards" / "parts"))
    assert resumed.keys() == series.keys()
    assert all(resumed[tag] == series[tag] for tag in series if tag != "seconds")
    assert series_of(board_of(tmp_path / "boards" / "parts" / "steps")) == by_step


def test_the_steps_of_an_epoch_that_is_done_again_are_replaced(tmp_path):
    """What was written after the last checkpoint is done again, and may come out otherwise on a GPU."""
    row = random_row(0, 0.1) | {"gradient_fusion": 1.0}
    for first, values in ((0, range(5)), (3, (30, 40))):
        board = Board(tmp_path, {"alpha": 2.0}, [], first)
        board.add_epoch(row, [{"loss": value} for value in values])
        board.close()
        time.sleep(1.1)  # the files are read in the order of their names, which begin with the second
    by_step = series_of(board_of(tmp_path / "steps"))
    assert by_step["loss_by_step/fused"] == list(enumerate([0, 1, 2, 30, 40]))
    assert series_of(board_of(tmp_path))["gradient/fusion"] == [(0, 1.0)]


def test_the_log_tells_how_often_gradients_were_clipped(trained):
    rows = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    assert all(0 <= row["clipped"] <= 1 and row["gradient_norm"] > 0 for row in rows)
    assert all(row["clipped"] > 0 for row in rows if row["gradient_norm"] > CLIP_NORM)
    assert f"clipped {rows[0]['clipped']:4.0%}" in trained[1]
    for name in ("curves.png", "confusion.png"):
        assert cv2.imread(str(trained[0] / name)).std() > 5
