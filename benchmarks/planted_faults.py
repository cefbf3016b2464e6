"""Plant faults, and count how often the first finding of `evaluate.py diagnose` is right.

    python benchmarks/planted_faults.py                       the toy world: some 40 minutes a core
    python benchmarks/planted_faults.py --seeds 100           the same with other draws
    python benchmarks/planted_faults.py --only flipped_20 healthy_soft
    python benchmarks/planted_faults.py --world real --model models/my-rm

reads   nothing (toy), or a proxy that train.py trained, and its dataset (real)
writes  a table on stdout, the same with --json; world and proxies go to --work and are kept: an
        interrupted run goes on where it was, and later only the diagnosis is repeated

This is a test set: no threshold of the diagnosis was set on it (thresholds.py says where those come
from), and what each case may be called was written down before it was run. A case is

    right         the first error or warning is a cause that was planted
    wrong         it is another cause; or nothing is said of a fault that can be seen; or what is
                  advised would make it worse
    cannot tell   it names only what was observed (such as a low match), or says that it cannot tell

Faults that a test set of this size cannot show count apart: there only a wrong cause is wrong. A
healthy run has no error and no warning. A referee that evaluate.py does not see, 700 other prompts,
says whether a proxy is healthy, and whether a training fault did any harm; a case of which that is
not so with this seed is left out and counted.

To add a case: a row in FAULTS or HEALTHY of fault_cases.py (or in REAL_FAULTS), a function in
mistakes.py, and where it needs a proxy of its own a row in TRAININGS. Where a rule of faults.toml
is renamed: NAMES, there.
"""

import random
import re
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import planting
from fault_cases import LISTS, NAMES, REAL_SIZE, Case
from planting import Bench, World
from tqdm import tqdm

from rmood.cli import opt, parse
from rmood.diagnosis import scale
from rmood.errors import UserError, run_script
from rmood.files.provenance import read_run_file
from rmood.files.rows import check_writable, read_json, write_json
from rmood.files.tables import read_rewards


@dataclass(frozen=True)
class Config:
    # fmt: off
    world: str = opt("toy", "toy: everything is built and trained here; real: a proxy that train.py trained, and others from its start", choices=["toy", "real"])
    model: str = opt("", "real: the folder of that proxy")
    seeds: int = opt(0, "seed of the world, its proxies and all random faults; 0 and 100 are kept apart", at_least=0)
    only: list[str] = opt([], "these cases alone")
    num_samples: int = opt(0, "training pairs for the probes of evaluate.py; 0: as many as it takes by itself", at_least=0)
    work: str = opt("{home}/planted", "folder for the world and the proxies")
    json: str = opt("", "write findings and numbers of all cases to this file")
    # fmt: on


# ---- what a finding may say ----------------------------------------------------------------------

# These say what was seen, not why: true of many faults, so neither right nor wrong.
OBSERVATIONS = {
    "compressed_rewards",
    "low_match",
    "no_better_than_linear_probe",
    "poor_generalization",
    "random_match",
    "rounding_hides_order",
    "test_pairs_differ",
    "tied_rewards",
    "training_failed",
}
# These are observations too, where the referee agrees.
WORDS = {
    "under-learned": lambda truth: truth["train_bits"] < scale.LEARNED,
    "memorised": lambda truth: truth["train_bits"] > 2 * truth["bits"],
    "squeezed": lambda truth: truth["scale"] > scale.CALIBRATED[1],
    "overconfident": lambda truth: truth["scale"] < scale.CALIBRATED[0],
}
ADVICE = {  # what must not be advised -> how a text says it
    "raise the rate": r"(raise|increase|higher)\b[^.;]{0,25}(\brate|--lr)\b",
    "lower the rate": r"(lower|decrease|reduce)\b[^.;]{0,25}(\brate|--lr)\b",
    "train longer": r"(train longer|more epochs|raise --epochs|--epochs 2 or more|longer training)",
    "retrain": r"\btrain (it )?again\b",
}
NEGATION = r"(\bnot\b|\bno\b|n't\b|never|instead of|rather than|without)[^.;]{0,25}$"


