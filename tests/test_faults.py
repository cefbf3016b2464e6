"""Each fault is named on a model that has it, none on a healthy one; faults.toml is checked."""

import re

import numpy as np
import pytest

from rmood.diagnosis import faults
from rmood.diagnosis.measures import compare
from rmood.errors import UserError

HEALTHY_MODEL = {
    "match": 0.84,
    "match_ties_half": 0.845,
    "match_low": 0.81,
    "match_high": 0.87,
    "compared": 500,
    "proxy_ties": 2,
    "proxy_tie_share": 0.004,
    "proxy_bf16_share": 0.0,
    "spread_ratio": 0.9,
    "rank_correlation": 0.85,
    "best_scale": 1.0,
    "train_accuracy": 0.96,
    "train_loss": 0.2,
    "steps": 240,
    "epochs": 4,
    "update_ratio": 0.002,
    "lost_updates": 0.02,
    "update_kept": 1.0,
    "grad_norm_backbone_max": 2.0,
    "label_noise": 0.0,
    "with_gold": 900,
    "gold_tie_share": 0.05,
    "gold_at_ends": 0.01,
    "gold_std_within": 4.0,
    "duplicate_share": 0.0,
    "batch_dependence": 1e-6,
    "template_differs": 0.0,
    "config_dropout": 0.0,
    "pad_is_last": 0.0,
    "dropped_share": 0.0,
    "order_differs": 0.0,
    "twin_gap": 0.0,
    "twins": 40,
    "backbone_moved": 0.3,
    "backbone_tensors": 34,
    "read_accuracy": 0.96,
    "plain_gain": 0.0,
    "plain_gain_z": 0.0,
    "cut_gain": 0.0,
    "cut_gain_z": 0.0,
    "token_gain": 0.0,
    "token_gain_z": 0.0,
}


def match_of(match: float, half_width: float = 0.03) -> dict:
    """The numbers of a match without ties."""
    low, high = match - half_width, match + half_width
    return {"match": match, "match_ties_half": match, "match_low": low, "match_high": high}


# what a model that has learned too little shows, whatever the cause
SLOW = match_of(0.70, 0.04) | {"train_accuracy": 0.72, "train_loss": 0.6, "spread_ratio": 0.1}
CHANCE = match_of(0.5, 0.04)

