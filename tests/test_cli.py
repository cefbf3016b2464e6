import importlib
import json
import re
import sys
from dataclasses import asdict, dataclass, fields, replace

import pytest

import label
import preprocess
import sample
import train
from rmood.cli import OTHER_SETTINGS, SAME_SETTINGS, opt, parse
from rmood.errors import UserError
from rmood.files.paths import dataset_paths


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names the paths", group="data")
    data_path: str = opt("{pairs}", "pairs")
    models: list[str] = opt([], "several")
    rates: list[float] = opt([1.0, 2.0], "two")
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
    assert given("--data-path", "a_b").data_path == "a_b"
    assert given("--data_path=a_b").data_path == "a_b"
    assert given("--models", "a", "b").models == ["a", "b"]
    assert given("--models", "a", "--models", "b").models == ["a", "b"]
    assert given().rates == [1, 2]
    assert given("--rates", "3", "--rates", "4").rates == [3, 4]  # not beside the default ones
    assert given("--overwrite").overwrite
    assert not given("--no-overwrite").overwrite


def test_one_dataset_flag_moves_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    toy = given("--dataset", "toy", "--models", "{sft}", "{proxy}/epoch-1")
    assert toy.data_path == f"{tmp_path}/datasets/toy/rm/rm_implicit.jsonl"
    assert toy.models == [f"{tmp_path}/models/toy-sft", f"{tmp_path}/models/toy-rm/epoch-1"]


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
def test_an_impossible_value_is_an_error_of_one_line(argv, expected):
    with pytest.raises(UserError) as raised:
        given(*argv)
    message = str(raised.value)
    assert expected in message and "train.py" in message and "\n" not in message


def test_a_run_file_repeats_its_run_and_flags_override_it(tmp_path):
    first = given(
        *["--data-path", "a b", "--models", "x", "--lr", "1e-3"],
        *["--overwrite", "--layout", "padded"],
    )
    run = {"config": asdict(first), "command": ["train.py"], "versions": {}}
    path = write(tmp_path / "run.json", run)
    assert given("--config", path) == first
    changed = given("--epochs", "5", f"--config={path}", "--no-overwrite", "--models", "y", "z")
    assert changed == replace(first, epochs=5, overwrite=False, models=["y", "z"])
    assert given("--config", write(tmp_path / "plain.json", {"epochs": 7})).epochs == 7


@pytest.mark.parametrize(
    "run, expected",
    [
        (
            {"config": {"learning_rate": 1e-3}},
            "'learning_rate' is no setting here: pass a run file of this very script",
        ),
        ({"config": {"lr": "fast"}}, "invalid float value: 'fast'"),
        ({"config": {"lr": -1}}, "--lr -1.0: must be above 0"),
        ({"config": {"epochs": True}}, "argument --epochs: expected one argument"),
        ({"config": {"layout": "flat"}}, "invalid choice: 'flat'"),
        ([1], "holds no settings: pass a run.json"),
    ],
)
def test_a_run_file_that_cannot_be_repeated_is_an_error_of_one_line(run, expected, tmp_path):
    path = write(tmp_path / "run.json", run)
    with pytest.raises(UserError) as raised:
        given("--config", path)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def help_of(*argv: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        given(*argv, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_has_groups_an_example_and_every_default(capsys):
    out = help_of(capsys=capsys)
    data = out.index("\ndata:\n")
    optimization = out.index("\noptimization:\n")
    assert data < out.index("--overwrite") < optimization < out.index("--lr")
    assert "\nexample: python train.py --dataset toy\n" in out
    assert "5e-05" in out and "100% sure" in out
    assert "\x1b" not in out  # no colours: not a terminal


def test_help_shows_default_paths_relative_to_home(capsys, monkeypatch):
    """The same text on every machine, even where RMOOD_HOME is wrong."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RMOOD_HOME", "/nowhere/at-all")
    out = help_of(capsys=capsys)
    assert "pairs (default: datasets/alpacafarm/rm/rm_implicit.jsonl)" in out
    assert "Default paths start from RMOOD_HOME" in out and "/nowhere" not in out


COMMANDS = [
    "train.py",
    "sample.py",
    "label.py",
    "preprocess.py",
    "evaluate.py match",
    "evaluate.py quality",
    "evaluate.py diagnose",
    "evaluate.py report",
    "evaluate.py bon",
    "evaluate.py validate",
    "evaluate.py inspect",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_shows_the_name_of_a_path_in_place_of_the_path(command, monkeypatch, capsys):
    script, *words = command.split()
    main = importlib.import_module(script.removesuffix(".py")).main
    monkeypatch.setattr(sys, "argv", [script, *words, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    defaults = re.findall(r"\(default: (.*?)\)", out)
    assert len(defaults) > 5
    assert not [default for default in defaults if "{" in default]
    assert "datasets/alpacafarm/" in out or "models/RMOOD-qwen3-4b-alpacafarm-rm" in out
    for role, path in dataset_paths("alpacafarm").items():
        assert "{" + role + "}" not in out
        assert not path.startswith("/") or path not in out  # relative: the same on every machine


# ---- flags of other trainers ---


@pytest.mark.parametrize(
    "flag, name, value",
    [
        ("--learning-rate", "lr", 1e-3),
        ("--learning_rate", "lr", 1e-3),
        ("--num-train-epochs", "epochs", 3),
        ("--data", "data_path", "x"),
    ],
)
def test_a_flag_of_another_trainer_with_the_same_meaning_is_taken(flag, name, value):
    assert getattr(given(flag, str(value)), name) == value
    assert getattr(given(f"{flag}={value}"), name) == value


@pytest.mark.parametrize(
    "argv, expected",
    [
        (
            "--per-device-train-batch-size 8",
            "--per-device-train-batch-size is another trainer's flag: here --batch-size N is",
        ),
        ("--gradient_accumulation_steps 4", "--gradient-accumulation-steps is another trainer's"),
        ("--bf16", "--bf16 is another trainer's flag: here --precision mixed"),
        ("--max_seq_length 1024", "here --max-length N; in training longer pairs are left out"),
        ("--deepspeed ds.json", "here the model is always sharded by FSDP2"),
        ("--dataset-name a/b", "here --data-path owner/name[@revision][:split]"),
        ("--lr-scheduler-type linear", "here the rate falls by a cosine"),
        ("--data-path a.jsonl b.jsonl", "unknown argument b.jsonl: further training pairs go"),
    ],
)
def test_a_flag_of_another_trainer_with_another_meaning_is_answered_by_ours(argv, expected):
    with pytest.raises(UserError) as raised:
        parse(train.Config, "doc", argv.split(), prog="train.py")
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_said_of_other_trainers_flags_names_flags_that_there_are():
    """Every one of them in train.py or, as it has no such setting, in another script."""
    own = set()
    for config in (train.Config, sample.Config, label.Config, preprocess.Config):
        own |= {"--" + field.name.replace("_", "-") for field in fields(config)}
    assert set(SAME_SETTINGS.values()) <= own
    named = set(re.findall(r"--[a-z-]+", " ".join(OTHER_SETTINGS.values())))
    assert named <= own | {"--nproc-per-node", "--help"}
    assert not own & (SAME_SETTINGS.keys() | OTHER_SETTINGS.keys())


def test_a_script_without_the_setting_does_not_take_the_flag():
    with pytest.raises(UserError, match="unknown argument --num-train-epochs"):
        parse(sample.Config, "doc", ["--num-train-epochs", "3"], prog="sample.py")
    assert parse(sample.Config, "doc", ["--max-new-tokens", "9"], prog="sample.py").max_tokens == 9