def is_advised(what: str, text: str) -> bool:
    """Does the text advise this? "Do not raise the rate" does not."""
    for found in re.finditer(ADVICE[what], text, re.IGNORECASE):
        if not re.search(NEGATION, text[: found.start()], re.IGNORECASE):
            return True
    return False


# ---- running and judging -------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What was said of a case. outcome: right, wrong, cannot tell, or left out."""

    case: str
    outcome: str
    first: str  # id of the first error or warning; of the first note where there is none
    severity: str
    why: str
    healthy: bool  # of HEALTHY
    decidable: bool
    findings: list[dict]
    numbers: dict
    truth: dict  # the referee's


def main() -> None:
    cfg = parse(Config, __doc__)
    if cfg.json:
        check_writable(cfg.json)
    cases = chosen_cases(cfg)
    if cfg.world == "real":
        world = planting.real_world(Path(cfg.work), cfg.seeds, cfg.model)
    else:
        world = planting.toy_world(Path(cfg.work), cfg.seeds)

    print(f"{'case':30}{'first finding':27}{'':9}{'outcome':13}why", flush=True)
    results = []
    for name in tqdm(cases, desc="cases", unit="case"):
        try:
            result = run_case(cfg, world, name)
        except UserError as error:  # the other cases go on
            result = not_judged(cfg, name, f"cannot be planted: {error}")
        results.append(result)
        tqdm.write(describe(result), file=sys.stdout)
        sys.stdout.flush()
        if cfg.json:  # what is there so far, too
            write_json(cfg.json, [vars(one) for one in results])
    print(f"\n{summary(results)}")


def chosen_cases(cfg: Config) -> list[str]:
    faults, healthy, _ = LISTS[cfg.world]
    known = [*faults, *healthy]
    if cfg.world == "real" and not cfg.model:
        raise UserError("--world real needs --model: the folder of a proxy that train.py wrote")
    for name in cfg.only:
        if name not in known:
            raise UserError(f"--only {name}: no such case: there are {', '.join(known)}")
    return [name for name in known if not cfg.only or name in cfg.only]


def run_case(cfg: Config, world: World, name: str) -> Result:
    case, healthy = case_of(cfg, name)
    rng = random.Random(f"{world.seed} {name}")
    bench = Bench(world, LISTS[cfg.world][2], world.work / "cases" / name, rng)
    bench.folder.mkdir(parents=True, exist_ok=True)
    truth = referee_of(bench, case)
    reason = left_out(bench, case, truth, tampered(bench, case) or truth, healthy)
    if reason:
        return not_judged(cfg, name, reason, truth)
    flags = plant(bench, case, min(case.size, REAL_SIZE) if cfg.model else case.size)
    if cfg.num_samples:
        flags += ["--num-samples", cfg.num_samples]
    found = diagnose(bench, [*flags, "--dtype", case.dtype])
    findings = found["findings"]
    [model] = found["models"]
    numbers = {key: value for key, value in model.items() if not isinstance(value, list)}
    outcome, first, why = judge(case, findings, numbers, truth, healthy)
    return Result(
        name,
        outcome,
        first["id"] if first else "no finding",
        first["severity"] if first else "",
        why,
        healthy,
        case.decidable,
        findings,
        numbers,
        truth,
    )


def case_of(cfg: Config, name: str) -> tuple[Case, bool]:
    """(the case, is it a healthy run?)"""
    faults, healthy, _ = LISTS[cfg.world]
    return (healthy[name], True) if name in healthy else (faults[name], False)


def not_judged(cfg: Config, name: str, why: str, truth: dict | None = None) -> Result:
    case, healthy = case_of(cfg, name)
    return Result(name, "left out", "", "", why, healthy, case.decidable, [], {}, truth or {})


