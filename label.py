"""Stage 2: score every response with a gold reward model.

    reads   rm_prompts.json and rm_sft.json (sample.py) of datasets/<dataset>/rm/
    writes  datasets/<dataset>/rm/rm_rewards.json   for preprocess.py: [[reward_1, reward_2], ...]

    python label.py --dataset alpacafarm
    torchrun --nproc-per-node 8 label.py --dataset alpacafarm
"""

from dataclasses import dataclass

import numpy as np

from rmood import distributed, records
from rmood.config import opt, parse, run_script
from rmood.records import BadInput, Journal
from rmood.scoring import DTYPES, load_scorer
from rmood.tokenization import show_row, template_sha256


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once")
    split: str = opt("train", "which default paths", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    target_path: str = opt("{rewards}", "rewards to write")
    model_name: str = opt("{gold}", "the reward model: any sequence classifier with one label, a folder or a hub name")
    num_responses: int = opt(0, "responses a prompt; 0: as many as the file holds", at_least=0)
    batch_size: int = opt(256, "prompts in one forward pass, at most", at_least=1)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass, at most; lower it when memory runs out", at_least=16)
    max_length: int = opt(2048, "tokens of a conversation; a longer response loses its end, never the template's closing tokens", at_least=8)
    dtype: str = opt("bf16", "of the backbone; the head is float32 always; auto: bf16 on CUDA, float32 on a CPU", choices=list(DTYPES))
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])


def main() -> int:
    cfg = parse(Config, __doc__)
    records.check_writable(cfg.target_path)
    records.check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    prompts, responses = records.read_prompts(cfg.prompts_path), records.read_responses(cfg.responses_path)
    if len(responses) != len(prompts):
        raise BadInput(f"{cfg.responses_path}: {len(responses):,} rows for {len(prompts):,} prompts ({cfg.prompts_path}): rerun sample.py, or pass the matching file")
    if cfg.num_responses > len(responses[0]):
        raise BadInput(f"{cfg.responses_path}: {len(responses[0])} responses a prompt, --num-responses wants {cfg.num_responses}: lower it, or sample more")
    responses = [row[: cfg.num_responses or None] for row in responses]

    process = distributed.start(cfg.device)
    inputs = {"prompts": cfg.prompts_path, "responses": cfg.responses_path, "chat_template": cfg.chat_template}
    facts = records.run_facts(cfg, inputs)
    settings = {name: facts["config"][name] for name in ("model_name", "num_responses", "batch_size", "tokens_per_pass", "max_length", "dtype")}
    journal = Journal(cfg.target_path, settings | {role: file["sha256"] for role, file in facts["inputs"].items()}, process.rank)
    process.barrier()  # every process has read the same journal before one adds to it: all plan the same passes
    if journal.done:
        process.print(f"{cfg.target_path}: {len(journal.done):,} of {len(prompts):,} prompts were labelled before; going on from there")

    scorer = load_scorer(cfg.model_name, process, cfg.dtype, cfg.max_length, cfg.tokens_per_pass, cfg.chat_template)
    conversations = [[[*prompt, {"role": "assistant", "content": text}] for text in row] for prompt, row in zip(prompts, responses)]
    process.print(f"the first conversation, as {cfg.model_name} reads it:\n{show_row(conversations[0][0], scorer.tokenizer)}")
    rewards = scorer.score(conversations, desc="labelling", groups_per_pass=cfg.batch_size, done=journal.done, keep=journal.add)
    if bad := [i for i, row in enumerate(rewards) if not np.isfinite(row).all()]:
        raise BadInput(f"{cfg.model_name}: {len(bad)} prompts got a reward that is not finite, the first is row {bad[0]}: try --dtype float32")

    if process.is_main:
        records.write_json(cfg.target_path, rewards)
        ties = sum(len(set(row)) < len(row) for row in rewards)
        records.write_run_file(cfg.target_path, cfg, inputs, template_sha256=template_sha256(scorer.tokenizer), rows_with_ties=ties)
        flat = np.array(rewards)
        print(f"{len(rewards):,} x {len(rewards[0])} rewards: mean {flat.mean():.2f}, std {flat.std():.2f}, {flat.min():.2f} to {flat.max():.2f}; {ties:,} rows with a tie ({ties / len(rewards):.1%})")
        print(f"{cfg.target_path}: written; next: python preprocess.py --dataset {cfg.dataset} --split {cfg.split}")
    process.barrier()
    if process.is_main:
        journal.delete(cfg.target_path)
    process.finish()
    return 0


if __name__ == "__main__":
    run_script(main)
