"""Stage 5: what did the proxy learn, and can its files be trusted?

reads   models/<name>/ (train.py) or finished rewards (label.py), and the files of the stages before
writes  a table on stdout; the same numbers with --json PATH; reports/<dataset>.html (diagnose)

python evaluate.py match --dataset toy                      does it rank test pairs as gold does?
python evaluate.py scale --dataset toy                      do its margins mean what they say?
python evaluate.py calibrate --dataset toy                  write a model whose margins mean that
python evaluate.py quality --dataset toy                    did it learn its own training pairs?
python evaluate.py diagnose --dataset toy --models rm       what is wrong with it, and why?
python evaluate.py report --dataset toy                     another name for diagnose
python evaluate.py epochs --dataset toy                     were the epochs too many?
python evaluate.py bon --rewards-path rm_of_16.json         expected gold reward of its best of n
python evaluate.py readiness --rewards-path rm_of_16.json   can a policy learn from its rewards?
python evaluate.py suspects --dataset toy                   which pairs are mislabelled?
python evaluate.py bench --bench-path RM-Bench/data         a published benchmark's own score
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

import numpy as np

from rmood.cli import opt, parse
from rmood.diagnosis import (
    bench,
    benchmarks,
    calibrate,
    checks,
    ensemble,
    epochs,
    measures,
    questions,
    readiness,
    report,
    run,
    suspects,
    text,
)
from rmood.diagnosis.inputs import (
    find_model,
    find_texts,
    is_rewards_file,
    read_gold,
    unless_absent,
)
from rmood.errors import UserError, is_main_process, run_script
from rmood.files.paths import dataset_paths
from rmood.files.provenance import allow_mismatch, write_run_file
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
    template_kwargs: str = opt("", "JSON of variables that the chat template reads, such as '{\"enable_thinking\": false}'")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])
    allow_mismatch: bool = opt(False, "use files that by their run files do not belong together")

@dataclass(frozen=True)
class Match(Scoring):
    model_name: str = opt("{proxy}", "the proxy: a folder, a name under models/, or a hub name", group="files and models")
    rewards_path: str = opt("", "its finished rewards, instead of --model-name: nothing is scored")
    split: str = opt("test", "which prompts of the dataset", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards, from label.py")
    prompts_path: str = opt("{prompts}", "prompts, unless the gold file holds them")
    responses_path: str = opt("{responses}", "responses, from sample.py, unless the gold file holds them")
    gold_kind: str = opt("auto", "what gold's rewards are: log-odds (a reward model's), a judge's rating, a probability; auto: guessed, and said", choices=["auto", *measures.GOLD_KINDS])
    min_match: float = opt(0.0, "exit with 1 where match is below this", group="exit status", at_least=0, at_most=1)

@dataclass(frozen=True)
class Scale(Match):
    train_rewards_path: str = opt("", "the proxy's finished rewards of the training responses (label.py --split train), instead of scoring training pairs", group="training pairs")
    train_gold_path: str = opt("", "gold rewards of the same; default: the dataset's")
    num_samples: int = opt(500, "training pairs to score, drawn without replacement", at_least=20)
    seed: int = opt(0, "seed for drawing them", at_least=0)

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
    gold_kind: str = opt("auto", "what gold's rewards are: log-odds (a reward model's), a judge's rating, a probability; auto: guessed, and said", choices=["auto", *measures.GOLD_KINDS])
    probes: str = opt("full", "also score some data in other ways, to find causes: at most two more scorings of it; quick: without plain texts and the linear probe; no (or --no-probes)", choices=list(run.PROBES), group="probes")
    num_samples: int = opt(200, "training pairs for the probes", at_least=20)
    seed: int = opt(0, "seed for drawing them", at_least=0)

@dataclass(frozen=True)
class Epochs(Scoring):
    model_name: str = opt("{proxy}", "the model that train.py --keep-epochs wrote, with epoch-1/ and so on below it", group="files and models")
    eval_path: str = opt("", "held-out pairs; default: those of the run")
    data_path: str = opt("", "its training pairs; default: the file that its run.json names")
    num_samples: int = opt(500, "training pairs to score, where the run's own sample is not known", group="sample", at_least=1)
    seed: int = opt(0, "seed for drawing them", at_least=0)

@dataclass(frozen=True)
class BestOfN:
    dataset: str = opt("alpacafarm", "sets every default path at once")
    json: str = opt("", "also write the numbers to this file")
    rewards_path: list[str] = opt([], "the proxies' rewards of N responses per prompt, from label.py")
    allow_mismatch: bool = opt(False, "use files that by their run files do not belong together")
    split: str = opt("test", "which prompts of the dataset", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards of the same responses")
    combine: str = opt("no", "also several proxies as one, each standardised by its std within prompts: their mean, the least of them, or the mean minus the std over proxies", choices=["no", *ensemble.COMBINATIONS])
    report: str = opt("{home}/reports/best-of-n.html", "HTML page with the curves")

@dataclass(frozen=True)
class Bench(Scoring):
    bench_path: str = opt("", "the benchmark as published: a file, or a folder of files", group="files and models")
    bench: str = opt("auto", "which benchmark it is, auto: as its rows say", choices=["auto", *benchmarks.READERS])
    model_name: str = opt("{proxy}", "the model to score: a folder, a name under models/, or a hub name")
    rewards_path: str = opt("", "finished rewards of the benchmark's responses, instead of --model-name: nothing is scored")
    against: str = opt("", "also compare with another model or rewards file, paired by prompt")
    target_path: str = opt("", "also write the model's rewards to this file: a row for each of the benchmark's")
    write_texts: str = opt("", "only write prompts.json and responses.json into this folder, for label.py: its rewards are then a --rewards-path")

@dataclass(frozen=True)
class Readiness:
    dataset: str = opt("alpacafarm", "sets every default path at once", group="files and models")
    json: str = opt("", "also write the numbers to this file")
    rewards_path: str = opt("", "rewards of 4 or more of the policy's own samples per prompt, from label.py")
    responses_path: str = opt("", "these samples, from sample.py; default: the file that the rewards' run file names")
    gold_path: str = opt("", "gold rewards of the same samples, if there are any")
    model_name: str = opt("", "the reward model, a folder; default: the one that the rewards' run file names")
    policy: str = opt("", "the policy, a folder; default: the one that the samples' run file names")
    scale: float = opt(0.0, "the factor that calibrates the rewards, from evaluate.py scale; 0: what the model's run.json says of held-out pairs, else 1", group="reinforcement learning", at_least=0)
    kl_weight: float = opt(0.05, "PPO's KL weight on these rewards", above=0)
    noise: float = opt(0.0, "of a reward, in its own unit; evaluate.py diagnose measures it; 0: not known", at_least=0)

@dataclass(frozen=True)
class Suspects(Scoring):
    model_name: str = opt("{proxy}", "the model that was trained on the pairs: a folder, or a name under models/", group="files and models")
    data_path: str = opt("{pairs}", "its training pairs, from preprocess.py")
    eval_path: str = opt("", "held-out pairs: what each training pair does to their loss counts, too")
    share: float = opt(0.1, "share of the pairs to list and to leave out, the most suspect first", above=0, at_most=0.9)
    target_path: str = opt("{home}/reports/suspects.jsonl", "the ranked list")
    cleaned_path: str = opt("", "also write the other pairs to this file, for train.py")
    overwrite: bool = opt(False, "replace these two files (never --data-path)")

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
    template_kwargs: str = opt("", "JSON of variables that the chat template reads, such as '{\"enable_thinking\": false}'")
    num_samples: int = opt(5, "pairs to show, from the first on", group="sample", at_least=1)
# fmt: on

# ---- commands ---------------------------------------------------------------------------------


def run_match(cfg: Match) -> tuple[int, dict]:
    """How often does the proxy rank a test pair as gold does? Do its margins mean what they say?

    A model (--model-name) is scored first; finished rewards (--rewards-path) are compared as they
    are. The reference expects a match of {match}; chance is 0.5. Scale 1 is calibrated.
    Exit status: 0 measured, 1 below --min-match, 2 bad input."""
    rewards_paths, models = one_proxy(cfg)
    settings = options(cfg, "gold_kind", *SCORING)
    [found] = diagnose_all(cfg, rewards_paths, models, probes=False, **settings)
    say(f"{found.name} against gold ({cfg.gold_path})\n\n{text.comparison(found.numbers)}")
    say(f"\n{text.verdicts(found.name, found.findings, found.not_measured)}")
    status = is_below("match", found.numbers["match"], "--min-match", cfg.min_match)
    return status, {"gold": cfg.gold_path} | found.as_json()


def run_scale(cfg: Scale) -> tuple[int, dict]:
    """Do the margins mean what they say, and how much does the proxy know?

    Gold's size is not used, only its sign. With the model, or with --train-rewards-path, also what
    the proxy knows of its training pairs: under-learned, memorised or learned.
    Exit status: 0 measured, 2 bad input."""
    rewards_paths, models = one_proxy(cfg)
    settings = options(cfg, "gold_kind", "num_samples", "seed", *SCORING)
    [found] = diagnose_all(cfg, rewards_paths, models, probes="quick", **settings)
    numbers = found.numbers
    if cfg.train_rewards_path:
        gold = cfg.train_gold_path or dataset_paths(cfg.dataset, "train")["rewards"]
        numbers |= run.training_numbers(cfg.train_rewards_path, gold, numbers)
    say(f"{found.name} against gold ({cfg.gold_path})\n")
    say(questions.as_text(numbers, found.not_measured))
    numbers = {name: numbers[name] for name in questions.NUMBERS if name in numbers}
    shown = {"not_measured": found.not_measured}
    return 0, {"name": found.name, "gold": cfg.gold_path} | numbers | shown


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
    say(text.verdicts(Path(model).name, n["findings"], n["not_measured"]))
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
    settings = options(cfg, "gold_kind", "probes", "num_samples", "seed", *SCORING)
    found = diagnose_all(cfg, cfg.rewards_path, models, **settings)
    facts = text.gold_facts(found[0].numbers)
    say(f"{cfg.gold_path}\n{facts}\n\n{text.summary_table(found)}")
    findings = []
    for one in found:
        say(f"\n{text.verdicts(one.name, one.findings, one.not_measured)}")
        findings += [{"model": one.name} | finding for finding in one.findings]
    if is_main_process():
        run.write_report(cfg.report, found, cfg.dataset, [f"Gold: {cfg.gold_path}", facts])
    say(f"\n{cfg.report}: written")
    models = [one.as_json() for one in found]
    return 0, {"gold": cfg.gold_path, "findings": findings, "models": models}


def run_epochs(cfg: Epochs) -> tuple[int, dict]:
    """Were the epochs too many? The kept models on held-out pairs, paired, with intervals.

    By loss, and by bits: what a model knows of the order of a pair, whatever its scale.
    Exit status: 0 measured, 2 bad input."""
    model = find_model(cfg.model_name, cfg.dataset)
    settings = options(cfg, "eval_path", "data_path", "num_samples", "seed", *SCORING)
    found = epochs.compare_epochs(model, **settings)
    say(f"{model}\n\n{found}")
    return 0, {"name": model} | found.as_json()


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
    gains = {}
    if cfg.combine != "no":
        together, gains = ensemble.combine_files(cfg.rewards_path, cfg.combine, cfg.gold_path)
        name = f"{cfg.combine} of {len(cfg.rewards_path)}"
        curves[name] = run.best_of_n(together, cfg.gold_path)
        say(f"{name}\n\n{text.best_of_n(curves[name])}\n\n{ensemble.gains_table(gains)}\n")
    if is_main_process():
        by_name = {Path(path).stem: curve for path, curve in curves.items()}
        title = f"Best of n, judged by {Path(cfg.gold_path).stem}"
        report.write_best_of_n(cfg.report, title, by_name)
    say(f"{cfg.report}: written")
    return 0, {"gold": cfg.gold_path, "curves": curves, "gains": gains}


def run_readiness(cfg: Readiness) -> tuple[int, dict]:
    """Can a policy learn from this reward model? Of several of the policy's own samples a prompt.

    How much the rewards differ within a prompt, what the best sample gains and how long it is, what
    PPO's KL weight means, and whether reward model and policy are of one base model.
    Exit status: 0 measured, whatever the warnings; 2 bad input."""
    if not cfg.rewards_path:
        raise UserError("evaluate.py readiness: no rewards: pass --rewards-path, from label.py")
    found = readiness.read_samples(cfg.rewards_path, cfg.gold_path, cfg.responses_path)
    model, policy = cfg.model_name or found.model, cfg.policy or found.policy
    scale = cfg.scale or readiness.recorded_scale(model) or 1.0
    numbers = readiness.readiness(
        found.rewards, found.lengths, found.gold, scale, cfg.kl_weight, cfg.noise or None
    )
    prompts, responses = found.rewards.shape
    say(f"{cfg.rewards_path}: {prompts:,} prompts, {responses} responses each")
    say(f"\n{readiness.table(numbers)}\n\n{readiness.remarks(numbers)}")
    related = readiness.lineage(model, policy)
    say(f"{'WARNING: ' if related.is_warning else ''}reward model and policy: {related.words}")
    return 0, {"rewards": cfg.rewards_path} | numbers | {"lineage": asdict(related)}


def run_suspects(cfg: Suspects) -> tuple[int, dict]:
    """Which training pairs have their labels wrong? A ranked list, and the pairs without them.

    By what the model thought of each pair while it learned from the others, and what a head fitted
    on all other pairs says of it. Gold is not used.
    Exit status: 0 written, 2 bad input."""
    for path in filter(None, (cfg.target_path, cfg.cleaned_path)):
        suspects.check_target(path, cfg.data_path, cfg.overwrite)
    model = find_model(cfg.model_name, cfg.dataset)
    pairs = read_pairs(cfg.data_path)
    say(describe_pairs(cfg.data_path, pairs), file=sys.stderr)
    held_out = read_pairs(cfg.eval_path) if cfg.eval_path else []
    found = suspects.find_suspects(model, pairs, held_out, **options(cfg, *SCORING))
    count = max(1, round(cfg.share * len(pairs)))
    written = []
    if is_main_process():
        written = suspects.write(found, pairs, count, cfg.target_path, cfg.cleaned_path)
    for path in written:
        write_run_file(path, cfg, {"pairs": cfg.data_path})
    say(suspects.summary(found, pairs, count))
    say("".join(f"\n{path}: written" for path in written))
    ranking = found.ranking()[:count].tolist()
    return 0, {"model": model, "data": cfg.data_path, "pairs": len(pairs), "suspects": ranking}


def run_bench(cfg: Bench) -> tuple[int, dict]:
    """The score of a published benchmark by its own formula, beside the scores of length alone.

    Reads JudgeBench, RM-Bench, RMB, RewardBench and RewardBench 2 as published, and any pairs.
    Exit status: 0 measured, 2 bad input."""
    if not cfg.bench_path:
        raise UserError("evaluate.py bench: no benchmark: pass --bench-path, its file or folder")
    rewards_paths, models = one_proxy(cfg)
    [ours] = rewards_paths or models
    read = benchmarks.read_benchmark(cfg.bench_path, cfg.bench)
    say(f"{cfg.bench_path}\n{read.describe()}")
    if cfg.write_texts:
        prompts, responses = benchmarks.write_texts(read, cfg.write_texts)
        say(f"{prompts}, {responses}: written; next: python label.py on them")
        return 0, {"benchmark": read.name, "prompts": prompts, "responses": responses}
    if cfg.target_path:
        benchmarks.check_absent(cfg.target_path)
    names = [run.default_name(name) for name in (ours, cfg.against) if name]
    rewards = bench_rewards(cfg, ours, read)
    if cfg.target_path and is_main_process():
        write_json(cfg.target_path, [row.tolist() for row in rewards])
        write_run_file(cfg.target_path, cfg, read.inputs())
    other = bench_rewards(cfg, cfg.against, read) if cfg.against else None
    numbers = bench.bench(read, rewards, other)
    say(f"\n{bench.table(numbers, *names)}\n\n{bench.remarks(numbers, *names[1:])}")
    return 0, bench.as_json({"names": names} | numbers)


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
        template_kwargs=cfg.template_kwargs,
    )
    for pair in shown:
        say(text.shown_pair(pair))
    wrong = sum(not pair.agrees for pair in shown)
    right = f"{len(shown) - wrong} of {len(shown)} pairs shown"
    say(f"{right} have the response that gold prefers as chosen")
    rows = [asdict(pair) for pair in shown]
    return int(wrong > 0), {"data": cfg.data_path, "wrong": wrong, "pairs": rows}


# ---- shared by the commands --------------------------------------------------------------------

SCORING = ("max_length", "tokens_per_pass", "dtype", "chat_template", "template_kwargs", "device")


def diagnose_all(cfg: Match | Diagnose, rewards_paths: list[str], models: list[str], **settings):
    """Rewards files and models against gold, with the texts behind them where they are at hand."""
    default = dataset_paths(cfg.dataset, cfg.split)
    paths = (cfg.prompts_path, cfg.responses_path)
    texts = find_texts(cfg.gold_path, rewards_paths, paths, default, needed=bool(models))
    found = [find_model(model, cfg.dataset) for model in models]
    return run.diagnose_all(rewards_paths, found, cfg.gold_path, texts, **settings)


def one_proxy(cfg: Match | Bench) -> tuple[list[str], list[str]]:
    """(finished rewards, models), of which there is one in all."""
    if not cfg.rewards_path:
        return [], [cfg.model_name]
    if cfg.model_name != dataset_paths(cfg.dataset)["proxy"]:
        raise UserError("evaluate.py: --rewards-path and --model-name: give one of them")
    return [cfg.rewards_path], []


def options(cfg, *names: str) -> dict:
    return {name: getattr(cfg, name) for name in names}


def say(words: str, file=None) -> None:
    if is_main_process():
        print(words, file=file)


def bench_rewards(cfg: Bench, name: str, read: benchmarks.Benchmark) -> list[np.ndarray]:
    """For each row of the benchmark its responses' rewards: a file's, or a model's."""
    if is_rewards_file(name):
        return benchmarks.read_benchmark_rewards(name, read)
    scorer = run.loaded_scorer(find_model(name, cfg.dataset), **options(cfg, *SCORING))
    scored = scorer.score(read.conversations(), desc=f"scoring with {Path(name).name}")
    return benchmarks.as_arrays(scored, name)