def referee_of(bench: Bench, case: Case) -> dict:
    """How good the case's proxy is, before anything else is changed; {} in the real world."""
    if bench.world.proxy:
        return {}
    folder = Path(bench.proxy(case.proxy)).parent
    return read_json(str(folder / "truth.json"))


def tampered(bench: Bench, case: Case) -> dict:
    """How good the proxy is once its folder was tampered with; {} where it was not."""
    if not case.tamper or bench.world.proxy:
        return {}
    pairs = Path(bench.proxy(case.proxy)).parent / "pairs.jsonl"
    return planting.referee(bench.world, tampered_copy(bench, case), str(pairs))


def tampered_copy(bench: Bench, case: Case) -> str:
    copy = bench.folder / "rm"
    planting.copy_model(bench.proxy(case.proxy), copy)
    case.tamper(Bench(bench.world, bench.trainings, bench.folder, random.Random(0)), copy)
    return str(copy)


def left_out(bench: Bench, case: Case, truth: dict, truth_of_fault: dict, healthy: bool) -> str:
    """Why a case does not count; "" where it does."""
    if not truth:
        return ""
    settings = bench.trainings[case.proxy].flags
    asked_for = "--label-temperature" in settings or "--label-smoothing" in settings
    if healthy and not planting.is_healthy(truth, asked_for):
        return f"not healthy by the referee: {in_words(truth)}"
    if case.harm and not case.harm(truth_of_fault):
        return f"did no harm by the referee: {in_words(truth_of_fault)}"
    return ""


def in_words(truth: dict) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in truth.items())


def plant(bench: Bench, case: Case, size: int) -> list:
    """Make the files of a case; the flags of evaluate.py diagnose for them."""
    model = bench.proxy(case.proxy)
    if case.sampling:
        files = planting.sample_test_files(bench, size, case.sampling)
    else:
        files = planting.write_test_files(bench, size, case.responses, case.texts)
    if case.gold:
        gold = np.array(read_rewards(str(files.gold)))
        made_by = read_run_file(str(files.gold)) or {}
        if case.gold_by_proxy:
            made_by = made_by | {"config": made_by.get("config", {}) | {"model_name": model}}
        planting.write_rewards(files.gold, case.gold(gold, files, bench), made_by, files)
    if case.tamper:
        model = tampered_copy(bench, case)
    proxy = ["--models", model]
    if case.rewards:
        rewards = planting.write_proxy_rewards(bench, model, files, case.rewards, case.dtype)
        proxy = ["--rewards-path", rewards]
    texts = ["--prompts-path", files.prompts, "--responses-path", files.responses]
    return [*proxy, "--gold-path", files.gold, *texts]


