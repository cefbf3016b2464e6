"""What a proxy reward model learned, measured against gold: pure numpy functions.

P prompts, K responses each, M = K (K - 1) / 2 pairs of a prompt. A margin is r_i - r_j of two
responses to one prompt (i < j). Rewards of a model trained by Bradley-Terry are log-odds (nats),
gold's may have any unit. Their offset means nothing (only margins enter the loss), so agreement and
spread are judged on margins.
"""

import math
from itertools import combinations

import numpy as np

from ..errors import UserError
from ..metrics import reward_summary, std_within, wilson

MARGIN_BINS = 5
CALIBRATION_BINS = 10
SCALES = np.logspace(-2, 3, 251)  # candidates for the best factor on all margins


def within_prompt_margins(rewards: np.ndarray) -> np.ndarray:
    """(P, K) rewards -> (P, M) margins r_i - r_j for all i < j: (1, 2), (1, 3), ..., (2, 3), ..."""
    first, second = np.triu_indices(rewards.shape[1], k=1)
    return rewards[:, first] - rewards[:, second]


# ---- agreement -----------------------------------------------------------------------------------


def match_with_gold(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, M) margins -> how often the proxy ranks a pair as gold does; gold's ties are left out.

        match            share with sign(proxy) = sign(gold): a proxy tie is a miss
        match_ties_half  the same, a proxy tie counted as half: the expected value if ties were
                         decided at random
        match_low, match_high   95% interval (Wilson) of match

    The M pairs of a prompt share responses, so the interval counts prompts, not pairs: its n is
    (sum m)^2 / sum m^2 with m compared pairs of a prompt (Kish 1965), as if they agreed fully; for
    two responses per prompt that is the number of pairs. Raises UserError if gold's rewards are
    equal in every pair.
    """
    compared = gold != 0
    pairs = int(compared.sum())
    if pairs == 0:
        raise UserError(
            f"gold gives both responses the same reward in all {gold.size:,} pairs: "
            "nothing to compare, check the gold rewards"
        )
    agreement = np.sign(proxy) * np.sign(gold)  # 1: same order, -1: the other, 0: one of them ties
    hits = int((agreement > 0).sum())
    ties = int((proxy[compared] == 0).sum())
    independent = pairs**2 / np.square(compared.sum(axis=1)).sum()
    low, high = wilson(hits / pairs * independent, independent)
    return {
        "pairs": int(gold.size),
        "gold_ties": int(gold.size) - pairs,
        "compared": pairs,
        "proxy_ties": ties,
        "proxy_tie_share": ties / pairs,
        "match": hits / pairs,
        "match_ties_half": (hits + ties / 2) / pairs,
        "match_low": low,
        "match_high": high,
    }


def match_by(
    by: np.ndarray, proxy: np.ndarray, gold: np.ndarray, bins: int = MARGIN_BINS
) -> list[dict]:
    """Match (a tie is a miss) of the compared pairs in bins of equal size, smallest `by` first.

    by = |gold margin|: a healthy proxy is near 0.5 where gold's rewards are nearly equal, and near
    1 where they differ most. by = `length_gap`: near 1 where gold's choice is longer and low
    where it is shorter is a proxy that goes by length. Equal values stay in one bin, so bins may
    differ in size, and there may be fewer of them.
    """
    compared = gold != 0
    by, proxy, gold = by[compared], proxy[compared], gold[compared]
    inner_edges = np.quantile(by, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of = np.searchsorted(np.unique(inner_edges), by)
    rows = []
    for number in np.unique(bin_of):
        here = bin_of == number
        pairs = int(here.sum())
        hits = int((proxy[here] * gold[here] > 0).sum())
        low, high = wilson(hits, pairs)
        rows.append(
            {
                "from": float(by[here].min()),
                "to": float(by[here].max()),
                "pairs": pairs,
                "match": hits / pairs,
                "match_low": low,
                "match_high": high,
            }
        )
    return rows


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) values -> (n,) ranks 1..n, equal values sharing the mean of their ranks."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho (1904), -1 to 1: the correlation of the ranks; 0 where one side is constant.

    Blind to the spread: a compressed proxy that orders pairs as gold does still has 1.
    """
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def most_wrong(proxy: np.ndarray, gold: np.ndarray, count: int = 8) -> list[tuple[int, int, int]]:
    """(P, K) rewards -> (prompt, response gold prefers, response the proxy prefers), worst first.

    The worst misses have the largest product of both margins. Fewer than `count` where there are
    not as many misses.
    """
    wrongness = -within_prompt_margins(proxy) * within_prompt_margins(gold)  # (P, M) > 0: a miss
    first, second = np.triu_indices(proxy.shape[1], k=1)
    worst = np.argsort(-wrongness, axis=None, kind="stable")[:count]
    misses = []
    for prompt, pair in zip(*np.unravel_index(worst, wrongness.shape)):
        if wrongness[prompt, pair] <= 0:
            break
        i, j = int(first[pair]), int(second[pair])
        if gold[prompt, i] < gold[prompt, j]:
            i, j = j, i
        misses.append((int(prompt), i, j))
    return misses


