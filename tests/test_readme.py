"""The README against the project: its commands parse, what it names is there, and its snippets run."""

import ast
import re
import shlex
import shutil

import pytest

from tests.conftest import ROOT, SMALL, data_flags, run_fork
from utils.results import settings

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)  # (language, text)
PARSERS = {
    "main_dgl.py": settings.training_parser(),
    "valid.py": settings.validation_parser(),
}
OTHERS = {"--nproc_per_node", "--include", "--logdir"}  # flags of torchrun, grep, tensorboard


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
    """The README's calls of Python scripts, as lists of words."""
    text = "\n".join(text for language, text in BLOCKS if not language)
    demo = shlex.split(re.search(r"demo=\((.*?)\)", text, re.DOTALL)[1])
    for line in text.splitlines():
        if re.search(r"^(\$ )?(python|torchrun) .*\.py", line):
            words = shlex.split(line, comments=True)
            yield [each for word in words for each in (demo if word == "${demo[@]}" else [word])]


def test_commands_parse():
    for words in commands():
        script = next(word for word in words if word.endswith(".py"))
        PARSERS[script].parse_args(words[words.index(script) + 1 :])  # raises InputError


def test_flags_exist():
    known = {flag for parser in PARSERS.values() for flag in parser._option_string_actions} | OTHERS
    known |= {text for text in TEXTS if re.fullmatch(r"--\w+", text)}  # those of the scripts under data/
    assert set(re.findall(r"(?<![\w-])--\w+", README)) <= known


def test_files_and_symbols_exist():
    paths = {path.relative_to(ROOT).as_posix() for path in project_files("*")}
    text = README + "".join((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/design.md"))
    names = re.findall(r"[\w./<>-]+\.(?:py|sh|txt)\b", text) + re.findall(r"\]\((?!http)(.*?)\)", README)
    for name in set(names) - {"dataset/mydata.py", "methods/halved.py"}:  # to be written
        assert any(f"/{path}".endswith(f"/{name}") for path in paths), name
    for name in re.findall(r"^(\w+)/ ", README.split("## Files")[1], re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for module in re.findall(r"python -m (\S+)\b", README):
        assert f"{module.replace('.', '/')}.py" in paths, module
    for symbol, name in re.findall(r"`([\w.]+)` in `(\S+\.py)`", README):
        assert re.search(rf"^ *(def|class) {symbol.split('.')[-1]}\b", (ROOT / name).read_text(), re.MULTILINE), symbol


def test_the_tree_names_every_module():
    tree = README.split("## Files")[1]
    for path in project_files("*.py"):
        rooms = ("models", "methods", "dataset", "utils", "training", "results")
        if path.parent.name in rooms and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", tree), path


def test_messages_are_the_ones_printed():
    rows = re.findall(r"^\| (.*?) \| .* \|$", README.split("## Troubleshooting")[1].split("\n## ")[0], re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`(.+?)`(?=, `|$)", row)]
    assert len(messages) > 20
    for message in messages:
        message = message.removeprefix("error: ").removeprefix("warning: ")
        assert any(message in text for text in TEXTS), message


def add_snippets(text, folder):
    """Write the Python snippets of a page into a copy of the project in `folder`. Returns how many there are."""
    for path in project_files("*.py"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    snippets = re.findall(r"^```python\n(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for head, code in snippets:
        file = folder / head.removeprefix("# ").partition(":")[0]
        if file.name == "__init__.py":  # a row of the table, and the import that it may need
            row = re.search(r'^    "\w+": .*\n', code, re.MULTILINE)[0]
            table = re.compile(r"^[A-Z_]+ = \{(  #.*)?\n", re.MULTILINE)
            text = table.sub(lambda head, row=row: head[0] + row, file.read_text(), count=1)
            file.write_text(code.replace(row, "") + text)
        else:
            file.write_text((f"{file.read_text()}\n\n" if file.exists() else "") + code)
    return len(snippets)


def test_the_snippets_run(corpus, tmp_path):
    """A dataset and a fusion module are added as the README says, then trained and validated.

    The corpus is in the dataset's place.
    """
    assert add_snippets(README, tmp_path) == 4
    (tmp_path / "train_test_data").mkdir()
    (tmp_path / "train_test_data" / "mydata").symlink_to(corpus)
    flags = ["--dataset", "MyData", "--fusion_method", "max", *SMALL, "--epochs", 1]
    run_fork("main_dgl.py", "--train", *flags, "--ckpt_path", "ckpt/mine", folder=tmp_path)
    output = run_fork("valid.py", "--ckpt_path", "ckpt/mine/best.pth", folder=tmp_path).stdout
    assert "MyData, max fusion" in output and "test: 6 clips" in output


OWN_RULE = """
import os, shutil, signal
from unittest.mock import patch
import main_dgl, valid
from methods.halved import Halved
from models import basic_model
from tests.conftest import SMALL, SmallEncoder, run_here
from tests.torture import assert_same_run
from utils.results import comparison
from pathlib import Path

flags = [*DATA, *SMALL, "--num_workers", 0, "--epochs", 2, "--learning_rate", 0.01, "--method", "halved"]
basic_model.ResNet18 = SmallEncoder
runs = [Path("runs/halved-seed0"), Path("apart/halved-seed0")]
run_here(main_dgl, "--train", *flags, "--ckpt_path", runs[0])
step, calls = Halved.step, []

def interrupted(self, *batch):
    calls.append(batch)
    if len(calls) == 5:  # of six steps
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *batch)

try:
    with patch.object(Halved, "step", interrupted):
        run_here(main_dgl, "--train", *flags, "--ckpt_path", runs[1])
except SystemExit as end:
    assert end.code == 128 + signal.SIGTERM
run_here(main_dgl, "--train", "--resume", *flags, "--ckpt_path", runs[1])
assert_same_run(*runs)
run_here(main_dgl, "--gradient_report", *flags)
run_here(main_dgl, "--gradient_report", *flags[:-1], "joint")
for name in ("best", "last"):
    run_here(valid, "--ckpt_path", runs[0] / f"{name}.pth", "--linear_probe", "--json", runs[0] / f"{name}.json")
run_here(comparison, "runs")
"""


def test_a_training_rule_as_contributing_says(corpus, tmp_path):
    """One file and one row: trained, interrupted, resumed, reported, validated and compared under its own name."""
    assert add_snippets((ROOT / "CONTRIBUTING.md").read_text(), tmp_path) == 2
    (tmp_path / "own_rule.py").write_text(OWN_RULE.replace("DATA", repr([*map(str, data_flags(corpus))])))
    output = run_fork("own_rule.py", folder=tmp_path).stdout
    assert "| joint, halved | - | 1 | best |" in output and "resuming in epoch 1 after 2 steps" in output
    rows = [[float(cell) for cell in row] for row in re.findall(r"^L_m +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)]
    halved, joint = rows
    assert halved == pytest.approx([joint[0], joint[1] / 2, joint[2] / 2], rel=1e-3)
