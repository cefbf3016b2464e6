#!/usr/bin/env bash
# Installs what is missing and runs the tests. Arguments go to pytest: bash scripts/test.sh -k schedule
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # several processes share the cores in some tests
echo "== tests"
python -m pytest -q --durations=10 tests "$@"
