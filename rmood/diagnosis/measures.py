"""What a proxy reward model learned, measured against gold: pure numpy functions.

P prompts, K responses each, M = K (K - 1) / 2 pairs of a prompt, n of them compared (gold's ties
are left out). A margin is r_i - r_j of two responses to one prompt (i < j). Rewards of a model
trained by Bradley-Terry are log-odds (nats), gold's may have any unit. Their offset means nothing
(only margins enter the loss), so agreement and spread are judged on margins.

Every interval is one of 95%, clustered by prompt (scale.py). No number depends on which response of
a pair is written first, but for those that ask whether it matters (`position_numbers`).
"""

import math
from collections import Counter
from itertools import combinations, permutations
from statistics import NormalDist

import numpy as np

from ..errors import UserError
from ..metrics import reward_summary, std_within
from .scale import (
    FEWEST_PROMPTS,
    Estimate,
    Z,
    clustered_error,
    mean,
    scale_numbers,
    share,
    share_of_rows,
    towards_gold,
)

MARGIN_BINS = 5
CALIBRATION_BINS = 10
CALIBRATED_DRAWS = 200  # simulated data sets of a calibrated model, for ece_expected
GOLD_KINDS = ("log-odds", "rating", "probability")
RATING_STEPS = 21  # a judge's scale has at most so many different values: 0 to 10 in halves
ALIKE = 0.98  # share of the rewards that must agree; the others may be noise of rare size
FEWEST_STEPS = 5  # logged, for an interval by their scatter
NEAR_END = 0.01  # of the range of the rewards: what lies so near to its ends is "at" them


def within_prompt_margins(rewards: np.ndarray) -> np.ndarray:
    """(P, K) rewards -> (P, M) margins r_i - r_j for all i < j: (1, 2), (1, 3), ..., (2, 3), ..."""
    first, second = np.triu_indices(rewards.shape[1], k=1)
    return rewards[:, first] - rewards[:, second]


# ---- agreement -----------------------------------------------------------------------------------


def compared_pairs(gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, M) gold margins -> (P, M) which pairs gold does not tie, and (n,) the prompt of each."""
    compared = gold != 0
    return compared, np.nonzero(compared)[0]


def match_with_gold(proxy: np.ndarray, gold: np.ndarray, same: np.ndarray | None = None) -> dict:
    """(P, M) margins -> how often the proxy ranks a pair as gold does; gold's ties are left out.

        match            share with sign(proxy) = sign(gold): a proxy tie is a miss
        match_ties_half  the same, a proxy tie counted as half: the expected value if ties were
                         decided at random
        match_low, match_high   95% interval of match
        proxy_tie_share, proxy_tie_share_low   share of them that the proxy ties though the texts
                         differ. same: (P, M) where they do not, as far as that is known

    Raises UserError if gold's rewards are equal in every pair.
    """
    compared, prompt = compared_pairs(gold)
    pairs = int(compared.sum())
    if pairs == 0:
        raise UserError(
            f"gold gives both responses the same reward in all {gold.size:,} pairs: "
            "nothing to compare, check the gold rewards"
        )
    agreement = np.sign(proxy[compared]) * np.sign(gold[compared])  # 1: same order, 0: a tie
    match = share((agreement > 0).astype(float), prompt)
    is_tie = agreement == 0
    of_different = is_tie if same is None else is_tie & ~same[compared]
    ties = share(of_different.astype(float), prompt)
    return {
        "pairs": int(gold.size),
        "gold_ties": int(gold.size) - pairs,
        "compared": pairs,
        "proxy_ties": int(is_tie.sum()),
        "proxy_tie_share": ties.value,
        "proxy_tie_share_low": ties.low,
        "match": match.value,
        "match_ties_half": match.value + float(is_tie.mean()) / 2,
        "match_low": match.low,
        "match_high": match.high,
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
    compared, prompt = compared_pairs(gold)
    by, proxy, gold = by[compared], proxy[compared], gold[compared]
    inner_edges = np.quantile(by, np.linspace(0, 1, bins + 1)[1:-1])
    bin_of = np.searchsorted(np.unique(inner_edges), by)
    rows = []
    for number in np.unique(bin_of):
        here = bin_of == number
        match = share((proxy[here] * gold[here] > 0).astype(float), prompt[here])
        rows.append(
            {
                "from": float(by[here].min()),
                "to": float(by[here].max()),
                "pairs": int(here.sum()),
                "match": match.value,
                "match_low": match.low,
                "match_high": match.high,
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


def margin_correlation(a: np.ndarray, b: np.ndarray, prompt: np.ndarray) -> Estimate:
    """Spearman's rho of two kinds of (n,) margins, each pair taken in both orders.

    So it does not matter which response is written first. The interval treats the ranks as given
    and is that of a correlation's influence function, a b - rho (a^2 + b^2) / 2 of standardised a
    and b. Both are 0 where one side does not vary.
    """
    a, b = _standard_ranks(a), _standard_ranks(b)
    rho = float((a * b).mean())
    half = Z * clustered_error(a * b - rho * (np.square(a) + np.square(b)) / 2, prompt)
    return Estimate(rho, max(-1.0, rho - half), min(1.0, rho + half))


def _standard_ranks(margins: np.ndarray) -> np.ndarray:
    """(n,) ranks among the margins of both orders, centred, with a mean square of 1."""
    centred = ranks(np.concatenate([margins, -margins]))[: len(margins)] - len(margins) - 0.5
    size = math.sqrt(np.square(centred).mean())
    return centred / size if size > 0 else centred


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

        ece           sum over bins of equal size of n_b / n |mean right - mean c| (Guo et al. 2017,
                      equation 3). It is above 0 for any finite number of pairs, so beside it:
        ece_expected  what a model shows that is right with probability c: the mean of 200 simulated
                      sets of these very confidences, seed 0, ...
        ece_usual     ... and what 95% of them stay below
        brier         mean (c - right)^2 (Brier 1950); 0.25 at equal rewards
        reliability   one row per bin: confidence, right, pairs
    """
    compared = gold != 0
    towards_gold = proxy[compared] * np.sign(gold[compared])  # (n,) above 0: ranked as gold does
    confidence = 1 / (1 + np.exp(-np.abs(towards_gold)))
    right = (np.sign(towards_gold) + 1) / 2

    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(right)))
    reliability = []
    for part in parts:
        reliability.append(
            {
                "confidence": float(confidence[part].mean()),
                "right": float(right[part].mean()),
                "pairs": len(part),
            }
        )
    draws = np.random.default_rng(0).random((CALIBRATED_DRAWS, len(right)))
    simulated = [_calibration_error(confidence, draw < confidence, parts) for draw in draws]
    return {
        "ece": _calibration_error(confidence, right, parts),
        "ece_expected": float(np.mean(simulated)),
        "ece_usual": float(np.quantile(simulated, 0.95)),
        "brier": float(np.square(confidence - right).mean()),
        "reliability": reliability,
    }


