"""Numbers and findings as plain text: what evaluate.py prints and a notebook shows."""

from ..metrics import HEALTHY

SPREADS = (  # label, proxy_<name> and gold_<name>, their ratio
    ("within a prompt, std", "std_within", "spread_ratio"),
    ("all rewards, std", "std", "std_ratio"),
    ("means across prompts, std", "std_across", "std_across_ratio"),
)


UNIT = "gold's unit is arbitrary"


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells, which may differ in length -> lines with the cells under each other.

    Numbers are aligned right, the first column left, and the last column left where it holds words.
    """
    width = max(len(row) for row in rows)
    filled = [row + [""] * (width - len(row)) for row in rows]
    columns = []
    for i, cells in enumerate(zip(*filled)):
        size = max(len(cell) for cell in cells)
        holds_words = any(" " in cell or "_" in cell for cell in cells[1:])
        if i == 0 or (i == width - 1 and holds_words):
            columns.append([cell.ljust(size) for cell in cells])
        else:
            columns.append([cell.rjust(size) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns))


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def interval(low: float, high: float) -> str:
    return f"95%: {low:.4f} to {high:.4f}"


def comparison(numbers: dict) -> str:
    """Numbers of `measures.compare` -> tables: agreement, knowledge, spread, match by margin."""
    n = numbers
    agreement = [
        ["pairs", f"{n['pairs']:,}"],
        ["gold ties, not compared", f"{n['gold_ties']:,}"],
        ["compared", f"{n['compared']:,}"],
        [
            "match, a proxy tie is a miss",
            f"{n['match']:.4f}",
            interval(n["match_low"], n["match_high"]),
        ],
        [
            "match, a proxy tie is half",
            f"{n['match_ties_half']:.4f}",
            f"{n['proxy_ties']} proxy ties",
        ],
        ["rank correlation of margins", f"{n['rank_correlation']:.3f}"],
    ]
    knows = [
        ["scale, 1 is calibrated", estimate(n, "scale"), n["scale_word"]],
        ["bits it knows of a pair, of 1", estimate(n, "bits"), "at that scale"],
        ["loss as the margins are", estimate(n, "loss", 3), "0.693 at equal rewards"],
        [
            "calibration error",
            f"{n['ece']:.3f}",
            f"a calibrated model of this size: {n['ece_expected']:.3f}, "
            f"95% of them under {n['ece_usual']:.3f}",
        ],
    ]
    spread = [["", "proxy", "gold", "proxy / gold"]]
    for label, name, ratio_name in SPREADS:
        proxy, gold = n[f"proxy_{name}"], n[f"gold_{name}"]
        spread.append([label, f"{proxy:.2f}", f"{gold:.2f}", ratio(n[ratio_name])])
    for name in ("mean", "min", "max"):
        proxy, gold = n[f"proxy_{name}"], n[f"gold_{name}"]
        spread.append([f"all rewards, {name}", f"{proxy:.2f}", f"{gold:.2f}"])

    by_margin = [["gold margin", "pairs", "match"]]
    for row in n["by_gold_margin"]:
        margins = f"{row['from']:.2f} to {row['to']:.2f}"
        by_margin.append([margins, f"{row['pairs']:,}", f"{row['match']:.3f}"])
    tables = (agreement, knows, spread, by_margin)
    return "\n\n".join(aligned(table) for table in tables)


def estimate(numbers: dict, name: str, digits: int = 2) -> str:
    """A number with its 95% interval: 0.98 (0.85 to 1.11)"""
    value, low, high = (numbers.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-" if low is None else f"over {low:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def summary_table(diagnoses: list) -> str:
    """A row for each run.Diagnosis."""
    header = ["", "match", "95%", "scale", "bits", "bits, training", "spread / gold's"]
    rows = [[*header, "rewards", "finding"]]
    for diagnosis in diagnoses:
        n = diagnosis.numbers
        row = [
            diagnosis.name,
            f"{n['match']:.4f}",
            f"{n['match_low']:.3f} to {n['match_high']:.3f}",
            estimate(n, "scale"),
            estimate(n, "bits"),
            estimate(n, "train_bits"),
            ratio(n["spread_ratio"]),
            f"{n['proxy_min']:.1f} to {n['proxy_max']:.1f}",
            ", ".join(finding["id"] for finding in diagnosis.findings) or "no finding",
        ]
        rows.append(row)
    return aligned(rows)


def quality_table(numbers: dict) -> str:
    """Numbers of `run.quality`."""
    n = numbers
    accuracy_interval = interval(n["train_accuracy_low"], n["train_accuracy_high"])
    margins = f"median {n['margin_median']:.3f}, std {n['margin_std']:.3f}, {n['ties']} ties"
    rewards = f"std {n['reward_std']:.3f}, {n['reward_min']:.3f} to {n['reward_max']:.3f}"
    loss_note = f"0.693 at equal rewards; healthy: {HEALTHY['loss']}"
    return aligned(
        [
            ["pairs scored", f"{n['pairs']:,}"],
            ["accuracy, a tie is a miss", f"{n['train_accuracy']:.4f}", accuracy_interval],
            ["bits it knows of a pair, of 1", estimate(n, "train_bits"), "at its best scale"],
            ["scale, 1 is calibrated", estimate(n, "train_scale"), n["train_scale_word"]],
            ["loss", f"{n['train_loss']:.4f}", loss_note],
            ["margin, mean", f"{n['margin_mean']:.3f}", margins],
            ["rewards, mean", f"{n['reward_mean']:.3f}", rewards],
            ["spread of margins / gold's", ratio(n.get("spread_ratio")), UNIT],
        ]
    )


def best_of_n(curve: list[dict]) -> str:
    """Rows of `run.best_of_n` for n = 1, 2, 4, ... and the last one, and what they come to."""
    header = ["n", "KL, nats", "gold of proxy's pick", "+-"]
    rows = [[*header, "gold of gold's pick", "proxy of its pick"]]
    for row in curve:
        is_power_of_two = row["n"].bit_count() == 1
        if is_power_of_two or row is curve[-1]:
            error = 1.96 * row["gold_error"]
            shown = (row["kl"], row["gold"], error, row["gold_own"], row["proxy"])
            rows.append([str(row["n"]), *[f"{number:.3f}" for number in shown]])

    last = curve[-1]
    best = max(curve, key=lambda row: row["gold"])
    gain = last["gold"] - curve[0]["gold"]
    gain_of_gold = (last["gold_own"] - curve[0]["gold_own"]) or 1.0
    words = (
        f"{aligned(rows)}\n\nof what gold's own pick of {last['n']} gains, the proxy's gains "
        f"{gain / gain_of_gold:.0%}; its best is n = {best['n']}"
    )
    if best is last:
        return words
    fell = f"{last['decline']:.3f} ({interval(last['decline_low'], last['decline_high'])})"
    sure = last["decline_low"] > 0
    verdict = "over-optimised" if sure else "which may be chance: no over-optimisation is shown"
    return f"{words}; from there to n = {last['n']} gold falls by {fell}, {verdict}"


def calibration(name: str, found) -> str:
    """A calibrate.Calibration of the proxy called `name`: its factor, and what it changes."""
    factor = found.factor
    before, after = found.loss_before, found.loss_after
    rows = [
        ["factor that calibrates the margins", f"{factor.value:.4g}", _bounds(factor)],
        ["loss as the margins are", f"{before.value:.4f}", _bounds(before)],
        ["loss at the factor of the other half of prompts", f"{after.value:.4f}", _bounds(after)],
        [
            "mean reward, times the factor",
            f"{found.offset:.4g}",
            "free: subtracting it changes no margin",
        ],
    ]
    return f"""{name}

