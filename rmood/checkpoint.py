"""Write and resume a run.

    <output>/checkpoints/step-00000120/
        shard-0-of-2.safetensors   each process's part of the trained weights and their moments
        state.safetensors          tensors that the loop remembers
        checkpoint.json            what else it remembers; the run's settings and inputs

A checkpoint is written under a temporary name while training goes on, and renamed when all of it is
on disk, so a half-written one is never chosen. Only safetensors and JSON are read. A part is rows
of each tensor, so another number of processes can take them over. What is not trained (with
--lora-rank: all but adapters and head) is read from the start model again. Only this module deletes
checkpoints:
older ones once a newer one is published, and all of them in `discard_checkpoints`.
"""

import json
import os
import shutil
import threading
import time
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .distributed import Process
from .errors import UserError, one_line
from .files.rows import fsync, read_json
from .loading import fill_rows
from .optim import fill_moments, local, trained_parameters
from .sharding import shards_of

MOMENTS = ("exp_avg", "exp_avg_sq")

# What a resumed run may change: where and how often things are written ...
FREE_TO_CHANGE = {
    "resume",
    "overwrite",
    "save_every",
    "save_minutes",
    "keep",
    "log_every",
    "trace",
    "device",
    "max_bad_steps",
    "keep_epochs",
    "rate_probe",
    "rate_probe_steps",
    "output_dir",
    "data_path",  # compared by their hashes instead
    "eval_path",
    "model_name",
    "chat_template",
}
# ... and what changes the result by rounding alone.
FREE_TO_CHANGE |= {
    "tokens_per_pass",
    "layout",
    "activation_checkpointing",
    "compile",
    "cpu_offload",
    "replicas",
}


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, from a copy in host memory. Every rank has one.

        writer = CheckpointWriter(folder, process, keep=1)
        writer.save(model, optimizer, state, run)   # every rank; returns once the copy is made
        writer.check()                              # raises what went wrong in the thread
        writer.wait()                               # every rank; the checkpoint is on disk

    keep: how many of the newest checkpoints to keep.
    """

    def __init__(self, folder: str, process: Process, keep: int):
        self.folder = folder
        self.process = process
        self.keep = keep
        self.copies: dict[str, torch.Tensor] = {}  # pinned host memory, used again by the next save
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, model: nn.Module, optimizer, state, run: dict) -> None:
        """Begin to write checkpoints/step-<state.step>.

        state: a dataclass of tensors and of values that JSON holds, with `step`, equal on every
        rank. run: settings and inputs, for `check_same_run`.
        """
        self.wait()  # for the checkpoint before this one
        final = checkpoint_path(self.folder, state.step)
        temporary = final.with_suffix(".tmp")
        if self.process.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.process.barrier()

        place = shards_of(model)
        files = {}  # name -> tensors
        if place.writes:
            name = _shard_name(place.index, place.count)
            files[name] = self._copy(_parts(model, optimizer))
        tensors, values = _split(state)
        updates = next(iter(optimizer.state.values()))["step"].item()
        facts = {"state": values, "run": run, "shards": place.count, "updates": updates}
        if self.process.is_main:
            files["state.safetensors"] = self._copy(tensors)
        if self.process.device.type == "cuda":
            torch.cuda.synchronize()  # the copies are made
        arguments = (temporary, final, files, json.dumps(facts, indent=1), place.count)
        self.thread = threading.Thread(
            target=self._write, args=arguments, name="checkpoint writer", daemon=True
        )
        self.thread.start()

    def _copy(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies in host memory, so that training may change the tensors meanwhile."""
        copies = {}
        for name, tensor in tensors.items():
            kept = self.copies.get(name)
            if kept is None or kept.shape != tensor.shape:
                kept = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
                )
                self.copies[name] = kept
            kept.copy_(tensor.detach(), non_blocking=True)
            copies[name] = kept
        return copies

    def _write(self, temporary: Path, final: Path, files: dict, facts: str, shards: int) -> None:
        """In the thread: this rank's files; rank 0 then publishes what all ranks have written."""
        try:
            for name, tensors in files.items():
                _save_tensors(tensors, temporary / name)
            if self.process.is_main:
                (temporary / "checkpoint.json").write_text(facts)
                fsync(temporary / "checkpoint.json")
                while not all((temporary / _shard_name(i, shards)).exists() for i in range(shards)):
                    time.sleep(0.02)  # another rank still writes, or failed and ends this run
                self._publish(temporary, final)
        except BaseException as error:  # raised again in the main thread
            self.error = error

    def _publish(self, temporary: Path, final: Path) -> None:
        shutil.rmtree(final, ignore_errors=True)
        fsync(temporary)  # the names of all ranks' files
        os.rename(temporary, final)
        fsync(final.parent)
        _open_checkpoint(final)  # readable: only now older ones may go
        for old in checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)

    def check(self) -> None:
        """Raise what went wrong in this rank's thread, for example a full disk."""
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Until the checkpoint that was begun is on disk, whole, for all ranks."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        self.check()
        self.process.barrier()  # rank 0 has published it


