"""Published reward-model benchmarks, read from the files that their authors publish.

    judgebench     {"question", "response_A", "response_B", "label": "A>B", "source"}
                   ScalerLab/JudgeBench, data/*.jsonl (Tan et al. 2025, arXiv 2410.12784)
    rm-bench       {"prompt", "chosen": [3 texts], "rejected": [3 texts]}, the plainest style first
                   THU-KEG/RM-Bench, data/*_filtered.json or total_dataset.json (arXiv 2410.16184)
    rmb            {"conversation_input", "bon_best", "loser_list", "category_path"}, and pairs:
                   {"conversation_input", "chosen", "reject", "category_path"}
                   Zhou-Zoey/RMB-Reward-Model-Benchmark, RMB_dataset/ (arXiv 2410.09893)
    rewardbench    {"prompt", "chosen", "rejected", "subset"}: texts
                   allenai/reward-bench, filtered-*.parquet (arXiv 2403.13787); and prior sets, with
                   messages as the prompt: allenai/preference-test-sets, anthropic_helpful-*.parquet
    rewardbench-2  {"id", "prompt", "chosen": [texts], "rejected": [texts], "num_correct", "subset"}
                   allenai/reward-bench-2, test-*.parquet (arXiv 2506.01937)
    pairs          any pairs file that train.py reads, perhaps with a "subset" in each row

Each file may be JSON, JSON lines or parquet, and gzipped. All become items of one kind: a prompt
and K responses, some of them right.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.provenance import check_lineage
from ..files.rows import check_writable, read_rows, write_json
from ..files.tables import Conversation, check_messages, preference_form
from ..progress import progress_bar

ENDINGS = (".json", ".jsonl", ".parquet")
SHARD = re.compile(r"-\d{5}-of-\d{5}.*")  # of a parquet file's name on the hub
JUDGEBENCH_CATEGORIES = {  # first letters of "source" -> column of the paper's tables
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
RM_BENCH_DOMAINS = ("chat", "code", "math", "safety")


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with K responses in the order of the file: right before wrong, A before B."""

    conversations: list[Conversation]  # K
    right: tuple[bool, ...]  # (K,)
    subset: str
    key: str = ""  # RewardBench 2's id: its ties are scored two rows at a time
    rewards: list[float] | None = None  # where the row holds some: results of the benchmark's code

    @property
    def prompt(self) -> str:
        """The same for items of one prompt: they count as one draw in every interval."""
        return json.dumps(self.conversations[0][:-1], sort_keys=True)


@dataclass(frozen=True)
class Benchmark:
    name: str  # as in the list above
    items: list[Item]
    files: list[str]
    left_out: list[str] = field(default_factory=list)  # files of the folder, with the reason

    def conversations(self) -> list[list[Conversation]]:
        return [item.conversations for item in self.items]

    def inputs(self) -> dict[str, str]:
        """Role -> file, for the run file of rewards of this benchmark."""
        return {f"file_{number}": file for number, file in enumerate(self.files, 1)}

    def describe(self) -> str:
        """What was read, for a script to print."""
        prompts = len({item.prompt for item in self.items})
        responses = sum(len(item.right) for item in self.items)
        count = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        lines = [
            f"read as {self.name}: {len(self.items):,} rows of {count}, {prompts:,} prompts, "
            f"{responses:,} responses"
        ]
        return "\n".join(lines + [f"left out: {reason}" for reason in self.left_out])


# ---- files -------------------------------------------------------------------------------------


