"""The exported folder: this file is also the script that torchrun runs on two processes."""

import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, groups_of_pairs
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmood import distributed, export
from rmood.batching import Group, pack
from rmood.errors import UserError
from rmood.export import model_card, save_reward_model
from rmood.loading import fill, load_reward_model, meta_reward_model
from rmood.sharding import shard

SIZES = ["5GB", "40KB"]


def run_as_script(model_folder: str, output: str) -> None:
    """Export a model that two processes share: in float32 and in bf16, in one file and in more."""
    process = distributed.start("cpu")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for dtype in (torch.float32, torch.bfloat16):
        model, source = meta_reward_model(model_folder, seed=0)
        model = shard(model, process, "float32")
        fill(model, source, process)
        model(pack([Group([[5, 6, 7], [5, 6, 8, 9]])]))  # leaves the root's weights gathered
        for size in SIZES:
            folder = f"{output}/{dtype} {size}"
            save_reward_model(folder, model, tokenizer, dtype, {}, process, max_shard_size=size)
    process.finish()


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors*")}


def saved_at_once(folder: Path, model, dtype: torch.dtype, size: str) -> dict[str, bytes]:
    """The files as huggingface_hub writes them, from all weights in memory."""
    weights = {}
    for name, weight in model.state_dict().items():
        if name.startswith("backbone."):
            name = name.replace("backbone", "model", 1)
            weights[name] = export.rounded(weight.detach(), dtype, name)
    weights["score.weight"] = model.score.weight.detach()
    folder.mkdir(exist_ok=True)
    save_torch_state_dict(weights, str(folder), max_shard_size=size)
    return weights_of(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_is_a_transformers_reward_model(
    any_model_folder, toy_tokenizer, tmp_path, dtype
):
    model = load_reward_model(any_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path / "rm")
    files = {"README.md": "card"}
    save_reward_model(folder, model, toy_tokenizer, dtype, files)
    assert (tmp_path / "rm" / "README.md").read_text() == "card"
    assert not (tmp_path / "rm.tmp").exists()

    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert theirs.config.problem_type == "regression"
    assert theirs.config.num_labels == 1
    assert theirs.config.pad_token_id == toy_tokenizer.pad_token_id != toy_tokenizer.eos_token_id
    ours = load_reward_model(folder)  # a classifier's head is kept
    rows = [row for group in groups_of_pairs(toy_tokenizer) for row in group.rows]
    rewards, _ = ours(pack([Group([row]) for row in rows]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        assert torch.allclose(theirs(**batch).logits[:, 0], rewards, atol=1e-5), side
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        assert file.get_tensor("score.weight").dtype == torch.float32
        assert file.get_tensor("model.norm.weight").dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_a_streamed_export_has_the_bytes_of_one_saved_at_once(
    dtype, size, any_model_folder, toy_tokenizer, tmp_path
):
    model = load_reward_model(any_model_folder, seed=0)
    expected = saved_at_once(tmp_path / "at-once", model, dtype, size)
    save_reward_model(str(tmp_path / "rm"), model, toy_tokenizer, dtype, {}, max_shard_size=size)
    assert weights_of(tmp_path / "rm") == expected
    assert (len(expected) == 1) == (size == "5GB")


def test_two_processes_write_what_one_writes(toy_model_folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, toy_model_folder, str(tmp_path)]
    path = f"{REPOSITORY}/tests/unwaited:{REPOSITORY}"  # collectives return before they are done
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment["RMOOD_TEST_UNWAITED"] = "1"
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    model = load_reward_model(toy_model_folder, seed=0)
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES:
            expected = saved_at_once(tmp_path / "at-once", model, dtype, size)
            assert weights_of(tmp_path / f"{dtype} {size}") == expected


def test_no_more_than_one_file_is_in_memory(any_model_folder, toy_tokenizer, tmp_path, monkeypatch):
    """In host memory at any time: tensors of one file, 40 KB, beside the one that is gathered."""
    model = load_reward_model(any_model_folder, seed=0)
    alive: dict[int, int] = {}  # number of a rounded tensor -> its bytes, while it is in memory
    numbers = itertools.count()
    most = 0
    rounded = export.rounded

    def counted(weight, dtype, name):
        nonlocal most
        whole = rounded(weight, dtype, name)
        number = next(numbers)
        alive[number] = whole.nbytes
        weakref.finalize(whole, alive.pop, number)
        most = max(most, sum(alive.values()) - whole.nbytes)
        return whole

    monkeypatch.setattr(export, "rounded", counted)
    save_reward_model(
        str(tmp_path), model, toy_tokenizer, torch.bfloat16, {}, max_shard_size=40_000
    )
    largest = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 0 < most <= 40_000 < 2 * largest
    assert not alive


def test_a_folder_whose_replacement_was_cut_short_does_not_load(
    toy_model_folder, toy_tokenizer, tmp_path, monkeypatch
):
    """Neither the old model, of which some files are gone, nor the new one."""
    model = load_reward_model(toy_model_folder, seed=0)
    folder = str(tmp_path / "rm")
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    names = sorted(path.name for path in Path(folder).iterdir())
    for done in range(len(names)):
        save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
        moved = []

        def replace(source, target, done=done, moved=moved):
            if len(moved) == done:
                raise OSError("killed")
            moved.append(Path(target).name)
            Path(source).rename(target)

        with monkeypatch.context() as patch:
            patch.setattr(export.os, "replace", replace)
            with pytest.raises(OSError, match="killed"):
                save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
        assert "config.json" not in moved
        with pytest.raises(UserError, match="could not be loaded"):
            load_reward_model(folder)


def test_the_model_card_names_loss_options_and_groups():
    config = {"lr": 5e-5, "epochs": 2, "batch_size": 64, "seed": 7}
    config |= {"label_smoothing": 0.02, "centring": 0.5, "margin_scale": 0.0}
    run = {"config": config, "pairs": 600, "groups": 100, "results": {}}
    card = model_card("owner/some-model", "data/pairs.jsonl", run)
    assert "600 pairs in 100 groups of pairs.jsonl with rmood:\n" in card
    assert "64 groups per step, seed 7.\n" in card
    assert "loss that was minimised: label_smoothing 0.02, centring 0.5.\nThe reward" in card


def test_the_model_card_has_the_hub_s_header_and_the_results():
    metrics = dict(loss=0.3, accuracy=0.9, reward_mean=1.0, reward_std=2.0, std_within=0.5)
    known = dict(bits=0.25, scale=0.5, scale_low=0.4, scale_high=0.625)
    all_right = dict(bits=1.0, scale=None, scale_low=3.0, scale_high=None)
    curve = {"word": "falling"}
    run = {
        "config": {"lr": 5e-5, "epochs": 2, "batch_size": 64, "seed": 7},
        "pairs": 1234,
        "results": {
            "epoch 1": {
                "running": metrics,
                "train": metrics | all_right,
                "eval": metrics | known,
                "curve": curve,
            }
        },
    }
    card = model_card("owner/some-model@main", "data/pairs.jsonl", run)
    header, body = card.split("---\n")[1:]
    assert "base_model: owner/some-model\n" in header
    assert "1,234 pairs of pairs.jsonl with rmood:\nrate 5e-05, 2 epochs, 64 pairs per step" in body
    assert "per step, seed 7.\nThe reward is" in body
    assert "| epoch 1 | running | 0.300 | 0.900 |  |  | 2.00 | 0.50 |\n" in body
    assert "| epoch 1 | train | 0.300 | 0.900 | 1.00 | over 3.00 | 2.00 | 0.50 |\n" in body
    assert "| 0.900 | 0.25 | 0.50 (0.40 to 0.62) | 2.00 | 0.50 |\n\n```python" in body


if __name__ == "__main__":
    run_as_script(*sys.argv[1:])
