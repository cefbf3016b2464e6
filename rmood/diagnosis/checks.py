"""Are the training pairs what gold says, and what does the model read? `validate` and `inspect`."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files.provenance import check_lineage, edit_of, read_run_file
from ..files.tables import (
    Conversation,
    Pair,
    check_rows,
    read_pairs,
    read_prompts,
    read_responses,
    read_rewards,
)
from ..metrics import HEALTHY
from .inputs import check_same_shape, texts_in
from .pairs import best_side, pairs_against_gold, rows_of, sides_in_row
from .run import quality, torch_modules

# ---- validate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One check of a training set."""

    check: str
    passed: bool | None  # None: nothing can be said
    failures: int
    detail: str  # what was found, or the first failure


@dataclass(frozen=True)
class Validation:
    """All checks of a pairs file. pairs: how many could be read."""

    pairs: int
    checks: list[Check]

    @property
    def failed(self) -> int:
        return sum(check.passed is False for check in self.checks)


def validate(
    pairs: str,
    responses: str,
    gold: str,
    prompts: str | None = None,
    *,
    model: str = "",
    num_samples: int = 100,
    seed: int = 0,
    **scoring,
) -> Validation:
    """Is a pairs file well-formed, made from these files, and does gold prefer each chosen side?

    pairs, responses, gold, prompts: paths; without prompts they are not compared.
    model: also score num_samples of the pairs with it; scoring: see run.loaded_scorer.
    """
    prompt_rows, response_rows, gold_rows = read_pair_files(responses, gold, prompts)
    if not Path(pairs).exists():
        raise UserError(f"{pairs}: no such file: run preprocess.py, or pass --data-path")
    checks = []
    known = []
    try:
        known = read_pairs(pairs)
        fine = f"{len(known):,} pairs, read as {known[0].form}: roles, texts and rewards are fine"
        checks.append(_check("format", [], fine))
    except UserError as error:
        checks.append(_check("format", [str(error)]))

    made_from = {"responses": responses, "prompts": prompts or ""}
    checks.append(_check_lineage(pairs, made_from | {"rewards": gold}))
    checks.append(_check_lineage(gold, made_from))

    if known:
        settings = (read_run_file(pairs) or {}).get("config", {})
        found = pairs_against_gold(
            known,
            prompt_rows,
            response_rows,
            gold_rows,
            settings.get("min_margin", 0.0),
            settings.get("drop_identical", False),
        )
        checks += [_check(name, wrong, fine) for name, wrong, fine in found]
    if known and model:
        checks.append(_check_model(model, known, num_samples, seed, scoring))
    return Validation(len(known), checks)


def read_pair_files(
    responses: str, gold: str, prompts: str | None
) -> tuple[list[Conversation] | None, list[list[str]], list[list[float]]]:
    """Prompts (None without a path), responses and gold rewards, checked to have the same rows."""
    response_rows = read_responses(responses)
    gold_rows = read_rewards(gold)
    check_same_shape(gold, gold_rows, responses, response_rows)
    if texts := texts_in(gold):
        _, labelled = texts
        for row, (texts_of_gold, given) in enumerate(zip(labelled, response_rows)):
            if texts_of_gold != given:
                raise UserError(
                    f"{gold}: row {row} holds other texts than {responses}: "
                    "pass the responses that were labelled"
                )
    if not prompts:
        return None, response_rows, gold_rows
    prompt_rows = read_prompts(prompts)
    check_rows(prompts, prompt_rows, "responses", response_rows, responses, "rerun sample.py")
    return prompt_rows, response_rows, gold_rows


def _check(name: str, wrong: list[str], fine: str = "") -> Check:
    """wrong: a line for every failure, of which the first is shown; fine: shown without any."""
    if not wrong:
        detail = fine
    elif len(wrong) == 1:
        detail = wrong[0]
    else:
        detail = f"{len(wrong):,} wrong, the first: {wrong[0]}"
    return Check(name, not wrong, len(wrong), detail)


