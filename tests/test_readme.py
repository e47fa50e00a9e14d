"""Check README, docs/ and CONTRIBUTING against the project: commands and snippets run, what they name exists."""

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
PARSERS = {"main_dgl.py": settings.training_parser(), "valid.py": settings.validation_parser()}
OTHERS = {"--shm-size", "--halved_by", "--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"}
OTHERS |= {"--include", "--logdir", "--array", "--dependency"}  # of torchrun, grep, tensorboard, Slurm


def project_files(pattern):
    left_out = {".git", ".venv", "ckpt", "train_test_data"}
    return [path for path in sorted(ROOT.rglob(pattern)) if path.relative_to(ROOT).parts[0] not in left_out]


def texts():
    """Yield every text that the project's code holds, with … where a value is filled in."""
    for path in project_files("*.py"):
        for node in ast.walk(ast.parse(path.read_text() if path.parent.name != "tests" else "")):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    yield from (path.read_text() for path in project_files("*.sh"))


TEXTS = list(texts())


def commands():
    """Yield the pages' calls of Python scripts, as lists of words from the script on."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    text = "".join(text for language, text in blocks if not language).replace("\\\n", "")
    root, demo = (re.search(pattern, text, re.DOTALL)[1] for pattern in (r"(?m)^root=(\S+)", r"demo=\((.*?)\)"))
    for line in re.findall(r"^(?:\$ )?((?:python|torchrun) .*\.py.*)$", text, re.MULTILINE):
        words = shlex.split(line.replace('"${demo[@]}"', demo).replace("$root", root), comments=True)
        yield words[next(number for number, word in enumerate(words) if word.endswith(".py")) :]


def test_commands_run(few, tmp_path, small, monkeypatch):
    """Run them one after the other, as the pages have them, but with few clips, small images and encoders."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo/CREMA-D", "CREMA-D"):
        path = tmp_path / "train_test_data" / name
        path.mkdir(parents=True)
        for part in ("AudioWAV", "VideoFlash", "Image-01-FPS", "train.csv", "test.csv"):
            source = few / part if (few / part).exists() else (few / "AudioWAV").resolve().parent / part
            (path / part).symlink_to(source)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "CREMAD").symlink_to(few)  # its lists
    demo = tmp_path / "train_test_data" / "demo" / "CREMA-D"
    video = str(next((demo / "VideoFlash").glob("*.flv")))
    short = ["--image_size", 32, "--batch_size", 4, "--num_workers", 0, "--epochs", 1]
    run_here(main_dgl, "--train", *data_flags(demo)[:6], *short, "--ckpt_path", "ckpt/demo")
    ran = 0
    for script, *words in commands():
        if script in PARSERS:
            words = [video if word.endswith((".flv", ".mp4")) else word for word in words]
            more = short if script == "main_dgl.py" else ["--num_workers", 0]
            run_here({"main_dgl.py": main_dgl, "valid.py": valid}[script], *words, *more)
            ran += 1
    assert ran > 12


def test_scripts_and_their_settings_exist():
    """Check every `name=value bash script.sh` in the pages."""
    seen, value = 0, r"""(?:'[^'\n]*'|"[^"\n]*"|\S+)"""
    for values, script in re.findall(rf"((?:\w+={value} )*)(?:bash|sbatch) ([\w./]+\.sh)", TEXT):
        code = (ROOT / script).read_text()
        if script == "docs/slurm.sh":
            code += (ROOT / "cramed_dgl.sh").read_text()
        for name in re.findall(r"(\w+)=", values):
            assert f"${{{name}:-" in code, (name, script)
            seen += 1
    assert seen > 10


def test_flags_files_and_symbols_exist():
    known = {flag for parser in PARSERS.values() for flag in parser._option_string_actions} | OTHERS
    known |= {text for text in TEXTS if re.fullmatch(r"--\w+", text)}  # those of the scripts under data/
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", TEXT)) <= known
    paths = {path.relative_to(ROOT).as_posix() for path in project_files("*")}
    names = re.findall(r"[\w./<-]+\.(?:py|sh|txt)\b", TEXT)
    for name in set(names) - {"dataset/mydata.py", "methods/halved.py", "runs.txt"}:  # to be written
        assert any(f"/{path}".endswith(f"/{name}") for path in paths), name
    for module in re.findall(r"python -m (\S+)\b", TEXT):
        assert f"{module.replace('.', '/')}.py" in paths, module
    for symbol, name in re.findall(r"`([\w.]+)` in `(\S+\.py)`", TEXT):
        defined = rf"^ *(def|class) {symbol.split('.')[-1]}\b|^{symbol} = "
        assert re.search(defined, (ROOT / name).read_text(), re.MULTILINE), symbol


