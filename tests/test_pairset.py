"""Pairs held out, drawn and grouped."""

import numpy as np
import pytest
import torch
from conftest import make_pairs
from training import write_pairs

from rmood.batching import Group, epoch_order
from rmood.files.tables import read_pairs
from rmood.pairset import PairSet, draw, hold_out, no_pairs


def grouped(sizes: list[int]) -> PairSet:
    """Groups with so many pairs each: pair p has the rewards' rows (p, p + 1) and gold margin p."""
    pairs_of_group, first = [], 0
    for size in sizes:
        pairs_of_group.append(list(range(first, first + size)))
        first += size
    groups = [Group([[1, 2], [1, 3, group]]) for group in range(len(sizes))]
    sides = np.stack([np.arange(first), np.arange(first) + 1], axis=1)
    device = torch.device("cpu")
    return PairSet(list(range(first)), groups, pairs_of_group, sides, torch.arange(first), device)


def test_a_subset_holds_whole_groups_with_their_sides_and_gold():
    part = grouped([1, 3, 2]).subset([2, 1])
    assert part.pairs == [4, 5, 1, 2, 3]
    assert part.pairs_of_group == [[0, 1], [2, 3, 4]]
    assert part.sides.tolist() == [[4, 5], [5, 6], [1, 2], [2, 3], [3, 4]]
    assert part.gold.tolist() == [4, 5, 1, 2, 3]
    assert [group.rows[1][2] for group in part.groups] == [2, 1]


@pytest.mark.parametrize("most", [0, 1, 4, 7, 100])
def test_a_draw_is_a_sample_of_whole_groups_without_replacement(most):
    data = grouped([2, 3, 1, 4])
    drawn = draw(data, most, seed=0)
    assert draw(data, most, seed=0).pairs == drawn.pairs  # the same seed, the same pairs
    assert len(set(drawn.pairs)) == len(drawn)
    assert drawn.pairs == sorted(drawn.pairs)
    for members in data.pairs_of_group:
        assert len(set(members) & set(drawn.pairs)) in (0, len(members))
    if most >= len(data):
        assert drawn is data
    else:
        assert len(drawn) <= most or len(drawn.groups) == 1
    assert bool(drawn) == (most > 0)


def test_the_sample_is_not_what_the_first_epoch_begins_with():
    """Else the pairs that are scored after an epoch would all be those that it saw first."""
    data = grouped([1] * 400)
    drawn = set(draw(data, 100, seed=0).pairs)
    first = set(np.concatenate(epoch_order(400, 10, 0, epoch=0)[:10]).tolist())
    assert 10 <= len(drawn & first) <= 40  # 25 by chance; 100 from the same stream


def test_another_seed_draws_other_pairs():
    data = grouped([1] * 200)
    overlap = set(draw(data, 50, seed=0).pairs) & set(draw(data, 50, seed=1).pairs)
    assert len(overlap) < 30


def test_prompts_are_held_out_whole(tmp_path):
    rows = make_pairs(20) + make_pairs(20)  # each prompt twice
    pairs = read_pairs(write_pairs(tmp_path / "pairs.jsonl", rows))
    train, held_out = hold_out(pairs, 0.25, seed=0, path="pairs.jsonl")
    assert (len(train), len(held_out)) == (30, 10)
    assert not {pair.prompt_key for pair in train} & {pair.prompt_key for pair in held_out}
    assert hold_out(pairs, 0.0, seed=0, path="") == (pairs, [])


def test_a_set_without_pairs_is_false():
    assert not no_pairs(torch.device("cpu"))
