"""Rows in and out: JSON, JSON lines, CSV, TSV, parquet and arrow, each also gzipped.

The content of a file decides what it is, not its name. A file is written whole or not at all.
Every reader raises UserError, naming the file and the line or row.
"""

import ast
import contextlib
import csv
import filecmp
import glob
import gzip
import io
import json
import os
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError, no_such_file, one_line

PIECE = 1 << 20  # bytes or characters read at a time
BATCH = 1024  # rows of a parquet or arrow file that are Python objects at a time
SPACE = re.compile(r"[ \t\r\n]*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which some programs write before UTF-8
COLUMN = re.compile(r"[A-Za-z_][\w .-]*")
NUMBER_COLUMN = re.compile(r"index|reward_\d+|(chosen|rejected)_reward|score_(chosen|rejected)")
MESSAGES = re.compile(r"""\[\{["'](role|from|content|value)["']""")
CELL_KEYS = {"role", "from", "type", "function"}  # of messages, and of tools


# ---- reading ---


def read_json(path: str):
    """The JSON value in a file. Raises UserError if it is missing, empty, not UTF-8 or not JSON."""
    return _loads(path, _text(path, _bytes(path)))


def read_rows(path: str) -> Iterator[tuple[str, object]]:
    """(where, row) for each row of a file, or of the files of a dataset's folder.

    Read are a JSON list, JSON lines, a JSON object of columns, parquet, arrow, CSV and TSV.
    path: a file, a folder, or FOLDER:SPLIT; see data_files().
    where: for error messages, "a.jsonl: line 1" for JSON lines and CSV, otherwise "a.json: row 0".
    All but columns are read piece by piece: such a file may be larger than memory.
    """
    for file in data_files(path):
        yield from _rows_of_file(file)


def data_files(path: str) -> list[str]:
    """The files that hold the rows of `path`: itself; for a folder, those of one of its splits.

    A folder is one that datasets.save_to_disk wrote (arrow), or one with parquet files named as on
    the hub, such as data/train-00000-of-00001.parquet. The split is the one behind the colon of
    FOLDER:SPLIT, or else train, or the only one. Raises UserError for another folder or split.
    """
    folder, split = path, ""
    if not os.path.exists(path):
        folder, _, split = path.rpartition(":")
    if not os.path.isdir(folder):
        return [path]
    splits = _splits(folder)
    if not splits:
        raise UserError(
            f"{path}: cannot be read: a folder without a dataset (arrow files of "
            "datasets.save_to_disk, or *.parquet): pass a file, or that folder"
        )
    if not split:
        split = "train" if len(splits) > 1 else next(iter(splits))
    if split not in splits:
        raise UserError(
            f"{folder}: has no split {split!r}, but {', '.join(sorted(splits))}: "
            f"pass {folder}:{sorted(splits)[0]}"
        )
    return splits[split]


def _splits(folder: str) -> dict[str, list[str]]:
    """Split -> its files, of a dataset's folder; empty for another folder."""
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        names = _value_of(os.path.join(folder, "dataset_dict.json"), "splits")
        names = [os.path.basename(str(name)) for name in names]  # never a path out of the folder
        return {name: _saved_files(os.path.join(folder, name)) for name in names}
    if os.path.exists(os.path.join(folder, "state.json")):
        return {"train": _saved_files(folder)}
    splits = {}
    for file in sorted(Path(folder).rglob("*.parquet")):
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    return splits


def _saved_files(folder: str) -> list[str]:
    """The arrow files of a folder that datasets.save_to_disk wrote, in the order of their rows."""
    files = _value_of(os.path.join(folder, "state.json"), "_data_files")
    names = [file.get("filename") for file in files if isinstance(file, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder}/state.json: names no data files: save the dataset again")
    return [os.path.join(folder, os.path.basename(name)) for name in names]


def _value_of(path: str, key: str) -> list:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise UserError(f"{path}: has no list {key!r}: save the dataset again")
    return value[key]


def _split_of(file: Path) -> str:
    """data/train-00000-of-00002.parquet or default/train/0000.parquet -> train; a/b.parquet -> a/b.

    file: relative to the dataset's folder.
    """
    stem = re.sub(r"-\d+-of-\d+(-\w+)?$", "", file.stem)
    words = [*file.parent.parts, stem]
    words = [word for word in words if word not in ("data", "default") and not word.isdigit()]
    return "/".join(words) or "train"


def _rows_of_file(path: str) -> Iterator[tuple[str, object]]:
    with _opened(path) as file:
        if file.peek(3).startswith(BYTE_ORDER_MARK):
            file.read(len(BYTE_ORDER_MARK))
        start = file.tell()
        binary = _binary_rows(path, file)
        if binary is not None:
            yield from _numbered(path, binary)
            return
        first = file.readline(PIECE)
        if _is_json(first) and any(line.strip() for line in file):
            file.seek(start)
            yield from _json_lines(path, file)
            return
        if first.startswith(b"["):
            file.seek(start)
            try:
                values = _json_list(io.TextIOWrapper(file, encoding="utf-8"))
                yield from _numbered(path, values)
                return
            except (ValueError, RecursionError):
                pass  # read_json, below, says what is wrong
        delimiter = _delimiter(first)
        if delimiter:
            file.seek(start)
            yield from _csv(path, file, delimiter)
            return

    value = read_json(path)
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
        raise no_such_file(path)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path}: the gzip file is cut short or damaged: fetch it again")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): check the path and its permissions"
        )


