"""The diagnosis as one HTML file that needs nothing else: no network, no script, from a phone to a desk, light and dark.

Plots are inline SVG from matplotlib. They are drawn in stand-in colours that become CSS variables, so that one drawing
follows the reader's theme. Everything that comes from data or paths is escaped.
"""

import io
import re
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from . import records
from .diagnostics import most_wrong, within_prompt_margins

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #ffffff; --text: #22252a; --soft: #5c636e; --line: #d9d7d0;
  --error: #b3261e; --warning: #8a5a00; --fine: #1f7a4d; --gold: #c08a17; --s0: #2767b0; --s1: #b0356f; --s2: #2a7d5f; --s3: #7450b5; --s4: #b4521f; --s5: #4d6570; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e6e4df; --soft: #a3a9b3; --line: #3a3f46;
  --error: #ff8a80; --warning: #f0b860; --fine: #6fd3a0; --gold: #e3b341; --s0: #74b0f4; --s1: #f08ab8; --s2: #6fcfae; --s3: #b79cf5; --s4: #f2a074; --s5: #a8c0cc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 70rem; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .3rem 0; } .soft, figcaption { color: var(--soft); font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: .7rem 0; }
.finding { border-left: 5px solid var(--tone); } .finding b.tag { color: var(--tone); text-transform: uppercase; font-size: .8rem; letter-spacing: .04em; }
.error { --tone: var(--error); } .warning { --tone: var(--warning); } .fine { --tone: var(--fine); }
.finding ol { margin: .2rem 0 .4rem; padding-left: 1.4rem; } .finding li { margin: .1rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: min(100%, 44rem); }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-size: .875rem; }
td { overflow-wrap: normal; white-space: nowrap; } td:first-child { white-space: normal; min-width: 9rem; }
.plots .card { margin: 0; } .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: .8rem; } figure { margin: 0; } figure svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
svg text { font-family: system-ui, sans-serif !important; }
@media (max-width: 30rem) { table { font-size: .875rem; } th, td { padding: .3rem .3rem; } }
.text span { border-radius: 2px; }
summary { cursor: pointer; } details .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .8rem; }
.text { white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; margin: .3rem 0; font-size: .9rem; max-height: 22rem; overflow-y: auto; }
"""
TEXT, LINE, GOLD, MISS = "#010101", "#010102", "#010103", "#010104"  # stand-ins; each becomes a CSS variable below
SERIES = [f"#0102{i:02x}" for i in range(6)]
VARIABLES = {TEXT: "currentColor", LINE: "var(--line)", GOLD: "var(--gold)", MISS: "var(--error)"} | {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)}
DASHES = ["-", "--", "-.", ":"]  # a second sign beside the colour
SHOWN_POINTS, SHOWN_CHARACTERS = 2000, 6000
CSP = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'  # the browser holds us to "no network"


def write(path: str, title: str, facts: list[str], runs: list[dict], gold: np.ndarray, texts=None) -> None:
    """Write the report. gold: (P, K) rewards; texts: (prompts, responses) of the same rows, or None.

    runs: one a model: name; rewards (P, K); numbers (diagnostics.compare); findings; metrics (lines of metrics.jsonl,
    may be empty); tokens: {(row, response): [(text, reward), ...]} to colour, may be absent.
    """
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="soft">{escape(fact)}</p>' for fact in facts)]
    body += ["<h2>Verdicts</h2>", *(_findings(run) for run in runs), "<h2>Numbers</h2>", _numbers(runs)]
    body += ["<h2>Pictures</h2>", f'<div class="plots">{"".join(_pictures(runs, gold))}</div>']
    body += ["<h2>The most wrong pairs</h2>", *(_wrong_pairs(run, gold, texts) for run in runs)]
    _page(path, title, body)


def _page(path: str, title: str, body: list[str]) -> None:
    head = f'<meta charset="utf-8">{CSP}<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style>'
    with records.atomic_file(path) as file:
        file.write(f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n")


# ---- words and numbers -----------------------------------------------------------------------------------------


def _findings(run: dict) -> str:
    if not run["findings"]:
        numbers = run["numbers"]
        measured = "match {match:.3f}, " + ("spread {margin_std_ratio:.2f} times gold's" if numbers["margin_std_ratio"] is not None else "no spread to compare")
        return f'<div class="card finding fine"><h3>{escape(run["name"])}</h3><b class="tag">no finding</b> {measured.format(**numbers)}</div>'
    return "".join(_finding(run["name"], finding) for finding in run["findings"])


def _finding(name: str, finding: dict) -> str:
    causes = "".join(f"<li>{escape(cause)}</li>" for cause in finding["causes"])
    return (
        f'<div class="card finding {finding["severity"]}"><h3>{escape(name)}: {escape(finding["id"].replace("_", " "))}</h3>'
        f'<p><b class="tag">{finding["severity"]}</b> {escape(finding["evidence"])}</p>'
        f"<p>Likely causes, in this order:</p><ol>{causes}</ol><p><b>What to do:</b> {escape(finding['advice'])}</p></div>"
    )


def write_best_of_n(path: str, title: str, curves: dict[str, list[dict]]) -> None:
    """Best-of-n curves (diagnostics.expected_best_of_n), one a proxy, against n and against KL."""
    pictures = []
    for x, xlabel in (("n", "n, responses to choose from"), ("kl", "KL from the sampled policy, nats: log n - (n - 1) / n")):
        figure, axes = _figure("")
        for i, (name, rows) in enumerate(curves.items()):
            axes.errorbar([row[x] for row in rows], [row["gold"] for row in rows], yerr=[1.96 * row["gold_error"] for row in rows], color=_colour(i), linestyle=_dash(i), marker="o", markersize=3, linewidth=1.2, capsize=2, label=f"picked by {_plain(name)}")
        axes.plot([row[x] for row in rows], [row["gold_own"] for row in rows], color=GOLD, linestyle="--", linewidth=1.2, label="picked by gold itself")
        axes.set(xlabel=xlabel, ylabel="expected gold reward")
        if x == "n":
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks := [2**i for i in range(rows[-1]["n"].bit_length())], ticks)
        pictures.append(_svg(figure, axes, "Gold's reward of the best of n by each proxy, with 95% intervals. A curve that turns down is an over-optimised proxy.", legend="best"))
    _page(path, title, [f"<h1>{escape(title)}</h1>", f'<div class="plots">{"".join(pictures)}</div>'])


ROWS = (  # what, how (by str.format on the numbers), healthy
    ("match with gold, a tie is a miss", "{match:.3f}", "healthy: above 0.80"),
    ("its 95% interval", "{match_low:.3f} to {match_high:.3f}", ""),
    ("match, a tie is half", "{match_ties_half:.3f}", ""),
    ("rank correlation of margins", "{rank_correlation:.2f}", "healthy: near 1"),
    ("spread of margins / gold's", "{margin_std_ratio:.3f}", "healthy: 0.5 to 2"),
    ("spread of rewards / gold's", "{std_ratio:.3f}", "healthy: like gold's"),
    ("rewards: mean", "{proxy_mean:.2f}", "means nothing by itself"),
    ("rewards: std", "{proxy_std:.2f}", "gold's: {gold_std:.2f}"),
    ("rewards: min to max", "{proxy_min:.1f} to {proxy_max:.1f}", "gold's: {gold_min:.1f} to {gold_max:.1f}"),
    ("pairs tied by the proxy", "{proxy_ties:,} of {compared:,}", "healthy: near 0"),
    ("slope of margins on gold's", "{margin_slope:.2f}", "healthy: 0.5 to 2"),
    ("calibration error (ECE)", "{ece:.3f}", "healthy: below 0.1"),
    ("scale that would calibrate the margins", "{best_scale:.2f}", "far above 1: it knows more than it says"),
    ("correlation with length", "{proxy_length_correlation:.2f}", "gold's: {gold_length_correlation:.2f}"),
    ("match that length alone reaches", "{length_match:.3f}", "a floor"),
    ("match of a linear probe on frozen features", "{probe_match:.3f}", "a floor"),
    ("right on its training pairs", "{read_accuracy:.3f}", "healthy: above 0.95"),
    ("training labels that gold contradicts", "{label_noise:.1%}", "healthy: near 0"),
    ("training loss at the end", "{train_loss:.3f}", "healthy: below 0.3"),
    ("training accuracy at the end", "{train_accuracy:.3f}", "healthy: above 0.95"),
)


def _numbers(runs: list[dict]) -> str:
    """One row a measure and one column a model: two models fit a phone, more scroll inside the card."""
    rows = ["<tr><th>measure</th>" + "".join(f"<th>{escape(run['name'])}</th>" for run in runs) + "</tr>"]
    for label, how, healthy in ROWS:
        cells = [_filled(how, run["numbers"]) for run in runs]
        if any(cells):
            note = f'<br><span class="soft">{_filled(healthy, runs[0]["numbers"])}</span>' if healthy else ""
            rows.append(f"<tr><td>{label}{note}</td>" + "".join(f"<td>{cell or '-'}</td>" for cell in cells) + "</tr>")
    return f'<div class="card wide" tabindex="0"><table>{"".join(rows)}</table></div>'


def _filled(how: str, numbers: dict) -> str:
    try:
        return how.format(**numbers)
    except (KeyError, TypeError):
        return ""  # not measured


def _wrong_pairs(run: dict, gold: np.ndarray, texts) -> str:
    found = most_wrong(run["rewards"], gold)
    if not found or texts is None:
        why = "every pair is ranked as gold ranks it, or tied." if not found else "their texts are not at hand: give --prompts-path and --responses-path."
        return f'<p class="soft">{escape(run["name"])}: {why}</p>'
    tokens = run.get("tokens", {})
    how = " Colours: the head applied at each token, blue above 0 and red below; it is trained at the last token only, so earlier ones are its hunches." if tokens else ""
    parts = [f'<h3>{escape(run["name"])}</h3><p class="soft">Gold and proxy disagree most here (product of both margins).{how}</p>']
    for number, (row, by_gold, by_proxy) in enumerate(found):
        r, g = run["rewards"][row], gold[row]
        line = f"Row {row}: gold prefers response {by_gold + 1} by {g[by_gold] - g[by_proxy]:.2f}, the proxy response {by_proxy + 1} by {r[by_proxy] - r[by_gold]:.2f}"
        prompt = "\n\n".join(f"[{message['role']}] {message['content']}" for message in texts[0][row] if message["content"].strip())
        sides = "".join(
            f'<div><p><b>Response {side + 1}</b>, {who}<br><span class="soft">gold {g[side]:.2f}, proxy {r[side]:.2f}</span></p><div class="text">{_coloured(tokens[row, side]) if (row, side) in tokens else _text(texts[1][row][side])}</div></div>'
            for side, who in ((by_gold, "gold's choice"), (by_proxy, "the proxy's choice"))
        )
        parts.append(f'<details class="card"{" open" if number == 0 else ""}><summary>{line}</summary><div class="text">{_text(prompt)}</div><div class="sides">{sides}</div></details>')
    return "".join(parts)


def _text(text: str) -> str:
    cut = len(text) - SHOWN_CHARACTERS
    return escape(text if cut <= 0 else text[:SHOWN_CHARACTERS]) + (f" <i>... {cut:,} more characters</i>" if cut > 0 else "")


def _coloured(tokens: list[tuple[str, float]]) -> str:
    """Tokens on a ground of their reward's colour, as strong as the reward is large; the number itself on hovering."""
    most = max(abs(reward) for _, reward in tokens) or 1.0
    tone = {True: "var(--s0)", False: "var(--error)"}
    return "".join(f'<span style="background:color-mix(in srgb,{tone[reward > 0]} {45 * abs(reward) / most:.0f}%,transparent)" title="{reward:.2f}">{escape(text).replace(chr(10), "&crarr;" + chr(10))}</span>' for text, reward in tokens)


