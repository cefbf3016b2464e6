"""Sharding from outside: the model knows nothing of it.

FSDP2's `fully_shard`, also for one process, also on a CPU. Each process holds 1/world_size of every
weight, gradient and moment; a layer's weights are gathered when it runs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from .distributed import Process
from .errors import UserError, one_line
from .loading import allocate
from .model import RewardModel

# name -> dtype of stored weights and moments, dtype in which the backbone computes.
# Head, margin and loss are float32 in all of them.
PRECISIONS = {
    "mixed": (torch.float32, torch.bfloat16),
    "float32": (torch.float32, torch.float32),
    # to study the failure: a bf16 weight of 0.02 cannot hold a step of 1e-5
    "bf16": (torch.bfloat16, torch.bfloat16),
    # stored by stochastic rounding: half the memory, nothing lost on average
    "bf16-sr": (torch.bfloat16, torch.bfloat16),
}


def default_precision(process: Process) -> str:
    """The precision that "auto" means on this process's device."""
    return "mixed" if process.device.type == "cuda" else "float32"


def shard(
    model: RewardModel,
    process: Process,
    precision: str,
    *,
    replicas: int = 1,
    cpu_offload: bool = False,
) -> RewardModel:
    """Shard in place. Gradients are reduced in float32; the head has a float32 policy of its own.

    Of a model on "meta" (loading.meta_reward_model), this process allocates its own rows.
    replicas: copies of the sharded model (HSDP). Weights are gathered only within the
    world_size / replicas processes of one copy, say a node; gradients are averaged across copies.
    cpu_offload: keep weights and moments in host memory.
    """
    mesh = _device_mesh(process, replicas)
    offload = OffloadPolicy()
    if cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=process.device.type == "cuda")
    _, compute_dtype = PRECISIONS[precision]
    backbone_policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    head_policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)

    embeddings = model.backbone.get_input_embeddings()
    for part in [embeddings, *decoder_layers(model.backbone)]:
        fully_shard(part, mesh=mesh, mp_policy=backbone_policy, offload_policy=offload)
    embeddings.set_unshard_in_backward(False)  # a look-up's gradient does not need the weights
    fully_shard(model.score, mesh=mesh, mp_policy=head_policy, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=backbone_policy, offload_policy=offload)
    model = allocate(model, "cpu" if cpu_offload else process.device)
    return model if cpu_offload else model.to(process.device)


