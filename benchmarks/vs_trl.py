"""train.py beside TRL's RewardTrainer: do they compute the same training?

    reads   pairs (--data-path; without it, made on the spot) and a tokenizer (--tokenizer-path; else trained on those pairs)
    writes  a table on stdout, the same numbers with --json PATH; exit status 1 where a difference exceeds the tolerance

    python benchmarks/vs_trl.py --parity --json parity.json

Needs the packages of benchmarks/requirements.txt, best in an environment of their own. Both sides start from one saved
sequence classifier (a small Qwen3, random weights and head) and run on the CPU in float32:
    ours  the repository's train.py in a process of its own: packed passes; its metrics.jsonl and saved folder are read
    TRL   trl.RewardTrainer: its own tokenization, padding, pooling, loss, AdamW (adamw_torch_fused, HF's default) and clipping
Made equal, since they differ by default or by design:
    order     epochs are laid end to end in rmood.batching.epoch_order and TRL samples sequentially; a whole number of
              batches an epoch, one batch a step on TRL's side
    schedule  TRL gets rmood.schedule.learning_rate as a LambdaLR. That counts from 0, ours from 1: lambda(s) = rate(s + 1).
              (Hugging Face's own warmup gives step 1 the rate 0, and its cosine never reaches the floor)
    off       TRL's bf16 and gradient checkpointing (on by default), centring, weight decay, dropout; max_length 2048 (TRL: 1024)
Differences, each at most TOLERANCE:
    loss      of each step, |ours - TRL| / TRL
    reward    mean, minimum and maximum of each step, and every pair's rewards by the two final models (ours through
              rmood.scoring, TRL's through transformers), over the largest |reward| of that step or model
    weight    of each tensor at the end, ||ours - TRL|| / ||TRL||
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, ProgressCallback, Qwen3Config, Qwen3ForSequenceClassification

from rmood import records
from rmood.batching import epoch_order
from rmood.config import opt, parse, run_script
from rmood.records import BadInput, Pair
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import load_scorer

TOLERANCE = 1e-4
MAX_LENGTH, MAX_GRAD_NORM, WARMUP_RATIO, MIN_LR_RATIO = 2048, 1.0, 0.05, 0.01
CHATML = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"


@dataclass(frozen=True)
class Config:
    parity: bool = opt(False, "train both ways from equal beginnings and compare losses, rewards and weights")
    json: str = opt("", "write the numbers to this file")
    data_path: str = opt("", "pairs to train on; none: made on the spot")
    tokenizer_path: str = opt("", "a tokenizer with a chat template; none: a ChatML one trained on the pairs")
    pairs: int = opt(256, "use so many of the pairs, at most; rounded down to whole batches", at_least=8)
    batch_size: int = opt(16, "pairs a step", at_least=1)
    epochs: int = opt(4, "passes over the pairs", at_least=1)
    lr: float = opt(3e-4, "peak learning rate; at 1e-3 rounding noise grows to 1e-3 in 64 steps, on both sides", above=0)
    tokens_per_pass: int = opt(16384, "of train.py: several passes a step where it is small", at_least=16)
    layout: str = opt("packed", "of train.py", choices=["packed", "padded"])
    hidden_size: int = opt(64, "of the model; 4 layers", at_least=16)
    seed: int = opt(0, "of the weights and the order")


def main() -> int:
    cfg = parse(Config, __doc__)
    if not cfg.parity:
        raise BadInput("vs_trl.py: nothing to do: pass --parity")
    if cfg.json:
        records.check_writable(cfg.json)
    import_trl()
    with tempfile.TemporaryDirectory() as folder:
        return parity(cfg, Path(folder))


def import_trl():
    try:
        import datasets
        import trl
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed: make an environment of its own and pip install -r benchmarks/requirements.txt")
    return trl, datasets


# ---- one beginning for both sides ------------------------------------------------------------------------------


def make_rows(count: int, seed: int) -> list[dict]:
    """Pairs with something to learn: gold adds a value a word, and the labels are drawn by Bradley-Terry from gold's gap."""
    words = "river moon garden forest bridge window candle island hammer apple".split()
    value, rng, rows = np.linspace(-1, 1, len(words)), np.random.default_rng(seed), []
    for _ in range(count):
        prompt = [{"role": "system", "content": ""}, {"role": "user", "content": "please " * rng.integers(0, 20) + "name some things"}]
        named = [rng.integers(0, len(words), size=rng.integers(1, 13)) for _ in range(2)]
        if rng.random() > 1 / (1 + np.exp(value[named[1]].sum() - value[named[0]].sum())):
            named.reverse()
        chosen, rejected = (prompt + [{"role": "assistant", "content": " ".join(words[i] for i in answer)}] for answer in named)
        rows.append({"chosen": chosen, "rejected": rejected})
    return rows


