import sys

import pytest
import torch
from conftest import REPOSITORY, make_model
from torch import nn

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from counting import CountOperations

from rmood.model import RewardModel
from rmood.optim import (
    KINDS,
    AdamWStochasticRounding,
    UpdateMeter,
    adam_step,
    build_optimizer,
    clip_gradients,
    kind_of,
    local,
    round_stochastically,
    update_chunk,
    update_in_place,
)
from rmood.sharding import shard


class Toy(nn.Module):
    """Weights named as a reward model's."""

    def __init__(self, dtype=torch.float32, std: float = 0.02, size: int = 128):
        super().__init__()
        mlp = nn.Linear(size, size, bias=False, dtype=dtype)
        self.backbone = nn.ModuleDict({"mlp": mlp, "norm": nn.RMSNorm(size, dtype=dtype)})
        self.score = nn.Linear(size, 1, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.backbone["mlp"].weight.normal_(0, std, generator=generator)
            self.score.weight.normal_(0, std, generator=generator)

    def give_gradients(self, step: int = 0) -> None:
        generator = torch.Generator().manual_seed(step)
        for p in self.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def test_kinds_are_told_from_names():
    kinds = {
        "backbone.embed_tokens.weight": "embeddings",
        "backbone.layers.0.self_attn.q_proj.weight": "attention",
        "backbone.layers.0.self_attn.q_norm.weight": "norms",
        "backbone.layers.3.mlp.up_proj.weight": "mlp",
        "score.weight": "head",
        "backbone.norm.weight": "norms",
        "backbone.rotary.inv_freq": "other",
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def test_the_first_step_of_adam_is_the_rate_whatever_the_gradient():
    for g in (1e-3, 7.0):
        m = torch.tensor(0.1 * g)
        v = torch.tensor(0.001 * g * g)
        update = adam_step(m, v, torch.tensor(1.0), lr=0.01)
        assert update.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_hand_written_adamw_is_torchs_in_float32(weight_decay):
    ours, theirs = Toy(), Toy()
    groups = [{"params": list(ours.parameters()), "weight_decay": weight_decay}]
    mine = AdamWStochasticRounding(groups, lr=1e-2)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=weight_decay)
    for step in range(50):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            model.give_gradients(step)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(a, b, atol=1e-6), (a - b).abs().max()


def test_stochastic_rounding_keeps_the_mean_and_uses_neighbours_only():
    """1 + 1/512 is a quarter of the way from 1 to the next bf16, 1 + 1/128."""
    optimizer = AdamWStochasticRounding(Toy(torch.bfloat16).parameters(), lr=1.0)
    noise = optimizer.noise_for(torch.empty(100_000, dtype=torch.bfloat16))
    for own_bits in (noise, noise >> 16, noise >> 32):  # of the weight, of each moment
        rounded = round_stochastically(torch.full((100_000,), 1 + 1 / 512), own_bits)
        assert rounded.dtype == torch.bfloat16
        assert sorted(set(rounded.tolist())) == [1.0, 1 + 1 / 128]
        assert (rounded.float() > 1).float().mean().item() == pytest.approx(0.25, abs=0.01)
    rounded = round_stochastically(torch.full((100_000,), -0.5), noise)
    assert set(rounded.tolist()) == {-0.5}  # what bf16 can hold is left alone


def test_weight_and_moments_are_rounded_by_bits_of_their_own():
    """Were two of them rounded up together, their errors would add up instead of cancelling out."""
    weight, grad, m, v, _, step, rate, decay = chunk_of_weights(1, seed=0)
    noise = torch.empty(50_000, dtype=torch.int64)
    noise.random_(generator=torch.Generator().manual_seed(0))
    one_weight = [x.expand(50_000) for x in (weight, grad, m, v)]
    rounded = update_chunk(*one_weight, noise, step, rate, decay)
    for values in rounded:
        assert len(set(values.tolist())) == 2  # the neighbours in bf16
    correlation = torch.corrcoef(torch.stack(rounded).double()) - torch.eye(3)
    assert correlation.abs().max() < 0.03


def chunk_of_weights(n: int, seed: int) -> tuple:
    """Arguments of update_chunk: bf16 weights of std 0.02 and their moments after some steps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(std: float) -> torch.Tensor:
        return (std * torch.randn(n, generator=generator)).bfloat16()

    tensors = (normal(0.02), normal(1.0), normal(0.1), normal(0.3).square())
    noise = torch.empty(n, dtype=torch.int64).random_(generator=generator)
    step = torch.tensor(float(seed + 1))
    rate = torch.tensor(1e-4 / (seed + 1))
    return *tensors, noise, step, rate, rate * 0.1


def test_the_update_keeps_the_mean_of_adamw_in_float32():
    """2,000 draws of each of 50 weights. A step of bf16 is 1.2e-4 at 0.02, so the mean of 2,000
    draws is off by some 1.2e-4 / 2 / sqrt(2000) = 1.3e-6. The update itself is 3e-5 on average."""
    weight, grad, m, v, _, step, rate, decay = chunk_of_weights(50, seed=0)
    exact, _, _ = update_chunk(
        weight.float(), grad.float(), m.float(), v.float(), None, step, rate, decay
    )
    many = [x.repeat(2000) for x in (weight, grad, m, v)]
    noise = torch.empty(50 * 2000, dtype=torch.int64)
    noise.random_(generator=torch.Generator().manual_seed(0))
    drawn, _, _ = update_chunk(*many, noise, step, rate, decay)
    mean = drawn.float().view(2000, 50).double().mean(dim=0)
    update = (exact - weight.float()).abs().mean().item()
    assert update == pytest.approx(3e-5, rel=0.1)
    assert (mean - exact).abs().mean() < 0.1 * update


@pytest.mark.parametrize("backend, equal", [("aot_eager", 1.0), ("inductor", 0.999)])
def test_the_compiled_update_is_the_plain_one(backend, equal):
    """The same noise gives the same bits: all of them in the compiler's graph; in its machine code,
    which may round a float32 in another place, all but a few in a million."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(update_in_place, dynamic=True, fullgraph=True, backend=backend)
    for seed, n in enumerate((1000, 4096, 777)):  # one code for all sizes, rates and steps
        plain = chunk_of_weights(n, seed)
        fused = chunk_of_weights(n, seed)
        untouched = plain[0].clone()
        update_in_place(*plain)
        compiled(*fused)
        for a, b in zip(plain[:4], fused[:4]):
            assert (a == b).float().mean() >= equal
        assert not torch.equal(plain[0], untouched)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("lr, expected", [(1e-4, 0.12), (5e-5, 0.43), (5e-6, 0.92)])
def test_bf16_weights_of_002_lose_most_small_updates(process, lr, expected):
    """One Adam step has the size of the rate. bf16 near 0.02 has steps of 1.2e-4 (2^-13)."""
    model = Toy(torch.bfloat16, size=512)
    optimizer = build_optimizer(model, "bf16", lr, 0.0)
    model.give_gradients()
    meter = UpdateMeter(model, per_tensor=100_000)
    optimizer.step()
    metrics = {name: value.item() for name, value in meter.read(model, optimizer, process).items()}
    assert metrics["lost_updates_mlp"] == pytest.approx(expected, abs=0.03)
    assert metrics["lost_updates_norms"] == 1.0  # a gain of 1.0 never moves
    assert metrics["lost_updates_head"] == 0.0  # the head is float32


@pytest.mark.parametrize(
    "precision, dtype, kept",
    [
        ("float32", torch.float32, 1.0),
        ("bf16-sr", torch.bfloat16, 1.0),
        ("bf16", torch.bfloat16, 0.0),
    ],
)
def test_stochastic_rounding_leaves_weights_unchanged_yet_keeps_the_update(
    process, precision, dtype, kept
):
    model = Toy(dtype, size=512)
    optimizer = build_optimizer(model, precision, 1e-6, 0.0)
    model.give_gradients()
    meter = UpdateMeter(model, per_tensor=300_000)
    optimizer.step()
    metrics = {name: value.item() for name, value in meter.read(model, optimizer, process).items()}
    lost = 0.0 if precision == "float32" else 0.95
    assert metrics["update_kept"] == pytest.approx(kept, abs=0.2)
    assert metrics["lost_updates"] == pytest.approx(lost, abs=0.05)


def test_the_update_ratio_is_the_norm_of_the_step_over_that_of_the_weights(process):
    model = Toy()
    optimizer = build_optimizer(model, "float32", 1e-3, 0.0)
    model.give_gradients()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    meter = UpdateMeter(model, per_tensor=100_000)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = ((after - before).norm() / before.norm()).item()
    metrics = meter.read(model, optimizer, process)
    assert metrics["update_ratio"].item() == pytest.approx(expected, rel=1e-4)


def plain_meter(model: nn.Module, optimizer, process) -> dict[str, float]:
    """Take a step; what UpdateMeter measures of it, tensor by tensor."""
    stride = {p: max(1, local(p).numel() // 1024) | 1 for p in model.parameters()}

    def sample(tensor, p):
        return local(tensor).detach().flatten()[:: stride[p]].float().clone()

    before = {p: sample(p, p) for p in model.parameters()}
    optimizer.step()
    names = {p: name for name, p in model.named_parameters()}
    sums = torch.zeros(len(KINDS), 6)
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            m = sample(state["exp_avg"], p)
            v = sample(state["exp_avg_sq"], p)
            adam = adam_step(m, v, state["step"], group["lr"])
            intended = -adam - group["lr"] * group["weight_decay"] * before[p]
            actual = sample(p, p) - before[p]
            has_update = intended != 0
            columns = [
                has_update,
                has_update & (actual == 0),
                actual * intended,
                intended.square(),
                actual.square(),
                before[p].square(),
            ]
            row = torch.stack([column.float().sum() for column in columns])
            sums[KINDS.index(kind_of(names[p]))] += stride[p] * row
    process.sum(sums)
    updates, lost, kept, intended, actual, weights = sums.sum(dim=0)
    metrics = {
        "lost_updates": lost / updates,
        "update_kept": kept / intended,
        "update_ratio": (actual / weights).sqrt(),
    }
    for kind in {kind_of(name) for name in names.values()}:
        updates, lost, *_ = sums[KINDS.index(kind)]
        metrics[f"lost_updates_{kind}"] = lost / updates
    return {name: value.item() for name, value in metrics.items()}


def both_meters(model: nn.Module, optimizer, process) -> tuple[dict, dict]:
    """The same step by UpdateMeter and by plain_meter. The model has gradients."""
    meter = UpdateMeter(model)
    expected = plain_meter(model, optimizer, process)
    found = meter.read(model, optimizer, process)
    return {name: value.item() for name, value in found.items()}, expected


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16-sr"])
def test_gathered_samples_give_the_numbers_of_each_tensor_by_itself(process, precision):
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    model = Toy(dtype, size=96)  # 9 samples for one weight of the MLP; the head is float32
    optimizer = build_optimizer(model, precision, 1e-3, weight_decay=0.1)
    for step in range(3):
        model.give_gradients(step)
        found, expected = both_meters(model, optimizer, process)
        assert found == pytest.approx(expected, rel=2e-6)


def test_the_meter_needs_at_most_60_operations_for_36_layers(process):
    """It took 12,782 of them, tensor by tensor: on a GPU as many launches, with nothing to do."""
    model = RewardModel(make_model("qwen3", num_hidden_layers=36).model, nn.Linear(32, 1))
    model = shard(model, process, "bf16")
    optimizer = build_optimizer(model, "bf16", 1e-3, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with CountOperations() as remembering:
        meter = UpdateMeter(model)
    optimizer.step()
    with CountOperations() as reading:
        meter.read(model, optimizer, process)
    assert len(meter.params) == 400  # with the head's bias
    assert remembering.total + reading.total <= 60


def test_norms_of_bf16_gradients_are_float32(process):
    """bf16 has 3 digits: the norm of 16,384 values would be off by up to 0.4%."""
    model = Toy(torch.bfloat16)
    model.give_gradients()
    exact = torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm().item()
    norms = clip_gradients(model, 1e9, process)
    assert norms["grad_norm"].item() == pytest.approx(exact, rel=1e-5)
    assert norms["grad_norm"].dtype == torch.float32


def test_gradients_are_clipped_by_their_common_norm(process):
    model = Toy()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.score.weight.grad[0, 0] = 3.0
    model.backbone["mlp"].weight.grad[0, 0] = 4.0
    norms = clip_gradients(model, 1.0, process)
    assert {name: round(value.item(), 4) for name, value in norms.items()} == {
        "grad_norm": 5.0,
        "grad_norm_backbone": 4.0,
        "grad_norm_mlp": 4.0,
        "grad_norm_norms": 0.0,
        "grad_norm_head": 3.0,
    }
    assert model.score.weight.grad[0, 0].item() == pytest.approx(0.6, abs=1e-4)
