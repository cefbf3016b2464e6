"""A frozen dataclass becomes flags, `--help` and the config in `run.json`.

    @dataclass(frozen=True)
    class Config:
        lr: float = opt(5e-5, "peak learning rate", above=0)

    config = parse(Config, __doc__)

A default such as "{pairs}" stands for a path of files/paths.py, chosen by --dataset and RMOOD_HOME.
Flags are accepted with '-' or '_', and by the names that other trainers have for the same setting
(SAME_SETTINGS). --config FILE takes the settings of a run file; flags beside it override them.
"""

import argparse
import dataclasses
import difflib
import math
import sys
import typing
from pathlib import Path

from .errors import UserError
from .files.paths import dataset_paths
from .files.rows import read_json

PATHS_NOTE = (
    "Default paths start from RMOOD_HOME (unset: the repository); --dataset NAME changes them all."
)


# Flags of TRL, transformers, LLaMA-Factory, OpenRLHF and vLLM that mean what a flag here means.
SAME_SETTINGS = {
    "--data": "--data-path",
    "--dataset-path": "--data-path",
    "--eval-data-path": "--eval-path",
    "--learning-rate": "--lr",
    "--lora-r": "--lora-rank",
    "--max-epochs": "--epochs",
    "--max-len": "--max-length",
    "--max-new-tokens": "--max-tokens",
    "--max-norm": "--max-grad-norm",
    "--model": "--model-name",
    "--model-name-or-path": "--model-name",
    "--model-path": "--model-name",
    "--num-train-epochs": "--epochs",
    "--overwrite-output-dir": "--overwrite",
    "--pretrain": "--model-name",
    "--save-path": "--output-dir",
    "--save-steps": "--save-every",
    "--eval-steps": "--eval-every",
    "--temp": "--temperature",
    "--tp": "--tensor-parallel-size",
    "--train-batch-size": "--batch-size",
}
_GLOBAL_BATCH = (
    "--batch-size N is the number of pairs of an optimizer step on all processes together; passes "
    "are cut to --tokens-per-pass"
)
_ALWAYS_SHARDED = "the model is always sharded by FSDP2: start with torchrun --nproc-per-node N"
# ... and those that mean something else, with what there is here.
OTHER_SETTINGS = {
    "--adam-beta1": "AdamW's betas are 0.9 and 0.999",
    "--adam-beta2": "AdamW's betas are 0.9 and 0.999",
    "--bf16": "--precision mixed (float32 weights, bf16 compute) is the default on CUDA",
    "--center-rewards-coefficient": "--centring W, whose term has another formula: see --help",
    "--cutoff-len": "--max-length N; in training longer pairs are left out, not cut",
    "--dataset-name": "--data-path owner/name[@revision][:split]",
    "--ddp": _ALWAYS_SHARDED,
    "--deepspeed": _ALWAYS_SHARDED,
    "--eval-strategy": "--eval-every N; the held-out pairs are evaluated after each epoch anyway",
    "--evaluation-strategy": "--eval-every N; after each epoch they are evaluated anyway",
    "--flash-attn": "packed attention is always used",
    "--fp16": "there is no fp16: --precision mixed computes in bf16",
    "--fsdp": _ALWAYS_SHARDED,
    "--gradient-accumulation-steps": _GLOBAL_BATCH,
    "--gradient-checkpointing": "--activation-checkpointing on",
    "--load-in-4bit": "weights are not quantized; docs/memory.md says what fits",
    "--load-in-8bit": "weights are not quantized; docs/memory.md says what fits",
    "--logging-steps": "--log-every N; loss and rewards are logged every step",
    "--lr-scheduler-type": "the rate falls by a cosine to --min-lr-ratio of its peak",
    "--max-seq-length": "--max-length N; in training longer pairs are left out, not cut",
    "--max-steps": "--epochs N",
    "--micro-train-batch-size": _GLOBAL_BATCH,
    "--n": "--num-responses N",
    "--per-device-eval-batch-size": "--tokens-per-pass N",
    "--per-device-train-batch-size": _GLOBAL_BATCH,
    "--report-to": "metrics.jsonl and TensorBoard files are always written",
    "--resume-from-checkpoint": "--resume auto",
    "--run-name": "--output-dir models/NAME",
    "--save-strategy": "--save-every N, or --save-minutes N",
    "--save-total-limit": "--keep N",
    "--torch-dtype": "it is --precision in train.py, --dtype elsewhere",
    "--use-peft": "--lora-rank N",
    "--warmup-steps": "--warmup-ratio R, a share of the steps",
    "--zero-stage": _ALWAYS_SHARDED,
}


