"""The whole training in one naive file: padded rows, one process, no resume.

    reads   datasets/toy/rm/rm_implicit.jsonl and models/toy-sft, which scripts/quickstart.sh makes
    writes  models/toy-minimal/

    python examples/minimal.py
    python examples/minimal.py --steps 20

train.py is the same algorithm with sharding, packing, precision modes, checkpoints and a log; a
test holds its losses to those of this file. Besides, it leaves out pairs that are too long, has
loss options, and gives a tokenizer with pad = eos another pad token. Read this one first.

    B pairs of a step, N = 2B conversations (chosen first), L tokens of the longest, D hidden size
"""

import argparse
import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument(
    "--model", default="models/toy-sft", help="a causal language model (the SFT model)"
)
parser.add_argument(
    "--data", default="datasets/toy/rm/rm_implicit.jsonl", help="pairs, one per line"
)
parser.add_argument("--output", default="models/toy-minimal")
parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=32, help="pairs per step")
stop_help = "stop after this many steps, with the schedule of the whole run; 0: at its end"
parser.add_argument("--steps", type=int, default=0, help=stop_help)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

# The data: one {"chosen": [messages], "rejected": [messages]} per line. The chat template turns
# messages into text and writes every special token itself, so none is added to the tokens.
with open(args.data, encoding="utf-8") as file:
    pairs = [json.loads(line) for line in file]
tokenizer = AutoTokenizer.from_pretrained(args.model)


def token_ids(messages: list[dict]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


rows = [(token_ids(pair["chosen"]), token_ids(pair["rejected"])) for pair in pairs]

# The model, in float32: the language model without its output layer, and a linear head that reads
# the reward off the hidden state at the last token. The head starts so small that all rewards are
# near 0; new_head in rmood/loading.py says where 1 / (D + 1) is from.
# from_pretrained returns it in evaluation mode and model.train() is never called, so dropout is
# off: the loss compares two rewards, and both must come from the same model.
model = AutoModelForSequenceClassification.from_pretrained(
    args.model, num_labels=1, dtype=torch.float32
)
backbone = model.base_model
head = model.score
with torch.no_grad():
    generator = torch.Generator().manual_seed(args.seed)
    head.weight.normal_(0, 1 / (head.in_features + 1), generator=generator)


def rewards_of(conversations: list[list[int]]) -> torch.Tensor:
    """N rows of token ids -> (N,) rewards. Attention is causal: padding is never seen."""
    lengths = torch.tensor([len(ids) for ids in conversations])
    input_ids = torch.zeros(len(conversations), lengths.max(), dtype=torch.long)  # (N, L)
    for i, ids in enumerate(conversations):
        input_ids[i, : len(ids)] = torch.tensor(ids)
    hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state  # (N, L, D)
    scored = hidden[torch.arange(len(conversations)), lengths - 1]  # (N, D) at the last token
    return head(scored)[:, 0]


# The optimizer: AdamW; weight decay is 0, as in train.py.
optimizer = torch.optim.AdamW(
    model.parameters(), lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0
)
steps_per_epoch = math.ceil(len(rows) / args.batch_size)
total_steps = steps_per_epoch * args.epochs
warmup = max(1, round(0.05 * total_steps))


def learning_rate(step: int) -> float:
    """Linear warmup over 5% of the steps, then a cosine down to 1% of the peak."""
    if step <= warmup:
        return args.lr * (step / warmup)
    floor = 0.01 * args.lr
    t = (step - warmup) / (total_steps - warmup)
    return floor + (args.lr - floor) * (1 + math.cos(math.pi * t)) / 2


for step in range(1, (args.steps or total_steps) + 1):
    # plan: every pair once per epoch, in an order that depends on seed and epoch alone
    epoch, position = divmod(step - 1, steps_per_epoch)
    order = np.random.default_rng([args.seed, epoch]).permutation(len(rows))
    batch = [rows[i] for i in order[position * args.batch_size : (position + 1) * args.batch_size]]

    # forward
    chosen = rewards_of([pair[0] for pair in batch])  # (B,)
    rejected = rewards_of([pair[1] for pair in batch])  # (B,)
    margin = chosen - rejected

    # loss: P(chosen is better) = sigmoid(margin) (Bradley & Terry 1952); ln 2 = 0.693 at first
    loss = -F.logsigmoid(margin).mean()

    # backward, clip, rate, update
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    optimizer.step()
    optimizer.zero_grad()

    # log
    accuracy = (margin > 0).float().mean().item()
    print(f"step {step} loss {loss.item():.6f} accuracy {accuracy:.3f}", flush=True)

# save: a folder for AutoModelForSequenceClassification and vLLM
model.config.problem_type = "regression"  # or pipelines would squash the reward by a sigmoid
model.config.pad_token_id = tokenizer.pad_token_id
model.save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
print(f"{args.output}: saved")
