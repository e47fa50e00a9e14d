"""What the product imports, what its environment is made of, and the versions of both lists of packages."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.conftest import ROOT
from tests.test_readme import project_files

PRODUCT = [path for path in project_files("*.py") if path.parent.name != "tests"]
NAME = r"^ *\"?([A-Za-z][\w-]*)(==|>=)([\d.]+)"  # of a package, in either list


def packages(text, sign):
    return {name: version for name, found, version in re.findall(NAME, text, re.MULTILINE) if found == sign}


PINS = packages((ROOT / "requirements.txt").read_text(), "==")


def imported():
    """The modules of other projects that the product imports, as {top-level name}."""
    names = {"tensorboard"}  # PyTorch imports it, behind torch.utils.tensorboard
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
    own = {path.stem for path in PRODUCT} | {path.relative_to(ROOT).parts[0] for path in PRODUCT}
    return names - own - set(sys.stdlib_module_names)


def test_every_package_is_used_and_pinned():
    known = packages_distributions()
    used = {name: {each.lower() for each in known[name]} for name in imported()}
    for name, distributions in used.items():
        assert distributions & PINS.keys(), f"{name} is imported and not in requirements.txt"
    assert set(PINS) == set().union(*(distributions & PINS.keys() for distributions in used.values()))


def test_lower_bounds_are_below_the_pins():
    bounds = packages((ROOT / "pyproject.toml").read_text(), ">=")
    assert set(bounds) == set(PINS)
    for name, bound in bounds.items():
        assert [int(part) for part in bound.split(".")] <= [int(part) for part in PINS[name].split(".")]


def test_the_scripts_look_for_all_that_is_not_brought_by_another():
    named = set(re.search(r'modules="(.*)"', (ROOT / "utils" / "environment.sh").read_text())[1].split())
    assert named == imported() - {"torch", "numpy", "PIL", "scipy"}  # torchvision and librosa bring these


@pytest.mark.parametrize("name", ["pytest", "ruff", "import-linter", "imageio-ffmpeg"])
def test_what_only_tests_need_stands_apart(name):
    assert name not in PINS and name in packages((ROOT / "requirements-dev.txt").read_text(), "==")
