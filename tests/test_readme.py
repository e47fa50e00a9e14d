"""README, docs/ and CONTRIBUTING against the project: commands run, what they name is there, snippets run."""

import ast
import json
import re
import shlex
import shutil
from collections import defaultdict

import pytest

import main_dgl
import valid
from analysis import comparison
from engine import settings
from tests.conftest import ROOT, SMALL, data_flags, run_fork, run_here
from utils.config import differing

README = (ROOT / "README.md").read_text()
COMPARISON = (ROOT / "docs" / "comparison.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text() for path in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)  # (language, text)
PARSERS = {
    "main_dgl.py": settings.training_parser(),
    "valid.py": settings.validation_parser(),
}
TITLE = "disentangled-gradient-learning-dgl"
OTHERS = {
    "--shm-size",
    "--halved_by",
    "--nnodes",
    "--nproc_per_node",
    "--rdzv_backend",
    "--rdzv_endpoint",
    "--include",
    "--logdir",
    "--array",
    "--dependency",
}  # flags of torchrun, grep, tensorboard, Slurm


def project_files(pattern):
    left_out = {".git", ".venv", "ckpt", "train_test_data"}
    return [path for path in sorted(ROOT.rglob(pattern)) if path.relative_to(ROOT).parts[0] not in left_out]


def texts():
    """Every text that the project's code holds, with … where a value is filled in."""
    for path in project_files("*.py"):
        if path.parent.name == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    yield from (path.read_text() for path in project_files("*.sh"))


TEXTS = list(texts())


def commands():
    """The pages' calls of Python scripts, as lists of words from the script on."""
    text = "\n".join(text for language, text in BLOCKS if not language).replace("\\\n", "")
    root, demo = (re.search(pattern, text, re.DOTALL)[1] for pattern in (r"(?m)^root=(\S+)", r"demo=\((.*?)\)"))
    for line in text.splitlines():
        if re.search(r"^(\$ )?(python|torchrun) .*\.py", line):
            line = line.replace('"${demo[@]}"', demo).replace("$root", root)
            words = shlex.split(line, comments=True)
            yield words[next(number for number, word in enumerate(words) if word.endswith(".py")) :]


def test_commands_run(few, tmp_path, small_encoders, monkeypatch, capsys):
    """One after the other, as they stand in the pages, on miniatures: fewer clips, smaller pictures and encoders."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo/CREMA-D", "CREMA-D"):
        path = tmp_path / "train_test_data" / name
        path.mkdir(parents=True)
        for part in ("AudioWAV", "VideoFlash", "Image-01-FPS", "train.csv", "test.csv"):
            source = few / part if (few / part).exists() else (few / "AudioWAV").resolve().parent / part
            (path / part).symlink_to(source)
    (tmp_path / "data" / "CREMAD").mkdir(parents=True)
    for name in ("train.csv", "test.csv"):
        (tmp_path / "data" / "CREMAD" / name).symlink_to(few / name)
    video = next((tmp_path / "train_test_data/demo/CREMA-D/VideoFlash").glob("*.flv"))
    run_here(main_dgl, "--train", *RUN_SMALL, "--epochs", 1, "--ckpt_path", "ckpt/demo", *demo_flags())
    ran = 0
    for script, *words in commands():
        if script not in PARSERS:
            continue
        words = [str(video) if word.endswith((".flv", ".mp4")) else word for word in words]
        more = [*RUN_SMALL, "--epochs", 1] if script == "main_dgl.py" else ["--num_workers", 0]
        capsys.readouterr()
        run_here({"main_dgl.py": main_dgl, "valid.py": valid}[script], *words, *more)
        ran += 1
    assert ran > 12


def demo_flags():
    root = "train_test_data/demo/CREMA-D"
    return ["--audio_path", f"{root}/AudioWAV", "--visual_path", root, "--split_path", root]


RUN_SMALL = ["--image_size", 32, "--batch_size", 4, "--num_workers", 0]


VALUE = r"""(?:'[^']*'|"[^"]*"|\S+)"""


def test_scripts_and_their_settings_exist():
    """Of every `name=value bash script.sh` in the pages."""
    seen = 0
    for line in TEXT.splitlines():
        for values, script in re.findall(rf"((?:\w+={VALUE} )*)(?:bash|sbatch) ([\w./]+\.sh)", line):
            code = (ROOT / script).read_text()
            if script == "docs/slurm.sh":
                code += (ROOT / "cramed_dgl.sh").read_text()
            for name in re.findall(r"(\w+)=", values):
                assert f"${{{name}:-" in code, line
                seen += 1
    assert seen > 10


def test_flags_exist():
    known = {flag for parser in PARSERS.values() for flag in parser._option_string_actions} | OTHERS
    known |= {text for text in TEXTS if re.fullmatch(r"--\w+", text)}  # those of the scripts under data/
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", TEXT)) <= known


def test_files_and_symbols_exist():
    paths = {path.relative_to(ROOT).as_posix() for path in project_files("*")}
    names = re.findall(r"[\w./<-]+\.(?:py|sh|txt)\b", TEXT)
    for name in set(names) - {"dataset/mydata.py", "methods/halved.py", "runs.txt"}:  # to be written
        assert any(f"/{path}".endswith(f"/{name}") for path in paths), name
    for module in re.findall(r"python -m (\S+)\b", TEXT):
        assert f"{module.replace('.', '/')}.py" in paths, module
    for symbol, name in re.findall(r"`([\w.]+)` in `(\S+\.py)`", TEXT):
        defined = rf"^ *(def|class) {symbol.split('.')[-1]}\b|^{symbol} = "
        assert re.search(defined, (ROOT / name).read_text(), re.MULTILINE), symbol


def without_code(text):
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What the headings of a page are called in links to them."""
    heads = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)(.*?)\)", without_code(page.read_text())):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: {link}"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of the published runs."""
    folder = tmp_path_factory.mktemp("published")
    shutil.unpack_archive(ROOT / "docs" / "avmnist-runs.tar.xz", folder)
    return folder


def test_the_published_table_is_what_the_published_runs_say(published, capsys):
    run_here(comparison, published / "avmnist-runs")
    table = capsys.readouterr().out.splitlines()
    rows = [line for line in COMPARISON.splitlines() if "| best |" in line]
    assert rows == [line for line in table if "| best |" in line] and len(rows) > 10


def test_the_published_tries_are_what_their_runs_say(published):
    """Three of each, the default among them, chosen by held-out clips alone; nothing but the value differs."""
    tries = defaultdict(list)
    for path in published.glob("*/*-seed0"):
        result, record = (json.loads((path / name).read_text()) for name in ("result.json", "run.json"))
        held_out = max(json.loads(line)["fused"] for line in (path / "log.jsonl").read_text().splitlines())
        found = result["settings"], 100 * held_out, 100 * result["best"]["fused"], record["data"]
        tries[result["settings"]["method"]].append(found)
    rows = re.findall(r"^\| `(.+?)` \| `--(\w+)` \| (.+) \| (\S+?)(, the default)? \|$", COMPARISON, re.MULTILINE)
    assert sorted(method for method, *_ in rows) == sorted(method for method, found in tries.items() if len(found) > 1)
    for method, flag, cells, chosen, kept in rows:
        found = sorted(tries[method], key=lambda one: one[0][flag])
        shown = [f"{given[flag]:g}: {held_out:.1f}, {test:.1f}" for given, held_out, test, _ in found]
        best = max(found, key=lambda one: one[1])[0][flag]
        default = PARSERS["main_dgl.py"].get_default(flag)
        assert len(found) == 3 and cells == " | ".join(shown) and default in {given[flag] for given, *_ in found}
        assert float(chosen) == best and bool(kept) == (best == default)
        for given, _, _, data in found:
            first, *_, of_first = found[0]
            assert {name for name, *_ in differing(given, first)} <= {flag} and data == of_first
            assert given["epochs"] == first["epochs"] and given["random_seed"] == 0


def test_readme_is_short_and_its_contents_name_every_section():
    assert len(README.splitlines()) <= 220
    contents = README.split("**Contents:**")[1].split("\n\n")[0]
    assert {f"#{name}" for name in anchors(README)} - set(re.findall(r"\((#.*?)\)", contents)) == {f"#{TITLE}"}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page


def test_the_tree_names_every_module():
    tree = (ROOT / "docs" / "design.md").read_text().split("## Rooms")[1]
    for path in project_files("*.py"):
        rooms = ("analysis", "engine", "dataset", "data", "methods", "models", "utils")
        if path.parent.name in rooms and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", tree), path


def test_messages_are_the_ones_printed():
    rows = re.findall(r"^\| (.*?) \| .* \|$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`(.+?)`(?=, `|$)", row)]
    assert len(messages) > 20
    for message in messages:
        message = message.removeprefix("error: ").removeprefix("warning: ")
        assert any(message in text for text in TEXTS), message