def read_benchmark(path: str, name: str = "auto") -> Benchmark:
    """The benchmark in a file, or in the files of a folder and the folders in it.

    name: what it must be; auto: whatever its rows are. Files of a folder that hold no benchmark
    are left out. Raises UserError where none is left, or where two benchmarks are.
    """
    items = []
    read = []
    left_out = []
    found = "" if name == "auto" else name
    files = _files_in(path, left_out)
    for file in progress_bar(files, desc="reading", unit="file"):
        rows = read_rows(file)
        first = next(rows)
        form = form_of(first[1])
        if form is None and Path(path).is_dir():
            left_out.append(f"{file}: not a benchmark's rows")
            continue
        if form is None:
            raise UserError(
                f"{first[0]}: not a row of a known benchmark ({_keys(first[1])}): pass the files "
                "as published; docs/benchmarks.md lists them"
            )
        if found and form != found:
            raise UserError(
                f"{file}: holds {form}, not {found}: pass --bench {form}, or the other's files"
            )
        found = form
        items += _items(form, file, chain([first], rows))
        read.append(file)
    if not items:
        raise UserError(
            f"{path}: no file of a known benchmark in this folder: docs/benchmarks.md lists them"
        )
    return Benchmark(found, items, read, left_out)


def _files_in(path: str, left_out: list[str]) -> list[str]:
    """The files of a folder in the order of their names; those that repeat others are left out."""
    if not Path(path).is_dir():
        return [path]
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            is_run_file = name.endswith(".run.json")
            if name.removesuffix(".gz").endswith(ENDINGS) and not is_run_file:
                files.append(os.path.join(folder, name))
    if not files:
        raise UserError(f"{path}: no JSON, JSON lines or parquet file in this folder: check it")
    names = {Path(file).name for file in files}
    kept = []
    for file in files:
        name = Path(file).name
        if name.startswith("raw-") and any(other.startswith("filtered-") for other in names):
            left_out.append(f"{file}: RewardBench scores the filtered rows")
        elif "_filtered." in name and "total_dataset.json" in names:
            left_out.append(f"{file}: its rows are in total_dataset.json, too")
        else:
            kept.append(file)
    return kept


def _keys(row) -> str:
    if not isinstance(row, dict):
        return type(row).__name__
    return f"its keys: {', '.join(map(str, list(row)[:8]))}"


# ---- rows --------------------------------------------------------------------------------------


def form_of(row) -> str | None:
    """The benchmark that a row is of, by its keys; None for none of them."""
    if not isinstance(row, dict):
        return None
    if row.keys() >= {"question", "response_A", "response_B", "label"}:
        return "judgebench"
    if "conversation_input" in row and ("loser_list" in row or "reject" in row):
        return "rmb"
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if _are_texts(chosen) and _are_texts(rejected) and isinstance(row.get("prompt"), str):
        return "rewardbench-2" if "num_correct" in row else "rm-bench"
    if isinstance(chosen, str) and isinstance(rejected, str):
        is_core = isinstance(row.get("prompt"), str) and "subset" in row
        if is_core or isinstance(row.get("prompt"), list):
            return "rewardbench"
    return "pairs" if preference_form(row) else None


