import csv
import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from conftest import make_pairs, make_prompt
from test_rows import CONTAINERS

from rmood.errors import UserError
from rmood.files.rows import read_rows, write_jsonl
from rmood.files.tables import (
    Conversation,
    Message,
    Pair,
    check_rows,
    check_same_shape,
    describe_columns,
    describe_pairs,
    local_path,
    mix_in,
    read_pairs,
    read_prompts,
    read_records,
    read_responses,
    read_rewards,
    split_weight,
)
from rmood.pairset import hold_out


def write(path, value) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


# ---- prompts, responses, rewards ---


def test_both_forms_of_a_rewards_file_say_the_same(tmp_path):
    rewards = [(1.5, -2), (0, 3.25)]
    records = []
    for i, (first, second) in enumerate(rewards):
        record = {"messages": make_prompt(i)}
        record |= {"response_1": "x", "reward_1": first, "response_2": "y", "reward_2": second}
        records.append(record)
    plain = write(tmp_path / "a.json", rewards)
    recorded = write(tmp_path / "b.json", records)
    assert read_rewards(plain) == read_rewards(recorded) == [[1.5, -2.0], [0.0, 3.25]]
    assert read_records(plain) is None
    assert read_records(recorded) == ([make_prompt(0), make_prompt(1)], [["x", "y"]] * 2)


