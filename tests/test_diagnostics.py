"""Every measure against numbers one can check by hand; every verdict on a planted fault and none on a healthy model."""

import json
import math
import re
from itertools import combinations
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import DATA, needs_data

from rmood import diagnostics, faults, records, report
from rmood.records import BadInput, Pair

REAL = DATA / "alpacafarm"


def rewards(*rows) -> np.ndarray:
    return np.array(rows, dtype=float)


def fault_ids(numbers: dict) -> list[str]:
    return [finding["id"] for finding in faults.findings(numbers)]


# ---- measurements ----------------------------------------------------------------------------------------------


def test_three_responses_make_three_pairs_in_order():
    assert diagnostics.within_prompt_margins(rewards([5, 3, 4], [0, 0, 1])).tolist() == [[2, 1, -1], [0, -1, -1]]


def test_wilson_interval_of_8_in_10():
    """(0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096036)) / 1.38414 = 0.4902 and 0.9433."""
    assert diagnostics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert diagnostics.wilson(10, 10) == pytest.approx((1 / 1.384146, 1), abs=1e-6) and diagnostics.wilson(0, 10)[0] == 0


def test_a_proxy_tie_is_a_miss_or_half_and_a_gold_tie_is_not_compared():
    """Five pairs: gold ties one; of the other four the proxy has two right, one wrong, one tied: 2/4 and 2.5/4."""
    proxy = rewards([2, 1], [1, 2], [1, 2], [3, 3], [9, 1])
    gold = rewards([5, 1], [1, 5], [5, 1], [5, 1], [4, 4])
    found = diagnostics.compare(proxy, gold)
    assert [found[name] for name in ("pairs", "gold_ties", "compared", "proxy_ties")] == [5, 1, 4, 1]
    assert (found["match"], found["match_ties_half"]) == (0.5, 0.625)
    assert (found["match_low"], found["match_high"]) == pytest.approx(diagnostics.wilson(2, 4))


def test_pairs_of_one_prompt_do_not_narrow_the_interval():
    """40 prompts of 2 responses and of 4 (6 pairs each, all right): the interval counts 40 prompts both times."""
    two, four = np.tile([0.0, 1], (40, 1)), np.tile([0.0, 1, 2, 3], (40, 1))
    assert diagnostics.compare(four, four)["compared"] == 240
    assert diagnostics.compare(four, four)["match_low"] == pytest.approx(diagnostics.compare(two, two)["match_low"])


def test_an_offset_a_prompt_changes_nothing_that_is_judged():
    """Only margins enter the loss: adding 100 to one prompt and -7 to another leaves match, spread and ranks alone."""
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(50, 2)), rng.normal(size=(50, 2))
    shifted = proxy + np.linspace(-7, 100, 50)[:, None]
    before, after = diagnostics.compare(proxy, gold), diagnostics.compare(shifted, gold)
    for name in ("match", "match_low", "margin_std_ratio", "rank_correlation"):
        assert after[name] == pytest.approx(before[name])
    assert after["std_ratio"] > 10 * before["std_ratio"] and after["across_std_ratio"] > before["across_std_ratio"]


def test_spread_is_the_standard_deviation_over_all_values():
    """Margins -2 and 2 against -4 and 4: 2 / 4. Rewards 0, 2, 3, 1 (std sqrt 1.25) against 0, 4, 4, 0 (std 2)."""
    found = diagnostics.spread(rewards([0, 2], [3, 1]), rewards([0, 4], [4, 0]))
    assert (found["proxy_margin_std"], found["gold_margin_std"], found["margin_std_ratio"]) == (2, 4, 0.5)
    assert found["std_ratio"] == pytest.approx(math.sqrt(1.25) / 2)
    assert found["proxy_across_std"] == 0.5 and found["across_std_ratio"] is None  # gold's prompts all have mean 2


