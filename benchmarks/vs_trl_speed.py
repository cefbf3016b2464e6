"""--speed: pairs a second of train.py beside TRL's RewardTrainer (vs_trl.py --speed).

Each contestant is a process of its own, from one saved classifier, over the same pairs of
AlpacaFarm (where absent, made-up ones of the same lengths), 64 an optimizer step. On a CPU those of
one precision take turns, a step each, so that whatever else the machine does affects them alike; on
CUDA they run one after the other.
    train.py         itself, at its defaults, and in the other precision (on CUDA also without
                     recomputation)
    TRL, defaults    bf16 autocast, gradient checkpointing, 16 x 4 random pairs, padded
    TRL, the rest    checkpointing off, float32 or bf16; `grouped`: sorted by length over the timed
                     pairs, as group_by_length does within 192 pairs of such a file (RewardTrainer
                     takes it only with a `length` column and remove_unused_columns off)
Both sides are timed from log to log. Model loading, tokenization and the first step (short pairs,
to warm up) are not timed; that step's loss must be the same on all sides. The model is a Qwen3
whose layers are 12.6 million parameters on a CPU (hidden 512, 4 layers), Qwen3-0.6B's on CUDA. Its
vocabulary is the tokens that occur, renumbered for both sides: with all 151,936, the embedding
would be 86% of a model of 512, and 1.2 GB of weights, gradients and moments a process, where in a
4B model it is a tenth.
    ratio_default    pairs/s of train.py over TRL at its defaults, both in bf16, TRL's default
                     (--precision mixed, train.py's on CUDA)
    ratio_best       pairs/s of train.py at its fastest over TRL at its fastest
"""

# vs_trl.py shows the text above in its --help and calls speed(), which starts this file again for
# each contestant, with a task in JSON.

import json
import os
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
import workload
from estimate import GIB, Shape, table
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3ForSequenceClassification, TrainerCallback

from rmood.batching import Group, epoch_order
from rmood.errors import UserError
from rmood.files.rows import write_jsonl
from rmood.files.tables import join_conversations
from rmood.runlog import RunLog
from rmood.tokenization import encode, render

BATCH = 64  # pairs an optimizer step
MICRO = 16  # TRL's per_device_train_batch_size, times 4 accumulations (the reference's)
MAX_LENGTH = 2048
GOALS = {"ratio_default": 3.0, "ratio_best": 2.0}
PRECISIONS = ("bf16", "float32")
FIRST_LOSS = {"float32": 1e-3, "bf16": 1e-2}  # largest relative spread between contestants
SHAPES = {
    # 12.6 million parameters in its layers
    "cpu": Shape(layers=4, hidden=512, heads=8, kv_heads=4, head=64, mlp=1536),
    # Qwen3-0.6B's
    "cuda": Shape(layers=28, hidden=1024, heads=16, kv_heads=8, head=128, mlp=3072),
}


@dataclass(frozen=True)
class Contestant:
    """One trainer in one setting."""

    name: str
    precision: str  # float32 or bf16, of the arithmetic
    settings: dict  # flags of train.py, or of TRL's RewardConfig, beyond what all are given
    grouped: bool = False  # passes of similar lengths

    @property
    def ours(self) -> bool:
        return self.name.startswith("train.py")


def make_contestants(device: str) -> list[Contestant]:
    """train.py at its defaults first; TRL at its defaults; the rest."""
    trl_defaults = Contestant("TRL, defaults", "bf16", {})
    if device == "cuda":
        off = {"activation_checkpointing": "off"}
        off_float32 = off | {"precision": "float32"}
        contestants = [
            Contestant("train.py, defaults", "bf16", {}),
            trl_defaults,
            Contestant("train.py, no checkpointing", "bf16", off),
            Contestant("train.py, float32, no checkpointing", "float32", off_float32),
        ]
    else:
        contestants = [
            Contestant("train.py, defaults", "float32", {}),
            trl_defaults,
            Contestant("train.py, bf16", "bf16", {"precision": "mixed"}),
        ]
    for precision in ("float32", "bf16"):
        settings = {"bf16": precision == "bf16", "gradient_checkpointing": False}
        contestants += [
            Contestant(f"TRL, {precision}", precision, settings),
            Contestant(f"TRL, {precision}, grouped", precision, settings, grouped=True),
        ]
    return contestants


