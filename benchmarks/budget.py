"""What a training step would do to a GPU, counted without one, and held against a budget.

One Qwen3-4B step of 64 AlpacaFarm pairs: counts of graphs, kernels, bytes, waits and memory are
exact on any machine, for tensors on the device `meta` have shapes and no data. Reads nothing (real
texts where they are present, see workload.py); takes a minute or two:

    python benchmarks/budget.py --json budget.json

The exit status is 1 where a number misses what is wanted. See budget.json, or docs/memory.md, for
the rates that the predicted MFU assumes: it is the only number here that is not a count.

    graphs, breaks, recompiles        of torch.compile, over the passes of an epoch of all lengths
    kernels_per_layer                 forward and backward, compiled; attention counts as one
    bytes_per_token_outside_matmul    read and written by a compiled layer, by Inductor's own count
    meter_kernels                     operators of UpdateMeter on Qwen3-4B's 399 tensors
    syncs_per_pass                    times that the host waits for the GPU (counting.CountWaits)
    peak_gib                          of one GPU, mixed, not compiled, one pass a step
    predicted_mfu                     useful FLOPs over the rate of a large matrix product
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from counting import CountOperations, CountWaits, LiveMemory
from estimate import (
    CARDS,
    GIB,
    H100,
    QWEN3_4B,
    TOKENS,
    Shape,
    fewest_recomputed,
    flops,
    memory,
    one_gpu_step,
    table,
)
from torch import nn
from transformers import AutoModel
from workload import make_groups, model_config, tokens_seen

import train
from rmood import batching, distributed, pairset
from rmood.batching import Batch, Group, epoch_order, pack, plan_step
from rmood.cli import complete, opt, parse
from rmood.distributed import Process
from rmood.errors import run_script
from rmood.files.rows import check_writable, write_json
from rmood.lora import add_adapters
from rmood.model import RewardModel
from rmood.optim import UpdateMeter, build_optimizer, fill_moments, trained_parameters
from rmood.sharding import (
    compile_layers,
    decoder_layers,
    kept_bytes_per_token,
    recompute_layers,
    shard,
)

META = torch.device("meta")
PAIRS = 64  # of a step
SMALL = Shape(layers=12, hidden=32, heads=4, kv_heads=2, head=16, mlp=64, vocabulary=512)
CARD = CARDS["80 GB"]


@dataclass(frozen=True)
class Wanted:
    what: str
    holds: Callable[[float], bool]


BUDGET = {
    "graphs": Wanted("1", lambda n: n == 1),
    "graphs_recomputed": Wanted("at most 2", lambda n: n <= 2),
    "breaks": Wanted("0", lambda n: n == 0),
    "recompiles": Wanted("0", lambda n: n == 0),
    "bytes_per_token_outside_matmul": Wanted("at most 480,000", lambda n: n <= 480_000),
    "meter_kernels": Wanted("at most 60", lambda n: n <= 60),
    "syncs_per_pass": Wanted("0", lambda n: n == 0),
    "predicted_mfu": Wanted("at least 0.5", lambda n: n >= 0.5),
}


@dataclass(frozen=True)
class Config:
    # fmt: off
    json: str = opt("", "write the numbers to this file")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.json:
        check_writable(cfg.json)
    began = time.perf_counter()
    groups = make_groups(PAIRS, 2, QWEN3_4B.vocabulary, seed=0)
    numbers = {
        **graphs(recomputed=False),
        "graphs_recomputed": graphs(recomputed=True)["graphs"],
        **compiled_layer(QWEN3_4B),
        "eager": eager_layer(QWEN3_4B, groups),
        "meter_kernels": meter_kernels(QWEN3_4B),
        **syncs(),
        "peak_gib": peaks(QWEN3_4B, groups),
    }
    numbers |= prediction(QWEN3_4B, numbers)
    numbers["seconds"] = time.perf_counter() - began
    if cfg.json:
        write_json(cfg.json, numbers)
    print(report(numbers))
    return 0 if not missed(numbers) else 1


def missed(numbers: dict) -> list[str]:
    """Names of the numbers that are not what is wanted."""
    return [name for name, wanted in BUDGET.items() if not wanted.holds(numbers[name])]


def report(numbers: dict) -> str:
    rows = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            continue
        wanted = BUDGET[name].what if name in BUDGET else ""
        verdict = "MISSED" if name in missed(numbers) else ""
        rows.append([name, f"{value:,.4g}" if isinstance(value, float) else value, wanted, verdict])
    parts = [table(["number", "measured", "wanted", ""], rows)]
    for name, value in numbers.items():
        if isinstance(value, dict):
            parts.append(
                f"{name}: " + ", ".join(f"{key} {number}" for key, number in value.items())
            )
    return "\n\n".join(parts)


# ---- models --------------------------------------------------------------------------------------


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> RewardModel:
    """Random weights, or none at all on `meta`."""
    torch.manual_seed(0)
    with device:
        backbone = AutoModel.from_config(
            model_config(shape), dtype=dtype, attn_implementation="rmood"
        )
        return RewardModel(backbone, nn.Linear(shape.hidden, 1, bias=False)).train()


def on_meta(batch: Batch) -> Batch:
    moved = {}
    for name, value in vars(batch).items():
        moved[name] = value.to(META) if isinstance(value, torch.Tensor) else value
    return Batch(**moved)


@dataclass(frozen=True)
class MetaProcess(Process):
    """One process whose device is `meta`: nothing to sum."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def meta_process() -> MetaProcess:
    return MetaProcess(rank=0, world_size=1, device=META, store=None)


