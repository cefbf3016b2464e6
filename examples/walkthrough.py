"""One pair from text to gradient: every number on the way, each also computed by hand.

    reads   datasets/toy/rm/rm_implicit.jsonl and models/toy-sft, from scripts/quickstart.sh

    python examples/walkthrough.py

docs/walkthrough.md tells what is printed here.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from rmood import records
from rmood.batching import Group, pack, pad
from rmood.config import opt, parse, run_script
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.model import load_reward_model
from rmood.optim import adam_step
from rmood.schedule import learning_rate, warmup_steps
from rmood.tokenization import encode, load_tokenizer, render, show_row


@dataclass(frozen=True)
class Config:
    dataset: str = opt("toy", "names the default paths")
    model_name: str = opt("{sft}", "causal LM to start from")
    data_path: str = opt("{pairs}", "pairs, from preprocess.py")
    pair: int = opt(0, "which pair", at_least=0)
    lr: float = opt(1e-3, "peak learning rate", above=0)
    total_steps: int = opt(200, "steps of the training this would be the first of", at_least=2)


def main() -> None:
    cfg = parse(Config, __doc__)
    pair, tokenizer = records.read_pairs(cfg.data_path)[cfg.pair], load_tokenizer(cfg.model_name)

    title("1. text")
    print(f"gold's rewards: chosen {pair.chosen_reward:.4f}, rejected {pair.rejected_reward:.4f}")
    for side, messages in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        print(f"{side}:\n{show_row(messages, tokenizer)}")

    title("2. tokens: the shared prompt once")
    rows = encode([render(pair.chosen, tokenizer), render(pair.rejected, tokenizer)], tokenizer)
    group = Group(rows)
    batch = pack([group])
    print(f"{len(rows[0])} + {len(rows[1])} tokens; the first {group.prefix} are the same; {group.tokens} unique tokens are computed")
    print(f"input_ids     {batch.input_ids[0].tolist()}\nposition_ids  {batch.position_ids[0].tolist()}\nscored tokens lie at {batch.last.tolist()}")

    title("3. hidden states to rewards")
    model = load_reward_model(cfg.model_name, seed=0)
    rewards, pooled = model(batch)  # (2,), (2, D)
    print(f"pooled hidden states {tuple(pooled.shape)}, norms {numbers(pooled.norm(dim=1))}; sqrt(D) = {math.sqrt(pooled.shape[1]):.4f}")
    print(f"rewards = pooled @ score: {numbers(rewards)}")
    print(f"padded rows instead of packed tokens: {numbers(model(pad([group]))[0])}")

    title("4. margin and loss")
    rewards = rewards.view(1, 2)  # (B, 2): chosen, rejected
    margin = reward_margin(rewards)  # (B,)
    loss = bradley_terry_loss(margin).mean()
    m = margin.item()
    print(f"margin {m:.6f}; P(chosen > rejected) = 1 / (1 + exp(-margin)) = {1 / (1 + math.exp(-m)):.6f}")
    print(f"loss = log(1 + exp(-margin)): {loss.item():.6f}, by hand {math.log1p(math.exp(-m)):.6f}; ln 2 = {math.log(2):.6f}")

    title("5. gradient")
    loss.backward()
    slope = -1 / (1 + math.exp(m))
    by_hand = slope * (pooled[0] - pooled[1]).detach()
    head = model.score.weight.grad[0]
    print(f"d loss / d margin = -sigmoid(-margin) = {slope:.6f}")
    print(f"d loss / d head = that * (pooled chosen - pooled rejected): {numbers(head[:4])} ..., by hand {numbers(by_hand[:4])} ...")
    print(f"gradient norms: head {head.norm():.4f}, backbone {torch.nn.utils.get_total_norm([p.grad for p in model.backbone.parameters()]):.6f}")

    title("6. clip, rate, AdamW's first step")
    grads = [p.grad for p in model.parameters()]
    norm = torch.nn.utils.get_total_norm(grads)
    scale = min(1.0, 1.0 / norm.item())
    rate = learning_rate(1, cfg.total_steps, warmup_steps(cfg.total_steps, 0.05), cfg.lr)
    g = head * scale
    step = adam_step(0.1 * g, 0.001 * g * g, torch.tensor(1.0), rate)
    print(f"common norm {norm:.4f}: gradients are scaled by min(1, 1 / norm) = {scale:.4f}")
    print(f"rate of step 1 of {cfg.total_steps}: {rate:.2e}, {warmup_steps(cfg.total_steps, 0.05)} steps of warmup to {cfg.lr:.0e}")
    print(f"the head moves by {numbers(-step[:4], 8)} ...: the rate, whatever the gradient, against its sign")
    with torch.no_grad():
        model.score.weight -= step
        after = reward_margin(model(batch)[0].view(1, 2))
    print(f"margin after this step of the head alone: {after.item():.6f}, loss {bradley_terry_loss(after).item():.6f}")


def title(text: str) -> None:
    print(f"\n== {text}")


def numbers(values: torch.Tensor, digits: int = 6) -> str:
    return "[" + ", ".join(f"{value:.{digits}f}" for value in values.tolist()) + "]"


if __name__ == "__main__":
    run_script(main)