def read_rows(cfg: Config) -> list[dict]:
    """{"chosen", "rejected"} a row, a whole number of batches; no other key, since TRL would read some as settings."""
    if cfg.data_path:
        rows = [{"chosen": pair.chosen, "rejected": pair.rejected} for pair in records.read_pairs(cfg.data_path)]
    else:
        rows = make_rows(cfg.pairs, cfg.seed)
    count = min(len(rows), cfg.pairs) // cfg.batch_size * cfg.batch_size
    if not count:
        raise BadInput(f"vs_trl.py: {len(rows)} pairs make no batch of {cfg.batch_size}: lower --batch-size")
    return rows[:count]


def make_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 512 tokens with ChatML's special tokens; pad is not eos: both sides score the newline after <|im_end|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [message["content"] for row in rows for side in row.values() for message in side]
    special, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=CHATML)


def save_classifier(cfg: Config, tokenizer, folder: Path) -> int:
    """A Qwen3 sequence classifier with random weights and head, float32; returns its number of parameters."""
    size = cfg.hidden_size
    sizes = dict(hidden_size=size, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=size // 4, intermediate_size=3 * size)
    tokens = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True, num_labels=1, **sizes, **tokens)
    torch.manual_seed(cfg.seed)
    model = Qwen3ForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


# ---- the two trainings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """steps: per step loss, reward_mean, reward_min, reward_max, grad_norm, accuracy, learning_rate; rewards: (B, 2) of the
    final model for all pairs in file order, chosen first; weights by transformers' names."""

    steps: list[dict[str, float]]
    rewards: torch.Tensor
    weights: dict[str, torch.Tensor]


def train_ours(cfg: Config, rows: list[dict], start: Path, folder: Path) -> Outcome:
    """train.py as anyone runs it."""
    records.write_jsonl(str(folder / "pairs.jsonl"), rows)
    settings = dict(model_name=start, data_path=folder / "pairs.jsonl", output_dir=folder / "ours", lr=cfg.lr, epochs=cfg.epochs, batch_size=cfg.batch_size, seed=cfg.seed)
    settings |= dict(precision="float32", device="cpu", layout=cfg.layout, tokens_per_pass=cfg.tokens_per_pass, max_length=MAX_LENGTH)
    settings |= dict(warmup_ratio=WARMUP_RATIO, min_lr_ratio=MIN_LR_RATIO, max_grad_norm=MAX_GRAD_NORM, weight_decay=0.0)
    command = [sys.executable, REPOSITORY / "train.py", *(f"--{name}={value}" for name, value in settings.items())]
    if subprocess.run(list(map(str, command)), stdout=sys.stderr, env=os.environ | {"RMOOD_HOME": str(folder)}).returncode:
        raise BadInput("train.py ended with an error: see above")
    lines = [json.loads(line) for line in (folder / "ours" / "metrics.jsonl").read_text().splitlines()]
    scorer = load_scorer(str(folder / "ours"), dtype="float32", max_length=MAX_LENGTH)
    rewards = torch.tensor(scorer.score([[row["chosen"], row["rejected"]] for row in rows], desc="scoring, ours"))  # (B, 2)
    scorer.process.finish()
    return Outcome([line for line in lines if "loss" in line], rewards, load_file(folder / "ours" / "model.safetensors"))


def train_trl(cfg: Config, rows: list[dict], start: Path, folder: Path) -> Outcome:
    """trl.RewardTrainer with the same order and the same rates."""
    trl, datasets = import_trl()
    order = np.concatenate([step for epoch in range(cfg.epochs) for step in epoch_order(len(rows), cfg.batch_size, cfg.seed, epoch)])
    total = len(order) // cfg.batch_size
    warmup = warmup_steps(total, WARMUP_RATIO)

    class SameRates(trl.RewardTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            def rate(s):  # s updates were taken; asked once more after the last
                return learning_rate(min(s + 1, total), total, warmup, 1.0, MIN_LR_RATIO)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

    class QuietBar(ProgressCallback):
        def on_log(self, *args, **kwargs):  # it would print every step's numbers
            pass

    args = trl.RewardConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=MAX_LENGTH, seed=cfg.seed,
        num_train_epochs=1, per_device_train_batch_size=cfg.batch_size, train_sampling_strategy="sequential",
        optim="adamw_torch_fused", learning_rate=cfg.lr, weight_decay=0.0, max_grad_norm=MAX_GRAD_NORM,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=False,
    )  # fmt: skip
    trainer = SameRates(model=str(start), args=args, train_dataset=datasets.Dataset.from_list([rows[i] for i in order]))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietBar)
    trainer.train()
    names = {"mean_reward": "reward_mean", "min_reward": "reward_min", "max_reward": "reward_max"}
    steps = [{names.get(name, name): value for name, value in line.items()} for line in trainer.state.log_history if "loss" in line]
    tokenized, by_pair = trainer.train_dataset, torch.zeros(len(rows), 2)
    trainer.model.eval()
    with torch.no_grad():
        for begin in range(0, len(rows), cfg.batch_size):  # the first epoch holds every pair once
            batch = trainer.data_collator([tokenized[i] for i in range(begin, begin + cfg.batch_size)])
            by_pair[order[begin : begin + cfg.batch_size]] = trainer.model(**batch, use_cache=False).logits.view(2, -1).T  # chosen first
    return Outcome(steps, by_pair, {name: weight.detach() for name, weight in trainer.model.state_dict().items()})


