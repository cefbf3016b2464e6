"""A frozen dataclass becomes flags, `--help` and the config in `run.json`.

    @dataclass(frozen=True)
    class Config:
        lr: float = opt(5e-5, "peak learning rate", above=0)

    config = parse(Config, __doc__)

Default paths hang from RMOOD_HOME (the repository, unless set) and from --dataset: a default such as "{pairs}" is
filled from `layout`. Flags are accepted with '-' or '_'. --config takes the settings of a run file; flags win over it.
"""

import argparse
import dataclasses
import difflib
import errno
import os
import shlex
import signal
import sys
import typing
from pathlib import Path

from . import BadInput
from .formats import read_json

FILES = {  # split -> role -> path under datasets/<dataset>/, as in the reference pipeline
    "train": dict(prompts="rm/rm_prompts.json", responses="rm/rm_sft.json", rewards="rm/rm_rewards.json", pairs="rm/rm_implicit.jsonl"),
    "test": dict(prompts="test/test_prompts.json", responses="rm/test_sft.json", rewards="rm/test_reward_gold.json", pairs="rm/test_implicit.jsonl"),
}
ALPACAFARM_MODELS = dict(sft="Hahmdong/RMOOD-qwen3-4b-alpacafarm-sft", gold="Skywork/Skywork-Reward-V2-Llama-3.1-8B", proxy="{models}/RMOOD-qwen3-4b-alpacafarm-rm")


def layout(dataset: str, split: str = "train") -> dict[str, str]:
    """Where everything of a dataset lies: prompts, responses, rewards and pairs of the split; test_... of the test
    split; the models sft, gold and proxy; the report."""
    home = Path(os.environ.get("RMOOD_HOME") or Path(__file__).resolve().parent.parent)
    if not home.is_dir():
        raise BadInput(f"RMOOD_HOME={home}: no such folder: make it, or unset RMOOD_HOME")
    models = str(home / "models")
    names = ALPACAFARM_MODELS if dataset == "alpacafarm" else {role: f"{{models}}/{dataset}-{end}" for role, end in dict(sft="sft", gold="gold", proxy="rm").items()}
    paths = {role: str(home / "datasets" / dataset / file) for role, file in FILES[split].items()}
    test = {f"test_{role}": str(home / "datasets" / dataset / file) for role, file in FILES["test"].items()}
    return paths | test | {role: name.format(models=models) for role, name in names.items()} | {"home": str(home), "data": str(home / "datasets" / dataset), "models": models, "report": str(home / "reports" / f"{dataset}.html")}


def opt(default, help: str, *, group="", choices=None, above=None, at_least=None, at_most=None):
    """One option: its default, its documentation, and the values it may take. group: heading in --help from here on."""
    metadata = dict(help=help, group=group, choices=choices, above=above, at_least=at_least, at_most=at_most)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{self.prog}: {message}: see {self.prog} --help")


def parse(config_class, description: str, argv: list[str] | None = None, prog: str | None = None):
    """The config from the command line. Raises BadInput for an unknown flag or an impossible value."""
    fields = dataclasses.fields(config_class)
    types = typing.get_type_hints(config_class)
    parser = _Parser(prog=prog, usage="%(prog)s [flags]", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if "python " not in description and "dataset" in types:
        parser.epilog = f"example: python {parser.prog} --dataset toy"
    parser.add_argument("--config", default="", metavar="FILE", help="repeat a run: its run.json or <file>.run.json; flags given beside it win")
    groups, group = {}, "settings"
    for field in fields:
        group = field.metadata["group"] or group
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        shown = "none" if default in ("", None, []) else " ".join(map(str, default)) if isinstance(default, list) else default
        settings: dict = dict(default=default, help=f"{field.metadata['help']} (default: {shown})".replace("%", "%%"), dest=field.name)
        kind = types[field.name]
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is list:
            settings |= dict(nargs="+", type=typing.get_args(kind)[0], metavar=field.name.upper())
        else:
            settings |= dict(type=kind, choices=field.metadata["choices"])
            settings["metavar"] = None if field.metadata["choices"] else kind.__name__.upper() if kind is not str else "TEXT"
        groups[group].add_argument(f"--{field.name.replace('_', '-')}", **settings)
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = ["--" + flag[2:].replace("_", "-") + equals + value if word.startswith("--") else word for word in argv for flag, equals, value in [word.partition("=")]]
    values, unknown = parser.parse_known_args(argv)
    if values.config:
        values, unknown = parser.parse_known_args(_flags_of_run(values.config, types) + argv)
    del values.config
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        raise BadInput(f"{parser.prog}: unknown argument {unknown[0]}: " + (f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"))
    return complete(config_class(**vars(values)), parser.prog)


def _flags_of_run(path: str, known: dict) -> list[str]:
    """The flags that repeat the run behind a run file; a file of plain settings serves too."""
    run = read_json(path)
    settings = run.get("config", run) if isinstance(run, dict) else None
    if not isinstance(settings, dict):
        raise BadInput(f"{path}: holds no settings: pass a run.json or <file>.run.json")
    if unknown := sorted(settings.keys() - known.keys()):
        raise BadInput(f"{path}: {unknown[0]!r} is no setting here: pass a run file of this very script, or take the key out")
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)] if value else []
        else:
            flags.append(("--" if value else "--no-") + flag if isinstance(value, bool) else f"--{flag}={value}")
    return flags


def complete(config, where: str = "config"):
    """The config with its bounds checked and its default paths filled in."""
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata
        name = f"{where}: --{field.name.replace('_', '-')} {value}"
        if limits["above"] is not None and not value > limits["above"]:
            raise BadInput(f"{name}: must be above {limits['above']}")
        if limits["at_least"] is not None and not value >= limits["at_least"]:
            raise BadInput(f"{name}: must be at least {limits['at_least']}")
        if limits["at_most"] is not None and not value <= limits["at_most"]:
            raise BadInput(f"{name}: must be at most {limits['at_most']}")
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise BadInput(f"{name}: must be finite")
    if not hasattr(config, "dataset"):
        return config
    paths = layout(config.dataset, getattr(config, "split", "train"))

    def fill(value):
        if isinstance(value, list):
            return [fill(item) for item in value]
        for role, path in paths.items() if isinstance(value, str) else ():
            value = value.replace("{" + role + "}", path)
        return value

    return dataclasses.replace(config, **{field.name: fill(getattr(config, field.name)) for field in dataclasses.fields(config)})


def _interrupt(number, frame):
    raise KeyboardInterrupt(number)


def run_script(main, go_on: str = "") -> None:
    """Run a script's main(): bad input is one line on stderr and exit status 2; SIGINT and SIGTERM are 130 and 143, and the
    command that goes on (go_on: flags which that needs); bugs keep their traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main())
    except BadInput as letter:
        if os.environ.get("RANK", "0") == "0":
            print(letter, file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        full = [number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if getattr(error, "errno", 0) == number or f"(os error {number})" in str(error)]
        if not full:
            raise
        print(f"{sys.argv[0]}: its output cannot be written ({os.strerror(full[0])}): make room there; what was finished is kept, and the same command goes on", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0":
            started = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}" if "LOCAL_WORLD_SIZE" in os.environ else "python"
            again = shlex.join([word for word in sys.argv if word != "--overwrite"])
            print(f"\ninterrupted: finished work is kept; go on with: {started} {again}{'' if go_on in again else ' ' + go_on}", file=sys.stderr)
        sys.exit(128 + (stopped.args or [signal.SIGINT])[0])
