"""Is a reward model ready for reinforcement learning from this policy? Numpy only.

P prompts, K responses of the policy to each; r are the (P, K) rewards; s is the factor that
calibrates their margins (scale.py; 1: as they are). What a policy can learn from is how the rewards
of its *own* samples differ within a prompt:

    spread      s times the standard deviation within prompts, in nats. The gradient of the expected
                reward vanishes with it, however right the order is (Razin et al. 2025, arXiv
                2503.15477). GRPO divides by it, so there a prompt teaches either way, noise
                included; with PPO and RLOO it is the size of the step
    flat        share of prompts where all K rewards are equal (GRPO learns nothing there), and
                where s times their standard deviation is under 0.1: two of its responses then
                differ by some 0.14 nats, 53.5 to 46.5
    gain        best of K: how much the reward of the pick is above the mean, and gold's, if known
    length      how much longer the picks are than the mean response
    resolution  share of pairs within a prompt whose margin is under twice the noise of scoring
    KL weight   PPO maximises r - beta KL, so only r / beta matters: beta on r acts as s beta would
                on calibrated rewards
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.provenance import check_lineage, read_run_file
from ..files.rows import read_json
from ..files.tables import check_same_shape, read_responses
from .inputs import read_gold, read_rewards_for, texts_in
from .measures import within_prompt_margins
from .scale import Estimate, mean, share
from .text import aligned, interval

FLAT = 0.1  # nats: sqrt(2) * 0.1 between two responses is a probability of 53.5%
FEWEST_RESPONSES = 4
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
FAMILY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of config.json


def readiness(
    rewards: np.ndarray,
    lengths: np.ndarray | None = None,
    gold: np.ndarray | None = None,
    scale: float = 1.0,
    beta: float = 0.05,
    noise: float | None = None,
) -> dict:
    """(P, K) rewards of a policy's own samples -> the numbers of `evaluate.py readiness`.

    lengths: (P, K) characters of the responses. gold: (P, K). scale: s, of scale.py. beta: PPO's KL
    weight on these rewards. noise: of a reward, in its own unit (evaluate.py diagnose measures it).

    spread, spread_low, spread_high      s * standard deviation within prompts, nats
    equal_share, flat_share, ..._low, ..._high   as above
    gain, ...     s * (reward of the best of K - mean reward), nats, over prompts
    gold_gain, ...    gold of the pick - mean gold; gold_gain_share: of what gold's own pick gains
    length_gain, ...  log(length of the pick / mean length): 0.1 is some 10% longer
    length_excess, ...   with gold: log(length of the pick / length of gold's own pick)
    length_correlation, ...  mean over prompts of the correlation of reward and length
    tie_share     pairs within a prompt with equal rewards
    resolution    pairs with a margin under twice the noise; absent where that is not known
    beta_calibrated   the KL weight on calibrated rewards that acts as `beta` on these: s * beta
    beta_same     the weight on these that acts as `beta` on calibrated rewards: beta / s
    tilt_kl       nats: mean KL(q || uniform), with q proportional to exp(r / beta), over the K
                  samples; at most log K: near that, one response takes all
    """
    prompts, count = rewards.shape
    if count < FEWEST_RESPONSES:
        raise UserError(
            f"{count} responses a prompt: sample at least {FEWEST_RESPONSES} of the policy's own "
            "(sample.py --num-responses 8)"
        )
    each = np.arange(prompts)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    variance = np.square(centred).sum(axis=1) / (count - 1)  # (P,)
    deviation = scale * np.sqrt(variance)
    squared = mean(scale**2 * variance, each)
    numbers = {
        "prompts": prompts,
        "responses": count,
        "scale": scale,
        **_root(squared).as_numbers("spread"),
        **share((np.ptp(rewards, axis=1) == 0).astype(float), each).as_numbers("equal_share"),
        **share((deviation < FLAT).astype(float), each).as_numbers("flat_share"),
        **mean(scale * centred.max(axis=1), each).as_numbers("gain"),
    }
    if gold is not None:
        numbers |= _gold_numbers(rewards, gold)
    if lengths is not None:
        numbers |= _length_numbers(rewards, lengths, gold)
    margins = np.abs(within_prompt_margins(rewards))
    numbers["tie_share"] = float((margins == 0).mean())
    if noise is not None:
        numbers["resolution"] = float((margins < 2 * noise).mean())
    return numbers | _kl_numbers(centred, scale, beta)


def _root(squared: Estimate) -> Estimate:
    bounds = [math.sqrt(max(0.0, value)) for value in (squared.value, squared.low, squared.high)]
    return Estimate(*bounds)


def _gold_numbers(rewards: np.ndarray, gold: np.ndarray) -> dict:
    each = np.arange(len(gold))
    middle = gold.mean(axis=1)
    gain = of_pick(rewards, gold) - middle
    own = float((gold.max(axis=1) - middle).mean())
    found = mean(gain, each).as_numbers("gold_gain")
    return found | {"gold_gain_share": float(gain.mean()) / own if own else math.nan}


def _length_numbers(rewards: np.ndarray, lengths: np.ndarray, gold: np.ndarray | None) -> dict:
    each = np.arange(len(rewards))
    of_mean = np.log(np.maximum(1.0, lengths.mean(axis=1)))
    picked = np.log(np.maximum(1.0, of_pick(rewards, lengths)))
    found = mean(picked - of_mean, each).as_numbers("length_gain")
    if gold is not None:
        by_gold = np.log(np.maximum(1.0, of_pick(gold, lengths)))
        found |= mean(picked - by_gold, each).as_numbers("length_excess")
    correlations = []
    for row, sizes in zip(rewards, lengths):
        if row.std() > 0 and sizes.std() > 0:
            correlations.append(np.corrcoef(row, sizes)[0, 1])
    if correlations:
        values = np.array(correlations)
        found |= mean(values, np.arange(len(values))).as_numbers("length_correlation")
    return found


def of_pick(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(P,) the value of the response with the highest reward; where that ties, their mean."""
    is_best = rewards == rewards.max(axis=1, keepdims=True)
    return (values * is_best).sum(axis=1) / is_best.sum(axis=1)


def _kl_numbers(centred: np.ndarray, scale: float, beta: float) -> dict:
    count = centred.shape[1]
    logits = centred / beta
    logits = logits - logits.max(axis=1, keepdims=True)
    q = np.exp(logits)
    q /= q.sum(axis=1, keepdims=True)
    entropy = -(q * np.log(np.maximum(q, 1e-300))).sum(axis=1)
    return {
        "beta": beta,
        "beta_calibrated": beta * scale,
        "beta_same": beta / scale,
        "tilt_kl": float((math.log(count) - entropy).mean()),
    }


# ---- whose reward model is it? -------------------------------------------------------------------


@dataclass(frozen=True)
class Lineage:
    """How the reward model is related to the policy: in words, and whether that is a warning."""

    words: str
    is_warning: bool


def lineage(model: str, policy: str) -> Lineage:
    """Are a reward model and a policy, two folders, of one base model and one tokenizer?

    RewardBench 2 (Malik et al. 2025, arXiv 2506.01937) found that PPO does much worse where the
    reward model's base model is not the policy's, however well it scores on benchmarks. Only files
    are compared: tokenizer.json, config.json, and the start in run.json.
    """
    missing = [name for name in (model, policy) if not Path(name, "config.json").is_file()]
    if missing:
        return Lineage(f"not compared: {missing[0] or 'the policy'} is not a local folder", False)
    if not _same_tokenizer(Path(model), Path(policy)):
        words = f"the tokenizers of {model} and {policy} differ: they are of two model families"
        return Lineage(words, True)
    ours, theirs = (_family(Path(folder)) for folder in (model, policy))
    different = [name for name in FAMILY if ours.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        words = f"{model} is another base model: {name} {ours.get(name)}, not {theirs.get(name)}"
        return Lineage(words, True)
    start = _start(Path(model))
    if start and Path(start).name != Path(policy).name and start != _start(Path(policy)):
        words = f"one architecture and tokenizer; {model} was trained from {start}, not {policy}"
        return Lineage(words, False)
    return Lineage("one base model and tokenizer", False)


def _same_tokenizer(one: Path, other: Path) -> bool:
    for name in TOKENIZER_FILES:
        files = [folder / name for folder in (one, other)]
        there = [file for file in files if file.is_file()]
        if len(there) == 2:
            return files[0].read_bytes() == files[1].read_bytes()
        if len(there) == 1:
            return False
    return True  # neither has one: nothing to compare


def _family(folder: Path) -> dict:
    config = read_json(str(folder / "config.json"))
    return config.get("text_config", config)


def _start(folder: Path) -> str:
    path = folder / "run.json"
    run = read_json(str(path)) if path.is_file() else {}
    return run.get("config", {}).get("model_name", "")


def recorded_scale(model: str) -> float | None:
    """The scale on held-out pairs after the last epoch that the model's run.json has, or None."""
    path = Path(model, "run.json")
    run = read_json(str(path)) if path.is_file() else {}
    found = None
    for parts in run.get("results", {}).values():
        for part, numbers in parts.items():
            if part.startswith("eval") and numbers.get("scale") is not None:
                found = numbers["scale"]
    return found


# ---- files, and text -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """A policy's own samples as they are labelled, and who made what, by the run files."""

    rewards: np.ndarray  # (P, K)
    lengths: np.ndarray | None  # (P, K) characters of the responses
    gold: np.ndarray | None  # (P, K)
    model: str  # that gave the rewards; "" where that is not known
    policy: str  # that was sampled


def read_samples(rewards_path: str, gold_path: str = "", responses_path: str = "") -> Samples:
    """The rewards, and what belongs to them where it is given or named by their run file.

    Raises UserError where the files are not of the same responses.
    """
    rewards = read_gold(rewards_path)
    run = read_run_file(rewards_path) or {}
    if responses_path:
        check_lineage(rewards_path, responses=responses_path)
    else:
        named = run.get("inputs", {}).get("responses", {}).get("path", "")
        responses_path = named if Path(named).is_file() else ""
    lengths = None
    policy = ""
    texts = texts_in(rewards_path)
    responses = texts[1] if texts else None
    if responses_path:
        responses = read_responses(responses_path)
        policy = (read_run_file(responses_path) or {}).get("config", {}).get("model_name", "")
    if responses:
        check_same_shape(rewards_path, rewards, responses_path or rewards_path, responses)
        lengths = np.array([[len(text) for text in row] for row in responses], dtype=float)
    gold = read_rewards_for(gold_path, rewards_path, rewards) if gold_path else None
    return Samples(rewards, lengths, gold, run.get("config", {}).get("model_name", ""), policy)


def table(n: dict) -> str:
    """The numbers of `readiness`."""

    def row(label: str, name: str, form: str = ".3f") -> list[str]:
        bounds = interval(n[f"{name}_low"], n[f"{name}_high"])
        return [label, format(n[name], form), bounds]

    rows = [
        row("spread within a prompt, s * std, nats", "spread"),
        row("prompts where all rewards are equal", "equal_share", ".1%"),
        row(f"prompts with s * std under {FLAT:g}", "flat_share", ".1%"),
        row(f"best of {n['responses']} above the mean, s * reward, nats", "gain"),
    ]
    if "gold_gain" in n:
        rows.append(row(f"gold of the best of {n['responses']} above the mean", "gold_gain"))
        rows.append(["  of what gold's own pick gains", f"{n['gold_gain_share']:.1%}", ""])
    if "length_gain" in n:
        rows.append(row("log length of the picks over the mean", "length_gain", "+.3f"))
    if "length_excess" in n:
        rows.append(row("log length of the picks over gold's picks", "length_excess", "+.3f"))
    if "length_correlation" in n:
        rows.append(row("correlation of reward and length", "length_correlation", "+.3f"))
    rows.append(["pairs within a prompt with equal rewards", f"{n['tie_share']:.1%}", ""])
    if "resolution" in n:
        rows.append(["pairs closer than twice the noise", f"{n['resolution']:.1%}", ""])
    return aligned(rows)


def remarks(n: dict) -> str:
    """What the numbers mean for PPO and GRPO, a line each."""
    scale = "scale 1: taken as calibrated (--scale, from evaluate.py scale, says otherwise)"
    if n["scale"] != 1:
        scale = (
            f"scale {n['scale']:.3g}: a KL weight of {n['beta']:g} on these rewards acts as "
            f"{n['beta_calibrated']:.3g} on calibrated ones; {n['beta_same']:.3g} on these acts as "
            f"{n['beta']:g} on calibrated ones"
        )
    lines = [
        scale,
        f"at {n['beta']:g} the best policy on these samples is {n['tilt_kl']:.2f} nats away "
        f"(at most {math.log(n['responses']):.2f}: then one response takes all)",
        "GRPO divides by the spread: its scale does not matter there, ties and noise do",
    ]
    if n["flat_share_low"] > 0.5:
        lines.append(
            "WARNING: most prompts are flat: PPO and RLOO learn little from them (more varied "
            "samples, or a reward model that tells the policy's own responses apart)"
        )
    elif n["flat_share_high"] > 0.5:
        lines.append("whether most prompts are flat, so few prompts cannot tell")
    if n.get("length_gain_low", 0.0) > 0:
        longer = math.exp(n["length_gain"]) - 1
        lines.append(f"its picks are {longer:.0%} longer than the mean response")
    if n.get("length_excess_low", 0.0) > 0:
        longer = math.exp(n["length_excess"]) - 1
        lines.append(
            f"WARNING: its picks are {longer:.0%} longer than gold's: a policy trained on this "
            "reward will write longer than gold asks for"
        )
    if "gold_gain_low" in n and n["gold_gain_low"] <= 0:
        lines.append(
            "WARNING: no surely higher gold reward of the picks: the policy would climb what "
            "gold does not value"
        )
    return "\n".join(lines)
