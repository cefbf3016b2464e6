"""Rewards for many conversations: label.py, evaluate.py and the evaluation inside train.py share this."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .batching import Group, check_budget, pack, plan_scoring
from .distributed import Process, start
from .model import RewardModel, check_token_ids, load_reward_model
from .tokenization import encode_conversations, load_tokenizer

DTYPES = {"auto": None, "bf16": torch.bfloat16, "float32": torch.float32}


@torch.no_grad()
def score_groups(
    model: RewardModel,
    groups: list[Group],
    process: Process,
    tokens_per_pass: int,
    groups_per_pass: int | None = None,
    desc: str = "scoring",
    done: dict[int, list[float]] | None = None,
    keep: Callable[[dict[int, list[float]]], None] = lambda finished: None,
    passes_per_keep: int = 8,
    share: slice = slice(None),
) -> list[list[float] | None]:
    """Rewards of each group's conversations, in order, on every rank.

    Passes are planned from the lengths alone and dealt out in turn; every rank runs as many (a sharded model needs
    that), if need be one more for nothing. done: rewards known from an earlier run; passes they cover are skipped.
    keep: called on each rank with what it has just finished. share: of the planned passes; None for groups outside it.
    """
    check_budget(groups, tokens_per_pass, "group")
    done = done or {}
    planned = plan_scoring([group.tokens for group in groups], tokens_per_pass, groups_per_pass)[share]
    passes = [p for p in planned if not all(i in done for i in p)]
    found: dict[int, list[float]] = {}
    training, fresh = model.training, {}
    model.eval()
    bar = tqdm(total=sum(map(len, passes)), desc=desc, unit="prompt", disable=not process.is_main, delay=1, leave=False)
    for first in range(0, len(passes), process.world_size):
        turn = passes[first : first + process.world_size]
        mine = turn[min(process.rank, len(turn) - 1)]
        rewards = iter(model(pack([groups[i] for i in mine]).to(process.device))[0].tolist())
        if process.rank < len(turn):
            fresh |= {i: [next(rewards) for _ in groups[i].rows] for i in mine}
        if (first // process.world_size + 1) % passes_per_keep == 0:
            keep(fresh)
            found.update(fresh)
            fresh = {}
        bar.update(sum(map(len, turn)))
    keep(fresh)
    found |= fresh
    bar.close()
    model.train(training)
    width = max(len(group.rows) for group in groups)
    table = torch.zeros(len(groups), width, dtype=torch.float64, device=process.device)  # each group from one rank: a sum gathers
    for i, rewards in found.items():
        table[i, : len(rewards)] = torch.tensor(rewards, dtype=torch.float64)
    table = process.sum(table).tolist()
    mine = {i for p in planned for i in p}
    return [(done.get(i) or table[i][: len(group.rows)]) if i in mine else None for i, group in enumerate(groups)]


@dataclass(frozen=True)
class Scorer:
    """A reward model with its tokenizer, ready to score conversations."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    process: Process
    name: str
    max_length: int
    tokens_per_pass: int

    def groups(self, conversations: list[list[list[dict]]]) -> tuple[list[Group], int]:
        """For each prompt its K conversations -> token groups, and how many conversations had to be cut."""
        flat = [conversation for row in conversations for conversation in row]
        rows, cut = encode_conversations(flat, self.tokenizer, self.max_length)
        check_token_ids(self.model, rows, self.name)
        rest = iter(rows)
        return [Group([next(rest) for _ in row]) for row in conversations], len(cut)

    def score(self, conversations: list[list[list[dict]]], desc: str = "scoring", **options) -> list[list[float]]:
        """For each prompt its K conversations -> K float32 rewards (log-odds, up to the model's own constant)."""
        groups, cut = self.groups(conversations)
        if cut:
            self.process.print(f"{cut} of {sum(len(group.rows) for group in groups)} conversations were cut to {self.max_length} tokens (their closing tokens kept)")
        return score_groups(self.model, groups, self.process, self.tokens_per_pass, desc=desc, **options)


def load_scorer(
    model_name: str, process: Process | None = None, dtype: str = "auto", max_length: int = 2048, tokens_per_pass: int = 16384, chat_template: str = ""
) -> Scorer:
    """A scorer of a sequence-classification reward model. dtype of the backbone: "bf16", "float32", or "auto": bf16 on
    CUDA, float32 on a CPU. The head is float32 always."""
    process = process or start()
    tokenizer = load_tokenizer(model_name, chat_template)
    precision = DTYPES[dtype] or (torch.bfloat16 if process.device.type == "cuda" else torch.float32)
    model = load_reward_model(model_name, precision).to(process.device).eval()
    return Scorer(model, tokenizer, process, model_name, max_length, tokens_per_pass)