BAD = {
    "missing": (read_prompts, None, "no such file"),
    "empty": (read_prompts, "", "the file is empty"),
    "not json": (read_prompts, "[{", "not valid JSON at line 1"),
    "not a list": (read_prompts, '"messages"', "expected a JSON list"),
    "one row alone": (
        read_prompts,
        {"message": [user("hi")]},
        "line 1 has no 'messages'",
    ),
    "no rows": (read_prompts, [], "at least one row"),
    "no messages": (
        read_prompts,
        [{"messages": [user("hi")]}, {"message": [user("hi")]}],
        "row 1 has no 'messages'",
    ),
    "unknown role": (
        read_prompts,
        [{"messages": [{"role": "narrator", "content": ""}]}],
        "row 0: unknown role 'narrator'",
    ),
    "no user turn": (
        read_prompts,
        [{"messages": [{"role": "system", "content": ""}]}],
        "row 0: no user turn",
    ),
    "content not text": (
        read_prompts,
        [{"messages": [{"role": "user", "content": 3}]}],
        "row 0: a message needs",
    ),
    "prompt with its answer": (
        read_prompts,
        [{"messages": [user("hi"), assistant("x")]}],
        "ends with an assistant turn",
    ),
    "response missing": (
        read_responses,
        [{"response_1": "a", "response_2": "b"}, {"response_1": "a"}],
        "row 1 has 1 entries, row 0 has 2",
    ),
    "responses misnumbered": (
        read_responses,
        [{"response_1": "a", "response_3": "b"}],
        "without a gap",
    ),
    "response not text": (
        read_responses,
        [{"response_1": "a", "response_2": None}],
        "row 0: 'response' of the wrong type",
    ),
    "reward nan": (read_rewards, "[[1.0, 2.0], [NaN, 1.0]]", "row 1 has the reward nan"),
    "reward inf": (read_rewards, "[[1.0, Infinity]]", "row 0 has the reward inf"),
    "reward text": (read_rewards, [["1.0", 2.0]], "row 0 has the reward '1.0'"),
    "reward null": (read_rewards, [[None, 2.0]], "row 0 has the reward None"),
    "reward bool": (read_rewards, [[True, 2.0]], "row 0 has the reward True"),
    "reward alone": (read_rewards, [1.0, 2.0], "row 0 is neither"),
    "reward of a record not a number": (
        read_rewards,
        [{"reward_1": 1.0, "reward_2": "2"}],
        "row 0: 'reward' of the wrong type (str)",
    ),
    "pair without rejected": (
        read_pairs,
        json.dumps({"chosen": [user("hi")]}) + "\n",
        "line 1: a pair needs",
    ),
    "pair without an answer": (
        read_pairs,
        json.dumps({"chosen": [user("hi")], "rejected": [user("hi")]}) + "\n",
        "line 1, chosen: the last turn",
    ),
    "pair cut short": (
        read_pairs,
        json.dumps(make_pairs(1)[0]) + '\n{"chosen": [',
        "line 2: not valid JSON",
    ),
    "columns of two lengths": (
        read_pairs,
        {"chosen": [[user("hi")], [user("hi")]], "rejected": [[user("hi")]]},
        "different lengths",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_an_error_that_names_the_row(case, tmp_path):
    read, content, expected = BAD[case]
    path = tmp_path / "file.json"
    if content is not None:
        write(path, content)
    with pytest.raises(UserError) as raised:
        read(str(path))
    message = str(raised.value)
    assert expected in message and str(path) in message and "\n" not in message


def test_files_with_other_numbers_of_rows_or_entries_do_not_match():
    check_rows("a.json", [1, 2], "prompts", [3, 4], "b.json")
    with pytest.raises(UserError) as raised:
        check_rows("a.json", [1] * 1000, "prompts", [2] * 1001, "b.json", "rerun sample.py")
    assert str(raised.value) == (
        "a.json: 1,000 rows for 1,001 prompts (b.json): rerun sample.py, or pass the matching file"
    )
    check_same_shape("a.json", [[1, 2]], "b.json", [["x", "y"]])
    with pytest.raises(UserError) as raised:
        check_same_shape("a.json", [[1, 2]], "b.json", [[1, 2], [3, 4]])
    assert str(raised.value) == "a.json: 1 rows for 2 rows (b.json): pass the matching file"
    with pytest.raises(UserError) as raised:
        check_same_shape("a.json", [[1, 2, 3]], "b.json", [[1, 2]])
    assert str(raised.value) == "a.json: 3 entries per row, but 2 in b.json: pass the matching file"


# ---- pairs ---


def conversations(i: int) -> dict:
    return {
        "chosen": [user(f"q{i}"), assistant("yes")],
        "rejected": [user(f"q{i}"), assistant("no")],
    }


def explicit_messages(i: int) -> dict:
    return {
        "prompt": [user(f"q{i}")],
        "chosen": [assistant("yes")],
        "rejected": [assistant("no")],
    }


def explicit_texts(i: int) -> dict:
    return {"prompt": f"q{i}", "chosen": "yes", "rejected": "no"}


def implicit_texts(i: int) -> dict:
    return {"chosen": f"q{i} yes", "rejected": f"q{i} no"}


def dialogues(i: int) -> dict:
    start = f"\n\nHuman: q{i}\n\nAssistant:"
    return {"chosen": f"{start} yes", "rejected": f"{start} no"}


def ultrafeedback(i: int) -> dict:
    scores = {"score_chosen": 8.5 + i, "score_rejected": 7.0}
    return {"prompt": f"q{i}", "prompt_id": "4f", "messages": []} | conversations(i) | scores


FORMS = {  # name as printed -> row i of a file: it asks qi and prefers "yes" to "no"
    "conversations": conversations,
    "prompts and answers in messages (TRL, explicit prompt)": explicit_messages,
    "prompts and answers in plain text (TRL, explicit prompt)": explicit_texts,
    "plain texts, the words both begin with as the prompt (TRL, implicit prompt)": implicit_texts,
    "Anthropic HH dialogues": dialogues,
    "UltraFeedback, binarized": ultrafeedback,
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_container_holds_the_same_pairs(
    form, container, zipped, tmp_path, capfd
):
    data = CONTAINERS[container]([FORMS[form](i) for i in range(2)])
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    pairs = read_pairs(str(path))
    assert [pair.chosen for pair in pairs] == [
        [user("q0"), assistant("yes")],
        [user("q1"), assistant("yes")],
    ]
    assert [pair.rejected for pair in pairs] == [
        [user("q0"), assistant("no")],
        [user("q1"), assistant("no")],
    ]
    gold = [(pair.chosen_reward, pair.rejected_reward) for pair in pairs]
    if form == "UltraFeedback, binarized":
        assert gold == [(8.5, 7.0), (9.5, 7.0)]
    else:
        assert gold == [(None, None), (None, None)]
    ignored = "; ignored columns: prompt_id, messages" if form.startswith("UltraFeedback") else ""
    assert describe_pairs(str(path), pairs) == f"{path}: 2 pairs, read as {form}{ignored}"
    assert capfd.readouterr() == ("", "")  # a reader does not print


def test_both_forms_of_our_pairs_file_say_the_same(tmp_path):
    rows = make_pairs(3)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    lines = str(tmp_path / "a.jsonl")
    write_jsonl(lines, rows)
    pairs = read_pairs(lines)
    assert pairs == read_pairs(write(tmp_path / "b.json", columns))
    assert pairs == read_pairs(write(tmp_path / "c.json", json.dumps(columns, indent=2)))
    gold = [(pair.index, pair.chosen_reward, pair.rejected_reward) for pair in pairs]
    assert gold == [(0, 1.0, -1.0), (1, 2.0, -1.0), (2, 3.0, -1.0)]


def test_a_pair_names_its_row_of_the_file(tmp_path):
    """Also once others were dropped. Two equal pairs are equal, wherever they were read."""
    row = json.dumps(make_pairs(1)[0])
    path = write(tmp_path / "pairs.jsonl", f"{row}\n\n{row}\n")
    pairs = read_pairs(path)
    assert [pair.where for pair in pairs] == [f"{path}: line 1", f"{path}: line 3"]
    assert pairs[0] == pairs[1]


def test_a_prompt_that_both_sides_share_is_in_memory_once(tmp_path):
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, make_pairs(1))
    (pair,) = read_pairs(path)
    assert len(pair.chosen) == 3
    assert all(a is b for a, b in zip(pair.chosen[:-1], pair.rejected[:-1]))


def test_a_text_may_hold_any_character(tmp_path):
    """U+2028 and U+0085 end a line for str.splitlines, not for JSONL."""
    text = 'a\u2028b\u0085c\n"d"\x00 \U0001f600'
    row = make_pairs(1)[0]
    row["chosen"][-1]["content"] = text
    write_jsonl(str(tmp_path / "a.jsonl"), [row])
    (pair,) = read_pairs(str(tmp_path / "a.jsonl"))
    assert pair.chosen[-1]["content"] == text


def read(tmp_path, *rows: dict) -> list[Pair]:
    return read_pairs(write(tmp_path / "pairs.jsonl", "\n".join(map(json.dumps, rows))))


def test_a_dialogue_keeps_all_its_turns(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is\n\nrain?\n\nAssistant:"
    good = " Water."
    bad = " I can't say.\n\nSorry."
    whole = read(tmp_path, {"chosen": start + good, "rejected": start + bad})
    assert whole == read(tmp_path, {"prompt": start, "chosen": good, "rejected": bad})
    beginning: Conversation = [user("Hi"), assistant("Hello!"), user("What is\n\nrain?")]
    assert whole[0].chosen == [*beginning, assistant("Water.")]
    assert whole[0].rejected == [*beginning, assistant("I can't say.\n\nSorry.")]


@pytest.mark.parametrize("space", [" ", "\n", "  ", " \n"])
def test_a_shared_beginning_ends_between_words(space, tmp_path):
    row = {"chosen": f"The sky is{space}blue.", "rejected": f"The sky is{space}black."}
    (pair,) = read(tmp_path, row)
    assert pair.chosen == [user("The sky is"), assistant("blue.")]
    assert pair.rejected == [user("The sky is"), assistant("black.")]


BAD_PAIRS = {
    "two forms": (
        [ultrafeedback(0), conversations(1)],
        "line 2: conversations, but the rows before are UltraFeedback, binarized: split the file",
    ),
    "text and messages": (
        [{"chosen": "a", "rejected": [assistant("b")]}],
        "line 1: a pair needs 'chosen' and 'rejected'",
    ),
    "nothing in common": ([{"chosen": "yes", "rejected": "no"}], "line 1: a pair needs"),
    "no rejected": ([conversations(0), {"chosen": [user("q")]}], "line 2: a pair needs"),
    "messages made text": (
        [{"chosen": "[{'role': 'user', ...", "rejected": "[{'role': 'user', ..."}],
        "line 1: a pair needs 'chosen' and 'rejected'",
    ),
    "no answer": ([{"chosen": [], "rejected": []}], "line 1, chosen: 'messages' must be a list"),
    "the prompt twice": ([{"prompt": [user("q")]} | conversations(0)], "line 1: a pair needs"),
    "a user has the last word": (
        [
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "\n\nHuman: a\n\nAssistant: d",
            }
        ],
        "line 1, chosen: the last turn must be the assistant's",
    ),
    "score of text": (
        [conversations(0) | {"score_chosen": "high"}],
        "line 1: chosen_reward is 'high'",
    ),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_of_no_form_or_of_two_are_refused(case, tmp_path):
    rows, expected = BAD_PAIRS[case]
    with pytest.raises(UserError) as raised:
        read(tmp_path, *rows)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


# ---- other people's files ---


def as_table(rows: list[dict], delimiter: str) -> bytes:
    """CSV or TSV with a header; lists as JSON."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerow(rows[0])
    for row in rows:
        cells = [json.dumps(v) if isinstance(v, list) else v for v in row.values()]
        writer.writerow(cells)
    return sink.getvalue().encode()


def arrow_stream(rows: list[dict]) -> bytes:
    """As datasets.save_to_disk writes them: a schema, then batches of rows."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def arrow_file(rows: list[dict]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def json_lines(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


MORE_CONTAINERS = {
    "CSV": lambda rows: as_table(rows, ","),
    "TSV": lambda rows: as_table(rows, "\t"),
    "semicolons": lambda rows: as_table(rows, ";"),
    "arrow stream": arrow_stream,
    "arrow file": arrow_file,
    "JSON lines": json_lines,
}
HARD = 'a "quote", a comma;\na line\tand \U0001f600'


@pytest.mark.parametrize("form", ["conversations", "UltraFeedback, binarized", "plain"])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("container", MORE_CONTAINERS)
def test_pairs_in_tables_and_arrow_are_those_of_json(container, zipped, form, tmp_path):
    make = FORMS.get(form, explicit_texts)
    rows = [make(i) for i in range(5)]
    rows[3] = json.loads(json.dumps(rows[3]).replace("yes", json.dumps(HARD)[1:-1]))
    (tmp_path / "json").write_text("\n".join(map(json.dumps, rows)))
    data = MORE_CONTAINERS[container](rows)
    (tmp_path / "file").write_bytes(gzip.compress(data) if zipped else data)
    pairs = read_pairs(str(tmp_path / "file"))
    assert pairs == read_pairs(str(tmp_path / "json"))
    assert pairs[3].chosen[-1]["content"] == HARD and pairs[4].chosen[0]["content"] == "q4"


@pytest.mark.parametrize("container", MORE_CONTAINERS)
def test_a_byte_order_mark_is_read_over(container, tmp_path):
    data = MORE_CONTAINERS[container]([explicit_texts(i) for i in range(2)])
    if container.startswith("arrow"):
        pytest.skip("no text")
    for content in (b"\xef\xbb\xbf" + data, gzip.compress(b"\xef\xbb\xbf" + data)):
        (tmp_path / "file").write_bytes(content)
        assert [pair.chosen[0]["content"] for pair in read_pairs(str(tmp_path / "file"))] == [
            "q0",
            "q1",
        ]
    prompts = json.dumps([{"messages": make_prompt(0)}], indent=1)
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + prompts.encode())
    assert read_prompts(str(tmp_path / "file")) == [make_prompt(0)]


@pytest.mark.parametrize("between", [", ", "\n "], ids=["a list", "an array of numpy"])
def test_a_table_of_pandas_holds_python_lists_and_a_row_is_named_by_its_line(between, tmp_path):
    """Dataset.to_csv and parquet read by pandas have arrays: their elements without a comma."""
    rows = [conversations(0), conversations(1)]
    rows[0]["chosen"][-1]["content"] = "it's {a}\n {b}"
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(["chosen", "rejected", "chosen_reward"])
    for row in rows:
        sides = []
        for messages in row.values():
            sides.append(f"[{between.join(map(repr, messages))}]")
        writer.writerow([*sides, "1.5"])
    path = write(tmp_path / "pairs.csv", sink.getvalue())
    pairs = read_pairs(path)
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in rows]
    assert pairs[1].chosen_reward == 1.5 and pairs[0].where == f"{path}: line 2"
    second = 3 if between == ", " else 5  # the first row has a line for each message
    assert pairs[1].where == f"{path}: line {second}"
    text = write(tmp_path / "texts.csv", 'prompt,chosen,rejected\nq,"[{1: 2}, 3]",no\n')
    assert read_pairs(text)[0].chosen[-1]["content"] == "[{1: 2}, 3]"  # JSON-like text stays text


@pytest.mark.parametrize(
    "content, expected",
    [
        ("prompt,chosen,rejected\nq,yes\n", "line 2: 2 cells below a header of 3 columns"),
        ('prompt,chosen,rejected\nq,"yes,no\n', "line 2: not valid CSV"),
        ("prompt,chosen,rejected\n", "no row below the header"),
        ("prompt,chosen,answer\nq,yes,no\n", "line 2: a pair needs 'chosen' and 'rejected'"),
        ("chosen,rejected,chosen_reward\nq a,q b,high\n", "line 2: chosen_reward is 'high'"),
        (
            "chosen,rejected\n\"[{'role': 'u\",b\n",
            "line 2: 'chosen' begins like a list of messages",
        ),
        (b"prompt,chosen,rejected\nq,\xff,no\n", "not UTF-8"),
    ],
)
def test_a_bad_table_is_an_error_that_names_the_line(content, expected, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "pairs.csv").write_bytes(data)
    with pytest.raises(UserError, match=expected) as raised:
        read_pairs(str(tmp_path / "pairs.csv"))
    assert str(tmp_path / "pairs.csv") in str(raised.value) and "\n" not in str(raised.value)


def save_to_disk(folder: Path, *files: list[dict]) -> None:
    """What datasets.Dataset.save_to_disk writes."""
    folder.mkdir(parents=True)
    names = []
    for number, rows in enumerate(files):
        name = f"data-{number:05}-of-{len(files):05}.arrow"
        (folder / name).write_bytes(arrow_stream(rows))
        names.append({"filename": name})
    state = {"_data_files": names, "_fingerprint": "1", "_format_type": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def test_a_folder_of_save_to_disk_is_read_file_by_file(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [explicit_texts(i) for i in range(7)]
    save_to_disk(tmp_path / "saved", rows[:4], rows[4:])
    pairs = read_pairs(str(tmp_path / "saved"))
    assert [pair.chosen[0]["content"] for pair in pairs] == [f"q{i}" for i in range(7)]
    assert pairs[5].where == f"{tmp_path}/saved/data-00001-of-00002.arrow: row 1"


def test_of_a_folder_with_splits_train_or_the_one_named_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    save_to_disk(tmp_path / "d/train", [explicit_texts(0)])
    save_to_disk(tmp_path / "d/test", [explicit_texts(1)])
    (tmp_path / "d/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))

    def questions(path: str) -> list[str]:
        return [pair.chosen[0]["content"] for pair in read_pairs(str(tmp_path / path))]

    assert questions("d") == questions("d:train") == questions("d/train") == ["q0"]
    assert questions("d:test") == ["q1"]
    with pytest.raises(UserError, match="has no split 'dev', but test, train: pass"):
        questions("d:dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: cannot be read: a folder without a dataset"):
        questions("empty")
    (tmp_path / "d/test/state.json").write_text("{}")
    with pytest.raises(UserError, match="state.json: has no list '_data_files'"):
        questions("d:test")


def test_parquet_files_of_a_folder_are_told_apart_by_their_names(tmp_path):
    from test_rows import parquet

    names = {
        "data/train-00000-of-00002.parquet": 0,
        "data/train-00001-of-00002.parquet": 1,
        "data/test_prefs-00000-of-00001-c0ffee.parquet": 2,
        "other/train/0000.parquet": 3,
    }
    for name, i in names.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(parquet([explicit_texts(i)]))

    def questions(path: str) -> list[str]:
        return [pair.chosen[0]["content"] for pair in read_pairs(path)]

    assert questions(str(tmp_path)) == ["q0", "q1"]
    assert questions(f"{tmp_path}:test_prefs") == ["q2"]
    assert questions(f"{tmp_path}:other/train") == ["q3"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff and no more", b"ARROW1 and no more"])
def test_a_broken_arrow_file_is_named(data, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match="not a whole arrow file"):
        read_pairs(str(tmp_path / "file"))


def test_arrow_without_pyarrow_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "file").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(UserError, match="an arrow file, which needs pyarrow .*pip install pyarrow"):
        read_pairs(str(tmp_path / "file"))


@pytest.mark.parametrize("container", ["JSON lines", "CSV", "arrow stream"])
def test_a_large_file_is_read_in_little_memory(container, tmp_path):
    """15 MB of rows, under 8 MB of Python's memory at any time."""
    rows = [{"prompt": "q" * 500, "chosen": "y" * 2000, "rejected": "n"} for _ in range(6000)]
    path = tmp_path / "file"
    path.write_bytes(MORE_CONTAINERS[container](rows))
    assert path.stat().st_size > 14.5e6
    del rows
    count = 0
    tracemalloc.start()
    for _, row in read_rows(str(path)):
        count += len(row["chosen"]) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 6000 and peak < 8e6


# ---- messages by other names ---


def test_sharegpt_messages_are_read_and_their_roles_said(tmp_path):
    row = {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello!"},
            {"from": "human", "value": "Rain?"},
        ],
        "chosen": {"from": "gpt", "value": "Water."},
        "rejected": {"from": "gpt", "value": "No."},
        "system": "Be brief.",
        "source": "x",
    }
    pairs = read(tmp_path, row)
    beginning = [user("Hi"), assistant("Hello!"), user("Rain?")]
    system = {"role": "system", "content": "Be brief."}
    assert pairs[0].chosen == [system, *beginning, assistant("Water.")]
    assert pairs[0].rejected == [system, *beginning, assistant("No.")]
    path = str(tmp_path / "pairs.jsonl")
    assert describe_pairs(path, pairs) == (
        f"{path}: 1 pairs, read as ShareGPT, as LLaMA-Factory; ignored columns: source; "
        "roles human, gpt read as user, assistant"
    )


@pytest.mark.parametrize(
    "role, known",
    [("Human", "user"), ("GPT", "assistant"), ("developer", "system"), ("observation", "tool")],
)
def test_other_names_of_roles_are_known(role, known, tmp_path):
    messages = [user("q"), {"role": role, "content": "x"}, user("q")]
    path = write(tmp_path / "a.json", [{"messages": messages}])
    assert read_prompts(path) == [[user("q"), {"role": known, "content": "x"}, user("q")]]
    assert describe_columns(path) == f"roles {role} read as {known}"


def test_content_in_parts_of_text_is_one_text_and_an_image_is_refused(tmp_path):
    parts = [{"type": "text", "text": "Look:"}, {"type": "text", "text": "rain"}]
    path = write(tmp_path / "a.json", [{"messages": [{"role": "user", "content": parts}]}])
    assert read_prompts(path) == [[user("Look:\nrain")]]
    parts[1] = {"type": "image_url", "image_url": {"url": "x"}}
    write(tmp_path / "a.json", [{"messages": [{"role": "user", "content": parts}]}])
    with pytest.raises(UserError, match="row 0: .*not a part of type 'image_url'"):
        read_prompts(path)


TOOLS = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}],
}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["list", "JSON"])
def test_tools_and_the_turns_that_call_them_are_kept(tools, tmp_path):
    turns = [user("1 + 1?"), CALL, {"role": "tool", "content": "2"}]
    row = {"tools": tools, "chosen": [*turns, assistant("2")], "rejected": [*turns, assistant("3")]}
    (pair,) = read(tmp_path, row)
    assert pair.chosen[0] == user("1 + 1?") | {"tools": TOOLS} == pair.rejected[0]
    assert pair.chosen[1] == CALL | {"content": ""}
    assert describe_columns(str(tmp_path / "pairs.jsonl")) == ""
    prompts = write(tmp_path / "prompts.json", [{"messages": turns, "tools": tools}])
    assert read_prompts(prompts)[0] == pair.chosen[:-1]
    # a pairs file of preprocess.py has them in the messages
    again = read(tmp_path, {"chosen": pair.chosen, "rejected": pair.rejected})
    assert again == [pair]
    with pytest.raises(UserError, match="line 1, chosen: 'tools' must be a list of JSON schemas"):
        read(tmp_path, row | {"tools": "{"})


