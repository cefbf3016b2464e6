"""evaluate.py readiness: what a policy can learn from a reward model's rewards of its samples."""

import math

import numpy as np
import pytest

import evaluate
from rmood.diagnosis.readiness import FLAT, lineage, readiness, recorded_scale, remarks
from rmood.errors import UserError
from rmood.files.provenance import write_run_file
from rmood.files.rows import read_json, write_json


def test_numbers_by_hand():
    """Prompt 1: rewards 0, 1, 2, 3, std sqrt(5/3). Prompt 2: all 4, equal. s = 2."""
    rewards = np.array([[0, 1, 2, 3], [4, 4, 4, 4.0]])
    n = readiness(rewards, scale=2.0, beta=0.1)
    assert n["spread"] == pytest.approx(math.sqrt((4 * 5 / 3 + 0) / 2))
    assert n["equal_share"] == n["flat_share"] == 0.5
    assert n["gain"] == pytest.approx((2 * 1.5 + 0) / 2)
    assert n["tie_share"] == 6 / 12
    assert n["beta_calibrated"] == 0.2 and n["beta_same"] == 0.05
    lengths = np.array([[10, 10, 10, 70], [5, 5, 5, 5.0]])
    gold = np.array([[1, 5, 0, 2], [1, 2, 3, 6.0]])
    n = readiness(rewards, lengths, gold, noise=0.6)
    assert n["length_gain"] == pytest.approx((math.log(70 / 25) + 0) / 2)
    assert n["length_excess"] == pytest.approx((math.log(70 / 10) + 0) / 2)
    assert n["gold_gain"] == pytest.approx(
        ((2 - 2) + (3 - 3)) / 2
    )  # the pick of equals: their mean
    assert n["gold_gain_share"] == 0
    assert n["resolution"] == (6 + 3) / 12  # margins under 1.2: all ties, and three of 1


def test_flat_means_that_two_responses_hardly_differ():
    """s * std 0.1: a typical margin is sqrt(2) * 0.1, and sigmoid(0.141) = 53.5%."""
    assert 1 / (1 + math.exp(-math.sqrt(2) * FLAT)) == pytest.approx(0.535, abs=1e-3)
    rng = np.random.default_rng(0)
    narrow = 0.01 * rng.normal(size=(200, 8))
    n = readiness(narrow)
    assert n["flat_share"] == 1 and n["equal_share"] == 0
    assert "WARNING: most prompts are flat" in remarks(n)
    calibrated = readiness(narrow, scale=100.0)  # the same order, said clearly: not flat
    assert calibrated["flat_share"] == 0
    assert "flat" not in remarks(calibrated)


def test_an_offset_for_each_prompt_changes_nothing_and_a_factor_is_a_scale():
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(50, 6))
    plain = readiness(rewards, scale=1.0, beta=0.5)
    shifted = readiness(rewards + rng.normal(size=(50, 1)), scale=1.0, beta=0.5)
    halved = readiness(rewards / 2, scale=2.0, beta=0.25)
    for name in ("spread", "spread_low", "gain", "flat_share", "tilt_kl"):
        assert shifted[name] == pytest.approx(plain[name])
        assert halved[name] == pytest.approx(plain[name])
    assert halved["beta_calibrated"] == plain["beta_calibrated"]


def test_the_kl_weight_decides_how_far_the_best_policy_is():
    rewards = np.random.default_rng(2).normal(size=(50, 6))
    far, near = readiness(rewards, beta=0.001), readiness(rewards, beta=100.0)
    assert far["tilt_kl"] == pytest.approx(math.log(6), abs=0.01)
    # for a large beta: variance / (2 beta^2), by the second-order expansion
    assert near["tilt_kl"] == pytest.approx(rewards.var(axis=1).mean() / (2 * 100**2), rel=0.02)


def test_the_interval_of_the_gain_is_paired_by_prompt():
    """Prompts differ by 100, picks gain 1: an unpaired interval would be +-28."""
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=(50, 4))
    gold = 100 * rng.normal(size=(50, 1)) + rewards
    n = readiness(rewards, gold=gold)
    assert n["gold_gain_high"] - n["gold_gain_low"] < 1
    assert n["gold_gain_share"] == pytest.approx(1)


