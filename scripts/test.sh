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
cores="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" # nproc reads it
workers="${RMOOD_TEST_WORKERS:-$cores}"
workers=$((workers < 4 ? workers : 4)) # some tests start processes of their own
echo "== tests, $workers files at a time (RMOOD_TEST_WORKERS)"
python -m pytest -q --durations=10 --numprocesses "$workers" --dist loadfile tests "$@"