def _text(where: str, data: bytes) -> str:
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}): convert the file to UTF-8")
    if not text.strip():
        raise UserError(f"{where}: the file is empty: write it again")
    return text


# ---- CSV and TSV


def _without_none(row: dict) -> dict:
    """Without the columns that have no value here: in a file with columns every row has all."""
    return {name: value for name, value in row.items() if value is not None}


def _delimiter(line: bytes) -> str | None:
    """What separates the columns, if the line is the header of a CSV or TSV file."""
    with contextlib.suppress(UnicodeDecodeError, csv.Error):
        text = line.decode("utf-8").rstrip("\r\n")
        for delimiter in ("\t", ",", ";"):
            names = next(csv.reader([text], delimiter=delimiter, strict=True), [])
            are_names = all(COLUMN.fullmatch(name) for name in names)
            if len(names) > 1 and are_names and len(set(names)) == len(names):
                return delimiter
    return None


def _csv(path: str, file, delimiter: str) -> Iterator[tuple[str, dict]]:
    """The rows below the header, each with the number of the line that it begins at."""
    csv.field_size_limit(PIECE * 1024)  # the default, 128 KiB, is less than a long conversation
    reader = csv.reader(
        io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter=delimiter, strict=True
    )
    names = _cells(reader, path)
    is_empty = True
    while True:
        where = f"{path}: line {reader.line_num + 1}"
        cells = _cells(reader, where)
        if cells is None:
            break
        if not cells:
            continue
        if len(cells) != len(names):
            raise UserError(
                f"{where}: {len(cells)} cells below a header of {len(names)} columns: "
                "quote the cells that hold a separator, a quote or a line break"
            )
        is_empty = False
        row = {name: _cell(name, text, where) for name, text in zip(names, cells)}
        yield where, _without_none(row)
    if is_empty:
        raise UserError(f"{path}: no row below the header: check that this is the right file")


def _cells(reader, where: str) -> list[str] | None:
    """The next row's cells; None at the end. Raises UserError where it cannot be read."""
    try:
        return next(reader, None)
    except csv.Error as error:
        raise UserError(f"{where}: not valid CSV ({error}): write the file again")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text: convert the file to UTF-8")


def _cell(name: str, text: str, where: str):
    """The value of a cell: CSV has no types but text.

    Numbers are read in the columns that hold rewards, and messages where a cell holds a list of
    dictionaries with roles. Raises UserError where such a list cannot be read.
    """
    if NUMBER_COLUMN.fullmatch(name):
        if not text.strip():
            return None
        with contextlib.suppress(ValueError):
            return int(text)
        with contextlib.suppress(ValueError):
            return float(text)
        return text
    if not text.startswith("[{"):
        return text
    value = _list_in(text)
    if value and all(isinstance(item, dict) and item.keys() & CELL_KEYS for item in value):
        return value
    if value is None and MESSAGES.match(text):
        raise UserError(
            f"{where}: {name!r} begins like a list of messages, and is neither JSON nor Python: "
            "write the file as JSON lines"
        )
    return text


def _list_in(text: str) -> list | None:
    """A list by its JSON, or by its Python as pandas or numpy write it; None for another text."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    for words in (text, text.replace("}\n {", "},\n {")):  # numpy leaves out the commas
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(words)
    return None


# ---- parquet and arrow


def _binary_rows(path: str, file) -> Iterator[dict] | None:
    """The rows of a parquet or arrow file, by its first bytes; None for any other file."""
    begin = file.peek(8)[:8]
    for magic, kind, batches in BINARY:
        if begin.startswith(magic):
            return _checked(path, file, kind, batches)
    return None


def _checked(path: str, file, kind: str, batches) -> Iterator[dict]:
    """The rows of all batches. Raises UserError for a damaged or empty file, or without pyarrow."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: {kind} file, which needs pyarrow to be read: "
            "pip install pyarrow, or save it as JSON lines"
        )
    source = path
    if isinstance(file, gzip.GzipFile):
        source = io.BytesIO(file.read())
    is_empty = True
    try:
        for batch in batches(pyarrow, source):
            for row in batch.to_pylist():
                is_empty = False
                yield _without_none(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a whole {kind.split()[1]} file ({one_line(error)}): fetch it again"
        )
    if is_empty:
        raise UserError(f"{path}: holds no row: check that this is the right file")