# ---- pictures --------------------------------------------------------------------------------------------------


def _pictures(runs: list[dict], gold: np.ndarray) -> list[str]:
    gold_margin = within_prompt_margins(gold)
    compared = gold_margin != 0
    margins = [within_prompt_margins(run["rewards"])[compared] for run in runs]
    pictures = [_scatter(run["name"], margin, gold_margin[compared], i) for i, (run, margin) in enumerate(zip(runs, margins))]
    pictures.append(_histograms(runs, [run["rewards"].ravel() for run in runs], gold.ravel(), "reward",
                                "Rewards on one axis. A proxy whose hump is far narrower than gold's is compressed; an offset alone means nothing."))  # fmt: skip
    pictures.append(_histograms(runs, [margin * np.sign(gold_margin[compared]) for margin in margins], np.abs(gold_margin[compared]), "margin towards gold's choice",
                                "Margins, counted towards gold's choice: left of 0 are the misses. Gold's own margins are shaded."))  # fmt: skip
    pictures.append(_match_by(runs, "by_gold_margin", "gold margin, in shares of equal size", "Match by how much gold cares, with 95% intervals. It should climb from near 0.5 to near 1."))
    if all("by_length_gap" in run["numbers"] for run in runs):
        pictures.append(_match_by(runs, "by_length_gap", "characters by which gold's choice is longer", "Match by length. A line that climbs steeply is a proxy that goes by length, up or down."))
    pictures.append(_reliability(runs))
    return pictures + [_training(run, i) for i, run in enumerate(runs) if len(run["metrics"]) > 1]


