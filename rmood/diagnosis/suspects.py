"""Which training pairs have their labels wrong? Pairs ranked by two kinds of evidence.

    running    the pair's margin before its updates, in units of each epoch's standard deviation,
               mean over the first three epochs: what the model thought of it while it learned from
               the others (the area under the margin: Pleiss et al. 2020, arXiv 2001.10528).
               train.py writes it beside metrics.jsonl (rmood/trajectories.py)
    left_out   its margin by a head that was fitted on all other pairs, on the model's own pooled
               states: below 0, the others say that its order is the other one
    influence  with held-out pairs: how much their loss would rise if the pair were left out of that
               fit; below 0, they are better off without it (Koh and Liang 2017, arXiv 1703.04730)

A pair is the more suspect, the lower it ranks: by the mean of its ranks in what there is. No gold
is used. Later epochs, and the states of a model that was trained for more, know the wrong labels,
too: networks fit what is regular first and memorise the rest later (Arpit et al. 2017, arXiv
1706.05394). They are not used. Where the two responses are about as good, a wrong label looks like
a right one: of those pairs, no measure finds many.

The head is linear, so leaving a pair out is a logistic regression, and needs no training: with
z_i = state of chosen - state of rejected, margin x_i = w z_i, p_i = sigmoid(-x_i), the loss
sum_i log(1 + exp(-x_i)) + penalty / 2 |w|^2 has the Hessian H = sum_i p_i (1 - p_i) z_i z_i^T +
penalty, and one step of Newton's method from the fit of all pairs gives that of all but i:

    h_i = z_i^T H^-1 z_i      w_without_i = w - H^-1 z_i p_i / (1 - h_i p_i (1 - p_i))

(Pregibon 1981; Rad and Maleki 2020). Of five penalties the one with the least left-out loss is
taken. B pairs, D the hidden size, E epochs.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.rows import check_writable, write_jsonl
from ..files.tables import Conversation, Pair
from ..trajectories import pair_keys, read_trajectories
from . import run
from .text import aligned

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean diagonal of the Hessian at w = 0
STEPS = 100
EPOCHS = 3  # later ones have memorised: with 8 epochs on the toy world, 97% are "right" at the end


# ---- the head without one of its pairs -----------------------------------------------------------


@dataclass(frozen=True)
class HeadFit:
    """A head fitted on B pairs, and what each of them did to it."""

    weights: np.ndarray  # (R,) R = min(B, D)
    basis: np.ndarray  # (D, R) states @ basis are what the weights are of
    margins: np.ndarray  # (B,)
    left_out: np.ndarray  # (B,) margin of each pair by the head without it
    moves: np.ndarray  # (B, R) weights - weights without the pair
    penalty: float

    def influence(self, held_out: np.ndarray) -> np.ndarray:
        """(H, D) held-out differences -> (B,) rise of their mean loss without each pair."""
        z = held_out @ self.basis  # (H, R)
        before = np.logaddexp(0, -z @ self.weights).mean()
        rises = []
        for move in self.moves:
            rises.append(np.logaddexp(0, -z @ (self.weights - move)).mean() - before)
        return np.array(rises)


def fit_head(differences: np.ndarray) -> HeadFit:
    """(B, D) state of chosen - state of rejected -> the head that fits them, with its best penalty.

    Raises UserError where all differences are 0.
    """
    differences = differences.astype(np.float64)
    basis = _basis(differences)
    z = differences @ basis
    size = np.square(z).sum() / 4 / z.shape[1]
    if size == 0:
        raise UserError("chosen and rejected have the same states in every pair: nothing to rank")
    fits = [_fit(z, basis, size * penalty) for penalty in PENALTIES]
    return min(fits, key=lambda fit: np.logaddexp(0, -fit.left_out).mean())


def _basis(differences: np.ndarray) -> np.ndarray:
    """(D, R) orthonormal directions: all where D <= B, else those that the B pairs span."""
    pairs, size = differences.shape
    if size <= pairs:
        return np.eye(size)
    basis, _ = np.linalg.qr(differences.T)
    return basis


def _fit(z: np.ndarray, basis: np.ndarray, penalty: float) -> HeadFit:
    """(B, R) -> the penalised logistic fit, by Newton's method with halved steps."""

    def loss(w: np.ndarray) -> float:
        return np.logaddexp(0, -z @ w).sum() + penalty / 2 * w @ w

    w = np.zeros(z.shape[1])
    for _ in range(STEPS):
        p, hessian = _slopes(z, w, penalty)
        step = np.linalg.solve(hessian, z.T @ p - penalty * w)
        while loss(w + step) > loss(w) and np.abs(step).max() > 1e-12:
            step /= 2
        w = w + step
        if np.abs(step).max() < 1e-9 * max(1.0, np.abs(w).max()):
            break
    p, hessian = _slopes(z, w, penalty)
    directions = np.linalg.solve(hessian, z.T).T  # (B, R) H^-1 z_i
    leverage = (z * directions).sum(axis=1)
    moves = directions * (p / (1 - leverage * p * (1 - p)))[:, None]
    margins = z @ w
    left_out = margins - (z * moves).sum(axis=1)
    return HeadFit(w, basis, margins, left_out, moves, penalty)


