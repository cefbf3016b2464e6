"""What a proxy reward model learned, measured against gold: pure numpy functions, and the rules that turn numbers into verdicts.

P prompts, K responses each, M = K (K - 1) / 2 pairs of a prompt. A margin is r_i - r_j of two responses to one prompt
(i < j). Rewards are log-odds (nats) for a model trained by Bradley-Terry, in any unit for gold; their offset means nothing
(only margins enter the loss), so agreement and spread are judged on margins.
"""

import math
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


def match_by_gold_margin(proxy: np.ndarray, gold: np.ndarray, bins: int = 5) -> list[dict]:
    """Match (a tie is a miss) over pairs of like difficulty: equal shares of the compared pairs by |gold margin|.

    A healthy proxy is near 0.5 where gold hardly cares, and near 1 where it cares most; equal values of |gold margin|
    stay in one bin, so bins may differ in size, and fewer than asked may come back.
    """
    proxy, gold = proxy[gold != 0], gold[gold != 0]
    size = np.abs(gold)
    bin_of = np.searchsorted(np.unique(np.quantile(size, np.linspace(0, 1, bins + 1)[1:-1])), size)
    rows = []
    for b in np.unique(bin_of):
        here = bin_of == b
        n, hits = int(here.sum()), int((proxy[here] * np.sign(gold[here]) > 0).sum())
        low, high = wilson(hits, n)
        rows.append(dict(gold_margin_from=float(size[here].min()), gold_margin_to=float(size[here].max()), pairs=n, match=hits / n, match_low=low, match_high=high))
    return rows


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


def compare(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, K) rewards of proxy and gold -> every number above in one flat dict; side by side as proxy_<x> and gold_<x>."""
    proxy_margin, gold_margin = within_prompt_margins(proxy), within_prompt_margins(gold)
    found = match_with_gold(proxy_margin, gold_margin)  # refuses what cannot be compared
    compared = gold_margin != 0
    found |= spread(proxy, gold) | {"rank_correlation": rank_correlation(proxy_margin[compared], gold_margin[compared])}
    for side, rewards in dict(proxy=proxy, gold=gold).items():
        found |= {f"{side}_{name}": value for name, value in reward_summary(rewards).items()} | {f"{side}_bf16_share": bf16_share(rewards)}
    return found | {"by_gold_margin": match_by_gold_margin(proxy_margin, gold_margin)}


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
    """The lines of a run's metrics.jsonl -> first_loss (its first line), and train_loss and train_accuracy: means over
    the last tenth of its training lines."""
    lines = [line for line in metrics if line.get("loss") is not None]
    last = lines[-max(1, len(lines) // 10) :] if lines else []
    found = {"first_loss": float(lines[0]["loss"])} if lines else {}
    for name, key in dict(train_loss="loss", train_accuracy="accuracy").items():
        if last and all(line.get(key) is not None for line in last):
            found[name] = float(np.mean([line[key] for line in last]))
    return {name: value for name, value in found.items() if math.isfinite(value)}


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


# ---- verdicts --------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """One fault: it is found where every number in `when` was measured and lies in its range [from, below)."""

    id: str
    severity: str  # error: the model is not fit for use; warning: look before use
    when: dict[str, tuple[float, float]]
    evidence: tuple[str, ...]  # clauses; those whose numbers were not measured are left out
    causes: tuple[str, ...]  # likeliest first, each with what would tell it from the next
    advice: str


SEVERITIES = ("error", "warning")
INF = float("inf")
MATCH = "match with gold {match:.3f} over {compared:,} pairs (95%: {match_low:.3f} to {match_high:.3f}; good is above 0.80, random 0.50)"
ACCURACY = "training accuracy {train_accuracy:.3f} (should be above 0.90)"
RANGES = "rewards {proxy_min:.2f} to {proxy_max:.2f} (std {proxy_std:.2f}), gold's {gold_min:.2f} to {gold_max:.2f} (std {gold_std:.2f})"
TRAIN_LONGER = "raise the rate (a 4B model: --lr 5e-5, not 5e-6) and train --epochs 2 or more; the loss should fall from about 0.7 to below 0.3"

# Thresholds: those of the reference pipeline (match 0.80, accuracy 0.70 / 0.80, loss 0.5); the others say their reason.
RULES = (
    Rule(
        "labels_flipped", "error", {"match_ties_half": (0, 0.4)}, (MATCH, ACCURACY),  # well below chance
        ("chosen and rejected swapped in the training pairs: evaluate.py validate counts the pairs that gold orders the other way",
         "rewards and responses in different order in one of the files: evaluate.py inspect shows both side by side"),
        "check the response order with evaluate.py validate and inspect, run preprocess.py again, train again",
    ),
    Rule(
        "compressed_rewards", "error", {"margin_std_ratio": (0, 0.5)},  # healthy runs measured 0.55 to 1.3
        ("margins within a prompt spread {margin_std_ratio:.2f} times as wide as gold's (healthy: 0.5 to 2)", RANGES, MATCH),
        ("learning rate too low for the number of steps: the loss is still falling at the end, training accuracy is low too",
         "weights trained in pure bf16: small updates are rounded away, most weights are unchanged after training",
         "too few epochs: the same run goes on improving when it is trained longer",
         "noisy labels: with a share e flipped the best margin is log((1 - e) / e), 1.4 for 20%; training accuracy stays under 1 - e",
         "chat template or closing token missing at scoring: training accuracy is fine (evaluate.py quality), the test is not",
         "rewards centred by an extra loss term: the rank correlation with gold is high although the spread is small"),
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


def verdicts(numbers: dict) -> list[dict]:
    """The faults that the numbers show, worst first, then in the order of RULES: id, severity, evidence, causes, advice.
    Empty for a healthy model. A rule whose numbers were not measured says nothing."""
    found = [rule for rule in RULES if all(numbers.get(name) is not None and low <= numbers[name] < high for name, (low, high) in rule.when.items())]
    found.sort(key=lambda rule: SEVERITIES.index(rule.severity))
    return [dict(id=rule.id, severity=rule.severity, evidence=_evidence(rule, numbers), causes=list(rule.causes), advice=rule.advice) for rule in found]


def _evidence(rule: Rule, numbers: dict) -> str:
    known = [clause for clause in rule.evidence if all(numbers.get(name) is not None for _, name, _, _ in Formatter().parse(clause) if name)]
    return "; ".join(clause.format(**numbers) for clause in known)
