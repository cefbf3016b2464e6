"""What a model knows while it is trained: held-out pairs, and some of its training pairs.

Pairs are scored with the weights of that moment. A part is what is measured at once, by its name in
metrics.jsonl and TensorBoard:

    running        each training pair before its update; in epoch 1 that is a held-out measure
    train          a sample of the training pairs, scored after the epoch
    eval           the held-out pairs: --eval-share, or a plain --eval-path
    eval_<name>    those of --eval-path NAME=FILE

All words and warnings come from the intervals of rmood/diagnosis/scale.py, never from a number
alone, so that a healthy run warns of nothing.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from .diagnosis.curve import Curve, answer
from .diagnosis.scale import FEWEST_PROMPTS, Estimate, learning_word, loss_at, mean, scale_numbers
from .distributed import Process
from .errors import UserError
from .metrics import pair_metrics
from .model import RewardModel
from .pairset import PairSet
from .scoring import score_groups

# Of its own training pairs, after the last epoch: 0.05 bits are calibrated margins with a match of
# 0.6, which one response's length alone often reaches.
NOTHING = 0.05
SHARE_SCORED = 4  # at most one training pair in so many is scored after an epoch


def held_out_files(paths: list[str]) -> dict[str, str]:
    """--eval-path's words -> part: file. "hh=data/hh.jsonl" is the part eval_hh."""
    files = {}
    for word in filter(None, paths):  # "" is what older run files say for none
        name, _, file = word.partition("=")
        is_named = file and not Path(word).exists()
        if is_named and not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise UserError(
                f"--eval-path {word}: the name before '=' may have letters, digits and '-': "
                "rename it"
            )
        part = f"eval_{name}" if is_named else "eval"
        if part in files:
            raise UserError(
                f"--eval-path {word}: a second set of that name: give each a name, NAME=FILE"
            )
        files[part] = file if is_named else word
    return files


