import math

import pytest
import torch

from rmood.loss import bradley_terry_loss, centring_loss, pair_metrics, reward_margin, target_probability


def test_no_opinion_costs_ln_2():
    assert bradley_terry_loss(torch.zeros(3)).tolist() == pytest.approx([math.log(2)] * 3)


def test_a_margin_of_ln_3_means_three_to_one():
    """sigmoid(ln 3) = 3/4, so the loss is -ln 0.75 = 0.2877 if right and -ln 0.25 = 1.3863 if wrong."""
    assert bradley_terry_loss(torch.tensor([math.log(3), -math.log(3)])).tolist() == pytest.approx([0.28768, 1.38629], abs=1e-5)


def test_only_the_margin_matters():
    rewards = torch.tensor([[1.5, -0.5], [0.25, 3.0]])
    shifted = rewards + torch.tensor([[100.0], [-7.0]])  # an offset of each pair's own
    assert torch.equal(bradley_terry_loss(reward_margin(rewards)), bradley_terry_loss(reward_margin(shifted)))


def test_the_gradient_is_minus_half_without_an_opinion_and_vanishes_with_certainty():
    margin = torch.tensor([0.0, 20.0, -20.0], requires_grad=True)
    bradley_terry_loss(margin).sum().backward()
    assert margin.grad.tolist() == pytest.approx([-0.5, 0.0, -1.0], abs=1e-8)


def test_large_margins_stay_finite():
    assert bradley_terry_loss(torch.tensor([-1e4, 1e4])).tolist() == [1e4, 0.0]


def least_loss_at(target: torch.Tensor) -> float:
    margins = torch.linspace(-8, 8, 16001)
    return margins[bradley_terry_loss(margins, target).argmin()].item()


def test_a_label_wrong_one_time_in_ten_asks_for_a_margin_of_ln_9():
    assert least_loss_at(target_probability(None, temperature=0, smoothing=0.1)) == pytest.approx(math.log(9), abs=1e-3)


def test_a_soft_label_asks_for_golds_own_margin_over_the_temperature():
    assert least_loss_at(target_probability(torch.tensor([3.0]), temperature=2.0, smoothing=0)) == pytest.approx(1.5, abs=1e-3)


def test_a_certain_label_is_the_plain_loss():
    margin = torch.tensor([-1.0, 0.0, 2.5])
    assert target_probability(margin, 0, 0) is None
    assert torch.equal(bradley_terry_loss(margin, torch.ones(3)), bradley_terry_loss(margin))


def test_centring_moves_the_common_offset_and_no_spread():
    """Its gradient is the same for every reward; the usual (r_c + r_r)^2 pulls each prompt's mean towards 0."""
    rewards = torch.tensor([[5.0, 3.0], [-3.0, -5.0]], requires_grad=True)
    centring_loss(rewards, center=2.0).sum().backward()
    assert torch.equal(rewards.grad, torch.full((2, 2), 2.0))
    usual = torch.autograd.grad(rewards.sum(dim=1).square().sum(), rewards)[0]
    assert usual.tolist() == [[16.0, 16.0], [-16.0, -16.0]]  # though the mean reward is 0 already


def test_metrics_by_hand():
    """Margins 2, 0, -4: one of three right (a tie is a miss); std within = sqrt((4 + 0 + 16) / 3 / 2) = 1.8257."""
    m = pair_metrics(torch.tensor([[3.0, 1.0], [2.0, 2.0], [-1.0, 3.0]]), gold_margin=torch.tensor([2.0, 0.0, 4.0]))
    assert m["accuracy"] == pytest.approx(1 / 3)
    assert m["margin_mean"] == pytest.approx(-2 / 3)
    assert m["loss"] == pytest.approx((0.126928 + 0.693147 + 4.018150) / 3, abs=1e-6)
    assert (m["reward_min"], m["reward_max"], m["reward_mean"]) == pytest.approx((-1.0, 3.0, 10 / 6))
    assert m["std_within"] == pytest.approx(math.sqrt(20 / 6))
    assert m["std_across"] == pytest.approx(math.sqrt(2 / 9))  # pair means 2, 2, 1
    assert m["spread_ratio"] == pytest.approx(1.0)


def test_compression_shows_in_the_spread_ratio_alone():
    gold = torch.tensor([[8.0, 0.0], [-2.0, 2.0]])
    whole, tenth = (pair_metrics(scale * gold, reward_margin(gold)) for scale in (1.0, 0.1))
    assert whole["accuracy"] == tenth["accuracy"] == 0.5
    assert (whole["spread_ratio"], tenth["spread_ratio"]) == pytest.approx((1.0, 0.1))
