"""Verdicts of a rate probe, from made-up losses."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rmood.diagnosis.rates import advice, figure, judged, rates_around, table

STEPS, PAIRS = 40, 16  # a step
STEP = np.repeat(np.arange(1, STEPS + 1), PAIRS)
PROMPT = np.arange(STEPS * PAIRS)
RATES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]


def losses_of(falls: list[float], seed: int = 0, noise: float = 0.3) -> tuple:
    """start (n,) and (R, n) losses: of a rate the loss falls so far by the last step, from ln 2.

    All rates see the same pairs, so they share most of the noise.
    """
    rng = np.random.default_rng(seed)
    pair = rng.normal(0, noise, len(STEP))
    start = np.full(len(STEP), math.log(2))
    rows = []
    for fall in falls:
        learned = fall * STEP / STEPS
        own = rng.normal(0, noise / 6, len(STEP))
        rows.append(start - learned + (pair + own) * min(1.0, abs(fall) * 5))
    return start, np.array(rows)


def verdicts(falls: list[float], **options) -> list[str]:
    start, losses = losses_of(falls, **options)
    return [one.verdict for one in judged(RATES[: len(falls)], start, losses, STEP, PROMPT)]


def test_rates_are_factors_of_the_root_of_ten_around_the_planned_one():
    assert rates_around(5e-5, 6) == [1.58e-06, 5e-06, 1.58e-05, 5e-05, 1.58e-04, 5e-04]
    assert rates_around(5e-5, 1) == [5e-5]
    assert rates_around(1e-3, 3) == [3.16e-4, 1e-3, 3.16e-3]


def test_a_verdict_for_each_rate():
    assert verdicts([0.002, 0.1, 0.3, 0.1, -0.3]) == [
        "too low",
        "too low",
        "usable",
        "too high",
        "diverges",
    ]


def test_rates_that_noise_cannot_tell_apart_are_all_usable():
    assert verdicts([0.005, 0.299, 0.3, 0.298]) == ["too low", "usable", "usable", "usable"]


def test_an_overflow_diverges_whatever_the_others_do():
    start, losses = losses_of([0.1, 0.3])
    losses[1, 100:] = math.inf
    low, high = judged(RATES[:2], start, losses, STEP, PROMPT)
    assert (low.verdict, high.verdict) == ("usable", "diverges")
    assert high.saved is None
    assert json.dumps(high.as_json(), allow_nan=False)
    losses[0, 300:] = math.inf
    assert {one.verdict for one in judged(RATES[:2], start, losses, STEP, PROMPT)} == {"diverges"}


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_is_learned_no_rate_is_judged(seed):
    rng = np.random.default_rng(seed)
    start = np.full(len(STEP), math.log(2))
    losses = start + rng.normal(0, 0.2, (4, len(STEP)))
    found = {one.verdict for one in judged(RATES[:4], start, losses, STEP, PROMPT)}
    assert found <= {"cannot tell", "diverges"}


def test_equal_rates_are_rarely_called_different():
    """The best of five is chosen after the fact: intervals are those of four comparisons."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        start = np.full(len(STEP), math.log(2))
        losses = start - 0.3 + rng.normal(0, 0.3, (5, len(STEP)))
        found = judged(RATES, start, losses, STEP, PROMPT)
        wrong += any(one.verdict != "usable" for one in found)
    assert wrong <= 20  # of 200; 36 with intervals of one comparison each


def test_pairs_of_one_prompt_do_not_count_as_independent():
    """Ten prompts whose pairs move together: their 640 losses are ten draws."""
    rng = np.random.default_rng(1)
    prompt = np.arange(len(STEP)) % 10
    start = np.full(len(STEP), math.log(2))
    shared = rng.normal(0, 0.4, (2, 10))[:, prompt]
    losses = start - 0.2 + shared
    by_prompt = judged(RATES[:2], start, losses, STEP, prompt)
    by_pair = judged(RATES[:2], start, losses, STEP, PROMPT)
    width = [max(one.saved.high - one.saved.low for one in found) for found in (by_prompt, by_pair)]
    assert width[0] > 4 * width[1]


def test_ten_prompts_cannot_show_that_anything_was_learned():
    """Their mean gain of 0.2 has a standard error of 0.1 over prompts, of 0.02 over pairs."""
    rng = np.random.default_rng(3)
    prompt = np.arange(len(STEP)) % 10
    start = np.full(len(STEP), math.log(2))
    own = rng.normal(0, 0.35, 10)
    losses = np.array([start - 0.2 + (own - own.mean())[prompt]] * 2)
    assert {one.verdict for one in judged(RATES[:2], start, losses, STEP, prompt)} == {
        "cannot tell"
    }
    assert {one.verdict for one in judged(RATES[:2], start, losses, STEP, PROMPT)} == {"usable"}


def test_the_second_half_of_the_steps_decides():
    """A rate that learns faster at first and ends above the start's loss."""
    start, losses = losses_of([0.3, 0.3], noise=0.0)
    early = np.where(STEP <= STEPS // 2, -0.6, 0.1)
    high = start + early + np.random.default_rng(0).normal(0, 0.01, len(STEP))
    found = judged(RATES[:2], start, np.array([losses[0], high]), STEP, PROMPT)
    assert [one.verdict for one in found] == ["usable", "diverges"]


# ---- in words, and drawn -------------------------------------------------------------------------


def told(falls: list[float], planned: float, planned_sum: float) -> str:
    start, losses = losses_of(falls)
    tried = judged(RATES[: len(falls)], start, losses, STEP, PROMPT)
    return "\n".join(advice(tried, planned, planned_sum, STEPS))


def test_the_advice_is_for_the_planned_rate_and_its_steps():
    falls = [0.002, 0.1, 0.3, 0.1, -0.3]
    usable = told(falls, 1e-4, 1e-2)
    assert "--lr 0.0001 is usable" in usable
    assert "rate x steps 0.01: as far as the probe goes at a rate of 0.00025" in usable  # / 40
    assert "--lr 0.01 is too high here: at most 0.0001" in told(falls, 1e-2, 1.0)
    short = told(falls, 1e-6, 1e-6 * 50)
    assert "--lr 1e-06 is too low for so few steps: raise it to 0.0001" in short
    assert "fewer pairs a step" in short
    long = told(falls, 1e-5, 1e-5 * 1000)  # as far as the probe's 40 steps at 2.5e-4
    assert "has enough steps" in long
    assert "the highest rate tried is usable" in told([0.002, 0.1, 0.3], 1e-5, 1e-3)
    assert "every rate diverges" in told([-0.2, -0.3], 1e-5, 1e-3)
    assert "cannot tell: no rate is better" in told([0.0, 0.0], 1e-5, 1e-3)


def test_the_table_has_the_loss_of_each_quarter():
    start, losses = losses_of([0.1, 0.4], noise=0.0)
    lines = table(judged(RATES[:2], start, losses, STEP, PROMPT)).splitlines()
    assert "loss, steps 1-10" in lines[0]
    assert len(lines) == 3
    assert lines[1].split()[:5] == ["1e-06", "0.679", "0.654", "0.629", "0.604"]


def test_the_figure_is_well_formed_also_for_a_rate_that_overflows():
    start, losses = losses_of([0.1, 0.3, 0.3])
    losses[2, 100:] = math.inf
    svg = figure(judged(RATES[:3], start, losses, STEP, PROMPT), "a < b")
    root = ElementTree.fromstring(svg)
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert "a < b" in texts
    assert {"v", "o", "x"} <= set(texts)
    assert "nan" not in svg
    assert "inf" not in svg
