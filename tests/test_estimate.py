import gc
import math
import sys

import pytest
import torch
from conftest import REPOSITORY, make_model

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import estimate
from counting import LiveMemory
from estimate import GIB, QWEN3_4B, Shape

from rmood.batching import Group, pack
from rmood.loading import load_reward_model
from rmood.lora import add_adapters
from rmood.optim import trained_parameters
from rmood.sharding import decoder_layers, kept_bytes_per_token, recompute_layers

TINY = Shape(layers=2, hidden=48, heads=4, kv_heads=2, head=16, mlp=80, vocabulary=384)


def tiny_model(folder, kind: str, layers: int, dtype: torch.dtype = torch.float32, rank: int = 0):
    model = make_model(
        kind,
        num_hidden_layers=layers,
        hidden_size=TINY.hidden,
        num_attention_heads=TINY.heads,
        num_key_value_heads=TINY.kv_heads,
        head_dim=TINY.head,
        intermediate_size=TINY.mlp,
    )
    model.save_pretrained(folder)
    model = load_reward_model(str(folder), dtype, seed=0).train()
    if rank:
        add_adapters(model.backbone, decoder_layers(model.backbone), rank, alpha=1.0)
        for p in trained_parameters(model.backbone).values():
            p.data = torch.zeros_like(p, dtype=dtype)  # as FSDP gathers them
    return model


def one_pair():
    """40 shared tokens and 24 own ones each: 88 unique tokens."""
    shared = [*range(20, 60)]
    return pack([Group([[*shared, *range(60, 84)], [*shared, *range(100, 124)]])])


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_more_layer_keeps_exactly_the_bytes_of_the_formula(tmp_path, kind, dtype, rank):
    """Two layers' mean has a share in what lies before the first and after the last."""
    kept = {}
    for layers in (2, 3):
        model = tiny_model(tmp_path / str(layers), kind, layers, dtype, rank)
        kept[layers] = layers * kept_bytes_per_token(model, one_pair())
    shape = Shape(**{**vars(TINY), "norm_heads": kind == "qwen3"})
    formula = sum(estimate.kept_per_layer(shape, dtype.itemsize, rank).values())
    assert kept[3] - kept[2] == pytest.approx(formula)
    assert kept[3] / 3 == pytest.approx(formula, rel=0.1 if rank else 0.02)


def test_a_recomputed_layer_keeps_its_input(tmp_path):
    """Of 3 layers, 0 to 3 recomputed: each keeps 48 values of 4 bytes a token."""
    kept = []
    for count in range(4):
        model = tiny_model(tmp_path / str(count), "qwen3", 3)
        recompute_layers(model, count)
        kept.append(live_bytes_after_forward(model) / 88)
    whole = sum(estimate.kept_per_layer(TINY, 4).values())
    for before, after in zip(kept, kept[1:]):
        assert before - after == pytest.approx(whole - 48 * 4, rel=0.01)


def live_bytes_after_forward(model) -> int:
    """Of the tensors that a forward pass made and that its graph holds."""
    batch = one_pair()
    with LiveMemory() as memory:
        rewards, _ = model(batch)
        del _
        gc.collect()
        assert rewards.requires_grad
        return memory.live


def test_a_bf16_pass_keeps_170_kb_a_token_and_layer_and_105_fewer_if_compiled():
    """Attention kept rows of queries, keys and values before: 190,837 bytes."""
    assert sum(estimate.kept_per_layer(QWEN3_4B, 2).values()) == 170_280
    assert estimate.kept_bytes(QWEN3_4B, "mixed", compiled=False) == 170_280
    assert estimate.kept_bytes(QWEN3_4B, "mixed", compiled=True) == estimate.COMPILED_KEPT


def test_parameters_are_counted_as_the_model_has_them(tmp_path):
    model = tiny_model(tmp_path, "qwen3", 2)
    assert TINY.parameters == sum(p.numel() for p in model.parameters())
    assert QWEN3_4B.parameters == 151_936 * 2560 + 36 * 100_930_816 + 2560 + 2560
    assert QWEN3_4B.parameters == 4_022_470_656


def test_adapters_are_counted_as_the_model_has_them(tmp_path):
    model = tiny_model(tmp_path, "qwen3", 2, rank=4)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert TINY.trained_parameters(4) == trained
    assert TINY.parameters + trained - 48 == sum(p.numel() for p in model.parameters())
    assert QWEN3_4B.trained_parameters(0) == QWEN3_4B.parameters
    # 2 bytes of a frozen weight; 4 + 8 of an adapter's, and 4 of its gradient
    state = estimate.memory(QWEN3_4B, "mixed", 1, 256, recomputed=36, rank=16)["state"]
    frozen = QWEN3_4B.parameters - 2560
    assert state == 2 * frozen + 16 * QWEN3_4B.trained_parameters(16)


def test_with_lora_a_4b_trains_on_24_gb_and_an_8b_on_48():
    for shape, card in ((QWEN3_4B, 22.5), (estimate.QWEN3_8B, 44.5)):
        assert estimate.largest_pass(shape, "mixed", card, recomputed=36, rank=16) > 16_384
        assert estimate.largest_pass(shape, "mixed", card, recomputed=36) == 0


def test_a_weight_that_is_not_trained_costs_4_flops_and_an_adapters_6():
    assert estimate.flops(QWEN3_4B, 1, seen_per_token=0, rank=16) == pytest.approx(
        4 * 36 * 100_930_816 + 6 * (QWEN3_4B.trained_parameters(16) - 2560)
    )


