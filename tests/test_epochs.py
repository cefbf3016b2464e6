"""evaluate.py epochs: were the epochs too many?"""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_pairs
from training import write_pairs

import evaluate
from rmood.diagnosis.epochs import too_many
from rmood.errors import UserError
from rmood.export import discard_kept_models, kept_models, save_reward_model
from rmood.files.provenance import sha256
from rmood.files.rows import write_json
from rmood.loading import load_reward_model

NAMES = ["epoch 1", "epoch 2", "epoch 3"]


def losses_of(means: list[float], pairs: int, noise: float, seed: int = 0) -> np.ndarray:
    """(E, n) losses with these means: a pair's own part is common to all epochs."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.4, pairs)
    return np.array([mean + shared + rng.normal(0, noise, pairs) for mean in means])


def answer(means: list[float], pairs: int = 400, noise: float = 0.1) -> str:
    return too_many(NAMES, losses_of(means, pairs, noise), np.arange(pairs))[1]


def test_the_answer_is_yes_no_or_cannot_tell():
    assert answer([0.62, 0.67, 0.84]).startswith("yes: epoch 1 is better than epoch 3 by 0.2")
    assert answer([0.7, 0.65, 0.6]) == "no: epoch 3, the last, is better than all others"
    words = answer([0.7, 0.6, 0.6])
    assert words == "cannot tell epoch 2 and epoch 3 apart with 400 pairs"
    assert answer([0.6, 0.6, 0.7]).endswith(" cannot be told from it")
    assert answer([0.6, 0.62, 0.63], pairs=20, noise=0.4).startswith("cannot tell")


def test_pairs_of_one_prompt_count_as_one_draw():
    losses = losses_of([0.60, 0.60, 0.65], 40, 0.1)
    repeated = np.repeat(losses, 25, axis=1)
    one_each, _ = too_many(NAMES, losses, np.arange(40))
    same, _ = too_many(NAMES, repeated, np.repeat(np.arange(40), 25))
    for a, b in zip(one_each, same, strict=True):
        assert (b.low, b.high) == pytest.approx((a.low, a.high))


def test_equal_epochs_are_rarely_called_different():
    wrong = 0
    for seed in range(200):
        _, words = too_many(NAMES, losses_of([0.6] * 3, 200, 0.3, seed), np.arange(200))
        wrong += not words.startswith("cannot tell")
    assert wrong <= 14


# ---- on models -----------------------------------------------------------------------------------


@pytest.fixture
def kept(toy_model_folder, toy_tokenizer, tmp_path):
    """A run's folder with three epochs: a head that grows, so that only the scale differs."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(30))
    held_out = write_pairs(tmp_path / "held-out.jsonl", make_pairs(40)[30:])
    run = {
        "config": {"data_path": pairs, "eval_path": [f"cats={held_out}"], "seed": 0},
        "inputs": {"pairs": {"path": pairs, "sha256": sha256(pairs)}},
        "train_sample": [3, 5, 8],
        "pairs": 30,
        "step": 12,
    }
    model = load_reward_model(toy_model_folder, seed=0)
    folder = tmp_path / "rm"
    for epoch in (1, 2, 3):
        with torch.no_grad():
            model.score.weight.mul_(4.0)
        for below in ("", f"epoch-{epoch}"):
            facts = {"run.json": json.dumps(run | {"step": 4 * epoch})}
            save_reward_model(str(folder / below), model, toy_tokenizer, torch.float32, facts)
    return folder


def test_kept_models_are_found_in_order_and_discarded_by_name(tmp_path):
    for name in ("epoch-2", "epoch-10", "best", "epoch-notes", "epoch-3"):
        (tmp_path / name).mkdir()
    for name in ("epoch-2", "epoch-10", "best"):
        (tmp_path / name / "config.json").write_text("{}")
    assert [path.name for path in kept_models(str(tmp_path))] == ["epoch-2", "epoch-10", "best"]
    discard_kept_models(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-3", "epoch-notes"]


def test_the_kept_models_are_compared_on_the_run_s_own_pairs(kept, tmp_path, capsys):
    words = ["epochs", "--model-name", str(kept), "--json", str(tmp_path / "out.json")]
    assert evaluate.main([*words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "too many epochs, by bits? cannot tell epoch 1 and epoch 2 and epoch 3 apart" in out
    numbers = json.loads((tmp_path / "out.json").read_text())
    rows = numbers["epochs"]
    assert [(row["name"], row["step"]) for row in rows] == list(zip(NAMES, (4, 8, 12)))
    assert [row["eval"]["scale_pairs"] for row in rows] == [10] * 3
    assert [row["train"]["scale_pairs"] for row in rows] == [3] * 3  # the run's own sample
    assert rows[1]["eval"]["right"] == rows[0]["eval"]["right"]
    assert rows[1]["eval"]["std_within"] == pytest.approx(4 * rows[0]["eval"]["std_within"])
    assert rows[0]["behind_bits"] == pytest.approx(0, abs=1e-4)
    assert "learning curve" not in out  # the folder has no metrics.jsonl


def test_what_is_missing_is_said(kept, tmp_path, capsys):
    words = ["epochs", "--model-name", str(kept), "--device", "cpu"]
    run = json.loads((kept / "run.json").read_text())
    run["config"]["data_path"] = str(tmp_path / "gone.jsonl")
    write_json(str(kept / "run.json"), run | {"step": 14})  # a model that is no epoch's own
    shutil.rmtree(kept / "epoch-3")
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    assert "not measured: its training pairs" in out
    assert "the last" in out
    run["config"]["eval_path"] = []
    write_json(str(kept / "run.json"), run)
    with pytest.raises(UserError, match="held out no pairs: pass --eval-path FILE"):
        evaluate.main(words)
    shutil.rmtree(kept / "epoch-2")
    write_json(str(kept / "run.json"), run | {"step": 4})
    with pytest.raises(UserError, match="1 models of epochs are kept below it, and 2 are needed"):
        evaluate.main(words)
