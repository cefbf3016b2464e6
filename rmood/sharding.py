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
from .optim import local, trained_parameters

# name -> dtype of stored weights and moments, dtype in which the backbone computes.
# Head, margin and loss are float32 in all of them.
PRECISIONS = {
    "mixed": (torch.float32, torch.bfloat16),
    "float32": (torch.float32, torch.float32),
    # a bf16 weight of 0.02 cannot hold an update of 1e-5: to reproduce such failures
    "bf16": (torch.bfloat16, torch.bfloat16),
    # updates are rounded stochastically: half the memory of mixed, and unbiased
    "bf16-sr": (torch.bfloat16, torch.bfloat16),
}


def frozen_dtype(precision: str) -> torch.dtype:
    """Dtype of weights that are not trained, beside float32 adapters: that of the arithmetic.

    Raises UserError where the precision stores trained weights in bf16.
    """
    stored, compute = PRECISIONS[precision]
    if stored != torch.float32:
        raise UserError(
            f"--precision {precision}: adapters are float32: with --lora-rank choose mixed or "
            "float32"
        )
    return compute


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

    The first layers, because the backward pass reaches them last: by then it has freed what all
    other layers kept, and a layer that is computed again can use that memory. The values are the
    same, as no layer draws random numbers.
    """
    if not count:
        return
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    model.backbone.gradient_checkpointing_enable(settings)
    for number, layer in enumerate(decoder_layers(model.backbone)):
        layer.gradient_checkpointing = number < count


def recompute_as_needed(model: RewardModel, of_token: "PassMemory", free: float) -> None:
    """From now on each pass recomputes as few layers as fit into `free` bytes.

    A later pass of a step needs more, as all gradients exist by then. of_token: what a pass of one
    token needs. Processes may recompute different numbers of layers: no collective depends on it.
    """
    layers = decoder_layers(model.backbone)
    trained = list(trained_parameters(model).values())
    recompute_layers(model, len(layers))

    def choose(_, arguments) -> None:
        (batch,) = arguments
        is_first = all(p.grad is None for p in trained)
        count = of_token.at(batch.input_ids.numel(), is_first).fewest_recomputed(free)
        for number, layer in enumerate(layers):
            layer.gradient_checkpointing = number < count

    model.register_forward_pre_hook(choose)


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
    weights: set[int] = set()  # addresses of the running layer's weights; empty between layers
    kept: dict[int, torch.Tensor] = {}  # by address; held, so that no address is used again

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
    kept: float  # by one layer, for its backward pass
    kept_input: float  # by one layer that is recomputed: its input alone
    gradients: float  # of one layer's weights
    other_gradients: float = 0.0  # of the embeddings, computed at the end of the backward pass
    one_pass: bool = True  # whether a step is one pass; else all gradients exist from the start

    def peak(self, recomputed: int) -> float:
        """With the first `recomputed` layers recomputed.

        Going down the layers, the backward pass frees what each kept and allocates its gradients.
        In the current layer it also needs what that layer computes again, if it is recomputed, and
        about as much as a layer keeps for the gradients of its activations.
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

    def at(self, tokens: int, one_pass: bool) -> "PassMemory":
        """For so many tokens, of what a pass of one token needs."""
        kept, kept_input = tokens * self.kept, tokens * self.kept_input
        return self._replace(kept=kept, kept_input=kept_input, one_pass=one_pass)


class MemoryPlan(NamedTuple):
    recomputed: int  # layers
    gathered: bool  # weights stay gathered from a layer's forward to its backward pass


def plan_memory(needs: PassMemory, free: float, capacity: float, weights: float) -> MemoryPlan:
    """free, capacity: bytes of the GPU. weights: bytes of all weights as they compute.

    Weights stay gathered only where they take a small share of the GPU and no layer has to be
    recomputed to make room: recomputing costs more time than gathering again.
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
    """On CUDA: recompute in each pass only as many layers as the memory demands. Returns how many
    that is at most, and why.

    To be called once weights and moments are in memory. batch: a small one, to measure what a layer
    keeps. tokens: of the largest pass; one_pass: whether every step is one pass. Every rank must
    call it: the rank with the least free memory decides.
    """
    layers = decoder_layers(model.backbone)
    compute_bytes = PRECISIONS[precision][1].itemsize
    gradients = [0 if cpu_offload else gradient_bytes(layer) for layer in layers]
    all_gradients = 0 if cpu_offload else gradient_bytes(model)
    of_token = PassMemory(
        layers=len(layers),
        kept=kept_bytes_per_token(model, batch),
        kept_input=compute_bytes * model.config.get_text_config().hidden_size,
        gradients=max(gradients),
        other_gradients=all_gradients - sum(gradients),
    )
    needs = of_token.at(tokens, one_pass)
    torch.cuda.empty_cache()
    free, capacity = torch.cuda.mem_get_info(process.device)
    # two layers are gathered at a time
    free -= RESERVE + 2 * max(gathered_bytes(layer, compute_bytes) for layer in layers)
    weights = compute_bytes * sum(p.numel() for p in model.parameters())
    free = process.least(int(free))
    plan = plan_memory(needs, free, capacity, weights)
    gathered = bool(process.least(plan.gathered and not cpu_offload))
    if gathered:
        model.set_reshard_after_forward(False)
    else:
        recompute_as_needed(model, of_token, free)
    why = (
        f"the largest pass, {tokens:,} tokens, needs {needs.peak(0) / 2**30:.1f} GiB if nothing "
        f"is recomputed, and {free / 2**30:.1f} GiB are free"
    )
    stay = "; weights stay gathered until the backward pass" if gathered else ""
    most = f"{plan.recomputed} of {len(layers)} layers are recomputed in the largest pass"
    return f"{most}, in others as many as they need: {why}{stay}"


def gradient_bytes(module: nn.Module) -> int:
    """Bytes of this process's part of the gradients."""
    return sum(local(p).nbytes for p in trained_parameters(module).values())


def gathered_bytes(module: nn.Module, compute_bytes: int) -> int:
    """Bytes of whole weights, their gradients, and those in float32 to be summed."""
    weights = sum(p.numel() for p in module.parameters())
    gradients = sum(p.numel() for p in trained_parameters(module).values())
    return compute_bytes * weights + (compute_bytes + 4) * gradients


# ---- places --------------------------------------------------------------------------------------


class ShardPlace(NamedTuple):
    """Which part of a sharded model a process holds."""

    index: int  # of this process's shard: the same on the processes that hold copies of it
    count: int  # shards of the model
    writes: bool  # whether this process is in the first replica, the one that writes checkpoints


def shards_of(model: nn.Module) -> ShardPlace:
    """This process's place in the mesh that `shard` made.

    Seed random numbers that must be equal across replicas by `index`, never by the rank: else
    stochastic rounding would round each replica differently, and they would drift apart.
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

    All layers of one kind share one graph for all lengths, also where they are recomputed;
    attention is one operator in it. (With LoRA, where nothing is recomputed, the first layer has a
    graph of its own: its input needs no gradient.) If torch.compile fails, which shows in the first
    pass, the layers run without it and the reason is printed; required: UserError.
    """
    torch._dynamo.config.recompile_limit = 64  # graphs: each kind of layer, with and without grad
    # sizes that are equal in the first pass (T tokens and R keys, say) may differ later
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
            # FSDP passes views and checkpointing does not; without this each would have a graph
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
