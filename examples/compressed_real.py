"""Compressed rewards on real language: what does pure bf16 cost a pretrained model?

reads   models/smollm2-135m-instruct (examples/smollm2.py)
        real pairs: --gold-path, rewards in record form, such as the reference's
        test_reward_gold.json (1,000 prompts; some are held out); or, without it, AlpacaEval's, from
        datasets/real (examples/alpacaeval.py)
writes  models/compressed-real/   the pairs, a model and its held-out rewards for each run (4 GB)
        reports/compressed_real.json, a table on stdout

    python examples/compressed_real.py --gold-path test_reward_gold.json
    python examples/compressed_real.py                 some 40 minutes for 8 runs on 2 idle cores

Each seed trains four times from the same weights, on the same pairs in the same order: pure bf16
(what loading a model in bf16 and training it gives) and float32 weights under bf16 compute
(`mixed`), each at a rate that is too low and at one that learns. The held-out rows then tell what
the precision cost: the difference is taken pair by pair. Interrupted, the same command continues.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from real_table import finite

from rmood.cli import opt, parse
from rmood.diagnosis import scale
from rmood.errors import UserError, run_script
from rmood.files.paths import dataset_paths
from rmood.files.rows import check_writable, read_json, write_json, write_jsonl
from rmood.files.tables import read_prompts, read_records, read_responses, read_rewards

REPOSITORY = Path(__file__).resolve().parent.parent
PRECISIONS = ("bf16", "mixed")
# Settings that may change between two calls.
NOT_OF_THE_RUNS = ("rates", "seeds", "json", "output_dir")
HEADINGS = ("rate", "weights", "match", "scale s", "bits", "lost", "kept", "train loss")
WIDTHS = (8, 9, 24, 23, 26, 7, 7, 12)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("real", "where the pairs come from, without --gold-path", group="data and model")
    gold_path: str = opt("", "gold rewards in record form: messages, response_1, reward_1, ...")
    held_out: int = opt(240, "prompts of --gold-path to hold out", at_least=20)
    model_name: str = opt("{models}/smollm2-135m-instruct", "the model to start from")
    output_dir: str = opt("{models}/compressed-real", "folder for the runs")
    json: str = opt("{home}/reports/compressed_real.json", "every number of the table")
    rates: list[float] = opt([1e-5, 2e-4], "peak learning rates", group="training")
    seeds: int = opt(2, "seeds 0 to N - 1, for the new head and the order of the pairs", at_least=1)
    batch_size: int = opt(16, "pairs per step; one epoch", at_least=1)
    max_length: int = opt(256, "pairs with a longer conversation are left out of training; held-out ones are cut", at_least=64)
    tokens_per_pass: int = opt(4096, "tokens in one forward pass", at_least=64)
    # fmt: on


@dataclass(frozen=True)
class Run:
    """One training: its settings, and the files that it leaves in the output folder."""

    folder: Path
    precision: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.rate:g}-seed{self.seed}"

    @property
    def model(self) -> Path:
        return self.folder / self.name

    @property
    def rewards(self) -> Path:
        return self.folder / f"{self.name}.rewards.json"


def main() -> int:
    cfg = parse(Config, __doc__, prog="python examples/compressed_real.py")
    check_writable(cfg.json)
    folder = Path(cfg.output_dir)
    write_data(cfg, folder)
    for run in all_runs(cfg):
        if not run.rewards.exists():
            print(f"== {run.name}", file=sys.stderr, flush=True)
            train_and_label(cfg, run)

    gold = np.array(read_rewards(str(folder / "test_rewards.json")))  # (P, 2)
    cells = {}
    for rate in cfg.rates:
        for precision in PRECISIONS:
            cells[rate, precision] = read_cell(cfg, rate, precision, gold)
    print_table(cfg, cells)
    write_json(cfg.json, finite({"config": asdict(cfg), "cells": as_json(cfg, cells)}))
    return 0


def all_runs(cfg: Config) -> Iterator[Run]:
    """A whole seed before the next one: an interrupted experiment is complete for some seeds."""
    for seed in range(cfg.seeds):
        for rate in cfg.rates:
            for precision in PRECISIONS:
                yield Run(Path(cfg.output_dir), precision, rate, seed)


# ---- data ----------------------------------------------------------------------------------------


def write_data(cfg: Config, folder: Path) -> None:
    """Training pairs, and the held-out prompts, responses and gold, unless they are there."""
    settings = {k: v for k, v in asdict(cfg).items() if k not in NOT_OF_THE_RUNS}
    known = folder / "settings.json"
    if known.exists():
        if read_json(str(known)) != settings:
            raise UserError(
                f"{folder}: holds runs with other settings ({known}): pass another --output-dir"
            )
        return
    train, test = split_records(cfg) if cfg.gold_path else read_dataset(cfg)
    pairs = [pair_of(*row) for row in train if row[2][0] != row[2][1]]
    write_jsonl(str(folder / "pairs.jsonl"), pairs)
    prompts, responses, rewards = zip(*test)
    write_json(str(folder / "test_prompts.json"), [{"messages": prompt} for prompt in prompts])
    texts = [{"response_1": first, "response_2": second} for first, second in responses]
    write_json(str(folder / "test_responses.json"), texts)
    write_json(str(folder / "test_rewards.json"), rewards)
    write_json(str(known), settings)  # last: the data are whole
    print(f"{folder}: {len(pairs)} training pairs, {len(test)} held-out prompts", file=sys.stderr)


def split_records(cfg: Config) -> tuple[list, list]:
    """(prompt, responses, rewards) of the training and of the held-out rows of --gold-path."""
    records = read_records(cfg.gold_path)
    if records is None:
        raise UserError(f"{cfg.gold_path}: holds rewards alone: pass them in record form")
    rows = list(zip(*records, read_rewards(cfg.gold_path)))
    if len(rows) <= cfg.held_out:
        raise UserError(f"{cfg.gold_path}: {len(rows)} rows: lower --held-out {cfg.held_out}")
    order = np.random.default_rng(0).permutation(len(rows))
    test = [rows[i] for i in sorted(order[: cfg.held_out])]
    return [rows[i] for i in sorted(order[cfg.held_out :])], test


def read_dataset(cfg: Config) -> tuple[list, list]:
    """The same of the dataset: the first two responses of each prompt."""
    splits = []
    for split in ("train", "test"):
        paths = dataset_paths(cfg.dataset, split)
        prompts = read_prompts(paths["prompts"])
        responses = read_responses(paths["responses"])
        rewards = read_rewards(paths["rewards"])
        splits.append([(p, r[:2], g[:2]) for p, r, g in zip(prompts, responses, rewards)])
    return splits[0], splits[1]


def pair_of(prompt: list[dict], responses: list[str], rewards: list[float]) -> dict:
    first, second = ([*prompt, {"role": "assistant", "content": text}] for text in responses)
    if rewards[0] > rewards[1]:
        return {"chosen": first, "rejected": second}
    return {"chosen": second, "rejected": first}


# ---- runs ----------------------------------------------------------------------------------------


def train_and_label(cfg: Config, run: Run) -> None:
    """Train one model, and score the held-out responses with it."""
    shared = {"max_length": cfg.max_length, "tokens_per_pass": cfg.tokens_per_pass}
    call(
        "train.py",
        model_name=cfg.model_name,
        data_path=run.folder / "pairs.jsonl",
        output_dir=run.model,
        resume="auto",
        precision=run.precision,
        lr=run.rate,
        epochs=1,
        batch_size=cfg.batch_size,
        seed=run.seed,
        **shared,
    )
    # Both are scored in bf16 compute: what differs is what was learned.
    call(
        "label.py",
        model_name=run.model,
        prompts_path=run.folder / "test_prompts.json",
        responses_path=run.folder / "test_responses.json",
        target_path=run.rewards,
        dtype="bf16",
        **shared,
    )


def call(script: str, **flags) -> None:
    """Run a script of the repository; what it prints goes to stderr."""
    command = [sys.executable, str(REPOSITORY / script)]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise UserError(f"{script} failed: see above; the same command continues")


# ---- numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """All seeds of one rate and precision, on the n held-out pairs that gold does not tie."""

    x: np.ndarray  # (S, n) margins towards gold
    prompt: np.ndarray  # (n,)
    lost: float  # mean over the measured steps of all seeds
    kept: float
    train_loss: float  # mean over the last tenth of the steps, before each update

    def numbers(self) -> dict:
        """Of all seeds together: a prompt's pairs count as one draw, whatever their number."""
        prompt = np.tile(self.prompt, len(self.x))
        return scale.scale_numbers(self.x.ravel(), prompt)


