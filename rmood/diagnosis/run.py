"""What did a proxy learn, and why? For evaluate.py, and for notebooks:

    from rmood import diagnose

    diagnose("test_reward_rm.json", "test_reward_gold.json")
    diagnose("models/toy-rm", "test_reward_gold.json", ("test_prompts.json", "test_sft.json"))

P prompts, K responses each; rewards are (P, K). Torch is imported only where a model is needed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..files.paths import dataset_paths
from ..files.provenance import read_run_file
from ..files.rows import read_json
from ..files.tables import (
    Conversation,
    Pair,
    join_conversations,
    read_pairs,
    read_responses,
    read_rewards,
)
from ..metrics import HEALTHY, pair_metrics, wilson
from . import faults, report, text
from .inputs import (
    PathLike,
    Texts,
    is_path,
    is_rewards,
    is_rewards_file,
    maker_of,
    read_gold,
    read_metrics,
    read_rewards_for,
    read_texts,
    texts_in,
)
from .measures import compare, expected_best_of_n, most_wrong, training_summary
from .pairs import label_noise

if TYPE_CHECKING:
    from ..scoring import Scorer


def torch_modules() -> SimpleNamespace:
    """The modules that import torch and transformers, which takes seconds."""
    from .. import distributed, scoring, tokenization
    from . import probes

    return SimpleNamespace(
        distributed=distributed, scoring=scoring, tokenization=tokenization, probes=probes
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
    metrics: list[dict] = field(default_factory=list)  # lines of the model's metrics.jsonl
    tokens: dict = field(default_factory=dict)  # (row, response) -> [(text, reward), ...]

    def as_json(self) -> dict:
        """All numbers, with name and findings."""
        return {"name": self.name} | self.numbers | {"findings": self.findings}

    def __str__(self) -> str:
        title = f"{self.name} against gold"
        verdicts = text.verdicts(self.name, self.findings)
        return "\n\n".join([title, text.comparison(self.numbers), verdicts])

    __repr__ = __str__


def diagnose(
    proxy: "np.ndarray | Scorer | PathLike",
    gold: np.ndarray | PathLike,
    texts: tuple | None = None,
    *,
    name: str | None = None,
    probes: bool = True,
    pairs: PathLike | None = None,
    num_samples: int = 200,
    seed: int = 0,
    **scoring,
) -> Diagnosis:
    """How far do the proxy's rewards agree with gold's, and what went wrong?

    proxy: (P, K) rewards, or the path of a rewards file; or a model: a Scorer, folder or hub name.
    gold: (P, K) rewards, or the path of a rewards file.
    texts: prompts and responses, or the paths of their two files; a rewards file in record form
        brings its own. A model needs them.
    name: of the proxy, in tables and verdicts.
    probes: where texts and model are at hand, also score some of the data in other ways, to find
        causes: some minutes for a large model. For a rewards file, with the model that made it.
    pairs: training pairs for the probes; by default the file that the model's run.json names.
    num_samples, seed: how many of them are drawn, and the seed for drawing them.
    scoring: device, dtype, max_length, tokens_per_pass, chat_template: see `loaded_scorer`.

    Raises UserError where the files do not belong together, or gold compares nothing.
    """
    gold_rewards = read_gold(gold)
    if texts is None:
        texts = texts_in(*[file for file in (gold, proxy) if is_rewards_file(file)])
    else:
        texts = read_texts(*texts, gold, gold_rewards)
    conversations = join_conversations(*texts) if texts else []

    scorer = None
    metrics = []
    if is_rewards(proxy):
        rewards = read_rewards_for(proxy, gold, gold_rewards)
    elif not texts:
        raise UserError("no texts for the model to score: pass texts=(prompts, responses)")
    else:
        scorer = as_scorer(proxy, **scoring)
        rewards = score(scorer, conversations)
        metrics = read_metrics(scorer.name)
    responses = texts[1] if texts else None
    numbers = compare(rewards, gold_rewards, responses) | training_summary(metrics)

    tokens = {}
    if probes and texts:
        options = {"pairs": pairs, "num_samples": num_samples, "seed": seed}
        maker = maker_of(proxy)
        if scorer:
            numbers |= probe(scorer, conversations, gold_rewards, **options)
            tokens = tokens_of_wrong_pairs(scorer, conversations, rewards, gold_rewards)
        elif maker:
            scorer = loaded_scorer(maker, **scoring)
            numbers |= probe(scorer, conversations, gold_rewards, rewards, **options)
    name = name or default_name(proxy)
    findings = faults.findings(numbers)
    return Diagnosis(name, rewards, gold_rewards, texts, numbers, findings, metrics, tokens)


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
    for finished in rewards:
        read_rewards_for(finished, gold, gold_rewards)
    if texts:
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
    train_loss, train_accuracy       of the finished model
    train_accuracy_low, ..._high     its 95% interval
    margin_mean, spread_ratio, ...   the other numbers of `metrics.pair_metrics`
    grade, findings                  what they mean
    """
    known = read_pairs(str(pairs)) if is_path(pairs) else pairs
    drawn = draw(known, num_samples, seed)
    rewards = score(as_scorer(model, **scoring), [[pair.chosen, pair.rejected] for pair in drawn])

    measured = pair_metrics(rewards, gold_margins(drawn))
    accuracy = measured.pop("accuracy")
    low, high = wilson(accuracy * len(drawn), len(drawn))
    numbers = {
        "pairs": len(drawn),
        "train_loss": measured.pop("loss"),
        "train_accuracy": accuracy,
        "train_accuracy_low": low,
        "train_accuracy_high": high,
    }
    numbers |= measured
    return numbers | {"grade": grade(accuracy), "findings": faults.findings(numbers)}


