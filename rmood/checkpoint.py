"""Write and resume a run: its checkpoints, and its metrics.

    <output>/checkpoints/step-00000120/shard-0-of-2.safetensors   each process's part of weights and moments
                                       run.safetensors            what the loop itself remembers
                                       checkpoint.json            step, settings, number of shards
    <output>/metrics.jsonl, <output>/tensorboard/

A checkpoint is written beside and renamed when all of it is on disk: a half-written one is never chosen. Only
safetensors and JSON are read. A part is rows of each tensor, so another number of processes can take them over.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils.tensorboard import SummaryWriter

from . import BadInput, one_line
from .distributed import Process
from .optim import local
from .records import lock, read_json

MOMENTS = ("exp_avg", "exp_avg_sq")
# What a resumed run may change: where and how often things are written, and what alters the result by rounding alone.
FREE_TO_CHANGE = {"resume", "overwrite", "save_every", "keep", "log_every", "trace", "device", "max_bad_steps", "output_dir", "data_path", "eval_path"}
FREE_TO_CHANGE |= {"model_name", "chat_template", "tokens_per_pass", "layout", "activation_checkpointing", "cpu_offload", "replicas"}


def shards_of(model: nn.Module) -> tuple[int, int, bool]:
    """(this process's shard, number of shards, whether it is the copy that writes)."""
    mesh = next(p for p in model.parameters() if isinstance(p, DTensor)).device_mesh
    *replica, shard = mesh.get_coordinate()
    return shard, mesh.size(mesh.ndim - 1), replica in ([], [0])


def save_checkpoint(folder: str, model: nn.Module, optimizer, facts: dict, tensors: dict[str, torch.Tensor], process: Process, keep: int) -> None:
    """Write checkpoints/step-<facts["step"]>, then delete all but the newest `keep`. Every rank calls it.

    facts: JSON with the key "step"; tensors: what the loop remembers, equal on every rank.
    """
    shard, shards, writes = shards_of(model)
    final = Path(folder, "checkpoints", f"step-{facts['step']:08d}")
    temporary = final.with_suffix(".tmp")
    if process.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    process.barrier()
    if writes:
        parts = {f"weight.{name}": local(p) for name, p in model.named_parameters()}
        parts |= {f"{moment}.{name}": local(optimizer.state[p][moment]) for name, p in model.named_parameters() for moment in MOMENTS}
        if hasattr(optimizer, "generator"):
            parts["generator"] = optimizer.generator.get_state()
        save_file({name: part.detach().cpu().contiguous() for name, part in parts.items()}, temporary / f"shard-{shard}-of-{shards}.safetensors")
        _fsync(temporary / f"shard-{shard}-of-{shards}.safetensors")
    if process.is_main:
        updates = next(iter(optimizer.state.values()))["step"].item()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / "run.safetensors")
        (temporary / "checkpoint.json").write_text(json.dumps(facts | {"shards": shards, "updates": updates}, indent=1))
        _fsync(temporary / "run.safetensors"), _fsync(temporary / "checkpoint.json")
    process.barrier()
    if process.is_main:
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        _fsync(final.parent)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    process.barrier()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def checkpoints(folder: str) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in Path(folder, "checkpoints").glob("step-*") if path.suffix != ".tmp")


