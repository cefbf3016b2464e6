"""Run by torchrun with train.py's flags, --replicas 2 among them: do the replicas stay equal?

Trains once in each precision, and prints one line of JSON: precision -> "values", how many weights
and moments all processes hold; "updated", how many first moments training moved away from 0;
"different", how many values differ from the other replica's, bit for bit.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.distributed as dist

import train
from rmood.optim import local
from rmood.sharding import PRECISIONS


def own_values(run: train.Run, name: str) -> torch.Tensor:
    """This shard's part of all weights, or of a moment. float32 holds a bf16 value exactly."""
    parts = []
    for p in run.model.parameters():
        tensor = p if name == "weight" else run.optimizer.state[p][name]
        parts.append(local(tensor).detach().float().flatten())
    return torch.cat(parts)


def compare(run: train.Run) -> dict[str, int]:
    """Each process's shard with the copy that the other replica holds."""
    process = run.process
    names = ("weight", "exp_avg", "exp_avg_sq")
    own = torch.cat([own_values(run, name) for name in names])
    every: list = [None] * process.world_size
    dist.all_gather_object(every, own)
    other = every[(process.rank + process.world_size // 2) % process.world_size]
    different = own.view(torch.int32) != other.view(torch.int32)
    updated = own_values(run, "exp_avg") != 0
    counts = [own.numel(), updated.sum().item(), different.sum().item()]
    return dict(zip(("values", "updated", "different"), process.sum(torch.tensor(counts)).tolist()))


def main() -> None:
    flags = sys.argv[1:]
    runs: list[train.Run] = []
    train.export = lambda run, state: None
    train.finish = lambda run, *_: runs.append(run)  # keeps the process group for the next one
    compared = {}
    for precision in PRECISIONS:
        output = f"{flags[flags.index('--output-dir') + 1]}-{precision}"
        sys.argv = ["train.py", *flags, "--precision", precision, "--output-dir", output]
        train.main()
        compared[precision] = compare(runs[-1])
    runs[-1].process.result(json.dumps(compared))
    runs[-1].process.finish()


if __name__ == "__main__":
    main()
