"""Training and labelling on one GPU: tokens/s, model FLOPs utilisation, peak memory, time by part.

Reads nothing (real texts where they are present, see workload.py); prints a table for each part:

    python benchmarks/gpu.py --json gpu.json       one CUDA machine, under ten minutes, no downloads
    python benchmarks/gpu.py --tiny --sections rate "mixed, recomputed"
                                                   the same code on a toy shape, also on a CPU

Qwen3-4B's and Llama-3.1-8B's shapes with random weights, built on the GPU, run through rmood's own
modules: the loop is train.py's `main` itself, with its default 64 pairs a step and 16,384 tokens a
pass. Lengths are AlpacaFarm's. Each section runs in processes of its own, one for each GPU
(--nproc), with a time limit: what runs out of memory is run again with half the tokens a pass, what
fails or hangs is reported and the rest goes on. The JSON file is written after each section.

    MFU     model FLOPs utilisation: useful FLOPs a second over the rate of a large bf16 matrix
            product on this GPU. Useful: 6 a unique token for each weight of the layers, and
            attention; neither padding nor what activation checkpointing computes again
            (workload.forward_flops)
    peak    of the allocator, after the first steps; the CUDA context comes on top
    step    the median of the timed steps; the first two are in the JSON file by themselves
"""

import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from estimate import QWEN3_4B, Shape, one_gpu_step, table
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from workload import LLAMA_8B, describe, forward_flops, machine, make_groups, model_config

import train
from rmood import distributed
from rmood.batching import Batch, Group, check_budget, epoch_order, pad, plan_step
from rmood.cli import complete, opt, parse
from rmood.distributed import Process
from rmood.errors import UserError, is_main_process, one_line, run_script
from rmood.files.rows import check_writable, write_json
from rmood.model import RewardModel
from rmood.optim import UpdateMeter, build_optimizer
from rmood.scoring import score_groups
from rmood.sharding import (
    PRECISIONS,
    compile_layers,
    decoder_layers,
    layers_asked_for,
    recompute_layers,
    shard,
)

WARMUP_STEPS = 2
TIMED_STEPS = 4
GOAL_MFU = 0.50
OUT_OF_MEMORY = "out of memory"
REFERENCE_BATCH = 256  # conversations in one batch of the reference's labelling


@dataclass(frozen=True)
class Variant:
    """How one training run differs from train.py's defaults on CUDA."""

    precision: str = "mixed"
    recompute: str = "auto"  # layers: auto, on (all), off
    compiled: bool = True
    layout: str = "packed"
    log_every: int = 10  # 1: the update is measured in each step
    cudnn: bool = False  # let cuDNN take the attention of the padded layout


TRAINING = {
    "mixed, recomputed": Variant(recompute="on", compiled=False),
    "mixed, recomputed, compiled": Variant(recompute="on"),
    "mixed": Variant(),
    "bf16-sr": Variant("bf16-sr"),
    "mixed, measured each step": Variant(log_every=1),
    "bf16": Variant("bf16"),
    "mixed, recomputed, padded": Variant(recompute="on", compiled=False, layout="padded"),
    "mixed, recomputed, padded, cuDNN": Variant(
        recompute="on", compiled=False, layout="padded", cudnn=True
    ),
}
# What matters most comes first.
FIRST_SECTIONS = ["rate", "mixed, recomputed", "mixed, recomputed, compiled", "profile"]
FIRST_SECTIONS += ["mixed", "bf16-sr", "labelling"]
SECTIONS = FIRST_SECTIONS + [name for name in TRAINING if name not in FIRST_SECTIONS]


@dataclass(frozen=True)
class Config:
    # fmt: off
    json: str = opt("", "write the numbers to this file, after each section")
    sections: list[str] = opt(SECTIONS, "which sections to run")
    tiny: bool = opt(False, "a toy shape, to try the code anywhere")
    batch_size: int = opt(64, "pairs a step", at_least=1)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass; halved where memory runs out", at_least=16)
    minutes: float = opt(9.0, "after this time stop the running section and begin no other", above=0)
    nproc: int = opt(0, "processes of the training sections, one for each GPU; 0: as many as there are GPUs", at_least=0)
    separate: bool = opt(True, "each section in a process of its own")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    # fmt: on