@torch.no_grad()
def load_checkpoint(path: Path, model: nn.Module, optimizer) -> tuple[dict, dict[str, torch.Tensor]]:
    """Fill the sharded model and its optimizer; returns the facts and tensors that were saved. Any number of processes."""
    try:
        facts = json.loads((path / "checkpoint.json").read_text())
        parts = [safe_open(path / f"shard-{i}-of-{facts['shards']}.safetensors", "pt") for i in range(facts["shards"])]
        tensors = load_file(path / "run.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadInput(f"{path}: the checkpoint cannot be read ({one_line(error)}): delete it, and --resume auto goes on from an earlier one or from the start")
    shard, shards, _ = shards_of(model)

    def fill(target: torch.Tensor, key: str) -> None:
        if facts["shards"] == shards:
            local(target).copy_(parts[shard].get_tensor(key))
        else:
            whole = torch.cat([part.get_tensor(key) for part in parts])
            rows = -(-len(whole) // shards)  # as torch.chunk and FSDP2 divide them
            local(target).copy_(whole[shard * rows : (shard + 1) * rows])

    for name, p in model.named_parameters():
        assert not isinstance(p, DTensor) or p.placements[-1] == Shard(0)
        fill(p, f"weight.{name}")
        state = {moment: torch.zeros_like(p) for moment in MOMENTS}
        for moment in MOMENTS:
            fill(state[moment], f"{moment}.{name}")
        optimizer.state[p] = {"step": torch.tensor(facts["updates"], device=local(p).device)} | state
    if hasattr(optimizer, "generator") and facts["shards"] == shards:
        optimizer.generator.set_state(parts[shard].get_tensor("generator"))
    return facts, tensors


def is_finished(folder: str) -> bool:
    """Whether the model in the folder is that of a whole run. Checkpoints that a kill left behind have then served."""
    finished = Path(folder, "config.json").exists() and (not Path(folder, "run.json").exists() or read_json(f"{folder}/run.json").get("finished", True))
    if finished:
        shutil.rmtree(Path(folder, "checkpoints"), ignore_errors=True)
    return finished


def check_same_run(before: dict, now: dict) -> None:
    """Refuse, by name, to resume with other settings or inputs: the result would be that of neither run."""
    old, new = before["config"], now["config"]
    changed = [f"--{name.replace('_', '-')} {old.get(name)} -> {new[name]}" for name in new if name not in FREE_TO_CHANGE and old.get(name) != new[name]]
    hashes = [{role: file["sha256"] for role, file in run["inputs"].items()} | {"chat template": run["template_sha256"]} for run in (before, now)]
    changed += [f"other {role}" for role in sorted(hashes[0].keys() | hashes[1].keys()) if hashes[0].get(role) != hashes[1].get(role)]
    if changed:
        raise BadInput(f"{new['output_dir']}: the run to resume had other settings ({'; '.join(changed)}): repeat those, or pass --overwrite to begin again")


class RunLog:
    """metrics.jsonl and TensorBoard, written by rank 0 alone. Lines of steps after `last_step`, where the run
    resumes, are taken back. Timing comes last in a line: it alone differs between two runs of one seed."""

    def __init__(self, folder: str, process: Process, last_step: int = 0):
        self.folder, self.file, self.board = folder, None, None
        if not process.is_main:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock(folder)
        path, kept = Path(folder, "metrics.jsonl"), []
        if last_step and path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= last_step]
        else:
            for old in ("tensorboard", "checkpoints"):
                shutil.rmtree(Path(folder, old), ignore_errors=True)
        path.with_suffix(".tmp").write_text("".join(kept))
        os.replace(path.with_suffix(".tmp"), path)
        self.file = open(path, "a", encoding="utf-8")
        self.board = SummaryWriter(str(Path(folder, "tensorboard")), purge_step=last_step + 1 if last_step else None)

    def write(self, metrics: dict, timing: dict | None = None) -> None:
        if self.file:
            self.file.write(json.dumps(metrics | (timing or {})) + "\n")
            self.file.flush()
            for name, value in (metrics | (timing or {})).items():
                self.board.add_scalar(name.replace("_", "/", 1) if name.startswith(("train_", "eval_")) else f"step/{name}", value, metrics["step"])

    def histogram(self, name: str, rewards: torch.Tensor, step: int) -> None:
        """rewards: (B, 2), chosen first."""
        if self.board:
            chosen, rejected = rewards.cpu().unbind(dim=1)
            for side, values in {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}.items():
                self.board.add_histogram(f"{name}_{side}", values, step)

    def close(self, finished: bool = False) -> None:
        """finished: the model is exported, so the checkpoints have served."""
        if self.file:
            self.file.close()
            self.board.close()
            if finished:
                shutil.rmtree(Path(self.folder, "checkpoints"), ignore_errors=True)


def interrupt(log: RunLog, process: Process, asked: list[int]) -> None:
    """Leave after a signal, all processes together; the checkpoint is on disk."""
    log.close()
    process.finish()
    raise KeyboardInterrupt(*asked[-1:])
