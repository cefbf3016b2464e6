"""The learning curve of epoch 1: exact where there is no noise, and honest where there is."""

import math

import numpy as np
import pytest

from rmood.diagnosis.curve import (
    Curve,
    answer,
    curve_numbers,
    curve_of_run,
    is_rising,
    learning_curve,
    noise,
)
from rmood.schedule import learning_rate, warmup_steps


def rates(steps: int, epochs: int = 1) -> np.ndarray:
    """(K,) of the first epoch, by train.py's schedule with peak 1."""
    total = steps * epochs
    warmup = warmup_steps(total, 0.05)
    return np.array([learning_rate(k, total, warmup, 1.0, 0.01) for k in range(1, steps + 1)])


def seen(rate: np.ndarray, pairs: int) -> tuple[np.ndarray, float]:
    """x before each step, and after the last."""
    after = np.cumsum(pairs * rate / rate.max())
    return np.concatenate([[0.0], after[:-1]]), after[-1]


def simulated(steps: int, pairs: int, shape: tuple, seed: int, noisy: float = 0.5) -> tuple:
    """A curve of the epoch, its true gain; shape: c, d, b, x0 over X."""
    c, d, b, x0 = shape
    rate = rates(steps)
    x, end = seen(rate, pairs)

    def loss(at):
        return c + d * (1 + at / (x0 * end)) ** -b

    spread = noisy * (1.2 - (loss(x) - c) / d)  # losses of pairs spread more, the more is known
    y = loss(x) + np.random.default_rng(seed).normal(size=steps) * spread / math.sqrt(pairs)
    return learning_curve(y, np.full(steps, pairs), rate), loss(end) - loss(2 * end), loss(end)


# ---- without noise -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0.3, 0.4, 0.5, 0.3), (0.2, 0.5, 1.0, 1.0), (0.5, 0.2, 2.0, 3)])
def test_a_curve_of_the_family_is_found_again(shape):
    curve, gain, end = simulated(200, 64, shape, seed=0, noisy=0.001)
    assert curve.gain.value == pytest.approx(gain, abs=4e-3)
    assert curve.loss.value == pytest.approx(end, abs=2e-3)
    assert curve.word == "falling"


def test_a_step_counts_by_its_rate():
    """The same losses, but the second half at a rate of nearly 0: there was less training, so twice
    the pairs promise more."""
    y = 0.3 + 0.4 / (1 + np.arange(100) / 30)
    full = learning_curve(y, np.full(100, 64), np.ones(100))
    slow = np.where(np.arange(100) < 50, 1.0, 1e-3)
    x, end = seen(slow, 64)
    assert end == pytest.approx(50 * 64, rel=0.01)
    y_slow = 0.3 + 0.4 / (1 + x / 64 / 30)
    half = learning_curve(y_slow, np.full(100, 64), slow)
    assert full.gain.value == pytest.approx(0.4 / (1 + 100 / 30) - 0.4 / (1 + 200 / 30), abs=3e-3)
    assert half.gain.value == pytest.approx(0.4 / (1 + 50 / 30) - 0.4 / (1 + 100 / 30), abs=3e-3)


def test_the_noise_is_that_of_the_pairs_also_on_a_slope():
    rng = np.random.default_rng(0)
    n = np.full(2000, 16)
    y = 0.7 - 1e-4 * np.arange(2000) + rng.normal(0, 0.4, 2000) / 4
    assert noise(y, n) == pytest.approx(np.full(2000, 0.4**2 / 16), rel=0.35)
    assert noise(y, n).mean() == pytest.approx(0.4**2 / 16, rel=0.1)


def test_steps_that_were_not_taken_are_left_out_but_their_pairs_were_seen():
    y = 0.3 + 0.4 / (1 + np.arange(60) / 20)
    broken = y.copy()
    broken[[3, 40, 41]] = math.nan
    whole = learning_curve(y, np.full(60, 8), np.ones(60))
    curve = learning_curve(broken, np.full(60, 8), np.ones(60))
    assert curve.steps == 57
    assert curve.gain.value == pytest.approx(whole.gain.value, abs=1e-3)


def test_fewer_than_20_steps_are_no_curve():
    assert learning_curve([0.6] * 19, [64] * 19, [1.0] * 19) is None
    assert learning_curve([0.6] * 20, [64] * 20, [1.0] * 20).word == "cannot tell"


# ---- with noise ----------------------------------------------------------------------------------

