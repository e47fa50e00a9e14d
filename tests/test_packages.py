"""What the product imports, what its environment is made of, and the versions of both lists of packages."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

from tests.conftest import ROOT
from tests.test_readme import project_files

PRODUCT = [path for path in project_files("*.py") if path.parent.name != "tests"]


def packages(file, sign):
    """Return {name: version} of the packages in a list of them, `sign` between the two."""
    found = re.findall(rf"^ *\"?([A-Za-z][\w-]*){sign}([\d.]+)", (ROOT / file).read_text(), re.MULTILINE)
    return dict(found)


def imported():
    """Return the top-level names of other projects' modules that the product imports."""
    names = {"tensorboard"}  # PyTorch imports it, behind torch.utils.tensorboard
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
    own = {path.stem for path in PRODUCT} | {path.relative_to(ROOT).parts[0] for path in PRODUCT}
    return names - own - set(sys.stdlib_module_names)


def test_every_package_is_used_pinned_and_bounded():
    """Check each import's package, that lower bounds are below the pins, and that tests' packages stand apart."""
    pins, known, used = packages("requirements.txt", "=="), packages_distributions(), set()
    for name in imported():
        distributions = {each.lower() for each in known[name]} & pins.keys()
        assert distributions, f"{name} is imported and not in requirements.txt"
        used |= distributions
    bounds = packages("pyproject.toml", ">=")
    assert used == set(pins) == set(bounds)
    for name, bound in bounds.items():
        assert [int(part) for part in bound.split(".")] <= [int(part) for part in pins[name].split(".")], name
    of_tests = {"pytest", "ruff", "import-linter", "imageio-ffmpeg"}
    assert of_tests <= packages("requirements-dev.txt", "==").keys() - pins.keys()


def test_the_scripts_look_for_all_that_is_not_installed_by_another():
    named = set(re.search(r'modules="(.*)"', (ROOT / "utils" / "environment.sh").read_text())[1].split())
    assert named == imported() - {"torch", "numpy", "PIL", "scipy"}  # torchvision and librosa bring these
