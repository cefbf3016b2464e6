"""What a diagnosis is given: which model, which texts, and whether files belong together."""

import pytest
from conftest import make_prompt

from rmood.diagnosis import inputs
from rmood.errors import UserError
from rmood.files.rows import write_json

DEFAULT = {"prompts": "prompts.json", "responses": "responses.json", "rewards": "gold.json"}
PATHS = ("prompts.json", "responses.json")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_is_a_folder_a_name_under_models_or_a_hub_name(home):
    for name in ("toy-rm", "other", "RMOOD-qwen3-4b-toy-big"):
        (home / "models" / name).mkdir(parents=True)
    assert inputs.find_model(str(home), "toy") == str(home)
    assert inputs.find_model("other", "toy") == str(home / "models" / "other")
    assert inputs.find_model("rm", "toy") == str(home / "models" / "toy-rm")
    assert inputs.find_model("big", "toy") == str(home / "models" / "RMOOD-qwen3-4b-toy-big")
    assert inputs.find_model("owner/model", "toy") == "owner/model"
    for name in ("nowhere", "models/nowhere", "./a/b"):
        with pytest.raises(UserError, match=r"no such model, nor under .*\(there: RMOOD"):
            inputs.find_model(name, "toy")


def test_the_dataset_s_texts_are_those_of_the_dataset_s_gold_alone(home):
    write_json("gold.json", [[1, 2]])
    write_json("elsewhere.json", [[1, 2]])
    find = inputs.find_texts
    assert find("gold.json", [], PATHS, DEFAULT, needed=False) is None  # there are no such files
    assert find("gold.json", [], PATHS, DEFAULT, needed=True) == PATHS
    for path in PATHS:
        write_json(path, [])
    assert find("gold.json", [], PATHS, DEFAULT, needed=False) == PATHS
    assert find("elsewhere.json", [], PATHS, DEFAULT, needed=False) is None
    given = ("mine.json", "responses.json")
    assert find("elsewhere.json", [], given, DEFAULT, needed=False) == given


def test_texts_in_a_rewards_file_count_before_the_dataset_s(home):
    record = {"messages": make_prompt(0), "response_1": "a", "reward_1": 1.0}
    record |= {"response_2": "b", "reward_2": 2.0}
    write_json("gold.json", [[1, 2]])
    write_json("proxy.json", [record])
    texts = ([make_prompt(0)], [["a", "b"]])
    assert inputs.find_texts("gold.json", ["proxy.json"], PATHS, DEFAULT, needed=True) == texts


def test_only_a_default_may_be_absent(home):
    assert inputs.unless_absent("a.json", "a.json") == ""
    assert inputs.unless_absent("a.json", "b.json") == "a.json"
    write_json("a.json", [])
    assert inputs.unless_absent("a.json", "a.json") == "a.json"


def test_the_run_file_names_the_model_that_made_a_rewards_file(home):
    write_json("rewards.json", [[1, 2]])
    assert inputs.maker_of("rewards.json") is None
    write_json("rewards.json.run.json", {"config": {"model_name": "rm"}, "inputs": {}})
    assert inputs.maker_of("rewards.json") is None  # no such folder: a hub name, or gone
    write_json("rm/config.json", {})
    assert inputs.maker_of("rewards.json") == "rm"
    assert inputs.maker_of([[1.0, 2.0]]) is None


def test_a_log_cut_short_by_a_kill_is_read_and_a_broken_one_is_refused(home):
    assert inputs.read_metrics("rm") == []
    log = home / "rm" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert inputs.read_metrics("rm") == [{"step": 1}, {"step": 2}]
    log.write_text('{"step": 1}}\n')
    with pytest.raises(UserError, match="metrics.jsonl: a line is not valid JSON"):
        inputs.read_metrics("rm")
