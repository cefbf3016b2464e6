"""The Bradley-Terry loss of a pair. B pairs; rewards are float32 log-odds (nats), defined up to a constant a prompt.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)           Bradley & Terry 1952
    loss = -log P                                                   Stiennon et al. 2020, eq. 1; Ouyang et al. 2022, eq. 1
"""

import torch
import torch.nn.functional as F


def reward_margin(rewards: torch.Tensor) -> torch.Tensor:
    """(B, 2) rewards, chosen first -> (B,) margins r_chosen - r_rejected. Only the margin matters to the loss."""
    chosen, rejected = rewards.unbind(dim=1)
    return chosen - rejected


def bradley_terry_loss(margin: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) margins -> (B,) losses in nats; their mean over all pairs of a step is what training minimises.

    The gradient by the margin is -sigmoid(-margin): -1/2 where the model has no opinion, near 0 once it is sure.
    target: (B,) the probability that `chosen` is the better one, where that is not certain:
        loss = -target * log sigmoid(margin) - (1 - target) * log sigmoid(-margin),   least at margin = log(target / (1 - target))
    """
    if target is not None:
        return -target * F.logsigmoid(margin) - (1 - target) * F.logsigmoid(-margin)
    return -F.logsigmoid(margin)  # ln 2 = 0.693 where the model has no opinion: the value to see at step 0


def target_probability(gold_margin: torch.Tensor | None, temperature: float, smoothing: float) -> torch.Tensor | None:
    """(B,) gold margins -> (B,) targets of `bradley_terry_loss`, or None for certain labels.

    temperature > 0: soft labels sigmoid(gold_margin / temperature): the odds gold itself gives, where gold was
        trained by Bradley-Terry and temperature is 1 (Hinton et al. 2015, for two classes).
    smoothing e: a label is wrong with probability e: target (1 - e), mixed with the soft label where both are given
        (Szegedy et al. 2016, section 7; for preferences Mitchell 2023, "conservative" loss). Caps the best margin at log((1 - e) / e).
    """
    if not temperature and not smoothing:
        return None
    certain = torch.sigmoid(gold_margin / temperature) if temperature else torch.ones(())
    return certain * (1 - smoothing) + (1 - certain) * smoothing


def centring_loss(rewards: torch.Tensor, center: float) -> torch.Tensor:
    """(B, 2) rewards -> (B,) terms that pull the mean of *all* rewards to 0: center * (r_chosen + r_rejected).

    center: the mean reward of the step before. It stands for the current mean, so that the gradient is that of
    mean(r)^2 (up to a factor), but needs no sum over passes and processes first.

    The usual term (r_chosen + r_rejected)^2 of each pair (Eisenstein et al. 2023, section 3) wants every *prompt's*
    mean to be 0. The Bradley-Terry loss leaves those alone, so that term alone decides them: it erases the spread
    between prompts, and at larger coefficients what the two rewards share of the spread within. This one moves only
    the common offset.
    """
    return center * rewards.sum(dim=1)


def pair_metrics(rewards: torch.Tensor, gold_margin: torch.Tensor | None = None) -> dict[str, float]:
    """What (B, 2) rewards, chosen first, say about a model. gold_margin: (B,) gold's own margins, where known.

    loss           mean Bradley-Terry loss, nats; ln 2 = 0.693 is no opinion
    accuracy       share of pairs with r_chosen > r_rejected; a tie is a miss
    margin_mean    mean of r_chosen - r_rejected
    reward_mean, reward_std, reward_min, reward_max   over all 2B rewards; their offset means nothing
    std_within     spread of the two rewards of a pair, sqrt(mean(margin^2) / 2): what training can widen
    std_across     spread of the pairs' mean rewards: what the loss leaves alone
    spread_ratio   std_within over gold's; well under 1 is a compressed model
    """
    rewards = rewards.double().cpu()
    margin = reward_margin(rewards)
    metrics = {
        "loss": bradley_terry_loss(margin).mean(),
        "accuracy": (margin > 0).double().mean(),
        "margin_mean": margin.mean(),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(correction=0),
        "reward_min": rewards.min(),
        "reward_max": rewards.max(),
        "std_within": margin.square().mean().div(2).sqrt(),
        "std_across": rewards.mean(dim=1).std(correction=0),
    }
    if gold_margin is not None:
        metrics["spread_ratio"] = metrics["std_within"] / gold_margin.double().square().mean().div(2).sqrt()
    return {name: value.item() for name, value in metrics.items()}
