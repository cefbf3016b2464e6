"""One pair from text to gradient: every number on the way, each also computed by hand.

    reads   datasets/toy/rm/rm_implicit.jsonl and models/toy-sft, from scripts/quickstart.sh

    python examples/walkthrough.py

docs/walkthrough.md explains what is printed here.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.utils import get_total_norm

from rmood.batching import Group, pack, pad
from rmood.cli import opt, parse
from rmood.errors import run_script
from rmood.files.tables import read_pairs
from rmood.loading import load_reward_model
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.optim import adam_step
from rmood.schedule import learning_rate, warmup_steps
from rmood.tokenization import encode, load_tokenizer, render, show_row


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("toy", "sets every default path at once")
    model_name: str = opt("{sft}", "causal LM to start from")
    data_path: str = opt("{pairs}", "pairs, from preprocess.py")
    pair: int = opt(0, "index of the pair in the file", at_least=0)
    lr: float = opt(1e-3, "peak learning rate", above=0)
    total_steps: int = opt(200, "length of the training of which this would be the first step", at_least=2)
    # fmt: on


def main() -> None:
    cfg = parse(Config, __doc__)
    pair = read_pairs(cfg.data_path)[cfg.pair]
    tokenizer = load_tokenizer(cfg.model_name)

    title("1. text")
    print(f"gold's rewards: chosen {pair.chosen_reward:.4f}, rejected {pair.rejected_reward:.4f}")
    print(f"chosen:\n{show_row(pair.chosen, tokenizer)}")
    print(f"rejected:\n{show_row(pair.rejected, tokenizer)}")

    title("2. tokens: the shared prompt once")
    rows = encode([render(pair.chosen, tokenizer), render(pair.rejected, tokenizer)], tokenizer)
    group = Group(rows)
    batch = pack([group])
    print(
        f"{len(rows[0])} + {len(rows[1])} tokens; the first {group.prefix} are the same; "
        f"{group.tokens} unique tokens are computed"
    )
    print(f"input_ids     {batch.input_ids[0].tolist()}")
    print(f"position_ids  {batch.position_ids[0].tolist()}")
    print(f"scored tokens lie at {batch.last.tolist()}")

    title("3. hidden states to rewards")
    model = load_reward_model(cfg.model_name, seed=0)
    rewards, pooled = model(batch)  # (2,), (2, D)
    padded_rewards, _ = model(pad([group]))
    norms = pooled.norm(dim=1)
    root = math.sqrt(pooled.shape[1])
    print(
        f"pooled hidden states {tuple(pooled.shape)}, norms {numbers(norms)}; sqrt(D) = {root:.4f}"
    )
    print(f"rewards = pooled @ score: {numbers(rewards)}")
    print(f"padded rows instead of packed tokens: {numbers(padded_rewards)}")

    title("4. margin and loss")
    margin = reward_margin(rewards.view(1, 2))  # (B, 2) chosen, rejected -> (B,)
    loss = bradley_terry_loss(margin).mean()
    m = margin.item()
    probability = 1 / (1 + math.exp(-m))
    loss_by_hand = math.log1p(math.exp(-m))
    print(f"margin {m:.6f}; P(chosen > rejected) = 1 / (1 + exp(-margin)) = {probability:.6f}")
    print(
        f"loss = log(1 + exp(-margin)): {loss.item():.6f}, by hand {loss_by_hand:.6f}; "
        f"ln 2 = {math.log(2):.6f}"
    )

    title("5. gradient")
    loss.backward()
    slope = -1 / (1 + math.exp(m))
    head = model.score.weight.grad[0]  # (D,)
    head_by_hand = slope * (pooled[0] - pooled[1]).detach()
    backbone_norm = get_total_norm([p.grad for p in model.backbone.parameters()])
    print(f"d loss / d margin = -sigmoid(-margin) = {slope:.6f}")
    print(
        f"d loss / d head = that * (pooled chosen - pooled rejected): {numbers(head[:4])} ..., "
        f"by hand {numbers(head_by_hand[:4])} ..."
    )
    print(f"gradient norms: head {head.norm():.4f}, backbone {backbone_norm:.6f}")

    title("6. clip, rate, AdamW's first step")
    norm = get_total_norm([p.grad for p in model.parameters()])
    scale = min(1.0, 1.0 / norm.item())
    warmup = warmup_steps(cfg.total_steps, 0.05)
    rate = learning_rate(1, cfg.total_steps, warmup, cfg.lr)
    g = head * scale
    first_moment = 0.1 * g  # (1 - beta1) g
    second_moment = 0.001 * g * g  # (1 - beta2) g^2
    step = adam_step(first_moment, second_moment, torch.tensor(1.0), rate)
    print(f"common norm {norm:.4f}: gradients are scaled by min(1, 1 / norm) = {scale:.4f}")
    print(
        f"rate of step 1 of {cfg.total_steps}: {rate:.2e}, {warmup} steps of warmup to {cfg.lr:.0e}"
    )
    print(
        f"the head moves by {numbers(-step[:4], 8)} ...: "
        "the rate, whatever the gradient, against its sign"
    )
    with torch.no_grad():
        model.score.weight -= step
        rewards_after, _ = model(batch)
        margin_after = reward_margin(rewards_after.view(1, 2))
        loss_after = bradley_terry_loss(margin_after)
    print(
        f"margin after this step of the head alone: {margin_after.item():.6f}, "
        f"loss {loss_after.item():.6f}"
    )


def title(text: str) -> None:
    print(f"\n== {text}")


def numbers(values: torch.Tensor, digits: int = 6) -> str:
    return "[" + ", ".join(f"{value:.{digits}f}" for value in values.tolist()) + "]"


if __name__ == "__main__":
    run_script(main)