def test_rank_correlation_shares_ranks_and_ignores_the_spread():
    assert diagnostics.ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]
    x = np.array([-3.0, -1, 0.5, 2, 7])
    assert diagnostics.rank_correlation(x / 100, x**3) == pytest.approx(1) and diagnostics.rank_correlation(-x, x) == pytest.approx(-1)
    assert diagnostics.rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert diagnostics.rank_correlation(np.zeros(3), x[:3]) == 0


def test_match_by_gold_margin_counts_every_compared_pair_once():
    """Ten margins 1..10, the proxy wrong on 1 and 2 only: five bins of two, the first has match 0."""
    gold = np.arange(1.0, 11)[:, None]
    rows = diagnostics.match_by(np.abs(gold), np.where(gold <= 2, -1.0, 1.0), gold)
    assert [row["pairs"] for row in rows] == [2] * 5 and [row["match"] for row in rows] == [0, 1, 1, 1, 1]
    assert [(row["from"], row["to"]) for row in rows][:2] == [(1, 2), (3, 4)]
    one_size = diagnostics.match_by(*np.ones((3, 6, 1)))
    assert [row["pairs"] for row in one_size] == [6]  # equal margins stay together


def test_bf16_grid():
    """1.0078125 = 1 + 2^-7 is a bf16 value, 1.01 is not."""
    assert diagnostics.bf16_share(rewards([1.0078125, 1.01], [0, -8.5])) == 0.75


def test_quality_of_pairs_by_hand():
    """Margins 2, 0, -1, 3: two of four right. Loss: mean of log(1 + e^-m) = (0.1269 + 0.6931 + 1.3133 + 0.0486) / 4.
    Spread against gold's margins 4, 4, 4, 4 in both orders: sqrt(14 / 4) / 4."""
    found = diagnostics.pair_quality(rewards([3, 1], [1, 1], [0, 1], [5, 2]), rewards([5, 1], [5, 1], [5, 1], [5, 1]))
    assert (found["train_accuracy"], found["ties"], found["margin_mean"], found["margin_median"]) == (0.5, 1, 1, 1)
    assert found["train_loss"] == pytest.approx(0.5455, abs=1e-4)
    assert found["margin_std_ratio"] == pytest.approx(math.sqrt(3.5) / 4)
    assert diagnostics.pair_quality(np.zeros((3, 2)))["train_loss"] == pytest.approx(math.log(2))


def test_training_summary_is_the_last_tenth():
    metrics = [{"step": s, "loss": 1 - s / 100, "accuracy": 0.5 + s / 100} for s in range(1, 21)] + [{"step": 20, "eval_loss": 9.0}]
    assert diagnostics.training_summary(metrics) == pytest.approx(dict(first_loss=0.99, train_loss=0.805, train_accuracy=0.695, steps=20, loss_fell=0.05))  # steps 19, 20; 11 to 15, 16 to 20
    assert diagnostics.training_summary([]) == {} == diagnostics.training_summary([{"step": 1, "eval_loss": 1.0}])


def test_most_wrong_names_gold_s_choice_then_the_proxy_s():
    """Row 0: gold +1, proxy -1: product -1. Row 2: gold +4, proxy -3: product -12. Row 1 is right."""
    assert diagnostics.most_wrong(rewards([0, 1], [1, 0], [0, 3]), rewards([1, 0], [1, 0], [4, 0])) == [(2, 0, 1), (0, 0, 1)]


def test_gold_that_never_chooses_is_refused():
    with pytest.raises(BadInput, match="all 3 pairs"):
        diagnostics.compare(np.eye(3)[:, :2], np.ones((3, 2)))


@needs_data
def test_the_reference_proxy_against_its_gold():
    proxy, gold = (np.array(records.read_rewards(str(REAL / f"test_reward_{side}.json"))) for side in ("rm", "gold"))
    found = diagnostics.compare(proxy, gold)
    assert [found[name] for name in ("pairs", "gold_ties", "compared", "proxy_ties")] == [1000, 46, 954, 11]
    assert found["match"] == 691 / 954 and found["match_ties_half"] == 696.5 / 954  # 0.7243, 0.7301
    assert found["margin_std_ratio"] == pytest.approx(0.17978, abs=1e-5) and found["std_ratio"] == pytest.approx(0.17510, abs=1e-5)
    assert found["proxy_bf16_share"] == found["gold_bf16_share"] == 1
    assert fault_ids(found) == ["compressed_rewards", "low_match"]
    assert fault_ids(diagnostics.compare(gold * 0.9 + 3, gold)) == []


