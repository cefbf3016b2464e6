"""Stage 2: score every response with a gold reward model.

reads   rm_prompts.json and rm_sft.json (sample.py) of datasets/<dataset>/rm/
writes  datasets/<dataset>/rm/rm_rewards.json for preprocess.py: [[reward_1, reward_2], ...]

    python label.py --dataset alpacafarm
    torchrun --nproc-per-node 8 label.py --dataset alpacafarm
    python label.py --shard 3/16     # on one of 16 machines
    python label.py --shard merge    # when all 16 have finished

Where the gold model runs elsewhere, say behind an HTTP API, write the rewards file yourself: one
row per prompt, one reward per response. Then continue with preprocess.py.
"""

import os
from dataclasses import dataclass

if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    # read when torch is imported
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch

from rmood import distributed
from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.provenance import (
    Journal,
    check_lineage,
    read_shards,
    sha256,
    shard_of,
    write_run_file,
    write_shard,
)
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import (
    Conversation,
    check_rows,
    join_conversations,
    read_prompts,
    read_responses,
)
from rmood.hub import model_commit
from rmood.scoring import DTYPES, Scorer, load_scorer
from rmood.tokenization import show_row, template_sha256


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data and model")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    target_path: str = opt("{rewards}", "where the rewards are written")
    model_name: str = opt("{gold}", "the reward model: any sequence classifier with one label; a folder, or owner/model or owner/model@revision on the hub")
    num_responses: int = opt(0, "responses per prompt; 0: as many as the file has", at_least=0)
    batch_size: int = opt(256, "maximum number of prompts in one forward pass (in train.py it is pairs per optimizer step)", group="scoring", at_least=1)
    tokens_per_pass: int = opt(16384, "maximum number of tokens in one forward pass; lower it when memory runs out", at_least=16)
    max_length: int = opt(2048, "maximum number of tokens of a conversation; a longer response is cut at its end, never the template's closing tokens", at_least=8)
    dtype: str = opt("auto", "dtype of the backbone, auto: bf16 on CUDA, float32 on a CPU; the head is always float32", choices=list(DTYPES))
    chat_template: str = opt("", "file with a chat template (Jinja), for a tokenizer that has none")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    shard: str = opt("", "3/16: do the third of 16 shards of the work, into a file of its own; merge: put the finished shards together", group="several machines")
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    check_writable(cfg.target_path)
    check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    prompts = read_prompts(cfg.prompts_path)
    responses = read_matching_responses(cfg, prompts)
    if cfg.shard == "merge":
        merge_shards(cfg, len(prompts))
        return 0

    # What the rewards depend on: the journal and the other shards are held to it.
    target, share = shard_of(cfg.target_path, cfg.shard, len(prompts))
    process = distributed.start(cfg.device)
    inputs = input_paths(cfg)
    hashes = {role: sha256(path) for role, path in inputs.items() if path}
    scorer = load_scorer(
        cfg.model_name,
        process,
        cfg.dtype,
        cfg.max_length,
        cfg.tokens_per_pass,
        cfg.chat_template,
    )
    facts = {
        "model_commit": model_commit(cfg.model_name),
        "template_sha256": template_sha256(scorer.tokenizer),
    }
    work = scoring_settings(cfg, scorer) | facts | hashes

    journal = Journal(target, work, process.rank)
    process.barrier()  # all read the same journal before one adds to it: all plan the same passes
    if journal.done:
        known, total = len(journal.done), len(prompts)
        process.print(f"{target}: resuming: {known:,} of {total:,} prompts were labelled before")
    conversations = join_conversations(prompts, responses)
    process.print(
        f"the first conversation, as {cfg.model_name} reads it:\n"
        f"{show_row(conversations[0][0], scorer.tokenizer)}"
    )
    rewards = score_share(cfg, scorer, conversations, share, journal)

    if process.is_main:
        write_target(cfg, target, rewards, inputs, facts | {"work": work})
    process.barrier()
    if process.is_main:
        journal.delete(target)
    process.finish()
    return 0


