"""Stage 4: train the proxy reward model on chosen/rejected pairs by Bradley-Terry.

    reads   datasets/<dataset>/rm/rm_implicit.jsonl   from preprocess.py
            a causal LM (the SFT model), or a sequence classifier to train further
    writes  models/<name>/                            for evaluate.py, label.py, transformers, vLLM
            with metrics.jsonl and tensorboard/ inside, and checkpoints/ until it is finished

    torchrun train.py --lr 5e-5 --epochs 2
    torchrun --nproc-per-node 8 train.py --lr 5e-5 --epochs 2
    python train.py --dataset toy --lr 1e-3 --epochs 4

The same algorithm in one naive file: examples/minimal.py.

    B pairs of a pass or step, N conversations and T unique tokens of a pass, D hidden size
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    # CUDA memory in pieces that can grow, as passes differ in size; read when torch is imported
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rmood import distributed
from rmood.batching import (
    LAYOUTS,
    Batch,
    Group,
    check_budget,
    epoch_order,
    largest_planned_pass,
    plan_step,
)
from rmood.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    checkpoints,
    discard_checkpoints,
    is_finished,
    load_checkpoint,
    step_of,
)
from rmood.cli import opt, parse
from rmood.distributed import Process, to_device
from rmood.errors import UserError, is_main_process, run_script
from rmood.export import model_card, save_reward_model
from rmood.files.provenance import check_lineage, lock, run_facts
from rmood.files.rows import check_writable
from rmood.files.tables import Pair, describe_pairs, read_pairs
from rmood.hub import model_commit
from rmood.loading import check_token_ids, fill, meta_reward_model
from rmood.loss import loss_equation, pair_losses
from rmood.metrics import HEALTHY, pair_metrics
from rmood.model import RewardModel
from rmood.optim import UpdateMeter, build_optimizer, clip_gradients, fill_moments
from rmood.runlog import RunLog, discard_log
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import score_groups
from rmood.sharding import (
    PRECISIONS,
    compile_layers,
    decoder_layers,
    default_precision,
    fit_into_gpu,
    layers_asked_for,
    recompute_layers,
    shard,
    shards_of,
)
from rmood.tokenization import (
    choose_pad_token,
    encode_rendered,
    leave_out_long,
    load_tokenizer,
    show_row,
    template_sha256,
)


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data and model")
    model_name: str = opt("{sft}", "start from this causal LM or sequence classifier: a folder, or owner/model or owner/model@revision on the hub")
    data_path: str = opt("{pairs}", "training pairs, from preprocess.py")
    output_dir: str = opt("{proxy}", "folder for the trained model")
    eval_path: str = opt("", "held-out pairs, evaluated at the end of each epoch")
    eval_share: float = opt(0.0, "without --eval-path: hold out this share of the prompts", at_least=0, at_most=0.5)
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    max_length: int = opt(2048, "longest conversation in tokens; pairs with a longer one are left out", at_least=8)
    overwrite: bool = opt(False, "replace what is already in --output-dir", group="checkpoints")
    resume: str = opt("no", "auto: resume from the newest checkpoint in --output-dir, if there is one", choices=["no", "auto"])
    save_every: int = opt(0, "steps between checkpoints; 0: one at the end of each epoch", at_least=0)
    save_minutes: float = opt(0.0, "also save a checkpoint when the last one is this many minutes old; 0: off", at_least=0)
    keep: int = opt(1, "number of checkpoints to keep while training", at_least=1)
    lr: float = opt(5e-5, "peak learning rate; at 5e-6 a 4B model's rewards stay compressed", group="optimization", above=0)
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    batch_size: int = opt(64, "pairs (or groups of responses, where the data holds groups) per optimizer step, over all processes and passes (label.py and sample.py count prompts)", at_least=1)
    warmup_ratio: float = opt(0.05, "share of the steps in which the rate rises to its peak", at_least=0, at_most=1)
    min_lr_ratio: float = opt(0.01, "the last step's rate over the peak; above 0, so that the last step still learns", at_least=0, at_most=1)
    weight_decay: float = opt(0.0, "AdamW's weight decay, on matrices only", at_least=0)
    max_grad_norm: float = opt(1.0, "gradients are scaled down to this common norm", above=0)
    max_bad_steps: int = opt(3, "stop after this many steps in a row with a reward, loss or gradient that is not finite", at_least=1)
    margin_scale: float = opt(0.0, "subtract this times gold's margin from the margin before the loss (Touvron et al. 2023, eq. 2)", group="loss", at_least=0)
    label_temperature: float = opt(0.0, "soft labels sigmoid(gold_margin / temperature); 0: hard labels", at_least=0)
    label_smoothing: float = opt(0.0, "share of labels taken to be wrong", at_least=0, at_most=0.49)
    centring: float = opt(0.0, "weight of a term that pulls the mean of all rewards to 0 and does not change their spread", at_least=0)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass on one process; lower it when memory runs out", group="memory and machine", at_least=16)
    layout: str = opt("packed", "packed: unique tokens, the prompt once; padded: plain rows, to read and compare", choices=list(LAYOUTS))
    precision: str = opt("auto", "mixed (auto on CUDA): float32 weights, bf16 compute; float32 (auto on a CPU); bf16: weights in bf16, which loses small updates; bf16-sr: the same with stochastic rounding", choices=["auto", *PRECISIONS])
    activation_checkpointing: str = opt("auto", "layers to compute again in the backward pass, to save memory: on (all: a third more time), off, or a number; auto: as few as the GPU's memory demands")
    compile: str = opt("auto", "torch.compile of each layer; auto: on CUDA", choices=["auto", "on", "off"])
    cpu_offload: bool = opt(False, "keep weights, gradients and moments in host memory")
    replicas: int = opt(1, "copies of the sharded model, for example one per node: gather weights only within a copy (HSDP)", at_least=1)
    log_every: int = opt(10, "steps between measures of the update and of gradients by kind (more often in short runs: at least ten times per run); loss and rewards are logged every step", group="log and seed", at_least=1)
    trace: int = opt(0, "show every number of a few pairs for the first N steps", at_least=0)
    seed: int = opt(0, "seed for the new head, the order of the pairs and the held-out prompts", at_least=0)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    # fmt: on


@dataclass(frozen=True)
class PairSet:
    """P pairs, and the groups in which they are computed: a group is one prompt with K responses.

    A pair by itself is a group with K = 2. Of more responses each is computed once, whatever the
    number of its pairs, and all pairs of a prompt are in one step (Ouyang et al. 2022, section
    3.5).
    """

    pairs: list[Pair]
    groups: list[Group]
    pairs_of_group: list[list[int]]  # group -> its pairs
    sides: np.ndarray  # (P, 2) chosen and rejected, by their rows in the group
    gold: torch.Tensor | None  # (P,) gold's margins, where every pair has them
    device: torch.device

    def __len__(self) -> int:
        return len(self.pairs)

    def pairs_of(self, groups: Sequence[int]) -> list[int]:
        return [pair for group in groups for pair in self.pairs_of_group[group]]

    def rows_of(self, groups: Sequence[int]) -> torch.Tensor:
        """(B, 2) where the rewards of these groups' pairs are among the rewards of one pass."""
        rows = []
        first = 0
        for group in groups:
            rows.append(first + self.sides[self.pairs_of_group[group]])
            first += len(self.groups[group].rows)
        return torch.from_numpy(np.concatenate(rows))

    def gold_of(self, pairs: torch.Tensor) -> torch.Tensor | None:
        """(B,) gold's margins of these pairs; both on the device."""
        return None if self.gold is None else self.gold[pairs]


