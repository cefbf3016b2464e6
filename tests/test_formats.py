import gzip
import json

import pytest
from conftest import make_pairs, make_prompt

from rmood import BadInput, records


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def parquet(rows: list[dict]) -> bytes:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.Table.from_pylist(rows), sink := pyarrow.BufferOutputStream())
    return sink.getvalue().to_pybytes()


CONTAINERS = {
    "JSON": lambda rows: json.dumps(rows, indent=1).encode(),
    "JSON lines": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "columns": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode(),
    "parquet": parquet,
}
# Name as said aloud -> rows 0 and 1 of a file; each row asks q0, q1 and prefers "yes" to "no".
FORMS = {
    "conversations": lambda i: {"chosen": [user(f"q{i}"), assistant("yes")], "rejected": [user(f"q{i}"), assistant("no")]},
    "prompts and answers in messages (TRL, explicit prompt)": lambda i: {"prompt": [user(f"q{i}")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    "prompts and answers in plain text (TRL, explicit prompt)": lambda i: {"prompt": f"q{i}", "chosen": "yes", "rejected": "no"},
    "plain texts, the words both begin with as the prompt (TRL, implicit prompt)": lambda i: {"chosen": f"q{i} yes", "rejected": f"q{i} no"},
    "Anthropic HH dialogues": lambda i: {side: f"\n\nHuman: q{i}\n\nAssistant: {word}" for side, word in (("chosen", "yes"), ("rejected", "no"))},
    "UltraFeedback, binarized": lambda i: {"prompt": f"q{i}", "prompt_id": "4f"} | FORMS["conversations"](i) | {"messages": [], "score_chosen": 8.5 + i, "score_rejected": 7.0},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_container_says_the_same_pairs_and_its_name(form, container, zipped, tmp_path, capsys):
    data = CONTAINERS[container]([FORMS[form](i) for i in range(2)])
    (tmp_path / "file").write_bytes(gzip.compress(data) if zipped else data)
    pairs = records.read_pairs(str(tmp_path / "file"))
    assert [pair.chosen for pair in pairs] == [[user("q0"), assistant("yes")], [user("q1"), assistant("yes")]]
    assert [pair.rejected for pair in pairs] == [[user("q0"), assistant("no")], [user("q1"), assistant("no")]]
    gold = [(pair.chosen_reward, pair.rejected_reward) for pair in pairs]
    assert gold == ([(8.5, 7.0), (9.5, 7.0)] if form.startswith("UltraFeedback") else [(None, None)] * 2)
    assert f"2 pairs, read as {form}\n" in capsys.readouterr().err


@pytest.mark.parametrize("container", ["JSON", "JSON lines", "parquet"])
def test_prompts_responses_and_rewards_come_in_any_container_too(container, tmp_path):
    rows = [{"messages": make_prompt(i), "response_1": "x", "reward_1": 1.5, "response_2": "y", "reward_2": float(i)} for i in range(3)]
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(CONTAINERS[container](rows)))
    assert records.read_prompts(str(path)) == [make_prompt(i) for i in range(3)]
    assert records.read_responses(str(path)) == [["x", "y"]] * 3
    assert records.read_rewards(str(path)) == [[1.5, 0.0], [1.5, 1.0], [1.5, 2.0]]


def read(tmp_path, *rows) -> list[records.Pair]:
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return records.read_pairs(str(tmp_path / "pairs.jsonl"))


def test_a_dialogue_keeps_all_its_turns(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is\n\nrain?\n\nAssistant:"
    whole = read(tmp_path, {"chosen": start + " Water.", "rejected": start + " I can't say.\n\nSorry."})
    assert whole == read(tmp_path, {"prompt": start, "chosen": " Water.", "rejected": " I can't say.\n\nSorry."})
    assert whole[0].chosen == [user("Hi"), assistant("Hello!"), user("What is\n\nrain?"), assistant("Water.")]
    assert whole[0].rejected[-1] == assistant("I can't say.\n\nSorry.")


def test_a_shared_beginning_ends_between_words(tmp_path):
    pair = read(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is black."})[0]
    assert (pair.chosen, pair.rejected) == ([user("The sky is"), assistant("blue.")], [user("The sky is"), assistant("black.")])


def test_our_own_file_keeps_row_numbers_and_gold(tmp_path):
    pairs = read(tmp_path, *make_pairs(3))
    assert [(pair.index, pair.chosen_reward, pair.rejected_reward) for pair in pairs] == [(0, 1.0, -1.0), (1, 2.0, -1.0), (2, 3.0, -1.0)]


BAD = {
    "two forms": ([FORMS["UltraFeedback, binarized"](0), FORMS["conversations"](1)], "line 2: conversations, but the rows before are UltraFeedback, binarized: split the file"),
    "text and messages": ([{"chosen": "a", "rejected": [assistant("b")]}], "line 1: a pair needs 'chosen' and 'rejected'"),
    "nothing in common": ([{"chosen": "yes", "rejected": "no"}], "line 1: a pair needs"),
    "no rejected": ([FORMS["conversations"](0), {"chosen": [user("q")]}], "line 2: a pair needs"),
    "the prompt twice": ([{"prompt": [user("q")]} | FORMS["conversations"](0)], "line 1: a pair needs"),
    "a person has the last word": ([{"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"}], "line 1, chosen: the last turn must be the assistant's"),
    "score of text": ([FORMS["conversations"](0) | {"score_chosen": "high"}], "chosen_reward is 'high'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_fits_no_form_or_differs_is_refused(case, tmp_path):
    with pytest.raises(BadInput) as letter:
        read(tmp_path, *BAD[case][0])
    assert BAD[case][1] in str(letter.value) and "\n" not in str(letter.value)


@pytest.mark.parametrize("data, expected", [(gzip.compress(b"[1, 2, 3]" * 99)[:-20], "cut short or damaged"), (b"PAR1 and no more", "parquet")])
def test_a_broken_file_is_named(data, expected, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(BadInput, match=expected):
        records.read_pairs(str(tmp_path / "file"))
