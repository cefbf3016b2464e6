"""Compressed rewards, made and cured one change at a time, on the toy world.

reads   datasets/toy and models/toy-sft, from scripts/quickstart.sh
writes  models/toy-compressed-1 ... -4, reports/compressed_rewards.html (plots), a table on stdout

python examples/compressed_rewards.py          about four minutes on 2 cores

The failing run keeps its weights in pure bf16 and learns at a low rate, as the reference pipeline's
first proxy did. Then, one after the other: float32 weights (with bf16 compute); five times the
rate; twice the epochs. Every run starts from the same SFT model with the same pairs in
the same order. docs/compressed_rewards.md explains the table.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.paths import dataset_paths
from rmood.files.rows import read_json

RUNS = (  # what is changed, and all flags that this takes
    ("pure bf16, rate 2e-4, 2 epochs", ["--precision", "bf16", "--lr", "2e-4", "--epochs", "2"]),
    ("float32 weights", ["--precision", "mixed", "--lr", "2e-4", "--epochs", "2"]),
    ("and rate 1e-3", ["--precision", "mixed", "--lr", "1e-3", "--epochs", "2"]),
    ("and 4 epochs", ["--precision", "mixed", "--lr", "1e-3", "--epochs", "4"]),
)
COLUMNS = (  # heading, width
    ("match", 7),
    ("rewards", 16),
    ("spread / gold", 15),
    ("lost", 7),
    ("kept", 7),
    ("scale", 21),
    ("bits held out", 21),
    ("bits train", 12),
)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("toy", "what quickstart built")
    seed: int = opt(0, "seed for the new head and for the order of the pairs", at_least=0)
    json: str = opt("{home}/reports/compressed_rewards.json", "write every number to this file")
    report: str = opt("{home}/reports/compressed_rewards.html", "HTML report with the plots")
    # fmt: on


def main() -> None:
    cfg = parse(Config, __doc__)
    models = dataset_paths(cfg.dataset)["models"]
    folders = []
    for number, (what, flags) in enumerate(RUNS, 1):
        print(f"== {what}", file=sys.stderr, flush=True)
        folder = f"{models}/{cfg.dataset}-compressed-{number}"
        folders.append(folder)
        outputs = ["--dataset", cfg.dataset, "--output-dir", folder, "--overwrite"]
        run("train.py", *outputs, "--batch-size", 32, "--seed", cfg.seed, *flags)
    outputs = ["--json", cfg.json, "--report", cfg.report]
    run("evaluate.py", "diagnose", "--dataset", cfg.dataset, "--models", *folders, *outputs)

    found = read_json(cfg.json)["models"]
    print()
    print(line("", [heading for heading, _ in COLUMNS], "named first"))
    for (what, _), numbers in zip(RUNS, found):
        findings = numbers["findings"]
        first = findings[0]["id"] if findings else "no finding"
        print(line(what, cells(numbers), first))
    gold_range = f"{found[0]['gold_min']:.1f} to {found[0]['gold_max']:.1f}"
    print(line("gold", ["", gold_range, "1.000"]))
    print(f"\n{cfg.report}: written")


def cells(n: dict) -> list[str]:
    """One run's numbers, in the order of COLUMNS."""
    return [
        f"{n['match']:.3f}",
        f"{n['proxy_min']:.1f} to {n['proxy_max']:.1f}",
        f"{n['spread_ratio']:.3f}",
        f"{n['lost_updates']:.0%}",
        f"{n['update_kept']:.2f}",
        f"{n['scale']:.2f} ({n['scale_low']:.2f} to {n['scale_high']:.2f})",
        f"{n['bits']:.2f} ({n['bits_low']:.2f} to {n['bits_high']:.2f})",
        f"{n['train_bits']:.2f}",
    ]


def line(label: str, cells: list[str], last: str = "") -> str:
    widths = [width for _, width in COLUMNS]
    columns = [cell.rjust(width) for cell, width in zip(cells, widths)]
    return f"{label:32}{''.join(columns)}   {last}".rstrip()


def run(script: str, *arguments) -> None:
    """Run a script of the repository; what it prints goes to stderr."""
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    done = subprocess.run(command, stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"{script} failed: see its message above")


if __name__ == "__main__":
    run_script(main)
