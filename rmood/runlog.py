"""The metrics of a run: <output>/metrics.jsonl and <output>/tensorboard/."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from .distributed import Process


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
        """The line of a step. metrics: with the key "step"; timing: what differs between runs of
        one seed."""
        line = metrics | (timing or {})
        self._write(line, {f"step/{name}": value for name, value in line.items()})

    def write_parts(self, where: dict, parts: dict[str, dict]) -> None:
        """The line of an evaluation. where: step and epoch; parts: "eval" -> {"loss": 0.62, ...}.

        "loss" of the part "eval_hh" is eval_hh_loss in metrics.jsonl, eval_hh/loss in TensorBoard,
        which shows numbers alone: neither a word nor None.
        """
        line = dict(where)
        scalars = {}
        for part, numbers in parts.items():
            for name, value in numbers.items():
                line[f"{part}_{name}"] = value
                if isinstance(value, int | float):
                    scalars[f"{part}/{name}"] = value
        self._write(line, scalars)

    def _write(self, line: dict, scalars: dict[str, float]) -> None:
        if not self.file:
            return
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for tag, value in scalars.items():
            self.board.add_scalar(tag, value, line["step"])

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
    for name in ("metrics.jsonl", "pair_rewards.safetensors"):
        Path(folder, name).unlink(missing_ok=True)
    shutil.rmtree(Path(folder, "tensorboard"), ignore_errors=True)