def _are_texts(value) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _items(form: str, file: str, rows: Iterable[tuple[str, object]]) -> Iterator[Item]:
    read_row = READERS[form]
    for where, row in rows:
        if form_of(row) != form:
            raise UserError(f"{where}: not a row of {form}, as those before are: fix the row")
        try:
            item = read_row(row, file)
        except (KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{where}: not a whole row of {form}: fetch the file again")
        except UserError as error:
            raise UserError(f"{where}: {error}")
        for conversation in item.conversations:
            check_messages(conversation, where)
        if all(item.right) or not any(item.right):
            raise UserError(f"{where}: needs a right and a wrong response: fix the row")
        yield item


def _judgebench(row: dict, file: str) -> Item:
    if row["label"] not in ("A>B", "B>A"):
        raise UserError(f"label {row['label']!r} is neither 'A>B' nor 'B>A': fix the row")
    start = _beginning_of(row["source"], JUDGEBENCH_CATEGORIES)
    if not start:
        known = ", ".join(JUDGEBENCH_CATEGORIES)
        raise UserError(f"source {row['source']!r} begins with none of {known}: fix the row")
    a_is_right = row["label"] == "A>B"
    judgments = row.get("judgments") or [None]
    scores = None
    if judgments[0] and isinstance(judgments[0].get("judgment"), dict):
        scores = judgments[0]["judgment"].get("scores")
    return Item(
        _answered(row["question"], [row["response_A"], row["response_B"]]),
        (a_is_right, not a_is_right),
        JUDGEBENCH_CATEGORIES[start],
        key=row.get("response_model", ""),
        rewards=scores,
    )


def _rm_bench(row: dict, file: str) -> Item:
    chosen, rejected = row["chosen"], row["rejected"]
    if len(chosen) != 3 or len(rejected) != 3:
        raise UserError(
            f"{len(chosen)} chosen and {len(rejected)} rejected responses, not 3 and 3 styles: "
            "pass RM-Bench's own file"
        )
    source = row.get("domain") or Path(file).name
    domain = _beginning_of(source, RM_BENCH_DOMAINS)
    if not domain:
        raise UserError(
            f"{source!r} begins with no domain ({', '.join(RM_BENCH_DOMAINS)}): "
            "name the file so, or give the rows a 'domain'"
        )
    rewards = None
    if "score_chosen" in row and "score_rejected" in row:
        rewards = [*row["score_chosen"], *row["score_rejected"]]
    return Item(
        _answered(row["prompt"], chosen + rejected), (True,) * 3 + (False,) * 3, domain, "", rewards
    )


def _rmb(row: dict, file: str) -> Item:
    _, goal, category, *_ = row["category_path"].split("/")
    is_best_of_n = "loser_list" in row
    kind = "BoN" if is_best_of_n else "pairwise"
    best = row["bon_best"] if is_best_of_n else row["chosen"]
    losers = row["loser_list"] if is_best_of_n else [row["reject"]]
    prompt = []
    for turn in row["conversation_input"]:
        prompt.append({"role": turn["role"], "content": turn["content"]})
    answers = [best["answer"]] + [loser["answer"] for loser in losers]
    return Item(
        _answered(prompt, answers),
        (True,) + (False,) * len(losers),
        f"{goal} {kind}/{category}",
    )


def _rewardbench(row: dict, file: str) -> Item:
    is_prior_set = isinstance(row["prompt"], list)
    subset = SHARD.sub("", Path(file).name.split(".")[0]) if is_prior_set else row["subset"]
    answers = [row["chosen"], row["rejected"]]
    return Item(_answered(row["prompt"], answers), (True, False), subset)


def _rewardbench_2(row: dict, file: str) -> Item:
    chosen, rejected = row["chosen"], row["rejected"]
    if len(chosen) != row["num_correct"]:
        raise UserError(
            f"{len(chosen)} chosen responses, but num_correct is {row['num_correct']}: "
            "fetch the file again"
        )
    right = (True,) * len(chosen) + (False,) * len(rejected)
    return Item(_answered(row["prompt"], chosen + rejected), right, row["subset"], str(row["id"]))


def _pair(row: dict, file: str) -> Item:
    _, chosen, rejected = preference_form(row)
    return Item([chosen, rejected], (True, False), str(row.get("subset", "all")))


def _beginning_of(text: str, beginnings: Iterable[str]) -> str:
    """The first of these with which the text begins, or ""."""
    return next((start for start in beginnings if text.startswith(start)), "")


def _answered(prompt: str | Conversation, answers: list[str]) -> list[Conversation]:
    """The prompt, a text or messages, with each of the answers."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    return [[*messages, {"role": "assistant", "content": answer}] for answer in answers]


READERS = {
    "judgebench": _judgebench,
    "rm-bench": _rm_bench,
    "rmb": _rmb,
    "rewardbench": _rewardbench,
    "rewardbench-2": _rewardbench_2,
    "pairs": _pair,
}


# ---- rewards -----------------------------------------------------------------------------------


def read_benchmark_rewards(path: str, benchmark: Benchmark) -> list[np.ndarray]:
    """The finished rewards of a benchmark's responses: for each item (K,).

    One of these, with the rows and the responses in the order of the benchmark's files:
    a list of rewards for each item; {"reward_1", "reward_2", ...} for each item; one reward for
    each response, [[1.5], [0.2], ...], as label.py writes for the texts of write_texts(); or a
    file of the benchmark's own code that holds its rewards with the texts: RM-Bench's results,
    JudgeBench's outputs. Raises UserError where they are not of these responses.
    """
    check_lineage(path, **benchmark.inputs())
    table = []
    wheres = []
    for where, row in read_rows(path):
        table.append(_row_of_rewards(row, where))
        wheres.append(where)
    sizes = [len(item.right) for item in benchmark.items]
    if len(table) == sum(sizes) and all(len(row) == 1 for row in table):
        flat = np.array(table, dtype=float)[:, 0]
        return np.split(flat, np.cumsum(sizes)[:-1])
    if len(table) != len(sizes):
        raise UserError(
            f"{path}: {len(table):,} rows, but the benchmark has {len(sizes):,} and "
            f"{sum(sizes):,} responses: pass the rewards of these very files"
        )
    for where, row, size in zip(wheres, table, sizes):
        if len(row) != size:
            raise UserError(
                f"{where} has {len(row)} rewards for {size} responses: "
                "pass the rewards of these very files"
            )
    return [np.array(row, dtype=float) for row in table]


def as_arrays(rewards: list[list[float]], model: str) -> list[np.ndarray]:
    """A model's rewards, checked to be finite."""
    table = [np.array(row, dtype=float) for row in rewards]
    for number, row in enumerate(table):
        if not np.isfinite(row).all():
            raise UserError(f"{model}: a reward of row {number} is not finite: try --dtype float32")
    return table


def _row_of_rewards(row, where: str) -> list[float]:
    rewards = row
    if isinstance(row, dict):
        form = form_of(row)
        if form in ("rm-bench", "judgebench"):
            [item] = _items(form, "chat", [(where, row)])  # the domain does not matter
            rewards = item.rewards
        else:
            numbers = [key for key in row if key.startswith("reward_")]
            rewards = [row.get(f"reward_{number}") for number in range(1, len(numbers) + 1)]
    if not isinstance(rewards, list) or not rewards:
        raise UserError(f"{where} holds no rewards: docs/benchmarks.md says which forms are read")
    for reward in rewards:
        if type(reward) not in (int, float) or not np.isfinite(reward):
            raise UserError(
                f"{where} has the reward {repr(reward)[:40]}, not a finite number: label it again"
            )
    return rewards


def write_texts(benchmark: Benchmark, folder: str) -> tuple[str, str]:
    """Write prompts.json and responses.json for label.py into a folder: one response a row.

    The items' numbers of responses differ, and a rewards file has rows of one width. Raises
    UserError where a file is there already.
    """
    paths = f"{folder}/prompts.json", f"{folder}/responses.json"
    for path in paths:
        check_absent(path)
    prompts = []
    responses = []
    for item in benchmark.items:
        for conversation in item.conversations:
            prompts.append({"messages": conversation[:-1]})
            responses.append({"response_1": conversation[-1]["content"]})
    write_json(paths[0], prompts)
    write_json(paths[1], responses)
    return paths


def check_absent(path: str) -> None:
    if Path(path).exists():
        raise UserError(f"{path}: is there already: choose another path, or remove it")
    check_writable(path)


def lengths(benchmark: Benchmark) -> list[np.ndarray]:
    """For each item (K,) characters of its responses."""
    found = []
    for item in benchmark.items:
        sizes = [len(conversation[-1]["content"]) for conversation in item.conversations]
        found.append(np.array(sizes, dtype=float))
    return found
