"""Compressed rewards, made and cured one change at a time, on the toy world.

    reads   datasets/toy and models/toy-sft, from scripts/quickstart.sh
    writes  models/toy-compressed-1 ... -4, reports/compressed_rewards.html (plots), and a table on stdout

    python examples/compressed_rewards.py          about four minutes on 2 cores

The failing run keeps its weights in pure bf16 and learns at a low rate, as the reference pipeline's first proxy did. Then, one
after the other: float32 weights under bf16 or float32 compute; five times the rate; twice the epochs. Every run starts from the
same SFT model with the same pairs in the same order. docs/compressed_rewards.md reads the table.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from rmood import records
from rmood.config import layout, opt, parse, run_script

RUNS = (  # what is changed, and all flags that this takes
    ("pure bf16, rate 2e-4, 2 epochs", ["--precision", "bf16", "--lr", "2e-4", "--epochs", "2"]),
    ("float32 weights", ["--precision", "mixed", "--lr", "2e-4", "--epochs", "2"]),
    ("and rate 1e-3", ["--precision", "mixed", "--lr", "1e-3", "--epochs", "2"]),
    ("and 4 epochs", ["--precision", "mixed", "--lr", "1e-3", "--epochs", "4"]),
)


@dataclass(frozen=True)
class Config:
    dataset: str = opt("toy", "what quickstart built")
    seed: int = opt(0, "of the new head and the order of the pairs", at_least=0)
    json: str = opt("{home}/reports/compressed_rewards.json", "write every number to this file")
    report: str = opt("{home}/reports/compressed_rewards.html", "HTML report with the plots")


def main() -> None:
    cfg = parse(Config, __doc__)
    folders = [f"{layout(cfg.dataset)['models']}/{cfg.dataset}-compressed-{i}" for i in range(1, len(RUNS) + 1)]
    for folder, (what, flags) in zip(folders, RUNS):
        print(f"== {what}", file=sys.stderr, flush=True)
        script("train.py", "--dataset", cfg.dataset, "--output-dir", folder, "--overwrite", "--batch-size", 32, "--seed", cfg.seed, *flags)
    script("evaluate.py", "diagnose", "--dataset", cfg.dataset, "--models", *folders, "--json", cfg.json, "--report", cfg.report)

    print(f"\n{'':32}{'match':>7}{'rewards':>16}{'spread / gold':>15}{'lost':>7}{'kept':>7}{'loss':>7}{'accuracy':>10}   named first")
    for (what, _), n in zip(RUNS, records.read_json(cfg.json)["models"]):
        rewards = f"{n['proxy_min']:.1f} to {n['proxy_max']:.1f}"
        first = n["findings"][0]["id"] if n["findings"] else "no finding"
        print(f"{what:32}{n['match']:7.3f}{rewards:>16}{n['margin_std_ratio']:15.3f}{n['lost_updates']:7.0%}{n['update_kept']:7.2f}{n['train_loss']:7.3f}{n['train_accuracy']:10.3f}   {first}")
    print(f"{'gold':32}{'':7}{n['gold_min']:8.1f} to {n['gold_max']:.1f}{1:15.3f}\n\n{cfg.report}: written")


def script(name: str, *arguments) -> None:
    """Run a script of the repository; what it prints goes to stderr."""
    if subprocess.run([sys.executable, str(REPOSITORY / name), *map(str, arguments)], stdout=sys.stderr).returncode:
        raise records.BadInput(f"{name} failed: see its message above")


if __name__ == "__main__":
    run_script(main)
