"""A head times one factor: the same order, margins that mean what they say, the rest as it was."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rmood.diagnosis.calibrate import calibration_of, multiply_head, write_calibrated
from rmood.errors import UserError


def folder_of_model(path, dtype=torch.float32, bias: bool = False):
    path.mkdir()
    tensors = {
        "model.norm.weight": torch.linspace(-1, 1, 7),
        "score.weight": torch.linspace(-2, 2, 8)[None].to(dtype),
    }
    if bias:
        tensors["score.bias"] = torch.tensor([0.5]).to(dtype)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text("{}")
    (path / "run.json").write_text(json.dumps({"config": {"lr": 1.0}}))
    (path / "checkpoints").mkdir()
    return path


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_head_is_multiplied_and_nothing_else(tmp_path, dtype, bias):
    source = folder_of_model(tmp_path / "rm", dtype, bias)
    before = load_file(source / "model.safetensors")
    target = tmp_path / "out"
    write_calibrated(str(source), str(target), 0.37, {"applied": 0.37}, overwrite=False)
    after = load_file(target / "model.safetensors")
    for name in before:
        factor = 0.37 if name.startswith("score.") else 1
        expected = (before[name].double() * factor).to(before[name].dtype)
        if dtype == torch.bfloat16 and factor != 1:
            expected = (before[name].float() * torch.tensor(factor)).to(dtype)
        assert torch.equal(after[name], expected)
    assert torch.equal(
        load_file(source / "model.safetensors")["score.weight"], before["score.weight"]
    )
    run = json.loads((target / "run.json").read_text())
    recorded = {"applied": 0.37, "applied_in_all": 0.37}
    assert run == {"config": {"lr": 1.0}, "calibration": recorded}
    assert not (target / "checkpoints").exists() and not (tmp_path / "out.tmp").exists()


def test_no_folder_is_replaced_unasked(tmp_path):
    source = folder_of_model(tmp_path / "rm")
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(UserError, match="--overwrite"):
        write_calibrated(str(source), str(other), 2.0, {"applied": 2.0}, overwrite=False)
    write_calibrated(str(source), str(other), 2.0, {"applied": 2.0}, overwrite=True)
    with pytest.raises(UserError, match="is the model itself"):
        write_calibrated(str(source), str(source), 2.0, {"applied": 2.0}, overwrite=True)
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weight named score.weight"):
        write_calibrated(str(source), str(tmp_path / "new"), 2.0, {"applied": 2.0}, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_a_head_in_integers_is_refused(tmp_path):
    save_file({"score.weight": torch.ones(1, 4, dtype=torch.int8)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="float32 or bf16"):
        multiply_head(tmp_path / "m.safetensors", 2.0)


def test_the_factor_undoes_what_a_head_was_multiplied_by_and_the_loss_is_of_other_prompts():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 2000)
    gold = np.where(rng.random(2000) < 1 / (1 + np.exp(-margin)), 1.0, -1.0)
    true = np.stack([margin / 2, -margin / 2], axis=1)
    both = np.stack([gold, -gold], axis=1)
    found = calibration_of(true * 5 + 3, both)
    assert found.factor.low <= 0.2 <= found.factor.high
    assert found.offset == pytest.approx((true * 5 + 3).mean() * found.factor.value)
    already = calibration_of(true, both)
    assert found.loss_after.value == pytest.approx(already.loss_after.value)
    assert found.loss_after.value < found.loss_before.value
    assert already.loss_after.value == pytest.approx(already.loss_before.value, abs=0.002)


def test_fitting_on_noise_does_not_look_like_a_gain():
    """200 margins at random: a factor fitted on the same pairs would seem to help."""
    gains = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        gold = rng.normal(size=(200, 2))
        proxy = rng.normal(size=(200, 2)) * 0.1
        try:
            found = calibration_of(proxy, gold)
        except UserError:
            continue  # a negative factor
        gains.append(found.loss_before.value - found.loss_after.value)
    assert np.mean(gains) < 0.002


def test_no_factor_makes_a_reversed_or_a_perfect_proxy_calibrated():
    gold = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(UserError, match="other way round"):
        calibration_of(-gold, gold)
    with pytest.raises(UserError, match="pass --factor"):
        calibration_of(gold, gold)
