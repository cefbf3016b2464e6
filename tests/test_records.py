import json

import pytest
from conftest import make_pairs, make_prompt

from rmood import BadInput, records


def write(path, value) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_both_forms_of_a_rewards_file_say_the_same(tmp_path):
    plain = write(tmp_path / "a.json", [[1.5, -2], [0, 3.25]])
    rows = [{"messages": make_prompt(i), "response_1": "x", "reward_1": a, "response_2": "y", "reward_2": b} for i, (a, b) in enumerate([(1.5, -2), (0, 3.25)])]
    assert records.read_rewards(plain) == records.read_rewards(write(tmp_path / "b.json", rows)) == [[1.5, -2.0], [0.0, 3.25]]
    assert records.read_records(plain) is None
    assert records.read_records(str(tmp_path / "b.json"))[1] == [["x", "y"]] * 2


def test_both_forms_of_a_pairs_file_say_the_same(tmp_path):
    rows = make_pairs(3)
    lines, columns = str(tmp_path / "a.jsonl"), {key: [row[key] for row in rows] for key in rows[0]}
    records.write_jsonl(lines, rows)
    pairs = records.read_pairs(lines)
    assert pairs == records.read_pairs(write(tmp_path / "b.json", columns)) == records.read_pairs(write(tmp_path / "c.json", json.dumps(columns, indent=2)))
    assert (pairs[2].index, pairs[2].chosen_reward, pairs[2].rejected_reward) == (2, 3.0, -1.0)


