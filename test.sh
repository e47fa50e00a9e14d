#!/usr/bin/env bash
# Set up .venv and run the checks of style and the tests: bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
make_environment
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest "$@"
