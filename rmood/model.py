"""The reward model: a transformers backbone and a linear head.

N conversations, T tokens of a pass, D hidden size
backbone: tokens (1, T) -> hidden (1, T, D)   in bf16 or float32
score:    pooled (N, D) -> rewards (N,)       in float32: bf16 has steps of 0.03 at a reward of 5
"""

import torch
from torch import nn
from transformers import PreTrainedConfig


class RewardModel(nn.Module):
    """rewards = score(hidden state at the scored token).

    It knows nothing of how it is sharded or in which precision it computes.
    """

    def __init__(self, backbone: nn.Module, score: nn.Linear):
        super().__init__()
        self.backbone = backbone
        self.score = score

    @property
    def config(self) -> PreTrainedConfig:
        return self.backbone.config

    def forward(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batching.Batch -> (N,) float32 rewards, and the (N, D) hidden states behind them.

        transformers hands keyword arguments that it does not know down through every layer to the
        attention function: so `keys` and those after it arrive in attention.packed_attention.
        """
        hidden = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,  # a cache would join the packed conversations into one
            keys=batch.keys,
            cu_q=batch.cu_q,
            cu_k=batch.cu_k,
            longest=batch.longest,
        ).last_hidden_state  # (1, T, D), or (N, L, D) in the padded layout
        pooled = hidden.flatten(0, 1)[batch.last]  # (N, D) at the scored tokens
        rewards = self.score(pooled.float())[:, 0]  # (N,)
        return rewards.clone(), pooled  # FSDP's hooks need a tensor of its own, not a view
