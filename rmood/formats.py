"""Rows from files as others write them: JSON, JSON lines or parquet, each also gzipped; and preference pairs in any of these forms.

    conversations               {"chosen": [messages], "rejected": [messages]}   preprocess.py's; TRL's implicit prompt
    prompts and answers         {"prompt": ..., "chosen": ..., "rejected": ...}  TRL's explicit prompt: all messages, or all plain text
    whole plain texts           {"chosen": "The sky is blue.", "rejected": "The sky is green."}  the words both begin with are the prompt
    Anthropic HH dialogues      {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}, also with its beginning as "prompt"
    UltraFeedback               {"prompt": "...", "chosen": [messages], "rejected": [messages], "score_chosen", "score_rejected"}

What a file holds is told by its content, never by its name, and said aloud; a file of two forms is refused.
"""

import contextlib
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator

from . import BadInput, one_line

PIECE = 1 << 20  # bytes or characters read at a time
SPACE = re.compile(r"[ \t\r\n]*")
TURN = re.compile(r"\n\n(Human|Assistant):")


def read_json(path: str):
    """The JSON value in a file. Raises BadInput for a file that is missing, empty, not UTF-8 or not JSON."""
    return _loads(path, _text(path, _bytes(path)))


def read_rows(path: str) -> Iterator[tuple[str, object]]:
    """(where, row) for each row of a JSON list, of JSON lines, of parquet, or of the columns "chosen" and "rejected". Rows of
    a list and lines are read one after the other: the file may be larger than memory."""
    with _opened(path) as file:
        parquet, first = file.peek(4).startswith(b"PAR1"), file.readline(PIECE)
        if not parquet and _is_json(first) and any(line.strip() for line in file):
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}: line {number}", _loads(path, _text(f"{path}: line {number}", line), number)
            return
        if first.startswith(b"["):
            file.seek(0)
            with contextlib.suppress(ValueError, RecursionError):  # the whole text, below, tells where and why
                for i, row in enumerate(_list_rows(io.TextIOWrapper(file, encoding="utf-8"))):
                    yield f"{path}: row {i}", row
                return
    value = _parquet(path, _bytes(path)) if parquet else read_json(path)
    if isinstance(value, dict):
        column = value.get("chosen")
        if not isinstance(column, list) or not column or isinstance(column[0], dict):
            yield f"{path}: line 1", value
            return
        if len({len(column) if isinstance(column, list) else None for column in value.values()}) != 1:
            raise BadInput(f"{path}: the columns have different lengths: write the file again")
        value = [dict(zip(value, values)) for values in zip(*value.values())]
    if not isinstance(value, list) or not value:
        raise BadInput(f"{path}: expected a JSON list with at least one row: check that this is the right file")
    yield from ((f"{path}: row {i}", row) for i, row in enumerate(value))


def _list_rows(file) -> Iterator:
    """The values of a JSON list, each as soon as it is whole. Raises ValueError where the text is none, or an empty one."""
    decode, text, at = json.JSONDecoder().raw_decode, file.read(PIECE), 1
    while True:
        try:
            value, end = decode(text, SPACE.match(text, at).end())
            end = SPACE.match(text, end).end()
            mark = text[end]  # without it a number may go on
        except (ValueError, IndexError):
            fresh = file.read(max(PIECE, len(text) - at))
            if not fresh:
                raise ValueError("cut short")
            text, at = text[at:] + fresh, 0
            continue
        if mark not in ",]" or mark == "]" and (text[end + 1 :] + file.read()).strip():
            raise ValueError("no list")
        yield value
        if mark == "]":
            return
        at = end + 1