def _parquet(pyarrow, source) -> Iterator:
    with pyarrow.parquet.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=BATCH)


def _arrow_stream(pyarrow, source) -> Iterator:
    """What datasets.save_to_disk writes."""
    with pyarrow.ipc.open_stream(_arrow_source(pyarrow, source)) as batches:
        for batch in batches:
            yield from _slices(batch)


def _arrow_file(pyarrow, source) -> Iterator:
    with pyarrow.ipc.open_file(_arrow_source(pyarrow, source)) as file:
        for i in range(file.num_record_batches):
            yield from _slices(file.get_batch(i))


def _arrow_source(pyarrow, source):
    return pyarrow.memory_map(source) if isinstance(source, str) else source


def _slices(batch) -> Iterator:
    for start in range(0, batch.num_rows, BATCH):
        yield batch.slice(start, BATCH)


BINARY = [  # first bytes of a file, what an error message calls it, the reader of its batches
    (b"PAR1", "a parquet", _parquet),
    (b"ARROW1", "an arrow", _arrow_file),
    (b"\xff\xff\xff\xff", "an arrow", _arrow_stream),
]


# ---- writing ---


def fsync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def is_stream(path: str) -> bool:
    """Is it a device or a FIFO? What is written there goes through and cannot be read again.

    Raises UserError for what no file can be written to: a folder, a socket, a disk, a link that
    leads back to itself.
    """
    try:
        mode = os.stat(path).st_mode  # follows links
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot_be_written(path, error.strerror)
    if _descriptor_of(path) is not None or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return True
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISSOCK: "a socket", stat.S_ISBLK: "a disk"}
        kind = next(words for is_one, words in kinds.items() if is_one(mode))
        raise _cannot_be_written(path, f"it is {kind}")
    return False


def _descriptor_of(path: str) -> int | None:
    """The open descriptor that /dev/stdout, /dev/fd/3 or /proc/self/fd/1 stands for, else None."""
    for _ in range(8):  # links that lead to each other
        folder, name = os.path.split(os.path.abspath(path))
        if name.isdigit() and os.path.realpath(folder) in (f"/proc/{os.getpid()}/fd", "/dev/fd"):
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _cannot_be_written(path: str, why: str) -> UserError:
    return UserError(
        f"{path}: cannot be written ({why}): choose another path, or change its permissions"
    )


@contextlib.contextmanager
def atomic_file(path: str, keep: str = ""):
    """A text file that appears at `path` whole, or not at all: temporary file, fsync, rename.

    keep: why a file that is there must not be replaced, "" if it may be: then what differs from it
    in a byte is a UserError with these words.

    A link is followed: the file it names is replaced, the link stays. Devices and FIFOs are written
    through as they are.
    """
    if is_stream(path):
        with _opened_stream(path) as file:
            yield file
        return
    path = os.path.realpath(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and not filecmp.cmp(temporary, path, shallow=False):
            raise UserError(keep)
        if os.path.exists(path):
            shutil.copymode(path, temporary)  # a private file stays private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _opened_stream(path: str):
    descriptor = _descriptor_of(path)
    if descriptor is None:
        return open(path, "w", encoding="utf-8")
    # The same open file: opened by name, a file that stdout was sent to would be cut to nothing.
    sys.stdout.flush()
    return open(os.dup(descriptor), "w", encoding="utf-8")


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
    if is_stream(path):
        if _descriptor_of(path) is None and not os.access(path, os.W_OK):
            raise _cannot_be_written(path, "no permission")
        return
    real = Path(os.path.realpath(path))
    folder = next(parent for parent in real.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise _cannot_be_written(path, f"see {folder}")
    if real.exists() and not os.access(real, os.W_OK):
        raise _cannot_be_written(path, "it is read-only")


def write_json(path: str, value) -> None:
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def write_jsonl(path: str, rows: Iterable, keep: str = "") -> None:
    """One row per line; the rows may come from a generator, and are written as they come."""
    with atomic_file(path, keep) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
