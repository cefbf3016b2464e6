"""The learning curve of epoch 1: more pairs, more steps, or at the ceiling? Numpy only.

In epoch 1 no pair was seen before, so the loss of a step's pairs *before* their update is a
held-out loss, of the model that all earlier pairs have made (prequential: Dawid 1984). With k =
1..K steps:

    y_k   mean loss of step k's pairs before its update, nats
    n_k   number of those pairs
    x_k   pairs seen before step k, each counted by its step's rate over the peak rate: a step at
          half the rate moves the weights half as far. The sum of rates is what losses of one run
          under different schedules have in common (Tissue et al. 2024, eq. 1, without their term
          for the decay)

The curve is L(x) = c + d (1 + x / x0)^-b, with c, d >= 0: a power law with an offset that contains
straight lines (x0 large) and exponentials (b and x0 large). It is not extrapolated to its end,
which K steps cannot tell, but to twice the pairs:

    gain   L(X) - L(2X), X = x after the last step: what twice as many new pairs would save

Intervals are profile likelihoods: every curve is accepted whose residuals are at most 3.84 units of
noise above the best one's (Wilks 1938), over a grid of b and x0, so that what the shape leaves open
is in the interval. The noise comes from second differences of neighbouring steps.

Assumed: new pairs would be like these; all steps have the same rate and are as many as the pairs
ask for; the plain Bradley-Terry loss is what is minimised. With several pairs a prompt in different
steps the loss is of new responses, not of new prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .scale import Estimate

EXPONENTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # b; published ones of losses lie between 0.1 and 1
FEWEST_STEPS = 20  # below, the noise itself is not known well enough
ACCEPTED = 3.84  # the 95% point of chi-squared with one degree of freedom
# A gain of 0.01 nats is 0.014 bits: 300 pairs need to be 0.05 nats apart to be told from noise, so
# no evaluation of a usual size would see it.
SMALL_GAIN = 0.01
LEAST_VARIANCE = 1e-9  # of one pair's loss, for a curve without any noise
# A loss that fell by less has hardly begun: a flat curve is then no sign of a ceiling.
FEWEST_NATS = 0.03


@dataclass(frozen=True)
class Curve:
    """What the loss of one epoch says. loss, gain and fall are nats."""

    steps: int
    pairs: int
    loss: Estimate  # of unseen pairs after the last step
    gain: Estimate  # what twice as many new pairs would save
    fall: Estimate  # from the first step to the last
    word: str  # see `curve_word`

    def as_numbers(self) -> dict:
        """steps, pairs, word; loss, gain and fall, each with _low and _high"""
        return {
            "steps": self.steps,
            "pairs": self.pairs,
            **self.loss.as_numbers("loss"),
            **self.gain.as_numbers("gain"),
            **self.fall.as_numbers("fall"),
            "word": self.word,
        }


def learning_curve(
    losses: Sequence[float], pairs: Sequence[int], rates: Sequence[float]
) -> Curve | None:
    """(K,) losses of epoch 1's steps, their numbers of pairs and their rates, in order.

    Steps that are not finite are left out, but count as seen. None: fewer than 20 are left.
    """
    y, n, rate = (np.asarray(values, dtype=float) for values in (losses, pairs, rates))
    seen = np.cumsum(n * rate / rate.max())  # after each step
    x = np.concatenate([[0.0], seen[:-1]])
    known = np.isfinite(y)
    y, n, x = y[known], n[known], x[known]
    if len(y) < FEWEST_STEPS:
        return None
    end = seen[-1]
    shapes = _shapes(x, end)  # (G, K + 2): at each step, at the end, at twice the end
    variance = noise(y, n)
    fits = _Fits(y, 1 / variance, shapes)
    loss = fits.loss_at_end()
    gain = fits.times(shapes[:, -2] - shapes[:, -1])
    fall = fits.times(shapes[:, 0] - shapes[:, -2])
    word = curve_word(gain, fall, is_rising(y, variance))
    return Curve(len(y), int(n.sum()), loss, gain, fall, word)


def curve_word(gain: Estimate, fall: Estimate, rising: bool) -> str:
    """The whole interval of the gain decides, not its value.

    falling      above 0.01 nats: twice as many new pairs would save something
    flat         below 0.01 nats, after a fall of 0.03 nats or more: they would save nothing
    rising       the last quarter of the steps is worse than an earlier one
    cannot tell  neither
    """
    if rising:
        return "rising"
    if gain.low > SMALL_GAIN:
        return "falling"
    if gain.high < SMALL_GAIN and fall.low > FEWEST_NATS:
        return "flat"
    return "cannot tell"


def answer(curve_word: str, learning_word: str) -> str:
    """More pairs, more steps, or at the ceiling? learning_word: scale.learning_word's."""
    memorised = learning_word == "memorised"
    if curve_word == "falling" and memorised:
        return "more pairs; more epochs on these would only memorise them"
    if curve_word == "falling":
        return "more pairs, or more steps on these while the held-out loss falls"
    if curve_word == "flat" and memorised:
        return "neither more pairs like these nor more epochs"
    if curve_word == "flat":
        return (
            "more pairs like these would not help: it is at the ceiling of this model, rate and "
            "these labels; train.py --rate-probe 6 says whether of the rate"
        )
    if curve_word == "rising":
        return "the loss rose during epoch 1: train.py --rate-probe 6 says whether the rate did it"
    return "cannot tell: the loss of this epoch fits more than one answer"


