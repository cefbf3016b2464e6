"""train.py as a whole: what is learned, logged, refused and exported, on one process and many."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import DATA, REPOSITORY, make_pairs, needs_data
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import losses, read_metrics, train_here, write_pairs  # noqa: F401  for other tests
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import train
from rmood import evaluation
from rmood.batching import LAYOUTS
from rmood.checkpoint import checkpoints
from rmood.diagnosis.curve import curve_of_run
from rmood.errors import UserError
from rmood.files.provenance import sha256
from rmood.loading import load_reward_model
from rmood.optim import local
from rmood.sharding import PRECISIONS, shard

LOGGED_EACH_STEP = set(
    "step epoch objective loss accuracy margin_mean reward_mean reward_std reward_min reward_max "
    "std_within spread_ratio grad_norm grad_norm_backbone learning_rate "
    "pairs_per_s tokens_per_s".split()
)


def classifier_rewards(folder) -> torch.Tensor:
    """(N,) rewards of the pairs' 2 * 44 conversations, by transformers alone, from padded rows."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for row in make_pairs(44):
        for side in ("chosen", "rejected"):
            texts.append(tokenizer.apply_chat_template(row[side], tokenize=False))
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


# ---- what is learned and written -----------------------------------------------------------------


def test_a_preference_is_learned_and_everything_is_written(train_to, pairs_path, tmp_path, capsys):
    metrics = train_to("rm", "--eval-share 0.2 --epochs 6")
    assert losses(metrics)[0] == pytest.approx(math.log(2), abs=0.02)
    assert losses(metrics)[-1] < 0.2
    last = metrics[-1]
    assert last["running_accuracy"] > 0.9
    assert last["eval_accuracy"] == 1.0
    assert last["eval_spread_ratio"] > 0
    assert last["train_bits"] > 0.9
    assert last["eval_scale_low"] > 0
    assert last["eval_scale"] is None  # all are right: no scale is too large
    assert metrics[0].keys() >= LOGGED_EACH_STEP

    run = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert (run["pairs"], run["held_out_pairs"]) == (35, 9)
    assert run["inputs"]["pairs"]["sha256"] == sha256(pairs_path)
    assert run["results"]["epoch 6"].keys() == {"running", "train", "eval"}
    assert run["results"]["epoch 6"]["train"]["scale_pairs"] == len(run["train_sample"]) == 35
    assert run["step"] == 30
    assert list((tmp_path / "rm" / "tensorboard").iterdir())
    assert "| epoch 6 | eval |" in (tmp_path / "rm" / "README.md").read_text()

    out, err = capsys.readouterr()
    assert "<|im_end|>⟦\\n⟧" in err
    assert "kept 35 of 35 pairs" in err
    assert out.startswith("epoch 1, running: loss 0.")  # only results are on stdout
    assert out.count("\n") == 6 * 3 + 2
    assert "epoch 6, eval: 9 pairs, right 1.000 (0.701 to 1.000), bits 1.00" in out
    assert "WARNING" not in err  # 9 prompts cannot tell anything
    assert "rm: saved; next: python evaluate.py" in out


def test_the_saved_folder_gives_transformers_the_rewards_of_the_last_evaluation(
    train_to, any_model_folder, pairs_path, tmp_path
):
    last = train_to("rm", "--eval-path", pairs_path, model=any_model_folder)[-1]
    rewards = classifier_rewards(tmp_path / "rm")
    assert rewards.mean().item() == pytest.approx(last["eval_reward_mean"], abs=1e-5)
    assert rewards.max().item() == pytest.approx(last["eval_reward_max"], abs=1e-5)
    assert rewards.std(correction=0).item() == pytest.approx(last["eval_reward_std"], abs=1e-5)


@pytest.fixture
def plain_losses(train_to) -> list[float]:
    """Of padded rows, in one pass a step."""
    return losses(train_to("plain", "--tokens-per-pass 8192 --layout padded"))


