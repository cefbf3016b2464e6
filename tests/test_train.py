import json
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import DATA, REPOSITORY, make_pairs, needs_data
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import train
from rmood import BadInput, records
from rmood.checkpoint import RunLog, checkpoints

SETTINGS = ["--lr", "3e-3", "--epochs", "2", "--batch-size", "8", "--tokens-per-pass", "256", "--device", "cpu"]


@pytest.fixture
def pairs_path(tmp_path) -> str:
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), make_pairs(44))
    return str(tmp_path / "pairs.jsonl")


def train_here(monkeypatch, model: str, pairs: str, output, *flags: str) -> list[dict]:
    """Run train.py's main in this process; the lines of its metrics.jsonl."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--model-name", model, "--data-path", pairs, "--output-dir", str(output), *SETTINGS, *flags])
    assert train.main() == 0
    return lines(output)


def torchrun(world_size: int, model: str, pairs: str, output, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "train.py"]
    command += ["--model-name", model, "--data-path", pairs, "--output-dir", str(output), *SETTINGS, *flags]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}, timeout=600)


def lines(output) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(metrics: list[dict]) -> list[float]:
    return [line["loss"] for line in metrics if "loss" in line]


def test_a_preference_is_learned_and_everything_is_written(toy_model_folder, pairs_path, tmp_path, monkeypatch, capsys):
    metrics = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--eval-share", "0.2", "--epochs", "6")
    assert losses(metrics)[0] == pytest.approx(math.log(2), abs=0.02) and losses(metrics)[-1] < 0.2
    last = metrics[-1]
    assert last["train_accuracy"] > 0.9 and last["eval_accuracy"] == 1.0 and last["eval_spread_ratio"] > 0
    assert metrics[0].keys() >= {
        *("step", "epoch", "loss", "accuracy", "margin_mean", "reward_mean", "reward_std", "reward_min", "reward_max", "std_within", "spread_ratio"),
        *("grad_norm", "grad_norm_head", "grad_norm_backbone", "learning_rate", "pairs_per_s", "tokens_per_s"),
    }
    run = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert (run["pairs"], run["held_out_pairs"]) == (35, 9) and run["inputs"]["pairs"]["sha256"] == records.sha256(pairs_path)
    assert "epoch 6" in run["results"] and list((tmp_path / "rm" / "tensorboard").iterdir())
    assert "| epoch 6 | eval |" in (tmp_path / "rm" / "README.md").read_text()
    out, said = capsys.readouterr()
    assert "<|im_end|>⟦\\n⟧" in said and "kept 35 of 35 pairs" in said
    assert out.startswith("epoch 1, train: loss 0.") and out.count("\n") == 13 and "rm: saved; next: python evaluate.py" in out  # results alone, on stdout


def test_the_saved_folder_gives_transformers_the_rewards_of_the_last_evaluation(any_model_folder, pairs_path, tmp_path, monkeypatch):
    metrics = train_here(monkeypatch, any_model_folder, pairs_path, tmp_path / "rm", "--eval-path", pairs_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    texts = [tokenizer.apply_chat_template(row[side], tokenize=False) for row in make_pairs(44) for side in ("chosen", "rejected")]
    rewards = model(**tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")).logits[:, 0]
    assert rewards.mean().item() == pytest.approx(metrics[-1]["eval_reward_mean"], abs=1e-5)
    assert rewards.max().item() == pytest.approx(metrics[-1]["eval_reward_max"], abs=1e-5)
    assert rewards.std(correction=0).item() == pytest.approx(metrics[-1]["eval_reward_std"], abs=1e-5)


def test_neither_passes_nor_layout_nor_recomputing_change_what_is_learned(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    plain = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "a", "--tokens-per-pass", "8192", "--layout", "padded"))
    for name, *flags in [("b", "--tokens-per-pass", "8192"), ("c", "--tokens-per-pass", "90"), ("d", "--activation-checkpointing", "on")]:
        assert losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / name, *flags)) == pytest.approx(plain, abs=1e-5)


def test_two_processes_learn_what_one_learns(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    """44 pairs in steps of 8: the last step has 4 pairs, some passes fewer, and no process may wait for the other."""
    alone = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "one", "--eval-share", "0.1")
    result = torchrun(2, toy_model_folder, pairs_path, tmp_path / "two", "--eval-share", "0.1")
    assert result.returncode == 0, result.stderr[-2000:]
    together = lines(tmp_path / "two")
    for one, two in zip(alone, together, strict=True):
        for name in one.keys() - {"pairs_per_s", "tokens_per_s"}:
            if name.startswith(("lost_updates", "update_")):
                continue  # a sample of each process's own part
            assert two[name] == pytest.approx(one[name], abs=1e-4, rel=1e-4), name
    weights = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])
    assert result.stderr.count("kept 40 of 40 pairs") == 1  # said once, not once a process


def test_more_processes_than_pairs_do_not_hang(toy_model_folder, tmp_path):
    records.write_jsonl(str(tmp_path / "one.jsonl"), make_pairs(1))
    result = torchrun(2, toy_model_folder, str(tmp_path / "one.jsonl"), tmp_path / "rm")
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(losses(lines(tmp_path / "rm"))) == 2


def test_training_goes_on_from_a_reward_model(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    first = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "first", "--epochs", "6"))
    second = losses(train_here(monkeypatch, str(tmp_path / "first"), pairs_path, tmp_path / "second"))
    assert second[0] < 0.5 * first[0]  # the head and what it learned are kept


def test_the_same_seed_gives_the_same_bits(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    for name in ("a", "b"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_bf16_compute_keeps_float32_weights(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    exact = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "a", "--precision", "float32"))
    mixed = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "b", "--precision", "mixed"))
    assert mixed == pytest.approx(exact, abs=0.05) and mixed != exact
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").dtype == torch.bfloat16


def test_the_warning_signs_are_said_aloud(toy_model_folder, pairs_path, tmp_path, monkeypatch, capsys):
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--lr", "1e-7", "--epochs", "1")
    said = capsys.readouterr().err
    for sign in ("above 0.5: raise --lr", "under 80%: the model is not learning", "WARNING compressed rewards"):
        assert sign in said


def test_long_pairs_are_left_out_aloud(toy_model_folder, tmp_path, monkeypatch, capsys):
    rows = make_pairs(4)
    rows[1]["rejected"][-1]["content"] = "dog " * 200
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), rows)
    train_here(monkeypatch, toy_model_folder, str(tmp_path / "pairs.jsonl"), tmp_path / "rm", "--max-length", "100")
    assert "kept 3 of 4 pairs; dropped 1: over 100 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--tokens-per-pass", "20"], "a pass only 20: raise --tokens-per-pass"),
        (["--max-length", "8"], "all 44 pairs are longer than 8 tokens"),
        (["--data-path", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["--model-name", "/nowhere"], "no model could be loaded"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
    ],
)
def test_bad_input_writes_nothing(toy_model_folder, pairs_path, tmp_path, monkeypatch, flags, expected):
    with pytest.raises(BadInput, match=expected):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", *flags)
    assert not (tmp_path / "rm").exists()


def test_a_trained_model_is_not_replaced_unasked(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--epochs", "1")
    with pytest.raises(BadInput, match="holds a model: pass --overwrite"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm")
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--overwrite", "--epochs", "1")


class Killed(Exception):
    pass


def die_at(monkeypatch, step: int) -> None:
    """The run ends abruptly once `step` has been logged, as by kill -9 but within this process."""
    write = RunLog.write

    def write_then_die(log, metrics, timing=None):
        write(log, metrics, timing)
        if metrics["step"] == step:
            raise Killed

    monkeypatch.setattr(RunLog, "write", write_then_die)


def without_timing(output) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.endswith("_per_s")} for line in lines(output)]


@pytest.mark.parametrize("precision", ["float32", "mixed", "bf16", "bf16-sr"])
def test_resumed_run_ends_where_the_uninterrupted_one_does(toy_model_folder, pairs_path, tmp_path, monkeypatch, precision):
    flags = ["--save-every", "2", "--precision", precision, "--eval-share", "0.1", "--centring", "0.1"]
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "whole", *flags)
    for step in (3, 7, 8):  # within the first epoch, within the second, and just after a checkpoint
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(patch, step)
            train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "killed", *flags, "--resume", "auto")
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "killed", *flags, "--resume", "auto")
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert without_timing(tmp_path / "killed") == without_timing(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoints").exists()
    train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "killed", *flags, "--resume", "auto")  # finished: nothing to do


def test_a_checkpoint_of_two_processes_resumes_in_one(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    whole = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "whole"))
    result = torchrun(2, toy_model_folder, pairs_path, tmp_path / "killed", "--save-every", "3", "--keep", "2", "--max-bad-steps", "1", "--trace", "1")
    assert result.returncode == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 8)
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "killed", "--save-every", "3", "--keep", "2", "--overwrite")
    assert [path.name for path in checkpoints(str(tmp_path / "killed"))] == ["step-00000003", "step-00000006"]
    resumed = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "killed", "--resume", "auto"))
    assert resumed == pytest.approx(whole, abs=1e-6)


def test_a_half_written_checkpoint_is_never_chosen(tmp_path):
    for name in ("step-00000004", "step-00000008.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(str(tmp_path))] == ["step-00000004"]


def test_resuming_with_other_settings_is_refused_by_name(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 4)
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--save-every", "2")
    with pytest.raises(BadInput, match="unfinished run: pass --resume auto"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm")
    with pytest.raises(BadInput, match=r"--lr 0.003 -> 0.001; --seed 0 -> 5"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--resume", "auto", "--lr", "1e-3", "--seed", "5")
    records.write_jsonl(pairs_path, make_pairs(43))
    with pytest.raises(BadInput, match="other pairs"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--resume", "auto")


def test_a_step_that_is_not_finite_is_not_taken_and_its_pair_is_named(toy_model_folder, pairs_path, tmp_path, monkeypatch, capsys):
    pair_rewards = train.reward_margin
    poisoned = {"calls": 0}

    def margin_with_one_nan(rewards):
        poisoned["calls"] += 1
        if poisoned["calls"] == 2:  # the second pass of step 1
            rewards.data[0, 0] = float("nan")
        return pair_rewards(rewards)

    monkeypatch.setattr(train, "reward_margin", margin_with_one_nan)
    metrics = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--epochs", "1")
    said = capsys.readouterr().err
    assert "WARNING step 1: rewards of pairs [" in said and "the step is not taken (1 in a row)" in said
    assert [line["step"] for line in metrics] == [2, 3, 4, 5, 6, 6] and all(math.isfinite(loss) for loss in losses(metrics))


def test_too_many_bad_steps_stop_the_run_and_keep_the_checkpoint(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="2 steps in a row were not finite"):
        train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--lr", "1e30", "--save-every", "1", "--max-bad-steps", "2")
    newest = checkpoints(str(tmp_path / "rm"))[-1]
    shard = load_file(next(newest.glob("shard-*")))
    assert all(torch.isfinite(part.float()).all() for name, part in shard.items() if name.startswith("weight")), newest


def test_the_trace_shows_every_number_of_a_pair(toy_model_folder, pairs_path, tmp_path, monkeypatch, capsys):
    metrics = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", "--trace", "2")
    said = capsys.readouterr().err
    assert said.count("--- step 1, pair") == said.count("--- step 2, pair") == 2 and "--- step 3" not in said
    for words in ("⟦\\n⟧", "pooled hidden state's norm", "loss = -log sigmoid(margin)", f"loss {metrics[0]['loss']:.4g}", "grad_norm_attention", "lost_updates_norms", "update_ratio"):
        assert words in said


@pytest.mark.parametrize("flags", [["--margin-scale", "0.5"], ["--label-temperature", "1.0"], ["--label-smoothing", "0.1"], ["--centring", "0.5"]])
def test_other_losses_learn_too(toy_model_folder, pairs_path, tmp_path, monkeypatch, flags):
    metrics = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "rm", *flags, "--epochs", "4")
    assert metrics[-1]["train_accuracy"] > 0.9
    plain = train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "plain", "--epochs", "4")
    assert metrics[-1]["train_loss"] != plain[-1]["train_loss"]


def test_gold_is_needed_where_the_loss_asks_for_it(toy_model_folder, tmp_path, monkeypatch):
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), [{side: row[side] for side in ("chosen", "rejected")} for row in make_pairs(4)])
    with pytest.raises(BadInput, match="need gold's rewards"):
        train_here(monkeypatch, toy_model_folder, str(tmp_path / "pairs.jsonl"), tmp_path / "rm", "--margin-scale", "1")


def test_replicas_of_a_sharded_model_learn_the_same(toy_model_folder, pairs_path, tmp_path, monkeypatch):
    alone = losses(train_here(monkeypatch, toy_model_folder, pairs_path, tmp_path / "one", "--epochs", "1"))
    result = torchrun(4, toy_model_folder, pairs_path, tmp_path / "four", "--epochs", "1", "--replicas", "2", "--tokens-per-pass", "60")  # several passes a step
    assert result.returncode == 0, result.stderr[-2000:]
    assert losses(lines(tmp_path / "four")) == pytest.approx(alone, abs=1e-5)


@needs_data
def test_a_real_llama_without_a_chat_template_asks_for_one_and_then_trains(pairs_path, tmp_path, monkeypatch):
    stories = str(DATA / "stories260k")
    with pytest.raises(BadInput, match="no chat template: give one with --chat-template FILE"):
        train_here(monkeypatch, stories, pairs_path, tmp_path / "rm")
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    metrics = train_here(monkeypatch, stories, pairs_path, tmp_path / "rm", "--chat-template", str(template), "--eval-path", pairs_path)
    assert losses(metrics)[-1] < 0.3 and metrics[-1]["eval_accuracy"] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert tokenizer.chat_template == template.read_text() and tokenizer.pad_token == "<unk>" != tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    texts = [tokenizer.apply_chat_template(row[side], tokenize=False) for row in make_pairs(44) for side in ("chosen", "rejected")]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    rewards = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
    assert rewards.mean().item() == pytest.approx(metrics[-1]["eval_reward_mean"], abs=1e-5)


@needs_data
def test_real_pairs_and_the_real_qwen3_tokenizer_on_one_and_two_processes(tmp_path, monkeypatch, capsys):
    """The reference's 1,000 test prompts, gold rewards and tokenizer; a small Qwen3 with random weights."""
    import preprocess

    folder = DATA / "alpacafarm"
    argv = ["--prompts-path", folder / "test_prompts.json", "--responses-path", folder / "test_sft.json", "--rewards-path", folder / "test_reward_gold.json"]
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *map(str, argv), "--target-path", str(tmp_path / "all.jsonl")])
    preprocess.main()
    (tmp_path / "pairs.jsonl").write_text("".join((tmp_path / "all.jsonl").read_text().splitlines(keepends=True)[:256]))
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64, vocab_size=151936)
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=True)).save_pretrained(tmp_path / "qwen")
    AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3").save_pretrained(tmp_path / "qwen")
    flags = ["--batch-size", "64", "--tokens-per-pass", "8192", "--epochs", "1"]
    one = losses(train_here(monkeypatch, str(tmp_path / "qwen"), str(tmp_path / "pairs.jsonl"), tmp_path / "one", *flags))
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n" in capsys.readouterr().err
    result = torchrun(2, str(tmp_path / "qwen"), str(tmp_path / "pairs.jsonl"), tmp_path / "two", *flags)
    assert result.returncode == 0, result.stderr[-2000:]
    assert losses(lines(tmp_path / "two")) == pytest.approx(one, abs=1e-5) and len(one) == 4
