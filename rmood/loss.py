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


def bradley_terry_loss(margin: torch.Tensor) -> torch.Tensor:
    """(B,) margins -> (B,) losses in nats; their mean over all pairs of a step is what training minimises.

    The gradient by the margin is -sigmoid(-margin): -1/2 where the model has no opinion, near 0 once it is sure.
    """
    return -F.logsigmoid(margin)  # ln 2 = 0.693 where the model has no opinion: the value to see at step 0


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