@dataclass(frozen=True)
class Size:
    """What --tiny changes besides --batch-size and --tokens-per-pass."""

    train: Shape = QWEN3_4B
    label: Shape = LLAMA_8B
    prompts: int = 256  # labelled
    lengths: float = 1.0  # of AlpacaFarm's
    matrix: int = 8192  # rows and columns of the large matrix product


TINY_SHAPE = dict(layers=2, hidden=64, heads=4, kv_heads=2, head=16, mlp=128, vocabulary=512)
TINY = Size(
    train=Shape(**TINY_SHAPE),
    label=Shape(**TINY_SHAPE, norm_heads=False),
    prompts=8,
    lengths=0.25,
    matrix=128,
)


def main() -> int:
    cfg = parse(Config, __doc__)
    if unknown := set(cfg.sections) - set(SECTIONS):
        raise UserError(f"gpu.py: no section {unknown.pop()!r}: choose from {', '.join(SECTIONS)}")
    if not cfg.tiny and not torch.cuda.is_available():
        raise UserError("gpu.py: no CUDA GPU here: add --tiny to try the code on a CPU")
    if cfg.json:
        check_writable(cfg.json)
    deadline = time.monotonic() + 60 * cfg.minutes
    tokens_that_fit: dict = {}  # memory_class(section) -> tokens a pass
    results: dict = {"machine": {}, "config": vars(cfg), "sections": {}}
    for section in cfg.sections:
        began = time.monotonic()
        print(f"[{section}]", file=sys.stderr, flush=True)
        if cfg.separate:
            tokens = tokens_that_fit.get(memory_class(section), cfg.tokens_per_pass)
            result, facts = run_apart(cfg, section, deadline, tokens)
            fitted = result.get("tokens_per_pass", cfg.tokens_per_pass)
            tokens_that_fit[memory_class(section)] = fitted
            results["machine"] |= facts
        else:
            results["machine"] = machine()
            result = run_section(cfg, section)
        result = without_nan(result) | {"section_s": time.monotonic() - began}
        results["sections"][section] = result
        if cfg.json and is_main_process():
            write_json(cfg.json, results)
        print(f"[{section}] {summary(result)}", file=sys.stderr, flush=True)
    if is_main_process():
        print(report(results), flush=True)
    return 0


def memory_class(section: str):
    """Sections of one class need about the same memory: what fitted for one is tried first for the
    next."""
    if section not in TRAINING:
        return section
    variant = TRAINING[section]
    return variant.precision, variant.recompute, variant.compiled, variant.layout


def without_nan(result: dict) -> dict:
    """NaN and infinity become None: JSON has neither."""
    return json.loads(json.dumps(result), parse_constant=lambda word: None)


# ---- one section ---------------------------------------------------------------------------------


def seconds_allowed(section: str, tiny: bool) -> int:
    """On a GPU most sections need 20 to 30 s; what is compiled takes a minute or two more."""
    if tiny:
        return 300
    if "compiled" in section:
        return 200
    return 120 if section == "labelling" else 90


def run_apart(cfg: Config, section: str, deadline: float, tokens: int) -> tuple[dict, dict]:
    """The section's result and the machine's facts, from a process of its own; again with half the
    tokens a pass where memory runs out."""
    while True:
        limit = min(seconds_allowed(section, cfg.tiny), deadline - time.monotonic())
        if limit < 5:
            return {"error": f"left out: {cfg.minutes:g} minutes are over"}, {}
        result, facts = run_once_apart(cfg, section, limit, tokens)
        out_of_memory = result.get("error") == OUT_OF_MEMORY
        if not out_of_memory or tokens < 8192 or section == "labelling":
            return result, facts
        tokens //= 2


def processes(cfg: Config, section: str) -> int:
    """All GPUs train; what is measured of one GPU needs one."""
    if section not in TRAINING and section != "profile":
        return 1
    return cfg.nproc or max(1, torch.cuda.device_count())


