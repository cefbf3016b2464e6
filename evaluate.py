"""Stage 5: what did the proxy learn, and may its files be trusted?

    reads   models/<name>/ (train.py) or finished rewards (label.py), gold rewards (label.py), the files of the stages before
    writes  a table on stdout; the same numbers with --json PATH; reports/<dataset>.html (diagnose)

    python evaluate.py match --model-name models/toy-rm --dataset toy      does the proxy rank test pairs as gold does?
    python evaluate.py quality --dataset toy --num-samples 500             did it learn its own training pairs?
    python evaluate.py diagnose --dataset toy --models rm                  one or several against gold: what is wrong, and why?
    python evaluate.py report --dataset toy                                the same under the name of what it writes
    python evaluate.py bon --rewards-path rm_of_16.json                    best of n by the proxy, in gold's eyes
    python evaluate.py validate --dataset toy                              are the training pairs what gold says?
    python evaluate.py inspect --dataset toy --num-samples 3               what does the model read, and which token is scored?

`python evaluate.py match --help` lists the options of one. --model-path and --dataset-name are read too.
Exit status: 0 done; 1 a check failed (a check of validate or inspect, or --min-match, --min-accuracy not reached); 2 bad input.
Verdicts are findings, not failures: match and diagnose end with 0 once they have measured.
"""

import functools
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmood import diagnostics, faults, records, report
from rmood.config import layout, opt, parse, run_script
from rmood.records import BadInput, Pair


@dataclass(frozen=True)
class Common:
    dataset: str = opt("alpacafarm", "names every default path at once", group="files and models")
    json: str = opt("", "write the same numbers to this file")


@dataclass(frozen=True)
class Scoring(Common):
    max_length: int = opt(2048, "tokens of a conversation; a longer response loses its end, never the template's closing tokens", group="scoring", at_least=8)
    tokens_per_pass: int = opt(16384, "tokens in one forward pass, at most; lower it when memory runs out", at_least=16)
    dtype: str = opt("auto", "of the backbone; the head is float32 always; auto: bf16 on CUDA, float32 on a CPU", choices=["auto", "bf16", "float32"])
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    device: str = opt("auto", "auto: CUDA where there is one", choices=["auto", "cuda", "cpu"])


@dataclass(frozen=True)
class PairFiles(Common):
    split: str = opt("train", "which default paths", group="files and models", choices=["train", "test"])
    data_path: str = opt("{pairs}", "pairs, from preprocess.py")
    rewards_path: str = opt("{rewards}", "gold rewards, from label.py")
    responses_path: str = opt("{responses}", "responses, from sample.py")
    prompts_path: str = opt("{prompts}", "prompts; not compared where the default is absent")


@dataclass(frozen=True)
class AgainstGold(Scoring):
    split: str = opt("test", "which default paths", group="files and models", choices=["train", "test"])
    gold_path: str = opt("{rewards}", "gold rewards, from label.py")
    prompts_path: str = opt("{prompts}", "prompts; a gold file that holds its own texts needs none")
    responses_path: str = opt("{responses}", "responses, from sample.py; as above")


@dataclass(frozen=True)
class Match(AgainstGold):
    model_name: str = opt("{proxy}", "the proxy: a folder, a name under models/, or a hub name", group="files and models")
    rewards_path: str = opt("", "its finished rewards, instead of --model-name: nothing is scored")
    min_match: float = opt(0.0, "exit with 1 where match is below this", group="exit status", at_least=0, at_most=1)