def _calibration_error(confidence: np.ndarray, right: np.ndarray, parts: list) -> float:
    gaps = [abs((right[part] - confidence[part]).sum()) for part in parts]
    return float(sum(gaps) / len(right))


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

    proxy_length_correlation, gold_length_correlation   `margin_correlation` with length
                     differences
    length_excess, length_excess_low   |proxy's| minus |gold's|: what gold does not ask for
    longer_wins, longer_wins_low, longer_wins_high   share of pairs in which gold prefers the longer
                     response; a tie is half
    length_match, length_match_low   the match that length alone would reach, by "longer wins" or by
                     "shorter wins", whichever is better; a tie is half
    against_length, against_length_low, against_length_high   match of the pairs in which gold's
                     choice is not the one that the proxy's own leaning (to longer or to shorter
                     responses) picks. Under 0.5: where length points the other way it is worse
                     than a coin. Absent without such pairs.
    by_length_gap    match_by of how much longer gold's choice is
    """
    proxy_margin = within_prompt_margins(proxy)
    gold_margin = within_prompt_margins(gold)
    difference = within_prompt_margins(lengths)
    gap = length_gap(gold, lengths)
    compared, prompt = compared_pairs(gold_margin)
    of_proxy = margin_correlation(proxy_margin[compared], difference[compared], prompt)
    of_gold = margin_correlation(gold_margin[compared], difference[compared], prompt)
    excess = abs(of_proxy.value) - abs(of_gold.value)
    half = math.hypot(of_proxy.value - of_proxy.low, of_gold.value - of_gold.low)

    longer_wins = share((np.sign(gap[compared]) + 1) / 2, prompt)
    by_length = longer_wins
    if longer_wins.value < 0.5:
        by_length = Estimate(1 - longer_wins.value, 1 - longer_wins.high, 1 - longer_wins.low)
    numbers = {
        "proxy_length_correlation": of_proxy.value,
        "gold_length_correlation": of_gold.value,
        "length_excess": excess,
        "length_excess_low": excess - half,
        **longer_wins.as_numbers("longer_wins"),
        "length_match": by_length.value,
        "length_match_low": by_length.low,
    }
    leaning = 1 if of_proxy.value >= 0 else -1
    against = compared & (gap * leaning < 0)
    if against.any():
        right = (np.sign(proxy_margin[against] * gold_margin[against]) + 1) / 2
        numbers |= share(right, np.nonzero(against)[0]).as_numbers("against_length")
    return numbers | {"by_length_gap": match_by(gap, proxy_margin, gold_margin)}


def longest_share(texts: list[list[str]]) -> Estimate:
    """P rows of K texts -> the share that are exactly as long as the longest one, and no other
    text. Texts of their own length hardly ever are; of texts that were cut at a length all that
    were longer are. Short answers are, too, but of these many are the same: Yes, A, 42.
    """
    times = Counter(text for row in texts for text in row)
    most = max(map(len, times))
    return share_of_rows(
        np.array([[len(text) == most and times[text] == 1 for text in row] for row in texts])
    )


def break_numbers(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, M) margins -> is the proxy right in one part of the file's rows, and not in the rest?

    Rows of gold and proxy that are in step up to one row and not after it look like this.

    break_z         the largest difference of two means, of the prompts before and after a row, over
                    its standard error; 20 prompts and 5% of them on either side. Absent for fewer
    break_words     match before that row and after it
    break_best_low  lower bound of the better one of the two
    break_worst_low, break_worst_high   interval of the other
    """
    compared, prompt = compared_pairs(gold)
    right = (np.sign(proxy[compared] * gold[compared]) + 1) / 2
    rows = np.unique(prompt)
    pairs_of_row = np.bincount(prompt)[rows]
    hits = np.bincount(prompt, weights=right)[rows] / pairs_of_row  # (n,) of the compared prompts
    n = len(hits)
    fewest = max(FEWEST_PROMPTS, math.ceil(0.05 * n))
    if n < 2 * fewest or hits.std() == 0:
        return {}
    before = np.arange(fewest, n - fewest + 1)
    sums = np.cumsum(hits)
    gap = sums[before - 1] / before - (sums[-1] - sums[before - 1]) / (n - before)
    z = np.abs(gap) / np.sqrt(hits.var() * (1 / before + 1 / (n - before)))
    first = rows[before[z.argmax()]]  # the first row after the break
    parts = []
    for part in (prompt < first, prompt >= first):
        parts.append(share(right[part], prompt[part]))
    words = (
        f"right in {parts[0].value:.3f} of the pairs before row {first:,} "
        f"(95%: {parts[0].low:.3f} to {parts[0].high:.3f}), in {parts[1].value:.3f} from it on "
        f"({parts[1].low:.3f} to {parts[1].high:.3f})"
    )
    worst, best = sorted(parts, key=lambda part: part.value)
    return {
        "break_z": float(z.max()),
        "break_words": words,
        "break_best_low": best.low,
        "break_worst_low": worst.low,
        "break_worst_high": worst.high,
    }


