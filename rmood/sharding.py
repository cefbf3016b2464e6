"""Sharding from outside: the model knows nothing of it. FSDP2's `fully_shard`, also for one process, also on a CPU.

Each process holds 1/world_size of every weight, gradient and moment; a layer's weights are gathered when it runs.
"""

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from . import BadInput
from .distributed import Process
from .model import RewardModel

# name -> stored weights and moments, arithmetic of the backbone. Head, margin and loss are float32 in all of them.
PRECISIONS = {
    "mixed": (torch.float32, torch.bfloat16),
    "float32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),  # to study the failure: a bf16 weight of 0.02 cannot hold a step of 1e-5
    "bf16-sr": (torch.bfloat16, torch.bfloat16),  # stored by stochastic rounding: half the memory, nothing lost on average
}


def default_precision(process: Process) -> str:
    return "mixed" if process.device.type == "cuda" else "float32"


def shard(model: RewardModel, process: Process, precision: str, *, replicas: int = 1, activation_checkpointing: bool = False, cpu_offload: bool = False) -> RewardModel:
    """Shard in place. Gradients are reduced in float32; the head has a float32 policy of its own.

    replicas: copies of the sharded model (HSDP): weights are gathered only within world_size / replicas processes,
    say a node, and gradients averaged across the copies. cpu_offload: weights and moments rest in host memory.
    """
    if process.world_size % replicas:
        raise BadInput(f"--replicas {replicas}: {process.world_size} processes cannot be divided by it: choose a divisor")
    kind = process.device.type
    if replicas == 1:
        mesh = init_device_mesh(kind, (process.world_size,))
    else:
        mesh = init_device_mesh(kind, (replicas, process.world_size // replicas), mesh_dim_names=("replicate", "shard"))
    policy = MixedPrecisionPolicy(param_dtype=PRECISIONS[precision][1], reduce_dtype=torch.float32)
    settings = dict(mesh=mesh, offload_policy=CPUOffloadPolicy() if cpu_offload else OffloadPolicy())
    if activation_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    for part in [model.backbone.get_input_embeddings(), *decoder_layers(model.backbone)]:
        fully_shard(part, mp_policy=policy, **settings)
    fully_shard(model.score, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32), **settings)
    fully_shard(model, mp_policy=policy, **settings)
    return model if cpu_offload else model.to(process.device)


def decoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The stack of layers, whatever the architecture calls it: the longest list of modules."""
    return max((module for module in backbone.modules() if isinstance(module, nn.ModuleList)), key=len)


def full_state_dict(model: RewardModel) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU of rank 0; the others get an empty dict. Every rank must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
