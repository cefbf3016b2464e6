"""Prompts with more than two responses: each is computed once, all pairs are in one step."""

import json
import random

import numpy as np
import pytest
from conftest import WORDS, make_prompt
from training import losses, train_here, write_pairs

import preprocess
from rmood.errors import UserError
from rmood.files.rows import write_json
from rmood.files.tables import read_pairs
from rmood.pairset import group_pairs


def make_files(folder, prompts: int, responses: int) -> dict[str, str]:
    """Prompts, responses and rewards: gold counts the cats."""
    rng = random.Random(0)
    texts, rewards = [], []
    for _ in range(prompts):
        cats = rng.sample(range(responses + 2), responses)
        texts.append([" ".join(["cat"] * n + [rng.choice(WORDS)]) for n in cats])
        rewards.append([float(n) for n in cats])
    rows = [{f"response_{k}": text for k, text in enumerate(row, 1)} for row in texts]
    files = {
        "prompts": [{"messages": make_prompt(i)} for i in range(prompts)],
        "responses": rows,
        "rewards": rewards,
    }
    for name, value in files.items():
        write_json(str(folder / f"{name}.json"), value)
    return {name: str(folder / f"{name}.json") for name in files}


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """preprocessed("groups", 8, 4): the path of a pairs file in this form."""

    def run(form: str, prompts: int, responses: int) -> str:
        files = make_files(tmp_path, prompts, responses)
        target = str(tmp_path / f"{form}.jsonl")
        argv = ["preprocess.py", "--form", form, "--target-path", target]
        for name, path in files.items():
            argv += [f"--{name}-path", path]
        monkeypatch.setattr("sys.argv", argv)
        preprocess.main()
        return target

    return run


def test_groups_hold_the_same_pairs_in_the_same_order(preprocessed):
    pairs = read_pairs(preprocessed("pairs", 6, 4))
    grouped = read_pairs(preprocessed("groups", 6, 4))
    assert pairs == grouped and len(pairs) == 6 * 6  # K (K - 1) / 2 pairs of each of 6 prompts
    assert [pair.group for pair in grouped] == [n for n in range(6) for _ in range(6)]
    assert {pair.group for pair in pairs} == {None}


def test_more_than_two_responses_are_written_as_groups_and_two_as_pairs(preprocessed):
    for responses, key in ((2, "chosen"), (3, "messages")):
        with open(preprocessed("auto", 4, responses)) as file:
            assert key in json.loads(file.readline())


def test_a_record_file_is_a_file_of_groups(tmp_path):
    """As the reference's own test files are: all that gold does not tie are pairs."""
    row = {"messages": make_prompt(0)}
    for number, reward in enumerate([1.0, 3.0, 1.0], 1):
        row |= {f"response_{number}": f"answer {number}", f"reward_{number}": reward}
    write_json(str(tmp_path / "records.json"), [row])
    pairs = read_pairs(str(tmp_path / "records.json"))
    texts = [(pair.chosen[-1]["content"], pair.rejected[-1]["content"]) for pair in pairs]
    assert texts == [("answer 2", "answer 1"), ("answer 2", "answer 3")]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs": [[1, 4]]}, "not the numbers of two responses"),
        ({"pairs": [[1]]}, "not the numbers of two responses"),
        ({"reward_2": float("nan")}, "not a finite number"),
        ({"reward_2": "high"}, "not a finite number"),
        ({"response_3": "one more"}, "2 rewards for 3 responses"),
        ({"messages": []}, "must be a list of messages"),
    ],
)
def test_a_group_that_is_not_one_is_refused_by_its_row(tmp_path, change, message):
    row = {"messages": make_prompt(0), "response_1": "a", "reward_1": 1.0}
    row |= {"response_2": "b", "reward_2": 2.0}
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(UserError, match=f"line 2.*{message}"):
        read_pairs(str(path))


def test_each_response_of_a_group_is_computed_once(preprocessed):
    """4 responses make 6 pairs, so 12 conversations, of which 4 differ."""
    pairs = read_pairs(preprocessed("groups", 3, 4))
    rows = []
    for pair in pairs:
        texts = [pair.chosen[-1]["content"], pair.rejected[-1]["content"]]
        rows.append([[1, ord(text[-1]), len(text)] for text in texts])
    groups, pairs_of_group, sides = group_pairs(pairs, rows)
    assert [len(group.rows) for group in groups] == [4, 4, 4]
    assert pairs_of_group == [list(range(first, first + 6)) for first in (0, 6, 12)]
    for pair, (chosen, rejected) in enumerate(sides):
        assert [groups[pair // 6].rows[side] for side in (chosen, rejected)] == rows[pair]


def test_a_step_of_groups_learns_what_a_step_of_all_their_pairs_learns(
    preprocessed, toy_model_folder, tmp_path, monkeypatch
):
    """All prompts in one step: the mean over pairs is the mean over groups of their means."""
    found = {}
    for form, batch_size in (("pairs", 8 * 6), ("groups", 8)):
        path = preprocessed(form, 8, 4)
        flags = f"--batch-size {batch_size} --epochs 6 --tokens-per-pass 2048"
        metrics = train_here(monkeypatch, toy_model_folder, path, tmp_path / form, flags)
        found[form] = losses(metrics)
        assert [line["objective"] for line in metrics if "loss" in line] == pytest.approx(
            found[form], abs=1e-6
        )
    assert len(found["groups"]) == 6 and found["groups"][-1] < found["groups"][0]
    assert found["groups"] == pytest.approx(found["pairs"], abs=1e-5)


def test_groups_are_held_out_and_evaluated_by_prompt(
    preprocessed, toy_model_folder, tmp_path, monkeypatch
):
    path = preprocessed("groups", 20, 3)
    flags = "--batch-size 4 --epochs 8 --eval-share 0.2"
    metrics = train_here(monkeypatch, toy_model_folder, path, tmp_path / "rm", flags)
    run = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert (run["pairs"], run["held_out_pairs"]) == (16 * 3, 4 * 3)
    assert metrics[-1]["running_accuracy"] > 0.8 and metrics[-1]["eval_loss"] < 0.69


def test_groups_of_different_sizes_count_the_same(tmp_path, toy_model_folder, monkeypatch):
    """A prompt with one pair has the weight of a prompt with three (Ouyang et al. 2022, eq. 1)."""
    rows = []
    for i, responses in enumerate([["cat", "dog"], ["cat cat", "cat two", "dog"]]):
        row = {"messages": make_prompt(i), "index": i}
        for number, text in enumerate(responses, 1):
            row |= {f"response_{number}": text, f"reward_{number}": float(-number)}
        rows.append(row)
    path = write_pairs(tmp_path / "groups.jsonl", rows)
    both = train_here(monkeypatch, toy_model_folder, path, tmp_path / "both", "--epochs 1")
    alone = []
    for i, row in enumerate(rows):
        path = write_pairs(tmp_path / f"{i}.jsonl", [row])
        metrics = train_here(monkeypatch, toy_model_folder, path, tmp_path / str(i), "--epochs 1")
        alone.append(metrics[0]["objective"])
    assert both[0]["objective"] == pytest.approx(np.mean(alone), abs=1e-6)
