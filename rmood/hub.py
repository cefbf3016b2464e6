"""Models from the hub, or from a folder; preference data from the hub."""

import functools
from pathlib import Path

from .errors import UserError, one_line

# Weights, configuration and tokenizer. Code is never fetched: only transformers' own is run.
FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
NOT_FETCHED = "consolidated*"  # the same weights again, under the names of another library
# The hub's own copy of a dataset that is in another format, on a branch of this name.
CONVERTED = "refs/convert/parquet"


@functools.cache
def model_folder(name: str) -> str:
    """The folder of a model: `name` itself, or what the hub's cache holds of it.

    name: a folder, or owner/model or owner/model@revision on the hub.
    Raises UserError where there is neither.
    """
    if Path(name).is_dir():
        return name
    from huggingface_hub import constants, snapshot_download  # half a second: only for hub models

    repository, _, revision = name.partition("@")
    try:
        return snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=FETCHED,
            ignore_patterns=NOT_FETCHED,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    except Exception as error:  # the hub's client raises many exception types
        raise UserError(f"{name}: no model could be loaded: {_why_not_fetched(error)}")


@functools.cache
def dataset_folder(name: str, split: str = "") -> str:
    """The folder in the hub's cache with a dataset's parquet files, fetched where it lacks them.

    name: owner/name or owner/name@revision. split: fetch only the files named after it.
    A dataset without such files is read as the hub has converted it. Raises UserError where neither
    can be had.
    """
    from huggingface_hub import constants, snapshot_download

    repository, _, revision = name.partition("@")
    word = split.rpartition("/")[2]
    for branch in [revision] if revision else ["", CONVERTED]:
        try:
            folder = snapshot_download(
                repository,
                repo_type="dataset",
                revision=branch or None,
                allow_patterns=[f"*{word}*.parquet", f"*{word}/*.parquet"],
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        except Exception as error:  # the hub's client raises many exception types
            if branch == CONVERTED:
                break
            raise UserError(
                f"{name}: no such file, and no dataset could be loaded: "
                f"{_why_not_fetched(error, 'dataset')}"
            )
        if any(Path(folder).rglob("*.parquet")):
            return folder
    of_split = f" of the split {split!r}" if split else ""
    raise UserError(
        f"{name}: the dataset has no parquet files{of_split}: see the splits on its page, "
        "or download its files and pass one"
    )


def _why_not_fetched(error: Exception, what: str = "model") -> str:
    """What a failed download of a model or a dataset means for the user, and what to do next."""
    from huggingface_hub import errors

    # Subclasses first: GatedRepoError is a RepositoryNotFoundError.
    if isinstance(error, errors.HFValidationError):
        return (
            "no such folder, and not a name on the hub "
            f"(owner/{what} or owner/{what}@revision): check it"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            "the hub asks for permission: "
            f"get it on the {what}'s page, then log in by `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such folder, and no such public {what} on the hub: "
            "check the name, or log in by `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the hub has the {what} but not this revision: "
            "see the branches and commits on its page"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "not in the hub's cache, and the hub is out of reach "
            "(no network, or HF_HUB_OFFLINE): pass a folder, or fetch it first"
        )
    return one_line(error)


def check_complete(name: str, info: dict) -> None:
    """Raise UserError where the folder lacks weights: transformers initializes those at random.

    info: what transformers reported while loading (output_loading_info=True).
    """
    lacking = sorted(info["missing_keys"])
    if not lacking:
        lacking = [key for key, *_ in info["mismatched_keys"]]  # (name, shape on disk, in model)
    if lacking:
        raise UserError(
            f"{name}: {len(lacking)} weights are missing or of the wrong shape, "
            f"such as {lacking[0]}: the folder is incomplete, or its config is another model's"
        )


def model_commit(name: str) -> str | None:
    """The commit of a model from the hub, for the run file; None for a folder."""
    if Path(name).is_dir():
        return None
    return Path(model_folder(name)).name
