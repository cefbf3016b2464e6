"""Layers as graphs of torch.compile: how many, and that they compute the same.

Mostly by the backend "aot_eager": it traces as Inductor does, and generates no code. This file is
also the script that torchrun runs.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from tiny_models import make_groups, tiny_backbone
from torch._dynamo.utils import counters
from training import losses

from rmood import distributed
from rmood.batching import Group, pack, pad
from rmood.errors import UserError
from rmood.model import RewardModel
from rmood.sharding import compile_layers, recompute_layers, shard

LAYERS = 4
# Passes of different sizes: 2 to 8 responses a prompt, 1 (no shared prompt), and nothing to train
# on, as in train.py's EMPTY_PASS
PASSES = [
    make_groups(3, responses=1),  # first: as many keys as tokens, which must not become a rule
    *[make_groups(count, responses=2, seed=count) for count in (1, 2, 5)],
    [Group([[0], [0]])],
    *[make_groups(2, responses=k, seed=k) for k in (3, 4, 7, 8)],
]


def sharded(kind: str, process, precision="float32", recomputed: int = 0) -> RewardModel:
    torch.manual_seed(1)
    model = RewardModel(tiny_backbone(kind, LAYERS), torch.nn.Linear(32, 1, bias=False))
    model = shard(model, process, precision).train()
    recompute_layers(model, recomputed)
    return model


def learn(model: RewardModel, layout=pack) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rewards of all passes end to end, and the gradients of their mean square."""
    rewards = []
    for groups in PASSES:
        of_pass, _ = model(layout(groups))
        of_pass.square().mean().backward()
        rewards.append(of_pass.detach())
    gradients = {
        name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None
    }
    return torch.cat(rewards), gradients


def largest_differences(ours, theirs) -> dict[str, float]:
    """Of rewards, and of gradients as a share of the largest of each parameter."""
    (rewards, gradients), (expected, expected_gradients) = ours, theirs
    assert gradients.keys() == expected_gradients.keys()
    shares = [
        (gradient - expected_gradients[name]).abs().max() / expected_gradients[name].abs().max()
        for name, gradient in gradients.items()
    ]
    return {
        "rewards": (rewards - expected).abs().max().item(),
        "gradients": torch.stack(shares).max().item(),
    }


def compiled_against_eager(kind, process, precision="float32", recomputed=0) -> dict:
    """Differences and the number of graphs, over all passes."""
    eager = learn(sharded(kind, process, precision, recomputed))
    torch._dynamo.reset()
    counters.clear()
    model = sharded(kind, process, precision, recomputed)
    compile_layers(model, process, required=True, backend="aot_eager")
    found = largest_differences(learn(model), eager)
    found["graphs"] = counters["stats"]["unique_graphs"]  # compiled again: one more
    found["breaks"] = sum(counters["graph_break"].values())
    return found


def run_as_script() -> None:
    """What each rank sees, to stdout as JSON: a list of dicts."""
    process = distributed.start("cpu")
    packed = learn(sharded("qwen3", process, recomputed=2))
    padded = learn(sharded("qwen3", process), layout=pad)
    found = {
        "packed": largest_differences(packed, padded),
        "compiled": compiled_against_eager("qwen3", process, recomputed=2),
    }
    everything = [None] * process.world_size
    torch.distributed.all_gather_object(everything, found)
    process.result(json.dumps(everything))
    process.finish()


# ---- one process ---------------------------------------------------------------------------------


def test_each_kind_of_layer_is_a_graph(process):
    """Gemma 3's layers see a window and everything, in turns."""
    found = compiled_against_eager("gemma3_text", process)
    assert (found["graphs"], found["breaks"]) == (2, 0)
    assert found["rewards"] < 1e-6 and found["gradients"] < 1e-5


def test_experts_are_one_graph_in_bf16(process):
    found = compiled_against_eager("qwen3_moe", process, precision="mixed")
    assert (found["graphs"], found["breaks"]) == (1, 0)
    assert found["rewards"] < 0.02 and found["gradients"] < 0.05


def test_what_cannot_be_compiled_runs_as_it_is_unless_it_must_be(process, capsys):
    """transformers' experts on a CPU: the tokens of each are known only when they run."""
    eager = learn(sharded("mixtral", process))
    model = sharded("mixtral", process)
    compile_layers(model, process, backend="aot_eager")
    rewards, _ = learn(model)
    assert torch.allclose(rewards, eager[0], atol=1e-6)
    said = capsys.readouterr().err
    assert said.count("MixtralDecoderLayer: torch.compile failed (") == 1  # not once a layer
    assert said.rstrip().endswith("training without it")

    model = sharded("mixtral", process)
    compile_layers(model, process, required=True, backend="aot_eager")
    with pytest.raises(UserError, match="torch.compile failed .*: pass --compile off"):
        learn(model)


def test_train_with_compiled_layers_learns_the_same(train_to):
    """By Inductor, one layer recomputed. Evaluation, without gradients, has a graph of its own; in
    all they are few, whatever the number of passes."""
    flags = "--epochs 1 --eval-share 0.2"
    plain = train_to("plain", flags)
    torch._dynamo.reset()
    counters.clear()
    compiled = train_to("compiled", flags, "--compile on --activation-checkpointing 1")
    assert counters["stats"]["unique_graphs"] <= 3 and not counters["graph_break"]
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert compiled[-1]["eval_loss"] == pytest.approx(plain[-1]["eval_loss"], abs=1e-5)


# ---- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_packed_tokens_learn_as_padded_rows_on_two_processes_with_recomputation(ranks):
    for rank in ranks:
        assert rank["packed"]["rewards"] < 1e-5 and rank["packed"]["gradients"] < 1e-5


def test_all_layers_and_all_lengths_are_one_graph_also_when_recomputed(ranks):
    """On each of two processes; two of four layers are recomputed."""
    for rank in ranks:
        found = rank["compiled"]
        assert (found["graphs"], found["breaks"]) == (1, 0)
        assert found["rewards"] < 1e-6 and found["gradients"] < 1e-5


if __name__ == "__main__":
    run_as_script()
