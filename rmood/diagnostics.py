"""What a proxy reward model learned, measured against gold: pure numpy functions, and the rules that turn numbers into findings.

P prompts, K responses each, M = K (K - 1) / 2 pairs of a prompt. A margin is r_i - r_j of two responses to one prompt
(i < j). Rewards are log-odds (nats) for a model trained by Bradley-Terry, in any unit for gold; their offset means nothing
(only margins enter the loss), so agreement and spread are judged on margins.
"""

import math
import re
from collections import defaultdict
from itertools import combinations, permutations
from string import Formatter
from typing import NamedTuple

import numpy as np

from .records import BadInput, Pair

# ---- measurements ----------------------------------------------------------------------------------------------


def within_prompt_margins(rewards: np.ndarray) -> np.ndarray:
    """(P, K) rewards -> (P, M) margins r_i - r_j for all i < j: (1, 2), (1, 3), ..., (2, 3), ..."""
    first, second = np.triu_indices(rewards.shape[1], k=1)
    return rewards[:, first] - rewards[:, second]


def wilson(hits: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share hits / n of n independent trials (Wilson 1927); it stays inside [0, 1].

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p, zz = hits / n, z * z
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    middle, scale = p + zz / (2 * n), 1 + zz / n
    return max(0.0, min(p, (middle - half) / scale)), min(1.0, max(p, (middle + half) / scale))  # p inside, also after rounding


def match_with_gold(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, M) margins -> how often the proxy ranks a pair as gold does. Pairs that gold ties are not compared.

        match            share with sign(proxy) = sign(gold): a proxy tie is a miss
        match_ties_half  the same, a proxy tie counted as half: what a coin would make of it
        match_low, match_high   95% interval (Wilson) of match

    The M pairs of a prompt share responses, so the interval counts prompts, not pairs: n = (sum m)^2 / sum m^2 with m
    compared pairs of a prompt (Kish 1965), as if they agreed fully; n = pairs for two responses a prompt.
    Raises BadInput where nothing can be compared.
    """
    compared = gold != 0
    n = int(compared.sum())
    if n == 0:
        raise BadInput(f"gold gives both responses the same reward in all {gold.size:,} pairs: nothing to compare, check the gold rewards")
    agree = np.sign(proxy) * np.sign(gold)
    hits, ties = int((agree > 0).sum()), int((proxy[compared] == 0).sum())
    independent = n * n / (compared.sum(axis=1) ** 2).sum()
    low, high = wilson(hits / n * independent, independent)
    return dict(
        pairs=int(gold.size), gold_ties=int(gold.size - n), compared=n, proxy_ties=ties, proxy_tie_share=ties / n,
        match=hits / n, match_ties_half=(hits + ties / 2) / n, match_low=low, match_high=high,
    )  # fmt: skip


def match_by(by: np.ndarray, proxy: np.ndarray, gold: np.ndarray, bins: int = 5) -> list[dict]:
    """Match (a tie is a miss) over pairs of like `by`: equal shares of the compared pairs, from the smallest `by` up.

    by = |gold margin|: a healthy proxy is near 0.5 where gold hardly cares, and near 1 where it cares most.
    by = `length_gap`: near 1 where gold's choice is longer and low where it is shorter is a proxy that goes by length.
    Equal values stay in one bin, so bins may differ in size, and fewer than asked may come back.
    """
    by, proxy, gold = by[gold != 0], proxy[gold != 0], gold[gold != 0]
    bin_of = np.searchsorted(np.unique(np.quantile(by, np.linspace(0, 1, bins + 1)[1:-1])), by)
    rows = []
    for b in np.unique(bin_of):
        here = bin_of == b
        n, hits = int(here.sum()), int((proxy[here] * gold[here] > 0).sum())
        low, high = wilson(hits, n)
        rows.append({"from": float(by[here].min()), "to": float(by[here].max()), "pairs": n, "match": hits / n, "match_low": low, "match_high": high})
    return rows


def length_gap(gold: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(P, K) gold rewards and lengths -> (P, M) length of gold's choice minus the other's, in characters."""
    return within_prompt_margins(lengths) * np.sign(within_prompt_margins(gold))


def length_numbers(proxy: np.ndarray, gold: np.ndarray, lengths: np.ndarray) -> dict:
    """(P, K) rewards and response lengths in characters -> does length explain the rewards?

        proxy_length_correlation, gold_length_correlation   Spearman's rho of margins with length differences, within prompts
        length_match     the match that length alone would reach: the better of "longer wins" and "shorter wins", a tie is half
    """
    gap, margin = within_prompt_margins(lengths), within_prompt_margins(gold)
    compared = margin != 0
    longer = ((np.sign(gap[compared]) * np.sign(margin[compared]) + 1) / 2).mean()
    found = {f"{side}_length_correlation": rank_correlation(within_prompt_margins(r)[compared], gap[compared]) for side, r in dict(proxy=proxy, gold=gold).items()}
    return found | {"length_match": float(max(longer, 1 - longer)), "by_length_gap": match_by(length_gap(gold, lengths), within_prompt_margins(proxy), margin)}


def calibration(proxy: np.ndarray, gold: np.ndarray, bins: int = 10) -> dict:
    """(P, M) margins -> is sigmoid(margin) the share of pairs that gold ranks so? Seen from the side the proxy prefers:
    confidence c = sigmoid(|margin|), right = 1, 1/2 for a proxy tie, or 0.

        ece          sum over bins of equal size of n_b / n |mean right - mean c| (Guo et al. 2017, eq. 3)
        brier        mean (c - right)^2 (Brier 1950); 0.25 is no opinion
        best_scale   the factor on all margins with the least loss (temperature scaling, Guo et al. 2017, section 4.2, as
                     1 / T): above 1 the proxy is less sure than its match allows, as a compressed one is; below 1 surer
        reliability  a row a bin: confidence, right, pairs
    """
    proxy, gold = proxy[gold != 0], gold[gold != 0]
    signed = proxy * np.sign(gold)
    confidence, right = 1 / (1 + np.exp(-np.abs(proxy))), (np.sign(signed) + 1) / 2
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    rows = [dict(confidence=float(confidence[part].mean()), right=float(right[part].mean()), pairs=len(part)) for part in parts]
    scales = np.logspace(-2, 3, 251)
    losses = [np.logaddexp(0, -scale * signed).mean() for scale in scales]
    return dict(
        ece=sum(row["pairs"] * abs(row["right"] - row["confidence"]) for row in rows) / len(proxy),
        brier=float(((confidence - right) ** 2).mean()), best_scale=float(scales[int(np.argmin(losses))]), reliability=rows,
    )  # fmt: skip


def least_loss(noise: float) -> float:
    """The least mean Bradley-Terry loss, nats, that labels of which a share `noise` is flipped at random allow:
    the entropy -e log e - (1 - e) log(1 - e), reached at margins of log((1 - e) / e)."""
    return 0.0 if noise in (0, 1) else -noise * math.log(noise) - (1 - noise) * math.log(1 - noise)


def gold_numbers(gold: np.ndarray) -> dict:
    """(P, K) gold rewards -> gold_tie_share of pairs, and gold_at_ends: share of rewards within 1% of the range from its
    ends. Some 1% for an honest head; a clipped or squashed score piles up there."""
    low, high = gold.min(), gold.max()
    near = 0.01 * (high - low)
    ends = ((gold <= low + near) | (gold >= high - near)).mean() if high > low else 1.0
    return dict(gold_tie_share=float((within_prompt_margins(gold) == 0).mean()), gold_at_ends=float(ends))


def twin_gap(proxy: np.ndarray, responses: list[list[str]]) -> dict:
    """Identical responses to one prompt must get one reward. (P, K) rewards, texts -> twins: how many such pairs; and
    twin_gap: their mean |margin| over the spread of all margins, 0 unless chance (dropout) or the wrong order is at work."""
    margins = within_prompt_margins(proxy)
    same = np.array([[a == b for a, b in combinations(row, 2)] for row in responses])
    if not same.any() or margins.std() == 0:
        return dict(twins=int(same.sum()))
    return dict(twins=int(same.sum()), twin_gap=float(np.abs(margins[same]).mean() / margins.std()))


def spread(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, K) rewards -> standard deviations (over all values, not n - 1) and the ratios proxy / gold.

        std          of all rewards: within and across prompts together
        margin_std   of the margins of the compared pairs: within prompts, what the loss trains; sqrt(2) std within
        across_std   of the prompts' mean rewards: Bradley-Terry does not train it

    margin_std_ratio near 1 is a proxy as sure as gold, if gold's unit is log-odds too; 0.5 to 2 passes for healthy. A
    ratio is None where gold does not vary.
    """
    proxy_margin, gold_margin = within_prompt_margins(proxy), within_prompt_margins(gold)
    compared = gold_margin != 0
    sides = {"proxy": (proxy, proxy_margin), "gold": (gold, gold_margin)}
    found = {}
    for side, (rewards, margins) in sides.items():
        found |= {f"{side}_std": rewards.std(), f"{side}_margin_std": margins[compared].std(), f"{side}_across_std": rewards.mean(axis=1).std()}
    for name in ("std", "margin_std", "across_std"):
        found[f"{name}_ratio"] = found[f"proxy_{name}"] / found[f"gold_{name}"] if found[f"gold_{name}"] > 0 else None
    return {name: None if value is None else float(value) for name, value in found.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) values -> (n,) ranks 1..n, equal values sharing the mean of their ranks."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho (1904), -1 to 1: the correlation of the ranks; 0 where one side is constant. Blind to the spread:
    a compressed proxy that orders pairs as gold does still has 1."""
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def reward_summary(rewards: np.ndarray) -> dict:
    """mean, std, min, max and the 5, 25, 50, 75 and 95% quantiles of all rewards, in their own unit."""
    quantiles = {f"q{q:02d}": float(np.quantile(rewards, q / 100)) for q in (5, 25, 50, 75, 95)}
    return dict(mean=float(rewards.mean()), std=float(rewards.std()), min=float(rewards.min()), max=float(rewards.max())) | quantiles


def bf16_share(rewards: np.ndarray) -> float:
    """Share of the rewards that bfloat16 holds exactly: float32 with its last 16 bits zero. About 1 in 65,536 by
    chance, so 1.0 says that a bf16 head wrote them. Its steps: 0.0078 at 1-2, 0.031 at 4-8, 0.0625 at 8-16."""
    single = rewards.astype(np.float32)
    return float(((single == rewards) & (single.view(np.uint32) & 0xFFFF == 0)).mean())


def compare(proxy: np.ndarray, gold: np.ndarray, responses: list[list[str]] | None = None) -> dict:
    """(P, K) rewards of proxy and gold, and the texts where at hand -> every number above in one flat dict; side by side
    as proxy_<x> and gold_<x>. margin_slope: proxy margin = slope * gold margin, by least squares: sum(p g) / sum(g^2)."""
    proxy_margin, gold_margin = within_prompt_margins(proxy), within_prompt_margins(gold)
    found = match_with_gold(proxy_margin, gold_margin)  # refuses what cannot be compared
    compared = gold_margin != 0
    found |= spread(proxy, gold) | {"rank_correlation": rank_correlation(proxy_margin[compared], gold_margin[compared])}
    found |= {"margin_slope": float((proxy_margin * gold_margin).sum() / (gold_margin**2).sum())} | gold_numbers(gold)
    for side, rewards in dict(proxy=proxy, gold=gold).items():
        found |= {f"{side}_{name}": value for name, value in reward_summary(rewards).items()} | {f"{side}_bf16_share": bf16_share(rewards)}
    found |= calibration(proxy_margin, gold_margin) | {"by_gold_margin": match_by(np.abs(gold_margin), proxy_margin, gold_margin)}
    if responses is None:
        return found
    return found | length_numbers(proxy, gold, np.array([[len(text) for text in row] for row in responses], dtype=float)) | twin_gap(proxy, responses)


def expected_best_of_n(proxy: np.ndarray, gold: np.ndarray) -> list[dict]:
    """(P, K) rewards of K samples a prompt -> for n = 1..K what the proxy's pick of n samples is worth to gold.

        proxy, gold     expected proxy and gold reward of the sample with the largest proxy reward among n
        gold_own        the same of gold's own pick: what a perfect proxy would reach
        kl              log n - (n - 1) / n, nats, between best-of-n and the sampled policy (Stiennon et al. 2020, appendix G.3)

    Unbiased (Nakano et al. 2021, appendix I): over all subsets of n of the K samples, so that the i-th smallest by proxy,
    i = 1..K, is the best of C(i - 1, n - 1) of the C(K, n). Equal proxy rewards share their gold rewards evenly.
    Where `proxy` goes on climbing while `gold` falls, the proxy is over-optimised (Gao et al. 2022, figure 1).
    """
    count = proxy.shape[1]

    def by_pick(pick: np.ndarray, worth: np.ndarray) -> np.ndarray:  # (P, K) worth, smallest pick first, ties averaged
        level = [ranks(row) for row in pick]
        return np.array([[w[l == x].mean() for x in np.sort(l)] for w, l in zip(worth, level)])

    ordered = {"proxy": by_pick(proxy, proxy), "gold": by_pick(proxy, gold), "gold_own": by_pick(gold, gold)}
    rows = []
    for n in range(1, count + 1):
        weight = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
        by_prompt = {name: values @ weight for name, values in ordered.items()}
        error = float(by_prompt["gold"].std(ddof=1) / math.sqrt(len(gold))) if len(gold) > 1 else 0.0
        rows.append(dict(n=n, kl=math.log(n) - (n - 1) / n) | {name: float(values.mean()) for name, values in by_prompt.items()} | {"gold_error": error})
    return rows


def pair_quality(rewards: np.ndarray, gold: np.ndarray | None = None) -> dict:
    """(B, 2) rewards, chosen first -> what training sees of its pairs; gold: (B, 2) gold rewards, where known.

        train_accuracy   share with a margin above 0, a tie is a miss        train_loss   mean -log sigmoid(margin), nats
        margin_mean, margin_median, margin_std, ties
        margin_std_ratio sqrt(mean margin^2) of proxy / gold: which side stands first is known here, so each pair is
                         counted in both orders, and this is the standard deviation over them
    """
    margin = rewards[:, 0] - rewards[:, 1]
    accuracy = float((margin > 0).mean())
    low, high = wilson((margin > 0).sum(), len(margin))
    found = dict(train_accuracy=accuracy, train_accuracy_low=low, train_accuracy_high=high, train_loss=float(np.logaddexp(0, -margin).mean()))
    found |= dict(ties=int((margin == 0).sum()), margin_mean=float(margin.mean()), margin_median=float(np.median(margin)), margin_std=float(margin.std()))
    found |= {f"proxy_{name}": value for name, value in reward_summary(rewards).items()}
    size = 0.0 if gold is None else np.sqrt(((gold[:, 0] - gold[:, 1]) ** 2).mean())
    return found | {"margin_std_ratio": float(np.sqrt((margin**2).mean()) / size) if size > 0 else None}


def training_summary(metrics: list[dict]) -> dict:
    """The lines of a run's metrics.jsonl -> first_loss (its first line); train_loss and train_accuracy: means over the last
    tenth of its training lines; loss_fell: by how much the loss of the last quarter is below that of the third;
    steps, epochs; largest grad_norm_backbone; mean lost_updates and update_kept; update_ratio at its 90% quantile."""
    lines = [line for line in metrics if line.get("loss") is not None]
    last, quarter = lines[-max(1, len(lines) // 10) :] if lines else [], len(lines) // 4
    found = {"first_loss": float(lines[0]["loss"]), "steps": lines[-1].get("step"), "epochs": lines[-1].get("epoch")} if lines else {}

    def mean(key, of):
        return np.mean([line[key] for line in of]) if of and all(line.get(key) is not None for line in of) else None

    found |= {"train_loss": mean("loss", last), "train_accuracy": mean("accuracy", last), "lost_updates": mean("lost_updates", lines), "update_kept": mean("update_kept", lines)}
    if quarter:
        found["loss_fell"] = mean("loss", lines[2 * quarter : 3 * quarter]) - mean("loss", lines[3 * quarter :])
    if mean("update_ratio", lines) is not None:
        found["update_ratio"] = np.quantile([line["update_ratio"] for line in lines], 0.9)
    if mean("grad_norm_backbone", lines) is not None:
        found["grad_norm_backbone_max"] = max(line["grad_norm_backbone"] for line in lines)
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def most_wrong(proxy: np.ndarray, gold: np.ndarray, count: int = 8) -> list[tuple[int, int, int]]:
    """(P, K) rewards -> (prompt, response gold prefers, response the proxy prefers) of the worst misses: largest product
    of both margins, each the other way."""
    loss = -within_prompt_margins(proxy) * within_prompt_margins(gold)  # (P, M) above 0 for a miss
    first, second = np.triu_indices(proxy.shape[1], k=1)
    worst = np.argsort(-loss, axis=None, kind="stable")[:count]
    found = []
    for prompt, pair in zip(*np.unravel_index(worst, loss.shape)):
        i, j = int(first[pair]), int(second[pair])
        if loss[prompt, pair] > 0:
            found.append((int(prompt), i, j) if gold[prompt, i] > gold[prompt, j] else (int(prompt), j, i))
    return found


# ---- training pairs --------------------------------------------------------------------------------------------


def sides_in_row(pair: Pair, prompt: list[dict] | None, texts: list[str]) -> list[tuple[int, int]]:
    """Where the chosen and the rejected text stand among the responses of a row (equal texts: in several places); empty
    where they do not. prompt: compared unless None."""
    if prompt is not None and prompt != pair.chosen[:-1]:
        return []
    chosen, rejected = pair.chosen[-1]["content"], pair.rejected[-1]["content"]
    return [(i, j) for i, a in enumerate(texts) if a == chosen for j, b in enumerate(texts) if i != j and b == rejected]


def rows_of(pairs: list[Pair], prompts: list | None, responses: list[list[str]]) -> list[int | None]:
    """The row of each pair: its `index`; without one, the next row that holds both texts (pairs are written in order)."""
    holding = defaultdict(list)  # two texts -> the rows that hold them
    if any(pair.index is None for pair in pairs):
        for row, texts in enumerate(responses):
            for both in set(permutations(texts, 2)):
                holding[both].append(row)
    rows, start = [], 0
    for pair in pairs:
        row = pair.index
        if row is None:
            found = [r for r in holding[pair.chosen[-1]["content"], pair.rejected[-1]["content"]] if prompts is None or prompts[r] == pair.chosen[:-1]]
            row = next((r for r in found if r >= start), found[0] if found else None)
        rows.append(row if isinstance(row, int) and 0 <= row < len(responses) else None)
        if rows[-1] is not None:
            start = rows[-1] + (len(responses[0]) == 2)  # more responses: more pairs of the same row may follow
    return rows


def best_side(sides: list[tuple[int, int]], rewards: list[float]) -> tuple[int, int]:
    """Of equal texts the reading that gold likes best."""
    return max(sides, key=lambda side: rewards[side[0]] - rewards[side[1]])


def pairs_against_gold(
    pairs: list[Pair], prompts: list | None, responses: list[list[str]], gold: list[list[float]], min_margin: float = 0.0, drop_identical: bool = False
) -> list[tuple[str, list[str], str]]:
    """Are these the pairs that gold makes of the responses? Checks: name, a line for each failure, words for success.

    min_margin, drop_identical: what preprocess.py was asked to leave out; a missing pair is neither that nor a gold tie.
    """
    mixed = [f"pair {number}" for number, pair in enumerate(pairs) if pair.chosen[:-1] != pair.rejected[:-1]]
    lost, swapped, differ, disorder, seen, twice = [], [], [], [], {}, []
    last = 0
    for number, (pair, row) in enumerate(zip(pairs, rows_of(pairs, prompts, responses))):
        name = f"pair {number} (row {pair.index if row is None else row})"
        sides = [] if row is None else sides_in_row(pair, prompts and prompts[row], responses[row])
        if not sides:
            lost.append(name)
            continue
        chosen, rejected = (gold[row][i] for i in best_side(sides, gold[row]))
        if chosen <= rejected:
            swapped.append(f"{name}: gold gives the chosen {chosen:g}, the rejected {rejected:g}")
        if pair.chosen_reward is not None and all((pair.chosen_reward, pair.rejected_reward) != (gold[row][i], gold[row][j]) for i, j in sides):
            differ.append(f"{name}: {pair.chosen_reward:g} and {pair.rejected_reward:g} in the pair, {chosen:g} and {rejected:g} by gold")
        if row < last:
            disorder.append(f"{name} follows row {last}")
        last, key = row, (row, *sorted(best_side(sides, gold[row])))
        if key in seen:
            twice.append(f"{name} repeats pair {seen[key]}")
        seen.setdefault(key, number)

    ties, asked, missing = 0, 0, []
    for row, rewards in enumerate(gold):
        for i, j in combinations(range(len(rewards)), 2):
            if rewards[i] == rewards[j]:
                ties += 1
            elif abs(rewards[i] - rewards[j]) < min_margin or (drop_identical and responses[row][i] == responses[row][j]):
                asked += 1
            elif (row, i, j) not in seen:
                missing.append(f"row {row}: gold gives {rewards[i]:g} and {rewards[j]:g}")
    found = len(pairs) - len(lost)
    return [
        ("same prompt on both sides", mixed, "yes"),
        ("texts are those of their row", lost, f"{found:,} pairs found among {len(responses):,} rows"),
        ("chosen is what gold prefers", swapped, f"{found:,} of {found:,} pairs"),
        ("rewards in the pairs are gold's", differ, "yes" if any(pair.chosen_reward is not None for pair in pairs) else "the pairs hold none"),
        ("pairs follow the order of the rows", disorder, "yes"),
        ("no pair twice", twice, "yes"),
        ("no pair is missing", missing, f"{ties:,} gold ties left out" + (f", {asked:,} pairs more as preprocess.py was asked" if asked else "")),
    ]


def label_noise(pairs: list[Pair], prompts: list | None, responses: list | None, gold: list | None) -> dict:
    """label_noise: share of the training pairs whose chosen side gold likes less, of those whose gold rewards are known:
    by the rewards in the pairs, or by the gold file of their texts; with_gold: how many are known."""
    wrong = known = 0
    rows = rows_of(pairs, prompts, responses) if responses and gold else [None] * len(pairs)
    for pair, row in zip(pairs, rows):
        sides = [] if row is None else sides_in_row(pair, prompts and prompts[row], responses[row])
        if sides:
            i, j = best_side(sides, gold[row])
            chosen, rejected = gold[row][i], gold[row][j]
        elif pair.chosen_reward is not None and pair.rejected_reward is not None:
            chosen, rejected = pair.chosen_reward, pair.rejected_reward
        else:
            continue
        known, wrong = known + 1, wrong + (chosen < rejected)
    return dict(label_noise=wrong / known, with_gold=known, least_loss=least_loss(wrong / known)) if known else {}


# ---- findings --------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """One fault: it is found where every number in `when` was measured and lies in its range [from, below)."""

    id: str
    severity: str  # error: the model is not fit for use; warning: look before use
    when: dict[str, tuple[float, float]]
    evidence: tuple[str, ...]  # clauses; those whose numbers were not measured are left out
    causes: tuple[str, ...]  # likeliest first, each with what would tell it from the next
    advice: str
    last_resort: bool = False  # a cause that is named only where nothing else explains the fault


SEVERITIES = ("error", "warning")
SYMPTOMS = ("compressed_rewards", "random_match", "low_match", "training_failed", "not_learning", "loss_not_decreasing", "poor_generalization", "overdispersed_rewards", "tied_rewards")
INF = float("inf")
MATCH = "match with gold {match:.3f} over {compared:,} pairs (95%: {match_low:.3f} to {match_high:.3f}; good is above 0.80, random 0.50)"
ACCURACY = "training accuracy {train_accuracy:.3f} (should be above 0.90)"
RANGES = "rewards {proxy_min:.2f} to {proxy_max:.2f} (std {proxy_std:.2f}), gold's {gold_min:.2f} to {gold_max:.2f} (std {gold_std:.2f})"
TRAIN_LONGER = "raise the rate (a 4B model: --lr 5e-5, not 5e-6) and train --epochs 2 or more; the loss should fall from about 0.7 to below 0.3"

STEPS = "{steps:.0f} steps over {epochs:.0f} epochs, each of {update_ratio:.1e} of the weights' norm"
FALLS_SHORT = {"falls_short": (1, 2)}  # see `findings`

# Causes first, then the symptoms they bring. Thresholds: those of the reference pipeline (match 0.80, accuracy 0.70 / 0.80,
# loss 0.5); the others say their reason, and benchmarks/README.md (planted_faults.py) what was measured on planted faults.
RULES = (
    Rule(
        "rewards_shuffled", "error", {"order_differs": (1, 2)},
        ("the rewards file holds the rewards that {model} gives these responses, but in another order ({order_same:.0%} stand in their row)", MATCH),
        ("rows or responses were shuffled after scoring",),
        "run label.py again, or restore the order; evaluate.py inspect shows texts and rewards side by side",
    ),
    Rule(
        "rewards_shuffled", "error", {"label_noise": (0.4, 0.6)},
        ("gold's rewards contradict {label_noise:.0%} of the training labels: they know nothing of each other", ACCURACY, MATCH),
        ("gold's rewards stand in another order than the responses", "the labels were drawn at random"),
        "label the responses again (label.py), then preprocess.py and train.py",
    ),
    Rule(
        "labels_flipped", "error", {"label_noise": (0.6, 1.01)}, ("gold likes the rejected side better in {label_noise:.0%} of {with_gold:,} training pairs", MATCH),
        ("chosen and rejected are swapped in the training pairs", "the pairs were made from another gold model's rewards"),
        "run preprocess.py again and train again; evaluate.py validate names the pairs",
    ),
    Rule(
        "labels_flipped", "error", {"match_ties_half": (0, 0.4)}, (MATCH, ACCURACY),  # well below chance
        ("chosen and rejected swapped in the training pairs: evaluate.py validate counts the pairs that gold orders the other way",
         "the sign of one side's rewards is turned", "rewards and responses in different order in one of the files: evaluate.py inspect shows both side by side"),
        "check the response order with evaluate.py validate and inspect, run preprocess.py again, train again",
    ),
    Rule(
        "backbone_frozen", "error", {"backbone_moved": (0, 1e-12)},
        ("all {backbone_tensors:.0f} backbone weights compared are those of {start}: only the head was trained", ACCURACY, "a linear probe on the same features reaches {probe_match:.3f}"),
        ("requires_grad was off, or the optimizer was given the head alone",),
        "train all weights",
    ),
    Rule(
        "backbone_frozen", "error", {"grad_norm_backbone_max": (0, 1e-12)}, ("the backbone's gradient was 0 in every step", ACCURACY),
        ("requires_grad was off", "the hidden state was detached before the head"), "train all weights",
    ),
    Rule(
        "bf16_updates_lost", "error", {"lost_updates": (0.5, INF), "update_kept": (-INF, 0.8)} | FALLS_SHORT,  # stochastic rounding keeps 1.0
        ("{lost_updates:.0%} of the weights' updates vanished in rounding, only {update_kept:.0%} of the way that AdamW wanted to go was covered", RANGES, MATCH),
        ("weights kept in pure bf16 (--precision bf16): a weight of 0.02 cannot hold a step of 1e-5",),
        "train with --precision mixed (float32 weights, bf16 compute) or bf16-sr; a higher rate or more epochs alone cure less",
    ),
    Rule(
        "chat_template_missing", "error", {"explained_by_plain": (1, 2)},
        ("{explained} exactly what {model} gives the plain text without its chat template", MATCH),
        ("scored as plain text: the template was not applied",), "score again with label.py, which applies the tokenizer's chat template",
    ),
    Rule(
        "chat_template_missing", "error", {"plain_gain": (0.05, INF), "plain_gain_z": (3, INF)},  # 3 standard errors, and worth it
        ("on its training pairs the model is right in {plain_accuracy:.3f} without the chat template, in {read_accuracy:.3f} with it",),
        ("trained on plain text, scored with the template",), "train with the chat template, or score without it",
    ),
    Rule(
        "chat_template_differs", "error", {"template_differs": (1, 2)}, ("{template_words}", MATCH),
        ("one stage was given another --chat-template, or the tokenizer's was edited between them",),
        "use one chat template for sampling, training and scoring; `template_sha256` in the run files tells them apart",
    ),
    Rule(
        "wrong_scored_token", "error", {"explained_by_token": (1, 2)},
        ("{explained} what the head gives {explained_token}, not at the last token of the rendered text", MATCH),
        ("pad = eos: the last token that is not a pad is then the one before EOS", "the row was padded and its last position was read"),
        "score with label.py, which knows each conversation's length; give the tokenizer a pad token that is not its EOS",
    ),
    Rule(
        "wrong_scored_token", "error", {"token_gain": (0.05, INF), "token_gain_z": (3, INF)},
        ("on its training pairs the model is right in {token_accuracy:.3f} if the head reads {token_words}, in {read_accuracy:.3f} at the last token of the rendered text",),
        ("trained with another scored token: a pad, or the token before EOS",),
        "train again with train.py, which scores the last token of the rendered text, whatever the pad token is",
    ),
    Rule(
        "wrong_scored_token", "error", {"pad_is_last": (1, 2)},
        ("the pad token is the token that closes the rendered text (id {pad_id:.0f}): transformers and vLLM score the token before it",),
        ("pad = eos in config.json",), "set another pad_token_id in config.json and the tokenizer; train.py does so when it saves",
    ),
    Rule(
        "closing_token_cut", "error", {"explained_by_cut": (1, 2)},
        ("{explained} what the head gives conversations cut at {cut_at:.0f} tokens, before the closing token ({cut_share:.0%} are longer)", MATCH),
        ("truncated from the right when scored: the scored token lies in the middle of the response",),
        "raise --max-length; label.py shortens the response and keeps the template's closing tokens",
    ),
    Rule(
        "closing_token_cut", "error", {"cut_gain": (0.05, INF), "cut_gain_z": (3, INF)},
        ("on its training pairs the model is right in {cut_accuracy:.3f} if they are cut at {cut_words} tokens, in {read_accuracy:.3f} at the last token of the rendered text",),
        ("trained on truncated conversations: the head never saw the closing token of the long ones",),
        "raise --max-length and train again; train.py leaves out pairs that are too long instead of cutting them",
    ),
    Rule(
        "closing_token_cut", "error", {"dropped_share": (0.1, 1.01)},
        ("{dropped_share:.0%} of the training pairs are longer than --max-length {max_length:.0f} and were left out, as cutting them would cut the closing token", ACCURACY),
        ("--max-length is too small for this data",), "raise --max-length to at least the longest conversation",
    ),
    Rule(
        "dropout_left_on", "error", {"twin_gap": (0.02, INF), "order_differs": (0, 1)},
        ("identical responses to one prompt get rewards that differ, by {twin_gap:.2f} of the margins' spread ({twins:.0f} such pairs)", "they agree with a second scoring to a correlation of {reproduced:.3f}", MATCH),
        ("the model was scored in training mode: dropout is on (model.eval() is missing)",),
        "score in evaluation mode: label.py and evaluate.py do",
    ),
    Rule(
        "dropout_left_on", "warning", {"config_dropout": (1e-9, INF), "train_accuracy": (0, 0.95)},
        ("config.json asks for a dropout of {config_dropout:g}: a trainer that follows it compares two rewards under different noise", ACCURACY, MATCH),
        ("the base model was configured with dropout for its own training",), "train with dropout 0, as train.py does",
    ),
    Rule(
        "noisy_labels", "error", {"label_noise": (0.05, 0.4)},
        ("gold likes the rejected side better in {label_noise:.1%} of {with_gold:,} training pairs: the best loss on such labels is {least_loss:.3f}", "training loss {train_loss:.3f}", ACCURACY, MATCH),
        ("labels flipped or made by another judge: evaluate.py validate names the pairs",), "make the pairs again with preprocess.py, or train with --label-smoothing {label_noise:.2f}",
    ),
    Rule(
        "rewards_overcentred", "error", {"margin_std_ratio": (0, 0.5), "rank_correlation": (0.6, INF), "best_scale": (2, INF), "train_accuracy": (0.8, INF), "centring_gap": (0.15, INF)},
        ("the order is right (rank correlation with gold {rank_correlation:.2f}, training accuracy {train_accuracy:.3f}) but margins would fit best {best_scale:.1f} times wider; the loss, {train_loss:.3f}, is {centring_gap:.2f} above what the accuracy allows", RANGES),
        ("a term such as (r_chosen + r_rejected)^2 pulls all rewards to 0: with it the spread pays, the order does not",),
        "lower its coefficient, or use --centring, which moves the common offset alone",
    ),
    Rule(
        "gold_saturated", "error", {"gold_at_ends": (0.1, 0.95)},  # some 1% for an honest head; all of them: two values, below
        ("{gold_at_ends:.0%} of gold's rewards lie within 1% of the range from its ends ({gold_min:.2f} and {gold_max:.2f})",),
        ("squashed by a sigmoid (problem_type is not regression in its config.json)", "clipped"), "use gold's raw logits (label.py): a saturated reward hides the differences that the proxy must learn",
    ),
    Rule(
        "gold_nearly_constant", "error", {"gold_tie_share": (0.3, 1.01)}, ("gold gives both responses the same reward in {gold_tie_share:.0%} of the pairs", "gold's rewards {gold_min:.2f} to {gold_max:.2f} (std {gold_std:.3f})"),
        ("gold's rewards were rounded or clipped", "the responses hardly differ: look at the sampling temperature"),
        "score again with a float32 head (label.py), or sample more different responses: nothing can be learned from ties",
    ),
    Rule(
        "gold_nearly_constant", "error", {"gold_margin_std": (0, 0.05)},  # log-odds: at 0.05 gold would bet 51 to 49
        ("gold's margins have a std of {gold_margin_std:.4f}: in log-odds it is no more sure than 51 to 49", "rewards {gold_min:.3f} to {gold_max:.3f}"),
        ("not a reward model's raw output", "the wrong column or scale"), "use gold's raw logits (label.py)",
    ),
    Rule(
        "reward_depends_on_company", "error", {"company_gap": (0.1, INF)},
        ("the same conversation gets another reward in other company: packed, alone, padded on the left or on the right differ by up to {company_gap:.2f} of the margins' spread",),
        ("attention reaches tokens of other rows or pads, or positions count the pads", "the folder's config.json differs from what was trained"), "compare --layout packed with padded; look at the attention mask and position ids",
    ),
    Rule(
        "duplicate_prompts", "warning", {"duplicate_share": (0.01, 1.01)},
        ("{duplicate_share:.1%} of the test prompts are also training prompts: the match is too good by what was learned by heart", MATCH),
        ("the test set was drawn from the training set",), "remove them from one side and train again",
    ),
    Rule(
        "rewards_shuffled", "error", {"train_accuracy": (0.65, INF), "match_low": (0, 0.5), "match_ties_half": (0.4, INF)},
        ("the training pairs were learned but nothing of it holds on test prompts", ACCURACY, MATCH, "a linear probe reaches {probe_match:.3f} on the same gold"),
        ("gold's test rewards, or the proxy's, stand in another order than the responses", "the training labels were shuffled: learned by heart, worth nothing"),
        "evaluate.py inspect and validate on both splits; label again what does not fit", last_resort=True,
    ),
    Rule(
        "learning_rate_too_low", "error", {"update_ratio": (0, 3e-4)} | FALLS_SHORT,  # a 4B model at 5e-5 is near 1e-3, at 5e-6 near 1e-4
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("the rate is too low for these weights and this many steps: all updates arrive ({lost_updates:.0%} lost), they are just small",), TRAIN_LONGER, last_resort=True,
    ),
    Rule(
        "noisy_labels", "error", {"epochs": (2, INF), "update_ratio": (5e-4, INF), "train_accuracy": (0, 0.9), "best_scale": (0, 0.9)} | FALLS_SHORT,
        ("at a rate that moves the weights ({update_ratio:.1e} of their norm a step) the labels are learned by heart, slowly (the loss fell by {loss_fell:.3f} in the last quarter), and on test prompts the margins are surer than right (best {best_scale:.2f} times as wide)", ACCURACY, MATCH),
        ("many labels are wrong: gold's rewards of the training responses, where at hand, tell how many", "too few prompts for what gold judges by"),
        "evaluate.py validate with gold's rewards; --label-smoothing, or better labels", last_resort=True,
    ),
    Rule(
        "learning_rate_too_low", "error", {"epochs": (2, INF), "steps": (100, INF), "train_accuracy": (0, 0.9)} | FALLS_SHORT,
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("the rate is too low: each pair was seen {epochs:.0f} times and is still not learned",), TRAIN_LONGER, last_resort=True,
    ),
    Rule(
        "too_few_epochs", "error", {"update_ratio": (3e-4, INF), "train_accuracy": (0, 0.9)} | FALLS_SHORT,
        (STEPS, "the loss fell by {loss_fell:.3f} in the last quarter", ACCURACY, RANGES),
        ("too few steps: the rate moves the weights, but there was no time",), "train --epochs 2 or more", last_resort=True,
    ),
    Rule(
        "too_few_epochs", "warning", {"epochs": (0, 2), "update_ratio": (3e-4, INF), "train_accuracy": (0, 0.9), "match": (0, 0.8)},
        (STEPS, ACCURACY, MATCH), ("each pair was seen once, and the model was still learning",), "train --epochs 2 or more", last_resort=True,
    ),
    Rule(
        "compressed_rewards", "error", {"margin_std_ratio": (0, 0.5)},  # healthy runs measured 0.55 to 1.3
        ("margins within a prompt spread {margin_std_ratio:.2f} times as wide as gold's (healthy: 0.5 to 2)", RANGES, MATCH,
         "margins {best_scale:.1f} times as wide would fit best: near 1 it is as sure as its match allows and has learned too little, far above 1 it knows more than it says"),
        ("learning rate too low for the number of steps: the loss is still falling at the end, training accuracy is low too",
         "weights trained in pure bf16: small updates are rounded away, most weights are unchanged after training",
         "too few epochs: the same run goes on improving when it is trained longer",
         "noisy labels: with a share e flipped the best margin is log((1 - e) / e), 1.4 for 20%; training accuracy stays under 1 - e",
         "chat template or closing token missing at scoring: training accuracy is fine (evaluate.py quality), the test is not",
         "rewards centred by an extra loss term: the rank correlation with gold is high although the spread is small, and far wider margins would fit"),
        "increase learning rate and epochs: " + TRAIN_LONGER + "; keep float32 weights with bf16 compute; then compare evaluate.py quality and match",
    ),
    Rule(
        "random_match", "error", {"match_ties_half": (0.4, INF), "match_low": (0, 0.5)}, (MATCH, ACCURACY),
        ("the model has not learned: training accuracy (evaluate.py quality) is near 0.5 too",
         "rewards shuffled against responses: training accuracy is high, or evaluate.py validate finds pairs gold orders the other way",
         "the wrong token is scored, or the chat template differs between training and scoring: evaluate.py inspect shows both"),
        "check the data first (evaluate.py validate, inspect), then " + TRAIN_LONGER,
    ),
    Rule(
        "low_match", "error", {"match_low": (0.5, INF), "match": (0, 0.7)}, (MATCH, ACCURACY, "rank correlation of margins {rank_correlation:.2f}"),
        ("training failed: training accuracy (evaluate.py quality) is low too",
         "it does not generalise: training accuracy is high, match is not",
         "scored otherwise than trained (template, closing token, truncation): evaluate.py inspect"),
        "check training accuracy first (evaluate.py quality --num-samples 500); where it is low, " + TRAIN_LONGER,
    ),
    Rule(
        "low_match", "warning", {"match_low": (0.5, INF), "match": (0.7, 0.8)}, (MATCH, ACCURACY, "rank correlation of margins {rank_correlation:.2f}"),
        ("too little training: training accuracy (evaluate.py quality) is below 0.95 too",
         "it does not generalise: training accuracy is high, match is not; more prompts help, more epochs do not",
         "many pairs between which gold hardly chooses: match is low only at small gold margins"),
        "check training accuracy (evaluate.py quality --num-samples 500); where it is low, " + TRAIN_LONGER,
    ),
    Rule(
        "training_failed", "error", {"train_accuracy": (0, 0.7)}, (ACCURACY, "training loss {train_loss:.3f} (should end below 0.3)"),
        ("learning rate too low, or too few epochs: the loss is still falling at the end",
         "the wrong token is scored, or the text is cut before it: evaluate.py inspect shows it",
         "labels at odds with the texts: evaluate.py validate"),
        "verify the data format (evaluate.py validate, inspect), then " + TRAIN_LONGER,
    ),
    Rule(
        "not_learning", "error", {"train_accuracy": (0.7, 0.8)}, (ACCURACY, "training loss {train_loss:.3f} (should end below 0.3)"),
        ("learning rate too low, or too few epochs: the loss is still falling at the end", "noisy labels: the loss has stopped falling well above 0.3"),
        "check hyperparameters: " + TRAIN_LONGER,
    ),
    Rule(
        "loss_not_decreasing", "warning", {"train_loss": (0.5, INF)}, ("training loss {train_loss:.3f} (0.693 is no opinion; should end below 0.3)", ACCURACY),
        ("learning rate too low: the gradient norm is healthy and the loss falls slowly", "data format: evaluate.py validate and inspect", "labels that are noise"),
        "check learning rate, verify data format; " + TRAIN_LONGER,
    ),
    Rule(
        "poor_generalization", "warning", {"train_accuracy": (0.9, INF), "match": (0.4, 0.75)}, (ACCURACY, MATCH),  # healthy: 0.95 and 0.83
        ("scored otherwise than trained: another chat template, no closing token; evaluate.py inspect on both",
         "learned by heart: too many epochs on too few prompts",
         "test responses from another model than the training responses"),
        "high training accuracy with low test accuracy is a generalization issue: compare the rendered texts first, then add prompts or train fewer epochs",
    ),
    Rule(
        "overdispersed_rewards", "warning", {"margin_std_ratio": (2, INF)},
        ("margins within a prompt spread {margin_std_ratio:.2f} times as wide as gold's (healthy: 0.5 to 2)", RANGES),
        ("too many epochs, or too high a rate: training accuracy near 1, surer than its match allows",
         "gold's unit is not log-odds (a scaled score): then the ratio says nothing, the match does"),
        "train fewer epochs or at a lower rate; judge by match on held-out prompts",
    ),
    Rule(
        "tied_rewards", "warning", {"proxy_tie_share": (0.02, 1.01)},
        ("{proxy_ties:,} of {compared:,} pairs tie under the proxy though gold chooses ({proxy_tie_share:.1%}); {proxy_bf16_share:.0%} of its rewards are bf16 values",),
        ("a head in bf16 with compressed rewards: steps of 0.03 at 4 to 8, 0.06 at 8 to 16",
         "identical tokens: the texts differ only where they were cut"),
        "score with a float32 head (label.py and evaluate.py do), or look at --max-length",
    ),
)  # fmt: skip


def findings(numbers: dict) -> list[dict]:
    """The faults that the numbers show, worst first, then in the order of RULES: id, severity, evidence, causes, advice.
    Empty for a healthy model. A rule whose numbers were not measured says nothing, and no fault is named twice."""
    n = numbers | derived(numbers)
    hit = [rule for rule in RULES if all(n.get(name) is not None and low <= n[name] < high for name, (low, high) in rule.when.items())]
    explained = any(rule.id not in SYMPTOMS and not rule.last_resort and rule.severity == "error" for rule in hit)
    guesses = [rule for rule in hit if rule.last_resort]
    hit = [rule for rule in hit if not rule.last_resort or (rule is guesses[0] and not explained)]
    first: dict[str, Rule] = {}
    for rule in sorted(hit, key=lambda rule: SEVERITIES.index(rule.severity)):
        first.setdefault(rule.id, rule)
    return [dict(id=rule.id, severity=rule.severity, evidence=_evidence(rule, n), causes=[_fill(cause, n) for cause in rule.causes], advice=_fill(rule.advice, n)) for rule in first.values()]


def derived(n: dict) -> dict:
    """What rules share: falls_short, 1 where the model misses what a finished one reaches (match 0.75, half of gold's spread,
    training accuracy 0.8 or loss 0.5); centring_gap, the loss above the entropy of its accuracy, nats."""

    def at(name, otherwise):
        return otherwise if n.get(name) is None else n[name]

    short = at("margin_std_ratio", 1) < 0.5 or at("match", 1) < 0.75 or at("train_accuracy", 1) < 0.8 or at("train_loss", 0) > 0.5
    found = {"falls_short": float(short)}
    if n.get("train_accuracy") is not None and n.get("train_loss") is not None:
        found["centring_gap"] = n["train_loss"] - least_loss(1 - n["train_accuracy"])
    return found


def _evidence(rule: Rule, numbers: dict) -> str:
    return "; ".join(_fill(clause, numbers) for clause in rule.evidence if _known(clause, numbers))


def _known(clause: str, numbers: dict) -> bool:
    return all(numbers.get(name) is not None for _, name, _, _ in Formatter().parse(clause) if name)


def _fill(text: str, numbers: dict) -> str:
    """The text with its numbers; as it stands where one was not measured."""
    return text.format(**numbers) if _known(text, numbers) else re.sub(r" \([^()]*\{[^()]*\)", "", text)