def run_once_apart(cfg: Config, section: str, limit: float, tokens: int) -> tuple[dict, dict]:
    """limit: seconds."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "--sections": section,
            "--tokens-per-pass": tokens,
            "--batch-size": cfg.batch_size,
            "--device": cfg.device,
            "--json": f"{folder}/result.json",
        }
        command = [sys.executable, __file__, "--no-separate"]
        if (nproc := processes(cfg, section)) > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
            command[1:1] = launcher
        command += [f"{flag}={value}" for flag, value in flags.items()]
        if cfg.tiny:
            command.append("--tiny")
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            child.wait(timeout=limit)
            results = json.loads(Path(folder, "result.json").read_text())
            return results["sections"][section], results["machine"]
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s"
        except OSError:  # no result.json
            error = f"its process ended with status {child.returncode}"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # with the compiler's own processes
                child.wait()
    return {"error": error, "tokens_per_pass": tokens}, {}


def run_section(cfg: Config, section: str) -> dict:
    """One section in this process. An error is a result too."""
    process = distributed.start(cfg.device)
    size = TINY if cfg.tiny else Size()
    torch.manual_seed(0)  # all processes make the same weights
    try:
        if section == "rate":
            return rate(size, process)
        if section == "labelling":
            return labelling(cfg, size, process)
        if section == "profile":
            return profile(cfg, size, process)
        return training(cfg, size, TRAINING[section], process)
    except Exception as error:
        # the words of torch, and of NCCL and cuBLAS
        if "out of memory" in str(error).lower() or "ALLOC_FAILED" in str(error):
            return {
                "error": OUT_OF_MEMORY,
                "what": one_line(error),
                "tokens_per_pass": cfg.tokens_per_pass,
            }
        traceback.print_exc()
        return {"error": one_line(error)}


# ---- clocks and memory ---------------------------------------------------------------------------


@dataclass
class Clock:
    """Marks on the device's own time. The time between two marks belongs to the second one's
    name."""

    device: torch.device
    marks: list = field(default_factory=list)  # (name, CUDA event or seconds)

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
            if self.device.type == "cuda":
                total[name] += before.elapsed_time(after) / 1000
            else:
                total[name] += after - before
        return dict(total)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(work: Callable, repeats: int, device: torch.device) -> float:
    """The mean of `repeats` calls after three to warm up."""
    for _ in range(3):
        work()
    clock = Clock(device)
    clock.mark("start")
    for _ in range(repeats):
        work()
    clock.mark("work")
    return clock.seconds()["work"] / repeats


def peak_memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {"allocated_GiB": 0.0, "reserved_GiB": 0.0}
    return {
        "allocated_GiB": torch.cuda.max_memory_allocated(device) / 2**30,
        "reserved_GiB": torch.cuda.max_memory_reserved(device) / 2**30,
    }


# ---- section: rate -------------------------------------------------------------------------------


def rate(size: Size, process: Process) -> dict:
    """What the machine can do: one large bf16 matrix product, the layers' own matrices, a copy.

    Random data: zeros run faster.
    """
    device = process.device
    repeats = 100 if device.type == "cuda" else 3

    def tflops(rows: int, inner: int, columns: int) -> float:
        """Of the product (rows, inner) @ (inner, columns)."""
        a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        b = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
        seconds = seconds_per_call(lambda: a @ b, repeats, device)
        return 2 * rows * inner * columns / seconds / 1e12

    n = size.matrix
    large = tflops(n, n, n)
    tokens = 12_800 if device.type == "cuda" else 64
    shape = size.train
    layer_tflops = {
        "query": tflops(tokens, shape.hidden, shape.query),
        "key": tflops(tokens, shape.hidden, shape.key),
        "gate": tflops(tokens, shape.hidden, shape.mlp),
        "down": tflops(tokens, shape.mlp, shape.hidden),
    }
    source = torch.randn(n * n * 4, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_per_call(lambda: target.copy_(source), repeats, device)
    return {
        "matmul_tflops": large,
        "size": n,
        "layer_tflops": layer_tflops,
        "layer_tokens": tokens,
        "copy_GB_per_s": 2 * source.nbytes / copy_s / 1e9,
    }


# ---- sections: training --------------------------------------------------------------------------


def build_model(shape: Shape, variant: Variant, process: Process) -> RewardModel:
    """As train.py has it, without a checkpoint: random weights made where they will be used."""
    weight_dtype, _ = PRECISIONS[variant.precision]
    with torch.device(process.device):
        backbone = AutoModel.from_config(
            model_config(shape), dtype=weight_dtype, attn_implementation="rmood"
        )
        score = nn.Linear(shape.hidden, 1, bias=False)
    with torch.no_grad():
        score.weight.normal_(0, 1 / (shape.hidden + 1))
    model = shard(RewardModel(backbone, score), process, variant.precision)
    recompute_layers(model, layers_asked_for(variant.recompute, shape.layers) or 0)
    if variant.compiled:
        compile_layers(model, process, required=True)
    return model.train()


def make_run(
    cfg: Config, size: Size, variant: Variant, process: Process, folder: str, steps: int
) -> train.Run:
    """What train.py's `prepare` makes, from random weights and token ids."""
    pairs = cfg.batch_size * steps
    groups = make_groups(pairs, 2, size.train.vocabulary, seed=0, scale=size.lengths)
    check_budget(groups, cfg.tokens_per_pass, "pair")
    settings = train.Config(
        output_dir=folder,
        epochs=1,
        batch_size=cfg.batch_size,
        lr=1e-5,
        tokens_per_pass=cfg.tokens_per_pass,
        layout=variant.layout,
        precision=variant.precision,
        activation_checkpointing=variant.recompute,
        log_every=variant.log_every,
        overwrite=True,
    )
    model = build_model(size.train, variant, process)
    data = train.PairSet(
        pairs=[None] * pairs,  # the loop reads their token groups
        groups=groups,
        pairs_of_group=[[pair] for pair in range(pairs)],
        sides=np.tile([0, 1], (pairs, 1)),
        gold=None,
        device=process.device,
    )
    return train.Run(
        cfg=complete(settings),
        process=process,
        tokenizer=None,
        data=data,
        model=model,
        optimizer=build_optimizer(model, variant.precision, 1e-5, 0.0),
        precision=variant.precision,
        facts={},
        epoch_steps=steps,
        total_steps=steps,
        warmup=1,
    )


