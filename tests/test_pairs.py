"""Training pairs against the gold rewards that they were made from."""

import itertools
import json

import numpy as np
import pytest
from conftest import DATA, needs_data

from rmood.diagnosis.pairs import (
    cue_numbers,
    equal_sides,
    label_noise,
    not_of_their_row,
    pairs_against_gold,
    repeats_prompt,
    sides_in_row,
    text_shift,
)
from rmood.files.tables import Pair, read_pairs


def pair(i: int, chosen: str, rejected: str, **more) -> Pair:
    prompt = [{"role": "user", "content": f"prompt {i}"}]
    sides = [[*prompt, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Pair(*sides, **more)


PROMPTS = [[{"role": "user", "content": f"prompt {i}"}] for i in range(4)]
RESPONSES = [["a", "b"], ["c", "d"], ["e", "e"], ["g", "h"]]
GOLD = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 4.0]]
GOOD = [pair(0, "a", "b", index=0), pair(1, "d", "c", index=1), pair(3, "g", "h", index=3)]


def failures(
    pairs, responses=RESPONSES, gold=GOLD, prompts=PROMPTS, **made_with
) -> dict[str, list[str]]:
    checks = pairs_against_gold(pairs, prompts, responses, gold, **made_with)
    return {name: wrong for name, wrong, _ in checks if wrong}


@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_pairs_as_gold_makes_them_pass_with_and_without_an_index(prompts):
    assert failures(GOOD, prompts=prompts) == {}
    without_index = [pair(0, "a", "b"), pair(1, "d", "c"), pair(3, "g", "h")]
    assert failures(without_index, prompts=prompts) == {}


def test_what_passed_is_said_in_numbers():
    said = {name: words for name, _, words in pairs_against_gold(GOOD, PROMPTS, RESPONSES, GOLD)}
    assert said["texts are those of their row"] == "3 pairs found among 4 rows"
    assert said["chosen is what gold prefers"] == "3 of 3 pairs"
    assert said["rewards in the pairs are gold's"] == "the pairs hold none"
    assert said["no pair is missing"] == "1 gold ties left out"


PREFERS = "chosen is what gold prefers"
TEXTS = "texts are those of their row"


@pytest.mark.parametrize(
    "pairs, check, line",
    [
        (
            [GOOD[0], pair(1, "c", "d", index=1), GOOD[2]],
            PREFERS,
            "pair 1 (row 1): gold gives the chosen 0, the rejected 3",
        ),
        ([GOOD[0], pair(1, "d", "x", index=1), GOOD[2]], TEXTS, "pair 1 (row 1)"),
        ([pair(9, "a", "b", index=0), *GOOD[1:]], TEXTS, "pair 0 (row 0)"),  # another prompt
        ([*GOOD, pair(3, "g", "h", index=99)], TEXTS, "pair 3 (row 99)"),
        (
            [GOOD[1], GOOD[0], GOOD[2]],
            "pairs follow the order of the rows",
            "pair 1 (row 0) follows row 1",
        ),
        (GOOD[:2], "no pair is missing", "row 3: gold gives 5 and 4"),
        ([*GOOD, GOOD[2]], "no pair twice", "pair 3 (row 3) repeats pair 2"),
        (
            [pair(0, "a", "b", index=0, chosen_reward=2.0, rejected_reward=1.5), *GOOD[1:]],
            "rewards in the pairs are gold's",
            "pair 0 (row 0): 2 and 1.5 in the pair, 2 and 1 by gold",
        ),
        (
            [Pair(GOOD[0].chosen, GOOD[1].rejected, index=0), *GOOD[1:]],
            "same prompt on both sides",
            "pair 0",
        ),
    ],
)
def test_each_fault_of_the_pairs_is_named_with_its_row(pairs, check, line):
    assert failures(pairs)[check] == [line]


def test_a_fault_fails_no_other_check():
    assert failures([GOOD[1], GOOD[0], GOOD[2]]).keys() == {"pairs follow the order of the rows"}
    assert failures(GOOD[:2]).keys() == {"no pair is missing"}
    assert failures([*GOOD, GOOD[2]]).keys() == {"no pair twice"}


