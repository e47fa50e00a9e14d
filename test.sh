#!/usr/bin/env bash
# Run the style checks and the tests. If the current Python does not have the packages, set up .venv first:
#   bash test.sh [pytest arguments]
set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# the allowed imports between folders, from pyproject.toml
"$PYTHON" -c "from importlinter.cli import lint_imports_command as run; run()" --no-logo --no-cache
# one process per core; each runs one test file at a time, with one thread
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadscope "$@"
