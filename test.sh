#!/usr/bin/env bash
# Set up .venv and run the checks of style and the tests: bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
make_environment requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$(dirname "$PYTHON")/lint-imports" --no-logo --no-cache # who may import whom: pyproject.toml
# a process per core, with a test file at a time and one thread
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadscope "$@"
