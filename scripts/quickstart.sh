#!/usr/bin/env bash
# From nothing to a diagnosed reward model, on a laptop's CPU: installs, builds a toy world, runs
# the five scripts on it and ends with a table. Four to six minutes on 2 cores after installation.
#
#     bash scripts/quickstart.sh [--seed N]
#
# Removes and rebuilds datasets/toy, models/toy-* and reports/toy* (under RMOOD_HOME where that is
# set), nothing else.
# Exit status: 0 all figures in their healthy range, 1 one of them is not, 2 bad input.
set -euo pipefail
fail() { echo "quickstart.sh: $1" >&2; exit 2; }

seed=0
while [ $# -gt 0 ]; do
    case "$1" in
        --seed) seed="${2:-}"; shift $(($# > 1 ? 2 : 1)) ;;
        --seed=*) seed="${1#*=}"; shift ;;
        *) fail "unknown argument $1: usage: bash scripts/quickstart.sh [--seed N]" ;;
    esac
done
[[ "$seed" =~ ^[0-9]+$ ]] || fail "--seed '$seed' is not a whole number: give --seed 1, say"
[ -z "${RMOOD_HOME:-}" ] || RMOOD_HOME="$(cd "$RMOOD_HOME" && pwd)"
cd "$(dirname "$0")/.."
export RMOOD_HOME="${RMOOD_HOME:-$PWD}"
source scripts/environment.sh

# These models are too small for more than 4 threads. GOMP_SPINCOUNT: a waiting thread spins for a
# moment, then sleeps: one that never spins trains 1.3 times slower, one that spins on takes a busy
# core from others.
cores="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores < 4 ? cores : 4))}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

started=$SECONDS
stage() {
    echo
    echo "== [$((SECONDS - started)) s] $*"
    "$@"
}

echo "== toy world with seed $seed, $OMP_NUM_THREADS threads; in $RMOOD_HOME datasets/toy," \
    "models/toy-* and reports/toy* are removed and rebuilt"
rm -rf "$RMOOD_HOME"/datasets/toy
rm -rf "$RMOOD_HOME"/models/toy-{sft,gold,gold-base,rm}
rm -rf "$RMOOD_HOME"/reports/toy{.html,-quality.json,-diagnose.json}

stage python examples/toyworld.py --dataset toy --seed "$seed"
stage python sample.py --dataset toy --max-tokens 56 --seed "$seed"
stage python sample.py --dataset toy --max-tokens 56 --seed "$seed" --split test
stage python label.py --dataset toy
stage python label.py --dataset toy --split test
stage python preprocess.py --dataset toy
stage python preprocess.py --dataset toy --split test
# 4 epochs for an accuracy above 95%; a little label smoothing keeps the margins of pairs that are
# learned so well from outgrowing what the model knows of new ones.
stage python train.py --dataset toy --lr 1e-3 --epochs 4 --label-smoothing 0.05 --batch-size 32 \
    --seed "$seed"
stage python evaluate.py quality --dataset toy --num-samples 0 \
    --json "$RMOOD_HOME/reports/toy-quality.json"
stage python evaluate.py diagnose --dataset toy --json "$RMOOD_HOME/reports/toy-diagnose.json"

echo
echo "== results, seed $seed"
python - "$RMOOD_HOME" $((SECONDS - started)) <<'PYTHON'
import json
import sys
from pathlib import Path

from rmood.diagnosis.measures import training_summary
from rmood.metrics import HEALTHY

home = Path(sys.argv[1])
minutes, seconds = divmod(int(sys.argv[2]), 60)
quality = json.loads((home / "reports/toy-quality.json").read_text())
[match] = json.loads((home / "reports/toy-diagnose.json").read_text())["models"]
log = (home / "models/toy-rm/metrics.jsonl").read_text().splitlines()
training = training_summary([json.loads(line) for line in log])

figures = [  # what, measured, name of its healthy range
    ("first loss (equal rewards: 0.693)", training["first_loss"], "first_loss"),
    ("training accuracy", quality["train_accuracy"], "accuracy"),
    ("match with gold on held-out prompts", match["match"], "match"),
    ("scale of its margins on held-out prompts", match["scale"], "scale"),
]
missed = 0
for what, value, name in figures:
    verdict = ""
    if value not in HEALTHY[name]:
        verdict = "   MISSED"
        missed += 1
    print(f"{what:<48}{value:>8.3f}   healthy: {HEALTHY[name]}{verdict}")

described = [  # what, number; without a healthy range
    ("bits it knows of a held-out pair, of 1", "bits"),
    ("bits it knows of a training pair", "train_bits"),
    ("match that length alone reaches", "length_match"),
    ("spread within a prompt / gold's (described)", "spread_ratio"),
]
for what, name in described:
    print(f"{what:<48}{match[name]:>8.3f}")
print(f"{'its margins; what it learned':<48}{match['scale_word']}; {match['learning_word']}")

preprocessed = json.loads((home / "datasets/toy/rm/rm_implicit.jsonl.run.json").read_text())
train_ties = preprocessed["left_out"].get("equal gold reward", 0)
train_pairs = preprocessed["pairs"] + sum(preprocessed["left_out"].values())
test_share = match["gold_ties"] / match["pairs"]
print(f"{'gold ties, share of the training pairs':<48}{train_ties / train_pairs:>8.1%}")
print(f"{'gold ties, share of the test pairs':<48}{test_share:>8.1%}")
wall_time = f"{minutes} min {seconds:02d} s"
print(f"{'wall time, after installation':<48}{wall_time:>12}")
print(f"report: {home / 'reports/toy.html'}")
sys.exit(missed > 0)
PYTHON