def test_pairs_left_out_on_purpose_are_not_missing():
    """Gold margins 1, 3, tie, 1: a minimum margin of 2 leaves the pair of row 1 alone."""
    assert failures([GOOD[1]], min_margin=2.0) == {}
    checks = pairs_against_gold([GOOD[1]], PROMPTS, RESPONSES, GOLD, min_margin=2.0)
    words = "1 gold ties left out, and 2 pairs that preprocess.py was told to leave out"
    assert checks[-1] == ("no pair is missing", [], words)
    gold = [*GOLD[:2], [1.0, 2.0], GOLD[3]]  # now prefers one of the identical responses
    assert failures(GOOD, gold=gold, drop_identical=True) == {}
    assert failures(GOOD, gold=gold).keys() == {"no pair is missing"}


def test_three_responses_make_up_to_three_pairs_of_a_row():
    responses, gold = [["a", "b", "c"]], [[1.0, 3.0, 2.0]]
    pairs = [pair(0, "b", "a"), pair(0, "c", "a"), pair(0, "b", "c")]
    assert failures(pairs, responses, gold, PROMPTS[:1]) == {}
    missing = failures(pairs[:2], responses, gold, PROMPTS[:1])
    assert missing == {"no pair is missing": ["row 0: gold gives 3 and 2"]}


def test_equal_responses_make_several_readings_of_which_gold_s_best_counts():
    """Responses a, b, a with gold rewards 0, 1, 2: a beats b only as the third response."""
    pairs = [pair(0, "a", "b")]
    assert sides_in_row(pairs[0], None, ["a", "b", "a"]) == [(0, 1), (2, 1)]
    wrong = failures(pairs, [["a", "b", "a"]], [[0.0, 1.0, 2.0]], PROMPTS[:1])
    assert PREFERS not in wrong and TEXTS not in wrong


