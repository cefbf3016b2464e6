"""train.py beside TRL's RewardTrainer: do they compute the same training, and how fast?

    reads   pairs (--data-path; without it, made on the spot) and a tokenizer (--tokenizer-path; else trained on those pairs)
    writes  a table on stdout, the same numbers with --json PATH; exit status 1 where a difference exceeds the tolerance

    python benchmarks/vs_trl.py --parity --json parity.json
    python benchmarks/vs_trl.py --speed --json speed.json        under 10 minutes on 2 idle cores

Needs the packages of benchmarks/requirements.txt, best in an environment of their own.

--parity: both sides start from one saved sequence classifier (a small Qwen3, random weights and head) and run on the CPU in
float32:
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

--speed: each contestant in a process of its own, from one saved classifier, over the same pairs of AlpacaFarm (where absent,
made-up ones of the same lengths), 64 an optimizer step. On a CPU those of one precision take turns, a step each, so that
whatever else the machine does hits them alike; on CUDA they run one after the other.
    train.py         itself, at its defaults, and in the other precision (on CUDA also without recomputation); its own pairs_per_s
    TRL, defaults    bf16 autocast, gradient checkpointing, 16 x 4 random pairs, padded; a callback's clock from log to log
    TRL, the rest    checkpointing off, float32 or bf16; `grouped`: sorted by length over the timed pairs, as group_by_length does
                     within 192 pairs of such a file (RewardTrainer takes it only with a `length` column and remove_unused_columns off)
Model loading, tokenization and the first step (short pairs, to warm up) are not timed; that step's loss must be the same on
all sides. The model is a Qwen3 whose layers are 12.6 million parameters on a CPU (hidden 512, 4 layers), Qwen3-0.6B's on CUDA.
Its vocabulary is the tokens that occur, renumbered for both sides: with all 151,936, the embedding would be 86% of a model of
512, and 1.2 GB of weights, gradients and moments a process, where in a 4B model it is a tenth.
    ratio_default    pairs/s of train.py over TRL at its defaults, both in bf16, TRL's default (--precision mixed, train.py's on CUDA)
    ratio_best       pairs/s of train.py at its fastest over TRL at its fastest
"""

import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
import workload
from estimate import GIB, Shape
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast, ProgressCallback, Qwen3Config, Qwen3ForSequenceClassification, TrainerCallback

from rmood import records
from rmood.batching import Group, epoch_order
from rmood.checkpoint import RunLog
from rmood.config import opt, parse, run_script
from rmood.records import BadInput, Pair
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import load_scorer
from rmood.tokenization import encode, render

TOLERANCE = 1e-4
FIRST_LOSS = {"float32": 1e-3, "bf16": 1e-2}  # relative, of --speed
MAX_LENGTH, MAX_GRAD_NORM, WARMUP_RATIO, MIN_LR_RATIO = 2048, 1.0, 0.05, 0.01
CONTESTANT = "--contestant"  # how --speed starts this file again, with a task in JSON
CHATML = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"


@dataclass(frozen=True)
class Config:
    parity: bool = opt(False, "train both ways from equal beginnings and compare losses, rewards and weights")
    speed: bool = opt(False, "time both ways; of the flags below, --steps, --device and --seed belong to it, the others to --parity")
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
    steps: int = opt(3, "timed steps of 64 pairs", at_least=1, at_most=14)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cpu", "cuda"])
    seed: int = opt(0, "of the weights and the order")


def main() -> int:
    cfg = parse(Config, __doc__)
    if cfg.parity == cfg.speed:
        raise BadInput("vs_trl.py: nothing to do, or too much: pass either --parity or --speed")
    if cfg.json:
        records.check_writable(cfg.json)
    import_trl()
    with tempfile.TemporaryDirectory() as folder:
        return (parity if cfg.parity else speed)(cfg, Path(folder))


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


# ---- --speed: the contestants ----------------------------------------------------------------------------------