def position_numbers(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, M) margins -> is the proxy right more often where the response written first is better?

    gold_first           share of the compared pairs in which gold prefers the one written first
    gold_first_size_low  the lower bound of its distance from 1/2, 0 where its interval holds 1/2
    proxy_first, proxy_first_size_low   the same of the proxy, a tie is half. Where a file has the
                         better response first, both are far from 1/2; where gold adds a constant
                         to one place, the proxy's is near it
    position_bias        half of: match where it does, minus match where it prefers the other; 0.1
                         is 0.9 against 0.7. Absent where gold prefers one side only (files that
                         write the chosen response first)
    position_bias_size_low   the lower bound of |position_bias|, 0 where its interval holds 0
    """
    compared, prompt = compared_pairs(gold)
    right = (np.sign(proxy[compared] * gold[compared]) + 1) / 2
    first = gold[compared] > 0
    of_gold = share(first.astype(float), prompt)
    of_proxy = share((np.sign(proxy[compared]) + 1) / 2, prompt)
    numbers = {
        "gold_first": of_gold.value,
        "gold_first_size_low": _least_distance_from_half(of_gold),
        "proxy_first": of_proxy.value,
        "proxy_first_size_low": _least_distance_from_half(of_proxy),
    }
    if first.all() or not first.any():
        return numbers
    on_first = share(right[first], prompt[first])
    on_second = share(right[~first], prompt[~first])
    bias = (on_first.value - on_second.value) / 2
    half = math.hypot(_half_width(on_first), _half_width(on_second)) / 2
    return numbers | {
        "position_bias": bias,
        "position_bias_size_low": max(0.0, abs(bias) - half),
    }


def _least_distance_from_half(estimate: Estimate) -> float:
    return max(0.0, estimate.low - 0.5, 0.5 - estimate.high)


def _half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def guess_gold_kind(gold: np.ndarray) -> str:
    """(P, K) gold rewards -> rating, probability or log-odds.

    rating       at most 21 different values, fewer than half as many as rewards: a judge's scale
    probability  all of them lie in 0 to 1
    log-odds     neither
    """
    values = len(np.unique(gold))
    if values <= RATING_STEPS and 2 * values <= gold.size:
        return "rating"
    if gold.min() >= 0 and gold.max() <= 1:
        return "probability"
    return "log-odds"


def gold_numbers(
    proxy: np.ndarray,
    gold: np.ndarray,
    kind: str = "auto",
    responses: list[list[str]] | None = None,
) -> dict:
    """(P, K) rewards -> what gold itself allows.

    gold_kind         log-odds, rating or probability; gold_kind_said: 1 if the caller says so, 0 if
                      it was guessed (auto)
    gold_tie_share, gold_tie_share_low   share of the pairs of different responses with equal gold
                      rewards; without the texts, of pairs that gold and proxy do not both tie
    gold_unsure       std within prompts of gold's log-odds (of a probability p: log p / (1 - p));
                      absent for a rating, whose unit is unknown
    gold_at_ends, gold_at_ends_low     share of gold's rewards within 1% of their range from its
                      ends that are equal to another one: near 0 for raw rewards, far more where
                      they were clipped, or squashed and then rounded; absent for a rating, which
                      has few values
    proxy_at_ends, proxy_at_ends_low   the same of the proxy's rewards
    gold_repeated, gold_repeated_low   share of gold's rewards that are its most common one,
                      gold_repeated_value; gold_repeated_over: how many times as often as the next;
                      absent for a rating. proxy_repeated, ...: the same of the proxy's rewards
    """
    said = kind != "auto"
    kind = kind if said else guess_gold_kind(gold)
    proxy_margin = within_prompt_margins(proxy)
    gold_margin = within_prompt_margins(gold)
    different = (proxy_margin != 0) | (gold_margin != 0)
    if responses is not None:
        different = ~identical_responses(responses)
    prompt = np.nonzero(different)[0]
    numbers = {"gold_kind": kind, "gold_kind_said": float(said), "gold_tie_share": 0.0}
    if len(prompt):
        ties = share((gold_margin[different] == 0).astype(float), prompt)
        numbers |= {"gold_tie_share": ties.value, "gold_tie_share_low": ties.low}
    numbers |= _at_ends("proxy", proxy) | _repeated("proxy", proxy)
    if kind == "rating":
        return numbers
    numbers |= _repeated("gold", gold)
    log_odds = gold
    if kind == "probability":
        inside = np.clip(gold, 1e-6, 1 - 1e-6)
        log_odds = np.log(inside / (1 - inside))
    numbers["gold_unsure"] = float(std_within(within_prompt_margins(log_odds)))
    return numbers | _at_ends("gold", gold)


def _at_ends(side: str, rewards: np.ndarray) -> dict:
    low, high = rewards.min(), rewards.max()
    near = NEAR_END * (high - low)
    at_ends = (rewards <= low + near) | (rewards >= high - near)
    _, number, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    at_ends &= (counts[number] > 1).reshape(rewards.shape)
    found = share_of_rows(at_ends)
    return {f"{side}_at_ends": found.value, f"{side}_at_ends_low": found.low}


def _repeated(side: str, rewards: np.ndarray) -> dict:
    values, counts = np.unique(rewards, return_counts=True)
    most, next_most = np.sort(np.concatenate([counts, [1]]))[[-1, -2]]
    value = values[counts.argmax()]
    found = share_of_rows(rewards == value)
    return {
        f"{side}_repeated": found.value,
        f"{side}_repeated_low": found.low,
        f"{side}_repeated_value": float(value),
        f"{side}_repeated_over": float(most / next_most),
    }


def identical_responses(responses: list[list[str]]) -> np.ndarray:
    """P rows of K texts -> (P, M) whether the two texts of a pair are equal."""
    return np.array([[a == b for a, b in combinations(row, 2)] for row in responses])


def agreement_too_good(proxy: np.ndarray, gold: np.ndarray) -> dict:
    """(P, M) margins -> gold_residual: what of the proxy's margins is not a multiple of gold's.

    rms of proxy - slope gold over the rms of proxy, 0 to 1, with the least-squares slope. A proxy
    knows the signs of gold's margins alone, so it cannot come near 0 unless it made them.
    """
    power = np.square(proxy).sum()
    if power == 0:
        return {}
    slope = (proxy * gold).sum() / np.square(gold).sum()
    return {"gold_residual": math.sqrt(np.square(proxy - slope * gold).sum() / power)}


def twin_gap(proxy: np.ndarray, responses: list[list[str]]) -> dict:
    """(P, K) rewards and texts -> do identical responses to one prompt get identical rewards?

    twins      number of pairs of identical responses; twin_share, with its interval: of all pairs
    twin_gap   root mean square of their margins over that of all margins: above 0 with dropout, or
               where rewards and responses are in different order; absent without twins
    """
    margins = within_prompt_margins(proxy)
    same = identical_responses(responses)
    numbers = {"twins": int(same.sum())}
    numbers |= share_of_rows(same).as_numbers("twin_share")
    if same.any() and margins.any():
        numbers["twin_gap"] = float(std_within(margins[same]) / std_within(margins))
    return numbers


def resolution(
    proxy: np.ndarray, gold: np.ndarray, score_noise: float, same: np.ndarray | None = None
) -> dict:
    """(P, K) rewards, and the root mean square of what rounding changes in a margin -> is the order
    of the compared pairs lost in it?

    same: (P, M) where both texts of a pair are equal, and their order is none.

    resolution, resolution_low, resolution_high   share of them with |margin| under twice that noise
    """
    x, prompt = towards_gold(proxy, gold)
    lost = np.abs(x) < 2 * score_noise
    if same is not None:
        compared, _ = compared_pairs(within_prompt_margins(gold))
        lost &= ~same[compared]
    return share(lost.astype(float), prompt).as_numbers("resolution")


def bf16_share(rewards: np.ndarray) -> float:
    """Share of the rewards that bfloat16 holds exactly: float32 with its last 16 bits zero.

    About 1 in 65,536 by chance, so 1.0 says that a bf16 head wrote them. The steps of bf16: 0.0078
    at 1 to 2, 0.031 at 4 to 8, 0.0625 at 8 to 16.
    """
    single = rewards.astype(np.float32)
    is_float32 = single == rewards
    low_bits = single.view(np.uint32) & 0xFFFF
    return float((is_float32 & (low_bits == 0)).mean())


# ---- finished rewards against those that their model gives now -----------------------------------


def compare_with_model(rewards: np.ndarray, own: np.ndarray, noise: float) -> dict:
    """(P, K) finished rewards, and (P, K) what the model that is said to have given them gives now
    -> are they the same, and if not, how do they differ?

    noise: root mean square of what rounding changes in a reward (probes.rounding_numbers).

    reproduced      Spearman's rho of all rewards
    file_is         equal      but for noise and for an offset of a prompt, which means nothing
                    position   plus a constant for each place of a response, times a positive factor
                    rescaled   times a positive factor (file_factor), plus a constant
                    inverted   times a negative factor
                    squashed   a monotone function of it, as a sigmoid is
                    shuffled   the same rewards in another order (file_words); only where the
                               margins' correlation is under 0.5
                    mixed      the same in a part of the rows (same_rows), or in some places only
                    other      none of these: of another model, or of other texts
    file_words      what was found, in words
    file_offset     one constant that is added to all rewards of an equal file, where there is one;
                    file_prompt_offsets: the range of the constants, where each prompt has its own
    file_tolerance  how far two rewards may be apart and count as equal: 4 times the noise, and half
                    a step of bf16 where the file holds bf16 values
    """
    spread = float(own.std()) or 1.0
    tolerance = 4 * noise + 1e-4 * spread
    if bf16_share(rewards) == 1:
        tolerance += 2**-8 * float(np.abs(rewards).max())
    numbers = {
        "reproduced": rank_correlation(rewards.ravel(), own.ravel()),
        "file_tolerance": tolerance,
        "file_is": "other",
        "file_words": f"correlation with its own rewards {_pearson(rewards, own):.3f}",
    }

    def alike(difference: np.ndarray, factor: float = 1.0) -> bool:
        return (np.abs(difference) <= tolerance * factor).mean() >= ALIKE

    margins = within_prompt_margins(rewards)
    own_margins = within_prompt_margins(own)
    if alike(rewards - own) or alike(margins - own_margins, math.sqrt(2)):
        numbers |= {"file_is": "equal", "file_words": "they are the model's own"}
        constant = float(np.median(rewards - own))
        if abs(constant) > tolerance and alike(rewards - own - constant):
            numbers["file_offset"] = constant
        elif not alike(rewards - own):
            of_prompts = np.median(rewards - own, axis=1)
            numbers["file_prompt_offsets"] = float(of_prompts.max() - of_prompts.min())
        return numbers

    if rewards.std() == 0:
        return numbers | {"file_words": f"all of its rewards are {rewards.flat[0]:g}"}

    def offsets(factor: float) -> np.ndarray:
        return np.median(rewards - factor * own, axis=0)  # (K,)

    if alike(rewards - own - offsets(1.0)):
        words = f"{_places(offsets(1.0))}, added to each reward"
        return numbers | {"file_is": "position", "file_words": words}

    factor, constant = np.polyfit(own.ravel(), rewards.ravel(), 1) if own.std() else (0.0, 0.0)
    if factor and alike(rewards - factor * own - constant, max(abs(factor), 1e-3)):
        return numbers | {
            "file_is": "rescaled" if factor > 0 else "inverted",
            "file_factor": float(factor),
            "file_words": f"{factor:.4g} times the model's rewards {constant:+.3g}",
        }

    factor = _slope_within_places(rewards, own)
    if factor > 0 and alike(rewards - factor * own - offsets(factor), max(factor, 1e-3)):
        words = f"{factor:.4g} times the model's rewards, and {_places(offsets(factor))}"
        return numbers | {"file_is": "position", "file_words": words}

    if _pearson(margins, own_margins) < 0.5:
        words = _order_in_words(rewards, own, tolerance)
        if words:
            return numbers | {"file_is": "shuffled", "file_words": words}

    left = _left_of_monotone(rewards.ravel(), own.ravel())
    left_of_line = 1 - _pearson(rewards, own) ** 2  # noise leaves about as much of either
    if left < 1e-3 + 4 * (noise / spread) ** 2 and left < left_of_line / 4:
        words = "a monotone function of the model's rewards, but not a linear one"
        return numbers | {"file_is": "squashed", "file_words": words}

    same = (np.abs(rewards - own) <= tolerance).all(axis=1)  # (P,)
    by_chance = (np.abs(np.roll(rewards, 1, axis=0) - own) <= tolerance).all(axis=1)
    if same.mean() > 0.1 + 2 * by_chance.mean():
        rows = np.nonzero(~same)[0]
        # rewards of another model are drawn alike, so their sorted values are near, too: a quarter
        # of the tolerance is the noise itself
        if _same_values(rewards[rows], own[rows], tolerance / 4):
            words = f"{len(rows):,} rows from {rows[0]:,} to {rows[-1]:,} hold each other's rewards"
            return numbers | {"file_is": "shuffled", "file_words": words}
        words = f"rows {rows[0]:,} to {rows[-1]:,} hold the {(~same).sum():,} that are not"
        return numbers | {"file_is": "mixed", "same_rows": float(same.mean()), "file_words": words}
    of_places = (np.abs(rewards - own) <= tolerance).mean(axis=0) >= ALIKE  # (K,)
    if of_places.any():
        kept = ", ".join(str(place + 1) for place in np.nonzero(of_places)[0])
        words = f"every row holds them in the places {kept} alone"
        return numbers | {"file_is": "mixed", "same_rows": float(same.mean()), "file_words": words}
    return numbers


def _slope_within_places(rewards: np.ndarray, own: np.ndarray) -> float:
    """The factor of (P, K) own in rewards = factor * own + a constant for each place."""
    own = own - own.mean(axis=0)
    power = np.square(own).sum()
    return float((own * rewards).sum() / power) if power > 0 else 0.0


def _places(offsets: np.ndarray) -> str:
    return ", ".join(f"response {i}: {offset:+.3g}" for i, offset in enumerate(offsets, 1))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    size = math.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0


def _order_in_words(rewards: np.ndarray, own: np.ndarray, tolerance: float) -> str:
    """In which order (P, K) rewards hold the model's own; "" where they are other rewards."""

    def same_rows(reordered: np.ndarray) -> float:
        return float((np.abs(rewards - reordered) <= tolerance).all(axis=1).mean())

    prompts, count = own.shape
    if count <= 4:
        for order in permutations(range(count)):
            if same_rows(own[:, order]) >= ALIKE:
                places = ", ".join(str(place + 1) for place in order)
                return f"in each row the responses are in the order {places}"
    if same_rows(own[::-1]) >= ALIKE:
        return "the rows are in reverse order"
    if same_rows(own.T.reshape(own.shape)) >= ALIKE:
        return "all first responses come first, then all second ones"
    for row in np.nonzero((np.abs(own - rewards[0]) <= tolerance).all(axis=1))[0]:
        if same_rows(np.roll(own, -row, axis=0)) >= ALIKE:
            return f"row 0 holds the rewards of row {row:,}, and so on"
    if not _same_values(rewards, own, tolerance):
        return ""
    in_place = (np.abs(np.sort(rewards) - np.sort(own)) <= tolerance).all(axis=1).mean()
    if in_place >= ALIKE:
        moved = 1 - same_rows(own)
        return f"in {moved:.0%} of the rows the responses are in another order"
    elsewhere = _found_rows(rewards, own, tolerance)
    if elsewhere > 0.9:
        return "each row holds the rewards of another row, by no simple rule"
    return "the same rewards, in other rows and places"