def _device_mesh(process: Process, replicas: int) -> DeviceMesh:
    """All processes in one dimension, or (replicas, processes of a replica)."""
    if process.world_size % replicas:
        raise UserError(
            f"--replicas {replicas}: {process.world_size} processes cannot be divided by it: "
            "choose a divisor"
        )
    kind = process.device.type
    if replicas == 1:
        return init_device_mesh(kind, (process.world_size,))
    shape = (replicas, process.world_size // replicas)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


# ---- recomputation: memory for time ------------------------------------------------------------

RESERVE = 2 << 30  # bytes of a GPU left to NCCL, workspaces and fragmentation
LARGEST_GATHERED = 0.1  # share of a GPU's memory that all gathered weights may have, to be kept


def recompute_layers(model: RewardModel, count: int) -> None:
    """Compute the first `count` layers again in the backward pass, and keep only their inputs.

    The first, for their turn comes last: by then what all others kept is free, so that the layer
    that is computed again needs no memory of its own. The values are the same: nothing is random.
    """
    if not count:
        return
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    model.backbone.gradient_checkpointing_enable(settings)
    for number, layer in enumerate(decoder_layers(model.backbone)):
        layer.gradient_checkpointing = number < count


def layers_asked_for(option: str, layers: int) -> int | None:
    """How many of so many layers --activation-checkpointing names; None: auto."""
    if option == "auto":
        return None
    named = {"on": layers, "off": 0}.get(option)
    if named is None and option.isdecimal():
        named = int(option)
    if named is None or named > layers:
        raise UserError(
            f"--activation-checkpointing {option}: choose auto, on, off or a number of layers, "
            f"at most {layers}"
        )
    return named


def kept_bytes_per_token(model: RewardModel, batch) -> float:
    """Bytes a token that a layer keeps for its backward pass, the mean over the layers.

    Measured by a forward and backward pass of a batching.Batch on the model's device: so it holds
    for every architecture, compiled or not. Weights are not counted. Every rank must call it.
    """
    layers = decoder_layers(model.backbone)
    weights: set[int] = set()  # addresses of the weights of the layer that runs, if one does
    kept: dict[int, torch.Tensor] = {}  # address -> tensor, held so that no address is used twice

    def begin(layer, *_):
        weights.update(p.untyped_storage().data_ptr() for p in layer.parameters())

    def end(*_):
        weights.clear()

    def keep(tensor):
        address = tensor.untyped_storage().data_ptr()
        if weights and address not in weights:
            kept[address] = tensor
        return tensor

    hooks = [layer.register_forward_pre_hook(begin) for layer in layers]
    hooks += [layer.register_forward_hook(end) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rewards, _ = model(batch)
    for hook in hooks:
        hook.remove()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()
    (rewards.sum() * 0.0).backward()
    model.zero_grad()
    return size / batch.input_ids.numel() / len(layers)


class PassMemory(NamedTuple):
    """Bytes on one GPU that a forward and backward pass needs beside weights and moments."""

    layers: int
    kept: float  # by a layer, for its backward pass
    kept_input: float  # by a layer that is recomputed
    gradients: float  # of a layer's weights
    other_gradients: float = 0.0  # of the embeddings, which come last
    one_pass: bool = True  # a step is one pass: else all gradients are there from the start

    def peak(self, recomputed: int) -> float:
        """With the first `recomputed` layers recomputed.

        The backward pass frees what a layer kept and makes its gradients. Beside them are what the
        layer whose turn it is computes again, and as much again for the gradients inside it.
        """
        all_gradients = self.layers * self.gradients + self.other_gradients
        peak = all_gradients
        kept = recomputed * self.kept_input + (self.layers - recomputed) * self.kept
        for layer in reversed(range(self.layers)):
            made = (self.layers - layer) * self.gradients if self.one_pass else all_gradients
            again = self.kept if layer < recomputed else 0
            peak = max(peak, kept + again + self.kept + made)
            kept -= self.kept_input if layer < recomputed else self.kept
        return peak

    def fewest_recomputed(self, free: float) -> int:
        """So that the pass fits into so many bytes; all layers, if none does."""
        for count in range(self.layers):
            if self.peak(count) <= free:
                return count
        return self.layers


class MemoryPlan(NamedTuple):
    recomputed: int  # layers
    gathered: bool  # weights stay gathered from a layer's forward to its backward pass


def plan_memory(needs: PassMemory, free: float, capacity: float, weights: float) -> MemoryPlan:
    """free, capacity: bytes of the GPU. weights: bytes of all weights as they compute.

    Weights stay gathered only where they are a small share of the GPU, and no layer has to be
    recomputed for it: that would cost more time than gathering them again.
    """
    if weights <= LARGEST_GATHERED * capacity and needs.peak(0) <= free - weights:
        return MemoryPlan(0, gathered=True)
    return MemoryPlan(needs.fewest_recomputed(free), gathered=False)


def fit_into_gpu(
    model: RewardModel,
    process: Process,
    precision: str,
    batch,
    tokens: int,
    one_pass: bool,
    cpu_offload: bool,
) -> str:
    """On CUDA: recompute only as many layers as the memory demands. Returns how many and why.

    To be called with weights and moments in memory. batch: any, to measure with. tokens: of the
    largest pass; one_pass: whether every step is one. Every rank must call it: the one with least
    memory decides.
    """
    layers = decoder_layers(model.backbone)
    compute_bytes = PRECISIONS[precision][1].itemsize
    gradients = [0 if cpu_offload else sum(map(_local_bytes, x.parameters())) for x in layers]
    all_gradients = 0 if cpu_offload else sum(map(_local_bytes, model.parameters()))
    needs = PassMemory(
        layers=len(layers),
        kept=tokens * kept_bytes_per_token(model, batch),
        kept_input=tokens * compute_bytes * model.config.get_text_config().hidden_size,
        gradients=max(gradients),
        other_gradients=all_gradients - sum(gradients),
        one_pass=one_pass,
    )
    torch.cuda.empty_cache()
    free, capacity = torch.cuda.mem_get_info(process.device)
    # two layers are gathered at a time: weights, gradients, and those in float32 to be summed
    of_layer = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    free -= RESERVE + 2 * of_layer * (2 * compute_bytes + 4)
    weights = compute_bytes * sum(p.numel() for p in model.parameters())
    plan = plan_memory(needs, free, capacity, weights)

    recomputed = -process.least(-plan.recomputed)
    gathered = bool(process.least(plan.gathered and not cpu_offload))
    recompute_layers(model, recomputed)
    if gathered:
        model.set_reshard_after_forward(False)
    why = (
        f"the largest pass, {tokens:,} tokens, needs {needs.peak(0) / 2**30:.1f} GiB if nothing "
        f"is recomputed, and {free / 2**30:.1f} GiB are free"
    )
    stay = "; weights stay gathered until the backward pass" if gathered else ""
    return f"{recomputed} of {len(layers)} layers are recomputed: {why}{stay}"


def _local_bytes(p: torch.Tensor) -> int:
    return (p.to_local() if isinstance(p, DTensor) else p).nbytes


# ---- places --------------------------------------------------------------------------------------


class ShardPlace(NamedTuple):
    """Which part of a sharded model a process holds."""

    index: int  # of this process's shard: the same on the processes that hold copies of it
    count: int  # shards of the model
    writes: bool  # whether this process is in the first replica, the one that writes checkpoints


def shards_of(model: nn.Module) -> ShardPlace:
    """This process's place in the mesh that `shard` made.

    What must be equal across replicas is seeded by `index`, never by the rank: with a seed from the
    rank, stochastic rounding would round each replica differently, and they would drift apart.
    """
    mesh = next(p for p in model.parameters() if isinstance(p, DTensor)).device_mesh
    *replica, index = mesh.get_coordinate()
    return ShardPlace(index, mesh.size(mesh.ndim - 1), writes=not any(replica))


def decoder_layers(backbone: nn.Module) -> nn.ModuleList:
    """The stack of layers, whatever the architecture calls it: the longest list of modules."""
    lists = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    outermost = [  # experts are a list inside each layer
        module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    ]
    return max(outermost, key=len)


def compile_layers(
    model: RewardModel, process: Process, *, required: bool = False, backend: str = "inductor"
) -> None:
    """torch.compile the forward of each layer, inside the hooks of FSDP and of checkpointing.

    Layers of one kind are one graph for all lengths, in which attention is one operator, also where
    they are computed again. Where torch.compile fails, in the first pass: UserError if required,
    else the layers run as they are, and why is printed.
    """
    torch._dynamo.config.recompile_limit = 64  # graphs: each kind of layer, with and without grad
    # sizes that are equal in the first pass (T tokens and R keys, say) need not be in the next
    torch.fx.experimental._config.use_duck_shape = False
    failed = False

    def compiled(layer: nn.Module) -> Callable:
        plain = layer.forward
        graph = torch.compile(plain, dynamic=True, fullgraph=True, backend=backend)

        @functools.wraps(plain)  # transformers reads its signature
        def forward(*args, **kwargs):
            nonlocal failed
            if failed:
                return plain(*args, **kwargs)
            # FSDP hands over views, checkpointing does not: they would be graphs of their own
            args = [x.view_as(x) if isinstance(x, torch.Tensor) else x for x in args]
            try:
                return graph(*args, **kwargs)
            except TorchDynamoException as error:
                failed = True
                name = type(layer).__name__.removeprefix("FSDP")
                message = f"{name}: torch.compile failed ({one_line(error)})"
                if required:
                    raise UserError(f"{message}: pass --compile off") from error
                process.print(f"{message}: training without it")
            return plain(*args, **kwargs)

        return forward

    for layer in decoder_layers(model.backbone):
        layer.forward = compiled(layer)
