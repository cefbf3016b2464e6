import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_prompt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import evaluate
import label
import sample
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.provenance import Journal, sha256
from rmood.files.rows import write_json
from rmood.files.tables import read_responses, read_rewards
from rmood.loading import load_reward_model


@pytest.fixture(scope="module")
def gold(toy_model_folder, toy_tokenizer, tmp_path_factory) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path_factory.mktemp("gold"))
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    return folder


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.json") for name in ("prompts", "responses", "target")}
    prompts = [{"messages": make_prompt(i)} for i in range(30)]
    responses = [
        {
            "response_1": "cat " * (i % 7 + 1),
            "response_2": f"dog {i}",
            "response_3": "same" if i else "x",
        }
        for i in range(30)
    ]
    write_json(paths["prompts"], prompts)
    write_json(paths["responses"], responses)
    return paths


def arguments(gold: str, files: dict[str, str], *flags: str) -> list[str]:
    argv = ["--model-name", gold, "--dtype", "float32", "--tokens-per-pass", "200"]
    argv += ["--device", "cpu"]
    for name, path in files.items():
        argv += [f"--{name}-path", path]
    return argv + list(flags)


def run_label(monkeypatch, gold: str, files: dict[str, str], *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["label.py", *arguments(gold, files, *flags)])
    assert label.main() == 0


def run(monkeypatch, gold: str, files: dict[str, str], *flags: str) -> list[list[float]]:
    run_label(monkeypatch, gold, files, *flags)
    return read_rewards(files["target"])


def run_on_two_processes(argv: list[str]) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "label.py", *argv],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def run_file(files: dict[str, str]) -> dict:
    return json.loads(Path(f"{files['target']}.run.json").read_text())


# ---- rewards ----


