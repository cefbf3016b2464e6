"""Measured numbers -> the faults that they show. faults.toml is the table of faults; this reads it.

A finding is a dict: id of the fault; severity ("error": do not use the model, "warning": look
before use, "note": good to know, also of a healthy one); evidence, the numbers that show it;
causes, likeliest first; advice, what to do: only the first finding has one, the others "".
"""

import functools
import math
import re
import tomllib
from dataclasses import dataclass, field, replace
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from types import SimpleNamespace

from ..errors import UserError
from ..metrics import HEALTHY, healthy_range
from .measures import least_loss
from .scale import FEWEST_PROMPTS, LEARNED, Estimate

TABLE = Path(__file__).with_name("faults.toml")
SEVERITIES = ("error", "warning", "note")
OPERATORS = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq, "is": eq, "not": ne}
RANGES = SimpleNamespace(**HEALTHY)  # what {healthy.match.low} in a text reads
# Numbers of the comparison that stay where there are too few prompts to conclude anything from it
COUNTS = ("pairs", "compared", "gold_ties", "scale_pairs", "scale_prompts")
# ... and those that are of all pairs, not only of those that gold orders, where these are enough:
# ties are why the others are few.
OF_ALL_PAIRS = ("gold_tie_share", "gold_tie_share_low", "gold_kind", "twin_share", "twin_share_low")
# A cause beside an error that it explains is an error too where it costs this much, in bits: it is
# what a match of 0.75 knows (calibrated normal margins).
GRAVE = 0.25
# Calibrated normal margins that know half a bit have a standard deviation of 3 nats
# (docs/compressed_rewards.md, the table of match and width: 0.84).
HALF_A_BIT = 3.0


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
    cost: float | str = 0.0  # bits a pair, or the number that says them
    unless: list = field(default_factory=list)  # ids of faults beside which it is not named

    def shows_in(self, numbers: dict) -> bool:
        """Do all conditions hold? A number that was not measured holds none but "missing"."""
        return all(_holds(bounds, numbers.get(name)) for name, bounds in self.when.items())

    def costs(self, numbers: dict) -> float:
        """Bits a pair; 0 where they were not measured."""
        return numbers.get(self.cost, 0.0) if isinstance(self.cost, str) else self.cost


def _holds(bounds: list[tuple[str, float | str | None]], value: float | str | None) -> bool:
    if bounds == [("missing", None)]:
        return value is None
    if value is None:
        return False
    if bounds == [("measured", None)]:
        return True
    return all(OPERATORS[sign](value, bound) for sign, bound in bounds)


def findings(numbers: dict) -> list[dict]:
    """The faults that the numbers show, most severe first; of one severity causes before symptoms,
    and of causes the one that costs most.

    Empty for a healthy model, or notes alone. A fault whose numbers were not measured (absent or
    None) is not named, and none is named twice. With fewer than 20 compared prompts nothing is
    concluded from the comparison.
    """
    numbers = {name: value for name, value in numbers.items() if value is not None}
    numbers.update(derived(numbers))
    hidden = _too_few(numbers)
    numbers = {name: value for name, value in numbers.items() if name not in hidden}

    named = _graver_causes(_named(numbers), numbers)
    first_of_id: dict[str, Fault] = {}
    for fault in named:
        first_of_id.setdefault(fault.id, fault)
    ordered = sorted(
        first_of_id.values(),
        key=lambda fault: (SEVERITIES.index(fault.severity), fault.symptom, -fault.costs(numbers)),
    )
    return [_finding(fault, numbers, number == 0) for number, fault in enumerate(ordered)]


def _too_few(numbers: dict) -> set[str]:
    """The numbers from which nothing is concluded, as they are of fewer than 20 prompts."""
    hidden = set()
    if numbers.get("scale_prompts", FEWEST_PROMPTS) < FEWEST_PROMPTS:
        hidden |= set(_numbers_of("against_gold")) - set(COUNTS)
        if numbers.get("pairs", 0) >= FEWEST_PROMPTS:
            hidden -= set(OF_ALL_PAIRS)
        hidden |= {"learning_word", "resolution_low", "gain_over_probe_high", "probe_match_high"}
        hidden |= {"cost_memorised", "cost_scale", "cost_length", "twin_over_noise"}
        hidden |= {"length_shift_low", "test_shortfall", "cue_lost", "words_excess", "twin_shift"}
    if numbers.get("train_prompts", FEWEST_PROMPTS) < FEWEST_PROMPTS:
        hidden |= {name for name in numbers if name.startswith(("train_", "read_"))}
        hidden |= {"unlearned", "learning_word", "cost_unlearned", "below_steps"}
        hidden |= {f"{kind}_gain" for kind in ("token", "cut", "plain")}
    return hidden


