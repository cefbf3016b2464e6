"""Were the epochs too many? The models that train.py --keep-epochs kept, on the same pairs.

Epochs are compared on held-out pairs, pair by pair, by two losses:

    loss    as the margins are: what an overconfident model loses, calibration can give back
    bits    at the model's own best scale (scale.py): what it knows of the order of a pair, alone

The best epoch is chosen after the fact, so the intervals against it are those of E - 1 comparisons
together (Bonferroni). Torch is imported only where models are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ..errors import UserError
from ..files.provenance import content_of, same_entry
from ..files.tables import Pair, read_pairs
from .curve import Curve, answer, curve_of_run
from .inputs import draw, read_metrics, read_run
from .measures import finite
from .run import as_scorer, gold_margins, score
from .scale import Estimate, mean
from .text import aligned

METRICS = ("loss", "bits")


@dataclass(frozen=True)
class Epoch:
    """One model. parts: "eval" and, where its training pairs were found, "train" -> numbers."""

    name: str
    step: int
    parts: dict[str, dict]
    behind: dict[str, Estimate]  # "loss", "bits" -> nats above the best epoch's loss of that kind


@dataclass(frozen=True)
class Epochs:
    """The models of one run, in order. answers: of "loss" and "bits", in words."""

    epochs: list[Epoch]
    answers: dict[str, str]
    curve: Curve | None
    next_step: str  # more pairs, more steps, or at the ceiling
    not_measured: list[str]

    def as_json(self) -> dict:
        rows = []
        for one in self.epochs:
            row = {"name": one.name, "step": one.step} | one.parts
            for metric, number in one.behind.items():
                row |= number.as_numbers(f"behind_{metric}")
            rows.append(row)
        return {
            "epochs": rows,
            "too_many": self.answers,
            "curve": self.curve.as_numbers() if self.curve else None,
            "next_step": self.next_step,
            "not_measured": self.not_measured,
        }

    def __str__(self) -> str:
        head = ["", "step", "held-out right", "bits", "scale", "loss"]
        head += ["loss behind the best", "by bits", "training bits"]
        lines = [head]
        for one in self.epochs:
            held_out = one.parts["eval"]
            cells = [one.name, str(one.step)]
            cells += [_shown(held_out, name) for name in ("right", "bits", "scale", "loss")]
            cells += [_estimate(one.behind[metric]) for metric in METRICS]
            cells.append(_shown(one.parts["train"], "bits") if "train" in one.parts else "-")
            lines.append(cells)
        words = [aligned(lines), ""]
        words += [f"too many epochs, by {name}? {text}" for name, text in self.answers.items()]
        if self.curve:
            words.append(
                f"learning curve: loss {_estimate(self.curve.loss)} of unseen pairs at the end of "
                f"epoch 1; twice as many new pairs would save {_estimate(self.curve.gain)} nats"
            )
        words.append(f"more pairs, more steps, or at the ceiling: {self.next_step}")
        words += [f"not measured: {reason}" for reason in self.not_measured]
        return "\n".join(words)


def compare_epochs(
    folder: str,
    eval_path: str = "",
    data_path: str = "",
    num_samples: int = 500,
    seed: int = 0,
    **scoring,
) -> Epochs:
    """The kept models of a trained model's folder, scored on held-out and on training pairs.

    eval_path: held-out pairs; "": those of the run, as its run.json says.
    data_path: its training pairs; "": the file that run.json names. The same pairs are scored that
        the run scored after each epoch, where it is the same file; else num_samples of them.
    scoring: device, dtype, max_length, tokens_per_pass, chat_template, as in `run.loaded_scorer`.

    Raises UserError where fewer than two models, or no held-out pairs, are found.
    """
    run = read_run(folder)
    models = _models(folder, run)
    data_path = data_path or run["config"].get("data_path", "")
    held_out = _held_out_pairs(eval_path, data_path, run)
    train, not_measured = _training_pairs(data_path, run, num_samples, seed)
    sets = {"eval": held_out} | ({"train": train} if train else {})

    names = list(models)
    steps, parts, losses = [], [], {metric: [] for metric in METRICS}
    for path in models.values():
        scorer = as_scorer(path, **scoring)
        rewards = {part: _score(scorer, pairs) for part, pairs in sets.items()}
        parts.append({part: _numbers(rewards[part], sets[part]) for part in sets})
        for metric in METRICS:
            losses[metric].append(_losses(metric, rewards["eval"], held_out))
        steps.append(_step_of(path))
    prompts = _prompts(held_out)
    behind, answers = {}, {}
    for metric in METRICS:
        behind[metric], answers[metric] = too_many(names, np.array(losses[metric]), prompts)
    rows = []
    for i, name in enumerate(names):
        rows.append(Epoch(name, steps[i], parts[i], {m: behind[m][i] for m in METRICS}))

    curve = curve_of_run(read_metrics(folder), run["config"], run.get("pairs", 0))
    next_step = answer(curve.word if curve else "cannot tell", _learned(parts[0]))
    return Epochs(rows, answers, curve, next_step, not_measured)


def too_many(
    names: Sequence[str], losses: np.ndarray, prompts: np.ndarray
) -> tuple[list[Estimate], str]:
    """(E, n) losses of the epochs' models on the same pairs -> how far each is behind the best, and
    the answer in words.

    names: of the E models, in order. prompts: (n,) the prompt of each pair.
    """
    best = int(losses.mean(axis=1).argmin())
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, len(names) - 1))
    behind = []
    for row in losses:
        behind.append(mean(row - losses[best], prompts).at(z))
    as_good = [name for name, gap in zip(names, behind) if gap.low <= 0]
    last = behind[-1]
    if last.low > 0:
        words = f"yes: {names[best]} is better than {names[-1]} by {_estimate(last)} nats"
    elif as_good == [names[-1]]:
        words = f"no: {names[-1]}, the last, is better than all others"
    else:
        words = f"cannot tell {' and '.join(as_good)} apart with {losses.shape[1]} pairs"
    others = [name for name in as_good if name != names[best]]
    if last.low > 0 and others:
        words += f"; {' and '.join(others)} cannot be told from it"
    return behind, words


# ---- models and pairs ----------------------------------------------------------------------------


def _models(folder: str, run: dict) -> dict[str, str]:
    """Name -> folder, in the order of training; the last model too, where it is no epoch's own."""
    from ..export import kept_models

    kept = [path for path in kept_models(folder) if path.name != "best"]
    models = {path.name.replace("-", " "): str(path) for path in kept}
    is_another = kept and run.get("step") not in (None, _step_of(str(kept[-1])))
    if is_another:
        models["the last"] = folder
    if len(models) < 2:
        raise UserError(
            f"{folder}: {len(models)} models of epochs are kept below it, and 2 are needed: train "
            "with --keep-epochs and 2 or more --epochs"
        )
    return models


