"""Sharded models on two processes: this file is also the script that torchrun runs."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY, make_model

from rmood import distributed
from rmood.batching import Group, pack
from rmood.errors import UserError
from rmood.loading import load_reward_model
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.optim import build_optimizer, local
from rmood.sharding import (
    PRECISIONS,
    PassMemory,
    decoder_layers,
    kept_bytes_per_token,
    layers_asked_for,
    plan_memory,
    recompute_as_needed,
    recompute_layers,
    shard,
    shards_of,
)


def run_as_script(model_folder: str) -> None:
    """What each rank sees, to stdout as JSON: [rank] -> numbers."""
    process = distributed.start("cpu")
    found = {}
    found["sharded"] = shards_of(load_and_shard(model_folder, process, replicas=1))
    found["replicated"] = shards_of(load_and_shard(model_folder, process, replicas=2))
    for seed_by in ("shard", "rank"):
        both = weights_of_replicas_after_a_step(model_folder, process, seed_by)
        found[f"equal, seed by {seed_by}"] = torch.equal(*both)
    found["meters"] = meters_after_a_step(model_folder, process)
    everything = [None] * process.world_size
    dist.all_gather_object(everything, found)
    process.result(json.dumps(everything))
    process.finish()


def load_and_shard(model_folder: str, process, replicas: int):
    model = load_reward_model(model_folder, torch.bfloat16, seed=0)
    return shard(model, process, "bf16-sr", replicas=replicas).train()


def weights_of_replicas_after_a_step(model_folder: str, process, seed_by: str):
    """All weights of two replicas, which got the same gradient, each in one vector."""
    model = load_and_shard(model_folder, process, replicas=2)
    seed = shards_of(model).index if seed_by == "shard" else process.rank
    optimizer = build_optimizer(model, "bf16-sr", lr=1e-5, weight_decay=0.0, seed=seed)
    give_gradients(model)
    optimizer.step()
    weights = torch.cat([local(p).detach().float().flatten() for p in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    return both


def give_gradients(model) -> None:
    """The gradients of one pair."""
    rewards, _ = model(pack([Group([[5, 6, 7], [5, 6, 8, 9]])]))
    bradley_terry_loss(reward_margin(rewards.view(-1, 2))).sum().backward()


def meters_after_a_step(model_folder: str, process) -> list[dict]:
    """The step by UpdateMeter, and tensor by tensor."""
    from test_optim import both_meters

    model = load_and_shard(model_folder, process, replicas=1)
    optimizer = build_optimizer(model, "bf16-sr", lr=1e-3, weight_decay=0.1)
    give_gradients(model)
    return list(both_meters(model, optimizer, process))


@pytest.fixture(scope="module")
def ranks(toy_model_folder) -> list[dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, toy_model_folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_each_process_holds_a_shard_of_its_own(ranks):
    """index, count, writes"""
    assert [rank["sharded"] for rank in ranks] == [[0, 2, True], [1, 2, True]]


def test_replicas_hold_the_same_shard_and_one_of_them_writes(ranks):
    assert [rank["replicated"] for rank in ranks] == [[0, 1, True], [0, 1, False]]


def test_replicas_stay_equal_only_if_they_round_by_the_same_seed(ranks):
    for rank in ranks:
        assert rank["equal, seed by shard"]
        assert not rank["equal, seed by rank"]


def test_the_meter_adds_up_the_samples_of_two_processes(ranks):
    """A shard may be empty: the head is one row, which the first process holds."""
    for rank in ranks:
        found, expected = rank["meters"]
        assert found == pytest.approx(expected, rel=2e-6)
        assert 0 < found["update_ratio"] < 1
    assert ranks[0]["meters"][0] == ranks[1]["meters"][0]


# ---- recomputation -------------------------------------------------------------------------------


def gradients(folder: str, process, prepare=lambda model: None) -> list[torch.Tensor]:
    model = shard(load_reward_model(folder, seed=0), process, "float32").train()
    torch.manual_seed(0)
    torch.nn.init.normal_(local(model.score.weight))
    prepare(model)
    for rows in ([[5, 6, 7], [5, 6, 8, 9]], [[3, 4, 5, 6], [3, 7]]):  # two passes
        rewards, _ = model(pack([Group(rows)]))
        bradley_terry_loss(reward_margin(rewards.view(-1, 2))).sum().backward()
    return [local(p.grad).clone() for p in model.parameters()]


@pytest.fixture
def four_layers(tmp_path) -> str:
    make_model("qwen3", num_hidden_layers=4).save_pretrained(tmp_path / "four")
    return str(tmp_path / "four")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_recomputed_layers_give_the_same_gradients(four_layers, process, count):
    """Bit for bit: the same kernels run on the same values, in the same order."""
    expected = gradients(four_layers, process)
    calls = []

    def recompute(model):
        recompute_layers(model, count)
        for number, layer in enumerate(decoder_layers(model.backbone)):
            layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))

    found = gradients(four_layers, process, recompute)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    times = [calls.count(number) for number in range(4)]  # in two passes
    assert times == [4] * count + [2] * (4 - count)  # the first layers, whose turn comes last


def test_weights_that_stay_gathered_give_the_same_gradients(four_layers, process):
    found = gradients(four_layers, process, lambda m: m.set_reshard_after_forward(False))
    expected = gradients(four_layers, process)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_embeddings_are_not_gathered_for_their_backward_pass(four_layers, process):
    """Their gradient needs the tokens alone; and it is the same."""
    embeddings = []

    def gather_again(model):
        embeddings.append(model.backbone.get_input_embeddings())
        (group,) = embeddings[0]._get_fsdp_state()._fsdp_param_groups
        assert not group.unshard_in_backward
        embeddings[0].set_unshard_in_backward(True)

    found = gradients(four_layers, process)
    expected = gradients(four_layers, process, gather_again)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].abs().sum() > 0


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_what_a_layer_keeps_is_measured_without_its_gathered_weights(
    four_layers, process, precision
):
    """As of a model that is not sharded, in the dtype of the arithmetic; no gradient is left."""
    batch = pack([Group([[5, 6, 7], [5, 6, 8, 9]])])
    plain = load_reward_model(four_layers, PRECISIONS[precision][1], seed=0).train()
    expected = kept_bytes_per_token(plain, batch)
    sharded = shard(load_reward_model(four_layers, seed=0), process, precision).train()
    assert kept_bytes_per_token(sharded, batch) == pytest.approx(expected)
    assert all(p.grad is None for p in sharded.parameters())


def test_the_option_names_a_number_of_layers_or_leaves_it_to_us():
    asked = {"auto": None, "off": 0, "on": 36, "0": 0, "12": 12, "36": 36}
    assert {option: layers_asked_for(option, 36) for option in asked} == asked
    for option in ("37", "-1", "half", ""):
        with pytest.raises(
            UserError, match="choose auto, on, off or a number of layers, at most 36"
        ):
            layers_asked_for(option, 36)


def test_the_peak_of_a_pass_by_hand():
    """4 layers keep 10 each, or 1 if recomputed; each has gradients of 2.

    At the top layer: all that is kept, 10 for the gradients inside it, and its own 2.
    """
    needs = PassMemory(layers=4, kept=10, kept_input=1, gradients=2)
    assert needs.peak(0) == 40 + 10 + 2
    assert needs.peak(2) == 2 * 10 + 2 * 1 + 10 + 2
    # all: at the first layer, when those above it have their gradients; 10 more are computed again
    assert needs.peak(4) == max(4 + 20 + 2, 1 + 20 + 4 * 2)
    several = needs._replace(one_pass=False)
    assert several.peak(0) == 40 + 10 + 4 * 2
    assert needs._replace(other_gradients=100).peak(0) == 4 * 2 + 100  # the end of the pass


def test_only_as_many_layers_are_recomputed_as_the_memory_demands():
    needs = PassMemory(layers=4, kept=10, kept_input=1, gradients=2)
    peaks = [needs.peak(count) for count in range(5)]
    assert peaks[0] > peaks[1] > peaks[2]
    for count in (0, 1, 2):
        assert needs.fewest_recomputed(peaks[count]) == count
        assert needs.fewest_recomputed(peaks[count] - 0.5) == count + 1
    assert needs.fewest_recomputed(0) == 4  # and runs out of memory, which says so


def test_each_pass_recomputes_as_few_layers_as_fit(four_layers, process):
    """5 tokens need 250 and gradients of 2: no layer is recomputed in 255. They need 258 where all
    gradients are there, in a later pass of a step: one is. 7 tokens need 352, and with one layer
    289: two are."""
    model = shard(load_reward_model(four_layers, seed=0), process, "float32").train()
    of_token = PassMemory(layers=4, kept=10, kept_input=1, gradients=2)
    assert [of_token.at(5, one_pass).peak(0) for one_pass in (True, False)] == [252, 258]
    assert [of_token.at(7, True).peak(count) for count in (0, 1, 2)] == [352, 289, 226]
    recompute_as_needed(model, of_token, free=255)

    def recomputed_in_a_pass_of(tokens: int) -> int:
        rewards, _ = model(pack([Group([list(range(tokens))])]))
        rewards.sum().backward()
        return sum(layer.gradient_checkpointing for layer in decoder_layers(model.backbone))

    assert recomputed_in_a_pass_of(5) == 0
    assert recomputed_in_a_pass_of(5) == 1
    model.zero_grad()
    assert recomputed_in_a_pass_of(7) == 2
    model.zero_grad()
    assert recomputed_in_a_pass_of(5) == 0


def test_weights_stay_gathered_only_where_nothing_is_recomputed_for_it():
    needs = PassMemory(layers=4, kept=10, kept_input=1, gradients=2)  # 52 without recomputation
    assert plan_memory(needs, free=60, capacity=100, weights=8) == (0, True)
    assert plan_memory(needs, free=59, capacity=100, weights=8) == (0, False)
    assert plan_memory(needs, free=90, capacity=100, weights=11) == (0, False)  # over a tenth
    assert plan_memory(needs, free=51, capacity=100, weights=8) == (1, False)


def test_replicas_must_divide_the_processes(toy_model_folder, process):
    model = load_reward_model(toy_model_folder, seed=0)
    with pytest.raises(UserError, match="--replicas 3: 1 processes cannot be divided by it"):
        shard(model, process, "float32", replicas=3)


def test_the_layers_are_found_whatever_they_are_called(any_model_folder):
    model = load_reward_model(any_model_folder, seed=0)
    assert list(decoder_layers(model.backbone)) == list(model.backbone.layers)


if __name__ == "__main__":
    run_as_script(*sys.argv[1:])
