"""Stage 3: prompts, responses and gold rewards to chosen/rejected pairs.

reads   rm_prompts.json, rm_sft.json (sample.py) and rm_rewards.json (label.py)
        of datasets/<dataset>/rm/
writes  datasets/<dataset>/rm/rm_implicit.jsonl   for train.py: one {"chosen", "rejected", "index",
        "chosen_reward", "rejected_reward"} per line; with more than two responses per prompt one
        group per line: {"messages", "response_1", "reward_1", ..., "pairs", "index"}

python preprocess.py --dataset alpacafarm
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, islice, zip_longest

from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.provenance import (
    allow_mismatch,
    check_lineage,
    why_to_keep,
    write_run_file,
)
from rmood.files.rows import check_writable, write_jsonl
from rmood.files.tables import (
    Conversation,
    check_rows,
    describe_columns,
    iter_prompts,
    iter_responses,
    iter_rewards,
    read_prompts,
    read_records,
    read_responses,
    read_rewards,
)
from rmood.progress import progress_bar

SINGLE = "prompts with a single response"  # counted like the reasons to leave a pair out


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    prompts_path: str = opt("{prompts}", "prompts")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    rewards_path: str = opt("{rewards}", "gold rewards, from label.py")
    target_path: str = opt("{pairs}", "pairs to write")
    overwrite: bool = opt(False, "replace a target that was edited, or that no run file is beside")
    allow_mismatch: bool = opt(False, "use files that by their run files do not belong together")
    min_margin: float = opt(0.0, "leave out pairs whose gold rewards differ by less", group="pairs", at_least=0)
    drop_identical: bool = opt(False, "leave out pairs of equal texts even where gold's rewards differ")
    form: str = opt("auto", "what a line holds: pairs: chosen and rejected; groups: all responses of a prompt, which train.py computes once and trains in one step; auto: groups for more than two responses", choices=["auto", "pairs", "groups"])
    # fmt: on


def main() -> int:
    cfg = parse(Config, __doc__)
    allow_mismatch(cfg.allow_mismatch)
    check_writable(cfg.target_path)
    has_lineage = check_lineage(
        cfg.rewards_path, prompts=cfg.prompts_path, responses=cfg.responses_path
    )
    check_lineage(cfg.responses_path, prompts=cfg.prompts_path)

    counts = Counter()  # "kept", and a count for each reason to leave a pair out
    keep = "" if cfg.overwrite else why_to_keep(cfg.target_path)
    rows = make_rows(cfg, counts)
    first = list(islice(rows, 1))  # bad inputs are told before a file or folder is made
    write_jsonl(cfg.target_path, chain(first, rows), keep)

    single = counts.pop(SINGLE, 0)
    total = counts.total()
    kept = counts.pop("kept")
    left_out = counts
    inputs = {
        "prompts": cfg.prompts_path,
        "responses": cfg.responses_path,
        "rewards": cfg.rewards_path,
    }
    facts = {"pairs": kept, "left_out": dict(left_out), "single_responses": single}
    write_run_file(cfg.target_path, cfg, inputs, **facts)
    for path in inputs.values():
        remarks = describe_columns(path)
        if remarks:
            print(f"{path}: {remarks}", file=sys.stderr)
    if not has_lineage:
        print(
            f"{cfg.rewards_path}: no run file beside it, "
            "so only its length was checked against the other files",
            file=sys.stderr,
        )
    summary = f"kept {kept:,} of {total:,} pairs; dropped {total - kept:,}"
    print(f"{summary}: {in_words(left_out)}" if left_out else summary)
    if single:
        print(f"{single:,} {SINGLE} make no pair")
    print(f"{cfg.target_path}: written; next: torchrun train.py --dataset {cfg.dataset}")
    return 0


def make_rows(cfg: Config, counts: Counter) -> Iterator[dict]:
    """The rows of the pairs file, one after the other, counting what is kept and left out.

    None of the files is ever whole in memory, except rewards in record form.
    """
    records = read_records(cfg.rewards_path, ragged=True)  # None: rewards alone
    rows = zip_longest(
        iter_prompts(cfg.prompts_path),
        iter_responses(cfg.responses_path, ragged=True),
        iter_rewards(cfg.rewards_path, ragged=True),
    )
    rows = progress_bar(rows, desc="pairing", unit="prompt")
    for index, (prompt, responses, rewards) in enumerate(rows):
        if prompt is None or responses is None or rewards is None:  # a file ended before the others
            check_lengths(cfg)
        if len(rewards) != len(responses):
            raise UserError(
                f"{cfg.rewards_path}: row {index} has {len(rewards)} rewards for "
                f"{len(responses)} responses: rerun label.py, or pass the matching file"
            )
        if records and (records[0][index] != prompt or records[1][index] != responses):
            raise UserError(
                f"{cfg.rewards_path}: row {index} holds another text than {cfg.responses_path}: "
                "pass the responses that were labelled"
            )
        counts[SINGLE] += len(responses) == 1
        pairs = choose_pairs(cfg, responses, rewards, counts)
        if cfg.form == "groups" or (cfg.form == "auto" and len(responses) > 2):
            if pairs:
                yield group_row(prompt, responses, rewards, pairs) | {"index": index}
            continue
        for winner, loser in pairs:
            yield {
                "chosen": conversation(prompt, responses[winner]),
                "rejected": conversation(prompt, responses[loser]),
                "chosen_reward": rewards[winner],
                "rejected_reward": rewards[loser],
                "index": index,
            }
    total = counts.total() - counts[SINGLE]
    if not counts["kept"] and counts[SINGLE] and not total:
        raise UserError(
            f"{cfg.responses_path}: one response per prompt makes no pair: "
            "rerun sample.py with --num-responses 2"
        )
    if not counts["kept"]:
        raise UserError(
            f"{cfg.rewards_path}: no pair is left of {total:,} ({in_words(counts)}): "
            "check the rewards, or lower --min-margin"
        )


def choose_pairs(
    cfg: Config, responses: list[str], rewards: list[float], counts: Counter
) -> list[tuple[int, int]]:
    """(chosen, rejected) of each two responses that make a training pair; others are counted."""
    pairs = []
    for i, j in combinations(range(len(responses)), 2):
        winner, loser = (i, j) if rewards[i] > rewards[j] else (j, i)
        margin = rewards[winner] - rewards[loser]
        reason = reason_to_leave_out(cfg, margin, responses[i] == responses[j])
        counts[reason or "kept"] += 1
        if not reason:
            pairs.append((winner, loser))
    return pairs


def group_row(prompt: Conversation, responses: list[str], rewards: list[float], pairs) -> dict:
    """All responses of a prompt in one row; "pairs" counts them from 1, as response_1 does."""
    row = {"messages": prompt}
    for number, (response, reward) in enumerate(zip(responses, rewards), 1):
        row |= {f"response_{number}": response, f"reward_{number}": reward}
    return row | {"pairs": [[winner + 1, loser + 1] for winner, loser in pairs]}


def check_lengths(cfg: Config) -> None:
    """Raise UserError where one file has fewer rows than another."""
    prompts = read_prompts(cfg.prompts_path)
    responses = read_responses(cfg.responses_path, ragged=True)
    rewards = read_rewards(cfg.rewards_path, ragged=True)
    check_rows(
        cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py"
    )
    check_rows(
        cfg.rewards_path, rewards, "responses", responses, cfg.responses_path, "rerun label.py"
    )


def reason_to_leave_out(cfg: Config, margin: float, identical: bool) -> str | None:
    """Why a pair is no training pair; None where it is one.

    margin: gold's reward of the chosen response minus that of the rejected one, 0 or more.
    identical: the two responses are the same text.
    """
    if margin == 0:
        return "equal gold reward"
    if identical and cfg.drop_identical:
        return "identical responses"
    if margin < cfg.min_margin:
        return f"gold margin under {cfg.min_margin:g}"
    return None


def conversation(prompt: Conversation, response: str) -> Conversation:
    return [*prompt, {"role": "assistant", "content": response}]


def in_words(left_out: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)


if __name__ == "__main__":
    run_script(main)