def read_preferences(path: str) -> Iterator[tuple[str, dict]]:
    """(where, row) for each pair of a file, its two sides as messages and gold's rewards where they are known."""
    count, first = 0, None
    for count, (where, row) in enumerate(read_rows(path), 1):
        form, chosen, rejected = conversations(row) or (None, None, None)
        if not form:
            raise BadInput(f"{where}: a pair needs 'chosen' and 'rejected' in one of the forms that README.md lists: rerun preprocess.py, or mend the row")
        if form != (first := first or form):
            raise BadInput(f"{where}: {form}, but the rows before are {first}: split the file")
        rewards = {f"{side}_reward": row.get(f"{side}_reward", row.get(f"score_{side}")) for side in ("chosen", "rejected")}
        yield where, {"chosen": chosen, "rejected": rejected, "index": row.get("index")} | rewards
    if os.environ.get("RANK", "0") == "0":
        print(f"{path}: {count:,} pairs, read as {first}", file=sys.stderr)


def conversations(row) -> tuple[str, list[dict], list[dict]] | None:
    """The form of a pair, as it is said aloud, and its two conversations; None where it has no form that is known."""
    match row:
        case {"prompt": list(prompt), "chosen": [{"role": "assistant"}, *_] as chosen, "rejected": [{"role": "assistant"}, *_] as rejected}:
            return "prompts and answers in messages (TRL, explicit prompt)", prompt + chosen, prompt + rejected
        case {"prompt": str(), "chosen": [{"role": "system" | "user"}, *_] as chosen, "rejected": [{"role": "system" | "user"}, *_] as rejected}:
            return "UltraFeedback, binarized", chosen, rejected
        case {"chosen": list(chosen), "rejected": list(rejected)} if row.get("prompt") is None:
            return "conversations", chosen, rejected
        case {"chosen": str(chosen), "rejected": str(rejected)} if isinstance(prompt := row.get("prompt") or "", str):
            if all((prompt + text).startswith("\n\nHuman:") for text in (chosen, rejected)):
                return "Anthropic HH dialogues", _dialogue(prompt + chosen), _dialogue(prompt + rejected)
            if row.get("prompt") is not None:
                return "prompts and answers in plain text (TRL, explicit prompt)", _exchange(prompt, chosen), _exchange(prompt, rejected)
            shared = re.sub(r"\S*$", "", os.path.commonprefix([chosen, rejected]))  # whole words: "bl" of blue and black is none
            if shared.strip():
                form = "plain texts, the words both begin with as the prompt (TRL, implicit prompt)"
                return form, *(_exchange(shared.strip(), text[len(shared) :].strip()) for text in (chosen, rejected))
    return None


def _dialogue(text: str) -> list[dict]:
    parts = TURN.split(text)  # ["", "Human", " ...", "Assistant", " ..."]
    return [{"role": "user" if who == "Human" else "assistant", "content": words.strip()} for who, words in zip(parts[1::2], parts[2::2])]


def _exchange(prompt: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _loads(path: str, text: str, line: int | None = None):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}: line {line}: not valid JSON" if line else f"{path}: not valid JSON at line {error.lineno}"
        raise BadInput(f"{where} ({error.msg}): write the file again")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise BadInput(f"{path}: not valid JSON ({one_line(error)}): write the file again")


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), (dict, list))
    except (ValueError, RecursionError):
        return False


def _parquet(path: str, data: bytes) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"{path}: a parquet file, which needs pyarrow to be read: pip install pyarrow, or save it as JSON lines")
    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a whole parquet file ({one_line(error)}): fetch it again")


def _bytes(path: str) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextlib.contextmanager
def _opened(path: str):
    """The file's bytes, unzipped where they are zipped; what goes wrong is answered by a letter."""
    try:
        with open(path, "rb") as file:
            yield gzip.open(file) if file.peek(2).startswith(b"\x1f\x8b") else file
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file: check the path, or run the script that writes it")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(f"{path}: the gzip file is cut short or damaged: fetch it again")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): check the path and its permissions")


def _text(path: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}): convert the file to UTF-8")
    if not text.strip():
        raise BadInput(f"{path}: the file is empty: write it again")
    return text
