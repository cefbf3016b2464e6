"""label.py's scoring beside the reference's way, and beside vLLM's pooling where it is installed.

Do they give the same rewards, and how much sooner? Reads nothing (real texts where they are
present, see workload.py); prints a table:

    python benchmarks/labelling.py --json labelling.json       two minutes on one core

    ours       rmood.scoring: passes of --tokens-per-pass unique tokens, the prompt shared by its
               responses computed once
    reference  AutoModelForSequenceClassification: --batch-size conversations in file order, padded
               to the longest of the batch, cut at 2,048 tokens
    vLLM       LLM(runner="pooling").classify of all texts in one call, in turn with ours on all
               texts; the start of the engine is not counted. On a CPU both have OMP_NUM_THREADS
               threads

All load one saved folder: a Qwen3 classifier with random weights, or --model-name. Each renders and
tokenizes its own text. Ours and the reference take turns, one reference batch at a time, and must
agree to 1e-4 in float32 (else exit status 1).

    useful tokens    those of all conversations; a shared prompt counts for each of its responses
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
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
# Else vLLM takes all cores, whatever OMP_NUM_THREADS says.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from estimate import Shape, table
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification
from workload import cpu_seconds, describe, machine, model_config, texts

from rmood import distributed
from rmood.cli import opt, parse
from rmood.errors import run_script
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import Conversation, join_conversations
from rmood.scoring import DTYPES, Scorer, load_scorer
from rmood.tokenization import render

# In float32. In bf16 the other rows of the batch move a reward by up to 0.15.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Config:
    # fmt: off
    model_name: str = opt("", "a reward model's folder; none: random weights of --hidden-size and --layers")
    prompts: int = opt(256, "number of prompts, in file order", at_least=1)
    num_responses: int = opt(2, "responses a prompt; more than the file's two are taken from other prompts", at_least=1)
    batch_size: int = opt(256, "conversations in one batch of the reference", at_least=1)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass of ours", at_least=16)
    hidden_size: int = opt(512, "hidden size of the random model", at_least=16)
    layers: int = opt(2, "layers of the random model", at_least=1)
    dtype: str = opt("auto", "dtype of the backbone; auto: bf16 on CUDA, float32 on a CPU", choices=list(DTYPES))
    vllm: str = opt("auto", "auto: also vLLM, where it is installed", choices=["auto", "no"])
    json: str = opt("", "write the numbers to this file")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.json:
        check_writable(cfg.json)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(cfg, folder)
    print(report(results))
    if cfg.json:
        write_json(cfg.json, results)
    return 0 if results["equal"] else 1


def measure(cfg: Config, folder: str) -> dict:
    # the same model and texts for all
    prompts, responses, tokenizer, description = texts(cfg.prompts, cfg.num_responses)
    conversations = join_conversations(prompts, responses)
    if not cfg.model_name:
        save_random_model(cfg, tokenizer, folder)
    name = cfg.model_name or folder
    process = distributed.start()
    scorer = load_scorer(name, process, cfg.dtype, tokens_per_pass=cfg.tokens_per_pass)
    dtype = next(scorer.model.backbone.parameters()).dtype
    reference_model = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=dtype, attn_implementation="sdpa"
    )
    reference_model = reference_model.to(process.device).eval()

    # ours and the reference
    ours, reference, seconds, padded = take_turns(cfg, scorer, reference_model, conversations)
    difference = (ours - reference).abs().max().item()
    ratio = seconds["reference"] / seconds["rmood"]
    groups, _ = scorer.groups(conversations)
    useful = sum(len(row) for group in groups for row in group.rows)
    computed = {"rmood": sum(group.tokens for group in groups), "reference": padded}
    results = {
        "ratio": ratio,
        "seconds": seconds,
        "computed_tokens": computed,
        "useful_tokens": useful,
        "largest_difference": difference,
        "equal": difference <= TOLERANCE or dtype != torch.float32,
        "reward_std": ours.std().item(),
        "prompts": len(prompts),
        "what": description,
        "dtype": str(dtype),
        "machine": machine(),
        "config": vars(cfg),
    }
    del reference_model

    # vLLM
    if cfg.vllm == "auto" and has_vllm():
        turns = score_by_vllm(name, scorer, conversations, dtype)
        seconds["vllm"] = turns.vllm_s
        computed["vllm"] = useful
        results["ratio_vllm"] = turns.vllm_s / turns.ours_s
        results["ratio_vllm_by_cpu"] = turns.cpu_ratio
        results["largest_difference_vllm"] = (turns.rewards - ours).abs().max().item()
    process.finish()
    return results


def report(results: dict) -> str:
    ratios = {"rmood": 1.0, "reference": results["ratio"], "vllm": results.get("ratio_vllm")}
    prompts = results["prompts"]
    useful = results["useful_tokens"]
    rows = []
    for way, seconds in results["seconds"].items():
        rows.append(
            [
                way,
                f"{seconds:.2f}",
                f"{prompts / seconds:.1f}",
                f"{useful / seconds:,.0f}",
                f"{results['computed_tokens'][way]:,}",
                f"{ratios[way]:.2f}",
            ]
        )
    verdict = "as it should be" if results["equal"] else f"above {TOLERANCE:g}: DIFFERENT"
    lines = [
        f"{results['what']}, {results['config']['num_responses']} responses each; "
        f"{useful:,} useful tokens; {results['dtype']}; {describe(results['machine'])}",
        table(["way", "seconds", "prompts/s", "useful tokens/s", "computed tokens", "ratio"], rows),
        f"largest difference of a reward: {results['largest_difference']:.1e}, {verdict}",
    ]
    if "ratio_vllm" in results:
        lines.append(
            f"vLLM: ratio by CPU time {results['ratio_vllm_by_cpu']:.2f}; "
            f"largest difference of a reward {results['largest_difference_vllm']:.1e}"
        )
    return "\n".join(lines)


def save_random_model(cfg: Config, tokenizer, folder: str) -> None:
    size = cfg.hidden_size
    head = 64 if size >= 256 else 32  # vLLM has no smaller heads on a CPU
    shape = Shape(
        layers=cfg.layers,
        hidden=size,
        heads=size // head,
        kv_heads=max(1, size // head // 2),
        head=head,
        mlp=3 * size,
        vocabulary=len(tokenizer),
    )
    config = model_config(
        shape,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        problem_type="regression",
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- ours and the reference ----------------------------------------------------------------------


@torch.no_grad()
def score_reference(
    model,
    tokenizer,
    conversations: list[Conversation],
    batch_size: int = 256,
    max_length: int = 2048,
) -> tuple[list[float], int]:
    """Rewards in the reference's way, and the tokens that it computed, padding included."""
    rewards: list[float] = []
    computed = 0
    for start in range(0, len(conversations), batch_size):
        batch = conversations[start : start + batch_size]
        tokens = tokenizer(
            [render(conversation, tokenizer) for conversation in batch],
            add_special_tokens=False,
            padding=True,
            truncation=True,
            max_length=max_length,
            padding_side="right",
            return_tensors="pt",
        ).to(model.device)
        output = model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False
        )
        rewards += output.logits[:, 0].float().tolist()
        computed += tokens.input_ids.numel()
    return rewards, computed


