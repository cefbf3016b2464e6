"""AlpacaEval as preference data with a scaled gold: 805 instructions, the responses of 15 models,
and a GPT-4 judge's log-odds that a response beats the baseline's.

reads   per model model_outputs.json and weighted_alpaca_eval_gpt4_turbo/annotations.json of
        tatsu-lab/alpaca_eval, at a pinned commit (75 MB, kept below cache/); or from
        --from-path: a clone of it, or a folder with prompts.json.gz, responses.json.gz,
        rewards.json.gz and generators.json
writes  below datasets/<dataset>/
        rm/rm_prompts.json, rm_sft.json, rm_rewards.json
            training prompts, --responses responses each, for preprocess.py
        test/test_prompts.json, rm/test_sft.json, rm/test_reward_gold.json
            --test-prompts other prompts, all 15 responses each
        test/some_prompts.json
            the first --some-prompts of those, for the start model to answer (sample.py)
        rm/test_reward_length.json
            log(characters) as if it were a reward: what a proxy that goes by length alone is worth

    python examples/alpacaeval.py
    python examples/alpacaeval.py --from-path alpaca_eval --test-prompts 200

Gold, as a reward: log(p / (1 - p)) of the judge's p, rounded to 6 decimals and kept within 1e-5 and
1 - 1e-5: -11.51 to 11.51, at which a fifth of the pairs tie. Longer responses win 69% of the
others.
One model of the benchmark is no model: NullModel gives every prompt the same text, made to deceive
this judge (Zheng et al. 2024, arXiv:2410.07137). It is left out.
AlpacaEval: Apache-2.0; its instructions: CC BY-NC 4.0. Li et al. 2023; Dubois et al. 2024.
"""

import hashlib
import json
import math
import shutil
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from rmood.cli import opt, parse
from rmood.errors import UserError, one_line, run_script
from rmood.files.paths import cache_folder, dataset_paths
from rmood.files.provenance import write_run_file
from rmood.files.rows import check_writable, read_json, write_json
from rmood.files.tables import read_prompts, read_responses, read_rewards
from rmood.progress import progress_bar

COMMIT = "cd543a149df89434d8a54582c0151c0b945c3d20"
BASE = f"https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/{COMMIT}"
OUTPUTS = "model_outputs.json"
ANNOTATIONS = "weighted_alpaca_eval_gpt4_turbo/annotations.json"
MODELS = [
    "FuseChat-Llama-3.2-3B-Instruct",
    "Mixtral-8x7B-Instruct-v0.1_concise",
    "baize-v2-13b",
    "chatglm2-6b",
    "claude",
    "falcon-40b-instruct",
    "falcon-7b-instruct",
    "gemma-7b-it",
    "gpt-3.5-turbo-0301",
    "humpback-llama2-70b",
    "jina-chat",
    "openbuddy-llama-30b-v7.1",
    "ultralm-13b",
    "vicuna-7b-v1.5",
    "wizardlm-13b",
]
LEAST = 1e-5  # the judge's probability is kept this far from 0 and 1
SHA256 = "e88a8787b0087da3c8ea4f854d37cea1b1a0d2a21d087b30f0fa983d10dbd022"  # of table_sha256()


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("real", "name of the dataset to write", group="data")
    from_path: str = opt("", "a clone of tatsu-lab/alpaca_eval, or a folder with the finished tables; none: fetched from GitHub")
    test_prompts: int = opt(160, "prompts to hold out, drawn by --seed", at_least=20, at_most=600, group="split")
    some_prompts: int = opt(32, "test prompts for the start model", at_least=1)
    train_prompts: int = opt(0, "training prompts; 0: all others", at_least=0)
    responses: int = opt(4, "responses per training prompt, of 15 models drawn anew for each prompt", at_least=2, at_most=15)
    seed: int = opt(0, "seed for both draws", at_least=0)
    # fmt: on


