"""Does a proxy's margin mean what it says, and how much does the proxy know? Numpy only.

A reward model trained by Bradley-Terry says sigmoid(margin) for the probability that one response
is preferred. The labels are the signs of gold's margins, so gold's unit and spread do not enter:

    x = sign(gold margin) * proxy margin      above 0 where the proxy ranks the pair as gold does

Two questions, of n compared pairs (gold's ties are left out):

    scale   the factor s on all margins with the least loss mean log(1 + exp(-s x)): the slope of a
            logistic regression without intercept (Cox 1958), the inverse of the temperature of Guo
            et al. (2017, section 4.2). 1: calibrated; above: margins are too narrow for what the
            proxy knows (squeezed); below: too wide (overconfident).
    bits    1 - loss(s x) / ln 2: what it knows of the order of a pair, whatever its scale. 0:
            nothing; 1: everything.

Pairs of one prompt share responses, so every interval is clustered by prompt: a prompt's pairs
count as one draw (Liang and Zeger 1986).
"""

import math
from dataclasses import dataclass

import numpy as np

from ..metrics import wilson

Z = 1.959964  # of a 95% interval
# A factor of 1.5 either way counts as calibrated: it costs at most 0.035 bits, whatever the proxy
# knows (benchmarks/thresholds.py: normal margins of standard deviation 0.5 to 10).
CALIBRATED = (1 / 1.5, 1.5)
# Training bits of a proxy that has learned its training pairs. Half a bit is what calibrated
# margins with a match of 0.85 know; a large model can memorise any pair, so it could reach 1.
LEARNED = 0.5
FEWEST_PROMPTS = 20  # 1 to 3 in 100 calibrated proxies are called otherwise here, below more


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, clustered by prompt. NaN bounds: no interval exists."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} (95%: {self.low:.2f} to {self.high:.2f})"

    @classmethod
    def around(cls, value: float, half: float) -> "Estimate":
        """value - half to value + half"""
        return cls(value, value - half, value + half)

    @classmethod
    def of(cls, numbers: dict, name: str) -> "Estimate":
        """What as_numbers wrote."""
        return cls(numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"])

    def at(self, z: float) -> "Estimate":
        """The normal interval of z standard errors instead of 1.96."""
        return Estimate.around(self.value, (self.high - self.value) * z / Z)

    def as_numbers(self, name: str) -> dict[str, float]:
        """{name, name_low, name_high}"""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def towards_gold(proxy: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, K) rewards -> (n,) x and (n,) the prompt of each; of the pairs that gold does not tie."""
    first, second = np.triu_indices(proxy.shape[1], k=1)
    gold_margin = gold[:, first] - gold[:, second]  # (P, M)
    margin = proxy[:, first] - proxy[:, second]
    prompt, _ = np.nonzero(gold_margin)
    compared = gold_margin != 0
    return margin[compared] * np.sign(gold_margin[compared]), prompt


# ---- intervals clustered by prompt ---------------------------------------------------------------


def sum_by_prompt(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """(n,) values and the prompt of each -> (P,) sums, over the prompts that occur."""
    _, which = np.unique(prompt, return_inverse=True)
    return np.bincount(which, weights=values)


def clustered_error(values: np.ndarray, prompt: np.ndarray) -> float:
    """Standard error of the mean of (n,) values, over prompts; infinite for a single prompt."""
    sums = sum_by_prompt(values - values.mean(), prompt)
    prompts = len(sums)
    if prompts < 2:
        return math.inf
    return math.sqrt(prompts / (prompts - 1) * np.square(sums).sum()) / len(values)


def mean(values: np.ndarray, prompt: np.ndarray) -> Estimate:
    """Mean of (n,) values, with the normal interval of its clustered standard error."""
    half = Z * clustered_error(values, prompt)
    middle = float(values.mean())
    return Estimate.around(middle, half)


def share(hits: np.ndarray, prompt: np.ndarray) -> Estimate:
    """Share of (n,) hits (0, 1, or 1/2 for a tie), with Wilson's interval at the effective n.

    The effective n, 1 to n, is p (1 - p) over the clustered variance of p: that of independent
    pairs with the same standard error (Kish 1965). Where all hits are equal, the number of prompts.
    """
    n = len(hits)
    p = float(hits.mean())
    prompts = len(np.unique(prompt))
    effective = float(prompts)
    if prompts < n and 0 < p < 1:
        error = clustered_error(hits, prompt)
        effective = min(n, max(1.0, p * (1 - p) / error**2)) if error > 0 else n
    return Estimate(p, *wilson(p * effective, effective))


def share_of_rows(hits: np.ndarray) -> Estimate:
    """Share of (P, M) hits: those of one row are of one prompt."""
    return share(hits.ravel().astype(float), np.arange(len(hits)).repeat(hits.shape[1]))


# ---- scale and knowledge -------------------------------------------------------------------------


def loss_at(scale: float, x: np.ndarray) -> np.ndarray:
    """(n,) losses log(1 + exp(-scale x)), nats"""
    return np.logaddexp(0, -scale * x)


def fit_scale(x: np.ndarray, prompt: np.ndarray) -> Estimate:
    """The scale s of (n,) margins towards gold, with the sandwich interval of a logistic slope.

    s solves sum x sigmoid(-s x) = 0, by Newton's method. With the score of a prompt g_p, the sum of
    its x sigmoid(-s x), and the information h = sum x^2 p (1 - p), the standard error is
    sqrt(P / (P - 1) sum g_p^2) / h.

    All pairs right: s is infinite, and `low` is the largest scale at which losses of one pair a
    prompt would add up to 1.92 = Z^2 / 2 (the likelihood interval). All margins 0: NaN.
    """
    size = math.sqrt(np.square(x).mean()) if len(x) else 0.0
    if size == 0:
        return Estimate(math.nan, math.nan, math.nan)
    unit = x / size
    if unit.min() >= 0 or unit.max() <= 0:
        low = _least_scale_of_separated(np.abs(unit), prompt) / size
        if unit.min() >= 0:
            return Estimate(math.inf, low, math.inf)
        return Estimate(-math.inf, -math.inf, -low)
    s = 0.0
    for _ in range(200):
        p = _wrong(s, unit)
        gradient = (unit * p).sum()
        information = (np.square(unit) * p * (1 - p)).sum()
        step = np.clip(gradient / max(information, 1e-12), -1, 1)
        s += step
        if abs(step) < 1e-10 * max(1.0, abs(s)):
            break
    p = _wrong(s, unit)
    information = (np.square(unit) * p * (1 - p)).sum()
    scores = sum_by_prompt(unit * p, prompt)
    prompts = len(scores)
    half = math.inf
    if prompts > 1:
        half = Z * math.sqrt(prompts / (prompts - 1) * np.square(scores).sum()) / information
    return Estimate(float(s / size), float((s - half) / size), float((s + half) / size))


def _wrong(scale: float, x: np.ndarray) -> np.ndarray:
    """sigmoid(-scale x): the probability that the pair is ranked the other way."""
    return np.exp(-np.logaddexp(0, scale * x))


def _least_scale_of_separated(x: np.ndarray, prompt: np.ndarray) -> float:
    _, counts = np.unique(prompt, return_counts=True)
    weight = len(counts) / len(x)  # all pairs together count as one a prompt
    low, high = 0.0, 1.0
    while weight * loss_at(high, x).sum() > Z * Z / 2 and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if weight * loss_at(middle, x).sum() > Z * Z / 2:
            low = middle
        else:
            high = middle
    return low


def knowledge(x: np.ndarray, prompt: np.ndarray, scale: float) -> Estimate:
    """bits = 1 - loss(s x) / ln 2 at the fitted scale (at least 0), with its clustered interval.

    That s was fitted on the same pairs adds some 1 / (2 n ln 2) bits. An infinite scale: all right,
    1 bit.
    """
    s = max(scale, 0.0)
    if math.isnan(s):
        losses = np.full(len(x), math.log(2))
    elif math.isinf(s):
        losses = np.where(x > 0, 0.0, math.log(2))
    else:
        losses = loss_at(s, x)
    bits = mean(1 - losses / math.log(2), prompt)
    return Estimate(bits.value, bits.low, min(1.0, bits.high))


def scale_numbers(x: np.ndarray, prompt: np.ndarray) -> dict:
    """(n,) margins towards gold, and the prompt of each -> the numbers of scale and knowledge.

    scale_pairs, scale_prompts    n, P
    scale, scale_low, scale_high  the factor on all margins with the least loss
    scale_word                    squeezed, overconfident, calibrated or cannot tell
    bits, bits_low, bits_high     what it knows of the order of a pair, at that scale
    loss, loss_low, loss_high     as the margins are, nats; ln 2 = 0.693 says nothing
    loss_scaled                   at that scale
    right, right_low, right_high  share of pairs in gold's order; a tie is half
    """
    scale = fit_scale(x, prompt)
    bits = knowledge(x, prompt, scale.value)
    prompts = len(np.unique(prompt))
    return {
        "scale_pairs": len(x),
        "scale_prompts": prompts,
        **scale.as_numbers("scale"),
        "scale_word": scale_word(scale, prompts),
        **bits.as_numbers("bits"),
        **mean(loss_at(1.0, x), prompt).as_numbers("loss"),
        "loss_scaled": (1 - bits.value) * math.log(2),
        **share((np.sign(x) + 1) / 2, prompt).as_numbers("right"),
    }


def scale_word(scale: Estimate, prompts: int) -> str:
    """The whole interval of the scale, not its value, decides.

    squeezed       above 1.5: the margins are narrower than what the proxy knows
    overconfident  below 1 / 1.5, and above 0: they are wider
    calibrated     between: within a factor of 1.5, they mean what they say
    cannot tell    the interval holds one of the two bounds, or 0 (no factor is right for a proxy
                   that knows nothing), or there are under 20 prompts
    """
    low, high = CALIBRATED
    if prompts < FEWEST_PROMPTS or math.isnan(scale.value):
        return "cannot tell"
    if scale.low > high:
        return "squeezed"
    if 0 < scale.low and scale.high < low:
        return "overconfident"
    if scale.low >= low and scale.high <= high:
        return "calibrated"
    return "cannot tell"


def learning_word(train: Estimate, held_out: Estimate) -> str:
    """Bits on training pairs scored after training, and on held-out pairs -> one word.

    memorised      over half of what it knows of its training pairs holds for them alone:
                   train - 2 held_out is above 0, with its interval
    under-learned  it knows under half a bit of its training pairs. Whether more training, more
                   pairs or nothing would help, these two numbers cannot say: the learning curve
                   can (evaluate.py epochs)
    learned        it knows over half a bit of them, and did not memorise them
    cannot tell    an interval holds the bound
    """
    beyond = train.value - 2 * held_out.value
    half = math.hypot(train.value - train.low, 2 * (held_out.value - held_out.low))
    if beyond - half > 0:
        return "memorised"
    if train.high < LEARNED:
        return "under-learned"
    if train.low > LEARNED and beyond + half < 0:
        return "learned"
    return "cannot tell"
