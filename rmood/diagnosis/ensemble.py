"""Several proxies as one: their rewards combined. Numpy only.

P prompts, K responses each; rewards are (P, K). Models trained by Bradley-Terry have rewards with
an offset of their own for each prompt, and of different scales, so they are standardised first: for
each prompt the mean of its K rewards is taken off, and all are divided by the model's own standard
deviation within prompts, sqrt(mean over prompts of the variance). No gold is used.

    mean      mean over the proxies
    min       the least of them: a response is as good as its sternest judge says
    mean-std  mean - standard deviation over the proxies: less where they disagree

Coste et al. 2024 (arXiv 2310.02743) call the last two worst-case and uncertainty-weighted
optimisation (they subtract a multiple of the variance), and find that they over-optimise less than
one proxy.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .inputs import read_gold, read_rewards_for
from .scale import Estimate, mean
from .text import aligned, interval


def standardised(rewards: np.ndarray, name: str = "rewards") -> np.ndarray:
    """(P, K) rewards -> mean 0 in each prompt, standard deviation 1 within prompts.

    Raises UserError where no two responses to a prompt have different rewards.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean())
    if spread == 0:
        raise UserError(f"{name}: all responses to a prompt have the same reward: leave it out")
    return centred / spread


def _mean_less_std(stacked: np.ndarray) -> np.ndarray:
    return stacked.mean(axis=0) - stacked.std(axis=0)


COMBINATIONS = {
    "mean": lambda stacked: stacked.mean(axis=0),
    "min": lambda stacked: stacked.min(axis=0),
    "mean-std": _mean_less_std,
}


def combined(rewards: Sequence[np.ndarray], how: str, names: Sequence[str] = ()) -> np.ndarray:
    """(P, K) rewards of each of two or more proxies -> (P, K) of the one that they make."""
    if len(rewards) < 2:
        raise UserError(f"--combine {how}: one rewards file: pass two or more to --rewards-path")
    names = names or [f"rewards {number}" for number in range(1, len(rewards) + 1)]
    stacked = np.stack([standardised(one, name) for one, name in zip(rewards, names)])
    return COMBINATIONS[how](stacked)  # of (M, P, K)


def combine_files(
    paths: Sequence[str], how: str, gold_path: str
) -> tuple[np.ndarray, dict[str, dict]]:
    """The proxies of some rewards files as one: (P, K) rewards, and what its picks gain over each.

    The second: path -> gain, gain_low, gain_high: gold reward of its best of K minus that of the
    proxy's, paired by prompt.
    """
    gold = read_gold(gold_path)
    rewards = [read_rewards_for(path, gold_path, gold) for path in paths]
    together = combined(rewards, how, paths)
    gains = {}
    for path, one in zip(paths, rewards):
        gains[path] = gain_of_pick(together, one, gold).as_numbers("gain")
    return together, gains


def gains_table(gains: dict[str, dict]) -> str:
    rows = [["gold of its best of all, minus that of", "", ""]]
    for path, gain in gains.items():
        bounds = interval(gain["gain_low"], gain["gain_high"])
        rows.append([path, f"{gain['gain']:+.4f}", bounds])
    return aligned(rows)


def gain_of_pick(picker: np.ndarray, other: np.ndarray, gold: np.ndarray) -> Estimate:
    """Gold reward of the picker's best of K minus that of the other's, paired by prompt: (P, K)."""
    difference = gold_of_pick(picker, gold) - gold_of_pick(other, gold)
    return mean(difference, np.arange(len(difference)))


def gold_of_pick(picker: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) gold rewards of the responses with the highest rewards; where these tie, their mean."""
    is_best = picker == picker.max(axis=1, keepdims=True)
    return (gold * is_best).sum(axis=1) / is_best.sum(axis=1)
