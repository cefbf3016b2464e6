"""Numbers and findings as plain text."""

from rmood.diagnosis import faults, text
from rmood.metrics import HEALTHY


def test_numbers_are_aligned_right_and_words_left():
    rows = [["name", "a", "note"], ["x", "10", "two words"], ["long name", "5"]]
    assert text.aligned(rows).splitlines() == [
        "name        a  note",
        "x          10  two words",
        "long name   5",
    ]


def test_a_last_column_of_numbers_is_aligned_right():
    assert text.aligned([["", "n"], ["a", "10"], ["b", "2"]]) == "    n\na  10\nb   2"


def test_a_ratio_that_gold_does_not_allow_is_a_dash():
    assert text.ratio(None) == "-"
    assert text.ratio(0.5) == "0.500"


def test_a_verdict_names_the_fault_its_causes_in_order_and_what_to_do():
    findings = faults.findings({"spread_ratio": 0.1})
    lines = text.verdicts("rm", findings).splitlines()
    assert lines[0] == "verdict on rm: compressed rewards (error)"
    assert lines[2] == "  likely causes, in this order:"
    assert lines[3].startswith("    1. ")
    assert lines[-1].startswith("  what to do: ")
    assert text.verdicts("rm", []) == "verdict on rm: no finding"


def test_the_quality_table_shows_the_healthy_ranges_of_the_one_table():
    numbers = dict.fromkeys(
        "train_accuracy train_accuracy_low train_accuracy_high train_loss margin_mean "
        "margin_median margin_std reward_mean reward_std reward_min reward_max".split(),
        0.5,
    )
    shown = text.quality_table(numbers | {"pairs": 8, "ties": 0})
    assert f"healthy: {HEALTHY['loss']}" in shown
    assert f"healthy: {HEALTHY['spread_ratio']}" in shown


def test_a_curve_is_shown_at_powers_of_two_and_at_its_end():
    curve = [
        {"n": n, "kl": 0.0, "gold": float(n), "gold_error": 0.0, "gold_own": 2.0 * n, "proxy": 0.0}
        for n in range(1, 8)
    ]
    lines = text.best_of_n(curve).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "4", "7"]
    assert (
        lines[-1] == "of what gold's own pick of 7 gains, the proxy's gains 50%; its best is n = 7"
    )