BATCH, MICRO = 64, 16  # pairs an optimizer step; TRL's per_device_train_batch_size, times 4 accumulations (the reference's)
GOALS = {"ratio_default": 3.0, "ratio_best": 2.0}
SHAPES = {
    "cpu": Shape(layers=4, hidden=512, heads=8, kv_heads=4, head=64, mlp=1536),  # 12.6 million parameters in its layers
    "cuda": Shape(layers=28, hidden=1024, heads=16, kv_heads=8, head=128, mlp=3072),  # Qwen3-0.6B's
}


@dataclass(frozen=True)
class Contestant:
    """settings: flags of train.py, or what TRL's RewardConfig is given beyond what all are given."""

    name: str
    precision: str  # float32 or bf16, of the arithmetic
    settings: dict
    grouped: bool = False  # passes of similar lengths

    @property
    def ours(self) -> bool:
        return self.name.startswith("train.py")


def contestants(device: str) -> list[Contestant]:
    """train.py at its defaults first; TRL at its defaults; the rest."""
    off = {"activation_checkpointing": "off"} if device == "cuda" else {}
    other = Contestant("train.py, no checkpointing", "bf16", off) if device == "cuda" else Contestant("train.py, bf16", "bf16", {"precision": "mixed"})
    found = [Contestant("train.py, defaults", "bf16" if device == "cuda" else "float32", {}), Contestant("TRL, defaults", "bf16", {}), other]
    if device == "cuda":
        found.append(Contestant("train.py, float32, no checkpointing", "float32", off | {"precision": "float32"}))
    for precision in ("float32", "bf16"):
        settings = {"bf16": precision == "bf16", "gradient_checkpointing": False}
        found += [Contestant(f"TRL, {precision}{', grouped' * grouped}", precision, settings, grouped) for grouped in (False, True)]
    return found


def run_contestant() -> None:
    """A process of its own: the training as anyone runs it, which reports each step and waits until it is its turn again."""
    task = json.loads(sys.argv[2])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainers print goes to the log
    device, mark = task["device"], 0.0

    def report_and_wait(**step) -> None:
        nonlocal mark
        step, mark = step | {"cpu_seconds": time.process_time() - mark}, time.process_time()
        peaks = {"peak_rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "peak_cuda": torch.cuda.max_memory_allocated() if device == "cuda" else 0}
        print(json.dumps(step | peaks), file=channel, flush=True)
        if not sys.stdin.readline():
            os._exit(0)

    (run_ours if task["ours"] else run_trl)(task, report_and_wait)


def run_ours(task: dict, report_and_wait) -> None:
    """train.py itself. It reads its clock before it writes a line of metrics and again after it: waiting there costs it nothing."""
    write = RunLog.write

    def write_and_wait(self, metrics, timing=None):
        write(self, metrics, timing)
        if timing:
            seconds = BATCH / timing["pairs_per_s"]
            report_and_wait(seconds=seconds, loss=metrics["loss"], tokens=timing["tokens_per_s"] * seconds)

    RunLog.write = write_and_wait
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in task["settings"].items())]
    runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")