def test_keys_without_a_value_are_left_out(tmp_path):
    """Parquet and arrow have them where another row has that key."""
    pytest.importorskip("pyarrow")
    rows = [
        {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
        {"chosen": [user("q"), CALL], "rejected": [user("q"), assistant("no")]},
    ]
    (tmp_path / "file").write_bytes(arrow_stream(rows))
    first, second = read_pairs(str(tmp_path / "file"))
    assert first.chosen == rows[0]["chosen"]
    assert second.chosen == [user("q"), CALL | {"content": ""}]


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"question": "q", "system": "s"}, [{"role": "system", "content": "s"}, user("q")]),
        ({"instruction": "Add.", "input": "1, 2"}, [user("Add.\n1, 2")]),
        ({"instruction": "Add.", "input": "", "output": "x"}, [user("Add.")]),
        ({"prompt": "q", "system": ""}, [user("q")]),
    ],
)
def test_a_question_is_never_taken_for_an_extra_column(columns, expected, tmp_path):
    """Else the words that both answers begin with would be the prompt."""
    (pair,) = read(tmp_path, columns | {"chosen": "It is 3.", "rejected": "It is 4."})
    assert pair.chosen == [*expected, assistant("It is 3.")]
    remarks = describe_columns(str(tmp_path / "pairs.jsonl"))
    assert remarks == ("ignored columns: output" if "output" in columns else "")


