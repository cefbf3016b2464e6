"""Weights in: a reward model from a folder or from the hub.

A model is built without memory, on torch's device "meta", and filled once it is where it will stay:

    model, source = meta_reward_model(name, dtype, seed)   # shapes; every weight is in the files
    model = shard(model, process, precision)               # each process allocates its own rows
    fill(model, source, process)                           # ... and reads them

So no process ever holds more than its own part and one tensor. load_reward_model does the same for
a model that is not sharded.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from . import attention  # noqa: F401  registers the attention "rmood" with transformers
from .distributed import Process
from .errors import UserError, one_line
from .files.tensors import read_header
from .hub import check_complete, model_folder
from .lora import first_values
from .model import RewardModel
from .optim import local

HEAD = "score.weight"  # its name in the file of a sequence classifier


class Stored(NamedTuple):
    """Where a tensor is on disk."""

    path: Path
    name: str  # in that file
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightSource:
    """Where the weights of a model come from."""

    name: str  # the model's, as the user gave it
    folder: str
    dtype: torch.dtype  # of the backbone
    seed: int | None  # for a new head, and for the embeddings of new tokens
    head: Stored | None  # None: a new one
    # of the backbone, by its own names; None: transformers converts them (see fill)
    weights: dict[str, Stored] | None


def load_reward_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    process: Process | None = None,
) -> RewardModel:
    """A reward model from a folder or hub name: a classifier, or a causal LM with a new head.

    dtype: dtype of the backbone; the head is float32. seed: seed for a new head where the model has
    none; None: there must be one, as for scoring. Only safetensors are read. Each weight goes
    straight to the device. process: given, every rank must call this; see fill.
    """
    model, source = meta_reward_model(name, dtype, seed)
    model = allocate(model, device).to(device)
    fill(model, source, process)
    return model


def meta_reward_model(
    name: str, dtype: torch.dtype = torch.float32, seed: int | None = None
) -> tuple[RewardModel, WeightSource]:
    """A reward model with parameters on "meta", and where they come from. Arguments: see above.

    Its embeddings may be resized, and it may be sharded, before `fill`. Its buffers that no file
    holds (rotary frequencies) have their values already. Raises UserError where the folder lacks
    weights, or a head.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    with _named_errors(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        try:
            classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        except KeyError as error:
            raise UserError(
                f"{name}: transformers has no sequence classifier for this kind of model "
                f"({one_line(error)}): choose another model"
            )
        stored = _stored_tensors(folder)
        backbone = _meta_backbone(config, dtype)
    size = config.get_text_config().hidden_size
    head = stored.get(HEAD)
    if head is None and seed is None:
        raise UserError(
            f"{name}: has no reward head (score.weight): score with a sequence-classification "
            "reward model, or train one with train.py"
        )
    if head is not None and head.shape != (1, size):
        raise UserError(
            f"{name}: its head has shape {head.shape}, a reward head (1, {size}): "
            "a classifier of several labels is no reward model"
        )
    score = nn.Linear(size, 1, bias=False, device="meta")
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a reward must not depend on chance, and the loss compares two of them
    backbone.config.architectures = [classifier.__name__]
    weights = _weights_by_name(name, backbone, stored)
    return RewardModel(backbone, score), WeightSource(name, folder, dtype, seed, head, weights)


def _meta_backbone(config, dtype: torch.dtype) -> nn.Module:
    """What AutoModel.from_pretrained returns, its parameters without memory."""
    with torch.device("meta"):
        backbone = AutoModel.from_config(
            config, dtype=dtype, attn_implementation="rmood", trust_remote_code=False
        )
    for name, buffer in list(backbone.named_non_persistent_buffers(remove_duplicate=False)):
        parent, _, own_name = name.rpartition(".")
        empty = torch.empty_like(buffer, device="cpu")
        backbone.get_submodule(parent).register_buffer(own_name, empty, persistent=False)
    backbone.initialize_weights()  # of these buffers: on "meta" it does nothing
    stay_float32 = backbone._keep_in_fp32_modules_strict or ()
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        if any(part in name for part in stay_float32):
            tensor.data = tensor.data.float()
    return backbone.eval()


def _weight_files(folder: str) -> list[Path]:
    """The folder's safetensors files, chosen as transformers does."""
    path = Path(folder, "model.safetensors")
    index = Path(folder, "model.safetensors.index.json")
    if path.exists() or not index.exists():
        return [path]
    files = json.loads(index.read_text())["weight_map"].values()
    return [Path(folder, file) for file in sorted(set(files))]


def weights_fingerprint(name: str) -> str:
    """SHA-256 that differs where the weights of two models do, so that a run is resumed with the
    model that it started from.

    It covers the header of each file (names, dtypes, shapes and places of all tensors) and up to
    4 KiB from the middle of each tensor. Hashing all bytes would take a minute for a 70B model at
    each start; one optimizer step already changes some of 2,048 values of every trained matrix.
    """
    digest = hashlib.sha256()
    with _named_errors(name):
        for path in _weight_files(model_folder(name)):
            header = read_header(path)
            digest.update(header.raw)
            with open(path, "rb") as file:
                for tensor in header.tensors.values():
                    start, end = tensor["data_offsets"]
                    length = min(4096, end - start)
                    file.seek(header.begin + (start + end - length) // 2)
                    digest.update(file.read(length))
    return digest.hexdigest()


def _stored_tensors(folder: str) -> dict[str, Stored]:
    """Every tensor in the folder's safetensors files."""
    found = {}
    for path in _weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                found[name] = Stored(path, name, tuple(file.get_slice(name).get_shape()))
    return found


def _weights_by_name(
    name: str, backbone: nn.Module, stored: dict[str, Stored]
) -> dict[str, Stored] | None:
    """The backbone's weights: its own names, or those with the prefix of a model around it.

    None where transformers converts the stored tensors: renames them (Gemma 3's with images), or
    puts several into one (a mixture's experts), or where a model's own rules say what may be
    missing. Raises UserError where one is missing or has another shape.
    """
    conversions = get_model_conversion_mapping(backbone)
    converted = any(
        conversion.rename_source_key(key)[1] is not None
        for conversion in conversions
        for key in stored
    )
    own_rules = backbone.all_tied_weights_keys or backbone._keys_to_ignore_on_load_missing
    if converted or own_rules or hasattr(backbone.config, "quantization_config"):
        return None
    wanted = backbone.state_dict()
    prefix = f"{backbone.base_model_prefix}."
    found = {}
    for key, tensor in stored.items():
        without_prefix = key.removeprefix(prefix)
        found[without_prefix if without_prefix in wanted else key] = tensor
    missing = wanted.keys() - found.keys()
    mismatched = [
        (key, found[key].shape, tensor.shape)
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    check_complete(name, {"missing_keys": missing, "mismatched_keys": mismatched})
    return {key: found[key] for key in wanted}


def allocate(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Memory on the device for what is on "meta". Its contents are undefined until `fill`.

    Not nn.Module.to_empty, which would also replace the buffers that have values.
    """
    return model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


@torch.no_grad()
def fill(model: RewardModel, source: WeightSource, process: Process | None = None) -> None:
    """Read the weights into a model of meta_reward_model that was allocated, perhaps sharded.

    Each process reads its own rows of each tensor, and holds one such part besides the model's own
    memory. Where transformers converts the stored tensors, rank 0 loads all of them and sends them
    to the others one by one: then every rank must call this. Adapters (lora.add_adapters) get the
    values that they begin with. process: None: this one, alone.
    """
    stored = {}
    if source.head is not None:
        stored[HEAD] = source.head
    if source.weights is not None:
        stored |= {f"backbone.{name}": tensor for name, tensor in source.weights.items()}
    tensors = _from_files(stored)
    if source.head is None:
        head = new_head(model.score.in_features, source.seed)
        tensors = itertools.chain(tensors, [(HEAD, head)])
    if source.weights is None:
        tensors = itertools.chain(tensors, _from_main(source, process))
    tensors = itertools.chain(tensors, first_values(model, source.seed))

    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    with _named_errors(source.name):
        for name, whole in tensors:
            target = targets[name]
            if target.ndim == 0:
                target.copy_(whole[...])
                continue
            pieces = [whole]
            added = len(target) - _rows(whole)
            if added > 0:  # the embeddings were resized
                pieces.append(_new_embeddings(added, model.config.get_text_config(), source.seed))
            fill_rows(target, pieces)


def fill_rows(target: torch.Tensor, pieces: list) -> None:
    """target <- this process's rows of the pieces, which together are the whole tensor.

    pieces: tensors, or slices of safe_open, of which only the rows needed are read. Rows are
    divided over the shards as torch.chunk and FSDP2 divide them.
    """
    part = local(target)
    first = 0
    if isinstance(target, DTensor):
        assert target.placements[-1] == Shard(0)
        mesh = target.device_mesh
        first = mesh.get_coordinate()[-1] * -(-len(target) // mesh.size(mesh.ndim - 1))
    start = 0
    filled = 0
    for piece in pieces:
        end = start + _rows(piece)
        low = max(first, start)
        high = min(first + len(part), end)
        if low < high:
            rows = piece[low - start : high - start]
            part[low - first : high - first].copy_(rows.to(part.device))
            filled += high - low
        start = end
    assert filled == len(part)


def _rows(whole) -> int:
    """Of a tensor, or of a slice of safe_open."""
    return len(whole) if torch.is_tensor(whole) else whole.get_shape()[0]


def _new_embeddings(count: int, config, seed: int) -> torch.Tensor:
    """(count, D) for tokens that the model did not know, as transformers initializes them."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(config, "initializer_range", 0.02)
    return torch.empty(count, config.hidden_size).normal_(0, std, generator=generator)


def _from_files(stored: dict[str, Stored]):
    """(name, slice) of each stored tensor. "pread": a mapped file's pages would be ours, too."""
    with contextlib.ExitStack() as files:
        opened = {}
        for name, (path, key, _) in stored.items():
            if path not in opened:
                opened[path] = files.enter_context(safe_open(path, "pt", backend="pread"))
            yield name, opened[path].get_slice(key)


def _from_main(source: WeightSource, process: Process | None):
    """(name, tensor) of each weight, as transformers loads and converts them in rank 0 alone."""
    loads = process is None or process.is_main
    several = process is not None and process.world_size > 1
    weights = {}
    error = None
    if loads:
        try:
            weights = _load_by_transformers(source)
        except UserError as failure:
            error = str(failure)
    shapes = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
    if several:
        box = [error, shapes]
        dist.broadcast_object_list(box, src=0, device=process.device)
        error, shapes = box
    if error is not None:
        raise UserError(error)
    if several:
        process.print(
            f"{source.name}: transformers converts its weights, so rank 0 loads all of them and "
            "sends them to the others"
        )
    device = process.device if process else "cpu"
    for name, (shape, dtype) in shapes.items():
        if loads:
            whole = weights.pop(name).to(device)
        else:
            whole = torch.empty(shape, dtype=dtype, device=device)
        if several:
            dist.broadcast(whole, src=0)
        yield name, whole


def _load_by_transformers(source: WeightSource) -> dict[str, torch.Tensor]:
    """The backbone's whole weights, by RewardModel's names."""
    with _named_errors(source.name):
        backbone, info = AutoModel.from_pretrained(
            source.folder,
            dtype=source.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete reports them
        )
    check_complete(source.name, info)
    return {f"backbone.{name}": weight for name, weight in backbone.state_dict().items()}


@contextlib.contextmanager
def _named_errors(name: str):
    """What goes wrong inside becomes a UserError that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds
        raise UserError(
            f"{name}: the model could not be loaded ({one_line(error)}): "
            "check the name or path, and the access to it"
        )


def new_head(size: int, seed: int) -> torch.Tensor:
    """(1, D) weights of a new head, D = size: N(0, 1 / (D + 1)^2), so small that the first rewards
    hardly differ.

    The final norm leaves hidden states with a mean square near 1, so the first rewards have a
    standard deviation of about 1 / sqrt(D) (0.02 at D = 2,560), and the first loss is
    ln 2 = 0.693 where nothing is wrong.

    Where the formula is from: OpenAI's reward models use a std of 1 / sqrt(D + 1) (Ziegler et al.
    2019, `fc_layer` in lm-human-preferences; `ModelWithHeads` in summarize-from-feedback). Rewards
    then begin with a std near 1, and the first loss is not ln 2. Here the std is the square of
    theirs, 1 / (D + 1), for the sake of this check. Hugging Face's N(0, 0.02^2) also begins
    with a reward std of 1.0 at D = 2,560, and with a loss of 0.92.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, size).normal_(0, 1 / (size + 1), generator=generator)


def check_token_ids(embeddings: int, rows: Sequence[Sequence[int]], name: str) -> None:
    """Raise UserError where the tokenizer has tokens that the model has no embedding for.

    embeddings: how many the model has; rows: token ids; name: of the model.
    """
    largest = max(max(row) for row in rows)
    if largest >= embeddings:
        raise UserError(
            f"{name}: token id {largest} lies outside the model's {embeddings} embeddings: "
            "the tokenizer is another model's"
        )
