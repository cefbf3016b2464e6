"""What is said of an epoch, and when a run stops early: from made-up rewards, without a model."""

import json
import math

import numpy as np
import pytest

from rmood.diagnosis.measures import finite
from rmood.errors import UserError
from rmood.evaluation import (
    describe,
    held_out_files,
    losses_for,
    pair_numbers,
    remarks,
    size_of_sample,
    update_best,
    why_stopped,
)


def rewards_of(margin: np.ndarray) -> np.ndarray:
    """(n,) margins towards gold -> (n, 2) rewards, chosen first."""
    return np.stack([margin, np.zeros_like(margin)], axis=1)


def calibrated(n: int, std: float, seed: int = 0, times: float = 1.0) -> dict:
    """Numbers of n pairs whose margins are log-odds times a factor."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, std, n)
    is_right = rng.random(n) < 1 / (1 + np.exp(-margin))
    return pair_numbers(rewards_of(np.where(is_right, margin, -margin) * times), np.arange(n), None)


def warnings(parts: dict, is_last: bool = True, asked: str = "") -> list[str]:
    return [words for words in remarks(parts, is_last, asked) if words.startswith("WARNING")]


# ---- held-out sets, and the sample ---------------------------------------------------------------


def test_a_plain_path_is_eval_and_a_named_one_has_its_name(tmp_path, monkeypatch):
    assert held_out_files([]) == held_out_files([""]) == {}
    assert held_out_files(["a.jsonl", "hh=b.jsonl"]) == {"eval": "a.jsonl", "eval_hh": "b.jsonl"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.jsonl").write_text("")
    assert held_out_files(["lr=1.jsonl"]) == {"eval": "lr=1.jsonl"}  # a file with such a name


@pytest.mark.parametrize("words", [["a", "b"], ["x=a", "x=b"], ["x_y=a"], ["=a", "b=c"]])
def test_two_sets_of_one_name_and_odd_names_are_refused(words):
    with pytest.raises(UserError, match="--eval-path"):
        held_out_files(words)


def test_the_sample_costs_at_most_a_twelfth_of_an_epoch_where_pairs_are_many():
    """Scoring is the forward pass, about a third of training on a pair."""
    assert size_of_sample(20_000, 500) == 500
    for pairs in (400, 724, 2_000, 20_000):
        assert size_of_sample(pairs, 500) / 3 / pairs <= 1 / 12 + 1e-9
    assert size_of_sample(44, 500) == 44  # so few that intervals matter more
    assert size_of_sample(20_000, 0) == size_of_sample(44, 0) == 0


# ---- numbers -------------------------------------------------------------------------------------


def test_rewards_that_are_not_finite_are_left_out_and_counted():
    margin = np.array([1.0, -1.0, math.nan, math.inf, 2.0])
    numbers = pair_numbers(rewards_of(margin), np.arange(5), None)
    assert numbers["not_finite"] == 2
    assert numbers["right"] == pytest.approx(2 / 3)
    assert "2 more pairs are not finite" in describe(numbers)
    none = pair_numbers(rewards_of(margin[2:4]), np.arange(2), None)
    assert none == {"not_finite": 2}
    assert describe(none) == "none of 2 pairs has finite rewards"


def test_what_is_logged_is_json_that_any_program_reads():
    """All pairs right: the scale is infinite, which JSON does not have."""
    numbers = pair_numbers(rewards_of(np.linspace(0.5, 2, 50)), np.arange(50), None)
    assert numbers["scale"] == math.inf
    text = json.dumps(finite(numbers), allow_nan=False)
    assert json.loads(text)["scale"] is None
    assert json.loads(text)["bits"] == 1.0
    assert "scale over " in describe(numbers)


# ---- words and warnings --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pairs", [60, 500])
def test_a_healthy_run_warns_of_nothing(seed, pairs):
    """Calibrated on held-out pairs, and some of what it knows of training pairs is memorised."""
    parts = {"train": calibrated(pairs, 3.0, seed), "eval": calibrated(pairs, 2.5, seed + 100)}
    assert warnings(parts) == []
    assert warnings({"eval": parts["eval"]}) == warnings({"train": parts["train"]}) == []


def test_memorising_is_a_warning_and_so_is_learning_nothing():
    nothing = calibrated(300, 0.05)
    well = calibrated(300, 8.0)
    [memorised] = warnings({"train": well, "eval": nothing})
    assert memorised.startswith("WARNING memorised: 0.75 (0.68 to 0.83) bits")
    [learned_nothing] = warnings({"train": calibrated(2000, 0.05), "eval": nothing})
    assert learned_nothing.startswith("WARNING learned next to nothing")
    assert warnings({"train": calibrated(2000, 0.05), "eval": nothing}, is_last=False) == []


def test_held_out_pairs_ranked_the_other_way_are_a_warning_only_beyond_noise():
    flipped = calibrated(300, 2.0, times=-1.0)
    [words] = warnings({"eval": flipped})
    assert "ranked the other way" in words
    few = pair_numbers(rewards_of(np.full(10, -1.0)), np.arange(10), None)
    assert warnings({"eval": few}) == []  # ten pairs cannot say it


def test_a_warning_needs_the_whole_interval_not_the_value():
    """60 pairs: 36 right know 0.03 bits and perhaps 0.1; 28 right are perhaps half."""

    def numbers(right: int) -> dict:
        margin = np.where(np.arange(60) < right, 1.0, -1.0)
        return pair_numbers(rewards_of(margin), np.arange(60), None)

    assert numbers(36)["bits"] < 0.05 < numbers(36)["bits_high"]
    assert numbers(28)["right"] < 0.5 < numbers(28)["right_high"]
    assert warnings({"train": numbers(36)}) == warnings({"eval": numbers(28)}) == []


def test_a_scale_is_said_once_at_the_end_and_is_no_warning():
    """It does not touch the order, and one factor mends it."""
    wide = {"eval": calibrated(1000, 3.0, times=3.0)}
    assert warnings(wide) == []
    assert any("overconfident: its margins times 0.3" in words for words in remarks(wide, True, ""))
    assert remarks(wide, False, "") == []
    narrow = {"eval": calibrated(1000, 3.0, times=0.2)}
    [words] = remarks(narrow, True, "--label-temperature")
    assert words.startswith("squeezed, as --label-temperature ask for")


# ---- the best evaluation -------------------------------------------------------------------------


def test_an_improvement_counts_only_beyond_noise_and_small_ones_add_up():
    rng = np.random.default_rng(0)
    prompts = np.arange(400)
    first = rng.uniform(0.4, 1.0, 400)
    best = update_best({}, np.zeros(400), first, prompts, step=10)
    assert best == {"step": 10, "value": first.mean(), "reference_step": 10, "waited": 0}
    reference = first
    for step, gain in ((20, 0.004), (30, 0.008), (40, 0.012)):  # noise of 0.1 / sqrt(400) = 0.005
        own = rng.normal(0, 0.1, 400)
        now = first - gain + own - own.mean()
        best = update_best(best, reference, now, prompts, step)
        if best["reference_step"] == step:
            reference = now
        assert best["gain_low"] < best["gain"] < best["gain_high"]
    assert best["reference_step"] == 40  # 0.004 alone was not beyond noise, 0.012 was
    assert best["waited"] == 0
    assert best["step"] == 40


def test_the_lowest_value_is_the_best_also_within_noise():
    prompts = np.arange(50)
    best = update_best({}, np.zeros(50), np.full(50, 0.6), prompts, step=1)
    noisy = np.where(np.arange(50) % 2, 0.1, 1.0)  # mean 0.55, far from certain
    best = update_best(best, np.full(50, 0.6), noisy, prompts, step=2)
    assert (best["step"], best["reference_step"], best["waited"]) == (2, 1, 1)


def test_the_run_stops_after_so_many_evaluations_without_an_improvement_and_says_why():
    prompts = np.arange(100)
    flat = np.full(100, 0.5)
    best = {}
    reasons = []
    for step in (10, 20, 30):
        best = update_best(best, flat, flat + (step > 10) * 0.1, prompts, step)
        reasons.append(why_stopped(best, "eval_loss", 2, step))
    assert reasons[:2] == ["", ""]
    assert reasons[2].startswith("stopped at step 30: none of the 2 evaluations since step 10 was")
    assert "saved -0.100 nats (95%: -0.100 to -0.100)" in reasons[2]
    assert why_stopped(best, "eval_loss", 0, 30) == ""


def test_bits_compare_knowledge_whatever_the_scale():
    rng = np.random.default_rng(0)
    margin = rng.normal(1, 2, 200)
    prompts = np.arange(200)
    one = losses_for("eval_bits", rewards_of(margin), prompts)
    ten_times = losses_for("eval_bits", rewards_of(10 * margin), prompts)
    assert ten_times == pytest.approx(one, abs=1e-6)
    assert losses_for("eval_loss", rewards_of(10 * margin), prompts).mean() > one.mean() + 0.1
    broken = losses_for("eval_loss", rewards_of(np.array([math.nan, 1.0])), np.arange(2))
    assert broken[0] == pytest.approx(math.log(2))