# ---- extra columns, and responses that differ in number ---


def test_extra_columns_are_ignored_and_said(tmp_path):
    path = write(
        tmp_path / "a.json",
        [
            {"response_1": "a", "response_2": "b", "id": 1, "response_length": 2},
            {"response_1": "c", "response_2": "d"},
        ],
    )
    assert read_responses(path) == [["a", "b"], ["c", "d"]]
    assert describe_columns(path) == "ignored columns: id, response_length"


def test_ragged_responses_are_read_where_they_are_asked_for(tmp_path):
    rows = [{"response_1": "a", "response_2": "b"}, {"response_1": "c"}]
    responses = write(tmp_path / "a.json", rows)
    rewards = write(tmp_path / "b.json", [[1, 2, 3], [4]])
    assert read_responses(responses, ragged=True) == [["a", "b"], ["c"]]
    assert read_rewards(rewards, ragged=True) == [[1, 2, 3], [4]]
    with pytest.raises(UserError, match="row 1 has 1 entries, row 0 has 2: every row needs as"):
        read_responses(responses)
    with pytest.raises(UserError, match="row 1 has 1 entries, row 0 has 3"):
        read_rewards(rewards)


def test_a_column_without_a_value_is_no_response_and_a_null_of_json_is_an_error(tmp_path):
    """Parquet has each column in each row; null in JSON is what a failed request leaves."""
    pytest.importorskip("pyarrow")
    rows = [{"response_1": "a", "response_2": "b"}, {"response_1": "c"}]
    (tmp_path / "file").write_bytes(arrow_stream(rows))
    assert read_responses(str(tmp_path / "file"), ragged=True) == [["a", "b"], ["c"]]
    rows[1]["response_2"] = None
    with pytest.raises(UserError, match="row 1: 'response' of the wrong type"):
        read_responses(write(tmp_path / "a.json", rows), ragged=True)


