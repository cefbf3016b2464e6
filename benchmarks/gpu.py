"""Training and labelling on one GPU: tokens/s, model FLOPs utilisation (MFU), peak memory, and where the time goes.

    python benchmarks/gpu.py --json gpu.json       one CUDA machine, under ten minutes, no downloads
    python benchmarks/gpu.py --tiny --sections rate mixed       the same code on a toy shape, also on a CPU

Qwen3-4B's and Llama-3.1-8B's shapes with random weights, built on the GPU, run through rmood's own modules: the step is
train.py's loop, line by line, with its default 64 pairs a step and 16,384 tokens a pass. Lengths are AlpacaFarm's
(benchmarks/workload.py). Each section runs in a process of its own with a time limit: what runs out of memory is run again
with half the tokens a pass, what fails or hangs is reported and the rest goes on. The JSON file is written after each.

    MFU     useful FLOPs a second over the rate of a large bf16 matrix product on this GPU. Useful: 6 a unique token for each
            weight of the layers, and attention; neither padding nor what activation checkpointing computes again
            (workload.forward_flops)
    peak    of the allocator, after the first steps; the CUDA context comes on top
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from estimate import QWEN3_4B, Shape
from torch import nn
from transformers import AttentionInterface, AutoModel, AutoModelForSequenceClassification
from workload import LLAMA_8B, forward_flops, machine, make_groups, model_config, table

from rmood import distributed, one_line, records
from rmood.batching import LAYOUTS, Group, check_budget, epoch_order, pad, plan_step
from rmood.config import opt, parse, run_script
from rmood.distributed import Process
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.model import RewardModel, packed_attention
from rmood.optim import UpdateMeter, build_optimizer, clip_gradients
from rmood.records import BadInput
from rmood.schedule import learning_rate
from rmood.scoring import score_groups
from rmood.sharding import PRECISIONS, decoder_layers, shard

WARMUP_STEPS, TIMED_STEPS = 2, 4


@dataclass(frozen=True)
class Variant:
    """How one training run differs from train.py's defaults on CUDA."""

    precision: str = "mixed"
    checkpointing: bool = False
    compiled: bool = False  # the layers by torch.compile, attention outside
    layout: str = "packed"
    logged: bool = True  # every step, as by default: the update meter samples all weights
    gathered: bool = False  # bf16 weights stay between forward and backward pass


TRAINING = {
    "mixed": Variant(),
    "mixed, checkpointing": Variant(checkpointing=True),
    "mixed, compiled": Variant(compiled=True),
    "bf16-sr": Variant("bf16-sr"),
    "mixed, not logged": Variant(logged=False),
    "mixed, gathered": Variant(gathered=True),
    "bf16-sr, checkpointing": Variant("bf16-sr", checkpointing=True),
    "bf16, checkpointing": Variant("bf16", checkpointing=True),
    "mixed, checkpointing, compiled": Variant(checkpointing=True, compiled=True),
    "mixed, checkpointing, padded": Variant(checkpointing=True, layout="padded"),
}
SECTIONS = ["rate", "mixed", "mixed, checkpointing", "profile", "labelling", *list(TRAINING)[2:]]  # what matters most comes first


def limit_of(section: str, tiny: bool) -> int:
    """Seconds that a section may take. On a GPU most need 20 to 30; what is compiled takes a minute or two more."""
    return 300 if tiny else 200 if "compiled" in section else 120 if section == "labelling" else 90


@dataclass(frozen=True)
class Config:
    json: str = opt("", "write the numbers to this file, after each section")
    sections: list[str] = opt(SECTIONS, "which sections to run")
    tiny: bool = opt(False, "a toy shape, to try the code anywhere")
    batch_size: int = opt(64, "pairs a step", at_least=1)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass; halved where memory runs out", at_least=16)
    minutes: float = opt(9.0, "begin no section, and end the one that runs, after so long", above=0)
    separate: bool = opt(True, "each section in a process of its own")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])


