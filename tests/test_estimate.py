import math
import sys

import pytest
import torch
from conftest import REPOSITORY, make_model

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import estimate
from estimate import GIB, QWEN3_4B, Shape
from rmood.batching import Group, pack
from rmood.model import load_reward_model

TINY = Shape(layers=2, hidden=48, heads=4, kv_heads=2, head=16, mlp=80, vocabulary=384)


def tiny_model(folder, kind: str, layers: int, dtype: torch.dtype = torch.float32):
    sizes = dict(hidden_size=TINY.hidden, num_attention_heads=TINY.heads, num_key_value_heads=TINY.kv_heads, head_dim=TINY.head, intermediate_size=TINY.mlp)
    make_model(kind, num_hidden_layers=layers, **sizes).save_pretrained(folder)
    return load_reward_model(str(folder), dtype, seed=0).train()


def saved_bytes(model) -> tuple[int, float]:
    """Bytes of all tensors that autograd keeps of one pass, weights left out, and the pass's rows per token.

    One pair, 40 shared tokens and 24 own ones each: T = 88 unique tokens, R = 128 in attention's rows.
    """
    batch = pack([Group([[*range(20, 60), *range(60, 84)], [*range(20, 60), *range(100, 124)]])])
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held on to, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    assert batch.input_ids.numel() == 88 and sum(block.numel() for block in batch.blocks) == 128
    return sum(size for size, _ in kept.values()), 128 / 88


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_more_layer_keeps_exactly_the_bytes_of_the_formula(tmp_path, kind, dtype):
    two, three = (saved_bytes(tiny_model(tmp_path / str(layers), kind, layers, dtype)) for layers in (2, 3))
    shape = Shape(**{**vars(TINY), "norm_heads": kind == "qwen3"})
    wider = (4 - dtype.itemsize) * two[1] * 2 * (TINY.heads + TINY.kv_heads) * TINY.head  # a CPU attends in float32: query, key, value, output
    assert (three[0] - two[0]) / 88 == pytest.approx(sum(estimate.saved_per_layer(shape, dtype.itemsize, two[1]).values()) + wider)


def test_checkpointing_keeps_only_each_layers_input(tmp_path):
    models = [tiny_model(tmp_path / str(layers), "qwen3", layers) for layers in (2, 3)]
    for model in models:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    two, three = (saved_bytes(model)[0] for model in models)
    assert three - two == 88 * 48 * 4
    assert estimate.saved_per_token(QWEN3_4B, 2, 1.0, True) == 36 * 2560 * 2 + sum(estimate.saved_per_layer(QWEN3_4B, 2).values())


def test_parameters_are_counted_as_the_model_has_them(tmp_path):
    model = tiny_model(tmp_path, "qwen3", 2)
    assert TINY.parameters == sum(p.numel() for p in model.parameters())
    assert QWEN3_4B.parameters == 151_936 * 2560 + 36 * 100_930_816 + 2560 + 2560 == 4_022_470_656


def test_float32_training_needs_16_bytes_a_parameter_and_bf16_8():
    assert estimate.bytes_per_parameter("mixed") == {"weights": 4, "gradients": 4, "moments": 8}
    assert [sum(estimate.bytes_per_parameter(precision).values()) for precision in ("mixed", "float32", "bf16", "bf16-sr")] == [16, 16, 8, 8]


def test_a_4b_trains_on_80_gb_with_checkpointing_on_48_with_bf16_sr_and_on_24_with_offload():
    def peak(precision, checkpointing=True, offload=False):
        return estimate.memory(QWEN3_4B, precision, 1, 16_384, checkpointing, offload)["peak"] / GIB

    assert peak("mixed", checkpointing=False) > 160  # 60 of state, 105 of activations
    assert 60 + 5.7 < peak("mixed") < 70
    assert 30 + 5.7 < peak("bf16-sr") < 40  # its optimizer works in chunks: 7 x 4 x 2^24 bytes are not the peak
    assert peak("mixed", offload=True) < 10
    assert estimate.largest_pass(QWEN3_4B, "bf16-sr", 24, True, False) == 0


def test_every_process_more_holds_less_of_the_state():
    states = [estimate.memory(QWEN3_4B, "mixed", gpus, 16_384, True, False)["state"] for gpus in (1, 2, 8)]
    assert states[0] == 16 * 4_022_470_656 and states[0] == 2 * states[1] == 8 * states[2]


def test_a_token_costs_6_flops_a_multiplying_weight():
    assert estimate.flops(QWEN3_4B, 1, row_length=0) == 6 * 36 * 100_930_816
    attention = estimate.flops(QWEN3_4B, 1, row_length=2048, rows_per_token=1) - estimate.flops(QWEN3_4B, 1, row_length=0)
    assert attention == 36 * (2 * 2 * 4096 * 2048 / 2) * 3  # two products, half of the row, three passes


def test_one_gpu_moves_nothing_and_replicas_halve_what_crosses_between_two_nodes(monkeypatch):
    monkeypatch.setattr(estimate, "HOP", 0.0)
    n, slow = QWEN3_4B.parameters, 1e9
    assert estimate.step_seconds(QWEN3_4B, 1, 16_384, slow)["transfer"] == 0
    plain, copies = (estimate.step_seconds(QWEN3_4B, 16, 16_384, slow, replicas)["transfer"] for replicas in (1, 2))
    assert math.isclose(plain, 8 * n * 15 / 16 / slow)  # 2 + 2 + 4 bytes a parameter, all over the network
    assert math.isclose(copies, 2 * n * 7 / 8 / estimate.NVLINK + 4 * n / slow)  # the network: gradients of one shard of 8, times 8


def test_the_page_holds_the_tables_that_the_script_prints():
    page = (REPOSITORY / "docs" / "memory.md").read_text()
    for title, text in estimate.tables().items():
        assert f"### {title}\n\n{text}" in page, f"{title}: rerun python benchmarks/estimate.py and paste"
