from pathlib import Path

import pytest
from conftest import REPOSITORY

from rmood.errors import UserError
from rmood.files.paths import dataset_paths, home_folder


def test_everything_of_a_dataset_is_below_its_home(monkeypatch, tmp_path):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    paths = dataset_paths("toy")
    assert paths["pairs"] == f"{tmp_path}/datasets/toy/rm/rm_implicit.jsonl"
    assert paths["sft"] == f"{tmp_path}/models/toy-sft"
    assert paths["proxy"] == f"{tmp_path}/models/toy-rm"
    assert paths["report"] == f"{tmp_path}/reports/toy.html"
    assert all(path.startswith(str(tmp_path)) for path in paths.values())


def test_the_split_chooses_the_files_and_the_test_files_have_roles_of_their_own(tmp_path):
    test = dataset_paths("toy", "test", home=tmp_path)
    train = dataset_paths("toy", "train", home=tmp_path)
    assert test["prompts"] == f"{tmp_path}/datasets/toy/test/test_prompts.json"
    for role in ("prompts", "responses", "rewards", "pairs"):
        assert train[f"test_{role}"] == test[role] != train[role]


def test_the_reference_s_models_are_on_the_hub_and_its_proxy_here():
    paths = dataset_paths("alpacafarm", home=Path(""))
    assert paths["sft"] == "Hahmdong/RMOOD-qwen3-4b-alpacafarm-sft"
    assert paths["gold"] == "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
    assert paths["proxy"] == "models/RMOOD-qwen3-4b-alpacafarm-rm"


def test_without_rmood_home_the_repository_is_home(monkeypatch):
    monkeypatch.delenv("RMOOD_HOME", raising=False)
    assert home_folder() == REPOSITORY
    monkeypatch.setenv("RMOOD_HOME", "")
    assert home_folder() == REPOSITORY


def test_a_home_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", "/nowhere/at-all")
    with pytest.raises(UserError, match="RMOOD_HOME=/nowhere/at-all: no such folder"):
        dataset_paths("toy")