@dataclass(frozen=True)
class Size:
    """What --tiny changes besides --batch-size and --tokens-per-pass."""

    train: Shape = QWEN3_4B
    label: Shape = LLAMA_8B
    prompts: int = 256  # labelled
    lengths: float = 1.0
    matrix: int = 8192


TINY = Size(
    Shape(layers=2, hidden=64, heads=4, kv_heads=2, head=16, mlp=128, vocabulary=512),
    Shape(layers=2, hidden=64, heads=4, kv_heads=2, head=16, mlp=128, vocabulary=512, norm_heads=False),
    prompts=8,
    lengths=0.25,
    matrix=128,
)


def main() -> int:
    cfg = parse(Config, __doc__)
    if unknown := set(cfg.sections) - set(SECTIONS):
        raise BadInput(f"gpu.py: no section {unknown.pop()!r}: choose from {', '.join(SECTIONS)}")
    if not cfg.tiny and not torch.cuda.is_available():
        raise BadInput("gpu.py: no CUDA GPU here: add --tiny to try the code on a CPU")
    if cfg.json:
        records.check_writable(cfg.json)
    fits: dict = {}  # (precision, checkpointing) -> tokens a pass that were not too many
    deadline, found = time.monotonic() + 60 * cfg.minutes, {"machine": {}, "config": vars(cfg), "sections": {}}
    for section in cfg.sections:
        began = time.monotonic()
        print(f"[{section}]", file=sys.stderr, flush=True)
        if cfg.separate:
            kind = (TRAINING[section].precision, TRAINING[section].checkpointing) if section in TRAINING else section
            result, facts = run_apart(cfg, section, deadline, fits.get(kind, cfg.tokens_per_pass))
            fits[kind] = result.get("tokens_per_pass", cfg.tokens_per_pass)
            found["machine"] |= facts
        else:
            found["machine"] = machine()
            result = run_section(cfg, section)
        result = json.loads(json.dumps(result), parse_constant=lambda word: None)  # a NaN is no JSON
        found["sections"][section] = result | {"section_s": time.monotonic() - began}
        if cfg.json:
            records.write_json(cfg.json, found)
        print(f"[{section}] {one_line_of(result)}", file=sys.stderr, flush=True)
    print(report(found), flush=True)
    return 0


def run_apart(cfg: Config, section: str, deadline: float, tokens: int) -> tuple[dict, dict]:
    """The section's result and the machine's facts, from a process of its own; again with half the tokens where memory runs out."""
    while True:
        limit = min(limit_of(section, cfg.tiny), deadline - time.monotonic())
        if limit < 5:
            return {"error": f"left out: {cfg.minutes:g} minutes are over"}, {}
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--sections", section, "--no-separate", "--tokens-per-pass", tokens, "--batch-size", cfg.batch_size]
            command += ["--device", cfg.device, "--json", f"{folder}/result.json", *(["--tiny"] if cfg.tiny else [])]
            child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, start_new_session=True)
            try:
                child.wait(timeout=limit)
                found = json.loads(Path(folder, "result.json").read_text())
            except subprocess.TimeoutExpired:
                return {"error": f"stopped after {limit:.0f} s", "tokens_per_pass": tokens}, {}
            except OSError:  # it died without a result
                return {"error": f"its process ended with status {child.returncode}", "tokens_per_pass": tokens}, {}
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)  # with the compiler's own processes
                    child.wait()
        result = found["sections"][section]
        if result.get("error") != OUT_OF_MEMORY or tokens < 8192 or section == "labelling":
            return result, found["machine"]
        tokens //= 2


OUT_OF_MEMORY = "out of memory"


def run_section(cfg: Config, section: str) -> dict:
    """One section in this process. An error is a result too."""
    process, size = distributed.start(cfg.device), TINY if cfg.tiny else Size()
    if cfg.tiny:
        torch.manual_seed(0)
    try:
        if section == "rate":
            return rate(size, process)
        if section == "labelling":
            return labelling(cfg, size, process)
        if section == "profile":
            return profile(cfg, size, process)
        return training(cfg, size, TRAINING[section], process)
    except Exception as error:
        if "out of memory" in str(error).lower() or "ALLOC_FAILED" in str(error):  # torch's own, NCCL's and cuBLAS's words
            return {"error": OUT_OF_MEMORY, "what": one_line(error), "tokens_per_pass": cfg.tokens_per_pass}
        traceback.print_exc()
        return {"error": one_line(error)}


