"""The four questions about a proxy's rewards, answered from measured numbers.

    scale        do its margins mean what they say?                  scale.py
    knowledge    how much does it know, and does that carry over?    scale.py
    resolution   does rounding lose the order?                       probes.py
    for RL       does it tell samples of one prompt apart?           readiness.py

Gold's size enters none of them. An answer that was not measured says why.
"""

import textwrap
from dataclasses import dataclass

from ..metrics import HEALTHY
from .scale import CALIBRATED, FEWEST_PROMPTS, LEARNED
from .text import estimate

NOT_MEASURED = "not measured"


# What the answers are made of, by their names in docs/metrics.md.
NUMBERS = [
    "scale_pairs",
    "scale_prompts",
    "scale",
    "scale_low",
    "scale_high",
    "scale_word",
    "bits",
    "bits_low",
    "bits_high",
    "loss",
    "loss_low",
    "loss_high",
    "loss_scaled",
    "right",
    "right_low",
    "right_high",
    "train_bits",
    "train_bits_low",
    "train_bits_high",
    "train_scale",
    "learning_word",
    "resolution",
    "score_noise",
    "rl_std",
    "flat_share",
    "spread_ratio",
]


@dataclass(frozen=True)
class Answer:
    """One of the four questions, answered."""

    name: str  # scale, knowledge, resolution or for RL
    question: str
    word: str  # the verdict, such as "calibrated", or "not measured"
    measured: str  # the numbers with their intervals
    meaning: str  # what follows


def answers(numbers: dict, reasons: dict[str, str] | None = None) -> list[Answer]:
    """The four answers.

    numbers: of diagnose (docs/metrics.md). reasons: number -> why it was not measured.
    """
    reasons = reasons or {}
    return [
        _scale(numbers),
        _knowledge(numbers, reasons),
        _resolution(numbers, reasons),
        _for_rl(numbers, reasons),
    ]


def described_ratio(numbers: dict) -> str:
    """The spread over gold's, which the reference speaks of, and why it is no verdict."""
    if numbers.get("spread_ratio") is None:
        return ""
    return (
        f"rewards within a prompt spread {numbers['spread_ratio']:.2f} times as wide as gold's; "
        "gold's unit is arbitrary and its spread is not what the loss trains, so this describes "
        "the two files and says nothing about the proxy's health"
    )


def as_text(numbers: dict, not_measured: list[dict]) -> str:
    """The four answers and the described ratio, as plain text.

    not_measured: of diagnose: {"what": name of a number, "why": words}.
    """
    reasons = {missing["what"]: missing["why"] for missing in not_measured}
    parts = []
    for answer in answers(numbers, reasons):
        verdict = f"{answer.word}: {answer.measured}" if answer.measured else answer.word
        lines = [answer.question, *_wrapped(verdict), *_wrapped(answer.meaning)]
        parts.append("\n".join(lines))
    described = described_ratio(numbers)
    if described:
        parts.append("\n".join(["Described, not judged", *_wrapped(described)]))
    return "\n\n".join(parts)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  ")


# ---- each question -------------------------------------------------------------------------------

SCALE_MEANS = {
    "calibrated": "where it says sigmoid(margin) = 0.8, it is right in about 0.8 of the pairs: the "
    f"factor that would fit best is between {CALIBRATED[0]:.2f} and {CALIBRATED[1]:g}",
    "squeezed": "its margins are too narrow for how often it is right "
    "(evaluate.py calibrate multiplies the head)",
    "overconfident": "its margins are too wide for how often it is right; the order is not "
    "affected (evaluate.py calibrate multiplies the head)",
    "cannot tell": "the interval holds a bound of the calibrated range, "
    f"{CALIBRATED[0]:.2f} to {CALIBRATED[1]:g}, or 0: compare more held-out prompts",
}


def _scale(n: dict) -> Answer:
    word = n["scale_word"]
    meaning = SCALE_MEANS[word]
    if n["scale_prompts"] < FEWEST_PROMPTS:
        meaning = f"only {n['scale_prompts']} prompts: compare {FEWEST_PROMPTS} or more"
    measured = f"scale {estimate(n, 'scale')} over {n['scale_pairs']:,} pairs"
    return Answer("scale", "Do its margins mean what they say?", word, measured, meaning)


LEARNING_MEANS = {
    "memorised": "over half of what it knows of its training pairs does not carry over to new "
    "prompts: fewer epochs, more pairs, or smaller steps",
    "under-learned": f"it knows less than {LEARNED:g} bits of its own training pairs: too little "
    "training, or labels that allow no more; the learning curve tells them apart "
    "(evaluate.py epochs)",
    "learned": "what it learned of its training pairs carries over to new prompts",
    "cannot tell": "the interval of its training bits holds "
    f"{LEARNED:g}, or that of the held-out bits holds half of the training bits, the bound of "
    "memorised: compare more held-out prompts",
}


def _knowledge(n: dict, reasons: dict[str, str]) -> Answer:
    held_out = (
        f"held out: {estimate(n, 'bits')} bits of at most 1 per pair, "
        f"{n['right']:.1%} in gold's order"
    )
    question = "How much does it know, and does that carry over to new prompts?"
    if n.get("train_bits") is None:
        why = reasons.get("train_bits", "pass the model, and keep its training pairs")
        meaning = (
            f"on its training pairs: {NOT_MEASURED} ({why}); without them, too little training, "
            "too few pairs and the ceiling of its data look alike"
        )
        return Answer("knowledge", question, "cannot tell", held_out, meaning)
    measured = f"{held_out}; on training pairs, scored now: {estimate(n, 'train_bits')} bits"
    word = n["learning_word"]
    return Answer("knowledge", question, word, measured, LEARNING_MEANS[word])


def _resolution(n: dict, reasons: dict[str, str]) -> Answer:
    question = "Does rounding lose the order?"
    share = n.get("resolution")
    if share is None:
        why = reasons.get("resolution", "it takes the model: the same rows in another dtype")
        return Answer("resolution", question, NOT_MEASURED, "", why)
    measured = f"{share:.1%} of the margins are under twice the noise of scoring"
    if n.get("score_noise") is not None:
        measured += f" ({n['score_noise']:.2g})"
    if share not in HEALTHY["resolution"]:
        meaning = "their order depends on dtype and batch: score in float32"
        return Answer("resolution", question, "order lost", measured, meaning)
    meaning = "their order does not depend on dtype and batch"
    return Answer("resolution", question, "fine", measured, meaning)


def _for_rl(n: dict, reasons: dict[str, str]) -> Answer:
    question = "For RL: does it tell samples of one prompt apart?"
    if n.get("flat_share") is None:
        why = reasons.get(
            "flat_share", "label.py on 4 or more samples of the policy per prompt, then"
        )
        return Answer("for RL", question, NOT_MEASURED, "", f"{why} evaluate.py readiness")
    measured = (
        f"std of scale * reward within a prompt {n['rl_std']:.2f}, "
        f"{n['flat_share']:.1%} of the prompts are flat"
    )
    return Answer("for RL", question, "see evaluate.py readiness", measured, "")
