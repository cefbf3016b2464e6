import pytest
import torch
from torch import nn

from rmood import distributed
from rmood.optim import AdamWStochasticRounding, UpdateMeter, adam_step, build_optimizer, clip_gradients, kind_of


@pytest.fixture
def process():
    process = distributed.start("cpu")
    yield process
    process.finish()


class Toy(nn.Module):
    """Weights named as a reward model's."""

    def __init__(self, dtype=torch.float32, std: float = 0.02, size: int = 128):
        super().__init__()
        self.backbone = nn.ModuleDict({"mlp": nn.Linear(size, size, bias=False, dtype=dtype), "norm": nn.RMSNorm(size, dtype=dtype)})
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
    names = ["backbone.embed_tokens.weight", "backbone.layers.0.self_attn.q_proj.weight", "backbone.layers.0.self_attn.q_norm.weight", "backbone.layers.3.mlp.up_proj.weight", "score.weight", "backbone.norm.weight"]
    assert [kind_of(name) for name in names] == ["embeddings", "attention", "norms", "mlp", "head", "norms"]


def test_the_first_step_of_adam_is_the_rate_whatever_the_gradient():
    for g in (1e-3, 7.0):
        assert adam_step(torch.tensor(0.1 * g), torch.tensor(0.001 * g * g), torch.tensor(1.0), lr=0.01).item() == pytest.approx(0.01, rel=1e-4)


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
    """1 + 1/512 lies a quarter of the way from 1 to the next bf16, 1 + 1/128."""
    optimizer = AdamWStochasticRounding(Toy(torch.bfloat16).parameters(), lr=1.0)
    target = torch.empty(100_000, dtype=torch.bfloat16)
    optimizer.store(torch.full((100_000,), 1 + 1 / 512), target)
    assert sorted(set(target.tolist())) == [1.0, 1 + 1 / 128]
    assert (target.float() > 1).float().mean().item() == pytest.approx(0.25, abs=0.01)
    optimizer.store(torch.full((100_000,), -0.5), target)
    assert set(target.tolist()) == {-0.5}  # what bf16 can hold is left alone


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


@pytest.mark.parametrize("precision, dtype, kept", [("float32", torch.float32, 1.0), ("bf16-sr", torch.bfloat16, 1.0), ("bf16", torch.bfloat16, 0.0)])
def test_stochastic_rounding_leaves_weights_unchanged_yet_keeps_the_update(process, precision, dtype, kept):
    model = Toy(dtype, size=512)
    optimizer = build_optimizer(model, precision, 1e-6, 0.0)
    model.give_gradients()
    meter = UpdateMeter(model, per_tensor=300_000)
    optimizer.step()
    metrics = {name: value.item() for name, value in meter.read(model, optimizer, process).items()}
    assert metrics["update_kept"] == pytest.approx(kept, abs=0.2)
    assert metrics["lost_updates"] == pytest.approx(0.0 if precision == "float32" else 0.95, abs=0.05)


def test_the_update_ratio_is_the_norm_of_the_step_over_that_of_the_weights(process):
    model = Toy()
    optimizer = build_optimizer(model, "float32", 1e-3, 0.0)
    model.give_gradients()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    meter = UpdateMeter(model, per_tensor=100_000)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert meter.read(model, optimizer, process)["update_ratio"].item() == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-4)


def test_gradients_are_clipped_by_their_common_norm(process):
    model = Toy()
    for p, value in zip(model.parameters(), (0.0, 0.0, 0.0)):
        p.grad = torch.zeros_like(p)
    model.score.weight.grad[0, 0], model.backbone["mlp"].weight.grad[0, 0] = 3.0, 4.0
    norms = clip_gradients(model, 1.0, process)
    assert {name: round(value.item(), 4) for name, value in norms.items()} == {"grad_norm": 5.0, "grad_norm_backbone": 4.0, "grad_norm_mlp": 4.0, "grad_norm_norms": 0.0, "grad_norm_head": 3.0}
    assert model.score.weight.grad[0, 0].item() == pytest.approx(0.6, abs=1e-4)