def add_snippets(text, folder):
    """Write the Python snippets of a page into a copy of the project in `folder`; return how many there are.

    The first line of a snippet names the file, and what it is: a new file, a row of a table, with the imports that it
    needs, or a class above a table.
    """
    for path in project_files("*.py"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    snippets = re.findall(r"^```python\n(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for head, code in snippets:
        file = folder / head.removeprefix("# ").partition(":")[0]
        if "a new file" in head:
            file.write_text(code)
            continue
        kind, name = re.search(r"(row of|class above) ([A-Z_]+)$", head).groups()
        before, table, after = re.split(rf"^({name} = [{{(].*\n)", file.read_text(), maxsplit=1, flags=re.MULTILINE)
        if kind == "row of":
            row = re.search(r"^    .*\n", code, re.MULTILINE)[0]
            file.write_text(code.replace(row, "") + before + table + row + after)
        else:
            file.write_text(f"{before}{code}\n\n{table}{after}")
    return len(snippets)


def test_the_snippets_run(corpus, tmp_path):
    """A dataset, a fusion module and an encoder are added as the page says, then trained and validated.

    The corpus is in the dataset's place.
    """
    assert add_snippets((ROOT / "docs" / "extending.md").read_text(), tmp_path) == 6
    (tmp_path / "train_test_data").mkdir()
    (tmp_path / "train_test_data" / "mydata").symlink_to(corpus)
    flags = ["--dataset", "MyData", "--fusion_method", "max", "--backbone", "mobilenet", *SMALL, "--epochs", 1]
    run_fork("main_dgl.py", "--train", *flags, "--ckpt_path", "ckpt/mine", folder=tmp_path)
    output = run_fork("valid.py", "--ckpt_path", "ckpt/mine/best.pth", folder=tmp_path).stdout
    assert "MyData, max fusion" in output and "test: 6 clips" in output


OWN_METHOD = """
import os, shutil, signal
from unittest.mock import patch
import main_dgl, valid
from analysis import comparison
from methods.halved import Halved
from models.backbone import BACKBONES
from tests.conftest import SMALL, SmallEncoder, run_here
from tests.torture import assert_same_run
from pathlib import Path

flags = [*DATA, *SMALL, "--num_workers", 0, "--epochs", 2, "--learning_rate", 0.01, "--method", "halved"]
BACKBONES["resnet18"] = SmallEncoder
runs = [Path("runs/halved-seed0"), Path("apart/halved-seed0")]
run_here(main_dgl, "--train", *flags, "--ckpt_path", runs[0])
step, calls = Halved.step, []

def interrupted(self, *batch):
    calls.append(batch)
    if len(calls) == 4:  # of four steps
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *batch)

try:
    with patch.object(Halved, "step", interrupted):
        run_here(main_dgl, "--train", *flags, "--ckpt_path", runs[1])
except SystemExit as end:
    assert end.code == 128 + signal.SIGTERM
else:
    raise AssertionError("the run was not interrupted")
run_here(main_dgl, "--train", "--resume", *flags, "--ckpt_path", runs[1])
assert_same_run(*runs)
run_here(main_dgl, "--gradient_report", *flags)
run_here(main_dgl, "--gradient_report", *flags[:-1], "joint")
for name in ("best", "last"):
    run_here(valid, "--ckpt_path", runs[0] / f"{name}.pth", "--linear_probe", "--json", runs[0] / f"{name}.json")
run_here(comparison, "runs")
"""


def test_a_new_method_as_contributing_says(corpus, tmp_path):
    """A file, a row, a flag: trained, interrupted, resumed, reported, validated and compared under its own name."""
    assert add_snippets((ROOT / "CONTRIBUTING.md").read_text(), tmp_path) == 3
    (tmp_path / "own_method.py").write_text(OWN_METHOD.replace("DATA", repr([*map(str, data_flags(corpus))])))
    output = run_fork("own_method.py", folder=tmp_path).stdout
    assert "| joint, halved | - | 1 | best |" in output and "resuming in epoch 1\n" in output
    rows = [[float(cell) for cell in row] for row in re.findall(r"^L_m +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)]
    halved, joint = rows
    assert halved == pytest.approx([joint[0], joint[1] / 2, joint[2] / 2], rel=1e-3)
