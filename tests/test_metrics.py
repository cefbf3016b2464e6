"""What (B, 2) rewards say, in numbers one can check by hand; one place for healthy ranges."""

import math
import re

import numpy as np
import pytest
from conftest import REPOSITORY

from rmood.metrics import HEALTHY, healthy_range, pair_metrics, reward_summary, std_within, wilson


def rewards(*rows) -> np.ndarray:
    return np.array(rows, dtype=float)


# ---- pair_metrics --------------------------------------------------------------------------------


def test_metrics_by_hand():
    """Margins 2, 0, -4: one of three right, as a tie is a miss.

    std within = sqrt((4 + 0 + 16) / 3 / 2) = 1.8257."""
    found = pair_metrics(rewards([3, 1], [2, 2], [-1, 3]), gold_margin=np.array([2.0, 0, 4]))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["ties"] == 1
    assert found["margin_mean"] == pytest.approx(-2 / 3)
    assert found["margin_median"] == 0
    assert found["margin_std"] == pytest.approx(math.sqrt(56 / 9))
    assert found["loss"] == pytest.approx((0.126928 + 0.693147 + 4.018150) / 3, abs=1e-6)
    assert (found["reward_min"], found["reward_max"]) == (-1, 3)
    assert found["reward_mean"] == pytest.approx(10 / 6)
    assert found["std_within"] == pytest.approx(math.sqrt(20 / 6))
    assert found["std_across"] == pytest.approx(math.sqrt(2 / 9))  # pair means 2, 2, 1
    assert found["spread_ratio"] == pytest.approx(1)


def test_metrics_of_four_pairs_by_hand():
    """Margins 2, 0, -1, 3: two of four right; loss, mean log(1 + e^-m), 0.5455.

    Spread against gold's margins 4, 4, 4, 4, each pair in both orders: sqrt(14 / 4) / 4."""
    found = pair_metrics(rewards([3, 1], [1, 1], [0, 1], [5, 2]), np.full(4, 4.0))
    assert (found["accuracy"], found["ties"]) == (0.5, 1)
    assert (found["margin_mean"], found["margin_median"]) == (1, 1)
    assert found["loss"] == pytest.approx(0.5455, abs=1e-4)
    assert found["spread_ratio"] == pytest.approx(math.sqrt(3.5) / 4)


def test_no_opinion_is_a_loss_of_ln_2():
    assert pair_metrics(np.zeros((3, 2)))["loss"] == pytest.approx(math.log(2))


def test_compression_shows_in_the_spread_ratio_alone():
    gold = rewards([8, 0], [-2, 2])
    whole = pair_metrics(gold, gold[:, 0] - gold[:, 1])
    tenth = pair_metrics(0.1 * gold, gold[:, 0] - gold[:, 1])
    assert whole["accuracy"] == tenth["accuracy"] == 0.5
    assert whole["spread_ratio"] == pytest.approx(1)
    assert tenth["spread_ratio"] == pytest.approx(0.1)


def test_no_spread_ratio_without_gold_s_margins():
    assert "spread_ratio" not in pair_metrics(np.eye(2))
    assert "spread_ratio" not in pair_metrics(np.eye(2), np.zeros(2))


def test_metrics_are_plain_numbers_for_json():
    kinds = {type(value) for value in pair_metrics(np.eye(2), np.ones(2)).values()}
    assert kinds == {int, float}


def test_the_spread_within_does_not_depend_on_which_response_is_first():
    """It is the standard deviation of the margins in both orders, over sqrt 2."""
    margin = np.array([3.0, 1.0, -2.0])
    both_orders = np.concatenate([margin, -margin])
    assert std_within(margin) == pytest.approx(both_orders.std() / math.sqrt(2))
    assert std_within(margin) == std_within(-margin) == std_within(np.abs(margin))


def test_wilson_interval_of_8_in_10():
    """(0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096036)) / 1.38414 = 0.4902 and 0.9433."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((1 / 1.384146, 1), abs=1e-6)
    assert wilson(0, 10)[0] == 0


def test_reward_summary_by_hand():
    found = reward_summary(np.arange(101.0))
    assert [found[name] for name in ("mean", "min", "max")] == [50, 0, 100]
    quantiles = [found[name] for name in ("q05", "q25", "q50", "q75", "q95")]
    assert quantiles == pytest.approx([5, 25, 50, 75, 95])
    assert found["std"] == pytest.approx(math.sqrt((101**2 - 1) / 12))


# ---- healthy ranges ------------------------------------------------------------------------------


def test_a_grade_is_how_far_outside_the_range_a_value_is():
    """0.95 and 0.90 are the reference's expectations, 0.80 and 0.70 its warning signs."""
    accuracy = HEALTHY["accuracy"]
    grades = {1.0: "good", 0.95: "good", 0.94: "fair", 0.9: "fair", 0.89: "short", 0.8: "short"}
    grades |= {0.79: "poor", 0.7: "poor", 0.69: "failed", 0.0: "failed"}
    assert {value: accuracy.grade(value) for value in grades} == grades
    loss = {0.1: "good", 0.3: "good", 0.4: "fair", 0.5: "fair", 0.6: "poor"}
    assert {value: HEALTHY["loss"].grade(value) for value in loss} == loss
    spread = {0.4: "fair", 0.5: "good", 2.0: "good", 2.1: "fair"}
    assert {value: HEALTHY["spread_ratio"].grade(value) for value in spread} == spread