def run_trl(task: dict, report_and_wait) -> None:
    """trl.RewardTrainer. Its clock runs from the end of one step's log to the end of the next one's, as train.py's does."""
    trl, datasets = import_trl()
    cuda, mark, tokens = task["device"] == "cuda", 0.0, 0

    class Turns(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            nonlocal mark
            mark = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            nonlocal mark, tokens
            if "loss" in logs:  # not the summary at the end
                torch.cuda.synchronize() if cuda else None
                report_and_wait(seconds=time.perf_counter() - mark, loss=logs["loss"], tokens=tokens)
                mark, tokens = time.perf_counter(), 0

    args = trl.RewardConfig(
        use_cpu=not cuda, per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO, num_train_epochs=1, max_length=MAX_LENGTH,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, **task["settings"],
    )  # fmt: skip
    rows = [json.loads(line) for line in Path(task["rows"]).read_text().splitlines()]
    trainer = trl.RewardTrainer(model=task["model"], args=args, train_dataset=datasets.Dataset.from_list(rows), callbacks=[Turns()])

    def count(module, args, kwargs):  # not where batches are made: they are made ahead
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()


# ---- --speed: the race -----------------------------------------------------------------------------------------


def speed_rows(steps: int, seed: int) -> tuple[list[dict], list[Group], PreTrainedTokenizerFast, str]:
    """(1 + steps) * 64 pairs in the order of their steps, their tokens, a tokenizer, and what they are. Of 100 draws of the timed
    pairs, the one with the most typical padding; the first step is there to warm up: the shortest of the pairs left over.
    Which response is `chosen` is of no matter to speed."""
    prompts, responses, tokenizer, what = workload.texts(1000, seed=seed)
    groups = [Group(encode([render(talk, tokenizer) for talk in pair], tokenizer)) for pair in records.conversations(prompts, responses)]
    rng = np.random.default_rng(seed)
    draws = [[groups[i] for i in rng.permutation(len(groups))] for _ in range(100)]
    padding = np.array([[padded(draw[: BATCH * steps], grouped) for grouped in (False, True)] for draw in draws])  # one long text can double it
    typical = draws[int(np.abs(padding / padding.mean(axis=0) - 1).sum(axis=1).argmin())]
    timed, left = typical[: BATCH * steps], typical[BATCH * steps :]
    groups = sorted(left, key=lambda group: group.tokens)[:BATCH] + timed
    return [as_words(group) for group in groups], groups, tokenizer_of_words(groups), what


def longest_first(groups: list[Group]) -> list[int]:
    """What sampling by length does."""
    return sorted(range(len(groups)), key=lambda i: -max(map(len, groups[i].rows)))


def padded(groups: list[Group], grouped: bool) -> float:
    """Tokens that passes of 16 pairs compute, padded to the longest, over the unique ones."""
    order = longest_first(groups) if grouped else range(len(groups))
    longest = [max(map(len, groups[i].rows)) for i in order]
    return sum(2 * len(longest[i : i + MICRO]) * max(longest[i : i + MICRO]) for i in range(0, len(longest), MICRO)) / sum(group.tokens for group in groups)


def as_words(group: Group) -> dict:
    """The pair with its token ids written as words, so that any trainer's tokenizer gives each of them back as one token."""
    say = lambda ids: " ".join(map(str, ids))  # noqa: E731
    prompt, p = {"role": "user", "content": say(group.rows[0][: group.prefix])}, group.prefix
    return {side: [prompt, {"role": "assistant", "content": say(row[p:])}] for side, row in zip(("chosen", "rejected"), group.rows)}


def tokenizer_of_words(groups: list[Group]) -> PreTrainedTokenizerFast:
    """One token for each id that occurs, so that the embedding is not most of the model; 0 is the pad token."""
    words = ["<pad>", "<eos>", *map(str, sorted({i for group in groups for row in group.rows for i in row}))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=template)


def speed(cfg: Config, folder: Path) -> int:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("vs_trl.py: --device cuda, but torch sees no GPU here: pass --device cpu")
    began, field = time.monotonic(), contestants(device)
    rows, groups, tokenizer, what = speed_rows(cfg.steps, cfg.seed)
    shape = replace(SHAPES[device], vocabulary=len(tokenizer))
    torch.manual_seed(cfg.seed)
    model = Qwen3ForSequenceClassification(workload.model_config(shape))
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    parameters = model.num_parameters()
    del model
    shuffled = np.concatenate(epoch_order(len(rows), BATCH, cfg.seed, 0))  # train.py's own order of a file, undone here
    orders = {"ours": np.argsort(shuffled), "random": range(len(rows)), "grouped": [*range(BATCH), *(BATCH + i for i in longest_first(groups[BATCH:]))]}
    for name, order in orders.items():
        records.write_jsonl(str(folder / f"{name}.jsonl"), [rows[i] for i in order])

    steps, load = race(field, cfg, device, folder)
    numbers = measure(field, steps, groups[BATCH:])
    numbers |= {"pairs": len(rows) - BATCH, "what": what, "device": device, "shape": asdict(shape), "parameters": parameters, "layer_parameters": shape.layers * shape.layer_parameters}
    numbers |= {"machine": workload.machine() | {name: version(name) for name in ("trl", "accelerate", "datasets")}, "load": load, "config": vars(cfg)}
    numbers |= {"minutes": (time.monotonic() - began) / 60}
    print(describe(numbers))
    if cfg.json:
        records.write_json(cfg.json, numbers)
    return 0 if numbers["same_work"] else 1


def race(field: list[Contestant], cfg: Config, device: str, folder: Path) -> tuple[dict[str, list[dict]], list[float]]:
    """Each contestant's steps by name, and the machine's load before each round. On a CPU those of one precision are alive
    together and take turns, a step each, so that what else the machine does hits them alike; on CUDA one after the other."""
    steps, load = {}, []
    by_precision = [[one for one in field if one.precision == precision] for precision in ("bf16", "float32")]
    fields = by_precision if device == "cpu" else [[one] for one in field]  # all at once would take 20 GB
    with tqdm(total=len(field) * (1 + cfg.steps), unit="step", smoothing=0) as bar:
        for together in fields:
            children: dict[str, subprocess.Popen] = {}
            try:
                for one in together:
                    bar.set_description(one.name)
                    children[one.name] = launch(one, cfg, device, folder)
                    steps[one.name] = [next_step(children[one.name], one.name, folder)]
                    bar.update()
                for _ in range(cfg.steps):
                    load.append(os.getloadavg()[0])
                    for name, child in children.items():
                        bar.set_description(name)
                        child.stdin.write("go\n")
                        child.stdin.flush()
                        steps[name].append(next_step(child, name, folder))
                        bar.update()
            finally:
                for child in children.values():
                    child.kill()
                    child.wait()
    return steps, load


def launch(one: Contestant, cfg: Config, device: str, folder: Path) -> subprocess.Popen:
    output, start = str(folder / one.name), str(folder / "start")
    if one.ours:
        settings = dict(model_name=start, data_path=str(folder / "ours.jsonl"), output_dir=output, epochs=1, seed=cfg.seed, device=device) | one.settings
    else:
        settings = dict(output_dir=output) | one.settings
    task = dict(ours=one.ours, device=device, model=start, rows=str(folder / ("grouped.jsonl" if one.grouped else "random.jsonl")), settings=settings)
    with open(folder / f"{one.name}.log", "w") as log:
        return subprocess.Popen([sys.executable, __file__, CONTESTANT, json.dumps(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)


def next_step(child: subprocess.Popen, name: str, folder: Path) -> dict:
    """seconds, loss, tokens computed, peak memory; waits for them."""
    line = child.stdout.readline()
    if not line:
        print((folder / f"{name}.log").read_text()[-4000:], file=sys.stderr)
        raise BadInput(f"{name}: ended with status {child.wait()}: see above")
    return json.loads(line)


def measure(field: list[Contestant], steps: dict[str, list[dict]], timed: list[Group]) -> dict:
    """The ratios and every figure behind them. All did the same pairs, though not in the same order: pairs/s is all over all."""
    useful, found = sum(len(row) for group in timed for row in group.rows), {}
    for name, (first, *others) in steps.items():
        seconds = sum(step["seconds"] for step in others)
        found[name] = {"pairs_per_s": len(timed) / seconds, "useful_tokens_per_s": useful / seconds, "tokens_computed_per_step": sum(step["tokens"] for step in others) / len(others)}
        found[name] |= {"peak_rss_GiB": others[-1]["peak_rss"] / GIB, "peak_cuda_GiB": others[-1]["peak_cuda"] / GIB}
        found[name] |= {"cpu_seconds_per_step": sum(step["cpu_seconds"] for step in others) / len(others), "seconds": [step["seconds"] for step in others], "first_seconds": first["seconds"], "losses": [step["loss"] for step in (first, *others)]}
    rates = {name: one["pairs_per_s"] for name, one in found.items()}
    ours, best = (max((one.name for one in field if one.ours == side), key=rates.get) for side in (True, False))
    like_trl = next(one.name for one in field if one.ours and one.precision == "bf16")
    for name, rate in rates.items():
        found[name]["ratio"] = rates[ours] / rate
    sides = {"ratio_default": (like_trl, "TRL, defaults"), "ratio_best": (ours, best)}
    numbers = {"goals": GOALS, "sides": sides} | {name: rates[a] / rates[b] for name, (a, b) in sides.items()}
    cpu = {name: one["cpu_seconds_per_step"] for name, one in found.items()}  # a busy machine disturbs it less; waiting for a GPU counts too
    numbers |= {f"cpu_{name}": cpu[b] / cpu[a] for name, (a, b) in sides.items()}
    for precision in ("float32", "bf16"):
        ours_in, trl_in = ([one.name for one in field if one.precision == precision and one.ours == ours] for ours in (True, False))
        numbers[f"ratio_best_{precision}"] = max(map(rates.get, ours_in)) / max(map(rates.get, trl_in))
        losses = [found[name]["losses"][0] for name in ours_in + trl_in]  # the first step holds the same pairs everywhere
        numbers[f"first_loss_spread_{precision}"] = (max(losses) - min(losses)) / min(losses)
    numbers |= {"same_work": all(numbers[f"first_loss_spread_{precision}"] <= limit for precision, limit in FIRST_LOSS.items())}
    return numbers | {"useful_tokens_per_step": BATCH * useful / len(timed), "unique_tokens_per_step": BATCH * sum(group.tokens for group in timed) / len(timed), "contestants": found}


def describe(numbers: dict) -> str:
    cuda = numbers["device"] == "cuda"
    head = ["", "pairs/s", "useful tokens/s", "tokens computed a step", "peak memory, GiB", "the fastest train.py over it", "first loss"]
    rows = []
    for name, one in numbers["contestants"].items():
        peak = one["peak_cuda_GiB" if cuda else "peak_rss_GiB"]
        rows.append([name, f"{one['pairs_per_s']:.2f}", f"{one['useful_tokens_per_s']:,.0f}", f"{one['tokens_computed_per_step']:,.0f}", f"{peak:.2f}", f"{one['ratio']:.2f}", f"{one['losses'][0]:.5f}"])
    machine = ", ".join(f"{name} {value}" for name, value in numbers["machine"].items())
    lines = [f"{numbers['what']}: {numbers['pairs']} of them as pairs, {BATCH} a step, {numbers['useful_tokens_per_step']:,.0f} tokens a step ({numbers['unique_tokens_per_step']:,.0f} unique)"]
    lines += [f"Qwen3 of {numbers['parameters']:,} parameters, {numbers['layer_parameters']:,} of them in its layers, on {numbers['device']}; load {min(numbers['load']):.1f} to {max(numbers['load']):.1f}", machine, ""]
    lines += [workload.table(head, rows), ""]
    for name, (ours, trl) in numbers["sides"].items():
        verdict = "reached" if numbers[name] >= GOALS[name] else "MISSED"
        in_cpu_time = "" if cuda else f" (by CPU time {numbers[f'cpu_{name}']:.2f})"
        lines.append(f"{name:19}{numbers[name]:5.2f}  {ours} over {trl}{in_cpu_time}; goal {GOALS[name]:.1f}: {verdict}")
    more = {f"ratio_best_{precision}": f"the fastest of each side in {precision}" for precision in ("float32", "bf16")}
    lines += [f"{name:19}{numbers[name]:5.2f}  {text}" for name, text in more.items()]
    spreads = [f"{numbers[f'first_loss_spread_{precision}']:.1e} in {precision} (tolerance {limit:g})" for precision, limit in FIRST_LOSS.items()]
    return "\n".join(lines + [f"first losses differ by {' and '.join(spreads)}: {'the same work' if numbers['same_work'] else 'DIFFERENT WORK'}; {numbers['minutes']:.1f} minutes"])


if __name__ == "__main__":
    run_contestant() if sys.argv[1:2] == [CONTESTANT] else run_script(main)
