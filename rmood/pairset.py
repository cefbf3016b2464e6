"""Pairs as training computes them: held out by prompt, tokenized, grouped; the values of a step.

P pairs of a set, B pairs of a pass or step, N conversations of a pass
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .batching import Group, check_budget
from .distributed import Process, to_device
from .errors import UserError
from .files.tables import Pair
from .metrics import pair_metrics
from .tokenization import encode_rendered, leave_out_long

SAMPLE_STREAM = 1 << 32  # of the random numbers of `draw`: no epoch has this number


@dataclass(frozen=True)
class PairSet:
    """P pairs, and the groups in which they are computed: a group is one prompt with K responses.

    A pair by itself is a group with K = 2. Of more responses each is computed once, whatever the
    number of its pairs, and all pairs of a prompt are in one step (Ouyang et al. 2022, section
    3.5).
    """

    pairs: list[Pair]
    groups: list[Group]
    pairs_of_group: list[list[int]]  # group -> its pairs
    sides: np.ndarray  # (P, 2) chosen and rejected, by their rows in the group
    gold: torch.Tensor | None  # (P,) gold's margins, where every pair has them
    device: torch.device

    def __len__(self) -> int:
        return len(self.pairs)

    @functools.cached_property
    def prompts(self) -> np.ndarray:
        """(P,) a number for the prompt of each pair: equal where the prompts are."""
        _, numbers = np.unique([pair.prompt_key for pair in self.pairs], return_inverse=True)
        return numbers

    def pairs_of(self, groups: Sequence[int]) -> list[int]:
        return [pair for group in groups for pair in self.pairs_of_group[group]]

    def rows_of(self, groups: Sequence[int]) -> torch.Tensor:
        """(B, 2) where the rewards of these groups' pairs are among the rewards of one pass."""
        rows = []
        first = 0
        for group in groups:
            rows.append(first + self.sides[self.pairs_of_group[group]])
            first += len(self.groups[group].rows)
        return torch.from_numpy(np.concatenate(rows))

    def gold_of(self, pairs: torch.Tensor) -> torch.Tensor | None:
        """(B,) gold's margins of these pairs; both on the device."""
        return None if self.gold is None else self.gold[pairs]

    def subset(self, groups: Sequence[int]) -> "PairSet":
        """The pairs of some groups, in the order of the groups."""
        numbers = self.pairs_of(groups)
        pairs_of_group = []
        first = 0
        for group in groups:
            size = len(self.pairs_of_group[group])
            pairs_of_group.append(list(range(first, first + size)))
            first += size
        return PairSet(
            [self.pairs[number] for number in numbers],
            [self.groups[group] for group in groups],
            pairs_of_group,
            self.sides[numbers],
            None if self.gold is None else self.gold[numbers],
            self.device,
        )


def no_pairs(device: torch.device) -> PairSet:
    return PairSet([], [], [], np.empty((0, 2), dtype=int), None, device)


# ---- from files ----------------------------------------------------------------------------------


def hold_out(
    pairs: list[Pair], share: float, seed: int, path: str
) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): all pairs of this share of the *prompts* are held out.

    path: of the pairs, for the error message where none are left to train on.
    """
    if not share:
        return pairs, []
    prompts = sorted({pair.prompt_key for pair in pairs})
    order = np.random.default_rng(seed).permutation(len(prompts))
    held_out = {prompts[i] for i in order[: round(len(prompts) * share)]}
    train_pairs = [pair for pair in pairs if pair.prompt_key not in held_out]
    if not train_pairs:
        raise UserError(f"{path}: no pairs are left to train on: lower --eval-share")
    # a pair whose file has a weight above 1 is trained on several times, but evaluated once
    return train_pairs, [p for p in pairs if p.prompt_key in held_out and not p.copy]


def tokenize(
    pairs: list[Pair],
    tokenizer,
    max_length: int,
    tokens_per_pass: int,
    process: Process,
    what: str,
) -> PairSet:
    """Pairs with a conversation over max_length are left out, and counted.

    tokens_per_pass: that no group may exceed. what: the pairs are called, in messages.
    """
    if not pairs:
        return no_pairs(process.device)
    conversations = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    names = [pair.where for pair in pairs for _ in range(2)]
    rows = encode_rendered(conversations, tokenizer, names, process)
    rows_of_pairs = [list(both) for both in zip(rows[::2], rows[1::2])]
    short = leave_out_long(rows_of_pairs, max_length)
    kept = [pairs[i] for i in short]
    groups, pairs_of_group, sides = group_pairs(kept, [rows_of_pairs[i] for i in short])
    if not kept:
        raise UserError(
            f"all {len(pairs):,} {what} are longer than {max_length} tokens: raise --max-length"
        )
    names = [kept[members[0]].where for members in pairs_of_group]
    check_budget(groups, tokens_per_pass, "the pair at", names)
    both = sum(len(row) for group in groups for row in group.rows)
    unique = sum(group.tokens for group in groups)
    process.print(
        f"kept {len(kept):,} of {len(pairs):,} {what}; "
        f"dropped {len(pairs) - len(kept):,}: over {max_length} tokens; "
        f"{both:,} tokens, {unique:,} with shared prompts computed once"
    )
    gold = gold_margins(kept, process)
    return PairSet(kept, groups, pairs_of_group, sides, gold, process.device)


def group_pairs(pairs: list[Pair], rows_of_pairs: list[list[Sequence[int]]]):
    """The groups in which pairs are computed, the pairs of each, and (P, 2) sides: see PairSet.

    rows_of_pairs: token ids, [pair][chosen, rejected]. Equal rows of a group are computed once.
    """
    rows_of_group, pairs_of_group, sides = [], [], []
    for number, (pair, rows) in enumerate(zip(pairs, rows_of_pairs)):
        previous = pairs[number - 1] if number else None
        if pair.group is None or previous is None or pair.group != previous.group:
            rows_of_group.append([])
            pairs_of_group.append([])
        known = rows_of_group[-1]
        known += [row for row in rows if pair.group is None or row not in known]
        pairs_of_group[-1].append(number)
        sides.append([0, 1] if pair.group is None else [known.index(row) for row in rows])
    groups = [Group(rows) for rows in rows_of_group]
    return groups, pairs_of_group, np.array(sides).reshape(-1, 2)


def gold_margins(pairs: list[Pair], process: Process) -> torch.Tensor | None:
    """(P,) gold's own margins, or None where a pair lacks them."""
    margins = []
    for pair in pairs:
        if pair.chosen_reward is None or pair.rejected_reward is None:
            return None
        margins.append(pair.chosen_reward - pair.rejected_reward)
    return torch.tensor(margins, device=process.device)


