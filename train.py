"""Stage 4: train the proxy reward model on chosen/rejected pairs by Bradley-Terry.

    reads   datasets/<dataset>/rm/rm_implicit.jsonl   from preprocess.py
            a causal LM (the SFT model), or a sequence classifier whose training goes on
    writes  models/<name>/                            for evaluate.py, label.py, transformers and vLLM
            with metrics.jsonl and tensorboard/ inside, and checkpoints/ until it is done

    torchrun train.py --lr 5e-5 --epochs 2
    torchrun --nproc-per-node 8 train.py --lr 5e-5 --epochs 2
    python train.py --dataset toy --lr 1e-3 --epochs 4
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rmood import distributed, model_commit, records
from rmood.batching import LAYOUTS, Group, check_budget, epoch_order, plan_step
from rmood.checkpoint import RunLog, check_same_run, checkpoints, interrupt, is_finished, load_checkpoint, save_checkpoint
from rmood.config import opt, parse, run_script
from rmood.loss import bradley_terry_loss, centring_loss, pair_metrics, reward_margin, target_probability
from rmood.model import check_token_ids, load_reward_model, model_card, save_reward_model
from rmood.optim import UpdateMeter, build_optimizer, clip_gradients
from rmood.records import BadInput, Pair
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import score_groups
from rmood.sharding import PRECISIONS, default_precision, full_state_dict, shard
from rmood.tokenization import choose_pad_token, encode_rendered, load_tokenizer, show_row, template_sha256


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once", group="data and model")
    model_name: str = opt("{sft}", "start from this causal LM or sequence classifier: a folder, or owner/model or owner/model@revision on the hub")
    data_path: str = opt("{pairs}", "training pairs, from preprocess.py")
    output_dir: str = opt("{proxy}", "folder of the trained model")
    eval_path: str = opt("", "held-out pairs, evaluated at the end of each epoch")
    eval_share: float = opt(0.0, "without --eval-path: hold out this share of the prompts", at_least=0, at_most=0.5)
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    max_length: int = opt(2048, "tokens of a conversation; pairs with a longer one are left out", at_least=8)
    overwrite: bool = opt(False, "replace what is already in --output-dir", group="checkpoints")
    resume: str = opt("no", "auto: go on from the newest checkpoint in --output-dir, if there is one", choices=["no", "auto"])
    save_every: int = opt(0, "steps between checkpoints; 0: one at the end of each epoch", at_least=0)
    keep: int = opt(1, "newest checkpoints to keep while training", at_least=1)
    lr: float = opt(5e-5, "peak learning rate; at 5e-6 a 4B model's rewards stay compressed", group="optimization", above=0)
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    batch_size: int = opt(64, "pairs per optimizer step, over all processes and passes", at_least=1)
    warmup_ratio: float = opt(0.05, "share of the steps in which the rate rises to its peak", at_least=0, at_most=1)
    min_lr_ratio: float = opt(0.01, "the last step's rate over the peak; above 0, so that the last step still learns", at_least=0, at_most=1)
    weight_decay: float = opt(0.0, "AdamW's, on matrices only", at_least=0)
    max_grad_norm: float = opt(1.0, "gradients are scaled down to this common norm", above=0)
    max_bad_steps: int = opt(3, "stop after so many steps in a row whose loss or gradient is not finite", at_least=1)
    margin_scale: float = opt(0.0, "ask for a margin of this times gold's gap: loss of (margin - scale * gap) (Touvron et al. 2023, eq. 2)", group="loss", at_least=0)
    label_temperature: float = opt(0.0, "soft labels sigmoid(gold's gap / temperature); 0: chosen is certain", at_least=0)
    label_smoothing: float = opt(0.0, "share of labels taken to be wrong", at_least=0, at_most=0.49)
    centring: float = opt(0.0, "weight of a term that pulls the mean of all rewards to 0 and leaves their spread alone", at_least=0)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass on one process; lower it when memory runs out", group="memory and machine", at_least=16)
    layout: str = opt("packed", "packed: unique tokens, the prompt once; padded: plain rows, to read and compare", choices=list(LAYOUTS))
    precision: str = opt("auto", "mixed (auto on CUDA): float32 weights, bf16 compute; float32 (auto on a CPU); bf16; bf16-sr", choices=["auto", *PRECISIONS])
    activation_checkpointing: str = opt("auto", "recompute each layer in the backward pass: far less memory, a third more time; auto: on CUDA", choices=["auto", "on", "off"])
    cpu_offload: bool = opt(False, "weights, gradients and moments rest in host memory")
    replicas: int = opt(1, "copies of the sharded model, say one a node: gather weights only within a copy (HSDP)", at_least=1)
    log_every: int = opt(1, "steps between logged lines", group="log and seed", at_least=1)
    trace: int = opt(0, "show every number of a few pairs for so many first steps", at_least=0)
    seed: int = opt(0, "of the new head, the order of the pairs and the held-out prompts", at_least=0)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])


def main() -> int:
    cfg = parse(Config, __doc__)
    if nothing_to_do(cfg):
        print(f"{cfg.output_dir}: the run is finished")
        return 0
    records.check_lineage(cfg.data_path)
    pairs, held_out = read_train_and_held_out(cfg)
    process = distributed.start(cfg.device)
    tokenizer = load_tokenizer(cfg.model_name, cfg.chat_template)
    pairs, groups = tokenize(pairs, tokenizer, cfg, process, "pairs")
    held_out, held_out_groups = tokenize(held_out, tokenizer, cfg, process, "held-out pairs")
    process.print(f"the first chosen conversation, as the model reads it:\n{show_row(pairs[0].chosen, tokenizer)}")
    tokens, gold = [group.tokens for group in groups], gold_margins(pairs)
    if gold is None and (cfg.margin_scale or cfg.label_temperature):
        raise BadInput(f"{cfg.data_path}: --margin-scale and --label-temperature need gold's rewards: rerun preprocess.py, or leave them out")

    precision = default_precision(process) if cfg.precision == "auto" else cfg.precision
    weight_dtype, compute_dtype = PRECISIONS[precision]
    model = load_reward_model(cfg.model_name, weight_dtype, seed=cfg.seed)
    check_token_ids(model, [row for group in groups + held_out_groups for row in group.rows], cfg.model_name)
    choose_pad_token(tokenizer)
    if tokenizer.pad_token_id >= model.backbone.get_input_embeddings().num_embeddings:
        model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    recompute = process.device.type == "cuda" if cfg.activation_checkpointing == "auto" else cfg.activation_checkpointing == "on"
    model = shard(model, process, precision, replicas=cfg.replicas, activation_checkpointing=recompute, cpu_offload=cfg.cpu_offload).train()
    optimizer = build_optimizer(model, precision, cfg.lr, cfg.weight_decay, cfg.seed + process.rank)

    epoch_steps = -(-len(groups) // cfg.batch_size)
    total_steps, warmup = epoch_steps * cfg.epochs, warmup_steps(epoch_steps * cfg.epochs, cfg.warmup_ratio)
    run = records.run_facts(cfg, {"pairs": cfg.data_path, "eval_pairs": cfg.eval_path, "chat_template": cfg.chat_template}) | {"model_commit": model_commit(cfg.model_name)}
    run |= {"template_sha256": template_sha256(tokenizer), "pairs": len(pairs), "held_out_pairs": len(held_out), "world_size": process.world_size, "results": {}}
    parameters = sum(p.numel() for p in model.parameters())
    process.print(f"{parameters:,} parameters on {process.world_size} x {process.device.type}, precision {precision}; {total_steps} steps, {warmup} of them warmup")

    # What the loop remembers from step to step: all of it goes into a checkpoint.
    done, bad_steps, center = 0, 0, 0.0
    epoch_rewards = torch.full((len(pairs), 2), torch.nan, device=process.device)  # of each pair when it was last trained on
    if cfg.resume == "auto" and not cfg.overwrite and checkpoints(cfg.output_dir):
        facts, tensors = load_checkpoint(checkpoints(cfg.output_dir)[-1], model, optimizer)
        check_same_run(facts["run"], run)
        done, bad_steps, center, run["results"] = facts["step"], facts["bad_steps"], facts["center"], facts["run"]["results"]
        epoch_rewards = tensors["epoch_rewards"].to(process.device)
        process.print(f"{cfg.output_dir}: resumed after step {done} of {total_steps}")
    log = RunLog(cfg.output_dir, process, last_step=done)
    bar = tqdm(total=total_steps, initial=done, desc="training", unit="step", disable=not process.is_main)
    mark, tokens_since, pairs_since = time.perf_counter(), 0, 0
    asked = distributed.note_signals()  # from here on SIGINT and SIGTERM wait for the end of the step

    for step in range(done + 1, total_steps + 1):
        epoch, position = divmod(step - 1, epoch_steps)
        pairs_of_step = epoch_order(len(pairs), cfg.batch_size, cfg.seed, epoch)[position]
        slot = {pair: i for i, pair in enumerate(pairs_of_step.tolist())}
        step_rewards = torch.zeros(len(slot), 2, device=process.device)
        passes = plan_step(pairs_of_step, tokens, cfg.tokens_per_pass, process.world_size)[process.rank]
        shown = []

        for pairs_of_pass in passes:
            model.set_requires_all_reduce(pairs_of_pass is passes[-1])  # between --replicas, once a step is enough
            of_pass = pairs_of_pass or [0]  # fewer pairs than passes: every process must still run as many
            rewards, pooled = model(LAYOUTS[cfg.layout]([groups[i] for i in of_pass]).to(process.device))
            rewards = rewards.view(-1, 2)  # (B, 2): chosen, rejected
            margin = reward_margin(rewards)  # (B,)
            gap = None if gold is None else gold[of_pass].to(process.device)  # (B,) gold's own margin
            wanted = cfg.margin_scale * gap if cfg.margin_scale else 0.0
            losses = bradley_terry_loss(margin - wanted, target_probability(gap, cfg.label_temperature, cfg.label_smoothing))  # (B,)
            if cfg.centring:
                losses = losses + cfg.centring * centring_loss(rewards, center)
            loss = losses.sum() / len(slot) if pairs_of_pass else losses.sum() * 0.0  # this pass's part of the step's mean
            (loss * process.world_size).backward()  # FSDP averages gradients over processes; we want their sum
            step_rewards[[slot[i] for i in pairs_of_pass]] = rewards.detach()[: len(pairs_of_pass)]
            shown += [*zip(pairs_of_pass, rewards.tolist(), pooled.norm(dim=-1).view(-1, 2).tolist(), losses.tolist())] if step <= cfg.trace else []

        step_rewards = process.sum(step_rewards)  # each pair from the one process that had it
        norms = clip_gradients(model, cfg.max_grad_norm, process, cfg.replicas)
        rate = learning_rate(step, total_steps, warmup, cfg.lr, cfg.lr * cfg.min_lr_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logged = step % cfg.log_every == 0 or step == total_steps or step <= cfg.trace
        finite = bool(torch.isfinite(norms["grad_norm"]) & torch.isfinite(step_rewards).all())  # the same answer on every rank
        if finite:
            bad_steps, meter = 0, UpdateMeter(model) if logged else None
            optimizer.step()
        else:
            bad_steps += 1
            explain_bad_step(step, bad_steps, step_rewards, pairs_of_step, pairs, tokenizer, process)
            if bad_steps == min(cfg.max_bad_steps, epoch_steps):
                raise BadInput(f"{cfg.output_dir}: {bad_steps} steps in a row were not finite: lower --lr, or look at the pairs named above; --resume auto goes on from the last checkpoint")
        optimizer.zero_grad()

        if finite:
            epoch_rewards[pairs_of_step] = step_rewards
        center = step_rewards.mean().item() if cfg.centring and finite else center
        tokens_since, pairs_since = tokens_since + sum(tokens[i] for i in slot), pairs_since + len(slot)
        bar.update()
        if logged and finite:
            metrics = {"step": step, "epoch": epoch + 1} | pair_metrics(step_rewards, None if gold is None else gold[pairs_of_step])
            measured = norms | meter.read(model, optimizer, process)
            metrics |= {"learning_rate": rate} | {name: value.item() for name, value in measured.items()}
            seconds = time.perf_counter() - mark
            log.write(metrics, timing={"pairs_per_s": pairs_since / seconds, "tokens_per_s": tokens_since / seconds})
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", accuracy=f"{metrics['accuracy']:.2f}", lr=f"{rate:.1e}", lost=f"{metrics['lost_updates']:.0%}")
            if step <= cfg.trace:
                show_step(metrics, shown, pairs, tokenizer, process)
            mark, tokens_since, pairs_since = time.perf_counter(), 0, 0

        if position == epoch_steps - 1:
            seen = epoch_rewards.isfinite().all(dim=1).cpu()
            results = {"train": pair_metrics(epoch_rewards[seen], None if gold is None else gold[seen])}
            log.histogram("rewards/train", epoch_rewards[seen], step)
            if held_out:
                rewards = torch.tensor(score_groups(model, held_out_groups, process, cfg.tokens_per_pass, desc="evaluating"))  # (B, 2)
                results["eval"] = pair_metrics(rewards, gold_margins(held_out))
                log.histogram("rewards/eval", rewards, step)
            log.write({"step": step, "epoch": epoch + 1} | {f"{part}_{name}": value for part, values in results.items() for name, value in values.items()})
            report_epoch(epoch + 1, results, process)
            run["results"][f"epoch {epoch + 1}"] = results
            state = full_state_dict(model)
            if process.is_main:
                files = {"README.md": model_card(cfg.model_name, cfg.data_path, run), "run.json": json.dumps(run | {"finished": step == total_steps}, indent=1) + "\n"}
                save_reward_model(cfg.output_dir, state, model, tokenizer, compute_dtype, files)
        stop = process.sum(torch.tensor([len(asked)])).item() > 0  # a signal came, to this process or another
        if step < total_steps and (stop or (step % cfg.save_every == 0 if cfg.save_every else position == epoch_steps - 1)):
            facts = {"step": step, "bad_steps": bad_steps, "center": center, "run": run}
            save_checkpoint(cfg.output_dir, model, optimizer, facts, {"epoch_rewards": epoch_rewards}, process, cfg.keep)
            if stop:
                interrupt(log, process, asked)
        if position == epoch_steps - 1:
            mark = time.perf_counter()

    bar.close()
    log.close(finished=True)
    process.result(f"{cfg.output_dir}: saved; next: python evaluate.py match --dataset {cfg.dataset} --model-name {cfg.output_dir}")
    process.finish()
    return 0


def nothing_to_do(cfg: Config) -> bool:
    """Whether --resume finds a finished run. Raises BadInput rather than replace unasked what took hours."""
    records.check_writable(f"{cfg.output_dir}/metrics.jsonl")
    if cfg.overwrite:
        return False
    if cfg.resume == "auto":
        return is_finished(cfg.output_dir)
    if checkpoints(cfg.output_dir):
        raise BadInput(f"{cfg.output_dir}: holds an unfinished run: pass --resume auto to go on, or --overwrite to begin again")
    if Path(cfg.output_dir, "config.json").exists():
        raise BadInput(f"{cfg.output_dir}: holds a model: pass --overwrite to replace it, or another --output-dir")
    return False


def read_train_and_held_out(cfg: Config) -> tuple[list[Pair], list[Pair]]:
    """The training pairs and the held-out ones: from a file of their own, or a share of the *prompts*."""
    pairs = records.read_pairs(cfg.data_path)
    if cfg.eval_path:
        return pairs, records.read_pairs(cfg.eval_path)
    if not cfg.eval_share:
        return pairs, []
    prompts = sorted({pair.prompt_key for pair in pairs})
    chosen = np.random.default_rng(cfg.seed).permutation(len(prompts))[: round(len(prompts) * cfg.eval_share)]
    held_out = {prompts[i] for i in chosen}
    parts = [pair for pair in pairs if pair.prompt_key not in held_out], [pair for pair in pairs if pair.prompt_key in held_out]
    if not parts[0]:
        raise BadInput(f"{cfg.data_path}: no pairs are left to train on: lower --eval-share")
    return parts


def tokenize(pairs: list[Pair], tokenizer, cfg: Config, process, what: str) -> tuple[list[Pair], list[Group]]:
    """The pairs kept and their token groups. Pairs with a conversation over --max-length are left out, aloud."""
    rows = encode_rendered([side for pair in pairs for side in (pair.chosen, pair.rejected)], tokenizer)
    kept = [i for i in range(len(pairs)) if max(len(rows[2 * i]), len(rows[2 * i + 1])) <= cfg.max_length]
    if pairs and not kept:
        raise BadInput(f"all {len(pairs):,} {what} are longer than {cfg.max_length} tokens: raise --max-length")
    groups = [Group([rows[2 * i], rows[2 * i + 1]]) for i in kept]
    if pairs:
        check_budget(groups, cfg.tokens_per_pass, "pair")
        both, unique = sum(len(row) for group in groups for row in group.rows), sum(group.tokens for group in groups)
        dropped = f"dropped {len(pairs) - len(kept):,}: over {cfg.max_length} tokens"
        process.print(f"kept {len(kept):,} of {len(pairs):,} {what}; {dropped}; {both:,} tokens, {unique:,} with shared prompts computed once")
    return [pairs[i] for i in kept], groups


def gold_margins(pairs: list[Pair]) -> torch.Tensor | None:
    """(B,) gold's own margins, or None where a pair does not bring them."""
    if any(pair.chosen_reward is None or pair.rejected_reward is None for pair in pairs):
        return None
    return torch.tensor([pair.chosen_reward - pair.rejected_reward for pair in pairs])


