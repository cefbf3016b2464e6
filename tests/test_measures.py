"""Every measure of a proxy against gold, against numbers one can check by hand."""

import json
import math
import re
from itertools import combinations

import numpy as np
import pytest
from conftest import DATA, needs_data

from rmood.diagnosis.measures import (
    bf16_share,
    break_numbers,
    calibration,
    compare,
    compare_with_model,
    expected_best_of_n,
    gold_numbers,
    guess_gold_kind,
    least_loss,
    length_gap,
    length_numbers,
    longest_share,
    margin_correlation,
    match_by,
    match_with_gold,
    most_wrong,
    position_numbers,
    rank_correlation,
    ranks,
    resolution,
    spread,
    train_numbers,
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


def test_intervals_of_many_responses_are_as_wide_as_the_truth_asks():
    """K = 8 noisy rewards of 60 prompts, 300 times: the 95% interval of the match holds the truth
    in about 95%, and is 0.6 to 1.6 times as wide as 4 standard deviations of the match."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(300, 60, 8))
    proxy = gold + rng.normal(size=gold.shape) * rng.exponential(size=(300, 60, 1)) * 2
    found = []
    for p, g in zip(proxy, gold):
        found.append(match_with_gold(within_prompt_margins(p), within_prompt_margins(g)))
    match = np.array([n["match"] for n in found])
    low, high = (np.array([n[f"match_{side}"] for n in found]) for side in ("low", "high"))
    truth = match.mean()
    assert 0.91 < ((low < truth) & (truth < high)).mean() < 0.99
    assert 0.6 < (high - low).mean() / (4 * match.std()) < 1.6


def test_a_pair_repeated_with_its_prompt_says_nothing_new():
    """Each response twice: four times the pairs, the same intervals."""
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(50, 2)), rng.normal(size=(50, 2))
    once = compare(proxy, gold)
    twice = compare(np.hstack([proxy, proxy]), np.hstack([gold, gold]))
    assert twice["compared"] == 4 * once["compared"]
    for name in ("match", "right", "bits", "scale", "loss"):
        for side in ("", "_low", "_high"):
            if name + side in once:
                assert twice[name + side] == pytest.approx(once[name + side], rel=0.01)
    assert twice["rank_correlation"] == pytest.approx(once["rank_correlation"])


def test_no_number_depends_on_which_response_is_written_first():
    """But for those that ask whether it matters, and the order of ties."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(80, 2)) + [0.5, 0]
    proxy = gold + rng.normal(size=gold.shape)
    texts = [["a" * rng.integers(1, 99), "b" * rng.integers(1, 99)] for _ in range(80)]
    turned = rng.random(80) < 0.5

    def swap(rows):
        return np.where(turned[:, None], rows[:, ::-1], rows)

    words = [row[::-1] if turn else row for row, turn in zip(texts, turned)]
    before = compare(proxy, gold, texts)
    after = compare(swap(proxy), swap(gold), words)
    for name, value in before.items():
        if name.startswith(("position", "gold_first", "proxy_first", "break")) or isinstance(
            value, (list, str)
        ):
            continue
        assert after[name] == pytest.approx(value), name


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
    assert margin_correlation(x / 100, x**3, np.arange(5)).value == pytest.approx(1)
    assert margin_correlation(np.zeros(5), x, np.arange(5)).value == 0
    one_swapped = rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2]))
    assert one_swapped == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert rank_correlation(np.zeros(3), x[:3]) == 0


def test_the_interval_of_a_correlation_holds_the_truth():
    """Pairs of correlated normal margins, 100 at a time: the mean of 300 draws lies in 95% of the
    intervals."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        a = rng.normal(size=100)
        b = 0.6 * a + 0.8 * rng.normal(size=100)
        found.append(margin_correlation(a, b, np.arange(100)))
    truth = np.mean([one.value for one in found])
    held = np.mean([one.low < truth < one.high for one in found])
    assert 0.9 < held < 0.99


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
    calibration error is 1/4."""
    gold = np.tile([[1.0], [1], [1], [-1]], (100, 1))
    margins = np.full(gold.shape, math.log(3))
    found = calibration(margins, gold, bins=1)
    assert found["ece"] == pytest.approx(0)
    assert found["brier"] == pytest.approx(3 / 16)
    assert calibration(margins, np.ones_like(gold))["ece"] == pytest.approx(0.25)