def speed(steps: int, device: str, seed: int, folder: Path) -> dict:
    """Runs all contestants for `steps` timed steps; prints and returns the numbers."""
    began = time.monotonic()
    device = choose_device(device)
    contestants = make_contestants(device)
    rows, groups, tokenizer, description = speed_rows(steps, seed)
    timed = groups[BATCH:]
    shape = replace(SHAPES[device], vocabulary=len(tokenizer))
    parameters = save_classifier(shape, tokenizer, seed, folder / "start")
    write_orders(rows, groups, seed, folder)

    measured, load = run_all(contestants, steps, device, seed, folder)
    versions = {name: version(name) for name in ("trl", "accelerate", "datasets")}
    numbers = measure(contestants, measured, timed) | {
        "pairs": len(timed),
        "what": description,
        "device": device,
        "shape": asdict(shape),
        "parameters": parameters,
        "layer_parameters": shape.layers * shape.layer_parameters,
        "machine": workload.machine() | versions,
        "load": load,
        "minutes": (time.monotonic() - began) / 60,
    }
    print(describe(numbers))
    return numbers


def choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("vs_trl.py: --device cuda, but torch sees no GPU here: pass --device cpu")
    return device


# ---- the pairs -----------------------------------------------------------------------------------


def speed_rows(
    steps: int, seed: int
) -> tuple[list[dict], list[Group], PreTrainedTokenizerFast, str]:
    """(1 + steps) * 64 pairs in the order of their steps, their tokens, a tokenizer, and a
    description.

    Of 100 draws of the timed pairs, the one with the most typical padding (one long text can double
    it). The first step is there to warm up: the shortest of the pairs left over. Which response is
    `chosen` does not matter to speed.
    """
    prompts, responses, tokenizer, description = workload.texts(1000, seed=seed)
    groups = []
    for pair in join_conversations(prompts, responses):
        rendered = [render(conversation, tokenizer) for conversation in pair]
        groups.append(Group(encode(rendered, tokenizer)))

    rng = np.random.default_rng(seed)
    draws = []
    padding = []  # (draws, 2): random, grouped
    for _ in range(100):
        draw = [groups[i] for i in rng.permutation(len(groups))]
        timed = draw[: BATCH * steps]
        draws.append(draw)
        padding.append([padded(timed, grouped=False), padded(timed, grouped=True)])
    relative = np.array(padding) / np.mean(padding, axis=0)
    typical = draws[int(np.abs(relative - 1).sum(axis=1).argmin())]

    timed = typical[: BATCH * steps]
    left_over = typical[BATCH * steps :]
    warmup = sorted(left_over, key=lambda group: group.tokens)[:BATCH]
    groups = warmup + timed
    return [as_words(group) for group in groups], groups, tokenizer_of_words(groups), description


def longest_row(group: Group) -> int:
    return max(len(row) for row in group.rows)


def longest_first(groups: list[Group]) -> list[int]:
    """The order that sampling by length gives."""
    return sorted(range(len(groups)), key=lambda i: -longest_row(groups[i]))


def padded(groups: list[Group], grouped: bool) -> float:
    """Tokens that passes of 16 pairs compute, padded to the longest, over the unique ones."""
    order = longest_first(groups) if grouped else range(len(groups))
    lengths = [longest_row(groups[i]) for i in order]
    computed = 0
    for start in range(0, len(lengths), MICRO):
        of_pass = lengths[start : start + MICRO]
        computed += 2 * len(of_pass) * max(of_pass)
    return computed / sum(group.tokens for group in groups)


def as_words(group: Group) -> dict:
    """The pair with its token ids written as words, so that any trainer's tokenizer gives each of
    them back as one token."""

    def words(ids) -> str:
        return " ".join(map(str, ids))

    prompt = {"role": "user", "content": words(group.rows[0][: group.prefix])}
    row = {}
    for side, ids in zip(("chosen", "rejected"), group.rows):
        row[side] = [prompt, {"role": "assistant", "content": words(ids[group.prefix :])}]
    return row


def tokenizer_of_words(groups: list[Group]) -> PreTrainedTokenizerFast:
    """One token for each id that occurs, so that the embedding is not most of the model; 0 is the
    pad token."""
    ids = {i for group in groups for row in group.rows for i in row}
    words = ["<pad>", "<eos>", *map(str, sorted(ids))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ message.content }} {% endfor %}",
    )