@pytest.mark.parametrize(
    "flags",
    ["--tokens-per-pass 8192", "--tokens-per-pass 90", "--activation-checkpointing on"],
)
def test_neither_passes_nor_layout_nor_recomputing_change_what_is_learned(
    train_to, plain_losses, flags
):
    assert losses(train_to("rm", flags)) == pytest.approx(plain_losses, abs=1e-5)


def test_training_goes_on_from_a_reward_model(train_to, tmp_path):
    first = losses(train_to("first", "--epochs 6"))
    second = losses(train_to("second", model=str(tmp_path / "first")))
    assert second[0] < 0.5 * first[0]  # the head and what it learned are kept


def test_the_same_seed_gives_the_same_bits(train_to, tmp_path):
    for name in ("a", "b"):
        train_to(name)
    a, b = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_bf16_compute_keeps_float32_weights(train_to, tmp_path):
    exact = losses(train_to("exact", "--precision float32"))
    mixed = losses(train_to("mixed", "--precision mixed"))
    assert mixed == pytest.approx(exact, abs=0.05)
    assert mixed != exact
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mixed")
    assert saved.dtype == torch.bfloat16


def test_a_model_that_learns_nothing_of_its_own_pairs_is_a_warning(train_to, capsys, monkeypatch):
    """At this rate no margin leaves its start: bits of 44 training pairs are near 0."""
    monkeypatch.setattr(evaluation, "NOTHING", 0.2)  # 44 pairs are too few for 0.05
    train_to("rm", "--lr 1e-7 --epochs 2")
    err = capsys.readouterr().err
    assert err.count("WARNING learned next to nothing") == 1  # after the last epoch alone
    assert "compressed" not in err


# ---- evaluations ---------------------------------------------------------------------------------


@pytest.fixture
def other_pairs(tmp_path) -> str:
    """60 prompts that pairs_path does not have."""
    return write_pairs(tmp_path / "others.jsonl", make_pairs(104)[44:])


def of_part(metrics: list[dict], part: str) -> dict[int, float]:
    """Step -> loss of this part, of the lines that have one."""
    return {line["step"]: line[f"{part}_loss"] for line in metrics if f"{part}_loss" in line}