def take_turns(
    cfg: Config, scorer: Scorer, reference_model, conversations: list[list[Conversation]]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float], int]:
    """Both ways over the same prompts, in turn.

    Returns the rewards of ours and of the reference, the seconds of each way, and the tokens that
    the reference computed.
    """
    # the first call is slower
    scorer.score(conversations[:4])
    score_reference(reference_model, scorer.tokenizer, conversations[0])

    ours: list[float] = []
    reference: list[float] = []
    seconds = {"rmood": 0.0, "reference": 0.0}
    padded = 0
    prompts_per_batch = max(1, cfg.batch_size // cfg.num_responses)
    starts = range(0, len(conversations), prompts_per_batch)
    for start in tqdm(starts, desc="both ways", unit="batch"):
        of_prompts = conversations[start : start + prompts_per_batch]
        flat = [conversation for row in of_prompts for conversation in row]

        # Both return lists on the host, so a GPU has finished too when the clock is read.
        began = time.perf_counter()
        rewards = scorer.score(of_prompts)
        seconds["rmood"] += time.perf_counter() - began
        ours += [reward for row in rewards for reward in row]

        began = time.perf_counter()
        rewards, computed = score_reference(reference_model, scorer.tokenizer, flat, cfg.batch_size)
        seconds["reference"] += time.perf_counter() - began
        reference += rewards
        padded += computed
    return torch.tensor(ours), torch.tensor(reference), seconds, padded


# ---- vLLM ----------------------------------------------------------------------------------------


def has_vllm() -> bool:
    try:
        import vllm  # noqa: F401
    except Exception:  # a broken installation fails in many ways
        return False
    return True


@dataclass(frozen=True)
class VllmTurns:
    """Medians of three turns with all texts, the engine being up and warm."""

    vllm_s: float
    ours_s: float
    cpu_ratio: float  # vLLM's CPU time over ours, all processes
    rewards: torch.Tensor  # (N,) vLLM's, one a conversation


def score_by_vllm(
    name: str, scorer: Scorer, conversations: list[list[Conversation]], dtype: torch.dtype
) -> VllmTurns:
    from vllm import LLM
    from vllm.platforms import current_platform

    llm = LLM(
        model=name,
        runner="pooling",
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=2048,
        # less than all of a GPU: our model is still there
        gpu_memory_utilization=0.2 if current_platform.is_cpu() else 0.6,
    )
    flat = [conversation for row in conversations for conversation in row]

    def classify(some: list[Conversation]) -> list:
        rendered = [render(conversation, scorer.tokenizer) for conversation in some]
        return llm.classify(rendered, use_tqdm=False)

    classify(flat[:8])
    turns = []
    for _ in range(3):
        llm.reset_prefix_cache()
        before = (time.perf_counter(), cpu_seconds())
        outputs = classify(flat)
        between = (time.perf_counter(), cpu_seconds())
        scorer.score(conversations)
        after = (time.perf_counter(), cpu_seconds())
        turns.append([before, between, after])
    marks = torch.tensor(turns, dtype=torch.float64)  # (turns, 3, 2): wall and CPU seconds
    spent = marks.diff(dim=1).median(dim=0).values.tolist()
    (vllm_s, vllm_cpu), (ours_s, ours_cpu) = spent
    rewards = torch.tensor([output.outputs.probs[0] for output in outputs])
    return VllmTurns(vllm_s, ours_s, vllm_cpu / ours_cpu, rewards)


if __name__ == "__main__":
    run_script(main)
