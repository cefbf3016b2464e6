"""train.py beside TRL's RewardTrainer: do they compute the same training, and how fast?

    reads   pairs (--data-path; without it, made on the spot)
            a model (--model; else a small Qwen3 with random weights) with its tokenizer
            a tokenizer for the latter (--tokenizer-path; else trained on those pairs)
    writes  a table on stdout, the same numbers with --json PATH
            exit status 1 where a difference exceeds the tolerance

    python benchmarks/vs_trl.py --parity --json parity.json
    python benchmarks/vs_trl.py --parity --model models/smollm2-135m-instruct --data-path FILE \
        --max-length 160 --pairs 80 --batch-size 4 --epochs 1 --lr 5e-5
    python benchmarks/vs_trl.py --speed --json speed.json        under 10 minutes on 2 idle cores

Needs the packages of benchmarks/requirements.txt, best in a separate environment.

--parity: both sides start from one saved sequence classifier (a small Qwen3 with random weights, or
--model with a new head) and run on the CPU in float32:
    ours  the repository's train.py in a process of its own: packed passes; its metrics.jsonl and
          saved folder are read
    TRL   trl.RewardTrainer: its own tokenization, padding, pooling, loss, AdamW (adamw_torch_fused,
          Hugging Face's default) and clipping
Made equal, since they differ by default or by design:
    order     epochs are laid end to end in rmood.batching.epoch_order and TRL samples sequentially;
              a whole number of batches an epoch, one batch a step on TRL's side
    schedule  TRL gets rmood.schedule.learning_rate as a LambdaLR. That counts from 0, ours from 1:
              lambda(s) = rate(s + 1). (Hugging Face's own warmup gives step 1 the rate 0, and its
              cosine never reaches the minimum)
    off       TRL's bf16 and gradient checkpointing (on by default), centring, weight decay,
              dropout; max_length 2048 (TRL: 1024)
Differences, each at most TOLERANCE:
    loss      of each step, |ours - TRL| / TRL
    reward    mean, minimum and maximum of each step, and every pair's rewards by the two final
              models (ours through rmood.scoring, TRL's through transformers), over the largest
              |reward| of that step or model
    weight    of each tensor at the end, ||ours - TRL|| / ||TRL||
Also printed: the median seconds of a step of each side, and their ratio. The two run one after the
other: on a busy machine, look at --speed, where they take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
import vs_trl_speed
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    TrainerCallback,
)
from workload import import_trl

from rmood.batching import epoch_order
from rmood.cli import opt, parse
from rmood.errors import UserError, run_script
from rmood.files.rows import check_writable, write_json, write_jsonl
from rmood.files.tables import read_pairs
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import load_scorer
from rmood.tokenization import encode_rendered

TOLERANCE = 1e-4
COMPARED = ("max_loss_diff", "max_reward_diff", "max_weight_diff")  # held to TOLERANCE
RELATIVE_TO = {
    "loss": "to TRL's loss of the step",
    "reward": "to TRL's largest |reward| of the step or model",
    "weight": "to the norm of TRL's tensor",
}

# The same on both sides.
MAX_LENGTH = 2048
MAX_GRAD_NORM = 1.0
WARMUP_RATIO = 0.05
MIN_LR_RATIO = 0.01

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
)
WORDS = "river moon garden forest bridge window candle island hammer apple".split()


@dataclass(frozen=True)
class Config:
    # fmt: off
    parity: bool = opt(False, "train both ways from equal beginnings and compare losses, rewards and weights")
    speed: bool = opt(False, "time both ways; it reads --steps, --device and --seed, --parity reads the other flags and --seed")
    json: str = opt("", "write the numbers to this file")
    data_path: str = opt("", "pairs to train on; none: made on the spot")
    model: str = opt("", "a causal LM to start from, with its tokenizer; none: a small Qwen3 with random weights")
    tokenizer_path: str = opt("", "a tokenizer with a chat template; none: --model's, or a ChatML one trained on the pairs")
    max_length: int = opt(2048, "use only pairs whose conversations have at most so many tokens", at_least=8, at_most=2048)
    pairs: int = opt(256, "use at most this many of the pairs; rounded down to whole batches", at_least=8)
    batch_size: int = opt(16, "pairs per optimizer step", at_least=1)
    epochs: int = opt(4, "passes over the pairs", at_least=1)
    lr: float = opt(3e-4, "peak learning rate; at 1e-3 rounding noise grows to 1e-3 in 64 steps, on both sides", above=0)
    tokens_per_pass: int = opt(16384, "train.py's flag: several passes a step where it is small", at_least=16)
    layout: str = opt("packed", "train.py's flag", choices=["packed", "padded"])
    hidden_size: int = opt(64, "hidden size of the model, which has 4 layers", at_least=16)
    steps: int = opt(3, "timed steps of 64 pairs", at_least=1, at_most=14)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cpu", "cuda"])
    seed: int = opt(0, "seed for the weights, the made-up pairs and the order")
    # fmt: on


def main() -> int:
    cfg = parse(Config, f"{__doc__}\n{vs_trl_speed.__doc__}")
    if cfg.parity == cfg.speed:
        raise UserError("vs_trl.py: nothing to do, or too much: pass either --parity or --speed")
    if cfg.json:
        check_writable(cfg.json)
    import_trl()  # its absence is reported at once
    with tempfile.TemporaryDirectory() as folder:
        if cfg.parity:
            numbers, passed = parity(cfg, Path(folder))
        else:
            numbers = vs_trl_speed.speed(cfg.steps, cfg.device, cfg.seed, Path(folder))
            passed = numbers["same_work"]
    if cfg.json:
        write_json(cfg.json, numbers | {"config": vars(cfg)})
    return 0 if passed else 1


# ---- one beginning for both sides ----------------------------------------------------------------


def make_rows(count: int, seed: int) -> list[dict]:
    """Pairs with something to learn: gold adds a value for each word, and the labels are drawn by
    Bradley-Terry from gold's margin."""
    value = np.linspace(-1, 1, len(WORDS))
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        user = "please " * rng.integers(0, 20) + "name some things"
        prompt = [{"role": "system", "content": ""}, {"role": "user", "content": user}]
        answers = [rng.integers(0, len(WORDS), size=rng.integers(1, 13)) for _ in range(2)]
        gold_margin = value[answers[0]].sum() - value[answers[1]].sum()
        if rng.random() > 1 / (1 + np.exp(-gold_margin)):
            answers.reverse()
        row = {}
        for side, answer in zip(("chosen", "rejected"), answers):
            text = " ".join(WORDS[i] for i in answer)
            row[side] = prompt + [{"role": "assistant", "content": text}]
        rows.append(row)
    return rows