def write_orders(rows: list[dict], groups: list[Group], seed: int, folder: Path) -> None:
    """ours.jsonl, random.jsonl and grouped.jsonl: the same pairs, the first step's first."""
    # train.py shuffles the file: put the rows where its shuffle brings them back in order
    shuffled = np.concatenate(epoch_order(len(rows), BATCH, seed, 0))
    by_length = [BATCH + i for i in longest_first(groups[BATCH:])]
    orders = {
        "ours": np.argsort(shuffled),
        "random": range(len(rows)),
        "grouped": [*range(BATCH), *by_length],
    }
    for name, order in orders.items():
        write_jsonl(str(folder / f"{name}.jsonl"), [rows[i] for i in order])


def save_classifier(shape: Shape, tokenizer, seed: int, folder: Path) -> int:
    """Random weights; returns their number."""
    torch.manual_seed(seed)
    model = Qwen3ForSequenceClassification(workload.model_config(shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


# ---- all contestants, in turn --------------------------------------------------------------------


def run_all(
    contestants: list[Contestant], steps: int, device: str, seed: int, folder: Path
) -> tuple[dict[str, list[dict]], list[float]]:
    """The steps of each contestant by name, the first one included, and the machine's load before
    each round.

    On a CPU those of one precision are alive together and take turns, a step each (all at once
    would take 20 GB); on CUDA one runs after the other.
    """
    if device == "cpu":
        together = []
        for precision in PRECISIONS:
            together.append([one for one in contestants if one.precision == precision])
    else:
        together = [[one] for one in contestants]

    measured: dict[str, list[dict]] = {}
    load: list[float] = []
    with tqdm(total=len(contestants) * (1 + steps), unit="step", smoothing=0) as bar:
        for group in together:
            run_together(group, steps, device, seed, folder, measured, load, bar)
    return measured, load


def run_together(
    contestants: list[Contestant],
    steps: int,
    device: str,
    seed: int,
    folder: Path,
    measured: dict[str, list[dict]],
    load: list[float],
    bar: tqdm,
) -> None:
    """Adds to `measured` and `load`."""
    children: dict[str, subprocess.Popen] = {}
    try:
        for one in contestants:
            bar.set_description(one.name)
            children[one.name] = launch(one, device, seed, folder)
            measured[one.name] = [next_step(children[one.name], one.name, folder)]
            bar.update()
        for _ in range(steps):
            load.append(os.getloadavg()[0])
            for name, child in children.items():
                bar.set_description(name)
                child.stdin.write("go\n")
                child.stdin.flush()
                measured[name].append(next_step(child, name, folder))
                bar.update()
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def launch(one: Contestant, device: str, seed: int, folder: Path) -> subprocess.Popen:
    start = str(folder / "start")
    settings = {"output_dir": str(folder / one.name)}
    if one.ours:
        settings |= {
            "model_name": start,
            "data_path": str(folder / "ours.jsonl"),
            "epochs": 1,
            "seed": seed,
            "device": device,
        }
    task = {
        "ours": one.ours,
        "device": device,
        "model": start,
        "rows": str(folder / ("grouped.jsonl" if one.grouped else "random.jsonl")),
        "settings": settings | one.settings,
    }
    with open(folder / f"{one.name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, __file__, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def next_step(child: subprocess.Popen, name: str, folder: Path) -> dict:
    """Waits for what the contestant reports of its next step: seconds, cpu_seconds, loss, tokens
    computed, peak memory in bytes."""
    line = child.stdout.readline()
    if not line:
        print((folder / f"{name}.log").read_text()[-4000:], file=sys.stderr)
        raise UserError(f"{name}: ended with status {child.wait()}: see above")
    return json.loads(line)


# ---- one contestant, in its own process ----------------------------------------------------------


def run_contestant(task: dict) -> None:
    """The training as anyone runs it, which reports each step and waits until it is its turn
    again."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainers print goes to the log
    cpu_before = 0.0

    def report_and_wait(seconds: float, loss: float, tokens: float) -> None:
        nonlocal cpu_before
        cpu_now = time.process_time()
        on_cuda = task["device"] == "cuda"
        step = {
            "seconds": seconds,
            "loss": loss,
            "tokens": tokens,
            "cpu_seconds": cpu_now - cpu_before,
            "peak_rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "peak_cuda": torch.cuda.max_memory_allocated() if on_cuda else 0,
        }
        cpu_before = cpu_now
        print(json.dumps(step), file=channel, flush=True)
        if not sys.stdin.readline():  # the parent has closed it: all steps are done
            os._exit(0)

    if task["ours"]:
        run_ours(task, report_and_wait)
    else:
        run_trl(task, report_and_wait)


def run_ours(task: dict, report_and_wait: Callable) -> None:
    """train.py itself. The clock runs from the end of one step's log to the end of the next one's;
    waiting in between is not counted. The first step, which is not timed, has train.py's own."""
    write = RunLog.write
    step_began = None

    def write_and_wait(self, metrics, timing=None):
        nonlocal step_began
        write(self, metrics, timing)
        if not timing:  # the line of an epoch
            return
        seconds = BATCH / timing["pairs_per_s"]
        tokens = timing["tokens_per_s"] * seconds
        if step_began is not None:
            seconds = time.perf_counter() - step_began
        report_and_wait(seconds, metrics["loss"], tokens)
        step_began = time.perf_counter()

    RunLog.write = write_and_wait
    flags = [f"--{name}={value}" for name, value in task["settings"].items()]
    sys.argv = ["train.py", *flags]
    runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")


def run_trl(task: dict, report_and_wait: Callable) -> None:
    """trl.RewardTrainer, with the same clock."""
    trl, datasets = workload.import_trl()
    on_cuda = task["device"] == "cuda"
    step_began = 0.0
    tokens = 0  # computed since then

    class Turns(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            nonlocal step_began
            step_began = time.perf_counter()

        def on_log(self, args, state, control, logs=None, **kwargs):
            nonlocal step_began, tokens
            if "loss" not in logs:  # the summary at the end
                return
            if on_cuda:
                torch.cuda.synchronize()
            report_and_wait(time.perf_counter() - step_began, logs["loss"], tokens)
            step_began = time.perf_counter()
            tokens = 0

    def count_tokens(module, args, kwargs):  # not where batches are made: they are made ahead
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    args = trl.RewardConfig(
        use_cpu=not on_cuda,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO,
        num_train_epochs=1,
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **task["settings"],
    )
    rows = [json.loads(line) for line in Path(task["rows"]).read_text().splitlines()]
    trainer = trl.RewardTrainer(
        model=task["model"],
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[Turns()],
    )
    trainer.model.register_forward_pre_hook(count_tokens, with_kwargs=True)
    trainer.train()


# ---- the numbers ---------------------------------------------------------------------------------


def measure(
    contestants: list[Contestant], steps: dict[str, list[dict]], timed: list[Group]
) -> dict:
    """The ratios and every figure behind them.

    All did the same pairs, though not in the same order: pairs/s is all pairs over all seconds.
    """
    numbers: dict = {"goals": GOALS}
    found = {name: summarize(of_one, timed) for name, of_one in steps.items()}
    rates = {name: one["pairs_per_s"] for name, one in found.items()}
    # A busy machine disturbs CPU time less; waiting for a GPU counts too.
    cpu = {name: one["cpu_seconds_per_step"] for name, one in found.items()}

    def names(ours: bool, precision: str | None = None) -> list[str]:
        return [
            one.name
            for one in contestants
            if one.ours == ours and precision in (None, one.precision)
        ]

    # the ratios
    fastest_ours = max(names(ours=True), key=rates.get)
    fastest_trl = max(names(ours=False), key=rates.get)
    ours_in_bf16 = names(ours=True, precision="bf16")[0]
    sides = {
        "ratio_default": (ours_in_bf16, "TRL, defaults"),
        "ratio_best": (fastest_ours, fastest_trl),
    }
    numbers["sides"] = sides
    for ratio, (ours, trl) in sides.items():
        numbers[ratio] = rates[ours] / rates[trl]
        numbers[f"cpu_{ratio}"] = cpu[trl] / cpu[ours]
    for name, rate in rates.items():
        found[name]["ratio"] = rates[fastest_ours] / rate

    # within one precision; the first step holds the same pairs everywhere
    same_work = True
    for precision in PRECISIONS:
        ours = names(ours=True, precision=precision)
        trl = names(ours=False, precision=precision)
        best_ours = max(rates[name] for name in ours)
        best_trl = max(rates[name] for name in trl)
        numbers[f"ratio_best_{precision}"] = best_ours / best_trl
        losses = [found[name]["losses"][0] for name in ours + trl]
        spread = (max(losses) - min(losses)) / min(losses)
        numbers[f"first_loss_spread_{precision}"] = spread
        same_work = same_work and spread <= FIRST_LOSS[precision]

    unique = sum(group.tokens for group in timed)
    return numbers | {
        "same_work": same_work,
        "useful_tokens_per_step": BATCH * useful_tokens(timed) / len(timed),
        "unique_tokens_per_step": BATCH * unique / len(timed),
        "contestants": found,
    }


def useful_tokens(groups: list[Group]) -> int:
    return sum(len(row) for group in groups for row in group.rows)


def summarize(steps: list[dict], timed: list[Group]) -> dict:
    """One contestant's figures. steps: as it reported them; the first is not timed."""
    first, *others = steps
    seconds = [step["seconds"] for step in others]
    cpu_seconds = [step["cpu_seconds"] for step in others]
    tokens = [step["tokens"] for step in others]
    return {
        "pairs_per_s": len(timed) / sum(seconds),
        "useful_tokens_per_s": useful_tokens(timed) / sum(seconds),
        "tokens_computed_per_step": sum(tokens) / len(others),
        "peak_rss_GiB": others[-1]["peak_rss"] / GIB,
        "peak_cuda_GiB": others[-1]["peak_cuda"] / GIB,
        "cpu_seconds_per_step": sum(cpu_seconds) / len(others),
        "seconds": seconds,
        "first_seconds": first["seconds"],
        "losses": [step["loss"] for step in steps],
    }


def describe(numbers: dict) -> str:
    lines = [
        f"{numbers['what']}: {numbers['pairs']} of them as pairs, {BATCH} a step, "
        f"{numbers['useful_tokens_per_step']:,.0f} tokens a step "
        f"({numbers['unique_tokens_per_step']:,.0f} unique)",
        f"Qwen3 of {numbers['parameters']:,} parameters, "
        f"{numbers['layer_parameters']:,} of them in its layers, on {numbers['device']}; "
        f"load {min(numbers['load']):.1f} to {max(numbers['load']):.1f}",
        workload.describe(numbers["machine"]),
        "",
        contestant_table(numbers),
        "",
    ]
    for name, (ours, trl) in numbers["sides"].items():
        by_cpu = f" (by CPU time {numbers[f'cpu_{name}']:.2f})"
        if numbers["device"] == "cuda":
            by_cpu = ""
        verdict = "reached" if numbers[name] >= GOALS[name] else "MISSED"
        lines.append(
            f"{name:19}{numbers[name]:5.2f}  {ours} over {trl}{by_cpu}; "
            f"goal {GOALS[name]:.1f}: {verdict}"
        )
    for precision in ("float32", "bf16"):
        name = f"ratio_best_{precision}"
        lines.append(f"{name:19}{numbers[name]:5.2f}  the fastest of each side in {precision}")
    spreads = []
    for precision, limit in FIRST_LOSS.items():
        spread = numbers[f"first_loss_spread_{precision}"]
        spreads.append(f"{spread:.1e} in {precision} (tolerance {limit:g})")
    verdict = "the same work" if numbers["same_work"] else "DIFFERENT WORK"
    lines.append(
        f"first losses differ by {' and '.join(spreads)}: {verdict}; "
        f"{numbers['minutes']:.1f} minutes"
    )
    return "\n".join(lines)


def contestant_table(numbers: dict) -> str:
    head = ["", "pairs/s", "useful tokens/s", "tokens computed a step", "peak memory, GiB"]
    head += ["the fastest train.py over it", "first loss"]
    peak = "peak_cuda_GiB" if numbers["device"] == "cuda" else "peak_rss_GiB"
    rows = []
    for name, one in numbers["contestants"].items():
        rows.append(
            [
                name,
                f"{one['pairs_per_s']:.2f}",
                f"{one['useful_tokens_per_s']:,.0f}",
                f"{one['tokens_computed_per_step']:,.0f}",
                f"{one[peak]:.2f}",
                f"{one['ratio']:.2f}",
                f"{one['losses'][0]:.5f}",
            ]
        )
    return table(head, rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("vs_trl_speed.py: run python benchmarks/vs_trl.py --speed", file=sys.stderr)
        sys.exit(2)
    run_contestant(json.loads(sys.argv[1]))
