"""The metrics of a run: <output>/metrics.jsonl and <output>/tensorboard/."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from .distributed import Process

PARTS = ("running_", "eval_")  # measures of a whole epoch; all others are of a step


class RunLog:
    """metrics.jsonl and TensorBoard, written by rank 0 alone.

    Where a run resumes, the lines of steps after `last_step` are removed: those steps run again.
    Timing comes last in a line: it alone differs between two runs of one seed.
    """

    def __init__(self, folder: str, process: Process, last_step: int = 0):
        self.file = None
        self.board = None
        if not process.is_main:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder, "metrics.jsonl")
        kept = _lines_until(path, last_step)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self.file = open(path, "a", encoding="utf-8")
        purge_step = last_step + 1 if last_step else None
        self.board = SummaryWriter(str(Path(folder, "tensorboard")), purge_step=purge_step)

    def write(self, metrics: dict, timing: dict | None = None) -> None:
        """One line. metrics: with the key "step"; timing: what differs between runs of one seed."""
        if not self.file:
            return
        line = metrics | (timing or {})
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in line.items():
            tag = name.replace("_", "/", 1) if name.startswith(PARTS) else f"step/{name}"
            self.board.add_scalar(tag, value, metrics["step"])

    def histogram(self, name: str, rewards: np.ndarray, step: int) -> None:
        """rewards: (B, 2), chosen first."""
        if not self.board:
            return
        chosen, rejected = rewards[:, 0], rewards[:, 1]
        self.board.add_histogram(f"{name}_chosen", chosen, step)
        self.board.add_histogram(f"{name}_rejected", rejected, step)
        self.board.add_histogram(f"{name}_margin", chosen - rejected, step)

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.board.close()


def _lines_until(path: Path, last_step: int) -> list[str]:
    """The whole lines of a metrics file up to a step; a line cut short by a kill is left out."""
    if not last_step or not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] <= last_step]


def discard_log(folder: str) -> None:
    """Delete the metrics of an earlier run in this folder: a new one begins."""
    Path(folder, "metrics.jsonl").unlink(missing_ok=True)
    shutil.rmtree(Path(folder, "tensorboard"), ignore_errors=True)
