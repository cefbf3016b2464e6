"""train.py computes what the naive file does, step by step."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, make_pairs
from test_train import losses, train_here

from rmood.files.rows import write_jsonl


def minimal(model: str, pairs: str, output, *flags: str) -> list[float]:
    """The losses that examples/minimal.py prints."""
    paths = ["--model", model, "--data", pairs, "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "examples/minimal.py", *paths, *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [float(loss) for loss in re.findall(r"^step \d+ loss (\S+)", done.stdout, re.M)]


def test_train_has_the_losses_of_the_minimal_file(any_model_folder, tmp_path, monkeypatch):
    """Packed, sharded and logged, the loop is still the naive one: every step's loss agrees."""
    pairs = str(tmp_path / "pairs.jsonl")
    write_jsonl(pairs, make_pairs(44))
    settings = ["--lr", "3e-3", "--epochs", "2", "--batch-size", "8", "--seed", "3"]
    naive = minimal(any_model_folder, pairs, tmp_path / "naive", *settings)
    metrics = train_here(monkeypatch, any_model_folder, pairs, tmp_path / "rm", *settings)
    assert len(naive) == 12 and naive[-1] < 0.5 * naive[0]
    assert losses(metrics) == pytest.approx(naive, abs=1e-5)


def test_the_minimal_file_saves_a_reward_model_that_scores(toy_model_folder, tmp_path):
    from rmood.scoring import load_scorer

    pairs = str(tmp_path / "pairs.jsonl")
    rows = make_pairs(16)
    write_jsonl(pairs, rows)
    minimal(toy_model_folder, pairs, tmp_path / "naive", "--lr", "3e-3", "--epochs", "4")
    scorer = load_scorer(str(tmp_path / "naive"))
    rewards = scorer.score([[row["chosen"], row["rejected"]] for row in rows])
    assert sum(chosen > rejected for chosen, rejected in rewards) >= 15


def test_the_minimal_file_stays_minimal():
    lines = (REPOSITORY / "examples" / "minimal.py").read_text().splitlines()
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert len(lines) <= 130
    assert len(imports) > 5 and not any("rmood" in line for line in imports)
