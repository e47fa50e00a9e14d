"""Check what a run shows: figures, the terminal, TensorBoard's series, and the report of where gradients go."""

import itertools
import re
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
from engine.figures import confusion_figure, curves_figure, save_figure
from engine.gradients import gradient_norms
from engine.log import summary
from engine.meter import loss_name
from tests.conftest import SMALL, data_flags, method_of, rows_of, run_here, train
from tests.rules import gradients, small_model
from tests.test_dgl_step import batch
from tests.test_resume import interrupted

BRANCHES = ("fused", "audio", "visual")
MODULES = {"fusion": "fusion_module.", "audio": "audio_net.", "visual": "visual_net."}


def assert_whole(figure, path):
    """Check that a figure is written, not blank, with all text inside, and no overlapping names along an axis."""
    save_figure(figure, path)
    assert cv2.imread(str(path)).std() > 5
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
            corners = text.get_window_extent().get_points()
            assert all(figure.bbox.padded(1).contains(*corner) for corner in corners), text


@pytest.mark.parametrize(
    ("names", "branches", "named"),
    [
        (["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"], ("fused", "visual"), 6),
        ([f"playing_instrument_{number}" for number in range(34)], BRANCHES, 34),
        ([f"playing steel guitar, slide guitar {number}" for number in range(400)], BRANCHES, 50),
    ],
    ids=[6, 34, 400],
)
def test_confusion_matrices(tmp_path, names, branches, named):
    rng = np.random.default_rng(0)
    predictions = {"label": torch.as_tensor(rng.integers(0, len(names), 3000))}
    predictions |= {name: torch.as_tensor(rng.random((3000, len(names)))).softmax(dim=1) for name in branches}
    figure = confusion_figure(predictions, names)
    assert_whole(figure, tmp_path / "confusion.png")
    for branch, axes in zip(branches, figure.axes[: len(branches)], strict=True):
        predicted = predictions[branch].argmax(dim=1)
        counts = confusion_matrix(predictions["label"], predicted, labels=range(len(names)))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        np.testing.assert_allclose(axes.images[0].get_array(), shares)
        if len(names) == 6:
            assert {text.get_position(): int(text.get_text()) for text in axes.texts} == {
                (column, row): counts[row, column] for row, column in np.ndindex(6, 6)
            }
        labels = axes.get_xticklabels()
        assert len(labels) == named
        for position, label in zip(axes.get_xticks(), labels, strict=True):
            assert names[int(position)].startswith(label.get_text().removesuffix("…"))


def random_row(epoch, rate=0.1, missing=None):
    rng = np.random.default_rng(epoch)
    row = {"epoch": epoch, "learning_rate": rate, "split": "test", "seconds": 10.0 * epoch, "clipped": rng.random()}
    for branch in [branch for branch in BRANCHES if branch != missing]:
        row |= {branch: rng.random(), f"train_{branch}": rng.random(), loss_name(branch): 1 + rng.random()}
    return row


@pytest.mark.parametrize(
    ("epochs", "missing", "drops"), [(100, None, [2.5, 69.5]), (5, "visual", [2.5]), (1, None, [])]
)
def test_curves(tmp_path, epochs, missing, drops):
    log = [random_row(epoch, 0.1 ** (1 + (epoch >= 3) + (epoch >= 70)), missing) for epoch in range(epochs)]
    figure = curves_figure(log, "dgl-alpha4-seed0: DGL, alpha 4, seed 0")
    assert_whole(figure, tmp_path / "curves.png")
    assert figure.get_suptitle().startswith("dgl-alpha4-seed0") and "can be higher" in figure.get_supxlabel()
    losses, accuracies = figure.axes
    low, high = accuracies.get_ylim()
    assert -0.1 < low <= 0 and 1 <= high < 1.1 and losses.get_xlim()[0] > -1
    best = max(log, key=lambda row: row["fused"])
    (mark,) = [line for line in accuracies.lines if line.get_marker() == "*"]
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([best["epoch"]], [best["fused"]])
    for axes, names in (
        (losses, [loss_name(branch) for branch in BRANCHES]),
        (accuracies, [name for branch in BRANCHES for name in (branch, f"train_{branch}")]),
    ):
        lines = [list(line.get_ydata()) for line in axes.lines]
        for name in names:
            assert ([row.get(name) for row in log] in lines) == (name in log[0]), name
        assert [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]] == drops