def test_held_out_sets_are_evaluated_by_name_every_so_many_steps(
    train_to, pairs_path, other_pairs, tmp_path, capsys
):
    sets = f"--eval-path {other_pairs} again={pairs_path}"
    metrics = train_to("rm", sets, "--eval-every 4 --train-sample 11")
    assert list(of_part(metrics, "eval")) == [4, 6, 8, 12]  # 6 steps an epoch
    assert list(of_part(metrics, "eval_again")) == [4, 6, 8, 12]
    assert list(of_part(metrics, "train")) == [6, 12]
    assert of_part(metrics, "eval")[12] < of_part(metrics, "eval")[4]
    assert "step 4, eval_again: 44 pairs, right" in capsys.readouterr().err
    board = EventAccumulator(str(tmp_path / "rm" / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"eval/bits", "eval_again/scale_low", "train/right", "step/loss"} <= tags
    run = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert run["inputs"].keys() == {"pairs", "eval_pairs", "eval_pairs_again"}
    assert run["held_out_pairs"] == 104


def test_evaluating_and_keeping_models_changes_nothing_that_is_learned(
    train_to, other_pairs, tmp_path
):
    plain = train_to("plain", "--train-sample 0")
    flags = "--eval-every 1 --keep-epochs --keep-best eval_bits"
    more = train_to("more", f"--eval-path {other_pairs}", flags)
    assert losses(more) == losses(plain)
    folders = [tmp_path / name for name in ("plain", "more", "more/epoch-2")]
    weights = {(folder / "model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 1
    rewards = classifier_rewards(tmp_path / "more" / "epoch-1")
    running = [line for line in plain if "running_loss" in line]
    assert rewards.std(correction=0).item() > running[0]["running_reward_std"]  # it is epoch 1's
    assert rewards.std().item() < classifier_rewards(tmp_path / "more" / "epoch-2").std().item()


def test_the_best_model_is_kept_and_the_run_stops_when_it_gets_worse(train_to, tmp_path, capsys):
    """Held-out pairs that prefer the other side: each step makes them worse, beyond noise."""
    rows = make_pairs(104)[44:]
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path = write_pairs(tmp_path / "flipped.jsonl", rows)
    flags = "--eval-every 2 --early-stop 2 --keep-best eval_loss --epochs 4"
    metrics = train_to("rm", f"--eval-path {path}", flags)
    out = capsys.readouterr()
    evaluated = of_part(metrics, "eval")
    best = min(evaluated, key=evaluated.get)
    run = json.loads((tmp_path / "rm" / "run.json").read_text())
    assert run["finished"]
    assert run["step"] == max(evaluated) < 24
    assert run["stopped"].startswith(f"stopped at step {run['step']}: none of the 2 evaluations")
    assert run["stopped"] in out.out
    assert f"rm/best: the model of step {best}, best by eval_loss" in out.out
    kept = json.loads((tmp_path / "rm" / "best" / "run.json").read_text())
    assert (kept["step"], kept["best"]["value"]) == (best, pytest.approx(evaluated[best]))
    train_to("rm", f"--eval-path {path}", flags, "--resume auto")  # finished: nothing to do
    assert "the run is finished" in capsys.readouterr().out


def test_a_killed_run_stops_and_keeps_where_the_uninterrupted_one_does(
    train_to, killed_at, other_pairs, tmp_path
):
    flags = f"--eval-path {other_pairs} --eval-every 2 --save-every 3 --keep-epochs --early-stop 2"
    flags += " --keep-best eval_bits --epochs 3 --lr 1e-2"
    train_to("whole", flags)
    last = json.loads((tmp_path / "whole" / "run.json").read_text())["step"]
    assert last < 18
    for step in (last - 4, last - 1):
        with killed_at(step):
            train_to("killed", flags, "--resume auto")
    train_to("killed", flags, "--resume auto")
    files = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("model.safetensors")
    )
    assert len(files) == 2 + last // 6  # the last, the best, and those of whole epochs
    for file in files:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    whole, killed = (
        json.loads((tmp_path / n / "run.json").read_text()) for n in ("whole", "killed")
    )
    for name in ("results", "best", "stopped", "step", "train_sample"):
        assert killed[name] == whole[name]


def test_a_new_run_leaves_no_model_of_the_one_before(train_to, tmp_path):
    train_to("rm", "--keep-epochs --epochs 3")
    train_to("rm", "--keep-epochs --epochs 2 --overwrite")
    names = {path.name for path in (tmp_path / "rm").glob("epoch-*")}
    assert names == {"epoch-1", "epoch-2"}


@pytest.mark.parametrize("flag", ["--eval-every 2", "--early-stop 2", "--keep-best eval_loss"])
def test_what_needs_held_out_pairs_asks_for_them(train_to, tmp_path, flag):
    with pytest.raises(UserError, match="need held-out pairs: pass --eval-path FILE"):
        train_to("rm", flag)
    assert not (tmp_path / "rm").exists()


def test_the_learning_curve_is_read_after_epoch_1(train_to, tmp_path, capsys):
    """22 steps of 2 pairs: the loss before each update, of pairs that are all new."""
    metrics = train_to("rm", "--batch-size 2")
    lines = [line for line in metrics if "curve_gain" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [(22, 1)]
    again = curve_of_run(metrics, {}, pairs=44)  # from what was logged alone
    for name, value in again.as_numbers().items():
        if isinstance(value, float):
            assert lines[0][f"curve_{name}"] == pytest.approx(value, abs=1e-5), name
    assert "learning curve: loss " in capsys.readouterr().out
    soft = train_to("soft", "--batch-size 2 --label-temperature 5 --epochs 1")
    assert not any("curve_gain" in line for line in soft)
    assert "learning curve: cannot tell" in capsys.readouterr().out


# ---- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        "--margin-scale 0.5",
        "--label-temperature 1.0",
        "--label-smoothing 0.1",
        "--centring 0.5",
    ],
)
def test_other_losses_learn_too(train_to, flags):
    last = train_to("rm", flags, "--epochs 4")[-1]
    assert last["running_accuracy"] > 0.9
    plain = train_to("plain", "--epochs 4")[-1]
    assert last["running_loss"] != plain["running_loss"]


def test_without_options_the_objective_is_the_plain_loss(train_to):
    steps = [line for line in train_to("rm") if "loss" in line]
    assert len(steps) == 12
    for line in steps:
        assert line["objective"] == pytest.approx(line["loss"], abs=1e-6)


def test_the_objective_is_what_is_minimised_and_the_loss_stays_bradley_terry(train_to):
    """With one pair a step its margin m is logged.

    Smoothing e: (1 - e) softplus(-m) + e softplus(m).
    """
    e = 0.1
    metrics = train_to("rm", f"--label-smoothing {e} --batch-size 1 --epochs 1")
    steps = [line for line in metrics if "loss" in line]
    assert len(steps) == 44
    for line in steps:
        margin = line["margin_mean"]
        right = math.log1p(math.exp(-margin))
        wrong = math.log1p(math.exp(margin))
        assert line["loss"] == pytest.approx(right, abs=1e-6)
        assert line["objective"] == pytest.approx((1 - e) * right + e * wrong, abs=1e-6)
    assert steps[-1]["objective"] > steps[-1]["loss"] + 0.1  # the margin has grown


def test_gold_is_needed_where_the_loss_asks_for_it(train_to, tmp_path):
    rows = [{side: row[side] for side in ("chosen", "rejected")} for row in make_pairs(4)]
    with pytest.raises(UserError, match="need gold's rewards"):
        train_to("rm", "--margin-scale 1", pairs=write_pairs(tmp_path / "no-gold.jsonl", rows))


def test_the_update_is_measured_every_so_many_steps_and_the_loss_in_each(train_to):
    """48 steps: every 4th where that is asked for; every 10th would be fewer than ten a run."""
    for flags, every in (("--log-every 3", 3), ("", 4)):
        metrics = train_to(f"rm{every}", "--epochs 8", flags)
        steps = [line for line in metrics if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, 49))
        measured = [line["step"] for line in steps if "lost_updates" in line]
        assert measured == list(range(every, 49, every))
        assert measured == [line["step"] for line in steps if "grad_norm_head" in line]