def test_steps_lead_outwards():
    for name, healthy in HEALTHY.items():
        steps = [s for s in (healthy.short, healthy.poor, healthy.failed) if s is not None]
        if steps and steps[0] < healthy.low:
            assert sorted(steps, reverse=True) == steps, name
        elif steps:
            assert steps[0] > healthy.high and sorted(steps) == steps, name


def test_a_range_says_itself_in_words():
    assert str(HEALTHY["match"]) == "at least 0.8"
    assert str(HEALTHY["loss"]) == "at most 0.3"
    assert str(HEALTHY["spread_ratio"]) == "0.5 to 2"


def test_the_same_measure_has_the_same_range():
    for name in ("train_accuracy", "last_accuracy", "read_accuracy"):
        assert healthy_range(name) is HEALTHY["accuracy"]
    assert healthy_range("first_loss") is HEALTHY["first_loss"]
    assert healthy_range("reward_mean") is None


# ---- healthy ranges elsewhere --------------------------------------------------------------------

SAID = re.compile(r"at least [\d.e-]*\d|at most [\d.e-]*\d|\d[\d.]* to \d[\d.]*")


def table_rows(text: str, heading: str) -> list[dict[str, str]]:
    """Rows of the Markdown tables below a heading, up to the next one: column name -> cell."""
    section = text.split(heading, 1)[1].split("\n## ", 1)[0]
    rows, columns = [], None
    for line in section.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if columns is None:
            columns = cells
        elif not set(line) <= set("|-: "):
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def misstated(page: str) -> list[str]:
    """Rows of docs/metrics.md whose healthy column is not what HEALTHY says of their names."""
    wrong = []
    for heading in ("## While training", "## Against gold", "## Probes"):
        for row in table_rows(page, heading):
            if "healthy" not in row:
                continue
            names = re.findall(r"`(\w+)`", row["name"])
            ranges = {str(healthy_range(name)) for name in names if healthy_range(name)}
            if set(SAID.findall(row["healthy"])) != ranges:
                wrong.append(row["name"])
    return wrong


def test_docs_metrics_says_the_healthy_ranges():
    """Each range in the words of HEALTHY, and no other range than these."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert misstated(page) == []


@pytest.mark.parametrize(
    "said, instead",
    [
        ("at least 0.8 |", "at least 0.85 |"),
        ("| at most 0.25 |", "| small |"),
        ("| any |", "| 0.1 to 7 |"),
    ],
)
def test_a_changed_range_in_docs_metrics_is_found(said, instead):
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert said in page
    assert misstated(page.replace(said, instead, 1)) != []


README_ROWS = {
    "first loss": "first_loss",
    "scale": "scale",
    "match with gold": "match",
    "training accuracy": "accuracy",
    "lost updates": "lost_updates",
}


def numbers_in(cell: str) -> set[float]:
    """The numbers of a cell, percentages as shares; what is in parentheses only illustrates."""
    said = re.sub(r"\([^()]*\)", "", cell)
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)(%?)", said)
    return {float(number) / (100 if percent else 1) for number, percent in found}


def misstated_in_readme(text: str) -> list[str]:
    """Rows of README's table with other numbers than HEALTHY's."""
    wrong = []
    rows = table_rows(text, "## What to expect")
    for words, name in README_ROWS.items():
        row = next(row for row in rows if row[""].startswith(words))
        healthy = HEALTHY[name]
        bounds = {bound for bound in (healthy.low, healthy.high) if math.isfinite(bound)}
        steps = {healthy.short, healthy.poor, healthy.failed} - {None}
        if numbers_in(row["healthy"]) != bounds:
            wrong.append(f"{name}, healthy: {row['healthy']}")
        if not numbers_in(row["look closer"]) <= bounds | steps:
            wrong.append(f"{name}, look closer: {row['look closer']}")
    return wrong


def test_readme_says_the_healthy_ranges():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert misstated_in_readme(text) == []


@pytest.mark.parametrize(
    "said, instead", [("| 0.67 to 1.5 |", "| 0.6 to 1.5 |"), ("under 80%", "under 82%")]
)
def test_a_changed_range_in_readme_is_found(said, instead):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert said in text
    assert misstated_in_readme(text.replace(said, instead, 1)) != []


def test_quickstart_takes_its_ranges_from_healthy():
    """Every row of its closing table names the range; none has bounds of its own."""
    script = (REPOSITORY / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    assert "from rmood.metrics import HEALTHY" in script
    for name in ("first_loss", "accuracy", "match", "scale"):
        assert re.search(rf"""["']{name}["']""", script), name
    python = script.split("<<'PYTHON'", 1)[1]
    bounds = {f"{b:g}" for h in HEALTHY.values() for b in (h.low, h.high) if math.isfinite(b)}
    own = [number for number in re.findall(r"(?<![\w.])\d\.\d+", python) if number in bounds]
    assert own == []