def test_lines_of_the_terminal_align_and_estimate_the_time_left():
    log = [random_row(epoch) for epoch in range(7)]
    lines = [summary(log[:number], epochs=607) for number in range(1, 8)]
    assert len({len(line) for line in lines}) == 1 and len({line.index("best") for line in lines}) == 1
    assert lines[-1].endswith(" 60 s  left  6:40:00")  # 600 epochs of the last five's mean, 40 s
    assert f"best {max(row['fused'] for row in log):.4f}" in lines[-1]


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
def test_gradient_report_agrees_with_autograd(name, routes, fusion_method):
    model, (inputs, label) = small_model(fusion_method).double().train(), batch()
    method = method_of(model, "--method", name, "--alpha", 3)
    report = gradient_report(method, model, inputs, label)
    assert all(parameter.grad is None for parameter in model.parameters())
    features, fusion = {name: model.encode(name, x) for name, x in inputs.items()}, model.fusion_module
    logits = {"L_m": fusion.fuse(features)} | {f"L_{name}": fusion.alone(name, x) for name, x in features.items()}
    for loss, factors in routes.items():
        found = gradients(model, F.cross_entropy(logits[loss], label))
        for (module, prefix), factor in zip(MODULES.items(), factors, strict=True):
            parts = [gradient.flatten() for each, gradient in found.items() if each.startswith(prefix)]
            expected = factor * torch.cat(parts).norm().item()
            assert report[loss][module] == pytest.approx(expected, rel=1e-5), (loss, module)
            assert (report[loss][module] == 0) == (factor == 0)
    method.step(model, inputs, label)
    assert list(report["all"].values()) == pytest.approx(gradient_norms(model).tolist(), rel=1e-5)
    rows = [line.split() for line in as_table(report).splitlines()[1:]]
    assert rows == [[loss, *(f"{norm:.4g}" for norm in norms.values())] for loss, norms in report.items()]


def test_gradient_report_of_a_frozen_encoder():
    model = small_model().double().train()
    model.frozen = ["audio"]
    report = gradient_report(method_of(model, "--alpha", 3), model, *batch())
    assert report["L_audio"]["audio"] == report["all"]["audio"] == 0 < report["L_visual"]["visual"]


@pytest.mark.parametrize(
    ("flags", "zeros"),
    [
        ([], ["L_m +00", "L_audio 0+0", "L_visual 00+", "all +++"]),
        (["--method", "ogm_ge"], ["L_m +++", "L_audio 000", "L_visual 000", "all +++"]),
        (["--modality", "visual"], ["L_visual ++", "all ++"]),
    ],
)
def test_gradient_report_of_the_command_line(few, tmp_path, small_encoders, output_of, flags, zeros):
    command = ["--gradient_report", *data_flags(few), *SMALL, "--num_workers", 0, *flags]
    _, _, *rows = output_of(main_dgl, *command, "--ckpt_path", tmp_path / "run").splitlines()
    found = [(loss, ["0" if cell == "0" else "+" for cell in cells]) for loss, *cells in map(str.split, rows)]
    assert [f"{loss} {''.join(cells)}" for loss, cells in found] == zeros
    assert not (tmp_path / "run").exists()


def board_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def series_of(folder):
    """Return TensorBoard's series, {tag: [(step, value), ...]}."""
    board = board_of(folder)
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


SERIES = {loss_name(branch): f"loss/{branch}" for branch in BRANCHES}  # {name in the log: TensorBoard's tag}
SERIES |= {f"train_{branch}": f"training_accuracy/{branch}" for branch in BRANCHES}
SERIES |= {f"gradient_{module}": f"gradient/{module}" for module in MODULES}
SERIES |= {"gradient_norm": "gradient_norm", "clipped": "clipped"}


