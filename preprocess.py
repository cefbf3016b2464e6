"""Stage 3: prompts, responses and gold rewards to chosen/rejected pairs.

    reads   rm_prompts.json, rm_sft.json (sample.py) and rm_rewards.json (label.py) of datasets/<dataset>/rm/
    writes  datasets/<dataset>/rm/rm_implicit.jsonl   for train.py: one {"chosen", "rejected", "index",
            "chosen_reward", "rejected_reward"} a line

    python preprocess.py --dataset alpacafarm
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from tqdm import tqdm

from rmood import records
from rmood.config import opt, parse, run_script
from rmood.records import BadInput


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once")
    split: str = opt("train", "which default paths", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    rewards_path: str = opt("{rewards}", "gold rewards, from label.py")
    target_path: str = opt("{pairs}", "pairs to write")
    min_margin: float = opt(0.0, "leave out pairs whose gold rewards differ by less", at_least=0)
    drop_identical: bool = opt(False, "leave out pairs of equal texts even where gold's rewards differ")


def main() -> int:
    cfg = parse(Config, __doc__)
    records.check_writable(cfg.target_path)
    if not records.check_lineage(cfg.rewards_path, prompts=cfg.prompts_path, responses=cfg.responses_path):
        print(f"{cfg.rewards_path}: no run file beside it, so only its length can be checked against the other files")
    records.check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    prompts = records.read_prompts(cfg.prompts_path)
    responses = records.read_responses(cfg.responses_path)
    rewards = records.read_rewards(cfg.rewards_path)
    check_lengths(cfg, prompts, responses, rewards)
    recorded = records.read_records(cfg.rewards_path)
    if recorded and (row := next((i for i in range(len(prompts)) if (recorded[0][i], recorded[1][i]) != (prompts[i], responses[i])), None)) is not None:
        raise BadInput(f"{cfg.rewards_path}: row {row} holds another text than {cfg.responses_path}: pass the responses that were labelled")

    left_out, rows = Counter(), []
    for index in tqdm(range(len(prompts)), desc="pairing", unit="prompt", delay=2):
        for i, j in combinations(range(len(responses[index])), 2):
            row = make_pair(cfg, prompts[index], responses[index], rewards[index], i, j, left_out)
            if row:
                rows.append(row | {"index": index})
    total = len(rows) + sum(left_out.values())
    if not rows:
        raise BadInput(f"{cfg.rewards_path}: no pair is left of {total:,} ({reasons(left_out)}): check the rewards, or lower --min-margin")
    records.write_jsonl(cfg.target_path, rows)
    inputs = {"prompts": cfg.prompts_path, "responses": cfg.responses_path, "rewards": cfg.rewards_path}
    records.write_run_file(cfg.target_path, cfg, inputs, pairs=len(rows), left_out=dict(left_out))
    print(f"kept {len(rows):,} of {total:,} pairs; dropped {total - len(rows):,}" + (f": {reasons(left_out)}" if left_out else ""))
    print(f"{cfg.target_path}: written; next: torchrun train.py --dataset {cfg.dataset}")
    return 0


def check_lengths(cfg: Config, prompts: list, responses: list, rewards: list) -> None:
    if len(responses) != len(prompts):
        raise BadInput(f"{cfg.responses_path}: {len(responses):,} rows for {len(prompts):,} prompts ({cfg.prompts_path}): rerun sample.py, or pass the matching file")
    if len(rewards) != len(responses):
        raise BadInput(f"{cfg.rewards_path}: {len(rewards):,} rows for {len(responses):,} responses ({cfg.responses_path}): rerun label.py, or pass the matching file")
    if len(responses[0]) < 2:
        raise BadInput(f"{cfg.responses_path}: one response a prompt makes no pair: rerun sample.py with --num-responses 2")
    if len(rewards[0]) != len(responses[0]):
        raise BadInput(f"{cfg.rewards_path}: {len(rewards[0])} rewards for {len(responses[0])} responses a row: rerun label.py, or pass the matching file")


def make_pair(cfg: Config, prompt: list[dict], responses: list[str], rewards: list[float], i: int, j: int, left_out: Counter) -> dict | None:
    """The pair of responses i and j, the one gold prefers as chosen; None, and a reason counted, where there is none."""
    if rewards[i] == rewards[j]:
        left_out["equal gold reward"] += 1
    elif cfg.drop_identical and responses[i] == responses[j]:
        left_out["identical responses"] += 1
    elif abs(rewards[i] - rewards[j]) < cfg.min_margin:
        left_out[f"gold margin under {cfg.min_margin:g}"] += 1
    else:
        winner, loser = (i, j) if rewards[i] > rewards[j] else (j, i)
        chosen, rejected = ([*prompt, {"role": "assistant", "content": responses[k]}] for k in (winner, loser))
        return {"chosen": chosen, "rejected": rejected, "chosen_reward": rewards[winner], "rejected_reward": rewards[loser]}


def reasons(left_out: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


if __name__ == "__main__":
    run_script(main)
