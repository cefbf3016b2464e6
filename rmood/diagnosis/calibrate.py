"""A model whose margins mean what they say: its head times one factor. Numpy and the file alone.

The head is linear, so all rewards are multiplied by the factor, exactly but for the rounding of the
head's dtype. The order of any two rewards stays.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.rows import fsync
from ..files.tensors import read_header
from .scale import Estimate, fit_scale, loss_at, mean, towards_gold

HEAD = ("score.weight", "score.bias")
NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bf16: the upper half of a float32


@dataclass(frozen=True)
class Calibration:
    """The factor that calibrates a proxy's margins, and what it does to the held-out loss."""

    factor: Estimate  # with its 95% interval, clustered by prompt
    offset: float  # mean of all rewards, times the factor: subtract it where 0 should be the mean
    loss_before: Estimate  # nats, of the margins as they are
    loss_after: Estimate  # with a factor that was fitted on other prompts: two halves, in turn

    def as_json(self) -> dict:
        return asdict(self)


def calibration_of(proxy: np.ndarray, gold: np.ndarray) -> Calibration:
    """(P, K) rewards of proxy and gold -> the factor.

    Raises UserError where no positive, finite factor exists: the proxy ranks pairs the other way
    round, or all of them as gold does.
    """
    x, prompt = towards_gold(proxy, gold)
    factor = fit_scale(x, prompt)
    if not factor.value > 0:
        raise UserError(
            "the proxy ranks pairs no better than chance or the other way round (scale "
            f"{factor.value:.2f}): no positive factor calibrates it: see evaluate.py diagnose"
        )
    if math.isinf(factor.value):
        raise UserError(
            f"the proxy ranks all {len(x):,} pairs as gold does: the larger the factor, the better "
            "it fits: use more pairs, or pass --factor"
        )
    return Calibration(
        factor,
        float(proxy.mean()) * factor.value,
        mean(loss_at(1.0, x), prompt),
        mean(_losses_of_other_half(x, prompt), prompt),
    )


def _losses_of_other_half(x: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """(n,) losses at the factor fitted on the other half of the prompts (every second one)."""
    numbers, which = np.unique(prompt, return_inverse=True)
    losses = np.empty(len(x))
    for half in (0, 1):
        here = which % 2 == half
        other = fit_scale(x[~here], prompt[~here]).value if len(numbers) > 1 else math.nan
        losses[here] = loss_at(other if math.isfinite(other) else 1.0, x[here])
    return losses


def write_calibrated(source: str, target: str, factor: float, facts: dict, overwrite: bool) -> None:
    """Write the model folder `source` as `target`, its head multiplied by the factor.

    facts: added to the new folder's run.json as `calibration`. The folder appears whole or not at
    all. Raises UserError where `target` exists (unless overwrite), or `source` has no head.
    """
    source_path, target_path = Path(source), Path(target)
    if target_path.resolve() == source_path.resolve():
        raise UserError(f"{target}: is the model itself: pass another --output-dir")
    if target_path.exists() and not overwrite:
        raise UserError(
            f"{target}: exists: pass --overwrite to replace it, or another --output-dir"
        )
    file = _file_of_head(source_path)
    temporary = target_path.with_name(target_path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for path in sorted(source_path.iterdir()):
            if path.is_file():
                shutil.copyfile(path, temporary / path.name)
        multiply_head(temporary / file.name, factor)
        _record(temporary, facts)
        for path in temporary.iterdir():
            fsync(path)
        if target_path.exists():
            shutil.rmtree(target_path)
        os.replace(temporary, target_path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file_of_head(folder: Path) -> Path:
    for path in sorted(folder.glob("*.safetensors")):
        if HEAD[0] in read_header(path).tensors:
            return path
    raise UserError(
        f"{folder}: no weight named {HEAD[0]} in its safetensors files: pass a folder of train.py, "
        "or of a sequence classifier with one label"
    )


def multiply_head(path: Path, factor: float) -> None:
    """Multiply the head's weights in a safetensors file, in place: nothing else of it is read."""
    _, tensors, begin = read_header(path)
    with open(path, "r+b") as file:
        for name in HEAD:
            if name not in tensors:
                continue
            kind = tensors[name]["dtype"]
            if kind not in NUMPY_TYPES:
                raise UserError(f"{path}: {name} is {kind}: store the head in float32 or bf16")
            first, end = tensors[name]["data_offsets"]
            file.seek(begin + first)
            stored = np.frombuffer(file.read(end - first), dtype=NUMPY_TYPES[kind])
            file.seek(begin + first)
            file.write(_multiplied(stored, kind, factor).tobytes())


def _multiplied(stored: np.ndarray, kind: str, factor: float) -> np.ndarray:
    """The stored numbers times the factor, rounded to nearest in their own dtype."""
    if kind != "BF16":
        return (stored.astype(np.float64) * factor).astype(stored.dtype)
    single = (stored.astype(np.uint32) << 16).view(np.float32)
    bits = (single * np.float32(factor)).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype("<u2")


def _record(folder: Path, facts: dict) -> None:
    run = folder / "run.json"
    known = json.loads(run.read_text(encoding="utf-8")) if run.exists() else {"config": {}}
    before = known.get("calibration", {}).get("applied_in_all", 1.0)
    facts = facts | {"applied_in_all": before * facts["applied"]}  # since the run ended
    run.write_text(json.dumps(known | {"calibration": facts}, indent=1) + "\n", encoding="utf-8")
    card = folder / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8")
        line = f"\nThe head was multiplied by {facts['applied']:.4g} (evaluate.py calibrate).\n"
        card.write_text(text + line, encoding="utf-8")