def _scatter(name: str, proxy: np.ndarray, gold: np.ndarray, i: int) -> str:
    figure, axes = _figure(name)
    step = -(-len(gold) // SHOWN_POINTS)
    limit = 1.05 * max(np.abs(gold).max(), np.abs(proxy).max())
    right = proxy * np.sign(gold) > 0
    axes.scatter(gold[right][::step], proxy[right][::step], s=9, color=_colour(i), alpha=0.45, linewidths=0, label="ranked as gold")
    axes.scatter(gold[~right][::step], proxy[~right][::step], s=14, marker="x", color=MISS, alpha=0.8, linewidths=0.8, label="missed")
    axes.axline((0, 0), slope=1, color=GOLD, linewidth=1.2, linestyle="--", label="as sure as gold")
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="gold margin", ylabel="proxy margin")
    shown = f" Every {step}th pair is drawn." if step > 1 else ""
    return _svg(figure, axes, f"{name}: margins of gold and proxy on the same scale. A flat cloud is a compressed proxy, a shapeless one has not learned.{shown}", legend="upper left")


def _histograms(runs: list[dict], values: list[np.ndarray], gold: np.ndarray, xlabel: str, caption: str) -> str:
    figure, axes = _figure("")
    everything = np.concatenate([gold, *values])
    edges = np.histogram_bin_edges(everything, 80)
    axes.hist(gold, bins=edges, density=True, color=GOLD, alpha=0.35, label="gold")
    for i, (run, value) in enumerate(zip(runs, values)):
        axes.hist(value, bins=edges, density=True, histtype="step", color=_colour(i), linestyle=_dash(i), linewidth=1.4, label=_plain(run["name"]))
    axes.axvline(0, color=TEXT, linewidth=0.8, alpha=0.5)
    axes.set(xlabel=xlabel, ylabel="density", yticks=[])
    return _svg(figure, axes, caption, legend="best")