@dataclass(frozen=True)
class Run:
    """What does not change from step to step, but for the weights and the optimizer's moments."""

    cfg: Config
    process: Process
    tokenizer: PreTrainedTokenizerBase
    data: PairSet
    held_out: PairSet  # perhaps empty
    model: RewardModel
    optimizer: torch.optim.Optimizer
    precision: str
    facts: dict  # for run.json and the checkpoints: settings, versions, hashes of the inputs
    epoch_steps: int
    total_steps: int
    warmup: int


@dataclass
class State:
    """What the loop remembers from step to step. A checkpoint holds all of it."""

    epoch_rewards: torch.Tensor  # (P, 2) of each pair when it was last trained on; NaN before
    step: int = 0  # steps done
    bad_steps: int = 0  # steps in a row that were not finite
    center: float = 0.0  # mean reward of the last step, for --centring
    results: dict = field(default_factory=dict)  # "epoch 1" -> {"running": ..., "eval": ...}


# Under FSDP all processes must run as many passes: gathering a layer's weights is a collective, so
# one that ran fewer would make the others wait for ever. A process that has no group left runs this
# with weight 0. It holds no real pair: of one whose loss is not finite, 0 * loss would be NaN.
EMPTY_PASS = [Group([[0], [0]])]


def main() -> int:
    cfg = parse(Config, __doc__)
    check_output(cfg)
    if cfg.resume == "auto" and not cfg.overwrite and is_finished(cfg.output_dir):
        if is_main_process():
            discard_checkpoints(cfg.output_dir)  # left where a kill came between export and end
            print(f"{cfg.output_dir}: the run is finished")
        return 0
    run = prepare(cfg)
    process, data, model, optimizer = run.process, run.data, run.model, run.optimizer
    group_tokens = [group.tokens for group in data.groups]
    state = begin_or_resume(run)
    log = RunLog(cfg.output_dir, process, last_step=state.step)
    progress = Progress(run, state)
    writer = CheckpointWriter(cfg.output_dir, process, cfg.keep)
    checkpoint_due = CheckpointDue(cfg, process)
    signals = distributed.catch_signals()  # from here on SIGINT and SIGTERM wait for the step's end

    for step in range(state.step + 1, run.total_steps + 1):
        # plan: which groups (a pair is a group of two), and in which pass of this process
        epoch, position = divmod(step - 1, run.epoch_steps)
        steps_of_epoch = epoch_order(len(data.groups), cfg.batch_size, cfg.seed, epoch)  # cached
        groups_of_step = steps_of_epoch[position]
        plan = plan_step(groups_of_step, group_tokens, cfg.tokens_per_pass, process.world_size)
        passes = plan[process.rank]
        values = StepValues(groups_of_step, data, state.center, traced=step <= cfg.trace)

        # passes: forward and backward, pass by pass; gradients add up in the model
        for i, groups in enumerate(passes):
            model.set_requires_all_reduce(i == len(passes) - 1)  # --replicas: once a step is enough
            batch = LAYOUTS[cfg.layout]([data.groups[group] for group in groups] or EMPTY_PASS)
            rewards, pooled = model(batch.to(process.device))  # (N,), (N, D)
            if groups:
                # the pass's b pairs: (b,) their rows in the step, (b, 2) their rewards' in the pass
                step_rows, pass_rows = values.rows_of(groups)
                both = rewards[pass_rows]  # (b, 2) chosen, rejected
                gold = data.gold_of(values.pairs[step_rows])  # (b,) gold's margins
                losses = pair_losses(both, gold, state.center, cfg)  # (b,) nats
                loss = (losses * values.weights[step_rows]).sum()  # weights: 1 / pairs of the step
                values.put(step_rows, both, losses, pooled[pass_rows])
            else:
                loss = rewards.sum() * 0.0  # of EMPTY_PASS
            (loss * process.world_size).backward()  # FSDP averages over processes; we want the sum
        process.sum(values.table)  # each pair from the one process that had it

        # step: clip, rate, update
        norms = clip_gradients(model, cfg.max_grad_norm, process, cfg.replicas)
        floor = cfg.lr * cfg.min_lr_ratio
        rate = learning_rate(step, run.total_steps, run.warmup, cfg.lr, floor)
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate
        meter = UpdateMeter(model) if is_measured(run, step) else None  # samples the weights now
        is_finite = values.are_finite(norms)
        if is_finite:
            optimizer.step()
            took_step(state, step, values, cfg)
        else:
            skipped_step(run, state, step, values, writer)
        optimizer.zero_grad()

        # log
        progress.add(len(values.numbers), sum(group_tokens[group] for group in groups_of_step))
        if is_finite:
            log_step(run, state, step, rate, values, norms, meter, log, progress)

        # end of epoch: measure, export
        end_of_epoch = position == run.epoch_steps - 1
        if end_of_epoch:
            measure_epoch(run, state, epoch + 1, log)
            export(run, state)
            progress.restart()

        # save
        stop = signalled(signals, process)
        if step < run.total_steps and (stop or checkpoint_due.at(step, end_of_epoch)):
            writer.save(model, optimizer, state, run.facts)
        writer.check()
        if stop and step < run.total_steps:
            leave(run, writer, log, signals)

    progress.close()
    log.close()
    finish(run, writer)
    return 0


