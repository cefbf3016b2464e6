"""LoRA: what is trained, that it is full fine-tuning where it must be, and what is saved."""

import pytest
import torch
from conftest import groups_of_pairs
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import make_groups, tiny_backbone
from torch import nn
from torch._dynamo.utils import counters
from training import losses, read_metrics, torchrun

from rmood.batching import pack
from rmood.checkpoint import checkpoints
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.loading import fill, load_reward_model, meta_reward_model
from rmood.lora import LoraLinear, adapted_modules, add_adapters, first_values, merge
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.model import RewardModel
from rmood.optim import local, trained_parameters
from rmood.sharding import (
    compile_layers,
    decoder_layers,
    gathered_bytes,
    gradient_bytes,
    recompute_layers,
    shard,
)

MATRICES = {
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}


# ---- the parametrisation -------------------------------------------------------------------------


def square_model() -> RewardModel:
    """All of whose matrices are (32, 32), or have 32 inputs: a rank of 32 is full."""
    torch.manual_seed(1)
    backbone = tiny_backbone("qwen3", layers=2, intermediate_size=32)
    return RewardModel(backbone, nn.Linear(32, 1, bias=False))


def with_adapters(model: RewardModel, rank: int, alpha: float) -> RewardModel:
    add_adapters(model.backbone, decoder_layers(model.backbone), rank, alpha)
    for name, value in first_values(model, seed=0):
        model.get_parameter(name).data = value
    return model


def gradient_step(model: RewardModel, step: int) -> None:
    model.zero_grad()
    rewards, _ = model(pack(make_groups(4, responses=2, seed=step)))
    bradley_terry_loss(reward_margin(rewards.view(-1, 2))).mean().backward()


def matrices(model: RewardModel) -> dict[str, torch.Tensor]:
    """The layers' matrices, with adapters merged."""
    found = {}
    for name, module in decoder_layers(model.backbone).named_modules():
        if isinstance(module, LoraLinear):
            found[name] = module.weight + module.scale * module.lora_b @ module.lora_a
        elif isinstance(module, nn.Linear):
            found[name] = module.weight
    return found


def gap_to_full_fine_tuning(make_a, optimizer, steps: int = 3) -> float:
    """Largest difference of a merged matrix from full fine-tuning of the same matrices, over the
    largest change, after some steps. A is make_a() and stays."""
    full = square_model()
    full.backbone.requires_grad_(False)
    for module in decoder_layers(full.backbone).modules():
        if isinstance(module, nn.Linear):
            module.weight.requires_grad_(True)
    ours = with_adapters(square_model(), rank=32, alpha=32.0)
    for module in adapted_modules(ours).values():
        module.lora_a.data = make_a()
        module.lora_a.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in matrices(full).items()}
    for model in (full, ours):
        update = optimizer(trained_parameters(model).values())
        for step in range(steps):
            gradient_step(model, step)
            update.step()
    expected = matrices(full)
    change = max((expected[name] - before[name]).abs().max() for name in before)
    gap = max((matrices(ours)[name] - expected[name]).abs().max() for name in before)
    return (gap / change).item()


def identity() -> torch.Tensor:
    return torch.eye(32)


def rotation() -> torch.Tensor:
    """A random orthonormal matrix."""
    normal = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(normal).Q


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


def test_with_a_fixed_orthonormal_a_of_full_rank_sgd_is_full_fine_tuning():
    """dL/dB = G A^T for G = dL/dW, so that a step of B by -lr dL/dB moves B A by -lr G A^T A, and
    A^T A = 1. Of a rotation too; of an A that is not orthonormal, or without full rank, it is not.
    """
    assert gap_to_full_fine_tuning(identity, sgd) < 1e-4
    assert gap_to_full_fine_tuning(rotation, sgd) < 1e-4
    assert gap_to_full_fine_tuning(lambda: 0.5 * rotation(), sgd) > 0.5
    half = torch.diag(torch.arange(32) < 16).float()
    assert gap_to_full_fine_tuning(lambda: half, sgd) > 0.5