def read_rows(cfg: Config) -> list[dict]:
    """{"chosen", "rejected"} a row; no other key, since TRL would read some as settings."""
    if not cfg.data_path:
        return make_rows(cfg.pairs, cfg.seed)
    pairs = read_pairs(cfg.data_path)
    return [{"chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]


def whole_batches(cfg: Config, rows: list[dict], tokenizer) -> list[dict]:
    """The first --pairs rows that are short enough, a whole number of batches."""
    short = []
    for row in rows:
        ids = encode_rendered([row["chosen"], row["rejected"]], tokenizer, ["chosen", "rejected"])
        if max(map(len, ids)) <= cfg.max_length:
            short.append(row)
    count = min(len(short), cfg.pairs) // cfg.batch_size * cfg.batch_size
    if not count:
        raise UserError(
            f"vs_trl.py: {len(short)} pairs of at most {cfg.max_length} tokens make no batch of "
            f"{cfg.batch_size}: lower --batch-size, or raise --max-length"
        )
    return short[:count]


def make_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 512 tokens with ChatML's special tokens.

    Pad is not eos: both sides score the newline after <|im_end|>.
    """
    texts = [message["content"] for row in rows for side in row.values() for message in side]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def save_classifier(cfg: Config, tokenizer, folder: Path):
    """--model with a new head, or a Qwen3 classifier with random weights: float32; returns it."""
    torch.manual_seed(cfg.seed)
    if cfg.model:
        model = AutoModelForSequenceClassification.from_pretrained(
            cfg.model, num_labels=1, dtype=torch.float32
        )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = random_qwen3(cfg, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def random_qwen3(cfg: Config, tokenizer) -> Qwen3ForSequenceClassification:
    config = Qwen3Config(
        hidden_size=cfg.hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=cfg.hidden_size // 4,
        intermediate_size=3 * cfg.hidden_size,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForSequenceClassification(config)


# ---- the two trainings ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one side's training ended with.

    steps: for each step loss, reward_mean, reward_min, reward_max, grad_norm, accuracy,
        learning_rate, seconds
    rewards: (B, 2) of the final model for all pairs in file order, chosen first
    weights: by transformers' names
    """

    steps: list[dict[str, float]]
    rewards: torch.Tensor
    weights: dict[str, torch.Tensor]


def train_ours(cfg: Config, rows: list[dict], start: Path, folder: Path) -> Outcome:
    """train.py as anyone runs it."""
    pairs = folder / "pairs.jsonl"
    output = folder / "ours"
    write_jsonl(str(pairs), rows)
    flags = {
        "--model-name": start,
        "--data-path": pairs,
        "--output-dir": output,
        "--lr": cfg.lr,
        "--epochs": cfg.epochs,
        "--batch-size": cfg.batch_size,
        "--seed": cfg.seed,
        "--precision": "float32",
        "--device": "cpu",
        "--layout": cfg.layout,
        "--tokens-per-pass": cfg.tokens_per_pass,
        "--max-length": MAX_LENGTH,
        "--warmup-ratio": WARMUP_RATIO,
        "--min-lr-ratio": MIN_LR_RATIO,
        "--max-grad-norm": MAX_GRAD_NORM,
        "--weight-decay": 0.0,
    }
    command = [sys.executable, str(REPOSITORY / "train.py")]
    command += [f"{flag}={value}" for flag, value in flags.items()]
    environment = os.environ | {"RMOOD_HOME": str(folder)}
    if subprocess.run(command, stdout=sys.stderr, env=environment).returncode:
        raise UserError("train.py ended with an error: see above")

    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "loss" in line]  # not the lines of an epoch
    for step in steps:
        step["seconds"] = cfg.batch_size / step["pairs_per_s"]
    scorer = load_scorer(str(output), dtype="float32", max_length=MAX_LENGTH)
    conversations = [[row["chosen"], row["rejected"]] for row in rows]
    rewards = torch.tensor(scorer.score(conversations, desc="scoring, ours"))  # (B, 2)
    scorer.process.finish()
    return Outcome(steps, rewards, load_file(output / "model.safetensors"))


def train_trl(cfg: Config, rows: list[dict], start: Path, folder: Path) -> Outcome:
    """trl.RewardTrainer with the same order and the same rates."""
    trl, datasets = import_trl()
    order = []
    for epoch in range(cfg.epochs):
        order += epoch_order(len(rows), cfg.batch_size, cfg.seed, epoch)
    order = np.concatenate(order)
    total_steps = len(order) // cfg.batch_size
    warmup = warmup_steps(total_steps, WARMUP_RATIO)

    class SameRates(trl.RewardTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            def rate(updates: int) -> float:
                step = min(updates + 1, total_steps)  # it asks once more after the last
                return learning_rate(step, total_steps, warmup, 1.0, MIN_LR_RATIO)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

    seconds = []  # of each step, as train.py counts them: from log to log

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.began)
            self.began = time.perf_counter()

    class QuietBar(ProgressCallback):
        def on_log(self, *args, **kwargs):  # it would print every step's numbers
            pass

    args = trl.RewardConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=MAX_LENGTH,
        seed=cfg.seed,
        num_train_epochs=1,  # all epochs laid end to end
        per_device_train_batch_size=cfg.batch_size,
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=cfg.lr,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,
    )
    dataset = datasets.Dataset.from_list([rows[i] for i in order])
    trainer = SameRates(model=str(start), args=args, train_dataset=dataset)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietBar)
    trainer.add_callback(Clock())
    trainer.train()

    names = {"mean_reward": "reward_mean", "min_reward": "reward_min", "max_reward": "reward_max"}
    steps = []
    for line in trainer.state.log_history:
        if "loss" in line:
            steps.append({names.get(name, name): value for name, value in line.items()})
    for step, taken in zip(steps, seconds):
        step["seconds"] = taken
    rewards = score_with_trl(trainer, order[: len(rows)], cfg.batch_size)
    weights = {name: weight.detach() for name, weight in trainer.model.state_dict().items()}
    return Outcome(steps, rewards, weights)