# ---- before the loop ---------------------------------------------------------------------------


def check_output(cfg: Config) -> None:
    """Raise UserError rather than replace a run unasked, or train what cannot be written."""
    folder = cfg.output_dir
    check_writable(f"{folder}/metrics.jsonl")
    if cfg.overwrite or cfg.resume == "auto":
        return
    if checkpoints(folder):
        raise UserError(
            f"{folder}: holds an unfinished run: pass --resume auto to continue it, "
            "or --overwrite to begin again"
        )
    if Path(folder, "config.json").exists():
        raise UserError(
            f"{folder}: holds a model: pass --overwrite to replace it, or another --output-dir"
        )


def prepare(cfg: Config) -> Run:
    """Read the pairs, load and shard the model, plan the steps."""
    check_lineage(cfg.data_path)
    pairs = read_pairs(cfg.data_path)
    what_was_read = describe_pairs(cfg.data_path, pairs)
    if cfg.eval_path:
        held_out_pairs = read_pairs(cfg.eval_path)
        what_was_read += "\n" + describe_pairs(cfg.eval_path, held_out_pairs)
    else:
        pairs, held_out_pairs = hold_out(pairs, cfg)
    process = distributed.start(cfg.device)
    process.print(what_was_read)
    tokenizer = load_tokenizer(cfg.model_name, cfg.chat_template)
    data = tokenize(pairs, tokenizer, cfg, process, "pairs")
    held_out = tokenize(held_out_pairs, tokenizer, cfg, process, "held-out pairs")
    shown = show_row(data.pairs[0].chosen, tokenizer)
    process.print(f"the first chosen conversation, as the model reads it:\n{shown}")
    if data.gold is None and (cfg.margin_scale or cfg.label_temperature):
        raise UserError(
            f"{cfg.data_path}: --margin-scale and --label-temperature need gold's rewards: "
            "rerun preprocess.py, or leave them out"
        )

    precision = default_precision(process) if cfg.precision == "auto" else cfg.precision
    model = build_model(cfg, precision, tokenizer, [*data.groups, *held_out.groups], process)
    shard_index = shards_of(model).index  # replicas of a shard must round alike
    optimizer = build_optimizer(
        model, precision, cfg.lr, cfg.weight_decay, seed=cfg.seed + shard_index
    )

    epoch_steps = -(-len(data.groups) // cfg.batch_size)  # rounded up: the last step may be smaller
    total_steps = epoch_steps * cfg.epochs
    warmup = warmup_steps(total_steps, cfg.warmup_ratio)
    parameters = sum(p.numel() for p in model.parameters())
    process.print(
        f"{parameters:,} parameters on {process.world_size} x {process.device.type}, "
        f"precision {precision}; {total_steps} steps, {warmup} of them warmup"
    )
    inputs = {
        "pairs": cfg.data_path,
        "eval_pairs": cfg.eval_path,
        "chat_template": cfg.chat_template,
    }
    facts = run_facts(cfg, inputs) | {
        "model_commit": model_commit(cfg.model_name),
        "template_sha256": template_sha256(tokenizer),
        "pairs": len(data),
        **({"groups": len(data.groups)} if data.pairs[0].group is not None else {}),
        "held_out_pairs": len(held_out),
        "world_size": process.world_size,
    }
    return Run(
        cfg,
        process,
        tokenizer,
        data,
        held_out,
        model,
        optimizer,
        precision,
        facts,
        epoch_steps,
        total_steps,
        warmup,
    )


def hold_out(pairs: list[Pair], cfg: Config) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): all pairs of --eval-share of the *prompts* are held out."""
    if not cfg.eval_share:
        return pairs, []
    prompts = sorted({pair.prompt_key for pair in pairs})
    order = np.random.default_rng(cfg.seed).permutation(len(prompts))
    held_out = {prompts[i] for i in order[: round(len(prompts) * cfg.eval_share)]}
    train_pairs = [pair for pair in pairs if pair.prompt_key not in held_out]
    if not train_pairs:
        raise UserError(f"{cfg.data_path}: no pairs are left to train on: lower --eval-share")
    return train_pairs, [pair for pair in pairs if pair.prompt_key in held_out]


def tokenize(pairs: list[Pair], tokenizer, cfg: Config, process: Process, what: str) -> PairSet:
    """Pairs with a conversation over --max-length are left out, and counted."""
    if not pairs:
        return PairSet([], [], [], np.empty((0, 2), dtype=int), None, process.device)
    conversations = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    names = [pair.where for pair in pairs for _ in range(2)]
    rows = encode_rendered(conversations, tokenizer, names)
    rows_of_pairs = [list(both) for both in zip(rows[::2], rows[1::2])]
    short = leave_out_long(rows_of_pairs, cfg.max_length)
    kept = [pairs[i] for i in short]
    groups, pairs_of_group, sides = group_pairs(kept, [rows_of_pairs[i] for i in short])
    if not kept:
        raise UserError(
            f"all {len(pairs):,} {what} are longer than {cfg.max_length} tokens: raise --max-length"
        )
    names = [kept[members[0]].where for members in pairs_of_group]
    check_budget(groups, cfg.tokens_per_pass, "the pair at", names)
    both = sum(len(row) for group in groups for row in group.rows)
    unique = sum(group.tokens for group in groups)
    process.print(
        f"kept {len(kept):,} of {len(pairs):,} {what}; "
        f"dropped {len(pairs) - len(kept):,}: over {cfg.max_length} tokens; "
        f"{both:,} tokens, {unique:,} with shared prompts computed once"
    )
    gold = gold_margins(kept, process)
    return PairSet(kept, groups, pairs_of_group, sides, gold, process.device)


def group_pairs(pairs: list[Pair], rows_of_pairs: list[list[Sequence[int]]]):
    """The groups in which pairs are computed, the pairs of each, and (P, 2) sides: see PairSet.

    rows_of_pairs: token ids, [pair][chosen, rejected]. Equal rows of a group are computed once.
    """
    rows_of_group, pairs_of_group, sides = [], [], []
    for number, (pair, rows) in enumerate(zip(pairs, rows_of_pairs)):
        previous = pairs[number - 1] if number else None
        if pair.group is None or previous is None or pair.group != previous.group:
            rows_of_group.append([])
            pairs_of_group.append([])
        known = rows_of_group[-1]
        known += [row for row in rows if pair.group is None or row not in known]
        pairs_of_group[-1].append(number)
        sides.append([0, 1] if pair.group is None else [known.index(row) for row in rows])
    groups = [Group(rows) for rows in rows_of_group]
    return groups, pairs_of_group, np.array(sides).reshape(-1, 2)


def gold_margins(pairs: list[Pair], process: Process) -> torch.Tensor | None:
    """(P,) gold's own margins, or None where a pair lacks them."""
    margins = []
    for pair in pairs:
        if pair.chosen_reward is None or pair.rejected_reward is None:
            return None
        margins.append(pair.chosen_reward - pair.rejected_reward)
    return torch.tensor(margins, device=process.device)