# ---- time ------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Marks along the device's own time; between two of them lies what the second one names."""

    device: torch.device
    marks: list = field(default_factory=list)

    def mark(self, name: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Name -> seconds, over all its marks."""
        synchronize(self.device)
        total: Counter = Counter()
        for (_, before), (name, after) in zip(self.marks, self.marks[1:]):
            total[name] += before.elapsed_time(after) / 1000 if self.device.type == "cuda" else after - before
        return dict(total)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_of(work: Callable, repeats: int, device: torch.device) -> float:
    """Seconds of one call: the mean of `repeats` calls after three to warm up."""
    for _ in range(3):
        work()
    clock = Clock(device)
    clock.mark("start")
    for _ in range(repeats):
        work()
    clock.mark("work")
    return clock.seconds()["work"] / repeats


def peak_gib(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {"allocated_GiB": 0.0, "reserved_GiB": 0.0}
    return {"allocated_GiB": torch.cuda.max_memory_allocated(device) / 2**30, "reserved_GiB": torch.cuda.max_memory_reserved(device) / 2**30}


# ---- sections --------------------------------------------------------------------------------------------------


def rate(size: Size, process: Process) -> dict:
    """What the machine can do: one large bf16 matrix product, the layers' own matrices, a copy. Random data: zeros run faster."""
    device, n = process.device, size.matrix
    repeats = 100 if device.type == "cuda" else 3

    def product(rows: int, inner: int, columns: int) -> float:
        """FLOP/s of (rows, inner) @ (inner, columns)."""
        a, b = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((rows, inner), (inner, columns)))
        return 2 * rows * inner * columns / time_of(lambda: a @ b, repeats, device)

    large, shape, tokens = product(n, n, n), size.train, 12_800 if device.type == "cuda" else 64
    matrices = {"query": shape.query, "key": shape.key, "gate": shape.mlp}  # columns, from the hidden state
    of_layer = {name: product(tokens, shape.hidden, columns) / 1e12 for name, columns in matrices.items()}
    of_layer["down"] = product(tokens, shape.mlp, shape.hidden) / 1e12
    source = torch.randn(n * n * 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / time_of(lambda: target.copy_(source), repeats, device)
    return {"matmul_tflops": large / 1e12, "size": n, "layer_tflops": of_layer, "layer_tokens": tokens, "copy_GB_per_s": copied / 1e9}


def build_model(shape: Shape, variant: Variant, process: Process) -> RewardModel:
    """As train.py has it, without a checkpoint: random weights made where they will be used."""
    with torch.device(process.device):
        backbone = AutoModel.from_config(model_config(shape), dtype=PRECISIONS[variant.precision][0], attn_implementation="rmood")
        score = nn.Linear(shape.hidden, 1, bias=False)
    with torch.no_grad():
        score.weight.normal_(0, 1 / (shape.hidden + 1))
    model = shard(RewardModel(backbone, score), process, variant.precision, activation_checkpointing=variant.checkpointing)
    if variant.compiled:
        compile_layers(model)
    if variant.gathered:
        model.set_reshard_after_forward(False)
    return model.train()


def compile_layers(model: RewardModel) -> None:
    """torch.compile of each layer's forward, inside FSDP's and checkpointing's hooks, once for all lengths.

    Attention stays outside, and its blocks go around the compiled code: it would be compiled again for every new number of them.
    """
    around: dict = {}
    attention = lambda *tensors, **settings: packed_attention(*tensors, **settings | around)  # noqa: E731
    AttentionInterface.register("rmood", torch.compiler.disable(attention))

    def compiled(forward: Callable) -> Callable:
        inner = torch.compile(forward, dynamic=True)

        def run(*args, blocks=None, pick=None, **settings):
            around.update(blocks=blocks, pick=pick)
            return inner(*args, **settings)

        return run

    for layer in decoder_layers(model.backbone):
        layer.forward = compiled(layer.forward)


def train_step(model, optimizer, process: Process, groups: list[Group], pairs_of_step: np.ndarray, tokens_per_pass: int, variant: Variant, clock: Clock) -> torch.Tensor:
    """One step of train.py's loop, its lines in its order. Returns the (B, 2) rewards."""
    clock.mark("between steps")
    tokens = [group.tokens for group in groups]
    slot = {pair: i for i, pair in enumerate(pairs_of_step.tolist())}
    step_rewards = torch.zeros(len(slot), 2, device=process.device)
    for pairs_of_pass in plan_step(pairs_of_step, tokens, tokens_per_pass, process.world_size)[process.rank]:
        batch = LAYOUTS[variant.layout]([groups[i] for i in pairs_of_pass]).to(process.device)
        clock.mark("packing")
        rewards, _ = model(batch)
        rewards = rewards.view(-1, 2)
        loss = bradley_terry_loss(reward_margin(rewards)).sum() / len(slot)
        clock.mark("forward")
        (loss * process.world_size).backward()
        step_rewards[[slot[i] for i in pairs_of_pass]] = rewards.detach()
        clock.mark("backward")
    step_rewards = process.sum(step_rewards)
    norms = clip_gradients(model, 1.0, process)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(1, 100, 5, 1e-5, 1e-7)
    finite = bool(torch.isfinite(norms["grad_norm"]) & torch.isfinite(step_rewards).all())
    clock.mark("clipping")
    meter = UpdateMeter(model) if variant.logged else None
    clock.mark("meter")
    if finite:
        optimizer.step()
    clock.mark("optimizer")
    if meter:
        [value.item() for value in (norms | meter.read(model, optimizer, process)).values()]
    clock.mark("meter")
    optimizer.zero_grad()
    return step_rewards


def beginning(cfg: Config, size: Size, variant: Variant, process: Process):
    """A model with its optimizer, the pairs, and the steps: the same for every variant."""
    groups = make_groups(cfg.batch_size * (WARMUP_STEPS + TIMED_STEPS), 2, size.train.vocabulary, seed=0, scale=size.lengths)
    check_budget(groups, cfg.tokens_per_pass, "pair")
    model = build_model(size.train, variant, process)
    optimizer = build_optimizer(model, variant.precision, 1e-5, 0.0)
    return model, optimizer, groups, epoch_order(len(groups), cfg.batch_size, seed=0, epoch=0)


def training(cfg: Config, size: Size, variant: Variant, process: Process) -> dict:
    """Steps of train.py's loop, timed together, and by part."""
    model, optimizer, groups, steps = beginning(cfg, size, variant, process)
    went = lambda rewards: bradley_terry_loss(reward_margin(rewards)).mean().item()  # noqa: E731
    began = time.perf_counter()
    first_loss = went([train_step(model, optimizer, process, groups, step, cfg.tokens_per_pass, variant, Clock(process.device)) for step in steps[:WARMUP_STEPS]][0])
    synchronize(process.device)
    warmup_s = time.perf_counter() - began
    if process.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(process.device)
    clock, began = Clock(process.device), time.perf_counter()
    rewards = [train_step(model, optimizer, process, groups, step, cfg.tokens_per_pass, variant, clock) for step in steps[WARMUP_STEPS:]]
    synchronize(process.device)
    seconds = time.perf_counter() - began
    timed = [groups[i] for step in steps[WARMUP_STEPS:] for i in step]
    passes = [len(plan_step(step, [group.tokens for group in groups], cfg.tokens_per_pass, 1)[0]) for step in steps[WARMUP_STEPS:]]
    parts = {name: value / TIMED_STEPS for name, value in clock.seconds().items()}
    tokens, flops = sum(group.tokens for group in timed), 3 * forward_flops(size.train, timed)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_pass": cfg.tokens_per_pass,
        "passes_per_step": sum(passes) / len(passes),
        "step_s": seconds / TIMED_STEPS,
        "tokens_per_s": tokens / seconds,
        "pairs_per_s": len(timed) / seconds,
        "tflops": flops / seconds / 1e12,
        "parts_s": parts,
        "warmup_s": warmup_s,  # with torch.compile this is the compiler's time
        "first_loss": first_loss,  # ln 2 = 0.693 within some hundredths
        "last_loss": went(rewards[-1]),
    } | peak_gib(process.device)


