"""What did a proxy learn, and why? For evaluate.py, and for notebooks:

    from rmood import diagnose

    diagnose("test_reward_rm.json", "test_reward_gold.json")
    diagnose("models/toy-rm", "test_reward_gold.json", ("test_prompts.json", "test_sft.json"))

P prompts, K responses each; rewards are (P, K). Torch is imported only where a model is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..files.tables import Conversation, Pair, join_conversations, read_pairs
from ..metrics import HEALTHY, pair_metrics
from . import faults, report, text
from .curve import curve_numbers
from .inputs import (
    PathLike,
    Texts,
    check_gold_is_not_the_proxys,
    draw,
    gold_cut,
    is_path,
    is_rewards,
    is_rewards_file,
    maker_of,
    read_gold,
    read_metrics,
    read_rewards_for,
    read_run,
    read_texts,
    repeated_rows,
    run_numbers,
    run_of_responses,
    run_of_rewards,
    sampling_numbers,
    texts_in,
)
from .measures import (
    compare,
    expected_best_of_n,
    finite,
    most_wrong,
    train_numbers,
    training_summary,
)
from .scale import Estimate, learning_word, scale_numbers, share, towards_gold

if TYPE_CHECKING:
    from ..scoring import Scorer


PROBES = ("quick", "full", "no")
OF_THE_MODEL = (  # what only the model, its run and its training pairs can tell
    "train_bits",
    "learning_word",
    "resolution",
    "reproduced",
    "recorded_gap",
    "label_noise",
    "backbone_moved",
    "probe_match",
)


def torch_modules() -> SimpleNamespace:
    """The modules that import torch and transformers, which takes seconds."""
    from .. import distributed, scoring, tokenization
    from . import probes, trained

    return SimpleNamespace(
        distributed=distributed,
        scoring=scoring,
        tokenization=tokenization,
        probes=probes,
        trained=trained,
    )


# ---- what can be asked -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """A proxy against gold. Printed, it is the tables of `evaluate.py match` and the verdicts."""

    name: str
    rewards: np.ndarray  # (P, K) the proxy's
    gold: np.ndarray  # (P, K)
    texts: Texts | None
    numbers: dict  # by name, as in docs/metrics.md
    findings: list[dict]  # worst first: id, severity, evidence, causes, advice
    not_measured: list[dict] = field(default_factory=list)  # what: a name of numbers; why: words
    metrics: list[dict] = field(default_factory=list)  # lines of the model's metrics.jsonl
    tokens: dict = field(default_factory=dict)  # (row, response) -> [(text, reward), ...]

    def as_json(self) -> dict:
        """All numbers, with name, findings and what was not measured."""
        verdicts = {"findings": self.findings, "not_measured": self.not_measured}
        return {"name": self.name} | self.numbers | verdicts

    def __str__(self) -> str:
        title = f"{self.name} against gold"
        verdicts = text.verdicts(self.name, self.findings, self.not_measured)
        return "\n\n".join([title, text.comparison(self.numbers), verdicts])

    __repr__ = __str__


def diagnose(
    proxy: "np.ndarray | Scorer | PathLike",
    gold: np.ndarray | PathLike,
    texts: tuple | None = None,
    *,
    name: str | None = None,
    probes: bool | str = "full",
    pairs: PathLike | None = None,
    num_samples: int = 200,
    seed: int = 0,
    gold_kind: str = "auto",
    sampled: dict | None = None,
    **scoring,
) -> Diagnosis:
    """How far do the proxy's rewards agree with gold's, and what went wrong?

    proxy: (P, K) rewards, or the path of a rewards file; or a model: a Scorer, folder or hub name.
    gold: (P, K) rewards, or the path of a rewards file.
    texts: prompts and responses, or the paths of their two files; a rewards file in record form
        brings its own. A model needs them.
    name: of the proxy, in tables and verdicts.
    probes: where texts and model are at hand, also score some of the data in other ways, to find
        causes: "full" (or True), "quick" (without plain texts and the linear probe, which take
        about half of the time), or "no" (or False). For a rewards file, with the model that made
        it.
    pairs: training pairs for the probes; by default the file that the model's run.json names.
    num_samples, seed: how many of them are drawn, and the seed for drawing them.
    gold_kind: what gold's rewards are, one of measures.GOLD_KINDS; "auto" guesses.
    sampled: the run file of the responses; None: the one beside their path, where that is given.
    scoring: device, dtype, max_length, tokens_per_pass, chat_template: see `loaded_scorer`.

    Raises UserError where the files do not belong together, or gold compares nothing.
    """
    level = _level(probes)
    gold_rewards = read_gold(gold)
    check_gold_is_not_the_proxys(proxy, gold)
    if texts is None:
        texts = texts_in(*[file for file in (gold, proxy) if is_rewards_file(file)])
    else:
        sampled = run_of_responses(texts[1]) if sampled is None else sampled
        texts = read_texts(*texts, gold, gold_rewards)
    conversations = join_conversations(*texts) if texts else []

    scorer = None
    maker = maker_of(proxy)
    if is_rewards(proxy):
        rewards = read_rewards_for(proxy, gold, gold_rewards)
        folder = maker
    elif not texts:
        raise UserError("no texts for the model to score: pass texts=(prompts, responses)")
    else:
        scorer = as_scorer(proxy, **scoring)
        rewards = score(scorer, conversations)
        folder = scorer.name
    metrics = read_metrics(folder) if folder else []
    numbers = compare(rewards, gold_rewards, texts[1] if texts else None, gold_kind)
    numbers |= sampling_numbers(sampled or {}) | repeated_rows(texts) | gold_cut(gold)
    numbers |= training_summary(metrics) | (run_numbers(read_run(folder)) if folder else {})
    numbers |= curve_numbers(metrics, read_run(folder)) if folder else {}

    tokens = {}
    not_measured = why_not_probed(level, texts, scorer, maker)
    if not not_measured:
        own = None
        if not scorer:
            scorer = loaded_scorer(maker, **scoring)
            own = score(scorer, conversations)
        options = {"pairs": pairs, "num_samples": num_samples, "seed": seed}
        options |= {"full": level == "full", "numbers": numbers, "sampled": sampled or {}}
        options["gold_run"] = run_of_rewards(gold)
        trained = torch_modules().trained
        probed, not_measured = trained.probe(
            scorer, conversations, rewards, gold_rewards, own, **options
        )
        numbers |= probed
        if own is None:
            tokens = tokens_of_wrong_pairs(scorer, conversations, rewards, gold_rewards)
    if not texts:
        not_measured.append(
            {"what": "length_match", "why": "the texts of the responses are not known"}
        )
    name = name or default_name(proxy)
    findings = faults.findings(numbers)
    return Diagnosis(
        name, rewards, gold_rewards, texts, numbers, findings, not_measured, metrics, tokens
    )


def _level(probes: bool | str) -> str:
    level = {True: "full", False: "no"}.get(probes, probes)
    if level not in PROBES:
        raise UserError(f"probes {level!r}: use one of {', '.join(PROBES)}")
    return level


def why_not_probed(level: str, texts, scorer, maker: str | None) -> list[dict]:
    """What only the model can tell, and why it was not asked; [] where it can be."""
    if level == "no":
        why = "not asked for (--probes no, or evaluate.py match): evaluate.py diagnose measures it"
    elif not texts:
        why = "the texts of the responses are not known"
    elif scorer is None and maker is None:
        why = (
            "the rewards file names no model on this machine: "
            "evaluate.py diagnose --models MODEL measures it"
        )
    else:
        return []
    return [{"what": what, "why": why} for what in OF_THE_MODEL]


def diagnose_all(
    rewards: Sequence,
    models: Sequence,
    gold: np.ndarray | PathLike,
    texts: tuple | None = None,
    **options,
) -> list[Diagnosis]:
    """`diagnose` for finished rewards and for models, each with a name of its own.

    All rewards are read and checked before a model is scored.
    """
    gold_rewards = read_gold(gold)
    for proxy in [*rewards, *models]:
        check_gold_is_not_the_proxys(proxy, gold)
    for finished in rewards:
        read_rewards_for(finished, gold, gold_rewards)
    if texts:
        options["sampled"] = run_of_responses(texts[1])
        texts = read_texts(*texts, gold, gold_rewards)
    proxies = [*rewards, *models]
    names = [default_name(proxy) for proxy in proxies]
    found = []
    for number, (proxy, name) in enumerate(zip(proxies, names), 1):
        if names.count(name) > 1:
            name = str(proxy) if is_path(proxy) else f"{name} {number}"
        found.append(diagnose(proxy, gold, texts, name=name, **options))
    return found


def quality(
    model: "Scorer | PathLike",
    pairs: Sequence[Pair] | PathLike,
    *,
    num_samples: int = 500,
    seed: int = 0,
    **scoring,
) -> dict:
    """Did the model learn its own training pairs? Scores a sample of them (0: all).

    pairs                            how many were scored
    train_loss, train_accuracy       of the finished model; a tie is a miss
    train_accuracy_low, ..._high     its 95% interval
    train_bits, train_scale, train_right, ...   measures.train_numbers: what it knows of them
    margin_mean, spread_ratio, ...   the other numbers of `metrics.pair_metrics`
    grade, findings, not_measured    what they mean
    """
    known = read_pairs(str(pairs)) if is_path(pairs) else pairs
    drawn = draw(known, num_samples, seed)
    scorer = as_scorer(model, **scoring)
    rewards = score(scorer, [[pair.chosen, pair.rejected] for pair in drawn])

    measured = pair_metrics(rewards, gold_margins(drawn))
    prompts = [pair.prompt_key for pair in drawn]
    _, prompt = np.unique(prompts, return_inverse=True)
    accuracy = share((rewards[:, 0] > rewards[:, 1]).astype(float), prompt)
    numbers = {"pairs": len(drawn), **accuracy.as_numbers("train_accuracy")}
    numbers |= measured | train_numbers(rewards, prompts) | run_numbers(read_run(scorer.name))
    for name in ("loss", "accuracy"):
        del numbers[name]  # those of train_numbers are the same
    numbers |= training_summary(read_metrics(scorer.name))
    why = "it takes held-out pairs: evaluate.py diagnose"
    verdicts = {
        "grade": grade(accuracy.value),
        "findings": faults.findings(numbers),
        "not_measured": [{"what": what, "why": why} for what in ("bits", "learning_word")],
    }
    return numbers | verdicts


def grade(train_accuracy: float) -> str:
    """A finished model's accuracy on its own training pairs, in the reference's words."""
    healthy = HEALTHY["accuracy"]
    words = {
        "good": f"good: above {healthy.low:.0%}",
        "fair": f"good, though below the {healthy.low:.0%} that the reference expects",
        "short": f"short of the {healthy.short:.0%} that the reference expects",
        "poor": f"under {healthy.poor:.0%}: by the reference, the model is not learning",
        "failed": f"under {healthy.failed:.0%}: by the reference, training failed",
    }
    return words[healthy.grade(train_accuracy)]


def training_numbers(proxy: PathLike, gold: PathLike, held_out: dict) -> dict:
    """train_bits, train_scale, ... and learning_word from finished rewards of training responses.

    proxy, gold: paths of rewards files. held_out: numbers of `diagnose` on held-out prompts.
    """
    gold_rewards = read_gold(gold)
    rewards = read_rewards_for(proxy, gold, gold_rewards)
    found = finite(scale_numbers(*towards_gold(rewards, gold_rewards)))
    numbers = {f"train_{name}": value for name, value in found.items()}
    bits = [Estimate.of(known, "bits") for known in (found, held_out)]
    return numbers | {"learning_word": learning_word(*bits)}


def best_of_n(proxy: np.ndarray | PathLike, gold: np.ndarray | PathLike) -> list[dict]:
    """The expected gold reward of the proxy's best of n responses, for n = 1..K.

    proxy, gold: (P, K) rewards, or the paths of rewards files.
    A row for each n, as measures.expected_best_of_n explains.
    """
    gold_rewards = read_gold(gold)
    return expected_best_of_n(read_rewards_for(proxy, gold, gold_rewards), gold_rewards)


def write_report(
    path: str, diagnoses: list[Diagnosis], title: str, facts: Sequence[str] = ()
) -> None:
    """Write one HTML page about proxies that were compared with the same gold rewards.

    title: what comes before their names in the title. facts: lines below it.
    """
    names = ", ".join(diagnosis.name for diagnosis in diagnoses)
    runs = [vars(diagnosis) for diagnosis in diagnoses]
    first = diagnoses[0]
    report.write(path, f"{title}: {names}", list(facts), runs, first.gold, first.texts)


def gold_margins(pairs: Sequence[Pair]) -> np.ndarray | None:
    """(B,) gold's own margins, or None where a pair lacks gold's rewards."""
    margins = []
    for pair in pairs:
        if pair.chosen_reward is None or pair.rejected_reward is None:
            return None
        margins.append(pair.chosen_reward - pair.rejected_reward)
    return np.array(margins)


def default_name(proxy) -> str:
    """What a proxy is called: a model by its folder, a rewards file without its ending."""
    if isinstance(proxy, (list, np.ndarray)):
        return "proxy"
    if is_path(proxy):
        return Path(proxy).stem if is_rewards_file(proxy) else Path(proxy).name
    return Path(proxy.name).name


# ---- the model ---------------------------------------------------------------------------------

_loaded: dict[tuple, "Scorer"] = {}  # settings -> the scorer that was loaded last


def loaded_scorer(name: str, device: str = "auto", **settings) -> "Scorer":
    """The scorer of a model: a folder, or a name on the hub.

    The one loaded last stays in memory: a model that is scored and probed is loaded once.
    device: "auto" (CUDA where there is one), "cuda" or "cpu".
    settings: dtype, max_length, tokens_per_pass, chat_template, template_kwargs: as in
        `rmood.load_scorer`.
    """
    key = (name, device, *sorted(settings.items()))
    if key not in _loaded:
        _loaded.clear()  # before the next one is loaded: two may not fit
        modules = torch_modules()
        process = modules.distributed.start(device)
        _loaded[key] = modules.scoring.load_scorer(name, process, **settings)
    return _loaded[key]


def release_scorer() -> None:
    """Forget the scorer in memory, and leave the process group that was started for it."""
    for scorer in _loaded.values():
        scorer.process.finish()
    _loaded.clear()


def as_scorer(model: "Scorer | PathLike", **scoring) -> "Scorer":
    return loaded_scorer(str(model), **scoring) if is_path(model) else model


def score(scorer: "Scorer", conversations: list[list[Conversation]]) -> np.ndarray:
    """For each of P prompts its K conversations -> (P, K) rewards."""
    desc = f"scoring with {Path(scorer.name).name}"
    rewards = np.array(scorer.score(conversations, desc=desc), dtype=float)
    if not np.isfinite(rewards).all():
        row = np.argwhere(~np.isfinite(rewards))[0, 0]
        raise UserError(
            f"{scorer.name}: the reward of row {row} is not finite: "
            "try --dtype float32, or train the model again"
        )
    return rewards


# ---- tokens ------------------------------------------------------------------------------------


def tokens_of_wrong_pairs(
    scorer: "Scorer",
    conversations: list[list[Conversation]],
    rewards: np.ndarray,
    gold: np.ndarray,
) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """(row, response) of the most wrong pairs -> tokens, each with the head's reward there."""
    response_token_rewards = torch_modules().probes.response_token_rewards
    tokens = {}
    for row, *responses in most_wrong(rewards, gold):
        for response in responses:
            if (row, response) not in tokens:
                conversation = conversations[row][response]
                tokens[row, response] = response_token_rewards(scorer, conversation)
    return tokens