@pytest.mark.parametrize("pairs, expected", [(50, 0.124), (200, 0.060), (1000, 0.026)])
def test_a_calibrated_proxy_shows_a_calibration_error_which_is_said_beside_it(pairs, expected):
    """The mean of 100 calibrated proxies of std 3, simulated in another way, and its 95% point."""
    rng = np.random.default_rng(1)
    shown, said, usual = [], [], []
    for _ in range(100):
        margin = rng.normal(size=(pairs, 1)) * 2.5
        sign = np.where(rng.random((pairs, 1)) < 1 / (1 + np.exp(-margin)), 1.0, -1.0)
        found = calibration(margin, sign)
        shown.append(found["ece"])
        said.append(found["ece_expected"])
        usual.append(found["ece"] < found["ece_usual"])
    assert np.mean(said) == pytest.approx(np.mean(shown), rel=0.1)
    assert np.mean(said) == pytest.approx(expected, rel=0.2)
    assert 0.88 <= np.mean(usual) <= 1


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
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=(2000, 2)), rng.normal(size=(2000, 2))
    assert gold_numbers(proxy, gold)["gold_at_ends"] < 0.01
    clipped = gold_numbers(proxy, gold.clip(-1, 1))
    assert clipped["gold_at_ends"] == pytest.approx(0.32, abs=0.03)
    assert clipped["gold_at_ends_low"] < clipped["gold_at_ends"]
    few = gold_numbers(proxy[:10], gold[:10])  # two of any rewards are the ends
    assert few["gold_at_ends"] == 0


def test_the_kind_of_gold_is_guessed_and_said():
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(50, 2))
    gold = proxy * 3
    kinds = {
        "log-odds": gold,
        "probability": 1 / (1 + np.exp(-gold)),
        "rating": np.clip(np.round(gold), 1, 5),
    }
    for kind, rewards in kinds.items():
        assert guess_gold_kind(rewards) == kind
        assert gold_numbers(proxy, rewards)["gold_kind_said"] == 0
    said = gold_numbers(proxy, kinds["rating"], "log-odds")
    assert (said["gold_kind"], said["gold_kind_said"]) == ("log-odds", 1)
    unsure = [
        gold_numbers(proxy, kinds[kind])["gold_unsure"] for kind in ("log-odds", "probability")
    ]
    assert unsure[0] == pytest.approx(unsure[1])  # a probability is taken back to its log-odds
    assert "gold_unsure" not in gold_numbers(proxy, kinds["rating"])


def test_identical_texts_are_no_ties_of_gold():
    """One pair of three is the same text twice, known or to be seen from both sides' ties."""
    gold, proxy = rewards([1, 1], [2, 2], [1, 0]), rewards([3, 3], [1, 0], [1, 0])
    texts = [["a", "a"], ["a", "b"], ["a", "b"]]
    for responses in (None, texts):
        assert gold_numbers(proxy, gold, responses=responses)["gold_tie_share"] == 0.5


def test_a_proxy_that_prefers_a_place_is_right_more_often_there():
    """Gold prefers the first in 2 of 4 pairs. A proxy that always does is right in all of these and
    in none of the others: half the difference is 0.5."""
    gold = np.tile([[1.0], [-1.0]], (200, 1))
    always_first = np.ones_like(gold)
    found = position_numbers(always_first, gold)
    assert found["gold_first"] == 0.5
    assert found["position_bias"] == 0.5
    assert 0.45 < found["position_bias_size_low"] < 0.5
    assert position_numbers(gold, gold)["position_bias_size_low"] == 0
    of_one_side = position_numbers(always_first, np.ones_like(gold))
    assert of_one_side["gold_first"] == 1.0 and "position_bias" not in of_one_side


