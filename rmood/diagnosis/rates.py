"""The losses of a rate probe: which rates are too low, usable, too high? Numpy only.

R rates were tried, each from the same start, for the same S steps of the same n pairs in the same
order. Each pair is seen once, so its loss before its step's update is a held-out loss. Rates are
compared on the pairs of the second half of the steps, pair by pair, with intervals clustered by
prompt. The noise is that of the pairs, not that of another start or another order.
"""

import math
from dataclasses import dataclass
from html import escape
from statistics import NormalDist

import numpy as np

from .scale import Estimate, mean
from .text import aligned

FACTOR = math.sqrt(10)  # between neighbouring rates
FORMS = {"too low": "v", "usable": "o", "too high": "^", "diverges": "x", "cannot tell": "?"}


@dataclass(frozen=True)
class Tried:
    """What one rate came to, nats. A rate whose rewards or gradients overflowed has no numbers."""

    rate: float
    by_step: list[float]  # (S,) mean loss of each step's pairs; infinite from an overflow on
    saved: Estimate | None  # loss of the start minus this, over the second half of the steps
    behind: Estimate | None  # this minus the loss of the best rate, there
    verdict: str  # see `judged`

    def as_json(self) -> dict:
        by_step = [loss if math.isfinite(loss) else None for loss in self.by_step]
        found = {"rate": self.rate, "verdict": self.verdict, "loss_by_step": by_step}
        for name, number in (("saved", self.saved), ("behind", self.behind)):
            found |= number.as_numbers(name) if number else {}
        return found


def rates_around(rate: float, count: int) -> list[float]:
    """`count` rates, neighbours a factor of 3.2 apart, with `rate` among them, rising.

    Of an even number one more lies below it than above.
    """
    below = count // 2
    return [float(f"{rate * FACTOR ** (i - below):.3g}") for i in range(count)]


def judged(
    rates: list[float], start: np.ndarray, losses: np.ndarray, step: np.ndarray, prompt: np.ndarray
) -> list[Tried]:
    """Each rate with its verdict, from the losses of the n pairs.

    start: (n,) losses with the weights of the start. losses: (R, n), infinite from an overflow on.
    step: (n,) the step 1..S of each pair. prompt: (n,) its prompt.

        diverges     an overflow, or a loss above the start's, beyond noise
        cannot tell  no rate is better than the start, beyond noise
        usable       not worse than the best rate, beyond noise
        too low      worse than the best rate, and below it: too low for so many steps
        too high     worse than the best rate, and above it

    The best rate is chosen after the fact, so all intervals are those of R comparisons together
    (Bonferroni).
    """
    late = step > step.max() // 2
    finite = np.isfinite(losses).all(axis=1)
    by_step = [[float(row[step == s].mean()) for s in range(1, step.max() + 1)] for row in losses]
    if not finite.any():
        rows = zip(rates, by_step)
        return [Tried(rate, steps, None, None, "diverges") for rate, steps in rows]
    z = NormalDist().inv_cdf(1 - 0.025 / len(rates))
    means = np.where(finite, losses[:, late].mean(axis=1), math.inf)
    best = int(means.argmin())
    saved_by_best = mean(start[late] - losses[best, late], prompt[late]).at(z)
    found = []
    for i, rate in enumerate(rates):
        if not finite[i]:
            found.append(Tried(rate, by_step[i], None, None, "diverges"))
            continue
        saved = mean(start[late] - losses[i, late], prompt[late]).at(z)
        behind = mean(losses[i, late] - losses[best, late], prompt[late]).at(z)
        if saved.high < 0:
            verdict = "diverges"
        elif saved_by_best.low <= 0:
            verdict = "cannot tell"
        elif behind.low <= 0:
            verdict = "usable"
        else:
            verdict = "too low" if i < best else "too high"
        found.append(Tried(rate, by_step[i], saved, behind, verdict))
    return found


# ---- in words ------------------------------------------------------------------------------------


def table(tried: list[Tried]) -> str:
    """A row for each rate: its loss in each quarter of the steps, and its verdict."""
    quarters = np.array_split(np.arange(len(tried[0].by_step)), 4)
    spans = [f"{rows[0] + 1}-{rows[-1] + 1}" for rows in quarters]
    head = ["rate", *spans, "saved against the start", "behind the best", "verdict"]
    head[1] = f"loss, steps {head[1]}"
    lines = [head]
    for one in tried:
        cells = [f"{one.rate:.2g}"]
        cells += [f"{np.mean([one.by_step[k] for k in rows]):.3f}" for rows in quarters]
        lines.append([*cells, _shown(one.saved), _shown(one.behind), one.verdict])
    return aligned(lines)


def _shown(number: Estimate | None) -> str:
    if number is None:
        return "overflow"
    return f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})"