def run_train(run: train.Run, clock: Clock, begin_step: Callable[[int], None]) -> list[dict]:
    """train.py's main, from its first line on, with this run; the lines of its metrics.jsonl.

    begin_step: called with 1, 2, ... before each step, and with one number more at the end.
    """
    steps = itertools.count(1)

    def timed(function: Callable, name: str, before: str = "") -> Callable:
        """Its time belongs to `name`; the time since the mark before it to `before`."""

        def run_timed(*args, **kwargs):
            if before:
                clock.mark(before)
            result = function(*args, **kwargs)
            clock.mark(name)
            return result

        return run_timed

    def plan_step(*args):
        begin_step(next(steps))
        clock.mark("between steps")
        return plain_plan_step(*args)

    plain_plan_step = train.plan_step
    run.optimizer.step = timed(run.optimizer.step, "optimizer")
    stand_ins = {
        "parse": lambda *_: run.cfg,
        "prepare": lambda _: run,
        "plan_step": plan_step,
        "clip_gradients": timed(train.clip_gradients, "clipping", before="passes"),
        "UpdateMeter": timed(UpdateMeter, "meter", before="finite"),
        "log_step": timed(train.log_step, "log and meter"),
        "evaluate": lambda *_: None,
        "export": lambda *_: None,
        "finish": lambda *_: None,
    }
    with mock.patch.multiple(train, **stand_ins):
        with mock.patch.object(distributed, "catch_signals", list):
            train.main()
    begin_step(next(steps))
    lines = Path(run.cfg.output_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def training(cfg: Config, size: Size, variant: Variant, process: Process) -> dict:
    """Steps of train.py's loop, each timed by its own log, and by part."""
    torch.backends.cuda.enable_cudnn_sdp(variant.cudnn)
    device = process.device
    clock = Clock(device)
    began = time.perf_counter()
    warmup_s = 0.0

    def begin_step(number: int) -> None:
        nonlocal warmup_s
        if number == WARMUP_STEPS + 1:
            synchronize(device)
            warmup_s = time.perf_counter() - began  # with torch.compile this is the compiler's time
            clock.marks.clear()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)

    with shared_folder(process) as folder:
        run = make_run(cfg, size, variant, process, folder, WARMUP_STEPS + TIMED_STEPS)
        lines = run_train(run, clock, begin_step)

    seconds = [line_seconds(line, cfg.batch_size) for line in lines]
    step_s = float(np.median(seconds[WARMUP_STEPS:]))
    order = epoch_order(len(run.data.groups), cfg.batch_size, run.cfg.seed, 0)
    timed_groups = [run.data.groups[i] for step in order[WARMUP_STEPS:] for i in step]
    tokens = sum(group.tokens for group in timed_groups) / TIMED_STEPS
    flops = 3 * forward_flops(size.train, timed_groups) / TIMED_STEPS
    tokens_of = [group.tokens for group in run.data.groups]
    passes = 0
    for step in order[WARMUP_STEPS:]:
        passes += len(plan_step(step, tokens_of, cfg.tokens_per_pass, process.world_size)[0])
    layers = decoder_layers(run.model.backbone)
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "processes": process.world_size,
        "tokens_per_pass": cfg.tokens_per_pass,
        "passes_per_step": passes / TIMED_STEPS,
        "recomputed": sum(getattr(layer, "gradient_checkpointing", False) for layer in layers),
        "step_s": step_s,
        "first_steps_s": seconds[:WARMUP_STEPS],
        "tokens_per_s": tokens / step_s,
        "pairs_per_s": cfg.batch_size / step_s,
        "tflops": flops / step_s / 1e12 / process.world_size,  # of one GPU
        "parts_s": {name: value / TIMED_STEPS for name, value in clock.seconds().items()},
        "warmup_s": warmup_s,
        "first_loss": lines[0]["loss"],  # ln 2 = 0.693 within a few hundredths
        "last_loss": lines[-1]["loss"],
    } | peak_memory(device)


