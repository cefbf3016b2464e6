import numpy as np
import pytest
import torch

from rmood import BadInput
from rmood.batching import Group, check_budget, epoch_order, pack, pad, plan_scoring, plan_step


def test_the_prompt_is_held_once_and_positions_restart_after_it():
    batch = pack([Group([[7, 8, 1], [7, 8, 2, 3]]), Group([[9, 4], [9, 5]])])
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 9, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 1]]
    assert batch.input_ids[0, batch.last].tolist() == [1, 3, 4, 5]


def test_the_blocks_hold_every_conversation_and_pick_returns_every_token():
    groups = [Group([[7, 8, 1], [7, 8, 2, 3]]), Group([[9, 4], [9, 5]]), Group([list(range(40)), list(range(35)) + [99]])]
    batch = pack(groups)
    ids = batch.input_ids[0]
    rows = [ids[row].tolist() for block in batch.blocks for row in block]
    for group in groups:
        for conversation in group.rows:
            assert any(row[: len(conversation)] == conversation for row in rows)
    flat = torch.cat([ids[block].flatten() for block in batch.blocks])
    assert torch.equal(flat[batch.pick], ids)


def test_padding_adds_zeros_on_the_right_and_scores_the_last_real_token():
    batch = pad([Group([[7, 8, 1], [7, 8, 2, 3]])])
    assert batch.input_ids.tolist() == [[7, 8, 1, 0], [7, 8, 2, 3]]
    assert batch.input_ids.flatten()[batch.last].tolist() == [1, 3]


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own():
    first, second, again = epoch_order(10, 4, seed=0, epoch=1), epoch_order(10, 4, seed=0, epoch=2), epoch_order(10, 4, seed=0, epoch=1)
    assert [len(step) for step in first] == [4, 4, 2]
    assert sorted(np.concatenate(first)) == list(range(10))
    assert np.concatenate(first).tolist() == np.concatenate(again).tolist() != np.concatenate(second).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_process_runs_as_many_passes_within_the_budget(world_size):
    tokens = np.random.default_rng(0).integers(10, 200, 100).tolist()
    plan = plan_step(np.arange(40), tokens, 500, world_size)
    assert len({len(passes) for passes in plan}) == 1 and len(plan) == world_size
    everything = [p for passes in plan for p in passes]
    assert sorted(i for p in everything for i in p) == list(range(40))
    assert max(sum(tokens[i] for i in p) for p in everything) <= 500


def test_fewer_pairs_than_processes_leave_passes_empty():
    assert sorted(map(len, (passes[0] for passes in plan_step(np.array([3]), [5] * 4, 100, 4)))) == [0, 0, 0, 1]


def test_scoring_is_planned_from_the_lengths_alone_longest_first():
    assert plan_scoring([3, 9, 5, 5], 10) == [[1], [2, 3], [0]]
    assert plan_scoring([3, 9, 5, 5], 100, groups_per_pass=2) == [[1, 2], [3, 0]]


def test_a_pair_larger_than_a_pass_is_named():
    with pytest.raises(BadInput, match="pair 1 has 6 tokens, a pass only 5"):
        check_budget([Group([[1, 2], [1, 3]]), Group([[1, 2, 3], [4, 5, 6]])], 5, "pair")