def build_model(
    cfg: Config, precision: str, tokenizer, groups: list[Group], process: Process
) -> RewardModel:
    """The sharded model in training mode, with an embedding for every token of the groups."""
    weight_dtype, _ = PRECISIONS[precision]
    model, source = meta_reward_model(cfg.model_name, weight_dtype, cfg.seed)
    embeddings = model.backbone.get_input_embeddings().num_embeddings
    rows = [row for group in groups for row in group.rows]
    check_token_ids(embeddings, rows, cfg.model_name)
    choose_pad_token(tokenizer)
    if tokenizer.pad_token_id >= embeddings:
        model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = len(decoder_layers(model.backbone))
    recomputed = layers_asked_for(cfg.activation_checkpointing, layers)
    model = shard(model, process, precision, replicas=cfg.replicas, cpu_offload=cfg.cpu_offload)
    recompute_layers(model, recomputed or 0)  # auto: try_largest_pass decides
    fill(model, source, process)  # each process reads its own rows
    if cfg.compile == "on" or (cfg.compile == "auto" and process.device.type == "cuda"):
        compile_layers(model, process, required=cfg.compile == "on")
    return model.train()


def begin_or_resume(run: Run) -> State:
    """The newest checkpoint's state, with model and optimizer filled from it, or a new run's."""
    cfg, process = run.cfg, run.process
    state = State(torch.full((len(run.data), 2), torch.nan, device=process.device))
    found = checkpoints(cfg.output_dir) if cfg.resume == "auto" and not cfg.overwrite else []
    # a network file system may show others an older folder: rank 0 decides
    newest = process.from_main(step_of(found[-1]) if found else 0)
    if newest:
        path = checkpoint_path(cfg.output_dir, newest)
        same_shards = load_checkpoint(path, run.model, run.optimizer, state, run.facts)
        process.print(f"{cfg.output_dir}: resumed after step {state.step} of {run.total_steps}")
        if run.precision == "bf16-sr" and not same_shards:
            process.print("another number of processes: stochastic rounding draws new numbers")
    else:
        fill_moments(run.model, run.optimizer)
    try_largest_pass(run)
    if process.is_main:
        Path(cfg.output_dir).mkdir(parents=True, exist_ok=True)
        lock(cfg.output_dir)
        if not newest:  # nothing to resume, or --overwrite
            discard_checkpoints(cfg.output_dir)
            discard_log(cfg.output_dir)
    return state


