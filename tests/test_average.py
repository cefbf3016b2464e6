"""python -m rmood.average: the mean of some models' weights, as an ordinary model folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rmood.average import average, main
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.rows import read_json, write_json
from rmood.loading import load_reward_model


@pytest.fixture(scope="module")
def models(toy_model_folder, toy_tokenizer, tmp_path_factory) -> list[str]:
    """Three models of one start: every weight moved at random, and heads of their own."""
    home = tmp_path_factory.mktemp("models")
    folders = []
    for seed in range(3):
        model = load_reward_model(toy_model_folder, seed=0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
        folder = str(home / f"rm-{seed}")
        run = {"config": {"lr": 1e-3}, "weights_fingerprint": "abc" * 20}
        files = {"run.json": json.dumps(run)}
        # the second is stored in several files
        size = 20_000 if seed == 1 else "5GB"
        save_reward_model(folder, model, toy_tokenizer, torch.float32, files, max_shard_size=size)
        folders.append(folder)
    return folders


def weights(folder: str) -> dict[str, torch.Tensor]:
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_every_weight_is_the_mean_the_head_s_too(models, tmp_path):
    out = str(tmp_path / "mean")
    count = average(models, out)
    expected = [weights(folder) for folder in models]
    found = weights(out)
    assert len(expected[0]) == len(found) == count
    for name, weight in found.items():
        mean = torch.stack([one[name] for one in expected]).mean(dim=0)
        assert torch.allclose(weight, mean, atol=1e-6), name
    assert len(list(Path(models[1]).glob("*.safetensors"))) > 1
    run = read_json(f"{out}/run.json")
    assert [one["model"] for one in run["averaged"]] == models
    assert run["averaged"][0]["config"] == {"lr": 1e-3}
    model = AutoModelForSequenceClassification.from_pretrained(out)  # an ordinary folder
    assert torch.equal(model.score.weight, found["score.weight"])


def test_models_that_differ_in_their_heads_alone_average_to_the_mean_reward(
    models, toy_tokenizer, tmp_path
):
    folders = []
    for seed in range(2):
        folder = str(tmp_path / f"head-{seed}")
        shutil.copytree(models[0], folder)
        stored = weights(folder)
        stored["score.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
        save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    average(folders, str(tmp_path / "mean"))
    ids = toy_tokenizer("say cat", return_tensors="pt").input_ids
    rewards = []
    for folder in [*folders, str(tmp_path / "mean")]:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            rewards.append(model(ids).logits[0, 0].item())
    assert rewards[2] == pytest.approx((rewards[0] + rewards[1]) / 2, abs=1e-5)
    assert rewards[0] != pytest.approx(rewards[1], abs=0.1)


def test_a_model_with_itself_is_itself_bit_for_bit_in_bf16(models, tmp_path):
    folder = str(tmp_path / "bf16")
    shutil.copytree(models[0], folder)
    stored = {name: weight.bfloat16() for name, weight in weights(folder).items()}
    stored["steps"] = torch.tensor([3])  # whole numbers stay
    save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
    copy = str(tmp_path / "copy")
    shutil.copytree(folder, copy)
    average([folder, copy], str(tmp_path / "mean"))
    found = weights(str(tmp_path / "mean"))
    assert all(torch.equal(found[name], weight) for name, weight in stored.items())
    with safe_open(f"{tmp_path}/mean/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_whole_numbers_that_differ_have_no_mean(models, tmp_path):
    folders = []
    for steps in (3, 4):
        folder = str(tmp_path / f"steps-{steps}")
        shutil.copytree(models[0], folder)
        stored = weights(folder) | {"steps": torch.tensor([steps])}
        save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    with pytest.raises(UserError, match="steps: whole numbers that differ"):
        average(folders, str(tmp_path / "mean"))
    assert not (tmp_path / "mean").exists()


def change(folder: str, **config) -> None:
    path = f"{folder}/config.json"
    write_json(path, read_json(path) | config)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda f: Path(f, "tokenizer.json").write_text("{}"), "their tokenizer.json differ"),
        (lambda f: change(f, num_attention_heads=2), "num_attention_heads differs in config.json"),
        (
            lambda f: write_json(f"{f}/run.json", {"weights_fingerprint": "other weights"}),
            "trained from other weights",
        ),
        (
            lambda f: save_file({"score.weight": torch.ones(1, 32)}, f"{f}/model.safetensors"),
            "only one of them has",
        ),
        (
            lambda f: save_file(
                weights(f) | {"score.weight": torch.ones(1, 16)}, f"{f}/model.safetensors"
            ),
            "score.weight is [1, 16] there",
        ),
        (lambda f: Path(f, "model.safetensors").unlink(), "no safetensors files"),
    ],
)
def test_models_that_do_not_belong_together_are_told_in_one_line(edit, message, models, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(models[2], other)
    edit(other)
    with pytest.raises(UserError) as error:
        average([models[0], other], str(tmp_path / "mean"))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "mean").exists() and not list(tmp_path.glob("*.tmp"))


def test_nothing_is_replaced_unasked(models, tmp_path, capsys):
    out = str(tmp_path / "mean")
    assert main([*models[:2], "--out", out]) == 0
    assert "the mean of 2 models" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already: pass --overwrite"):
        main([*models, "--out", out])
    assert main([*models, "--out", out, "--overwrite"]) == 0
    with pytest.raises(UserError, match="one of the models itself"):
        main([*models, "--out", models[0], "--overwrite"])
    with pytest.raises(UserError, match="name two or more"):
        main([models[0], "--out", out])
    with pytest.raises(UserError, match="required: --out"):
        main(models)
