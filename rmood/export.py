"""Weights out: the folder that transformers and vLLM load, and its model card."""

import copy
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from .distributed import Process
from .files.rows import fsync
from .loss import LossOptions
from .model import RewardModel


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

    dtype: dtype of the stored backbone; the head stays float32. files: further files by name, such
    as the model card. process: given where the model is sharded; every rank calls this, and rank 0
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
    stored = {}  # as they will be in the files, without memory
    for name, weight in weights.items():
        kept = name == "score.weight" or not weight.is_floating_point()
        stored_dtype = weight.dtype if kept else dtype
        stored[name] = torch.empty(weight.shape, dtype=stored_dtype, device="meta")
    split = split_torch_state_dict_into_shards(stored, max_shard_size=max_shard_size)
    writes = process is None or process.is_main
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            whole = _gather(weights[name], stored[name].dtype, process)  # every rank takes part
            if writes:
                tensors[name] = whole.cpu()
        if writes:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if writes and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _gather(weight: torch.Tensor, dtype: torch.dtype, process: Process | None) -> torch.Tensor:
    """The whole of a weight that may be sharded, rounded before it is sent."""
    if isinstance(weight, DTensor):
        weight = weight.to(process.device).to(dtype).full_tensor()
    return weight.to(dtype).contiguous()


def _classifier_config(model: RewardModel, tokenizer, dtype: torch.dtype):
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.dtype = dtype
    config.pad_token_id = tokenizer.pad_token_id
    config.problem_type = "regression"  # or pipelines and vLLM squash the reward by a sigmoid
    return config


def _classifier_weights(model: RewardModel) -> dict[str, torch.Tensor]:
    """The weights by the names that transformers gives to a sequence classifier's."""
    weights = model.state_dict()
    head = weights.pop("score.weight")
    prefix = model.backbone.base_model_prefix
    named = {name.replace("backbone", prefix, 1): weight for name, weight in weights.items()}
    return named | {"score.weight": head}


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
    )
    return f"""\
---
library_name: transformers
pipeline_tag: text-classification
base_model: {base_model}
---
# Reward model from {Path(base).name}

Trained by the Bradley-Terry loss on {number_of_pairs} of {Path(pairs).name} with rmood:
rate {cfg["lr"]:g}, {cfg["epochs"]} epochs, {cfg["batch_size"]} {unit} per step, seed {cfg["seed"]}.
{_loss_options(cfg)}The reward is the one logit at the last token of the rendered chat template, in
nats of log-odds; only differences between responses to one prompt mean something. Training numbers
are of each pair before its update; the loss in the table is plain Bradley-Terry.

| | part | loss | accuracy | reward mean | std | std within pairs | over gold's |
|---|---|---|---|---|---|---|---|
{results}{HOW_TO_LOAD}"""


def _loss_options(cfg: dict) -> str:
    """The options of rmood/loss.py that were set, in a line; "" where none was."""
    names = [field.name for field in fields(LossOptions) if cfg.get(field.name)]
    if not names:
        return ""
    options = ", ".join(f"{name} {cfg[name]:g}" for name in names)
    return f"Options of the loss that was minimised: {options}.\n"


def _card_row(epoch: str, part: str, metrics: dict) -> str:
    cells = [
        epoch,
        part,
        f"{metrics['loss']:.3f}",
        f"{metrics['accuracy']:.3f}",
        f"{metrics['reward_mean']:.2f}",
        f"{metrics['reward_std']:.2f}",
        f"{metrics['std_within']:.2f}",
        f"{metrics['spread_ratio']:.2f}" if "spread_ratio" in metrics else "unknown",
    ]
    return "| " + " | ".join(cells) + " |\n"