FAULTY_MODELS = [
    (
        "rewards_shuffled",
        "error",
        CHANCE | {"order_differs": 1.0, "model": "rm", "order_same": 0.1},
    ),
    ("rewards_shuffled", "error", {"label_noise": 0.49}),
    ("rewards_shuffled", "error", CHANCE),
    ("labels_flipped", "error", match_of(0.18)),
    ("labels_flipped", "error", {"label_noise": 1.0}),
    ("backbone_frozen", "error", SLOW | {"backbone_moved": 0.0}),
    ("backbone_frozen", "error", SLOW | {"grad_norm_backbone_max": 0.0}),
    ("bf16_updates_lost", "error", SLOW | {"lost_updates": 0.9, "update_kept": 0.3}),
    ("chat_template_missing", "error", SLOW | {"explained_by_plain": 1.0, "model": "rm"}),
    (
        "chat_template_missing",
        "error",
        {"plain_gain": 0.2, "plain_gain_z": 5.0, "plain_accuracy": 0.9, "read_accuracy": 0.7},
    ),
    (
        "chat_template_differs",
        "error",
        {"template_differs": 1.0, "template_words": "training 1234, scoring 5678"},
    ),
    (
        "wrong_scored_token",
        "error",
        SLOW | {"explained_by_token": 1.0, "explained_token": "at a pad after the end"},
    ),
    (
        "wrong_scored_token",
        "error",
        {
            "token_gain": 0.2,
            "token_gain_z": 5.0,
            "token_accuracy": 0.9,
            "token_words": "a pad after the end",
            "read_accuracy": 0.7,
        },
    ),
    ("wrong_scored_token", "error", {"pad_is_last": 1.0, "pad_id": 2}),
    (
        "closing_token_cut",
        "error",
        SLOW | {"explained_by_cut": 1.0, "model": "rm", "cut_at": 30, "cut_share": 0.6},
    ),
    (
        "closing_token_cut",
        "error",
        {
            "cut_gain": 0.2,
            "cut_gain_z": 5.0,
            "cut_accuracy": 0.9,
            "cut_words": "30",
            "read_accuracy": 0.7,
        },
    ),
    ("closing_token_cut", "error", {"dropped_share": 0.4, "max_length": 30}),
    ("dropout_left_on", "error", {"twin_gap": 0.2, "reproduced": 0.8}),
    ("dropout_left_on", "warning", SLOW | {"config_dropout": 0.3}),
    ("noisy_labels", "error", SLOW | {"label_noise": 0.2, "least_loss": 0.5}),
    (
        "rewards_overcentred",
        "error",
        {
            "spread_ratio": 0.03,
            "rank_correlation": 0.8,
            "best_scale": 30.0,
            "train_accuracy": 0.84,
            "train_loss": 0.64,
        },
    ),
    (
        "gold_nearly_constant",
        "error",
        {"gold_tie_share": 0.9, "gold_min": 0, "gold_max": 1, "gold_std": 0.2},
    ),
    (
        "gold_nearly_constant",
        "error",
        {"gold_std_within": 0.001, "gold_min": 0.5, "gold_max": 0.501},
    ),
    ("gold_saturated", "error", {"gold_at_ends": 0.5, "gold_min": 0, "gold_max": 1}),
    ("batch_dependent_rewards", "error", {"batch_dependence": 0.4}),
    ("duplicate_prompts", "warning", {"duplicate_share": 0.3}),
    ("learning_rate_too_low", "error", SLOW | {"update_ratio": 1e-4}),
    ("noisy_labels", "error", SLOW | {"best_scale": 0.6}),
    ("learning_rate_too_low", "error", SLOW),
    ("too_few_epochs", "error", SLOW | {"epochs": 1, "steps": 60}),
    (
        "too_few_epochs",
        "warning",
        match_of(0.78) | {"epochs": 1, "steps": 100, "train_accuracy": 0.85},
    ),
    ("compressed_rewards", "error", {"spread_ratio": 0.18}),
    ("overdispersed_rewards", "warning", {"spread_ratio": 2.5}),
    ("low_match", "warning", match_of(0.72) | {"train_accuracy": 0.85}),
    ("low_match", "error", match_of(0.66, 0.04) | {"train_accuracy": 0.95}),
    ("random_match", "error", match_of(0.51, 0.05) | {"train_accuracy": 0.85}),
    ("not_learning", "error", {"train_accuracy": 0.75}),
    ("training_failed", "error", {"train_accuracy": 0.6}),
    ("loss_not_decreasing", "warning", {"train_loss": 0.6}),
    ("poor_generalization", "warning", match_of(0.74)),
    ("tied_rewards", "warning", {"proxy_ties": 30, "proxy_tie_share": 0.06}),
]
SYMPTOMS = {fault.id for fault in faults.read_faults() if fault.symptom}


def ids(numbers: dict) -> list[str]:
    return [finding["id"] for finding in faults.findings(numbers)]


# ---- findings ------------------------------------------------------------------------------------


def test_nothing_is_named_on_a_healthy_model():
    assert faults.findings(HEALTHY_MODEL) == []


@pytest.mark.parametrize("fault, severity, numbers", FAULTY_MODELS)
def test_each_fault_is_named_on_a_model_that_has_it(fault, severity, numbers):
    """A cause stands before the symptoms that it brings, and no second cause is made up."""
    found = faults.findings(HEALTHY_MODEL | numbers)
    finding = next(finding for finding in found if finding["id"] == fault)
    assert finding["severity"] == severity
    assert finding["evidence"] and finding["causes"] and finding["advice"]
    assert "{" not in finding["evidence"] + "".join(finding["causes"]) + finding["advice"]
    causes = [other["id"] for other in found if other["id"] not in SYMPTOMS]
    if fault not in SYMPTOMS and severity == "error":
        assert causes == [fault]
        assert found[0]["id"] == fault