def test_a_text_may_hold_any_character(tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines, not for JSONL."""
    row = make_pairs(1)[0]
    row["chosen"][-1]["content"] = 'a\u2028b\u0085c\n"d"\x00 \U0001f600'
    records.write_jsonl(str(tmp_path / "a.jsonl"), [row])
    assert records.read_pairs(str(tmp_path / "a.jsonl"))[0].chosen[-1]["content"] == row["chosen"][-1]["content"]


USER = [{"role": "user", "content": "hi"}]
BAD = {
    "missing": (records.read_prompts, None, "no such file"),
    "empty": (records.read_prompts, "", "the file is empty"),
    "not json": (records.read_prompts, "[{", "not valid JSON at line 1"),
    "not a list": (records.read_prompts, '"messages"', "expected a JSON list"),
    "one row alone": (records.read_prompts, {"message": USER}, "line 1 has no 'messages'"),
    "no rows": (records.read_prompts, [], "at least one row"),
    "no messages": (records.read_prompts, [{"messages": USER}, {"message": USER}], "row 1 has no 'messages'"),
    "unknown role": (records.read_prompts, [{"messages": [{"role": "bot", "content": ""}]}], "row 0: unknown role 'bot'"),
    "no user turn": (records.read_prompts, [{"messages": [{"role": "system", "content": ""}]}], "row 0: no user turn"),
    "content not text": (records.read_prompts, [{"messages": [{"role": "user", "content": 3}]}], "row 0: a message needs"),
    "prompt with its answer": (records.read_prompts, [{"messages": USER + [{"role": "assistant", "content": "x"}]}], "ends with an assistant turn"),
    "response missing": (records.read_responses, [{"response_1": "a", "response_2": "b"}, {"response_1": "a"}], "row 1 has 1 entries, row 0 has 2"),
    "responses misnumbered": (records.read_responses, [{"response_1": "a", "response_3": "b"}], "without a gap"),
    "response not text": (records.read_responses, [{"response_1": "a", "response_2": None}], "row 0: 'response' of the wrong type"),
    "reward nan": (records.read_rewards, "[[1.0, 2.0], [NaN, 1.0]]", "row 1 has the reward nan"),
    "reward inf": (records.read_rewards, "[[1.0, Infinity]]", "row 0 has the reward inf"),
    "reward text": (records.read_rewards, [["1.0", 2.0]], "row 0 has the reward '1.0'"),
    "reward null": (records.read_rewards, [[None, 2.0]], "row 0 has the reward None"),
    "reward bool": (records.read_rewards, [[True, 2.0]], "row 0 has the reward True"),
    "reward alone": (records.read_rewards, [1.0, 2.0], "row 0 is neither"),
    "pair without rejected": (records.read_pairs, json.dumps({"chosen": USER}) + "\n", "line 1: a pair needs"),
    "pair without an answer": (records.read_pairs, json.dumps({"chosen": USER, "rejected": USER}) + "\n", "line 1, chosen: the last turn"),
    "pair cut short": (records.read_pairs, json.dumps(make_pairs(1)[0]) + '\n{"chosen": [', "line 2: not valid JSON"),
    "columns of two lengths": (records.read_pairs, {"chosen": [USER, USER], "rejected": [USER]}, "different lengths"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_by_a_letter_that_names_the_row(case, tmp_path):
    read, content, expected = BAD[case]
    path = str(tmp_path / "file.json") if content is None else write(tmp_path / "file.json", content)
    with pytest.raises(BadInput) as letter:
        read(path)
    assert expected in str(letter.value) and path in str(letter.value) and "\n" not in str(letter.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(BadInput, match="not UTF-8"):
        records.read_json(str(tmp_path / "latin.json"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "rewards.json", [[1.0, 2.0]])
    with pytest.raises(ValueError):
        records.write_json(path, [[float("nan"), 1.0]])
    assert records.read_rewards(path) == [[1.0, 2.0]] and list(tmp_path.iterdir()) == [tmp_path / "rewards.json"]


def test_the_journal_keeps_whole_lines_of_all_processes_and_refuses_other_work(tmp_path):
    target = str(tmp_path / "out.json")
    for rank, entries in enumerate([{0: [1.0], 2: [3.0]}, {1: [2.0]}]):
        records.Journal(target, {"seed": 1}, rank).add(entries)
    with open(f"{target}.journal-1", "ab") as file:
        file.write(b'[5, [9.')  # the process was killed while it wrote this
    journal = records.Journal(target, {"seed": 1})
    assert journal.done == {0: [1.0], 1: [2.0], 2: [3.0]}
    with pytest.raises(BadInput, match="unfinished work with other settings"):
        records.Journal(target, {"seed": 2})
    journal.delete(target)
    assert list(tmp_path.iterdir()) == []


def shards(tmp_path, rows_of_shards: list[list[int]], work=lambda number: {"seed": 0}):
    """Shards of out.json by hand: shard i holds these rows of 6."""
    from label import Config

    prompts = write(tmp_path / "prompts.json", [{"messages": make_prompt(i)} for i in range(6)])
    config = Config(target_path=str(tmp_path / "out.json"), prompts_path=prompts)
    for number, rows in enumerate(rows_of_shards, 1):
        path, share = records.shard_of(config.target_path, f"{number}/{len(rows_of_shards)}", 6)
        records.write_shard(path, {row: [float(row), -1.0] for row in rows})
        records.write_run_file(path, config, {"prompts": prompts}, work=work(number))
    return config


def test_shards_deal_out_all_work_once():
    shares = [records.shard_of("out.json", f"{number}/4", 10) for number in range(1, 5)]
    assert sum((list(range(10))[share] for _, share in shares), []) == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    assert shares[2][0] == "out.json.shard-3-of-4" and records.shard_of("out.json", "", 10) == ("out.json", slice(None))


@pytest.mark.parametrize("shard", ["0/4", "5/4", "3", "3/", "a/b", "-1/4", "11/11", "merge?"])
def test_an_impossible_shard_is_refused(shard):
    with pytest.raises(BadInput, match="say 3/16 for the third of 16"):
        records.shard_of("out.json", shard, 10)


def test_whole_shards_are_merged_in_the_order_of_the_rows(tmp_path):
    config = shards(tmp_path, [[4, 1], [2, 5], [0, 3]])
    merged, run, rows = records.read_shards(config, 6, prompts=config.prompts_path)
    assert rows == [[float(row), -1.0] for row in range(6)] and run["work"] == {"seed": 0} and merged == config


BROKEN = {
    "a gap": (lambda path: shards(path, [[4, 1], [2], [0, 3]]), "1 of 6 rows are in no shard, the first is row 5"),
    "an overlap": (lambda path: shards(path, [[4, 1], [2, 5, 1], [0, 3]]), "out.json.shard-2-of-3: line 3: row 1 is in another shard too"),
    "two runs": (lambda path: shards(path, [[4, 1], [2, 5], [0, 3]], work=lambda number: {"seed": number // 3}), "shard-3-of-3: made with other settings or inputs than"),
    "two splits": (lambda path: [shards(path, [[4, 1, 2, 5, 0, 3]]), shards(path, [[4, 1], [2, 5], [0, 3]])][1], "shards of 1 and of 3 lie beside it"),
    "no shards": (lambda path: shards(path, []), "no shards lie beside it"),
    "a shard without its run file": (lambda path: [shards(path, [[4, 1, 2], [5, 0, 3]]), (path / "out.json.shard-2-of-2.run.json").unlink()][0], "shard-2-of-2: no run file beside it"),
    "a missing shard": (lambda path: [shards(path, [[4, 1, 2], [5, 0, 3]]), (path / "out.json.shard-1-of-2").unlink()][0], "shard-1-of-2: missing, and with it 1 of 2 shards"),
    "a shard changed by hand": (lambda path: [shards(path, [[4, 1, 2], [5, 0, 3]]), write(path / "out.json.shard-2-of-2", "[5, [1.0, 1.0]]\n")][0], "changed after it was written"),
    "other prompts": (lambda path: [shards(path, [[4, 1, 2], [5, 0, 3]]), write(path / "prompts.json", [1])][0], "was made from other prompts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_shards_that_are_not_one_whole_are_refused(case, tmp_path):
    config = BROKEN[case][0](tmp_path)
    with pytest.raises(BadInput) as letter:
        records.read_shards(config, 6, prompts=config.prompts_path)
    assert BROKEN[case][1] in str(letter.value) and "\n" not in str(letter.value)


def test_lineage_tells_whether_files_belong_together(tmp_path):
    from rmood.config import complete
    from preprocess import Config

    prompts, other, responses = (write(tmp_path / name, [name]) for name in ("p.json", "q.json", "r.json"))
    assert records.check_lineage(responses, prompts=prompts) is False  # no run file: nothing can be said
    records.write_run_file(responses, complete(Config()), {"prompts": prompts})
    assert records.check_lineage(responses, prompts=prompts) is True
    with pytest.raises(BadInput, match="made from other prompts"):
        records.check_lineage(responses, prompts=other)
    write(tmp_path / "r.json", ["edited"])
    with pytest.raises(BadInput, match="changed after it was written"):
        records.check_lineage(responses, prompts=prompts)
