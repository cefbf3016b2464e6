"""How cost grows with the number of pairs: time and memory of train.py, packing, tokenization.

    python benchmarks/growth.py --json growth.json       three minutes on one core

    training       train.py on a small random Qwen3 with 1, 2 and 4 times the same pairs, in turn, --rounds times each; the
                   loop's seconds are the sum over metrics.jsonl from the second step on, the fastest round counts (others
                   may share the machine); memory is the process's peak
    packing        rmood.batching's plans for 20,000 pairs: the share of the token budget used, and how even the passes are
    tokenization   --tokenized pairs: render, encode, find shared prefixes
"""

import json
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

import numpy as np
import torch
from estimate import Shape
from transformers import AutoModelForCausalLM
from workload import machine, make_texts, model_config, sample_lengths, table, texts, word_tokenizer

from rmood import records
from rmood.batching import Group, epoch_order, pack, plan_scoring, plan_step
from rmood.config import opt, parse, run_script
from rmood.records import BadInput
from rmood.tokenization import encode, render

TIMES, BATCH = (1, 2, 4), 64
PARTS = ("packing", "tokenization", "training")


@dataclass(frozen=True)
class Config:
    parts: list[str] = opt(list(PARTS), "which parts")
    pairs: int = opt(512, f"of the smallest training, a multiple of {BATCH}", at_least=2 * BATCH)
    rounds: int = opt(2, "trainings of each size", at_least=1)
    hidden_size: int = opt(64, "of the model, 2 layers", at_least=16)
    tokenized: int = opt(20000, "pairs to tokenize", at_least=1)
    json: str = opt("", "write the numbers to this file")


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.pairs % BATCH:
        raise BadInput(f"growth.py: --pairs {cfg.pairs}: must be a multiple of {BATCH}, the pairs of a step")
    if cfg.json:
        records.check_writable(cfg.json)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), f"{os.cpu_count()} cores", sep=", ")
    found = {"machine": facts | {"cores": os.cpu_count()}, "config": vars(cfg)}
    if unknown := set(cfg.parts) - set(PARTS):
        raise BadInput(f"growth.py: no part {unknown.pop()!r}: choose from {', '.join(PARTS)}")
    for name, part in zip(PARTS, (packing, tokenization, training)):
        if name not in cfg.parts:
            continue
        print(f"[{name}]", file=sys.stderr, flush=True)
        found[name] = part(cfg)
        if cfg.json:
            records.write_json(cfg.json, found)
    return 0


# ---- training --------------------------------------------------------------------------------------------------


