"""What the precision of weights costs: every precision mode at three rates, on the toy world.

reads   what scripts/quickstart.sh built: datasets/toy, models/toy-sft
prints  a table: last loss, training accuracy, match and spread against gold on held-out prompts,
        lost updates

python benchmarks/precision.py --json precision.json   12 trainings, each under a minute on 2 cores
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.rows import read_json, write_json
from rmood.sharding import PRECISIONS

HEAD = (
    "| rate | precision | last loss | training accuracy | match | spread / gold's "
    "| lost updates | kept |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("toy", "sets every default path at once")
    precisions: list[str] = opt(list(PRECISIONS), "precision modes")
    rates: list[float] = opt([5e-5, 2e-4, 1e-3], "peak learning rates")
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    seed: int = opt(0, "seed for the new head and the order of the pairs")
    json: str = opt("", "write the same numbers to this file")
    # fmt: on


def main() -> None:
    cfg = parse(Config, __doc__)
    rows = []
    print(HEAD)
    for rate in cfg.rates:
        for precision in cfg.precisions:
            row = {"lr": rate, "precision": precision} | measure(cfg, rate, precision)
            print(describe(row), flush=True)
            rows.append(row)
    if cfg.json:
        write_json(cfg.json, rows)


def describe(row: dict) -> str:
    cells = [
        f"{row['lr']:.0e}",
        row["precision"],
        f"{row['last_loss']:.3f}",
        f"{row['train_accuracy']:.3f}",
        f"{row['match']:.3f}",
        f"{row['spread_ratio']:.3f}",
        f"{row['lost_updates']:.1%}",
        f"{row['update_kept']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def measure(cfg: Config, rate: float, precision: str) -> dict:
    """Train once, evaluate on the training pairs (quality) and on test prompts (match).

    last_loss is the mean over the last tenth of the steps, lost_updates and update_kept are means
    over all steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/rm"
        train(cfg, rate, precision, model)
        quality = evaluate(cfg, "quality", model)
        match = evaluate(cfg, "match", model)
        lines = Path(model, "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    last_tenth = steps[-max(1, len(steps) // 10) :]
    return {
        "last_loss": mean("loss", last_tenth),
        "train_accuracy": quality["train_accuracy"],
        "match": match["match"],
        "spread_ratio": match["spread_ratio"],
        "lost_updates": mean("lost_updates", steps),
        "update_kept": mean("update_kept", steps),
    }


def mean(name: str, steps: list[dict]) -> float:
    return sum(step[name] for step in steps) / len(steps)


def train(cfg: Config, rate: float, precision: str, model: str) -> None:
    flags = {
        "--dataset": cfg.dataset,
        "--output-dir": model,
        "--lr": rate,
        "--epochs": cfg.epochs,
        "--batch-size": 32,
        "--precision": precision,
        "--seed": cfg.seed,
        "--log-every": 1,  # lost_updates and update_kept at every step
    }
    run("train.py", flags)


def evaluate(cfg: Config, command: str, model: str) -> dict:
    """The numbers of `evaluate.py quality` or `evaluate.py match`."""
    path = f"{model}-{command}.json"
    flags = {"--dataset": cfg.dataset, "--model-name": model, "--json": path}
    run("evaluate.py", flags, command)
    return read_json(path)


def run(script: str, flags: dict, *commands: str) -> None:
    words = [f"{flag}={value}" for flag, value in flags.items()]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *commands, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        last_line = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"precision.py: {script} ended with status {done.returncode}: {last_line}")


if __name__ == "__main__":
    run_script(main)