SHAPES = [
    (0.3, 0.39, 0.5, 0.1),
    (0.55, 0.14, 1.0, 0.05),
    (0.2, 0.49, 2.0, 1.0),
    (0.4, 0.29, 0.35, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps, pairs", [(46, 16), (150, 64)])
def test_the_intervals_hold_the_truth(shape, steps, pairs):
    """Nominal: 95 of 100. They hold it more often, as all shapes that fit are in them."""
    hits = np.zeros(2)
    wrong = 0
    for seed in range(60):
        curve, gain, end = simulated(steps, pairs, shape, seed)
        hits += [
            curve.gain.low <= gain <= curve.gain.high,
            curve.loss.low <= end <= curve.loss.high,
        ]
        wrong += curve.word == ("flat" if gain > 0.01 else "falling")
    assert (hits >= 55).all()
    assert wrong <= 2


def test_more_steps_tell_more():
    """Twice as many pairs would save 0.03 nats: 46 steps of 16 cannot tell, 1,500 of 64 can."""
    shape = (0.3, 0.39, 0.5, 0.1)
    words = [simulated(*size, shape, seed=1)[0].word for size in ((46, 16), (1500, 64))]
    assert words == ["cannot tell", "falling"]


def test_a_curve_that_ends_early_and_goes_on_flat_is_flat():
    rng = np.random.default_rng(0)
    y = 0.45 + 0.24 * np.exp(-np.arange(600) / 15) + rng.normal(0, 0.4, 600) / 8
    curve = learning_curve(y, np.full(600, 64), rates(600))
    assert curve.word == "flat"
    assert curve.gain.high < 0.01


def test_a_loss_that_has_hardly_fallen_is_no_ceiling():
    """At a rate far too low all margins stay near 0: the loss is flat, and says nothing."""
    rng = np.random.default_rng(0)
    y = math.log(2) - 1e-5 * np.arange(300) + rng.normal(0, 0.002, 300)
    curve = learning_curve(y, np.full(300, 64), rates(300))
    assert curve.gain.high < 0.01
    assert curve.word == "cannot tell"


def test_a_loss_that_rises_again_is_rising_and_a_noisy_one_rarely_is():
    rng = np.random.default_rng(0)
    down_and_up = 0.6 - 0.2 * np.sin(np.linspace(0, math.pi, 80)) + rng.normal(0, 0.02, 80)
    assert learning_curve(down_and_up, np.full(80, 64), np.ones(80)).word == "rising"
    false = 0
    for _ in range(500):
        y = rng.normal(0.6, 0.1, 60)
        false += is_rising(y, np.full(60, 0.01))
    assert false <= 8  # 0.4% are expected


# ---- the answer ----------------------------------------------------------------------------------


def test_the_answer_takes_what_was_memorised_into_account():
    assert answer("falling", "memorised").startswith("more pairs; more epochs")
    assert answer("falling", "learned").startswith("more pairs, or more steps")
    assert answer("flat", "under-learned").startswith("more pairs like these would not help")
    assert answer("flat", "memorised").startswith("neither")
    assert answer("cannot tell", "learned").startswith("cannot tell")
    assert "--rate-probe" in answer("rising", "")


def test_a_finished_run_s_log_gives_its_curve():
    lines = []
    for step in range(1, 61):
        epoch = 1 if step <= 40 else 2
        loss = 0.3 + 0.4 / (1 + step / 20)
        lines.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": 1e-4})
        if step % 10 == 0:
            lines.append({"step": step, "epoch": epoch, "eval_loss": 0.5})
    curve = curve_of_run(lines, {"lr": 1e-4}, pairs=640)
    assert isinstance(curve, Curve)
    assert (curve.steps, curve.pairs) == (40, 640)
    numbers = curve_numbers(lines, {"config": {}, "pairs": 640})
    assert numbers["curve_gain_low"] == curve.gain.low
    assert curve_numbers([], {"config": {}}) == {}
    assert curve_of_run(lines, {"label_temperature": 10.0}, pairs=640) is None
    assert curve_of_run([], {}, pairs=640) is None
    assert curve_of_run(lines, {"label_smoothing": 0.1}, pairs=640) is not None


# ---- against real learning -----------------------------------------------------------------------


def trained(runs: int, features: int, steps: int, pairs: int, peak: float, seed: int) -> tuple:
    """(runs, K) losses of a linear reward model before each of AdamW's steps, and (runs,) held-out
    losses at the end. Labels are drawn from a true linear reward."""
    rng = np.random.default_rng(seed)
    size = 0.97 ** np.arange(features)
    truth = np.random.default_rng(0).normal(size=features) * 3 / math.sqrt(np.square(size).sum())
    weights = np.zeros((runs, features))
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    losses = np.zeros((runs, steps))
    for k, rate in enumerate(peak * rates(steps)):
        x = rng.normal(size=(runs, pairs, features)) * size  # features of chosen minus rejected
        right = rng.random((runs, pairs)) < 1 / (1 + np.exp(-(x @ truth)))
        x *= np.where(right, 1, -1)[:, :, None]
        margin = (x @ weights[:, :, None])[:, :, 0]
        losses[:, k] = np.logaddexp(0, -margin).mean(axis=1)
        gradient = -((1 / (1 + np.exp(margin)))[:, None, :] @ x)[:, 0] / pairs
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        step = m / (1 - 0.9 ** (k + 1)) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        weights -= rate * step
    x = rng.normal(size=(4000, features)) * size
    p = 1 / (1 + np.exp(-(x @ truth)))
    margin = x @ weights.T
    final = p[:, None] * np.logaddexp(0, -margin) + (1 - p[:, None]) * np.logaddexp(0, margin)
    return losses, final.mean(axis=0)


@pytest.mark.parametrize("peak, word", [(0.005, "falling"), (0.05, None)])
def test_what_twice_as_many_pairs_really_save_is_in_the_interval(peak, word):
    """No family of curves made these: a model learned them, with warmup and cosine."""
    losses, final = trained(12, 100, 120, 32, peak, seed=1)
    _, final_of_twice = trained(12, 100, 240, 32, peak, seed=2)
    gain = final.mean() - final_of_twice.mean()
    curves = [learning_curve(y, np.full(120, 32), rates(120)) for y in losses]
    assert sum(curve.gain.low <= gain <= curve.gain.high for curve in curves) >= 10
    assert sum(curve.loss.low <= final.mean() <= curve.loss.high for curve in curves) >= 9
    words = [curve.word for curve in curves]
    assert words.count("flat" if gain > 0.01 else "falling") == 0
    if word:
        assert words.count(word) >= 9
