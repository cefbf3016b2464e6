import json
import sys
from collections import Counter

import pytest
from conftest import DATA, make_prompt, needs_data

import preprocess
from rmood.errors import UserError
from rmood.files.provenance import read_run_file
from rmood.files.tables import read_pairs, read_rewards


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Write the three files and run the script.

    run(responses, rewards, *flags) -> (pairs, what was printed).
    """

    def run(responses: list[list[str]], rewards: list, *flags: str):
        files = {
            "prompts": [{"messages": make_prompt(i)} for i in range(len(responses))],
            "responses": [numbered(texts) for texts in responses],
            "rewards": rewards,
        }
        target = str(tmp_path / "pairs.jsonl")
        argv = ["preprocess.py", "--target-path", target, *flags]
        for role, rows in files.items():
            path = tmp_path / f"{role}.json"
            path.write_text(json.dumps(rows))  # unlike write_json it takes NaN
            argv += [f"--{role}-path", str(path)]
        monkeypatch.setattr(sys, "argv", argv)
        assert preprocess.main() == 0
        return read_pairs(target), capsys.readouterr().out

    return run


def numbered(texts: list[str]) -> dict[str, str]:
    return {f"response_{number}": text for number, text in enumerate(texts, 1)}


def answers(pairs) -> list[tuple[str, str]]:
    return [(pair.chosen[-1]["content"], pair.rejected[-1]["content"]) for pair in pairs]


def test_gold_decides_and_ties_are_counted(run, tmp_path):
    responses = [["a", "b"], ["c", "d"], ["e", "f"]]
    pairs, said = run(responses, [[1.0, 2.0], [3.0, 3.0], [5.0, -1.0]])
    assert answers(pairs) == [("b", "a"), ("e", "f")]
    assert [pair.chosen[:-1] for pair in pairs] == [make_prompt(0), make_prompt(2)]
    gold = [(pair.index, pair.chosen_reward, pair.rejected_reward) for pair in pairs]
    assert gold == [(0, 2.0, 1.0), (2, 5.0, -1.0)]
    assert "kept 2 of 3 pairs; dropped 1: 1 equal gold reward" in said
    facts = read_run_file(str(tmp_path / "pairs.jsonl"))
    assert (facts["pairs"], facts["left_out"]) == (2, {"equal gold reward": 1})


def test_four_responses_make_six_pairs(run):
    pairs, _ = run([["a", "b", "c", "d"]], [[4.0, 3.0, 2.0, 1.0]])
    assert len(set(answers(pairs))) == 6
    assert all(winner < loser for winner, loser in answers(pairs))


def test_near_ties_and_identical_texts_can_be_left_out(run):
    responses = [["a", "b"], ["c", "c"], ["e", "f"]]
    rewards = [[1.0, 1.1], [3.0, 2.0], [5.0, 4.0]]
    pairs, said = run(responses, rewards, "--min-margin", "0.5", "--drop-identical")
    assert answers(pairs) == [("e", "f")]
    assert "1 gold margin under 0.5" in said and "1 identical responses" in said


def test_no_key_named_margin_is_written(run, tmp_path):
    """Other trainers read a key of that name as a term of the loss."""
    run([["a", "b"]], [[1.0, 2.0]])
    row = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert set(row) == {"chosen", "rejected", "index", "chosen_reward", "rejected_reward"}


def test_prompts_may_differ_in_their_number_of_responses(run, tmp_path):
    responses = [["a", "b"], ["c", "d", "e"], ["f"]]
    rewards = [[1.0, 2.0], [3.0, 1.0, 2.0], [0.0]]
    pairs, said = run(responses, rewards)
    assert answers(pairs) == [("b", "a"), ("c", "d"), ("c", "e"), ("e", "d")]
    assert [pair.group for pair in pairs] == [None, 1, 1, 1]
    assert "kept 4 of 4 pairs; dropped 0\n1 prompts with a single response make no pair\n" in said
    assert read_run_file(str(tmp_path / "pairs.jsonl"))["single_responses"] == 1


def test_columns_that_are_not_read_are_named(tmp_path, monkeypatch, capsys):
    prompts = [{"messages": make_prompt(0), "id": 7, "source": "x"}]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (tmp_path / "responses.json").write_text(json.dumps([numbered(["a", "b"])]))
    (tmp_path / "rewards.csv").write_text("reward_1,reward_2\n1.5,2\n")
    argv = ["preprocess.py", "--target-path", str(tmp_path / "pairs.jsonl")]
    for name in ("prompts.json", "responses.json", "rewards.csv"):
        argv += [f"--{name.partition('.')[0]}-path", str(tmp_path / name)]
    monkeypatch.setattr(sys, "argv", argv)
    assert preprocess.main() == 0
    said = capsys.readouterr().err
    assert f"{tmp_path}/prompts.json: ignored columns: id, source\n" in said
    assert said.count("ignored columns") == 1
    (pair,) = read_pairs(str(tmp_path / "pairs.jsonl"))
    assert (pair.chosen_reward, pair.rejected_reward) == (2.0, 1.5)


@pytest.mark.parametrize(
    "responses, rewards, expected",
    [
        ([["a", "b"], ["c", "d"]], [[1.0, 2.0]], "1 rows for 2 responses"),
        ([["a"], ["b"]], [[1.0], [2.0]], "one response per prompt makes no pair"),
        ([["a", "b"]], [[1.0, 2.0, 3.0]], "row 0 has 3 rewards for 2 responses"),
        ([["a", "b"]], [[1.0, float("nan")]], "row 0 has the reward nan"),
        ([["a", "b"]], [[1.0, 1.0]], "no pair is left of 1"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(run, tmp_path, responses, rewards, expected):
    with pytest.raises(UserError, match=expected):
        run(responses, rewards)
    assert not (tmp_path / "pairs.jsonl").exists()


def record(first: str, second: str) -> dict:
    row = {"messages": make_prompt(0)}
    return row | {"response_1": first, "reward_1": 1.0, "response_2": second, "reward_2": 2.0}


def test_a_misspelt_dataset_is_answered_by_the_one_that_is_there(tmp_path, monkeypatch):
    """And no folder is made for it."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    (tmp_path / "datasets" / "toy").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["preprocess.py", "--dataset", "tooy"])
    with pytest.raises(UserError, match="did you mean .*datasets/toy[?]"):
        preprocess.main()
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["toy"]


