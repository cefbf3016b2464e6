"""Groups of conversations to packed passes of a token budget; the order of an epoch.

A group is one prompt with K responses (a pair: K = 2, chosen first). Groups lie end to end in one row of unique
tokens, without padding: [prompt][response 1][response 2][prompt][response 1]... The prompt, or rather the common
*token* prefix of the rendered conversations, is computed once. Positions restart after it for each response.

    T unique tokens of a pass, N = sum of K conversations, L tokens of the longest conversation in a block
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from . import BadInput
from .tokenization import common_prefix


@dataclass(frozen=True, slots=True)
class Group:
    """Token ids of K conversations that share their first `prefix` tokens."""

    rows: list[Sequence[int]]
    prefix: int = field(init=False)
    tokens: int = field(init=False)  # unique tokens: what the group costs

    def __post_init__(self):
        object.__setattr__(self, "prefix", common_prefix(self.rows) if len(self.rows) > 1 else 0)
        object.__setattr__(self, "tokens", self.prefix + sum(len(row) - self.prefix for row in self.rows))


@dataclass(frozen=True)
class Batch:
    """One forward pass. Rows of `blocks` index the T tokens; -1 is nowhere (right padding, never read)."""

    input_ids: torch.Tensor  # (1, T), or (N, L) in the padded layout
    position_ids: torch.Tensor  # the same shape
    last: torch.Tensor  # (N,) where the scored token of each conversation lies in the flattened tokens
    blocks: list[torch.Tensor] | None = None  # (n, L) each: attention's rows, of similar length; None: input_ids are rows
    pick: torch.Tensor | None = None  # (T,) where each token's output lies in the flattened blocks

    def to(self, device: torch.device) -> "Batch":
        def move(x):
            return [move(y) for y in x] if isinstance(x, list) else x if x is None else x.to(device, non_blocking=True)

        return Batch(*(move(getattr(self, name)) for name in self.__dataclass_fields__))


def pack(groups: list[Group]) -> Batch:
    """The packed layout: each group's prefix once, then its responses' own tokens."""
    ids, positions, paths, end = [], [], [], 0
    for group in groups:
        start, p = end, group.prefix
        ids.append(group.rows[0][:p])
        positions.append(np.arange(p))
        end += p
        for row in group.rows:
            ids.append(row[p:])
            positions.append(np.arange(p, len(row)))
            paths.append(np.concatenate([np.arange(start, start + p), np.arange(end, end + len(row) - p)]))
            end += len(row) - p
    blocks, pick, offset = [], np.empty(end, dtype=np.int64), 0
    for block in _blocks_of_similar_length(paths):
        length = len(paths[block[0]])
        index = np.zeros((len(block), length), dtype=np.int64)
        for i, row in enumerate(block):
            index[i, : len(paths[row])] = paths[row]
            pick[paths[row]] = offset + i * length + np.arange(len(paths[row]))  # of a shared prompt, one row's output
        blocks.append(torch.from_numpy(index))
        offset += index.size
    last = [path[-1] for path in paths]
    input_ids, position_ids = (torch.from_numpy(np.concatenate(parts).astype(np.int64))[None] for parts in (ids, positions))  # (1, T)
    return Batch(input_ids, position_ids, torch.tensor(last), blocks, torch.from_numpy(pick))


def _blocks_of_similar_length(paths: list[np.ndarray]) -> list[list[int]]:
    """Rows by length, longest first, a new block where a row is under two thirds of the block's longest."""
    blocks: list[list[int]] = []
    for row in sorted(range(len(paths)), key=lambda row: -len(paths[row])):
        if not blocks or len(paths[row]) < len(paths[blocks[-1][0]]) * 2 / 3:
            blocks.append([])
        blocks[-1].append(row)
    return blocks


def pad(groups: list[Group]) -> Batch:
    """The padded layout, to read and to compare with: one row a conversation, zeros on the right.

    No mask is needed: attention is causal, so no real token ever sees the zeros after it.
    """
    rows = [row for group in groups for row in group.rows]
    length = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
    last = torch.tensor([i * length + len(row) - 1 for i, row in enumerate(rows)])
    return Batch(input_ids, torch.arange(length).expand(len(rows), length), last)


LAYOUTS = {"packed": pack, "padded": pad}


@functools.lru_cache(maxsize=2)
def epoch_order(pairs: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The steps of an epoch: every pair once, shuffled by (seed, epoch) alone; the last step may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    return [order[start : start + batch_size] for start in range(0, pairs, batch_size)]


def plan_step(pairs: np.ndarray, tokens: list[int], tokens_per_pass: int, world_size: int) -> list[list[list[int]]]:
    """[rank][pass] -> pairs. Under FSDP every rank must run the same number of passes, of about the same size.

    Longest processing time first (Graham 1969): the next longest pair goes to the emptiest pass. A pass may stay
    empty where there are fewer pairs than passes.
    """
    longest_first = sorted(pairs.tolist(), key=lambda i: (-tokens[i], i))
    passes_per_rank = max(1, -(-sum(tokens[i] for i in longest_first) // (tokens_per_pass * world_size)))
    while True:
        passes: list[list[int]] = [[] for _ in range(passes_per_rank * world_size)]
        load = np.zeros(len(passes), dtype=np.int64)
        for i in longest_first:
            emptiest = int(load.argmin())
            passes[emptiest].append(i)
            load[emptiest] += tokens[i]
        if load.max() <= tokens_per_pass:
            return [passes[rank::world_size] for rank in range(world_size)]
        passes_per_rank += 1


def plan_scoring(tokens: list[int], tokens_per_pass: int, groups_per_pass: int | None = None) -> list[list[int]]:
    """Passes for scoring, longest groups first, from the lengths alone: the same input always gives the same passes.

    In bf16 the company a conversation is scored in moves its reward by up to 0.15, enough to flip a near-tie.
    """
    passes: list[list[int]] = []
    load = 0
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        if not passes or load + tokens[i] > tokens_per_pass or len(passes[-1]) == groups_per_pass:
            passes.append([])
            load = 0
        passes[-1].append(i)
        load += tokens[i]
    return passes


def check_budget(groups: list[Group], tokens_per_pass: int, what: str) -> None:
    """Raise BadInput where one group alone exceeds the budget of a pass."""
    longest = max(range(len(groups)), key=lambda i: groups[i].tokens)
    if groups[longest].tokens > tokens_per_pass:
        raise BadInput(f"{what} {longest} has {groups[longest].tokens:,} tokens, a pass only {tokens_per_pass:,}: raise --tokens-per-pass or lower --max-length")