def _match_by(runs: list[dict], key: str, xlabel: str, caption: str) -> str:
    figure, axes = _figure("")
    for i, run in enumerate(runs):
        rows = run["numbers"][key]
        x = np.arange(len(rows)) + 0.08 * (i - (len(runs) - 1) / 2)
        match, low, high = (np.array([row[name] for row in rows]) for name in ("match", "match_low", "match_high"))
        axes.errorbar(x, match, yerr=[match - low, high - match], color=_colour(i), linestyle=_dash(i), marker="o", markersize=4, linewidth=1.2, capsize=2, label=_plain(run["name"]))
    axes.axhline(0.8, color=GOLD, linewidth=1, linestyle="--", label="good: 0.80")
    axes.axhline(0.5, color=TEXT, alpha=0.5, linewidth=1, linestyle=":", label="random: 0.50")
    rows = runs[0]["numbers"][key]
    axes.set(ylim=(0, 1.03), xlabel=xlabel, ylabel="match with gold")
    axes.set_xticks(range(len(rows)), [f"{row['from']:.2g} to\n{row['to']:.2g}" for row in rows])
    return _svg(figure, axes, caption, legend="lower right")


def _reliability(runs: list[dict]) -> str:
    figure, axes = _figure("")
    for i, run in enumerate(runs):
        rows = run["numbers"]["reliability"]
        axes.plot([row["confidence"] for row in rows], [row["right"] for row in rows], color=_colour(i), linestyle=_dash(i), marker="o", markersize=4, linewidth=1.2, label=_plain(run["name"]))
    axes.axline((0.5, 0.5), slope=1, color=GOLD, linewidth=1.2, linestyle="--", label="calibrated")
    axes.set(xlim=(0.48, 1.02), ylim=(0, 1.03), xlabel="confidence, sigmoid(|margin|)", ylabel="share ranked as gold")
    return _svg(figure, axes, "Calibration: above the line the proxy is less sure than it may be, as a compressed one is; below it too sure.", legend="lower right")


