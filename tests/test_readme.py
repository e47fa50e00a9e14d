"""The README against the project: its commands parse, what it names is there, and its snippets run."""

import ast
import re
import shlex
import shutil

from tests.conftest import ROOT, SMALL, run_script
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
    names = re.findall(r"[\w./<>-]+\.(?:py|sh|txt)\b", README) + re.findall(r"\]\((?!http)(.*?)\)", README)
    for name in set(names) - {"dataset/mydata.py"}:  # to be written
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
        if path.parent.name in ("models", "dataset", "utils") and path.stem != "__init__":
            assert re.search(rf"\b{path.stem}\b", tree), path


def test_messages_are_the_ones_printed():
    rows = re.findall(r"^\| (.*?) \| .* \|$", README.split("## Troubleshooting")[1].split("\n## ")[0], re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`(.+?)`(?=, `|$)", row)]
    assert len(messages) > 20
    for message in messages:
        message = message.removeprefix("error: ").removeprefix("warning: ")
        assert any(message in text for text in TEXTS), message


def test_the_snippets_run(corpus, tmp_path):
    """A dataset and a fusion module are added to a copy of the project as the README says, then trained and validated.

    The corpus is in the dataset's place.
    """
    for path in project_files("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    snippets = [text.split("\n", 1) for language, text in BLOCKS if language == "python"]
    assert len(snippets) == 4
    for head, code in snippets:
        name = head.removeprefix("# ").partition(":")[0]
        file = tmp_path / name
        if name.endswith("__init__.py"):  # an import, and a row of the table
            row = re.search(r'^    "\w+": .*\n', code, re.MULTILINE)[0]
            table = re.compile(r"^[A-Z_]+ = \{.*\n", re.MULTILINE)
            text = table.sub(lambda head, row=row: head[0] + row, file.read_text(), count=1)
            file.write_text(code.replace(row, "") + text)
        else:
            file.write_text((f"{file.read_text()}\n\n" if file.exists() else "") + code)
    (tmp_path / "train_test_data").mkdir()
    (tmp_path / "train_test_data" / "mydata").symlink_to(corpus)

    flags = ["--dataset", "MyData", "--fusion_method", "max", *SMALL, "--epochs", 1]
    run_script("main_dgl.py", "--train", *flags, "--ckpt_path", "ckpt/mine", folder=tmp_path)
    output = run_script("valid.py", "--ckpt_path", "ckpt/mine/best.pth", folder=tmp_path).stdout
    assert "MyData, max fusion" in output and "test: 6 clips" in output
