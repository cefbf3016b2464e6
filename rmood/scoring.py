"""Rewards for many conversations: for label.py, evaluate.py and the evaluation inside train.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .batching import Group, check_budget, pack, plan_scoring
from .distributed import Process, start
from .files.tables import Conversation
from .loading import check_token_ids, load_reward_model
from .model import RewardModel
from .progress import progress_bar
from .tokenization import encode_conversations, load_tokenizer

DTYPES = {"auto": None, "bf16": torch.bfloat16, "float32": torch.float32}
PASSES_PER_KEEP = 8  # of each rank, between two calls of `keep`


def score_groups(
    model: RewardModel,
    groups: list[Group],
    process: Process,
    tokens_per_pass: int,
    groups_per_pass: int | None = None,
    desc: str = "scoring",
    done: dict[int, list[float]] | None = None,
    keep: Callable[[dict[int, list[float]]], None] = lambda finished: None,
    share: slice = slice(None),
) -> list[list[float] | None]:
    """Rewards of each group's conversations, in order, on every rank.

    done: group -> rewards known from an earlier run; passes that they cover are skipped.
    keep: called on each rank with what it has just finished, as in `done`.
    share: which of the planned passes to run; the result is None for groups outside it.
    """
    check_budget(groups, tokens_per_pass, "prompt")
    done = done or {}
    planned = plan_scoring([group.tokens for group in groups], tokens_per_pass, groups_per_pass)
    planned = planned[share]
    passes = [members for members in planned if not all(i in done for i in members)]
    own = _run_passes(model, groups, passes, process, desc, keep)
    scored = _gather(own, groups, process) | done

    in_share = {i for members in planned for i in members}
    return [scored[i] if i in in_share else None for i in range(len(groups))]


@torch.no_grad()
def _run_passes(
    model: RewardModel,
    groups: list[Group],
    passes: list[list[int]],
    process: Process,
    desc: str,
    keep: Callable[[dict[int, list[float]]], None],
) -> dict[int, list[float]]:
    """Group -> rewards, of the passes that this rank runs.

    They are dealt out in turn. A sharded model needs the same number of passes on every rank: where
    there are none left, a rank repeats the last one as a dummy pass.
    """
    finished: dict[int, list[float]] = {}
    not_kept: dict[int, list[float]] = {}
    training = model.training
    model.eval()
    bar = progress_bar(
        total=sum(len(members) for members in passes),
        desc=desc,
        unit="prompt",
        disable=not process.is_main,
    )
    rounds = range(0, len(passes), process.world_size)
    for count, first in enumerate(rounds, start=1):
        turn = passes[first : first + process.world_size]
        is_dummy = process.rank >= len(turn)
        members = turn[-1] if is_dummy else turn[process.rank]
        batch = pack([groups[i] for i in members]).to(process.device)
        rewards, _ = model(batch)
        if not is_dummy:
            sizes = [len(groups[i].rows) for i in members]
            for i, of_group in zip(members, rewards.cpu().split(sizes)):
                not_kept[i] = of_group.tolist()
        if count % PASSES_PER_KEEP == 0:
            keep(not_kept)
            finished |= not_kept
            not_kept = {}
        bar.update(sum(len(members) for members in turn))
    keep(not_kept)
    finished |= not_kept
    bar.close()
    model.train(training)
    return finished


def _gather(
    own: dict[int, list[float]], groups: list[Group], process: Process
) -> dict[int, list[float]]:
    """Group -> rewards, from all ranks: each group was scored by at most one, so a sum gathers."""
    width = max(len(group.rows) for group in groups)
    table = torch.zeros(len(groups), width, dtype=torch.float64, device=process.device)
    for i, rewards in own.items():
        table[i, : len(rewards)] = torch.tensor(rewards, dtype=torch.float64)
    rows = process.sum(table).tolist()
    return {i: rows[i][: len(group.rows)] for i, group in enumerate(groups)}


@dataclass(frozen=True)
class Scorer:
    """A reward model with its tokenizer, ready to score conversations."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    process: Process
    name: str
    max_length: int
    tokens_per_pass: int

    def groups(self, conversations: list[list[Conversation]]) -> tuple[list[Group], int]:
        """For each prompt its K conversations -> token groups, and how many were shortened."""
        flat = []
        names = []
        for prompt, responses in enumerate(conversations):
            for number, conversation in enumerate(responses, start=1):
                flat.append(conversation)
                names.append(f"prompt {prompt}, response {number}")
        rows, shortened = encode_conversations(
            flat, self.tokenizer, self.max_length, names, self.process
        )
        embeddings = self.model.backbone.get_input_embeddings().num_embeddings
        check_token_ids(embeddings, rows, self.name)
        rest = iter(rows)
        groups = [Group([next(rest) for _ in responses]) for responses in conversations]
        return groups, len(shortened)

    def score(
        self,
        conversations: list[list[Conversation]],
        desc: str = "scoring",
        facts: dict | None = None,
        **options,
    ) -> list[list[float]]:
        """For each prompt its K conversations -> K float32 rewards, in log-odds.

            prompt = [{"role": "user", "content": "Name a fruit."}]
            good = prompt + [{"role": "assistant", "content": "Apple."}]
            bad = prompt + [{"role": "assistant", "content": "No."}]
            [[reward_good, reward_bad]] = scorer.score([[good, bad]])

        Only differences between responses to one prompt mean something: every model adds a constant
        of its own. Conversations over max_length are shortened, and how many is printed.
        facts: is given conversations_cut, the share of them that were shortened.
        options: those of score_groups.
        """
        groups, shortened = self.groups(conversations)
        if facts is not None:
            facts["conversations_cut"] = shortened / sum(len(group.rows) for group in groups)
        if shortened:
            total = sum(len(group.rows) for group in groups)
            self.process.print(
                f"{shortened} of {total} conversations were cut to {self.max_length} tokens "
                "(their closing tokens kept)"
            )
        return score_groups(
            self.model, groups, self.process, self.tokens_per_pass, desc=desc, **options
        )


def scoring_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the backbone by its name; "auto": bf16 on CUDA, float32 on a CPU."""
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name] or default


def load_scorer(
    model_name: str,
    process: Process | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    tokens_per_pass: int = 16384,
    chat_template: str = "",
    template_kwargs: str = "",
) -> Scorer:
    """A scorer of a sequence-classification reward model: a folder, or a name on the hub.

    dtype: dtype of the backbone, "bf16", "float32", or "auto": bf16 on CUDA, float32 on a CPU. The
    head is always float32. max_length, tokens_per_pass: tokens of a conversation, and of a pass.
    chat_template, template_kwargs: see load_tokenizer.
    """
    process = process or start()
    with process.local_main_first():  # one process of each machine fetches the model
        tokenizer = load_tokenizer(model_name, chat_template, template_kwargs)
    model = load_reward_model(
        model_name, scoring_dtype(dtype, process.device), device=process.device, process=process
    ).eval()
    return Scorer(model, tokenizer, process, model_name, max_length, tokens_per_pass)
