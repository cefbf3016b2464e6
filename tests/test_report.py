"""The report: one page that loads nothing, runs nothing, and escapes what it shows."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import REPOSITORY

from rmood.diagnosis import faults, figures, report
from rmood.diagnosis.measures import compare, expected_best_of_n, training_summary
from rmood.errors import UserError
from rmood.metrics import HEALTHY

PROMPT = [{"role": "user", "content": "<script>alert(1)</script> & co"}]
RESPONSES = ["<img src=x onerror=alert(2)>", "x" * 10_000]
TRAINING = [{"step": s, "loss": 0.7 / s, "accuracy": 1 - 0.5 / s} for s in range(1, 9)]


def write_report(path, names, metrics=(), texts=True, **more) -> str:
    """The report of 60 prompts and some models: the first is healthy, the others are compressed."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(60, 2)) * 4
    runs = []
    for i, name in enumerate(names):
        proxy = gold * (0.1 if i else 1) + rng.normal(size=gold.shape) * 0.5
        numbers = compare(proxy, gold) | training_summary(list(metrics))
        run = {
            "name": name,
            "rewards": proxy,
            "numbers": numbers,
            "findings": faults.findings(numbers),
            "metrics": list(metrics),
        }
        runs.append(run | more)
    known = ([PROMPT] * 60, [RESPONSES] * 60) if texts else None
    report.write(str(path), f"toy: {names[0]}", ["60 pairs"], runs, gold, known)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The tags and attributes of a page, and whether what was opened was closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_stands_alone_and_escapes_what_it_shows(tmp_path):
    """No script, nothing loaded from anywhere, and text that looks like markup stays text."""
    metrics = [*TRAINING, {"step": 8, "eval_loss": 0.4, "eval_accuracy": 0.8}]
    html = write_report(tmp_path / "deep" / "report.html", ["<b>$x_1$</b>", "squeezed"], metrics)
    page = Page(html)
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "image", "object"} & set(page.tags)
    assert "<b>$" not in html and "&lt;script&gt;" in html
    for name, value in page.attributes:
        assert name != "src" and not name.startswith("on")
        assert not name.endswith("href") or value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_the_report_answers_first_then_shows_figures_numbers_pairs_and_definitions(tmp_path):
    """Of two models: two scatters, two histograms, match by margin, calibration, two trainings."""
    metrics = [*TRAINING, {"step": 8, "eval_loss": 0.4, "eval_accuracy": 0.8}]
    html = write_report(tmp_path / "report.html", ["healthy", "squeezed"], metrics)
    titles = ("Four questions", "Findings", "Figures", "Numbers", "The most", "Definitions")
    parts = [html.index(f"<h2>{title}") for title in titles]
    assert parts == sorted(parts)
    assert html.count("Do its margins mean what they say?") == 2
    assert html.count("gold&#x27;s unit is arbitrary") >= 2
    assert html.count("<svg") == html.count("<figcaption>") == 8
    assert "held out: loss" in html
    assert "no finding" in html
    assert "4,000 more characters" in html


def check_ids(html: str) -> None:
    """No id is used twice, and each one that is referred to exists."""
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert identifiers and len(identifiers) == len(set(identifiers))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(identifiers)
    links = set(re.findall(r'<a href="#([^"]+)"', html))
    assert links <= set(identifiers)


def test_no_id_is_used_twice(tmp_path):
    check_ids(write_report(tmp_path / "report.html", ["healthy", "squeezed"], TRAINING))


def test_the_same_diagnosis_is_the_same_page(tmp_path):
    pages = [write_report(tmp_path / f"{i}.html", ["healthy", "squeezed"]) for i in range(2)]
    assert pages[0] == pages[1]


def test_the_style_sheet_can_be_read():
    assert max(map(len, report.STYLE.splitlines())) <= 100


def test_the_healthy_ranges_of_the_report_are_those_of_healthy(tmp_path):
    html = write_report(tmp_path / "report.html", ["healthy"], TRAINING)
    rows = {
        "match with gold, a tie is a miss": "match",
        "share of pairs tied by the proxy": "proxy_tie_share",
    }
    for measure, name in rows.items():
        assert f'{measure}</a><br><span class="soft">healthy: {HEALTHY[name]}' in html
    assert f"healthy: {HEALTHY['match'].low:.2f}" in html  # a line in the figure
    for module in ("report.py", "figures.py"):
        source = (REPOSITORY / "rmood" / "diagnosis" / module).read_text(encoding="utf-8")
        assert not re.search(r"healthy: \d", source)


