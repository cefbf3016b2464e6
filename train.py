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
import time
from dataclasses import dataclass, field
from pathlib import Path

import rmood  # noqa: F401  first: it sets what torch reads when it is imported

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from rmood import distributed
from rmood.batching import LAYOUTS, Batch, Group, epoch_order, largest_planned_pass, plan_step
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
from rmood.diagnosis.curve import Curve, is_softened, learning_curve
from rmood.diagnosis.measures import finite
from rmood.diagnosis.rates import rates_around
from rmood.distributed import Process
from rmood.errors import NothingKept, UserError, is_main_process, run_script
from rmood.evaluation import (
    curve_lines,
    describe,
    held_out_files,
    learned,
    losses_for,
    pair_numbers,
    remarks,
    score_pairs,
    size_of_sample,
    update_best,
    why_stopped,
)
from rmood.export import discard_kept_models, model_card, save_reward_model
from rmood.files.provenance import check_lineage, lock, run_facts
from rmood.files.rows import check_writable
from rmood.files.tables import describe_pairs, local_path, mix_in, read_pairs, split_weight
from rmood.hub import model_commit
from rmood.loading import check_token_ids, fill, meta_reward_model, weights_fingerprint
from rmood.lora import add_adapters
from rmood.loss import loss_equation, pair_losses
from rmood.model import RewardModel
from rmood.optim import (
    UpdateMeter,
    build_optimizer,
    clip_gradients,
    fill_moments,
    trained_parameters,
)
from rmood.pairset import (
    EMPTY_PASS,
    PairSet,
    StepValues,
    draw,
    hold_out,
    measure,
    tokenize,
)
from rmood.progress import progress_bar
from rmood.rate_probe import probe_rates, write_report
from rmood.runlog import RunLog, discard_log
from rmood.schedule import learning_rate, warmup_steps
from rmood.sharding import (
    PRECISIONS,
    compile_layers,
    decoder_layers,
    default_precision,
    fit_into_gpu,
    frozen_dtype,
    layers_asked_for,
    recompute_layers,
    shard,
    shards_of,
)
from rmood.tokenization import (
    choose_pad_token,
    load_tokenizer,
    say_other_template_kwargs,
    show_row,
    template_facts,
)
from rmood.trajectories import add_epoch