def test_tensorboard_has_every_series_and_resumes_without_gap_or_duplicate(few, tmp_path, small_encoders, capsys):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    boards = tmp_path / "boards"  # of several runs, which stay apart
    flags = ["--batch_size", 3, "--num_workers", 0, "--epochs", 2, "--alpha", 2]
    flags += ["--learning_rate", 0.01, "--lr_decay_step", "[1]", "--use_tensorboard", "--tensorboard_steps"]
    flags += ["--tensorboard_path", boards]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.meter.progress_bar", partial(tqdm, mininterval=0))
        train(few, tmp_path / "whole", *flags)
    output, bar = capsys.readouterr()
    assert re.search(r"epoch 1: .*loss \d+\.\d{3}  fused [01]\.\d{3}  audio [01]\.\d{3}  visual [01]\.\d{3}", bar)
    series, board = series_of(boards / "whole"), board_of(boards / "whole")
    rows = rows_of(tmp_path / "whole")
    assert all(f"clipped {row['clipped']:4.0%}" in output for row in rows)
    for name, tag in (SERIES | {branch: f"accuracy/{branch}" for branch in BRANCHES}).items():
        assert series[tag] == [(row["epoch"], pytest.approx(row[name])) for row in rows], tag
    assert [value for _, value in series["learning_rate"]] == pytest.approx([0.01, 0.001])
    best = max(rows, key=lambda row: row["fused"])
    assert series["best/audio"] == [(best["epoch"], pytest.approx(best["audio"]))]
    assert series["last/fused"] == [(1, pytest.approx(rows[1]["fused"]))]

    by_step = series_of(boards / "whole" / "steps")
    for name, tag in [*SERIES.items()][:9]:
        numbers, values = zip(*by_step[tag.replace("/", "_by_step/")], strict=True)
        assert numbers == (0, 1, 2, 3)  # two steps an epoch
        assert np.reshape(values, (2, 2)).mean(axis=1) == pytest.approx([row[name] for row in rows]), tag
    assert [value for _, value in by_step["learning_rate_by_step"]] == pytest.approx([0.01] * 2 + [0.001] * 2)

    (image,) = board.Images("confusion")
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.std() > 5 and image.step == best["epoch"]
    assert all(cv2.imread(str(tmp_path / "whole" / name)).std() > 5 for name in ("curves.png", "confusion.png"))
    (settings,) = board.Tensors("settings/text_summary")
    assert "| alpha | 2.0 |" in settings.tensor_proto.string_val[0].decode()
    pages = {name: HParamsPluginData.FromString(each) for name, each in board.PluginTagToContent("hparams").items()}
    given = pages["_hparams_/session_start_info"].session_start_info.hparams
    assert given["alpha"].number_value == 2 and given["method"].string_value == "dgl"
    metrics = {metric.name.tag for metric in pages["_hparams_/experiment"].experiment.metric_infos}
    assert metrics == {f"{name}/{branch}" for name in ("best", "last") for branch in BRANCHES} <= series.keys()

    with interrupted("dgl_step", 3):
        train(few, tmp_path / "parts", *flags)
    time.sleep(1.1)  # the files are read in the order of their names, which start with the second
    train(few, tmp_path / "parts", *flags, "--resume")
    resumed = series_of(boards / "parts")
    assert resumed.keys() == series.keys()
    assert all(resumed[tag] == series[tag] for tag in series if tag != "seconds")
    assert series_of(boards / "parts" / "steps") == by_step


def test_steps_of_an_epoch_that_runs_again_are_replaced(tmp_path):
    """Check steps after the last checkpoint, which may have other values on a GPU when they run again."""
    row = random_row(0) | {"gradient_fusion": 1.0}
    for first, values in ((0, range(5)), (3, (30, 40))):
        board = Board(tmp_path, {"alpha": 2.0}, [], first)
        board.add_epoch(row, [{"loss": value} for value in values])
        board.close()
        time.sleep(1.1)  # the files are read in the order of their names, which start with the second
    assert series_of(tmp_path / "steps")["loss_by_step/fused"] == list(enumerate([0, 1, 2, 30, 40]))
    assert series_of(tmp_path)["gradient/fusion"] == [(0, 1.0)]


def test_a_run_in_the_working_folder_has_a_board(few, tmp_path, small_encoders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*data_flags(few), *SMALL, "--epochs", 1, "--use_tensorboard", "--tensorboard_path", tmp_path / "boards"]
    run_here(main_dgl, "--train", *flags, "--ckpt_path", ".")
    assert [path.name for path in (tmp_path / "boards").iterdir()] == [tmp_path.name]
