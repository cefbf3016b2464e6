"""Stage 5: what did the proxy learn, and can its files be trusted?

reads   models/<name>/ (train.py) or finished rewards (label.py), and the files of the stages before
writes  a table on stdout; the same numbers with --json PATH; reports/<dataset>.html (diagnose)

python evaluate.py match --dataset toy                      does it rank test pairs as gold does?
python evaluate.py calibrate --dataset toy                  write a model whose margins mean that
python evaluate.py quality --dataset toy                    did it learn its own training pairs?
python evaluate.py diagnose --dataset toy --models rm       what is wrong with it, and why?
python evaluate.py report --dataset toy                     another name for diagnose
python evaluate.py bon --rewards-path rm_of_16.json         expected gold reward of its best of n
python evaluate.py validate --dataset toy                   are the training pairs what gold says?
python evaluate.py inspect --dataset toy --num-samples 3    what does the model read?

`python evaluate.py match --help` lists the options of one command. --model-path and --dataset-name
are other names of --model-name and --dataset. In a notebook, call rmood.diagnose instead.

Exit status: 0 done; 1 a check failed (of validate or inspect, --min-match or --min-accuracy); 2 bad
input. Findings do not change it: match and diagnose end with 0 once they have measured.
"""

import sys
from dataclasses import asdict, dataclass
from inspect import cleandoc
from pathlib import Path

from rmood.cli import opt, parse
from rmood.diagnosis import calibrate, checks, report, run, text
from rmood.diagnosis.inputs import find_model, find_texts, read_gold, unless_absent
from rmood.errors import UserError, is_main_process, run_script
from rmood.files.paths import dataset_paths
from rmood.files.rows import check_writable, write_json
from rmood.files.tables import describe_pairs, read_pairs
from rmood.metrics import HEALTHY


# fmt: off
@dataclass(frozen=True)
class Scoring:
    dataset: str = opt("alpacafarm", "sets every default path at once", group="files and models")
    json: str = opt("", "also write the numbers to this file")
    max_length: int = opt(2048, "maximum number of tokens of a conversation; a longer response is cut at its end, never the template's closing tokens", group="scoring", at_least=8)
    tokens_per_pass: int = opt(16384, "maximum number of tokens in one forward pass; lower it when memory runs out", at_least=16)
    dtype: str = opt("auto", "dtype of the backbone, auto: bf16 on CUDA, float32 on a CPU; the head is always float32", choices=["auto", "bf16", "float32"])
    chat_template: str = opt("", "file with a chat template (Jinja), for a tokenizer that has none")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])