@dataclass(frozen=True)
class Table:
    """P instructions and their K = 15 responses, in the order of MODELS."""

    instructions: list[str]
    responses: list[list[str]]  # (P, K)
    gold: list[list[float]]  # (P, K)


def main() -> int:
    cfg = parse(Config, __doc__, prog="python examples/alpacaeval.py")
    train, test = dataset_paths(cfg.dataset), dataset_paths(cfg.dataset, "test")
    for path in (train["rewards"], test["rewards"]):
        check_writable(path)
    table = read_table(cfg.from_path)
    found = table_sha256(table)
    if found != SHA256:
        raise UserError(
            f"{cfg.from_path or BASE}: not AlpacaEval's results of commit {COMMIT[:7]} (the "
            f"SHA-256 of the table is {found[:12]}..., not {SHA256[:12]}...): check the files, or "
            "fetch them without --from-path"
        )

    held_out, kept = split(cfg, len(table.instructions))
    rng = np.random.default_rng([cfg.seed, 1])
    drawn = [sorted(rng.permutation(len(MODELS))[: cfg.responses]) for _ in kept]
    write_split(cfg, train, table, kept, drawn)
    write_split(cfg, test, table, held_out, [range(len(MODELS))] * len(held_out))
    write_some_prompts(cfg, test)
    write_lengths(cfg, test)
    print(f"next: python preprocess.py --dataset {cfg.dataset}")
    return 0


def split(cfg: Config, prompts: int) -> tuple[list[int], list[int]]:
    """(held-out, training) rows of the table, each in the table's order."""
    if cfg.test_prompts + max(cfg.train_prompts, 1) > prompts:
        raise UserError(
            f"alpacaeval.py: {cfg.test_prompts} test and {cfg.train_prompts} training prompts, "
            f"but there are {prompts} in all: lower one of them"
        )
    order = np.random.default_rng(cfg.seed).permutation(prompts)
    end = cfg.test_prompts + cfg.train_prompts if cfg.train_prompts else prompts
    return sorted(order[: cfg.test_prompts].tolist()), sorted(
        order[cfg.test_prompts : end].tolist()
    )


def table_sha256(table: Table) -> str:
    text = json.dumps([table.instructions, table.responses, table.gold])
    return hashlib.sha256(text.encode()).hexdigest()


# ---- reading -------------------------------------------------------------------------------------


def read_table(folder: str) -> Table:
    """The table from a folder in either form; "": from GitHub, through the cache."""
    if not folder:
        return from_results(fetch())
    if Path(folder, "generators.json").exists():
        return from_finished(Path(folder))
    if Path(folder, "results").is_dir():
        return from_results(Path(folder, "results"))
    raise UserError(
        f"{folder}: neither a clone of tatsu-lab/alpaca_eval (results/) nor finished tables "
        "(generators.json): check --from-path, or leave it out"
    )


def fetch() -> Path:
    """The folder with every model's two files, downloaded where they are not there yet."""
    folder = cache_folder() / "alpaca_eval" / COMMIT[:7]
    names = [f"{model}/{file}" for model in MODELS for file in (OUTPUTS, ANNOTATIONS)]
    for name in progress_bar(names, desc="AlpacaEval", unit="file"):
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        try:
            with urllib.request.urlopen(f"{BASE}/results/{name}", timeout=60) as response:
                with open(partial, "wb") as file:
                    shutil.copyfileobj(response, file)
        except OSError as error:  # urllib's errors are OSErrors
            raise UserError(
                f"{BASE}: {name} cannot be fetched ({one_line(error)}): run again to continue, or "
                "pass a clone of tatsu-lab/alpaca_eval as --from-path"
            )
        partial.rename(path)
    return folder