def match(cfg: Match) -> int:
    """How often does the proxy rank a test pair as gold does, and how wide do its rewards spread?

    A model (--model-name) is scored here; finished rewards (--rewards-path) are compared as they are. Good is a match
    above 0.80; random is 0.50. Exit status: 0 measured, 1 below --min-match, 2 bad input."""
    (run,), _, _ = against_gold(cfg, [], [cfg.rewards_path]) if cfg.rewards_path else against_gold(cfg, [cfg.model_name], [])
    n = run["numbers"]
    say(run["name"], f"against gold ({cfg.gold_path})\n")
    table([
        ["pairs", f"{n['pairs']:,}"],
        ["gold ties, not compared", f"{n['gold_ties']:,}"],
        ["compared", f"{n['compared']:,}"],
        ["match, a proxy tie is a miss", f"{n['match']:.4f}", f"95%: {n['match_low']:.4f} to {n['match_high']:.4f}"],
        ["match, a proxy tie is half", f"{n['match_ties_half']:.4f}", f"{n['proxy_ties']} proxy ties"],
        ["rank correlation of margins", f"{n['rank_correlation']:.3f}"],
    ])  # fmt: skip
    say()
    spreads = {"margin_std": "margins within a prompt, std", "std": "rewards, std", "across_std": "means across prompts, std"}
    table([
        ["", "proxy", "gold", "proxy / gold"],
        *([words, f"{n[f'proxy_{what}']:.2f}", f"{n[f'gold_{what}']:.2f}", ratio(n[f"{what}_ratio"])] for what, words in spreads.items()),
        *([f"rewards, {what}", f"{n[f'proxy_{what}']:.2f}", f"{n[f'gold_{what}']:.2f}"] for what in ("mean", "min", "max")),
    ])  # fmt: skip
    say()
    table([["gold margin", "pairs", "match"], *([f"{row['from']:.2f} to {row['to']:.2f}", f"{row['pairs']:,}", f"{row['match']:.3f}"] for row in n["by_gold_margin"])])
    say_findings(run)
    save_json(cfg, {"name": run["name"], "gold": cfg.gold_path} | n | {"findings": run["findings"]})
    return reached("match", n["match"], "--min-match", cfg.min_match)


@dataclass(frozen=True)
class Quality(Scoring):
    model_name: str = opt("{proxy}", "the proxy: a folder, a name under models/, or a hub name", group="files and models")
    data_path: str = opt("{pairs}", "its training pairs, from preprocess.py")
    num_samples: int = opt(500, "pairs to score, drawn without replacement; 0: all", group="sample", at_least=0)
    seed: int = opt(0, "of the draw", at_least=0)
    min_accuracy: float = opt(0.0, "exit with 1 where the accuracy is below this", group="exit status", at_least=0, at_most=1)


GRADES = ((0.95, "good: above 95%"), (0.9, "good, though below the 95% of a finished training"), (0.8, "short of the 90% to expect: more epochs or a higher rate"), (0.7, "under 80%: the model is not learning"), (0.0, "under 70%: training failed"))  # fmt: skip


def quality(cfg: Quality) -> int:
    """Did the model learn its own training pairs? Accuracy, loss and rewards on a sample of them.

    Training accuracy should be above 0.90, better 0.95; below 0.80 it is not learning, below 0.70 training failed.
    Exit status: 0 measured, 1 below --min-accuracy, 2 bad input."""
    pairs = sample(records.read_pairs(cfg.data_path), cfg.num_samples, cfg.seed)
    name = find_model(cfg, cfg.model_name)
    rewards = score(cfg, name, [[pair.chosen, pair.rejected] for pair in pairs])
    known = all(pair.chosen_reward is not None and pair.rejected_reward is not None for pair in pairs)
    gold = np.array([[pair.chosen_reward, pair.rejected_reward] for pair in pairs], dtype=float) if known else None
    n = {"pairs": len(pairs)} | diagnostics.pair_quality(rewards, gold)
    grade = next(text for floor, text in GRADES if n["train_accuracy"] >= floor)
    say(f"{name} on {cfg.data_path}\n")
    table([
        ["pairs scored", f"{n['pairs']:,}"],
        ["accuracy, a tie is a miss", f"{n['train_accuracy']:.4f}", f"95%: {n['train_accuracy_low']:.4f} to {n['train_accuracy_high']:.4f}"],
        ["loss", f"{n['train_loss']:.4f}", "0.693 is no opinion; should end below 0.3"],
        ["margin, mean", f"{n['margin_mean']:.3f}", f"median {n['margin_median']:.3f}, std {n['margin_std']:.3f}, {n['ties']} ties"],
        ["rewards, mean", f"{n['proxy_mean']:.3f}", f"std {n['proxy_std']:.3f}, {n['proxy_min']:.3f} to {n['proxy_max']:.3f}"],
        ["spread of margins / gold's", ratio(n["margin_std_ratio"]), "healthy: 0.5 to 2"],
    ])  # fmt: skip
    run = {"name": Path(name).name, "findings": faults.findings(n)}
    say(f"\ntraining accuracy {n['train_accuracy']:.1%}: {grade}")
    say_findings(run)
    save_json(cfg, {"name": name, "data": cfg.data_path} | n | {"grade": grade, "findings": run["findings"]})
    return reached("accuracy", n["train_accuracy"], "--min-accuracy", cfg.min_accuracy)


