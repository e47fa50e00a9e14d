#!/usr/bin/env bash
# Set up .venv, unless the current Python has the packages, and run the style checks and the tests:
#   bash test.sh [pytest arguments]
set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# who may import whom: pyproject.toml
"$PYTHON" -c "from importlinter.cli import lint_imports_command as run; run()" --no-logo --no-cache
# a process per core, with a test file at a time and one thread
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadscope "$@"