def grade(train_accuracy: float) -> str:
    """A finished model's accuracy on its own training pairs, in words."""
    healthy = HEALTHY["accuracy"]
    words = {
        "good": f"good: above {healthy.low:.0%}",
        "fair": f"good, though below the {healthy.low:.0%} of a finished training",
        "short": f"short of the {healthy.short:.0%} to expect: more epochs or a higher rate",
        "poor": f"under {healthy.poor:.0%}: the model is not learning",
        "failed": f"under {healthy.failed:.0%}: training failed",
    }
    return words[healthy.grade(train_accuracy)]


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


def draw(pairs: Sequence[Pair], count: int, seed: int) -> Sequence[Pair]:
    """A sample of the pairs without replacement; all of them for a count of 0 or beyond theirs."""
    if count == 0 or count >= len(pairs):
        return pairs
    return random.Random(seed).sample(pairs, count)


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
    settings: dtype, max_length, tokens_per_pass, chat_template, as in `rmood.load_scorer`.
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


# ---- probes: scores computed by the model in other ways ----------------------------------------


def probe(
    scorer: "Scorer",
    conversations: list[list[Conversation]],
    gold: np.ndarray,
    rewards: np.ndarray | None = None,
    *,
    pairs: PathLike | None = None,
    num_samples: int = 200,
    seed: int = 0,
) -> dict:
    """What the model's folder, its training pairs and other ways to score add to the numbers.

    rewards: (P, K) finished rewards that this model is said to have given.
    Empty for a model that is not a local folder.
    """
    folder = scorer.name
    if not Path(folder, "config.json").is_file():
        return {}
    modules = torch_modules()
    some = [conversation for row in conversations[:8] for conversation in row]
    numbers = modules.probes.config_numbers(folder, scorer, some[0])
    numbers["batch_dependence"] = modules.probes.batch_dependence(scorer, some)
    if rewards is not None:
        numbers |= training_summary(read_metrics(folder))
        numbers |= modules.probes.explain_rewards(scorer, conversations, rewards, folder)

    run = _training_run(folder)
    templates = {
        "training": run.get("template_sha256"),
        "scoring": modules.tokenization.template_sha256(scorer.tokenizer),
    }
    data = str(pairs or run["config"].get("data_path", ""))
    if Path(data).is_file():
        files = _files_behind(data, run)
        templates["sampling"] = _sampling_template(files, run)
        known = read_pairs(data)
        numbers |= _pair_numbers(known, files, run, conversations)
        drawn = draw(known, num_samples, seed)
        numbers |= modules.probes.training_reading(scorer, drawn)
        start = run["config"].get("model_name", "")
        if Path(start, "config.json").is_file():
            numbers |= modules.probes.moved_weights(folder, start)
            numbers |= modules.probes.linear_probe(scorer, start, drawn, conversations, gold)
    return numbers | _template_numbers(templates)


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


def _training_run(folder: str) -> dict:
    """The run.json of a model that train.py wrote, or one that says nothing."""
    path = Path(folder, "run.json")
    return read_json(str(path)) if path.exists() else {"config": {}}


def _files_behind(pairs: str, run: dict) -> dict[str, str]:
    """Role -> file that the pairs were made from: by their run file, or else the dataset's."""
    dataset = run["config"].get("dataset")
    files = dataset_paths(dataset) if dataset else {}
    made_from = (read_run_file(pairs) or {}).get("inputs", {})
    return files | {role: file["path"] for role, file in made_from.items()}


def _pair_numbers(
    pairs: list[Pair], files: dict[str, str], run: dict, conversations: list[list[Conversation]]
) -> dict:
    """What is wrong with the training pairs: label_noise, duplicate_share, dropped_share."""

    def read_if_there(role: str, read):
        path = files.get(role, "")
        return read(path) if Path(path).is_file() else None

    responses = read_if_there("responses", read_responses)
    gold = read_if_there("rewards", read_rewards)
    numbers = label_noise(pairs, None, responses, gold)

    training_prompts = {pair.prompt_key for pair in pairs}
    test_prompts = [Pair(chosen=row[0], rejected=row[1]).prompt_key for row in conversations]
    duplicates = [prompt in training_prompts for prompt in test_prompts]
    numbers["duplicate_share"] = float(np.mean(duplicates))

    if "pairs" in run:
        kept = run["pairs"] + run["held_out_pairs"]
        numbers["dropped_share"] = max(0.0, 1 - kept / len(pairs))
        numbers["max_length"] = run["config"]["max_length"]
    return numbers


def _sampling_template(files: dict[str, str], run: dict) -> str | None:
    """Hash of the template that the responses were sampled with, where the start model did it."""
    sampled = read_run_file(files.get("responses", "")) or {"config": {}}
    if sampled["config"].get("model_name") != run["config"].get("model_name", ""):
        return None
    return sampled.get("template_sha256")


def _template_numbers(templates: dict[str, str | None]) -> dict:
    """Stage -> hash of its chat template: template_differs is 1 where two that are known differ."""
    known = {stage: sha256 for stage, sha256 in templates.items() if sha256}
    words = ", ".join(f"{stage} {sha256[:8]}" for stage, sha256 in known.items())
    return {
        "template_differs": float(len(set(known.values())) > 1),
        "template_words": f"the chat templates differ: {words} (first digits of their hashes)",
    }