def line_seconds(line: dict, pairs: int) -> float:
    """What a step took, by its line in metrics.jsonl."""
    return pairs / line["pairs_per_s"]


@contextmanager
def shared_folder(process: Process):
    """A temporary folder, the same for all processes."""
    number = process.from_main(os.getpid())
    folder = Path(tempfile.gettempdir(), f"rmood-gpu-{number}")
    try:
        yield str(folder)
    finally:
        process.barrier()
        shutil.rmtree(folder, ignore_errors=True)


# ---- section: profile ----------------------------------------------------------------------------


def profile(cfg: Config, size: Size, process: Process) -> dict:
    """One step under the profiler: the ten kernels that take most, and every line at which the host
    waits for the GPU."""
    cuda = process.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    profiler = torch.profiler.profile(activities=[kind])
    waits = HostWaits()
    times = {}

    def begin_step(number: int) -> None:
        synchronize(process.device)
        times[number] = time.perf_counter()
        if number == 3 and cuda:
            waits.start()
        if number == 4:
            waits.stop()
            profiler.start()
            times[number] = time.perf_counter()
        if number == 5:
            profiler.stop()

    with shared_folder(process) as folder:
        run = make_run(cfg, size, TRAINING["mixed, recomputed, compiled"], process, folder, 4)
        run_train(run, Clock(process.device), begin_step)

    kernels = []
    microseconds = {}
    for event in profiler.key_averages():
        if getattr(event, "is_user_annotation", False):
            continue
        if cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # a call that launches a kernel
        kernels.append(event)
        own_time = event.self_device_time_total if cuda else event.self_cpu_time_total
        microseconds[event] = own_time
    total = sum(microseconds.values())
    top = []
    for kernel in sorted(kernels, key=lambda kernel: -microseconds[kernel])[:10]:
        top.append(
            {
                "name": kernel.key[:120],
                "ms": microseconds[kernel] / 1e3,
                "share": microseconds[kernel] / total,
                "calls": kernel.count,
            }
        )
    return {
        "tokens_per_pass": cfg.tokens_per_pass,
        "wall_s": times[5] - times[4],
        # over the wall time: the share in which the GPU was busy, if nothing overlaps
        "kernels_s": total / 1e6,
        "launches": sum(kernel.count for kernel in kernels),
        "top": top,
        "host_waits": waits.lines(),
    }


