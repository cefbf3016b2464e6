"""Where the thresholds of the diagnosis come from: simulations, each with its reason.

Reads nothing; prints a table for each part, under two minutes on one core:

    python benchmarks/thresholds.py --json thresholds.json
    python benchmarks/thresholds.py --parts scale cost --draws 200

cost          what margins of a wrong scale cost: why a factor of 1.5 counts as calibrated
scale         how often each word of rmood/diagnosis/scale.py is said of margins whose scale is
              known
needed        how many pairs it takes to tell
few           the same for very few pairs: why none is said below 20 prompts
learning      the words learned, under-learned and memorised, where the bits are known
share         a share of pairs against a value: false alarms, and pairs needed to tell
coverage      how often the 95% intervals hold the truth, for K responses to a prompt
calibration   the calibration error of a model that is calibrated
break         how far the matches before and after a row differ where there is no break

No number here depends on a trained model. Margins are drawn, and each pair's order is drawn from
its margin: a pair of margin m is ranked right with probability sigmoid(|m|). Such margins are
calibrated (s = 1) by construction, and the same margins divided by k have s = k.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from estimate import table
from tqdm import tqdm

from rmood.cli import opt, parse
from rmood.diagnosis import scale
from rmood.diagnosis.measures import break_numbers
from rmood.diagnosis.scale import Estimate
from rmood.errors import UserError, run_script
from rmood.files.rows import check_writable, write_json
from rmood.metrics import wilson

PAIRS = (50, 100, 200, 500, 1000)
SPREADS = (1.0, 2.0, 4.0)  # standard deviations of calibrated margins: a match of 0.70, 0.80, 0.88
POWER = 0.8  # so often must a word be said where it is true, for "so many pairs can tell"


@dataclass(frozen=True)
class Config:
    # fmt: off
    parts: list[str] = opt([], "which parts; none given: all")
    draws: int = opt(1000, "simulated data sets for each row of a table", at_least=10)
    seed: int = opt(0, "seed for all of them", at_least=0)
    json: str = opt("", "write the same numbers to this file")
    # fmt: on


@dataclass(frozen=True)
class Part:
    """A table of the output, and why it is made."""

    reason: str
    simulate: Callable[[np.random.Generator, int], list[dict]]  # (rng, draws) -> its rows


def main() -> None:
    cfg = parse(Config, __doc__)
    unknown = [name for name in cfg.parts if name not in PARTS]
    if unknown:
        raise UserError(f"--parts {unknown[0]}: no such part: use {', '.join(PARTS)}")
    if cfg.json:
        check_writable(cfg.json)
    found = {}
    for name in tqdm(cfg.parts or PARTS, desc="simulating", unit="part"):
        rng = np.random.default_rng(cfg.seed)  # a part gives the same numbers alone
        found[name] = PARTS[name].simulate(rng, cfg.draws)
    for name, rows in found.items():
        head = list(rows[0])
        cells = [[describe(row[column]) for column in head] for row in rows]
        print(f"\n{name}: {PARTS[name].reason}\n\n{table(head, cells)}")
    if cfg.json:
        write_json(cfg.json, {"draws": cfg.draws, "seed": cfg.seed} | found)


def describe(value) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


# ---- what is drawn -----------------------------------------------------------------------------


def calibrated_margins(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    """(n,) margins towards gold of a calibrated proxy: scale.towards_gold gives the same.

    The margins are normal with this standard deviation; the larger, the more the proxy knows.
    """
    size = np.abs(rng.normal(0, spread, n))
    is_right = rng.random(n) < sigmoid(size)
    return np.where(is_right, size, -size)


def sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -margin))


def true_bits(spread: float) -> float:
    """What calibrated margins of this standard deviation know."""
    return 1 - expected_loss(spread, 1.0) / math.log(2)


def true_match(spread: float) -> float:
    return expected(spread, lambda margin: sigmoid(np.abs(margin)))


def expected_loss(spread: float, factor: float) -> float:
    """Mean loss, nats, of calibrated margins times a factor."""

    def loss(margin: np.ndarray) -> np.ndarray:
        right = scale.loss_at(factor, margin)
        wrong = scale.loss_at(factor, -margin)
        return sigmoid(margin) * right + sigmoid(-margin) * wrong

    return expected(spread, loss)


def expected(spread: float, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean of a function of normal margins, by quadrature."""
    margin = np.linspace(-9, 9, 4_001) * spread
    weight = np.exp(-0.5 * np.square(margin / spread))
    return float((weight * function(margin)).sum() / weight.sum())