@dataclass(frozen=True)
class Diagnose(AgainstGold):
    models: list[str] = opt([], "models to score: folders, hub names, or names under models/ (rm: <dataset>-rm); none given: the dataset's proxy")
    rewards_path: list[str] = opt([], "finished rewards files to compare, instead of models or beside them")
    report: str = opt("{report}", "HTML report to write")
    probes: bool = opt(True, "score some data again in other ways, to name causes: some minutes for a large model", group="probes")
    num_samples: int = opt(200, "training pairs for the probes", at_least=20)
    seed: int = opt(0, "of their draw", at_least=0)


def diagnose(cfg: Diagnose) -> int:
    """What is wrong with one or several proxies, and why? One row each against gold, findings, and an HTML report.

    Probes score some of the data in other ways: as plain text, cut short, at other tokens, alone and padded; for finished rewards
    with the model that their run file names. Exit status: 0 measured, whatever the findings; 2 bad input."""
    records.check_writable(cfg.report)
    runs, gold, texts = against_gold(cfg, cfg.models or ([] if cfg.rewards_path else [layout(cfg.dataset)["proxy"]]), cfg.rewards_path, cfg.probes)
    rows = [["", "match", "95%", "ties half", "rank corr.", "spread / gold's", "rewards", "training", "finding"]]
    for run in runs:
        n = run["numbers"]
        training = f"{n['train_loss']:.3f} / {n['train_accuracy']:.1%}" if {"train_loss", "train_accuracy"} <= n.keys() else "-"
        rows.append([
            run["name"], f"{n['match']:.4f}", f"{n['match_low']:.3f} to {n['match_high']:.3f}", f"{n['match_ties_half']:.4f}", f"{n['rank_correlation']:.2f}",
            ratio(n["margin_std_ratio"]), f"{n['proxy_min']:.1f} to {n['proxy_max']:.1f}", training, ", ".join(f["id"] for f in run["findings"]) or "no finding",
        ])  # fmt: skip
    n = runs[0]["numbers"]
    facts = f"{n['compared']:,} of {n['pairs']:,} pairs compared ({n['gold_ties']:,} gold ties); gold's rewards {n['gold_min']:.1f} to {n['gold_max']:.1f}, std {n['gold_std']:.2f}"
    say(f"{cfg.gold_path}\n{facts}\n")
    table(rows)
    for run in runs:
        say_findings(run)
    if is_main():
        report.write(cfg.report, f"{cfg.dataset}: " + ", ".join(run["name"] for run in runs), [f"Gold: {cfg.gold_path}", facts], runs, gold, texts)
    say(f"\n{cfg.report}: written")
    found = [{"model": run["name"]} | finding for run in runs for finding in run["findings"]]
    save_json(cfg, {"gold": cfg.gold_path, "findings": found, "models": [{"name": run["name"]} | run["numbers"] | {"findings": run["findings"]} for run in runs]})
    return 0


