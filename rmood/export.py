"""Weights out: the folder that transformers and vLLM load, and its model card."""

import copy
import json
import os
import shutil
import zlib
from dataclasses import fields
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from .distributed import Process
from .files.rows import fsync
from .lora import adapted_modules, is_adapter, merge
from .loss import LossOptions
from .model import RewardModel
from .optim import round_stochastically

CHUNK = 1 << 24  # weights that are rounded at once


def save_reward_model(
    folder: str,
    model: RewardModel,
    tokenizer,
    dtype: torch.dtype,
    files: dict[str, str],
    process: Process | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write the folder that AutoModelForSequenceClassification and vLLM load.

    config.json is removed first and written last: a half-written folder does not load.

    dtype: dtype of the stored backbone; the head stays float32. Adapters (lora.py) are merged into
    their weights in float32 first. files: further files by name, such as the
    model card. process: given where the model is sharded; every rank calls this, and rank 0
    writes. max_shard_size: bytes of a safetensors file, or "5GB"; rank 0 holds no more than one
    file, or one larger tensor, in host memory.
    """
    writes = process is None or process.is_main
    temporary = Path(f"{folder}.tmp")
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        _write_weights(temporary, model, dtype, process, max_shard_size)
        if writes:
            _classifier_config(model, tokenizer, dtype).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
            _replace_files(temporary, Path(folder))
    finally:
        if writes:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_weights(
    folder: Path,
    model: RewardModel,
    dtype: torch.dtype,
    process: Process | None,
    max_shard_size: int | str,
) -> None:
    """model.safetensors, or model-00001-of-0000N.safetensors with an index."""
    weights = _classifier_weights(model)
    adapters = {_stored_name(model, f"{n}.weight"): m for n, m in adapted_modules(model).items()}
    stored = {}  # as they will be in the files, without memory
    for name, weight in weights.items():
        kept = name == "score.weight" or not weight.is_floating_point()
        stored_dtype = weight.dtype if kept else dtype
        stored[name] = torch.empty(weight.shape, dtype=stored_dtype, device="meta")
    split = split_torch_state_dict_into_shards(stored, max_shard_size=max_shard_size)
    writes = process is None or process.is_main
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:  # every rank takes part in gathering
            whole = _gather(weights[name], process)
            if name in adapters:
                module = adapters[name]
                a, b = _gather(module.lora_a, process), _gather(module.lora_b, process)
                whole = merge(whole, a, b, module.scale)
            if writes:
                tensors[name] = rounded(whole, stored[name].dtype, name).cpu()
        if writes:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if writes and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _gather(weight: torch.Tensor, process: Process | None) -> torch.Tensor:
    """The whole of a weight that may be sharded."""
    weight = weight.detach()
    if isinstance(weight, DTensor):
        weight = weight.to(process.device).full_tensor()
    return weight.contiguous()


@torch.no_grad()
def rounded(weight: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The weight in this dtype. From float32 to bf16 it is rounded stochastically.

    Start weights are usually bf16 numbers, and most of a short training moves a weight by less than
    half a step of bf16: rounded to the nearest, it would be back where it started. Stochastic
    rounding keeps the update on average (optim.AdamWStochasticRounding). Its random numbers depend
    on the tensor's name alone, so equal weights are saved as equal bytes.
    """
    if weight.dtype != torch.float32 or dtype != torch.bfloat16:
        return weight.to(dtype)
    generator = torch.Generator(weight.device).manual_seed(zlib.crc32(name.encode()))
    result = torch.empty_like(weight, dtype=dtype)
    for target, part in zip(result.view(-1).split(CHUNK), weight.view(-1).split(CHUNK)):
        noise = torch.empty_like(part, dtype=torch.int32).random_(generator=generator)
        target.copy_(round_stochastically(part, noise))
    return result


def _classifier_config(model: RewardModel, tokenizer, dtype: torch.dtype):
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.dtype = dtype
    config.pad_token_id = tokenizer.pad_token_id
    config.problem_type = "regression"  # or pipelines and vLLM squash the reward by a sigmoid
    return config


def _classifier_weights(model: RewardModel) -> dict[str, torch.Tensor]:
    """The weights, but for adapters, by the names that transformers gives to a classifier's."""
    weights = {}
    for name, weight in model.state_dict().items():
        if not is_adapter(name):
            weights[_stored_name(model, name)] = weight
    return weights


def _stored_name(model: RewardModel, name: str) -> str:
    return name.replace("backbone", model.backbone.base_model_prefix, 1)


def _replace_files(source: Path, target: Path) -> None:
    """Move all files into the target folder, where those of an older model must not stay."""
    target.mkdir(parents=True, exist_ok=True)
    for stale in [*target.glob("config.json"), *target.glob("*.safetensors*")]:
        stale.unlink()
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        fsync(path)
        if path.name == "config.json":
            fsync(target)  # all files that config.json needs are on disk before it
        os.replace(path, target / path.name)
    fsync(target)


def kept_models(folder: str) -> list[Path]:
    """The models that train.py keeps below its own: epoch-1, epoch-2, ... in order, then best."""
    found = [path for path in Path(folder).glob("epoch-*") if path.name[6:].isdigit()]
    found.sort(key=lambda path: int(path.name[6:]))
    found.append(Path(folder, "best"))
    return [path for path in found if (path / "config.json").exists()]


def discard_kept_models(folder: str) -> None:
    """Delete these: a new run begins in the folder."""
    for path in kept_models(folder):
        shutil.rmtree(path)


HOW_TO_LOAD = """
```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".")
messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
text = tokenizer.apply_chat_template(messages, tokenize=False)
reward = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]
```
"""


def model_card(base: str, pairs: str, run: dict) -> str:
    """README.md of a trained model: what it is, how it was trained, and the numbers measured then.

    base: the model that training started from. pairs: path of the training pairs. run: run.json,
    with "groups" where the pairs are of groups of responses: then a step counts groups.
    """
    cfg = run["config"]
    number_of_pairs = f"{run['pairs']:,} pairs"
    unit = "pairs"
    if run.get("groups"):
        number_of_pairs += f" in {run['groups']:,} groups"
        unit = "groups"
    is_folder = Path(base).is_dir()
    base_model = Path(base).name if is_folder else base.partition("@")[0]
    results = "".join(
        _card_row(epoch, part, metrics)
        for epoch, parts in run["results"].items()
        for part, metrics in parts.items()
        if "accuracy" in metrics  # not the learning curve
    )
    how = _adapters(cfg) + _loss_options(cfg)
    return f"""\
---
library_name: transformers
pipeline_tag: text-classification
base_model: {base_model}
---
# Reward model from {Path(base).name}

Trained by the Bradley-Terry loss on {number_of_pairs} of {Path(pairs).name} with rmood:
rate {cfg["lr"]:g}, {cfg["epochs"]} epochs, {cfg["batch_size"]} {unit} per step, seed {cfg["seed"]}.
{how}The reward is the one logit at the last token of the rendered chat template, in
nats of log-odds; only differences between responses to one prompt mean something. The loss in the
table is plain Bradley-Terry. running: each training pair before its update; train: a sample of the
training pairs, scored after the epoch; eval: held-out pairs. bits: what it knows of the order of a
pair, 0 to 1; scale: the factor that calibrates its margins (95% interval).

| | part | loss | accuracy | bits | scale | reward std | std within pairs |
|---|---|---|---|---|---|---|---|
{results}{HOW_TO_LOAD}"""


def _adapters(cfg: dict) -> str:
    """In a line, with LoRA; "" without."""
    if not cfg.get("lora_rank"):
        return ""
    return (
        f"Trained by LoRA: rank {cfg['lora_rank']}, alpha {cfg['lora_alpha']:g}; "
        "merged into the weights.\n"
    )


def _loss_options(cfg: dict) -> str:
    """The options of rmood/loss.py that were set, in a line; "" where none was."""
    names = [field.name for field in fields(LossOptions) if cfg.get(field.name)]
    if not names:
        return ""
    options = ", ".join(f"{name} {cfg[name]:g}" for name in names)
    return f"Options of the loss that was minimised: {options}.\n"


def _card_row(epoch: str, part: str, metrics: dict) -> str:
    def shown(name: str) -> str:
        return "" if metrics.get(name) is None else f"{metrics[name]:.2f}"

    scale = shown("scale")
    if scale:
        scale += f" ({shown('scale_low')} to {shown('scale_high')})"
    elif shown("scale_low"):  # all pairs right: no scale is too large
        scale = f"over {shown('scale_low')}"
    cells = [
        epoch,
        part,
        f"{metrics['loss']:.3f}",
        f"{metrics['accuracy']:.3f}",
        shown("bits"),
        scale,
        shown("reward_std"),
        shown("std_within"),
    ]
    return "| " + " | ".join(cells) + " |\n"
