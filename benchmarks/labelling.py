"""label.py's scoring beside the reference's way, and beside vLLM's pooling where vLLM is installed: the same rewards, sooner?

    python benchmarks/labelling.py --json labelling.json       two minutes on one core

    ours       rmood.scoring: passes of --tokens-per-pass unique tokens, the prompt shared by its responses computed once
    reference  AutoModelForSequenceClassification: --batch-size conversations in file order, padded to the longest of the
               batch, cut at 2,048 tokens
    vLLM       LLM(runner="pooling").classify of all texts in one call, in turn with ours on all texts; the start of the
               engine is not counted. On a CPU both have OMP_NUM_THREADS threads

All load one saved folder: a Qwen3 classifier with random weights, or --model-name. Each renders and tokenizes its own text.
Ours and the reference take turns, one reference batch at a time, and must agree to 1e-4 in float32.

    useful tokens    those of all conversations; the shared prompt counts for each of its responses
    computed tokens  what went through the layers
    ratio            the other way's seconds over ours, in the same turns
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or vLLM takes all cores, whatever OMP_NUM_THREADS says

import torch
from estimate import Shape
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification
from workload import cpu_seconds, machine, model_config, table, texts

from rmood import distributed, records
from rmood.config import opt, parse, run_script
from rmood.scoring import DTYPES, Scorer, load_scorer
from rmood.tokenization import render

TOLERANCE = 1e-4  # float32; in bf16 the company that a conversation is scored in moves its reward by up to 0.15


@dataclass(frozen=True)
class Config:
    model_name: str = opt("", "a reward model's folder; none: random weights of --hidden-size and --layers")
    prompts: int = opt(256, "so many, in file order", at_least=1)
    num_responses: int = opt(2, "responses a prompt; more than the file's two are borrowed from other prompts", at_least=1)
    batch_size: int = opt(256, "conversations in one batch of the reference", at_least=1)
    tokens_per_pass: int = opt(16384, "of label.py", at_least=16)
    hidden_size: int = opt(512, "of the random model", at_least=16)
    layers: int = opt(2, "of the random model", at_least=1)
    dtype: str = opt("auto", "of the backbone; auto: bf16 on CUDA, float32 on a CPU", choices=list(DTYPES))
    vllm: str = opt("auto", "auto: also vLLM, where it is installed", choices=["auto", "no"])
    json: str = opt("", "write the numbers to this file")


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.json:
        records.check_writable(cfg.json)
    with tempfile.TemporaryDirectory() as folder:
        return measure(cfg, folder)


def measure(cfg: Config, folder: str) -> int:
    prompts, responses, tokenizer, what = texts(cfg.prompts, cfg.num_responses)
    talks = records.conversations(prompts, responses)
    if not cfg.model_name:
        save_random(cfg, tokenizer, folder)
    name = cfg.model_name or folder
    process = distributed.start()
    scorer = load_scorer(name, process, cfg.dtype, tokens_per_pass=cfg.tokens_per_pass)
    dtype = next(scorer.model.backbone.parameters()).dtype
    theirs = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype, attn_implementation="sdpa").to(process.device).eval()
    ours, reference, seconds, padded = take_turns(cfg, scorer, theirs, talks)
    difference = (ours - reference).abs().max().item()
    groups, _ = scorer.groups(talks)
    useful, computed = sum(len(row) for group in groups for row in group.rows), {"rmood": sum(group.tokens for group in groups), "reference": padded}
    ratios = {"rmood": 1.0, "reference": seconds["reference"] / seconds["rmood"]}
    del theirs
    if cfg.vllm == "auto" and has_vllm():
        seconds["vllm"], beside, by_cpu, by_vllm = score_by_vllm(name, scorer, talks, dtype)
        ratios["vllm"], computed["vllm"] = seconds["vllm"] / beside, useful
        vllm_difference = (by_vllm - ours).abs().max().item()
    process.finish()

    equal = difference <= TOLERANCE or dtype != torch.float32
    facts = machine()
    print(f"{what}, {cfg.num_responses} responses each; {useful:,} useful tokens; {dtype}; {', '.join(f'{key} {value}' for key, value in facts.items())}")
    rows = [[way, f"{s:.2f}", f"{len(prompts) / s:.1f}", f"{useful / s:,.0f}", f"{computed[way]:,}", f"{ratios[way]:.2f}"] for way, s in seconds.items()]
    print(table(["way", "seconds", "prompts/s", "useful tokens/s", "computed tokens", "ratio"], rows))
    print(f"largest difference of a reward: {difference:.1e}, {'as it should be' if equal else f'above {TOLERANCE:g}: DIFFERENT'}")
    found = {"ratio": ratios["reference"], "seconds": seconds, "computed_tokens": computed, "useful_tokens": useful, "largest_difference": difference}
    found |= {"equal": equal, "reward_std": ours.std().item(), "prompts": len(prompts), "what": what, "dtype": str(dtype), "machine": facts, "config": vars(cfg)}
    if "vllm" in seconds:
        print(f"vLLM: ratio by CPU time {by_cpu:.2f}; largest difference of a reward {vllm_difference:.1e}")
        found |= {"ratio_vllm": ratios["vllm"], "ratio_vllm_by_cpu": by_cpu, "largest_difference_vllm": vllm_difference}
    if cfg.json:
        records.write_json(cfg.json, found)
    return 0 if equal else 1


def save_random(cfg: Config, tokenizer, folder: str) -> None:
    size, head = cfg.hidden_size, 64 if cfg.hidden_size >= 256 else 32  # vLLM has no smaller heads on a CPU
    shape = Shape(cfg.layers, size, heads=size // head, kv_heads=max(1, size // head // 2), head=head, mlp=3 * size, vocabulary=len(tokenizer))
    torch.manual_seed(0)
    config = model_config(shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, problem_type="regression")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def score_reference(model, tokenizer, talks: list[list[dict]], batch_size: int = 256, max_length: int = 2048) -> tuple[torch.Tensor, int]:
    """Rewards as the reference has them, and the tokens that its padding made."""
    rewards, computed = [], 0
    for start in range(0, len(talks), batch_size):
        rendered = [render(talk, tokenizer) for talk in talks[start : start + batch_size]]
        batch = tokenizer(rendered, add_special_tokens=False, padding=True, truncation=True, max_length=max_length, padding_side="right", return_tensors="pt").to(model.device)
        rewards += model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, 0].float().tolist()
        computed += batch.input_ids.numel()
    return torch.tensor(rewards), computed


def take_turns(cfg: Config, scorer: Scorer, theirs, talks: list[list[list[dict]]]) -> tuple[torch.Tensor, torch.Tensor, dict[str, float], int]:
    """Both ways over the same prompts, in turn: rewards of both, seconds of each, tokens that the reference computed."""
    each = max(1, cfg.batch_size // cfg.num_responses)  # prompts of one reference batch
    found: dict[str, list[float]] = {"rmood": [], "reference": []}
    seconds, padded = {"rmood": 0.0, "reference": 0.0}, 0
    scorer.score(talks[:4]), score_reference(theirs, scorer.tokenizer, talks[0])  # the first call is slower
    for start in tqdm(range(0, len(talks), each), desc="both ways", unit="batch"):
        some = talks[start : start + each]
        for way in ("rmood", "reference"):
            began = time.perf_counter()
            if way == "rmood":
                rewards = [reward for row in scorer.score(some) for reward in row]
            else:
                rewards, tokens = score_reference(theirs, scorer.tokenizer, [talk for row in some for talk in row], cfg.batch_size)
                padded += tokens
            seconds[way] += time.perf_counter() - began  # lists on the host: a GPU is done too
            found[way] += list(rewards)
    return torch.tensor(found["rmood"]), torch.tensor(found["reference"]), seconds, padded


# ---- vLLM ------------------------------------------------------------------------------------------------------


def has_vllm() -> bool:
    try:
        import vllm  # noqa: F401
    except Exception:  # a broken installation fails in many ways
        return False
    return True


def score_by_vllm(name: str, scorer: Scorer, talks: list[list[list[dict]]], dtype: torch.dtype) -> tuple[float, float, float, torch.Tensor]:
    """Seconds of vLLM and of ours, medians of three turns with all texts, the engine being up and warm; the ratio by the CPU
    time of all processes; vLLM's rewards."""
    from vllm import LLM
    from vllm.platforms import current_platform

    flat = [talk for row in talks for talk in row]
    memory = 0.2 if current_platform.is_cpu() else 0.6  # of a GPU: our model is still there
    llm = LLM(model=name, runner="pooling", dtype=str(dtype).removeprefix("torch."), max_model_len=2048, gpu_memory_utilization=memory)
    classify = lambda some: llm.classify([render(talk, scorer.tokenizer) for talk in some], use_tqdm=False)  # noqa: E731
    classify(flat[:8])
    turns = []
    for _ in range(3):
        llm.reset_prefix_cache()
        marks = [(time.perf_counter(), cpu_seconds())]
        outputs = classify(flat)
        marks.append((time.perf_counter(), cpu_seconds()))
        scorer.score(talks)
        marks.append((time.perf_counter(), cpu_seconds()))
        turns.append([(marks[i + 1][0] - marks[i][0], marks[i + 1][1] - marks[i][1]) for i in range(2)])
    (theirs, their_cpu), (ours, our_cpu) = torch.tensor(turns).median(0).values.tolist()
    return theirs, ours, their_cpu / our_cpu, torch.tensor([output.outputs.probs[0] for output in outputs])


if __name__ == "__main__":
    run_script(main)
