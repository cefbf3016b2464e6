"""The figures of the report, each as inline SVG with its caption, in one plain style.

n pairs, without those of equal gold rewards; i, the number of a model, decides its colour and
dashes.
"""

import io
import re
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import HEALTHY, wilson
from .measures import within_prompt_margins

STYLE = {
    "figure.figsize": (3.9, 2.9),
    "figure.constrained_layout.use": True,
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "svg.fonttype": "none",  # text stays text
}
GOLD = "#b07d10"
MISS = "#b3261e"
COLOURS = ("#2767b0", "#b0356f", "#2a7d5f", "#7450b5", "#b4521f", "#4d6570")
DASHES = ("-", "--", "-.", ":")  # for more models than colours
FAINT = {"color": "#9a9a9a", "linewidth": 0.8, "zorder": 0}
SHOWN_POINTS = 2000


@matplotlib.rc_context(STYLE)
def of_diagnosis(runs: list[dict], gold: np.ndarray) -> list[str]:
    """(P, K) gold rewards, and the runs as report.write takes them."""
    gold_margin = within_prompt_margins(gold)
    compared = gold_margin != 0
    gold_margin = gold_margin[compared]  # (n,)
    margins = [within_prompt_margins(run["rewards"])[compared] for run in runs]
    towards_gold = [margin * np.sign(gold_margin) for margin in margins]
    rewards = [run["rewards"].ravel() for run in runs]

    figures = [
        _scatter(run["name"], margin, gold_margin, i)
        for i, (run, margin) in enumerate(zip(runs, margins))
    ]
    figures += [
        _histograms(
            runs,
            rewards,
            gold.ravel(),
            "reward",
            "Rewards on one axis. Neither an offset nor a narrower distribution is a fault by "
            "itself: gold's unit is arbitrary.",
        ),
        _histograms(
            runs,
            towards_gold,
            np.abs(gold_margin),
            "margin towards gold's choice",
            "Margins, counted towards gold's choice: left of 0 are the misses. Gold's own margins "
            "are shaded.",
        ),
        _match_by(
            runs,
            "by_gold_margin",
            "gold margin, in shares of equal size",
            "Match by the size of gold's margin, with 95% intervals. It should rise from near 0.5 "
            "to near 1.",
        ),
    ]
    if all("by_length_gap" in run["numbers"] for run in runs):
        figures.append(
            _match_by(
                runs,
                "by_length_gap",
                "characters by which gold's choice is longer",
                "Match by length. A steep line, up or down, is a proxy that goes by length.",
            )
        )
    figures.append(_reliability(runs))
    for i, run in enumerate(runs):
        if len(run["metrics"]) > 1:
            figures.append(_training(run, i))
    return figures


@matplotlib.rc_context(STYLE)
def of_best_of_n(curves: dict[str, list[dict]]) -> list[str]:
    """A curve of measures.expected_best_of_n for each proxy: against n, and against KL."""
    return [
        _best_of_n(curves, "n", "n, responses to choose from"),
        _best_of_n(curves, "kl", "KL from the sampled policy, nats: log n - (n - 1) / n"),
    ]


# ---- each figure ---------------------------------------------------------------------------------