def times(estimate: Estimate, factor: float) -> Estimate:
    """The scale of margins that are divided by the factor."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)


# ---- the parts -----------------------------------------------------------------------------------


def cost(rng: np.random.Generator, draws: int) -> list[dict]:
    rows = []
    for factor in (1.25, 1.5, 2.0, 3.0, 5.0):
        row = {"factor": factor}
        for words, applied in (("too narrow", 1 / factor), ("too wide", factor)):
            lost = []
            for spread in np.geomspace(0.5, 10, 40):
                extra = expected_loss(spread, applied) - expected_loss(spread, 1.0)
                lost.append(extra / math.log(2))
            row[f"bits lost at most, {words}"] = max(lost)
        rows.append(row)
    return rows


def fitted_scales(rng: np.random.Generator, draws: int, n: int, spread: float) -> list[Estimate]:
    """The scale of n calibrated margins, for each draw of them."""
    prompt = np.arange(n)
    return [scale.fit_scale(calibrated_margins(rng, n, spread), prompt) for _ in range(draws)]


def share_of_word(estimates: list[Estimate], true_scale: float, word: str) -> float:
    """How often this word is said where the margins have this scale, whatever their number."""
    words = [scale.scale_word(times(one, true_scale), scale.FEWEST_PROMPTS) for one in estimates]
    return words.count(word) / len(words)


def scale_words(rng: np.random.Generator, draws: int) -> list[dict]:
    rows = []
    for spread in SPREADS:
        for n in PAIRS:
            estimates = fitted_scales(rng, draws, n, spread)
            false = share_of_word(estimates, 1.0, "squeezed")
            false += share_of_word(estimates, 1.0, "overconfident")
            rows.append(
                {
                    "match": true_match(spread),
                    "pairs": n,
                    "s = 1: false alarm": false,
                    "s = 1: calibrated": share_of_word(estimates, 1.0, "calibrated"),
                    "s = 1.5: squeezed": share_of_word(estimates, 1.5, "squeezed"),
                    "s = 2: squeezed": share_of_word(estimates, 2.0, "squeezed"),
                    "s = 3: squeezed": share_of_word(estimates, 3.0, "squeezed"),
                    "s = 1/2: overconfident": share_of_word(estimates, 0.5, "overconfident"),
                    "s = 1/3: overconfident": share_of_word(estimates, 1 / 3, "overconfident"),
                }
            )
    return rows


def pairs_needed(rng: np.random.Generator, draws: int) -> list[dict]:
    truths = {
        "s = 1: calibrated": (1.0, "calibrated"),
        "s = 2: squeezed": (2.0, "squeezed"),
        "s = 3: squeezed": (3.0, "squeezed"),
        "s = 1/2: overconfident": (0.5, "overconfident"),
        "s = 1/3: overconfident": (1 / 3, "overconfident"),
    }
    numbers = (20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000)
    rows = []
    for spread in SPREADS:
        needed = dict.fromkeys(truths, f"over {numbers[-1]}")
        for n in reversed(numbers):
            estimates = fitted_scales(rng, max(10, draws // 4), n, spread)
            for name, (true_scale, word) in truths.items():
                if share_of_word(estimates, true_scale, word) >= POWER:
                    needed[name] = n
        rows.append({"match": true_match(spread), "bits": true_bits(spread)} | needed)
    return rows


def few_pairs(rng: np.random.Generator, draws: int) -> list[dict]:
    rows = []
    for n in (5, 10, 15, 20, 30, 50):
        row = {"pairs": n}
        for spread in SPREADS:
            estimates = fitted_scales(rng, draws, n, spread)
            false = share_of_word(estimates, 1.0, "squeezed")
            false += share_of_word(estimates, 1.0, "overconfident")
            row[f"s = 1: false alarm, margins of {spread:g}"] = false
        rows.append(row)
    return rows


def learning_words(rng: np.random.Generator, draws: int) -> list[dict]:
    """200 training pairs, as many as evaluate.py scores; more or fewer held-out pairs."""
    cases = (  # spread of the training pairs' margins, of the held-out pairs', what is so
        (1.7, 1.4, "under-learned"),
        (0.83, 0.83, "under-learned"),
        (6.0, 3.2, "learned"),
        (20.0, 6.0, "learned"),
        (20.0, 2.6, "at the bound"),
        (20.0, 1.7, "memorised"),
        (20.0, 0.83, "memorised"),
    )
    rows = []
    for train_spread, held_out_spread, truth in cases:
        for n in (50, 200, 500, 1000):
            said = []
            for _ in range(draws // 2):
                train = known(calibrated_margins(rng, 200, train_spread))
                held_out = known(calibrated_margins(rng, n, held_out_spread))
                said.append(scale.learning_word(train, held_out))
            row = {
                "training bits": true_bits(train_spread),
                "held-out bits": true_bits(held_out_spread),
                "truth": truth,
                "held-out pairs": n,
            }
            for word in ("learned", "under-learned", "memorised", "cannot tell"):
                row[word] = said.count(word) / len(said)
            rows.append(row)
    return rows


def known(x: np.ndarray) -> Estimate:
    """Bits of (n,) margins towards gold, a prompt each."""
    prompt = np.arange(len(x))
    return scale.knowledge(x, prompt, scale.fit_scale(x, prompt).value)


def share_words(rng: np.random.Generator, draws: int) -> list[dict]:
    """The same interval as for a match: an interval that lies on one side of the bound tells."""
    cases = ((0.5, (0.55, 0.6, 0.7)), (0.7, (0.75, 0.8)), (0.8, (0.85, 0.9)), (0.95, (0.98,)))
    rows = []
    for bound, truths in cases:
        for n in PAIRS:
            row = {"bound": bound, "pairs": n, "false alarm": told(rng, draws, n, bound, bound)}
            for truth in truths:
                row[f"told at +{truth - bound:.2f}"] = told(rng, draws, n, truth, bound)
            for gap in ("+0.03", "+0.05", "+0.10", "+0.20"):
                row.setdefault(f"told at {gap}", "")
            rows.append(row)
    head = ["bound", "pairs", "false alarm"]
    head += [f"told at {gap}" for gap in ("+0.03", "+0.05", "+0.10", "+0.20")]
    return [{name: row[name] for name in head} for row in rows]


def told(rng: np.random.Generator, draws: int, n: int, truth: float, bound: float) -> float:
    """How often the interval of n pairs, right with probability `truth`, excludes the bound."""
    hits = rng.binomial(n, truth, draws)
    intervals = [wilson(hit, n) for hit in hits]
    return float(np.mean([low > bound or high < bound for low, high in intervals]))


def coverage(
    rng: np.random.Generator, draws: int, responses_each: tuple[int, ...] = (2, 4, 8, 16)
) -> list[dict]:
    """Prompts differ: a proxy's correlation with gold is 0.95 on half of them, 0.5 on the rest."""
    prompts = 200
    rows = []
    for responses in responses_each:
        truth = all_estimates(*drawn_prompts(rng, 100 * prompts, responses))
        held = {name: [] for name in truth}
        widths = []
        for _ in range(max(10, draws // 2)):
            x, prompt = drawn_prompts(rng, prompts, responses)
            estimates = all_estimates(x, prompt)
            for name, one in estimates.items():
                held[name].append(one.low <= truth[name].value <= one.high)
            low, high = wilson((x > 0).sum(), len(x))
            clustered = estimates["match"].high - estimates["match"].low
            widths.append(clustered / (high - low))
        row = {"K": responses, "pairs": len(x)}
        row |= {f"{name}: held": float(np.mean(hits)) for name, hits in held.items()}
        row["match: clustered width / as if pairs were independent"] = float(np.mean(widths))
        rows.append(row)
    return rows


def drawn_prompts(
    rng: np.random.Generator, prompts: int, responses: int
) -> tuple[np.ndarray, np.ndarray]:
    """Margins towards gold of a proxy whose prompts differ in difficulty, and the prompt of each"""
    rho = rng.choice([0.5, 0.95], prompts)[:, None]
    gold = rng.normal(0, 1, (prompts, responses))
    noise = rng.normal(0, 1, (prompts, responses))
    return scale.towards_gold(rho * gold + np.sqrt(1 - rho**2) * noise, gold)


def all_estimates(x: np.ndarray, prompt: np.ndarray) -> dict[str, Estimate]:
    fitted = scale.fit_scale(x, prompt)
    return {
        "match": scale.share((np.sign(x) + 1) / 2, prompt),
        "scale": fitted,
        "bits": scale.knowledge(x, prompt, fitted.value),
        "loss": scale.mean(scale.loss_at(1.0, x), prompt),
    }


def calibration_error(rng: np.random.Generator, draws: int) -> list[dict]:
    """ECE as rmood/diagnosis/measures.py has it: ten bins of equal size."""
    rows = []
    for n in (20, *PAIRS, 5000):
        errors = []
        for _ in range(draws):
            x = calibrated_margins(rng, n, 2.0)
            errors.append(expected_calibration_error(x))
        rows.append(
            {
                "pairs": n,
                "mean": float(np.mean(errors)),
                "95% of them are below": float(np.quantile(errors, 0.95)),
                "above 0.1": float(np.mean(np.array(errors) > 0.1)),
            }
        )
    return rows


def expected_calibration_error(x: np.ndarray, bins: int = 10) -> float:
    """(n,) margins towards gold -> sum over bins of n_b / n |share right - mean confidence|"""
    confidence = sigmoid(np.abs(x))
    gap = (np.sign(x) + 1) / 2 - confidence
    parts = np.array_split(gap[np.argsort(confidence, kind="stable")], bins)
    return sum(abs(part.sum()) for part in parts) / len(x)


def breaks(rng: np.random.Generator, draws: int) -> list[dict]:
    """Rows right with one probability; and the later half of them at chance."""
    rows = []
    for match in (0.6, 0.8, 0.95):
        for n in PAIRS:
            largest = [break_of(rng, np.full(n, match)) for _ in range(draws)]
            half = np.where(np.arange(n) < n // 2, match, 0.5)
            found = [break_of(rng, half) > 5 for _ in range(max(10, draws // 10))]
            row = {"match": match, "pairs": n, "95% of z below": np.quantile(largest, 0.95)}
            row["99.9% below"] = np.quantile(largest, 0.999)
            rows.append(row | {"above 5": np.mean(np.array(largest) > 5), "found": np.mean(found)})
    return rows


def break_of(rng: np.random.Generator, match: np.ndarray) -> float:
    """break_z of (n,) rows that are right with these probabilities."""
    right = np.where(rng.random(len(match)) < match, 1.0, -1.0)[:, None]
    return break_numbers(right, np.ones_like(right)).get("break_z", 0.0)


PARTS = {
    "cost": Part(
        "bits that a wrong scale costs, the largest over calibrated margins of standard deviation "
        "0.5 to 10; a factor of 1.5 costs next to nothing, so it counts as calibrated",
        cost,
    ),
    "scale": Part(
        "how often each word is said of margins whose scale s is known; an interval must lie "
        "beyond 1.5 or 1/1.5 as a whole, so that false alarms are rare",
        scale_words,
    ),
    "needed": Part(
        f"pairs from which on the word is said {POWER:.0%} of the time",
        pairs_needed,
    ),
    "few": Part(
        f"false alarms with few pairs: under {scale.FEWEST_PROMPTS} prompts no word is said",
        few_pairs,
    ),
    "learning": Part(
        "the words for what training pairs and held-out pairs say together, where the bits of "
        "both are known",
        learning_words,
    ),
    "share": Part(
        "a share of independent pairs against a bound, by Wilson's interval: how often it "
        "excludes the bound where the share is that bound (false alarm), or above it",
        share_words,
    ),
    "coverage": Part(
        "how often the intervals, clustered by prompt, hold the truth (0.95 wanted): 200 prompts, "
        "K responses each, all pairs of a prompt",
        coverage,
    ),
    "calibration": Part(
        "the calibration error (ECE) of calibrated margins: what is below tells nothing",
        calibration_error,
    ),
    "break": Part(
        "break_z, the largest standardised difference of the matches before and after a row: what "
        "it is without a break, and how often one in the middle of the file is above 5",
        breaks,
    ),
}


if __name__ == "__main__":
    run_script(main)
