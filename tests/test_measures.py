"""Every measure of a proxy against gold, against numbers one can check by hand."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from conftest import DATA, needs_data

from rmood.diagnosis.faults import findings
from rmood.diagnosis.measures import (
    bf16_share,
    calibration,
    compare,
    expected_best_of_n,
    gold_numbers,
    least_loss,
    length_gap,
    length_numbers,
    match_by,
    most_wrong,
    rank_correlation,
    ranks,
    spread,
    training_summary,
    twin_gap,
    within_prompt_margins,
)
from rmood.errors import UserError
from rmood.files.tables import read_rewards
from rmood.metrics import wilson

REAL = DATA / "alpacafarm"


def rewards(*rows) -> np.ndarray:
    return np.array(rows, dtype=float)


# ---- agreement -----------------------------------------------------------------------------------


def test_three_responses_make_three_pairs_in_order():
    margins = within_prompt_margins(rewards([5, 3, 4], [0, 0, 1]))
    assert margins.tolist() == [[2, 1, -1], [0, -1, -1]]


def test_a_proxy_tie_is_a_miss_or_half_and_a_gold_tie_is_not_compared():
    """Five pairs: gold ties one; of the other four the proxy has two right, one wrong, one tied.

    So the match is 2/4, and with ties as half 2.5/4."""
    proxy = rewards([2, 1], [1, 2], [1, 2], [3, 3], [9, 1])
    gold = rewards([5, 1], [1, 5], [5, 1], [5, 1], [4, 4])
    found = compare(proxy, gold)
    counts = [found[name] for name in ("pairs", "gold_ties", "compared", "proxy_ties")]
    assert counts == [5, 1, 4, 1]
    assert (found["match"], found["match_ties_half"]) == (0.5, 0.625)
    assert (found["match_low"], found["match_high"]) == pytest.approx(wilson(2, 4))


def test_pairs_of_one_prompt_do_not_narrow_the_interval():
    """40 prompts with 2 responses or with 4 (6 pairs each), all right: 40 prompts both times."""
    two = np.tile([0.0, 1], (40, 1))
    four = np.tile([0.0, 1, 2, 3], (40, 1))
    assert compare(four, four)["compared"] == 240
    assert compare(four, four)["match_low"] == pytest.approx(compare(two, two)["match_low"])


def test_an_offset_a_prompt_changes_nothing_that_is_judged():
    """Only margins enter the loss: adding 100 to one prompt and -7 to another leaves match, spread
    and ranks as they are."""
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(50, 2)), rng.normal(size=(50, 2))
    shifted = proxy + np.linspace(-7, 100, 50)[:, None]
    before, after = compare(proxy, gold), compare(shifted, gold)
    for name in ("match", "match_low", "spread_ratio", "rank_correlation"):
        assert after[name] == pytest.approx(before[name])
    assert after["std_ratio"] > 10 * before["std_ratio"]
    assert after["std_across_ratio"] > before["std_across_ratio"]


def test_rank_correlation_shares_ranks_and_ignores_the_spread():
    assert ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]
    x = np.array([-3.0, -1, 0.5, 2, 7])
    assert rank_correlation(x / 100, x**3) == pytest.approx(1)
    assert rank_correlation(-x, x) == pytest.approx(-1)
    one_swapped = rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]))
    assert one_swapped == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert rank_correlation(np.zeros(3), x[:3]) == 0


def test_match_by_gold_margin_counts_every_compared_pair_once():
    """Ten margins 1..10, the proxy wrong on 1 and 2 only: of five bins the first has match 0."""
    gold = np.arange(1.0, 11)[:, None]
    rows = match_by(np.abs(gold), np.where(gold <= 2, -1.0, 1.0), gold)
    assert [row["pairs"] for row in rows] == [2] * 5
    assert [row["match"] for row in rows] == [0, 1, 1, 1, 1]
    assert [(row["from"], row["to"]) for row in rows][:2] == [(1, 2), (3, 4)]
    one_size = match_by(*np.ones((3, 6, 1)))
    assert [row["pairs"] for row in one_size] == [6]  # equal margins stay together


def test_most_wrong_names_gold_s_choice_then_the_proxy_s():
    """Row 0: gold +1, proxy -1: product -1. Row 2: +4 and -3: product -12. Row 1 is right."""
    found = most_wrong(rewards([0, 1], [1, 0], [0, 3]), rewards([1, 0], [1, 0], [4, 0]))
    assert found == [(2, 0, 1), (0, 0, 1)]


def test_gold_that_never_chooses_is_refused():
    with pytest.raises(UserError, match="all 3 pairs"):
        compare(np.eye(3)[:, :2], np.ones((3, 2)))


# ---- spread and calibration ----------------------------------------------------------------------


def test_spread_is_the_standard_deviation_over_all_values():
    """Margins -2 and 2 against -4 and 4: sqrt(4 / 2) over sqrt(16 / 2).

    Rewards 0, 2, 3, 1 (std sqrt 1.25) against 0, 4, 4, 0 (std 2; each prompt has mean 2)."""
    found = spread(rewards([0, 2], [3, 1]), rewards([0, 4], [4, 0]))
    assert found["proxy_std_within"] == pytest.approx(math.sqrt(2))
    assert found["gold_std_within"] == pytest.approx(math.sqrt(8))
    assert found["spread_ratio"] == pytest.approx(0.5)
    assert found["std_ratio"] == pytest.approx(math.sqrt(1.25) / 2)
    assert found["proxy_std_across"] == 0.5
    assert found["std_across_ratio"] is None


def test_the_spread_within_does_not_depend_on_the_order_of_the_responses():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(20, 2)), 3 + rng.normal(size=(20, 2))
    turned = rng.random(20) < 0.5
    proxy_turned = np.where(turned[:, None], proxy[:, ::-1], proxy)
    gold_turned = np.where(turned[:, None], gold[:, ::-1], gold)
    assert spread(proxy_turned, gold_turned) == pytest.approx(spread(proxy, gold))


def test_calibration_of_a_coin_and_of_a_sure_proxy():
    """Margins log 3 are confidences of 3/4: right in 3 of 4 they are calibrated; always right, the
    calibration error is 1/4. The best scale of margins a tenth of the calibrated ones is 10."""
    gold = np.tile([[1.0], [1], [1], [-1]], (100, 1))
    margins = np.full(gold.shape, math.log(3))
    found = calibration(margins, gold, bins=1)
    assert found["ece"] == pytest.approx(0)
    assert found["brier"] == pytest.approx(3 / 16)
    assert found["best_scale"] == pytest.approx(1, rel=0.03)
    assert calibration(margins, np.ones_like(gold))["ece"] == pytest.approx(0.25)
    assert calibration(margins / 10, gold)["best_scale"] == pytest.approx(10, rel=0.03)


def test_the_least_loss_of_noisy_labels():
    """20% flipped: at the margin log(0.8 / 0.2) = log 4 the loss is -0.8 log 0.8 - 0.2 log 0.2 =
    0.5004, and no other margin has less."""

    def loss_at(margin):
        return 0.8 * math.log1p(math.exp(-margin)) + 0.2 * math.log1p(math.exp(margin))

    assert least_loss(0.2) == pytest.approx(0.5004, abs=1e-4)
    assert least_loss(0.2) == pytest.approx(loss_at(math.log(4)))
    assert loss_at(math.log(4)) < min(loss_at(1.2), loss_at(1.6))
    assert least_loss(0) == least_loss(1) == 0


def test_margin_slope_is_the_compression():
    gold = np.random.default_rng(0).normal(size=(50, 2))
    assert compare(gold * 0.18, gold)["margin_slope"] == pytest.approx(0.18)


# ---- length, gold, twins, bf16 -------------------------------------------------------------------


def test_length_alone_and_the_proxy_that_goes_by_it():
    """Gold prefers the longer response in 3 of 4 pairs, which a proxy that is the length gets."""
    gold = rewards([1, 0], [1, 0], [1, 0], [0, 1])
    lengths = rewards([9, 4], [9, 3], [9, 2], [9, 1])
    found = length_numbers(lengths, gold, lengths)
    assert found["length_match"] == 0.75
    assert found["proxy_length_correlation"] == pytest.approx(1)
    assert length_gap(gold, lengths)[:, 0].tolist() == [5, 6, 7, -8]
    first, *others = found["by_length_gap"]
    assert first["match"] == 0
    assert all(row["match"] == 1 for row in others)


def test_a_clipped_gold_piles_up_at_its_ends():
    """Clipped at one standard deviation, 32% of a normal distribution lie at the ends."""
    gold = np.random.default_rng(0).normal(size=(2000, 2))
    assert gold_numbers(gold)["gold_at_ends"] < 0.01
    assert gold_numbers(gold.clip(-1, 1))["gold_at_ends"] == pytest.approx(0.32, abs=0.03)
    assert gold_numbers(np.ones((3, 2))) == {"gold_tie_share": 1, "gold_at_ends": 1}


def test_identical_responses_must_get_one_reward():
    """A margin of -1 between identical responses, over the std of the margins -1 and -3, is 1."""
    texts = [["a", "a"], ["b", "c"]]
    assert twin_gap(rewards([1, 1], [0, 3]), texts) == {"twins": 1, "twin_gap": 0}
    assert twin_gap(rewards([1, 2], [0, 3]), texts)["twin_gap"] == pytest.approx(1)
    assert twin_gap(rewards([1, 2], [0, 3]), [["a", "b"], ["b", "c"]]) == {"twins": 0}


def test_bf16_grid():
    """1.0078125 = 1 + 2^-7 is a bf16 value, 1.01 is not."""
    assert bf16_share(rewards([1.0078125, 1.01], [0, -8.5])) == 0.75


# ---- the whole comparison, a run, best of n ------------------------------------------------------


def test_numbers_of_a_comparison_are_json():
    found = compare(np.eye(4)[:, :2], np.eye(4)[:, 1::-1])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@needs_data
def test_the_reference_proxy_against_its_gold():
    """Match 691 / 954 = 0.7243, with ties as half 0.7301."""
    proxy = np.array(read_rewards(str(REAL / "test_reward_rm.json")))
    gold = np.array(read_rewards(str(REAL / "test_reward_gold.json")))
    found = compare(proxy, gold)
    counts = [found[name] for name in ("pairs", "gold_ties", "compared", "proxy_ties")]
    assert counts == [1000, 46, 954, 11]
    assert found["match"] == 691 / 954
    assert found["match_ties_half"] == 696.5 / 954
    assert found["spread_ratio"] == pytest.approx(0.17961, abs=1e-5)
    assert found["std_ratio"] == pytest.approx(0.17510, abs=1e-5)
    assert found["proxy_bf16_share"] == found["gold_bf16_share"] == 1
    assert [f["id"] for f in findings(found)] == ["compressed_rewards", "low_match"]
    assert findings(compare(gold * 0.9 + 3, gold)) == []


def test_training_summary_is_the_last_tenth():
    """20 steps: the last tenth are steps 19 and 20, the last quarters 11 to 15 and 16 to 20."""
    metrics = [
        {"step": s, "epoch": 2, "loss": 1 - s / 100, "accuracy": 0.5 + s / 100}
        for s in range(1, 21)
    ]
    metrics.append({"step": 20, "running_loss": 9.0, "eval_loss": 9.0})
    expected = {"first_loss": 0.99, "last_loss": 0.805, "last_accuracy": 0.695}
    expected |= {"steps": 20, "epochs": 2, "loss_fell": 0.05}
    assert training_summary(metrics) == pytest.approx(expected)
    assert training_summary([]) == {}
    assert training_summary([{"step": 1, "eval_loss": 1.0}]) == {}


def test_training_summary_of_the_updates():
    """Means of lost_updates and update_kept, the 90% quantile of the ratio, the largest norm."""
    unmeasured = {"step": 9, "loss": 0.5, "grad_norm_backbone": 0.1}  # between two --log-every
    metrics = [
        {
            "step": s,
            "loss": 0.5,
            "lost_updates": s / 10,
            "update_kept": 1 - s / 10,
            "update_ratio": s / 1000,
            "grad_norm_backbone": 3 - s,
        }
        for s in range(3)
    ]
    found = training_summary([*metrics, unmeasured])
    assert found["lost_updates"] == pytest.approx(0.1)
    assert found["update_kept"] == pytest.approx(0.9)
    assert found["update_ratio"] == pytest.approx(0.0018)
    assert found["grad_norm_backbone_max"] == 3
    assert "last_accuracy" not in found and "epochs" not in found
    assert "loss_fell" not in training_summary(metrics)  # three steps have no quarters


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(ties):
    """Against every subset of n of 5 responses, picked by hand; equal rewards share."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(4, 5))
    proxy = rng.normal(size=(4, 5))
    if ties:
        proxy = rng.integers(0, 3, (4, 5)).astype(float)
    for row in expected_best_of_n(proxy, gold):
        worth = []
        for p, g in zip(proxy, gold):
            for subset in map(list, combinations(range(5), row["n"])):
                worth.append(g[subset][p[subset] == p[subset].max()].mean())
        assert row["gold"] == pytest.approx(np.mean(worth))


def test_best_of_n_by_gold_itself():
    gold = np.random.default_rng(0).normal(size=(4, 5))
    rows = expected_best_of_n(gold, gold)
    assert [row["kl"] for row in rows[:2]] == pytest.approx([0, math.log(2) - 0.5])
    assert all(row["gold"] == row["gold_own"] == row["proxy"] for row in rows)
    assert rows[-1]["gold"] == pytest.approx(gold.max(axis=1).mean())
    errors = gold.max(axis=1).std(ddof=1) / math.sqrt(4)
    assert rows[-1]["gold_error"] == pytest.approx(errors)
