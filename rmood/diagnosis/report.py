"""The diagnosis as one HTML page without scripts, which needs no network and fits a phone.

Figures are inline SVG (figures.py); matplotlib is imported only when a page is written. Everything
that comes from data or paths is escaped.
"""

import re
from dataclasses import dataclass
from html import escape

import numpy as np

from ..errors import UserError
from ..files.rows import atomic_file
from ..files.tables import Conversation
from ..metrics import HEALTHY
from . import questions
from .measures import most_wrong

CSP = "default-src 'none'; style-src 'unsafe-inline'"  # the browser enforces "no network"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""
STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 70rem; overflow-wrap: anywhere;
  background: #fbfaf7; color: #22252a; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .3rem 0; }
.soft, figcaption { color: #5c636e; font-size: .875rem; }
.card { background: #fff; border: 1px solid #d9d7d0; border-radius: 8px;
  padding: .8rem 1rem; margin: .7rem 0; }
.finding { border-left: 5px solid; }
.finding.error { border-left-color: #b3261e; }
.finding.warning { border-left-color: #8a5a00; }
.finding.fine { border-left-color: #1f7a4d; }
.finding ol { margin: .2rem 0 .4rem; padding-left: 1.4rem; }
.finding.note { border-left-color: #5c636e; }
.severity { font-weight: bold; font-size: .8rem; text-transform: uppercase; }
.note .severity { color: #5c636e; }
.answer { border-left: 5px solid #2767b0; }
.answer .word { font-weight: bold; }
.answer.unknown { border-left-color: #d9d7d0; }
a { color: inherit; text-decoration-color: #b9b5aa; }
dt { font-weight: bold; margin-top: .6rem; }
dd { margin: 0 0 0 1rem; }
:target { background: #fff3c4; }
.error .severity { color: #b3261e; }
.warning .severity { color: #8a5a00; }
.fine .severity { color: #1f7a4d; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  min-width: min(100%, 44rem); }
th, td { text-align: right; vertical-align: top; white-space: nowrap; padding: .3rem .6rem;
  border-bottom: 1px solid #d9d7d0; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem;
  padding-left: 0; }
th { font-size: .875rem; white-space: normal; }
.figures { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.figures .card { margin: 0; }
figure svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
summary { cursor: pointer; }
.sides { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.text { white-space: pre-wrap; border: 1px solid #d9d7d0; border-radius: 6px; font-size: .9rem;
  padding: .5rem .7rem; margin: .3rem 0; max-height: 22rem; overflow-y: auto; }
.text span { border-radius: 2px; }
@media (max-width: 30rem) { table { font-size: .875rem; } th, td { padding: .3rem; } }
"""
SHOWN_CHARACTERS = 6000


def write(
    path: str, title: str, facts: list[str], runs: list[dict], gold: np.ndarray, texts=None
) -> None:
    """Write the page.

    facts: lines under the title. gold: (P, K) rewards. texts: (prompts, responses) of the same
    rows, or None. runs: one dict per model,

        name       of the model
        rewards    (P, K)
        numbers    measures.compare and what else was measured
        findings   faults.findings
        not_measured   what could not be measured, and why: {"what": ..., "why": ...}, may be absent
        metrics    lines of metrics.jsonl, may be empty
        tokens     {(row, response): [(text, reward), ...]} to colour, may be absent
    """
    body = [_heading(title)]
    body += [f'<p class="soft">{escape(fact)}</p>' for fact in facts]
    body.append("<h2>Four questions</h2>")
    body += [_four_questions(run) for run in runs]
    body.append("<h2>Findings</h2>")
    body += [_findings(run) for run in runs]
    body += [_not_measured(run) for run in runs]
    body.append("<h2>Figures</h2>")
    body.append(_grid(_import_figures().of_diagnosis(runs, gold)))
    body.append("<h2>Numbers</h2>")
    body.append(_numbers(runs))
    body.append("<h2>The most wrong pairs</h2>")
    body += [_wrong_pairs(run, gold, texts) for run in runs]
    body.append("<h2>Definitions</h2>")
    body.append(_definitions(runs))
    _write_page(path, title, body)


def write_best_of_n(path: str, title: str, curves: dict[str, list[dict]]) -> None:
    """Best-of-n curves, one per proxy (measures.expected_best_of_n), against n and against KL."""
    figures = _import_figures().of_best_of_n(curves)
    _write_page(path, title, [_heading(title), _grid(figures)])


def _import_figures():
    """The module that draws. Raises UserError without matplotlib."""
    try:
        from . import figures
    except ModuleNotFoundError:
        raise UserError("the figures of the report need matplotlib: pip install matplotlib")
    return figures


def _write_page(path: str, title: str, body: list[str]) -> None:
    page = PAGE.format(csp=CSP, title=escape(title), style=STYLE, body="\n".join(body))
    with atomic_file(path) as file:
        file.write(page)


def _heading(title: str) -> str:
    return f"<h1>{escape(title)}</h1>"


# ---- questions and findings ----------------------------------------------------------------------


def _four_questions(run: dict) -> str:
    reasons = {missing["what"]: missing["why"] for missing in run.get("not_measured", [])}
    cards = [_answer(answer) for answer in questions.answers(run["numbers"], reasons)]
    described = escape(questions.described_ratio(run["numbers"]))
    return (
        f"<h3>{escape(run['name'])}</h3>"
        f'<div class="figures">{"".join(cards)}</div><p class="soft">{described}</p>'
    )


def _answer(answer: questions.Answer) -> str:
    known = "" if answer.word != questions.NOT_MEASURED else " unknown"
    return (
        f'<div class="card answer{known}"><p class="soft">{escape(answer.question)}</p>'
        f'<p><span class="word">{escape(answer.word)}</span> {escape(answer.measured)}</p>'
        f'<p class="soft">{escape(answer.meaning)}</p></div>'
    )


def _findings(run: dict) -> str:
    name = escape(run["name"])
    if run["findings"]:
        return "".join(_finding(name, finding) for finding in run["findings"])
    return (
        f'<div class="card finding fine"><h3>{name}</h3>'
        f'<p><span class="severity">no finding</span> among what was measured</p></div>'
    )


def _finding(name: str, finding: dict) -> str:
    """name: escaped already."""
    severity = finding["severity"]
    fault = escape(finding["id"].replace("_", " "))
    parts = [
        f'<div class="card finding {severity}"><h3>{name}: {fault}</h3>',
        f'<p><span class="severity">{severity}</span> {escape(finding["evidence"])}</p>',
    ]
    if finding["causes"]:
        causes = "".join(f"<li>{escape(cause)}</li>" for cause in finding["causes"])
        parts.append(f"<p>Possible causes, likeliest first:</p><ol>{causes}</ol>")
    if finding["advice"]:
        parts.append(f"<p><b>What to do:</b> {escape(finding['advice'])}</p>")
    return "".join(parts) + "</div>"


def _not_measured(run: dict) -> str:
    """A folded list: silence must not look like health."""
    missing = run.get("not_measured", [])
    if not missing:
        return ""
    rows = "".join(f"<li>{escape(one['what'])}: {escape(one['why'])}</li>" for one in missing)
    return (
        f'<details class="card"><summary>{escape(run["name"])}: not measured, so not judged: '
        f"{len(missing)}</summary><ul>{rows}</ul></details>"
    )


# ---- numbers -------------------------------------------------------------------------------------


def _healthy(name: str) -> str:
    return f"healthy: {HEALTHY[name]}"


@dataclass(frozen=True)
class Row:
    """A measure: its value and note are format strings of the numbers."""

    measure: str
    value: str
    note: str
    definition: str

    @property
    def anchor(self) -> str:
        return "def-" + re.sub(r"[^a-z]+", "-", self.measure.lower()).strip("-")


ROWS = (
    Row(
        "scale",
        "{scale:.2f} ({scale_low:.2f} to {scale_high:.2f})",
        "1: calibrated",
        "The factor on all margins with the least loss log(1 + exp(-s x)), x the margin towards "
        "gold's choice: the slope of a logistic regression. Above 1 the margins are narrower than "
        "what the proxy knows, below 1 wider. Interval: 95%, clustered by prompt.",
    ),
    Row(
        "bits, held out",
        "{bits:.2f} ({bits_low:.2f} to {bits_high:.2f})",
        "0: knows nothing; 1: everything",
        "1 - loss / ln 2 at the fitted scale: what the proxy knows of the order of a pair.",
    ),
    Row(
        "bits, training pairs",
        "{train_bits:.2f} ({train_bits_low:.2f} to {train_bits_high:.2f})",
        "scored after training",
        "The same on pairs it was trained on. Far above the held-out bits: it memorised them.",
    ),
    Row(
        "match with gold, a tie is a miss",
        "{match:.3f} ({match_low:.3f} to {match_high:.3f})",
        _healthy("match"),
        "Share of the pairs that the proxy orders as gold does; gold's own ties are left out.",
    ),
    Row(
        "match, a tie is half",
        "{match_ties_half:.3f}",
        "",
        "The same, a pair with equal proxy rewards counted as half: its expected value if ties "
        "were decided at random.",
    ),
    Row(
        "rank correlation of margins",
        "{rank_correlation:.2f}",
        "",
        "Spearman's correlation of the margins of proxy and gold, each pair in both orders.",
    ),
    Row(
        "loss as the margins are",
        "{loss:.3f} ({loss_low:.3f} to {loss_high:.3f})",
        "ln 2 = 0.693 says nothing",
        "Mean Bradley-Terry loss on held-out pairs against gold's choice, nats.",
    ),
    Row(
        "calibration error (ECE)",
        "{ece:.3f}",
        "a calibrated model of this size: {ece_expected:.3f}",
        "Mean distance between confidence, sigmoid(|margin|), and the share of pairs ranked as "
        "gold does, over bins of equal size (Guo et al. 2017). Few pairs make it large also where "
        "the proxy is calibrated.",
    ),
    Row(
        "spread within prompts / gold's",
        "{spread_ratio:.3f}",
        "described, no verdict: gold's unit is arbitrary",
        "sqrt(mean(margin^2) / 2) of the proxy over gold's.",
    ),
    Row(
        "rewards: mean",
        "{proxy_mean:.2f}",
        "means nothing by itself",
        "The loss sees differences alone: an offset is free.",
    ),
    Row("rewards: std", "{proxy_std:.2f}", "gold's: {gold_std:.2f}", "Of all rewards."),
    Row(
        "rewards: min to max",
        "{proxy_min:.1f} to {proxy_max:.1f}",
        "gold's: {gold_min:.1f} to {gold_max:.1f}",
        "Of all rewards.",
    ),
    Row(
        "share of pairs tied by the proxy",
        "{proxy_tie_share:.3f}",
        _healthy("proxy_tie_share"),
        "Equal rewards for two responses: identical texts, or a head in bf16.",
    ),
    Row(
        "margins within the scoring noise",
        "{resolution:.3f}",
        "their order is lost to rounding",
        "Share of the pairs whose margin is under twice the noise of scoring: the same rows scored "
        "in another dtype or batch.",
    ),
    Row(
        "correlation with length",
        "{proxy_length_correlation:.2f}",
        "gold's: {gold_length_correlation:.2f}",
        "Spearman's correlation of margins with differences in length, characters.",
    ),
    Row(
        "match that length alone reaches",
        "{length_match:.3f}",
        "to be exceeded",
        "By 'longer wins' or 'shorter wins', whichever is better.",
    ),
    Row(
        "match of a linear probe on frozen features",
        "{probe_match:.3f}",
        "to be exceeded",
        "A linear head on the start model's frozen states, fitted to the training pairs.",
    ),
    Row(
        "accuracy on its training pairs",
        "{read_accuracy:.3f}",
        "scored after training",
        "Share of the drawn training pairs that it ranks right, a tie is a miss.",
    ),
    Row(
        "training labels that gold contradicts",
        "{label_noise:.3f}",
        _healthy("label_noise"),
        "Share of the training pairs in which gold prefers the rejected response.",
    ),
    Row(
        "training loss in the last tenth of the steps",
        "{last_loss:.3f}",
        "",
        "Mean over the logged steps, each pair before its update: in the first epoch these are "
        "pairs that the model had not seen.",
    ),
    Row(
        "training accuracy in the last tenth of the steps",
        "{last_accuracy:.3f}",
        "",
        "The same for the share of pairs ranked right.",
    ),
)


def _numbers(runs: list[dict]) -> str:
    """A row per measure, a column per model: two fit a phone, more scroll inside the card."""
    names = "".join(f"<th>{escape(run['name'])}</th>" for run in runs)
    rows = [f"<tr><th>measure</th>{names}</tr>"]
    for row in _shown_rows(runs):
        values = [_filled(row.value, run["numbers"]) for run in runs]
        measure = f'<a href="#{row.anchor}">{escape(row.measure)}</a>'
        note = _filled(row.note, runs[0]["numbers"])
        if note:
            measure += f'<br><span class="soft">{escape(note)}</span>'
        cells = "".join(f"<td>{value or '-'}</td>" for value in values)
        rows.append(f"<tr><td>{measure}</td>{cells}</tr>")
    return f'<div class="card wide" tabindex="0"><table>{"".join(rows)}</table></div>'


def _definitions(runs: list[dict]) -> str:
    parts = [
        f'<dt id="{row.anchor}">{escape(row.measure)}</dt><dd>{escape(row.definition)}</dd>'
        for row in _shown_rows(runs)
    ]
    more = '<p class="soft">docs/metrics.md has every number, with its formula and source.</p>'
    return f"<dl>{''.join(parts)}</dl>{more}"


def _shown_rows(runs: list[dict]) -> list[Row]:
    """The rows of which at least one run has the numbers."""
    return [row for row in ROWS if any(_filled(row.value, run["numbers"]) for run in runs)]


def _filled(form: str, numbers: dict) -> str:
    """The format string with its numbers; empty where one was not measured."""
    try:
        return form.format(**numbers)
    except (KeyError, TypeError):
        return ""


# ---- the most wrong pairs ------------------------------------------------------------------------


def _wrong_pairs(
    run: dict, gold: np.ndarray, texts: tuple[list[Conversation], list[list[str]]] | None
) -> str:
    name = escape(run["name"])
    misses = most_wrong(run["rewards"], gold)
    if not misses:
        return f'<p class="soft">{name}: every pair is ranked as gold ranks it, or tied.</p>'
    if texts is None:
        return (
            f'<p class="soft">{name}: the texts are not known: '
            "pass --prompts-path and --responses-path.</p>"
        )
    note = "Gold and proxy disagree most here (largest product of both margins)."
    if run.get("tokens"):
        note += (
            " Colours: the head applied at each token, blue above 0 and red below. It is trained"
            " at the last token only, so the others show a tendency, not a reward."
        )
    parts = [f'<h3>{name}</h3><p class="soft">{note}</p>']
    for number, miss in enumerate(misses):
        parts.append(_wrong_pair(run, gold, texts, *miss, is_open=number == 0))
    return "".join(parts)


def _wrong_pair(
    run: dict,
    gold: np.ndarray,
    texts: tuple[list[Conversation], list[list[str]]],
    row: int,
    by_gold: int,
    by_proxy: int,
    is_open: bool,
) -> str:
    """One pair, to be unfolded. by_gold, by_proxy: the responses that each of them prefers."""
    prompts, responses = texts
    rewards = run["rewards"][row]
    gold_margin = gold[row, by_gold] - gold[row, by_proxy]
    proxy_margin = rewards[by_proxy] - rewards[by_gold]
    summary = (
        f"Row {row}: gold prefers response {by_gold + 1} by {gold_margin:.2f}, "
        f"the proxy response {by_proxy + 1} by {proxy_margin:.2f}"
    )
    turns = [
        f"[{message['role']}] {message['content']}"
        for message in prompts[row]
        if message["content"].strip()
    ]
    sides = []
    for side, who in ((by_gold, "gold's choice"), (by_proxy, "the proxy's choice")):
        tokens = run.get("tokens", {}).get((row, side))
        shown = _coloured(tokens) if tokens else _shortened(responses[row][side])
        scores = f"gold {gold[row, side]:.2f}, proxy {rewards[side]:.2f}"
        sides.append(
            f'<div><p><b>Response {side + 1}</b>, {who}<br><span class="soft">{scores}</span></p>'
            f'<div class="text">{shown}</div></div>'
        )
    prompt = _shortened("\n\n".join(turns))
    return (
        f'<details class="card"{" open" if is_open else ""}><summary>{summary}</summary>'
        f'<div class="text">{prompt}</div><div class="sides">{"".join(sides)}</div></details>'
    )


def _shortened(text: str) -> str:
    """The text, escaped, and how much of it is left out."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return escape(text)
    return f"{escape(text[:SHOWN_CHARACTERS])} <i>... {left_out:,} more characters</i>"


def _coloured(tokens: list[tuple[str, float]]) -> str:
    """Tokens before a background as strong as their reward is large; the number on hovering."""
    largest = max(abs(reward) for _, reward in tokens) or 1.0
    spans = []
    for text, reward in tokens:
        rgb = "39,103,176" if reward > 0 else "179,38,30"
        strength = 0.45 * abs(reward) / largest
        shown = escape(text).replace("\n", "&crarr;\n")
        spans.append(
            f'<span style="background:rgba({rgb},{strength:.2f})" title="{reward:.2f}">'
            f"{shown}</span>"
        )
    return "".join(spans)


def _grid(figures: list[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>'