def test_every_block_of_the_table_is_tried_above():
    tried = sorted((fault, severity) for fault, severity, _ in FAULTY_MODELS)
    assert sorted((fault.id, fault.severity) for fault in faults.read_faults()) == tried


def test_errors_come_first_and_what_was_not_measured_is_not_spoken_of():
    found = faults.findings({"train_loss": 0.68, "train_accuracy": 0.55})
    assert [finding["severity"] for finding in found] == ["error", "warning"]
    assert "match" not in found[0]["evidence"]
    assert "0.550" in found[0]["evidence"]
    assert faults.findings({}) == []
    assert faults.findings({"spread_ratio": None}) == []


def test_the_fit_is_that_of_the_finished_model_where_it_was_measured():
    """Otherwise the mean of the last steps is used, and the evidence says which one it is."""
    last = {"last_accuracy": 0.6, "last_loss": 0.65}
    finished = {"train_accuracy": 0.97, "train_loss": 0.1}
    assert ids(last) == ["training_failed", "loss_not_decreasing"]
    evidence = faults.findings(last)[0]["evidence"]
    assert "training accuracy in the last tenth of the steps 0.600" in evidence
    assert ids(last | finished) == []
    evidence = faults.findings({"train_accuracy": 0.6})[0]["evidence"]
    assert "training accuracy of the finished model 0.600" in evidence


def test_only_the_first_guess_is_named_and_none_beside_a_measured_cause():
    """Of a slow model's guesses the first; with a frozen backbone, which is measured, none."""
    guesses = [fault for fault in faults.read_faults() if fault.last_resort]
    numbers = HEALTHY_MODEL | SLOW | {"update_ratio": 4e-4}
    holding = [fault.id for fault in guesses if fault.shows_in(numbers | faults.derived(numbers))]
    assert len(holding) > 1
    assert holding[0] in ids(numbers)
    assert not set(holding[1:]) & set(ids(numbers))
    assert not set(holding) & set(ids(numbers | {"backbone_moved": 0.0}))


def test_what_falls_short_of_a_finished_model():
    def falls_short(**numbers) -> float:
        return faults.derived(numbers)["falls_short"]

    assert falls_short() == falls_short(match=0.75, spread_ratio=0.5, train_accuracy=0.8) == 0
    assert falls_short(match=0.74) == falls_short(spread_ratio=0.49) == 1
    assert falls_short(last_accuracy=0.79) == falls_short(last_loss=0.51) == 1
    assert falls_short(last_accuracy=0.79, train_accuracy=0.9) == 0


def test_the_centring_gap_is_the_loss_above_the_entropy_of_the_accuracy():
    """An accuracy of 0.8 allows a loss of 0.5004."""
    numbers = {"train_accuracy": 0.8, "train_loss": 0.65}
    assert faults.derived(numbers)["centring_gap"] == pytest.approx(0.1496, abs=1e-4)


@pytest.mark.parametrize(
    "gold_scale, expected",
    [
        (1, []),
        (10, ["compressed_rewards"]),
        (0.3, ["overdispersed_rewards"]),
        (-1, ["labels_flipped"]),
    ],
)
def test_verdicts_from_rewards_alone(gold_scale, expected):
    """500 prompts, proxy = gold + noise of a third of its std: about 90% match."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(500, 2)) * 3
    assert ids(compare(base + rng.normal(size=base.shape), base * gold_scale)) == expected


def test_rewards_drawn_at_random_match_at_random():
    rng = np.random.default_rng(0)
    numbers = compare(rng.normal(size=(400, 2)), rng.normal(size=(400, 2)))
    assert ids(numbers) == ["random_match"]


# ---- reading the table ---------------------------------------------------------------------------

ONE_FAULT = """
[numbers]
all = ["match", "spread_ratio", "last_accuracy", "steps"]

[clauses]
MATCH = "match {match:.3f} (healthy: {healthy.match})"

