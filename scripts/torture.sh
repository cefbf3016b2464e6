#!/usr/bin/env bash
# kill -9 at random moments: sample.py, label.py (1 and 2 processes), preprocess.py and train.py (1 and 2 processes), each run
# again until it ends, and every byte compared with a run that was left alone. A hundred kills take three minutes or more.
#
#     bash scripts/torture.sh [--kills N] [--seed N]
#
# Exit status: 0 no difference, 1 a difference, 2 bad input. The count is the last line.
set -euo pipefail
kills=100 seed=0
while [ $# -gt 0 ]; do
    case "$1" in
        --kills) kills="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
        --seed) seed="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
        *) echo "torture.sh: unknown argument $1: usage: bash scripts/torture.sh [--kills N] [--seed N]" >&2; exit 2 ;;
    esac
done
[[ "$kills$seed" =~ ^[0-9]+$ && "$kills" -gt 0 ]] || { echo "torture.sh: --kills '$kills' --seed '$seed': say whole numbers, such as --kills 100" >&2; exit 2; }
cd "$(dirname "$0")/.."
source scripts/environment.sh
export OMP_NUM_THREADS=1 RMOOD_KILLS=$(((kills + 5) / 6)) RMOOD_KILL_SEED="$seed" RMOOD_KILL_LOG="$(mktemp)" # six rows share the kills
status=0
python -m pytest -q -x tests/test_kill.py -k random || status=1
sort "$RMOOD_KILL_LOG" | uniq -c
echo "$(wc -l < "$RMOOD_KILL_LOG") kills, $([ $status = 0 ] && echo "no difference" || echo "A DIFFERENCE, see above")"
rm -f "$RMOOD_KILL_LOG"
exit $status
