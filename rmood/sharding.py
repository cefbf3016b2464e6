"""Sharding from outside: the model knows nothing of it. FSDP2's `fully_shard`, also for one process, also on a CPU.

Each process holds 1/world_size of every weight, gradient and moment; a layer's weights are gathered when it runs.
"""

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from .distributed import Process
from .model import RewardModel

PRECISIONS = ("auto", "mixed", "float32")


def compute_dtype(precision: str, process: Process) -> torch.dtype:
    """The precision of the backbone's arithmetic: "auto" is mixed on CUDA and float32 on a CPU."""
    if precision == "auto":
        precision = "mixed" if process.device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "mixed" else torch.float32


def shard(model: RewardModel, process: Process, dtype: torch.dtype, activation_checkpointing: bool = False) -> RewardModel:
    """Shard in place. Weights, moments and the sums of gradients stay float32; the backbone computes in `dtype`.

    A bf16 weight of 0.02 cannot hold a step of 1e-5, so most small updates of bf16 weights would be lost; the
    float32 shard keeps them all. The head has a float32 policy of its own.
    """
    mesh = init_device_mesh(process.device.type, (process.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if activation_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    fully_shard(model.backbone.get_input_embeddings(), mesh=mesh, mp_policy=policy)
    for layer in decoder_layers(model.backbone):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model.score, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32))
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model.to(process.device)


def decoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The stack of layers, whatever the architecture calls it: the longest list of modules."""
    return max((module for module in backbone.modules() if isinstance(module, nn.ModuleList)), key=len)


def full_state_dict(model: RewardModel) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU of rank 0; the others get an empty dict. Every rank must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
