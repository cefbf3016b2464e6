"""Stage 4: train the proxy reward model on chosen/rejected pairs by Bradley-Terry.

    reads   datasets/<dataset>/rm/rm_implicit.jsonl   from preprocess.py
            a causal LM (the SFT model), or a sequence classifier whose training goes on
    writes  models/<name>/                            for evaluate.py, label.py, transformers and vLLM
            with metrics.jsonl and tensorboard/ inside

    torchrun train.py --lr 5e-5 --epochs 2
    torchrun --nproc-per-node 8 train.py --lr 5e-5 --epochs 2
    python train.py --dataset toy --lr 1e-3 --epochs 4
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rmood import distributed, records
from rmood.batching import LAYOUTS, Group, check_budget, epoch_order, plan_step
from rmood.config import opt, parse, run_script
from rmood.loss import bradley_terry_loss, pair_metrics, reward_margin
from rmood.model import check_token_ids, load_reward_model, model_card, save_reward_model
from rmood.optim import build_optimizer, clip_gradients
from rmood.records import BadInput, Pair
from rmood.schedule import learning_rate, warmup_steps
from rmood.scoring import score_groups
from rmood.sharding import PRECISIONS, compute_dtype, full_state_dict, shard
from rmood.tokenization import choose_pad_token, encode, load_tokenizer, render, show_row, template_sha256


@dataclass(frozen=True)
class Config:
    dataset: str = opt("alpacafarm", "names every default path at once")
    model_name: str = opt("{sft}", "start from this causal LM or sequence classifier: a folder or a hub name")
    data_path: str = opt("{pairs}", "training pairs, from preprocess.py")
    output_dir: str = opt("{proxy}", "folder of the trained model")
    overwrite: bool = opt(False, "replace a model that is already in --output-dir")
    eval_path: str = opt("", "held-out pairs, evaluated at the end of each epoch")
    eval_share: float = opt(0.0, "without --eval-path: hold out this share of the prompts", at_least=0, at_most=0.5)
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    lr: float = opt(5e-5, "peak learning rate; at 5e-6 a 4B model's rewards stay compressed", above=0)
    epochs: int = opt(2, "passes over the pairs", at_least=1)
    batch_size: int = opt(64, "pairs per optimizer step, over all processes and passes", at_least=1)
    warmup_ratio: float = opt(0.05, "share of the steps in which the rate rises to its peak", at_least=0, at_most=1)
    min_lr_ratio: float = opt(0.01, "the last step's rate over the peak; above 0, so that the last step still learns", at_least=0, at_most=1)
    weight_decay: float = opt(0.0, "AdamW's, on matrices only", at_least=0)
    max_grad_norm: float = opt(1.0, "gradients are scaled down to this common norm", above=0)
    max_length: int = opt(2048, "tokens of a conversation; pairs with a longer one are left out", at_least=8)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass on one process; lower it when memory runs out", at_least=16)
    layout: str = opt("packed", "packed: unique tokens, the prompt once; padded: plain rows, to read and compare", choices=list(LAYOUTS))
    precision: str = opt("auto", "mixed: float32 weights, bf16 compute (auto on CUDA); float32 (auto on a CPU)", choices=PRECISIONS)
    activation_checkpointing: bool = opt(False, "recompute each layer in the backward pass: less memory, a third more time")
    log_every: int = opt(1, "steps between logged lines", at_least=1)
    seed: int = opt(0, "of the new head, the order of the pairs and the held-out prompts", at_least=0)
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])


def main() -> int:
    cfg = parse(Config, __doc__)
    if Path(cfg.output_dir, "config.json").exists() and not cfg.overwrite:
        raise BadInput(f"{cfg.output_dir}: holds a model already: pass --overwrite to replace it, or another --output-dir")
    records.check_writable(f"{cfg.output_dir}/config.json")
    records.check_lineage(cfg.data_path)
    pairs, held_out = read_train_and_held_out(cfg)
    process = distributed.start(cfg.device)
    tokenizer = load_tokenizer(cfg.model_name, cfg.chat_template)
    pairs, groups = tokenize(pairs, tokenizer, cfg, process, "pairs")
    held_out, held_out_groups = tokenize(held_out, tokenizer, cfg, process, "held-out pairs")
    process.print(f"the first chosen conversation, as the model reads it:\n{show_row(pairs[0].chosen, tokenizer)}")

    dtype = compute_dtype(cfg.precision, process)
    model = load_reward_model(cfg.model_name, seed=cfg.seed)
    check_token_ids(model, [row for group in groups + held_out_groups for row in group.rows], cfg.model_name)
    choose_pad_token(tokenizer)
    if tokenizer.pad_token_id >= model.backbone.get_input_embeddings().num_embeddings:
        model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = shard(model, process, dtype, cfg.activation_checkpointing).train()
    optimizer = build_optimizer(model, cfg.lr, cfg.weight_decay)

    tokens = [group.tokens for group in groups]  # unique tokens of each pair
    gold = gold_margins(pairs)
    epoch_steps = -(-len(groups) // cfg.batch_size)
    total_steps, warmup = epoch_steps * cfg.epochs, warmup_steps(epoch_steps * cfg.epochs, cfg.warmup_ratio)
    parameters = sum(p.numel() for p in model.parameters())
    process.print(f"{parameters:,} parameters on {process.world_size} x {process.device.type}, {str(dtype)[6:]} compute; {total_steps} steps, {warmup} of them warmup")
    run = records.run_facts(cfg, {"pairs": cfg.data_path, "eval_pairs": cfg.eval_path, "chat_template": cfg.chat_template})
    run |= {"template_sha256": template_sha256(tokenizer), "pairs": len(pairs), "held_out_pairs": len(held_out), "world_size": process.world_size}
    log = Log(cfg.output_dir, process)
    bar = tqdm(total=total_steps, desc="training", unit="step", disable=not process.is_main)
    step, mark, tokens_since, pairs_since = 0, time.perf_counter(), 0, 0

    for epoch in range(1, cfg.epochs + 1):
        epoch_rewards, epoch_pairs = [], []
        for pairs_of_step in epoch_order(len(groups), cfg.batch_size, cfg.seed, epoch):
            step += 1
            slot = {pair: i for i, pair in enumerate(pairs_of_step.tolist())}
            step_rewards = torch.zeros(len(slot), 2, device=process.device)
            passes = plan_step(pairs_of_step, tokens, cfg.tokens_per_pass, process.world_size)[process.rank]

            for pairs_of_pass in passes:
                batch = LAYOUTS[cfg.layout]([groups[i] for i in pairs_of_pass or [0]]).to(process.device)
                rewards = model(batch).view(-1, 2)  # (B, 2): chosen, rejected
                margin = reward_margin(rewards)  # (B,)
                loss = bradley_terry_loss(margin).sum() / len(slot)  # this pass's part of the mean over the whole step
                if not pairs_of_pass:
                    loss = loss * 0.0  # fewer pairs than passes: every process must still run as many
                (loss * process.world_size).backward()  # FSDP averages gradients over processes; we want their sum
                step_rewards[[slot[i] for i in pairs_of_pass]] = rewards.detach()[: len(pairs_of_pass)]

            norms = clip_gradients(model, cfg.max_grad_norm)
            rate = learning_rate(step, total_steps, warmup, cfg.lr, cfg.lr * cfg.min_lr_ratio)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

            step_rewards = process.sum(step_rewards)  # each pair from the one process that had it
            epoch_rewards.append(step_rewards)
            epoch_pairs.append(pairs_of_step)
            tokens_since, pairs_since = tokens_since + sum(tokens[i] for i in slot), pairs_since + len(slot)
            bar.update()
            if step % cfg.log_every == 0 or step == total_steps:
                metrics = {"step": step, "epoch": epoch} | pair_metrics(step_rewards, gold[pairs_of_step] if gold is not None else None)
                metrics |= {name: norm.item() for name, norm in norms.items()} | {"learning_rate": rate}
                seconds = time.perf_counter() - mark
                log.write(metrics, timing={"pairs_per_s": pairs_since / seconds, "tokens_per_s": tokens_since / seconds})
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", accuracy=f"{metrics['accuracy']:.2f}", lr=f"{rate:.1e}")
                mark, tokens_since, pairs_since = time.perf_counter(), 0, 0

        seen = np.concatenate(epoch_pairs)
        results = {"train": pair_metrics(torch.cat(epoch_rewards), gold[seen] if gold is not None else None)}
        log.histogram("rewards/train", torch.cat(epoch_rewards), step)
        if held_out:
            rewards = torch.tensor(score_groups(model, held_out_groups, process, cfg.tokens_per_pass, desc="evaluating"))  # (B, 2)
            results["eval"] = pair_metrics(rewards, gold_margins(held_out))
            log.histogram("rewards/eval", rewards, step)
        log.write({"step": step, "epoch": epoch} | {f"{part}_{name}": value for part, values in results.items() for name, value in values.items()})
        report_epoch(epoch, results, process)
        state = full_state_dict(model)
        if process.is_main:
            run["results"] = {f"epoch {epoch}": results} | run.get("results", {})
            files = {"README.md": model_card(cfg.model_name, cfg.data_path, run), "run.json": json.dumps(run, indent=1) + "\n"}
            save_reward_model(cfg.output_dir, state, model, tokenizer, dtype, files)
        process.barrier()
        mark = time.perf_counter()

    bar.close()
    log.close()
    process.print(f"{cfg.output_dir}: saved; next: python evaluate.py match --dataset {cfg.dataset} --model-name {cfg.output_dir}")
    process.finish()
    return 0


def read_train_and_held_out(cfg: Config) -> tuple[list[Pair], list[Pair]]:
    """The training pairs and the held-out ones: from a file of their own, or a share of the *prompts*."""
    pairs = records.read_pairs(cfg.data_path)
    if cfg.eval_path:
        return pairs, records.read_pairs(cfg.eval_path)
    prompts = sorted({pair.prompt_key for pair in pairs})
    chosen = np.random.default_rng(cfg.seed).permutation(len(prompts))[: round(len(prompts) * cfg.eval_share)]
    held_out = {prompts[i] for i in chosen}
    parts = [pair for pair in pairs if pair.prompt_key not in held_out], [pair for pair in pairs if pair.prompt_key in held_out]
    if not parts[0]:
        raise BadInput(f"{cfg.data_path}: no pairs are left to train on: lower --eval-share")
    return parts


def tokenize(pairs: list[Pair], tokenizer, cfg: Config, process, what: str) -> tuple[list[Pair], list[Group]]:
    """The pairs kept and their token groups. Pairs with a conversation over --max-length are left out, aloud."""
    texts = [render(side, tokenizer) for pair in pairs for side in (pair.chosen, pair.rejected)]
    rows = encode(texts, tokenizer)
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
        process.print(f"epoch {epoch}, {part}: loss {m['loss']:.3f}, accuracy {m['accuracy']:.3f}, rewards {m['reward_min']:.2f} to {m['reward_max']:.2f} (std {m['reward_std']:.2f}){ratio}")
    train, last = results["train"], list(results.values())[-1]
    if train["loss"] > 0.5:
        process.print(f"WARNING loss {train['loss']:.3f} over epoch {epoch}, above 0.5: raise --lr or --epochs; check the pairs with evaluate.py validate")
    if train["accuracy"] < 0.8:
        process.print(f"WARNING training accuracy {train['accuracy']:.1%} over epoch {epoch}, under 80%: the model is not learning; check --lr, and the pairs with evaluate.py inspect")
    if last.get("spread_ratio", 1.0) < 0.5:
        process.print(f"WARNING compressed rewards: their spread within pairs is {last['spread_ratio']:.2f} of gold's: raise --lr and --epochs")


class Log:
    """metrics.jsonl and TensorBoard, written by rank 0 alone. The timing comes last in each line: it alone differs between runs."""

    def __init__(self, folder: str, process):
        self.file = self.board = None
        if process.is_main:
            shutil.rmtree(Path(folder, "tensorboard"), ignore_errors=True)
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.file = open(Path(folder, "metrics.jsonl"), "w", encoding="utf-8")
            self.board = SummaryWriter(str(Path(folder, "tensorboard")))

    def write(self, metrics: dict, timing: dict | None = None) -> None:
        if self.file:
            self.file.write(json.dumps(metrics | (timing or {})) + "\n")
            self.file.flush()
            for name, value in (metrics | (timing or {})).items():
                self.board.add_scalar(name.replace("_", "/", 1) if name.startswith(("train_", "eval_")) else f"step/{name}", value, metrics["step"])

    def histogram(self, name: str, values: torch.Tensor, step: int) -> None:
        if self.board:
            for side, column in zip(("chosen", "rejected"), values.cpu().unbind(dim=1)):
                self.board.add_histogram(f"{name}_{side}", column, step)
            self.board.add_histogram(f"{name}_margin", reward_margin(values.cpu()), step)

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.board.close()


if __name__ == "__main__":
    run_script(main)