def probe(cfg: Diagnose, run: dict, texts: tuple, gold: np.ndarray) -> dict:
    """What the training pairs, the model's folder and a second look at the model add to the numbers of one run."""
    made_by = run["path"] if run["is_model"] else (records.read_run_file(run["path"]) or {}).get("config", {}).get("model_name", "")
    if not Path(made_by, "config.json").is_file():
        return {}  # finished rewards of an unknown model
    from rmood import probes
    from rmood.tokenization import template_sha256

    scorer, conversations = make_scorer(cfg, made_by), records.conversations(*texts)
    trained = records.read_json(f"{made_by}/run.json") if Path(made_by, "run.json").exists() else {"config": {}}
    start, data = trained["config"].get("model_name", ""), trained["config"].get("data_path", "")
    n = probes.config_numbers(made_by, scorer, conversations[0][0])
    n |= {"company_gap": probes.company_gap(scorer, [c for row in conversations[:8] for c in row])}
    if not run["is_model"]:
        n |= diagnostics.training_summary(read_metrics(made_by)) | probes.explain_rewards(scorer, conversations, run["rewards"], made_by)
    templates = {"training": trained.get("template_sha256"), "scoring": template_sha256(scorer.tokenizer)}
    if Path(data).is_file():
        pairs = records.read_pairs(data)
        files = layout(trained["config"].get("dataset", cfg.dataset)) | {role: file["path"] for role, file in (records.read_run_file(data) or {}).get("inputs", {}).items()}
        responses, rewards = (read(files[role]) if Path(files.get(role, "")).is_file() else None for role, read in (("responses", records.read_responses), ("rewards", records.read_rewards)))
        n |= diagnostics.label_noise(pairs, None, responses, rewards)
        prompts = {pair.prompt_key for pair in pairs}
        n |= {"duplicate_share": float(np.mean([Pair(row[0], row[1]).prompt_key in prompts for row in conversations]))}
        n |= {"dropped_share": max(0.0, 1 - (trained["pairs"] + trained["held_out_pairs"]) / len(pairs)), "max_length": trained["config"]["max_length"]}
        drawn = sample(pairs, cfg.num_samples, cfg.seed)
        n |= probes.training_reading(scorer, drawn)
        sampled = records.read_run_file(files.get("responses", "")) or {"config": {}}
        if sampled["config"].get("model_name") == start:
            templates["sampling"] = sampled.get("template_sha256")
        if Path(start, "config.json").is_file():
            n |= probes.moved_weights(made_by, start) | probes.linear_probe(scorer, start, drawn, conversations, gold)
    known = {stage: sha for stage, sha in templates.items() if sha}
    words = ", ".join(f"{stage} {sha[:8]}" for stage, sha in known.items())
    return n | {"template_differs": float(len(set(known.values())) > 1), "template_words": f"the chat templates differ: {words} (first digits of their hashes)"}


def colours(cfg: Diagnose, run: dict, texts: tuple, gold: np.ndarray) -> dict:
    """The head's reward at each token of the most wrong pairs, for the report."""
    from rmood import probes

    wrong = {(row, side) for row, *sides in diagnostics.most_wrong(run["rewards"], gold) for side in sides}
    return {(row, side): probes.coloured_response(make_scorer(cfg, run["path"]), [*texts[0][row], {"role": "assistant", "content": texts[1][row][side]}]) for row, side in wrong}


@dataclass(frozen=True)
class BestOfN(Common):
    split: str = opt("test", "which default paths", choices=["train", "test"])
    rewards_path: list[str] = opt([], "the proxies' rewards of N responses a prompt, from label.py")
    gold_path: str = opt("{rewards}", "gold rewards of the same responses")
    report: str = opt("{home}/reports/best-of-n.html", "HTML page with the curves")


def bon(cfg: BestOfN) -> int:
    """What is the proxy's pick of n responses worth to gold, and does picking harder go wrong?

    Sample N responses a prompt (sample.py --num-responses N), label them with gold and with the proxy, and compare: the
    over-optimisation curve of Gao et al. 2022. Exit status: 0 measured, 2 bad input."""
    if not cfg.rewards_path:
        raise BadInput("evaluate.py bon: no rewards given: pass --rewards-path, a file of label.py for each proxy")
    records.check_writable(cfg.report)
    gold, curves = records.read_rewards(cfg.gold_path), {}
    if len(gold[0]) < 2:
        raise BadInput(f"{cfg.gold_path}: one reward a prompt leaves nothing to choose: sample and label two responses or more")
    for path in cfg.rewards_path:
        rewards = records.read_rewards(path)
        check_same_shape(path, rewards, cfg.gold_path, gold)
        check_same_texts(path, cfg.gold_path)
        rows = curves[path] = diagnostics.expected_best_of_n(np.array(rewards), np.array(gold))
        say(f"{path}: {len(gold):,} prompts, {len(gold[0])} responses each\n")
        shown = [row for row in rows if row["n"] & (row["n"] - 1) == 0 or row is rows[-1]]  # 1, 2, 4, ... and all
        table([["n", "KL, nats", "gold of proxy's pick", "+-", "gold of gold's pick", "proxy of its pick"], *([str(r["n"]), f"{r['kl']:.3f}", f"{r['gold']:.3f}", f"{1.96 * r['gold_error']:.3f}", f"{r['gold_own']:.3f}", f"{r['proxy']:.3f}"] for r in shown)])
        best = max(rows, key=lambda row: row["gold"])
        gained = (rows[-1]["gold"] - rows[0]["gold"]) / ((rows[-1]["gold_own"] - rows[0]["gold_own"]) or 1.0)
        say(f"\nof what gold's own pick of {len(rows)} gains, the proxy's gains {gained:.0%}; its best is n = {best['n']}\n")
    if is_main():
        report.write_best_of_n(cfg.report, f"Best of n, judged by {Path(cfg.gold_path).stem}", {Path(path).stem: rows for path, rows in curves.items()})
    say(f"{cfg.report}: written")
    save_json(cfg, {"gold": cfg.gold_path, "curves": curves})
    return 0