@dataclass(frozen=True)
class Match(Scoring):
    model_name: str = opt("{proxy}", "the proxy: a folder, a name under models/, or a hub name", group="files and models")
    rewards_path: str = opt("", "its finished rewards, instead of --model-name: nothing is scored")
    split: str = opt("test", "which prompts of the dataset", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards, from label.py")
    prompts_path: str = opt("{prompts}", "prompts, unless the gold file holds them")
    responses_path: str = opt("{responses}", "responses, from sample.py, unless the gold file holds them")
    min_match: float = opt(0.0, "exit with 1 where match is below this", group="exit status", at_least=0, at_most=1)

@dataclass(frozen=True)
class Calibrate(Match):
    output_dir: str = opt("", "folder for the calibrated model; default: <model>-calibrated", group="the calibrated model")
    factor: float = opt(0.0, "multiply the head by this instead of the fitted factor; 0: fitted", at_least=0)
    overwrite: bool = opt(False, "replace what is already in --output-dir")

@dataclass(frozen=True)
class Quality(Scoring):
    model_name: str = opt("{proxy}", "the proxy: a folder, a name under models/, or a hub name", group="files and models")
    data_path: str = opt("{pairs}", "its training pairs, from preprocess.py")
    num_samples: int = opt(500, "pairs to score, drawn without replacement; 0: all", group="sample", at_least=0)
    seed: int = opt(0, "seed for drawing the sample", at_least=0)
    min_accuracy: float = opt(0.0, "exit with 1 where the accuracy is below this", group="exit status", at_least=0, at_most=1)

@dataclass(frozen=True)
class Diagnose(Scoring):
    models: list[str] = opt([], "models to score: folders, hub names, or names under models/ (rm: <dataset>-rm); none given: the dataset's proxy", group="files and models")
    rewards_path: list[str] = opt([], "finished rewards files to compare, instead of models or beside them")
    split: str = opt("test", "which prompts of the dataset", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards, from label.py")
    prompts_path: str = opt("{prompts}", "prompts, unless the gold file holds them")
    responses_path: str = opt("{responses}", "responses, from sample.py, unless the gold file holds them")
    report: str = opt("{report}", "HTML report to write")
    probes: bool = opt(True, "also score some data in other ways, to find causes: some minutes for a large model", group="probes")
    num_samples: int = opt(200, "training pairs for the probes", at_least=20)
    seed: int = opt(0, "seed for drawing them", at_least=0)

@dataclass(frozen=True)
class BestOfN:
    dataset: str = opt("alpacafarm", "sets every default path at once")
    json: str = opt("", "also write the numbers to this file")
    rewards_path: list[str] = opt([], "the proxies' rewards of N responses per prompt, from label.py")
    split: str = opt("test", "which prompts of the dataset", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards of the same responses")
    report: str = opt("{home}/reports/best-of-n.html", "HTML page with the curves")

@dataclass(frozen=True)
class PairFiles:
    dataset: str = opt("alpacafarm", "sets every default path at once", group="files and models")
    json: str = opt("", "also write the numbers to this file")
    split: str = opt("train", "which prompts of the dataset", choices=["train", "test"])
    data_path: str = opt("{pairs}", "pairs, from preprocess.py")
    rewards_path: str = opt("{rewards}", "gold rewards, from label.py")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    prompts_path: str = opt("{prompts}", "prompts; not compared where the default is absent")

@dataclass(frozen=True)
class Validate(Scoring, PairFiles):
    model_name: str = opt("", "also score --num-samples pairs with this model", group="files and models")
    num_samples: int = opt(100, "pairs for the model", group="sample", at_least=1)
    seed: int = opt(0, "seed for drawing the sample", at_least=0)

@dataclass(frozen=True)
class Inspect(PairFiles):
    model_name: str = opt("{sft}", "its tokenizer renders the text: a folder, a name under models/, or a hub name")
    chat_template: str = opt("", "file with a chat template (Jinja), for a tokenizer that has none")
    num_samples: int = opt(5, "pairs to show, from the first on", group="sample", at_least=1)
# fmt: on

# ---- commands ---------------------------------------------------------------------------------


def run_match(cfg: Match) -> tuple[int, dict]:
    """How often does the proxy rank a test pair as gold does, and how wide do its rewards spread?

    A model (--model-name) is scored first; finished rewards (--rewards-path) are compared as they
    are. A healthy match is {match}; chance is 0.5.
    Exit status: 0 measured, 1 below --min-match, 2 bad input."""
    rewards_paths = [cfg.rewards_path] if cfg.rewards_path else []
    models = [] if cfg.rewards_path else [cfg.model_name]
    [found] = diagnose_all(cfg, rewards_paths, models, probes=False, **options(cfg, *SCORING))
    say(f"{found.name} against gold ({cfg.gold_path})\n\n{text.comparison(found.numbers)}")
    say(f"\n{text.verdicts(found.name, found.findings)}")
    status = is_below("match", found.numbers["match"], "--min-match", cfg.min_match)
    return status, {"gold": cfg.gold_path} | found.as_json()


def run_calibrate(cfg: Calibrate) -> tuple[int, dict]:
    """Write a model whose margins mean what they say: the head multiplied by one factor.

    The factor is fitted on the split's pairs against gold (the slope of a logistic regression); the
    head is linear, so all rewards are multiplied by it. The order of responses stays.
    Exit status: 0 written, or nothing to change; 2 bad input."""
    model = find_model(cfg.model_name, cfg.dataset)
    rewards_paths = [cfg.rewards_path] if cfg.rewards_path else []
    models = [] if cfg.rewards_path else [model]
    [found] = diagnose_all(cfg, rewards_paths, models, probes=False, **options(cfg, *SCORING))
    fitted = calibrate.calibration_of(found.rewards, found.gold)
    say(text.calibration(found.name, fitted))
    numbers = {"model": model, "gold": cfg.gold_path} | fitted.as_json()
    if not cfg.factor and fitted.factor.low <= 1 <= fitted.factor.high:
        say("\nthe interval holds 1: nothing to change (--factor writes a model all the same)")
        return 0, numbers | {"applied": 1.0, "output_dir": None}
    numbers["applied"] = cfg.factor or fitted.factor.value
    numbers["output_dir"] = cfg.output_dir or f"{model.rstrip('/')}-calibrated"
    calibrate.write_calibrated(
        model, numbers["output_dir"], numbers["applied"], dict(numbers), cfg.overwrite
    )
    say(f"\n{numbers['output_dir']}: written, its head is {model}'s times {numbers['applied']:.4g}")
    return 0, numbers


def run_quality(cfg: Quality) -> tuple[int, dict]:
    """Did the model learn its own training pairs? Accuracy, loss and rewards on a sample of them.

    A healthy accuracy is {accuracy}; below {accuracy.poor} the model is not learning, below
    {accuracy.failed} training failed.
    Exit status: 0 measured, 1 below --min-accuracy, 2 bad input."""
    model = find_model(cfg.model_name, cfg.dataset)
    pairs = read_pairs(cfg.data_path)
    say(describe_pairs(cfg.data_path, pairs), file=sys.stderr)
    n = run.quality(model, pairs, **options(cfg, "num_samples", "seed", *SCORING))
    say(f"{model} on {cfg.data_path}\n\n{text.quality_table(n)}")
    say(f"\ntraining accuracy {n['train_accuracy']:.1%}: {n['grade']}\n")
    say(text.verdicts(Path(model).name, n["findings"]))
    status = is_below("accuracy", n["train_accuracy"], "--min-accuracy", cfg.min_accuracy)
    return status, {"name": model, "data": cfg.data_path} | n


def run_diagnose(cfg: Diagnose) -> tuple[int, dict]:
    """What is wrong with one or several proxies, and why? A row for each, findings, an HTML report.

    Probes score some of the data in other ways: as plain text, cut short, at other tokens, alone
    and padded; for finished rewards, with the model that their run file names.
    Exit status: 0 measured, whatever the findings; 2 bad input."""
    check_writable(cfg.report)
    models = cfg.models
    if not models and not cfg.rewards_path:
        models = [dataset_paths(cfg.dataset)["proxy"]]
    settings = options(cfg, "probes", "num_samples", "seed", *SCORING)
    found = diagnose_all(cfg, cfg.rewards_path, models, **settings)
    facts = text.gold_facts(found[0].numbers)
    say(f"{cfg.gold_path}\n{facts}\n\n{text.summary_table(found)}")
    findings = []
    for one in found:
        say(f"\n{text.verdicts(one.name, one.findings)}")
        findings += [{"model": one.name} | finding for finding in one.findings]
    if is_main_process():
        run.write_report(cfg.report, found, cfg.dataset, [f"Gold: {cfg.gold_path}", facts])
    say(f"\n{cfg.report}: written")
    models = [one.as_json() for one in found]
    return 0, {"gold": cfg.gold_path, "findings": findings, "models": models}


def run_best_of_n(cfg: BestOfN) -> tuple[int, dict]:
    """The expected gold reward of the proxy's best of n responses; does it fall for large n?

    Sample N responses per prompt (sample.py --num-responses N), label them with gold and with the
    proxy, and compare: the over-optimisation curve of Gao et al. 2022.
    Exit status: 0 measured, 2 bad input."""
    if not cfg.rewards_path:
        what_next = "pass --rewards-path, a file of label.py for each proxy"
        raise UserError(f"evaluate.py bon: no rewards given: {what_next}")
    check_writable(cfg.report)
    prompts, responses = read_gold(cfg.gold_path).shape
    curves = {}
    for path in cfg.rewards_path:
        curves[path] = run.best_of_n(path, cfg.gold_path)
        say(f"{path}: {prompts:,} prompts, {responses} responses each\n")
        say(f"{text.best_of_n(curves[path])}\n")
    if is_main_process():
        by_name = {Path(path).stem: curve for path, curve in curves.items()}
        title = f"Best of n, judged by {Path(cfg.gold_path).stem}"
        report.write_best_of_n(cfg.report, title, by_name)
    say(f"{cfg.report}: written")
    return 0, {"gold": cfg.gold_path, "curves": curves}


def run_validate(cfg: Validate) -> tuple[int, dict]:
    """Are the pairs well-formed, from these files, in order, and each chosen side gold's choice?

    Exit status: 0 every check passed, 1 a check failed, 2 bad input."""
    prompts = unless_absent(cfg.prompts_path, dataset_paths(cfg.dataset, cfg.split)["prompts"])
    model = cfg.model_name and find_model(cfg.model_name, cfg.dataset)
    settings = options(cfg, "num_samples", "seed", *SCORING)
    found = checks.validate(
        cfg.data_path, cfg.responses_path, cfg.rewards_path, prompts, model=model, **settings
    )
    say(text.checks_table(found.checks))
    say(f"\n{found.failed or 'none'} of {len(found.checks)} checks failed")
    return int(found.failed > 0), {"data": cfg.data_path, "failed": found.failed} | asdict(found)


def run_inspect(cfg: Inspect) -> tuple[int, dict]:
    """The first pairs as the model reads them, and what gold says about them.

    Shows gold's rewards, which response was chosen, the rendered text and the scored token.
    Exit status: 0 gold prefers the chosen side of every pair shown, 1 it does not, 2 bad input."""
    pairs = read_pairs(cfg.data_path)
    say(describe_pairs(cfg.data_path, pairs), file=sys.stderr)
    default = dataset_paths(cfg.dataset, cfg.split)
    shown = checks.inspect_pairs(
        pairs[: cfg.num_samples],
        find_model(cfg.model_name, cfg.dataset),
        unless_absent(cfg.responses_path, default["responses"]),
        cfg.rewards_path,
        unless_absent(cfg.prompts_path, default["prompts"]),
        chat_template=cfg.chat_template,
    )
    for pair in shown:
        say(text.shown_pair(pair))
    wrong = sum(not pair.agrees for pair in shown)
    right = f"{len(shown) - wrong} of {len(shown)} pairs shown"
    say(f"{right} have the response that gold prefers as chosen")
    rows = [asdict(pair) for pair in shown]
    return int(wrong > 0), {"data": cfg.data_path, "wrong": wrong, "pairs": rows}


# ---- shared by the commands --------------------------------------------------------------------

SCORING = ("max_length", "tokens_per_pass", "dtype", "chat_template", "device")


def diagnose_all(cfg: Match | Diagnose, rewards_paths: list[str], models: list[str], **settings):
    """Rewards files and models against gold, with the texts behind them where they are at hand."""
    default = dataset_paths(cfg.dataset, cfg.split)
    paths = (cfg.prompts_path, cfg.responses_path)
    texts = find_texts(cfg.gold_path, rewards_paths, paths, default, needed=bool(models))
    found = [find_model(model, cfg.dataset) for model in models]
    return run.diagnose_all(rewards_paths, found, cfg.gold_path, texts, **settings)


def options(cfg, *names: str) -> dict:
    return {name: getattr(cfg, name) for name in names}


def say(words: str, file=None) -> None:
    if is_main_process():
        print(words, file=file)


def is_below(what: str, value: float, flag: str, least: float) -> int:
    """The exit status: 1 where the value is below what the flag asks for."""
    if value < least:
        say(f"\n{what} {value:.4f} is below {flag} {least:g}")
    return int(value < least)


COMMANDS = {  # a function returns its exit status, and the numbers for --json
    "match": (Match, run_match),
    "calibrate": (Calibrate, run_calibrate),
    "quality": (Quality, run_quality),
    "diagnose": (Diagnose, run_diagnose),
    "report": (Diagnose, run_diagnose),
    "bon": (BestOfN, run_best_of_n),
    "validate": (Validate, run_validate),
    "inspect": (Inspect, run_inspect),
}
OTHER_NAMES = {"--model-path": "--model-name", "--dataset-name": "--dataset"}  # of two flags


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "no command given"
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        raise UserError(f"evaluate.py: {name}: use one of {', '.join(COMMANDS)}: see --help")
    config, command = COMMANDS[name]
    flags = [OTHER_NAMES.get(word.replace("_", "-"), word) for word in argv[1:]]
    description = cleandoc(command.__doc__).format(**HEALTHY)  # {match}: "at least 0.8"
    cfg = parse(config, description, flags, prog=f"evaluate.py {name}")
    if cfg.json:
        check_writable(cfg.json)
    status, numbers = command(cfg)
    if cfg.json and is_main_process():
        write_json(cfg.json, numbers)
    run.release_scorer()
    return status


if __name__ == "__main__":
    run_script(main)
