import json
from dataclasses import asdict, dataclass, replace

import pytest

from rmood import BadInput
from rmood.config import layout, opt, parse


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names the paths", group="data")
    data_path: str = opt("{pairs}", "pairs")
    models: list[str] = opt([], "several")
    lr: float = opt(5e-5, "rate", group="optimization", above=0)
    epochs: int = opt(2, "passes", at_least=1)
    share: float = opt(0.0, "100% sure", at_least=0, at_most=0.5)
    overwrite: bool = opt(False, "replace", group="data")
    layout: str = opt("packed", "one of two", choices=["packed", "padded"])


def write(path, value) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def given(*argv: str) -> Config:
    return parse(Config, "doc", list(argv), prog="train.py")


def test_flags_are_read_with_either_sign():
    assert given("--data-path", "a_b").data_path == given("--data_path=a_b").data_path == "a_b"
    assert given("--models", "a", "b").models == ["a", "b"]
    assert given("--overwrite").overwrite and not given("--no-overwrite").overwrite


def test_one_dataset_flag_moves_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    assert given("--dataset", "toy").data_path == f"{tmp_path}/datasets/toy/rm/rm_implicit.jsonl"
    assert layout("alpacafarm")["proxy"] == f"{tmp_path}/models/RMOOD-qwen3-4b-alpacafarm-rm"
    assert layout("toy")["sft"] == f"{tmp_path}/models/toy-sft"
    assert layout("toy", "test")["prompts"] == layout("toy")["test_prompts"] == f"{tmp_path}/datasets/toy/test/test_prompts.json"


def test_a_home_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", "/nowhere/at-all")
    with pytest.raises(BadInput, match="RMOOD_HOME=/nowhere/at-all: no such folder"):
        given()


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--lr", "nan"], "--lr nan: must be above 0"),
        (["--lr", "inf"], "--lr inf: must be finite"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--share", "0.6"], "--share 0.6: must be at most 0.5"),
        (["--layout", "flat"], "invalid choice: 'flat'"),
        (["--epoch", "3"], "unknown argument --epoch: did you mean --epochs?"),
        (["--learning_rat", "3"], "unknown argument --learning-rat"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_an_impossible_value_is_a_letter(argv, expected):
    with pytest.raises(BadInput) as letter:
        given(*argv)
    assert expected in str(letter.value) and "train.py" in str(letter.value) and "\n" not in str(letter.value)


def test_a_run_file_repeats_its_run_and_flags_win(tmp_path):
    first = given("--data-path", "a b", "--models", "x", "--lr", "1e-3", "--overwrite", "--layout", "padded")
    run = write(tmp_path / "run.json", {"config": asdict(first), "command": ["train.py"], "versions": {}})
    assert given("--config", run) == first
    assert given("--epochs", "5", f"--config={run}", "--no-overwrite", "--models", "y", "z") == replace(first, epochs=5, overwrite=False, models=["y", "z"])
    assert given("--config", write(tmp_path / "plain.json", {"epochs": 7})).epochs == 7


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"learning_rate": 1e-3}, "'learning_rate' is no setting here: pass a run file of this very script"),
        ({"lr": "fast"}, "invalid float value: 'fast'"),
        ({"lr": -1}, "--lr -1.0: must be above 0"),
        ({"epochs": True}, "argument --epochs: expected one argument"),
        ({"layout": "flat"}, "invalid choice: 'flat'"),
        ([1], "holds no settings: pass a run.json"),
    ],
)
def test_a_run_file_that_cannot_be_repeated_is_a_letter(settings, expected, tmp_path):
    with pytest.raises(BadInput) as letter:
        given("--config", write(tmp_path / "run.json", {"config": settings} if isinstance(settings, dict) else settings))
    assert expected in str(letter.value) and "\n" not in str(letter.value)


def test_help_has_groups_an_example_and_every_default(capsys):
    with pytest.raises(SystemExit) as stop:
        given("--help")
    out = capsys.readouterr().out
    headings = [out.index(f"\n{words}\n") for words in ("data:", "optimization:", "example: python train.py --dataset toy")]
    assert headings[0] < out.index("--overwrite") < headings[1] < out.index("--lr") and "\x1b" not in out  # no colours: not a terminal
    assert stop.value.code == 0 and "5e-05" in out and "{pairs}" in out and "100% sure" in out