@dataclass(frozen=True)
class Config:
    # fmt: off
    dataset: str = opt("alpacafarm", "sets every default path at once", group="data and model")
    model_name: str = opt("{sft}", "start from this causal LM or sequence classifier: a folder, or owner/model or owner/model@revision on the hub")
    data_path: str = opt("{pairs}", "training pairs, from preprocess.py: a file, a folder of datasets.save_to_disk, or owner/name[@revision][:split] on the hub")
    mix: list[str] = opt([], "further training pairs, each FILE or FILE:WEIGHT, how often an epoch has them: 0.5 for the pairs of half the prompts, 3 for each pair three times")
    output_dir: str = opt("{proxy}", "folder for the trained model")
    eval_path: list[str] = opt([], "held-out pairs, evaluated at the end of each epoch: a file, or several with names of their own, NAME=FILE NAME=FILE; the first one counts for --keep-best and --early-stop")
    eval_share: float = opt(0.0, "without --eval-path: hold out this share of the prompts", at_least=0, at_most=0.5)
    eval_every: int = opt(0, "also evaluate the held-out pairs every so many steps; 0: at the end of each epoch alone", at_least=0)
    train_sample: int = opt(500, "training pairs to score after each epoch, at most a quarter of them (at most 8% of an epoch's arithmetic); 0: none", at_least=0)
    chat_template: str = opt("", "Jinja file, in place of the tokenizer's own chat template")
    template_kwargs: str = opt("", "JSON of variables that the chat template reads, such as '{\"enable_thinking\": false}'; they are kept in the saved model's template")
    max_length: int = opt(2048, "longest conversation in tokens; pairs with a longer one are left out", at_least=8)
    overwrite: bool = opt(False, "replace what is already in --output-dir", group="checkpoints")
    resume: str = opt("no", "auto: resume from the newest checkpoint in --output-dir, if there is one", choices=["no", "auto"])
    save_every: int = opt(0, "steps between checkpoints; 0: one at the end of each epoch", at_least=0)
    save_minutes: float = opt(0.0, "also save a checkpoint when the last one is this many minutes old; 0: off", at_least=0)
    keep: int = opt(1, "number of checkpoints to keep while training", at_least=1)
    keep_epochs: bool = opt(False, "keep the model of each epoch, in epoch-1/ and so on, for evaluate.py epochs")
    keep_best: str = opt("no", "keep the model of the best evaluation in best/, by the loss of the held-out pairs, or by bits: what it knows of them whatever its scale", choices=["no", "eval_loss", "eval_bits"])
    early_stop: int = opt(0, "end the run after this many evaluations in a row without an improvement beyond noise, by --keep-best's metric (eval_loss where that is no); 0: never", at_least=0)
    lr: float = opt(5e-5, "peak learning rate; published recipes differ by a factor of 100, and --rate-probe 6 measures which rates suit this model and these pairs", group="optimization", above=0)
    rate_probe: int = opt(0, "instead of training, try this many rates around --lr, a factor of 3.2 apart, from the same start and on the same pairs, and report the loss of each; 0: train", at_least=0, at_most=20)
    rate_probe_steps: int = opt(40, "steps for each rate of --rate-probe", at_least=4)
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    batch_size: int = opt(64, "pairs (or groups of responses, where the data holds groups) per optimizer step, over all processes and passes (label.py and sample.py count prompts)", at_least=1)
    warmup_ratio: float = opt(0.05, "share of the steps in which the rate rises to its peak", at_least=0, at_most=1)
    min_lr_ratio: float = opt(0.01, "the last step's rate over the peak; above 0, so that the last step still learns", at_least=0, at_most=1)
    weight_decay: float = opt(0.0, "AdamW's weight decay, on matrices only", at_least=0)
    max_grad_norm: float = opt(1.0, "gradients are scaled down to this common norm", above=0)
    max_bad_steps: int = opt(3, "stop after this many steps in a row with a reward, loss or gradient that is not finite", at_least=1)
    lora_rank: int = opt(0, "train adapters of this rank beside the layers' matrices instead of all weights (LoRA), merged when the model is saved: then a rate about 10 times higher, such as --lr 5e-4; 0: all weights", at_least=0)
    lora_alpha: float = opt(32.0, "with --lora-rank: the adapters' share of a matrix is multiplied by this over the rank", above=0)
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
    seed: int = opt(0, "seed for the new head, the order of the pairs, the held-out prompts and the sample of training pairs", at_least=0)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    # fmt: on


@dataclass(frozen=True)
class Run:
    """What does not change from step to step, but for the weights and the optimizer's moments."""

    cfg: Config
    process: Process
    tokenizer: PreTrainedTokenizerBase
    data: PairSet
    model: RewardModel
    optimizer: torch.optim.Optimizer
    precision: str
    facts: dict  # for run.json and the checkpoints: settings, versions, hashes of the inputs
    epoch_steps: int
    total_steps: int
    warmup: int
    held_out: dict[str, PairSet] = field(default_factory=dict)  # part of the log -> its pairs
    train_sample: PairSet | None = None  # training pairs that are scored after each epoch

    def rate(self, step: int) -> float:
        floor = self.cfg.lr * self.cfg.min_lr_ratio
        return learning_rate(step, self.total_steps, self.warmup, self.cfg.lr, floor)

    @property
    def judged(self) -> PairSet | None:
        """The held-out pairs that --keep-best and --early-stop go by."""
        return next(iter(self.held_out.values()), None)

    @property
    def metric(self) -> str:
        """What these two compare evaluations by."""
        return "eval_loss" if self.cfg.keep_best == "no" else self.cfg.keep_best


