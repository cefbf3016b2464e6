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


def accuracy(margin: torch.Tensor) -> torch.Tensor:
    """(B,) margins -> share of pairs ranked right, a scalar; a tie is a miss."""
    return (margin > 0).float().mean()
