"""The loss of a pair: its numbers by hand, and the equation that --trace prints."""

import itertools
import math

import pytest
import torch

from rmood.loss import (
    LossOptions,
    bradley_terry_loss,
    centring_loss,
    loss_equation,
    pair_losses,
    reward_margin,
    target_probability,
)


def test_no_opinion_costs_ln_2():
    assert bradley_terry_loss(torch.zeros(3)).tolist() == pytest.approx([math.log(2)] * 3)


def test_a_margin_of_ln_3_means_three_to_one():
    """sigmoid(ln 3) = 3/4: the loss is -ln 0.75 = 0.2877 if right, -ln 0.25 = 1.3863 if wrong."""
    losses = bradley_terry_loss(torch.tensor([math.log(3), -math.log(3)]))
    assert losses.tolist() == pytest.approx([0.28768, 1.38629], abs=1e-5)


def test_only_the_margin_matters():
    rewards = torch.tensor([[1.5, -0.5], [0.25, 3.0]])
    shifted = rewards + torch.tensor([[100.0], [-7.0]])  # an offset of each pair's own
    before = bradley_terry_loss(reward_margin(rewards))
    after = bradley_terry_loss(reward_margin(shifted))
    assert torch.equal(before, after)


def test_the_gradient_is_minus_half_at_margin_0_and_vanishes_at_large_margins():
    margin = torch.tensor([0.0, 20.0, -20.0], requires_grad=True)
    bradley_terry_loss(margin).sum().backward()
    assert margin.grad.tolist() == pytest.approx([-0.5, 0.0, -1.0], abs=1e-8)


def test_large_margins_stay_finite():
    assert bradley_terry_loss(torch.tensor([-1e4, 1e4])).tolist() == [1e4, 0.0]


def least_loss_at(target: torch.Tensor) -> float:
    margins = torch.linspace(-8, 8, 16001)
    return margins[bradley_terry_loss(margins, target).argmin()].item()


def test_a_label_wrong_one_time_in_ten_asks_for_a_margin_of_ln_9():
    target = target_probability(None, temperature=0, smoothing=0.1)
    assert least_loss_at(target) == pytest.approx(math.log(9), abs=1e-3)


def test_a_soft_label_asks_for_golds_own_margin_over_the_temperature():
    target = target_probability(torch.tensor([3.0]), temperature=2.0, smoothing=0)
    assert least_loss_at(target) == pytest.approx(1.5, abs=1e-3)


def test_a_certain_label_is_the_plain_loss():
    margin = torch.tensor([-1.0, 0.0, 2.5])
    assert target_probability(margin, 0, 0) is None
    assert torch.equal(bradley_terry_loss(margin, torch.ones(3)), bradley_terry_loss(margin))


def test_centring_moves_the_common_offset_and_no_spread():
    """Its gradient is the same for every reward; the usual (r_c + r_r)^2 pulls the mean of each
    prompt towards 0."""
    rewards = torch.tensor([[5.0, 3.0], [-3.0, -5.0]], requires_grad=True)
    centring_loss(rewards, center=2.0).sum().backward()
    assert torch.equal(rewards.grad, torch.full((2, 2), 2.0))
    usual = torch.autograd.grad(rewards.sum(dim=1).square().sum(), rewards)[0]
    assert usual.tolist() == [[16.0, 16.0], [-16.0, -16.0]]  # though the mean reward is 0 already


# ---- what is minimised ---------------------------------------------------------------------------

VALUES = {  # each option off, and on
    "margin_scale": (0.0, 0.3),
    "label_temperature": (0.0, 2.0),
    "label_smoothing": (0.0, 0.1),
    "centring": (0.0, 0.05),
}
COMBINATIONS = [dict(zip(VALUES, values)) for values in itertools.product(*VALUES.values())]


def evaluate(equation: str, **values: torch.Tensor) -> torch.Tensor:
    """An equation of loss_equation() in Python, with its `p = ...` put in."""
    names = {"log": torch.log, "sigmoid": torch.sigmoid} | values
    expression, _, p = equation.partition(", p = ")
    if p:
        names["p"] = eval(p, dict(names))
    return eval(expression, names)


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_the_equation_gives_the_losses_that_are_minimised(options):
    rng = torch.Generator().manual_seed(0)
    rewards = 2 * torch.randn(200, 2, generator=rng, dtype=torch.float64)
    gold_margin = 3 * torch.randn(200, generator=rng, dtype=torch.float64)
    center = 0.7
    losses = pair_losses(rewards, gold_margin, center, LossOptions(**options))
    expected = evaluate(
        loss_equation(LossOptions(**options)),
        margin=rewards[:, 0] - rewards[:, 1],
        gold_margin=gold_margin,
        center=torch.tensor(center),
        r_chosen=rewards[:, 0],
        r_rejected=rewards[:, 1],
    )
    assert losses.shape == (200,)
    assert torch.allclose(losses, expected, rtol=0, atol=1e-6)


def test_each_combination_of_options_has_an_equation_of_its_own():
    equations = {loss_equation(LossOptions(**options)) for options in COMBINATIONS}
    assert len(COMBINATIONS) == len(equations) == 16


def test_without_options_gold_is_not_needed_and_the_loss_is_plain():
    rewards = torch.tensor([[1.5, -0.5], [0.25, 3.0]])
    assert torch.equal(pair_losses(rewards), bradley_terry_loss(reward_margin(rewards)))
    assert loss_equation(LossOptions()) == "-log(sigmoid(margin))"