def test_the_trace_shows_every_number_of_a_pair(train_to, capsys):
    metrics = train_to("rm", "--trace 2")
    err = capsys.readouterr().err
    assert err.count("--- step 1, ") == err.count("--- step 2, ") == 2
    assert len(re.findall(r"--- step \d, .*/pairs.jsonl: line \d+, chosen:", err)) == 4
    assert "--- step 3" not in err
    for words in (
        "⟦\\n⟧",
        "norm of pooled state",
        "= -log(sigmoid(margin))",
        f"objective {metrics[0]['objective']:.4g}, loss {metrics[0]['loss']:.4g}",
        "grad_norm_attention",
        "lost_updates_norms",
        "update_ratio",
    ):
        assert words in err


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--margin-scale 0.5",
        "--label-temperature 2",
        "--label-smoothing 0.1",
        "--margin-scale 0.5 --label-temperature 2 --label-smoothing 0.1 --centring 0.5",
    ],
)
def test_the_trace_prints_the_equation_and_the_value_that_it_gives(train_to, capsys, flags):
    """At step 1, where `center` is 0: no step before it has a mean reward."""
    train_to("rm", "--trace 1 --epochs 1", flags)
    err = capsys.readouterr().err
    shown = err[err.index("--- step 1, ") :]

    def number(name: str) -> float:
        return float(re.search(rf"^{name} +(-?[\d.]+)", shown, re.MULTILINE)[1])

    chosen, rejected = re.search(r"^reward +(\S+) chosen, (\S+) rejected", shown, re.M).groups()
    names = {
        "log": math.log,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
        "margin": number("margin"),
        "center": 0.0,
        "r_chosen": float(chosen),
        "r_rejected": float(rejected),
    }
    if "gold_margin" in shown:
        names["gold_margin"] = number("gold_margin")
    equation = re.search(r"^loss +\S+ = (.*)$", shown, re.MULTILINE)[1]
    expression, _, p = equation.partition(", p = ")
    if p:
        names["p"] = eval(p, dict(names))
    assert eval(expression, dict(names)) == pytest.approx(number("loss"), abs=2e-4)