def training(cfg: Config) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = word_tokenizer()
        shape = Shape(2, cfg.hidden_size, heads=4, kv_heads=2, head=cfg.hidden_size // 4, mlp=3 * cfg.hidden_size, vocabulary=len(tokenizer))
        torch.manual_seed(0)
        config = model_config(shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/start")
        tokenizer.save_pretrained(f"{folder}/start")
        block = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in records.conversations(*make_texts(cfg.pairs, 2, seed=0))]
        for times in TIMES:
            records.write_jsonl(f"{folder}/pairs-{times}.jsonl", block * times)
        runs: dict[int, list[dict]] = {times: [] for times in TIMES}
        for _ in range(cfg.rounds):
            for times in TIMES:
                runs[times].append(train(folder, times))
                print(f"{times}x: " + ", ".join(f"{name} {value:.2f}" for name, value in runs[times][-1].items()), file=sys.stderr, flush=True)
    best = {times: {name: min(run[name] for run in some) for name in some[0]} for times, some in runs.items()}
    off_linear = {times: best[times]["ms_per_pair"] / best[1]["ms_per_pair"] - 1 for times in TIMES}
    rows = []
    for times, run in best.items():
        rows.append([f"{times * cfg.pairs:,}", f"{run['loop_s']:.2f}", f"{run['ms_per_pair']:.2f}", f"{off_linear[times]:+.1%}", f"{run['outside_s']:.1f}", f"{run['peak_MiB']:.0f}"])
    growth = (best[4]["peak_MiB"] - best[2]["peak_MiB"]) * 1024 / (2 * cfg.pairs)  # the smallest has not met the longest pass yet
    print("\n" + table(["pairs", "loop s", "ms a pair", "off linear", "outside the loop s", "peak MiB"], rows) + f"\nmemory grows by {growth:.1f} KiB a pair\n", flush=True)
    return {"runs": runs, "off_linear": off_linear, "largest_off_linear": max(map(abs, off_linear.values())), "KiB_per_pair": growth, "outside_s": best[1]["outside_s"]}


def train(folder: str, times: int) -> dict[str, float]:
    """One train.py: seconds of its loop, of all the rest (imports, reading, tokenizing, saving), peak memory."""
    flags = [f"--model-name={folder}/start", f"--data-path={folder}/pairs-{times}.jsonl", f"--output-dir={folder}/out", "--overwrite", "--epochs=1", "--device=cpu", "--lr=1e-4", f"--batch-size={BATCH}"]
    began = time.perf_counter()
    with open(f"{folder}/log", "w+") as log:
        child, peak = subprocess.Popen([sys.executable, str(REPOSITORY / "train.py"), *flags], stdout=log, stderr=log), 0
        while child.poll() is None:  # not ru_maxrss: a child inherits that of its parent
            status = Path(f"/proc/{child.pid}/status")  # Linux
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
            peak = int(found.group(1)) if found else peak
            time.sleep(0.1)
        if child.returncode:
            log.seek(0)
            raise BadInput(f"growth.py: train.py ended with status {child.returncode}: {log.read().strip().splitlines()[-1]}")
    wall = time.perf_counter() - began
    lines = [json.loads(line) for line in Path(folder, "out", "metrics.jsonl").read_text().splitlines()]
    steps = [BATCH / line["pairs_per_s"] for line in lines if "pairs_per_s" in line]
    return {"loop_s": sum(steps[1:]), "ms_per_pair": 1e3 * sum(steps[1:]) / (BATCH * len(steps[1:])), "outside_s": wall - sum(steps), "peak_MiB": peak / 1024}


# ---- packing ---------------------------------------------------------------------------------------------------


def packing(cfg: Config) -> dict:
    """What plans leave unused. share: of --tokens-per-pass; even: mean over largest pass of a step, what processes wait for."""
    prefix, own = sample_lengths(20_000, 2, seed=0)
    tokens = (prefix + own.sum(axis=1)).tolist()
    found, rows = {}, []
    for budget, batch, world in ((16384, 64, 1), (4096, 64, 1), (16384, 64, 8), (4096, 512, 8), (16384, 1024, 8)):
        steps = epoch_order(len(tokens), batch, seed=0, epoch=0)
        steps = steps[: len(steps) - (len(steps[-1]) < batch)]
        began, loads = time.perf_counter(), []
        for step in steps:
            plan = plan_step(step, tokens, budget, world)
            loads.append([sum(tokens[i] for i in some) for of_rank in plan for some in of_rank])
        seconds = time.perf_counter() - began
        share = sum(map(sum, loads)) / (budget * sum(map(len, loads)))
        even = sum(map(sum, loads)) / sum(max(load) * len(load) for load in loads)
        fewest = sum(world * max(1, -(-sum(load) // (budget * world))) for load in loads)  # no plan can have fewer passes
        name = f"{batch} pairs, {world} x {budget}"
        found[name] = {"share": share, "even": even, "passes": sum(map(len, loads)), "fewest_passes": fewest, "ms_a_step": 1e3 * seconds / len(steps)}
        rows.append([batch, world, f"{budget:,}", f"{share:.1%}", f"{sum(map(len, loads)):,} of {fewest:,}", f"{even:.1%}", f"{1e3 * seconds / len(steps):.2f}"])
    passes = plan_scoring(tokens, 16384)
    found["scoring, 16384"] = {"share": sum(tokens) / (16384 * len(passes)), "passes": len(passes)}
    rows.append(["scoring", 1, "16,384", f"{found['scoring, 16384']['share']:.1%}", f"{len(passes):,} of {-(-sum(tokens) // 16384):,}", "", ""])
    print("\n" + table(["pairs a step", "processes", "tokens a pass", "budget used", "passes, fewest possible", "even", "ms a plan"], rows), flush=True)
    for pairs in (20_000, 1_000_000):
        began = time.perf_counter()
        epoch_order(pairs, 64, seed=0, epoch=0)
        found[f"epoch_order of {pairs}, ms"] = 1e3 * (time.perf_counter() - began)
    print("epoch_order, asked at each step: " + ", ".join(f"{found[f'epoch_order of {pairs}, ms']:.1f} ms for {pairs:,} pairs" for pairs in (20_000, 1_000_000)) + "\n", flush=True)
    return found


# ---- tokenization ----------------------------------------------------------------------------------------------


def tokenization(cfg: Config) -> dict:
    prompts, responses, tokenizer, what = texts(cfg.tokenized)
    talks = [talk for row in records.conversations(prompts, responses) for talk in row]
    clock = [time.perf_counter()]
    rendered = [render(talk, tokenizer) for talk in talks]
    clock.append(time.perf_counter())
    rows = encode(rendered, tokenizer)
    clock.append(time.perf_counter())
    groups = [Group(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    clock.append(time.perf_counter())
    for i in range(0, len(groups), 64):
        pack(groups[i : i + 64])
    clock.append(time.perf_counter())
    seconds = dict(zip(("render", "encode", "shared prefixes", "packing into passes of 64"), np.diff(clock).tolist()))
    before_training = sum(seconds.values()) - seconds["packing into passes of 64"]
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    print(f"{cfg.tokenized:,} pairs ({what}; {sum(map(len, rows)):,} tokens): {parts}; before training {before_training:.2f} s\n", flush=True)
    return {"pairs": cfg.tokenized, "what": what, "tokens": sum(map(len, rows)), "seconds": seconds, "before_training_s": before_training}


if __name__ == "__main__":
    run_script(main)
