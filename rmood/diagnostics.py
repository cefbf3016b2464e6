"""What a proxy reward model learned, measured against gold: pure numpy functions.

P prompts, K responses each, M = K (K - 1) / 2 pairs of a prompt. A margin is r_i - r_j of two responses to one prompt
(i < j). Rewards are log-odds (nats) for a model trained by Bradley-Terry, in any unit for gold; their offset means nothing
(only margins enter the loss), so agreement and spread are judged on margins.
"""

import math
from collections import defaultdict
from itertools import combinations, permutations

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
