"""The Bradley-Terry loss of a pair.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)    Bradley & Terry 1952
    loss = -log P                                            Stiennon et al. 2020, eq. 1;
                                                             Ouyang et al. 2022, eq. 1

B pairs; rewards are float32 log-odds (nats), defined up to a constant per prompt. `pair_losses` is
the one place that says what train.py minimises: to add a loss, add a function here, an option to
LossOptions and to train.py's Config, a line to `pair_losses` and one to `loss_equation`.

A hinge loss max(0, 1 - margin), for example, would replace the line of `pair_losses` that calls
`bradley_terry_loss`. `objective` in metrics.jsonl is the mean of what `pair_losses` returns, so it
would show the hinge. `loss`, the progress bar, the line of an epoch with its warnings and the model
card stay plain Bradley-Terry (metrics.pair_metrics), comparable between runs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class LossOptions:
    """What is minimised besides the plain loss; train.py's Config has the same four options."""

    margin_scale: float = 0.0
    label_temperature: float = 0.0
    label_smoothing: float = 0.0
    centring: float = 0.0


def pair_losses(
    rewards: torch.Tensor,
    gold_margin: torch.Tensor | None = None,
    center: float = 0.0,
    options: LossOptions = LossOptions(),
) -> torch.Tensor:
    """(B, 2) rewards, chosen first -> (B,) losses, nats; training minimises their mean over a step.

    gold_margin: (B,) gold's own margins, for margin_scale and label_temperature.
    center: the mean reward of the step before, for centring.
    """
    margin = reward_margin(rewards)
    if options.margin_scale:
        margin = margin - options.margin_scale * gold_margin
    target = target_probability(gold_margin, options.label_temperature, options.label_smoothing)
    losses = bradley_terry_loss(margin, target)
    if options.centring:
        losses = losses + options.centring * centring_loss(rewards, center)
    return losses


def loss_equation(options: LossOptions) -> str:
    """What `pair_losses` computes with these options, in Python's notation, for --trace."""
    margin = "margin"
    if options.margin_scale:
        margin = f"(margin - {options.margin_scale:g} * gold_margin)"
    if not options.label_temperature and not options.label_smoothing:
        equation = f"-log(sigmoid({margin}))"
    else:
        equation = f"-p * log(sigmoid({margin})) - (1 - p) * log(sigmoid(-{margin}))"
    if options.centring:
        equation += f" + {options.centring:g} * center * (r_chosen + r_rejected)"

    e = options.label_smoothing
    if options.label_temperature:
        gold = f"sigmoid(gold_margin / {options.label_temperature:g})"
        p = f"{gold} * (1 - {e:g}) + (1 - {gold}) * {e:g}" if e else gold
        equation += f", p = {p}"
    elif e:
        equation += f", p = 1 - {e:g}"
    return equation


def reward_margin(rewards: torch.Tensor) -> torch.Tensor:
    """(B, 2) rewards, chosen first -> (B,) margins r_chosen - r_rejected: all the loss sees."""
    chosen, rejected = rewards.unbind(dim=1)
    return chosen - rejected


def bradley_terry_loss(margin: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) margins -> (B,) losses in nats.

    The gradient by the margin is -sigmoid(-margin): -1/2 at margin 0, near 0 at large margins.
    target: (B,) the probability that `chosen` is the better one, where that is not certain:

        loss = -target * log sigmoid(margin) - (1 - target) * log sigmoid(-margin)

    which is least at margin = log(target / (1 - target)).
    """
    if target is not None:
        return -target * F.logsigmoid(margin) - (1 - target) * F.logsigmoid(-margin)
    # ln 2 = 0.693 at margin 0: expect it at step 1 of a new head, which is drawn so small that all
    # margins begin near 0 (loading.new_head). A --model-name that is a classifier keeps its head.
    return -F.logsigmoid(margin)


def target_probability(
    gold_margin: torch.Tensor | None, temperature: float, smoothing: float
) -> torch.Tensor | None:
    """(B,) gold margins -> (B,) targets of `bradley_terry_loss`, or None for certain labels.

    temperature > 0: soft labels sigmoid(gold_margin / temperature): the odds that gold itself
        gives, where gold was trained by Bradley-Terry and temperature is 1 (Hinton et al. 2015,
        for two classes).
    smoothing e: a label is wrong with probability e: target (1 - e), mixed with the soft label
        where both are given (Szegedy et al. 2016, section 7; for preferences Mitchell 2023,
        "conservative" loss). Caps the best margin at log((1 - e) / e).
    """
    if not temperature and not smoothing:
        return None
    certain = torch.sigmoid(gold_margin / temperature) if temperature else torch.ones(())
    return certain * (1 - smoothing) + (1 - certain) * smoothing


def centring_loss(rewards: torch.Tensor, center: float) -> torch.Tensor:
    """(B, 2) rewards -> (B,) terms that pull the mean of *all* rewards to 0.

        center * (r_chosen + r_rejected)

    center: the mean reward of the step before. It replaces the current mean, so that the gradient
    is that of mean(r)^2 (up to a factor), but needs no sum over passes and processes first.

    The usual term (r_chosen + r_rejected)^2 of each pair (Eisenstein et al. 2023, section 3) wants
    every *prompt's* mean to be 0. The Bradley-Terry loss does not constrain those, so that term
    alone decides them: it erases the spread between prompts, and at larger coefficients what the
    two rewards share of the spread within. This one moves only the common offset.
    """
    return center * rewards.sum(dim=1)