def is_below(what: str, value: float, flag: str, least: float) -> int:
    """The exit status: 1 where the value is below what the flag asks for."""
    if value < least:
        say(f"\n{what} {value:.4f} is below {flag} {least:g}")
    return int(value < least)


COMMANDS = {  # a function returns its exit status, and the numbers for --json
    "match": (Match, run_match),
    "scale": (Scale, run_scale),
    "calibrate": (Calibrate, run_calibrate),
    "quality": (Quality, run_quality),
    "diagnose": (Diagnose, run_diagnose),
    "report": (Diagnose, run_diagnose),
    "epochs": (Epochs, run_epochs),
    "bon": (BestOfN, run_best_of_n),
    "readiness": (Readiness, run_readiness),
    "suspects": (Suspects, run_suspects),
    "bench": (Bench, run_bench),
    "validate": (Validate, run_validate),
    "inspect": (Inspect, run_inspect),
}
OTHER_NAMES = {  # of flags
    "--model-path": "--model-name",
    "--dataset-name": "--dataset",
    "--no-probes": "--probes=no",
}


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
    allow_mismatch(getattr(cfg, "allow_mismatch", False))
    if cfg.json:
        check_writable(cfg.json)
    status, numbers = command(cfg)
    if cfg.json and is_main_process():
        write_json(cfg.json, numbers)
    run.release_scorer()
    return status


if __name__ == "__main__":
    run_script(main, keeps=False)