@dataclass(frozen=True)
class Validate(Scoring, PairFiles):
    model_name: str = opt("", "also score --num-samples pairs with this model")
    num_samples: int = opt(100, "pairs for the model", group="sample", at_least=1)
    seed: int = opt(0, "of the draw", at_least=0)


def validate(cfg: Validate) -> int:
    """Are the pairs well-formed, from these files, in order, and each chosen side the one that gold prefers?

    Exit status: 0 every check passed, 1 a check failed, 2 bad input."""
    checks: list[dict] = []

    def check(name: str, wrong: list[str], fine: str, known: bool = True) -> None:
        """wrong: a line for every row that fails; the first one is shown."""
        detail = fine if not wrong else wrong[0] if len(wrong) == 1 else f"{len(wrong):,} wrong, the first: {wrong[0]}"
        checks.append(dict(check=name, passed=not wrong if known else None, failures=len(wrong), detail=detail))

    prompts, responses, gold = read_pair_files(cfg)
    if not Path(cfg.data_path).exists():
        raise BadInput(f"{cfg.data_path}: no such file: run preprocess.py, or pass --data-path")
    try:
        pairs = records.read_pairs(cfg.data_path)
        check("format", [], f"{len(pairs):,} pairs: roles, texts and rewards as they should be")
    except BadInput as letter:
        pairs = []
        check("format", [str(letter)], "")
    inputs = {"responses": cfg.responses_path, "prompts": cfg.prompts_path if prompts else ""}
    for path, made_from in ((cfg.data_path, inputs | {"rewards": cfg.rewards_path}), (cfg.rewards_path, inputs)):
        try:
            wrong, known = [], records.check_lineage(path, **made_from)
        except BadInput as letter:
            wrong, known = [str(letter)], True
        check(f"{Path(path).name} made from these files", wrong, "yes, by their hashes" if known else "no run file beside it: nothing can be said", known)
    if pairs:
        made_with = (records.read_run_file(cfg.data_path) or {}).get("config", {})
        for name, wrong, fine in diagnostics.pairs_against_gold(pairs, prompts, responses, gold, made_with.get("min_margin", 0.0), made_with.get("drop_identical", False)):
            check(name, wrong, fine)
    if pairs and cfg.model_name:
        check_inference(cfg, check, pairs)
    table([["check", "", "what was found"], *([c["check"], {True: "pass", False: "FAIL", None: "-"}[c["passed"]], c["detail"]] for c in checks)])
    failed = sum(c["passed"] is False for c in checks)
    say(f"\n{failed or 'none'} of {len(checks)} checks failed")
    save_json(cfg, {"data": cfg.data_path, "pairs": len(pairs), "failed": failed, "checks": checks})
    return int(failed > 0)


def check_inference(cfg: Validate, check, pairs: list[Pair]) -> None:
    """Finite rewards, and an accuracy a model that saw these pairs reaches."""
    name = find_model(cfg, cfg.model_name)
    n = diagnostics.pair_quality(score(cfg, name, [[pair.chosen, pair.rejected] for pair in sample(pairs, cfg.num_samples, cfg.seed)]))
    found = f"accuracy {n['train_accuracy']:.3f}, loss {n['train_loss']:.3f}, rewards {n['proxy_min']:.2f} to {n['proxy_max']:.2f} on {min(cfg.num_samples, len(pairs)):,} pairs"
    check("model ranks them right (80% or more)", [] if n["train_accuracy"] >= 0.8 else [found], found)


@dataclass(frozen=True)
class Inspect(PairFiles):
    model_name: str = opt("{sft}", "its tokenizer renders the text: a folder, a name under models/, or a hub name")
    chat_template: str = opt("", "Jinja file, for a tokenizer that has no chat template of its own")
    num_samples: int = opt(5, "pairs to show, from the first on", group="sample", at_least=1)