def _slopes(z: np.ndarray, w: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """(B,) p = sigmoid(-margin), and the (R, R) Hessian."""
    p = np.exp(-np.logaddexp(0, z @ w))
    hessian = (z * (p * (1 - p))[:, None]).T @ z
    return p, hessian + penalty * np.eye(len(w))


# ---- evidence and ranks --------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against the labels of B pairs; low numbers against."""

    running: np.ndarray | None  # (B,) mean over epochs; NaN for a pair that was not trained on
    left_out: np.ndarray | None  # (B,)
    influence: np.ndarray | None  # (B,)
    epochs: np.ndarray | None = None  # (E, B) running margins, by epoch
    note: str = ""  # what was not measured, and why

    def ranking(self) -> np.ndarray:
        """(B,) numbers of the pairs, the most suspect first."""
        kinds = [one for one in (self.running, self.left_out, self.influence) if one is not None]
        places = np.mean([_places(one) for one in kinds], axis=0)
        return np.argsort(places, kind="stable")

    def against(self) -> np.ndarray:
        """(B,) whether all that there is says so: margins below 0, harmful where that is known."""
        kinds = [one for one in (self.running, self.left_out, self.influence) if one is not None]
        return np.all([one < 0 for one in kinds], axis=0)


def _places(values: np.ndarray) -> np.ndarray:
    """(B,) values -> their places from 0 to 1, lowest first; a NaN is in the middle."""
    known = np.isfinite(values)
    places = np.full(len(values), 0.5)
    order = np.argsort(np.argsort(values[known], kind="stable"))
    places[known] = order / max(1, known.sum() - 1)
    return places


def running_margins(folder: str, pairs: Sequence[Pair]) -> np.ndarray | None:
    """(E, B) margins before the updates of each epoch, NaN for pairs that were not trained on.

    None where the folder has no such file, or none of the pairs are in it.
    """
    known = read_trajectories(folder)
    if known is None:
        return None
    keys, rewards = known
    place = {int(key): i for i, key in enumerate(keys)}
    where = np.array([place.get(int(key), -1) for key in pair_keys(pairs)])
    if (where < 0).all():
        return None
    margins = (rewards[..., 0] - rewards[..., 1])[:, where]
    margins[:, where < 0] = np.nan
    return margins


def find_suspects(
    model: str, pairs: Sequence[Pair], held_out: Sequence[Pair] = (), **scoring
) -> Evidence:
    """The evidence about a model's training pairs. The model is a folder, or a name on the hub.

    held_out: pairs that it was not trained on. scoring: as for run.loaded_scorer.
    """
    epochs = running_margins(model, pairs)
    running = mean_margin(epochs[:EPOCHS]) if epochs is not None else None
    reader = model
    if epochs is not None and len(epochs) > EPOCHS:
        reader = str(Path(model, f"epoch-{EPOCHS}"))
        if not Path(reader, "config.json").is_file():
            note = (
                f"left-out margins are not measured: the model was trained for {len(epochs)} "
                f"epochs, and its states know wrong labels, too; {reader}, which train.py "
                "--keep-epochs writes, would serve"
            )
            return Evidence(running, None, None, epochs, note)
    scorer = run.loaded_scorer(reader, **scoring)
    fit = fit_head(_differences(scorer, pairs, "reading states: training pairs"))
    influence = None
    if held_out:
        influence = fit.influence(_differences(scorer, held_out, "reading states: held-out pairs"))
    return Evidence(running, fit.left_out, influence, epochs)


def mean_margin(epochs: np.ndarray) -> np.ndarray:
    """(E, B) running margins -> (B,) mean over the epochs, each divided by its standard deviation.

    Margins grow from epoch to epoch; so divided, each counts the same. (The deviation is about 0,
    not about the mean: the sign stays.) NaN for a pair that no epoch has.
    """
    seen = np.isfinite(epochs)
    known = np.where(seen, epochs, 0.0)
    spread = np.sqrt(np.square(known).sum(axis=1) / np.maximum(1, seen.sum(axis=1)))  # (E,)
    standard = known / np.where(spread > 0, spread, 1.0)[:, None]
    total = standard.sum(axis=0) / np.maximum(1, seen.sum(axis=0))
    return np.where(seen.any(axis=0), total, np.nan)


def _differences(scorer, pairs: Sequence[Pair], desc: str) -> np.ndarray:
    """(B, D) pooled state of chosen - that of rejected."""
    groups, _ = scorer.groups([[pair.chosen, pair.rejected] for pair in pairs])
    states = run.torch_modules().probes.last_states(scorer, groups, desc)
    return states[::2] - states[1::2]


# ---- what is written -----------------------------------------------------------------------------


def listed(evidence: Evidence, pairs: Sequence[Pair], count: int) -> Iterator[dict]:
    """A row for each of the most suspect pairs, worst first."""
    for rank, number in enumerate(evidence.ranking()[:count].tolist(), 1):
        pair = pairs[number]
        row = {"rank": rank, "pair": number, "where": pair.where}
        if evidence.left_out is not None:
            row["left_out_margin"] = float(evidence.left_out[number])
        if evidence.running is not None and np.isfinite(evidence.running[number]):
            row["running_margins"] = evidence.epochs[:, number].tolist()
        if evidence.influence is not None:
            row["influence"] = float(evidence.influence[number])
        row |= {"chosen": pair.chosen, "rejected": pair.rejected}
        for name in ("chosen_reward", "rejected_reward"):
            if getattr(pair, name) is not None:
                row[name] = getattr(pair, name)
        yield row


def check_target(path: str, data_path: str, overwrite: bool) -> None:
    """Raise UserError rather than replace the pairs themselves, or anything else unasked."""
    if os.path.realpath(path) == os.path.realpath(data_path):
        raise UserError(f"{path}: is the pairs file itself: choose another path")
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{path}: is there already: pass --overwrite, or choose another path")
    check_writable(path)


def write(
    evidence: Evidence, pairs: Sequence[Pair], count: int, target_path: str, cleaned_path: str
) -> list[str]:
    """Write the list of suspects and, unless its path is empty, the other pairs: the paths."""
    write_jsonl(target_path, listed(evidence, pairs, count))
    if not cleaned_path:
        return [target_path]
    left_out = set(evidence.ranking()[:count].tolist())
    kept = [pair for number, pair in enumerate(pairs) if number not in left_out]
    write_jsonl(cleaned_path, rows_of(kept))
    return [target_path, cleaned_path]


def rows_of(pairs: Sequence[Pair]) -> Iterator[dict]:
    """Rows of a pairs file: a pair each, or a group of responses with the pairs that are left."""
    group = []
    for pair in pairs:
        if group and (pair.group is None or pair.group != group[0].group):
            yield _row(group)
            group = []
        group.append(pair)
    if group:
        yield _row(group)


def _row(pairs: list[Pair]) -> dict:
    first = pairs[0]
    index = {} if first.index is None else {"index": first.index}
    if first.group is None:
        row = {"chosen": first.chosen, "rejected": first.rejected} | index
        for name in ("chosen_reward", "rejected_reward"):
            if getattr(first, name) is not None:
                row[name] = getattr(first, name)
        return row
    row = {"messages": first.chosen[:-1]}
    number_of = {}  # (text, reward) -> the response's number
    numbers = []
    for pair in pairs:
        both = [(pair.chosen, pair.chosen_reward), (pair.rejected, pair.rejected_reward)]
        numbers.append([_number(row, number_of, side, reward) for side, reward in both])
    return row | {"pairs": numbers} | index


def _number(row: dict, number_of: dict, side: Conversation, reward: float) -> int:
    text = side[-1]["content"]
    if (text, reward) not in number_of:
        number = number_of[text, reward] = len(number_of) + 1
        row |= {f"response_{number}": text, f"reward_{number}": reward}
    return number_of[text, reward]


def summary(evidence: Evidence, pairs: Sequence[Pair], count: int, shown: int = 10) -> str:
    """What was found, and the first suspects, as text."""
    kinds = []
    if evidence.running is not None:
        epochs = min(EPOCHS, len(evidence.epochs))
        kinds.append(
            f"running margin (before the pair's updates, in standard deviations; mean over "
            f"{epochs} epoch{'s' if epochs > 1 else ''})"
        )
    if evidence.left_out is not None:
        kinds.append("left-out margin (by a head fitted on all other pairs)")
    if evidence.influence is not None:
        kinds.append("influence on the held-out pairs")
    rows = [["rank", "where", "running margin", "left-out margin", "its chosen response"]]
    for row in listed(evidence, pairs, min(shown, count)):
        running = "-"
        if "running_margins" in row:
            running = f"{evidence.running[row['pair']]:.2f}"
        left_out = f"{row['left_out_margin']:.2f}" if "left_out_margin" in row else "-"
        text = " ".join(row["chosen"][-1]["content"].split())
        cells = [str(row["rank"]), row["where"], running, left_out]
        rows.append([*cells, text if len(text) <= 48 else f"{text[:48]}..."])
    against = int(evidence.against().sum())
    note = f"{evidence.note}\n" if evidence.note else ""
    measures = "".join(f"\n  {kind}" for kind in kinds)
    every = "both are" if len(kinds) == 2 else "every one is" if len(kinds) > 2 else "it is"
    return (
        f"{note}ranked by the mean of the ranks in{measures}\n"
        f"{every} negative, the label looks wrong, in {against:,} of {len(pairs):,} pairs "
        f"({against / len(pairs):.1%}); the list has the {count:,} most suspect\n\n"
        f"{aligned(rows)}"
    )