# ---- the comparison --------------------------------------------------------------------------------------------


def compare(ours: Outcome, trl: Outcome, start: dict[str, torch.Tensor]) -> dict:
    """The largest relative differences; what each is relative to stands at the top of this file."""
    assert len(ours.steps) == len(trl.steps) and ours.weights.keys() == trl.weights.keys() == start.keys()
    losses = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours.steps, trl.steps)]
    of_steps = [
        max(abs(a[name] - b[name]) for name in ("reward_mean", "reward_min", "reward_max")) / max(abs(b["reward_min"]), abs(b["reward_max"]))
        for a, b in zip(ours.steps, trl.steps)
    ]
    of_pairs = (ours.rewards - trl.rewards).abs().max() / trl.rewards.abs().max()
    weights = {name: ((ours.weights[name] - weight).norm() / weight.norm()).item() for name, weight in trl.weights.items()}
    distance = sum((ours.weights[name] - weight).square().sum() for name, weight in trl.weights.items()).sqrt()
    moved = sum((start[name] - weight).square().sum() for name, weight in trl.weights.items()).sqrt()
    return {
        "steps": len(trl.steps),
        "max_loss_diff": max(losses),
        "max_reward_diff": max(*of_steps, of_pairs.item()),
        "max_weight_diff": max(weights.values()),
        "worst_tensor": max(weights, key=weights.get),
        "distance_over_moved": (distance / moved).item(),  # between the two ends, over TRL's way from the start
        "max_grad_norm_diff": max(abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"] for a, b in zip(ours.steps, trl.steps)),
        "max_rate_diff": max(abs(a["learning_rate"] - b["learning_rate"]) for a, b in zip(ours.steps, trl.steps)) / max(b["learning_rate"] for b in trl.steps),
    }


def parity(cfg: Config, folder: Path) -> int:
    rows = read_rows(cfg)
    tokenizer = AutoTokenizer.from_pretrained(cfg.tokenizer_path) if cfg.tokenizer_path else make_tokenizer(rows)
    parameters = save_classifier(cfg, tokenizer, folder / "start")
    ours = train_ours(cfg, rows, folder / "start", folder)
    trl = train_trl(cfg, rows, folder / "start", folder)
    numbers = compare(ours, trl, load_file(folder / "start" / "model.safetensors"))
    versions = {name: version(name) for name in ("trl", "transformers", "accelerate", "datasets", "torch")}
    limits = {name: numbers[name] <= TOLERANCE for name in ("max_loss_diff", "max_reward_diff", "max_weight_diff")}

    print(f"{len(rows)} pairs, {cfg.epochs} epochs, {numbers['steps']} steps of {cfg.batch_size}; Qwen3 of {parameters:,} parameters, float32 on the CPU")
    print("; ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"\n{'':6}{'loss':^24}{'largest reward':^24}{'gradient norm':^24}\n{'step':6}" + f"{'train.py':>12}{'TRL':>12}" * 3)
    for i in sorted({0, 1, 2, *range(numbers["steps"] // 8 - 1, numbers["steps"], max(1, numbers["steps"] // 8)), numbers["steps"] - 1}):
        cells = [side.steps[i][name] for name in ("loss", "reward_max", "grad_norm") for side in (ours, trl)]
        print(f"{i + 1:<6}" + "".join(f"{value:12.6f}" for value in cells))
    print(f"\n{'largest relative difference':40}{'':4}tolerance {TOLERANCE:g}")
    for name, within in limits.items():
        print(f"{name:40}{numbers[name]:10.1e}  {'equal' if within else 'DIFFERENT'}")
    print(f"{'between the ends, over the way there':40}{numbers['distance_over_moved']:10.1e}\n{'max_grad_norm_diff':40}{numbers['max_grad_norm_diff']:10.1e}")
    if cfg.json:
        relative = {"loss": "to TRL's loss of the step", "reward": "to TRL's largest |reward| of the step or model", "weight": "to the norm of TRL's tensor"}
        facts = {"tolerance": TOLERANCE, "relative": relative, "equal": all(limits.values()), "parameters": parameters, "pairs": len(rows)}
        facts |= {"config": vars(cfg), "versions": versions}
        facts |= {"losses": {"train.py": [step["loss"] for step in ours.steps], "trl": [step["loss"] for step in trl.steps]}}
        records.write_json(cfg.json, numbers | facts)
    return 0 if all(limits.values()) else 1


if __name__ == "__main__":
    run_script(main)