# ---- spread and calibration ----------------------------------------------------------------------


def spread(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, K) rewards -> standard deviations (dividing by n, not n - 1) and the ratios proxy / gold.

        std          of all rewards: within and across prompts together
        std_within   within prompts, sqrt(mean(margin^2) / 2) over the compared pairs: the loss
                     trains it
        std_across   of the prompts' mean rewards: Bradley-Terry does not train it

    spread_ratio is that of std_within; near 1 the proxy's margins are as wide as gold's, to be
    expected if gold's unit is log-odds too. A ratio is None where gold does not vary.
    """
    gold_margin = within_prompt_margins(gold)
    compared = gold_margin != 0
    proxy_std = proxy.std()
    gold_std = gold.std()
    proxy_within = std_within(within_prompt_margins(proxy)[compared])
    gold_within = std_within(gold_margin[compared])
    proxy_across = proxy.mean(axis=1).std()
    gold_across = gold.mean(axis=1).std()
    return {
        "proxy_std": float(proxy_std),
        "gold_std": float(gold_std),
        "std_ratio": _ratio(proxy_std, gold_std),
        "proxy_std_within": float(proxy_within),
        "gold_std_within": float(gold_within),
        "spread_ratio": _ratio(proxy_within, gold_within),
        "proxy_std_across": float(proxy_across),
        "gold_std_across": float(gold_across),
        "std_across_ratio": _ratio(proxy_across, gold_across),
    }


def _ratio(proxy: float, gold: float) -> float | None:
    return float(proxy / gold) if gold > 0 else None


def calibration(proxy: np.ndarray, gold: np.ndarray, bins: int = CALIBRATION_BINS) -> dict:
    """(P, M) margins -> is sigmoid(margin) the share of pairs that gold ranks so?

    Seen from the side that the proxy prefers: its confidence is c = sigmoid(|margin|), and it is
    right (1), wrong (0) or tied (1/2).

        ece          sum over bins of equal size of n_b / n |mean right - mean c| (Guo et al. 2017,
                     equation 3)
        brier        mean (c - right)^2 (Brier 1950); 0.25 at equal rewards
        best_scale   the factor on all margins with the least loss (temperature scaling, Guo et al.
                     2017, section 4.2, as 1 / T): 1 where the margins are calibrated, above 1
                     where they are narrower than its match allows, below 1 where they are wider
        reliability  one row per bin: confidence, right, pairs
    """
    compared = gold != 0
    towards_gold = proxy[compared] * np.sign(gold[compared])  # (n,) above 0: ranked as gold does
    confidence = 1 / (1 + np.exp(-np.abs(towards_gold)))
    right = (np.sign(towards_gold) + 1) / 2

    reliability = []
    for part in np.array_split(np.argsort(confidence, kind="stable"), bins):
        if len(part) == 0:
            continue
        reliability.append(
            {
                "confidence": float(confidence[part].mean()),
                "right": float(right[part].mean()),
                "pairs": len(part),
            }
        )
    gaps = [row["pairs"] * abs(row["right"] - row["confidence"]) for row in reliability]
    losses = [np.logaddexp(0, -scale * towards_gold).mean() for scale in SCALES]
    return {
        "ece": sum(gaps) / len(right),
        "brier": float(np.square(confidence - right).mean()),
        "best_scale": float(SCALES[int(np.argmin(losses))]),
        "reliability": reliability,
    }


def least_loss(noise: float) -> float:
    """The least mean loss, nats, on labels of which a share `noise` is flipped at random.

    The entropy -e log e - (1 - e) log(1 - e), reached at margins of log((1 - e) / e).
    """
    if noise in (0, 1):
        return 0.0
    return -noise * math.log(noise) - (1 - noise) * math.log(1 - noise)


# ---- what else may explain the rewards -----------------------------------------------------------


def length_gap(gold: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(P, K) gold rewards and lengths -> (P, M) characters by which gold's choice is longer."""
    return within_prompt_margins(lengths) * np.sign(within_prompt_margins(gold))