{aligned(rows)}

what the factor changes: thresholds on rewards; the probability sigmoid(margin); PPO or RLOO with a
    KL weight: the same run needs the weight times {factor.value:.4g}
what it leaves: the order of responses, match, best of n, GRPO's normalised advantages"""


def _bounds(estimate) -> str:
    return interval(estimate.low, estimate.high)


def checks_table(checks: list) -> str:
    """A row for each checks.Check."""
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = [["check", "", "what was found"]]
    rows += [[check.check, words[check.passed], check.detail] for check in checks]
    return aligned(rows)


def gold_facts(numbers: dict) -> str:
    n = numbers
    return (
        f"{n['compared']:,} of {n['pairs']:,} pairs compared ({n['gold_ties']:,} gold ties); "
        f"gold's rewards {n['gold_min']:.1f} to {n['gold_max']:.1f}, std {n['gold_std']:.2f}"
    )


def verdicts(name: str, findings: list[dict], not_measured: list[dict] | None = None) -> str:
    """Findings of `faults.findings` about the model called `name`, worst first; what to do, once;
    and what could not be measured, with its reason."""
    parts = [_verdict(name, finding) for finding in findings]
    if not any(finding["severity"] != "note" for finding in findings):
        parts.insert(0, f"verdict on {name}: no error and no warning among what was measured")
    parts += [f"what to do: {finding['advice']}" for finding in findings if finding["advice"]]
    if not_measured:
        parts.append("\n".join(_missing(not_measured)))
    return "\n\n".join(parts)


def _verdict(name: str, finding: dict) -> str:
    fault = finding["id"].replace("_", " ")
    lines = [
        f"verdict on {name}: {fault} ({finding['severity']})",
        f"  {finding['evidence']}",
    ]
    if finding["causes"]:
        lines.append("  possible causes, likeliest first:")
    for number, cause in enumerate(finding["causes"], 1):
        lines.append(f"    {number}. {cause}")
    return "\n".join(lines)


def _missing(not_measured: list[dict]) -> list[str]:
    """A line for each reason, with the numbers (docs/metrics.md) that are missing for it."""
    names_of: dict[str, list[str]] = {}
    for missing in not_measured:
        names_of.setdefault(missing["why"], []).append(missing["what"])
    lines = ["not measured, so not judged:"]
    lines += [f"  {', '.join(names)}: {why}" for why, names in names_of.items()]
    return lines


def shown_pair(pair) -> str:
    """A checks.ShownPair: what gold says, and both rendered texts."""
    ok = "ok" if pair.agrees else "WRONG"
    title = f"=== pair {pair.pair}, row {pair.row}: gold rewards: {pair.verdict}: {ok}"
    return f"{title}\n--- chosen\n{pair.chosen}\n--- rejected\n{pair.rejected}\n"