def _scatter(name: str, proxy: np.ndarray, gold: np.ndarray, i: int) -> str:
    """(n,) margins of both."""
    axes = _new_axes(name)
    limit = 1.05 * max(np.abs(gold).max(), np.abs(proxy).max())
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set(xlabel="gold margin", ylabel="proxy margin")
    axes.axhline(0, **FAINT)
    axes.axvline(0, **FAINT)
    axes.axline((0, 0), slope=1, color=GOLD, linestyle="--", label="as wide as gold's")

    step = -(-len(gold) // SHOWN_POINTS)  # rounded up
    right = proxy * np.sign(gold) > 0
    hits = gold[right][::step], proxy[right][::step]
    misses = gold[~right][::step], proxy[~right][::step]
    axes.scatter(*hits, s=9, color=_colour(i), alpha=0.45, linewidths=0, label="ranked as gold")
    axes.scatter(*misses, s=14, marker="x", color=MISS, linewidths=0.8, label="missed")
    caption = (
        f"{name}: margins of gold and proxy. A cloud that rises to the right has the order, a "
        "shapeless one has not; how steeply it rises depends on gold's unit."
    )
    if step > 1:
        caption += f" Every {step}th pair is drawn."
    return _svg(axes, caption, legend="upper left")


def _histograms(
    runs: list[dict], values: list[np.ndarray], gold: np.ndarray, xlabel: str, caption: str
) -> str:
    """values: of each run."""
    axes = _new_axes()
    bins = np.histogram_bin_edges(np.concatenate([gold, *values]), 80)
    axes.hist(gold, bins=bins, density=True, color=GOLD, alpha=0.35, label="gold")
    for i, (run, value) in enumerate(zip(runs, values)):
        axes.hist(value, bins=bins, density=True, histtype="step", **_line(run["name"], i))
    axes.axvline(0, **FAINT)
    axes.set(xlabel=xlabel, ylabel="density", yticks=[])
    return _svg(axes, caption)


def _match_by(runs: list[dict], key: str, xlabel: str, caption: str) -> str:
    """key: of the number that measures.match_by gave."""
    axes = _new_axes()
    for i, run in enumerate(runs):
        rows = run["numbers"][key]
        match = np.array(_column("match", rows))
        below = match - _column("match_low", rows)
        above = _column("match_high", rows) - match
        x = np.arange(len(rows)) + 0.08 * (i - (len(runs) - 1) / 2)  # side by side
        axes.errorbar(x, match, yerr=[below, above], marker="o", **_line(run["name"], i))
    good = HEALTHY["match"].low
    axes.axhline(good, color=GOLD, linestyle="--", label=f"healthy: {good:.2f}")
    axes.axhline(0.5, color="#9a9a9a", linestyle=":", label="random: 0.50")
    rows = runs[0]["numbers"][key]
    bins = [f"{_short(row['from'])} to\n{_short(row['to'])}" for row in rows]
    axes.set_xticks(range(len(rows)), bins)
    axes.set(ylim=(0, 1.03), xlabel=xlabel, ylabel="match with gold")
    return _svg(axes, caption, legend="lower right")


def _reliability(runs: list[dict]) -> str:
    axes = _new_axes()
    for i, run in enumerate(runs):
        rows = run["numbers"]["reliability"]
        right = np.array(_column("right", rows))
        intervals = [wilson(row["right"] * row["pairs"], row["pairs"]) for row in rows]
        below = right - [low for low, _ in intervals]
        above = [high for _, high in intervals] - right
        x = _column("confidence", rows)
        axes.errorbar(x, right, yerr=[below, above], marker="o", **_line(run["name"], i))
    axes.axline((0.5, 0.5), slope=1, color=GOLD, linestyle="--", label="calibrated")
    axes.set(xlim=(0.48, 1.02), ylim=(0, 1.03))
    axes.set(xlabel="confidence, sigmoid(|margin|)", ylabel="share ranked as gold")
    caption = (
        "Calibration, with 95% intervals: above the line the margins are narrower than what the "
        "proxy knows, below the line they are wider."
    )
    return _svg(axes, caption, legend="lower right")


def _training(run: dict, i: int) -> str:
    """Loss and accuracy of each step, smoothed, with the held-out ones."""
    axes = _new_axes(run["name"])
    for name, colour in (("loss", _colour(i)), ("accuracy", GOLD)):
        steps, values = _logged(run["metrics"], name)
        if steps:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed(values), color=colour, label=name)
        steps, values = _logged(run["metrics"], f"eval_{name}")
        if steps:
            axes.plot(
                steps, values, color=colour, marker="o", linestyle="", label=f"held out: {name}"
            )
        steps, values = _logged(run["metrics"], f"train_{name}")
        if steps:
            label = f"training pairs after the epoch: {name}"
            axes.plot(steps, values, color=colour, marker="x", linestyle="", label=label)
    axes.axhline(np.log(2), color="#9a9a9a", linestyle=":", label="ln 2: equal rewards")
    axes.set(xlabel="step", ylim=(0, None))
    caption = (
        f"{run['name']}: training, each pair before its update (faint: every step; line: running "
        "mean). In the first epoch these are pairs it had not seen; where the held-out loss rises "
        "again, it memorises."
    )
    return _svg(axes, caption)


def _logged(metrics: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have this number."""
    lines = [line for line in metrics if line.get(name) is not None and "step" in line]
    return _column("step", lines), _column(name, lines)


def smoothed(values: list[float]) -> np.ndarray:
    """(n,) -> (n,) running mean over n / 20 steps to either side; fewer at the ends."""
    values = np.asarray(values, dtype=float)
    half = len(values) // 20
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first = np.maximum(at - half, 0)
    end = np.minimum(at + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _best_of_n(curves: dict[str, list[dict]], x: str, xlabel: str) -> str:
    """x: the key of the rows that is drawn to the right."""
    axes = _new_axes()
    for i, (name, rows) in enumerate(curves.items()):
        error = [1.96 * row["gold_error"] for row in rows]
        line = _line(f"picked by {name}", i)
        axes.errorbar(_column(x, rows), _column("gold", rows), yerr=error, marker="o", **line)
    rows = next(iter(curves.values()))  # gold's own pick is the same beside every proxy
    own = {"color": GOLD, "linestyle": "--", "label": "picked by gold itself"}
    axes.plot(_column(x, rows), _column("gold_own", rows), **own)
    if x == "n":
        powers = [2**i for i in range(len(rows).bit_length())]
        axes.set_xscale("log", base=2)
        axes.set_xticks(powers, powers)
    axes.set(xlabel=xlabel, ylabel="expected gold reward")
    caption = (
        "Gold's reward of the best of n by each proxy, with 95% intervals. A curve that turns down "
        "is an over-optimised proxy."
    )
    return _svg(axes, caption)


# ---- what they share -----------------------------------------------------------------------------


def _new_axes(title: str = "") -> Axes:
    return Figure().add_subplot(title=_label(title))


def _svg(axes: Axes, caption: str, legend: str = "best") -> str:
    """The figure as an element of a page; legend: where."""
    axes.legend(loc=legend)
    # ids that differ from figure to figure and are the same in each run
    matplotlib.rcParams["svg.hashsalt"] = caption + axes.get_xlabel()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    file = io.StringIO()
    axes.figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names such as axes_1, the same in each figure
    caption = escape(caption)
    return (
        f'<figure class="card"><div role="img" aria-label="{caption}">{svg}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _column(name: str, rows: list[dict]) -> list[float]:
    return [row[name] for row in rows]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _label(text: str) -> str:
    """A name as a label: no mathematics, not wider than the figure."""
    if len(text) > 40:
        text = "..." + text[-37:]
    return text.replace("$", r"\$")


def _line(name: str, i: int) -> dict:
    dash = DASHES[i // len(COLOURS) % len(DASHES)]
    return {"color": _colour(i), "linestyle": dash, "label": _label(name)}


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
