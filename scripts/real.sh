#!/usr/bin/env bash
# The whole pipeline on real language, on a laptop's CPU: fetches SmolLM2-135M-Instruct and
# AlpacaEval (15 models' responses, a GPT-4 judge's log-odds as gold), trains a reward model on
# them, and ends with a table: what does it know beyond the length of a response? 77 minutes
# on one of two busy cores after installation; docs/real.md explains each stage and the table.
#
#     bash scripts/real.sh [--from-path FOLDER] [--train-prompts N]
#
# --from-path FOLDER: AlpacaEval from there instead of from GitHub (examples/alpacaeval.py).
# --train-prompts N: train on so many of the 685 prompts; training takes half of the time.
# Interrupted, the same command continues: a stage whose result is there is skipped, and says so.
# Writes datasets/real, models/smollm2-135m-instruct, models/real-rm and reports/real* (under
# RMOOD_HOME where that is set). To begin again, remove datasets/real, models/real-rm and
# reports/real*.
# Exit status: 0 better than length alone, 1 that is not shown, 2 bad input or a failed stage.
set -euo pipefail
fail() { echo "real.sh: $1" >&2; exit 2; }

usage="usage: bash scripts/real.sh [--from-path FOLDER] [--train-prompts N]"
alpacaeval=()
while [ $# -gt 0 ]; do
    flag="${1%%=*}"
    case "$flag" in
        --from-path | --train-prompts) ;;
        *) fail "unknown argument $flag: $usage" ;;
    esac
    case "$1" in
        *=*) value="${1#*=}"; shift ;;
        *) [ $# -gt 1 ] || fail "$flag needs a value: $usage"; value="$2"; shift 2 ;;
    esac
    case "$flag" in
        --from-path)
            [ -d "$value" ] || fail "--from-path $value: no such folder: check it, or leave it out"
            alpacaeval+=(--from-path "$(cd "$value" && pwd)")
            ;;
        --train-prompts)
            [[ "$value" =~ ^[0-9]+$ ]] || fail "--train-prompts '$value' is not a whole number"
            alpacaeval+=(--train-prompts "$value")
            ;;
    esac
done
[ -z "${RMOOD_HOME:-}" ] || RMOOD_HOME="$(cd "$RMOOD_HOME" && pwd)"
cd "$(dirname "$0")/.."
export RMOOD_HOME="${RMOOD_HOME:-$PWD}"
source scripts/environment.sh

cores="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores < 8 ? cores : 8))}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}" # as in quickstart.sh

# bf16 compute only where the CPU multiplies in bf16: elsewhere it is slower than float32.
precision=float32
dtype=float32
if grep -q -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
    precision=mixed
    dtype=bf16
fi

data="$RMOOD_HOME/datasets/real"
reports="$RMOOD_HOME/reports"
smollm2="$RMOOD_HOME/models/smollm2-135m-instruct"
proxy="$RMOOD_HOME/models/real-rm"
times="$reports/real-seconds.txt"
longest=512 # tokens of a conversation
# The 15 responses to a test prompt are scored in one pass.
scoring=(--dataset real --dtype "$dtype" --max-length "$longest" --tokens-per-pass 8192)
mkdir -p "$reports"

# stage RESULT COMMAND...: run the command, unless its result is there
stage() {
    local result="$1" began=$SECONDS
    shift
    echo
    if [ -e "$result" ]; then
        echo "== done before: $result"
        return
    fi
    echo "== [$((SECONDS / 60)) min] $*"
    "$@" || fail "this stage failed, see above; the same command continues with it"
    local name="$2"
    [ "$name" != evaluate.py ] || name="$name $3"
    printf '%6d s  %-22s %s\n' $((SECONDS - began)) "$name" "${result##*/}" >>"$times"
}

echo "== real language: $OMP_NUM_THREADS threads, $precision; in $RMOOD_HOME"
stage "$smollm2/source.json" python examples/smollm2.py
stage "$data/rm/test_reward_length.json" python examples/alpacaeval.py --dataset real \
    --test-prompts 120 --responses 4 "${alpacaeval[@]}"

# Stage 1 on SmolLM2 itself: what its own responses look like to the proxy, at the end.
stage "$data/rm/own_sft.json" python sample.py --dataset real --split test \
    --model-name "$smollm2" --prompts-path "$data/test/some_prompts.json" \
    --target-path "$data/rm/own_sft.json" --num-responses 4 --max-tokens 160 --dtype "$dtype" \
    --batch-size 8

stage "$data/rm/rm_implicit.jsonl" python preprocess.py --dataset real
stage "$data/rm/test_implicit.jsonl" python preprocess.py --dataset real --split test

# A group is one prompt with its 4 responses: each is computed once, for up to 6 pairs.
stage "$proxy/config.json" python train.py --dataset real --model-name "$smollm2" --resume auto \
    --precision "$precision" --lr 1e-4 --epochs 1 --batch-size 8 --save-every 10 \
    --max-length "$longest" --tokens-per-pass 4096

stage "$data/rm/test_reward_rm.json" python label.py "${scoring[@]}" --split test \
    --model-name "$proxy" --target-path "$data/rm/test_reward_rm.json"
stage "$data/rm/own_reward_rm.json" python label.py "${scoring[@]}" --split test \
    --model-name "$proxy" --prompts-path "$data/test/some_prompts.json" \
    --responses-path "$data/rm/own_sft.json" --target-path "$data/rm/own_reward_rm.json"
stage "$reports/real-quality.json" python evaluate.py quality "${scoring[@]}" \
    --num-samples 100 --json "$reports/real-quality.json"
stage "$reports/real-match.json" python evaluate.py match --dataset real \
    --rewards-path "$data/rm/test_reward_rm.json" --json "$reports/real-match.json"
stage "$reports/real-bon.json" python evaluate.py bon --dataset real \
    --rewards-path "$data/rm/test_reward_rm.json" "$data/rm/test_reward_length.json" \
    --report "$reports/real-best-of-n.html" --json "$reports/real-bon.json"
stage "$reports/real-diagnose.json" python evaluate.py diagnose "${scoring[@]}" \
    --rewards-path "$data/rm/test_reward_rm.json" --num-samples 40 \
    --json "$reports/real-diagnose.json"

echo
echo "== results"
status=0
python examples/real_table.py --dataset real || status=$?
echo
echo "seconds of each stage (the first run of it):"
cat "$times"
echo "reports: $reports/real.html, $reports/real-best-of-n.html"
exit $status