def _same_values(rewards: np.ndarray, own: np.ndarray, tolerance: float) -> bool:
    """Are they the same rewards, in whatever order?"""
    return np.abs(np.sort(rewards, axis=None) - np.sort(own, axis=None)).mean() <= tolerance


def _found_rows(rewards: np.ndarray, own: np.ndarray, tolerance: float) -> float:
    """Share of the (P, K) rows of rewards that are a row of own."""
    found = 0
    for row in rewards:
        found += bool((np.abs(own - row) <= tolerance).all(axis=1).any())
    return found / len(rewards)


def _left_of_monotone(values: np.ndarray, of: np.ndarray) -> float:
    """Share of the variance of (n,) values that no rising function of (n,) `of` explains.

    Isotonic regression by pooling adjacent violators (Ayer et al. 1955).
    """
    if values.std() == 0:
        return 1.0
    means: list[float] = []
    counts: list[int] = []
    for value in values[np.lexsort((values, of))]:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            count = counts.pop()
            mean_of_last = means.pop()
            means[-1] = (means[-1] * counts[-1] + mean_of_last * count) / (counts[-1] + count)
            counts[-1] += count
    fitted = np.repeat(means, counts)
    ordered = values[np.lexsort((values, of))]
    return float(np.square(ordered - fitted).mean() / values.var())