def opt(default, help: str, *, group="", choices=None, above=None, at_least=None, at_most=None):
    """A field of a config: its default, its documentation, and the values it may take.

    group: the heading in --help, for this option and those after it.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---- flags to config ---


def parse(config_class, description: str, argv: list[str] | None = None, prog: str | None = None):
    """The config from the command line (argv: without the script's name; None: sys.argv[1:]).

    Raises UserError for an unknown flag or an impossible value.
    """
    if argv is None:
        argv = sys.argv[1:]
    types = typing.get_type_hints(config_class)
    argv = [_own_flag(_with_hyphens(word), types) for word in argv]
    parser = _make_parser(config_class, types, description, prog)

    values, unknown = parser.parse_known_args(argv)
    if values.config:
        given = {word.partition("=")[0] for word in argv if word.startswith("--")}
        settings = _flags_of_run_file(values.config, types, given)
        values, unknown = parser.parse_known_args(settings + argv)  # the last of two flags counts
    del values.config
    if unknown:
        raise UserError(_unknown_argument(parser, unknown[0]))
    return complete(config_class(**vars(values)), parser.prog)


def _with_hyphens(word: str) -> str:
    """--data_path=a_b -> --data-path=a_b; a word that is not a flag stays as it is."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _own_flag(word: str, known: dict) -> str:
    """--learning-rate=1e-5 -> --lr=1e-5, where the script has that setting.

    known: the names of its settings.
    """
    flag, equals, value = word.partition("=")
    own = SAME_SETTINGS.get(flag, flag)
    has_other = flag.removeprefix("--").replace("-", "_") in known
    has_own = own.removeprefix("--").replace("-", "_") in known
    return own + equals + value if has_own and not has_other else word


def _unknown_argument(parser: argparse.ArgumentParser, word: str) -> str:
    flag = word.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    own = OTHER_SETTINGS.get(flag, "")
    if own and (not own.startswith("--") or own.split()[0] in known):
        return f"{parser.prog}: {flag} is another trainer's flag: here {own}"
    if not word.startswith("-") and "--mix" in known:
        return f"{parser.prog}: unknown argument {word}: further training pairs go behind --mix"
    near = difflib.get_close_matches(flag, known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
    return f"{parser.prog}: unknown argument {word}: {advice}"


def _flags_of_run_file(path: str, known: dict, given: set[str]) -> list[str]:
    """The flags that repeat the run of a run file, or that set what a file of plain settings holds.

    known: the names of this script's settings. given: the flags of the command line, whose lists
    replace those of the file.
    """
    run = read_json(path)
    settings = run.get("config", run) if isinstance(run, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings: pass a run.json or <file>.run.json")
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise UserError(
            f"{path}: {unknown[0]!r} is no setting here: "
            "pass a run file of this very script, or take the key out"
        )
    flags = []
    for name, value in settings.items():
        flag = _flag(name)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif not isinstance(value, list):
            flags.append(f"{flag}={value}")
        elif value and flag not in given:  # an empty list has no flag: it is every list's default
            flags += [flag, *map(str, value)]
    return flags


def _flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


# ---- --help ---


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{self.prog}: {message}: see {self.prog} --help")


def _make_parser(config_class, types: dict, description: str, prog: str | None) -> _Parser:
    """The parser with a flag for every field of the config, below the headings of its groups."""
    fields = dataclasses.fields(config_class)
    defaults = {field.name: _default(field) for field in fields}
    shown = _fill(defaults, _relative_paths(defaults))
    if shown != defaults:
        description = f"{description.rstrip()}\n\n{PATHS_NOTE}"
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if "python " not in description and "dataset" in types:
        parser.epilog = f"example: python {parser.prog} --dataset toy"
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE",
        help="repeat a run: its run.json or <file>.run.json; flags beside it override it",
    )
    groups = {}
    heading = "settings"
    for field in fields:
        heading = field.metadata["group"] or heading
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        words = f"{field.metadata['help']} (default: {_in_words(shown[field.name])})"
        is_list = isinstance(defaults[field.name], list)
        groups[heading].add_argument(
            _flag(field.name),
            dest=field.name,
            # argparse would add a given list to the default one: the config has that
            default=argparse.SUPPRESS if is_list else defaults[field.name],
            help=words.replace("%", "%%"),
            **_how_to_read(field, types[field.name]),
        )
    return parser


def _default(field):
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _relative_paths(defaults: dict) -> dict[str, str]:
    """The paths of the default dataset relative to RMOOD_HOME, to be shown in --help."""
    if "dataset" not in defaults:
        return {}
    return dataset_paths(defaults["dataset"], defaults.get("split", "train"), home=Path(""))


def _in_words(default) -> str:
    if default in ("", None, []):
        return "none"
    if isinstance(default, list):
        return " ".join(map(str, default))
    return str(default)


def _how_to_read(field, kind) -> dict:
    """What argparse needs to read a flag's value. kind: the type, such as int or list[str]."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        # --mix A B and --mix A --mix B mean the same
        return {"type": item, "nargs": "+", "action": "extend", "metavar": field.name.upper()}
    choices = field.metadata["choices"]
    if choices:
        return {"type": kind, "choices": choices}
    return {"type": kind, "metavar": "TEXT" if kind is str else kind.__name__.upper()}


# ---- bounds and default paths ---


def complete(config, where: str = "config"):
    """The config with its bounds checked and its default paths filled in.

    where: the script's name, for error messages.
    """
    for field in dataclasses.fields(config):
        _check_bounds(getattr(config, field.name), field, where)
    if not hasattr(config, "dataset"):
        return config
    paths = dataset_paths(config.dataset, getattr(config, "split", "train"))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **_fill(values, paths))


def _check_bounds(value, field, where: str) -> None:
    """Raise UserError for a value beyond its bounds. `not value > limit` refuses NaN, too."""
    above = field.metadata["above"]
    at_least = field.metadata["at_least"]
    at_most = field.metadata["at_most"]
    name = f"{where}: {_flag(field.name)} {value}"
    if above is not None and not value > above:
        raise UserError(f"{name}: must be above {above}")
    if at_least is not None and not value >= at_least:
        raise UserError(f"{name}: must be at least {at_least}")
    if at_most is not None and not value <= at_most:
        raise UserError(f"{name}: must be at most {at_most}")
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{name}: must be finite")


def _fill(values: dict, paths: dict[str, str]) -> dict:
    """The settings with every {role} in a text, or in a list of texts, replaced by its path."""

    def fill(value):
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str):
            for role, path in paths.items():
                value = value.replace("{" + role + "}", path)
        return value

    return {name: fill(value) for name, value in values.items()}