def test_picks_longer_than_gold_s_are_a_warning_and_gold_s_own_length_is_not():
    rng = np.random.default_rng(4)
    lengths = rng.integers(10, 200, size=(300, 8)).astype(float)
    by_length = readiness(lengths, lengths, gold=rng.normal(size=(300, 8)))
    assert "longer than gold's" in remarks(by_length)
    assert "WARNING: no surely higher gold reward" in remarks(by_length)
    both = readiness(lengths, lengths, gold=lengths)
    assert both["length_gain_low"] > 0
    assert "WARNING" not in remarks(both)


# ---- whose reward model is it? -------------------------------------------------------------------


def folder(path, tokenizer: str = "t", start: str = "", **config) -> str:
    path.mkdir()
    write_json(str(path / "config.json"), {"model_type": "qwen3", "hidden_size": 8} | config)
    (path / "tokenizer.json").write_text(tokenizer)
    if start:
        write_json(str(path / "run.json"), {"config": {"model_name": start}})
    return str(path)


def test_another_base_model_or_tokenizer_is_a_warning(tmp_path):
    policy = folder(tmp_path / "sft")
    same = folder(tmp_path / "rm", start=policy)
    assert not lineage(same, policy).is_warning
    other_start = folder(tmp_path / "rm2", start="models/older-sft")
    assert "older-sft" in lineage(other_start, policy).words
    assert not lineage(other_start, policy).is_warning
    tokenizer = folder(tmp_path / "rm3", tokenizer="other")
    assert lineage(tokenizer, policy).is_warning
    larger = folder(tmp_path / "rm4", hidden_size=16)
    assert lineage(larger, policy).is_warning and "hidden_size 16" in lineage(larger, policy).words
    assert "not compared" in lineage("owner/model", policy).words


def test_the_recorded_scale_is_the_last_epoch_s(tmp_path):
    (tmp_path / "rm").mkdir()
    results = {
        "epoch 1": {"eval": {"scale": 3.0}},
        "epoch 2": {"eval": {"scale": 1.5}, "train": {}},
    }
    write_json(str(tmp_path / "rm" / "run.json"), {"results": results})
    assert recorded_scale(str(tmp_path / "rm")) == 1.5
    assert recorded_scale(str(tmp_path)) is None


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """Rewards of label.py, with run files that name the responses, the model and the policy."""
    from dataclasses import make_dataclass

    rng = np.random.default_rng(5)
    paths = {name: str(tmp_path / f"{name}.json") for name in ("responses", "rewards", "gold")}
    write_json(
        paths["responses"],
        [{f"response_{k}": "a" * int(rng.integers(1, 9)) for k in range(1, 5)} for _ in range(30)],
    )
    write_json(paths["rewards"], rng.normal(size=(30, 4)).tolist())
    write_json(paths["gold"], rng.normal(size=(30, 4)).tolist())
    config = make_dataclass("Config", ["model_name"])
    policy = folder(tmp_path / "sft")
    write_run_file(paths["responses"], config(policy), {})
    model = folder(tmp_path / "rm", tokenizer="other")
    write_run_file(paths["rewards"], config(model), {"responses": paths["responses"]})
    return paths


def test_the_command_finds_what_the_run_files_name(samples, tmp_path, capsys):
    out = str(tmp_path / "out.json")
    argv = ["readiness", "--rewards-path", samples["rewards"], "--gold-path", samples["gold"]]
    assert evaluate.main([*argv, "--json", out]) == 0
    shown = capsys.readouterr().out
    assert "30 prompts, 4 responses each" in shown
    assert "log length of the picks" in shown and "WARNING: reward model and policy" in shown
    numbers = read_json(out)
    assert numbers["lineage"]["is_warning"] and numbers["scale"] == 1
    assert {"spread", "flat_share", "gold_gain_low", "length_gain"} <= numbers.keys()


def test_bad_input_is_told_in_one_line(samples, tmp_path):
    with pytest.raises(UserError, match="pass --rewards-path"):
        evaluate.main(["readiness"])
    write_json(str(tmp_path / "two.json"), [[1, 2]] * 3)
    with pytest.raises(UserError, match="2 responses a prompt: sample at least 4"):
        evaluate.main(["readiness", "--rewards-path", str(tmp_path / "two.json")])
    write_json(str(tmp_path / "few.json"), [{"response_1": "a"}] * 30)
    with pytest.raises(UserError):
        evaluate.main(
            ["readiness", "--rewards-path", samples["rewards"], "--responses-path"]
            + [str(tmp_path / "few.json")]
        )
