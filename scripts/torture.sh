#!/usr/bin/env bash
# kill -9 at random moments: sample.py, label.py (1 and 2 processes), preprocess.py and train.py
# (1 and 2 processes), each run again until it ends, and every byte compared with a run that was not
# killed. A hundred kills take three minutes or more.
#
#     bash scripts/torture.sh [--kills N] [--seed N]
#
# Exit status: 0 no difference, 1 a difference, 2 bad input. The last line has the number of kills.
set -euo pipefail
fail() { echo "torture.sh: $1" >&2; exit 2; }

kills=100
seed=0
while [ $# -gt 0 ]; do
    case "$1" in
        --kills) kills="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
        --seed) seed="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
        *) fail "unknown argument $1: usage: bash scripts/torture.sh [--kills N] [--seed N]" ;;
    esac
done
if ! [[ "$kills" =~ ^[0-9]+$ && "$seed" =~ ^[0-9]+$ && "$kills" -gt 0 ]]; then
    fail "--kills '$kills' --seed '$seed': give whole numbers, such as --kills 100"
fi
cd "$(dirname "$0")/.."
RMOOD_REQUIREMENTS=requirements-dev.txt
source scripts/environment.sh

export OMP_NUM_THREADS=1
export RMOOD_KILLS=$(((kills + 5) / 6)) # six cases share the kills
export RMOOD_KILL_SEED="$seed"
RMOOD_KILL_LOG="$(mktemp)"
export RMOOD_KILL_LOG
status=0
python -m pytest -q -x tests/test_kill.py -k random || status=1
sort "$RMOOD_KILL_LOG" | uniq -c
result="no difference"
[ $status = 0 ] || result="A DIFFERENCE, see above"
echo "$(wc -l < "$RMOOD_KILL_LOG") kills, $result"
rm -f "$RMOOD_KILL_LOG"
exit $status
