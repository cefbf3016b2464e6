"""Numbers and findings as plain text: what evaluate.py prints and a notebook shows."""

from ..metrics import HEALTHY

SPREADS = (  # label, proxy_<name> and gold_<name>, their ratio
    ("within a prompt, std", "std_within", "spread_ratio"),
    ("all rewards, std", "std", "std_ratio"),
    ("means across prompts, std", "std_across", "std_across_ratio"),
)


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
    """Numbers of `measures.compare` -> three tables: agreement, spread, match by gold's margin."""
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
    return "\n\n".join([aligned(agreement), aligned(spread), aligned(by_margin)])


def summary_table(diagnoses: list) -> str:
    """A row for each run.Diagnosis."""
    header = ["", "match", "95%", "ties half", "rank corr.", "spread / gold's", "rewards"]
    rows = [[*header, "training", "finding"]]
    for diagnosis in diagnoses:
        n = diagnosis.numbers
        training = "-"
        if "last_loss" in n and "last_accuracy" in n:
            training = f"{n['last_loss']:.3f} / {n['last_accuracy']:.1%}"
        row = [
            diagnosis.name,
            f"{n['match']:.4f}",
            f"{n['match_low']:.3f} to {n['match_high']:.3f}",
            f"{n['match_ties_half']:.4f}",
            f"{n['rank_correlation']:.2f}",
            ratio(n["spread_ratio"]),
            f"{n['proxy_min']:.1f} to {n['proxy_max']:.1f}",
            training,
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
    spread_note = f"healthy: {HEALTHY['spread_ratio']}"
    return aligned(
        [
            ["pairs scored", f"{n['pairs']:,}"],
            ["accuracy, a tie is a miss", f"{n['train_accuracy']:.4f}", accuracy_interval],
            ["loss", f"{n['train_loss']:.4f}", loss_note],
            ["margin, mean", f"{n['margin_mean']:.3f}", margins],
            ["rewards, mean", f"{n['reward_mean']:.3f}", rewards],
            ["spread of margins / gold's", ratio(n.get("spread_ratio")), spread_note],
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
    return (
        f"{aligned(rows)}\n\nof what gold's own pick of {last['n']} gains, the proxy's gains "
        f"{gain / gain_of_gold:.0%}; its best is n = {best['n']}"
    )


def calibration(name: str, found) -> str:
    """A calibrate.Calibration of the proxy called `name`: its factor, and what it changes."""
    factor = found.factor
    before, after = found.loss_before, found.loss_after
    rows = [
        ["factor that calibrates the margins", f"{factor.value:.4g}", _bounds(factor)],
        ["loss as the margins are", f"{before.value:.4f}", _bounds(before)],
        ["loss at a factor of other prompts", f"{after.value:.4f}", _bounds(after)],
        ["mean reward, times the factor", f"{found.offset:.4g}", "an offset: subtract it, or not"],
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


def verdicts(name: str, findings: list[dict]) -> str:
    """Findings of `faults.findings` about the model called `name`, worst first."""
    if not findings:
        return f"verdict on {name}: no finding"
    return "\n\n".join(_verdict(name, finding) for finding in findings)


def _verdict(name: str, finding: dict) -> str:
    fault = finding["id"].replace("_", " ")
    lines = [
        f"verdict on {name}: {fault} ({finding['severity']})",
        f"  {finding['evidence']}",
        "  likely causes, in this order:",
    ]
    for number, cause in enumerate(finding["causes"], 1):
        lines.append(f"    {number}. {cause}")
    lines.append(f"  what to do: {finding['advice']}")
    return "\n".join(lines)


def shown_pair(pair) -> str:
    """A checks.ShownPair: what gold says, and both rendered texts."""
    ok = "ok" if pair.agrees else "WRONG"
    title = f"=== pair {pair.pair}, row {pair.row}: gold rewards: {pair.verdict}: {ok}"
    return f"{title}\n--- chosen\n{pair.chosen}\n--- rejected\n{pair.rejected}\n"