# ---- many processes ------------------------------------------------------------------------------


def test_two_processes_learn_what_one_learns(train_to, torchrun_to, tmp_path):
    """44 pairs in steps of 8: the last step has 4 pairs, some passes fewer, and no process may wait
    for the other."""
    alone = train_to("one", "--eval-share 0.1")
    result = torchrun_to(2, "two", "--eval-share 0.1")
    together = read_metrics(tmp_path / "two")
    for one, two in zip(alone, together, strict=True):
        for name in one.keys() - {"pairs_per_s", "tokens_per_s"}:
            if name.startswith(("lost_updates", "update_")):
                continue  # a sample of each process's own part
            if one[name] is None or isinstance(one[name], str):
                assert two[name] == one[name], name
            else:
                assert two[name] == pytest.approx(one[name], abs=1e-4, rel=1e-4), name
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict()
        for name in ("one", "two")
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    assert result.stderr.count("kept 40 of 40 pairs") == 1  # once, not by each process


def test_more_processes_than_pairs_do_not_hang(torchrun_to, tmp_path):
    torchrun_to(2, "rm", pairs=write_pairs(tmp_path / "one.jsonl", make_pairs(1)))
    assert len(losses(read_metrics(tmp_path / "rm"))) == 2


@pytest.mark.parametrize("collectives", ["collectives return at once"], indirect=True)
def test_replicas_of_a_sharded_model_learn_the_same(train_to, torchrun_to, tmp_path):
    alone = losses(train_to("one", "--epochs 1"))
    torchrun_to(4, "four", "--epochs 1 --replicas 2 --tokens-per-pass 60")  # several passes a step
    assert losses(read_metrics(tmp_path / "four")) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("collectives", ["collectives wait"], indirect=True)
def test_replicas_hold_the_same_bits_in_every_precision(torchrun_to):
    """Also with stochastic rounding: each replica rounds a weight by the same random number."""
    result = torchrun_to(4, "rm", "--replicas 2 --epochs 2", script="tests/replicas.py")
    compared = json.loads(result.stdout.splitlines()[-1])
    assert compared.keys() == PRECISIONS.keys()
    for precision, counts in compared.items():
        assert counts["updated"] > 20_000, precision
        assert counts["values"] > 3 * counts["updated"], precision
        assert counts["different"] == 0, precision


# ---- pairs that are left out, steps that are not taken -------------------------------------------


def test_long_pairs_are_left_out_and_counted(train_to, tmp_path, capsys):
    rows = make_pairs(4)
    rows[1]["rejected"][-1]["content"] = "dog " * 200
    train_to("rm", "--max-length 100", pairs=write_pairs(tmp_path / "long.jsonl", rows))
    assert "kept 3 of 4 pairs; dropped 1: over 100 tokens" in capsys.readouterr().err