def from_results(folder: Path) -> Table:
    """folder: holds <model>/model_outputs.json and <model>/weighted_.../annotations.json"""
    instructions: list[str] = []
    responses = []  # [model][prompt]
    gold = []
    for model in MODELS:
        outputs = read_json(str(folder / model / OUTPUTS))
        annotations = read_json(str(folder / model / ANNOTATIONS))
        preference = {row["instruction"]: row["preference"] for row in annotations}
        instructions = instructions or [row["instruction"] for row in outputs]
        output = {row["instruction"]: row["output"] for row in outputs}
        missing = [text for text in instructions if text not in output or text not in preference]
        if missing:
            raise UserError(
                f"{folder / model}: {len(missing)} of {len(instructions)} instructions have no "
                "output or no annotation: fetch the folder again"
            )
        responses.append([output[text] for text in instructions])
        gold.append([log_odds(preference[text]) for text in instructions])
    return Table(
        instructions, [list(row) for row in zip(*responses)], [list(row) for row in zip(*gold)]
    )


def log_odds(preference: float) -> float:
    """1 + p, p the judge's probability that the response is the better one -> log(p / (1 - p))"""
    p = min(max(round(preference - 1, 6), LEAST), 1 - LEAST)
    return round(math.log(p / (1 - p)), 4)


def from_finished(folder: Path) -> Table:
    """The project's own files, with the names of the models in generators.json."""
    names = read_json(str(folder / "generators.json"))
    absent = [model for model in MODELS if model not in names]
    if absent:
        raise UserError(f"{folder / 'generators.json'}: no {absent[0]}: it is another table")
    columns = [names.index(model) for model in MODELS]
    prompts = read_prompts(str(folder / "prompts.json.gz"))
    responses = read_responses(str(folder / "responses.json.gz"))
    rewards = read_rewards(str(folder / "rewards.json.gz"))
    return Table(
        [prompt[-1]["content"] for prompt in prompts],
        [[row[column] for column in columns] for row in responses],
        [[row[column] for column in columns] for row in rewards],
    )


# ---- writing -------------------------------------------------------------------------------------


def write_split(cfg: Config, paths: dict, table: Table, rows: list[int], models: list) -> None:
    """Prompts, responses and rewards of some rows of the table, with run files that link them.

    models: for each row, the columns of the table that it keeps.
    """
    # Without a system turn: SmolLM2's template adds the one that the model was trained with.
    prompts = [{"messages": [{"role": "user", "content": table.instructions[i]}]} for i in rows]
    responses, rewards = [], []
    for i, columns in zip(rows, models):
        texts = [table.responses[i][column] for column in columns]
        responses.append({f"response_{number}": text for number, text in enumerate(texts, 1)})
        rewards.append([table.gold[i][column] for column in columns])

    facts = {"source": cfg.from_path or BASE, "table_sha256": SHA256}
    of_rows = [[MODELS[column] for column in columns] for columns in models]
    inputs = {}
    for role, value in (("prompts", prompts), ("responses", responses), ("rewards", rewards)):
        write_json(paths[role], value)
        more = {"models": of_rows} if role == "responses" else {}
        write_run_file(paths[role], cfg, inputs, **facts, **more)
        inputs[role] = paths[role]
    print(f"{paths['rewards']}: {len(rows):,} prompts, {len(rewards[0])} responses each")


def write_some_prompts(cfg: Config, paths: dict) -> None:
    path = str(Path(paths["prompts"]).with_name("some_prompts.json"))
    write_json(path, read_json(paths["prompts"])[: cfg.some_prompts])
    write_run_file(path, cfg, {"prompts": paths["prompts"]})


def write_lengths(cfg: Config, paths: dict) -> None:
    """log(characters) of each response, as the rewards file of a proxy that goes by length."""
    responses = read_responses(paths["responses"])
    lengths = [[round(math.log(1 + len(text)), 4) for text in row] for row in responses]
    path = str(Path(paths["rewards"]).with_name("test_reward_length.json"))
    write_json(path, lengths)
    inputs = {role: paths[role] for role in ("prompts", "responses")}
    write_run_file(path, cfg, inputs)
    print(f"{path}: log(characters) of the responses")


if __name__ == "__main__":
    run_script(main)