# ---- all of it -----------------------------------------------------------------------------------


def compare(
    proxy: np.ndarray,
    gold: np.ndarray,
    responses: list[list[str]] | None = None,
    gold_kind: str = "auto",
) -> dict:
    """(P, K) rewards of proxy and gold -> every number above in one flat dict.

    margin_slope is of proxy margin = slope * gold margin by least squares, sum(p g) / sum(g^2);
    proxy_<x> and gold_<x> are reward_summary and bf16_share of each; the numbers of scale and
    knowledge are scale.scale_numbers. responses: the texts, for the numbers of length and of twins.
    gold_kind: one of GOLD_KINDS, or "auto". A number that is not finite (the scale of a proxy that
    is right in all pairs) is None. Raises UserError where gold's rewards are equal in every pair.
    """
    proxy_margin = within_prompt_margins(proxy)
    gold_margin = within_prompt_margins(gold)
    same = None if responses is None else identical_responses(responses)
    agreement = match_with_gold(proxy_margin, gold_margin, same)
    compared, prompt = compared_pairs(gold_margin)
    correlation = margin_correlation(proxy_margin[compared], gold_margin[compared], prompt)
    slope = (proxy_margin * gold_margin).sum() / np.square(gold_margin).sum()
    numbers = {
        **agreement,
        **finite(scale_numbers(*towards_gold(proxy, gold))),
        "rank_correlation": correlation.value,
        "by_gold_margin": match_by(np.abs(gold_margin), proxy_margin, gold_margin),
        **spread(proxy, gold),
        "margin_slope": float(slope),
        **agreement_too_good(proxy_margin, gold_margin),
        **calibration(proxy_margin, gold_margin),
        **position_numbers(proxy_margin, gold_margin),
        **break_numbers(proxy_margin, gold_margin),
        **_summary("proxy", proxy),
        **_summary("gold", gold),
        **gold_numbers(proxy, gold, gold_kind, responses),
    }
    if responses is not None:
        lengths = np.array([[len(text) for text in row] for row in responses], dtype=float)
        numbers.update(length_numbers(proxy, gold, lengths))
        numbers.update(longest_share(responses).as_numbers("longest_share"))
        numbers.update(twin_gap(proxy, responses))
    return numbers