def test_with_a_fixed_at_the_identity_adam_is_full_fine_tuning():
    """B is the update itself. Adam divides entry by entry, so a rotation is another matter."""
    assert gap_to_full_fine_tuning(identity, adam) < 1e-3
    assert gap_to_full_fine_tuning(rotation, adam) > 0.1


def test_gradients_of_the_adapters_follow_from_the_gradient_of_the_matrix():
    """dL/dB = s G A^T and dL/dA = s B^T G, with the full model's G at the merged weights."""
    ours = with_adapters(square_model(), rank=4, alpha=10.0)
    generator = torch.Generator().manual_seed(0)
    for module in adapted_modules(ours).values():
        assert module.scale == 2.5
        module.lora_b.data.normal_(0, 0.1, generator=generator)
    full = square_model()
    for name, module in decoder_layers(full.backbone).named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = matrices(ours)[name].detach()
    for model in (ours, full):
        gradient_step(model, 0)
    for name, module in adapted_modules(decoder_layers(ours.backbone)).items():
        gradient = full.backbone.layers.get_submodule(name).weight.grad
        a, b = module.lora_a, module.lora_b
        assert torch.allclose(b.grad, 2.5 * gradient @ a.T, atol=1e-6)
        assert torch.allclose(a.grad, 2.5 * b.T @ gradient, atol=1e-6)
        assert module.weight.grad is None


# ---- what is trained -----------------------------------------------------------------------------


def sharded(folder: str, process, precision: str, dtype: torch.dtype, rank: int = 4):
    model, source = meta_reward_model(folder, dtype, seed=0)
    names = add_adapters(model.backbone, decoder_layers(model.backbone), rank, alpha=8.0)
    assert names == MATRICES
    model = shard(model, process, precision)
    fill(model, source, process)
    return model.train()


def test_only_adapters_and_the_head_are_trained_and_they_are_float32(any_model_folder, process):
    model = sharded(any_model_folder, process, "mixed", torch.bfloat16)
    trained = trained_parameters(model)
    kinds = {name.rpartition(".")[2] for name in trained}
    assert kinds == {"lora_a", "lora_b", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["score.weight"]
    assert len(trained) == 2 * len(MATRICES) * 2 + 1  # two layers
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if name in trained else torch.bfloat16), name
    for module in adapted_modules(model).values():
        a, b = module.lora_a.full_tensor(), module.lora_b.full_tensor()
        assert a.shape == (4, module.in_features) and b.shape == (module.out_features, 4)
        assert b.abs().max() == 0
        assert 0.9 < a.abs().max() * module.in_features**0.5 <= 1


def test_memory_is_planned_for_the_gradients_of_adapters_alone(toy_model_folder, process):
    """Of rank 4: 4 x (in + out) weights beside each of seven matrices. Hidden size 32, 4 query and
    2 key heads of 8, an MLP of 64."""
    model = sharded(toy_model_folder, process, "mixed", torch.bfloat16)
    layer = decoder_layers(model.backbone)[0]
    adapters = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert gradient_bytes(layer) == 4 * adapters
    whole = sum(p.numel() for p in layer.parameters())
    assert gathered_bytes(layer, 2) == 2 * whole + (2 + 4) * adapters
    assert gradient_bytes(model) == 4 * (2 * adapters + 32)


@pytest.mark.parametrize(
    "precision, dtype", [("mixed", torch.bfloat16), ("float32", torch.float32)]
)
def test_the_first_rewards_are_those_of_the_start_model(
    toy_model_folder, toy_tokenizer, process, precision, dtype
):
    """Bit for bit: B is 0."""
    batch = pack(groups_of_pairs(toy_tokenizer))
    plain, source = meta_reward_model(toy_model_folder, dtype, seed=0)
    plain = shard(plain, process, precision)
    fill(plain, source, process)
    ours = sharded(toy_model_folder, process, precision, dtype)
    assert torch.equal(ours(batch)[0], plain(batch)[0])


def test_layers_without_a_linear_module_are_refused():
    backbone = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(UserError, match="no nn.Linear .* train without --lora-rank"):
        add_adapters(backbone, backbone, rank=2, alpha=1.0)