def _check_lineage(path: str, made_from: dict[str, str]) -> Check:
    name = f"{Path(path).name} made from these files"
    try:
        if not check_lineage(path, **made_from):
            return Check(name, None, 0, "no run file beside it: nothing can be said")
    except UserError as error:
        return _check(name, [str(error)])
    edit = edit_of(path)
    return _check(name, [], f"yes, but edited since: {edit}" if edit else "yes, by their hashes")


def _check_model(
    model: str, pairs: list[Pair], num_samples: int, seed: int, scoring: dict
) -> Check:
    """Finite rewards, and an accuracy that a model which saw these pairs reaches."""
    poor = HEALTHY["accuracy"].poor
    n = quality(model, pairs, num_samples=num_samples, seed=seed, **scoring)
    found = (
        f"accuracy {n['train_accuracy']:.3f}, loss {n['train_loss']:.3f}, "
        f"rewards {n['reward_min']:.2f} to {n['reward_max']:.2f} on {n['pairs']:,} pairs"
    )
    wrong = [found] if n["train_accuracy"] < poor else []
    return _check(f"model ranks them right ({poor:.0%} or more)", wrong, found)


# ---- inspect -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownPair:
    """A pair as the model reads it, and what gold says about it."""

    pair: int  # its number in the file
    row: int | None  # of the prompts file, where the pair was found there
    gold: list[float]  # rewards of all responses of that row
    agrees: bool  # gold prefers the chosen side, as far as is known
    verdict: str  # the rewards, and which response is the chosen one, in words
    chosen: str  # the rendered text, with the scored token in ⟦ ⟧
    rejected: str


def inspect_pairs(
    pairs: list[Pair],
    model: str,
    responses: str | None = None,
    gold: str | None = None,
    prompts: str | None = None,
    *,
    chat_template: str = "",
    template_kwargs: str = "",
) -> list[ShownPair]:
    """Pairs as the model reads them, and what gold says about them.

    model: its tokenizer renders the text. responses, gold, prompts: paths; without responses the
    pairs are from elsewhere, and all that is known are the rewards that they hold themselves.
    """
    if responses:
        verdicts = _verdicts_of_gold(pairs, *read_pair_files(responses, gold, prompts))
    else:
        verdicts = [_own_verdict(pair) for pair in pairs]
    tokenization = torch_modules().tokenization
    tokenizer = tokenization.load_tokenizer(model, chat_template, template_kwargs)
    shown = []
    for number, (pair, verdict) in enumerate(zip(pairs, verdicts)):
        chosen = tokenization.show_row(pair.chosen, tokenizer)
        rejected = tokenization.show_row(pair.rejected, tokenizer)
        shown.append(ShownPair(pair=number, chosen=chosen, rejected=rejected, **verdict))
    return shown


def _verdicts_of_gold(
    pairs: list[Pair],
    prompts: list[Conversation] | None,
    responses: list[list[str]],
    gold: list[list[float]],
) -> list[dict]:
    """row, gold, agrees and verdict of each pair."""
    verdicts = []
    for pair, row in zip(pairs, rows_of(pairs, prompts, responses)):
        rewards = []
        sides = []
        if row is not None:
            rewards = gold[row]
            sides = sides_in_row(pair, prompts[row] if prompts else None, responses[row])
        agrees = False
        where = "its texts are not in that row"
        if sides:
            chosen, rejected = best_side(sides, rewards)
            agrees = rewards[chosen] > rewards[rejected]
            where = f"chosen is response_{chosen + 1}"
        labels = [f"response_{i} {reward:g}" for i, reward in enumerate(rewards, 1)]
        words = f"{', '.join(labels) or 'none'}; {where}"
        verdicts.append({"row": row, "gold": rewards, "agrees": agrees, "verdict": words})
    return verdicts


def _own_verdict(pair: Pair) -> dict:
    """The same for a pair from elsewhere."""
    agrees = True
    labels = "none"
    if pair.chosen_reward is not None and pair.rejected_reward is not None:
        agrees = pair.chosen_reward > pair.rejected_reward
        labels = f"chosen {pair.chosen_reward:g}, rejected {pair.rejected_reward:g}"
    words = f"{labels}; no responses file to look it up in"
    return {"row": None, "gold": [], "agrees": agrees, "verdict": words}
