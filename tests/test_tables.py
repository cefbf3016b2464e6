import gzip
import json

import pytest
from conftest import make_pairs, make_prompt
from test_rows import CONTAINERS

from rmood.errors import UserError
from rmood.files.rows import write_jsonl
from rmood.files.tables import (
    Conversation,
    Message,
    Pair,
    check_rows,
    check_same_shape,
    describe_pairs,
    read_pairs,
    read_prompts,
    read_records,
    read_responses,
    read_rewards,
)


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
        [{"messages": [{"role": "bot", "content": ""}]}],
        "row 0: unknown role 'bot'",
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
    assert describe_pairs(str(path), pairs) == f"{path}: 2 pairs, read as {form}"
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
