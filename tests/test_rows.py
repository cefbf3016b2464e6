import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, make_prompt

from rmood.errors import UserError
from rmood.files import rows as rows_module
from rmood.files.rows import (
    atomic_file,
    check_writable,
    read_json,
    read_rows,
    write_json,
    write_jsonl,
)
from rmood.files.tables import read_prompts, read_responses, read_rewards


def json_list(rows: list[dict]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def json_lines(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def columns(rows: list[dict]) -> bytes:
    return json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode()


def parquet(rows: list[dict]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    writer.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


CONTAINERS = {
    "JSON": json_list,
    "JSON lines": json_lines,
    "columns": columns,
    "parquet": parquet,
}


# ---- reading ---


@pytest.mark.parametrize("container", ["JSON", "JSON lines", "parquet"])
def test_prompts_responses_and_rewards_come_in_any_container(container, tmp_path):
    rows = []
    for i in range(3):
        row = {"messages": make_prompt(i)}
        row |= {"response_1": "x", "reward_1": 1.5, "response_2": "y", "reward_2": float(i)}
        rows.append(row)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(CONTAINERS[container](rows)))
    assert read_prompts(str(path)) == [make_prompt(i) for i in range(3)]
    assert read_responses(str(path)) == [["x", "y"]] * 3
    assert read_rewards(str(path)) == [[1.5, 0.0], [1.5, 1.0], [1.5, 2.0]]


def test_a_row_is_named_by_its_line_or_its_number(tmp_path):
    path = str(tmp_path / "file")

    def names(content: str) -> list[str]:
        Path(path).write_text(content)
        return [where.removeprefix(f"{path}: ") for where, _ in read_rows(path)]

    assert names('[1, {"a": 2}, "c"]') == ["row 0", "row 1", "row 2"]
    assert names('{"a": 1}\n\n{"a": 2}\n') == ["line 1", "line 3"]  # blank lines are counted
    assert names('{"a": 1}\n') == ["line 1"]
    assert names('{"chosen": [["a"], ["b"]], "rejected": [["c"], ["d"]]}') == ["row 0", "row 1"]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_a_list_is_read_in_pieces_that_end_anywhere(piece, tmp_path, monkeypatch):
    """Within a number, a text, an escape, or right before the comma: the rows are the same."""
    monkeypatch.setattr(rows_module, "PIECE", piece)
    expected = [12345, -1.5e-7, 'a\u2028"b\\', {"c": [1, {"d": None}]}, [], "\U0001f600", True]
    (tmp_path / "file").write_text(json.dumps(expected) + " \n ", encoding="utf-8")
    assert [row for _, row in read_rows(str(tmp_path / "file"))] == expected


@pytest.mark.parametrize("content", ["[1, 2", "[1, 2,]", "[1 2]", "[1, 2] 3", "[]", "[1, 2}"])
def test_what_is_not_a_whole_list_is_refused(content, tmp_path):
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match="not valid JSON at line 1|at least one row"):
        list(read_rows(str(tmp_path / "file")))


@pytest.mark.parametrize(
    "data, expected",
    [
        (gzip.compress(b"[1, 2, 3]" * 99, mtime=0)[:-20], "cut short or damaged"),
        (b"PAR1 and no more", "parquet"),
    ],
)
def test_a_broken_file_is_named(data, expected, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match=expected):
        list(read_rows(str(tmp_path / "file")))


def test_parquet_without_pyarrow_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "file").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="needs pyarrow to be read: pip install pyarrow"):
        list(read_rows(str(tmp_path / "file")))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(str(tmp_path / "latin.json"))


# ---- writing ---


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rewards.json"
    path.write_text("[[1.0, 2.0]]")
    with pytest.raises(ValueError):
        write_json(str(path), [[float("nan"), 1.0]])
    assert read_rewards(str(path)) == [[1.0, 2.0]]
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_fail_on_the_way_leave_no_file(tmp_path):
    def rows():
        yield {"row": 0}
        raise UserError("row 1 is bad")

    with pytest.raises(UserError):
        write_jsonl(str(tmp_path / "rows.jsonl"), rows())
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes_are_removed_and_of_running_ones_kept(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    leftover = tmp_path / f"a.json.tmp-{killed.pid}"
    in_use = tmp_path / f"a.json.tmp-{os.getppid()}"
    of_another_file = tmp_path / f"b.json.tmp-{killed.pid}"
    for path in (leftover, in_use, of_another_file):
        path.write_text("half a li")
    with atomic_file(str(tmp_path / "a.json")) as file:
        file.write("[]")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.json", in_use.name, of_another_file.name}


# ---- devices, FIFOs and links ---


def reader_of(fifo: Path) -> subprocess.Popen:
    os.mkfifo(fifo)
    return subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)


def test_a_fifo_is_written_through_and_stays_a_fifo(tmp_path):
    fifo = tmp_path / "fifo"
    reader = reader_of(fifo)
    check_writable(str(fifo))
    write_json(str(fifo), [1.5])
    assert reader.communicate(timeout=10)[0] == "[\n 1.5\n]\n"
    assert fifo.is_fifo() and list(tmp_path.iterdir()) == [fifo]


def test_a_device_is_written_through():
    check_writable("/dev/null")
    write_json("/dev/null", [1])
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="No space left"):
        write_json("/dev/full", [1])
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to_file", [False, True])
def test_stdout_by_name_is_where_stdout_goes(name, to_file, tmp_path):
    """Also to a file: what was printed before stays, and what is printed afterwards comes last."""
    program = (
        "from rmood.files.rows import check_writable, write_json\n"
        f"print('before'); check_writable({name!r}); write_json({name!r}, 1); print('after')"
    )
    out = tmp_path / "out"
    with open(out, "w") as file:
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdout=file if to_file else subprocess.PIPE,
            text=True,
            check=True,
        )
    assert (out.read_text() if to_file else result.stdout) == "before\n1\nafter\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_stays(exists, tmp_path):
    (tmp_path / "far").mkdir()
    real = tmp_path / "far" / "real.json"
    if exists:
        real.write_text("old")
    (tmp_path / "link.json").symlink_to("far/real.json")
    (tmp_path / "second.json").symlink_to("link.json")
    check_writable(str(tmp_path / "second.json"))
    write_json(str(tmp_path / "second.json"), [1])
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "second.json").is_symlink()
    assert read_json(str(real)) == [1]
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["real.json"]


def a_folder(path: Path):
    path.mkdir()


def a_socket(path: Path):
    socket.socket(socket.AF_UNIX).bind(str(path))


def a_link_to_itself(path: Path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [a_folder, a_socket, a_link_to_itself])
def test_what_cannot_be_written_is_refused_in_one_line(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(Path("target"))
    for write in (check_writable, lambda path: write_json(path, 1)):
        with pytest.raises(UserError, match="target: cannot be written .*: choose another path"):
            write("target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
