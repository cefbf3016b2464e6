"""Backbones of several architectures with some 30,000 random weights, and groups of random tokens.

Without files: for tests of how tokens are computed.
"""

import random

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from rmood.batching import Group

ALTERNATING = ["sliding_attention", "full_attention"] * 2
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=16)
CHANGES = {
    "qwen3": {},
    "llama": {},
    "gemma2": dict(sliding_window=8, layer_types=ALTERNATING, attn_logit_softcapping=2.0),
    "gemma3_text": dict(sliding_window=8, layer_types=ALTERNATING),
    "qwen3_moe": dict(num_experts=4, **EXPERTS),
    "mixtral": dict(num_local_experts=4, **EXPERTS),
}


def tiny_backbone(kind: str, layers: int = 4, **changes) -> PreTrainedModel:
    """kind: as in CHANGES; changes: to its config. The same weights each time, of std 0.2, so that
    rewards differ visibly."""
    settings = dict(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=384,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = AutoConfig.for_model(kind, **settings | CHANGES[kind] | changes)
    torch.manual_seed(0)
    return AutoModel.from_config(config, attn_implementation="rmood")


def make_groups(count: int, responses: int, seed: int = 0) -> list[Group]:
    """Groups of so many responses, with 1 to 20 shared tokens and 1 to 30 own ones each."""
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(1, 384) for _ in range(draw.randint(1, most))]

    groups = []
    for _ in range(count):
        prompt = tokens(20)
        groups.append(Group([prompt + tokens(30) for _ in range(responses)]))
    return groups