def test_numbers_that_were_not_measured_have_no_row(tmp_path):
    html = write_report(tmp_path / "report.html", ["healthy"])
    assert "linear probe on frozen" not in html and "training loss" not in html
    more = {"numbers": compare(np.eye(4)[:, :2], np.eye(4)[:, 1::-1]) | {"probe_match": 0.6}}
    html = write_report(tmp_path / "report.html", ["healthy"], **more)
    assert "<td>0.600</td>" in html


def test_every_measure_links_to_its_definition(tmp_path):
    html = write_report(tmp_path / "report.html", ["healthy"], TRAINING)
    links = re.findall(r'<a href="#(def-[^"]+)"', html)
    assert len(links) > 10 and len(links) == len(set(links))
    for link in links:
        assert f'<dt id="{link}">' in html


def test_what_was_not_measured_is_listed_with_its_reason(tmp_path):
    missing = [{"what": "train_bits", "why": "the file <x> of its training pairs is gone"}]
    html = write_report(tmp_path / "report.html", ["healthy"], not_measured=missing)
    assert "healthy: not measured, so not judged: 1" in html
    assert html.count("the file &lt;x&gt; of its training pairs is gone") == 2  # and the question


def test_a_finding_without_causes_or_advice_has_no_empty_part(tmp_path):
    finding = {"id": "a_b", "severity": "note", "evidence": "1 < 2", "causes": [], "advice": ""}
    html = write_report(tmp_path / "report.html", ["healthy"], findings=[finding])
    assert "healthy: a b</h3>" in html and "1 &lt; 2" in html
    assert "What to do" not in html and "Possible causes" not in html


def test_training_curves_are_smoothed_by_a_running_mean():
    """Of 40 steps, two to either side; fewer at the ends, and a constant stays."""
    values = np.arange(40.0)
    smooth = figures.smoothed(values)
    assert smooth[0] == 1.0 and smooth[20] == 20.0 and smooth[39] == 38.0
    assert np.all(figures.smoothed([0.5] * 7) == 0.5)
    noise = np.random.default_rng(0).normal(size=400)
    assert figures.smoothed(noise).std() < 0.3 * noise.std()


def test_tokens_are_coloured_by_their_reward_and_escaped(tmp_path):
    tokens = [("<i>", 2.0), ("b\n", -2.0), ("c", 0.0)]
    of_all = {(row, side): tokens for row in range(60) for side in (0, 1)}
    html = write_report(tmp_path / "report.html", ["healthy", "squeezed"], tokens=of_all)
    blue = '<span style="background:rgba(39,103,176,0.45)" title="2.00">&lt;i&gt;</span>'
    red = '<span style="background:rgba(179,38,30,0.45)" title="-2.00">b&crarr;\n</span>'
    none = '<span style="background:rgba(179,38,30,0.00)" title="0.00">c</span>'
    assert blue + red + none in html
    assert "Colours: the head applied at each token" in html


def test_without_texts_the_page_says_how_to_get_them(tmp_path):
    html = write_report(tmp_path / "report.html", ["healthy", "squeezed"], texts=False)
    assert "pass --prompts-path and --responses-path" in html


def test_a_report_of_best_of_n(tmp_path):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(20, 6)), rng.normal(size=(20, 6))
    curves = {"<rm>": expected_best_of_n(proxy, gold), "gold": expected_best_of_n(gold, gold)}
    report.write_best_of_n(str(tmp_path / "bon.html"), "Best of n", curves)
    html = (tmp_path / "bon.html").read_text(encoding="utf-8")
    assert Page(html).open == []
    assert html.count("<svg") == 2
    check_ids(html)
    assert "picked by gold itself" in html and "picked by &lt;rm&gt;" in html


def test_matplotlib_is_imported_only_when_a_report_is_written():
    code = (
        "import sys; from rmood.diagnosis import report, run; "
        "print(sorted(name for name in sys.modules if name.startswith('matplotlib')))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_report_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "rmood.diagnosis.figures", raising=False)
    monkeypatch.delattr("rmood.diagnosis.figures", raising=False)
    with pytest.raises(UserError, match="pip install matplotlib"):
        write_report(tmp_path / "report.html", ["healthy"])
