"""Scale and knowledge of a proxy's margins: numbers one can check by hand, and coverage."""

import math

import numpy as np
import pytest
from conftest import DATA, needs_data

from rmood.diagnosis.scale import (
    Estimate,
    clustered_error,
    fit_scale,
    knowledge,
    learning_word,
    loss_at,
    mean,
    scale_numbers,
    scale_word,
    share,
    towards_gold,
)
from rmood.files.tables import read_rewards
from rmood.metrics import wilson


def calibrated(n: int, std: float, seed: int = 0) -> np.ndarray:
    """(n,) margins towards the truth, of a proxy whose margins are log-odds."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, std, n)
    is_right = rng.random(n) < 1 / (1 + np.exp(-margin))
    return np.where(is_right, margin, -margin)


# ---- what is compared ----------------------------------------------------------------------------


def test_only_the_sign_of_gold_counts_and_its_ties_are_left_out():
    proxy = np.array([[2.0, 1.0], [1.0, 3.0], [0.0, 5.0]])
    gold = np.array([[9.0, 1.0], [7.0, 0.5], [4.0, 4.0]])
    x, prompt = towards_gold(proxy, gold)
    assert x.tolist() == [1, -2] and prompt.tolist() == [0, 1]
    again, _ = towards_gold(proxy, gold * 1000 - 5)
    assert again.tolist() == x.tolist()


@pytest.mark.parametrize("change", ["gold unit", "order of responses", "offset by prompt"])
def test_the_numbers_do_not_depend_on(change):
    rng = np.random.default_rng(1)
    gold = rng.normal(size=(60, 3))
    proxy = gold + rng.normal(size=(60, 3))
    before = scale_numbers(*towards_gold(proxy, gold))
    if change == "gold unit":
        gold = gold * 10
    elif change == "order of responses":
        gold, proxy = gold[:, ::-1], proxy[:, ::-1]
    else:
        proxy = proxy + rng.normal(size=(60, 1))
    after = scale_numbers(*towards_gold(proxy, gold))
    words = before.pop("scale_word"), after.pop("scale_word")
    assert words[0] == words[1] and after == pytest.approx(before)


def test_a_head_times_k_has_a_scale_over_k_and_the_same_bits():
    x = calibrated(500, 2.0)
    prompt = np.arange(500)
    once = scale_numbers(x, prompt)
    wide = scale_numbers(4 * x, prompt)
    for name in ("scale", "scale_low", "scale_high"):
        assert wide[name] == pytest.approx(once[name] / 4)
    for name in ("bits", "bits_low", "bits_high", "right", "loss_scaled"):
        assert wide[name] == pytest.approx(once[name])
    assert (once["scale_word"], wide["scale_word"]) == ("calibrated", "overconfident")


# ---- the scale -----------------------------------------------------------------------------------


def test_three_of_four_right_by_one_margin_means_log_3():
    """All |x| = m: the best probability is 3/4, so s m = log 3. By hand: the interval of a logit.

    se(logit p) = 1 / sqrt(n p (1 - p)), but for P / (P - 1) of the sandwich.
    """
    x = np.repeat([0.5, -0.5], [300, 100])
    found = fit_scale(x, np.arange(400))
    assert found.value == pytest.approx(2 * math.log(3))
    half = 1.959964 * 2 / math.sqrt(400 * 0.75 * 0.25) * math.sqrt(400 / 399)
    assert found.high - found.value == pytest.approx(half, rel=1e-6)
    bits = knowledge(x, np.arange(400), found.value)
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert bits.value == pytest.approx(1 - entropy)


def test_it_is_the_minimum_of_the_loss():
    x = calibrated(300, 1.5, seed=3) * 2.5
    best = fit_scale(x, np.arange(300)).value
    losses = [loss_at(factor * best, x).mean() for factor in (0.99, 1.0, 1.01)]
    assert min(losses) == losses[1]


@pytest.mark.parametrize("pairs_of_prompt", [1, 6])
@pytest.mark.parametrize("truth", [0.5, 1.0, 2.0])
def test_95_of_100_intervals_hold_the_truth(pairs_of_prompt, truth):
    """Also where all pairs of a prompt are copies of one: then n is the number of prompts."""
    held = 0
    for seed in range(200):
        x = np.repeat(calibrated(200, 2.0, seed), pairs_of_prompt) / truth
        found = fit_scale(x, np.repeat(np.arange(200), pairs_of_prompt))
        held += found.low <= truth <= found.high
    assert 180 <= held <= 199  # binomial: 190 +- 3 standard deviations of 3.1


def test_all_right_has_no_largest_scale_but_a_least_one():
    """20 right pairs of margin 1: at s, their loss adds up to 20 log(1 + exp(-s)) = 1.92."""
    found = fit_scale(np.ones(20), np.arange(20))
    assert math.isinf(found.value) and math.isinf(found.high)
    assert 20 * math.log1p(math.exp(-found.low)) == pytest.approx(1.959964**2 / 2)
    assert knowledge(np.ones(20), np.arange(20), found.value).value == 1
    wrong = fit_scale(-np.ones(20), np.arange(20))
    assert (wrong.value, wrong.high) == (-math.inf, pytest.approx(-found.low))
    copies = fit_scale(np.ones(60), np.repeat(np.arange(20), 3))
    assert copies.low == pytest.approx(found.low)


def test_no_margin_at_all_has_no_scale_and_knows_nothing():
    found = scale_numbers(np.zeros(30), np.arange(30))
    assert math.isnan(found["scale"]) and found["scale_word"] == "cannot tell"
    assert found["bits"] == 0 and found["loss"] == pytest.approx(math.log(2))


# ---- intervals clustered by prompt ---------------------------------------------------------------


def test_copies_of_a_pair_add_no_certainty():
    rng = np.random.default_rng(0)
    hits = (rng.random(80) < 0.7).astype(float)
    once = share(hits, np.arange(80))
    assert (once.low, once.high) == pytest.approx(wilson(hits.sum(), 80))
    copies = share(np.repeat(hits, 5), np.repeat(np.arange(80), 5))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=2e-3)


def test_independent_pairs_of_a_prompt_count_as_pairs():
    rng = np.random.default_rng(0)
    hits = (rng.random(3000) < 0.7).astype(float)
    pairs = share(hits, np.arange(3000))
    grouped = share(hits, np.repeat(np.arange(500), 6))
    assert grouped.high - grouped.low == pytest.approx(pairs.high - pairs.low, rel=0.1)


def test_the_mean_s_interval_is_the_usual_one_for_single_pairs():
    values = np.random.default_rng(0).normal(size=50)
    error = values.std(ddof=1) / math.sqrt(50)
    assert clustered_error(values, np.arange(50)) == pytest.approx(error)
    assert mean(values, np.arange(50)).high == pytest.approx(values.mean() + 1.959964 * error)
    assert math.isinf(clustered_error(values, np.zeros(50)))


# ---- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, word",
    [
        (1.51, 9.0, "squeezed"),
        (1.49, 9.0, "cannot tell"),
        (0.1, 0.66, "overconfident"),
        (0.1, 0.68, "cannot tell"),
        (0.0, 0.3, "cannot tell"),
        (-0.3, 0.1, "cannot tell"),
        (-0.3, -0.1, "cannot tell"),
        (0.67, 1.5, "calibrated"),
        (0.66, 1.2, "cannot tell"),
        (0.9, 1.51, "cannot tell"),
        (math.nan, math.nan, "cannot tell"),
    ],
)
def test_the_whole_interval_decides_the_word(low, high, word):
    assert scale_word(Estimate((low + high) / 2, low, high), 100) == word
    assert scale_word(Estimate((low + high) / 2, low, high), 19) == "cannot tell"


@pytest.mark.parametrize(
    "train, held_out, word",
    [
        ((0.95, 0.93, 0.97), (0.04, -0.05, 0.13), "memorised"),
        ((0.86, 0.84, 0.88), (0.45, 0.40, 0.50), "cannot tell"),
        ((0.69, 0.67, 0.71), (0.55, 0.50, 0.60), "learned"),
        ((0.21, 0.15, 0.27), (0.17, 0.10, 0.24), "under-learned"),
        ((0.45, 0.39, 0.51), (0.40, 0.30, 0.50), "cannot tell"),
        ((0.30, 0.25, 0.35), (0.02, -0.03, 0.07), "memorised"),
    ],
)
def test_training_bits_beside_held_out_bits(train, held_out, word):
    assert learning_word(Estimate(*train), Estimate(*held_out)) == word


# ---- real files: verdicts written down before they were computed here ----------------------------


@needs_data
def test_the_reference_s_own_proxy_is_calibrated():
    """DIAGNOSIS.md, by a prototype: 0.98 [0.85, 1.11] and 0.27 bits."""
    rewards = [DATA / "alpacafarm" / f"test_reward_{name}.json" for name in ("rm", "gold")]
    found = scale_numbers(*towards_gold(*[np.array(read_rewards(str(p))) for p in rewards]))
    assert found["scale"] == pytest.approx(0.98, abs=0.005)
    assert found["scale_low"] == pytest.approx(0.85, abs=0.005)
    assert found["scale_high"] == pytest.approx(1.11, abs=0.005)
    assert found["scale_word"] == "calibrated"
    assert found["bits"] == pytest.approx(0.27, abs=0.005)


@needs_data
@pytest.mark.parametrize(
    "model, scale, word",
    [
        ("Skywork-Reward-Gemma-2-27B", 0.085, "overconfident"),
        ("internlm2-20b-reward", 0.97, "calibrated"),
    ],
)
def test_public_reward_models_on_judgebench(model, scale, word):
    folder = DATA / "judgebench" / "rewards"
    [path] = [path for path in folder.glob("*.json") if model.lower() in path.name.lower()]
    proxy = np.array(read_rewards(str(path)))
    truth = np.array(read_rewards(str(folder / "truth.json")))
    found = scale_numbers(*towards_gold(proxy, truth))
    assert found["scale"] == pytest.approx(scale, rel=0.02)
    assert found["scale_word"] == word