def _named(numbers: dict) -> list[Fault]:
    """The blocks that show, without those that are not named beside another one."""
    shown = [fault for fault in read_faults() if fault.shows_in(numbers)]
    named = []
    for number, fault in enumerate(shown):
        others = {other.id for other in [*named, *shown[number + 1 :]]} - {fault.id}
        if not others & set(fault.unless):
            named.append(fault)
    return named


def _graver_causes(named: list[Fault], numbers: dict) -> list[Fault]:
    """Beside a symptom that is an error, a warning that costs much is an error too."""
    if not any(fault.symptom and fault.severity == "error" for fault in named):
        return named
    graver = []
    for fault in named:
        explains = not fault.symptom and fault.severity == "warning"
        if explains and fault.costs(numbers) >= GRAVE:
            fault = replace(fault, severity="error")
        graver.append(fault)
    return graver


def derived(numbers: dict) -> dict:
    """Numbers that follow from others, and that faults share.

    noise_bits       what labels of which a share label_noise is wrong cost at least, bits
    unlearned        1 where the whole interval of train_bits is under half of what the labels allow
    train_said       1 - train_loss / ln 2 over train_bits: the part of what it knows of its
                     training pairs that its margins say
    cost_unlearned   what is missing of its training pairs, of what their labels allow, bits
    cost_memorised   train_bits - bits: what holds for its training pairs alone
    cost_scale       what the scale of the margins costs: loss as they are minus loss_scaled, bits
    cost_updates     the part of cost_unlearned that is in proportion to the updates lost
    cost_length      0.5 - against_length
    twin_over_noise  twin_gap in units of what rounding makes of a margin
    squeeze_asked    1 where run.json says that options asked for narrow margins, else 0
    length_shift_low lower bound of the difference between longer_wins and train_longer_wins
    test_shortfall   lower bound of new_accuracy minus right, where each training pair was new
                     in epoch 1 and none was left out for its small margin
    run_decay        what weight decay took of a weight that no gradient restored:
                     1 - exp(-rate_sum * run_weight_decay)
    passes           steps done over those of an epoch; where these are not known, run_epochs
    rewards_ran      1 where reward_drift is above what half a bit takes in margins, else 0
    cue_lost         lower bound of cue_right minus cue_test_right
    words_excess     lower bound of unseen_words minus train_unseen_words
    twin_shift       lower bound of twin_share minus train_twin_share
    gold_kind_words  gold_kind, and whether it was said or guessed
    """
    n = numbers
    found = {"squeeze_asked": n.get("asked_to_squeeze", 0.0)}
    found["rewards_ran"] = float(n.get("reward_drift", 0.0) > HALF_A_BIT)
    if "steps" in n and "steps_an_epoch" in n:
        found["passes"] = n["steps"] / n["steps_an_epoch"]
    elif "run_epochs" in n:
        found["passes"] = n["run_epochs"]
    found |= {"noise_bits": least_loss(n.get("label_noise", 0.0)) / math.log(2)}
    if "train_bits" in n and "train_bits_high" in n:
        allowed = 1 - found["noise_bits"]
        found["unlearned"] = float(n["train_bits_high"] < LEARNED * allowed)
        found["cost_unlearned"] = max(0.0, allowed - n["train_bits"])
        found["cost_updates"] = found["cost_unlearned"] * (1 - min(1.0, n.get("update_kept", 1.0)))
        if "train_loss" in n and n["train_bits"] > 0:
            said = 1 - n["train_loss"] / math.log(2)  # bits, of the margins as they are
            found["train_said"] = said / n["train_bits"]
        if "bits" in n:
            found["cost_memorised"] = max(0.0, n["train_bits"] - max(0.0, n["bits"]))
    if "loss" in n and "loss_scaled" in n:
        found["cost_scale"] = max(0.0, n["loss"] - n["loss_scaled"]) / math.log(2)
    if "against_length" in n:
        found["cost_length"] = max(0.0, 0.5 - n["against_length"])
    if "twin_gap" in n and "proxy_std_within" in n and n.get("score_noise"):
        margins = n["proxy_std_within"] * math.sqrt(2)  # root mean square
        found["twin_over_noise"] = n["twin_gap"] * margins / n["score_noise"]
    lengths = ("longer_wins", "train_longer_wins")
    shifts = [_least_difference(n, *lengths), _least_difference(n, *lengths[::-1])]
    differences = {
        "length_shift_low": None if None in shifts else max(0.0, *shifts),
        "test_shortfall": _least_difference(n, "new_accuracy", "right"),
        "cue_lost": _least_difference(n, "cue_right", "cue_test_right"),
        "words_excess": _least_difference(n, "unseen_words", "train_unseen_words"),
        "twin_shift": _least_difference(n, "twin_share", "train_twin_share"),
    }
    if not n.get("pairs_are_new"):
        differences.pop("test_shortfall")
    found |= {name: value for name, value in differences.items() if value is not None}
    if "rate_sum" in n and "run_weight_decay" in n:
        found["run_decay"] = 1 - math.exp(-n["rate_sum"] * n["run_weight_decay"])
    if "gold_kind" in n:
        how = (
            "said by --gold-kind"
            if n.get("gold_kind_said")
            else "guessed; --gold-kind says otherwise"
        )
        found["gold_kind_words"] = f"gold's kind: {n['gold_kind']} ({how})"
    return found