class HostWaits:
    """file:line -> how often the host waited there for the GPU."""

    def __init__(self):
        self.catcher = warnings.catch_warnings(record=True)
        self.caught: list | None = None

    def start(self) -> None:
        self.caught = self.catcher.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        if self.caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            self.catcher.__exit__(None, None, None)

    def lines(self) -> dict[str, int]:
        waits: Counter = Counter()
        for warning in self.caught or []:
            if "called a synchronizing" in str(warning.message):
                waits[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
        return dict(waits.most_common(20))


# ---- section: labelling --------------------------------------------------------------------------


@torch.no_grad()
def labelling(cfg: Config, size: Size, process: Process) -> dict:
    """rmood.scoring against the reference's way, same weights: batches of 256 conversations in file
    order, padded to the longest."""
    device = process.device
    groups = make_groups(size.prompts, 2, size.label.vocabulary, seed=1, scale=size.lengths)
    rows = [row for group in groups for row in group.rows]
    with torch.device(device):
        classifier = AutoModelForSequenceClassification.from_config(
            model_config(size.label), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        score = nn.Linear(size.label.hidden, 1, bias=False)
    score.weight.copy_(classifier.score.weight)
    backbone = classifier.base_model
    model = RewardModel(backbone, score).eval()

    backbone.set_attn_implementation("rmood")
    score_groups(model, groups[:32], process, cfg.tokens_per_pass)  # warm up
    synchronize(device)
    began = time.perf_counter()
    rewards = score_groups(model, groups, process, cfg.tokens_per_pass)
    seconds = time.perf_counter() - began  # rewards are lists on the host: the GPU has finished
    rewards = torch.tensor(rewards).flatten()

    batches = []
    for start in range(0, len(rows), REFERENCE_BATCH):
        batches.append(pad([Group([row]) for row in rows[start : start + REFERENCE_BATCH]]))
    tokens = sum(group.tokens for group in groups)
    result = {
        "prompts": len(groups),
        "tokens_per_pass": cfg.tokens_per_pass,
        "tokens_per_s": tokens / seconds,
        "prompts_per_s": len(groups) / seconds,
        "tflops": forward_flops(size.label, groups) / seconds / 1e12,
        "computed_tokens": tokens,
        "computed_tokens_reference": sum(batch.input_ids.numel() for batch in batches),
    } | peak_memory(device)

    try:
        backbone.set_attn_implementation("sdpa")
        synchronize(device)
        began = time.perf_counter()
        reference = torch.cat([score_padded(classifier, batch, device) for batch in batches])
        reference_s = time.perf_counter() - began
        result["reference_s"] = reference_s
        result["ratio"] = reference_s / seconds
        result["largest_difference"] = (reference - rewards).abs().max().item()
        result["reward_std"] = rewards.std().item()
    except torch.OutOfMemoryError:
        result["reference"] = f"batches of {REFERENCE_BATCH}: out of memory"
    gc.collect()
    return result


def score_padded(classifier, batch: Batch, device: torch.device) -> torch.Tensor:
    """(N,) rewards of N padded conversations, with an attention mask, on the host."""
    length = batch.input_ids.shape[1]
    input_ids = batch.input_ids.to(device)
    last = (batch.last % length).to(device)  # (N,) position of each row's last token
    mask = (torch.arange(length, device=device) <= last[:, None]).long()  # (N, L)
    output = classifier(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return output.logits[:, 0].float().cpu()


# ---- what is printed -----------------------------------------------------------------------------


def summary(result: dict) -> str:
    """One line: the error, or all numbers that are not nested."""
    if "error" in result:
        return result["error"]
    numbers = []
    for name, value in result.items():
        if isinstance(value, int | float):
            numbers.append(f"{name} {value:,.4g}")
    return ", ".join(numbers)


def report(results: dict) -> str:
    sections = results["sections"]
    peak = sections.get("rate", {}).get("matmul_tflops")  # TFLOP/s, or None where not measured
    parts = [f"Machine: {describe(results['machine'])}"]
    if peak:
        parts.append(describe_rate(sections["rate"]))
    trainings = {name: result for name, result in sections.items() if name in TRAINING}
    if trainings:
        parts.append(training_table(trainings, peak))
        best = max(result.get("tflops", 0) for result in trainings.values())
        if peak and best:
            parts.append(f"Best MFU: {share_of(best, peak)} (goal: {GOAL_MFU:.0%})")
    if "labelling" in sections:
        parts.append(describe_labelling(sections["labelling"], peak))
    if "profile" in sections:
        parts.append(describe_profile(sections["profile"]))
    return "\n\n".join(parts)


def share_of(tflops: float, peak: float | None) -> str:
    return f"{tflops / peak:.1%}" if peak else "rate unknown"


def describe_rate(result: dict) -> str:
    layers = ", ".join(f"{name} {value:.0f}" for name, value in result["layer_tflops"].items())
    return (
        f"bf16 matrix product of {result['size']}: {result['matmul_tflops']:,.1f} TFLOP/s; "
        f"of the layers' shapes: {layers}; copy: {result['copy_GB_per_s']:,.0f} GB/s"
    )


def training_table(trainings: dict[str, dict], peak: float | None) -> str:
    head = ["training", "tokens a pass", "s a step", "tokens/s", "pairs/s", "TFLOP/s", "MFU"]
    head += ["recomputed", "peak GiB", "optimizer ms", "predicted s"]
    rows = []
    for name, result in trainings.items():
        if "error" in result:
            empty = [""] * (len(head) - 3)
            rows.append([name, result.get("tokens_per_pass", ""), *empty, result["error"]])
            continue
        parts = result["parts_s"]
        rows.append(
            [
                name,
                result["tokens_per_pass"],
                f"{result['step_s']:.3f}",
                f"{result['tokens_per_s']:,.0f}",
                f"{result['pairs_per_s']:.1f}",
                f"{result['tflops']:.1f}",
                share_of(result["tflops"], peak),
                result["recomputed"],
                f"{result['allocated_GiB']:.1f}",
                f"{1e3 * parts.get('optimizer', 0):.0f}",
                predicted_seconds(name, result),
            ]
        )
    return table(head, rows)


def predicted_seconds(name: str, result: dict) -> str:
    """By estimate.py's roofline, for what it covers: one H100, compiled, Qwen3-4B."""
    variant = TRAINING[name]
    if not variant.compiled or result["parameters"] != QWEN3_4B.parameters:
        return ""
    if result["processes"] > 1 or result["passes_per_step"] > 1:
        return ""
    tokens = result["tokens_per_s"] * result["step_s"]
    step = one_gpu_step(QWEN3_4B, variant.precision, tokens, result["recomputed"])
    return f"{step['step']:.3f}"


def describe_labelling(result: dict, peak: float | None) -> str:
    if "error" in result:
        return f"Labelling: {result['error']}"
    comparison = result.get("reference", "")
    if "ratio" in result:
        comparison = (
            f"{result['ratio']:.2f} times batches of {REFERENCE_BATCH} "
            f"(largest difference of a reward {result['largest_difference']:.3f}, "
            f"their std {result['reward_std']:.3f})"
        )
    return (
        f"Labelling: {result['prompts_per_s']:.1f} prompts/s, "
        f"{result['tokens_per_s']:,.0f} tokens/s, "
        f"{share_of(result['tflops'], peak)} of the rate, "
        f"peak {result['allocated_GiB']:.1f} GiB; {comparison}"
    )


def describe_profile(result: dict) -> str:
    if "error" in result:
        return f"Profile: {result['error']}"
    head = (
        f"Profile of a step (mixed, recomputed, compiled): {result['wall_s']:.3f} s, "
        f"kernels {result['kernels_s']:.3f} s, {result['launches']:,} calls"
    )
    rows = []
    for kernel in result["top"]:
        rows.append(
            [
                f"{kernel['share']:.1%}",
                f"{kernel['ms']:.1f}",
                kernel["calls"],
                f"`{kernel['name']}`",
            ]
        )
    waits = [f"{line} ({count})" for line, count in result["host_waits"].items()]
    return "\n\n".join(
        [
            head,
            table(["share", "ms", "calls", "kernel"], rows),
            f"The host waits for the GPU at: {', '.join(waits) or 'no line that was seen'}",
        ]
    )


if __name__ == "__main__":
    run_script(main)
