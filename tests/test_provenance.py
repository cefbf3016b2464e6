import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, make_prompt

from rmood.cli import opt
from rmood.errors import UserError
from rmood.files import provenance
from rmood.files.provenance import (
    Edit,
    Journal,
    allow_mismatch,
    check_lineage,
    compare_rows,
    content_hash,
    lock,
    read_run_file,
    read_shards,
    sha256,
    shard_of,
    stands_already,
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
    prompts_entry = run["inputs"]["prompts"]
    assert prompts_entry["path"] == prompts and prompts_entry["sha256"] == sha256(prompts)
    assert run["output"]["sha256"] == sha256(target) and run["output"]["rows"] == 1
    assert "template" not in run["inputs"]
    assert run["seed"] == 3 and run["kept"] == 7
    assert {"python", "torch", "numpy"} <= run["versions"].keys()
    assert read_run_file(prompts) is None


# ---- lineage: what was edited, what is another run's ---


@pytest.fixture(autouse=True)
def forget():
    """Notes and --allow-mismatch are of a process: each test is one."""
    yield
    provenance._notes.clear()
    allow_mismatch(False)


def rows_of(count: int) -> list[dict]:
    return [{"messages": make_prompt(i)} for i in range(count)]


@pytest.fixture
def stages(tmp_path) -> dict[str, str]:
    """prompts -> responses -> rewards, 10 rows each, with run files."""
    paths = {
        "prompts": write(tmp_path / "prompts.json", rows_of(10)),
        "responses": write(
            tmp_path / "responses.json", [{"response_1": f"a{i}"} for i in range(10)]
        ),
        "rewards": write(tmp_path / "rewards.json", [[i + 0.5] for i in range(10)]),
    }
    inputs = {role: paths[role] for role in ("prompts", "responses")}
    write_run_file(paths["responses"], Config(), {"prompts": paths["prompts"]})
    write_run_file(paths["rewards"], Config(), inputs)
    return paths


def lineage(stages: dict[str, str], **other: str) -> bool:
    given = stages | other
    return check_lineage(given["rewards"], prompts=given["prompts"], responses=given["responses"])


def change(path: str, function) -> None:
    """function(the rows of the file) are its rows now."""
    with open(path, encoding="utf-8") as file:
        rows = json.load(file)
    write(Path(path), function(rows))


def test_without_a_run_file_nothing_can_be_said(tmp_path):
    assert check_lineage(write(tmp_path / "r.json", ["r"])) is False


def test_the_same_rows_in_another_form_are_the_same_file(stages, tmp_path, capsys):
    """White space, JSON lines, the order of keys, gzip: the content is hashed, not the bytes."""
    rows = json.loads(Path(stages["prompts"]).read_text())
    turned = [[dict(reversed(m.items())) for m in row["messages"]] for row in rows]
    forms = [
        json.dumps(rows, indent=4).encode(),
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
        json.dumps([{"messages": messages} for messages in turned]).encode(),
        gzip.compress(json.dumps(rows).encode()),
    ]
    for form in forms:
        assert form != Path(stages["prompts"]).read_bytes()
        other = tmp_path / "prompts-in-another-form"
        other.write_bytes(form)
        assert content_hash(str(other)) == content_hash(stages["prompts"])
        assert lineage(stages, prompts=str(other)) is True
    change(stages["responses"], lambda rows: rows)
    Path(stages["responses"]).write_text(Path(stages["responses"]).read_text() + "\n")
    assert lineage(stages) is True
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "now, expected",
    [
        ("abcdef", Edit(6, 0, 0, 0, False)),
        ("abdf", Edit(6, 2, 0, 0, False)),
        ("abXdef", Edit(6, 0, 1, 0, False)),
        ("aXf", Edit(6, 3, 1, 0, False)),
        ("abcdefgh", Edit(6, 0, 0, 2, False)),
        ("bacdef", Edit(6, 0, 0, 0, True)),
        ("fbX", Edit(6, 3, 1, 0, True)),
        ("", Edit(6, 6, 0, 0, False)),
    ],
)
def test_rows_removed_changed_added_and_moved_are_told_apart(now, expected):
    assert compare_rows([ord(c) for c in "abcdef"], [ord(c) for c in now]) == expected


def test_equal_rows_are_counted():
    assert compare_rows([1, 1, 1, 2], [1, 2]) == Edit(4, 2, 0, 0, False)
    assert str(compare_rows([1, 2, 3, 4], [1, 9])) == "of 4 rows 2 removed, 1 changed"


def test_an_edited_file_is_a_warning_and_is_recorded(stages, tmp_path, capsys):
    """A researcher drops two rows and repairs one by hand."""

    def edit(rows):
        return [{"response_1": "repaired"}, *rows[1:3], *rows[5:]]

    change(stages["responses"], edit)
    assert check_lineage(stages["responses"], prompts=stages["prompts"]) is True
    assert lineage(stages) is True
    said = capsys.readouterr().err
    assert "responses.json: edited after it was written: of 10 rows 2 removed, 1 changed" in said
    assert "responses.json: edited after" in said and said.count("\n") == 2
    lineage(stages)
    assert capsys.readouterr().err == ""  # said once

    pairs = write(tmp_path / "pairs.jsonl", [1])
    write_run_file(pairs, Config(), {"responses": stages["responses"]})
    run = read_run_file(pairs)
    edited = {"rows": 10, "removed": 2, "changed": 1, "added": 0, "reordered": False}
    assert run["inputs"]["responses"]["edited"] == edited
    assert "of 10 rows 2 removed" in run["lineage"][0]