# ---- training pairs --------------------------------------------------------------------------------------------


def pair(i: int, chosen: str, rejected: str, **more) -> Pair:
    prompt = [{"role": "user", "content": f"prompt {i}"}]
    return Pair(*(prompt + [{"role": "assistant", "content": text}] for text in (chosen, rejected)), **more)


PROMPTS = [[{"role": "user", "content": f"prompt {i}"}] for i in range(4)]
RESPONSES = [["a", "b"], ["c", "d"], ["e", "e"], ["g", "h"]]
GOLD = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 4.0]]
GOOD = [pair(0, "a", "b", index=0), pair(1, "d", "c", index=1), pair(3, "g", "h", index=3)]


def failures(pairs, responses=RESPONSES, gold=GOLD, prompts=PROMPTS, **made_with) -> dict[str, list[str]]:
    checks = diagnostics.pairs_against_gold(pairs, prompts, responses, gold, **made_with)
    return {name: wrong for name, wrong, _ in checks if wrong}


@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_pairs_as_gold_makes_them_pass_with_and_without_an_index(prompts):
    assert failures(GOOD, prompts=prompts) == {}
    assert failures([pair(i, p.chosen[-1]["content"], p.rejected[-1]["content"]) for i, p in zip((0, 1, 3), GOOD)], prompts=prompts) == {}


def test_each_fault_of_the_pairs_is_named_with_its_row():
    assert failures([GOOD[0], pair(1, "c", "d", index=1), GOOD[2]])["chosen is what gold prefers"] == ["pair 1 (row 1): gold gives the chosen 0, the rejected 3"]
    assert failures([GOOD[0], pair(1, "d", "x", index=1), GOOD[2]])["texts are those of their row"] == ["pair 1 (row 1)"]
    assert failures([pair(9, "a", "b", index=0), *GOOD[1:]])["texts are those of their row"] == ["pair 0 (row 0)"]  # another prompt
    assert failures([GOOD[1], GOOD[0], GOOD[2]]) == {"pairs follow the order of the rows": ["pair 1 (row 0) follows row 1"]}
    assert failures([*GOOD, pair(3, "g", "h", index=99)])["texts are those of their row"] == ["pair 3 (row 99)"]
    assert failures(GOOD[:2]) == {"no pair is missing": ["row 3: gold gives 5 and 4"]}
    assert failures([*GOOD, GOOD[2]]) == {"no pair twice": ["pair 3 (row 3) repeats pair 2"]}
    assert failures([pair(0, "a", "b", index=0, chosen_reward=2.0, rejected_reward=1.5), *GOOD[1:]])["rewards in the pairs are gold's"]


def test_pairs_left_out_on_purpose_are_not_missing():
    """Gold margins 1, 3, tie, 1: a minimum margin of 2 leaves the pair of row 1 alone."""
    assert failures([GOOD[1]], min_margin=2.0) == {}
    identical = dict(responses=[*RESPONSES[:2], ["e", "e"], RESPONSES[3]], gold=[*GOLD[:2], [1.0, 2.0], GOLD[3]])
    assert failures(GOOD, **identical, drop_identical=True) == {} and "no pair is missing" in failures(GOOD, **identical)


def test_three_responses_make_up_to_three_pairs_of_a_row():
    responses, gold = [["a", "b", "c"]], [[1.0, 3.0, 2.0]]
    pairs = [pair(0, "b", "a"), pair(0, "c", "a"), pair(0, "b", "c")]
    assert failures(pairs, responses, gold, PROMPTS[:1]) == {}
    assert failures(pairs[:2], responses, gold, PROMPTS[:1]) == {"no pair is missing": ["row 0: gold gives 3 and 2"]}