@dataclass
class State:
    """What the loop remembers from step to step. A checkpoint holds all of it."""

    epoch_rewards: torch.Tensor  # (P, 2) of each pair when it was last trained on; NaN before
    step: int = 0  # steps done
    bad_steps: int = 0  # steps in a row that were not finite
    center: float = 0.0  # mean reward of the last step, for --centring
    results: dict = field(default_factory=dict)  # "epoch 1" -> {"running": ..., "eval": ...}
    best: dict = field(default_factory=dict)  # of the evaluations so far: evaluation.update_best
    reference: torch.Tensor = field(  # (H,) losses of the judged pairs at best["reference_step"]
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )
    stopped: str = ""  # why --early-stop ends the run


def main() -> int:
    cfg = parse(Config, __doc__)
    check_output(cfg)
    if cfg.resume == "auto" and not cfg.overwrite and is_finished(cfg.output_dir):
        if is_main_process():
            discard_checkpoints(cfg.output_dir)  # left where a kill came between export and end
            print(f"{cfg.output_dir}: the run is finished")
        return 0
    run = prepare(cfg)
    if cfg.rate_probe:
        return probe(run)
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
        rate = run.rate(step)
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

        # evaluate: held-out pairs, and after an epoch some training pairs; perhaps stop early
        end_of_epoch = position == run.epoch_steps - 1
        if end_of_epoch or is_evaluated(run, step):
            evaluate(run, state, epoch + 1, end_of_epoch, log)
            if cfg.keep_best != "no" and state.best["step"] == step:
                export(run, state, "best")
            progress.restart()
        is_last = step == run.total_steps or state.stopped != ""

        # end of epoch: export
        if end_of_epoch or is_last:
            export(run, state)
            if cfg.keep_epochs and end_of_epoch:
                export(run, state, f"epoch-{epoch + 1}")
            progress.restart()

        # save
        interrupted = signalled(signals, process)
        if not is_last and (interrupted or checkpoint_due.at(step, end_of_epoch)):
            writer.save(model, optimizer, state, run.facts)
        writer.check()
        if interrupted and not is_last:
            leave(run, writer, log, signals)
        if is_last:
            break

    progress.close()
    log.close()
    finish(run, state, writer)
    return 0


# ---- before the loop ---------------------------------------------------------------------------