def inspect(cfg: Inspect) -> int:
    """The first pairs as the model reads them: gold rewards, which response was chosen, the rendered text, the scored token.

    Exit status: 0 gold prefers the chosen side of every pair shown, 1 it does not, 2 bad input."""
    from rmood.tokenization import load_tokenizer, show_row  # torch and transformers take seconds to import: only where needed

    pairs = records.read_pairs(cfg.data_path)[: cfg.num_samples]
    foreign = cfg.responses_path == layout(cfg.dataset, cfg.split)["responses"] and not Path(cfg.responses_path).exists()
    prompts, responses, gold = (None, [[]], []) if foreign else read_pair_files(cfg)
    tokenizer = load_tokenizer(find_model(cfg, cfg.model_name), cfg.chat_template)
    shown = []
    for number, (pair, row) in enumerate(zip(pairs, [None] * len(pairs) if foreign else diagnostics.rows_of(pairs, prompts, responses))):
        rewards = [] if row is None else gold[row]
        sides = [] if row is None else diagnostics.sides_in_row(pair, prompts and prompts[row], responses[row])
        chosen, rejected = diagnostics.best_side(sides, rewards) if sides else (None, None)
        texts = {side: show_row(messages, tokenizer) for side, messages in (("chosen", pair.chosen), ("rejected", pair.rejected))}
        labels = ", ".join(f"response_{i + 1} {reward:g}" for i, reward in enumerate(rewards)) or "none"
        if foreign:  # pairs from elsewhere: what they say of themselves is all there is
            known = pair.chosen_reward is not None and pair.rejected_reward is not None
            agrees, where = not known or pair.chosen_reward > pair.rejected_reward, "no responses file to look it up in"
            labels = f"chosen {pair.chosen_reward:g}, rejected {pair.rejected_reward:g}" if known else labels
        else:
            agrees = bool(sides) and rewards[chosen] > rewards[rejected]
            where = f"chosen is response_{chosen + 1}" if sides else "its texts are not in that row"
        shown.append(dict(pair=number, row=row, gold=rewards, chosen=f"response_{chosen + 1}" if sides else None, agrees=agrees) | texts)
        say(f"=== pair {number}, row {row}: gold rewards: {labels}; {where}: {'ok' if agrees else 'WRONG'}\n--- chosen\n{texts['chosen']}\n--- rejected\n{texts['rejected']}\n")
    wrong = sum(not pair["agrees"] for pair in shown)
    say(f"{len(shown) - wrong} of {len(shown)} pairs shown have the response that gold prefers as chosen")
    save_json(cfg, {"data": cfg.data_path, "wrong": wrong, "pairs": shown})
    return int(wrong > 0)


# ---- shared by the commands ------------------------------------------------------------------------------------


def against_gold(cfg: AgainstGold, models: list[str], rewards_paths: list[str], probes: bool = False) -> tuple[list[dict], np.ndarray, tuple | None]:
    """Each model scored and each rewards file read: name, rewards (P, K), numbers, findings, metrics; gold (P, K); texts."""
    gold = records.read_rewards(cfg.gold_path)
    if len(gold[0]) < 2:
        raise BadInput(f"{cfg.gold_path}: one reward a prompt makes no pair: label two responses or more")
    finished, runs = {}, []
    for path in rewards_paths:
        finished[path] = records.read_rewards(path)
        check_same_shape(path, finished[path], cfg.gold_path, gold)
        check_same_texts(path, cfg.gold_path)
    names = [find_model(cfg, model) for model in models]
    texts, everything = read_texts(cfg, gold, rewards_paths, must=bool(models)), [*rewards_paths, *names]
    for name in everything:  # scored and probed in one turn: a model is loaded once
        is_model = name in names
        rewards = score(cfg, name, records.conversations(*texts)) if is_model else np.array(finished[name])
        metrics = read_metrics(name) if is_model else []
        numbers = diagnostics.compare(rewards, np.array(gold), texts and texts[1]) | diagnostics.training_summary(metrics)
        short = Path(name).name if is_model else Path(name).stem
        unique = sum(short in (Path(other).stem, Path(other).name) for other in everything) == 1
        run = dict(name=short if unique else name, path=name, is_model=is_model, rewards=rewards, numbers=numbers, metrics=metrics)
        if probes and texts:
            run["numbers"] |= probe(cfg, run, texts, np.array(gold))
            run["tokens"] = colours(cfg, run, texts, np.array(gold)) if is_model else {}
        runs.append(run | {"findings": faults.findings(run["numbers"])})
    return runs, np.array(gold), texts


