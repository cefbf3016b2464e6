"""How cost grows with the number of pairs: time and memory of train.py, packing, tokenization.

Reads nothing (real texts where they are present, see workload.py); prints a table for each part:

    python benchmarks/growth.py --json growth.json       three minutes on one core

training       train.py on a small random Qwen3 with 1, 2 and 4 times the same pairs, in turn,
               --rounds times each; the loop's seconds are the sum over metrics.jsonl from the
               second step on, the fastest round counts (others may share the machine); memory is
               the process's peak
packing        rmood.batching's plans for 20,000 pairs: the share of the token budget used, and how
               even the passes are
tokenization   --tokenized pairs: render, encode, find shared prefixes
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch
from estimate import Shape, table
from transformers import AutoModelForCausalLM
from workload import (
    describe,
    machine,
    make_texts,
    model_config,
    sample_lengths,
    texts,
    word_tokenizer,
)

from rmood.batching import Group, epoch_order, pack, plan_scoring, plan_step
from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.rows import check_writable, write_json, write_jsonl
from rmood.files.tables import join_conversations
from rmood.tokenization import encode, render

TIMES = (1, 2, 4)  # sizes of the trainings, in --pairs
BATCH = 64  # pairs a step


@dataclass(frozen=True)
class Config:
    # fmt: off
    parts: list[str] = opt(["packing", "tokenization", "training"], "which parts to measure")
    pairs: int = opt(512, f"pairs of the smallest training, a multiple of {BATCH}", at_least=2 * BATCH)
    rounds: int = opt(2, "trainings of each size", at_least=1)
    hidden_size: int = opt(64, "hidden size of the model, which has 2 layers", at_least=16)
    tokenized: int = opt(20000, "pairs to tokenize", at_least=1)
    json: str = opt("", "write the numbers to this file")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    parts = {"packing": packing, "tokenization": tokenization, "training": training}
    if cfg.pairs % BATCH:
        raise UserError(
            f"growth.py: --pairs {cfg.pairs}: must be a multiple of {BATCH}, the pairs of a step"
        )
    if unknown := set(cfg.parts) - set(parts):
        raise UserError(f"growth.py: no part {unknown.pop()!r}: choose from {', '.join(parts)}")
    if cfg.json:
        check_writable(cfg.json)
    facts = machine()
    print(f"{describe(facts)}, {os.cpu_count()} cores")
    results = {"machine": facts | {"cores": os.cpu_count()}, "config": vars(cfg)}
    for name, part in parts.items():
        if name not in cfg.parts:
            continue
        print(f"[{name}]", file=sys.stderr, flush=True)
        results[name] = part(cfg)
        if cfg.json:
            write_json(cfg.json, results)
    return 0


# ---- training ------------------------------------------------------------------------------------


def training(cfg: Config) -> dict:
    runs: dict[int, list[dict]] = {times: [] for times in TIMES}
    with tempfile.TemporaryDirectory() as folder:
        save_model_and_pairs(cfg, folder)
        for _ in range(cfg.rounds):
            for times in TIMES:
                run = train(folder, times)
                runs[times].append(run)
                numbers = ", ".join(f"{name} {value:.2f}" for name, value in run.items())
                print(f"{times}x: {numbers}", file=sys.stderr, flush=True)

    best = {times: smallest_of_each(rounds) for times, rounds in runs.items()}
    off_linear = {times: best[times]["ms_per_pair"] / best[1]["ms_per_pair"] - 1 for times in TIMES}
    # From 2 to 4 times the pairs: the smallest run has not met the longest pass yet.
    growth = (best[4]["peak_MiB"] - best[2]["peak_MiB"]) * 1024 / (2 * cfg.pairs)

    rows = []
    for times, run in best.items():
        rows.append(
            [
                f"{times * cfg.pairs:,}",
                f"{run['loop_s']:.2f}",
                f"{run['ms_per_pair']:.2f}",
                f"{off_linear[times]:+.1%}",
                f"{run['outside_s']:.1f}",
                f"{run['peak_MiB']:.0f}",
            ]
        )
    head = ["pairs", "loop s", "ms a pair", "off linear", "outside the loop s", "peak MiB"]
    print(f"\n{table(head, rows)}\nmemory grows by {growth:.1f} KiB a pair\n", flush=True)
    return {
        "runs": runs,
        "off_linear": off_linear,
        "largest_off_linear": max(map(abs, off_linear.values())),
        "KiB_per_pair": growth,
        "outside_s": best[1]["outside_s"],
    }


def save_model_and_pairs(cfg: Config, folder: str) -> None:
    """start/, a random causal LM with its tokenizer, and pairs-<times>.jsonl for each size."""
    tokenizer = word_tokenizer()
    shape = Shape(
        layers=2,
        hidden=cfg.hidden_size,
        heads=4,
        kv_heads=2,
        head=cfg.hidden_size // 4,
        mlp=3 * cfg.hidden_size,
        vocabulary=len(tokenizer),
    )
    config = model_config(
        shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/start")
    tokenizer.save_pretrained(f"{folder}/start")

    prompts, responses = make_texts(cfg.pairs, 2, seed=0)
    pairs = []
    for chosen, rejected in join_conversations(prompts, responses):
        pairs.append({"chosen": chosen, "rejected": rejected})
    for times in TIMES:
        write_jsonl(f"{folder}/pairs-{times}.jsonl", pairs * times)


def smallest_of_each(rounds: list[dict]) -> dict[str, float]:
    return {name: min(run[name] for run in rounds) for name in rounds[0]}


def train(folder: str, times: int) -> dict[str, float]:
    """One run of train.py: seconds of its loop, seconds of all the rest (imports, reading,
    tokenizing, saving), peak memory."""
    flags = [
        f"--model-name={folder}/start",
        f"--data-path={folder}/pairs-{times}.jsonl",
        f"--output-dir={folder}/out",
        "--overwrite",
        "--epochs=1",
        "--device=cpu",
        "--lr=1e-4",
        f"--batch-size={BATCH}",
    ]
    command = [sys.executable, str(REPOSITORY / "train.py"), *flags]
    began = time.perf_counter()
    with open(f"{folder}/log", "w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        peak = watch_peak_kib(child)
        if child.returncode:
            log.seek(0)
            last_line = log.read().strip().rpartition("\n")[2]
            raise UserError(
                f"growth.py: train.py ended with status {child.returncode}: {last_line}"
            )
    wall = time.perf_counter() - began
    lines = Path(folder, "out", "metrics.jsonl").read_text().splitlines()
    steps = []  # seconds
    for line in map(json.loads, lines):
        if "pairs_per_s" in line:
            steps.append(BATCH / line["pairs_per_s"])
    timed = steps[1:]
    return {
        "loop_s": sum(timed),
        "ms_per_pair": 1e3 * sum(timed) / (BATCH * len(timed)),
        "outside_s": wall - sum(steps),
        "peak_MiB": peak / 1024,
    }


def watch_peak_kib(child: subprocess.Popen) -> int:
    """Wait for the child; its peak memory in KiB. (ru_maxrss would not do: a child inherits its
    parent's.)"""
    peak = 0
    status = Path(f"/proc/{child.pid}/status")  # Linux
    while child.poll() is None:
        text = status.read_text() if status.exists() else ""
        if found := re.search(r"VmHWM:\s+(\d+) kB", text):
            peak = int(found.group(1))
        time.sleep(0.1)
    return peak


# ---- packing -------------------------------------------------------------------------------------


def packing(cfg: Config) -> dict:
    """What plans leave unused.

    share: of --tokens-per-pass that the passes hold
    even: the mean over the largest pass of a step: how little processes wait for each other
    """
    prefix, own = sample_lengths(20_000, 2, seed=0)
    tokens = (prefix + own.sum(axis=1)).tolist()
    results: dict = {}
    rows = []
    plans = ((16384, 64, 1), (4096, 64, 1), (16384, 64, 8), (4096, 512, 8), (16384, 1024, 8))
    for budget, batch, world_size in plans:
        plan = measure_plans(tokens, budget, batch, world_size)
        results[f"{batch} pairs, {world_size} x {budget}"] = plan
        passes = f"{plan['passes']:,} of {plan['fewest_passes']:,}"
        rows.append(
            [
                batch,
                world_size,
                f"{budget:,}",
                f"{plan['share']:.1%}",
                passes,
                f"{plan['even']:.1%}",
                f"{plan['ms_a_step']:.2f}",
            ]
        )

    passes = len(plan_scoring(tokens, 16384))
    share = sum(tokens) / (16384 * passes)
    results["scoring, 16384"] = {"share": share, "passes": passes}
    fewest = math.ceil(sum(tokens) / 16384)
    rows.append(["scoring", 1, "16,384", f"{share:.1%}", f"{passes:,} of {fewest:,}", "", ""])
    head = ["pairs a step", "processes", "tokens a pass", "budget used"]
    head += ["passes, fewest possible", "even", "ms a plan"]
    print(f"\n{table(head, rows)}", flush=True)

    orders = []
    for pairs in (20_000, 1_000_000):
        began = time.perf_counter()
        epoch_order(pairs, 64, seed=0, epoch=0)
        milliseconds = 1e3 * (time.perf_counter() - began)
        results[f"epoch_order of {pairs}, ms"] = milliseconds
        orders.append(f"{milliseconds:.1f} ms for {pairs:,} pairs")
    print(f"epoch_order, called at each step: {', '.join(orders)}\n", flush=True)
    return results


def measure_plans(tokens: list[int], budget: int, batch: int, world_size: int) -> dict:
    """All full steps of one epoch. tokens: of each pair; budget: tokens a pass; batch: pairs a
    step."""
    steps = epoch_order(len(tokens), batch, seed=0, epoch=0)
    if len(steps[-1]) < batch:
        steps = steps[:-1]
    loads = []  # of each step the tokens of every pass, over all ranks
    began = time.perf_counter()
    for step in steps:
        plan = plan_step(step, tokens, budget, world_size)
        passes = [pairs for passes_of_rank in plan for pairs in passes_of_rank]
        loads.append([sum(tokens[i] for i in pairs) for pairs in passes])
    seconds = time.perf_counter() - began

    total = sum(map(sum, loads))
    passes = sum(map(len, loads))
    fewest = 0  # no plan can have fewer: every rank runs the same number
    for load in loads:
        fewest += world_size * max(1, math.ceil(sum(load) / (budget * world_size)))
    return {
        "share": total / (budget * passes),
        "even": total / sum(max(load) * len(load) for load in loads),
        "passes": passes,
        "fewest_passes": fewest,
        "ms_a_step": 1e3 * seconds / len(steps),
    }


# ---- tokenization --------------------------------------------------------------------------------


def tokenization(cfg: Config) -> dict:
    prompts, responses, tokenizer, description = texts(cfg.tokenized)
    conversations = []
    for of_prompt in join_conversations(prompts, responses):
        conversations += of_prompt
    seconds = {}

    def lap(name: str) -> None:
        """What ran since the last lap is called `name`."""
        nonlocal began
        now = time.perf_counter()
        seconds[name] = now - began
        began = now

    began = time.perf_counter()
    rendered = [render(conversation, tokenizer) for conversation in conversations]
    lap("render")
    rows = encode(rendered, tokenizer)
    lap("encode")
    groups = [Group(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    lap("shared prefixes")
    before_training = sum(seconds.values())
    for i in range(0, len(groups), 64):
        pack(groups[i : i + 64])
    lap("packing into passes of 64")

    tokens = sum(map(len, rows))
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    print(
        f"{cfg.tokenized:,} pairs ({description}; {tokens:,} tokens): "
        f"{parts}; before training {before_training:.2f} s\n",
        flush=True,
    )
    return {
        "pairs": cfg.tokenized,
        "what": description,
        "tokens": tokens,
        "seconds": seconds,
        "before_training_s": before_training,
    }


if __name__ == "__main__":
    run_script(main)