def without_code(path):
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """Return the names of a page's headings in links to them."""
    heads = re.findall(r"^#+ (.*)$", without_code(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)(.*?)\)", without_code(page)):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_published_tables_are_what_the_published_runs_say(tmp_path, output_of):
    """Check of the tried values that three ran, one the default, chosen by held-out clips; only the value differs."""
    shutil.unpack_archive(ROOT / "docs" / "avmnist-runs.tar.xz", tmp_path)
    tables = [output_of(comparison, tmp_path / "avmnist-runs", *flags) for flags in ([], ["--reference", "joint"])]
    rows, expected, others = (re.findall(r"^.*\| best \|.*$", text, re.MULTILINE) for text in (COMPARISON, *tables))
    assert rows == [*expected, *(row for row in others if "| 15 | best |" in row)] and len(rows) > 20
    tries = defaultdict(list)
    for path in tmp_path.glob("avmnist-tries/*-seed0"):
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
        first, *_, of_first = found[0]
        for given, _, _, data in found:
            assert {name for name, *_ in differing(given, first)} <= {flag} and data == of_first
            assert given["epochs"] == first["epochs"] and given["random_seed"] == 0


def test_readme_is_short_and_lists_all_pages_and_design_every_module():
    assert len(README.splitlines()) <= 200
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page
    tree = (ROOT / "docs" / "design.md").read_text().split("## Packages")[1]
    for path in project_files("*.py"):
        packages = ("analysis", "engine", "dataset", "data", "methods", "models", "utils")
        if path.parent.name in packages and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", tree), path


def test_messages_are_the_ones_printed():
    rows = re.findall(r"^\| (.*?) \| .* \|$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`(.+?)`(?=, `|$)", row)]
    assert len(messages) > 20
    for message in messages:
        message = message.removeprefix("error: ").removeprefix("warning: ")
        assert any(message in text for text in TEXTS), message


def add_snippets(page, folder):
    """Write the Python snippets of a page into a copy of the project in `folder`; return how many there are.

    The first line of a snippet names the file, and what it is: a new file, a row of a table, with the imports that it
    needs, or a class above a table.
    """
    for path in project_files("*.py"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    snippets = re.findall(r"^```python\n(.*?)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
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


def test_the_snippets_of_extending_run(few, tmp_path):
    """Add a dataset, whose clips are `few`, a fusion module and an encoder; train and validate with them."""
    assert add_snippets("docs/extending.md", tmp_path) == 6
    (tmp_path / "train_test_data").mkdir()
    (tmp_path / "train_test_data" / "mydata").symlink_to(few)
    flags = ["--dataset", "MyData", "--fusion_method", "max", "--backbone", "mobilenet", *SMALL, "--epochs", 1]
    run_fork("main_dgl.py", "--train", *flags, "--ckpt_path", "ckpt/mine", folder=tmp_path)
    output = run_fork("valid.py", "--ckpt_path", "ckpt/mine/best.pth", folder=tmp_path).stdout
    assert "MyData, max fusion" in output and "test: 2 clips" in output


OWN_METHOD = """
import os, signal
import pytest
import main_dgl, valid
from pathlib import Path
from analysis import comparison
from models.backbone import BACKBONES
from tests.conftest import SMALL, SmallEncoder, run_here
from tests.test_resume import interrupt_at
from tests.torture import assert_same_run

flags = [*DATA, *SMALL, "--batch_size", 3, "--num_workers", 0, "--epochs", 2, "--learning_rate", 0.01]
flags += ["--method", "halved"]
BACKBONES["resnet18"] = SmallEncoder
whole, parts = Path("runs/halved-seed0"), Path("apart/halved-seed0")
run_here(main_dgl, "--train", *flags, "--ckpt_path", whole)
with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
    interrupt_at(patch, "clip_gradients", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))  # of four steps
    run_here(main_dgl, "--train", *flags, "--ckpt_path", parts)
assert end.value.code == 128 + signal.SIGTERM
run_here(main_dgl, "--train", "--resume", *flags, "--ckpt_path", parts)
assert_same_run(whole, parts)
for name in ("halved", "joint"):
    run_here(main_dgl, "--gradient_report", *flags[:-1], name)
for name in ("best", "last"):
    run_here(valid, "--ckpt_path", whole / f"{name}.pth", "--linear_probe", "--json", whole / f"{name}.json")
run_here(comparison, "runs")
"""


def test_a_new_method_as_contributing_says(few, tmp_path):
    """Add a file, a row, a flag: the method trains, resumes, is reported, validated and compared under its name."""
    assert add_snippets("CONTRIBUTING.md", tmp_path) == 3
    (tmp_path / "own_method.py").write_text(OWN_METHOD.replace("DATA", repr([*map(str, data_flags(few))])))
    output = run_fork("own_method.py", folder=tmp_path).stdout
    assert "| joint, halved | - | 1 | best |" in output and "resuming in epoch 1\n" in output
    rows = [[float(cell) for cell in row] for row in re.findall(r"^L_m +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)]
    halved, joint = rows
    assert halved == pytest.approx([joint[0], joint[1] / 2, joint[2] / 2], rel=1e-3)
