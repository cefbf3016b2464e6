"""Rows in and out: JSON, JSON lines and parquet, each also gzipped.

The content of a file decides what it is, not its name. A file is written whole or not at all.
Every reader raises UserError, naming the file and the line or row.
"""

import contextlib
import glob
import gzip
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError, one_line

PIECE = 1 << 20  # bytes or characters read at a time
SPACE = re.compile(r"[ \t\r\n]*")


# ---- reading ---


def read_json(path: str):
    """The JSON value in a file. Raises UserError if it is missing, empty, not UTF-8 or not JSON."""
    return _loads(path, _text(path, _bytes(path)))


def read_rows(path: str) -> Iterator[tuple[str, object]]:
    """(where, row) for each row of a JSON list, JSON lines, parquet, or a JSON object of columns.

    where: for error messages, "a.jsonl: line 1" for JSON lines, otherwise "a.json: row 0".
    Lists and JSON lines are read row by row: such a file may be larger than memory.
    """
    with _opened(path) as file:
        is_parquet = file.peek(4).startswith(b"PAR1")
        first = file.readline(PIECE)
        if not is_parquet and _is_json(first) and any(line.strip() for line in file):
            file.seek(0)
            yield from _json_lines(path, file)
            return
        if first.startswith(b"["):
            file.seek(0)
            try:
                values = _json_list(io.TextIOWrapper(file, encoding="utf-8"))
                yield from _numbered(path, values)
                return
            except (ValueError, RecursionError):
                pass  # read_json, below, says what is wrong

    value = _parquet(path, _bytes(path)) if is_parquet else read_json(path)
    if isinstance(value, dict):
        if not _holds_columns(value):
            yield f"{path}: line 1", value  # JSON lines of one line
            return
        value = _rows_of_columns(path, value)
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{path}: expected a JSON list with at least one row: check that this is the right file"
        )
    yield from _numbered(path, value)


def _numbered(path: str, rows: Iterable) -> Iterator[tuple[str, object]]:
    for i, row in enumerate(rows):
        yield f"{path}: row {i}", row


def _json_lines(path: str, file) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, _loads(path, _text(where, line), number)


def _json_list(file) -> Iterator:
    """The values of a JSON list, each as soon as it is whole.

    Raises ValueError where the text is not a list of at least one value, perhaps after some values.
    """
    decode = json.JSONDecoder().raw_decode
    text = file.read(PIECE)
    at = 1  # behind the "["
    while True:
        try:
            value, end = decode(text, _skip_space(text, at))
            end = _skip_space(text, end)
            mark = text[end : end + 1]
        except ValueError:
            mark = ""
        if mark not in (",", "]"):
            # The text ends within this value, perhaps in a number: "12" of "12.5" is one, too.
            more = file.read(max(PIECE, len(text) - at))
            if not more:
                raise ValueError("not a list, or cut short")
            text = text[at:] + more
            at = 0
            continue
        is_last = mark == "]"
        if is_last and (text[end + 1 :] + file.read()).strip():
            raise ValueError("text after the list")
        yield value
        if is_last:
            return
        at = end + 1


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _is_json(line: bytes) -> bool:
    """Is the line a JSON object or list by itself, as every line of JSON lines is?"""
    try:
        return isinstance(json.loads(line.decode()), (dict, list))
    except (ValueError, RecursionError):
        return False


def _holds_columns(value: dict) -> bool:
    """Is "chosen" a list of conversations or of texts? In a single row it is one of them."""
    column = value.get("chosen")
    return isinstance(column, list) and bool(column) and not isinstance(column[0], dict)


def _rows_of_columns(path: str, columns: dict[str, list]) -> list[dict]:
    """{"chosen": [a, b], "rejected": [c, d]} -> a row of a and c, a row of b and d."""
    lengths = {len(column) if isinstance(column, list) else None for column in columns.values()}
    if len(lengths) != 1:
        raise UserError(f"{path}: the columns have different lengths: write the file again")
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _loads(path: str, text: str, line: int | None = None):
    """The JSON value of a text. line: where the text is in the file, if it is one line of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if line:
            what = f"line {line}: not valid JSON"
        else:
            what = f"not valid JSON at line {error.lineno}"
        raise UserError(f"{path}: {what} ({error.msg}): write the file again")
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(f"{path}: not valid JSON ({one_line(error)}): write the file again")


def _parquet(path: str, data: bytes) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: a parquet file, which needs pyarrow to be read: "
            "pip install pyarrow, or save it as JSON lines"
        )
    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({one_line(error)}): fetch it again")


def _bytes(path: str) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextlib.contextmanager
def _opened(path: str):
    """The file, open for bytes, unzipped if it is gzipped. Raises UserError where reading fails."""
    try:
        with open(path, "rb") as file:
            is_gzip = file.peek(2).startswith(b"\x1f\x8b")
            yield gzip.open(file) if is_gzip else file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: check the path, or run the script that writes it")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path}: the gzip file is cut short or damaged: fetch it again")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): check the path and its permissions"
        )


def _text(where: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}): convert the file to UTF-8")
    if not text.strip():
        raise UserError(f"{where}: the file is empty: write it again")
    return text


# ---- writing ---


def fsync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str):
    """A text file that appears at `path` whole, or not at all: temporary file, fsync, rename."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
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


def _remove_leftovers(path: str) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path`."""
    for leftover in glob.glob(f"{glob.escape(path)}.tmp-*"):
        process = leftover.rpartition("-")[2]
        if process.isdigit() and not _is_running(int(process)):
            os.unlink(leftover)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # no signal: asks only whether the process is there
    except PermissionError:
        return True  # it is there, and another user's
    except OSError:
        return False
    return True


def check_writable(path: str) -> None:
    """Raise UserError now, not after hours of work, if `path` cannot be written."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"{path}: cannot be written (see {folder}): "
            "choose another path, or change its permissions"
        )


def write_json(path: str, value) -> None:
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def write_jsonl(path: str, rows: Iterable) -> None:
    """One row per line; the rows may come from a generator, and are written as they come."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