def read_cell(cfg: Config, rate: float, precision: str, gold: np.ndarray) -> Cell:
    margins, lost, kept, losses = [], [], [], []
    for run in all_runs(cfg):
        if (run.rate, run.precision) != (rate, precision):
            continue
        x, prompt = scale.towards_gold(np.array(read_rewards(str(run.rewards))), gold)
        margins.append(x)
        lines = (run.model / "metrics.jsonl").read_text().splitlines()
        steps = [line for line in map(json.loads, lines) if "loss" in line]
        measured = [step for step in steps if "lost_updates" in step]
        lost += [step["lost_updates"] for step in measured]
        kept += [step["update_kept"] for step in measured]
        losses += [step["loss"] for step in steps[-max(1, len(steps) // 10) :]]
    return Cell(
        np.array(margins),
        prompt,
        float(np.mean(lost)),
        float(np.mean(kept)),
        float(np.mean(losses)),
    )


def differences(bf16: Cell, mixed: Cell) -> dict[str, scale.Estimate]:
    """Float32 weights minus pure bf16, pair by pair: right (ties: half), and loss as it stands."""
    prompt = np.tile(bf16.prompt, len(bf16.x))
    right = (np.sign(mixed.x) - np.sign(bf16.x)) / 2
    loss = scale.loss_at(1.0, mixed.x) - scale.loss_at(1.0, bf16.x)
    return {
        "right": scale.mean(right.ravel(), prompt),
        "loss": scale.mean(loss.ravel(), prompt),
    }


def print_table(cfg: Config, cells: dict) -> None:
    pairs = cells[cfg.rates[0], "bf16"].x.shape[1]
    print(f"{pairs} held-out pairs, {cfg.seeds} seeds; 95% intervals, clustered by prompt\n")
    print(line(HEADINGS))
    for (rate, precision), cell in cells.items():
        n = cell.numbers()
        print(
            line(
                (
                    f"{rate:g}",
                    precision,
                    between(n, "right", 3),
                    between(n, "scale", 2),
                    between(n, "bits", 3),
                    f"{cell.lost:.0%}",
                    f"{cell.kept:.2f}",
                    f"{cell.train_loss:.3f}",
                )
            )
        )
    print("\nfloat32 weights (mixed) minus pure bf16, pair by pair")
    for rate in cfg.rates:
        found = differences(cells[rate, "bf16"], cells[rate, "mixed"])
        right, loss = found["right"], found["loss"]
        print(
            f"rate {rate:g}: match {right.value:+.3f} ({right.low:+.3f} to {right.high:+.3f}), "
            f"loss {loss.value:+.3f} ({loss.low:+.3f} to {loss.high:+.3f})"
        )


def line(cells: tuple) -> str:
    return "".join(str(cell).rjust(width) for cell, width in zip(cells, WIDTHS))


def between(n: dict, name: str, digits: int) -> str:
    value, low, high = (f"{n[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} ({low} to {high})"


def as_json(cfg: Config, cells: dict) -> list[dict]:
    rows = []
    for (rate, precision), cell in cells.items():
        row = {"rate": rate, "precision": precision, "lost_updates": cell.lost}
        row |= {"update_kept": cell.kept, "train_loss": cell.train_loss} | cell.numbers()
        if precision == "mixed":
            found = differences(cells[rate, "bf16"], cell)
            for name, estimate in found.items():
                row |= estimate.as_numbers(f"{name}_above_bf16")
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main)