def check_output(cfg: Config) -> None:
    """Raise UserError rather than replace a run unasked, or train what cannot be written."""
    folder = cfg.output_dir
    check_writable(f"{folder}/metrics.jsonl")
    if cfg.overwrite or cfg.resume == "auto" or cfg.rate_probe:
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
    all_pairs = read_pairs(cfg.data_path)
    what_was_read = [describe_pairs(cfg.data_path, all_pairs)]
    pairs = all_pairs
    for source in cfg.mix:
        pairs, words = mix_in(pairs, source, cfg.seed)
        what_was_read.append(words)
    held_out_pairs = {}
    eval_files = held_out_files(cfg.eval_path)
    for part, file in eval_files.items():
        held_out_pairs[part] = read_pairs(file)
        what_was_read.append(describe_pairs(file, held_out_pairs[part]))
    if not eval_files and cfg.eval_share:
        pairs, held_out_pairs["eval"] = hold_out(pairs, cfg.eval_share, cfg.seed, cfg.data_path)
    needs_held_out = cfg.eval_every or cfg.early_stop or cfg.keep_best != "no"
    if needs_held_out and not any(held_out_pairs.values()):
        raise UserError(
            "--eval-every, --keep-best and --early-stop need held-out pairs: pass --eval-path "
            "FILE, or --eval-share 0.05"
        )
    process = distributed.start(cfg.device)
    process.print("\n".join(what_was_read))
    with process.local_main_first():  # one process of each machine fetches the model
        tokenizer = load_tokenizer(cfg.model_name, cfg.chat_template, cfg.template_kwargs)
    say_other_template_kwargs(tokenizer, cfg.template_kwargs, cfg.data_path)
    limits = (cfg.max_length, cfg.tokens_per_pass, process)
    data = tokenize(pairs, tokenizer, *limits, "pairs")
    held_out = {}
    for part, of_part in held_out_pairs.items():
        if of_part:
            held_out[part] = tokenize(of_part, tokenizer, *limits, "held-out pairs")
    sample = draw(data, size_of_sample(len(data), cfg.train_sample), cfg.seed)
    shown = show_row(data.pairs[0].chosen, tokenizer)
    process.print(f"the first chosen conversation, as the model reads it:\n{shown}")
    if data.gold is None and (cfg.margin_scale or cfg.label_temperature):
        raise UserError(
            f"{cfg.data_path}: --margin-scale and --label-temperature need gold's rewards: "
            "rerun preprocess.py, or leave them out"
        )

    precision = default_precision(process) if cfg.precision == "auto" else cfg.precision
    groups = [group for pair_set in (data, *held_out.values()) for group in pair_set.groups]
    model = build_model(cfg, precision, tokenizer, groups, process)
    shard_index = shards_of(model).index  # replicas of a shard must round alike
    optimizer = build_optimizer(
        model, precision, cfg.lr, cfg.weight_decay, seed=cfg.seed + shard_index
    )

    epoch_steps = -(-len(data.groups) // cfg.batch_size)  # rounded up: the last step may be smaller
    total_steps = epoch_steps * cfg.epochs
    warmup = warmup_steps(total_steps, cfg.warmup_ratio)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in trained_parameters(model).values())
    process.print(
        f"{trained:,} of {parameters:,} parameters are trained on "
        f"{process.world_size} x {process.device.type}, precision {precision}; "
        f"{total_steps} steps, {warmup} of them warmup"
    )
    inputs = {"pairs": local_path(cfg.data_path), "chat_template": cfg.chat_template}
    for number, source in enumerate(cfg.mix, 2):
        inputs[f"pairs_{number}"] = local_path(split_weight(source)[0])
    for part, file in eval_files.items():
        inputs[part.replace("eval", "eval_pairs", 1)] = local_path(file)
    number_of = {id(pair): number for number, pair in enumerate(all_pairs)}
    facts = run_facts(cfg, inputs) | {
        "model_commit": model_commit(cfg.model_name),
        **template_facts(tokenizer),
        "weights_fingerprint": weights_fingerprint(cfg.model_name),
        "pairs": len(data),
        **({"groups": len(data.groups)} if data.pairs[0].group is not None else {}),
        "held_out_pairs": sum(map(len, held_out.values())),
        "world_size": process.world_size,
        # which pairs of the file results have under "train": evaluate.py diagnose reads them again
        "train_sample": [number_of[id(p)] for p in sample.pairs if id(p) in number_of],
    }
    return Run(
        cfg,
        process,
        tokenizer,
        data,
        model,
        optimizer,
        precision,
        facts,
        epoch_steps,
        total_steps,
        warmup,
        held_out,
        sample,
    )


def build_model(
    cfg: Config, precision: str, tokenizer, groups: list[Group], process: Process
) -> RewardModel:
    """The sharded model in training mode, with an embedding for every token of the groups."""
    weight_dtype = frozen_dtype(precision) if cfg.lora_rank else PRECISIONS[precision][0]
    model, source = meta_reward_model(cfg.model_name, weight_dtype, cfg.seed)
    embeddings = model.backbone.get_input_embeddings().num_embeddings
    rows = [row for group in groups for row in group.rows]
    check_token_ids(embeddings, rows, cfg.model_name)
    choose_pad_token(tokenizer)
    if tokenizer.pad_token_id >= embeddings:
        model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = decoder_layers(model.backbone)
    recomputed = layers_asked_for(cfg.activation_checkpointing, len(layers))
    if cfg.lora_rank:
        names = add_adapters(model.backbone, layers, cfg.lora_rank, cfg.lora_alpha)
        process.print(f"adapters of rank {cfg.lora_rank} beside {', '.join(sorted(names))}")
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
    if run.judged:
        state.reference = torch.zeros(len(run.judged), dtype=torch.float64)
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
            discard_kept_models(cfg.output_dir)
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