def test_experts_stay_as_they_are_and_attention_has_adapters():
    backbone = tiny_backbone("qwen3_moe")
    names = add_adapters(backbone, decoder_layers(backbone), rank=2, alpha=1.0)
    assert names == {name for name in MATRICES if name.startswith("self_attn")}


def test_compiled_layers_learn_the_same(process):
    """One layer is recomputed, one is not."""

    def gradients(compiled: bool) -> list[torch.Tensor]:
        model = RewardModel(tiny_backbone("qwen3", layers=2), nn.Linear(32, 1, bias=False))
        nn.init.constant_(model.score.weight, 0.1)
        add_adapters(model.backbone, decoder_layers(model.backbone), rank=4, alpha=8.0)
        values = dict(first_values(model, seed=0))
        model = shard(model, process, "float32").train()
        for name, p in trained_parameters(model).items():
            if name in values:
                local(p).data.copy_(values[name] + 0.01)
        recompute_layers(model, 1)
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            compile_layers(model, process, required=True, backend="aot_eager")
        for count in (1, 3):
            rewards, _ = model(pack(make_groups(count, responses=2, seed=count)))
            rewards.square().mean().backward()
        return [local(p.grad) for p in trained_parameters(model).values()]

    plain = gradients(compiled=False)
    compiled = gradients(compiled=True)
    assert counters["stats"]["unique_graphs"] == 1
    for a, b in zip(compiled, plain, strict=True):
        assert b.abs().max() > 0 and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


# ---- train.py ------------------------------------------------------------------------------------

FLAGS = "--lora-rank 4 --lora-alpha 8 --lr 2e-2 --epochs 1 --eval-share 0.2 --save-every 2"


def test_a_trained_model_has_the_tensors_of_one_that_was_trained_whole(
    train_to, toy_model_folder, tmp_path, capsys
):
    full = train_to("full", "--epochs 1 --eval-share 0.2")
    ours = train_to("lora", FLAGS)
    said = capsys.readouterr().err
    assert "adapters of rank 4 beside mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn" in said
    assert losses(ours)[0] == losses(full)[0]
    assert losses(ours)[-1] < 0.9 * losses(ours)[0]
    measured = [line for line in ours if "lost_updates" in line]
    kinds = {name for line in measured for name in line if name.startswith("lost_updates_")}
    assert kinds == {"lost_updates_attention", "lost_updates_mlp", "lost_updates_head"}
    assert all(line["lost_updates"] < 0.02 for line in measured)

    shapes = {}
    for name in ("full", "lora"):
        saved = load_file(tmp_path / name / "model.safetensors")
        shapes[name] = {key: tensor.shape for key, tensor in saved.items()}
    assert shapes["lora"] == shapes["full"]
    start = load_file(f"{toy_model_folder}/model.safetensors")
    saved = load_file(tmp_path / "lora" / "model.safetensors")
    changed = {key for key in start if not torch.equal(start[key], saved[key])}
    assert changed == {f"model.layers.{i}.{name}.weight" for i in range(2) for name in MATRICES}
    assert "Trained by LoRA: rank 4, alpha 8" in (tmp_path / "lora" / "README.md").read_text()


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    train_to, killed_at, toy_model_folder, toy_tokenizer, tmp_path
):
    """Its checkpoint holds adapters, head and moments; another start model is refused."""
    flags = f"{FLAGS} --precision mixed"
    train_to("whole", flags)
    with killed_at(3):
        train_to("killed", flags)
    (path,) = checkpoints(str(tmp_path / "killed"))
    with safe_open(path / "shard-0-of-1.safetensors", "pt") as file:
        weights = [name for name in file.keys() if name.startswith("weight.")]
        assert len(file.keys()) == 3 * len(weights)
    assert len(weights) == 2 * 2 * len(MATRICES) + 1
    assert all("lora_" in name or name == "weight.score.weight" for name in weights)

    other = load_reward_model(toy_model_folder, seed=0)
    with torch.no_grad():
        other.backbone.layers[1].mlp.up_proj.weight.mul_(1.001)
    save_reward_model(str(tmp_path / "other"), other, toy_tokenizer, torch.float32, {})
    save_reward_model(str(tmp_path / "copy"), other, toy_tokenizer, torch.float32, {})
    with pytest.raises(UserError, match=r"other settings \(other start model\)"):
        train_to("killed", flags, "--resume auto", model=str(tmp_path / "other"))

    train_to("killed", flags, "--resume auto")
    for name in ("killed", "whole"):
        assert losses(read_metrics(tmp_path / name))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]


