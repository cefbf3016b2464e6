"""A pure-PyTorch reward-model trainer: pairwise Bradley-Terry training in the open.

Floors (a module imports only from lower ones; tests/test_floors.py holds that):
    0  formats schedule loss distributed
    1  records config
    2  tokenization model optim diagnostics generation alpacafarm
    3  batching sharding report faults
    4  scoring checkpoint
    5  probes
The scripts train.py, sample.py, label.py, preprocess.py and evaluate.py stand on top and never import each other.
"""


import functools
from pathlib import Path


class BadInput(ValueError):
    """A letter to the person at the keyboard: where, what, what next. Scripts print it and exit with status 2."""


def one_line(error: Exception, limit: int = 160) -> str:
    """The beginning of an error's text, for a letter."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


@functools.cache
def model_folder(name: str) -> str:
    """The folder of a model: `name` itself, or what the hub's cache holds of owner/model or owner/model@revision.

    Weights, configuration and tokenizer are fetched, code never: only transformers' own kinds of model are run.
    """
    if Path(name).is_dir():
        return name
    from huggingface_hub import constants, errors, snapshot_download  # half a second that only the hub's users pay

    reasons = {  # the first that fits
        errors.HFValidationError: "no such folder, and no name of the hub's (owner/model or owner/model@revision): check it",
        errors.GatedRepoError: "the hub asks for permission: get it on the model's page, then log in by `hf auth login`",
        errors.RepositoryNotFoundError: "no such folder, and no such public model on the hub: check the name, or log in by `hf auth login`",
        errors.RevisionNotFoundError: "the hub has the model but not this revision: see the branches and commits on its page",
        errors.LocalEntryNotFoundError: "not in the hub's cache, and the hub is out of reach (no network, or HF_HUB_OFFLINE): pass a folder, or fetch it first",
    }
    repository, _, revision = name.partition("@")
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return snapshot_download(repository, revision=revision or None, allow_patterns=patterns, ignore_patterns="consolidated*", local_files_only=constants.HF_HUB_OFFLINE)
    except Exception as error:
        why = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), one_line(error))
        raise BadInput(f"{name}: no model could be loaded: {why}")


def check_complete(name: str, info: dict) -> None:
    """Raise BadInput where transformers made weights up that the folder lacks. info: what its loading reported."""
    if keys := sorted(info["missing_keys"]) or [key[0] for key in info["mismatched_keys"]]:
        raise BadInput(f"{name}: {len(keys)} weights are missing or of the wrong shape, such as {keys[0]}: the folder is incomplete, or its config is another model's")


def model_commit(name: str) -> str | None:
    """Which commit a model from the hub is, for the run file; None for a folder."""
    return None if Path(name).is_dir() else Path(model_folder(name)).name
