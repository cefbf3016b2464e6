"""Stage 2: score every response with a gold reward model.

    reads   rm_prompts.json and rm_sft.json (sample.py) of datasets/<dataset>/rm/
    writes  datasets/<dataset>/rm/rm_rewards.json   for preprocess.py: [[reward_1, reward_2], ...]

    python label.py --dataset alpacafarm
    torchrun --nproc-per-node 8 label.py --dataset alpacafarm
    python label.py --shard 3/16; python label.py --shard merge     # on machines of their own, then together
"""

from dataclasses import dataclass

import numpy as np

from rmood import distributed, model_commit, records
from rmood.config import opt, parse, run_script
from rmood.records import BadInput, Journal
from rmood.scoring import DTYPES, load_scorer
from rmood.tokenization import show_row, template_sha256


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once", group="data and model")
    split: str = opt("train", "which default paths", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    target_path: str = opt("{rewards}", "rewards to write")
    model_name: str = opt("{gold}", "the reward model: any sequence classifier with one label; a folder, or owner/model or owner/model@revision on the hub")
    num_responses: int = opt(0, "responses a prompt; 0: as many as the file holds", at_least=0)
    batch_size: int = opt(256, "prompts in one forward pass, at most", group="scoring", at_least=1)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass, at most; lower it when memory runs out", at_least=16)
    max_length: int = opt(2048, "tokens of a conversation; a longer response loses its end, never the template's closing tokens", at_least=8)
    dtype: str = opt("bf16", "of the backbone; the head is float32 always; auto: bf16 on CUDA, float32 on a CPU", choices=list(DTYPES))
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    shard: str = opt("", "3/16: the third of 16 shares of the work, into a file of its own; merge: put the finished shards together", group="several machines")


def main() -> int:
    cfg = parse(Config, __doc__)
    records.check_writable(cfg.target_path)
    records.check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    prompts, responses = records.read_prompts(cfg.prompts_path), records.read_responses(cfg.responses_path)
    records.check_rows(cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py")
    if cfg.num_responses > len(responses[0]):
        raise BadInput(f"{cfg.responses_path}: {len(responses[0])} responses a prompt, --num-responses wants {cfg.num_responses}: lower it, or sample more")
    responses = [row[: cfg.num_responses or None] for row in responses]

    inputs = {"prompts": cfg.prompts_path, "responses": cfg.responses_path, "chat_template": cfg.chat_template}
    if cfg.shard == "merge":
        cfg, facts, rewards = records.read_shards(cfg, len(prompts), prompts=cfg.prompts_path, responses=cfg.responses_path)
        write_target(cfg, cfg.target_path, dict(enumerate(rewards)), inputs, facts)
        return 0

    target, share = records.shard_of(cfg.target_path, cfg.shard, len(prompts))
    process = distributed.start(cfg.device)
    facts = records.run_facts(cfg, inputs)
    settings = {name: facts["config"][name] for name in ("model_name", "num_responses", "batch_size", "tokens_per_pass", "max_length", "dtype")}
    scorer = load_scorer(cfg.model_name, process, cfg.dtype, cfg.max_length, cfg.tokens_per_pass, cfg.chat_template)
    settings |= {"model_commit": model_commit(cfg.model_name), "template_sha256": template_sha256(scorer.tokenizer)}
    work = settings | {role: file["sha256"] for role, file in facts["inputs"].items()}
    journal = Journal(target, work, process.rank)
    process.barrier()  # every process has read the same journal before one adds to it: all plan the same passes
    if journal.done:
        process.print(f"{target}: {len(journal.done):,} of {len(prompts):,} prompts were labelled before; going on from there")

    conversations = records.conversations(prompts, responses)
    process.print(f"the first conversation, as {cfg.model_name} reads it:\n{show_row(conversations[0][0], scorer.tokenizer)}")
    scored = scorer.score(conversations, desc="labelling", groups_per_pass=cfg.batch_size, done=journal.done, keep=journal.add, share=share)
    rewards = {i: row for i, row in enumerate(scored) if row is not None}
    if not rewards:
        raise BadInput(f"--shard {cfg.shard}: no work is left for this shard: use fewer shards, or a lower --tokens-per-pass")
    if bad := [i for i, row in rewards.items() if not np.isfinite(row).all()]:
        raise BadInput(f"{cfg.model_name}: {len(bad)} prompts got a reward that is not finite, the first is row {bad[0]}: try --dtype float32")

    if process.is_main:
        write_target(cfg, target, rewards, inputs, {name: work[name] for name in ("model_commit", "template_sha256")} | {"work": work})
    process.barrier()
    if process.is_main:
        journal.delete(target)
    process.finish()
    return 0


def write_target(cfg: Config, target: str, rewards: dict[int, list[float]], inputs: dict[str, str], facts: dict) -> None:
    """The rewards, of all rows or of a shard's, the run file beside them, and what they are like in one line."""
    if target != cfg.target_path:
        records.write_shard(target, rewards)
    else:
        records.write_json(target, list(rewards.values()))
    ties = sum(len(set(row)) < len(row) for row in rewards.values())
    records.write_run_file(target, cfg, inputs, **facts | {"rows_with_ties": ties})
    flat = np.array(list(rewards.values()))
    print(f"{len(flat):,} x {flat.shape[1]} rewards: mean {flat.mean():.2f}, std {flat.std():.2f}, {flat.min():.2f} to {flat.max():.2f}; {ties:,} rows with a tie ({ties / len(flat):.1%})")
    then = f"python preprocess.py --dataset {cfg.dataset} --split {cfg.split}" if target == cfg.target_path else "once all shards are there: python label.py --shard merge"
    print(f"{target}: written; next: {then}")


if __name__ == "__main__":
    run_script(main)