def profile(cfg: Config, size: Size, process: Process) -> dict:
    """One step under the profiler: the ten kernels that take most, and every line at which the host waits for the GPU."""
    variant, cuda = Variant(checkpointing=True), process.device.type == "cuda"
    model, optimizer, groups, steps = beginning(cfg, size, variant, process)
    step = lambda i: train_step(model, optimizer, process, groups, steps[i], cfg.tokens_per_pass, variant, Clock(process.device))  # noqa: E731
    step(0), step(1)
    synchronize(process.device)
    waits: Counter = Counter()
    if cuda:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step(2)
            torch.cuda.set_sync_debug_mode("default")
        waits.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message))
        synchronize(process.device)
    kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    began = time.perf_counter()
    with torch.profiler.profile(activities=[kind]) as prof:
        step(3)
        synchronize(process.device)
        wall = time.perf_counter() - began
    events = [event for event in prof.key_averages() if not getattr(event, "is_user_annotation", False)]
    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA] if cuda else events  # not the calls that launch them
    took = {event: event.self_device_time_total if cuda else event.self_cpu_time_total for event in events}  # microseconds
    total = sum(took.values())
    top = sorted(events, key=lambda event: -took[event])[:10]
    return {
        "tokens_per_pass": cfg.tokens_per_pass,
        "wall_s": wall,
        "kernels_s": total / 1e6,  # over the wall time: the share in which the GPU was busy, if nothing overlaps
        "launches": sum(event.count for event in events),
        "top": [{"name": event.key[:120], "ms": took[event] / 1e3, "share": took[event] / total, "calls": event.count} for event in top],
        "host_waits": dict(waits.most_common(20)),
    }