def size_of_sample(pairs: int, most: int) -> int:
    """How many training pairs are scored after an epoch: at most a quarter, or 100 where fewer.

    Scoring a pair is a third of the arithmetic of training on it: a quarter adds 8% to an epoch.
    """
    return min(most, max(pairs // SHARE_SCORED, min(pairs, 100)))


# ---- numbers -------------------------------------------------------------------------------------


def score_pairs(
    model: RewardModel, data: PairSet, process: Process, tokens_per_pass: int, desc: str
) -> np.ndarray:
    """(P, 2) rewards of the set's pairs now, chosen first. Every rank calls it.

    FSDP leaves the root's weights gathered after a forward pass without a backward one. They are
    sharded again here, for a checkpoint writes each process's own part of them.
    """
    scored = score_groups(model, data.groups, process, tokens_per_pass, desc=desc)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    flat = torch.tensor([reward for group in scored for reward in group])  # (N,)
    return flat[data.rows_of(range(len(data.groups)))].numpy()


def pair_numbers(rewards: np.ndarray, prompts: np.ndarray, gold: np.ndarray | None) -> dict:
    """(P, 2) rewards, (P,) the prompt of each pair -> pair_metrics and scale_numbers.

    not_finite: how many pairs were left out because a reward is not finite; absent for 0. Without
    any other pair it is the only number. gold: (P,) gold's own margins.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    finite = np.isfinite(rewards).all(axis=1)
    lost = {} if finite.all() else {"not_finite": int((~finite).sum())}
    if not finite.any():
        return lost
    rewards = rewards[finite]
    numbers = pair_metrics(rewards, None if gold is None else gold[finite])
    return lost | numbers | scale_numbers(rewards[:, 0] - rewards[:, 1], prompts[finite])


# ---- the best evaluation, and stopping early -----------------------------------------------------


def losses_for(metric: str, rewards: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """(P,) losses by which evaluations are compared; the lower the better.

    eval_loss: as the margins are. eval_bits: at their best scale, so that only knowledge counts.
    A reward that is not finite counts as ln 2, that of equal rewards.
    """
    margin = np.nan_to_num(rewards[:, 0] - rewards[:, 1], nan=0.0, posinf=0.0, neginf=0.0)
    margin = margin.astype(np.float64)
    if metric == "eval_loss":
        return loss_at(1.0, margin)
    scale = scale_numbers(margin, prompts)["scale"]
    if math.isnan(scale):
        return np.full(len(margin), math.log(2))
    return loss_at(min(max(scale, 0.0), 1e6), margin)


def update_best(
    best: dict, reference: np.ndarray, losses: np.ndarray, prompts: np.ndarray, step: int
) -> dict:
    """What is known of the best evaluation, after one more.

        step, value       of the evaluation with the lowest mean of `losses`
        reference_step    of the last one that was better than the reference before it, beyond noise
        waited            evaluations since then
        gain, gain_low, gain_high   mean loss of the reference minus that now, paired by pair

    best: {} before the first. reference: (P,) losses at reference_step. A gain is beyond noise
    where its 95% interval, clustered by prompt, is above 0. Small gains add up: the reference stays
    until their sum is beyond noise.
    """
    value = float(losses.mean())
    if not best:
        return {"step": step, "value": value, "reference_step": step, "waited": 0}
    gain = mean(reference - losses, prompts)
    found = dict(best) | gain.as_numbers("gain")
    if value < best["value"]:
        found |= {"step": step, "value": value}
    if gain.low > 0:
        found |= {"reference_step": step, "waited": 0}
    else:
        found["waited"] = best["waited"] + 1
    return found


def why_stopped(best: dict, metric: str, patience: int, step: int) -> str:
    """The reason to stop after this evaluation, or "". patience: 0 never stops."""
    if not patience or best["waited"] < patience:
        return ""
    gain = best["gain"], best["gain_low"], best["gain_high"]
    return (
        f"stopped at step {step}: none of the {best['waited']} evaluations since step "
        f"{best['reference_step']} was better by {metric} beyond noise; the last saved "
        f"{gain[0]:.3f} nats (95%: {gain[1]:.3f} to {gain[2]:.3f})"
    )


# ---- words ---------------------------------------------------------------------------------------


def describe(numbers: dict) -> str:
    """What was measured of a part, with 95% intervals, on one line."""
    if "scale" not in numbers:
        return f"none of {numbers['not_finite']} pairs has finite rewards"
    words = [
        f"{numbers['scale_pairs']:,} pairs",
        f"right {short(Estimate.of(numbers, 'right'), 3)}",
        f"bits {short(Estimate.of(numbers, 'bits'))}",
        f"scale {short(Estimate.of(numbers, 'scale'))}: {numbers['scale_word']}",
        f"loss {short(Estimate.of(numbers, 'loss'), 3)}",
        f"std within a pair {numbers['std_within']:.2f}",
    ]
    if "spread_ratio" in numbers:
        words[-1] += f", {numbers['spread_ratio']:.2f} of gold's, whose unit is arbitrary"
    if "not_finite" in numbers:
        words.append(f"{numbers['not_finite']} more pairs are not finite")
    return ", ".join(words)


def short(number: Estimate, digits: int = 2) -> str:
    """0.53 (0.43 to 0.64)"""
    if math.isinf(number.value):
        return f"over {number.low:.{digits}f}" if number.value > 0 else "below 0"
    return f"{number.value:.{digits}f} ({number.low:.{digits}f} to {number.high:.{digits}f})"


def curve_lines(curve: Curve | None, learned: str) -> list[str]:
    """The learning curve in words. learned: the word of `learned`, after epoch 1."""
    if curve is None:
        return [
            "learning curve: cannot tell: too few steps, or a loss with soft labels or a margin"
        ]
    return [
        f"learning curve: loss {short(curve.loss, 3)} of unseen pairs at the end of epoch 1; twice "
        f"as many new pairs would save {short(curve.gain, 3)} nats",
        f"more pairs, more steps, or at the ceiling: {answer(curve.word, learned)}",
    ]


def first_held_out(parts: dict[str, dict]) -> dict:
    """The numbers of the first held-out set, by which a run is judged; {} without one."""
    for part, numbers in parts.items():
        if part.startswith("eval") and "scale" in numbers:
            return numbers
    return {}


def learned(parts: dict[str, dict]) -> str:
    """scale.learning_word of a part `train` and the first held-out set; "" where one is missing."""
    held_out = first_held_out(parts)
    train = parts.get("train", {})
    if not held_out or "scale" not in train:
        return ""
    return learning_word(Estimate.of(train, "bits"), Estimate.of(held_out, "bits"))


def remarks(parts: dict[str, dict], is_last: bool, softened: str) -> list[str]:
    """What the numbers after an epoch mean, with what to do; warnings begin with WARNING.

    is_last: the run ends here. softened: the options that ask for narrow margins, as flags.
    """
    found = []
    held_out = first_held_out(parts)
    train = parts.get("train", {})
    word = learned(parts)
    if held_out.get("right_high", 1.0) < 0.5 and held_out["scale_prompts"] >= FEWEST_PROMPTS:
        found.append(
            f"WARNING held-out pairs are ranked the other way: "
            f"{short(Estimate.of(held_out, 'right'))} are right: check which side is chosen with "
            "evaluate.py validate"
        )
    if word == "memorised":
        found.append(
            f"WARNING memorised: {short(Estimate.of(train, 'bits'))} bits of its training pairs, "
            f"{short(Estimate.of(held_out, 'bits'))} of held-out pairs: fewer epochs, more pairs "
            "or a lower rate; --keep-epochs and evaluate.py epochs say which epoch is best"
        )
    elif word:
        found.append(f"training pairs against held-out pairs: {word}")
    if not is_last:
        return found
    enough = train.get("scale_prompts", 0) >= FEWEST_PROMPTS
    if enough and train["bits_high"] < NOTHING:
        found.append(
            f"WARNING learned next to nothing: {short(Estimate.of(train, 'bits'))} bits of its own "
            "training pairs: train.py --rate-probe 6 tells a rate that is too low from one that is "
            "too high; evaluate.py inspect shows what the model reads"
        )
    scale = held_out.get("scale_word")
    if scale == "overconfident":
        found.append(
            f"overconfident: its margins times {short(Estimate.of(held_out, 'scale'))} would mean "
            "what they say; the order is not touched: evaluate.py calibrate"
        )
    if scale == "squeezed":
        why = f", as {softened} ask for" if softened else ""
        found.append(
            f"squeezed{why}: it knows more than its margins say; times "
            f"{short(Estimate.of(held_out, 'scale'))} they would mean it: evaluate.py calibrate"
        )
    return found
