"""Training files against each other, without a command line."""

import pytest
from conftest import make_pairs, make_prompt

from rmood.diagnosis import checks
from rmood.errors import UserError
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_pairs


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Prompts, responses, gold rewards and pairs of eight prompts that belong together."""
    rows = make_pairs(8)
    paths = {role: str(tmp_path / f"{role}.json") for role in ("prompts", "responses", "rewards")}
    paths["pairs"] = str(tmp_path / "pairs.jsonl")
    write_json(paths["prompts"], [{"messages": make_prompt(i)} for i in range(8)])
    texts = [(row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]
    write_json(paths["responses"], [{"response_1": a, "response_2": b} for a, b in texts])
    rewards = [[row["chosen_reward"], row["rejected_reward"]] for row in rows]
    write_json(paths["rewards"], rewards)
    write_jsonl(paths["pairs"], rows)
    return paths


def validate(files, **changes) -> checks.Validation:
    paths = files | changes
    return checks.validate(paths["pairs"], paths["responses"], paths["rewards"], paths["prompts"])


def test_files_that_belong_together_pass(files):
    found = validate(files)
    assert found.pairs == 8
    assert found.failed == 0
    assert [check.passed for check in found.checks].count(None) == 2  # no run files beside them
    assert "read as conversations" in found.checks[0].detail
    assert validate(files, prompts=None).failed == 0


def test_a_failure_is_counted_and_the_first_is_named(files):
    rows = make_pairs(8)
    for i in (2, 5):
        rows[i]["chosen"], rows[i]["rejected"] = rows[i]["rejected"], rows[i]["chosen"]
    write_jsonl(files["pairs"], rows)
    found = validate(files)
    failed = [check for check in found.checks if check.passed is False]
    assert "chosen is what gold prefers" in [check.check for check in failed]
    assert all(check.failures == 2 for check in failed)
    assert all("2 wrong, the first: pair 2 (row 2)" in check.detail for check in failed)


def test_responses_that_were_not_labelled_are_refused(files, tmp_path):
    """The gold file holds its own texts, and those of row 0 differ."""
    rows = [
        {
            "messages": make_prompt(i),
            "response_1": "a",
            "reward_1": 1.0,
            "response_2": "b",
            "reward_2": 2.0,
        }
        for i in range(8)
    ]
    write_json(files["rewards"], rows)
    with pytest.raises(UserError, match="row 0 holds other texts than .*responses.json"):
        validate(files)


def test_prompts_of_another_number_are_refused(files):
    write_json(files["prompts"], [{"messages": make_prompt(0)}])
    with pytest.raises(UserError, match="prompts.json: 1 rows for 8 responses"):
        validate(files)


def test_shown_pairs_hold_gold_s_verdict_and_the_rendered_text(files, toy_model_folder):
    pairs = read_pairs(files["pairs"])[:3]
    of_gold = (files["responses"], files["rewards"], files["prompts"])
    shown = checks.inspect_pairs(pairs, toy_model_folder, *of_gold)
    assert [pair.row for pair in shown] == [0, 1, 2]
    assert [pair.gold for pair in shown] == [[1.0, -1.0], [2.0, -1.0], [3.0, -1.0]]
    assert all(pair.agrees for pair in shown)
    assert shown[1].verdict == "response_1 2, response_2 -1; chosen is response_1"
    assert shown[0].chosen.count("⟦") == 1


def test_a_pair_whose_texts_are_not_in_its_row_does_not_agree(files, toy_model_folder):
    pairs = read_pairs(files["pairs"])[:1]
    pairs[0].chosen[-1]["content"] = "another text"
    of_gold = (files["responses"], files["rewards"], files["prompts"])
    [shown] = checks.inspect_pairs(pairs, toy_model_folder, *of_gold)
    assert not shown.agrees
    assert "its texts are not in that row" in shown.verdict


def test_pairs_from_elsewhere_are_judged_by_their_own_rewards(files, toy_model_folder):
    rows = make_pairs(3)
    rows[1]["rejected_reward"] = 9.0
    rows[2]["chosen_reward"] = None
    write_jsonl(files["pairs"], rows)
    shown = checks.inspect_pairs(read_pairs(files["pairs"]), toy_model_folder)
    assert [pair.agrees for pair in shown] == [True, False, True]
    assert shown[1].verdict == "chosen 2, rejected 9; no responses file to look it up in"
    assert shown[2].verdict == "none; no responses file to look it up in"