def test_records_of_other_responses_are_refused(run):
    pairs, _ = run([["a", "b"]], [record("a", "b")])
    assert answers(pairs) == [("b", "a")]
    with pytest.raises(UserError, match="row 0 holds another text"):
        run([["a", "b"]], [record("a", "x")])


@needs_data
def test_the_reference_files_give_954_pairs(tmp_path, monkeypatch, capsys):
    folder = DATA / "alpacafarm"
    target = str(tmp_path / "pairs.jsonl")
    flags = {
        "--prompts-path": str(folder / "test_prompts.json"),
        "--responses-path": str(folder / "test_sft.json"),
        "--rewards-path": str(folder / "test_reward_gold.json"),
        "--target-path": target,
    }
    words = [word for flag in flags.items() for word in flag]
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *words])
    preprocess.main()
    assert "kept 954 of 1,000 pairs; dropped 46: 46 equal gold reward" in capsys.readouterr().out
    gold = read_rewards(str(folder / "test_reward_gold.json"))
    for pair in read_pairs(target):
        assert pair.chosen_reward == max(gold[pair.index])
        assert pair.rejected_reward == min(gold[pair.index]) < pair.chosen_reward


@needs_data
def test_the_reference_rewards_keep_19082_of_20001_pairs():
    counts = Counter()
    for rewards in read_rewards(str(DATA / "alpacafarm" / "rm_rewards.json")):
        preprocess.choose_pairs(preprocess.Config(), ["a", "b"], rewards, counts)
    assert counts == {"kept": 19_082, "equal gold reward": 919} and counts.total() == 20_001