[[fault]]
id = "narrow"
severity = "error"
when = { spread_ratio = "< healthy.low", match = "0.7 to healthy.low" }
evidence = ["{MATCH}", "after {steps} steps"]
causes = ["{spread_ratio:.2f} is below {healthy.spread_ratio.low}"]
advice = "look at {MATCH}"
"""


def read(tmp_path, text: str) -> list[faults.Fault]:
    path = tmp_path / "faults.toml"
    path.write_text(text, encoding="utf-8")
    return faults.read_faults(path)


def test_a_block_becomes_a_fault(tmp_path):
    (fault,) = read(tmp_path, ONE_FAULT)
    assert fault.when == {"spread_ratio": [("<", 0.5)], "match": [(">=", 0.7), ("<", 0.8)]}
    assert fault.evidence[0] == "match {match:.3f} (healthy: {healthy.match})"
    assert not fault.symptom and not fault.last_resort
    assert fault.shows_in({"spread_ratio": 0.4, "match": 0.7})
    assert not fault.shows_in({"spread_ratio": 0.5, "match": 0.7})
    assert not fault.shows_in({"spread_ratio": 0.4, "match": 0.8})
    assert not fault.shows_in({"spread_ratio": 0.4})
    assert not fault.shows_in({"spread_ratio": float("nan"), "match": 0.7})


@pytest.mark.parametrize(
    "condition, holding, failing",
    [
        ("> 2", [2.1, 1e9], [2, -3]),
        (">= 2", [2], [1.9]),
        ("< 1e-3", [0.0009, -1], [0.001]),
        ("<= 1", [1], [1.1]),
        ("0.4 to 0.6", [0.4, 0.5], [0.39, 0.6]),
        ("yes", [1.0, True], [0.0]),
        ("no", [0.0, False], [1.0]),
        ("> healthy.high", [2.01], [2.0]),
    ],
)
def test_conditions(tmp_path, condition, holding, failing):
    text = ONE_FAULT.replace('"< healthy.low"', f'"{condition}"', 1)
    (fault,) = read(tmp_path, text)
    assert all(fault.shows_in({"spread_ratio": v, "match": 0.75}) for v in holding)
    assert not any(fault.shows_in({"spread_ratio": v, "match": 0.75}) for v in failing)


@pytest.mark.parametrize(
    "said, instead, mistake",
    [
        ("severity = ", "severty = ", "'severty'"),
        ('advice = "look at {MATCH}"', "", "'advice'"),
        ('severity = "error"', 'severity = "bad"', "severity 'bad' is not one of error, warning"),
        ('"0.7 to healthy.low"', '"about 0.7"', "match = 'about 0.7' cannot be read"),
        ('"0.7 to healthy.low"', "0.7", "match = 0.7 cannot be read"),
        ('"< healthy.low"', '"< high"', "'high'"),
        ('"< healthy.low"', '"< healthy.lowest"', "spread_ratio has no healthy.lowest"),
        ('"< healthy.low"', '"< healthy.failed"', "spread_ratio has no healthy.failed"),
        ("0.7 to healthy.low", "< healthy.high", "match has no healthy.high"),
        ("{ spread_ratio", "{ sread_ratio", "no measurement gives sread_ratio"),
        ('"{MATCH}", "after', '"{MACH}", "after', "unknown 'MACH' in the text"),
        ("after {steps}", "after {stps}", "unknown 'stps' in the text"),
        ("{healthy.spread_ratio.low}", "{healthy.spread.low}", "'spread'"),
        ("look at {MATCH}", "after {steps} steps", "unknown 'steps' in the text"),  # not in when
        ("after {steps} steps", "after {steps", "'}'"),
        ('causes = ["', 'causes = "', "lists of texts"),
    ],
)
def test_a_mistake_in_the_table_is_one_line_that_names_the_fault(tmp_path, said, instead, mistake):
    assert said in ONE_FAULT
    text = ONE_FAULT.replace(said, instead, 1)
    if instead == 'causes = "':
        text = text.replace('.low}"]', '.low}"')
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert re.match(r".*faults\.toml: fault narrow: ", message)
    assert mistake in message
    assert "\n" not in message


def test_what_is_not_toml_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"faults\.toml: not readable as TOML.*line 5"):
        read(tmp_path, ONE_FAULT.replace("[clauses]", "[clauses"))