def test_a_step_that_is_not_finite_is_not_taken_and_its_pair_is_named(
    train_to, nan_model, tmp_path, capsys
):
    """Line 2 is left out by --max-length, and lines 5 and 6 are still lines 5 and 6."""
    rows = make_pairs(44)
    rows[1]["rejected"][-1]["content"] = "dog " * 200
    rows[5]["chosen"][-1]["content"] = "cat ~ five"
    path = write_pairs(tmp_path / "pairs-nan.jsonl", rows)
    flags = "--epochs 1 --max-length 100 --tokens-per-pass 70"  # one pair a pass
    metrics = train_to("rm", flags, model=nan_model, pairs=path)

    err = capsys.readouterr().err
    warning = re.search(r"WARNING step (\d): (.*)", err)
    assert f"not finite ({path}: line 6)" in warning[2]
    assert "the step is not taken (1 in a row)" in warning[2]
    assert f"{path}: line 6, chosen:\n<|im_start|>system" in err
    assert "cat ~ five" in err
    taken = [step for step in range(1, 7) if step != int(warning[1])]
    assert [line["step"] for line in metrics] == [*taken, 6]
    assert all(math.isfinite(loss) for loss in losses(metrics))


def test_a_pair_that_does_not_fit_a_pass_is_named_by_its_line(train_to, tmp_path):
    rows = make_pairs(8)
    rows[1]["rejected"][-1]["content"] = "dog " * 200  # left out
    rows[4]["rejected"][-1]["content"] = "dog " * 20  # the longest of the others
    path = write_pairs(tmp_path / "long.jsonl", rows)
    message = f"{path}: line 5 has .* tokens, more than --tokens-per-pass 70:"
    with pytest.raises(UserError, match=message):
        train_to("rm", "--max-length 150 --tokens-per-pass 70", pairs=path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_empty_pass_holds_no_pair_and_no_gradient(toy_model_folder, process, layout):
    """Under FSDP all processes run as many passes: one that has no pair left adds exactly 0."""
    model = shard(load_reward_model(toy_model_folder, seed=0), process, "float32").train()
    rewards, _ = model(LAYOUTS[layout](train.EMPTY_PASS))
    assert rewards.view(-1, 2).shape == (1, 2)
    (rewards.sum() * 0.0).backward()
    for name, p in model.named_parameters():
        assert not local(p.grad).any(), name


def test_a_pair_that_is_not_finite_spoils_no_other_pairs_step(torchrun_to, nan_model, tmp_path):
    """One pair a step, so that one of two processes always runs the empty pass."""
    rows = make_pairs(6)
    rows[0]["chosen"][-1]["content"] = "cat ~ five"
    path = write_pairs(tmp_path / "pairs-nan.jsonl", rows)
    result = torchrun_to(2, "rm", "--batch-size 1 --epochs 1", model=nan_model, pairs=path)
    assert result.stderr.count("the step is not taken") == 1
    assert f"({path}: line 1)" in result.stderr
    steps = losses(read_metrics(tmp_path / "rm"))
    assert len(steps) == 5
    assert all(math.isfinite(loss) for loss in steps)


def test_too_many_bad_steps_stop_the_run_and_keep_the_checkpoint(train_to, tmp_path):
    with pytest.raises(UserError, match="2 steps in a row were not finite"):
        train_to("rm", "--lr 1e30 --save-every 1 --max-bad-steps 2")
    newest = checkpoints(str(tmp_path / "rm"))[-1]
    parts = load_file(next(newest.glob("shard-*")))
    weights = [part for name, part in parts.items() if name.startswith("weight")]
    assert len(weights) > 10
    assert all(torch.isfinite(weight.float()).all() for weight in weights), newest


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--tokens-per-pass 20", "more than --tokens-per-pass 20: raise"),
        ("--max-length 8", "all 44 pairs are longer than 8 tokens"),
        ("--data-path /nowhere.jsonl", "/nowhere.jsonl: no such file"),
        ("--model-name /nowhere", "no model could be loaded"),
        ("--epochs 0", "--epochs 0: must be at least 1"),
    ],
)
def test_bad_input_writes_nothing(train_to, tmp_path, flags, expected):
    with pytest.raises(UserError, match=expected):
        train_to("rm", flags)
    assert not (tmp_path / "rm").exists()


