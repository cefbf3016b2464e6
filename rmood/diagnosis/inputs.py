"""What a diagnosis is given: rewards, texts and models, read and checked to belong together.

P prompts, K responses each; rewards are (P, K)
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.paths import dataset_paths
from ..files.provenance import (
    check_lineage,
    check_makers,
    read_run_file,
    refuse_mismatch,
    same_entry,
)
from ..files.rows import read_json
from ..files.tables import (
    Conversation,
    Pair,
    check_rows,
    read_prompts,
    read_records,
    read_responses,
    read_rewards,
)

PathLike = str | Path
Texts = tuple[list[Conversation], list[list[str]]]  # P prompts, and the K responses of each


# ---- rewards and texts -------------------------------------------------------------------------


def read_gold(gold: np.ndarray | PathLike) -> np.ndarray:
    """(P, K) gold rewards, K >= 2."""
    rewards = _rewards(gold, "gold")
    if rewards.shape[1] < 2:
        raise UserError(
            f"{label(gold, 'gold')}: one reward per prompt makes no pair: "
            "label two responses or more"
        )
    return rewards


def read_rewards_for(
    proxy: np.ndarray | PathLike, gold: np.ndarray | PathLike, gold_rewards: np.ndarray
) -> np.ndarray:
    """(P, K) rewards of the same responses as gold's. Raises UserError where they are of others."""
    rewards = _rewards(proxy, "proxy")
    check_same_shape(label(proxy, "proxy"), rewards, label(gold, "gold"), gold_rewards)
    if is_path(proxy) and is_path(gold):
        check_same_texts(str(proxy), str(gold))
    return rewards


def read_texts(
    prompts: list[Conversation] | PathLike,
    responses: list[list[str]] | PathLike,
    gold: np.ndarray | PathLike,
    gold_rewards: np.ndarray,
) -> Texts:
    """The texts that gold's rewards are of, from their files or as they are."""
    prompts_label = label(prompts, "prompts")
    responses_label = label(responses, "responses")
    gold_label = label(gold, "gold")
    files = {}
    if is_path(prompts):
        files["prompts"] = prompts_label
        prompts = read_prompts(prompts_label)
    if is_path(responses):
        files["responses"] = responses_label
        responses = read_responses(responses_label)
    remedy = "rerun sample.py"
    check_rows(responses_label, responses, "prompts", prompts, prompts_label, remedy)
    check_same_shape(gold_label, gold_rewards, responses_label, responses)
    if is_path(gold) and files:
        check_lineage(gold_label, **files)
    return prompts, responses


def check_gold_is_not_the_proxys(proxy, gold: np.ndarray | PathLike) -> None:
    """Raise UserError where gold's rewards file was made by the proxy, by the run files.

    proxy: rewards, the path of a rewards file, a Scorer, or a model's folder or name.
    """
    proxy = getattr(proxy, "name", proxy)  # of a Scorer
    if is_path(proxy) and is_path(gold):
        check_makers(str(proxy), is_rewards_file(proxy), str(gold))


def texts_in(*paths: PathLike) -> Texts | None:
    """The texts of the first of these rewards files that holds its own, or None."""
    for path in paths:
        if texts := read_records(str(path)):
            return texts
    return None


def find_texts(
    gold_path: str,
    rewards_paths: list[str],
    paths: tuple[str, str],
    default: dict[str, str],
    needed: bool,
) -> Texts | tuple[str, str] | None:
    """The texts behind gold's rewards: those of a rewards file, or paths of prompts and responses.

    paths: as the user gave them, or the dataset's own, which are in `default` (files.paths). Those
    need not be the texts of a gold file from elsewhere: None, unless texts are needed.
    """
    if paths != (default["prompts"], default["responses"]):
        return paths
    if texts := texts_in(gold_path, *rewards_paths):
        return texts
    belong = gold_path == default["rewards"] and all(Path(path).exists() for path in paths)
    return paths if belong or needed else None


def unless_absent(path: str, default: str) -> str:
    """The path; "" where it is the default and there is no such file."""
    return "" if path == default and not Path(path).exists() else path


def check_same_shape(path: str, rows: Sequence, other: str, other_rows: Sequence) -> None:
    """Raise UserError unless two tables have the same number of rows, and of entries in a row."""
    if len(rows) != len(other_rows):
        raise UserError(
            f"{path}: {len(rows):,} rows, but {len(other_rows):,} in {other}: "
            "pass the matching file"
        )
    if len(rows[0]) != len(other_rows[0]):
        raise UserError(
            f"{path}: {len(rows[0])} entries per row, but {len(other_rows[0])} in {other}: "
            "pass the matching file"
        )


def check_same_texts(path: str, gold_path: str) -> None:
    """Raise UserError where two rewards files with the same number of rows are of other texts.

    Their own texts are compared, where both files hold them, and the hashes of their inputs.
    """
    texts = texts_in(path)
    gold_texts = texts_in(gold_path)
    if texts and gold_texts:
        rows = zip(zip(*texts), zip(*gold_texts))  # prompt and responses, of each
        for row, (ours, golds) in enumerate(rows):
            if ours != golds:
                raise UserError(
                    f"{path}: row {row} holds another text than row {row} of {gold_path}: "
                    "pass the matching file"
                )
    for role in ("prompts", "responses"):
        scored_from = _input_of(path, role)
        gold_from = _input_of(gold_path, role)
        if scored_from and gold_from and not same_entry(scored_from, gold_from):
            refuse_mismatch(
                f"{path}: scored from other {role} than {gold_path} (their run files say so): "
                "pass the matching file",
                path,
                gold_path,
            )