# ---- length, calibration, gold, best of n ------------------------------------------------------------------------


def test_length_alone_and_the_proxy_that_goes_by_it():
    """Gold prefers the longer response in 3 of 4 pairs. A proxy that is the length matches those and no other."""
    gold, lengths = rewards([1, 0], [1, 0], [1, 0], [0, 1]), rewards([9, 4], [9, 3], [9, 2], [9, 1])
    found = diagnostics.length_numbers(lengths, gold, lengths)
    assert found["length_match"] == 0.75 and found["proxy_length_correlation"] == pytest.approx(1)
    assert diagnostics.length_gap(gold, lengths)[:, 0].tolist() == [5, 6, 7, -8]
    rows = found["by_length_gap"]
    assert rows[0]["match"] == 0 and all(row["match"] == 1 for row in rows[1:])


def test_calibration_of_a_coin_and_of_a_sure_proxy():
    """Margins log 3 are confidences of 3/4: right in 3 of 4, calibrated; always right, an ECE of 1/4; and the best scale of a
    proxy whose margins are a tenth of the calibrated ones is 10."""
    gold = np.tile([[1.0], [1], [1], [-1]], (100, 1))
    found = diagnostics.calibration(np.full(gold.shape, math.log(3)), gold, bins=1)
    assert found["ece"] == pytest.approx(0) and found["brier"] == pytest.approx(3 / 16) and found["best_scale"] == pytest.approx(1, rel=0.03)
    assert diagnostics.calibration(np.full(gold.shape, math.log(3)), np.ones_like(gold))["ece"] == pytest.approx(0.25)
    assert diagnostics.calibration(np.full(gold.shape, math.log(3) / 10), gold)["best_scale"] == pytest.approx(10, rel=0.03)


def test_the_least_loss_of_noisy_labels():
    """20% flipped: at the margin log(0.8 / 0.2) = log 4, -0.8 log 0.8 - 0.2 log 0.2 = 0.5004; no better margin exists."""
    at = lambda margin: 0.8 * math.log1p(math.exp(-margin)) + 0.2 * math.log1p(math.exp(margin))  # noqa: E731
    assert diagnostics.least_loss(0.2) == pytest.approx(0.5004, abs=1e-4) == pytest.approx(at(math.log(4)), abs=1e-4)
    assert at(math.log(4)) < min(at(1.2), at(1.6)) and diagnostics.least_loss(0) == 0


def test_margin_slope_is_the_compression():
    gold = np.random.default_rng(0).normal(size=(50, 2))
    assert diagnostics.compare(gold * 0.18, gold)["margin_slope"] == pytest.approx(0.18)


def test_a_clipped_gold_piles_up_at_its_ends():
    gold = np.random.default_rng(0).normal(size=(2000, 2))
    assert diagnostics.gold_numbers(gold)["gold_at_ends"] < 0.01
    assert diagnostics.gold_numbers(gold.clip(-1, 1))["gold_at_ends"] == pytest.approx(0.32, abs=0.03)  # beyond one std


def test_identical_responses_must_get_one_reward():
    texts = [["a", "a"], ["b", "c"]]
    assert diagnostics.twin_gap(rewards([1, 1], [0, 3]), texts) == dict(twins=1, twin_gap=0)
    assert diagnostics.twin_gap(rewards([1, 2], [0, 3]), texts)["twin_gap"] == pytest.approx(1)  # |-1| over the std of (-1, -3)