def test_a_file_without_a_run_file_is_known_by_its_rows(stages, capsys):
    """Prompts come from elsewhere: at least half of the rows in order make it the same table."""
    change(stages["prompts"], lambda rows: rows[:-2])
    assert lineage(stages) is True
    assert "of 10 rows 2 removed" in capsys.readouterr().err
    change(stages["prompts"], lambda rows: rows[:4])
    with pytest.raises(UserError, match="rewards.json: was made from other prompts"):
        lineage(stages)


def test_a_file_of_another_run_is_refused_with_the_flag_that_allows_it(stages, tmp_path, capsys):
    other = write(tmp_path / "other.json", [{"response_1": f"b{i}"} for i in range(10)])
    write_run_file(other, Config(seed=1), {"prompts": stages["prompts"]})
    words = "rewards.json: was made from other responses .*responses.json.*--allow-mismatch"
    with pytest.raises(UserError, match=words):
        lineage(stages, responses=other)
    # Another run's file is another run's, even if most of its rows are the same.
    change(other, lambda rows: [*json.loads(Path(stages["responses"]).read_text())[:9], rows[9]])
    write_run_file(other, Config(seed=1), {"prompts": stages["prompts"]})
    with pytest.raises(UserError, match=words):
        lineage(stages, responses=other)

    allow_mismatch(True)
    assert lineage(stages, responses=other) is True
    assert "warning: " in capsys.readouterr().err
    pairs = write(tmp_path / "pairs.jsonl", [1])
    write_run_file(pairs, Config(), {"responses": other, "rewards": stages["rewards"]})
    assert "allowed by --allow-mismatch" in read_run_file(pairs)["lineage"][0]


def test_rows_in_another_order_are_no_longer_beside_theirs(stages, capsys):
    change(stages["rewards"], lambda rows: rows[::-1])
    with pytest.raises(UserError, match="another order.*put them back"):
        lineage(stages)
    assert check_lineage(stages["rewards"]) is True  # alone its order does not matter
    assert "rows in another order" in capsys.readouterr().err
    change(stages["rewards"], lambda rows: rows[::-1])
    change(stages["responses"], lambda rows: rows[::-1])
    with pytest.raises(UserError, match="was made from other responses"):
        lineage(stages)


def test_a_moved_dataset_still_finds_its_parts(stages, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in [*stages.values(), f"{stages['rewards']}.run.json"]:
        shutil.move(path, moved)
    run = read_run_file(str(moved / "rewards.json"))
    assert run["inputs"]["responses"]["path"] == str(moved / "responses.json")
    (moved / "prompts.json").unlink()
    gone = read_run_file(str(moved / "rewards.json"))["inputs"]["prompts"]["path"]
    assert gone == stages["prompts"]  # where it was
    other = write(tmp_path / "other.json", ["q"])
    with pytest.raises(UserError, match="prompts.json, which is no longer there"):
        check_lineage(str(moved / "rewards.json"), prompts=other)


def test_run_files_of_older_versions_are_read(stages, tmp_path, capsys):
    """They have hashes of bytes alone, and paths as they were given."""
    old = {
        "inputs": {"prompts": {"path": stages["prompts"], "sha256": sha256(stages["prompts"])}},
        "output": {"path": stages["rewards"], "sha256": sha256(stages["rewards"])},
    }
    write(Path(f"{stages['rewards']}.run.json"), old)
    assert check_lineage(stages["rewards"], prompts=stages["prompts"]) is True
    with pytest.raises(UserError, match="was made from other prompts"):
        check_lineage(stages["rewards"], prompts=stages["responses"])
    assert capsys.readouterr().err == ""
    change(stages["rewards"], lambda rows: rows[1:])
    assert check_lineage(stages["rewards"], prompts=stages["prompts"]) is True
    assert "what changed is not known" in capsys.readouterr().err


def test_a_finished_file_stands_for_its_work_alone(stages):
    prompts = {"prompts": stages["prompts"]}
    work = {"seed": 1, "prompts": content_hash(stages["prompts"])}

    def stands(work, overwrite=False) -> bool:
        return stands_already(stages["rewards"], work, prompts, overwrite)

    with pytest.raises(UserError, match="no run file says how it was made: .*--overwrite"):
        stands(work)
    write_run_file(stages["rewards"], Config(), prompts, work=work)
    assert stands(work) and stands(work, overwrite=True)
    assert stands_already("none.json", work, prompts, False) is False
    with pytest.raises(UserError, match=r"with other seed \(1, now 2\)"):
        stands(work | {"seed": 2})
    assert stands(work | {"seed": 2}, overwrite=True) is False
    # The run file of an older version has the hash of the bytes.
    older = work | {"prompts": sha256(stages["prompts"])}
    write_run_file(stages["rewards"], Config(), prompts, work=older)
    assert stands(work)
    Journal(stages["rewards"], {"seed": 3}).add({0: 1})
    assert stands({"seed": 3}) is False  # what is begun already may go on


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