# ---- torch.compile: graphs, breaks, recompilations -----------------------------------------------


def graphs(recomputed: bool) -> dict[str, int]:
    """Of the layers of a small sharded model, over the passes of an epoch of 64 pairs.

    A graph is compiled once for all layers; what is compiled after the first pass is a
    recompilation.
    """
    process = distributed.start("cpu")
    model = shard(make_model(SMALL, process.device, torch.float32), process, "float32").train()
    recompute_layers(model, SMALL.layers if recomputed else 0)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compile_layers(model, process, required=True, backend="aot_eager")
    groups = make_groups(PAIRS, 2, SMALL.vocabulary, seed=0, scale=0.4)
    tokens = [group.tokens for group in groups]
    seen = []  # graphs after each pass
    for pairs_of_step in epoch_order(PAIRS, 16, seed=0, epoch=0):
        for pairs in plan_step(pairs_of_step, tokens, 700, world_size=1)[0]:
            rewards, _ = model(pack([groups[i] for i in pairs]))
            rewards.sum().backward()
            seen.append(counters["stats"]["unique_graphs"])
    return {
        "graphs": seen[0],
        "breaks": sum(counters["graph_break"].values()),
        "recompiles": seen[-1] - seen[0],
    }


# ---- one layer: kernels, bytes -------------------------------------------------------------------


@contextmanager
def inductor_kernels():
    """A list of (is backward pass, bytes, is outside the compiler's own code) for each kernel that
    Inductor makes meanwhile, by its own count of what a kernel reads and writes."""
    from torch._inductor.scheduler import Scheduler
    from torch._inductor.virtualized import V

    kernels: list[tuple[bool, float, bool]] = []
    plain = Scheduler.codegen

    def codegen(scheduler):
        for node in scheduler.nodes:
            kind = type(node).__name__
            if "Nop" not in kind:
                size = node.get_read_write_buffers_sizes()
                kernels.append((V.graph.is_backward, size, "Extern" in kind))
        return plain(scheduler)

    settings = {"fx_graph_cache": False}  # a cached graph is not counted
    with mock.patch.object(Scheduler, "codegen", codegen):
        with torch._inductor.config.patch(settings):
            yield kernels