def diagnose(bench: Bench, flags: list) -> dict:
    """What evaluate.py diagnose writes with --json, run in this process.

    Where it refuses the files, its message is the one finding, an error with the id "refused"; any
    other exception is one with the id "crashed".
    """
    import evaluate

    found = bench.folder / "findings.json"
    outputs = ["--report", bench.folder / "report.html", "--json", found]
    words = ["diagnose", "--dataset", bench.world.dataset, *outputs, *flags]
    try:
        with planting.quietly(bench.folder / "log.txt"):
            evaluate.main([str(word) for word in words])
    except Exception as error:
        name = "refused" if isinstance(error, UserError) else "crashed"
        words = f"{type(error).__name__}: {error}"
        with open(bench.folder / "log.txt", "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        finding = {"id": name, "severity": "error", "evidence": words, "advice": ""}
        return {"findings": [finding], "models": [{}]}
    return read_json(str(found))


def judge(
    case: Case, findings: list[dict], numbers: dict, truth: dict, healthy: bool = False
) -> tuple[str, dict | None, str]:
    """(outcome, the finding that decided, why) of what was said.

    findings: in their order, each with id, severity and advice. numbers: the diagnosis's.
    truth: the referee's, of the proxy before its files were changed; {} in the real world.
    """
    serious = [finding for finding in findings if finding["severity"] in ("error", "warning")]
    first = serious[0] if serious else None
    shown = first or (findings[0] if findings else None)
    if healthy:
        if first:
            return "wrong", first, "a healthy run is accused"
        return "right", shown, ""

    accepted = {fault for name in case.accept for fault in NAMES[name]}
    for finding in findings:
        for what in case.forbid:
            if is_advised(what, finding.get("advice", "")):
                return "wrong", shown, f"{finding['id']} advises to {what}"
    if first and first["id"] in accepted:
        return "right", first, ""
    if first and first["id"] in ("refused", "crashed"):
        named = case.refusal and case.refusal in first["evidence"]
        return "right" if named else "wrong", first, first["evidence"]
    named_in_note = [finding for finding in findings if finding["id"] in accepted]
    if case.note and not first and named_in_note:
        return "right", named_in_note[0], "in a note"
    if first and is_observation(first["id"], truth):
        return "cannot tell", first, "no cause is named"
    if first:
        place = [finding["id"] for finding in findings].index
        later = [f"{one['id']} is number {place(one['id']) + 1}" for one in named_in_note]
        return "wrong", first, "; ".join(later) or f"planted: {', '.join(case.accept)}"
    if not case.decidable or says_cannot_tell(case, findings, numbers):
        return "cannot tell", shown, "no cause is named"
    return "wrong", shown, "silent: no error, no warning"


def is_observation(name: str, truth: dict) -> bool:
    """Does this finding say what was seen, and truly, but not why?"""
    if name in OBSERVATIONS:
        return True
    if not truth:
        return False
    return any(name in NAMES[word] and is_so(truth) for word, is_so in WORDS.items())


def says_cannot_tell(case: Case, findings: list[dict], numbers: dict) -> bool:
    """Does the diagnosis itself say that it cannot tell, of what was planted?

    A word of scale or learning is such an answer where scale or learning was changed.
    """
    texts = [f"{finding['id']} {finding.get('evidence', '')}" for finding in findings]
    if set(case.accept) & set(WORDS):
        texts += [str(value) for name, value in numbers.items() if name.endswith("_word")]
    return any("cannot tell" in text.replace("_", " ") for text in texts)


# ---- the table -----------------------------------------------------------------------------------


def describe(result: Result) -> str:
    outcome = "WRONG" if result.outcome == "wrong" else result.outcome
    return f"{result.case:30}{result.first:27}{result.severity:9}{outcome:13}{result.why}"


def summary(results: list[Result]) -> str:
    """The totals, in lines."""
    lines = []
    for words, decidable in (("faults", True), ("faults that cannot be decided", False)):
        group = [one for one in results if not one.healthy and one.decidable == decidable]
        counts = Counter(one.outcome for one in group)
        judged = len(group) - counts["left out"]
        if not judged:
            continue
        parts = [share(counts[name], judged, name) for name in ("right", "wrong", "cannot tell")]
        silent = sum(one.why.startswith("silent") for one in group)
        lines.append(f"{judged} {words}: {', '.join(parts)} ({silent} of the wrong ones silent)")
        if counts["left out"]:
            lines.append(f"{counts['left out']} {words} left out")
    healthy = [one for one in results if one.healthy and one.outcome != "left out"]
    if healthy:
        errors = sum(one.severity == "error" for one in healthy)
        warned = sum(one.severity in ("error", "warning") for one in healthy)
        lines.append(
            f"{len(healthy)} healthy runs: {share(errors, len(healthy), 'with an error')}, "
            f"{share(warned, len(healthy), 'with an error or a warning')}"
        )
        lines.append(f"{sum(one.healthy for one in results) - len(healthy)} healthy runs left out")
    return "\n".join(lines)


def share(count: int, total: int, words: str) -> str:
    return f"{count} {words} ({count / total:.1%})"


if __name__ == "__main__":
    run_script(main)
