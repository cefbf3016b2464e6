"""Checkpoints: what they hold, how a resumed run ends, and who deletes them."""

import ast
import dataclasses
import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_pairs
from safetensors.torch import load_file
from training import losses, read_metrics, write_pairs

from rmood import checkpoint
from rmood.batching import Group, epoch_order, pack
from rmood.checkpoint import (
    CheckpointWriter,
    checkpoints,
    discard_checkpoints,
    is_finished,
    load_checkpoint,
    save_checkpoint,
)
from rmood.errors import UserError
from rmood.files.rows import write_json, write_jsonl
from rmood.loading import load_reward_model
from rmood.optim import build_optimizer, fill_moments, local
from rmood.runlog import RunLog
from rmood.sharding import PRECISIONS, shard
from train import State


def without_timing(output: Path) -> list[dict]:
    lines = []
    for line in read_metrics(output):
        lines.append({name: line[name] for name in line if not name.endswith("_per_s")})
    return lines


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def names(output: Path) -> list[str]:
    return [path.name for path in checkpoints(str(output))]


# ---- to resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision, steps",
    [
        ("float32", [7]),
        ("mixed", [7]),
        ("bf16", [8]),
        ("bf16-sr", [3, 7, 8]),  # which also has a random state
    ],
)
def test_resumed_run_ends_where_the_uninterrupted_one_does(
    train_to, killed_at, tmp_path, precision, steps
):
    """Killed within the first epoch, within the second, and just after a checkpoint."""
    flags = f"--save-every 2 --precision {precision} --eval-share 0.1 --centring 0.1"
    train_to("whole", flags)
    for step in steps:
        with killed_at(step):
            train_to("killed", flags, "--resume auto")
    train_to("killed", flags, "--resume auto")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert without_timing(tmp_path / "killed") == without_timing(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoints").exists()
    train_to("killed", flags, "--resume auto")  # finished: nothing to do
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_run_resumes_without_its_metrics_and_keeps_its_checkpoint_until_the_next(
    train_to, killed_at, tmp_path
):
    """metrics.jsonl is only a log: a run whose log was deleted must not lose its weights."""
    train_to("whole", "--save-every 3")
    with killed_at(5):
        train_to("killed", "--save-every 3")
    for _ in range(2):  # killed again before the next checkpoint: it resumes from the same one
        (tmp_path / "killed" / "metrics.jsonl").unlink()
        with killed_at(5):
            train_to("killed", "--save-every 3 --resume auto")
        assert names(tmp_path / "killed") == ["step-00000003"]
        assert [line["step"] for line in read_metrics(tmp_path / "killed")] == [4, 5]
    train_to("killed", "--save-every 3 --resume auto")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    after = [line for line in without_timing(tmp_path / "whole") if line["step"] > 3]
    assert without_timing(tmp_path / "killed") == after


@pytest.mark.parametrize("collectives", ["collectives return at once"], indirect=True)
@pytest.mark.parametrize("before, now, replicas", [(2, 1, 1), (1, 2, 1), (2, 2, 2)])
def test_a_checkpoint_resumes_on_another_number_of_processes_and_with_replicas(
    train_to, torchrun_to, tmp_path, before, now, replicas
):
    """The run stops at step 5, where a pair's loss is infinite as its gold margin overflows.

    Resumed with more patience, it leaves out that step, as the uninterrupted run does. Held-out
    pairs are scored right before each checkpoint, which gathers weights for a moment.
    """
    rows = make_pairs(44)
    number = epoch_order(44, batch_size=8, seed=0, epoch=0)[4][0]
    rows[number] |= {"chosen_reward": 3e38, "rejected_reward": -3e38}
    path = write_pairs(tmp_path / "poisoned.jsonl", rows)
    held_out = write_pairs(tmp_path / "held-out.jsonl", make_pairs(50)[44:])
    flags = f"--margin-scale 0.001 --save-every 2 --eval-every 2 --eval-path {held_out}"
    whole = losses(train_to("whole", flags, pairs=path))
    assert len(whole) == 10  # of 12 steps

    flags += f" --replicas {replicas}"
    message = "1 steps in a row were not finite"
    if before == 1:
        with pytest.raises(UserError, match=message):
            train_to("stopped", flags, "--max-bad-steps 1", pairs=path)
    else:
        stops = torchrun_to(before, "stopped", flags, "--max-bad-steps 1", pairs=path, fails=True)
        assert message in stops.stderr
    newest = checkpoints(str(tmp_path / "stopped"))[-1]
    shards = before // replicas
    assert newest.name == "step-00000004"  # it was begun, and the run waited for it
    assert (newest / f"shard-{shards - 1}-of-{shards}.safetensors").exists()

    copy = tmp_path / "copy"  # a run in this process keeps its folder locked
    shutil.copytree(tmp_path / "stopped", copy)
    if now == 1:
        train_to("copy", flags, "--resume auto", pairs=path)
    else:
        torchrun_to(now, "copy", flags, "--resume auto", pairs=path)
    assert losses(read_metrics(copy)) == pytest.approx(whole, abs=1e-5)


def test_resuming_with_other_settings_is_refused_by_name(train_to, killed_at, pairs_path):
    with killed_at(4):
        train_to("rm", "--save-every 2")
    with pytest.raises(UserError, match="unfinished run: pass --resume auto"):
        train_to("rm")
    with pytest.raises(UserError, match="--lr 0.003 -> 0.001; --seed 0 -> 5"):
        train_to("rm", "--resume auto --lr 1e-3 --seed 5")
    write_jsonl(pairs_path, make_pairs(43))
    with pytest.raises(UserError, match="other pairs"):
        train_to("rm", "--resume auto")


# ---- what a checkpoint holds ---------------------------------------------------------------------


def trained_model(folder: str, process, steps: int):
    """The sharded toy model and its optimizer after some steps."""
    precision = "bf16-sr"  # whose rounding has a random state, too
    weight_dtype, _ = PRECISIONS[precision]
    model = load_reward_model(folder, weight_dtype, seed=0)
    model = shard(model, process, precision).train()
    optimizer = build_optimizer(model, precision, lr=1e-2, weight_decay=0.0)
    fill_moments(model, optimizer)
    for _ in range(steps):
        rewards, _ = model(pack([Group([[5, 6, 7], [5, 6, 8]])]))
        (rewards[1] - rewards[0]).exp().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def tensors_of(model, optimizer) -> dict[str, torch.Tensor]:
    """Everything that the next step depends on."""
    tensors = {"generator": optimizer.generator.get_state()}
    for name, p in model.named_parameters():
        tensors[name] = local(p).detach()
        for moment, value in optimizer.state[p].items():
            tensors[f"{name} {moment}"] = local(value).detach()
    return tensors


def as_bytes(value) -> bytes:
    """Equal for equal values, NaN included."""
    if torch.is_tensor(value):
        return value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return json.dumps(value).encode()


RUN = {"config": {"lr": 0.1, "output_dir": "rm"}, "inputs": {}, "template_sha256": "0" * 64}


def test_a_checkpoint_holds_all_that_the_loop_remembers(toy_model_folder, process, tmp_path):
    """Each field of train.State, the weights, the moments, the random state of the rounding."""
    rewards = torch.tensor([[1.5, -0.1], [math.nan, math.nan]])
    results = {"epoch 1": {"running": {"loss": 0.1, "ties": 3}, "eval": {"loss": 1 / 3}}}
    state = State(
        rewards,
        step=12,
        bad_steps=2,
        center=-0.7,
        results=results,
        best={"step": 9, "value": 1 / 7, "reference_step": 6, "waited": 1},
        reference=torch.tensor([0.1, 1 / 3], dtype=torch.float64),
        stopped="stopped at step 12",
    )
    model, optimizer = trained_model(toy_model_folder, process, steps=3)
    save_checkpoint(str(tmp_path), model, optimizer, state, RUN, process, keep=1)

    other_model, other_optimizer = trained_model(toy_model_folder, process, steps=1)
    other = State(torch.zeros(2, 2), reference=torch.zeros(2, dtype=torch.float64))
    for field in dataclasses.fields(State):  # or equal fields would say nothing
        was, now = getattr(state, field.name), getattr(other, field.name)
        assert as_bytes(was) != as_bytes(now), field.name
    (path,) = checkpoints(str(tmp_path))
    assert load_checkpoint(path, other_model, other_optimizer, other, RUN)

    for field in dataclasses.fields(State):
        was, now = getattr(state, field.name), getattr(other, field.name)
        assert type(was) is type(now)
        assert as_bytes(was) == as_bytes(now), field.name
    was, now = tensors_of(model, optimizer), tensors_of(other_model, other_optimizer)
    assert was.keys() == now.keys()
    assert was["backbone.norm.weight exp_avg"].dtype == torch.bfloat16
    for name in was:
        assert as_bytes(was[name].float()) == as_bytes(now[name].float()), name


def test_a_checkpoint_before_the_first_update_resumes_too(train_to, killed_at, nan_model, tmp_path):
    """Step 1 is not taken, as a reward is NaN: the moments are still those of no step."""
    rows = make_pairs(44)
    number = epoch_order(44, batch_size=8, seed=0, epoch=0)[0][0]
    rows[number]["chosen"][-1]["content"] = "cat ~ five"
    path = write_pairs(tmp_path / "pairs-nan.jsonl", rows)
    train_to("whole", "--save-every 1", model=nan_model, pairs=path)
    with killed_at(2):
        train_to("killed", "--save-every 1", model=nan_model, pairs=path)
    assert names(tmp_path / "killed") == ["step-00000001"]
    train_to("killed", "--save-every 1 --resume auto", model=nan_model, pairs=path)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_the_files_of_a_checkpoint_are_its_state_and_a_part_of_each_process(
    train_to, killed_at, tmp_path
):
    with killed_at(3):
        train_to("rm", "--save-every 2")
    (path,) = checkpoints(str(tmp_path / "rm"))
    expected = ["checkpoint.json", "shard-0-of-1.safetensors", "state.safetensors"]
    assert sorted(file.name for file in path.iterdir()) == expected
    values = json.loads((path / "checkpoint.json").read_text())["state"]
    tensors = load_file(path / "state.safetensors")
    assert values.keys() | tensors.keys() == {field.name for field in dataclasses.fields(State)}


# ---- who deletes checkpoints, and when -----------------------------------------------------------


def test_the_newest_checkpoints_are_kept(train_to, killed_at, tmp_path):
    with killed_at(10):
        train_to("rm", "--save-every 3 --keep 2")
    assert names(tmp_path / "rm") == ["step-00000006", "step-00000009"]


def test_a_half_written_checkpoint_is_never_chosen(tmp_path):
    for name in ("step-00000004", "step-00000008.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert names(tmp_path) == ["step-00000004"]
    discard_checkpoints(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_to_begin_again_discards_the_checkpoints_of_the_run_before(train_to, killed_at, tmp_path):
    with killed_at(10):
        train_to("rm", "--save-every 3")
    with killed_at(2):
        train_to("rm", "--save-every 3 --overwrite")
    assert names(tmp_path / "rm") == []
    assert [line["step"] for line in read_metrics(tmp_path / "rm")] == [1, 2]


@pytest.mark.parametrize("finished", [True, False])
def test_asking_whether_a_run_is_finished_deletes_nothing(tmp_path, finished):
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    write_json(str(tmp_path / "config.json"), {})
    write_json(str(tmp_path / "run.json"), {"finished": finished})
    assert is_finished(str(tmp_path)) == finished
    assert names(tmp_path) == ["step-00000003"]


def test_a_log_deletes_no_checkpoint(tmp_path, process):
    """Neither that of a new run nor of a resumed one, with or without metrics.jsonl."""
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    for last_step in (0, 3, 3):
        log = RunLog(str(tmp_path), process, last_step=last_step)
        log.write({"step": last_step + 1, "loss": 0.5})
        log.close()
        assert names(tmp_path) == ["step-00000003"]


SOURCES = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("rmood/**/*.py")]
DELETES = {"rmtree", "unlink", "remove", "rmdir", "removedirs"}


def called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def test_only_checkpoint_py_knows_where_checkpoints_are_and_deletes_them():
    """Elsewhere the folder's name is only the heading of some options, and no call that deletes
    something speaks of checkpoints; train.py asks for it by the name of what it does."""
    callers = set()
    for path in SOURCES:
        name = str(path.relative_to(REPOSITORY))
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
        headings = [keyword.value for keyword in keywords if keyword.arg == "group"]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called_name(node) == "discard_checkpoints":
                callers.add(name)
            if name == "rmood/checkpoint.py":
                continue
            if isinstance(node, ast.Constant) and node not in headings:
                assert node.value != "checkpoints", f"{name}: line {node.lineno}"
            if isinstance(node, ast.Call) and called_name(node) in DELETES:
                assert "checkpoint" not in ast.get_source_segment(text, node), (
                    f"{name}: line {node.lineno}"
                )
    assert len(SOURCES) > 20
    assert callers == {"train.py"}


# ---- a thread writes them ------------------------------------------------------------------------


def test_a_checkpoint_holds_the_weights_of_its_step_though_training_goes_on(
    toy_model_folder, process, tmp_path
):
    """The thread writes a copy: what changes after save() is not in the checkpoint."""
    model, optimizer = trained_model(toy_model_folder, process, steps=1)
    before = {name: local(p).detach().clone() for name, p in model.named_parameters()}
    writer = CheckpointWriter(str(tmp_path), process, keep=1)
    writer.save(model, optimizer, State(torch.zeros(2, 2), step=1), RUN)
    with torch.no_grad():
        for p in model.parameters():
            local(p).fill_(7.0)
    writer.wait()
    (path,) = checkpoints(str(tmp_path))
    saved = load_file(path / "shard-0-of-1.safetensors")
    for name, weight in before.items():
        assert torch.equal(saved[f"weight.{name}"], weight), name


def test_what_fails_in_the_thread_is_raised_and_the_checkpoint_before_stays(
    toy_model_folder, process, tmp_path, monkeypatch
):
    model, optimizer = trained_model(toy_model_folder, process, steps=1)
    writer = CheckpointWriter(str(tmp_path), process, keep=1)
    writer.save(model, optimizer, State(torch.zeros(2, 2), step=1), RUN)
    writer.wait()

    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    writer.save(model, optimizer, State(torch.zeros(2, 2), step=2), RUN)
    writer.thread.join()
    with pytest.raises(OSError, match="No space left"):
        writer.check()
    assert names(tmp_path) == ["step-00000001"]


def test_a_checkpoint_that_cannot_be_read_deletes_none_before_it(
    toy_model_folder, process, tmp_path, monkeypatch
):
    model, optimizer = trained_model(toy_model_folder, process, steps=1)
    save_checkpoint(
        str(tmp_path), model, optimizer, State(torch.zeros(2, 2), step=1), RUN, process, keep=1
    )
    save_file = checkpoint.save_file

    def damaged(tensors, path):
        save_file(tensors, path)
        if "shard" in path.name:
            path.write_bytes(path.read_bytes()[:40])

    monkeypatch.setattr(checkpoint, "save_file", damaged)
    with pytest.raises(UserError, match="step-00000002: the checkpoint cannot be read"):
        save_checkpoint(
            str(tmp_path), model, optimizer, State(torch.zeros(2, 2), step=2), RUN, process, keep=1
        )
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_save_minutes_saves_by_the_clock(train_to, killed_at, tmp_path):
    """At 0.0001 minutes every step is late, so the newest checkpoint is of the step before."""
    with killed_at(4):
        train_to("rm", "--save-minutes 0.0001")
    assert names(tmp_path / "rm") == ["step-00000003"]


def test_rank_0_may_publish_as_soon_as_a_shard_has_its_name(tmp_path, monkeypatch):
    """The folder is renamed in the very moment in which another rank's file appears in it."""
    rename = os.rename

    def rename_and_publish(source, target):
        rename(source, target)
        rename(tmp_path / "step-1.tmp", tmp_path / "step-1")

    (tmp_path / "step-1.tmp").mkdir()
    monkeypatch.setattr(checkpoint.os, "rename", rename_and_publish)
    checkpoint._save_tensors({"w": torch.ones(2)}, tmp_path / "step-1.tmp" / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "step-1" / "a.safetensors")["w"], torch.ones(2))