def test_two_processes_learn_the_same(train_to, toy_model_folder, pairs_path, tmp_path):
    """With recomputation, and adapters whose 3 rows are divided unevenly."""
    flags = "--lora-rank 3 --epochs 1"
    one = train_to("one", flags)
    flags += " --activation-checkpointing 1 --tokens-per-pass 100"
    torchrun(2, toy_model_folder, pairs_path, tmp_path / "two", flags)
    assert losses(read_metrics(tmp_path / "two")) == pytest.approx(losses(one), abs=1e-5)
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, weight in saved[0].items():
        assert torch.allclose(weight, saved[1][name], atol=1e-4), name


@pytest.mark.parametrize("precision", ["bf16", "bf16-sr"])
def test_adapters_in_bf16_are_refused(train_to, precision):
    with pytest.raises(UserError, match=f"--precision {precision}: adapters are float32"):
        train_to("rm", f"--lora-rank 4 --precision {precision}")


# ---- what is saved -------------------------------------------------------------------------------


def move_adapters(model: RewardModel, size: float) -> None:
    """B as training might leave it."""
    generator = torch.Generator().manual_seed(0)
    for module in adapted_modules(model).values():
        values = torch.empty(module.lora_b.shape).normal_(0, size, generator=generator)
        local(module.lora_b).data.copy_(values)


def test_the_merged_model_has_the_rewards_of_the_adapters(
    any_model_folder, toy_tokenizer, process, tmp_path
):
    model = sharded(any_model_folder, process, "float32", torch.float32)
    batch = pack(groups_of_pairs(toy_tokenizer))
    first = model(batch)[0]
    move_adapters(model, 0.05)
    expected = model(batch)[0]
    assert (expected - first).abs().max() > 100 * 1e-5
    save_reward_model(str(tmp_path), model, toy_tokenizer, torch.float32, {}, process)
    rewards = load_reward_model(str(tmp_path))(batch)[0]
    assert torch.allclose(rewards, expected, atol=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_merged_weights_keep_the_update_though_they_are_saved_in_bf16(
    toy_model_folder, toy_tokenizer, process, tmp_path, size
):
    """On average: by <actual, intended> / <intended, intended>. bf16 weights of std 0.2 have steps
    of 0.001: rounded to the nearest, an update of 1e-4 would be gone."""
    model = sharded(toy_model_folder, process, "mixed", torch.bfloat16)
    move_adapters(model, size)
    save_reward_model(str(tmp_path), model, toy_tokenizer, torch.bfloat16, {}, process)
    saved = load_file(tmp_path / "model.safetensors")
    kept = nearest = intended = 0.0
    for name, module in adapted_modules(model).items():
        weight, a, b = (x.full_tensor() for x in (module.weight, module.lora_a, module.lora_b))
        exact = merge(weight, a, b, module.scale)
        update = exact - weight.float()
        rounded = saved[name.replace("backbone", "model") + ".weight"]
        assert rounded.dtype == torch.bfloat16
        kept += (update * (rounded.float() - weight.float())).sum().item()
        nearest += (update * (exact.bfloat16().float() - weight.float())).sum().item()
        intended += update.square().sum().item()
    assert kept / intended == pytest.approx(1, abs=0.2)
    assert size == 1e-2 or nearest / intended < 0.3
    embeddings = model.backbone.get_input_embeddings().weight.full_tensor()
    assert torch.equal(saved["model.embed_tokens.weight"], embeddings)  # bf16 numbers stay