def report_epoch(epoch: int, results: dict, process) -> None:
    """The epoch in one line a part, and the warning signs with what to do about each."""
    for part, m in results.items():
        ratio = f", spread {m['spread_ratio']:.2f} of gold's" if "spread_ratio" in m else ""
        process.result(f"epoch {epoch}, {part}: loss {m['loss']:.3f}, accuracy {m['accuracy']:.3f}, rewards {m['reward_min']:.2f} to {m['reward_max']:.2f} (std {m['reward_std']:.2f}){ratio}")
    train, last = results["train"], list(results.values())[-1]
    if train["loss"] > 0.5:
        process.print(f"WARNING loss {train['loss']:.3f} over epoch {epoch}, above 0.5: raise --lr or --epochs; check the pairs with evaluate.py validate")
    if train["accuracy"] < 0.8:
        process.print(f"WARNING training accuracy {train['accuracy']:.1%} over epoch {epoch}, under 80%: the model is not learning; check --lr, and the pairs with evaluate.py inspect")
    if last.get("spread_ratio", 1.0) < 0.5:
        process.print(f"WARNING compressed rewards: their spread within pairs is {last['spread_ratio']:.2f} of gold's: raise --lr and --epochs")


def show_step(metrics: dict, shown: list, pairs: list[Pair], tokenizer, process) -> None:
    """--trace: the whole algorithm on one screen, for the first two pairs of this process."""
    for i, (chosen_reward, rejected_reward), (chosen_norm, rejected_norm), loss in shown[:2]:
        pair = pairs[i]
        process.print(f"\n--- step {metrics['step']}, pair {i}, chosen:\n{show_row(pair.chosen, tokenizer)}\n--- rejected, its last turn: {pair.rejected[-1]['content']!r}")
        process.print(f"pooled hidden state's norm   {chosen_norm:.4f} chosen, {rejected_norm:.4f} rejected")
        process.print(f"reward                       {chosen_reward:.4f} chosen, {rejected_reward:.4f} rejected")
        process.print(f"margin                       {chosen_reward - rejected_reward:.4f}\nloss = -log sigmoid(margin)   {loss:.4f}")
    lines = {"mean over the step": ("loss", "accuracy", "margin_mean"), "rate": ("learning_rate", "update_ratio", "update_kept")}
    lines |= {kind: tuple(name for name in metrics if name.startswith(kind)) for kind in ("grad_norm", "lost_updates")}
    process.print("\n".join(f"{title:29}" + ", ".join(f"{name} {metrics[name]:.4g}" for name in names) for title, names in lines.items()))


def explain_bad_step(step: int, bad_steps: int, step_rewards: torch.Tensor, pairs_of_step: np.ndarray, pairs: list[Pair], tokenizer, process) -> None:
    """Name the pairs whose reward is not finite, or say that only the gradient is not."""
    bad = [int(pair) for pair, rewards in zip(pairs_of_step, step_rewards) if not torch.isfinite(rewards).all()]
    what = f"rewards of pairs {bad[:8]} are not finite" if bad else "the rewards are finite but a gradient is not"
    process.print(f"WARNING step {step}: {what}: the step is not taken ({bad_steps} in a row)")
    for pair in bad[:1]:
        process.print(f"pair {pair}, chosen:\n{show_row(pairs[pair].chosen, tokenizer)}\nrejected:\n{show_row(pairs[pair].rejected, tokenizer)}")


if __name__ == "__main__":
    run_script(main, "--resume auto")
