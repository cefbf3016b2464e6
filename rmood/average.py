"""One reward model from several: their weights averaged (Ramé et al. 2024, arXiv 2401.12187).

reads   folders of reward models, or names on the hub, trained from one start
writes  --out, an ordinary model folder: the mean of every weight, the head's too

python -m rmood.average models/a models/b models/c --out models/mean

Models that were trained from the same pretrained weights, with other seeds, rates or pairs, lie
close enough together that the mean of their weights is a model, too. It costs as much as one of
them, and tends to be more robust to wrong labels than any. Of models from different starts the mean
is of no use: that is refused as far as it can be seen.

Weights are read and written tensor by tensor: no model is in memory.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from .errors import UserError, run_script
from .files.provenance import run_facts
from .files.rows import check_writable, fsync, read_json
from .files.tensors import read_header
from .hub import model_folder
from .progress import progress_bar

# Of config.json: what may differ between models whose weights can be averaged.
NOT_COMPARED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
TOKENIZER_FILES = ("tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class Config:
    """For run.json."""

    models: list[str]
    out: str


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(
        prog="python -m rmood.average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", help="two or more folders, or names on the hub")
    parser.add_argument("--out", required=True, help="folder for the averaged model")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    given = parser.parse_args(argv)
    tensors = average(given.models, given.out, given.overwrite)
    print(f"{given.out}: written, the mean of {len(given.models)} models, {tensors} tensors")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{self.prog}: {message}: see {self.prog} --help")


def average(models: list[str], out: str, overwrite: bool = False) -> int:
    """Write the mean of some models' weights as a model folder; how many tensors it has.

    The files, dtypes, config and tokenizer are the first model's; means are taken in float32. The
    folder appears whole or not at all. Raises UserError where the models do not belong together, or
    `out` is there already.
    """
    if len(models) < 2:
        raise UserError("python -m rmood.average: one model has no average: name two or more")
    folders = [Path(model_folder(model)) for model in models]
    target = Path(out)
    if target.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"{out}: is one of the models itself: pass another --out")
    if target.exists() and not overwrite:
        raise UserError(f"{out}: is there already: pass --overwrite, or another --out")
    check_writable(str(target / "config.json") if target.exists() else out)
    check_alike(models, folders)

    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for path in sorted(folders[0].iterdir()):
            if path.is_file() and path.name not in ("README.md", "run.json", "metrics.jsonl"):
                shutil.copyfile(path, temporary / path.name)
        tensors = _write_means(temporary, folders)
        _write_facts(temporary, models, folders, out)
        for path in temporary.iterdir():
            fsync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tensors


# ---- do they belong together? --------------------------------------------------------------------


def check_alike(models: list[str], folders: list[Path]) -> None:
    """Raise UserError unless shapes, config, tokenizer and, where known, the start are the same."""
    first, *others = zip(models, folders)
    name, folder = first
    config, shapes, start = _config(folder), _shapes(folder), _start(folder)
    if "score.weight" not in shapes:
        raise UserError(f"{name}: has no head named score.weight: pass reward models")
    for other_name, other in others:
        where = f"{other_name}: cannot be averaged with {name}"
        other_shapes = _shapes(other)
        for tensor in sorted(shapes.keys() ^ other_shapes.keys()):
            raise UserError(f"{where}: only one of them has {tensor}: pass models of one start")
        for tensor, shape in shapes.items():
            if other_shapes[tensor] != shape:
                raise UserError(
                    f"{where}: {tensor} is {other_shapes[tensor]} there and {shape} here: "
                    "pass models of one start"
                )
        for key, value in config.items():
            if _config(other).get(key) != value:
                raise UserError(
                    f"{where}: {key} differs in config.json "
                    f"({_config(other).get(key)!r} and {value!r}): pass models of one start"
                )
        for file in TOKENIZER_FILES:
            if _sha256(folder / file) != _sha256(other / file):
                raise UserError(
                    f"{where}: their {file} differ, so a token means something else in each: "
                    "pass models of one tokenizer"
                )
        if start and _start(other) and start != _start(other):
            raise UserError(
                f"{where}: by their run.json they were trained from other weights "
                f"({_start(other)[:12]} and {start[:12]}): the mean of such models is none"
            )


def _config(folder: Path) -> dict:
    config = read_json(str(folder / "config.json"))
    return {key: value for key, value in config.items() if key not in NOT_COMPARED}


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Name of each weight -> its shape."""
    shapes = {}
    for path in _weight_files(folder):
        header = read_header(path).tensors
        shapes |= {name: tensor["shape"] for name, tensor in header.items()}
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no safetensors files: pass the folder of a reward model")
    return files


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _start(folder: Path) -> str | None:
    """A hash of the weights that train.py started from, where run.json has one."""
    return _run(folder).get("weights_fingerprint")


def _run(folder: Path) -> dict:
    path = folder / "run.json"
    return read_json(str(path)) if path.exists() else {}


# ---- weights -------------------------------------------------------------------------------------


def _write_means(target: Path, folders: list[Path]) -> int:
    """Overwrite each tensor in the copied files of the first model by the mean of all."""
    with contextlib.ExitStack() as opened:
        sources = [_open_all(folder, opened) for folder in folders]
        count = 0
        for path in _weight_files(target):
            _, header, begin = read_header(path)
            with open(path, "r+b") as file:
                for name, tensor in progress_bar(header.items(), desc=path.name, unit="tensor"):
                    file.seek(begin + tensor["data_offsets"][0])
                    mean = _mean([source[name].get_tensor(name) for source in sources], name)
                    file.write(mean.contiguous().reshape(-1).view(torch.uint8).numpy())
                    count += 1
    return count


def _open_all(folder: Path, opened: contextlib.ExitStack) -> dict:
    """Name of each weight -> the open file that holds it."""
    file_of = {}
    for path in _weight_files(folder):
        file = opened.enter_context(safe_open(path, "pt", backend="pread"))
        file_of |= dict.fromkeys(file.keys(), file)
    return file_of


def _mean(tensors: list[torch.Tensor], name: str) -> torch.Tensor:
    """Their mean, computed in float32, in the dtype of the first."""
    first, *others = tensors
    if not first.is_floating_point():
        if not all(torch.equal(first, other) for other in others):
            raise UserError(f"{name}: whole numbers that differ: these models have no mean")
        return first
    total = first.float()
    for other in others:
        total += other.float()
    return (total / len(tensors)).to(first.dtype)


# ---- run.json and the card -----------------------------------------------------------------------


def _write_facts(target: Path, models: list[str], folders: list[Path], out: str) -> None:
    facts = run_facts(Config(models, out), {})
    facts["averaged"] = []
    for model, folder in zip(models, folders):
        known = {
            "model": model,
            "weights": {file.name: _hash(file) for file in _weight_files(folder)},
        }
        facts["averaged"].append(known | {"config": _run(folder).get("config", {})})
    (target / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    names = "\n".join(f"- {Path(model).name}" for model in models)
    card = f"""\
---
library_name: transformers
pipeline_tag: text-classification
---
# Mean of {len(models)} reward models

Every weight, the head's too, is the mean of these models' (Ramé et al. 2024), by rmood:

{names}

The reward is the one logit at the last token of the rendered chat template; only differences
between responses to one prompt mean something.
"""
    (target / "README.md").write_text(card, encoding="utf-8")


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.argv[0] = "python -m rmood.average"
    run_script(main)
