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


def test_a_verdict_names_the_faults_what_to_do_once_and_what_was_not_measured():
    numbers = {
        "file_is": "shuffled",
        "file_words": "row 0 holds the rewards of row 7",
        "model": "a",
    }
    findings = faults.findings(numbers | {"right_low": 0.45, "right_high": 0.55, "right": 0.5})
    missing = [{"what": name, "why": "no texts"} for name in ("length_match", "twin_gap")]
    shown = text.verdicts("rm", findings, missing)
    lines = shown.splitlines()
    assert lines[0] == "verdict on rm: rewards shuffled (error)"
    assert "row 0 holds the rewards of row 7" in lines[1]
    assert lines[2] == "  possible causes, likeliest first:"
    assert lines[3].startswith("    1. ")
    assert "verdict on rm: random match (error)" in lines
    assert shown.count("what to do: ") == 1
    assert shown.endswith("not measured, so not judged:\n  length_match, twin_gap: no texts")


def test_a_healthy_model_is_said_to_be_so_as_far_as_was_measured():
    shown = text.verdicts("rm", [])
    assert shown == "verdict on rm: no error and no warning among what was measured"
    note = faults.findings({"sampling_template_differs": 1.0, "template_words": "they differ"})
    assert text.verdicts("rm", note).startswith(shown)


def test_the_quality_table_shows_the_healthy_ranges_of_the_one_table():
    numbers = dict.fromkeys(
        "train_accuracy train_accuracy_low train_accuracy_high train_loss margin_mean train_bits "
        "train_bits_low train_bits_high train_scale train_scale_low train_scale_high "
        "margin_median margin_std reward_mean reward_std reward_min reward_max".split(),
        0.5,
    )
    shown = text.quality_table(numbers | {"pairs": 8, "ties": 0, "train_scale_word": "squeezed"})
    assert f"healthy: {HEALTHY['loss']}" in shown
    assert "0.50 (0.50 to 0.50)  squeezed" in shown
    assert "gold's unit is arbitrary" in shown


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


def test_a_curve_that_falls_says_whether_that_may_be_chance():
    row = {"kl": 0.0, "gold_error": 0.0, "gold_own": 9.0, "proxy": 0.0}
    curve = [row | {"n": 1, "gold": 1.0}, row | {"n": 2, "gold": 3.0}, row | {"n": 3, "gold": 2.0}]
    curve[-1] |= {"decline": 1.0, "decline_low": 0.4, "decline_high": 1.6}
    assert "falls by 1.000 (95%: 0.4000 to 1.6000), over-optimised" in text.best_of_n(curve)
    curve[-1]["decline_low"] = -0.1
    assert "may be chance" in text.best_of_n(curve)


def test_a_number_is_shown_with_its_interval():
    numbers = {"scale": 0.98, "scale_low": 0.85, "scale_high": 1.11}
    assert text.estimate(numbers, "scale") == "0.98 (0.85 to 1.11)"
    assert text.estimate({"scale": None, "scale_low": 4.0}, "scale") == "over 4.00"
    assert text.estimate({}, "scale") == "-"