def noise(y: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(K,) variance of each step's mean loss about the curve, from second differences.

    y[k-1] - 2 y[k] + y[k+1] has no slope, and the variance v (1/n + 4/n + 1/n). Losses of single
    pairs spread little at first, where all margins are near 0, and more later: v is smoothed over
    an eighth of the steps, but nowhere below the mean, so that the first steps, on which no simple
    curve fits exactly, do not outweigh the last ones.
    """
    second = y[:-2] - 2 * y[1:-1] + y[2:]
    of_one_pair = np.square(second) / (1 / n[:-2] + 4 / n[1:-1] + 1 / n[2:])  # (K - 2,)
    width = max(5, len(y) // 8)
    padded = np.pad(of_one_pair, width, mode="reflect")
    smooth = np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), mode="valid")
    smooth = np.concatenate([smooth[:1], smooth, smooth[-1:]])  # (K,)
    return np.maximum(smooth, max(of_one_pair.mean(), LEAST_VARIANCE)) / n


def is_rising(y: np.ndarray, variance: np.ndarray) -> bool:
    """Is the last quarter of the steps worse than an earlier quarter, by over 3 standard errors?

    Of three quarters, 3 standard errors are exceeded by chance in some 4 of 1,000 runs.
    """
    quarters = np.array_split(np.arange(len(y)), 4)
    means = [np.average(y[rows], weights=1 / variance[rows]) for rows in quarters]
    errors = [1 / (1 / variance[rows]).sum() for rows in quarters]  # variances of the means
    *earlier, last = zip(means, errors)
    return any(last[0] - mean > 3 * math.sqrt(last[1] + error) for mean, error in earlier)


def _shapes(x: np.ndarray, end: float) -> np.ndarray:
    """(G, K + 2) values (1 + x / x0)^-b at every step, at the end and at twice the end."""
    places = np.concatenate([x, [end, 2 * end]])
    rows = []
    for b in EXPONENTS:
        for x0 in end * np.geomspace(0.01, 30, 60):
            rows.append((1 + places / x0) ** -b)
    return np.array(rows)


class _Fits:
    """Weighted least squares of y = c + d f for each of G shapes f: c and d are not below 0.

    With S the weighted sum of squares of the centred f, and d' the best d: chi2(d) = chi2(d') +
    S (d - d')^2. A value of d is accepted where that is within ACCEPTED of the best of all shapes.
    """

    def __init__(self, y: np.ndarray, weight: np.ndarray, shapes: np.ndarray):
        f = shapes[:, : len(y)]
        self.end = shapes[:, -2]
        self.total = weight.sum()
        self.y_mean = (weight * y).sum() / self.total
        self.f_mean = (f * weight).sum(axis=1) / self.total  # (G,)
        centred = f - self.f_mean[:, None]
        self.squares = (weight * centred**2).sum(axis=1)  # S
        free = (centred * (weight * (y - self.y_mean))).sum(axis=1) / self.squares
        self.highest = self.y_mean / self.f_mean  # where c would be 0
        self.d = np.clip(free, 0, self.highest)
        least = (weight * (y - self.y_mean) ** 2).sum() - self.squares * free**2
        self.chi2 = least + self.squares * (self.d - free) ** 2
        self.free = free
        # the family is no more exact than the best fit's residuals say
        degrees = max(1, len(y) - 3)
        self.unit = max(1.0, self.chi2.min() / degrees)
        self.limit = self.chi2.min() + ACCEPTED * self.unit
        self.least = least
        self.best = int(self.chi2.argmin())

    def times(self, factor: np.ndarray) -> Estimate:
        """d times a factor of each shape (G,), at least 0."""
        room = self.limit - self.least
        accepted = room >= 0
        half = np.sqrt(np.maximum(room, 0) / self.squares)
        low = np.clip(self.free - half, 0, self.highest)
        high = np.clip(self.free + half, 0, self.highest)
        accepted &= self.chi2 <= self.limit
        value = float(self.d[self.best] * factor[self.best])
        lowest = float((low * factor)[accepted].min())
        return Estimate(value, lowest, float((high * factor)[accepted].max()))

    def loss_at_end(self) -> Estimate:
        """L(X) = mean of y + d (f(X) - mean of f): the intercept of f - f(X)."""
        away = self.end - self.f_mean  # (G,)
        values = self.y_mean + self.d * away
        variance = 1 / self.total + away**2 / self.squares
        half = np.sqrt(np.maximum(self.limit - self.chi2, 0) * variance)
        accepted = self.chi2 <= self.limit
        low = float((values - half)[accepted].min())
        high = float((values + half)[accepted].max())
        return Estimate(float(values[self.best]), low, high)


# ---- from a finished run -------------------------------------------------------------------------


def curve_of_run(metrics: Sequence[dict], config: dict, pairs: int) -> Curve | None:
    """The same from the lines of metrics.jsonl. None: fewer than 20 steps, or a softened loss.

    config: the run's settings. pairs: how many pairs it trained on.
    """
    if is_softened(config):
        return None
    lines = [line for line in metrics if line.get("epoch") == 1 and line.get("loss") is not None]
    lines = [line for line in lines if "learning_rate" in line]  # not of a log from elsewhere
    if not lines:
        return None
    steps = max(line["step"] for line in lines)
    losses = np.full(steps, math.nan)
    rates = np.full(steps, lines[-1]["learning_rate"])
    for line in lines:
        losses[line["step"] - 1] = line["loss"]
        rates[line["step"] - 1] = line["learning_rate"]
    return learning_curve(losses, np.full(steps, pairs / steps), rates)


def curve_numbers(metrics: Sequence[dict], run: dict) -> dict:
    """curve_loss, curve_gain and the others of docs/metrics.md; {} where there is no curve.

    run: the run's run.json.
    """
    curve = curve_of_run(metrics, run["config"], run.get("pairs", 0))
    numbers = curve.as_numbers() if curve else {}
    return {f"curve_{name}": value for name, value in numbers.items()}


def is_softened(config: dict) -> bool:
    """Do the run's options ask for other margins than those of the least plain loss?

    Then that loss says little about knowledge. Label smoothing is none of them: it only caps the
    margins, at log((1 - e) / e).
    """
    return bool(config.get("margin_scale") or config.get("label_temperature"))