def read_texts(cfg: AgainstGold, gold: list, rewards_paths: list[str], must: bool) -> tuple | None:
    """Prompts and responses behind the rewards: the files named, or texts in a rewards file, or the dataset's; None
    where they are not at hand and nobody must have them."""
    default = layout(cfg.dataset, cfg.split)
    named = cfg.prompts_path != default["prompts"] or cfg.responses_path != default["responses"]
    for path in () if named else (cfg.gold_path, *rewards_paths):
        if own := records.read_records(path):
            return own
    there = Path(cfg.prompts_path).exists() and Path(cfg.responses_path).exists()
    if not must and not named and not (there and cfg.gold_path == default["rewards"]):
        return None  # the dataset's texts need not be those of another gold file
    prompts, responses = records.read_prompts(cfg.prompts_path), records.read_responses(cfg.responses_path)
    records.check_rows(cfg.responses_path, responses, "prompts", prompts, cfg.prompts_path, "rerun sample.py")
    check_same_shape(cfg.gold_path, gold, cfg.responses_path, responses)
    records.check_lineage(cfg.gold_path, prompts=cfg.prompts_path, responses=cfg.responses_path)
    return prompts, responses


def read_pair_files(cfg: PairFiles) -> tuple[list | None, list[list[str]], list[list[float]]]:
    """Prompts, responses and gold rewards, of as many rows; no prompts where nobody named them and the default is absent."""
    responses, gold = records.read_responses(cfg.responses_path), records.read_rewards(cfg.rewards_path)
    check_same_shape(cfg.rewards_path, gold, cfg.responses_path, responses)
    if (own := records.read_records(cfg.rewards_path)) and own[1] != responses:
        row = next(row for row, (a, b) in enumerate(zip(own[1], responses)) if a != b)
        raise BadInput(f"{cfg.rewards_path}: row {row} holds other texts than {cfg.responses_path}: pass the responses that were labelled")
    if cfg.prompts_path == layout(cfg.dataset, cfg.split)["prompts"] and not Path(cfg.prompts_path).exists():
        return None, responses, gold
    prompts = records.read_prompts(cfg.prompts_path)
    records.check_rows(cfg.prompts_path, prompts, "responses", responses, cfg.responses_path, "rerun sample.py")
    return prompts, responses, gold


def read_metrics(model: str) -> list[dict]:
    """The lines of a model folder's metrics.jsonl; none for a model from elsewhere."""
    path = Path(model, "metrics.jsonl")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")] if path.exists() else []
    except ValueError:
        raise BadInput(f"{path}: a line is not valid JSON: mend or remove the file")


def check_same_shape(path: str, rows: list[list], other: str, other_rows: list[list]) -> None:
    if len(rows) != len(other_rows):
        raise BadInput(f"{path}: {len(rows):,} rows, but {len(other_rows):,} in {other}: pass the matching file")
    if len(rows[0]) != len(other_rows[0]):
        raise BadInput(f"{path}: {len(rows[0])} entries a row, but {len(other_rows[0])} in {other}: pass the matching file")


def check_same_texts(path: str, gold_path: str) -> None:
    """Two rewards files of as many rows can still be of other texts: their own texts or the hashes of their inputs tell."""
    ours, golds = records.read_records(path), records.read_records(gold_path)
    if ours and golds:
        for row, (a, b) in enumerate(zip(zip(*ours), zip(*golds))):
            if a != b:
                raise BadInput(f"{path}: row {row} holds another text than row {row} of {gold_path}: pass the matching file")
    for role in ("prompts", "responses"):
        hashes = [(records.read_run_file(p) or {}).get("inputs", {}).get(role, {}).get("sha256") for p in (path, gold_path)]
        if None not in hashes and hashes[0] != hashes[1]:
            raise BadInput(f"{path}: scored from other {role} than {gold_path} (their run files say so): pass the matching file")


