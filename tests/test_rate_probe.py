"""train.py --rate-probe: its steps are train.py's, and it changes nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_pairs
from training import losses, write_pairs

from rmood.batching import Group
from rmood.errors import UserError
from rmood.files.tables import read_pairs
from rmood.loading import load_reward_model
from rmood.optim import build_optimizer, fill_moments, local
from rmood.pairset import PairSet
from rmood.rate_probe import Start, probe_rates
from rmood.sharding import PRECISIONS, shard

SETTINGS = dict(batch_size=8, seed=0, tokens_per_pass=100, layout="packed", max_grad_norm=1.0)
SETTINGS |= dict(replicas=1, margin_scale=0.0, label_temperature=0.0, label_smoothing=0.0)
CFG = SimpleNamespace(**SETTINGS, centring=0.0)


def as_set(folder, tokenizer, process, count: int) -> PairSet:
    pairs = read_pairs(write_pairs(folder / "set.jsonl", make_pairs(count)))
    groups = []
    for pair in pairs:
        texts = [
            tokenizer.apply_chat_template(side, tokenize=False)
            for side in (pair.chosen, pair.rejected)
        ]
        groups.append(Group(tokenizer(texts, add_special_tokens=False)["input_ids"]))
    members = [[i] for i in range(count)]
    return PairSet(pairs, groups, members, np.tile([0, 1], (count, 1)), None, process.device)


@pytest.fixture
def probed(toy_model_folder, toy_tokenizer, process, tmp_path):
    """probed("mixed", [1e-4, 1e-2], 5): model, optimizer and what each rate came to."""

    def probed(precision: str, rates: list[float], steps: int):
        weight_dtype, _ = PRECISIONS[precision]
        model = load_reward_model(toy_model_folder, weight_dtype, seed=0)
        model = shard(model, process, precision).train()
        optimizer = build_optimizer(model, precision, 1e-3, 0.0)
        fill_moments(model, optimizer)
        data = as_set(tmp_path, toy_tokenizer, process, 44)
        return model, optimizer, probe_rates(model, optimizer, data, process, CFG, rates, steps)

    return probed


@pytest.mark.parametrize("precision", ["float32", "bf16-sr"])
def test_every_rate_begins_with_the_same_weights_moments_and_random_numbers(probed, precision):
    """The same rate three times: equal bits at every step."""
    model, optimizer, tried = probed(precision, [3e-3, 3e-3, 3e-3], 5)
    assert tried[0].by_step == tried[1].by_step == tried[2].by_step
    assert tried[0].by_step[-1] < tried[0].by_step[0] - 0.01
    assert all(not local(optimizer.state[p]["exp_avg"]).any() for p in model.parameters())


def test_afterwards_the_weights_are_those_of_the_start(probed, toy_model_folder):
    model, _, _ = probed("float32", [1e-2, 1e30], 4)
    start = dict(load_reward_model(toy_model_folder, seed=0).named_parameters())
    for name, p in model.named_parameters():
        assert torch.equal(local(p), start[name]), name


def test_a_rate_that_overflows_is_left_at_once_and_the_next_begins_anew(probed):
    _, _, (broken, fine) = probed("float32", [1e30, 3e-3], 5)
    assert broken.verdict == "diverges"
    assert broken.by_step[0] == fine.by_step[0]
    assert np.isinf(broken.by_step[-1])
    assert np.isfinite(fine.by_step).all()


def test_the_start_is_kept_in_host_memory_and_put_back(probed):
    model, optimizer, _ = probed("float32", [1e-3], 4)
    start = Start(model, optimizer)
    before = {name: local(p).detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            local(p).add_(1.0)
    start()
    for name, p in model.named_parameters():
        assert torch.equal(local(p), before[name]), name


# ---- as a command --------------------------------------------------------------------------------


def probe_command(train_to, capsys, *flags: str) -> str:
    """What `train.py --rate-probe` prints on stdout."""
    with pytest.raises(
        FileNotFoundError
    ):  # train_to reads metrics.jsonl, which a probe never writes
        train_to("rm", *flags)
    return capsys.readouterr().out


def test_its_steps_are_those_of_training_at_a_constant_rate(train_to, tmp_path, capsys):
    flags = "--epochs 1 --lr 3e-3 --label-smoothing 0.1 --centring 0.5 --tokens-per-pass 90"
    constant = losses(train_to("constant", flags, "--min-lr-ratio 1 --warmup-ratio 0"))
    capsys.readouterr()
    probe_command(train_to, capsys, flags, "--rate-probe 1 --rate-probe-steps 40")
    report = json.loads((tmp_path / "rm" / "rate-probe-1.json").read_text())
    assert report["steps"] == len(constant) == 6  # an epoch has no more
    assert report["rates"][0]["loss_by_step"] == pytest.approx(constant, abs=1e-6)


def test_it_writes_a_report_and_nothing_else_and_replaces_none(train_to, tmp_path, capsys):
    train_to("rm", "--epochs 1")
    model = {path: path.read_bytes() for path in (tmp_path / "rm").iterdir() if path.is_file()}
    capsys.readouterr()
    for number in (1, 2):  # also where a finished model is
        train_to("rm", "--rate-probe 2 --rate-probe-steps 5")
        out = capsys.readouterr().out
        assert f"rate-probe-{number}.svg: the figure" in out
        assert "the planned run: --lr 0.003, rate x steps" in out
        assert out.startswith("rate ")
    new = {path.name for path in (tmp_path / "rm").iterdir()} - {path.name for path in model}
    assert new - {"tensorboard"} == {
        f"rate-probe-{number}.{kind}" for number in (1, 2) for kind in ("json", "svg")
    }
    for path, content in model.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("collectives", ["collectives return at once"], indirect=True)
def test_two_processes_measure_what_one_measures(train_to, torchrun_to, tmp_path, capsys):
    flags = "--rate-probe 2 --rate-probe-steps 5 --tokens-per-pass 90"
    probe_command(train_to, capsys, flags)
    torchrun_to(2, "two", flags)
    one, two = (
        json.loads((tmp_path / name / "rate-probe-1.json").read_text()) for name in ("rm", "two")
    )
    for a, b in zip(one["rates"], two["rates"], strict=True):
        assert b["loss_by_step"] == pytest.approx(a["loss_by_step"], abs=1e-5)
        assert a["verdict"] == b["verdict"]


def test_an_epoch_of_three_steps_is_too_short(train_to):
    with pytest.raises(UserError, match="3 steps an epoch are too few"):
        train_to("rm", "--rate-probe 6 --batch-size 15")