@torch.no_grad()
def labelling(cfg: Config, size: Size, process: Process) -> dict:
    """rmood.scoring against the reference's way, same weights: batches of 256 conversations in file order, padded to the longest."""
    groups = make_groups(size.prompts, 2, size.label.vocabulary, seed=1, scale=size.lengths)
    rows = [row for group in groups for row in group.rows]
    with torch.device(process.device):
        theirs = AutoModelForSequenceClassification.from_config(model_config(size.label), dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        score = nn.Linear(size.label.hidden, 1, bias=False)
    score.weight.copy_(theirs.score.weight)
    ours = RewardModel(theirs.base_model, score).eval()
    padded = [pad([Group([row]) for row in rows[i : i + 256]]) for i in range(0, len(rows), 256)]

    def score_ours(some: list[Group]) -> torch.Tensor:
        theirs.base_model.set_attn_implementation("rmood")
        return torch.tensor(score_groups(ours, some, process, cfg.tokens_per_pass)).flatten()

    def score_theirs() -> torch.Tensor:
        theirs.base_model.set_attn_implementation("sdpa")
        found = []
        for batch in padded:
            ids, end = batch.input_ids.to(process.device), (batch.last % batch.input_ids.shape[1]).to(process.device)
            mask = (torch.arange(ids.shape[1], device=process.device) <= end[:, None]).long()
            found.append(theirs(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float().cpu())
        return torch.cat(found)

    score_ours(groups[:32])
    synchronize(process.device)
    began = time.perf_counter()
    rewards = score_ours(groups)  # lists on the host: the GPU is done
    seconds = time.perf_counter() - began
    unique, flops = sum(group.tokens for group in groups), forward_flops(size.label, groups)
    result = {"prompts": len(groups), "tokens_per_pass": cfg.tokens_per_pass, "tokens_per_s": unique / seconds, "prompts_per_s": len(groups) / seconds}
    result |= {"tflops": flops / seconds / 1e12, "computed_tokens": unique, "computed_tokens_reference": sum(batch.input_ids.numel() for batch in padded)}
    result |= peak_gib(process.device)
    try:
        synchronize(process.device)
        began = time.perf_counter()
        reference = score_theirs()
        theirs_s = time.perf_counter() - began
        result |= {"reference_s": theirs_s, "ratio": theirs_s / seconds, "largest_difference": (reference - rewards).abs().max().item(), "reward_std": rewards.std().item()}
    except torch.OutOfMemoryError:
        result["reference"] = "batches of 256: out of memory"
    gc.collect()
    return result


# ---- what is printed -------------------------------------------------------------------------------------------


def one_line_of(result: dict) -> str:
    if "error" in result:
        return result["error"]
    return ", ".join(f"{name} {value:,.4g}" for name, value in result.items() if isinstance(value, int | float))


def report(found: dict) -> str:
    sections, facts = found["sections"], ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    peak = sections.get("rate", {}).get("matmul_tflops")
    share = lambda tflops: f"{tflops / peak:.1%}" if peak else "rate unknown"  # noqa: E731
    lines = [f"Machine: {facts}", ""]
    if peak:
        of_layer = ", ".join(f"{name} {value:.0f}" for name, value in sections["rate"]["layer_tflops"].items())
        lines += [f"bf16 matrix product of {sections['rate']['size']}: {peak:,.1f} TFLOP/s; of the layers' shapes: {of_layer}; copy: {sections['rate']['copy_GB_per_s']:,.0f} GB/s", ""]
    rows = []
    for name in (name for name in sections if name in TRAINING):
        r = sections[name]
        if "error" in r:
            rows.append([name, r.get("tokens_per_pass", ""), *[""] * 7, r["error"]])
            continue
        parts = [f"{1e3 * r['parts_s'].get(part, 0):.0f}" for part in ("optimizer", "meter")]
        peaks = f"{r['allocated_GiB']:.1f}"
        rows.append([name, r["tokens_per_pass"], f"{r['step_s']:.3f}", f"{r['tokens_per_s']:,.0f}", f"{r['pairs_per_s']:.1f}", f"{r['tflops']:.1f}", share(r["tflops"]), peaks, *parts])
    if rows:
        lines += [table(["training", "tokens a pass", "s a step", "tokens/s", "pairs/s", "TFLOP/s", "MFU", "peak GiB", "optimizer ms", "meter ms"], rows), ""]
        best = max((sections[name]["tflops"] for name in TRAINING if "tflops" in sections.get(name, {})), default=0)
        lines += [f"Best MFU: {share(best)} (goal: 50%)", ""] if peak and best else []
    if "labelling" in sections:
        r = sections["labelling"]
        ratio = f"{r['ratio']:.2f} times batches of 256 (largest difference of a reward {r['largest_difference']:.3f}, their std {r['reward_std']:.3f})" if "ratio" in r else r.get("reference", "")
        lines += [f"Labelling: {r['error']}" if "error" in r else f"Labelling: {r['prompts_per_s']:.1f} prompts/s, {r['tokens_per_s']:,.0f} tokens/s, {share(r['tflops'])} of the rate, peak {r['allocated_GiB']:.1f} GiB; {ratio}", ""]
    if "profile" in sections:
        r = sections["profile"]
        if "error" in r:
            return "\n".join([*lines, f"Profile: {r['error']}"])
        lines += [f"Profile of a step (mixed, checkpointing): {r['wall_s']:.3f} s, kernels {r['kernels_s']:.3f} s, {r['launches']:,} calls", ""]
        lines += [table(["share", "ms", "calls", "kernel"], [[f"{e['share']:.1%}", f"{e['ms']:.1f}", e["calls"], f"`{e['name']}`"] for e in r["top"]]), ""]
        lines += [f"The host waits for the GPU at: {', '.join(f'{where} ({count})' for where, count in r['host_waits'].items()) or 'no line that was seen'}"]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