def test_a_gold_that_adds_to_one_place_is_far_from_half():
    """Standard normal margins plus 1: the first is better in Phi(1) = 0.841 of the pairs."""
    margins = np.random.default_rng(0).normal(size=(2000, 1))
    shifted = position_numbers(margins, margins + 1)
    assert shifted["proxy_first_size_low"] == 0
    in_order = position_numbers(np.abs(margins), np.abs(margins))
    assert in_order["gold_first"] == in_order["proxy_first"] == 1
    assert in_order["proxy_first_size_low"] > 0.49
    assert shifted["gold_first"] == pytest.approx(0.841, abs=0.02)
    assert 0.30 < shifted["gold_first_size_low"] < shifted["gold_first"] - 0.5
    other = position_numbers(margins, margins - 1)
    assert other["gold_first_size_low"] == pytest.approx(shifted["gold_first_size_low"], abs=0.04)
    assert position_numbers(margins, margins)["gold_first_size_low"] == 0


def test_what_length_points_away_from():
    """Gold prefers the longer in 3 of 4 pairs; the proxy, which is the length, is right in none of
    the others, and goes with length more than gold does."""
    gold = np.tile(rewards([1, 0], [1, 0], [1, 0], [0, 1]), (50, 1))
    lengths = np.tile(rewards([9, 4], [9, 3], [9, 2], [9, 1]), (50, 1))
    found = length_numbers(lengths, gold, lengths)
    assert found["against_length"] == 0
    assert found["against_length_high"] < 0.1
    assert found["length_excess_low"] > 0
    shorter = length_numbers(-lengths, gold, lengths)  # leans to the shorter: wrong in 3 of 4
    assert shorter["against_length"] == 0
    assert length_numbers(gold, gold, lengths)["against_length"] == 1


def test_identical_responses_must_get_one_reward():
    """A margin of -1 between identical responses, over the root mean square of -1 and -3."""
    texts = [["a", "a"], ["b", "c"]]
    found = twin_gap(rewards([1, 1], [0, 3]), texts)
    assert (found["twins"], found["twin_share"], found["twin_gap"]) == (1, 0.5, 0)
    assert 0 < found["twin_share_low"] < 0.5
    gap = twin_gap(rewards([1, 2], [0, 3]), texts)["twin_gap"]
    assert gap == pytest.approx(1 / math.sqrt(5))
    none = twin_gap(rewards([1, 2], [0, 3]), [["a", "b"], ["b", "c"]])
    assert none["twins"] == none["twin_share"] == 0 and "twin_gap" not in none


def test_what_rounding_hides():
    """Of the margins 1, 2, 3 and 10 those under twice the noise of 1.1 are two."""
    proxy, gold = rewards([1, 0], [2, 0], [3, 0], [0, 10]), rewards([1, 0], [1, 0], [0, 1], [0, 1])
    assert resolution(proxy, gold, 1.1)["resolution"] == 0.5
    assert resolution(proxy, gold, 0.0)["resolution"] == 0


def test_gold_that_the_proxy_made_leaves_no_residual():
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(200, 2))
    found = compare(proxy, 7 * proxy + 3)
    assert found["gold_residual"] == pytest.approx(0, abs=1e-9)
    noisy = compare(proxy, proxy + rng.normal(size=proxy.shape))
    assert noisy["gold_residual"] == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_a_proxy_that_is_right_up_to_one_row_of_the_file_is_found_there():
    """Gold's rows are one off from row 240 on: right in all pairs before it, in half of them after.
    Without a break, z stays under 5."""
    rng = np.random.default_rng(0)
    margins = rng.normal(size=(400, 1))
    gold = np.concatenate([margins[:240], np.roll(margins[240:], -1, axis=0)])
    found = break_numbers(margins, gold)
    assert found["break_z"] > 5
    assert found["break_best_low"] > 0.95
    assert found["break_worst_low"] < 0.5 < found["break_worst_high"]
    row = int(re.search(r"before row (\d+)", found["break_words"])[1])
    assert 240 <= row < 250  # the first rows after it may be right by chance
    noisy = margins + rng.normal(size=margins.shape)
    assert break_numbers(noisy, margins)["break_z"] < 5
    assert break_numbers(margins[:39], margins[:39]) == {}
    assert break_numbers(margins, margins) == {}  # all are right


