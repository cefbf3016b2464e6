import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from conftest import REPOSITORY, make_prompt

from rmood.cli import opt
from rmood.errors import UserError
from rmood.files.provenance import (
    Journal,
    check_lineage,
    lock,
    read_run_file,
    read_shards,
    sha256,
    shard_of,
    write_run_file,
    write_shard,
)


@dataclass(frozen=True)
class Config:
    prompts_path: str = opt("", "prompts")
    target_path: str = opt("", "results")
    seed: int = opt(3, "seed")
    shard: str = opt("", "share")


def write(path, value) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


# ---- run files ---


def test_a_run_file_says_how_its_file_was_made(tmp_path):
    prompts = write(tmp_path / "p.json", ["p"])
    target = write(tmp_path / "t.json", ["t"])
    config = Config(prompts_path=prompts)
    write_run_file(target, config, {"prompts": prompts, "template": ""}, kept=7)
    run = read_run_file(target)
    assert run["config"] == {
        "prompts_path": prompts,
        "target_path": "",
        "seed": 3,
        "shard": "",
    }
    assert run["inputs"] == {"prompts": {"path": prompts, "sha256": sha256(prompts)}}
    assert run["output"] == {"path": target, "sha256": sha256(target)}
    assert run["seed"] == 3 and run["kept"] == 7
    assert {"python", "torch", "numpy"} <= run["versions"].keys()
    assert read_run_file(prompts) is None


def test_lineage_tells_whether_files_belong_together(tmp_path):
    prompts = write(tmp_path / "p.json", ["p"])
    other = write(tmp_path / "q.json", ["q"])
    responses = write(tmp_path / "r.json", ["r"])
    assert check_lineage(responses, prompts=prompts) is False  # no run file: nothing can be said
    write_run_file(responses, Config(), {"prompts": prompts})
    assert check_lineage(responses, prompts=prompts) is True
    with pytest.raises(UserError, match="made from other prompts"):
        check_lineage(responses, prompts=other)
    write(tmp_path / "r.json", ["edited"])
    with pytest.raises(UserError, match="changed after it was written"):
        check_lineage(responses, prompts=prompts)


# ---- locks and journals ---


def test_one_process_alone_may_write(tmp_path):
    """The lock holds until the process ends, and the process that has it may ask again."""
    path = write(tmp_path / "a.json", [])
    lock(path)
    lock(path)
    program = f"from rmood.files.provenance import lock; lock({path!r})"
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert f"UserError: {path}: another run is writing there" in other.stderr


def test_the_journal_keeps_whole_lines_of_all_processes_and_refuses_other_work(tmp_path):
    target = str(tmp_path / "out.json")
    for rank, entries in enumerate([{0: [1.0], 2: [3.0]}, {1: [2.0]}]):
        Journal(target, {"seed": 1}, rank).add(entries)
    with open(f"{target}.journal-1", "ab") as file:
        file.write(b"[5, [9.")  # the process was killed while it wrote this
    journal = Journal(target, {"seed": 1})
    assert journal.done == {0: [1.0], 1: [2.0], 2: [3.0]}
    with pytest.raises(UserError, match="unfinished work with other settings"):
        Journal(target, {"seed": 2})
    journal.delete(target)
    assert list(tmp_path.iterdir()) == []


# ---- shards ---


def test_shards_share_out_all_rows_once():
    shares = [shard_of("out.json", f"{number}/4", 10) for number in range(1, 5)]
    rows = [list(range(10))[share] for _, share in shares]
    assert rows == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert shares[2][0] == "out.json.shard-3-of-4"
    assert shard_of("out.json", "", 10) == ("out.json", slice(None))


@pytest.mark.parametrize("shard", ["0/4", "5/4", "3", "3/", "a/b", "-1/4", "11/11", "merge?"])
def test_an_impossible_shard_is_refused(shard):
    with pytest.raises(UserError, match="say 3/16 for the third of 16"):
        shard_of("out.json", shard, 10)


def write_shards(
    folder, rows_of_shards: list[list[int]], work_of_shards: list[dict] | None = None
) -> Config:
    """Shards of out.json by hand, of 6 rows together: shard i holds these rows."""
    prompts = write(folder / "prompts.json", [{"messages": make_prompt(i)} for i in range(6)])
    config = Config(target_path=str(folder / "out.json"), prompts_path=prompts)
    for i, rows in enumerate(rows_of_shards):
        path, _ = shard_of(config.target_path, f"{i + 1}/{len(rows_of_shards)}", 6)
        write_shard(path, {row: [float(row), -1.0] for row in rows})
        work = work_of_shards[i] if work_of_shards else {"seed": 0}
        write_run_file(path, config, {"prompts": prompts}, work=work)
    return config


def test_whole_shards_are_merged_in_the_order_of_the_rows(tmp_path):
    config = write_shards(tmp_path, [[4, 1], [2, 5], [0, 3]])
    merged, facts, rows = read_shards(config, 6, prompts=config.prompts_path)
    assert rows == [[float(row), -1.0] for row in range(6)]
    assert facts["work"] == {"seed": 0}
    assert merged == config


def a_gap(folder):
    return write_shards(folder, [[4, 1], [2], [0, 3]])


def an_overlap(folder):
    return write_shards(folder, [[4, 1], [2, 5, 1], [0, 3]])


def two_runs(folder):
    return write_shards(folder, [[4, 1], [2, 5], [0, 3]], [{"seed": 0}, {"seed": 0}, {"seed": 1}])


def two_splits(folder):
    write_shards(folder, [[4, 1, 2, 5, 0, 3]])
    return write_shards(folder, [[4, 1], [2, 5], [0, 3]])


def no_shards(folder):
    return write_shards(folder, [])


def no_run_file(folder):
    config = write_shards(folder, [[4, 1, 2], [5, 0, 3]])
    (folder / "out.json.shard-2-of-2.run.json").unlink()
    return config


def a_missing_shard(folder):
    config = write_shards(folder, [[4, 1, 2], [5, 0, 3]])
    (folder / "out.json.shard-1-of-2").unlink()
    return config


def a_shard_changed_by_hand(folder):
    config = write_shards(folder, [[4, 1, 2], [5, 0, 3]])
    write(folder / "out.json.shard-2-of-2", [5, [1.0, 1.0]])
    return config


def other_prompts(folder):
    config = write_shards(folder, [[4, 1, 2], [5, 0, 3]])
    write(folder / "prompts.json", [1])
    return config


@pytest.mark.parametrize(
    "break_them, expected",
    [
        (a_gap, "1 of 6 rows are in no shard, the first is row 5"),
        (an_overlap, "out.json.shard-2-of-3: line 3: row 1 is in another shard too"),
        (two_runs, "shard-3-of-3: made with other settings or inputs than"),
        (two_splits, "shards of 1 and of 3 are beside it"),
        (no_shards, "no shards are beside it"),
        (no_run_file, "shard-2-of-2: no run file beside it"),
        (a_missing_shard, "shard-1-of-2: missing, and with it 1 of 2 shards"),
        (a_shard_changed_by_hand, "changed after it was written"),
        (other_prompts, "was made from other prompts"),
    ],
)
def test_shards_that_do_not_make_a_whole_are_refused(break_them, expected, tmp_path):
    config = break_them(tmp_path)
    with pytest.raises(UserError) as raised:
        read_shards(config, 6, prompts=config.prompts_path)
    assert expected in str(raised.value) and "\n" not in str(raised.value)
