"""evaluate.py suspects: which training pairs have their labels wrong?"""

import json

import numpy as np
import pytest
import torch
from conftest import make_pairs

import evaluate
from rmood.diagnosis import suspects
from rmood.diagnosis.suspects import (
    Evidence,
    fit_head,
    mean_margin,
    rows_of,
    running_margins,
)
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.rows import read_json, write_jsonl
from rmood.files.tables import read_pairs
from rmood.loading import load_reward_model
from rmood.trajectories import add_epoch, read_trajectories


def planted(pairs: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, D) differences that a linear head orders, a fifth of them flipped; which; the head."""
    rng = np.random.default_rng(seed)
    head = rng.normal(size=size)
    z = rng.normal(size=(pairs, size))
    z *= np.sign(z @ head)[:, None]
    flipped = rng.random(pairs) < 0.2
    z[flipped] *= -1
    return z, flipped, head


# ---- the head without one of its pairs -----------------------------------------------------------


@pytest.mark.parametrize("pairs, size", [(60, 5), (20, 50)])
def test_leaving_a_pair_out_is_what_a_fit_without_it_gives(pairs, size):
    """The one-step formula against a real fit of all others, with more pairs than D, and fewer."""
    z, _, _ = planted(pairs, size)
    fit = fit_head(z)
    held_out, _, _ = planted(30, size, seed=1)
    influence = fit.influence(held_out)
    without, rises = [], []
    for i in range(pairs):
        others = np.delete(z, i, axis=0)
        alone = suspects._fit(others @ fit.basis, fit.basis, fit.penalty)
        weights = fit.basis @ alone.weights
        without.append(z[i] @ weights)
        before = np.logaddexp(0, -held_out @ fit.basis @ fit.weights).mean()
        rises.append(np.logaddexp(0, -held_out @ weights).mean() - before)
    spread = np.std(without)
    assert np.abs(fit.left_out - without).max() < 0.05 * spread
    assert np.abs(fit.left_out - without).max() < 0.5 * np.abs(fit.margins - without).max()
    assert np.corrcoef(influence, rises)[0, 1] > 0.98


def test_a_pair_s_own_label_does_not_speak_for_it():
    """More directions than pairs: the fit gets all right, also of random labels; left out, half."""
    z = np.random.default_rng(0).normal(size=(60, 100))
    fit = fit_head(z)
    assert (fit.margins > 0).mean() > 0.9
    assert abs((fit.left_out > 0).mean() - 0.5) < 0.2


def test_flipped_pairs_come_first_and_are_harmful():
    z, flipped, head = planted(600, 8)
    fit = fit_head(z)
    evidence = Evidence(None, fit.left_out, None)
    first = evidence.ranking()[: flipped.sum()]
    assert flipped[first].mean() > 0.7  # chance: 0.2
    held_out = np.random.default_rng(1).normal(size=(200, 8))
    held_out *= np.sign(held_out @ head)[:, None]
    influence = fit.influence(held_out)
    assert influence[flipped].mean() < 0 < influence[~flipped].mean()
    assert abs(evidence.against().mean() - 0.2) < 0.05


def test_two_kinds_of_evidence_count_the_same_and_a_missing_number_is_in_the_middle():
    running = np.array([5.0, -5, 0, np.nan])
    left_out = np.array([-1.0, 3, -2, 2])
    # places of running: 1, 0, 1/2, 1/2 (unknown); of left_out: 1/3, 1, 0, 2/3
    assert Evidence(running, left_out, None).ranking().tolist() == [2, 1, 3, 0]
    assert Evidence(None, left_out, None).ranking().tolist() == [2, 0, 3, 1]


# ---- trajectories ------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    write_jsonl(str(tmp_path / "pairs.jsonl"), make_pairs(6))
    return read_pairs(str(tmp_path / "pairs.jsonl"))


def test_epochs_are_added_and_a_resumed_epoch_replaces_its_own(tmp_path, pairs):
    folder = str(tmp_path)
    for epoch in (1, 2, 3):
        add_epoch(folder, epoch, pairs, np.full((6, 2), float(epoch)))
    add_epoch(folder, 2, pairs, np.full((6, 2), 20.0))
    _, rewards = read_trajectories(folder)
    assert rewards[:, 0, 0].tolist() == [1, 20]
    add_epoch(folder, 1, pairs[:3], np.zeros((3, 2)))  # another run
    assert read_trajectories(folder)[1].shape == (1, 3, 2)
    assert read_trajectories(str(tmp_path / "nothing")) is None


def test_margins_are_found_in_a_file_that_was_sorted_or_filtered(tmp_path, pairs):
    rewards = np.arange(12.0).reshape(6, 2) * [1, 0]
    add_epoch(str(tmp_path), 1, pairs, rewards)
    shuffled = [pairs[i] for i in (4, 0, 2)]
    assert running_margins(str(tmp_path), shuffled).tolist() == [[8, 0, 4]]
    swapped = [type(pair)(pair.rejected, pair.chosen) for pair in pairs[:1]]
    assert running_margins(str(tmp_path), swapped) is None
    mixed = running_margins(str(tmp_path), [*swapped, pairs[1]])
    assert np.isnan(mixed[0, 0]) and mixed[0, 1] == 2


def test_each_epoch_counts_the_same_however_wide_its_margins_are():
    """By hand: root mean squares 1 and 10; the pair 2 was seen in the first epoch alone."""
    epochs = np.array([[1, -1, 1.0], [-10, -10, np.nan]])
    assert mean_margin(epochs).tolist() == [0, -1, 1]
    assert np.isnan(mean_margin(np.full((2, 1), np.nan)))[0]


def test_what_a_memorised_model_says_of_its_own_pairs_is_not_used(tmp_path, pairs):
    """Six epochs: the first three count, and no states are read: the model is not even loaded."""
    for epoch in range(1, 7):
        margin = np.array([-1, 1, 1, 1, 1, 1.0]) if epoch < 4 else np.full(6, 9.0)
        rewards = np.stack([margin, 0 * margin], axis=1)
        add_epoch(str(tmp_path), epoch, pairs, rewards)
    found = suspects.find_suspects(str(tmp_path), pairs)
    assert found.left_out is None and found.influence is None
    assert found.running.tolist() == [-1, 1, 1, 1, 1, 1]
    assert found.against().tolist() == [True] + [False] * 5
    shown = suspects.summary(found, pairs, 1)
    assert "not measured: the model was trained for 6 epochs" in shown
    assert "mean over 3 epochs" in shown
    assert "left_out_margin" not in next(suspects.listed(found, pairs, 1))


def test_a_damaged_file_is_told_in_one_line(tmp_path, pairs):
    (tmp_path / "pair_rewards.safetensors").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="not a whole file"):
        running_margins(str(tmp_path), pairs)
    add_epoch(str(tmp_path), 2, pairs, np.zeros((6, 2)))  # and ends no training run
    assert running_margins(str(tmp_path), pairs).shape == (1, 6)


# ---- what is written -----------------------------------------------------------------------------


def test_rows_read_back_as_the_pairs_also_of_groups(tmp_path, pairs):
    path = str(tmp_path / "again.jsonl")
    write_jsonl(path, rows_of(pairs))
    assert read_pairs(path) == pairs
    group = {"messages": pairs[0].chosen[:-1], "index": 3, "pairs": [[1, 2], [1, 3], [3, 2]]}
    for number, reward in enumerate((3.0, 1.0, 2.0), 1):
        group |= {f"response_{number}": f"text {number}", f"reward_{number}": reward}
    write_jsonl(path, [group, group | {"index": 4}])
    known = read_pairs(path)
    kept = [known[0], known[2], known[4]]  # two of the first prompt, one of the second
    write_jsonl(path, rows_of(kept))
    assert read_pairs(path) == kept
    assert [pair.group for pair in read_pairs(path)] == [0, 0, 1]


@pytest.fixture(scope="module")
def model(toy_model_folder, toy_tokenizer, tmp_path_factory) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path_factory.mktemp("models") / "rm")
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    return folder


def test_the_command_lists_planted_flips_and_writes_the_others(
    model, tmp_path, monkeypatch, capsys
):
    """The chosen answer says cat, but in every fifth pair, where chosen and rejected are swapped.

    The states of random weights tell the two words apart.
    """
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    rows = make_pairs(60)
    for row in rows[::5]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    data = str(tmp_path / "pairs.jsonl")
    write_jsonl(data, rows)
    argv = ["suspects", "--model-name", model, "--data-path", data, "--share", "0.2"]
    argv += ["--eval-path", data, "--device", "cpu", "--json", str(tmp_path / "out.json")]
    argv += ["--target-path", str(tmp_path / "list.jsonl")]
    cleaned = ["--cleaned-path", str(tmp_path / "cleaned.jsonl")]
    assert evaluate.main([*argv, *cleaned]) == 0
    found = read_json(str(tmp_path / "out.json"))["suspects"]
    planted_found = sum(number % 5 == 0 for number in found)
    assert len(found) == 12 and planted_found >= 9  # by chance: 2.4
    listed = [json.loads(line) for line in open(tmp_path / "list.jsonl", encoding="utf-8")]
    assert [row["pair"] for row in listed] == found
    assert listed[0]["chosen"] == rows[found[0]]["chosen"] and "influence" in listed[0]
    assert len(read_pairs(str(tmp_path / "cleaned.jsonl"))) == 48
    assert (tmp_path / "cleaned.jsonl.run.json").exists()
    said = capsys.readouterr().out
    assert "left-out margin (by a head" in said and "both are negative, the label looks" in said
    with pytest.raises(UserError, match="is there already: pass --overwrite"):
        evaluate.main([*argv, *cleaned])
    with pytest.raises(UserError, match="is the pairs file itself"):
        evaluate.main([*argv, "--overwrite", "--cleaned-path", data])