def test_labels_are_compared_with_the_gold_file_or_the_pairs_own_rewards():
    good, bad = pair(0, "a", "b", index=0), pair(1, "c", "d", index=1)
    responses, gold = [["a", "b"], ["c", "d"]], [[2.0, 1.0], [1.0, 2.0]]
    found = label_noise([good, bad], None, responses, gold)
    assert (found["label_noise"], found["with_gold"]) == (0.5, 2)
    assert found["least_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert label_noise([good, bad], None, None, None) == {}
    own = [
        pair(0, "x", "y", chosen_reward=1.0, rejected_reward=2.0),
        pair(1, "x", "y", chosen_reward=2.0, rejected_reward=1.0),
    ]
    assert label_noise(own, None, None, None)["label_noise"] == 0.5


def test_the_pairs_own_rewards_are_held_to_their_labels_whatever_the_gold_file_says():
    """Soft labels are made of these: swapped columns teach the reverse of labels that are right."""
    swapped = [
        pair(0, "a", "b", index=0, chosen_reward=1.0, rejected_reward=2.0),
        pair(1, "d", "c", index=1, chosen_reward=0.0, rejected_reward=3.0),
    ]
    found = label_noise(swapped, None, RESPONSES[:2], GOLD[:2])
    assert (found["label_noise"], found["scores_against"]) == (0.0, 1.0)
    assert "scores_against" not in label_noise(GOOD, None, RESPONSES, GOLD)


def test_a_response_that_begins_with_its_prompt_repeats_it():
    question = [{"role": "system", "content": "s"}, {"role": "user", "content": "Say hello. "}]

    def repeats(text: str, prompt=question) -> bool:
        return repeats_prompt([*prompt, {"role": "assistant", "content": text}])

    assert repeats("\nSay hello. Hello!")
    assert not repeats("Hello! Say hello.")
    assert not repeats("anything", [{"role": "user", "content": ""}])
    assert not repeats("anything", [])


def test_texts_that_are_not_in_the_row_which_a_pair_names_are_counted():
    """A text of another prompt, and one that was edited; pairs without a row say nothing."""
    assert not_of_their_row(GOOD, PROMPTS, RESPONSES) == {
        "foreign_share": 0.0,
        "foreign_share_low": pytest.approx(0.0),
    }
    foreign = [pair(0, "a", "c", index=0), pair(1, "d ", "c", index=1)]
    assert not_of_their_row([*GOOD[:2], *foreign], None, RESPONSES)["foreign_share"] == 0.5
    assert not_of_their_row([pair(0, "x", "y")], None, RESPONSES) == {}
    shifted = [pair(1, "a", "b", index=0), *GOOD[1:]]  # the responses of row 0, another question
    assert not_of_their_row(shifted, None, RESPONSES)["foreign_share"] == 0.0
    assert not_of_their_row(shifted, PROMPTS, RESPONSES)["foreign_share"] == pytest.approx(1 / 3)


def test_pairs_of_one_text_are_counted():
    pairs = [pair(0, "a", "a"), pair(1, "a", "b"), pair(2, "c", "c"), pair(3, "d", "d")]
    assert equal_sides(pairs)["equal_sides"] == 0.75


def marked(count: int, mark: str) -> list[Pair]:
    """Of nine in ten pairs the chosen text alone ends with the mark."""
    return [
        pair(i, f"text {i}" + (mark if i % 10 else ""), f"text x{i}", index=i) for i in range(count)
    ]


@pytest.mark.parametrize(
    "mark, words",
    [
        ("\n", "it ends in white space"),
        ("<|im_end|>", "it has a template's token"),
        ("</s>", "it has a template's token"),
        (" indeed", "it ends with 'indeed'"),
        (".", "its last character is none of . ! ?"),
    ],
)
def test_a_mark_that_tells_chosen_from_rejected_is_found(mark, words):
    """0.9 of the pairs by it, and half of the tenth that it leaves open: 0.95."""
    gold = np.array([[1.0, 0.0]] * 40)
    plain = [["a b", "c d"]] * 40
    found = cue_numbers(marked(200, mark), plain, gold)
    side = "rejected" if mark == "." else "chosen"  # it is the other one that has no full stop
    assert found["cue"] == f"in the {side} response, {words}"
    assert found["cue_right"] == pytest.approx(0.95)
    assert found["cue_test_right"] == 0.5
    on_test = cue_numbers(marked(200, mark), [[f"a b{mark}", "c d"]] * 40, gold)
    assert on_test["cue_test_right"] == 1.0
    turned = cue_numbers(marked(200, mark), [[f"a b{mark}", "c d"]] * 40, -gold)
    assert turned["cue_test_right"] == 0.0


def test_texts_that_look_alike_have_no_mark():
    rng = np.random.default_rng(0)
    letters = [["".join(rng.choice(list("abcd. "), 9)) for _ in range(2)] for _ in range(300)]
    pairs = [pair(i, *both) for i, both in enumerate(letters)]
    gold = rng.normal(size=(300, 2))
    found = cue_numbers(pairs, letters, gold)
    assert found["cue_right_high"] < 0.7
    assert cue_numbers(pairs, letters, np.zeros((300, 2))) == {}  # gold orders nothing


def test_words_and_turns_of_the_test_are_held_to_those_of_the_training_pairs():
    """Words drawn from one list of 100: what the first half has not is as rare in the second half
    as in the test; one test word in five masked, and two turns before the question."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(100)])

    def text() -> str:
        return " ".join(rng.choice(words, 10))

    pairs = [pair(i, text(), text()) for i in range(60)]
    prompt = pairs[0].chosen[:-1]
    tests = [[[*prompt, {"role": "assistant", "content": text()}]] for _ in range(50)]
    alike = text_shift(pairs, tests)
    assert alike["unknown_turns"] == 0.0
    assert alike["unseen_words_low"] - alike["train_unseen_words_high"] < 0.01

    masked = [[[*prompt, {"role": "assistant", "content": f"{text()} [X] [X]"}]] for _ in range(50)]
    found = text_shift(pairs, masked)
    assert found["unseen_words"] == pytest.approx(2 / 12, abs=0.02)
    examples = [[[*prompt, *prompt, *prompt, tests[0][0][-1]]]] * 50
    assert text_shift(pairs, examples)["unknown_turns"] == 1.0


# ---- real preference data ------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("file", ["hh/harmless-base-test.jsonl.gz", "judgebench/pairs.jsonl"])
def test_people_s_labels_and_objective_ones_cannot_be_told_at_a_look(file):
    pairs = read_pairs(str(DATA / file))[:2000]
    found = cue_numbers(pairs, [["a", "b"]], np.array([[1.0, 0.0]]))
    assert found["cue_right_high"] < 0.6


@needs_data
def test_a_refusal_s_first_word_tells_rm_bench_s_safety_pairs():
    """Every chosen response refuses: a model trained on these alone learns how refusals begin."""
    rows = json.loads((DATA / "rm-bench" / "safety-refuse_filtered.json").read_text("utf-8"))
    pairs = []
    for number, row in enumerate(rows):
        sides = itertools.product(row["chosen"], row["rejected"])
        pairs += [pair(number, chosen, rejected) for chosen, rejected in sides]
    found = cue_numbers(pairs[:2000], [["a", "b"]], np.array([[1.0, 0.0]]))
    assert found["cue"] == 'in the chosen response, it begins with "I\'m"'
    assert found["cue_right"] > 0.8
    assert found["cue_test_right"] == 0.5  # another test has no refusals