def test_labels_are_held_against_the_gold_file_or_the_pairs_own_rewards():
    good, bad = pair(0, "a", "b", index=0), pair(1, "c", "d", index=1)
    responses, gold = [["a", "b"], ["c", "d"]], [[2.0, 1.0], [1.0, 2.0]]
    assert diagnostics.label_noise([good, bad], None, responses, gold)["label_noise"] == 0.5
    assert diagnostics.label_noise([good, bad], None, None, None) == {}
    own = [pair(0, "x", "y", chosen_reward=1.0, rejected_reward=2.0), pair(1, "x", "y", chosen_reward=2.0, rejected_reward=1.0)]
    assert diagnostics.label_noise(own, None, None, None)["label_noise"] == 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(ties):
    """Against every subset of n of 5 responses, picked by hand; equal rewards share."""
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 3, (4, 5)).astype(float) if ties else rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    for row in diagnostics.expected_best_of_n(proxy, gold):
        worth = []
        for p, g in zip(proxy, gold):
            for subset in map(list, combinations(range(5), row["n"])):
                worth.append(g[subset][p[subset] == p[subset].max()].mean())
        assert row["gold"] == pytest.approx(np.mean(worth))
    rows = diagnostics.expected_best_of_n(gold, gold)
    assert [row["kl"] for row in rows[:2]] == pytest.approx([0, math.log(2) - 0.5])
    assert all(row["gold"] == row["gold_own"] for row in rows) and rows[-1]["gold"] == pytest.approx(gold.max(axis=1).mean())


# ---- findings --------------------------------------------------------------------------------------------------

HEALTHY = dict(match=0.84, match_ties_half=0.845, match_low=0.81, match_high=0.87, compared=500, proxy_ties=2, proxy_tie_share=0.004, margin_std_ratio=0.9,
               rank_correlation=0.85, train_accuracy=0.96, train_loss=0.2, proxy_bf16_share=0.0, steps=240, epochs=4, update_ratio=0.002, lost_updates=0.02, update_kept=1.0,
               label_noise=0.0, with_gold=900, best_scale=1.0, gold_tie_share=0.05, gold_at_ends=0.01, gold_margin_std=4.0, duplicate_share=0.0, company_gap=1e-6,
               template_differs=0.0, config_dropout=0.0, pad_is_last=0.0, dropped_share=0.0, order_differs=0.0, twin_gap=0.0, twins=40, backbone_moved=0.3,
               backbone_tensors=34, grad_norm_backbone_max=2.0, read_accuracy=0.96, **{f"{way}_{of}": 0.0 for way in ("plain", "cut", "token") for of in ("gain", "gain_z")})  # fmt: skip
SLOW = dict(train_accuracy=0.72, train_loss=0.6, match=0.70, match_ties_half=0.70, match_low=0.66, match_high=0.74, margin_std_ratio=0.1)  # whatever the cause