def probe(run: Run) -> int:
    """--rate-probe: try rates from this start, print what came out and write it down. Nothing else
    in --output-dir is touched."""
    cfg, process = run.cfg, run.process
    rates = rates_around(cfg.lr, cfg.rate_probe)
    steps = min(cfg.rate_probe_steps, run.epoch_steps)
    if steps < 4:
        raise UserError(
            f"--rate-probe: {run.epoch_steps} steps an epoch are too few to compare rates: lower "
            "--batch-size, or give it more pairs"
        )
    fill_moments(run.model, run.optimizer)
    try_largest_pass(run)
    process.print(
        f"rate probe: {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}, {steps} steps each "
        f"(an epoch has {run.epoch_steps}), as much work as {len(rates) * steps} steps of training"
    )
    try:
        tried = probe_rates(run.model, run.optimizer, run.data, process, cfg, rates, steps)
    except KeyboardInterrupt as interrupt:
        raise NothingKept(*interrupt.args)
    if process.is_main:
        planned_sum = sum(run.rate(step) for step in range(1, run.total_steps + 1))
        words, picture = write_report(cfg.output_dir, tried, cfg, planned_sum)
        process.result(f"{words}\n\n{picture}: the figure; the numbers beside it end in .json")
    process.finish()
    return 0