def advice(tried: list[Tried], planned: float, planned_sum: float, probe_steps: float) -> list[str]:
    """What the table means for the planned run.

    planned: its peak rate. planned_sum: the sum of its rates over all its steps. probe_steps: steps
    of the probe, each counted by its share of the rate (less in the warmup).
    """
    usable = [one.rate for one in tried if one.verdict == "usable"]
    as_far = planned_sum / probe_steps
    lines = [
        f"the planned run: --lr {planned:g}, rate x steps {planned_sum:.2g}: as far as the probe "
        f"goes at a rate of {as_far:.2g}"
    ]
    if not usable:
        verdicts = {one.verdict for one in tried}
        if verdicts == {"diverges"}:
            return [*lines, "every rate diverges: probe lower ones, with a lower --lr"]
        return [
            *lines,
            "cannot tell: no rate is better than the start beyond noise: more --rate-probe-steps, "
            "or a higher --lr as the middle",
        ]
    low, high = min(usable), max(usable)
    lines.append(f"usable: {low:.2g} to {high:.2g}; within them a probe this short cannot choose")
    if high == tried[-1].rate:
        lines.append("the highest rate tried is usable: probe higher ones, with a higher --lr")
    if low == tried[0].rate:
        lines.append("the lowest rate tried is usable: lower ones may be")
    if planned > high:
        lines.append(f"--lr {planned:g} is too high here: at most {high:.2g}")
    elif planned < low and as_far < low:
        lines.append(
            f"--lr {planned:g} is too low for so few steps: raise it to {low:.2g} or more, or take "
            "more steps: more --epochs, or fewer pairs a step (--batch-size)"
        )
    elif planned < low:
        lines.append(
            f"--lr {planned:g} is slow in a probe of so few steps, but the planned run has enough "
            "steps to come as far as a usable rate does here"
        )
    else:
        lines.append(f"--lr {planned:g} is usable")
    return lines


# ---- the figure ----------------------------------------------------------------------------------

WIDTH, HEIGHT = 760, 330
PANELS = ((60, 340), (420, 700))  # left and right edges
TOP, BOTTOM = 40, 270
COLOURS = ("#c6d4e8", "#9bb8dc", "#6f9bcf", "#2767b0", "#7450b5", "#b0356f", "#b3261e", "#7a1410")


def figure(tried: list[Tried], title: str) -> str:
    """An SVG file: on the left the loss of the late steps against the rate, with its interval; on
    the right the loss against the steps."""
    finite = [loss for one in tried for loss in one.by_step if math.isfinite(loss)]
    start = max(one.by_step[0] for one in tried)
    top = min(max(finite), 2 * start)
    bottom = min(finite)
    pad = 0.06 * max(top - bottom, 1e-3)
    plot = _Plot(bottom - pad, top + pad)
    plot.text(WIDTH / 2, 20, title, "middle")
    plot.axis(PANELS[0], "rate", "loss, second half of the steps")
    plot.axis(PANELS[1], "step", "loss")
    steps = len(tried[0].by_step)
    for number, one in enumerate(tried):
        x = _between(PANELS[0], (number + 0.5) / len(tried))
        late = one.by_step[steps // 2 :]
        level = min(float(np.mean(late)), plot.high)
        half = (one.saved.high - one.saved.value) if one.saved else 0.0
        colour = COLOURS[number * len(COLOURS) // len(tried)]
        plot.line([(x, level - half), (x, level + half)], colour)
        plot.text(x, plot.y(level) + 4, FORMS[one.verdict], "middle", colour)
        plot.text(x, BOTTOM + 14, f"{one.rate:.1e}".replace("e-0", "e-"), "middle")
        window = max(1, steps // 10)
        smooth = [np.mean(one.by_step[max(0, k - window + 1) : k + 1]) for k in range(steps)]
        points = [(_between(PANELS[1], k / max(1, steps - 1)), y) for k, y in enumerate(smooth)]
        plot.line(points, colour)
    plot.text(PANELS[1][0], BOTTOM + 14, "1", "middle")
    plot.text(PANELS[1][1], BOTTOM + 14, str(steps), "middle")
    words = ", ".join(f"{form} {verdict}" for verdict, form in FORMS.items())
    plot.text(WIDTH / 2, HEIGHT - 8, f"{words}; a line a rate, pale: low, dark: high", "middle")
    return plot.svg()


def _between(edges: tuple[float, float], share: float) -> float:
    return edges[0] + share * (edges[1] - edges[0])


class _Plot:
    """Panels with one vertical axis, from `low` to `high`."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high
        self.parts: list[str] = []

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def text(self, x: float, y: float, words: str, anchor: str, colour: str = "#22252a") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
            f"{escape(words)}</text>"
        )

    def line(self, points: list[tuple[float, float]], colour: str) -> None:
        """points: x in the picture, y in nats. What is above the axis is drawn at its end."""
        shown = [(x, min(max(y, self.low), self.high)) for x, y in points if not math.isnan(y)]
        path = " ".join(f"{x:.1f},{self.y(y):.1f}" for x, y in shown)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )

    def axis(self, edges: tuple[float, float], xlabel: str, ylabel: str) -> None:
        left, right = edges
        self.line([(left, self.high), (left, self.low), (right, self.low)], "#9a9a9a")
        for value in np.linspace(self.low, self.high, 5)[1:-1]:
            self.text(left - 5, self.y(value) + 4, f"{value:.3g}", "end")
        self.text((left + right) / 2, BOTTOM + 32, xlabel, "middle")
        self.text(left, TOP - 6, ylabel, "start")

    def svg(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="11">\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
        )