def test_float32_training_needs_16_bytes_a_parameter_and_bf16_8():
    assert estimate.bytes_per_parameter("mixed") == {"weights": 4, "gradients": 4, "moments": 8}
    for precision, total in (("mixed", 16), ("float32", 16), ("bf16", 8), ("bf16-sr", 8)):
        assert sum(estimate.bytes_per_parameter(precision).values()) == total


def test_a_4b_trains_on_80_gb_recomputed_on_48_with_bf16_sr_and_on_24_with_offload():
    def peak(precision, recomputed=36, offload=False):
        return estimate.memory(QWEN3_4B, precision, 1, 16_384, recomputed, offload)["peak"] / GIB

    assert 60 + 60 < peak("mixed", recomputed=0) < 130  # of state and of activations
    assert 60 + 4.5 < peak("mixed") < 70
    assert 30 + 4.5 < peak("bf16-sr") < 40
    assert peak("mixed", offload=True) < 10
    assert estimate.largest_pass(QWEN3_4B, "bf16-sr", 24, recomputed=36) == 0


def test_the_largest_pass_fits_and_256_tokens_more_do_not():
    tokens = estimate.largest_pass(QWEN3_4B, "mixed", 79.0, recomputed=36)

    def peak(tokens):
        return estimate.memory(QWEN3_4B, "mixed", 1, tokens, recomputed=36)["peak"]

    assert peak(tokens) <= (79.0 - estimate.RESERVE) * GIB < peak(tokens + 256)


def test_a_card_recomputes_only_as_many_layers_as_it_must():
    """One layer fewer does not fit. A step of one pass needs fewer: no gradients lie there yet."""

    def peak(recomputed):
        return estimate.memory(QWEN3_4B, "mixed", 1, 11_750, recomputed, one_pass=True)["peak"]

    count = estimate.fewest_recomputed(QWEN3_4B, "mixed", 1, 11_750, 79.0)
    assert 0 < count < 36
    assert peak(count) <= (79.0 - estimate.RESERVE) * GIB < peak(count - 1)
    many = estimate.fewest_recomputed(QWEN3_4B, "mixed", 1, 11_750, 79.0, one_pass=False)
    assert many > count
    assert estimate.fewest_recomputed(QWEN3_4B, "mixed", 8, 11_750 // 8, 79.0) == 0
    assert estimate.fewest_recomputed(QWEN3_4B, "mixed", 1, 11_750, 24.0) is None


def test_every_process_more_holds_less_of_the_state():
    def state(gpus):
        return estimate.memory(QWEN3_4B, "mixed", gpus, 16_384, recomputed=36)["state"]

    assert state(1) == 16 * 4_022_470_656
    assert state(1) == 2 * state(2) == 8 * state(8)


def test_a_token_costs_6_flops_a_multiplying_weight():
    without_attention = estimate.flops(QWEN3_4B, 1, seen_per_token=0)
    assert without_attention == 6 * 36 * 100_930_816
    whole = estimate.flops(QWEN3_4B, 1, seen_per_token=1024)
    # two products, 2 FLOPs each, three passes
    assert whole - without_attention == 36 * (2 * 2 * 4096 * 1024) * 3


def test_a_layer_takes_its_products_at_one_rate_and_its_bytes_at_another():
    """Without attention: 2 FLOPs a weight forward and 4 backward, and the bytes of each pass."""
    rates = estimate.Rates(layer_matmul=1e12, memory=1e9)
    forward, backward = estimate.layer_seconds(
        QWEN3_4B, 1000, seen_per_token=0, moved=(100, 200), rates=rates
    )
    products = 2 * 1000 * 100_930_816 / 1e12
    assert forward == pytest.approx(products + 1000 * 100 / 1e9)
    assert backward == pytest.approx(2 * products + 1000 * 200 / 1e9)


def test_a_recomputed_layer_costs_its_forward_pass_again():
    forward, _ = estimate.layer_seconds(QWEN3_4B, 11_750)
    steps = [estimate.one_gpu_step(QWEN3_4B, "mixed", 11_750, n)["step"] for n in (0, 36)]
    assert steps[1] - steps[0] == pytest.approx(36 * forward)


def test_one_gpu_moves_nothing_and_replicas_halve_what_crosses_between_two_nodes(monkeypatch):
    monkeypatch.setattr(estimate, "HOP", 0.0)
    n = QWEN3_4B.parameters
    slow = 1e9

    def transfer(gpus, replicas=1):
        return estimate.step_seconds(QWEN3_4B, gpus, 16_384, slow, replicas)["transfer"]

    assert transfer(1) == 0
    # 2 + 2 + 4 bytes a parameter, all over the network
    assert math.isclose(transfer(16), 8 * n * 15 / 16 / slow)
    # the network: gradients of one shard of 8, times 8
    within_nodes = 2 * n * 7 / 8 / estimate.NVLINK
    assert math.isclose(transfer(16, replicas=2), within_nodes + 4 * n / slow)


def test_the_page_holds_the_tables_that_the_script_prints():
    page = (REPOSITORY / "docs" / "memory.md").read_text()
    for title, text in estimate.tables().items():
        what_next = f"{title}: rerun python benchmarks/estimate.py and paste"
        assert f"### {title}\n\n{text}" in page, what_next