# ---- before scoring ----


def read_matching_responses(cfg: Config, prompts: list[Conversation]) -> list[list[str]]:
    """--num-responses responses to each prompt; raises UserError unless the files match."""
    responses = read_responses(cfg.responses_path)
    check_rows(
        cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py"
    )
    available = len(responses[0])
    if cfg.num_responses > available:
        raise UserError(
            f"{cfg.responses_path}: {available} responses per prompt, but --num-responses "
            f"{cfg.num_responses}: lower it, or sample more"
        )
    return [row[: cfg.num_responses or available] for row in responses]


def input_paths(cfg: Config) -> dict[str, str]:
    return {
        "prompts": cfg.prompts_path,
        "responses": cfg.responses_path,
        "chat_template": cfg.chat_template,
    }


def scoring_settings(cfg: Config, scorer: Scorer) -> dict:
    names = ("model_name", "num_responses", "batch_size", "tokens_per_pass", "max_length", "dtype")
    settings = {name: getattr(cfg, name) for name in names}
    # What auto came to: a run that is resumed on another device must not mix two dtypes.
    settings["dtype"] = "bf16" if scorer.model.backbone.dtype == torch.bfloat16 else "float32"
    return settings


# ---- scoring ----


def score_share(
    cfg: Config,
    scorer: Scorer,
    conversations: list[list[Conversation]],
    share: slice,
    journal: Journal,
) -> dict[int, list[float]]:
    """Row of the prompts file -> the rewards of its responses; `share` is of the planned passes."""
    scored = scorer.score(
        conversations,
        desc="labelling",
        groups_per_pass=cfg.batch_size,
        done=journal.done,
        keep=journal.add,
        share=share,
    )
    rewards = {i: row for i, row in enumerate(scored) if row is not None}
    if not rewards:
        raise UserError(
            f"--shard {cfg.shard}: no work is left for this shard: use fewer shards, "
            "or a lower --tokens-per-pass"
        )
    not_finite = [i for i, row in rewards.items() if not np.isfinite(row).all()]
    if not_finite:
        raise UserError(
            f"{cfg.model_name}: {len(not_finite)} prompts got a reward that is not finite, "
            f"the first is row {not_finite[0]}: try --dtype float32"
        )
    return rewards


# ---- after scoring ----


def merge_shards(cfg: Config, rows: int) -> None:
    inputs = input_paths(cfg)
    cfg, facts, rewards = read_shards(
        cfg, rows, prompts=cfg.prompts_path, responses=cfg.responses_path
    )
    write_target(cfg, cfg.target_path, dict(enumerate(rewards)), inputs, facts)


def write_target(
    cfg: Config, target: str, rewards: dict[int, list[float]], inputs: dict[str, str], facts: dict
) -> None:
    """Write the rewards of all rows, or of a shard's, with their run file; print a summary."""
    is_shard = target != cfg.target_path
    if is_shard:
        write_shard(target, rewards)
    else:
        write_json(target, list(rewards.values()))
    ties = sum(len(set(row)) < len(row) for row in rewards.values())
    write_run_file(target, cfg, inputs, **facts | {"rows_with_ties": ties})

    table = np.array(list(rewards.values()))  # (P, K)
    print(
        f"{len(table):,} x {table.shape[1]} rewards: mean {table.mean():.2f}, "
        f"std {table.std():.2f}, {table.min():.2f} to {table.max():.2f}; "
        f"{ties:,} rows with a tie ({ties / len(table):.1%})"
    )
    if is_shard:
        next_step = "once all shards are there: python label.py --shard merge"
    else:
        next_step = f"python preprocess.py --dataset {cfg.dataset} --split {cfg.split}"
    print(f"{target}: written; next: {next_step}")


if __name__ == "__main__":
    run_script(main)
