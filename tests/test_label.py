import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, make_prompt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import label
from rmood import BadInput, records
from rmood.model import load_reward_model, save_reward_model


@pytest.fixture(scope="module")
def gold(toy_model_folder, toy_tokenizer, tmp_path_factory) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path_factory.mktemp("gold"))
    save_reward_model(folder, model.state_dict(), model, toy_tokenizer, torch.float32, {})
    return folder


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.json") for name in ("prompts", "responses", "target")}
    records.write_json(paths["prompts"], [{"messages": make_prompt(i)} for i in range(30)])
    records.write_json(paths["responses"], [{"response_1": "cat " * (i % 7 + 1), "response_2": f"dog {i}", "response_3": "same" if i else "x"} for i in range(30)])
    return paths


def arguments(gold: str, files: dict[str, str], *flags: str) -> list[str]:
    argv = ["--model-name", gold, "--dtype", "float32", "--tokens-per-pass", "200", "--device", "cpu"]
    return argv + [word for name, path in files.items() for word in (f"--{name}-path", path)] + list(flags)


def run(monkeypatch, gold: str, files: dict[str, str], *flags: str) -> list[list[float]]:
    monkeypatch.setattr(sys, "argv", ["label.py", *arguments(gold, files, *flags)])
    assert label.main() == 0
    return records.read_rewards(files["target"])


def test_rewards_are_those_of_transformers_in_the_order_of_the_responses(gold, files, monkeypatch):
    rewards = run(monkeypatch, gold, files)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(gold), AutoTokenizer.from_pretrained(gold)
    for i, row in enumerate(records.read_responses(files["responses"])):
        for reward, text in zip(rewards[i], row, strict=True):
            messages = make_prompt(i) + [{"role": "assistant", "content": text}]
            ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False, return_tensors="pt")
            assert model(**ids).logits.item() == pytest.approx(reward, abs=1e-5)


def test_company_does_not_change_a_reward(gold, files, monkeypatch):
    assert run(monkeypatch, gold, files) == [pytest.approx(row, abs=1e-5) for row in run(monkeypatch, gold, files, "--tokens-per-pass", "4000", "--batch-size", "3")]


def test_a_resumed_run_writes_the_same_bytes(gold, files, monkeypatch):
    run(monkeypatch, gold, files, "--dtype", "bf16")
    whole = open(files["target"], "rb").read()
    os.unlink(files["target"])

    class Killed(Exception):
        pass

    add, kept = records.Journal.add, []

    def add_once_then_die(journal, entries):
        if kept:
            raise Killed
        kept.extend(entries)
        add(journal, entries)

    monkeypatch.setattr(records.Journal, "add", add_once_then_die)
    with pytest.raises(Killed):
        run(monkeypatch, gold, files, "--dtype", "bf16")
    assert 0 < len(kept) < 30 and not os.path.exists(files["target"])
    monkeypatch.setattr(records.Journal, "add", add)
    run(monkeypatch, gold, files, "--dtype", "bf16")
    assert open(files["target"], "rb").read() == whole


def test_two_processes_write_what_one_writes(gold, files, monkeypatch):
    run(monkeypatch, gold, files)
    alone = open(files["target"], "rb").read()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "label.py", *arguments(gold, files)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert open(files["target"], "rb").read() == alone
    assert not [name for name in os.listdir(os.path.dirname(files["target"])) if "journal" in name]


def test_shards_together_are_the_unsharded_run(gold, files, monkeypatch):
    """Every shard plans the passes of the whole, then takes its share of them: the same bits, in bf16 too."""
    run(monkeypatch, gold, files, "--dtype", "bf16")
    alone, facts = open(files["target"], "rb").read(), json.load(open(f"{files['target']}.run.json"))
    os.unlink(files["target"])

    def ask(shard: str) -> None:
        monkeypatch.setattr(sys, "argv", ["label.py", *arguments(gold, files, "--dtype", "bf16", "--shard", shard)])
        assert label.main() == 0

    ask("1/3")
    with pytest.raises(BadInput, match="target.json.shard-2-of-3: missing, and with it 2 of 3 shards"):
        ask("merge")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "label.py", *arguments(gold, files, "--dtype", "bf16", "--shard", "2/3")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert result.returncode == 0 and "label.py --shard merge" in result.stdout, result.stderr[-2000:]
    ask("3/3")
    rows = [[json.loads(line)["row"] for line in open(f"{files['target']}.shard-{i}-of-3")] for i in (1, 2, 3)]
    assert sorted(sum(rows, [])) == list(range(30)) and all(rows) and not os.path.exists(files["target"])
    ask("merge")
    merged = json.load(open(f"{files['target']}.run.json"))
    assert open(files["target"], "rb").read() == alone
    assert {name for name in facts if merged[name] != facts[name]} <= {"time", "command"}
    with pytest.raises(BadInput, match="no work is left for this shard"):
        ask("30/30")


def test_the_run_file_says_what_was_scored_by_what(gold, files, monkeypatch, capsys):
    run(monkeypatch, gold, files, "--num-responses", "2")
    facts = json.load(open(f"{files['target']}.run.json"))
    assert facts["inputs"]["responses"]["sha256"] == records.sha256(files["responses"]) and facts["config"]["num_responses"] == 2
    captured = capsys.readouterr()
    assert "<|im_end|>⟦\\n⟧" in captured.err and "30 x 2 rewards" in captured.out and "rows with a tie" in captured.out


def test_a_long_response_is_cut_and_still_closed(gold, files, monkeypatch, capsys):
    rows = [{"response_1": "cat " * 100, "response_2": "dog"}] * 30
    records.write_json(files["responses"], rows)
    run(monkeypatch, gold, files, "--max-length", "64")
    assert "30 of 60 conversations were cut to 64 tokens" in capsys.readouterr().err


def test_files_of_different_length_are_refused(gold, files, monkeypatch):
    records.write_json(files["responses"], [{"response_1": "a"}])
    with pytest.raises(BadInput, match="1 rows for 30 prompts"):
        run(monkeypatch, gold, files)


def test_a_causal_lm_is_no_reward_model(toy_model_folder, files, monkeypatch):
    with pytest.raises(BadInput, match="no reward head"):
        run(monkeypatch, toy_model_folder, files)
    assert not os.path.exists(files["target"])