def compiled_layer(shape: Shape, rank: int = 0) -> dict[str, float]:
    """Of one layer of real widths in bf16, compiled for a CPU: a GPU's code is fused alike.

    rank: of adapters; what comes into the layer needs a gradient, as in all layers but the first.
    """
    one = replace(shape, layers=1, vocabulary=512)
    model = make_model(one, torch.device("cpu"), torch.bfloat16)
    if rank:
        add_adapters(model.backbone, decoder_layers(model.backbone), rank, alpha=32.0)
        model.backbone.get_input_embeddings().requires_grad_(True)
        for p in trained_parameters(model.backbone).values():
            p.data = p.data.bfloat16()  # as FSDP gathers them
    batch = pack(make_groups(1, 2, one.vocabulary, seed=0, scale=0.3))
    tokens = batch.input_ids.numel()
    torch._dynamo.reset()
    with inductor_kernels() as kernels:
        compile_layers(model, distributed.start("cpu"), required=True)
        kept = kept_bytes_per_token(model, batch)
    moved = [0.0, 0.0]  # forward, backward
    for is_backward, size, is_outside in kernels:
        if not is_outside:
            moved[is_backward] += size / tokens
    return {
        "kernels_per_layer": len(kernels),
        "bytes_per_token_outside_matmul": sum(moved),
        "forward_bytes_per_token": moved[0],
        "backward_bytes_per_token": moved[1],
        "kept_bytes_per_token": kept,
    }


