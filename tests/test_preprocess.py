import json
import sys

import pytest
from conftest import DATA, make_prompt, needs_data

import preprocess
from rmood import BadInput, records


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Write the three files and run the script: run(responses, rewards, *flags) -> (pairs, what was printed)."""

    def run(responses: list[list[str]], rewards: list, *flags: str):
        paths = {name: str(tmp_path / f"{name}.json") for name in ("prompts", "responses", "rewards")}
        records.write_json(paths["prompts"], [{"messages": make_prompt(i)} for i in range(len(responses))])
        records.write_json(paths["responses"], [{f"response_{k}": text for k, text in enumerate(row, 1)} for row in responses])
        with open(paths["rewards"], "w") as file:
            json.dump(rewards, file)
        target = str(tmp_path / "pairs.jsonl")
        argv = [word for name in paths for word in (f"--{name}-path", paths[name])]
        monkeypatch.setattr(sys, "argv", ["preprocess.py", *argv, "--target-path", target, *flags])
        assert preprocess.main() == 0
        return records.read_pairs(target), capsys.readouterr().out

    return run


def texts(pairs) -> list[tuple[str, str]]:
    return [(pair.chosen[-1]["content"], pair.rejected[-1]["content"]) for pair in pairs]


def test_gold_decides_and_ties_are_counted(run):
    pairs, said = run([["a", "b"], ["c", "d"], ["e", "f"]], [[1.0, 2.0], [3.0, 3.0], [5.0, -1.0]])
    assert texts(pairs) == [("b", "a"), ("e", "f")]
    assert [(pair.index, pair.chosen_reward, pair.rejected_reward) for pair in pairs] == [(0, 2.0, 1.0), (2, 5.0, -1.0)]
    assert "kept 2 of 3 pairs; dropped 1: 1 equal gold reward" in said


def test_four_responses_make_six_pairs(run):
    pairs, _ = run([["a", "b", "c", "d"]], [[4.0, 3.0, 2.0, 1.0]])
    assert len(pairs) == 6 and all(winner < loser for winner, loser in texts(pairs))


def test_near_ties_and_identical_texts_can_be_left_out(run):
    pairs, said = run([["a", "b"], ["c", "c"], ["e", "f"]], [[1.0, 1.1], [3.0, 2.0], [5.0, 4.0]], "--min-margin", "0.5", "--drop-identical")
    assert texts(pairs) == [("e", "f")]
    assert "1 gold margin under 0.5" in said and "1 identical responses" in said


def test_no_key_named_margin_is_written(run, tmp_path):
    """Other trainers read a key of that name as a term of the loss."""
    run([["a", "b"]], [[1.0, 2.0]])
    row = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert set(row) == {"chosen", "rejected", "index", "chosen_reward", "rejected_reward"}


@pytest.mark.parametrize(
    "responses, rewards, expected",
    [
        ([["a", "b"], ["c", "d"]], [[1.0, 2.0]], "1 rows for 2 responses"),
        ([["a"], ["b"]], [[1.0], [2.0]], "one response a prompt makes no pair"),
        ([["a", "b"]], [[1.0, 2.0, 3.0]], "3 rewards for 2 responses"),
        ([["a", "b"]], [[1.0, float("nan")]], "row 0 has the reward nan"),
        ([["a", "b"]], [[1.0, 1.0]], "no pair is left of 1"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(run, tmp_path, responses, rewards, expected):
    with pytest.raises(BadInput, match=expected):
        run(responses, rewards)
    assert not (tmp_path / "pairs.jsonl").exists()


def test_records_of_other_responses_are_refused(run):
    record = {"messages": make_prompt(0), "response_1": "a", "reward_1": 1.0, "response_2": "x", "reward_2": 2.0}
    with pytest.raises(BadInput, match="row 0 holds another text"):
        run([["a", "b"]], [record])


@needs_data
def test_the_reference_files_give_954_pairs(tmp_path, monkeypatch, capsys):
    folder = DATA / "alpacafarm"
    argv = ["--prompts-path", folder / "test_prompts.json", "--responses-path", folder / "test_sft.json", "--rewards-path", folder / "test_reward_gold.json"]
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *map(str, argv), "--target-path", str(tmp_path / "pairs.jsonl")])
    preprocess.main()
    assert "kept 954 of 1,000 pairs; dropped 46: 46 equal gold reward" in capsys.readouterr().out
    pairs, gold = records.read_pairs(str(tmp_path / "pairs.jsonl")), records.read_rewards(str(folder / "test_reward_gold.json"))
    assert all(pair.chosen_reward == max(gold[pair.index]) > pair.rejected_reward == min(gold[pair.index]) for pair in pairs)


@needs_data
def test_the_reference_rewards_keep_19082_of_20001_pairs(run):
    rewards = records.read_rewards(str(DATA / "alpacafarm" / "rm_rewards.json"))
    _, said = run([[f"a{i}", f"b{i}"] for i in range(len(rewards))], rewards)
    assert "kept 19,082 of 20,001 pairs; dropped 919: 919 equal gold reward" in said