@torch.no_grad()
def score_with_trl(trainer, order: np.ndarray, batch_size: int) -> torch.Tensor:
    """(B, 2) rewards in file order, chosen first. order: the pairs as the first epoch had them."""
    trainer.model.eval()
    rewards = torch.zeros(len(order), 2)
    for start in range(0, len(order), batch_size):
        end = start + batch_size
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(start, end)])
        logits = trainer.model(**batch, use_cache=False).logits
        rewards[order[start:end]] = logits.view(2, -1).T  # all chosen come first
    return rewards


# ---- the comparison ------------------------------------------------------------------------------


def compare(ours: Outcome, trl: Outcome, start: dict[str, torch.Tensor]) -> dict:
    """The largest relative differences; RELATIVE_TO says relative to what. start: the weights
    before training."""
    assert len(ours.steps) == len(trl.steps)
    assert ours.weights.keys() == trl.weights.keys() == start.keys()

    # steps
    losses, rewards, norms, rates = [], [], [], []
    for a, b in zip(ours.steps, trl.steps):
        losses.append(abs(a["loss"] - b["loss"]) / b["loss"])
        norms.append(abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"])
        rates.append(abs(a["learning_rate"] - b["learning_rate"]))
        largest_reward = max(abs(b["reward_min"]), abs(b["reward_max"]))
        for name in ("reward_mean", "reward_min", "reward_max"):
            rewards.append(abs(a[name] - b[name]) / largest_reward)

    # final models
    of_pairs = (ours.rewards - trl.rewards).abs().max() / trl.rewards.abs().max()
    rewards.append(of_pairs.item())
    weights = {}
    square_apart = square_moved = 0.0  # of all weights together
    for name, weight in trl.weights.items():
        weights[name] = ((ours.weights[name] - weight).norm() / weight.norm()).item()
        square_apart += (ours.weights[name] - weight).square().sum()
        square_moved += (start[name] - weight).square().sum()
    return {
        "steps": len(trl.steps),
        "max_loss_diff": max(losses),
        "max_reward_diff": max(rewards),
        "max_weight_diff": max(weights.values()),
        "worst_tensor": max(weights, key=weights.get),
        # between the two final models, over TRL's distance from the start
        "distance_over_moved": (square_apart.sqrt() / square_moved.sqrt()).item(),
        "max_grad_norm_diff": max(norms),
        "max_rate_diff": max(rates) / max(step["learning_rate"] for step in trl.steps),
    }


def compare_speed(ours: list[dict], trl: list[dict]) -> dict[str, float]:
    """Median seconds of the steps after the first, and how many times as long TRL takes."""
    medians = []
    for steps in (ours, trl):
        medians.append(statistics.median([step["seconds"] for step in steps[1:] or steps]))
    return {
        "seconds_ours": medians[0],
        "seconds_trl": medians[1],
        "ratio": medians[1] / medians[0],
    }


def parity(cfg: Config, folder: Path) -> tuple[dict, bool]:
    """The numbers, and whether all differences are within the tolerance; prints them."""
    rows = read_rows(cfg)
    if cfg.tokenizer_path or cfg.model:
        tokenizer = AutoTokenizer.from_pretrained(cfg.tokenizer_path or cfg.model)
    else:
        tokenizer = make_tokenizer(rows)
    rows = whole_batches(cfg, rows, tokenizer)
    start = folder / "start"
    model = save_classifier(cfg, tokenizer, start)
    parameters, kind = model.num_parameters(), type(model).__name__
    del model
    ours = train_ours(cfg, rows, start, folder)
    trl = train_trl(cfg, rows, start, folder)
    differences = compare(ours, trl, load_file(start / "model.safetensors"))
    equal = all(differences[name] <= TOLERANCE for name in COMPARED)
    packages = ("trl", "transformers", "accelerate", "datasets", "torch")
    versions = {name: version(name) for name in packages}

    print(
        f"{len(rows)} pairs, {cfg.epochs} epochs, {differences['steps']} steps of "
        f"{cfg.batch_size}; {kind} of {parameters:,} parameters, float32 on the CPU"
    )
    print("; ".join(f"{name} {number}" for name, number in versions.items()))
    print_steps(ours.steps, trl.steps)
    print_differences(differences)
    speed = compare_speed(ours.steps, trl.steps)
    print(
        f"median seconds a step: train.py {speed['seconds_ours']:.2f}, TRL "
        f"{speed['seconds_trl']:.2f}: ratio {speed['ratio']:.2f}, both in float32"
    )
    numbers = (
        differences
        | speed
        | {
            "tolerance": TOLERANCE,
            "relative": RELATIVE_TO,
            "equal": equal,
            "parameters": parameters,
            "pairs": len(rows),
            "versions": versions,
            "losses": {
                "train.py": [step["loss"] for step in ours.steps],
                "trl": [step["loss"] for step in trl.steps],
            },
        }
    )
    return numbers, equal


def print_steps(ours: list[dict], trl: list[dict]) -> None:
    """The first three steps, every eighth part of the run, and the last step."""
    print(f"\n{'':6}{'loss':^24}{'largest reward':^24}{'gradient norm':^24}")
    print(f"{'step':6}" + f"{'train.py':>12}{'TRL':>12}" * 3)
    count = len(trl)
    eighths = range(count // 8 - 1, count, max(1, count // 8))
    for i in sorted({0, 1, 2, *eighths, count - 1}):
        line = f"{i + 1:<6}"
        for name in ("loss", "reward_max", "grad_norm"):
            line += f"{ours[i][name]:12.6f}{trl[i][name]:12.6f}"
        print(line)


def print_differences(differences: dict) -> None:
    print(f"\n{'largest relative difference':40}{'':4}tolerance {TOLERANCE:g}")
    for name in COMPARED:
        verdict = "equal" if differences[name] <= TOLERANCE else "DIFFERENT"
        print(f"{name:40}{differences[name]:10.1e}  {verdict}")
    for name in ("distance_over_moved", "max_grad_norm_diff"):
        print(f"{name:40}{differences[name]:10.1e}")


if __name__ == "__main__":
    run_script(main)