def test_pairs_and_groups_of_preprocess_may_be_in_one_file(tmp_path):
    group = {"messages": [user("q0")]}
    for number, reward in enumerate((1.0, 2.0, 3.0), 1):
        group |= {f"response_{number}": f"a{number}", f"reward_{number}": reward}
    pairs = read(tmp_path, conversations(1), group | {"pairs": [[3, 1]]})
    assert [pair.group for pair in pairs] == [None, 1]
    path = str(tmp_path / "pairs.jsonl")
    assert "read as conversations and groups of responses" in describe_pairs(path, pairs)


# ---- where a name leads ---


@pytest.mark.parametrize(
    "path", ["pairs.jsonl", "a/pairs.jsonl", "./a/b", "/a/b", "a/b/c", "a/b.parquet", "here/pairs"]
)
def test_a_path_is_no_name_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert local_path(path) == path


# ---- several files ---


def test_a_weight_is_how_often_an_epoch_has_a_files_pairs(tmp_path):
    first = read(tmp_path, *[conversations(i) for i in range(3)])
    path = str(tmp_path / "other.jsonl")
    write_jsonl(path, make_pairs(10))
    mixed, words = mix_in(first, path, seed=0)
    assert (
        mixed[:3] == first and len(mixed) == 13 and words.endswith("; weight 1: 10 in each epoch")
    )

    half, words = mix_in(first, f"{path}:0.5", seed=0)
    assert len(half) == 8 and "weight 0.5: 5 in each epoch" in words
    assert (
        half == mix_in(first, f"{path}:0.5", seed=0)[0] != mix_in(first, f"{path}:0.5", seed=1)[0]
    )

    often, _ = mix_in(first, f"{path}:2.3", seed=0)
    assert len(often) == 3 + 10 + 10 + 3
    assert [pair.copy for pair in often] == [0] * 13 + [1] * 10 + [2] * 3
    assert len({id(pair) for pair in often}) == 26


