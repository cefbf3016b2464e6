"""What each training pair's rewards were in each epoch: a file beside metrics.jsonl.

train.py writes it after each epoch, evaluate.py suspects reads it. E epochs, P pairs.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .errors import UserError
from .files.rows import fsync
from .files.tables import Pair

FILE = "pair_rewards.safetensors"


def pair_keys(pairs: Sequence[Pair]) -> np.ndarray:
    """(P,) 64-bit hashes of the conversations: the same in a file that was filtered or sorted."""
    keys = []
    for pair in pairs:
        text = json.dumps([pair.chosen, pair.rejected], sort_keys=True).encode()
        keys.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    return np.array(keys, dtype=np.uint64)


def add_epoch(folder: str, epoch: int, pairs: Sequence[Pair], rewards: np.ndarray) -> None:
    """Add to the file (P, 2) rewards, chosen first, that the pairs had before their updates of an
    epoch; NaN for a pair that was not trained on.

    epoch: counted from 1. What the file has of this epoch and of later ones is replaced.
    """
    keys = pair_keys(pairs)
    known = None
    with contextlib.suppress(UserError):  # a damaged file must not end a training run
        known = read_trajectories(folder)
    epochs = [rewards.astype(np.float32)]
    if known is not None and np.array_equal(known[0], keys):
        epochs = [*known[1][: epoch - 1], *epochs]
    path = Path(folder, FILE)
    temporary = path.with_suffix(".tmp")
    save_file({"keys": keys, "rewards": np.stack(epochs)}, temporary)
    fsync(temporary)
    os.replace(temporary, path)


def read_trajectories(folder: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(P,) keys of the pairs and (E, P, 2) rewards; None where the folder has no such file."""
    path = Path(folder, FILE)
    if not path.exists():
        return None
    try:
        file = load_file(path)
        return file["keys"], file["rewards"]
    except (OSError, SafetensorError, KeyError):
        raise UserError(f"{path}: not a whole file of train.py: remove it, and go without it")