def finite(numbers: dict) -> dict:
    """The same with None in place of a number that is infinite or NaN: JSON has neither."""
    kept = {}
    for name, value in numbers.items():
        is_number = isinstance(value, (int, float))
        kept[name] = None if is_number and not math.isfinite(value) else value
    return kept


def _summary(side: str, rewards: np.ndarray) -> dict[str, float]:
    numbers = {f"{side}_{name}": value for name, value in reward_summary(rewards).items()}
    numbers[f"{side}_bf16_share"] = bf16_share(rewards)
    return numbers


def train_numbers(rewards: np.ndarray, prompts: list[str]) -> dict:
    """(B, 2) rewards of training pairs, chosen first, scored after training, and the prompt of each
    -> train_<x> for x of scale.scale_numbers: scale, bits, right and loss with their intervals, and
    the word of the scale; train_prompts, how many prompts they are of."""
    numbers, prompt = np.unique(prompts, return_inverse=True)
    found = {"train_prompts": len(numbers)}
    for name, value in finite(scale_numbers(rewards[:, 0] - rewards[:, 1], prompt)).items():
        if name not in ("scale_pairs", "scale_prompts", "loss_scaled"):
            found[f"train_{name}"] = value
    return found


def training_summary(metrics: list[dict]) -> dict[str, float]:
    """The lines of a run's metrics.jsonl -> how its training went; {} without a logged step.

        first_loss                  of the first logged step
        last_loss, last_accuracy    means over the last tenth of the logged steps, of pairs before
                                    their update; with _low and _high, their 95% interval by the
                                    scatter from step to step, where these are five steps or more
        new_accuracy                mean over the last quarter of epoch 1's steps: where each pair
                                    is new then, this is held out; with _low and _high
        rate_sum                    sum of the logged steps' rates
        reward_drift                the largest distance of a step's mean reward from the first
                                    step's, nats: the loss is blind to it
        drift_over_margins          that over the spread within pairs in the last tenth of the steps
        loss_fell                   mean loss of the third quarter of the steps minus the last one's
        steps, epochs               of the last logged step
        lost_updates, update_kept   means over the steps in which they were measured
        update_ratio, update_ratio_max      its 90% quantile, and its largest
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
    ratios = _column("update_ratio", measured)
    offsets = np.array(_column("reward_mean", lines))
    spread = _mean("std_within", last_tenth)
    summary = {
        "first_loss": lines[0]["loss"],
        "steps": _mean("step", lines[-1:]),
        "epochs": _mean("epoch", lines[-1:]),
        "loss_fell": third_quarter - last_quarter,
        "rate_sum": np.sum(_column("learning_rate", lines)),
        "reward_drift": np.max(np.abs(offsets - offsets[0])),
        "lost_updates": _mean("lost_updates", measured),
        "update_kept": _mean("update_kept", measured),
        "update_ratio": np.quantile(ratios, 0.9),
        "update_ratio_max": np.max(ratios),
        "grad_norm_backbone_max": np.max(_column("grad_norm_backbone", lines)),
    }
    summary["drift_over_margins"] = summary["reward_drift"] / spread if spread else math.nan
    for name in ("loss", "accuracy"):
        summary |= _of_steps(f"last_{name}", _column(name, last_tenth))
    first_pass = [line for line in lines if line.get("epoch") == 1]
    last_of_first = first_pass[len(first_pass) * 3 // 4 :]
    if len(last_of_first) >= FEWEST_STEPS:
        summary |= _of_steps("new_accuracy", _column("accuracy", last_of_first))
    return {name: float(value) for name, value in summary.items() if math.isfinite(value)}


def _of_steps(name: str, values: list[float]) -> dict:
    """The mean, and its interval by the scatter from step to step where the steps are enough."""
    if len(values) < FEWEST_STEPS:
        return {name: float(np.mean(values))}
    return mean(np.array(values), np.arange(len(values))).as_numbers(name)


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
        decline, decline_low, decline_high   gold at the n where it is largest, minus gold at this
                        n, with its interval over prompts: both picks are made for the same prompts,
                        which leaves out what the prompts differ in. As the largest n was sought
                        among K, it is a 95% interval of all K - 1 differences together
                        (Bonferroni).
        kl              log n - (n - 1) / n, nats: the KL divergence of best-of-n from the sampled
                        policy, an upper bound where rewards tie (Stiennon et al. 2020, appendix
                        G.3)

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
    by_prompt = []  # for each n the (P,) gold rewards of the pick
    for n in range(1, count + 1):
        subsets_won = np.array([math.comb(i, n - 1) for i in range(count)])  # (K,)
        chance = subsets_won / math.comb(count, n)
        row = {"n": n, "kl": math.log(n) - (n - 1) / n}
        for name, ordered in worth.items():
            row[name] = float((ordered @ chance).mean())
        by_prompt.append(worth["gold"] @ chance)
        row["gold_error"] = _error(by_prompt[-1])
        rows.append(row)

    best = by_prompt[int(np.argmax([row["gold"] for row in rows]))]
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, count - 1))
    for row, gold_of_pick in zip(rows, by_prompt):
        difference = best - gold_of_pick
        decline = float(difference.mean())
        half = z * _error(difference)
        row |= Estimate.around(decline, half).as_numbers("decline")
    return rows


def _error(values: np.ndarray) -> float:
    """The standard error of the mean of (P,) values; 0 for a single prompt."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _in_order_of(picked_by: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """(P, K) worth, ordered by (P, K) picked_by, smallest first; where that ties, the mean."""
    ordered = []
    for picks, values in zip(picked_by, worth):
        rank = ranks(picks)
        ordered.append([values[rank == r].mean() for r in np.sort(rank)])
    return np.array(ordered)