def try_largest_pass(run: Run) -> None:
    """On CUDA: with --activation-checkpointing auto, choose how many layers to recompute; then run
    one forward and backward pass of the largest planned size, so that an out-of-memory error comes
    before training. It changes no weight."""
    cfg, process = run.cfg, run.process
    if process.device.type != "cuda":
        return
    planned = [group.tokens for group in run.data.groups]
    steps = []
    for epoch in range(cfg.epochs):
        steps += epoch_order(len(planned), cfg.batch_size, cfg.seed, epoch)
    tokens, one_pass = largest_planned_pass(planned, steps, cfg.tokens_per_pass, process.world_size)
    if cfg.layout == "padded":  # which computes more tokens than are planned
        tokens = cfg.tokens_per_pass

    def batch_of(count: int) -> Batch:
        groups = dummy_groups(count, min(cfg.max_length, count))
        return LAYOUTS[cfg.layout](groups).to(process.device)

    run.model.set_requires_all_reduce(True)
    if cfg.activation_checkpointing == "auto":
        sample = batch_of(min(tokens, 2048))
        decision = fit_into_gpu(
            run.model, process, run.precision, sample, tokens, one_pass, cfg.cpu_offload
        )
        process.print(decision)
    rewards, _ = run.model(batch_of(tokens))
    (rewards.sum() * 0.0).backward()
    run.optimizer.zero_grad()