def test_rewards_are_those_of_transformers_in_the_order_of_the_responses(gold, files, monkeypatch):
    rewards = run(monkeypatch, gold, files)
    model = AutoModelForSequenceClassification.from_pretrained(gold)
    tokenizer = AutoTokenizer.from_pretrained(gold)
    for i, row in enumerate(read_responses(files["responses"])):
        for reward, text in zip(rewards[i], row, strict=True):
            messages = [*make_prompt(i), {"role": "assistant", "content": text}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
            assert model(**ids).logits.item() == pytest.approx(reward, abs=1e-5)


def test_the_other_rows_of_a_batch_do_not_change_a_reward(gold, files, monkeypatch):
    rewards = run(monkeypatch, gold, files)
    other = run(monkeypatch, gold, files, "--tokens-per-pass", "4000", "--batch-size", "3")
    assert rewards == [pytest.approx(row, abs=1e-5) for row in other]


def test_a_long_response_is_cut_and_still_closed(gold, files, monkeypatch, capsys):
    rows = [{"response_1": "cat " * 100, "response_2": "dog"}] * 30
    write_json(files["responses"], rows)
    run(monkeypatch, gold, files, "--max-length", "64")
    assert "30 of 60 conversations were cut to 64 tokens" in capsys.readouterr().err


# ---- one default dtype for gold and proxy ----


def test_every_script_that_runs_a_model_to_score_or_sample_has_the_same_default_dtype():
    """With other defaults gold would be scored in bf16 and the proxy in float32, on a CPU."""
    configs = [label.Config, sample.Config]
    configs += [
        value
        for value in vars(evaluate).values()
        if isinstance(value, type) and "dtype" in getattr(value, "__dataclass_fields__", {})
    ]
    assert len(configs) > 2
    for config in configs:
        assert config.__dataclass_fields__["dtype"].default == "auto", config


def test_the_default_dtype_on_a_cpu_is_float32(gold, files, monkeypatch):
    as_float32 = run(monkeypatch, gold, files)
    as_bf16 = run(monkeypatch, gold, files, "--dtype", "bf16")
    assert run_file(files)["work"]["dtype"] == "bf16"
    by_default = run(monkeypatch, gold, files, "--dtype", "auto")
    assert by_default == as_float32
    assert by_default != as_bf16
    # The run file has what was asked for, and what it came to.
    assert run_file(files)["config"]["dtype"] == "auto"
    assert run_file(files)["work"]["dtype"] == "float32"


# ---- interruptions, processes and shards ----


def test_a_resumed_run_writes_the_same_bytes(gold, files, monkeypatch):
    target = Path(files["target"])
    run(monkeypatch, gold, files, "--dtype", "bf16")
    whole = target.read_bytes()
    target.unlink()

    class Killed(Exception):
        pass

    add = Journal.add
    kept = []

    def add_once_then_die(journal, entries):
        if kept:
            raise Killed
        kept.extend(entries)
        add(journal, entries)

    monkeypatch.setattr(Journal, "add", add_once_then_die)
    with pytest.raises(Killed):
        run(monkeypatch, gold, files, "--dtype", "bf16")
    assert 0 < len(kept) < 30
    assert not target.exists()
    monkeypatch.setattr(Journal, "add", add)
    run(monkeypatch, gold, files, "--dtype", "bf16")
    assert target.read_bytes() == whole


def test_two_processes_write_what_one_writes(collectives, gold, files, monkeypatch):
    target = Path(files["target"])
    run(monkeypatch, gold, files)
    alone = target.read_bytes()
    result = run_on_two_processes(arguments(gold, files))
    assert result.returncode == 0, result.stderr[-2000:]
    assert target.read_bytes() == alone
    assert not list(target.parent.glob("*journal*"))


def test_shards_together_are_the_unsharded_run(collectives, gold, files, monkeypatch):
    """Each shard plans the passes of the whole and takes its share: the same bits, in bf16 too."""
    target = Path(files["target"])
    run(monkeypatch, gold, files, "--dtype", "bf16")
    alone = target.read_bytes()
    facts = run_file(files)
    target.unlink()

    def label_shard(shard: str) -> None:
        run_label(monkeypatch, gold, files, "--dtype", "bf16", "--shard", shard)

    label_shard("1/3")
    missing = "target.json.shard-2-of-3: missing, and with it 2 of 3 shards"
    with pytest.raises(UserError, match=missing):
        label_shard("merge")
    result = run_on_two_processes(arguments(gold, files, "--dtype", "bf16", "--shard", "2/3"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "label.py --shard merge" in result.stdout
    label_shard("3/3")

    rows = []
    for i in (1, 2, 3):
        lines = Path(f"{target}.shard-{i}-of-3").read_text().splitlines()
        assert lines
        rows += [json.loads(line)["row"] for line in lines]
    assert sorted(rows) == list(range(30))
    assert not target.exists()

    label_shard("merge")
    merged = run_file(files)
    assert target.read_bytes() == alone
    assert {name for name in facts if merged[name] != facts[name]} <= {"time", "command"}
    with pytest.raises(UserError, match="no work is left for this shard"):
        label_shard("30/30")


# ---- what it says ----


def test_the_run_file_says_what_was_scored_by_what(gold, files, monkeypatch, capsys):
    run(monkeypatch, gold, files, "--num-responses", "2")
    facts = run_file(files)
    assert facts["inputs"]["responses"]["sha256"] == sha256(files["responses"])
    assert facts["config"]["num_responses"] == 2
    captured = capsys.readouterr()
    assert "<|im_end|>⟦\\n⟧" in captured.err
    assert "30 x 2 rewards" in captured.out
    assert "rows with a tie" in captured.out


def test_files_of_different_length_are_refused(gold, files, monkeypatch):
    write_json(files["responses"], [{"response_1": "a"}])
    with pytest.raises(UserError, match="1 rows for 30 prompts"):
        run(monkeypatch, gold, files)


def test_more_responses_than_the_file_has_are_refused(gold, files, monkeypatch):
    with pytest.raises(UserError, match="3 responses per prompt, but --num-responses 4"):
        run(monkeypatch, gold, files, "--num-responses", "4")


def test_a_causal_lm_is_no_reward_model(toy_model_folder, files, monkeypatch):
    with pytest.raises(UserError, match="no reward head"):
        run(monkeypatch, toy_model_folder, files)
    assert not os.path.exists(files["target"])