@pytest.mark.parametrize(
    "fault, severity, numbers",
    [
        ("rewards_shuffled", "error", dict(order_differs=1.0, match=0.5, match_ties_half=0.5, match_low=0.46, match_high=0.54)),
        ("rewards_shuffled", "error", dict(label_noise=0.49)),
        ("rewards_shuffled", "error", dict(match=0.5, match_ties_half=0.5, match_low=0.46, match_high=0.54)),
        ("labels_flipped", "error", dict(match=0.18, match_ties_half=0.18, match_low=0.15, match_high=0.22)),
        ("labels_flipped", "error", dict(label_noise=1.0)),
        ("backbone_frozen", "error", SLOW | dict(backbone_moved=0.0)),
        ("backbone_frozen", "error", SLOW | dict(grad_norm_backbone_max=0.0)),
        ("bf16_updates_lost", "error", SLOW | dict(lost_updates=0.9, update_kept=0.3)),
        ("chat_template_missing", "error", SLOW | dict(explained_by_plain=1.0, model="rm")),
        ("chat_template_missing", "error", dict(plain_gain=0.2, plain_gain_z=5.0, plain_accuracy=0.9, read_accuracy=0.7)),
        ("chat_template_differs", "error", dict(template_differs=1.0, template_words="training 1234, scoring 5678")),
        ("wrong_scored_token", "error", SLOW | dict(explained_by_token=1.0, explained_token="at a pad after the end")),
        ("wrong_scored_token", "error", dict(token_gain=0.2, token_gain_z=5.0, token_accuracy=0.9, token_words="a pad after the end", read_accuracy=0.7)),
        ("wrong_scored_token", "error", dict(pad_is_last=1.0, pad_id=2)),
        ("closing_token_cut", "error", SLOW | dict(explained_by_cut=1.0, model="rm", cut_at=30, cut_share=0.6)),
        ("closing_token_cut", "error", dict(cut_gain=0.2, cut_gain_z=5.0, cut_accuracy=0.9, cut_words="30", read_accuracy=0.7)),
        ("closing_token_cut", "error", dict(dropped_share=0.4, max_length=30)),
        ("dropout_left_on", "error", dict(twin_gap=0.2, reproduced=0.8)),
        ("dropout_left_on", "warning", SLOW | dict(config_dropout=0.3)),
        ("noisy_labels", "error", SLOW | dict(label_noise=0.2, least_loss=0.5)),
        ("rewards_overcentred", "error", dict(margin_std_ratio=0.03, rank_correlation=0.8, best_scale=30.0, train_accuracy=0.84, train_loss=0.64)),
        ("gold_nearly_constant", "error", dict(gold_tie_share=0.9, gold_min=0, gold_max=1, gold_std=0.2)),
        ("gold_nearly_constant", "error", dict(gold_margin_std=0.001, gold_min=0.5, gold_max=0.501)),
        ("gold_saturated", "error", dict(gold_at_ends=0.5, gold_min=0, gold_max=1)),
        ("reward_depends_on_company", "error", dict(company_gap=0.4)),
        ("duplicate_prompts", "warning", dict(duplicate_share=0.3)),
        ("learning_rate_too_low", "error", SLOW | dict(update_ratio=1e-4)),
        ("noisy_labels", "error", SLOW | dict(best_scale=0.6)),
        ("learning_rate_too_low", "error", SLOW),
        ("too_few_epochs", "error", SLOW | dict(epochs=1, steps=60)),
        ("too_few_epochs", "warning", dict(epochs=1, steps=100, train_accuracy=0.85, match=0.78, match_ties_half=0.78, match_low=0.75, match_high=0.81)),
        ("compressed_rewards", "error", dict(margin_std_ratio=0.18)),
        ("overdispersed_rewards", "warning", dict(margin_std_ratio=2.5)),
        ("low_match", "warning", dict(match=0.72, match_ties_half=0.73, match_low=0.69, match_high=0.75, train_accuracy=0.85)),
        ("low_match", "error", dict(match=0.66, match_ties_half=0.66, match_low=0.62, match_high=0.70, train_accuracy=0.95)),
        ("random_match", "error", dict(match=0.51, match_ties_half=0.51, match_low=0.46, match_high=0.56, train_accuracy=0.85)),
        ("not_learning", "error", dict(train_accuracy=0.75)),
        ("training_failed", "error", dict(train_accuracy=0.6)),
        ("loss_not_decreasing", "warning", dict(train_loss=0.6)),
        ("poor_generalization", "warning", dict(match=0.74, match_ties_half=0.74, match_low=0.71, match_high=0.77)),
        ("tied_rewards", "warning", dict(proxy_ties=30, proxy_tie_share=0.06)),
    ],
)
def test_each_rule_fires_on_its_fault_and_none_on_a_healthy_model(fault, severity, numbers):
    """A cause stands before the symptoms that it brings, and no second cause is made up beside it."""
    assert faults.findings(HEALTHY) == []
    found = faults.findings(HEALTHY | numbers)
    finding = next(finding for finding in found if finding["id"] == fault)
    assert finding["severity"] == severity and finding["evidence"] and finding["causes"] and finding["advice"]
    assert "{" not in finding["evidence"] + "".join(finding["causes"]) + finding["advice"]
    causes = [other["id"] for other in found if other["id"] not in faults.SYMPTOMS]
    if fault not in faults.SYMPTOMS and severity == "error":
        assert causes == [fault] and found[0]["id"] == fault


def test_every_rule_is_tried_above():
    tried = test_each_rule_fires_on_its_fault_and_none_on_a_healthy_model.pytestmark[0].args[1]
    assert sorted((rule.id, rule.severity) for rule in faults.RULES) == sorted((fault, severity) for fault, severity, _ in tried)