# ---- finished rewards against their model's ------------------------------------------------------

OWN = np.random.default_rng(0).normal(size=(200, 2)) * [1, 1.1] + 2
NOISE = 0.01
CHANGED = {
    "equal": OWN + np.random.default_rng(1).normal(size=OWN.shape) * NOISE,
    "position": OWN + [0.5, 0],
    "rescaled": OWN * 0.3 + 7,
    "inverted": OWN * -2,
    "squashed": 1 / (1 + np.exp(-2 * OWN)),
    "mixed": np.where(np.arange(200)[:, None] < 80, OWN, OWN[::-1] + 0.3),
    "other": OWN + np.random.default_rng(1).normal(size=OWN.shape),
}
ORDERS = {
    "each row the responses are in the order 2, 1": OWN[:, ::-1],
    "reverse order": OWN[::-1],
    "row 0 holds the rewards of row 7": np.roll(OWN, -7, axis=0),
    "first responses come first": OWN.T.reshape(OWN.shape),
    "by no simple rule": np.random.default_rng(1).permutation(OWN),
    "in 40% of the rows the responses are in another order": np.where(
        (np.arange(200) % 5 < 2)[:, None], OWN[:, ::-1], OWN
    ),
    "60 rows from 140 to 199 hold each other's rewards": np.concatenate(
        [OWN[:140], np.roll(OWN[140:], 1, axis=0)]
    ),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_how_a_rewards_file_differs_from_its_model_is_named(kind):
    found = compare_with_model(CHANGED[kind], OWN, NOISE)
    assert found["file_is"] == kind
    noisy = CHANGED[kind] + np.random.default_rng(2).normal(size=OWN.shape) * 1e-3
    assert compare_with_model(noisy, OWN, NOISE)["file_is"] == kind


def test_a_constant_for_each_place_is_found_in_another_unit_too():
    found = compare_with_model(0.2 * OWN + [3.0, 3.5], OWN, NOISE)
    assert found["file_is"] == "position"
    assert (
        found["file_words"] == "0.2 times the model's rewards, and response 1: +3, response 2: +3.5"
    )


@pytest.mark.parametrize("words", ORDERS)
def test_the_order_of_shuffled_rewards_is_found_and_stated(words):
    found = compare_with_model(ORDERS[words], OWN, 1e-4)
    assert found["file_is"] == "shuffled"
    assert words in found["file_words"]


@pytest.mark.parametrize("noise", [0.011, 0.035, 0.11])
def test_rounding_is_no_other_order(noise):
    """Rewards with the noise of a narrow model in bf16: the same where that noise was measured; and
    never "in another order" where it was not, as the positions agree."""
    rounded = OWN + np.random.default_rng(3).normal(size=OWN.shape) * noise * OWN.std()
    assert compare_with_model(rounded, OWN, noise * OWN.std())["file_is"] == "equal"
    assert compare_with_model(rounded, OWN, 1e-6)["file_is"] not in ("shuffled", "squashed")


def test_one_place_of_another_model_is_mixed_and_one_constant_for_all_is_said():
    other = OWN + np.random.default_rng(5).normal(size=OWN.shape) * [0, 1]
    found = compare_with_model(other, OWN, NOISE)
    assert found["file_is"] == "mixed"
    assert found["file_words"] == "every row holds them in the places 1 alone"
    shifted = compare_with_model(OWN + 3, OWN, NOISE)
    assert shifted["file_is"] == "equal" and shifted["file_offset"] == pytest.approx(3)
    assert "file_offset" not in compare_with_model(OWN, OWN, NOISE)


def test_another_model_s_rows_are_not_taken_for_the_same_ones_in_another_order():
    """Drawn alike, with a tolerance of a narrow model in bf16."""
    other = np.random.default_rng(6).normal(size=OWN.shape) * [1, 1.1] + 2
    rest = np.where(np.arange(200)[:, None] < 120, OWN, other)
    for noise in (1e-4, 0.005, 0.02):
        assert compare_with_model(rest, OWN, noise)["file_is"] == "mixed"


def test_equal_rewards_are_no_order_and_no_sign():
    found = compare_with_model(np.full_like(OWN, 3.0), OWN, NOISE)
    assert (found["file_is"], found["file_words"]) == ("other", "all of its rewards are 3")


def test_an_offset_a_prompt_is_the_same_rewards_and_is_said():
    offset = np.random.default_rng(4).normal(size=(200, 1)) * 5
    found = compare_with_model(OWN + offset, OWN, NOISE)
    assert found["file_is"] == "equal"
    assert found["file_prompt_offsets"] == pytest.approx(np.ptp(offset), rel=0.01)
    for whole in (OWN, OWN + 3):
        assert "file_prompt_offsets" not in compare_with_model(whole, OWN, NOISE)


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
    assert found["scale"] == pytest.approx(0.981, abs=0.001)
    assert (found["scale_low"], found["scale_high"]) == pytest.approx((0.848, 1.114), abs=0.001)
    assert found["bits"] == pytest.approx(0.2675, abs=1e-4)
    assert found["ece_usual"] > found["ece"] > found["ece_expected"]  # 0.044 is no miscalibration


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
    longer = [line | {"step": line["step"] + 20 * part} for part in range(4) for line in metrics]
    assert training_summary(longer)["last_loss_low"] < training_summary(longer)["last_loss"]
    assert training_summary([]) == {}
    assert training_summary([{"step": 1, "eval_loss": 1.0}]) == {}


def test_the_last_quarter_of_epoch_1_is_held_out():
    """40 steps of epoch 1, the last ten 0.8 right; epoch 2 has seen them all."""
    accuracies = [0.5] * 30 + [0.75, 0.85] * 5 + [1.0] * 40
    metrics = [
        {"step": i + 1, "epoch": 1 + i // 40, "loss": 0.5, "accuracy": a, "learning_rate": 0.01}
        for i, a in enumerate(accuracies)
    ]
    found = training_summary(metrics)
    assert found["new_accuracy"] == pytest.approx(0.8)
    half = 1.96 * 0.05 / math.sqrt(10)  # by hand, but for n - 1
    assert found["new_accuracy_high"] - 0.8 == pytest.approx(half, rel=0.1)
    assert found["rate_sum"] == pytest.approx(0.8)
    assert "new_accuracy_low" not in training_summary(metrics[:8])  # its last quarter is two steps


def test_the_mean_reward_s_way_is_measured_beside_the_spread_within_pairs():
    """From 1 to -5 and back to -4; at the end a spread of 0.5."""
    means = np.concatenate([np.linspace(1, -5, 30), np.linspace(-5, -4, 10)])
    metrics = [
        {"step": i + 1, "epoch": 1, "loss": 0.7, "reward_mean": mean, "std_within": 0.5}
        for i, mean in enumerate(means)
    ]
    found = training_summary(metrics)
    assert (found["reward_drift"], found["drift_over_margins"]) == (6.0, 12.0)
    assert "reward_drift" not in training_summary([{"step": 1, "loss": 0.7}])


def test_texts_that_were_cut_at_a_length_are_as_long_as_the_longest():
    """Geometric lengths of mean 50: cut at 40, 0.98^39 = 45% of them end there."""
    rng = np.random.default_rng(0)
    lengths = rng.geometric(0.02, size=(500, 2))
    texts = [["".join(rng.choice(list("abcdefgh "), n)) for n in row] for row in lengths]
    assert longest_share(texts).value < 0.01
    cut = [[text[:40] for text in row] for row in texts]
    assert longest_share(cut).value == pytest.approx(0.45, abs=0.04)
    answers = [["Yes", "No"]] * 100  # all that are the longest are the same text
    assert longest_share(answers).value == 0.0


def test_equal_texts_tie_rightly_whatever_gold_says_of_them():
    """A judge with noise orders ten pairs of one text; a head that rounds ties different ones."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(100, 2))
    proxy = gold + rng.normal(size=gold.shape)
    proxy[:10] = 1.0
    texts = [["a", "a" if i < 10 else "b"] for i in range(100)]
    found = compare(proxy, gold, texts)
    assert (found["proxy_ties"], found["proxy_tie_share"]) == (10, 0.0)
    assert found["match_ties_half"] == pytest.approx(found["match"] + 0.05)
    assert compare(proxy, gold)["proxy_tie_share"] == pytest.approx(0.1)
    assert compare(proxy, gold, [["a", "b"]] * 100)["proxy_tie_share"] == pytest.approx(0.1)
    # nor is their order lost in rounding
    same = np.array([[i < 10] for i in range(100)])
    lost = resolution(proxy, gold, 1e-6)["resolution"]
    assert lost == pytest.approx(0.1)
    assert resolution(proxy, gold, 1e-6, same)["resolution"] == 0.0


def test_a_default_among_gold_s_rewards_is_counted():
    """A tenth of them exactly 0; rounding repeats many values, and none much more than the next."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(200, 2))
    proxy = gold + rng.normal(size=gold.shape)
    assert compare(proxy, gold)["gold_repeated_over"] == 1.0
    failed = np.where(rng.random(gold.shape) < 0.1, 0.0, gold)
    found = compare(proxy, failed)
    assert found["gold_repeated"] == pytest.approx(0.1, abs=0.03)
    assert (found["gold_repeated_value"], found["gold_repeated_over"] > 10) == (0.0, True)
    assert compare(proxy, np.round(gold, 1))["gold_repeated_over"] < 2
    assert "gold_repeated" not in compare(proxy, np.clip(np.round(gold) + 3, 1, 5))  # a rating


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
    assert found["update_ratio_max"] == 0.002
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


def test_a_decline_of_best_of_n_is_paired_by_prompt():
    """Prompts differ by far more than the picks: unpaired the decline is lost in that, paired it is
    certain. Gold of the n-th pick falls by 1 for the last of four."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(100, 1)) * 50
    proxy = np.tile([0.0, 1, 2, 3], (100, 1))
    gold = level + [0, 2, 3, 0] + rng.normal(size=(100, 4)) * 0.5
    last = expected_best_of_n(proxy, gold)[-1]
    best = max(expected_best_of_n(proxy, gold), key=lambda row: row["gold"])
    assert best["decline"] == best["decline_low"] == 0
    assert last["decline_low"] > 0.5
    assert 1.96 * last["gold_error"] > 5
    chance = expected_best_of_n(proxy, level + rng.normal(size=(100, 4)))
    assert chance[-1]["decline_low"] <= 0


def test_training_pairs_of_one_prompt_count_once():
    """Forty pairs of four prompts know as much, with wider intervals, as of forty prompts."""
    rng = np.random.default_rng(0)
    scored = rng.normal(size=(40, 2)) + [1, 0]
    alone = train_numbers(scored, [str(i) for i in range(40)])
    together = train_numbers(scored, [str(i % 4) for i in range(40)])
    assert (alone["train_prompts"], together["train_prompts"]) == (40, 4)
    assert alone["train_bits"] == together["train_bits"]
    assert alone["train_scale_word"] and together["train_scale_word"] == "cannot tell"
    right = (scored[:, 0] > scored[:, 1]).mean()
    assert alone["train_right"] == pytest.approx(right)
