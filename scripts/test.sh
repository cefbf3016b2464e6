#!/usr/bin/env bash
# Installs what is missing, checks the format of the code and runs the tests. Arguments go to
# pytest: bash scripts/test.sh -k schedule
set -euo pipefail
cd "$(dirname "$0")/.."
RMOOD_REQUIREMENTS=requirements-dev.txt
source scripts/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # several processes share the cores in some tests
echo "== format and lint (to fix: ruff format . && ruff check --fix .)"
ruff format --check .
ruff check .
echo "== tests"
python -m pytest -q --durations=10 tests "$@"