def length_numbers(proxy: np.ndarray, gold: np.ndarray, lengths: np.ndarray) -> dict:
    """(P, K) rewards and response lengths in characters -> does length explain the rewards?

    proxy_length_correlation, gold_length_correlation   Spearman's rho of margins with length
                     differences, within prompts
    length_match     the match that length alone would reach, by "longer wins" or by "shorter
                     wins", whichever is better; a tie is half
    by_length_gap    match_by of how much longer gold's choice is
    """
    proxy_margin = within_prompt_margins(proxy)
    gold_margin = within_prompt_margins(gold)
    difference = within_prompt_margins(lengths)
    gap = length_gap(gold, lengths)
    compared = gold_margin != 0
    longer_wins = ((np.sign(gap[compared]) + 1) / 2).mean()
    return {
        "proxy_length_correlation": rank_correlation(proxy_margin[compared], difference[compared]),
        "gold_length_correlation": rank_correlation(gold_margin[compared], difference[compared]),
        "length_match": float(max(longer_wins, 1 - longer_wins)),
        "by_length_gap": match_by(gap, proxy_margin, gold_margin),
    }


def gold_numbers(gold: np.ndarray) -> dict:
    """(P, K) gold rewards -> gold_tie_share and gold_at_ends.

    gold_tie_share   share of the pairs with equal gold rewards
    gold_at_ends     share of the rewards within 1% of their range from its ends; some 1% for raw
                     rewards, far more where they were clipped or squashed
    """
    low, high = gold.min(), gold.max()
    near = 0.01 * (high - low)
    at_ends = (gold <= low + near) | (gold >= high - near)
    return {
        "gold_tie_share": float((within_prompt_margins(gold) == 0).mean()),
        "gold_at_ends": float(at_ends.mean()),
    }


def twin_gap(proxy: np.ndarray, responses: list[list[str]]) -> dict:
    """(P, K) rewards and texts -> do identical responses to one prompt get identical rewards?

    twins      number of pairs of identical responses
    twin_gap   their mean |margin| over the std of all margins: above 0 with dropout, or where
               rewards and responses are in different order; absent without twins
    """
    margins = within_prompt_margins(proxy)
    same = np.array([[a == b for a, b in combinations(row, 2)] for row in responses])
    numbers = {"twins": int(same.sum())}
    if same.any() and margins.std() > 0:
        numbers["twin_gap"] = float(np.abs(margins[same]).mean() / margins.std())
    return numbers


def bf16_share(rewards: np.ndarray) -> float:
    """Share of the rewards that bfloat16 holds exactly: float32 with its last 16 bits zero.

    About 1 in 65,536 by chance, so 1.0 says that a bf16 head wrote them. The steps of bf16: 0.0078
    at 1 to 2, 0.031 at 4 to 8, 0.0625 at 8 to 16.
    """
    single = rewards.astype(np.float32)
    is_float32 = single == rewards
    low_bits = single.view(np.uint32) & 0xFFFF
    return float((is_float32 & (low_bits == 0)).mean())


# ---- all of it -----------------------------------------------------------------------------------


def compare(proxy: np.ndarray, gold: np.ndarray, responses: list[list[str]] | None = None) -> dict:
    """(P, K) rewards of proxy and gold -> every number above in one flat dict.

    margin_slope is of proxy margin = slope * gold margin by least squares, sum(p g) / sum(g^2);
    proxy_<x> and gold_<x> are reward_summary and bf16_share of each. responses: the texts, for the
    numbers of length and of twins. Raises UserError where gold's rewards are equal in every pair.
    """
    proxy_margin = within_prompt_margins(proxy)
    gold_margin = within_prompt_margins(gold)
    agreement = match_with_gold(proxy_margin, gold_margin)
    compared = gold_margin != 0
    slope = (proxy_margin * gold_margin).sum() / np.square(gold_margin).sum()
    numbers = {
        **agreement,
        "rank_correlation": rank_correlation(proxy_margin[compared], gold_margin[compared]),
        "by_gold_margin": match_by(np.abs(gold_margin), proxy_margin, gold_margin),
        **spread(proxy, gold),
        "margin_slope": float(slope),
        **calibration(proxy_margin, gold_margin),
        **_summary("proxy", proxy),
        **_summary("gold", gold),
        **gold_numbers(gold),
    }
    if responses is not None:
        lengths = np.array([[len(text) for text in row] for row in responses], dtype=float)
        numbers.update(length_numbers(proxy, gold, lengths))
        numbers.update(twin_gap(proxy, responses))
    return numbers