def save_checkpoint(
    folder: str, model: nn.Module, optimizer, state, run: dict, process: Process, keep: int
) -> None:
    """Write a checkpoint and wait until it is on disk. Every rank calls it."""
    writer = CheckpointWriter(folder, process, keep)
    writer.save(model, optimizer, state, run)
    writer.wait()


def _parts(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """This process's part of trained weights and moments, and the random state of its rounding."""
    parts = {}
    for name, p in trained_parameters(model).items():
        parts[f"weight.{name}"] = local(p)
        for moment in MOMENTS:
            parts[f"{moment}.{name}"] = local(optimizer.state[p][moment])
    if hasattr(optimizer, "generator"):
        parts["generator"] = optimizer.generator.get_state()
    return parts


def _split(state) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a dataclass, and its other values."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    tensors = {name: value for name, value in values.items() if torch.is_tensor(value)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def _shard_name(shard: int, shards: int) -> str:
    return f"shard-{shard}-of-{shards}.safetensors"


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A file that appears under its name when all of it is on disk.

    The last thing done is its name: from then on rank 0 may publish, and so rename, the folder.
    """
    begun = path.with_suffix(".part")
    save_file(tensors, begun)
    fsync(begun)
    os.rename(begun, path)


def checkpoints(folder: str) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = Path(folder, "checkpoints").glob("step-*")
    return sorted(path for path in found if path.suffix != ".tmp")


def checkpoint_path(folder: str, step: int) -> Path:
    return Path(folder, "checkpoints", f"step-{step:08d}")


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def discard_checkpoints(folder: str) -> None:
    """Delete all checkpoints of a run, whole or half-written: it is finished, or begins again."""
    shutil.rmtree(Path(folder, "checkpoints"), ignore_errors=True)


@torch.no_grad()
def load_checkpoint(path: Path, model: nn.Module, optimizer, state, run: dict) -> bool:
    """Fill the sharded model, its optimizer and the loop's state. Any number of processes.

    Returns whether the number of shards is the same: the random state of stochastic rounding
    (bf16-sr) is one a shard, and begins anew with another number. Raises UserError where the
    checkpoint cannot be read, or is of a run with other settings or inputs.
    """
    facts, parts, tensors = _open_checkpoint(path)
    check_same_run(facts["run"], run)
    place = shards_of(model)
    same_shards = facts["shards"] == place.count

    def fill(target: torch.Tensor, key: str) -> None:
        if same_shards:
            local(target).copy_(parts[place.index].get_tensor(key))
        else:
            fill_rows(target, [part.get_slice(key) for part in parts])

    fill_moments(model, optimizer, facts["updates"])
    for name, p in trained_parameters(model).items():
        fill(p, f"weight.{name}")
        for moment in MOMENTS:
            fill(optimizer.state[p][moment], f"{moment}.{name}")
    if hasattr(optimizer, "generator") and same_shards:
        optimizer.generator.set_state(parts[place.index].get_tensor("generator"))

    for name, value in facts["state"].items():
        setattr(state, name, value)
    for name, tensor in tensors.items():
        getattr(state, name).copy_(tensor)
    return same_shards


def _open_checkpoint(path: Path):
    """Its facts, opened shards and state tensors. Raises UserError where it is not whole."""
    try:
        facts = json.loads((path / "checkpoint.json").read_text())
        names = [_shard_name(i, facts["shards"]) for i in range(facts["shards"])]
        parts = [safe_open(path / name, "pt") for name in names]
        return facts, parts, load_file(path / "state.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path}: the checkpoint cannot be read ({one_line(error)}): delete it, and "
            "--resume auto goes on from an earlier one or from the start"
        )


def is_finished(folder: str) -> bool:
    """Whether the folder holds the model of a whole run, or one from elsewhere."""
    if not Path(folder, "config.json").exists():
        return False
    if not Path(folder, "run.json").exists():
        return True
    return read_json(f"{folder}/run.json").get("finished", True)


def check_same_run(before: dict, now: dict) -> None:
    """Raise UserError, naming what changed, rather than resume with other settings or inputs.

    The result would be that of neither run.
    """
    old, new = before["config"], now["config"]
    changed = []
    for name in new:
        if name not in FREE_TO_CHANGE and old.get(name) != new[name]:
            changed.append(f"--{name.replace('_', '-')} {old.get(name)} -> {new[name]}")
    old_hashes, new_hashes = _hashes(before), _hashes(now)
    for role in sorted(old_hashes.keys() | new_hashes.keys()):
        if old_hashes.get(role) != new_hashes.get(role):
            changed.append(f"other {role}")
    if changed:
        raise UserError(
            f"{new['output_dir']}: the run to resume had other settings ({'; '.join(changed)}): "
            "repeat those, or pass --overwrite to begin again"
        )


def _hashes(run: dict) -> dict[str, str | None]:
    """Role -> SHA-256 of every input's rows, of the chat template and of the start model."""
    hashes = {}
    for role, file in run["inputs"].items():
        hashes[role] = file.get("rows_sha256", file.get("sha256"))
    hashes["chat template"] = run["template_sha256"]
    return hashes | {"start model": run.get("weights_fingerprint")}
