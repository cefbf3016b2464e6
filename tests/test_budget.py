"""What a step would do to a GPU, counted on `meta`: each number of the budget, and that it can be
missed."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import budget
import estimate
from budget import META
from counting import CountOperations, CountWaits, LiveMemory
from estimate import GIB, QWEN3_4B
from workload import make_groups

import train
from rmood.distributed import to_device

SMALL = replace(budget.SMALL, layers=4)


def test_operators_are_counted_with_their_bytes_and_flops():
    a, b = torch.empty(8, 4), torch.empty(4, 2)
    with CountOperations() as count:
        product = a @ b
        product.t().add(1.0)
    assert count.total == 2  # a view launches nothing
    assert count.costs["aten::mm"].flops == 2 * 8 * 4 * 2
    assert count.costs["aten::add.Tensor"].bytes == 2 * 16 * 4  # read and written


def test_memory_counts_what_is_alive():
    with LiveMemory() as memory:
        a = torch.empty(1000, device=META)
        b = a.double()
        del a
        c = b.view(10, 100)
    assert memory.peak == 4000 + 8000
    assert memory.live == 8000
    assert c.shape == (10, 100)


def on_device(n: int = 4) -> torch.Tensor:
    return torch.empty(n, device=META)


WAITS = {
    "a value": lambda: on_device().sum().item(),
    "a truth": lambda: bool(on_device().isfinite().all()),
    "a boolean mask": lambda: on_device()[torch.empty(4, dtype=torch.bool, device=META)],
    "a list as index": lambda: on_device()[[0, 2]],
    "a list as data": lambda: torch.tensor([1.0, 2.0], device=META),
    "a value put at a list": lambda: on_device().__setitem__([0, 2], 1.0),
    "a copy": lambda: torch.zeros(4).to(META),
    "a copy that is not pinned": lambda: torch.zeros(4).to(META, non_blocking=True),
    "a pinned copy that is waited for": lambda: torch.zeros(4).pin_memory().to(META),
}


@pytest.mark.parametrize("what", WAITS)
def test_the_host_waits_for(what):
    with CountWaits() as count:
        try:
            WAITS[what]()
        except NotImplementedError:  # `meta` has no values
            pass
    assert sum(count.waits.values()) == 1


def test_the_host_does_not_wait_for_pinned_copies_and_indices_on_the_device():
    with CountWaits() as count:
        index = torch.tensor([0, 2]).pin_memory().to(META, non_blocking=True)
        table = on_device()
        table[index] = table[index] * 2
        table += 1.0
    assert not count.waits


def test_no_pass_waits_for_the_gpu():
    assert budget.syncs() == {"syncs_per_pass": 0}


def test_what_goes_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch):
    """As budget.to_gpu does where `meta` stands for the GPU."""
    calls = []
    tensor = torch.zeros(2)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **more: calls.append((args, more)))
    cuda = torch.device("cuda")
    for send in (to_device, budget.to_gpu):
        send(tensor, cuda)
    assert calls == ["pinned", ((cuda,), {"non_blocking": True})] * 2


def test_a_list_as_index_or_a_number_that_is_read_would_be_counted(monkeypatch):
    """Rewards put at a list of rows, as they were: one wait in each of 3 passes."""

    def put(self, rows, rewards, losses, pooled):
        rows = list(range(len(rows)))
        self.table[rows] = torch.cat([rewards, losses[:, None]], dim=1).detach()

    monkeypatch.setattr(train.StepValues, "put", put)
    assert budget.syncs() == {"syncs_per_pass": 1}


def test_the_meter_of_a_4b_is_some_fifty_kernels():
    assert 20 < budget.meter_kernels(QWEN3_4B) <= 60


def test_a_layer_is_one_graph_for_all_lengths(process):
    assert budget.graphs(recomputed=True) == {"graphs": 1, "breaks": 0, "recompiles": 0}


def test_a_compiled_4b_layer_moves_what_the_roofline_assumes():
    """By Inductor's own count, and at most 480 kB a token outside matrix products."""
    found = budget.compiled_layer(QWEN3_4B)
    moved = (found["forward_bytes_per_token"], found["backward_bytes_per_token"])
    assert moved == pytest.approx(estimate.COMPILED_MOVED, rel=0.01)
    assert found["bytes_per_token_outside_matmul"] == pytest.approx(sum(moved))
    assert sum(moved) <= 480_000
    assert found["kept_bytes_per_token"] == pytest.approx(estimate.COMPILED_KEPT, rel=0.01)


def test_a_layer_that_is_not_compiled_moves_four_times_as_much():
    eager = budget.eager_layer(QWEN3_4B, make_groups(4, 2, 512, seed=0))
    assert 3 < eager["bytes_per_token_outside_matmul"] / sum(estimate.COMPILED_MOVED) < 6


def test_the_formula_is_just_above_the_peak_of_a_4b_on_meta():
    groups = make_groups(64, 2, QWEN3_4B.vocabulary, seed=0)
    tokens = sum(group.tokens for group in groups)
    for recomputed in (0, 36):
        measured = budget.peak_of_pass(QWEN3_4B, groups, recomputed) / GIB
        settings = dict(one_pass=True, compiled=False)
        parts = estimate.memory(QWEN3_4B, "mixed", 1, tokens, recomputed, **settings)
        assert measured < parts["pass"] / GIB < 1.12 * measured


def test_half_of_the_measured_rate_is_predicted_in_one_pass_a_step_and_in_several():
    """Later passes of a step recompute more layers, beside the gradients of the first."""
    names = ("forward_bytes_per_token", "backward_bytes_per_token")
    numbers = dict(zip(names, estimate.COMPILED_MOVED))
    groups = make_groups(256, 2, QWEN3_4B.vocabulary, seed=0)
    small, large = (budget.predict(QWEN3_4B, groups, numbers, "mixed", n) for n in (64, 256))
    assert small["mfu"] >= 0.5 and large["mfu"] >= 0.5
    assert small["most_recomputed"] < large["most_recomputed"] < 36


def test_the_budget_says_what_is_missed(capsys):
    numbers = {name: 0 for name in budget.BUDGET}
    numbers |= {"graphs": 1, "graphs_recomputed": 2, "predicted_mfu": 0.5}
    assert budget.missed(numbers) == []
    numbers |= {"syncs_per_pass": 0.5, "meter_kernels": 61}
    assert budget.missed(numbers) == ["meter_kernels", "syncs_per_pass"]
    assert budget.report(numbers).count("MISSED") == 2
