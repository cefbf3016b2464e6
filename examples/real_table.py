"""The table at the end of scripts/real.sh: what the proxy knows beyond the length of a response.

reads   of the dataset's held-out prompts: gold's rewards, the proxy's (label.py), and those of a
        proxy that goes by length alone (examples/alpacaeval.py)
        reports/<dataset>-quality.json, the proxy's metrics.jsonl
        the proxy's rewards of responses that its own start model sampled
writes  reports/<dataset>-table.json, a table on stdout

    python examples/real_table.py --dataset real

Exit status 0 where the proxy is better than length alone, the 95% interval of the difference
included; 1 where that is not shown. All intervals are clustered by prompt.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from rmood.cli import opt, parse
from rmood.diagnosis import scale
from rmood.errors import run_script
from rmood.files.rows import check_writable, read_json, write_json
from rmood.files.tables import read_responses, read_rewards


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("real", "sets every default path at once")
    gold_path: str = opt("{test_rewards}", "gold rewards of the held-out prompts")
    rewards_path: str = opt("{data}/rm/test_reward_rm.json", "the proxy's, of the same responses")
    length_path: str = opt("{data}/rm/test_reward_length.json", "log(characters) of the same responses")
    model_name: str = opt("{proxy}", "the proxy, for its metrics.jsonl")
    own_responses_path: str = opt("{data}/rm/own_sft.json", "responses that the start model sampled")
    own_rewards_path: str = opt("{data}/rm/own_reward_rm.json", "the proxy's rewards of those")
    quality: str = opt("{home}/reports/real-quality.json", "what evaluate.py quality wrote")
    json: str = opt("{home}/reports/real-table.json", "every number of the table")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__, prog="python examples/real_table.py")
    check_writable(cfg.json)
    gold = np.array(read_rewards(cfg.gold_path))  # (P, K)
    proxy = np.array(read_rewards(cfg.rewards_path))
    length = np.array(read_rewards(cfg.length_path))
    training = read_training(cfg)
    found = compare(proxy, length, gold)
    picks = best_of_all(proxy, length, gold)
    own_rewards = np.array(read_rewards(cfg.own_rewards_path))
    own_lengths = np.array(
        [[len(text) for text in row] for row in read_responses(cfg.own_responses_path)]
    )
    own = of_own_samples(own_rewards, own_lengths)

    print_table(training, found, picks, own, gold)
    numbers = {
        "training": training,
        "proxy": found["proxy"],
        "length": found["length"],
        "above_length": {name: vars(value) for name, value in found["above_length"].items()},
        "balanced": {name: vars(value) for name, value in found["balanced"].items()},
        "best_of_n": {name: vars(value) for name, value in picks.items()},
        "own_samples": own,
    }
    write_json(cfg.json, finite(numbers))
    better = found["above_length"]["right"].low > 0
    return 0 if better else 1


# ---- numbers -------------------------------------------------------------------------------------


def read_training(cfg: Config) -> dict:
    """First loss; loss and accuracy of the last tenth of the steps; accuracy after training."""
    lines = Path(cfg.model_name, "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "learning_rate" in line]
    last = steps[-max(1, len(steps) // 10) :]
    return {
        "steps": len(steps),
        "first_loss": steps[0]["loss"],
        "last_loss": float(np.mean([step["loss"] for step in last])),
        "train_accuracy": read_json(cfg.quality)["train_accuracy"],
    }


def compare(proxy: np.ndarray, length: np.ndarray, gold: np.ndarray) -> dict:
    """(P, K) rewards of each -> numbers of the proxy and of length, and their difference.

    proxy, length   scale_numbers: right (a tie counts as half), scale, bits
    above_length    right, bits: the proxy's minus length's, pair by pair
    balanced        of the proxy: `shorter`, its share of the pairs in which gold prefers the
                    shorter response, and `mean` of that and of the others' share, in which length
                    counts for nothing (0.5)
    """
    x, prompt = scale.towards_gold(proxy, gold)
    by_length, _ = scale.towards_gold(length, gold)
    right = (np.sign(x) + 1) / 2
    right_by_length = (np.sign(by_length) + 1) / 2
    of_proxy = scale.scale_numbers(x, prompt)
    of_length = scale.scale_numbers(by_length, prompt)
    losses = scale.loss_at(max(of_proxy["scale"], 0), x)
    losses_by_length = scale.loss_at(max(of_length["scale"], 0), by_length)
    shorter = by_length < 0  # gold prefers the shorter response
    longer = by_length > 0
    return {
        "proxy": of_proxy,
        "length": of_length,
        "above_length": {
            "right": scale.mean(right - right_by_length, prompt),
            "bits": scale.mean((losses_by_length - losses) / np.log(2), prompt),
        },
        "balanced": {
            "shorter": scale.share(right[shorter], prompt[shorter]),
            "longer": scale.share(right[longer], prompt[longer]),
            "mean": mean_of_two(right, shorter, longer, prompt),
        },
    }


def mean_of_two(right: np.ndarray, first: np.ndarray, second: np.ndarray, prompt: np.ndarray):
    """The mean of two shares, of pairs `first` and of pairs `second`; clustered by prompt."""
    share_first, share_second = right[first].mean(), right[second].mean()
    n = len(right)
    # Each pair's part in the mean, linearised around the two shares.
    part = np.zeros(n)
    part[first] = (right[first] - share_first) * n / (2 * first.sum())
    part[second] = (right[second] - share_second) * n / (2 * second.sum())
    return scale.mean(part + (share_first + share_second) / 2, prompt)


def best_of_all(proxy: np.ndarray, length: np.ndarray, gold: np.ndarray) -> dict:
    """Gold's reward of the response picked among all K: mean over prompts."""
    prompt = np.arange(len(gold))
    by_proxy, by_length = pick(proxy, gold), pick(length, gold)
    return {
        "proxy": scale.mean(by_proxy, prompt),
        "length": scale.mean(by_length, prompt),
        "proxy above length": scale.mean(by_proxy - by_length, prompt),
        "any": scale.mean(gold.mean(axis=1), prompt),
        "gold": scale.mean(gold.max(axis=1), prompt),
    }