def _step_of(model: str) -> int:
    return read_run(model).get("step", 0)


def _held_out_pairs(eval_path: str, data_path: str, run: dict) -> list[Pair]:
    from ..evaluation import held_out_files
    from ..pairset import hold_out

    config = run["config"]
    if not eval_path and config.get("eval_path"):
        recorded = config["eval_path"]  # one path, in run files of older versions
        files = held_out_files([recorded] if isinstance(recorded, str) else recorded)
        eval_path = next(iter(files.values()))
    if eval_path:
        return read_pairs(eval_path)
    share = config.get("eval_share", 0.0)
    if share and Path(data_path).is_file():
        _, held_out = hold_out(read_pairs(data_path), share, config["seed"], data_path)
        return held_out
    raise UserError("evaluate.py epochs: the run held out no pairs: pass --eval-path FILE")


def _training_pairs(
    data_path: str, run: dict, num_samples: int, seed: int
) -> tuple[list[Pair], list[str]]:
    """The training pairs to score, and why there are none."""
    if not Path(data_path).is_file():
        return [], [f"its training pairs ({data_path or 'no file named'}): pass --data-path FILE"]
    pairs = read_pairs(data_path)
    content = content_of(data_path)
    now = {"sha256": content.sha256, "rows_sha256": content.rows}
    recorded = run.get("inputs", {}).get("pairs", {})
    if run.get("train_sample") and same_entry(recorded, now):
        return [pairs[number] for number in run["train_sample"]], []
    return list(draw(pairs, num_samples, seed)), []


# ---- numbers -------------------------------------------------------------------------------------


def _score(scorer, pairs: list[Pair]) -> np.ndarray:
    return score(scorer, [[pair.chosen, pair.rejected] for pair in pairs])


def _prompts(pairs: list[Pair]) -> np.ndarray:
    return np.unique([pair.prompt_key for pair in pairs], return_inverse=True)[1]


def _numbers(rewards: np.ndarray, pairs: list[Pair]) -> dict:
    from ..evaluation import pair_numbers

    return finite(pair_numbers(rewards, _prompts(pairs), gold_margins(pairs)))


def _losses(metric: str, rewards: np.ndarray, pairs: list[Pair]) -> np.ndarray:
    from ..evaluation import losses_for

    return losses_for(f"eval_{metric}", rewards, _prompts(pairs))


def _learned(parts: dict[str, dict]) -> str:
    from ..evaluation import learned

    return learned(parts)


def _shown(numbers: dict, name: str) -> str:
    value, low, high = (numbers[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return f"over {low:.2f}" if low is not None else "-"
    return _estimate(Estimate(value, low, high))


def _estimate(number: Estimate) -> str:
    return f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})"