def find_model(cfg: Common, name: str) -> str:
    """A folder as it is, a name under models/ (rm stands for <dataset>-rm), or else a hub name."""
    paths = layout(cfg.dataset)
    folder = Path(paths["models"])
    if Path(name).is_dir():
        return name
    for found in (folder / name, folder / f"{cfg.dataset}-{name}", *sorted(folder.glob(f"*-{cfg.dataset}-{name}"))):
        if found.is_dir():
            return str(found)
    if name.count("/") == 1 and not name.startswith((".", "/", "models/")):
        return name
    there = ", ".join(sorted(path.name for path in folder.glob("*") if path.is_dir())) or "nothing"
    raise BadInput(f"{name}: no such model, nor under {folder} (there: {there}): train it, or pass a folder or a hub name")


@functools.lru_cache(maxsize=1)
def _scorer(name: str, device: str, **settings):
    from rmood import distributed  # torch and transformers take seconds to import: only where a model is scored
    from rmood.scoring import load_scorer

    return load_scorer(name, distributed.start(device), **settings)


def make_scorer(cfg: Scoring, name: str):
    return _scorer(name, cfg.device, dtype=cfg.dtype, max_length=cfg.max_length, tokens_per_pass=cfg.tokens_per_pass, chat_template=cfg.chat_template)


def score(cfg: Scoring, name: str, conversations: list[list[list[dict]]]) -> np.ndarray:
    """For each prompt its K conversations -> (P, K) rewards."""
    rewards = np.array(make_scorer(cfg, name).score(conversations, desc=f"scoring with {Path(name).name}"), dtype=float)
    if not np.isfinite(rewards).all():
        row = int(np.argwhere(~np.isfinite(rewards))[0, 0])
        raise BadInput(f"{name}: the reward of row {row} is not finite: try --dtype float32, or train the model again")
    return rewards


def sample(pairs: list[Pair], count: int, seed: int) -> list[Pair]:
    return pairs if count == 0 or count >= len(pairs) else random.Random(seed).sample(pairs, count)


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def say(*words) -> None:
    if is_main():
        print(*words)


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(rows: list[list[str]]) -> None:
    """Columns side by side: the first and the last to the left where they hold words, numbers to the right."""
    width = max(len(row) for row in rows)
    rows = [row + [""] * (width - len(row)) for row in rows]
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            size = max(len(other[column]) for other in rows)
            words = column == 0 or (column == width - 1 and any(" " in other[column] or "_" in other[column] for other in rows[1:]))
            cells.append(cell.ljust(size) if words else cell.rjust(size))
        say("  ".join(cells).rstrip())


def say_findings(run: dict) -> None:
    for finding in run["findings"]:
        say(f"\nverdict on {run['name']}: {finding['id'].replace('_', ' ')} ({finding['severity']})\n  {finding['evidence']}")
        say("  likely causes, in this order:\n" + "\n".join(f"    {i}. {cause}" for i, cause in enumerate(finding["causes"], 1)))
        say(f"  what to do: {finding['advice']}")
    if not run["findings"]:
        say(f"\nverdict on {run['name']}: no finding")


def save_json(cfg: Common, numbers: dict) -> None:
    if cfg.json and is_main():
        records.write_json(cfg.json, numbers)


def reached(what: str, value: float, flag: str, floor: float) -> int:
    if value < floor:
        say(f"\n{what} {value:.4f} is below {flag} {floor:g}")
    return int(value < floor)


COMMANDS = {"match": (Match, match), "quality": (Quality, quality), "diagnose": (Diagnose, diagnose), "report": (Diagnose, diagnose), "bon": (BestOfN, bon), "validate": (Validate, validate), "inspect": (Inspect, inspect)}
REFERENCE_FLAGS = {"--model-path": "--model-name", "--model_path": "--model-name", "--dataset-name": "--dataset", "--dataset_name": "--dataset"}


def main(argv: list[str] | None = None) -> int:
    name, *argv = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        raise BadInput(f"evaluate.py: {name or 'no command given'}: use one of {', '.join(COMMANDS)}: see evaluate.py --help")
    config, command = COMMANDS[name]
    cfg = parse(config, command.__doc__.replace("\n    ", "\n"), [REFERENCE_FLAGS.get(word, word) for word in argv], prog=f"evaluate.py {name}")
    if cfg.json:
        records.check_writable(cfg.json)
    status = command(cfg)
    if torch_distributed := sys.modules.get("torch.distributed"):
        if torch_distributed.is_initialized():
            torch_distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    run_script(main)