def _rewards(rewards: np.ndarray | PathLike, what: str) -> np.ndarray:
    found = np.array(read_rewards(str(rewards)) if is_path(rewards) else rewards, dtype=float)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise UserError(f"{what}: expected finite rewards, a row for each prompt: pass (P, K)")
    return found


def is_path(value) -> bool:
    return isinstance(value, (str, Path))


def is_rewards_file(value) -> bool:
    """A path of rewards; any other path or name is a model's."""
    if not is_path(value):
        return False
    path = Path(value)
    return path.is_file() or path.suffix in (".json", ".jsonl", ".parquet", ".gz")


def is_rewards(value) -> bool:
    return isinstance(value, (list, np.ndarray)) or is_rewards_file(value)


def label(value, what: str) -> str:
    """What error messages call it: its path, where it came from a file."""
    return str(value) if is_path(value) else what


def _input_of(path: str, role: str) -> dict:
    """What the run file of `path` says of its input in that role: path and sha256."""
    run = read_run_file(path) or {}
    return run.get("inputs", {}).get(role, {})


def run_of_responses(responses) -> dict:
    """The run file of a file of responses; {} for lists, or where there is none."""
    return read_run_file(str(responses)) or {} if is_path(responses) else {}


def sampling_numbers(sampled: dict) -> dict:
    """What the run file of the test responses says of how they were sampled.

    sampled_here           1: sample.py made them, so their places in a row mean nothing
    test_truncated_share   share of them that end at --max-tokens
    """
    numbers = {}
    if "truncated_share" in sampled:
        numbers["test_truncated_share"] = sampled["truncated_share"]
    command = sampled.get("command") or [""]
    if Path(command[0]).name == "sample.py":
        numbers["sampled_here"] = 1.0
    return numbers


def gold_cut(gold) -> dict[str, float]:
    """gold_cut: share of the conversations that gold read shortened, by its rewards' run file; {}
    where that does not say."""
    run = run_of_rewards(gold)
    return {"gold_cut": run["conversations_cut"]} if "conversations_cut" in run else {}


def repeated_rows(texts: Texts | None) -> dict[str, float]:
    """repeated_rows: share of the test rows whose prompt and responses are an earlier row's: every
    interval takes them for evidence of its own. {} without the texts."""
    if not texts:
        return {}
    rows = {json.dumps([prompt, responses]) for prompt, responses in zip(*texts)}
    return {"repeated_rows": 1 - len(rows) / len(texts[1])}


def run_of_rewards(rewards) -> dict:
    """The run file of a rewards file; {} for anything else, or where there is none."""
    return read_run_file(str(rewards)) or {} if is_rewards_file(rewards) else {}


def maker_of(rewards) -> str | None:
    """The model that made a rewards file, by its run file, where that is a local folder."""
    model = run_of_rewards(rewards).get("config", {}).get("model_name", "")
    return model if Path(model, "config.json").is_file() else None


# ---- models -----------------------------------------------------------------------------------


def find_model(name: str, dataset: str) -> str:
    """A folder as it is, a name under models/ (rm: <dataset>-rm), or else a name on the hub."""
    if Path(name).is_dir():
        return name
    models = Path(dataset_paths(dataset)["models"])
    candidates = [
        models / name,
        models / f"{dataset}-{name}",
        *sorted(models.glob(f"*-{dataset}-{name}")),
    ]
    for folder in candidates:
        if folder.is_dir():
            return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "models/")):
        return name
    known = sorted(path.name for path in models.glob("*") if path.is_dir())
    raise UserError(
        f"{name}: no such model, nor under {models} (there: {', '.join(known) or 'nothing'}): "
        "train it, or pass a folder or a hub name"
    )


def read_metrics(model: str) -> list[dict]:
    """The lines of a model folder's metrics.jsonl; none for a model from elsewhere."""
    path = Path(model, "metrics.jsonl")
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one
    try:
        return [json.loads(line) for line in whole]
    except ValueError:
        raise UserError(f"{path}: a line is not valid JSON: repair or remove the file")


def draw(pairs: Sequence[Pair], count: int, seed: int) -> Sequence[Pair]:
    """A sample of the pairs without replacement; all of them for a count of 0 or beyond theirs."""
    if count == 0 or count >= len(pairs):
        return pairs
    return random.Random(seed).sample(pairs, count)


def read_run(model: str) -> dict:
    """The run.json of a model that train.py wrote, or one that says nothing."""
    path = Path(model, "run.json")
    run = read_json(str(path)) if path.is_file() else {}
    return {"config": {}} | (run if isinstance(run, dict) else {})


def run_numbers(run: dict) -> dict:
    """What run.json says of how the model was trained; {} where there is none.

    trained_here        1: train.py made it
    run_lr, run_epochs, run_batch_size, run_precision, run_weight_decay
    steps_an_epoch
    stopped_words       why it ended before its last epoch, where it did
    asked_to_squeeze    1 where the options ask for narrower margins than the labels allow: soft
                        labels, label smoothing, weight decay; asked_words: which
    """
    config = run["config"]
    if not config:
        return {}
    found = {"trained_here": 1.0}
    for name in ("lr", "epochs", "batch_size", "precision", "weight_decay"):
        if name in config:
            found[f"run_{name}"] = config[name]
    groups = run.get("groups", run.get("pairs"))
    if groups and "batch_size" in config:
        found["steps_an_epoch"] = -(-groups // config["batch_size"])
    if run.get("stopped"):
        found["stopped_words"] = run["stopped"]
    asked = []
    for name in ("label_temperature", "label_smoothing", "weight_decay"):
        if config.get(name):
            asked.append(f"--{name.replace('_', '-')} {config[name]:g}")
    return found | {"asked_to_squeeze": float(bool(asked)), "asked_words": " and ".join(asked)}
