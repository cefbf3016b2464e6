"""The reward model: a transformers backbone and a linear head. In and out in Hugging Face's format.

    N conversations, T tokens of a pass, D hidden size
    backbone: tokens (1, T) -> hidden (1, T, D)     in bf16 or float32
    score:    pooled (N, D) -> rewards (N,)         always float32: bf16 has steps of 0.03 at a reward of 5
"""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AttentionInterface, AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from . import BadInput, check_complete, model_folder, one_line


class RewardModel(nn.Module):
    """rewards = score(hidden state at the scored token). Knows nothing of how it is sharded or in which precision."""

    def __init__(self, backbone: nn.Module, score: nn.Linear):
        super().__init__()
        self.backbone = backbone
        self.score = score

    @property
    def config(self) -> PreTrainedConfig:
        return self.backbone.config

    def forward(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batching.Batch -> (N,) float32 rewards and the (N, D) pooled hidden states they are read from."""
        hidden = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,  # a cache would join the packed rows into one
            blocks=batch.blocks,
            pick=batch.pick,
        ).last_hidden_state  # (1, T, D)
        pooled = hidden.flatten(0, 1)[batch.last]  # (N, D)
        rewards = self.score(pooled.float())[:, 0].clone()  # (N,) a tensor of its own, not a view: FSDP's hooks need that
        return rewards, pooled


def packed_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, blocks=None, pick=None, **kwargs):
    """Causal attention inside each conversation. query (1, H, T, d), key and value (1, H_kv, T, d) -> (1, T, H, d).

    Only here are the unique tokens gathered into ordinary right-padded rows (prompt + response, L tokens), and the
    outputs picked back, one per unique token. Without blocks the tokens are such rows already.
    """
    if kwargs.get("softcap"):
        raise BadInput(f"{type(module).__name__}: attention with soft-capped logits is not supported: use another model")

    def rows_attention(q, k, v):  # (n, H, L, d)
        mask, length = None, q.shape[2]
        if sliding_window and length > sliding_window:
            distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
            mask = (distance >= 0) & (distance < sliding_window)
        grouped, dtype = dict(enable_gqa=True) if q.shape[1] != k.shape[1] else {}, q.dtype
        if q.device.type == "cpu":  # bf16 attention takes 1.5 times as long there as float32's
            q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, **grouped).transpose(1, 2).to(dtype)

    if blocks is None:
        return rows_attention(query, key, value), None
    tokens = [x[0].transpose(0, 1) for x in (query, key, value)]  # (T, H, d)
    outputs = []
    for index in blocks:  # (n, L)
        rows = [x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2) for x in tokens]  # (n, H, L, d)
        outputs.append(rows_attention(*rows).flatten(0, 1))  # (n * L, H, d)
    return torch.cat(outputs).index_select(0, pick)[None], None


AttentionInterface.register("rmood", packed_attention)


def load_reward_model(name: str, dtype: torch.dtype = torch.float32, seed: int | None = None) -> RewardModel:
    """A reward model from a folder or hub name: a sequence classifier, or a causal LM that gets a new head.

    seed: of the new head; None means that scoring is wanted, so a head must be there. Only safetensors are read.
    A new head is N(0, 1 / (D + 1)^2): on a normed hidden state rewards begin within some hundredths of 0, so the first
    loss is ln 2 = 0.693. (Hugging Face's own N(0, 0.02^2) would begin with a reward std of 1.0 at D = 2,560, loss 0.92.)
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        how = dict(attn_implementation="rmood", use_safetensors=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True)
        backbone, info = AutoModel.from_pretrained(folder, dtype=dtype, **how)
        head = _read_head(folder)
    except KeyError as error:
        raise BadInput(f"{name}: transformers has no sequence classifier for this kind of model ({one_line(error)}): choose another model")
    except Exception as error:  # transformers and safetensors raise many kinds
        raise BadInput(f"{name}: the model could not be loaded ({one_line(error)}): check the name or path, and the access to it")
    check_complete(name, info)
    size = config.get_text_config().hidden_size
    if head is None and seed is None:
        raise BadInput(f"{name}: has no reward head (score.weight): score with a sequence-classification reward model, or train one with train.py")
    if head is not None and head.shape != (1, size):
        raise BadInput(f"{name}: its head has shape {tuple(head.shape)}, a reward head (1, {size}): a classifier of several labels is no reward model")
    score = nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        if head is not None:
            score.weight.copy_(head)
        else:
            score.weight.normal_(0, 1 / (size + 1), generator=torch.Generator().manual_seed(seed))
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a reward must not depend on chance, and the loss compares two of them
    backbone.config.architectures = [model_class.__name__]
    return RewardModel(backbone, score)


def _read_head(folder: str) -> torch.Tensor | None:
    """score.weight in the precision of the file: transformers would round it to the backbone's."""
    index = Path(folder, "model.safetensors.index.json")
    file = json.loads(index.read_text())["weight_map"].get("score.weight") if index.exists() else "model.safetensors"
    if not file or not Path(folder, file).exists():
        return None
    with safe_open(Path(folder, file), "pt") as tensors:
        return tensors.get_tensor("score.weight").float() if "score.weight" in tensors.keys() else None


def check_token_ids(model: RewardModel, rows, name: str) -> None:
    """Raise BadInput where the tokenizer speaks of tokens that the model has no embedding for."""
    largest, size = max(max(row) for row in rows), model.backbone.get_input_embeddings().num_embeddings
    if largest >= size:
        raise BadInput(f"{name}: token id {largest} lies outside the model's {size} embeddings: the tokenizer is another model's")


def save_reward_model(folder: str, state_dict: dict[str, torch.Tensor], model: RewardModel, tokenizer, dtype: torch.dtype, files: dict[str, str]) -> None:
    """Write the folder that AutoModelForSequenceClassification and vLLM load.

    config.json goes first and comes last: a folder whose writing was cut short does not load at all.
    state_dict: full weights by this module's names. dtype: of the stored backbone; the head stays float32.
    files: further files by name, such as the model card.
    """
    config = copy.deepcopy(model.config)
    config.num_labels, config.dtype, config.pad_token_id = 1, dtype, tokenizer.pad_token_id
    config.problem_type = "regression"  # or pipelines and vLLM squash the reward by a sigmoid
    prefix = model.backbone.base_model_prefix
    weights = {name.replace("backbone", prefix, 1): weight.to(dtype) for name, weight in state_dict.items() if name.startswith("backbone.")}
    weights["score.weight"] = state_dict["score.weight"].float().clone()  # what was gathered may lie in a larger storage
    temporary = f"{folder}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    Path(temporary).mkdir(parents=True)
    try:
        save_torch_state_dict(weights, temporary)
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, text in files.items():
            Path(temporary, name).write_text(text, encoding="utf-8")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for stale in [*Path(folder).glob("config.json"), *Path(folder).glob("*.safetensors*")]:
            stale.unlink()
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, Path(folder, path.name))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def model_card(base: str, pairs: str, run: dict) -> str:
    """README.md of a trained model: what it is, how it was trained, and the numbers measured on the way."""
    cfg, rows = run["config"], []
    for epoch, results in run["results"].items():
        for part, m in results.items():
            ratio = f"{m['spread_ratio']:.2f}" if "spread_ratio" in m else "unknown"
            rows.append(f"| {epoch} | {part} | {m['loss']:.3f} | {m['accuracy']:.3f} | {m['reward_mean']:.2f} | {m['reward_std']:.2f} | {m['std_within']:.2f} | {ratio} |")
    return "\n".join([
        "---", "library_name: transformers", "pipeline_tag: text-classification", f"base_model: {Path(base).name if Path(base).is_dir() else base.partition('@')[0]}", "---",
        f"# Reward model from {Path(base).name}", "",
        f"Trained by the Bradley-Terry loss on {run['pairs']:,} pairs of {Path(pairs).name} with rmood: rate {cfg['lr']:g}, {cfg['epochs']} epochs, "
        f"{cfg['batch_size']} pairs a step, seed {cfg['seed']}.",
        "The reward is the one logit at the last token of the rendered chat template, in nats of log-odds; only differences",
        "between responses to one prompt mean something. Training numbers are of each pair before its update.", "",
        "| | part | loss | accuracy | reward mean | std | std within pairs | over gold's |", "|---|---|---|---|---|---|---|---|", *rows, "",
        "```python",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForSequenceClassification.from_pretrained(".")',
        'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        "text = tokenizer.apply_chat_template(messages, tokenize=False)",
        'reward = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]',
        "```", "",
    ])  # fmt: skip