def draw(data: PairSet, most: int, seed: int) -> PairSet:
    """Whole groups of a set, drawn without replacement, with at most so many pairs in all.

    At least one group, where `most` is above 0; all of them, in their order, where they fit.
    """
    if most >= len(data):
        return data
    chosen = []
    count = 0
    # a stream of its own: default_rng(seed) draws the order of the first epoch too
    random = np.random.default_rng([seed, SAMPLE_STREAM])
    for group in random.permutation(len(data.groups)).tolist():
        size = len(data.pairs_of_group[group])
        if most and (not chosen or count + size <= most):
            chosen.append(group)
            count += size
    return data.subset(sorted(chosen))


# ---- within a step -------------------------------------------------------------------------------

# Under FSDP all processes must run as many passes: gathering a layer's weights is a collective, so
# one that ran fewer would make the others wait for ever. A process that has no group left runs this
# with weight 0. It holds no real pair: of one whose loss is not finite, 0 * loss would be NaN.
EMPTY_PASS = [Group([[0], [0]])]


class StepValues:
    """Rewards and losses of the step's B pairs, put together from its passes and processes."""

    def __init__(self, groups: np.ndarray, data: PairSet, center: float, traced: bool = False):
        device = data.device
        self.data = data
        self.center = center  # for --trace: what --centring used
        self.numbers = data.pairs_of(groups)
        self.row_of = {pair: row for row, pair in enumerate(self.numbers)}
        self.pairs = to_device(torch.tensor(self.numbers), device)  # (B,) their numbers in the data
        # What is minimised is the mean over groups of the mean over a group's pairs (Ouyang et al.
        # 2022, eq. 1): the mean over the step's B pairs where each is a group by itself.
        sizes = [len(data.pairs_of_group[group]) for group in groups]
        weights = [1 / (size * len(groups)) for size in sizes for _ in range(size)]
        self.weights = to_device(torch.tensor(weights), device)  # (B,), of sum 1
        self.table = torch.zeros(len(weights), 3, device=device)  # chosen, rejected, loss
        self.traced = traced
        self.pooled_norms = {}  # row -> (2,) norms of its pooled states, on this process

    @property
    def rewards(self) -> torch.Tensor:
        return self.table[:, :2]  # (B, 2)

    def rows_of(self, groups: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A pass's b pairs: (b,) their rows in this step, (b, 2) their rewards' in the pass."""
        step_rows = torch.tensor([self.row_of[pair] for pair in self.data.pairs_of(groups)])
        pass_rows = self.data.rows_of(groups)
        device = self.table.device
        return to_device(step_rows, device), to_device(pass_rows, device)

    def put(self, step_rows: torch.Tensor, rewards, losses, pooled) -> None:
        """What a pass gave its b pairs. Shapes (b,), (b, 2), (b,) and (b, 2, D)."""
        self.table[step_rows] = torch.cat([rewards, losses[:, None]], dim=1).detach()
        if self.traced:
            self.pooled_norms |= zip(step_rows.tolist(), pooled.detach().norm(dim=-1).tolist())

    def are_finite(self, norms: dict[str, torch.Tensor]) -> bool:
        """Rewards, losses and the gradient's norm; the same answer on every process."""
        return bool(torch.isfinite(norms["grad_norm"]) & torch.isfinite(self.table).all())

    def metrics(self) -> dict[str, float]:
        """`objective` is what was minimised; `loss` is plain Bradley-Terry, the mean over pairs."""
        objective = (self.table[:, 2].double() * self.weights).sum().item()
        return {"objective": objective} | measure(self.rewards, self.data.gold_of(self.pairs))


def measure(rewards: torch.Tensor, gold_margin: torch.Tensor | None) -> dict[str, float]:
    """`pair_metrics` of tensors on any device."""
    gold = None if gold_margin is None else gold_margin.cpu().numpy()
    return pair_metrics(rewards.cpu().numpy(), gold)
