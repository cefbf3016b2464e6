"""Measured numbers -> the faults that they show. faults.toml is the table of faults; this reads it.

A finding is a dict: id of the fault; severity ("error": the model is not fit for use, "warning":
look before use); evidence, the numbers that show it; causes, likeliest first; advice.
"""

import functools
import math
import re
import tomllib
from dataclasses import dataclass, replace
from operator import eq, ge, gt, le, lt
from pathlib import Path
from types import SimpleNamespace

from ..errors import UserError
from ..metrics import HEALTHY, healthy_range
from .measures import least_loss

TABLE = Path(__file__).with_name("faults.toml")
SEVERITIES = ("error", "warning")
OPERATORS = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq}
RANGES = SimpleNamespace(**HEALTHY)  # what {healthy.match.low} in a text reads


@dataclass(frozen=True)
class Fault:
    """A block of faults.toml."""

    id: str
    severity: str
    when: dict  # number -> bounds, which all must hold: [(">=", 0.4), ("<", 0.6)]
    evidence: list
    causes: list
    advice: str
    symptom: bool = False
    last_resort: bool = False

    def shows_in(self, numbers: dict) -> bool:
        """Was every number of `when` measured, and do all its bounds hold?"""
        for name, bounds in self.when.items():
            if name not in numbers:
                return False
            if not all(OPERATORS[sign](numbers[name], bound) for sign, bound in bounds):
                return False
        return True


def findings(numbers: dict) -> list[dict]:
    """The faults that the numbers show: errors first, then in the order of faults.toml.

    Empty for a healthy model. A fault whose numbers were not measured (absent or None) is not
    named, and none is named twice.
    """
    numbers = {name: value for name, value in numbers.items() if value is not None}
    numbers.update(derived(numbers))
    shown = [fault for fault in read_faults() if fault.shows_in(numbers)]

    # A last resort guesses from the course of the run: the first guess is enough, and none is
    # needed where a measured cause explains the symptoms.
    guesses = [fault for fault in shown if fault.last_resort]
    measured = [fault for fault in shown if not fault.last_resort and not fault.symptom]
    cause_found = any(fault.severity == "error" for fault in measured)
    unneeded = guesses if cause_found else guesses[1:]
    named = [fault for fault in shown if fault not in unneeded]

    named.sort(key=lambda fault: SEVERITIES.index(fault.severity))
    first_of_id: dict[str, Fault] = {}
    for fault in named:
        first_of_id.setdefault(fault.id, fault)
    return [_finding(fault, numbers) for fault in first_of_id.values()]


def derived(numbers: dict) -> dict:
    """Numbers that several faults share.

    fit_accuracy, fit_loss   train_* of the finished model where measured, else last_* of its
                             run; fit_accuracy_of and fit_loss_of say which
    falls_short              1 where the model misses what a finished one reaches, else 0
    centring_gap             fit_loss above the entropy of fit_accuracy, nats
    """
    found = {}
    sources = {"last": "in the last tenth of the steps", "train": "of the finished model"}
    for source, words in sources.items():
        for name in ("accuracy", "loss"):
            if f"{source}_{name}" in numbers:
                found[f"fit_{name}"] = numbers[f"{source}_{name}"]
                found[f"fit_{name}_of"] = words
    falls_short = (
        numbers.get("spread_ratio", 1) < HEALTHY["spread_ratio"].low
        or numbers.get("match", 1) < HEALTHY["match"].poor
        or found.get("fit_accuracy", 1) < HEALTHY["accuracy"].poor
        or found.get("fit_loss", 0) > HEALTHY["loss"].poor
    )
    found["falls_short"] = float(falls_short)
    if "fit_accuracy" in found and "fit_loss" in found:
        found["centring_gap"] = found["fit_loss"] - least_loss(1 - found["fit_accuracy"])
    return found


def _finding(fault: Fault, numbers: dict) -> dict:
    values = numbers | {"healthy": RANGES}
    evidence = []
    for text in fault.evidence:
        try:
            evidence.append(text.format(**values))
        except KeyError:  # not measured
            continue
    return {
        "id": fault.id,
        "severity": fault.severity,
        "evidence": "; ".join(evidence),
        "causes": [cause.format(**values) for cause in fault.causes],
        "advice": fault.advice.format(**values),
    }


# ---- reading faults.toml -------------------------------------------------------------------------


@functools.cache
def read_faults(path: Path = TABLE) -> list[Fault]:
    """The faults of the file, in its order. Raises UserError naming the fault with a mistake."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not readable as TOML: {error}: correct that line")
    numbers = {name for group in table["numbers"].values() for name in group}
    faults = []
    for block in table["fault"]:
        try:
            faults.append(_read_fault(block, numbers, table["clauses"]))
        except (TypeError, ValueError) as error:
            mistake = str(error).removeprefix("Fault.__init__() ")
            raise UserError(f"{path}: fault {block.get('id')}: {mistake}: correct that block")
    return faults


def _read_fault(block: dict, numbers: set[str], clauses: dict[str, str]) -> Fault:
    """A block with its bounds as numbers and its {CLAUSES} filled in; any mistake raises."""
    fault = Fault(**block)
    if fault.severity not in SEVERITIES:
        raise ValueError(f"severity {fault.severity!r} is not one of {', '.join(SEVERITIES)}")
    if isinstance(fault.evidence, str) or isinstance(fault.causes, str):
        raise TypeError("evidence and causes are lists of texts")
    for name in fault.when:
        if name not in numbers:
            raise ValueError(f"no measurement gives {name}: see [numbers]")
    always_known = set(fault.when)  # causes and advice are said in any case
    return replace(
        fault,
        when={name: _bounds(name, condition) for name, condition in fault.when.items()},
        evidence=[_text(text, clauses, numbers) for text in fault.evidence],
        causes=[_text(text, clauses, always_known) for text in fault.causes],
        advice=_text(fault.advice, clauses, always_known),
    )


def _bounds(name: str, condition: str) -> list[tuple[str, float]]:
    """A condition -> its bounds: "> 0.5", "0.4 to 0.6" (without 0.6), "yes" (1), "no" (0)."""
    match str(condition).split():
        case ["yes"]:
            return [("==", 1.0)]
        case ["no"]:
            return [("==", 0.0)]
        case [sign, bound] if sign in OPERATORS:
            return [(sign, _bound(name, bound))]
        case [low, "to", high]:
            return [(">=", _bound(name, low)), ("<", _bound(name, high))]
    raise ValueError(f"the condition {name} = {condition!r} cannot be read")


def _bound(name: str, word: str) -> float:
    """A number, or healthy.low, high, short, poor, failed: of the healthy range of `name`."""
    if not word.startswith("healthy."):
        return float(word)
    bound = getattr(healthy_range(name), word.removeprefix("healthy."), None)
    if not isinstance(bound, float) or math.isinf(bound):
        raise ValueError(f"{name} has no {word}: see HEALTHY in rmood/metrics.py")
    return bound


def _text(text: str, clauses: dict[str, str], names: set[str]) -> str:
    """The text with its {CLAUSES} filled in. Raises ValueError where it names something unknown."""
    try:
        text = re.sub(r"\{([A-Z_]+)\}", lambda clause: clauses[clause[1]], text)
        text.format(**dict.fromkeys(names, 1.0), healthy=RANGES)
    except (KeyError, AttributeError) as error:
        raise ValueError(f"unknown {error} in the text {text!r}")
    return text
