"""Groups of conversations to packed passes of a token budget; the order of an epoch.

A group is one prompt with K responses (a pair: K = 2, chosen first). Groups lie end to end in one
sequence of unique tokens, without padding: [prompt][response 1][response 2][prompt][response 1]...
The prompt, or rather the common *token* prefix of the rendered conversations, is computed once.
Positions restart after it for each response.

    row   the token ids of one conversation
    T unique tokens of a pass, R tokens of all its N conversations, L tokens of the longest
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .distributed import to_device
from .errors import UserError
from .tokenization import common_prefix, scored_position


@dataclass(slots=True)
class Group:
    """Token ids of K conversations that share their first `prefix` tokens."""

    rows: list[Sequence[int]]
    prefix: int = field(init=False)
    tokens: int = field(init=False)  # unique tokens: what the group costs

    def __post_init__(self):
        self.prefix = common_prefix(self.rows) if len(self.rows) > 1 else 0
        self.tokens = self.prefix + sum(len(row) - self.prefix for row in self.rows)


@dataclass(frozen=True)
class Batch:
    """What RewardModel.forward takes: one forward pass."""

    input_ids: torch.Tensor  # (1, T) packed, (N, L) padded
    position_ids: torch.Tensor  # the same shape
    last: torch.Tensor  # (N,) index of each conversation's scored token in the flattened input_ids
    # Packed only, for attention, where each conversation is a sequence (see attention.py)
    keys: torch.Tensor | None = None  # (R,) the tokens of all conversations, as indices into the T
    cu_q: torch.Tensor | None = None  # (N + 1,) int32, where each conversation's queries begin
    cu_k: torch.Tensor | None = None  # (N + 1,) int32, where its keys begin
    longest: int | None = None  # at least the tokens of the longest conversation

    def to(self, device: torch.device) -> "Batch":
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                value = to_device(value, device)
            moved[name] = value
        return Batch(**moved)


def pack(groups: list[Group]) -> Batch:
    """The packed layout: each group's prefix once, then its responses' own tokens."""
    ids: list[Sequence[int]] = []
    positions: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    last: list[int] = []
    cu_q = [0]
    cu_k = [0]
    end = 0  # unique tokens so far
    for group in groups:
        shared = np.arange(end, end + group.prefix)
        ids.append(group.rows[0][: group.prefix])
        positions.append(np.arange(group.prefix))
        end += group.prefix
        for row in group.rows:
            own = np.arange(end, end + len(row) - group.prefix)
            ids.append(row[group.prefix :])
            positions.append(np.arange(group.prefix, len(row)))
            keys += [shared, own]
            end += len(own)
            last.append(end - len(row) + scored_position(row))
            cu_q.append(end)  # so the queries of the prefix belong to the first response
            cu_k.append(cu_k[-1] + len(row))
    longest = max(len(row) for group in groups for row in group.rows)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],  # (1, T)
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64))[None],
        last=torch.tensor(last),
        keys=torch.from_numpy(np.concatenate(keys)),
        cu_q=torch.tensor(cu_q, dtype=torch.int32),
        cu_k=torch.tensor(cu_k, dtype=torch.int32),
        longest=-(-longest // 128) * 128,  # rounded up, as kernels do: fewer different numbers
    )


def pad(groups: list[Group]) -> Batch:
    """The padded layout, to read and to compare with: one row a conversation, zeros on the right.

    No mask is needed: attention is causal, so no real token ever sees the zeros after it.
    """
    rows = [row for group in groups for row in group.rows]
    length = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
    last = torch.tensor([i * length + scored_position(row) for i, row in enumerate(rows)])
    return Batch(input_ids, torch.arange(length).expand(len(rows), length), last)


LAYOUTS = {"packed": pack, "padded": pad}


@functools.lru_cache(maxsize=2)
def epoch_order(pairs: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The steps of an epoch: every pair once, shuffled by (seed, epoch) alone.

    The last step may be smaller.
    """
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    return [order[start : start + batch_size] for start in range(0, pairs, batch_size)]


def plan_step(
    pairs: np.ndarray, tokens: list[int], tokens_per_pass: int, world_size: int
) -> list[list[list[int]]]:
    """[rank][pass] -> pairs. Under FSDP every rank must run the same number of passes.

    Longest processing time first (Graham 1969): the next longest pair goes to the emptiest pass, so
    that all have about the same size. Where there are fewer pairs than passes, some stay empty.
    """
    longest_first = sorted(pairs.tolist(), key=lambda i: (-tokens[i], i))
    total = sum(tokens[i] for i in longest_first)
    passes_per_rank = max(1, -(-total // (tokens_per_pass * world_size)))
    while True:
        passes: list[list[int]] = [[] for _ in range(passes_per_rank * world_size)]
        load = np.zeros(len(passes), dtype=np.int64)  # tokens of each pass
        for i in longest_first:
            emptiest = int(load.argmin())
            passes[emptiest].append(i)
            load[emptiest] += tokens[i]
        if load.max() <= tokens_per_pass:
            return [passes[rank::world_size] for rank in range(world_size)]
        passes_per_rank += 1


def largest_planned_pass(
    tokens: list[int], steps: list[np.ndarray], tokens_per_pass: int, world_size: int
) -> tuple[int, bool]:
    """(tokens, one_pass): no pass of these steps, as plan_step makes them, has more tokens; and
    whether every step is one pass of each process.

    Longest processing time first leaves no pass with more than the mean of all passes plus the
    longest pair (Graham 1969). This bound is what train.py tries before the first step, rather than
    a pass of exactly --tokens-per-pass tokens: no pass of the run exceeds it, so memory that holds
    it holds the run, and a run whose largest step is 3,000 tokens need not fit 16,384. It is at
    most tokens_per_pass. Passes that score held-out pairs may be larger, but keep nothing for a
    backward pass.
    """
    counts = np.array(tokens)
    largest = 0
    one_pass = True
    for pairs in steps:
        total = int(counts[pairs].sum())
        passes = world_size * max(1, -(-total // (tokens_per_pass * world_size)))
        most = total if passes == 1 else -(-total // passes) + int(counts[pairs].max())
        one_pass = one_pass and passes == world_size and most <= tokens_per_pass
        largest = max(largest, min(most, tokens_per_pass))
    return largest, one_pass


def plan_scoring(
    tokens: list[int], tokens_per_pass: int, groups_per_pass: int | None = None
) -> list[list[int]]:
    """Passes for scoring, longest groups first, from the lengths alone.

    So the same input always gives the same passes: in bf16 the other rows of a batch move a reward
    by up to 0.15, enough to flip a near-tie.
    """
    passes: list[list[int]] = []
    load = 0  # tokens of the newest pass
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        too_long = load + tokens[i] > tokens_per_pass
        if not passes or too_long or len(passes[-1]) == groups_per_pass:
            passes.append([])
            load = 0
        passes[-1].append(i)
        load += tokens[i]
    return passes


def check_budget(
    groups: list[Group],
    tokens_per_pass: int,
    what: str,
    numbers: Sequence[int | str] | None = None,
) -> None:
    """Raise UserError where one group alone exceeds the budget of a pass.

    what: what a group is: "pair". numbers: which one group i is in the file, where that is not i.
    """
    longest = max(range(len(groups)), key=lambda i: groups[i].tokens)
    tokens = groups[longest].tokens
    if tokens > tokens_per_pass:
        number = longest if numbers is None else numbers[longest]
        raise UserError(
            f"{what} {number} has {tokens:,} tokens, more than --tokens-per-pass "
            f"{tokens_per_pass}: raise that, or lower --max-length"
        )