def test_a_trained_model_is_not_replaced_unasked(train_to):
    train_to("rm", "--epochs 1")
    with pytest.raises(UserError, match="holds a model: pass --overwrite"):
        train_to("rm")
    train_to("rm", "--overwrite --epochs 1")


# ---- real models and data ------------------------------------------------------------------------

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)


@needs_data
def test_a_real_llama_without_a_chat_template_asks_for_one_and_then_trains(
    train_to, pairs_path, tmp_path
):
    stories = str(DATA / "stories260k")
    with pytest.raises(UserError, match="no chat template: give one with --chat-template FILE"):
        train_to("rm", model=stories)
    template = tmp_path / "template.jinja"
    template.write_text(PLAIN_TEMPLATE)
    flags = f"--chat-template {template} --eval-path {pairs_path}"
    metrics = train_to("rm", flags, model=stories)
    assert losses(metrics)[-1] < 0.3
    assert metrics[-1]["eval_accuracy"] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.eos_token != "<unk>"
    rewards = classifier_rewards(tmp_path / "rm")
    assert rewards.mean().item() == pytest.approx(metrics[-1]["eval_reward_mean"], abs=1e-5)


@pytest.fixture
def real_pairs(tmp_path, monkeypatch) -> str:
    """256 pairs of the reference's test prompts and gold rewards."""
    import preprocess

    data = DATA / "alpacafarm"
    paths = (
        f"--prompts-path {data}/test_prompts.json --responses-path {data}/test_sft.json "
        f"--rewards-path {data}/test_reward_gold.json --target-path {tmp_path}/all.jsonl"
    )
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *paths.split()])
    preprocess.main()
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "real.jsonl").write_text("".join(lines[:256]))
    return str(tmp_path / "real.jsonl")


@pytest.fixture
def small_qwen(tmp_path) -> str:
    """The real Qwen3 tokenizer, and a small Qwen3 with random weights."""
    config = Qwen3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    folder = str(tmp_path / "qwen")
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen3").save_pretrained(folder)
    return folder


@needs_data
def test_real_pairs_and_the_real_qwen3_tokenizer_on_one_and_two_processes(
    train_to, torchrun_to, real_pairs, small_qwen, tmp_path, capsys
):
    flags = "--batch-size 64 --tokens-per-pass 8192 --epochs 1"
    one = losses(train_to("one", flags, model=small_qwen, pairs=real_pairs))
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n" in capsys.readouterr().err
    torchrun_to(2, "two", flags, model=small_qwen, pairs=real_pairs)
    assert losses(read_metrics(tmp_path / "two")) == pytest.approx(one, abs=1e-5)
    assert len(one) == 4


AT_TORCH = """
import os, sys
class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("{name}"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, AtTorch())
import {script}
"""  # prints the variable at the moment at which a script imports torch


@pytest.mark.parametrize("script", ["train", "label", "sample"])
@pytest.mark.parametrize(
    "before, expected",
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "None"),
    ],
)
def test_cuda_memory_comes_in_segments_that_grow_unless_the_user_says_otherwise(
    script, before, expected
):
    """The variable is set before torch is imported, which reads it then."""
    code = AT_TORCH.format(name="PYTORCH_ALLOC_CONF", script=script)
    clean = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=clean | before,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == expected, done.stderr


def test_weights_in_host_memory_learn_the_same(train_to):
    """--cpu-offload, on a CPU without pinned memory."""
    assert losses(train_to("a", "--cpu-offload")) == losses(train_to("b"))
