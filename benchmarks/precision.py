"""What the precision of weights costs: every precision mode at three rates, on the toy world.

    reads   what scripts/quickstart.sh built: datasets/toy, models/toy-sft
    prints  a table: last loss, training accuracy, match and spread against gold on held-out prompts, lost updates

    python benchmarks/precision.py --json precision.json        12 trainings, under a minute each on 2 cores
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood import records
from rmood.config import opt, parse, run_script
from rmood.sharding import PRECISIONS


@dataclass(frozen=True)
class Config:
    dataset: str = opt("toy", "names the default paths")
    precisions: list[str] = opt(list(PRECISIONS), "precision modes")
    rates: list[float] = opt([5e-5, 2e-4, 1e-3], "peak learning rates")
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    seed: int = opt(0, "of the head and the order")
    json: str = opt("", "write the same numbers to this file")


def main() -> None:
    cfg = parse(Config, __doc__)
    rows = []
    print("| rate | precision | last loss | training accuracy | match | spread / gold's | lost updates | kept |\n|---|---|---|---|---|---|---|---|")
    for rate in cfg.rates:
        for precision in cfg.precisions:
            rows.append({"lr": rate, "precision": precision} | measure(cfg, rate, precision))
            r = rows[-1]
            print(
                f"| {rate:.0e} | {precision} | {r['last_loss']:.3f} | {r['train_accuracy']:.3f} | {r['match']:.3f} | {r['margin_std_ratio']:.3f} | {r['lost_updates']:.1%} | {r['update_kept']:.2f} |",
                flush=True,
            )
    if cfg.json:
        records.write_json(cfg.json, rows)


def measure(cfg: Config, rate: float, precision: str) -> dict:
    """Train once, evaluate on test; last loss and lost updates are means over the last and over all steps."""
    with tempfile.TemporaryDirectory() as folder:
        run("train.py", "--dataset", cfg.dataset, "--output-dir", f"{folder}/rm", "--lr", rate, "--epochs", cfg.epochs, "--batch-size", 32, "--precision", precision, "--seed", cfg.seed)
        run("evaluate.py", "quality", "--dataset", cfg.dataset, "--model-name", f"{folder}/rm", "--json", f"{folder}/quality.json")
        run("evaluate.py", "match", "--dataset", cfg.dataset, "--model-name", f"{folder}/rm", "--json", f"{folder}/match.json")
        steps = [line for line in map(json.loads, Path(folder, "rm", "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        quality, match = (records.read_json(f"{folder}/{name}.json") for name in ("quality", "match"))
    last = steps[-max(1, len(steps) // 10) :]
    mean = lambda name, some: sum(step[name] for step in some) / len(some)  # noqa: E731
    return {
        "last_loss": mean("loss", last),
        "train_accuracy": quality["train_accuracy"],
        "match": match["match"],
        "margin_std_ratio": match["margin_std_ratio"],
        "lost_updates": mean("lost_updates", steps),
        "update_kept": mean("update_kept", steps),
    }


def run(script: str, *arguments) -> None:
    subprocess.run([sys.executable, str(REPOSITORY / script), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    run_script(main)
