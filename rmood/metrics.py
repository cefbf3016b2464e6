"""What the rewards of some pairs say, for a step, an epoch and an evaluation; every healthy range.

B pairs; rewards (B, 2), chosen first, in nats of log-odds; a margin is r_chosen - r_rejected.
"""

import math
from dataclasses import dataclass

import numpy as np

INFINITY = float("inf")


@dataclass(frozen=True)
class Healthy:
    """The range [low, high] of a healthy model, and how far outside of it a value may lie.

    short, poor, failed: steps outwards, on the side where the range has a bound; see `grade`.
    """

    low: float = -INFINITY
    high: float = INFINITY
    short: float | None = None
    poor: float | None = None
    failed: float | None = None
    why: str = ""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == -INFINITY:
            return f"at most {self.high:g}"
        if self.high == INFINITY:
            return f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"

    def grade(self, value: float) -> str:
        """The value in one word.

        good    in the range
        fair    outside of it, but beyond none of the steps
        short   beyond the step `short`
        poor    beyond the step `poor`
        failed  beyond the step `failed`
        """
        if value in self:
            return "good"
        if self.failed is not None and self._beyond(self.failed, value):
            return "failed"
        if self.poor is not None and self._beyond(self.poor, value):
            return "poor"
        if self.short is not None and self._beyond(self.short, value):
            return "short"
        return "fair"

    def _beyond(self, step: float, value: float) -> bool:
        return value < step if value < self.low else value > step


# Every healthy range, once. README.md, docs/metrics.md, quickstart.sh, the warnings of train.py,
# the tables of evaluate.py, the report and faults.toml read them or are tested against them.
REFERENCE = "the reference pipeline's expected outcomes"
HEALTHY = {
    # of a training run
    "first_loss": Healthy(0.6, 0.75, why="ln 2 = 0.693 at equal rewards, margin 0"),
    "loss": Healthy(high=0.3, poor=0.5, why=REFERENCE),
    "accuracy": Healthy(low=0.95, short=0.9, poor=0.8, failed=0.7, why=REFERENCE),
    "lost_updates": Healthy(
        high=0.05, poor=0.5, why="0 with float32 weights; bf16-sr: high by design"
    ),
    "update_kept": Healthy(low=0.8, why="1 where rounding loses nothing on average"),
    "dropped_share": Healthy(high=0.1, why="pairs longer than --max-length are left out"),
    "truncated_share": Healthy(high=0.1, why="responses that end at --max-tokens"),
    "test_truncated_share": Healthy(high=0.1, why="as truncated_share"),
    "longest_share": Healthy(high=0.1, why="as truncated_share: texts cut at one length"),
    "gold_cut": Healthy(high=0.1, why="as truncated_share: texts that gold read shortened"),
    "repeated_rows": Healthy(high=0.1, why="10% more rows narrow an interval by 5%"),
    # of a proxy against gold
    "match": Healthy(low=0.8, poor=0.75, failed=0.7, why=f"{REFERENCE}; 0.5 is chance"),
    "right": Healthy(low=0.8, failed=0.7, why="as match; a tie is half"),
    "scale": Healthy(0.67, 1.5, why="1 is calibrated; a factor of 1.5 costs 0.035 bits at most"),
    "spread_ratio": Healthy(
        0.5, 2.0, why=f"{REFERENCE}; described, not judged: gold's unit is arbitrary"
    ),
    "brier": Healthy(high=0.25, why="0.25 at equal rewards, margin 0"),
    "resolution": Healthy(high=0.05, why="a pair whose margin is noise is right half the time"),
    "proxy_tie_share": Healthy(high=0.02, why="a float32 head ties only where the texts do"),
    "twin_gap": Healthy(high=0.05, why="identical responses get identical rewards"),
    "batch_dependence": Healthy(high=0.01, why="in float32 it is below 1e-4"),
    # of gold and of the data
    "gold_tie_share": Healthy(high=0.1, failed=0.3),
    "gold_at_ends": Healthy(high=0.1, why="near 0 for raw rewards, more where they were clipped"),
    "gold_unsure": Healthy(
        low=0.035, why="0.05 / sqrt 2: a margin of 0.05 is a probability of 51%"
    ),
    "label_noise": Healthy(high=0.05, why="0.5 is labels drawn at random"),
    "gold_repeated": Healthy(high=0.05, why="as label_noise: one value that stands for no reward"),
    "foreign_share": Healthy(high=0.05, why="as label_noise: texts of other rows"),
    "duplicate_share": Healthy(high=0.01),
}
SHARED = ("train_", "last_", "read_")  # of the same pairs, measured in other ways


def healthy_range(name: str) -> Healthy | None:
    """The range of a number; that of "accuracy" for train_accuracy, last_accuracy, ..., too."""
    for prefix in SHARED:
        name = name.removeprefix(prefix)
    return HEALTHY.get(name)


def pair_metrics(rewards: np.ndarray, gold_margin: np.ndarray | None = None) -> dict[str, float]:
    """What (B, 2) rewards, chosen first, say about a model.

        loss           mean Bradley-Terry loss, nats; ln 2 = 0.693 at equal rewards (margin 0)
        accuracy       share of pairs with r_chosen > r_rejected; a tie is a miss
        ties           number of pairs with r_chosen = r_rejected
        margin_mean, margin_median, margin_std
        reward_mean, reward_std, reward_min, reward_max   of all 2B rewards; their offset is free
        std_within     spread within the pairs, sqrt(mean(margin^2) / 2): the loss widens it
        std_across     spread of the pairs' mean rewards: the loss leaves it alone
        spread_ratio   std_within over gold's; absent where gold's margins are unknown or all 0

    gold_margin: (B,) gold's own margins, where known. Standard deviations divide by n, not n - 1.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    margin = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "loss": np.logaddexp(0, -margin).mean(),
        "accuracy": (margin > 0).mean(),
        "ties": (margin == 0).sum(),
        "margin_mean": margin.mean(),
        "margin_median": np.median(margin),
        "margin_std": margin.std(),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(),
        "reward_min": rewards.min(),
        "reward_max": rewards.max(),
        "std_within": std_within(margin),
        "std_across": rewards.mean(axis=1).std(),
    }
    if gold_margin is not None and np.any(gold_margin):
        metrics["spread_ratio"] = metrics["std_within"] / std_within(gold_margin)
    return {name: value.item() for name, value in metrics.items()}


def std_within(margin: np.ndarray) -> np.float64:
    """Margins of any shape -> the std of rewards within a prompt, sqrt(mean(margin^2) / 2).

    Each pair counts in both orders, so it does not matter which response is written first.
    """
    return np.sqrt(np.square(np.asarray(margin, dtype=np.float64)).mean() / 2)


def wilson(hits: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share hits / n of n independent trials (Wilson 1927), inside [0, 1].

    p = hits / n, and (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p = hits / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = p + z * z / (2 * n)
    scale = 1 + z * z / n
    low = min(p, (middle - half) / scale)  # p lies inside, also after rounding
    high = max(p, (middle + half) / scale)
    return max(0.0, low), min(1.0, high)


def reward_summary(rewards: np.ndarray) -> dict[str, float]:
    """mean, std, min, max and 5, 25, 50, 75 and 95% quantiles of all rewards, in their own unit."""
    summary = {
        "mean": rewards.mean(),
        "std": rewards.std(),
        "min": rewards.min(),
        "max": rewards.max(),
    }
    for percent in (5, 25, 50, 75, 95):
        summary[f"q{percent:02d}"] = np.quantile(rewards, percent / 100)
    return {name: float(value) for name, value in summary.items()}
