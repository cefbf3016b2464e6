"""The four questions, from numbers alone: each word, and what an unmeasured number says."""

import numpy as np
import pytest

from rmood.diagnosis.questions import answers, as_text, described_ratio
from rmood.diagnosis.scale import scale_numbers


def measured(**changes) -> dict:
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 600)
    x = np.where(rng.random(600) < 1 / (1 + np.exp(-margin)), margin, -margin)
    return scale_numbers(x, np.arange(600)) | changes


def test_from_two_rewards_files_scale_alone_is_answered():
    scale, knowledge, resolution, rl = answers(measured())
    assert scale.word == "calibrated" and "over 600 pairs" in scale.measured
    assert knowledge.word == "cannot tell" and "look alike" in knowledge.meaning
    assert (resolution.word, rl.word) == ("not measured", "not measured")


def test_why_a_number_was_not_measured_is_said():
    reasons = {"train_bits": "the start model is on the hub", "resolution": "no texts"}
    _, knowledge, resolution, _ = answers(measured(), reasons)
    assert "the start model is on the hub" in knowledge.meaning
    assert resolution.meaning == "no texts"


@pytest.mark.parametrize("word", ["memorised", "under-learned", "learned", "cannot tell"])
def test_training_pairs_beside_held_out_ones(word):
    train = {"train_bits": 0.9, "train_bits_low": 0.88, "train_bits_high": 0.92}
    knowledge = answers(measured(**train, learning_word=word))[1]
    assert knowledge.word == word
    assert "scored now: 0.90 (0.88 to 0.92) bits" in knowledge.measured


@pytest.mark.parametrize("share, word", [(0.049, "fine"), (0.051, "order lost")])
def test_rounding_loses_the_order_above_5_percent(share, word):
    assert answers(measured(resolution=share, score_noise=0.01))[2].word == word


def test_too_few_prompts_are_named():
    few = scale_numbers(np.array([1.0, -0.5, 2.0]), np.arange(3))
    assert answers(few)[0].word == "cannot tell"
    assert "only 3 prompts" in answers(few)[0].meaning


def test_the_ratio_is_described_and_no_verdict():
    assert "gold's unit is arbitrary" in described_ratio({"spread_ratio": 0.18})
    assert described_ratio({"spread_ratio": None}) == ""


def test_as_text_every_question_has_its_answer_and_reason():
    shown = as_text(measured(spread_ratio=0.18), [{"what": "resolution", "why": "no texts"}])
    assert shown.count("?") == 4
    assert "  calibrated: scale 1." in shown or "  calibrated: scale 0." in shown
    assert "not measured\n  no texts" in shown
    assert "Described, not judged\n  rewards within a prompt spread 0.18 times" in shown
    assert max(map(len, shown.splitlines())) <= 98
