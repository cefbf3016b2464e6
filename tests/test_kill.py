"""kill -9 at random moments, resume, and compare with a run that was left alone. RMOOD_KILLS: how many (default 2)."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY, make_pairs

from rmood import records

KILLS = int(os.environ.get("RMOOD_KILLS", 2))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_training_ends_with_the_same_bytes(world_size, toy_model_folder, tmp_path):
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), make_pairs(120))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "train.py"] if world_size > 1 else [sys.executable, "train.py"]
    command += ["--model-name", toy_model_folder, "--data-path", str(tmp_path / "pairs.jsonl"), "--lr", "3e-3", "--epochs", "5", "--batch-size", "4", "--tokens-per-pass", "128", "--save-every", "7", "--keep", "2", "--resume", "auto", "--eval-share", "0.1", "--device", "cpu"]

    def start(output) -> subprocess.Popen:
        return subprocess.Popen([*command, "--output-dir", str(output)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def finish(process: subprocess.Popen) -> None:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said[-2000:]

    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(world_size)
    finish(start(whole))
    for _ in range(KILLS):
        process = start(killed)
        lines = steps(killed)
        while process.poll() is None and steps(killed) == lines:  # let each attempt train, or start-up alone would be killed
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(killed))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(killed) == metrics(whole)


def steps(output) -> int:
    path = output / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def metrics(output) -> list[dict]:
    """Without the timing, which alone differs from run to run."""
    return [{name: value for name, value in json.loads(line).items() if not name.endswith("_per_s")} for line in (output / "metrics.jsonl").read_text().splitlines()]