def pick(rewards: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) gold's reward of each prompt's response with the highest reward; ties: their mean."""
    best = rewards == rewards.max(axis=1, keepdims=True)
    return (gold * best).sum(axis=1) / best.sum(axis=1)


def of_own_samples(rewards: np.ndarray, lengths: np.ndarray) -> dict:
    """What optimising against this proxy would see: its rewards on the start model's own samples.

    std_within           of the K rewards of a prompt
    length_correlation   of the differences from the prompt's mean, with those of log(characters)
    best_length_ratio    characters of the best of K over those of the mean response
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    logs = np.log(1 + lengths)
    logs = logs - logs.mean(axis=1, keepdims=True)
    varies = logs.std() > 0 and centred.std() > 0
    best = np.take_along_axis(lengths, rewards.argmax(axis=1)[:, None], axis=1)
    return {
        "prompts": len(rewards),
        "responses": rewards.shape[1],
        "reward_mean": float(rewards.mean()),
        "std_within": float(rewards.std(axis=1, ddof=1).mean()),
        "length_correlation": float(np.corrcoef(centred.ravel(), logs.ravel())[0, 1])
        if varies
        else 0.0,
        "best_length_ratio": float(best.mean() / lengths.mean()),
    }


def finite(value):
    """The same with None for what JSON has no number for: an infinite scale, and NaN."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


# ---- the table -----------------------------------------------------------------------------------


def print_table(training: dict, found: dict, picks: dict, own: dict, gold: np.ndarray) -> None:
    proxy, length = found["proxy"], found["length"]
    above, balanced = found["above_length"], found["balanced"]
    pairs = gold.shape[1] * (gold.shape[1] - 1) // 2 * len(gold)
    ties = 1 - proxy["scale_pairs"] / pairs
    row("first loss (equal rewards: 0.693)", f"{training['first_loss']:.3f}")
    row("last loss, mean of the last tenth of the steps", f"{training['last_loss']:.3f}")
    row("training accuracy, after training", f"{training['train_accuracy']:.3f}")
    row("gold ties, share of the test pairs", f"{ties:.1%}")
    print(f"\n{proxy['scale_prompts']} held-out prompts, {proxy['scale_pairs']:,} pairs")
    row("", "the proxy", "length alone")
    row("match with gold", between(proxy, "right"), between(length, "right"))
    row("  the proxy's minus length's", signed(above["right"]))
    row("  where gold prefers the shorter", f"{balanced['shorter'].value:.3f}", "0")
    row("  where gold prefers the longer", f"{balanced['longer'].value:.3f}", "1")
    row("  mean of these two", interval(balanced["mean"]), "0.500")
    row("bits known of the order of a pair", between(proxy, "bits"), between(length, "bits"))
    row("  the proxy's minus length's", signed(above["bits"]))
    row(f"scale s ({proxy['scale_word']})", between(proxy, "scale"))
    k = gold.shape[1]
    row(f"gold's reward of the best of {k}", interval(picks["proxy"]), interval(picks["length"]))
    row("  the proxy's minus length's", signed(picks["proxy above length"]))
    row("  any response; gold's own best", f"{picks['any'].value:.2f}; {picks['gold'].value:.2f}")
    print(f"\nthe start model's own samples: {own['prompts']} prompts x {own['responses']}")
    row("spread of rewards within a prompt, std", f"{own['std_within']:.3f}")
    row("correlation with log(characters), within", f"{own['length_correlation']:.2f}")
    row("length of the best over the mean length", f"{own['best_length_ratio']:.2f}")
    print(f"\nbetter than length alone: {verdict(above['right'])}")


def row(label: str, *cells: str) -> None:
    print((f"{label:<47}" + "".join(f"{cell:<26}" for cell in cells)).rstrip())


def between(n: dict, name: str) -> str:
    return f"{n[name]:.3f} ({n[f'{name}_low']:.3f} to {n[f'{name}_high']:.3f})"


def interval(e: scale.Estimate) -> str:
    return f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})"


def signed(e: scale.Estimate) -> str:
    return f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})"


def verdict(difference: scale.Estimate) -> str:
    if difference.low > 0:
        return "yes"
    if difference.high < 0:
        return "no: length alone is better"
    return "not shown: the interval of the difference holds 0"


if __name__ == "__main__":
    run_script(main)