def test_a_share_of_a_file_is_a_share_of_its_prompts(tmp_path):
    row = {"messages": make_prompt(0)}
    for number in (1, 2, 3):
        row |= {f"response_{number}": f"a{number}", f"reward_{number}": float(number)}
    path = str(tmp_path / "groups.jsonl")
    write_jsonl(path, [row | {"messages": make_prompt(i)} for i in range(4)])
    first = read_pairs(path)
    mixed, _ = mix_in(first, f"{path}:1.5", seed=0)
    groups = [pair.group for pair in mixed]
    assert groups[:12] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    sizes = {group: groups.count(group) for group in groups}
    assert sizes == dict.fromkeys(sizes, 3) and len(sizes) == 4 + 4 + 2  # no group is in two


@pytest.mark.parametrize("weight", ["0", "1.2.3", "1e9"])
def test_a_weight_that_is_none_is_refused(weight, tmp_path):
    path = write(tmp_path / "pairs.jsonl", json.dumps(conversations(0)))
    with pytest.raises(
        UserError, match="the weight must be a number above 0: say .*pairs.jsonl:0.5"
    ):
        mix_in([], f"{path}:{weight}", seed=0)


def test_what_is_behind_a_colon_may_be_a_split_a_weight_or_part_of_the_name(tmp_path):
    assert split_weight("owner/name@v1:train:0.5") == ("owner/name@v1:train", 0.5)
    assert split_weight("owner/name:train") == ("owner/name:train", 1.0)
    name = write(tmp_path / "a:2", "")
    assert split_weight(name) == (name, 1.0)


def test_a_pair_that_is_trained_on_twice_is_evaluated_once(tmp_path):
    path = str(tmp_path / "other.jsonl")
    write_jsonl(path, make_pairs(10))
    mixed, _ = mix_in([], f"{path}:2", seed=0)
    training, held_out = hold_out(mixed, 0.3, 0, path)
    assert (len(training), len(held_out)) == (14, 3)
    assert not {pair.prompt_key for pair in training} & {pair.prompt_key for pair in held_out}