def _training(run: dict, i: int) -> str:
    figure, axes = _figure(run["name"])
    for prefix, style in (("", dict(linestyle="-", linewidth=1.1)), ("eval_", dict(linestyle="", marker="o", markersize=4))):
        for key, colour in (("loss", _colour(i)), ("accuracy", GOLD)):
            points = [(line["step"], line[prefix + key]) for line in run["metrics"] if line.get(prefix + key) is not None and "step" in line]
            if points:
                axes.plot(*zip(*points), color=colour, label=("held out: " if prefix else "") + key, **style)
    axes.axhline(np.log(2), color=TEXT, alpha=0.5, linewidth=1, linestyle=":", label="ln 2: no opinion")
    axes.set(xlabel="step", ylim=(0, None))
    return _svg(figure, axes, f"{run['name']}: training. The loss should fall from about 0.7 to below 0.3, the accuracy climb above 0.9.", legend="best")


def _figure(title: str):
    figure = Figure(figsize=(3.9, 2.9), layout="constrained")
    axes = figure.add_subplot(title=_plain(title) or None)
    axes.title.set(fontsize=9.5, color=TEXT)
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=TEXT, labelsize=8.5)
    axes.xaxis.label.set(color=TEXT, fontsize=9)
    axes.yaxis.label.set(color=TEXT, fontsize=9)
    return figure, axes


def _svg(figure: Figure, axes, caption: str, legend: str) -> str:
    """The figure as an element of the page: stand-in colours become variables, and no id is left to clash with another's."""
    axes.legend(loc=legend, fontsize=8, frameon=False, labelcolor=TEXT)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?=[^>]*viewBox)', r"\1", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub("|".join(VARIABLES), lambda found: VARIABLES[found[0]], svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f'<figure class="card">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _plain(text: str) -> str:
    """A name as a label: no mathematics, not wider than the figure."""
    text = text.replace("$", r"\$")
    return text if len(text) <= 40 else "..." + text[-37:]


def _colour(i: int) -> str:
    return SERIES[i % len(SERIES)]


def _dash(i: int) -> str:
    return DASHES[i // len(SERIES) % len(DASHES)]
