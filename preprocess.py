"""Stage 3: prompts, responses and gold rewards to chosen/rejected pairs.

    reads   rm_prompts.json, rm_sft.json (sample.py) and rm_rewards.json (label.py) of datasets/<dataset>/rm/
    writes  datasets/<dataset>/rm/rm_implicit.jsonl   for train.py: one {"chosen", "rejected", "index",
            "chosen_reward", "rejected_reward"} a line

    python preprocess.py --dataset alpacafarm
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest

from tqdm import tqdm

from rmood import records
from rmood.config import opt, parse, run_script
from rmood.records import BadInput


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once", group="data")
    split: str = opt("train", "which default paths", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    rewards_path: str = opt("{rewards}", "gold rewards, from label.py")
    target_path: str = opt("{pairs}", "pairs to write")
    min_margin: float = opt(0.0, "leave out pairs whose gold rewards differ by less", group="pairs", at_least=0)
    drop_identical: bool = opt(False, "leave out pairs of equal texts even where gold's rewards differ")


def main() -> int:
    cfg = parse(Config, __doc__)
    records.check_writable(cfg.target_path)
    known = records.check_lineage(cfg.rewards_path, prompts=cfg.prompts_path, responses=cfg.responses_path)
    records.check_lineage(cfg.responses_path, prompts=cfg.prompts_path)
    counts = Counter()  # "kept", and why the others are not
    records.write_jsonl(cfg.target_path, make_rows(cfg, counts))
    total, kept = counts.total(), counts.pop("kept")
    inputs = {"prompts": cfg.prompts_path, "responses": cfg.responses_path, "rewards": cfg.rewards_path}
    records.write_run_file(cfg.target_path, cfg, inputs, pairs=kept, left_out=dict(counts))
    if not known:
        print(f"{cfg.rewards_path}: no run file beside it, so only its length was checked against the other files", file=sys.stderr)
    print(f"kept {kept:,} of {total:,} pairs; dropped {total - kept:,}" + (f": {reasons(counts)}" if counts else ""))
    print(f"{cfg.target_path}: written; next: torchrun train.py --dataset {cfg.dataset}")
    return 0


def make_rows(cfg: Config, counts: Counter) -> Iterator[dict]:
    """The rows of the pairs file, one after the other: none of the files is ever whole in memory, but for rewards in record form."""
    recorded = records.read_records(cfg.rewards_path)
    files = records.iter_prompts(cfg.prompts_path), records.iter_responses(cfg.responses_path), records.iter_rewards(cfg.rewards_path)
    for index, (prompt, responses, rewards) in enumerate(tqdm(zip_longest(*files), desc="pairing", unit="prompt", delay=2)):
        if None in (prompt, responses, rewards):
            check_lengths(cfg)
        if len(responses) < 2:
            raise BadInput(f"{cfg.responses_path}: one response a prompt makes no pair: rerun sample.py with --num-responses 2")
        if len(rewards) != len(responses):
            raise BadInput(f"{cfg.rewards_path}: {len(rewards)} rewards for {len(responses)} responses a row: rerun label.py, or pass the matching file")
        if recorded and (recorded[0][index], recorded[1][index]) != (prompt, responses):
            raise BadInput(f"{cfg.rewards_path}: row {index} holds another text than {cfg.responses_path}: pass the responses that were labelled")
        for i, j in combinations(range(len(responses)), 2):
            if row := make_pair(cfg, prompt, responses, rewards, i, j, counts):
                counts["kept"] += 1
                yield row | {"index": index}
    if not counts["kept"]:
        raise BadInput(f"{cfg.rewards_path}: no pair is left of {counts.total():,} ({reasons(+counts)}): check the rewards, or lower --min-margin")


def check_lengths(cfg: Config) -> None:
    """Raise BadInput where one file has fewer rows than another."""
    prompts, responses, rewards = records.read_prompts(cfg.prompts_path), records.read_responses(cfg.responses_path), records.read_rewards(cfg.rewards_path)
    records.check_rows(cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py")
    records.check_rows(cfg.rewards_path, rewards, "responses", responses, cfg.responses_path, "rerun label.py")


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