# ---- within a step -----------------------------------------------------------------------------


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
        self.bar = progress_bar(
            total=run.total_steps,
            initial=state.step,
            desc="training",
            unit="step",
            disable=not run.process.is_main,
            delay=0,
            leave=True,
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
        self.bar.set_postfix(self.shown, refresh=False)  # the next update shows it

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


def is_evaluated(run: Run, step: int) -> bool:
    """Whether --eval-every asks for an evaluation after this step."""
    return run.cfg.eval_every > 0 and step % run.cfg.eval_every == 0


def evaluate(run: Run, state: State, epoch: int, end_of_epoch: bool, log: RunLog) -> None:
    """Score the held-out pairs now; after an epoch, or the run, also a sample of training pairs.

    Every rank calls it. With --early-stop, state.stopped says afterwards why the run ends here.
    """
    where = {"step": state.step, "epoch": epoch}
    scored = {}
    for part, pairs in run.held_out.items():
        scored[part] = score(run, pairs, "evaluating")
    if run.judged:
        judge(run, state, next(iter(scored.values())))
    if not end_of_epoch and not state.stopped:
        parts = {part: numbers_of(run.held_out[part], both) for part, both in scored.items()}
        log.write_parts(where, {part: finite(numbers) for part, numbers in parts.items()})
        for part, numbers in parts.items():
            run.process.print(f"step {state.step}, {part}: {describe(numbers)}")
        return

    if run.process.is_main:
        add_epoch(run.cfg.output_dir, epoch, run.data.pairs, state.epoch_rewards.cpu().numpy())
    seen = state.epoch_rewards.isfinite().all(dim=1)
    rewards = state.epoch_rewards[seen]
    log.histogram("rewards/running", rewards.cpu().numpy(), state.step)
    parts = {"running": measure(rewards, run.data.gold_of(seen.nonzero()[:, 0]))}
    if run.train_sample:
        scored["train"] = score(run, run.train_sample, "scoring training pairs")
    for part, both in scored.items():
        parts[part] = numbers_of(run.held_out.get(part, run.train_sample), both)
        log.histogram(f"rewards/{part}", both, state.step)
    curve = learning_curve_of(run, state) if epoch == 1 and end_of_epoch else None
    if curve:
        parts["curve"] = curve.as_numbers()
    recorded = {part: finite(numbers) for part, numbers in parts.items()}
    log.write_parts(where, recorded)
    state.results[f"epoch {epoch}"] = recorded
    report(run, state, epoch, parts, curve)


def score(run: Run, pairs: PairSet, desc: str) -> np.ndarray:
    """(P, 2) rewards of these pairs now, chosen first."""
    return score_pairs(run.model, pairs, run.process, run.cfg.tokens_per_pass, desc)


def numbers_of(pairs: PairSet, rewards: np.ndarray) -> dict:
    gold = None if pairs.gold is None else pairs.gold.cpu().numpy()
    return pair_numbers(rewards, pairs.prompts, gold)


def judge(run: Run, state: State, rewards: np.ndarray) -> None:
    """Is this the best evaluation so far, and is it time to stop? For --keep-best, --early-stop."""
    losses = losses_for(run.metric, rewards, run.judged.prompts)
    state.best = update_best(
        state.best, state.reference.numpy(), losses, run.judged.prompts, state.step
    )
    if state.best["reference_step"] == state.step:
        state.reference = torch.from_numpy(losses)
    state.stopped = why_stopped(state.best, run.metric, run.cfg.early_stop, state.step)


def learning_curve_of(run: Run, state: State) -> Curve | None:
    """That of epoch 1, right after it: the losses that each pair had before it was trained on."""
    if is_softened(vars(run.cfg)):
        return None
    losses, counts, rates = [], [], []
    steps = epoch_order(len(run.data.groups), run.cfg.batch_size, run.cfg.seed, 0)
    for step, groups in enumerate(steps, start=1):
        numbers = run.data.pairs_of(groups)
        chosen, rejected = state.epoch_rewards[numbers].double().unbind(dim=1)
        losses.append(F.softplus(rejected - chosen).mean().item())
        counts.append(len(numbers))
        rates.append(run.rate(step))
    return learning_curve(losses, counts, rates)


def report(run: Run, state: State, epoch: int, parts: dict, curve: Curve | None) -> None:
    """The epoch in one line a part, and what the intervals mean with what to do about it."""
    say, cfg = run.process.result, run.cfg
    running = parts["running"]
    say(
        f"epoch {epoch}, running: loss {running['loss']:.3f}, accuracy {running['accuracy']:.3f} "
        "(each pair before its update)"
    )
    for part, numbers in parts.items():
        if part not in ("running", "curve"):
            say(f"epoch {epoch}, {part}: {describe(numbers)}")
    if epoch == 1 and not state.stopped:
        for words in curve_lines(curve, learned(parts)):
            say(words)
    is_last = state.step == run.total_steps or state.stopped != ""
    options = ("label_smoothing", "label_temperature", "margin_scale")
    asked = " and ".join(f"--{name.replace('_', '-')}" for name in options if getattr(cfg, name))
    for words in remarks(parts, is_last, asked):
        run.process.print(words)
    if state.stopped:
        say(state.stopped)


def export(run: Run, state: State, below: str = "") -> None:
    """Write the model in Hugging Face's format, with its card and run.json. Every rank calls it.

    below: a folder in --output-dir, instead of --output-dir itself.
    """
    cfg = run.cfg
    finished = state.step == run.total_steps or state.stopped != ""
    facts = run.facts | {
        "results": state.results,
        "step": state.step,
        "best": finite(state.best),
        "stopped": state.stopped,
        "finished": finished,
    }
    files = {
        "README.md": model_card(cfg.model_name, cfg.data_path, facts),
        "run.json": json.dumps(facts, indent=1) + "\n",
    }
    _, stored_dtype = PRECISIONS[run.precision]
    folder = str(Path(cfg.output_dir, below))
    save_reward_model(folder, run.model, run.tokenizer, stored_dtype, files, run.process)


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


def finish(run: Run, state: State, writer: CheckpointWriter) -> None:
    """The model is exported, so its checkpoints are no longer needed."""
    cfg, process = run.cfg, run.process
    writer.wait()
    if process.is_main:
        discard_checkpoints(cfg.output_dir)
    folder = cfg.output_dir
    if cfg.keep_best != "no":
        folder = str(Path(folder, "best"))
        process.result(f"{folder}: the model of step {state.best['step']}, best by {run.metric}")
    process.result(
        f"{cfg.output_dir}: saved; next: python evaluate.py match --dataset {cfg.dataset} "
        f"--model-name {folder}"
    )
    if cfg.keep_epochs:
        process.result(
            f"which epoch is best: python evaluate.py epochs --dataset {cfg.dataset} "
            f"--model-name {cfg.output_dir}"
        )
    process.finish()


if __name__ == "__main__":
    run_script(main, "--resume auto")