def _summary(side: str, rewards: np.ndarray) -> dict[str, float]:
    numbers = {f"{side}_{name}": value for name, value in reward_summary(rewards).items()}
    numbers[f"{side}_bf16_share"] = bf16_share(rewards)
    return numbers


def training_summary(metrics: list[dict]) -> dict[str, float]:
    """The lines of a run's metrics.jsonl -> how its training went; {} without a logged step.

        first_loss                  of the first logged step
        last_loss, last_accuracy    means over the last tenth of the logged steps
        loss_fell                   mean loss of the third quarter of the steps minus the last one's
        steps, epochs               of the last logged step
        lost_updates, update_kept   means over the steps in which they were measured
        update_ratio                its 90% quantile
        grad_norm_backbone_max      the largest grad_norm_backbone

    A number is absent where a line does not have it, or it is not finite.
    """
    lines = [line for line in metrics if line.get("loss") is not None]
    if not lines:
        return {}
    measured = [line for line in lines if "lost_updates" in line]  # every --log-every steps
    last_tenth = lines[-max(1, len(lines) // 10) :]
    quarter = len(lines) // 4
    third_quarter = _mean("loss", lines[2 * quarter : 3 * quarter])
    last_quarter = _mean("loss", lines[3 * quarter :])
    summary = {
        "first_loss": lines[0]["loss"],
        "last_loss": _mean("loss", last_tenth),
        "last_accuracy": _mean("accuracy", last_tenth),
        "steps": _mean("step", lines[-1:]),
        "epochs": _mean("epoch", lines[-1:]),
        "loss_fell": third_quarter - last_quarter,
        "lost_updates": _mean("lost_updates", measured),
        "update_kept": _mean("update_kept", measured),
        "update_ratio": np.quantile(_column("update_ratio", measured), 0.9),
        "grad_norm_backbone_max": np.max(_column("grad_norm_backbone", lines)),
    }
    return {name: float(value) for name, value in summary.items() if math.isfinite(value)}


def _column(name: str, lines: list[dict]) -> list[float]:
    """One number of each line; NaN alone where a line does not have it."""
    values = [line.get(name) for line in lines]
    if not values or None in values:
        return [math.nan]
    return values


def _mean(name: str, lines: list[dict]) -> float:
    return float(np.mean(_column(name, lines)))


def expected_best_of_n(proxy: np.ndarray, gold: np.ndarray) -> list[dict]:
    """(P, K) rewards of K samples per prompt -> expected rewards of the best of n, n = 1..K.

        proxy, gold     expected proxy and gold reward of the proxy's pick among n samples
        gold_error      standard error of `gold` over the prompts
        gold_own        the gold reward of gold's own pick: what a perfect proxy would reach
        kl              log n - (n - 1) / n, nats, between best-of-n and the sampled policy
                        (Stiennon et al. 2020, appendix G.3)

    Unbiased (Nakano et al. 2021, appendix I): over all subsets of n of the K samples, so that the
    i-th smallest by proxy, i = 1..K, is the best of C(i - 1, n - 1) of the C(K, n). Where `proxy`
    keeps rising while `gold` falls, the proxy is over-optimised (Gao et al. 2022, figure 1).
    """
    prompts, count = proxy.shape
    worth = {
        "proxy": _in_order_of(proxy, proxy),
        "gold": _in_order_of(proxy, gold),
        "gold_own": _in_order_of(gold, gold),
    }
    rows = []
    for n in range(1, count + 1):
        subsets_won = np.array([math.comb(i, n - 1) for i in range(count)])  # (K,)
        chance = subsets_won / math.comb(count, n)
        row = {"n": n, "kl": math.log(n) - (n - 1) / n}
        for name, ordered in worth.items():
            row[name] = float((ordered @ chance).mean())
        row["gold_error"] = 0.0
        if prompts > 1:
            by_prompt = worth["gold"] @ chance  # (P,)
            row["gold_error"] = float(by_prompt.std(ddof=1) / math.sqrt(prompts))
        rows.append(row)
    return rows


def _in_order_of(picked_by: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """(P, K) worth, ordered by (P, K) picked_by, smallest first; where that ties, the mean."""
    ordered = []
    for picks, values in zip(picked_by, worth):
        rank = ranks(picks)
        ordered.append([values[rank == r].mean() for r in np.sort(rank)])
    return np.array(ordered)