def _least_difference(numbers: dict, one: str, other: str) -> float | None:
    """The lower bound of the 95% interval of one number minus another, measured apart; None where
    one of them, or its interval, is missing."""
    if not all(f"{side}{end}" in numbers for side in (one, other) for end in ("", "_low", "_high")):
        return None
    first, second = Estimate.of(numbers, one), Estimate.of(numbers, other)
    half = math.hypot(first.high - first.low, second.high - second.low) / 2
    return first.value - second.value - half


def _finding(fault: Fault, numbers: dict, with_advice: bool) -> dict:
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
        "advice": fault.advice.format(**values) if with_advice else "",
    }


# ---- reading faults.toml -------------------------------------------------------------------------


@functools.cache
def read_faults(path: Path = TABLE) -> list[Fault]:
    """The faults of the file, in its order. Raises UserError naming the fault with a mistake."""
    table = _read_table(path)
    numbers = {name for group in table["numbers"].values() for name in group}
    groups = table.get("groups", {})
    ids = {block.get("id") for block in table["fault"]}
    faults = []
    for block in table["fault"]:
        try:
            fault = _read_fault(block, numbers, table["clauses"])
            faults.append(replace(fault, unless=_ids(fault.unless, groups, ids)))
        except (TypeError, ValueError) as error:
            mistake = str(error).removeprefix("Fault.__init__() ")
            raise UserError(f"{path}: fault {block.get('id')}: {mistake}: correct that block")
    return faults


@functools.cache
def _read_table(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not readable as TOML: {error}: correct that line")


def _numbers_of(group: str) -> list[str]:
    return _read_table(TABLE)["numbers"][group]


def _ids(names: list[str], groups: dict[str, list[str]], ids: set[str]) -> list[str]:
    """Names of groups and ids -> ids. Raises ValueError for a name that is neither."""
    found = []
    for name in names:
        found += groups.get(name, [name])
    unknown = [name for name in found if name not in ids]
    if unknown:
        raise ValueError(f"`unless` names {unknown[0]}, which is neither a fault nor in [groups]")
    return found


def _read_fault(block: dict, numbers: set[str], clauses: dict[str, str]) -> Fault:
    """A block with its bounds as numbers and its {CLAUSES} filled in; any mistake raises."""
    fault = Fault(**block)
    if fault.severity not in SEVERITIES:
        raise ValueError(f"severity {fault.severity!r} is not one of {', '.join(SEVERITIES)}")
    if isinstance(fault.evidence, str) or isinstance(fault.causes, str):
        raise TypeError("evidence and causes are lists of texts")
    used = [*fault.when, *([fault.cost] if isinstance(fault.cost, str) else [])]
    for name in used:
        if name not in numbers:
            raise ValueError(f"no measurement gives {name}: see [numbers]")
    # causes and advice are said in any case; with an interval its middle is known
    always_known = set(fault.when)
    always_known |= {re.sub("_(low|high)$", "", name) for name in fault.when}
    return replace(
        fault,
        when={name: _bounds(name, condition) for name, condition in fault.when.items()},
        evidence=[_text(text, clauses, numbers) for text in fault.evidence],
        causes=[_text(text, clauses, always_known) for text in fault.causes],
        advice=_text(fault.advice, clauses, always_known),
    )


def _bounds(name: str, condition: str) -> list[tuple[str, float | str | None]]:
    """A condition -> its bounds: "> 0.5", "0.4 to 0.6" (without 0.6), "yes" (1), "no" (0), "is
    squeezed", "not squeezed", "measured", "missing"."""
    match str(condition).split(maxsplit=1):
        case ["yes"]:
            return [("==", 1.0)]
        case ["no"]:
            return [("==", 0.0)]
        case ["measured" | "missing" as word]:
            return [(word, None)]
        case ["is" | "not" as sign, word]:
            return [(sign, word)]
        case [sign, bound] if sign in OPERATORS:
            return [(sign, _bound(name, bound))]
        case [low, rest] if rest.startswith("to "):
            return [(">=", _bound(name, low)), ("<", _bound(name, rest.removeprefix("to ")))]
    raise ValueError(f"the condition {name} = {condition!r} cannot be read")


def _bound(name: str, word: str) -> float:
    """A number, or healthy.low, high, short, poor, failed: of the healthy range of `name`, or of
    the number whose interval ends there."""
    if not word.startswith("healthy."):
        return float(word)
    healthy = healthy_range(name) or healthy_range(re.sub("_(low|high)$", "", name))
    bound = getattr(healthy, word.removeprefix("healthy."), None)
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