def eager_layer(shape: Shape, groups: list[Group]) -> dict[str, float]:
    """The same of a layer that is not compiled, at the real number of tokens, on `meta`."""
    model = make_model(replace(shape, layers=1), META, torch.bfloat16)
    batch = on_meta(pack(groups))
    layer = decoder_layers(model.backbone)[0]
    found = {}

    def run(*args, **kwargs):
        with CountOperations() as forward:
            output = plain(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        inputs = [args[0], *layer.parameters()]
        gradient = torch.empty_like(hidden)
        with CountOperations() as backward:
            torch.autograd.grad(hidden, inputs, gradient, retain_graph=True)
        found["counts"] = [forward, backward]
        return output

    plain = layer.forward
    layer.forward = run
    model(batch)
    moved = 0.0
    for count in found["counts"]:
        for name, cost in count.costs.items():
            if not cost.flops and "rmood" not in name:
                moved += cost.bytes
    return {
        "kernels_per_layer": sum(count.total for count in found["counts"]),
        "bytes_per_token_outside_matmul": round(moved / batch.input_ids.numel()),
    }


# ---- the loop: waits, the meter, memory ----------------------------------------------------------


def to_gpu(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """distributed.to_device, as it is where the device is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True)


class EndOfPasses(Exception):
    pass


def syncs(epochs: int = 1) -> dict[str, float]:
    """train.py's own loop, from its first line to the end of the first step's passes, on `meta`."""
    shape = replace(SMALL, layers=2)
    groups = make_groups(PAIRS, 2, shape.vocabulary, seed=0, scale=0.4)
    tokens = [group.tokens for group in groups]
    cfg = complete(train.Config(tokens_per_pass=sum(tokens) // 3, batch_size=PAIRS, epochs=epochs))
    model = make_model(shape, META, torch.bfloat16)
    model.set_requires_all_reduce = lambda _: None  # it is not sharded
    data = train.PairSet(
        pairs=[None] * PAIRS,
        groups=groups,
        pairs_of_group=[[i] for i in range(PAIRS)],
        sides=np.tile([0, 1], (PAIRS, 1)),
        gold=torch.zeros(PAIRS, device=META),
        device=META,
    )
    run = train.Run(
        cfg=cfg,
        process=meta_process(),
        tokenizer=None,
        data=data,
        model=model,
        optimizer=build_optimizer(model, "bf16", 1e-5, 0.0),
        precision="bf16",
        facts={},
        epoch_steps=1,
        total_steps=1,
        warmup=0,
    )
    stand_ins = {
        "parse": lambda *_: cfg,
        "check_output": lambda _: None,
        "prepare": lambda _: run,
        "begin_or_resume": lambda _: train.State(torch.zeros(PAIRS, 2, device=META)),
        "clip_gradients": mock.Mock(side_effect=EndOfPasses),
        **{name: mock.Mock() for name in ("RunLog", "Progress", "CheckpointWriter")},
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(train, **stand_ins))
        stack.enter_context(mock.patch.object(batching, "to_device", to_gpu))
        stack.enter_context(mock.patch.object(pairset, "to_device", to_gpu))
        stack.enter_context(mock.patch.object(distributed, "catch_signals", list))
        waits = stack.enter_context(CountWaits())
        try:
            train.main()
        except EndOfPasses:
            pass
    (passes,) = plan_step(np.arange(PAIRS), tokens, cfg.tokens_per_pass, world_size=1)
    return {"syncs_per_pass": sum(waits.waits.values()) / len(passes)}


def meter_kernels(shape: Shape) -> int:
    model = make_model(shape, META, torch.float32)
    optimizer = build_optimizer(model, "mixed", 1e-5, 0.0)
    fill_moments(model, optimizer)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    with CountOperations() as count:
        meter = UpdateMeter(model)
        meter.read(model, optimizer, meta_process())
    return count.total


def peaks(shape: Shape, groups: list[Group]) -> dict[str, float]:
    """GiB: weights and moments, what a pass makes on `meta`, and what FSDP gathers."""
    parts = memory(shape, "mixed", 1, 1, recomputed=0)
    held = shape.parameters * (4 + 8)  # float32 weights, two moments
    found = {}
    for name, recomputed in {"none": 0, "half": shape.layers // 2, "all": shape.layers}.items():
        live = peak_of_pass(shape, groups, recomputed)
        found[name] = round((held + live + parts["gathered"]) / GIB, 1)
    return found


def peak_of_pass(shape: Shape, groups: list[Group], recomputed: int) -> int:
    """Bytes alive at most, forward and backward. As under FSDP, each gradient becomes float32 and
    the one in bf16 is freed as soon as it is there."""
    model = make_model(shape, META, torch.bfloat16)
    recompute_layers(model, recomputed)
    batch = on_meta(pack(groups))
    gradients = []

    def reduce(p):
        gradients.append(torch.empty(p.shape, device=META))
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(reduce)
    with LiveMemory() as live:
        rewards, _ = model(batch)
        rewards.sum().backward()
    return live.peak


# ---- the roofline --------------------------------------------------------------------------------


def prediction(shape: Shape, numbers: dict) -> dict:
    """Two epochs on one H100 of 80 GB, from the counted bytes: the mean over all steps, of 64 pairs
    (one pass) and of 256 (several). The first precision is train.py's default.
    """
    groups = make_groups(16 * PAIRS, 2, shape.vocabulary, seed=0)
    found = {}
    for pairs in (PAIRS, 4 * PAIRS):
        for precision in ("mixed", "bf16-sr"):
            found[f"{precision}, {pairs} pairs a step"] = predict(
                shape, groups, numbers, precision, pairs
            )
    return {
        "predicted_mfu": found[f"mixed, {PAIRS} pairs a step"]["mfu"],
        **found,
        "rates": asdict(H100),
    }


def predict(
    shape: Shape, groups: list[Group], numbers: dict, precision: str, pairs: int
) -> dict[str, float]:
    """The mean step of two epochs of these groups, as train.py plans them.

    Layers are recomputed as there: in each pass as few as fit, and more in the later passes of a
    step, beside the gradients of the earlier ones.
    """
    tokens = [group.tokens for group in groups]
    seen = sum(map(tokens_seen, groups)) / sum(tokens)
    moved = (numbers["forward_bytes_per_token"], numbers["backward_bytes_per_token"])
    recomputed = []  # layers, in each pass
    seconds = 0.0
    steps = epoch_order(len(groups), pairs, seed=0, epoch=0)
    steps = steps + epoch_order(len(groups), pairs, seed=0, epoch=1)
    for step in steps:
        passes = plan_step(step, tokens, TOKENS, world_size=1)[0]
        for number, members in enumerate(passes):
            of_pass = sum(tokens[i] for i in members)
            layers = fewest_recomputed(shape, precision, 1, of_pass, CARD, one_pass=number == 0)
            parts = one_gpu_step(
                shape, precision, of_pass, layers, seen_per_token=seen, moved=moved
            )
            seconds += parts["step"] - parts["update"]
            recomputed.append(layers)
        seconds += parts["update"]
    rate = 2 * flops(shape, sum(tokens), seen) / seconds
    return {
        "passes": len(recomputed),
        "recomputed": round(sum(recomputed) / len(recomputed), 1),
        "most_recomputed": max(recomputed),
        "step_s": round(seconds / len(steps), 3),
        "mfu": round(rate / H100.large_matmul, 3),
        "mfu_of_989": round(rate / 989e12, 3),
    }


if __name__ == "__main__":
    run_script(main)