def test_worst_first_and_nothing_said_of_what_was_not_measured():
    found = faults.findings(dict(train_loss=0.68, train_accuracy=0.55))
    assert [finding["severity"] for finding in found] == ["error", "warning"]
    assert "match" not in found[0]["evidence"] and "0.550" in found[0]["evidence"]
    assert faults.findings({}) == [] == faults.findings(dict(margin_std_ratio=None))


@pytest.mark.parametrize("gold_scale, expected", [(1, []), (10, ["compressed_rewards"]), (0.3, ["overdispersed_rewards"]), (-1, ["labels_flipped"])])
def test_verdicts_from_rewards_alone(gold_scale, expected):
    """500 prompts, proxy = gold + noise of a third of its std: about 90% match."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(500, 2)) * 3
    assert fault_ids(diagnostics.compare(base + rng.normal(size=base.shape), base * gold_scale)) == expected


def test_rewards_drawn_at_random_match_at_random():
    rng = np.random.default_rng(0)
    assert fault_ids(diagnostics.compare(rng.normal(size=(400, 2)), rng.normal(size=(400, 2)))) == ["random_match"]


# ---- report ----------------------------------------------------------------------------------------------------


def write_report(path, names, metrics=()) -> str:
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(60, 2)) * 4
    runs = []
    for i, name in enumerate(names):
        proxy = gold * (0.1 if i else 1) + rng.normal(size=gold.shape) * 0.5
        numbers = diagnostics.compare(proxy, gold) | diagnostics.training_summary(list(metrics))
        runs.append(dict(name=name, rewards=proxy, numbers=numbers, findings=faults.findings(numbers), metrics=list(metrics)))
    texts = [[{"role": "user", "content": "<script>alert(1)</script> & co"}]] * 60, [["<img src=x onerror=alert(2)>", "x" * 10_000]] * 60
    report.write(str(path), f"toy: {names[0]}", ["60 pairs"], runs, gold, texts)
    return path.read_text(encoding="utf-8")


def test_the_report_stands_alone_and_escapes_what_it_shows(tmp_path):
    """No script, nothing loaded from anywhere, and text that looks like markup stays text."""
    metrics = [{"step": s, "loss": 0.7 / s, "accuracy": 1 - 0.5 / s} for s in range(1, 9)] + [{"step": 8, "eval_loss": 0.4, "eval_accuracy": 0.8}]
    html = write_report(tmp_path / "deep" / "report.html", ["<b>$x_1$</b>", "squeezed"], metrics)
    tags, attributes = [], []
    parser = HTMLParser()
    parser.handle_starttag = parser.handle_startendtag = lambda tag, attrs: (tags.append(tag), attributes.extend(attrs))
    parser.feed(html)
    assert not {"script", "img", "link", "iframe", "image", "object"} & set(tags) and "<b>$" not in html and "&lt;script&gt;" in html
    assert not [(name, value) for name, value in attributes if name == "src" or name.startswith("on") or (name.endswith("href") and not value.startswith("#"))]
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.index("Verdicts") < html.index("<svg") < html.index("The most wrong pairs")
    assert html.count("<svg") == 2 + 2 + 1 + 1 + 2 and "held out: loss" in html  # scatters, histograms, match by margin, calibration, training
    assert "compressed rewards" in html and "no finding" in html and "4,000 more characters" in html
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_the_report_follows_the_theme(tmp_path):
    """Every stand-in colour became a variable, and both themes define each of them."""
    html = write_report(tmp_path / "r.html", [f"model {i}" for i in range(8)])
    assert not re.search("#0101|#0102", html)
    light, dark = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    used = set(re.findall(r"var\((--\w+)\)", html)) - {"--tone"}
    assert {"--s0", "--s5", "--gold"} <= used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_numbers_of_a_comparison_are_json():
    found = diagnostics.compare(np.eye(4)[:, :2], np.eye(4)[:, 1::-1])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