def dummy_groups(tokens: int, longest: int) -> list[Group]:
    """Conversations of token 0 with so many unique tokens in all, each of `longest` at most."""
    lengths = [longest] * (tokens // longest)
    if tokens % longest:
        lengths.append(tokens % longest)
    return [Group([[0] * length]) for length in lengths]


# ---- within a step -----------------------------------------------------------------------------


class StepValues:
    """Rewards and losses of the step's B pairs, put together from its passes and processes."""

    def __init__(self, groups: np.ndarray, data: PairSet, center: float, traced: bool):
        device = data.device
        self.data = data
        self.center = center  # for --trace: what --centring used
        self.numbers = data.pairs_of(groups)
        self.row_of = {pair: row for row, pair in enumerate(self.numbers)}
        self.pairs = to_device(torch.tensor(self.numbers), device)  # (B,) their numbers in the data
        # What is minimised is the mean over groups of the mean over a group's pairs (Ouyang et al.
        # 2022, eq. 1): the mean over the step's B pairs where each is a group by itself.
        sizes = [len(data.pairs_of_group[group]) for group in groups]
        weights = [1 / (size * len(groups)) for size in sizes for _ in range(size)]
        self.weights = to_device(torch.tensor(weights), device)  # (B,), of sum 1
        self.table = torch.zeros(len(weights), 3, device=device)  # chosen, rejected, loss
        self.traced = traced
        self.pooled_norms = {}  # row -> (2,) norms of its pooled states, on this process

    @property
    def rewards(self) -> torch.Tensor:
        return self.table[:, :2]  # (B, 2)

    def rows_of(self, groups: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A pass's b pairs: (b,) their rows in this step, (b, 2) their rewards' in the pass."""
        step_rows = torch.tensor([self.row_of[pair] for pair in self.data.pairs_of(groups)])
        pass_rows = self.data.rows_of(groups)
        device = self.table.device
        return to_device(step_rows, device), to_device(pass_rows, device)

    def put(self, step_rows: torch.Tensor, rewards, losses, pooled) -> None:
        """What a pass gave its b pairs. Shapes (b,), (b, 2), (b,) and (b, 2, D)."""
        self.table[step_rows] = torch.cat([rewards, losses[:, None]], dim=1).detach()
        if self.traced:
            self.pooled_norms |= zip(step_rows.tolist(), pooled.detach().norm(dim=-1).tolist())

    def are_finite(self, norms: dict[str, torch.Tensor]) -> bool:
        """Rewards, losses and the gradient's norm; the same answer on every process."""
        return bool(torch.isfinite(norms["grad_norm"]) & torch.isfinite(self.table).all())

    def metrics(self) -> dict[str, float]:
        """`objective` is what was minimised; `loss` is plain Bradley-Terry, the mean over pairs."""
        objective = (self.table[:, 2].double() * self.weights).sum().item()
        return {"objective": objective} | measure(self.rewards, self.data.gold_of(self.pairs))


def measure(rewards: torch.Tensor, gold_margin: torch.Tensor | None) -> dict[str, float]:
    """`pair_metrics` of tensors on any device."""
    gold = None if gold_margin is None else gold_margin.cpu().numpy()
    return pair_metrics(rewards.cpu().numpy(), gold)


def is_measured(run: Run, step: int) -> bool:
    """Whether the step's line has all that docs/metrics.md names: the others leave some out."""
    every = min(run.cfg.log_every, max(1, run.total_steps // 10))
    return step % every == 0 or step == run.total_steps or step <= run.cfg.trace


def took_step(state: State, step: int, values: StepValues, cfg: Config) -> None:
    state.step = step
    state.bad_steps = 0
    state.epoch_rewards[values.pairs] = values.rewards
    if cfg.centring:
        state.center = values.rewards.mean().item()


def skipped_step(run: Run, state: State, step: int, values: StepValues, writer) -> None:
    """Say why a step is not taken. Raises UserError where too many in a row are not."""
    state.step = step
    state.bad_steps += 1
    explain_bad_step(run, state, values)
    if state.bad_steps == min(run.cfg.max_bad_steps, run.epoch_steps):
        writer.wait()  # the last checkpoint is what there is to continue from
        raise UserError(
            f"{run.cfg.output_dir}: {state.bad_steps} steps in a row were not finite: lower --lr, "
            "or look at the pairs named above; --resume auto continues from the last checkpoint"
        )


def explain_bad_step(run: Run, state: State, values: StepValues) -> None:
    """Name the pairs whose reward or loss is not finite, or say that only the gradient is not."""
    bad = []
    for number, row in zip(values.numbers, values.table):
        if not torch.isfinite(row).all():
            bad.append(run.data.pairs[number])
    what = "the rewards are finite but a gradient is not"
    if bad:
        named = ", ".join(pair.where for pair in bad[:8])
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        what = f"rewards or losses of these pairs are not finite ({named}{more})"
    taken = f"the step is not taken ({state.bad_steps} in a row)"
    run.process.print(f"WARNING step {state.step}: {what}: {taken}")
    for pair in bad[:1]:
        run.process.print(f"{pair.where}, chosen:\n{show_row(pair.chosen, run.tokenizer)}")
        run.process.print(f"rejected:\n{show_row(pair.rejected, run.tokenizer)}")


# ---- what is logged ----------------------------------------------------------------------------


class Progress:
    """The progress bar, and the speed since the last logged step."""

    def __init__(self, run: Run, state: State):
        self.bar = tqdm(
            total=run.total_steps,
            initial=state.step,
            desc="training",
            unit="step",
            disable=not run.process.is_main,
        )
        self.shown = {}
        self.restart()

    def restart(self) -> None:
        """Measure speed from now on, so that evaluation and export are not counted."""
        self.began = time.perf_counter()
        self.pairs = 0
        self.tokens = 0

    def add(self, pairs: int, tokens: int) -> None:
        self.bar.update()
        self.pairs += pairs
        self.tokens += tokens

    def speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        speed = {"pairs_per_s": self.pairs / seconds, "tokens_per_s": self.tokens / seconds}
        self.restart()
        return speed

    def show(self, metrics: dict) -> None:
        self.shown |= {
            "loss": f"{metrics['loss']:.3f}",
            "accuracy": f"{metrics['accuracy']:.2f}",
            "lr": f"{metrics['learning_rate']:.1e}",
        }
        if "lost_updates" in metrics:  # else what was measured last
            self.shown["lost"] = f"{metrics['lost_updates']:.0%}"
        self.bar.set_postfix(self.shown)

    def close(self) -> None:
        self.bar.close()


def log_step(run, state, step: int, rate: float, values: StepValues, norms, meter, log, progress):
    """One line of metrics.jsonl; docs/metrics.md explains each name."""
    metrics = {"step": step, "epoch": (step - 1) // run.epoch_steps + 1}
    metrics |= values.metrics() | {"learning_rate": rate}
    if meter:
        scalars = norms | meter.read(run.model, run.optimizer, run.process)
    else:
        scalars = {name: norms[name] for name in ("grad_norm", "grad_norm_backbone")}
    metrics |= zip(scalars, torch.stack(list(scalars.values())).tolist())
    log.write(metrics, timing=progress.speed())
    progress.show(metrics)
    if step <= run.cfg.trace:
        show_step(run, metrics, values)


def show_step(run: Run, metrics: dict, values: StepValues) -> None:
    """--trace: the whole algorithm on one screen, for the first two pairs of this process."""
    say, cfg = run.process.print, run.cfg
    for row, norms in list(values.pooled_norms.items())[:2]:
        number = values.numbers[row]
        pair = run.data.pairs[number]
        chosen, rejected, loss = values.table[row].tolist()
        say(f"\n--- step {metrics['step']}, {pair.where}, chosen:")
        say(show_row(pair.chosen, run.tokenizer))
        say(f"--- rejected, its last turn: {pair.rejected[-1]['content']!r}")
        say(f"norm of pooled state   {norms[0]:.4f} chosen, {norms[1]:.4f} rejected")
        say(f"reward                 {chosen:.4f} chosen, {rejected:.4f} rejected")
        say(f"margin                 {chosen - rejected:.4f}")
        if cfg.margin_scale or cfg.label_temperature:
            say(f"gold_margin            {run.data.gold[number]:.4f}")
        if cfg.centring:
            say(f"center                 {values.center:.4f}")
        say(f"loss                   {loss:.4f} = {loss_equation(cfg)}")
    lines = {
        "mean over the step": ["objective", "loss", "accuracy", "margin_mean"],
        "rate": ["learning_rate", "update_ratio", "update_kept"],
        "grad_norm": [name for name in metrics if name.startswith("grad_norm")],
        "lost_updates": [name for name in metrics if name.startswith("lost_updates")],
    }
    for title, names in lines.items():
        say(f"{title:22} " + ", ".join(f"{name} {metrics[name]:.4g}" for name in names))


# ---- at the end of an epoch, and of the run ------------------------------------------------------


def measure_epoch(run: Run, state: State, epoch: int, log: RunLog) -> None:
    """Metrics of `running`, each pair before its update, and of `eval`, the held-out pairs now."""
    seen = state.epoch_rewards.isfinite().all(dim=1)
    rewards = state.epoch_rewards[seen]
    results = {"running": measure(rewards, run.data.gold_of(seen.nonzero()[:, 0]))}
    log.histogram("rewards/running", rewards.cpu().numpy(), state.step)
    if len(run.held_out):
        scored = score_groups(
            run.model,
            run.held_out.groups,
            run.process,
            run.cfg.tokens_per_pass,
            desc="evaluating",
        )
        flat = torch.tensor([reward for group in scored for reward in group])  # (N,)
        every = range(len(run.held_out.groups))
        rewards = flat[run.held_out.rows_of(every)]  # (P, 2)
        results["eval"] = measure(rewards, run.held_out.gold)
        log.histogram("rewards/eval", rewards.numpy(), state.step)
    line = {"step": state.step, "epoch": epoch}
    for part, metrics in results.items():
        line |= {f"{part}_{name}": value for name, value in metrics.items()}
    log.write(line)
    report_epoch(epoch, results, run.process)
    state.results[f"epoch {epoch}"] = results


def report_epoch(epoch: int, results: dict, process: Process) -> None:
    """The epoch in one line a part, and the warning signs with what to do about each."""
    for part, m in results.items():
        spread = f", spread {m['spread_ratio']:.2f} of gold's" if "spread_ratio" in m else ""
        process.result(
            f"epoch {epoch}, {part}: loss {m['loss']:.3f}, accuracy {m['accuracy']:.3f}, "
            f"rewards {m['reward_min']:.2f} to {m['reward_max']:.2f} "
            f"(std {m['reward_std']:.2f}){spread}"
        )
    running = results["running"]
    last = results.get("eval", running)
    if running["loss"] > HEALTHY["loss"].poor:
        process.print(
            f"WARNING loss {running['loss']:.3f} over epoch {epoch}, above "
            f"{HEALTHY['loss'].poor:g}: raise --lr or --epochs; check the pairs with "
            "evaluate.py validate"
        )
    if running["accuracy"] < HEALTHY["accuracy"].poor:
        process.print(
            f"WARNING training accuracy {running['accuracy']:.1%} over epoch {epoch}, under "
            f"{HEALTHY['accuracy'].poor:.0%}: the model is not learning; check --lr, and the "
            "pairs with evaluate.py inspect"
        )
    if last.get("spread_ratio", 1.0) < HEALTHY["spread_ratio"].low:
        process.print(
            f"WARNING compressed rewards: their spread within pairs is {last['spread_ratio']:.2f} "
            "of gold's: raise --lr and --epochs"
        )


def export(run: Run, state: State) -> None:
    """Write the model in Hugging Face's format, with its card and run.json. Every rank calls it."""
    cfg = run.cfg
    finished = state.step == run.total_steps
    facts = run.facts | {"results": state.results, "finished": finished}
    files = {
        "README.md": model_card(cfg.model_name, cfg.data_path, facts),
        "run.json": json.dumps(facts, indent=1) + "\n",
    }
    _, stored_dtype = PRECISIONS[run.precision]
    save_reward_model(cfg.output_dir, run.model, run.tokenizer, stored_dtype, files, run.process)


def signalled(signals: list[int], process: Process) -> bool:
    """Whether SIGINT or SIGTERM came to any of the processes."""
    return process.sum(torch.tensor([len(signals)], device=process.device)).item() > 0


class CheckpointDue:
    """When to save: every --save-every steps or epoch, and every --save-minutes."""

    def __init__(self, cfg: Config, process: Process):
        self.cfg = cfg
        self.process = process
        self.saved_at = time.monotonic()

    def at(self, step: int, end_of_epoch: bool) -> bool:
        """Whether a checkpoint is due after this step; the same answer on every process."""
        every, minutes = self.cfg.save_every, self.cfg.save_minutes
        due = step % every == 0 if every else end_of_epoch
        if minutes and not due:
            late = time.monotonic() - self.saved_at > 60 * minutes
            due = bool(self.process.from_main(int(late)))  # clocks differ: rank 0's decides
        if due:
            self.saved_at = time.monotonic()
        return due


def leave(run: Run, writer: CheckpointWriter, log: RunLog, signals: list[int]) -> None:
    """End after a signal, all processes together, once the checkpoint is on disk."""
    writer.wait()
    log.close()
    run.process.finish()
    raise KeyboardInterrupt(*signals[-1:])


def finish(run: Run, writer: CheckpointWriter) -> None:
    """The model is exported, so its checkpoints are no longer needed."""
    cfg, process = run.cfg, run.process
    writer.wait()
    if process.is_main:
        discard_checkpoints(cfg.output_dir)
    process.result(
        f"{cfg.output_dir}: saved; next: python evaluate.py match --dataset {cfg.dataset} "
        f"--model-name {cfg.output_dir}"
    )
    process.finish()


if __name__ == "__main__":
    run_script(main, "--resume auto")
